"""Random chains, each of which must run native and equal the pure reference. Bounds: see against_reference.

Every fourth of two hundred, of each dtype; with GRADCHAIN_LONG=1 all.
"""

from __future__ import annotations

import os

import pytest
import torch
from against_reference import compared
from torch import nn

import gradchain as gch

CASES = [
    *[(seed, torch.float64) for seed in range(140)],
    *[(seed, torch.float32) for seed in range(140, 170)],
    *[(seed, torch.bfloat16) for seed in range(170, 190)],
    *[(seed, torch.float16) for seed in range(190, 200)],
]
TRIED = CASES if os.environ.get("GRADCHAIN_LONG") else CASES[::4]
IDS = [f"{seed}-{str(dtype)[6:]}" for seed, dtype in TRIED]

_sources: dict[int, set[str]] = {}


@pytest.mark.parametrize(("seed", "dtype"), TRIED, ids=IDS)
def test_a_random_chain_runs_native_and_equals_the_reference(seed, dtype):
    _sources[seed] = compared(seed, dtype)


@pytest.mark.parametrize("seed", range(3))
def test_parameters_of_several_dtypes_are_several_classes(seed):
    assert len(compared(seed, torch.float32, torch.bfloat16, torch.float16)) > 1


def test_the_chains_are_many_different_kernels():
    for seed, dtype in TRIED[:20]:
        if seed not in _sources:  # this test runs alone, or on another worker
            _sources[seed] = compared(seed, dtype)
    distinct = set().union(*_sources.values())
    assert len(distinct) >= len(_sources), f"{len(_sources)} chains gave {len(distinct)} kernels"


def test_kernels_over_rows_ask_for_memory_ahead():
    """Of each column that has every element, however short a row is; what is broadcast is in the cache."""
    model = nn.Linear(24, 40, bias=False)
    updater = gch.rules.adafactor(0.01).bind(model)
    updater.update(model(torch.ones(2, 24)).square().mean())
    seen = set()
    for part in updater._bound.engine.last:
        assert part.executor == "native"
        if part.program.grid is None or part.program.grid.rank == 1:
            continue
        written = {column for column, _ in part.program.stores}
        for column, spans in enumerate(part.program.grid.spans):
            if column in part.program.loads() | written:
                asked = f"ASK(p{column} + q + 512, {int(column in written)})"
                assert (asked in part.runner.source) == all(spans)
                seen.add((bool(written), all(spans)))
    assert seen == {(True, True), (True, False), (False, True), (False, False)}
