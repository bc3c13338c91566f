"""Selectors that a value per parameter may be written with, and what each of them matches."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from gradchain.selectors import ParameterFacts, Selector, bias, depthwise, named, ndim, norm, owner, resolve

__all__ = ["Atom", "by_config", "by_kind", "by_name", "joined"]


@dataclass(frozen=True)
class Atom:
    """A selector, and the names it matches."""

    selector: Selector
    names: frozenset[str]


# where RMSNorm, which is no norm to MMEngine, is in the way
_NORMS = owner(nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm)
_KINDS: tuple[tuple[str, Selector], ...] = (
    ("norm", norm),
    ("norm", _NORMS),
    ("bias", bias),
    ("bias", bias & ~norm),
    ("bias", bias & ~_NORMS),
    ("dwconv", depthwise & owner(nn.Conv2d)),
    ("flat", ndim(1)),
)


def by_config(config: Mapping[str, Any], facts: Sequence[ParameterFacts]) -> list[Atom]:
    """What the config is about: its custom keys, and the kinds that it has a multiplier for."""
    given = config.get("paramwise_cfg") or {}
    names = [name for name, _, _ in facts]
    nested = given.get("custom_keys", {key: entry for key, entry in given.items() if isinstance(entry, Mapping)})
    keys = [_containing(key, names) for key in sorted(sorted(nested), key=len, reverse=True)]
    kinds = [s for kind, s in _KINDS if any(str(key).startswith(f"{kind}_") for key in given)]
    return _atoms([key for key in keys if key is not None] + kinds, facts)


def _containing(key: str, names: Sequence[str]) -> Selector | None:
    """What a custom key matches: a part of the name, which on the root begins with a dot."""
    patterns = [f"*{_literal(key)}*"] if any(key in name for name in names) else []
    if key.startswith(".") and any("." not in name and f".{name}".startswith(key) for name in names):
        patterns.append(f"{_literal(key[1:])}*")
    return named(*patterns) if patterns else None


def _literal(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)


def by_kind(facts: Sequence[ParameterFacts]) -> list[Atom]:
    """Kinds of parameters, last names that several have, and whole modules."""
    names = [name for name, _, _ in facts]
    lasts = dict.fromkeys(name.rpartition(".")[2] for name in names if "." in name)
    modules = dict.fromkeys(name[:i] for name in names for i, letter in enumerate(name) if letter == ".")
    globs = [*(f"{_literal(module)}.*" for module in modules), *(f"*.{_literal(last)}" for last in lasts)]
    return _atoms([*(selector for _, selector in _KINDS), *map(named, globs)], facts)


def by_name(left: Mapping[str, float]) -> list[Atom]:
    """A list of names for each value."""
    names: dict[float, list[str]] = {}
    for name, value in left.items():
        names.setdefault(value, []).append(name)
    return [Atom(named(*map(_literal, same)), frozenset(same)) for same in names.values()]


def _atoms(selectors: Iterable[Selector], facts: Sequence[ParameterFacts]) -> list[Atom]:
    found = [Atom(selector, frozenset(resolve(selector, facts, allow_empty=True))) for selector in selectors]
    return [atom for atom in found if atom.names]


def joined(a: Atom, b: Atom) -> Atom:
    """What either matches; globs go into one list."""
    globs = [part for part in (a.selector, b.selector) if isinstance(part, named)]
    both = named(*(p for part in globs for p in part.patterns)) if len(globs) == 2 else a.selector | b.selector
    return Atom(both, a.names | b.names)
