"""A random chain run by the engine, held against the same chain in pure arithmetic.

Bounds. float64: 1e-12 of the largest displacement, for the expressions are grown so that no node magnifies rounding by
more than GROWTH. float32: 2e-4 of it, the same growth from a 1e9 times larger epsilon, but not over all of the steps at
once. bfloat16 and float16: a value next to a rounding border may fall on its other side, so that a state, rounded
once each step, differs by one unit in its last place, and what is computed from it by GROWTH of those; almost all
elements must still be the very same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from programs import expression, random_rule
from torch import nn

import gradchain as gch
from gradchain.core.eager import EagerTensors
from gradchain.core.tensors import Tensors

SHAPES = [(5, 3), (), (17,), (0,), (4, 2, 3), (300,), (1,)]
STEPS = 3
BOUND = {torch.float64: 1e-12, torch.float32: 2e-4, torch.bfloat16: 0.25, torch.float16: 0.03}
SAME = {torch.bfloat16: 0.97, torch.float16: 0.97}  # the part of all elements that must be bitwise equal


class Model(nn.Module):
    """Parameters of every kind of shape, and nothing else; of one dtype, or of several in turn."""

    def __init__(self, dtypes: Sequence[torch.dtype], seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for i, shape in enumerate(SHAPES):
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtypes[i % len(dtypes)])
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
            params = gch.apply_updates(params, updates)
        return dict(params)


def by_engine(
    tx: gch.chain, model: Model, seed: int, executor: Any, name: str
) -> tuple[dict[str, torch.Tensor], set[str]]:
    """The weights after the steps of a bound chain, all run by one executor, and the kernels' sources."""
    updater = tx.bind(model)
    engine = updater._bound.engine
    if executor is not None:
        engine.executors = (executor,)
    for step in range(STEPS):
        updater.step(gradients(model, seed, step))
        assert engine.reason == "", f"step {step} ran by the reference: {engine.reason}\n{expression(seed)}"
    sources = set()
    for plan in engine._plans.values():
        for part in plan.parts:
            assert part.executor == name, f"{part.executor} ran a part: {part.refused}"
            sources.add(part.runner.source)
    return {n: p.detach() for n, p in model.named_parameters()}, sources


def compared(seed: int, *dtypes: torch.dtype, executor: Any = None, name: str = "native") -> set[str]:
    """Fail unless the executor runs the chain of a seed and equals the reference. Returns the kernels' sources."""
    tx = gch.chain(random_rule(seed))
    before = {n: p.detach().clone().double() for n, p in Model(dtypes, seed).named_parameters()}
    want = {n: v.double() for n, v in by_reference(tx, Model(dtypes, seed), seed).items()}
    found, sources = by_engine(tx, Model(dtypes, seed), seed, executor, name)
    moved = max(float((want[n] - before[n]).abs().max()) for n in want if want[n].numel())
    wrong = {n: float((found[n].double() - want[n]).abs().max()) for n in want if want[n].numel()}
    worst = max(wrong, key=wrong.__getitem__)
    bound = max(BOUND[d] for d in dtypes) * moved
    assert wrong[worst] <= bound, f"{worst} is off by {wrong[worst]:.2e}, allowed {bound:.2e}\n{expression(seed)}"
    if any(d in SAME for d in dtypes):
        same = sum(int((found[n].double() == want[n]).sum()) for n in want) / sum(v.numel() for v in want.values())
        low = all(d in SAME for d in dtypes)
        assert not low or same >= SAME[dtypes[0]], f"only {same:.1%} of the elements are the same\n{expression(seed)}"
    return sources
