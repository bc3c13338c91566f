"""Selectors that a value per parameter may be written with, and what each of them matches."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from glob import escape
from typing import Any

from torch import nn

from gradchain.adapters.mmengine.entries import is_number
from gradchain.adapters.mmengine.groups.paramwise import NORMS, longest_first
from gradchain.selectors import ParameterFacts, Selector, bias, depthwise, named, ndim, norm, owner, resolve

__all__ = [
    "NORM",
    "Atom",
    "any_of",
    "as_factor",
    "by_config",
    "by_kind",
    "by_name",
    "containing",
    "joined",
    "numbers_in",
]


@dataclass(frozen=True)
class Atom:
    """A selector, and the names it matches."""

    selector: Selector
    names: frozenset[str]


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
