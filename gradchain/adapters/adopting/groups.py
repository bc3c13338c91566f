"""Parameter groups as numbers per parameter: which selector says a group, and one value where all groups have one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from gradchain import selectors
from gradchain.selectors import ParameterFacts, SelectorLike, choose, named, resolve

_READY: tuple[SelectorLike, ...] = (
    selectors.bias,
    selectors.norm,
    selectors.norm | selectors.bias,
    selectors.embedding,
    selectors.norm | selectors.bias | selectors.embedding,
    selectors.min_ndim(2),
)


def spread(values: Sequence[Any], groups: Sequence[Sequence[str]], facts: Sequence[ParameterFacts]) -> Any:
    """One value for all parameters where the groups agree, else each group's own: the largest group has the rest."""
    held = [(value, names) for value, names in zip(values, groups, strict=True) if names]
    if all(value == held[0][0] for value, _ in held):
        return held[0][0]
    by_value: list[tuple[Any, list[str]]] = []
    for value, names in held:
        for known, members in by_value:
            if known == value:
                members.extend(names)
                break
        else:
            by_value.append((value, list(names)))
    largest = max(by_value, key=lambda entry: len(entry[1]))
    pairs = [(selector(names, facts), value) for value, names in by_value if names is not largest[1]]
    return choose(*pairs, rest=largest[0])


def selector(names: Sequence[str], facts: Sequence[ParameterFacts]) -> SelectorLike:
    """What selects exactly these parameters: by what they are or below which module, else one by one."""
    wanted = frozenset(names)
    for ready in (*_READY, *(~ready for ready in _READY if isinstance(ready, selectors.Selector))):
        if _selects(ready, wanted, facts):
            return ready
    for pattern in _patterns(names):
        if _selects(named(pattern), wanted, facts):
            return named(pattern)
    return named(*(re.compile(re.escape(name)) if set(name) & set("*?[") else name for name in names))


def _selects(candidate: SelectorLike, wanted: frozenset[str], facts: Sequence[ParameterFacts]) -> bool:
    try:
        return frozenset(resolve(candidate, facts)) == wanted
    except ValueError:  # it matches nothing
        return False


def _patterns(names: Sequence[str]) -> list[str]:
    """Globs over the modules that hold all of these names, the innermost first."""
    split = [name.split(".") for name in names]
    shared: list[str] = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    shared = shared[: min(len(parts) for parts in split) - 1]
    return [".".join(shared[:k]) + ".*" for k in range(len(shared), 0, -1)]
