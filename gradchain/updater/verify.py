"""GRADCHAIN_VERIFY=1: every step that kernels run is held against the reference, and what differs is said.

For whoever suspects a kernel. Read when a chain is bound: without it none of this is there. With it, a step copies
weights, state and gradients first; the reference computes the same step on the copies; and once the step is written
both are compared, entry by entry and field by field. It takes the time and memory of both.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradchain.core import _torch
from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.eager import EagerTensors
from gradchain.core.row_gradients import RowGradients
from gradchain.core.scalars import Count, Scalars
from gradchain.core.state import Links, State
from gradchain.core.step import Notes, Step
from gradchain.core.tensors import Tensors
from gradchain.core.transform import walk
from gradchain.core.weights import apply_updates
from gradchain.engine.engine import Engine
from gradchain.engine.outcome import Outcome
from gradchain.engine.recording.numbers import Each, Number
from gradchain.engine.shards import ShardedEngine
from gradchain.updater.journal import Journal, Pending

VARIABLE = "GRADCHAIN_VERIFY"
SHOWN = 3  # differences that a sentence has in full

UNITS = 4  # in the last place of an element
# Of the largest movement of an entry: rounding in the middle of a rule is magnified by what follows, as by a division.
# In less than float32 a value is rounded once, at the store, and may fall on the other side of a border.
GROWTH = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 2.0**-5, torch.float16: 2.0**-8}


def wanted() -> bool:
    """Whether a chain that is bound now is to be verified. ValueError for a value that says neither."""
    value = os.environ.get(VARIABLE, "").strip()
    if value not in ("", "0", "1"):
        raise ValueError(f"{VARIABLE}: must be 1 or 0, got {value!r}.")
    return value == "1"


def parts(
    weights: list[Tensor], engine: Engine | None = None, sharded: bool = False
) -> tuple[Engine, Callable[[Callable[[], None]], Journal]]:
    """What runs the steps of a chain that is being bound, and what makes the journal they are written by.

    Args:
        weights: what it is bound to.
        engine: one of the same chain, which verifies or does not; None to ask the variable.
        sharded: whether links see parts of the weights although those are whole.
    """
    sharded = sharded or any(map(_torch.is_dtensor, weights))
    if not (wanted() if engine is None else isinstance(engine, Verifying)):
        return ShardedEngine() if sharded else Engine(), Journal
    report = engine.report if isinstance(engine, Verifying) else Report()
    return (VerifyingShards if sharded else Verifying)(report), lambda forget: Telling(forget, report)


class Difference(NamedTuple):
    """One entry of a field that is not the reference's.

    Attributes:
        what: the field and the parameter.
        executor: who ran it.
        where: where it is worst, and in how many elements it is wrong.
        gap: how far off it is there.
        allowed: how far it might be.
    """

    what: str
    executor: str
    where: str
    gap: float
    allowed: float

    def __str__(self) -> str:
        return f"{self.what} by {self.executor} {self.where}, off by {self.gap:.3g} where {self.allowed:.3g} is allowed"


class Report:
    """What was verified, and what came out.

    Attributes:
        num_verified: steps.
        num_different: those of them that were not the reference's.
        unverified: how many steps were not verified, by the reason.
        found: what is to be told at the end of this update: the step and its differences.
    """

    def __init__(self) -> None:
        self.num_verified = self.num_different = 0
        self.unverified: Counter[str] = Counter()
        self.found: dict[int, list[Difference]] = {}

    def ended(self, number: int, differences: list[Difference]) -> None:
        """A step was compared."""
        self.num_verified += 1
        if differences:
            self.num_different += 1
            self.found.setdefault(number, []).extend(differences)

    def tell(self) -> None:
        """RuntimeError where an update was not the reference's. It is written by now, and counted."""
        if not self.found:
            return
        (number, found), self.found = next(iter(self.found.items())), {}
        found.sort(key=lambda d: d.gap / d.allowed if d.allowed else float("inf"), reverse=True)
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise RuntimeError(
            f"{VARIABLE}: step {number} must be that of the reference, got {'; '.join(map(str, found[:SHOWN]))}{more}. "
            "The step is whole and counted, weights and state are what the executor wrote. Report it with "
            "updater.explain(source=True); GRADCHAIN_EXECUTORS names another executor."
        )

    def lines(self) -> Iterator[str]:
        """What `explain()` says of it."""
        yield (
            f"{VARIABLE}=1: {self.num_verified} steps were held against the reference, {self.num_different} of them "
            "differed"
        )
        for reason, count in self.unverified.most_common():
            yield f"{count} {'step was' if count == 1 else 'steps were'} not: {reason}"


class Telling(Journal):
    """A journal that says, when an update is written and put down, where it was not the reference's."""

    def __init__(self, forget: Callable[[], None], report: Report) -> None:
        super().__init__(forget)
        self._report = report

    def write(self, pending: Pending) -> None:
        super().write(pending)
        if pending.ends:
            self._report.tell()


class Verifying(Engine):
    """An engine whose steps are computed by the reference too."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self.report = report

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.report,)

    def step(
        self, tx: chain, step: Step, received: Tensors, state: Links, params: EagerTensors, lent: bool
    ) -> Outcome | None:
        """What the chain makes of an update; see Engine.step."""
        why = "it goes into a graph" if self.captured is not None else _once_only(tx, step)
        if why:
            self.report.unverified[why] += 1
            return super().step(tx, step, received, state, params, lent)
        assert isinstance(received, EagerTensors)
        twin, random = Twin(tx, step, received, state, params), _random(params)
        outcome = super().step(tx, step, received, state, params, lent)
        if outcome is None:
            self.report.unverified["the reference ran it"] += 1
            return None
        after = _random(params)
        _put_random(random)  # the same numbers again
        try:
            twin.compute()
        finally:
            _put_random(after)
        ended = False

        def compare() -> None:
            nonlocal ended
            if ended:
                return
            ended = True
            try:
                found = list(twin.differences(outcome, params, self))
            except Exception as error:  # the weights are written: what follows from that must come
                self.report.unverified[f"it could not be compared ({type(error).__name__}: {error})"] += 1
            else:
                self.report.ended(int(step.clocks.get("step", 0)), found)

        outcome.commit.after(compare)
        return outcome

    def step_of_rows(
        self, tx: chain, step: Step, received: RowGradients, state: Links, params: EagerTensors, lent: bool
    ) -> Outcome | None:
        """An update of rows, which is not verified; see Engine.step_of_rows."""
        self.report.unverified["a gradient is sparse"] += 1
        return super().step_of_rows(tx, step, received, state, params, lent)


class VerifyingShards(Verifying, ShardedEngine):
    """An engine over shards whose steps are computed by the reference too, which every rank takes part in."""


def _once_only(tx: chain, step: Step) -> str:
    """Why a step may not be computed a second time; "" if it may."""
    if step.evaluate is not None:
        return "a closure of yours is evaluated in it, which is not called twice"
    for address, link, _ in walk(tx, None):
        if link.calls_back:
            return f"{address} calls code of yours, which is not called twice"
    return ""


def _random(params: EagerTensors) -> list[tuple[torch.device, Tensor]]:
    """What torch would draw from, on the devices of the step."""
    devices = {torch.device("cpu"), *(t.device for t in params._data if t.is_cuda)}
    return [(d, torch.cuda.get_rng_state(d) if d.type == "cuda" else torch.get_rng_state()) for d in devices]


def _put_random(states: list[tuple[torch.device, Tensor]]) -> None:
    for device, state in states:
        torch.cuda.set_rng_state(state, device) if device.type == "cuda" else torch.set_rng_state(state)


class Twin:
    """A step by the reference, on copies."""

    def __init__(self, tx: chain, step: Step, received: EagerTensors, state: Links, params: EagerTensors) -> None:
        self._copied: dict[int, Any] = {}  # what is one tensor, or one field, is one copy
        self._tx, self._received = tx, self._copy(received)
        self._state, self._params = self._copied_state(state), self._copy(params)
        self._step = step._replace(params=self._params)
        self._noted = Notes(self._step)
        self._applied = False
        self._weights, self._new = self._params, self._state
        lowest = [t.dtype for t in (*params._data, *self._tensors(self._state))]
        self._growth = max((GROWTH.get(d, 0.0) for d in lowest), default=0.0)
        self._size = self._largest()

    def _copy(self, value: Any) -> Any:
        if id(value) not in self._copied:
            if isinstance(value, EagerTensors):
                made: Any = EagerTensors(
                    value.index, [self._copy(t) for t in value._data], value._factor, value._compared
                )
            else:
                made = _torch.cloned(value.detach())
            self._copied[id(value)] = made
        return self._copied[id(value)]

    def _copied_state(self, state: Any) -> Any:
        """The state with copies of what it keeps, whole fields too."""
        changes = {n: self._copy(v) for n, v in state.items() if isinstance(v, (EagerTensors, Tensor))}
        held = {name: self._copied_state(inner) for name, inner in state.held().items()}
        return (state.replace(**changes) if changes else state).holding(held)

    def _tensors(self, state: State) -> Iterator[Tensor]:
        for _, value in state.items():
            if isinstance(value, EagerTensors):
                yield from value._data
        for inner in state.held().values():
            yield from self._tensors(inner)

    def _largest(self) -> float:
        """What numbers made of many elements are judged by: the largest element times the root of how many."""
        tensors = [*self._received._data, *self._params._data]
        wide = [v for v in map(_wide, tensors) if v.numel()]  # of some a rank may have nothing
        largest = max((float(v.abs().nan_to_num(0.0, 0.0, 0.0).max()) for v in wide), default=0.0)
        return largest * math.sqrt(sum(t.numel() for t in tensors))

    def compute(self) -> None:
        """The step."""
        out, new = self._tx.update(self._received, self._state, Context.of(self._step, self._noted))
        assert isinstance(new, Links)
        self._new, self._applied = new, out is not None
        self._weights = apply_updates(self._params, out)

    def differences(self, outcome: Outcome, params: EagerTensors, engine: Engine) -> Iterator[Difference]:
        """Where a step that is written is not this one."""
        by = _Executors(engine)
        if outcome.applied != self._applied:
            words = ["held", "applied"]
            yield Difference("the update", by.all, f"is {words[outcome.applied]} for {words[self._applied]}", 1.0, 0.0)
        yield from self._of_tensors("the weight", params, self._weights, self._params, by)
        yield from self._of_state("", outcome.state, self._new, self._state, by)
        for name, want in self._noted.records.items():
            yield from self._of_number(f"the record {name}", outcome.notes.records.get(name), want, None, by.all)

    def _of_state(self, path: str, found: State, want: State, before: State, by: _Executors) -> Iterator[Difference]:
        old = dict(before.items())
        for name, value in want.items():
            what = f"{path}{name}"
            if isinstance(value, Tensors):
                yield from self._of_tensors(what, found[name], value, old[name], by)
            else:
                yield from self._of_number(what, found[name], value, old[name], by.all)
        theirs, held = found.held(), before.held()
        for name, inner in want.held().items():
            yield from self._of_state(f"{path}{name}.", theirs[name], inner, held[name], by)

    def _of_tensors(self, what: str, found: Any, want: Any, before: Any, by: _Executors) -> Iterator[Difference]:
        mine, theirs, old = (dict(zip(t.index.names, t._values(), strict=True)) for t in (found, want, before))
        for name in {**theirs, **mine}:
            if name not in mine or name not in theirs:
                where = "is there" if name in mine else "is not there"
                yield Difference(f"{what} of {name!r}", by.of(name), where, 1.0, 0.0)
                continue
            found_wrong = _compared(mine[name], theirs[name], old.get(name), self._growth)
            if found_wrong is not None:
                yield Difference(f"{what} of {name!r}", by.of(name), *found_wrong)

    def _of_number(self, what: str, found: Any, want: Any, before: Any, executor: str) -> Iterator[Difference]:
        if isinstance(want, (Scalars, Mapping)) and isinstance(found, (Scalars, Mapping)):
            for name in want:
                each = found[name] if name in found else None
                old = before[name] if isinstance(before, (Scalars, Mapping)) and name in before else None
                yield from self._of_number(f"{what} of {name!r}", each, want[name], old, executor)
        elif isinstance(want, (float, Tensor)) and isinstance(found, (int, float, Tensor, Number)):
            mine, theirs, old = (_as_tensor(v) for v in (found, want, before if _is_number(before) else want))
            if mine.shape != theirs.shape:
                yield Difference(what, executor, f"has shape {tuple(mine.shape)} for {tuple(theirs.shape)}", 1.0, 0.0)
                return
            wrong = _compared(mine, theirs, old, self._growth, self._size)
            if wrong is not None:
                yield Difference(what, executor, *wrong)
        elif isinstance(want, (Count, int, str, type(None))) and not _equal(found, want):
            yield Difference(what, executor, f"is {found!r} for {want!r}", 1.0, 0.0)


class _Executors:
    """Who ran what of the last step."""

    def __init__(self, engine: Engine) -> None:
        self._parts = engine.last
        self.all = self._joined(p.ran for p in self._parts)

    def of(self, name: str) -> str:
        """Who wrote a parameter and its slots."""
        return self._joined(p.ran for p in self._parts if name in p.names and not p.program.reduce) or self.all

    @staticmethod
    def _joined(names: Iterator[str]) -> str:
        return " and ".join(dict.fromkeys(names)) or "no kernel"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Tensor, Number))


def _as_tensor(value: Any) -> Tensor:
    if isinstance(value, (Number, Each)):
        value = value.tensor()
    return value.detach() if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)


def _equal(found: Any, want: Any) -> bool:
    if isinstance(want, Count):
        same = isinstance(found, Count) and found.names == want.names
        return same and all(int(found.of(n)) == int(want.of(n)) for n in want.names)
    found = found.item() if isinstance(found, Number) else found
    return bool(found == want)


def _wide(tensor: Tensor) -> Tensor:
    """A tensor of this process in the widest dtype, complex numbers as pairs; a mask as 0 and 1."""
    local = _torch.local(tensor.detach())
    local = torch.view_as_real(local.resolve_conj()) if local.is_complex() else local
    return local.to(torch.float64)


def _compared(
    found: Tensor, want: Tensor, before: Tensor | None, growth: float, size: float = 0.0
) -> tuple[str, float, float] | None:
    """Where one tensor is worst, how far off, and how far it might be; None where it is near the other everywhere.

    Args:
        found: a tensor that an executor wrote.
        want: the reference's.
        before: what both began with, where there was something.
        growth: how many times the largest movement it may be off.
        size: of what is reduced to it, if it is a number.
    """
    if found.dtype != want.dtype and size == 0.0:
        return f"is of {found.dtype} for {want.dtype}", 1.0, 0.0
    if found.shape != want.shape:
        return f"has shape {tuple(found.shape)} for {tuple(want.shape)}", 1.0, 0.0
    mine, theirs = _wide(found).to("cpu"), _wide(want).to("cpu")
    if not mine.numel():
        return None
    start = _wide(before).to("cpu") if before is not None and before.shape == want.shape else torch.zeros_like(theirs)
    kind = torch.finfo(want.dtype) if want.dtype.is_floating_point or want.dtype.is_complex else torch.finfo()
    gap, moved = (mine - theirs).abs(), (theirs - start).abs()
    scale = max(float(moved.nan_to_num(0.0, 0.0, 0.0).max()), size)
    allowed = UNITS * kind.eps * (theirs.abs() + kind.smallest_normal) + growth * scale
    same = (mine == theirs) | (mine.isnan() & theirs.isnan())
    wrong = ~(same | (gap.isfinite() & (gap <= allowed)))
    if not bool(wrong.any()):
        return None
    over = torch.where(wrong, (gap / allowed).nan_to_num(float("inf")), torch.zeros_like(gap))
    worst = int(over.argmax())
    place = [int(i) for i in torch.unravel_index(torch.tensor(worst), mine.shape)]
    one = f"is {mine.flatten()[worst].item():.9g} for {theirs.flatten()[worst].item():.9g}"
    at = f" at {place}" if place else ""
    where = f"{one}{at}, wrong in {int(wrong.sum())} of {mine.numel()} elements"
    return where, float(gap.flatten()[worst]), float(allowed.flatten()[worst])
