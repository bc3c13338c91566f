"""200 random chains, each of which must run native and equal the pure reference. Bounds: see against_reference."""

from __future__ import annotations

import pytest
import torch
from against_reference import compared

CASES = [
    *[(seed, torch.float64) for seed in range(140)],
    *[(seed, torch.float32) for seed in range(140, 170)],
    *[(seed, torch.bfloat16) for seed in range(170, 190)],
    *[(seed, torch.float16) for seed in range(190, 200)],
]
IDS = [f"{seed}-{str(dtype)[6:]}" for seed, dtype in CASES]

_sources: dict[int, set[str]] = {}


@pytest.mark.parametrize(("seed", "dtype"), CASES, ids=IDS)
def test_a_random_chain_runs_native_and_equals_the_reference(seed, dtype):
    _sources[seed] = compared(seed, dtype)


@pytest.mark.parametrize("seed", range(3))
def test_parameters_of_several_dtypes_are_several_classes(seed):
    assert len(compared(seed, torch.float32, torch.bfloat16, torch.float16)) > 1


def test_the_chains_are_many_different_kernels():
    for seed, dtype in CASES[:20]:
        if seed not in _sources:  # this test runs alone, or on another worker
            _sources[seed] = compared(seed, dtype)
    distinct = set().union(*_sources.values())
    assert len(distinct) >= len(_sources), f"{len(_sources)} chains gave {len(distinct)} kernels"
