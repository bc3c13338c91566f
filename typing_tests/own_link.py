"""A user's own links: with a State, a Count and Hypers; stateless; holding; owning the weights."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import gradchain as gch


class YogiState(gch.State):
    count: gch.Count
    mu: gch.Tensors
    nu: gch.Tensors
    restarts: int = 0


class scale_by_yogi(gch.Transform):
    """Adam whose second moment moves by a sign."""

    descends = False
    role = "normalise"

    b1: gch.Hyper = gch.Hyper(0.9, "[0, 1)")
    b2: gch.Hyper = gch.Hyper(0.999, "[0, 1)")
    eps: gch.Hyper = gch.Hyper(1e-3, "[0, inf)")
    mu_dtype: torch.dtype | None = None

    def check(self) -> None:
        if self.mu_dtype is torch.int8:
            raise TypeError("scale_by_yogi: mu_dtype must be floating point, got torch.int8.")

    def init(self, params: gch.Tensors) -> YogiState:
        return YogiState(gch.Count(params.index), params.zeros_like(self.mu_dtype), params.zeros_like())

    def update(self, g: gch.Tensors, state: YogiState, ctx: gch.Context) -> tuple[gch.Tensors, YogiState]:
        count = state.count.tick(g)
        mu = state.mu.lerp(g, 1 - self.b1)
        nu = state.nu - (1 - self.b2) * (state.nu - g * g).sign() * (g * g)
        norm = g.norm()
        ctx.record("norm", norm)
        factor = gch.minimum(1.0, 1.0 / (norm + self.eps))
        direction = (mu / (1 - self.b1**count)) / ((nu / (1 - self.b2**count)).sqrt() + self.eps)
        assert_type(mu, gch.Tensors)
        assert_type(nu, gch.Tensors)
        assert_type(self.b1, float)
        return factor * direction, state.replace(count=count, mu=mu, nu=nu)


class clip_rows(gch.Transform):
    """A required Hyper, and `map` for what needs whole tensors."""

    max_norm: Annotated[gch.Hyper, "(0, inf]"]
    selector: gch.Selector = gch.min_ndim(2)

    def update(self, g: gch.Tensors, state: gch.State, ctx: gch.Context) -> tuple[gch.Tensors, gch.State]:
        members = ctx.members(self.selector)

        def clipped(row: Tensor) -> Tensor:
            norms: Tensor = torch.linalg.vector_norm(row, dim=-1, keepdim=True)
            return row * (self.max_norm / norms).clamp(max=1.0)

        return g.overlay(g.select(members).map(clipped)), state


class wait_for_warmup(gch.Transform):
    """One that holds the chain."""

    descends = False
    holds = "warmup"

    until: int = 0

    def update(self, g: gch.Tensors, state: gch.State, ctx: gch.Context) -> tuple[gch.Tensors | None, gch.State]:
        return (g if ctx.clocks["micro"] >= self.until else None), state


class stay_on_sphere(gch.Transform):
    """One that owns the weights."""

    role = "weights"
    descends = False

    def update(self, g: gch.Tensors, state: gch.State, ctx: gch.Context) -> tuple[gch.Weights, gch.State]:
        new = ctx.new_params(g)
        return gch.Weights(new.map(lambda w: w / w.norm())), state


def centred(updates: gch.Tensors, params: gch.Tensors) -> gch.Tensors:
    return updates.map(lambda g: g - g.mean()).where(params > 0, 0.0)


tx = gch.chain(
    wait_for_warmup(until=3),
    gch.stateless(centred),
    clip_rows(1.0),
    clip_rows(gch.linear(1.0, 2.0, 100), selector=gch.named("head.*") | gch.bias),
    scale_by_yogi(b1=0.95, b2=gch.cosine(0.9, 0.999, 100)),
    gch.scale_by_learning_rate(lambda step: 0.1 / (step + 1)),
    gch.project(lambda w: w.clamp(-1, 1), gch.named("scale")),
)
assert_type(tx, gch.chain)
updater = tx.bind(nn.Linear(2, 2))
again = gch.from_config(gch.to_config(tx), names={"scale_by_yogi": scale_by_yogi})
