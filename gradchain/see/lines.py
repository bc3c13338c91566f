"""The numbers of a chain over a run: each hyperparameter as lines, one for each group with numbers of its own.

Without a model nobody knows which parameters there are: then a group is what a rule says, each rule by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradchain.core.context import Context
from gradchain.core.hyper import Override, evaluated, is_number, varies
from gradchain.core.index import Index
from gradchain.core.roles import AtTicks, KeepsWindow
from gradchain.core.spread import Spread
from gradchain.core.step import Step
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform, walk
from gradchain.schedules import clocks_of
from gradchain.see.subjects import Subject
from gradchain.selectors import PerParameter
from gradchain.selectors.rules import by_name, choose, first, layer_decay, multiply
from gradchain.selectors.source import code

__all__ = ["Clock", "Clocks", "Line", "lines_of"]

Clock = float | Callable[[int], float]
"""How a named clock goes: updates for each tick, or a function update -> reading."""

MOST_LAYERS = 64


@dataclass(frozen=True, eq=False)
class Line:
    """A hyperparameter of a group of parameters.

    group: which, in words; "" where there is one number for all. count: how many parameters, None where no model is
    known. start and factors: the value they start from, and what multiplies it. clock: what its link counts, where it
    works at ticks.
    """

    address: str
    group: str
    count: int | None
    start: Any
    factors: tuple[float, ...] = ()
    clock: str | None = None

    @property
    def name(self) -> str:
        """The hyperparameter without its link."""
        return self.address.rpartition(".")[2]

    @property
    def called(self) -> str:
        """Its group, with how many parameters that has."""
        return self.group if self.count is None else f"{self.group} ({self.count})"

    @property
    def clocks(self) -> frozenset[str]:
        """The named clocks that it reads."""
        reads = isinstance(self.start, Tensor) or not callable(self.start)
        own = frozenset[str]() if reads else clocks_of(self.start)
        return own if self.clock is None else (own - {"step"}) | {self.clock}

    def started(self, clocks: Mapping[str, float]) -> float:
        """The value that it starts from, at these clocks."""
        if self.clock is not None:
            clocks = {**clocks, "step": int(clocks[self.clock])}
        value = evaluated(self.start, Context.of(Step(clocks=clocks)))
        if not is_number(value):
            raise TypeError(f"{self.address} must be a number at update {clocks['step']}, got {value!r}.")
        return float(value)

    def multiplied(self, value: float) -> float:
        """A value that it starts from, as its parameters have it."""
        for factor in self.factors:
            value = value * factor
        return value


def lines_of(subject: Subject) -> list[Line]:
    """Every numeric hyperparameter, in the order of the chain. ValueError for rules that select nothing there."""
    out = []
    for address, link, seen in walk(subject.chain, subject.index):
        clock = link.clock if isinstance(link, AtTicks) else None
        for name, hyper in link.hypers.items():
            own = link.__dict__[name]
            if not hyper.is_numeric(own):
                continue
            override = (subject.overrides or {}).get(f"{address}.{name}", Override())
            value = own if override == Override() else override.source(own)
            last = () if override.factor is None else (override.factor,)
            full = subject.address(f"{address}.{name}")
            out += [Line(full, g, n, start, (*f, *last), clock) for g, n, start, f in _groups(value, seen)]
    return out


Found = Iterator[tuple[str, int | None, Any, tuple[float, ...]]]


def _groups(value: Any, index: Index | None) -> Found:
    """Groups of parameters: what they are called, how many, the value they start from, its factors."""
    if not isinstance(value, PerParameter):
        yield "", None if index is None else len(index), value, ()
    elif index is None:
        yield from ((label, None, start, factors) for label, start, factors in _by_rules(value))
    else:
        yield from _by_settings(value, index)


def _by_settings(value: PerParameter, index: Index) -> Found:
    """Those that start from one value with equal factors, in the order of the model."""
    found: dict[Any, list[Any]] = {}
    for setting in Spread.of(value, index).settings:
        key = (id(setting.value) if callable(setting.value) else setting.value, setting.factors)
        found.setdefault(key, []).append(setting)
    for group in found.values():
        said = list(dict.fromkeys(", ".join(setting.rules) or "the others" for setting in group))
        label = said[0] if len(said) == 1 else f"{said[0]}, …"
        yield label, len(group), group[0].value, group[0].factors


def _by_rules(value: Any) -> Iterator[tuple[str, Any, tuple[float, ...]]]:
    """Without a model: the value that no rule changes, and what each rule by itself makes of it."""
    if isinstance(value, choose):
        for label, one in (*((code(s), one) for s, one in value.pairs), ("the others", value.rest)):
            for inner, start, factors in _by_rules(one):
                yield f"{label}: {inner}" if inner else label, start, factors
    elif isinstance(value, multiply):
        everywhere = [rule for rule in value.rules if callable(rule) or isinstance(rule, layer_decay)]
        others = f"before {', '.join(map(code, everywhere))}" if everywhere else "the others"
        for label, start, factors in _by_rules(value.value):
            if not any(isinstance(rule, layer_decay) for rule in value.rules):
                yield label or others, start, factors
            for says, factor in (pair for rule in value.rules for pair in _factors(rule)):
                yield f"{label}: {says}" if label else says, start, (*factors, factor)
    elif isinstance(value, PerParameter):  # one of a user's: nobody knows what it says
        for start in value.starts():
            yield code(value), start, ()
    else:
        yield "", value, ()


def _factors(rule: Any) -> Iterator[tuple[str, float]]:
    """The factors that a rule may give, as far as it says so without a model."""
    if isinstance(rule, layer_decay):
        total = rule.total if rule.total is not None else rule.depth.total  # type: ignore[union-attr]  # a Depth
        for layer in range(total) if total <= MOST_LAYERS else (0, total - 1):
            yield f"layer {layer} of {total} x{rule.rate ** (total - layer - 1):.6g}", rule.rate ** (total - layer - 1)
        return
    pairs = rule.pairs if isinstance(rule, (first, by_name)) else (rule,) if isinstance(rule, tuple) else ()
    for selector, factor in pairs:
        yield f"{code(selector)} x{factor:.6g}", factor


class Clocks:
    """Every clock at each update of a run, from 0: as links read them when that update is applied.

    Args:
        owner: begins the sentence of an error.
        chain: whose window says how many micro-batches an update has.
        given: how further clocks go.
        epoch_length: micro-batches to a tick of "epoch", where `given` says nothing of it.
    """

    def __init__(
        self, owner: str, chain: Transform, given: Mapping[str, Clock], epoch_length: int | None = None
    ) -> None:
        self._owner, self._given = owner, dict(given)
        if epoch_length is not None:
            self._given.setdefault("epoch", lambda update: self.read("micro", update) // epoch_length)
        self._window = next((link for _, link, _ in walk(chain, None) if isinstance(link, KeepsWindow)), None)
        self._sizes_vary = self._window is not None and any(map(varies, self._window.__dict__.values()))
        self._ends = [0]  # micro-batches that are behind before each update
        for name, clock in self._given.items():
            if not callable(clock) and not (isinstance(clock, (int, float)) and clock > 0):
                raise ValueError(f"{owner}: clocks[{name!r}] must be updates for each tick, above 0, got {clock!r}.")

    def check(self, names: frozenset[str]) -> None:
        """LookupError for a clock of which nobody said how it goes."""
        if missing := sorted(names - {"step", "micro"} - set(self._given)):
            raise LookupError(
                f"{self._owner}: clocks must say how {missing[0]!r} goes, in updates for each tick: "
                f"clocks={{{missing[0]!r}: 500}}."
            )

    def at(self, update: int, names: frozenset[str] = frozenset()) -> dict[str, float]:
        """The readings of these clocks, and of "step"."""
        return {"step": update, **{name: self.read(name, update) for name in names - {"step"}}}

    def read(self, name: str, update: int) -> float:
        """One of them."""
        if name == "step":
            return update
        if name in self._given:
            clock = self._given[name]
            return float(clock(update)) if callable(clock) else update // clock
        return self._micro(update)

    def _micro(self, update: int) -> float:
        """The micro-batch that closes the window of this update."""
        if self._window is None:
            return update
        if not self._sizes_vary:
            return (update + 1) * self._size(0, 0) - 1
        while len(self._ends) < update + 2:
            self._ends.append(self._ends[-1] + self._size(len(self._ends) - 1, self._ends[-1]))
        return self._ends[update + 1] - 1

    def _size(self, update: int, micro: int) -> int:
        """How many micro-batches the window has that opens then."""
        assert self._window is not None
        window = self._window.at(Context.of(Step(clocks={"step": update, "micro": micro})))
        return window.size(window.init(Tensors.of({})))

    def update_at(self, name: str, reading: float, most: int) -> int | None:
        """The first update at which a clock is that far, None where it is none of the first `most`."""
        if name == "step":
            return int(reading) if reading <= most else None
        low, high = 0, 1
        while self.read(name, min(high, most)) < reading:
            if high >= most:
                return None
            low, high = high, 2 * high
        high = min(high, most)
        if self.read(name, 0) >= reading:
            return 0
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.read(name, middle) < reading else (low, middle)
        return high
