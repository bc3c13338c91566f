"""The problems that rows are run on, and the pure loop that runs a chain over one: no Updater, no files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

import gradchain as gch
from gradchain.core.slots import Slots
from gradchain.core.step import Step

DOUBLE = torch.float64
STEPS = 20
SHAPES: dict[str, tuple[int, ...]] = {
    "body.weight": (4, 3),
    "body.bias": (3,),
    "head.weight": (2, 3, 2),
    "scale": (),
    "empty": (0, 3),
}
# In which steps a parameter has no gradient, in the tests of absent parameters.
ABSENT = {"body.bias": {0, 1, 7, 9}, "head.weight": {3, 4, 5, 7, 11}, "scale": {2, 7}, "body.weight": {7, 8}}


@dataclass(frozen=True)
class Problem:
    """Weights, the gradient of each step there, and the learning rate: what both a chain and its peer are given.

    The loss of step t is `Σ g_t w + bend Σ log cosh w`, so with `bend` the gradient depends on the weights.
    """

    params: dict[str, Tensor]
    grads: tuple[dict[str, Tensor], ...]
    lr: Any = None
    bend: float = 0.0

    def rate(self, step: int) -> float:
        """The learning rate of an update."""
        return self.lr(step) if callable(self.lr) else self.lr

    def gradient(self, t: int, weights: Any) -> dict[str, Tensor]:
        """The gradients of step t at `weights`; a parameter may be absent."""
        if not self.bend:
            return dict(self.grads[t])
        return {n: g + self.bend * torch.tanh(weights[n]) for n, g in self.grads[t].items()}

    def loss(self, t: int, weights: Any) -> Tensor:
        """The loss of step t at `weights`."""
        terms = [(g * weights[n]).sum() for n, g in self.grads[t].items()]
        if self.bend:
            terms += [self.bend * torch.log(torch.cosh(weights[n])).sum() for n in self.grads[t]]
        return torch.stack(terms).sum() if terms else torch.zeros((), dtype=DOUBLE)

    def to(self, dtype: torch.dtype) -> Problem:
        """The same problem in another dtype."""
        return replace(
            self,
            params={n: p.to(dtype) for n, p in self.params.items()},
            grads=tuple({n: g.to(dtype) for n, g in grads.items()} for grads in self.grads),
        )

    def map(self, fn: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Problem:
        """The same problem with `fn` of the weights and of each step's gradients."""
        return replace(self, params=fn(self.params), grads=tuple(fn(g) for g in self.grads))

    def without(self, absent: dict[str, set[int]]) -> Problem:
        """The same problem with some parameters absent in some steps."""
        grads = [{n: g for n, g in gs.items() if t not in absent.get(n, ())} for t, gs in enumerate(self.grads)]
        return replace(self, grads=tuple(grads))


# how gradients are drawn: what makes a row's rule do all it can do


def plain(name: str, gradient: Tensor, t: int) -> Tensor:
    """Normal numbers."""
    return gradient


def spiky(name: str, gradient: Tensor, t: int) -> Tensor:
    """Small and large by turns: now inside a bound, now far outside."""
    return gradient * (5.0 if t % 2 else 0.05)


def with_nans(name: str, gradient: Tensor, t: int) -> Tensor:
    """In every third step one NaN in each tensor."""
    return _poked(gradient, {0: torch.nan}) if t % 3 == 1 else gradient


def with_nonfinite(name: str, gradient: Tensor, t: int) -> Tensor:
    """In every third step a NaN, an inf and a -inf, where there are elements enough."""
    return _poked(gradient, {0: torch.nan, 1: torch.inf, 2: -torch.inf}) if t % 3 == 1 else gradient


def overflowing(name: str, gradient: Tensor, t: int) -> Tensor:
    """In steps 3, 4 and 9 one inf in one tensor."""
    return _poked(gradient, {1: torch.inf}) if t in (3, 4, 9) and name == "body.bias" else gradient


def _poked(tensor: Tensor, values: dict[int, float]) -> Tensor:
    out = tensor.clone()
    for position, value in values.items():
        if position < out.numel():
            out.view(-1)[position] = value
    return out


def problem(
    seed: int = 0,
    *,
    draw: Callable[[str, Tensor, int], Tensor] = plain,
    shapes: dict[str, tuple[int, ...]] = SHAPES,
    steps: int = STEPS,
    dtype: torch.dtype = DOUBLE,
    **rest: Any,
) -> Problem:
    """A problem of normal numbers from a seed, bent by `draw`."""
    generator = torch.Generator().manual_seed(seed)

    def some() -> dict[str, Tensor]:
        return {n: torch.randn(s, dtype=dtype, generator=generator) for n, s in shapes.items()}

    params = some()
    grads = tuple({n: draw(n, g, t) for n, g in some().items()} for t in range(steps))
    return Problem(params, grads, **rest)


def observed(t: int) -> float:
    """A validation loss that improves, stays, improves by too little, and stays again."""
    return 0.5 if t < 3 else 0.3 if t < 9 else 0.3 - 1e-6 * t


# the pure loop


def context(problem: Problem, params: gch.Tensors, t: int, step: int, **more: Any) -> gch.Context:
    """The context of step t: everything that a link may ask for is known."""

    def evaluate(weights: gch.Tensors, path: str) -> tuple[Any, gch.Tensors]:
        return problem.loss(t, weights), gch.Tensors.of(problem.gradient(t, weights))

    clocks = {"step": step, "micro": t, "epoch": t // 4}
    run = {"params": params, "clocks": clocks, "loss": problem.loss(t, params), "evaluate": evaluate, "buffers": {}}
    run["observed"] = {"val_loss": observed(t)}
    return gch.Context.of(Step(**{**run, **more}))


def trajectory(
    tx: gch.Transform,
    problem: Problem,
    *,
    scaled: bool = False,
    clock: int = 0,
    count: int = 0,
    post: Callable[[Any], Any] = lambda updates: updates,
    watch: Callable[[Any], dict[str, Any]] = lambda state: {},
    own_time: bool = False,
    seen: Callable[[int, Any, Any, Any, Any], None] | None = None,
) -> list[dict[str, Tensor]]:
    """The displacement of each parameter after each step, and what `watch` sees in the state.

    Args:
        tx: the chain.
        problem: what it is run on.
        scaled: multiply each gradient by what the chain makes of a loss of 1, as the Updater's backward does.
        clock: added to the step that schedules read: an impostor with a clock that is off.
        count: added to every Count of the first state: the same for bias corrections.
        post: what is done to the updates before they are applied: an impostor's work.
        watch: numbers and tensors in the state that the peer has too.
        own_time: leave out steps in which no parameter has a gradient, though the clock goes on.
        seen: called with t, the updates in, the state before, the updates out and the state after.
    """
    params = start = gch.Tensors.of(problem.params)
    state = shifted(tx.init(params), count)
    out, step = [], 0
    for t in range(len(problem.grads)):
        grads = gch.Tensors.of(problem.gradient(t, params))
        if own_time and not len(grads):
            step += 1
            out.append(out[-1] if out else {n: torch.zeros_like(p) for n, p in problem.params.items()})
            continue
        ctx = context(problem, params, t, step + clock, scaled=scaled)
        if scaled:
            grads = tx.scale_loss(1.0, state, ctx) * grads
        before = state
        updates, state = tx.update(grads, state, ctx)
        if seen is not None:
            seen(t, grads, before, updates, state)
        if updates is not None:
            params = gch.apply_updates(params, post(updates))
            step += 1
        out.append({n: params[n] - start[n] for n in params} | watch(state))
    return out


def weights_after(tx: gch.Transform, problem: Problem, **options: Any) -> dict[str, Tensor]:
    """The weights after the last step of a problem."""
    moved = trajectory(tx, problem, **options)[-1]
    return {n: p + moved[n] for n, p in problem.params.items()}


def shifted(state: Any, by: int) -> Any:
    """`state` with `by` added to every Count in it."""
    if not by:
        return state
    changes: dict[str, Any] = {}
    for field in fields(state):
        value = getattr(state, field.name)
        if isinstance(value, gch.Count):
            changes[field.name] = gch.Count(value.names, {n: value.of(n) + by for n in value.names})
        elif field.name == "links":
            changes["links"] = {n: shifted(s, by) for n, s in value.items()}
    return state.replace(**changes) if changes else state


def leaves(state: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    """Every field of a state and of the states it holds, by address."""
    for field in fields(state):
        value = getattr(state, field.name)
        if field.name == "links":
            for name, inner in value.items():
                yield from leaves(inner, f"{path}/{name}")
        else:
            yield f"{path}.{field.name}", value


def stored(state: Any) -> dict[str, Tensor]:
    """Every tensor in a state, by address and parameter."""
    out = {}
    for address, value in leaves(state):
        if isinstance(value, gch.Tensors):
            out.update({f"{address}[{n}]": value[n] for n in value})
        elif isinstance(value, Slots):
            out.update({a: x for a, x in slots(address, value) if isinstance(x, Tensor)})
        elif isinstance(value, Tensor):
            out[address] = value
    return out


def slots(address: str, value: Slots) -> Iterable[tuple[str, Any]]:
    """What an optimizer from elsewhere keeps of each parameter, by address."""
    for name, slot in value.items():
        for key, item in slot.items():
            yield f"{address}.{key}[{name}]", item


def numbers(state: Any) -> dict[str, Any]:
    """Everything in a state that is no tensor, by address, as plain data."""
    out: dict[str, Any] = {}
    for address, value in leaves(state):
        if isinstance(value, gch.Count):
            out[address] = {n: value.of(n) for n in value.names}
        elif isinstance(value, Slots):
            out.update({a: x for a, x in slots(address, value) if not isinstance(x, Tensor)})
        elif isinstance(value, gch.Scalars):
            out[address] = dict(value)
        elif not isinstance(value, (gch.Tensors, Tensor)):
            out[address] = value
    return out


# comparisons


def gap(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> float:
    """The largest difference of two trajectories, relative to the largest value each parameter has in the second.

    NaN wherever one has NaN and the other has not, or names or lengths differ.
    """
    if len(ours) != len(theirs):
        return torch.nan
    worst = 0.0
    largest: dict[str, float] = {}
    for row in theirs:
        for name, value in row.items():
            value = torch.as_tensor(value)
            if value.numel():
                largest[name] = max(largest.get(name, 0.0), value.abs().max().item())
    for mine, row in zip(ours, theirs, strict=True):
        if set(mine) != set(row):
            return torch.nan
        for name, value in row.items():
            a, b = torch.as_tensor(mine[name]), torch.as_tensor(value)
            if a.shape != b.shape:
                return torch.nan
            if not a.numel():
                continue
            difference = (a - b).abs().max().item()
            if difference != difference:
                return torch.nan
            worst = max(worst, difference / (largest[name] or 1.0))
    return worst


def off(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], rtol: float) -> float:
    """The part of the entries of the last step that differ by more than `rtol` of the parameter's largest value."""
    bad = total = 0
    for name, value in theirs[-1].items():
        a, b = torch.as_tensor(ours[-1][name]), torch.as_tensor(value)
        if b.numel():
            bad += int((~((a - b).abs() <= rtol * b.abs().max())).sum())
            total += b.numel()
    return bad / max(total, 1)


def same_bits(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The names under which two dicts of tensors do not have the same bits."""
    if set(a) != set(b):
        return sorted(set(a) ^ set(b))
    return [n for n in a if a[n].dtype != b[n].dtype or not torch.equal(_bits(a[n]), _bits(b[n]))]


def _bits(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.contiguous().view(-1).view(kind)
