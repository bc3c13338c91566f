"""The numbers of parameter groups as a person would write them: one value, factors by selectors, or curves."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from glob import escape
from itertools import groupby
from operator import and_, or_
from typing import Any

from gradchain.adapters.mmengine.entries import is_number
from gradchain.adapters.mmengine.groups.rules import Rules
from gradchain.selectors import bias, choose, depthwise, first, layer_decay, multiply, named, norm, owner, resolve
from gradchain.selectors.base import ParameterFacts, Selector, conjunction, disjunction, negation
from gradchain.selectors.rules import Value, settings_of

__all__ = ["Parameters"]

Pairs = list[tuple[Selector, float]]
Curve = Callable[[float], Any]
"""A number of a group -> what becomes of it over the run."""


@dataclass(frozen=True)
class Parameters:
    """What the parameters of one optimizer begin with.

    rules: of its config, for any model; settings: what these have made of a model that is at hand, by name, None where
    a parameter is not optimised; facts: its parameters; groups: by name, which of the groups a parameter is in; waits:
    why the rules are not read yet, where a model must be at hand.
    """

    rules: Rules
    settings: Mapping[str, Mapping[str, Any] | None] | None = None
    facts: Sequence[ParameterFacts] = ()
    groups: Mapping[str, int] | None = None
    waits: str = ""
    _taken: dict[Selector, frozenset[str]] = field(default_factory=dict)

    def fields(self) -> list[str]:
        """The numbers that groups have."""
        if self.settings is None:
            return self.rules.fields()
        return list(dict.fromkeys(name for items in self.settings.values() for name in items or ()))

    def numbers(self, field: str, base: Any) -> list[Any]:
        """What a field is in some group; `base`: the optimizer's own number."""
        if self.settings is None:
            start = self.rules.usual.get(field, base)
            found = [number for _, number in self.rules.pairs(field, start)]
            if self.rules.multiply:
                found = [start * factor for factor in (*found, math.prod(found))]
            elif field == "lr" and self.rules.layers is not None:
                found = [start * self.rules.layers.rate ** (self.rules.layers.total - 1)]
            return list(dict.fromkeys([start, *found]))
        return list(dict.fromkeys(self._wanted(field, base).values()))

    def value(self, field: str, base: Any, curve: Curve, *, proportional: bool) -> Any:
        """The value of a field for a chain: `curve` of a number, or factors or curves by selectors.

        Written by the rules, which is the code that replaces the config; and where a model is at hand and these do not
        come to its groups' numbers, by what tells these apart.

        Args:
            field: of a parameter group.
            base: the optimizer's own number.
            curve: of a number.
            proportional: whether the curve of twice the number is twice the curve; with an absolute floor it is not.
        """
        start = self.rules.usual.get(field, base)
        wanted = {name: _number(given) for name, given in self._wanted(field, base).items()}
        if wanted and len({*wanted.values()}) == 1:
            return curve(next(iter(wanted.values())))
        for form in self._forms(field, start, proportional, wanted):
            if self.settings is None or self._gives(form(lambda number: number), wanted):
                return form(curve)
        if self.settings is None:
            self.rules.paramwise.refuse(
                f"{field!r} has factors by layer or by several keys, and a schedule that is no multiple of its base "
                "value, as one with an absolute eta_min. Where a model is at hand, mmengine.from_config reads it.",
                NotImplementedError,
            )
        pairs, start = self._apart(wanted, base)
        return (self._factors if proportional and start else _curves)(pairs, start)(curve)

    def _wanted(self, field: str, base: Any) -> dict[str, Any]:
        """By name, what a field is in the group of each parameter that is optimised."""
        given = (self.settings or {}).items()
        return {name: items.get(field, base) for name, items in given if items is not None}

    def _forms(
        self, field: str, start: Any, proportional: bool, wanted: Mapping[str, Any]
    ) -> Iterator[Callable[[Curve], Value]]:
        """Ways to write it by the rules, from a curve, the best first."""
        layers = self.rules.layers
        if field == "lr" and layers is not None:
            if layers.shown is not None and proportional:
                shown = layer_decay(layers.rate, layers.shown)
                yield lambda curve: multiply(curve(start), shown)
            return
        pairs = self._plain(self.rules.pairs(field, start), wanted)
        if self.rules.multiply:
            factors = [(who, factor) for who, factor in pairs if factor != 1.0]
            if proportional or not factors:
                yield lambda curve: multiply(curve(start), *factors) if factors else curve(start)
            return
        pairs, known = self._tidy(pairs, wanted, start), numbers_in(self.rules.paramwise.cfg)
        # what the config has as a number of its own stays that number
        scales = proportional and start and all(as_factor(number, start, known) in known for _, number in pairs)
        yield self._factors(pairs, start) if scales else _curves(pairs, start)

    def _gives(self, value: Value, wanted: Mapping[str, Any]) -> bool:
        """Whether a value made of numbers gives every parameter its own, but for roundings of the products."""
        try:
            found = {entry[0]: s for entry, s in zip(self.facts, settings_of(value, self.facts), strict=True)}
        except (IndexError, ValueError):  # names that another kind of model has
            return False
        return all(
            math.isclose(math.prod(found[name].factors, start=found[name].value), number, rel_tol=1e-15)
            for name, number in wanted.items()
        )

    def _factors(self, pairs: Pairs, start: float) -> Callable[[Curve], Value]:
        """One curve with factors: one after the other where no parameter is in two, else the first that matches."""
        known = numbers_in(self.rules.paramwise.cfg)
        rules = [(who, as_factor(number, start, known)) for who, number in pairs]
        taken = Counter(name for who, _ in pairs for name in self._names(who))
        apart = len(pairs) == 1 or (self.facts and max(taken.values(), default=0) < 2)
        return lambda curve: multiply(curve(start), *(rules if apart else [first(*rules)])) if rules else curve(start)

    # --- selectors of the model that is at hand -----------------------------------------------------------------

    def _names(self, who: Selector) -> frozenset[str]:
        if who not in self._taken:
            self._taken[who] = frozenset(resolve(who, self.facts, allow_empty=True))
        return self._taken[who]

    def _plain(self, pairs: Iterable[tuple[Selector, Any]], wanted: Mapping[str, Any]) -> list[tuple[Selector, Any]]:
        """Without what takes nothing of the model, and in fewer words where these say the same of it."""
        numbers = [(who, _number(given)) for who, given in pairs]
        if not self.facts:
            return numbers
        return [(self._plainer(who), n) for who, n in numbers if self._names(who) & wanted.keys()]

    def _plainer(self, who: Selector) -> Selector:
        def same(other: Selector) -> bool:
            return self._names(other) == self._names(who)

        if isinstance(who, (conjunction, disjunction)):
            sign = and_ if isinstance(who, conjunction) else or_
            swapped = [_with_norm(part) for part in who.operands]
            parts = swapped if same(reduce(sign, swapped)) else [self._plainer(part) for part in who.operands]
            for part in reversed(parts):
                rest = [one for one in parts if one is not part]
                parts = rest if rest and same(reduce(sign, rest)) else parts
            return reduce(sign, parts)
        if isinstance(who, negation):
            return ~self._plainer(who.operand)
        if isinstance(who, named):
            hits = {pattern: self._names(named(pattern)) for pattern in who.patterns}
            # what lies on the root itself is called by its name
            short: dict[Any, str] = {
                p: escape(*names) for p, names in hits.items() if isinstance(p, re.Pattern) and len(names) == 1
            }
            return named(*(short.get(pattern, pattern) for pattern, names in hits.items() if names))
        return plain if same(plain := _with_norm(who)) else who

    def _tidy(self, pairs: Pairs, wanted: Mapping[str, Any], start: float) -> Pairs:
        """Without pairs that change nothing, and with neighbours of one number together."""
        matched = {who: self._names(who) for who, _ in pairs}

        def decides(name: str, pairs: Pairs) -> float:
            return next((number for who, number in pairs if name in matched[who]), start)

        for pair in reversed(pairs):
            rest = [other for other in pairs if other is not pair]
            if wanted:
                idle = all(decides(name, rest) == number for name, number in wanted.items())
            else:
                idle = pair is pairs[-1] and pair[1] == start
            pairs = rest if idle else pairs
        neighbours = groupby(pairs, key=lambda pair: pair[1])
        return [(any_of(who for who, _ in group), number) for number, group in neighbours]

    def _apart(self, wanted: Mapping[str, Any], base: Any) -> tuple[Pairs, float]:
        """Selectors for each number: kinds, modules and last names that have no other, and at last names.

        The rest has the optimizer's own number, or else what most have that is not 0.
        """
        usual = [number for number, _ in Counter(wanted.values()).most_common()]
        start = base if base in usual else next(filter(None, usual), usual[0])
        lasts = dict.fromkeys(name.rpartition(".")[2] for name in wanted if "." in name)
        modules = dict.fromkeys(name[:i] for name in wanted for i, letter in enumerate(name) if letter == ".")
        globs = [*(f"{escape(module)}.*" for module in modules), *(f"*.{escape(last)}" for last in lasts)]
        atoms = {who: self._names(who) & wanted.keys() for who in (norm, bias, depthwise, *map(named, globs))}
        pairs: Pairs = []
        for number in (one for one in usual if one != start):
            left = {name for name in wanted if wanted[name] == number}
            pure = {who: names for who, names in atoms.items() if names <= left}
            parts: list[Selector] = []
            while pure and len(pure[best := max(pure, key=lambda who: len(pure[who] & left))] & left) > 1:
                parts.append(best)
                left -= pure[best]
            parts += [named(*(escape(name) for name in wanted if name in left))] if left else []
            pairs.append((any_of(parts), number))
        return pairs, start


def _number(given: Any) -> Any:
    return float(given) if isinstance(given, bool) else given


def _curves(pairs: Pairs, start: float) -> Callable[[Curve], Value]:
    """A curve for each number."""
    return lambda curve: choose(*((who, curve(n)) for who, n in pairs), rest=curve(start)) if pairs else curve(start)


def _with_norm(who: Selector) -> Selector:
    """The same with gradchain's own norm in place of lists of classes of norms; RMSNorm may be in the way."""
    if isinstance(who, (conjunction, disjunction)):
        return reduce(and_ if isinstance(who, conjunction) else or_, map(_with_norm, who.operands))
    if isinstance(who, negation):
        return ~_with_norm(who.operand)
    return norm if isinstance(who, owner) and all("Norm" in kind.__name__ for kind in who.module_types) else who


def any_of(selectors: Iterable[Selector]) -> Selector:
    """All that one of these selects; names stand together."""
    found = list(selectors)
    names = [s for s in found if isinstance(s, named)]
    if len(names) > 1:
        missing_ok = any(s.missing_ok for s in names)
        together = named(*(p for s in names for p in s.patterns), missing_ok=missing_ok)
        found = [together, *(s for s in found if not isinstance(s, named))]
    return reduce(or_, found)


def numbers_in(config: Any) -> list[float]:
    """Factors that a config may mean: 1, 0 and all the numbers that it has somewhere."""
    found, inside = [1.0, 0.0], [config]
    for value in inside:
        if isinstance(value, Mapping):
            inside += value.values()
        elif is_number(value):
            found.append(float(value))
    return found


def as_factor(value: float, start: float, known: Iterable[float]) -> float:
    """What `start` is multiplied by to be `value`: one of the known numbers, or a short one, if there is one."""
    short = round(value / start, 9) if start else 1.0
    near = short if math.isclose(start * short, value, rel_tol=1e-15) else value / start
    return next((factor for factor in known if start * factor == value), near)
