"""200 random chains, each of which must run native and equal the pure reference.

Bounds. float64: 1e-12 of the largest displacement, for the expressions are grown so that no node magnifies rounding by
more than GROWTH. float32: 2e-4 of it, the same growth from a 1e9 times larger epsilon, but not over all of the steps at
once. bfloat16 and float16: a value next to a rounding border may fall on its other side, so that a state, rounded
once each step, differs by one unit in its last place, and what is computed from it by GROWTH of those; almost all
elements must still be the very same.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradchain as gch
from gradchain.core.eager import EagerTensors
from gradchain.core.tensors import Tensors
from programs import expression, random_rule

SHAPES = [(5, 3), (), (17,), (0,), (4, 2, 3), (300,), (1,)]
STEPS = 3
CASES = [
    *[(seed, torch.float64) for seed in range(140)],
    *[(seed, torch.float32) for seed in range(140, 170)],
    *[(seed, torch.bfloat16) for seed in range(170, 190)],
    *[(seed, torch.float16) for seed in range(190, 200)],
]
IDS = [f"{seed}-{str(dtype)[6:]}" for seed, dtype in CASES]
BOUND = {torch.float64: 1e-12, torch.float32: 2e-4, torch.bfloat16: 0.25, torch.float16: 0.03}
SAME = {torch.bfloat16: 0.97, torch.float16: 0.97}  # the part of all elements that must be bitwise equal


class Model(nn.Module):
    """Parameters of every kind of shape, and nothing else."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for i, shape in enumerate(SHAPES):
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            self.register_parameter(f"w{i}", nn.Parameter(drawn))


def gradients(model: Model, seed: int, step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * seed + step)
    return {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        for name, p in model.named_parameters()
    }


def by_reference(tx: gch.chain, model: Model, seed: int) -> dict[str, torch.Tensor]:
    """The weights after the same steps in pure arithmetic."""
    with torch.no_grad():
        params: Tensors = Tensors.of(model).clone()
        index = params.index
        state = tx.init(params)
        for step in range(STEPS):
            grads = EagerTensors.at(index, gradients(model, seed, step))
            updates, state = tx.update(grads, state, gch.Context(params, step=step))
            params = gch.apply_updates(params, updates).stored_as(params)
        return dict(params)


def natively(tx: gch.chain, model: Model, seed: int) -> tuple[dict[str, torch.Tensor], set[str]]:
    """The weights after the steps of a bound chain, all of which ran native, and the kernels' sources."""
    updater = tx.bind(model)
    for step in range(STEPS):
        updater.step(gradients(model, seed, step))
        engine = updater._bound.engine
        assert engine.reason == "", f"step {step} ran by the reference: {engine.reason}\n{expression(seed)}"
    sources = set()
    for plan in engine._plans.values():
        for part in plan.parts:
            assert part.executor == "native", f"{part.executor} ran a part: {part.refused}"
            sources.add(part.runner.source)
    return {n: p.detach() for n, p in model.named_parameters()}, sources


_sources: dict[int, set[str]] = {}


def compared(seed: int, dtype: torch.dtype) -> None:
    tx = gch.chain(random_rule(seed))
    before = {n: p.detach().clone().double() for n, p in Model(dtype, seed).named_parameters()}
    want = {n: v.double() for n, v in by_reference(tx, Model(dtype, seed), seed).items()}
    got, _sources[seed] = natively(tx, Model(dtype, seed), seed)
    moved = max(float((want[n] - before[n]).abs().max()) for n in want if want[n].numel())
    wrong = {n: float((got[n].double() - want[n]).abs().max()) for n in want if want[n].numel()}
    worst = max(wrong, key=wrong.__getitem__)
    bound = BOUND[dtype] * moved
    assert wrong[worst] <= bound, f"{worst} is off by {wrong[worst]:.2e}, allowed {bound:.2e}\n{expression(seed)}"
    if dtype in SAME:
        same = sum(int((got[n].double() == want[n]).sum()) for n in want) / sum(v.numel() for v in want.values())
        assert same >= SAME[dtype], f"only {same:.1%} of the elements are the same\n{expression(seed)}"


@pytest.mark.parametrize(("seed", "dtype"), CASES, ids=IDS)
def test_a_random_chain_runs_native_and_equals_the_reference(seed, dtype):
    compared(seed, dtype)


def test_the_chains_are_many_different_kernels():
    for seed, dtype in CASES[:20]:
        if seed not in _sources:  # this test runs alone, or on another worker
            compared(seed, dtype)
    distinct = set().union(*_sources.values())
    assert len(distinct) >= len(_sources), f"{len(_sources)} chains gave {len(distinct)} kernels"
