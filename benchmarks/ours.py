"""The recipes as chains. R7's rule is a link nobody ships."""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

import gradchain as gch
from benchmarks.candidate import Candidate
from benchmarks.recipes import (
    B1,
    B2,
    DECAY,
    EMA,
    EPS,
    FIRST_STEPS,
    LION_B2,
    LION_LR,
    LR,
    MOMENTUM,
    SGD_LR,
    STEPS,
    WARM_UP,
    Cell,
    Recipe,
    multipliers,
)


class OwnState(gch.State):
    m: gch.Tensors
    s: gch.Tensors


class own_rule(gch.Transform):  # noqa: N801
    """R7: momentum over a decaying maximum, three quarters of it, and half as far where the gradient disagrees.

    m ← b1 m + (1 - b1) g;  s ← max(b2 s, |g|);  u = m / (s + eps) · (0.75 + 0.25 sign(m g))
    """

    b1: gch.Hyper = gch.Hyper(B1, "[0, 1)")
    b2: gch.Hyper = gch.Hyper(B2, "[0, 1)")
    eps: gch.Hyper = gch.Hyper(EPS, "[0, inf)")

    def init(self, params: gch.Tensors) -> OwnState:
        return OwnState(params.zeros_like(), params.zeros_like())

    def update(self, g: gch.Tensors, state: OwnState, ctx: gch.Context) -> tuple[gch.Tensors, OwnState]:
        m = state.m.lerp(g, 1 - self.b1)
        s = (self.b2 * state.s).maximum(g.abs())
        return m / (s + self.eps) * (0.75 + 0.25 * (m * g).sign()), OwnState(m, s)


def chain(recipe: Recipe, max_norm: float, model: nn.Module) -> gch.chain:
    """The recipe in the order it is read."""
    rate = {"sgd": SGD_LR, "lion": LION_LR}.get(recipe.rule, LR)
    rule = {
        "adamw": gch.scale_by_adam(B1, B2, EPS),
        "lion": gch.scale_by_lion(B1, LION_B2),
        "own": own_rule(),
        "sgd": gch.trace(MOMENTUM, nesterov=True),
    }[recipe.rule]
    decay: gch.Transform = gch.add_decayed_weights(DECAY)
    if recipe.scaled:
        decay = gch.masked(decay, gch.min_ndim(2))
    links = [gch.accumulate(recipe.micro)] if recipe.micro > 1 else []
    links += [gch.amp_scale(recipe.loss_scale, always=not recipe.first)] if recipe.scaled else []
    links += [gch.clip_by_norm(max_norm)] if recipe.clip else []
    links += [decay, rule] if recipe.rule == "sgd" else [rule, decay]
    curve = gch.cosine(rate, 0.1 * rate, STEPS) if recipe.scheduled else rate
    if recipe.first:
        curve = gch.linear(0.0, rate, WARM_UP).then(gch.cosine(rate, 0.1 * rate, FIRST_STEPS - WARM_UP))
    factors = multipliers(recipe, model)
    links += [gch.scale_by_learning_rate(gch.multiply(curve, factors) if factors else curve)]
    links += [gch.average_params(EMA, start=0 if recipe.first else 1)] if recipe.scaled else []
    return gch.chain(*links)


class Ours(Candidate):
    """`updater.update(loss)`."""

    name = "gradchain"
    ours = True

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        autocast = torch.float16 if cell.recipe.first else None
        self.updater = chain(cell.recipe, cell.max_norm, self.model).bind(self.model, autocast=autocast)

    def context(self) -> AbstractContextManager[Any]:
        return self.updater.context()

    def backward(self, loss: Tensor) -> None:
        self.updater.backward(loss)

    def step(self, last: bool) -> None:
        self.updater.step()

    def update(self, loss: Tensor, last: bool) -> None:
        self.updater.update(loss)

    @property
    def reference(self) -> str:
        """Why the last step ran by the reference and not by the engine; "" if it did not."""
        return str(self.engine.reason or "")

    @property
    def executors(self) -> dict[str, int]:
        """What ran the programs of the last step, and how many."""
        return dict(Counter(part.executor for part in self.engine.last))

    @property
    def engine(self) -> Any:
        engine = self.updater._bound.engine
        assert engine is not None, "the engine is off"
        return engine

    def norm(self) -> float | None:
        return float(self.updater.metrics["clip_by_norm.norm"]) if self.cell.recipe.clip else None

    def average(self) -> dict[str, Tensor] | None:
        return dict(self.updater.averages()) if self.cell.recipe.scaled else None
