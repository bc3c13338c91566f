"""A link whose state has rows of some parameters and all elements of others, over weights that lie in any order."""

import pytest
import torch
from torch import nn

import gradchain as gch

ORDERS = {
    "straight first": ("straight", "turned", "vector"),
    "turned first": ("turned", "straight", "vector"),
    "no vector": ("turned", "straight"),
    "an image": ("image", "turned", "vector", "straight"),
}


class SomeRowsState(gch.State):
    rows: gch.Tensors
    nu: gch.Tensors


class some_rows(gch.Transform):
    """Matrices times a mean of their rows, all else times a mean of itself; which of the two states comes first."""

    descends = False

    def init(self, params):
        matrices = params.select(params.index.subset([n for n in params if params[n].ndim > 1]))
        return SomeRowsState(matrices.mean(-1).zeros_like(), params.select(params.index.without(matrices.index)))

    def update(self, g, state, ctx):
        matrices, others = g.select(state.rows), g.select(state.nu)
        rows, nu = state.rows.lerp(matrices.mean(-1), 0.3), state.nu.lerp(others, 0.3)
        return g.overlay(matrices * rows).overlay(others * nu), SomeRowsState(rows, nu)


def drawn(names, seed):
    generator = torch.Generator().manual_seed(seed)
    made = {
        "straight": torch.randn(6, 3, generator=generator, dtype=torch.float64),
        "turned": torch.randn(6, 5, generator=generator, dtype=torch.float64).t(),
        "vector": torch.randn(9, generator=generator, dtype=torch.float64),
        "image": torch.randn(4, 3, 2, 2, generator=generator, dtype=torch.float64).to(
            memory_format=torch.channels_last
        ),
    }
    return {name: made[name] for name in names}


@pytest.mark.parametrize("executor", ["native", "blocks"])
@pytest.mark.parametrize("order", ORDERS)
def test_each_parameter_lies_as_it_lies(executor, order):
    after = {}
    for name in ("", executor):
        weights = {n: nn.Parameter(p) for n, p in drawn(ORDERS[order], 0).items()}
        updater = gch.chain(some_rows(), gch.scale(-0.1)).bind(weights)
        engine = updater._bound.engine
        engine.executors = tuple(e for e in engine.executors if e.name == name)
        for t in range(3):
            updater.step(drawn(ORDERS[order], t + 1))
        after[name] = {n: p.detach() for n, p in weights.items()}
        assert {part.executor for plan in engine._plans.values() for part in plan.parts} == {name} - {""}
    for n, p in after[""].items():
        torch.testing.assert_close(after[executor][n], p, rtol=1e-13, atol=1e-15)
