"""The table under a converted config: what became of each key, found by reading the recipe with another value."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from gradchain.adapters.mmengine.recipe.whole import Unbound
from gradchain.cli.recipe import LENGTHS, Builder

__all__ = ["Path", "at", "key_of", "leaves", "rows", "shown"]

Path = tuple[Any, ...]
Row = tuple[str, str, str]
WIDTH = 44
OF_RULES = ("constructor", "paramwise_cfg", "paramwise_options", "modules")
NOTHING = "nothing: the chain is the same without it"


def rows(config: Mapping[str, Any], builder: Builder, parts: list[Unbound]) -> list[Row]:
    """A row for each value: the key, the value and what it became."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [_row(path, config, builder, parts) for path in _places(config, builder)]


def _places(config: Mapping[str, Any], builder: Builder) -> Iterator[Path]:
    """The places of values; a hook that has no part in the chain is one."""
    return iter(dict.fromkeys(_of_hook(path, config, builder) for path in leaves(config, ())))


def _of_hook(path: Path, config: Mapping[str, Any], builder: Builder) -> Path:
    within = path[0] == "custom_hooks" and len(path) > 1
    return path[:2] if within and not builder.reads(at(config, path[:2])) else path


def leaves(value: Any, path: Path) -> Iterator[Path]:
    """The places of all values in dicts and lists of dicts."""
    if isinstance(value, Mapping) and value:
        for key, one in value.items():
            yield from leaves(one, (*path, key))
    elif isinstance(value, (list, tuple)) and value and all(isinstance(one, Mapping) for one in value):
        for i, one in enumerate(value):
            yield from leaves(one, (*path, i))
    else:
        yield path


def key_of(path: Path) -> str:
    """A place as one writes it."""
    return "".join(f"[{step!r}]" if not isinstance(step, str) else f".{step}" for step in path)[1:]


def shown(value: Any) -> str:
    """A value, in as many letters as a column has."""
    text = repr(value)
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."


def at(value: Any, path: Path) -> Any:
    """What is at a place."""
    for step in path:
        value = value[step]
    return value


def _row(path: Path, config: Mapping[str, Any], builder: Builder, parts: list[Unbound]) -> Row:
    key, value = key_of(path), shown(at(config, path))
    if path[0] in LENGTHS:
        is_length = path[-1] in (builder.length[0], f"total_{builder.length[0][4:]}")
        return key, value, "the length of the run" if is_length else "not read"
    if path[0] not in builder.keys:
        return key, value, "not read: the other format is there"
    return key, value, _became(path, config, builder, parts)


def _became(path: Path, config: Mapping[str, Any], builder: Builder, parts: list[Unbound]) -> str:
    """The links that are others with another value, or without the key; where that cannot be, without what it is in."""
    if path[0] == "custom_hooks" and len(path) == 2:
        return NOTHING
    if path[-2:] in (("optimizer", "type"), ("optimizer", "optimizer_type")):
        sharing = any(part.zero_redundancy for part in parts) and path[-1] == "type"
        return "bind(zero_redundancy=True)" if sharing else "the rule"
    if any(part.waits for part in parts) and any(step in OF_RULES for step in path):
        return "from_config reads it, where the model is"
    here, tried = _links(parts), False
    others = [_with(config, path, other) for other in _others(at(config, path))]
    for other in [*others, *(_without(config, path[:depth]) for depth in range(len(path), 0, -1))]:
        try:
            there = _links(builder.parts(other))
        except Exception:  # of whatever type: that cannot be
            continue
        tried = True
        changed = [name for name in here if here[name] != there.get(name)]
        if changed:
            return ", ".join(changed)
        if other not in others:
            break
    return NOTHING if tried else "all of it"


def _others(value: Any) -> list[Any]:
    """Other values of the same kind."""
    if isinstance(value, bool):
        return [not value]
    return [value / 2, value + 1] if isinstance(value, (int, float)) else []


def _links(parts: list[Unbound]) -> dict[str, str]:
    """By address what a link is, and the dtype of the forward."""
    out: dict[str, str] = {}
    for part in parts:
        before = "" if part.key is None else f"{part.key}/"
        out |= {before + name: repr(link) for name, link in part.chain.named}
        if part.autocast is not None:
            out[f"{before}autocast"] = repr(part.autocast)
    return out


def _without(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    out, holder = _copied(config, path)
    del holder[path[-1]]
    return out


def _with(config: Mapping[str, Any], path: Path, value: Any) -> dict[str, Any]:
    out, holder = _copied(config, path)
    holder[path[-1]] = value
    return out


def _copied(config: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], Any]:
    """A copy, and what in it holds the value at a path."""
    out = copy.deepcopy(dict(config))
    holder: Any = out
    for step in path[:-1]:
        if isinstance(holder[step], tuple):
            holder[step] = list(holder[step])
        holder = holder[step]
    return out, holder
