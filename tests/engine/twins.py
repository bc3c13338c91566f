"""A model under an engine and its copy under the reference, taught the same things step by step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.utils import _pytree

import gradchain as gch
from gradchain.engine.executors import devices

EXECUTORS = {"native": ("native",), "patterns": ("patterns", "blocks"), "blocks": ("blocks",)}
STAND_INS = {"foreach": ("foreach",), "fused": ("fused", "foreach")}  # CUDA's default, which runs on the CPU as there

# float64: what two orders of the same operations may differ by. Where float32 takes part, as by a norm over all of a
# model of several dtypes, or a loss, its bound holds for the float64 too.
# float32: an ulp of a weight of size 1 is 1.2e-7, a displacement is 0.01 and more, so one ulp is 1e-5 of it; Adam's
# first steps divide by roots of small numbers and pass on a few of those.
BOUND = {torch.float64: 1e-12, torch.float32: 1e-4}
# Low precision is computed in float32 and rounded once at the store, by everyone: a value next to a rounding border may
# fall on its other side, by one step of the dtype. Later steps pass it on: by that of the largest, where it cancels.
STEP = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
SAME = 0.95  # of all elements in low precision must still be the very same bits


class Shapes(nn.Module):
    """Parameters of many shapes and strides: 0-d, empty, transposed, channels_last, of ones, longer than a chunk."""

    def __init__(self, dtypes: Iterable[torch.dtype] = (torch.float64,), seed: int = 0, long: int = 70_000) -> None:
        super().__init__()
        generator, kinds = torch.Generator().manual_seed(seed), list(dtypes)
        self.body, self.head = nn.Module(), nn.Module()
        made = [
            (self.body, "conv", _drawn(generator, 4, 3, 2, 2).to(memory_format=torch.channels_last)),
            (self.body, "weight", _drawn(generator, 5, 6)),
            (self.body, "turned", _drawn(generator, 6, 5).t()),
            (self.body, "bias", _drawn(generator, 7)),
            (self.body, "scale", _drawn(generator)),
            (self.body, "none", _drawn(generator, 0)),
            (self.head, "weight", _drawn(generator, 12, 3)[::2].contiguous()),
            (self.head, "column", _drawn(generator, 4, 1)),
            (self.head, "cube", _drawn(generator, 2, 3, 4).permute(2, 0, 1)),
            (self.head, "long", _drawn(generator, long)),
        ]
        for i, (owner, name, value) in enumerate(made):
            dtype = kinds[i % len(kinds)]
            if dtype.is_complex:
                value = torch.complex(value, _drawn(generator, *value.shape))
            owner.register_parameter(name, nn.Parameter(value.to(dtype)))
        self.tied = nn.Module()
        self.tied.weight = self.body.weight
        self.register_buffer("seen", torch.arange(3, dtype=torch.float64))


def _drawn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def drawn_like(parameter: Tensor, seed: int) -> Tensor:
    """Numbers that depend on the seed and the shape only, in the dtype and layout of `parameter`."""
    generator = torch.Generator().manual_seed(seed)
    real = torch.view_as_real(parameter.detach()) if parameter.is_complex() else parameter.detach()
    drawn = torch.randn(real.shape, generator=generator, dtype=torch.float64).to(real.dtype)
    return torch.empty_like(parameter).copy_(torch.view_as_complex(drawn) if parameter.is_complex() else drawn)


def by_executors(updater: gch.Updater, *names: str) -> gch.Updater:
    """The updater, left with some executors only; none is the reference."""
    engine = updater._bound.engine
    if set(names) & set(STAND_INS):
        engine.executors = tuple(devices._BY_NAME["cpu"][name](torch.device("cpu")) for name in names)
    else:
        engine.executors = tuple(e for e in engine.executors if e.name in names)
    return updater


class Twins:
    """The same chain twice: `ours` by the engine, `theirs` by the reference.

    Args:
        tx: the chain.
        model: it is copied for each.
        executors: those that the engine may use; every step must be run by them.
        bind: given to bind.
    """

    def __init__(self, tx: gch.Transform, model: nn.Module, executors: Iterable[str] = ("native",), **bind) -> None:
        self.models = (copy.deepcopy(model), copy.deepcopy(model))
        self.allowed = set(executors)
        self.start = {n: p.detach().clone() for n, p in model.named_parameters()}
        self.ours, self.theirs = (tx.bind(m, **bind) for m in self.models)
        by_executors(self.ours, *executors)
        by_executors(self.theirs)
        self.used: set[str] = set()

    def each(self, do: Callable[[nn.Module, gch.Updater], object]) -> list[object]:
        """Do the same to both."""
        return [do(m, u) for m, u in zip(self.models, (self.ours, self.theirs), strict=True)]

    def step(self, do: Callable[[nn.Module, gch.Updater], gch.UpdateInfo]) -> str:
        """One step of both, ours by the engine; why it was or was not applied."""
        mine, reference = self.each(do)
        self.by_engine()
        assert mine.reason == reference.reason
        assert not self.theirs._bound.engine.last
        return mine.reason

    def by_engine(self) -> None:
        """Assert that the engine ran the last step of ours, by executors that it may use."""
        engine = self.ours._bound.engine
        assert engine.reason == "", f"ours ran by the reference: {engine.reason}"
        used = {part.executor for part in engine.last}
        assert used <= self.allowed, used
        self.used |= used

    def gradients(self, t: int, absent: Iterable[str] = (), turned: bool = False, size: float = 1.0) -> str:
        """One step from gradients that are given as `.grad`."""

        def do(model: nn.Module, updater: gch.Updater) -> gch.UpdateInfo:
            for i, (name, p) in enumerate(model.named_parameters()):
                p.grad = None if name in absent else size * drawn_like(p, 100 * t + i)
                if turned and p.grad is not None:
                    p.grad = _turned(p.grad)
            return updater.step()

        return self.step(do)

    def loss(self, t: int, absent: Iterable[str] = (), bad: str = "", closure: bool = False, **update) -> str:
        """One update by a squared distance from numbers drawn for this step."""

        def do(model: nn.Module, updater: gch.Updater) -> gch.UpdateInfo:
            def loss() -> Tensor:
                return distance(model, t, absent, bad)

            return updater.update(loss if closure else loss(), **update)

        return self.step(do)

    def compare(self, bound: float = 0.0) -> None:
        """Assert that weights and states are equal, to the bound of each dtype, or to `bound` where it is larger."""
        mine, reference = (dict(m.named_parameters()) for m in self.models)
        assert list(mine) == list(reference)
        dtypes = {p.dtype for p in reference.values()}
        if any(_real(d) != torch.float64 for d in dtypes):
            bound = max(bound, BOUND[torch.float32])
        moved = {
            d: max(distance_of(p, self.start.get(n, p)) for n, p in reference.items() if p.dtype == d) for d in dtypes
        }
        for name, p in reference.items():
            assert_near(mine[name], p, moved[p.dtype], name, bound)
        assert any(moved.values()), "the reference did not move: nothing was compared"
        a, b = self.ours.state_dict(), self.theirs.state_dict()
        assert a["clocks"] == b["clocks"]
        same_state(a["links"], b["links"], bound, {n: _real(p.dtype) for n, p in reference.items()})


def same_state(
    mine: Mapping, reference: Mapping, bound: float = 0.0, weights: Mapping[str, torch.dtype] | None = None
) -> None:
    """Assert that two trees of state have one structure, and values equal to the bounds of their dtypes.

    A slot in float32 of a weight in less is made of gradients there, which a step of that weight changes: its bound is
    the weight's. `weights` are the dtypes of those, by name.
    """
    left, tree = _pytree.tree_flatten_with_path(mine)
    right, other = _pytree.tree_flatten_with_path(reference)
    assert tree == other
    size: dict[str, float] = {}
    for path, value in right:
        if isinstance(value, Tensor):
            field = str(path[:2]) + str(value.dtype)
            size[field] = max(size.get(field, 0.0), distance_of(value, torch.zeros_like(value)))
    for (path, x), (_, y) in zip(left, right, strict=True):
        where = _pytree.keystr(path)
        assert type(x) is type(y), where
        if isinstance(y, Tensor):
            assert (x.dtype, x.shape) == (y.dtype, y.shape), where
            of = (weights or {}).get(str(getattr(path[-1], "key", "")), y.dtype)
            wider = STEP[of] if of in STEP and y.dtype not in STEP else 0.0
            assert_near(x, y, size[str(path[:2]) + str(y.dtype)], where, max(bound, 2 * wider))
        elif isinstance(y, float):
            assert math.isclose(x, y, rel_tol=max(bound, 1e-12)), where
        else:
            assert x == y, where


def assert_near(x: Tensor, y: Tensor, scale: float, what: str, bound: float = 0.0) -> None:
    """Assert that `x` equals `y` to the bound of its dtype, in units of `scale`; NaNs where it has them."""
    assert torch.equal(x.isnan(), y.isnan()), what
    real, gap = _real(y.dtype), distance_of(x, y)
    if real in STEP:
        near = (x.double() - y.double()).abs() <= 2 * STEP[real] * (y.double().abs() + scale)
        assert bool((near | y.isnan()).all()), f"{what}: {gap:.2e} of {scale:.2e}"
        same = float((x == y).double().mean())
        assert same > SAME or x.numel() < 100, f"{what}: only {same:.3f} are the same"
    else:
        assert gap <= max(BOUND[real], bound) * scale, f"{what}: {gap:.2e} of {scale:.2e}"


def _real(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


def distance_of(x: Tensor, y: Tensor) -> float:
    """The largest difference of finite elements."""
    wide = torch.complex128 if x.is_complex() else torch.float64
    gap = (x.detach().to(wide) - y.detach().to(wide)).abs()
    return float(gap.nan_to_num(nan=0.0).max()) if x.numel() else 0.0


def distance(model: nn.Module, t: int, absent: Iterable[str] = (), bad: str = "") -> Tensor:
    """Half the squared distance of the weights from numbers drawn for step `t`; infinite in the one called `bad`."""
    total = torch.zeros((), dtype=torch.float64)
    for i, (name, p) in enumerate(model.named_parameters()):
        if name in absent:
            continue
        apart = p - drawn_like(p, 100 * t + i)
        apart = torch.view_as_real(apart) if apart.is_complex() else apart
        total = total + (0.5 * apart.double().square()).sum() * (float("inf") if name == bad else 1.0)
    return total


def _turned(grad: Tensor) -> Tensor:
    """The same numbers with other strides."""
    if grad.ndim < 2:
        return torch.stack([grad, grad], dim=-1)[..., 0]
    order = [grad.ndim - 1, *range(grad.ndim - 1)]
    back = [*range(1, grad.ndim), 0]
    return grad.permute(order).contiguous().permute(back)
