"""What is asked for by number and by name: how often, how many stay, and by what one is the best."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from gradchain.updater.group import Group
from gradchain.updater.updater import Updater

Best = tuple[str, Literal["min", "max"]]


def is_count(value: Any, least: int) -> bool:
    """Whether it is a whole number of at least so many."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def read_updaters(owner: str, given: Any) -> Updater | Group:
    """An updater, or several as a group. TypeError for anything else."""
    if isinstance(given, (Updater, Group)):
        return given
    if isinstance(given, Mapping):
        return Group(given)
    cure = "Bind a chain to the model: gch.chain(…).bind(model)."
    raise TypeError(f"{owner}: updater must be an Updater, or several by name, got {type(given).__name__}. {cure}")


def named(updaters: Updater | Group) -> Mapping[str, Updater]:
    """Under the names that they have in a file."""
    return {"updater": updaters} if isinstance(updaters, Updater) else updaters


def read_keep(owner: str, keep: Any) -> int | None:
    """How many of the newest stay, None for all. ValueError for anything else."""
    if keep is not None and not is_count(keep, 1):
        raise ValueError(f"{owner}: keep must be a whole number of at least 1 or None, got {keep!r}.")
    return keep  # type: ignore[no-any-return]


def read_best(owner: str, best: Any) -> tuple[Best, ...]:
    """One pair of a metric and "min" or "max", or several. ValueError for anything else."""
    one = not isinstance(best, (list, tuple)) or (isinstance(best, tuple) and best and isinstance(best[0], str))
    pairs: list[Any] = [best] if one else list(best)
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2 or pair[1] not in ("min", "max"):
            raise ValueError(f'{owner}: best must be (metric, "min" or "max") or a list of such, got {pair!r}.')
        if not isinstance(pair[0], str) or not pair[0]:
            raise ValueError(f"{owner}: best must name a metric by a str, got {pair[0]!r}.")
    by_file: dict[str, str] = {}
    for name, _ in pairs:
        file = file_of_best(name)
        if file in by_file:
            raise ValueError(
                f"{owner}: best must have a file for each metric, got {by_file[file]!r} and {name!r}, which would both "
                f"be saved as {file!r}. Rename one."
            )
        by_file[file] = name
    return tuple(pairs)


def file_of_best(metric: str) -> str:
    """The name of the file of the best by a metric."""
    return f"best_{re.sub(r'[^A-Za-z0-9_.-]', '_', metric)}.pt"


def better(rules: Sequence[Best], records: Mapping[str, float], metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are better than ever before, with their values. What is not finite is not."""
    found = {}
    for name, rule in rules:
        if name in metrics:
            value, before = metrics[name], records.get(name)
            improved = before is None or (value < before if rule == "min" else value > before)
            if math.isfinite(value) and improved:
                found[name] = value
    return found
