"""Settings of parameters written as a person would: one value, factors by selectors, or groups with their own."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from glob import escape
from typing import Any

from torch import nn

from gradchain.adapters.mmengine.entries import is_number
from gradchain.adapters.mmengine.groups.layers import decays
from gradchain.adapters.mmengine.groups.paramwise import NORMS, Paramwise, longest_first
from gradchain.selectors import bias, choose, depthwise, first, multiply, named, ndim, norm, owner, resolve
from gradchain.selectors.base import ParameterFacts, Selector, conjunction
from gradchain.selectors.rules import Value, settings_of
from gradchain.updater.target import Target

__all__ = ["NORM", "any_of", "as_factor", "containing", "numbers_in", "values"]


@dataclass(frozen=True)
class Atom:
    """A selector, and the names it matches."""

    selector: Selector
    names: frozenset[str]


Pair = tuple[Atom, float]
NORM = owner(*NORMS)
# gradchain's own norm where it will do; RMSNorm, which is no norm to MMEngine, may be in the way
_KINDS: tuple[tuple[str, Selector], ...] = (
    ("norm", norm),
    ("norm", NORM),
    ("bias", bias),
    ("bias", bias & ~norm),
    ("bias", bias & ~NORM),
    ("dwconv", depthwise & owner(nn.Conv2d)),
    ("flat", ndim(1)),
)


def values(
    model: nn.Module,
    optim_wrapper: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any] | None],
    field: str,
    curve: Callable[[float], Any],
    proportional: bool = True,
) -> Value:
    """Write one field of `param_settings`, read from this wrapper, as a value for a chain.

    Where all trained parameters agree it is `curve` of what they agree on; else `multiply` of one curve, by the
    selectors that the config is about where they tell the same parameters apart, and by others where they do not; else
    `choose`, with a curve for each group: so too where twice a base value has not twice its curve, as with an absolute
    floor, which is not `proportional`. Printed, it is the code that replaces the config. It gives each trained
    parameter its setting; the others, whatever was simplest. "momentum" is `betas[0]` where the optimizer has betas.

    Raises: ValueError: nothing is optimised, or nobody says what the field is.
    """
    facts = Target(model).index.entries
    optimizer = Paramwise("values", optim_wrapper["optimizer"], {}, strict=True)
    base = _of_group({key: optimizer.default(key) for key in (field, "betas")}, field)
    wanted = {name: _of_group(items, field, base) for name, items in settings.items() if items is not None}
    if not wanted or None in wanted.values():
        raise ValueError(f"mmengine.params.values: {field} must be known for every trained parameter, got {wanted!r}.")
    if len(set(wanted.values())) == 1:
        return curve(next(iter(wanted.values())))  # type: ignore[no-any-return]
    start = _start(base, optim_wrapper, wanted)

    def forms() -> Iterator[Callable[[Callable[[float], Any]], Value]]:
        """Ways to write it, from a curve, the best first."""
        if proportional and start:
            for rule in decays(model, optim_wrapper, facts):
                yield lambda curve, rule=rule: multiply(curve(start), rule)  # type: ignore[misc]
        pairs = _tidy(_decisions(optim_wrapper, facts, wanted, start), wanted, start)
        if proportional and start:
            yield lambda curve: multiply(curve(start), *_factors(pairs, optim_wrapper, wanted, start))
        yield lambda curve: choose(*[(atom.selector, curve(value)) for atom, value in pairs], rest=curve(start))

    for make in forms():
        if _gives(make(lambda value: value), facts, wanted):
            return make(curve)
    raise AssertionError("a list of names gives any settings")


def _of_group(items: Mapping[str, Any], field: str, otherwise: Any = None) -> Any:
    """A number of a parameter group; the momentum of an optimizer with betas is the first."""
    if field == "momentum" and items.get("betas") is not None:
        return items["betas"][0]
    return items.get(field, otherwise)


def _start(base: Any, config: Mapping[str, Any], wanted: Mapping[str, float]) -> float:
    """What the others are multiples of: the base value where the config says so, else what most have that is not 0."""
    counts = Counter(wanted.values())
    if base in counts or (base and {base * factor for factor in numbers_in(config)} >= counts.keys()):
        return base  # type: ignore[no-any-return]
    usual = [value for value, _ in counts.most_common()]
    return next(filter(None, usual), usual[0])


def _gives(value: Value, facts: Sequence[ParameterFacts], wanted: Mapping[str, float]) -> bool:
    """Whether a value made of numbers gives every setting, but for roundings of the products."""
    found = {entry[0]: s for entry, s in zip(facts, settings_of(value, facts), strict=True)}
    return all(
        math.isclose(math.prod(found[name].factors, start=found[name].value), number, rel_tol=1e-15)
        for name, number in wanted.items()
    )


def _decisions(
    config: Mapping[str, Any], facts: Sequence[ParameterFacts], wanted: Mapping[str, float], start: float
) -> list[Pair]:
    """Selectors with a value each, the first that matches decides: those of the config as long as they tell apart."""
    left: dict[str, float] = dict(wanted)
    pairs: list[Pair] = []
    atoms: list[Atom] = []
    more = iter((lambda: by_config(config, facts), lambda: by_kind(facts), lambda: by_name(left)))
    while any(value != start for value in left.values()):
        pure: list[tuple[tuple[bool, bool, int], Pair]] = []
        for atom in atoms:
            matched = [left[name] for name in atom.names if name in left]
            if matched and len(set(matched)) == 1:
                plain = not isinstance(atom.selector, conjunction)
                pure.append(((matched[0] != start, plain, len(matched)), (atom, matched[0])))
        if not pure:
            atoms += next(more)()
            continue
        atom, value = max(pure, key=lambda entry: entry[0])[1]
        pairs.append((atom, value))
        left = {name: number for name, number in left.items() if name not in atom.names}
    return pairs


def _tidy(pairs: list[Pair], wanted: Mapping[str, float], start: float) -> list[Pair]:
    """Without pairs that change nothing, and with pairs of one value joined where the order allows it."""
    for pair in reversed(pairs):
        rest = [other for other in pairs if other is not pair]
        decided = ((next((v for atom, v in rest if name in atom.names), start), v) for name, v in wanted.items())
        pairs = rest if all(found == goal for found, goal in decided) else pairs
    out: list[Pair] = []
    for atom, value in pairs:
        for i in reversed(range(len(out))):
            if out[i][1] == value:
                out[i] = (joined(out[i][0], atom), value)
                break
            if atom.names & out[i][0].names & wanted.keys():
                out.append((atom, value))
                break
        else:
            out.append((atom, value))
    return out


def _factors(
    pairs: Sequence[Pair], config: Mapping[str, Any], wanted: Mapping[str, float], start: float
) -> Sequence[Any]:
    """The rules of `multiply`: one after the other where no parameter is in two, else the first that matches."""
    known = numbers_in(config)
    rules = [(atom.selector, as_factor(value, start, known)) for atom, value in pairs]
    apart = all(sum(name in atom.names for atom, _ in pairs) < 2 for name in wanted)
    return rules if apart else [first(*rules)]


# the selectors


def by_config(config: Mapping[str, Any], facts: Sequence[ParameterFacts]) -> list[Atom]:
    """What the config is about: its custom keys, and the kinds that it has a multiplier for."""
    given = config.get("paramwise_cfg") or {}
    nested = given.get("custom_keys", {key: entry for key, entry in given.items() if isinstance(entry, Mapping)})
    names = [name for name, _, _ in facts]
    keys = [_there(key, names) for key in longest_first(nested)]
    kinds = [s for kind, s in _KINDS if any(str(key).startswith(f"{kind}_") for key in given)]
    return _atoms([key for key in keys if key is not None] + kinds, facts)


def _there(key: str, names: Sequence[str]) -> Selector | None:
    """What a custom key matches of these names, by patterns that are plain text; None where that is nothing."""
    patterns = [f"*{escape(key)}*"] if any(key in name for name in names) else []
    if key.startswith(".") and any("." not in name and f".{name}".startswith(key) for name in names):
        patterns.append(f"{escape(key[1:])}*")
    return named(*patterns) if patterns else None


def containing(key: str, missing_ok: bool) -> Selector:
    """A custom key as MMEngine looks for it: in "module.name", which on the root module is ".name"."""
    inside = f"*{escape(key)}*"
    if not key.startswith(".") or "." in key[1:]:
        return named(inside, missing_ok=missing_ok)
    return named(inside, re.compile(f"{re.escape(key[1:])}[^.]*"), missing_ok=True)


def numbers_in(config: Any) -> list[float]:
    """Factors that a config may mean: 1, 0 and all the numbers that its paramwise_cfg has somewhere."""
    found, inside = [1.0, 0.0], [config.get("paramwise_cfg")]
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


def by_kind(facts: Sequence[ParameterFacts]) -> list[Atom]:
    """Kinds of parameters, last names that several have, and whole modules."""
    names = [name for name, _, _ in facts]
    lasts = dict.fromkeys(name.rpartition(".")[2] for name in names if "." in name)
    modules = dict.fromkeys(name[:i] for name in names for i, letter in enumerate(name) if letter == ".")
    globs = [*(f"{escape(module)}.*" for module in modules), *(f"*.{escape(last)}" for last in lasts)]
    return _atoms([*(selector for _, selector in _KINDS), *map(named, globs)], facts)


def by_name(left: Mapping[str, float]) -> list[Atom]:
    """A list of names for each value."""
    names: dict[float, list[str]] = {}
    for name, value in left.items():
        names.setdefault(value, []).append(name)
    return [Atom(named(*map(escape, same)), frozenset(same)) for same in names.values()]


def _atoms(selectors: Iterable[Selector], facts: Sequence[ParameterFacts]) -> list[Atom]:
    found = [Atom(selector, frozenset(resolve(selector, facts, allow_empty=True))) for selector in selectors]
    return [atom for atom in found if atom.names]


def joined(a: Atom, b: Atom) -> Atom:
    """What either matches; globs go into one list."""
    return Atom(any_of([a.selector, b.selector]), a.names | b.names)


def any_of(selectors: Iterable[Selector]) -> Selector:
    """All that one of these selects; names stand together."""
    found = list(selectors)
    names = [s for s in found if isinstance(s, named)]
    if len(names) > 1:
        missing_ok = any(s.missing_ok for s in names)
        together = named(*(p for s in names for p in s.patterns), missing_ok=missing_ok)
        found = [together, *(s for s in found if not isinstance(s, named))]
    return reduce(lambda one, other: one | other, found)
