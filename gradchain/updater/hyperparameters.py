"""The hyperparameters of a bound chain: what they will be, for whom and why, which clocks they read, and overrides."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from gradchain.core.address import find
from gradchain.core.config import from_config, makes_links, to_config
from gradchain.core.context import Context
from gradchain.core.html import table, text
from gradchain.core.hyper import Hyper, Interval, Override, is_number, varies
from gradchain.core.index import Index
from gradchain.core.roles import AtTicks, TicksClock
from gradchain.core.scalars import Scalars, as_number, on_host
from gradchain.core.spread import Spread
from gradchain.core.step import Step
from gradchain.core.transform import Transform, walk
from gradchain.schedules import Schedule
from gradchain.schedules import clocks_of as read_by
from gradchain.selectors import PerParameter
from gradchain.selectors.rules import starts_of

Found: TypeAlias = "Mapping[str, tuple[Mapping[str, Any], Mapping[str, tuple[str, ...]]]]"


_ROW, _NAMES = 48, 6


class Settings(Mapping[str, Mapping[str, float]]):
    """Parameter → address → number, of every hyperparameter that was given per parameter. Prints as a table.

    `rules[parameter][address]` are the rules that matched; `groups()` counts the parameters of each number;
    `links[address]` are the parameters that a link has under a mask or in a branch, of links that not all have.
    """

    def __init__(self, found: Found, names: tuple[str, ...], links: Mapping[str, tuple[str, ...]]) -> None:
        self.links = dict(links)
        self._addresses = tuple(found)
        self._values = {n: {a: values[n] for a, (values, _) in found.items() if n in values} for n in names}
        self.rules = {n: {a: rules[n] for a, (_, rules) in found.items() if n in rules} for n in names}

    def __getitem__(self, name: str) -> Mapping[str, float]:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def groups(self) -> dict[str, dict[float, int]]:
        """Address → number → how many parameters have it, most first."""
        out: dict[str, dict[float, int]] = {a: {} for a in self._addresses}
        for row in self._values.values():
            for address, value in row.items():
                out[address][value] = out[address].get(value, 0) + 1
        return {a: dict(sorted(counts.items(), key=lambda item: -item[1])) for a, counts in out.items()}

    def __repr__(self) -> str:
        table = [*self._table(), "", *self._counted(), ""] if self._addresses else []
        return "\n".join([*table, *self._had()] if self.links else table[:-1] or [*self._had()])

    def __rich_repr__(self) -> Iterator[tuple[str, Any]]:
        yield from self._values.items() if self._addresses else ()

    def _repr_html_(self) -> str:
        if not self._addresses:
            return text(repr(self))
        head, *rows = self._rows()
        had = ["", *self._had()] if self.links else []
        return table(rows, head=head) + text("\n".join([*self._counted(), *had]))

    def _rows(self) -> list[list[str]]:
        """Its cells, a head first."""
        rows = [["parameter"]]
        for address in self._addresses:
            rows[0] += [address.rpartition("/")[2], "by"]
        for name, row in self._values.items():
            cells = [name]
            for address in self._addresses:
                there = address in row
                cells += [f"{row[address]:.6g}" if there else "", self._rule(name, address) if there else ""]
            rows.append(cells)
        return rows

    def _rule(self, name: str, address: str) -> str:
        """Why a parameter has its number; what is too long for a row is told once, by its number below the table."""
        told = ", ".join(self.rules[name][address])
        return told if len(told) <= _ROW else f"({self._long().index(told) + 1})"

    def _long(self) -> list[str]:
        every = (", ".join(rules) for found in self.rules.values() for rules in found.values())
        return list(dict.fromkeys(told for told in every if len(told) > _ROW))

    def _table(self) -> Iterator[str]:
        rows = self._rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for cells in rows:
            yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

    def _had(self) -> Iterator[str]:
        """Which parameters have the links that not all have, and which have none."""
        if not self._addresses:
            whose = "all parameters that have it" if self.links else "all parameters"
            yield f"Settings: every hyperparameter is one number for {whose}."
        for address, names in self.links.items():
            left = [name for name in self._values if name not in names]
            yield f"{address}: {len(names)} parameters have it{_some(names)}; {len(left)} have not{_some(left)}"

    def _counted(self) -> Iterator[str]:
        yield from (f"({i + 1}): {told}" for i, told in enumerate(self._long()))
        for address, counts in self.groups().items():
            shown = [f"{value:.6g} for {count}" for value, count in list(counts.items())[:8]]
            more = f", and {len(counts) - 8} more" if len(counts) > 8 else ""
            yield f"{address}: {', '.join(shown)}{more}"


def _some(names: Sequence[str]) -> str:
    """The first of some names, behind a colon."""
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return f": {', '.join(names[:_NAMES])}{more}" if names else ""


class Hyperparameters:
    """Every numeric hyperparameter of a chain, by address."""

    def __init__(self, chain: Transform) -> None:
        self._fields = _fields_of(chain)
        self._at_ticks = _at_ticks_in(chain)
        self.overrides: dict[str, Override] = {}
        self._chain = chain
        self._seen: dict[str, Index] = {}
        self._names: tuple[str, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fields": None, "_at_ticks": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fields, self._at_ticks = _fields_of(self._chain), _at_ticks_in(self._chain)  # may have been made anew

    def attach(self, index: Index) -> None:
        """Look at these parameters from now on.

        ValueError where a per-parameter value selects nothing, or a number in it is out of range.
        """
        seen = {address: part for address, _, part in walk(self._chain, index)}
        for full, (address, link, hyper) in self._fields.items():
            for value in (link.__dict__[hyper.name], self.overrides.get(full, Override()).value):
                check_spread(value, hyper, address, seen[address])
        self._check_ticking()
        self._seen, self._names = seen, index.names

    def values(self, clocks: Mapping[str, float]) -> dict[str, Any]:
        """Address → the number at these clocks, or a dict of numbers by parameter."""
        return self.values_under(clocks, self.overrides)

    def values_under(self, clocks: Mapping[str, float], overrides: Mapping[str, Override]) -> dict[str, Any]:
        """Address → the number at these clocks, under these overrides, or a dict of numbers by parameter."""
        return {
            full: shown(link.value_of(hyper, self._sight(at, clocks, overrides)))
            for full, (at, link, hyper) in self._fields.items()
        }

    def _sight(self, address: str, clocks: Mapping[str, float], overrides: Mapping[str, Override]) -> Context:
        """What the link at an address looks at where its numbers are asked for."""
        return self.sight(address, Step(clocks=clocks, overrides=overrides))

    def sight(self, address: str, step: Step) -> Context:
        """What the link at an address looks at: where it works at the ticks of a clock, that clock is its step."""
        link = self._at_ticks.get(address)
        if link is not None and link.clock is not None:
            step = step._replace(clocks={**step.clocks, "step": int(step.clocks.get(link.clock, 0))})
        return Context.of(step).enter(address).narrow(self._seen[address])

    def at_ticks(self) -> Mapping[str, AtTicks]:
        """The links that work at the ticks of a clock, by address."""
        return self._at_ticks

    def settings(self, clocks: Mapping[str, float]) -> Settings:
        """The hyperparameters that differ per parameter, and why."""
        found: dict[str, Any] = {}
        for full, (address, link, hyper) in self._fields.items():
            ctx = self._sight(address, clocks, self.overrides)
            override, own = self.overrides.get(full), link.__dict__[hyper.name]
            source = own if override is None else override.source(own)
            if isinstance(source, PerParameter):
                spread = Spread.of(source, ctx.index)
                matched = {n: s.rules for n, s in zip(ctx.index.names, spread.settings, strict=True)}
                if override is not None and override.factor is not None:
                    matched = {n: (*rules, f"override x{override.factor:.6g}") for n, rules in matched.items()}
                found[full] = (shown(link.value_of(hyper, ctx)), matched)
        for address, link, _ in walk(self._chain, None):
            found.update((f"{address}.{name}", told) for name, told in link.told(self._seen[address]).items())
        return Settings(found, self._names, self._narrowed())

    def _narrowed(self) -> dict[str, tuple[str, ...]]:
        """Address → the parameters that a mask or a branch leaves to what is in it."""
        out = {}
        for address, part in self._seen.items():
            around = self._seen.get(address.rpartition("/")[0])
            if part.names != (self._names if around is None else around.names):
                out[address] = part.names
        return out

    def clocks(self) -> frozenset[str]:
        """The named clocks that some schedule reads, or some link works at."""
        return self.clocks_under(self.overrides)

    def clocks_under(self, overrides: Mapping[str, Override]) -> frozenset[str]:
        """The named clocks that some schedule would read under these overrides, or some link works at."""
        at_ticks = {link.clock for link in self._at_ticks.values() if link.clock is not None}
        return self._read_under(overrides) | at_ticks | {link.clock for _, link in _ticking_in(self._chain)}

    def _read_under(self, overrides: Mapping[str, Override]) -> frozenset[str]:
        """Those that some schedule reads."""
        sources = [link.__dict__[hyper.name] for _, link, hyper in self._fields.values()]
        sources += [override.value for override in overrides.values()]
        return frozenset(name for value in sources for start in starts_of(value) for name in clocks_of(start))

    def _check_ticking(self) -> None:
        """ValueError for a clock that a link ticks and at whose ticks another works, or that is not the one read.

        Where no schedule reads any, an override may.
        """
        read = self._read_under(self.overrides) - {"step", "micro"}
        for address, link in _ticking_in(self._chain):
            working = next((a for a, other in self._at_ticks.items() if other.clock == link.clock), None)
            if working is not None:
                raise ValueError(
                    f"bind: {address} ticks {link.clock!r}, at whose ticks {working} works. Give it a clock of its own."
                )
            if read and link.clock not in read:
                named = ", ".join(sorted(read))
                raise ValueError(
                    f"bind: nothing reads the clock {link.clock!r}, which {address} ticks. Clocks that are read: "
                    f"{named}. Write by({link.clock!r}, schedule) for a number."
                )

    def override(self, name: str, value: Any, factor: float | None, clocks: Mapping[str, float]) -> None:
        """Put a number, a schedule or a factor in place of a hyperparameter; neither of them ends that."""
        full = find(name, self._fields, "override")
        number = as_number(factor)
        factor = factor if number is None else number
        if value is None and factor is None:
            self.overrides.pop(full, None)
            return
        if value is not None and factor is not None:
            raise ValueError("override: give a value or factor=, not both.")
        override = self._checked(full, Override(value, factor))
        if factor is not None:
            self._check_factor(full, override, clocks)
        self.overrides[full] = override

    def _checked(self, full: str, override: Override) -> Override:
        """An override as it is kept. TypeError or ValueError where its value or factor can be none."""
        address, link, hyper = self._fields[full]
        value, factor = override.value, override.factor
        if hyper.name in link.read_once:
            raise ValueError(f"override: {full} is read once, before the first update. Give it to {address}(…).")
        if factor is not None:
            if not is_number(factor) or not _FINITE.holds(factor):
                kind = ValueError if is_number(factor) else TypeError
                raise kind(f"override: factor must be a finite number, got {factor!r}.")
            return override
        made = Override(hyper.parse(value, address))
        link.check_uniform(hyper.name, value)
        check_spread(value, hyper, address, self._seen[address])
        return made

    def _check_factor(self, full: str, override: Override, clocks: Mapping[str, float]) -> None:
        """ValueError where a factor takes a hyperparameter out of its range: now, or whatever it will be."""
        address, link, hyper = self._fields[full]
        now = link.value_of(hyper, self._sight(address, clocks, {}))
        assert override.factor is not None
        found = f", which makes {now * override.factor:.6g} of {now:.6g}" if is_number(now) else ""
        rule = f"override: factor must leave {full} {hyper.interval.rule}, got {override.factor!r}{found}."
        if override.factor < 0 and not hyper.interval.has_negatives:  # a schedule may be at 0 now
            raise ValueError(rule)
        try:
            link.value_of(hyper, self._sight(address, clocks, {full: override}))
        except ValueError:
            if is_number(now) and hyper.interval.holds(now * override.factor):
                raise  # its optimizer class refuses
            raise ValueError(rule) from None

    def saved_overrides(self) -> dict[str, Any]:
        """The overrides as plain data."""
        return {a: {"value": to_config(o.value), "factor": o.factor} for a, o in self.overrides.items()}

    def restored(self, saved: Mapping[str, Any]) -> tuple[dict[str, Override], list[str], list[str]]:
        """Overrides from plain data, a sentence for each that cannot be had again, and one for each that is none.

        What this chain, model or program does not have, such as a function of the user's, cannot be had again. What no
        override can be, such as a number out of range, is wrong.
        """
        found: dict[str, Override] = {}
        lost, wrong = [], []
        for address, data in saved.items():
            try:
                found[address] = self._restored(address, data)
            except KeyError as error:
                lost.append(f"override of {address} was not restored: {str(error.args[0]).rstrip('.')}")
            except RecursionError:
                raise
            except Exception as error:  # whatever a class of ours says to arguments that it never had
                why = str(error).removeprefix("override: ").rstrip(".")
                wrong.append(f"override of {address} cannot be: {type(error).__name__}: {why}")
        return found, lost, wrong

    def _restored(self, full: str, data: Mapping[str, Any]) -> Override:
        """One override from plain data. KeyError for what this chain, model or program does not have."""
        if full not in self._fields:
            raise KeyError(f"the chain has no {full}")
        address, link, hyper = self._fields[full]
        if makes_links(data["value"]):
            raise TypeError("value must be a number, a schedule or numbers per parameter, and has a link in it")
        value = from_config(data["value"])
        if not (value is None or is_number(value) or isinstance(value, (Schedule, PerParameter))):
            raise TypeError(f"value must be a number, a schedule or numbers per parameter, got {value!r}")
        if isinstance(value, PerParameter):
            try:
                Spread.of(value, self._seen[address])
            except ValueError as error:
                raise KeyError(str(error)) from None  # it selects nothing in this model
        override = self._checked(full, Override(value, data["factor"]))
        if override.factor is not None and not varies(link.__dict__[hyper.name]):
            link.value_of(hyper, self._sight(address, {"step": 0}, {full: override}))  # raises where it is out of range
        return override


_FINITE = Interval()


def _fields_of(chain: Transform) -> dict[str, tuple[str, Transform, Hyper]]:
    """Full address → address of the link, the link, and its hyperparameter."""
    return {
        f"{address}.{name}": (address, link, hyper)
        for address, link, _ in walk(chain, None)
        for name, hyper in link.hypers.items()
        if hyper.is_numeric(link.__dict__[name])
    }


def _at_ticks_in(chain: Transform) -> dict[str, AtTicks]:
    """The links that work at the ticks of a clock, by address."""
    return {a: link for a, link, _ in walk(chain, None) if isinstance(link, AtTicks) and link.clock is not None}


def _ticking_in(chain: Transform) -> list[tuple[str, TicksClock]]:
    """The links that tick a clock, with their addresses."""
    return [(address, link) for address, link, _ in walk(chain, None) if isinstance(link, TicksClock)]


def check_spread(value: Any, hyper: Hyper, address: str, index: Index) -> None:
    """ValueError where a per-parameter value selects nothing, or one of the numbers in it is out of range."""
    if isinstance(value, PerParameter):
        spread = Spread.of(value, index)
        numbers = [math.nan if callable(start) else on_host(start) for start in spread.starts]
        found = zip(spread.scalars(index, numbers).items(), spread.settings, strict=True)
        hyper.checked(Scalars({n: v for (n, v), setting in found if not callable(setting.value)}), address)


def shown(value: Any) -> Any:
    """A number as it is, numbers per parameter as a dict."""
    return dict(value) if isinstance(value, Scalars) else value


def by_value(values: Mapping[str, Any]) -> dict[str, float]:
    """Address → number, and of numbers by parameter each once: `address/parameter`, the first that has it → number."""
    out: dict[str, float] = {}
    for address, value in values.items():
        if not isinstance(value, dict):
            out[address] = float(value)
            continue
        first: dict[float, str] = {}
        for name, number in value.items():
            first.setdefault(float(number), name)
        out.update({f"{address}/{name}": number for number, name in first.items()})
    return out


def clocks_of(value: Any) -> frozenset[str]:
    """The clocks that a hyperparameter's value reads; a number reads none."""
    if isinstance(value, Tensor) or not callable(value):
        return frozenset()
    return read_by(value)
