"""A user's own links: with a State, a Count and Hypers; stateless; holding; owning the weights; gates and windows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

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


class drawn(gch.Transform):
    """Random numbers of every kind."""

    seed: int

    def update(self, g: gch.Tensors, state: gch.State, ctx: gch.Context) -> tuple[gch.Tensors, gch.State]:
        random = ctx.random(self.seed)
        assert_type(random.normal(g), gch.Tensors)
        assert_type(random.bits(g), gch.Tensors)
        return g + random.normal(g) * random.signs(g) + random.uniform(g, draw=1), state


class clip_rows(gch.Transform):
    """A required Hyper, and `map` for what needs whole tensors."""

    max_norm: Annotated[gch.Hyper, "(0, inf]"]
    selector: gch.Selector = gch.min_ndim(2)

    def update(self, g: gch.Tensors, state: gch.State, ctx: gch.Context) -> tuple[gch.Tensors, gch.State]:
        members = ctx.members(self.selector)

        def clipped(row: Tensor) -> Tensor:
            norms: Tensor = torch.linalg.vector_norm(row, dim=-1, keepdim=True)
            return row * (self.max_norm / norms).clamp(max=1.0)

        return g.overlay(g.select(members).map(clipped, gather=True)), state


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


class shrink(gch.Transform):
    """One whose arguments decide what it says of itself."""

    role = "scale"
    descends = False

    factor: gch.Hyper = gch.Hyper(0.5, "(0, 1]")
    of_all: bool = False

    def says(self) -> gch.Says:
        return {"per_parameter": not self.of_all, "uniform": frozenset({"factor"} if self.of_all else ())}

    def update(self, g: gch.Tensors, state: gch.State, ctx: gch.Context) -> tuple[gch.Tensors, gch.State]:
        return self.factor * g, state


assert_type(shrink().per_parameter, bool)


class SpikesState(gch.State):
    seen: int = 0


class stop_spikes(gch.Gate):
    """A gate: it holds where the updates are not finite."""

    descends = False

    def init(self, params: gch.Tensors) -> SpikesState:
        return SpikesState()

    def refused(self, why: str, state: SpikesState, ctx: gch.Context) -> SpikesState:
        return SpikesState(state.seen + 1)

    def update(self, g: gch.Tensors, state: SpikesState, ctx: gch.Context) -> tuple[gch.Tensors | None, gch.State]:
        return (g, state) if g.all_finite() else (None, self.refused("the updates have inf or NaN", state, ctx))


class pairs(gch.KeepsWindow):
    """A window of two micro-batches in `.grad`."""

    descends = False

    def sums_in_grad(self) -> bool:
        return True

    def size(self, state: gch.WindowState) -> int:
        return 2

    def init(self, params: gch.Tensors) -> gch.WindowState:
        return gch.WindowState(params.select(()))

    def drop_window(self, state: gch.WindowState) -> gch.WindowState:
        return gch.WindowState(state.window.select(()))

    def update(
        self, g: gch.Tensors, state: gch.WindowState, ctx: gch.Context
    ) -> tuple[gch.Tensors | None, gch.WindowState]:
        assert_type(state.window, gch.Tensors)
        if not ctx.micro.flushing:
            window = g if ctx.micro.summed else state.window.overlay(g).overlay(g + state.window)
            state = gch.WindowState(window, state.micro + 1, 2, scaled=ctx.micro.scaled)
        if not state.micro or (state.micro < 2 and not ctx.micro.last):
            return None, state
        return state.window / state.micro, self.drop_window(state)


class freeze_odd(gch.Freezes):
    """One that leaves parameters alone for good."""

    descends = False

    def frozen(self, index: Any) -> Iterable[str]:
        return [name for name in index if len(name) % 2]

    def update(self, g: gch.Tensors, state: gch.State, ctx: gch.Context) -> tuple[gch.Tensors, gch.State]:
        return g.select([name for name in g if len(name) % 2 == 0]), state


class fade(gch.WritesBuffers):
    """One that writes a buffer of the model."""

    descends = False

    def update(self, g: gch.Tensors, state: gch.State, ctx: gch.Context) -> tuple[gch.Tensors, gch.State]:
        ctx.write_buffers({"running_mean": 0.5 * ctx.buffers["running_mean"]})
        assert_type(state, gch.State)
        return g, state


class HalfwayState(gch.AverageState):
    times: int = 0


class halfway(gch.Transform):
    """One that averages the weights."""

    descends = False
    role = "average"

    def init(self, params: gch.Tensors) -> HalfwayState:
        return HalfwayState(params.clone(), params.select(()))

    def update(self, g: gch.Tensors, state: HalfwayState, ctx: gch.Context) -> tuple[gch.Tensors, HalfwayState]:
        average = state.average.lerp(ctx.new_params(g), 0.5)
        return g, state.replace(average=average, times=state.times + 1)


class count_ticks(gch.AtTicks):
    """One that works at the ticks of a clock."""

    descends = False
    often: str = "ema"

    @property
    def clock(self) -> str:
        return self.often

    def init(self, params: gch.Tensors) -> HalfwayState:
        return HalfwayState(params.clone(), params.select(()))

    def update(self, g: gch.Tensors, state: HalfwayState, ctx: gch.Context) -> tuple[gch.Tensors, HalfwayState]:
        return g, state

    def ticked(self, state: HalfwayState, ctx: gch.Context) -> HalfwayState:
        return state.replace(average=state.average.lerp(ctx.params, 0.5), times=ctx.step + 1)


at_ticks = gch.chain(gch.sgd(0.1), count_ticks(), gch.average_params("mean", on="ema", every=2))


def centred(updates: gch.Tensors, params: gch.Tensors) -> gch.Tensors:
    return updates.map(lambda g: g - g.mean()).where(params > 0, 0.0)


def halves(g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return g / 2, g / 2


def of_matrices(g: gch.Tensors, count: gch.Count) -> gch.Tensors:
    assert_type(g.map(torch.sign, batched=True), gch.Tensors)
    assert_type(g.map(halves, results=2), tuple[gch.Tensors, ...])
    assert_type(g.map_where(count.due(10), torch.sign, g, batched=True), gch.Tensors)
    assert_type(g.map_where(True, halves, (g, g)), tuple[gch.Tensors, gch.Tensors])
    return g


tx = gch.chain(
    wait_for_warmup(until=3),
    gch.stateless(centred),
    clip_rows(1.0),
    clip_rows(gch.linear(1.0, 2.0, 100), selector=gch.named("head.*") | gch.bias),
    scale_by_yogi(b1=0.95, b2=gch.cosine(0.9, 0.999, 100)),
    gch.scale_by_learning_rate(lambda step: 0.1 / (step + 1)),
    gch.project(lambda w: w.clamp(-1, 1), gch.named("scale")),
)
parts = gch.chain(pairs(), stop_spikes(), freeze_odd(), shrink(of_all=True), gch.scale_by_learning_rate(0.1), halfway())
assert_type(tx, gch.chain)
updater = tx.bind(nn.Linear(2, 2))
again = gch.from_config(gch.to_config(tx), names={"scale_by_yogi": scale_by_yogi})
