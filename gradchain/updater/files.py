"""One file for a run: weights, buffers, state and what else the user keeps. Written whole or not at all."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from os import PathLike
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeAlias, get_args

import torch
from torch import Tensor

from gradchain.core.readable import as_name, shown
from gradchain.updater import in_parts, safe_tensors, sealed
from gradchain.updater.fixed import Form
from gradchain.updater.journal import insist
from gradchain.updater.moving import Moves
from gradchain.updater.parts import Which, check_which
from gradchain.updater.state_dict import LoadReport

FORMAT = 2
_UNSEALED = 1  # the format of files that had no seal yet
Format = Literal["torch", "safetensors"]
FilePath: TypeAlias = "str | PathLike[str]"
_PLAIN = (str, int, float, bool, type(None))
_AS_SAVED: Mapping[str, Moves | None] = MappingProxyType({})


class LaterVersionError(ValueError):
    """A file that is whole, and that a later version of gradchain wrote."""


class Saved(Protocol):
    """What a file is written of, and read into: an Updater."""

    def contents(self, weights: Which = "all", form: Form = "plain") -> dict[str, Any]:
        """Its part of a file; with the state in the fixed form of a checkpoint in parts."""

    def stage_contents(self, contents: Mapping[str, Any], moves: Moves | None = None) -> Callable[[], LoadReport]:
        """Check a part, and return what makes it the updater's."""


def save(
    path: FilePath,
    updaters: Mapping[str, Saved],
    weights: Which,
    format: Format | None,
    extra: Mapping[str, Any],
) -> None:
    """Write the updaters and `extra` to `path`: all ranks call it, the first writes.

    The file appears under its name only when it is whole and on disk: a run killed meanwhile keeps the one before.
    """
    if format not in (*get_args(Format), None):
        raise ValueError(f"save: format must be 'torch', 'safetensors' or None, got {format!r}.")
    found = contents(updaters, weights, extra)
    where = sealed.path_of("save", path)
    if format == "safetensors" or (format is None and where.suffix == safe_tensors.SUFFIX):
        safe_tensors.check_installed("save", where)
        put = partial(safe_tensors.write, safe_tensors.parted(found))
    else:
        put = partial(sealed.write_zip, found)
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    try:
        if not distributed or torch.distributed.get_rank() == 0:
            sealed.write(where, put)
    finally:
        if distributed:
            torch.distributed.barrier()  # also where the write failed: the other ranks wait here


def contents(
    updaters: Mapping[str, Saved], weights: Which, extra: Mapping[str, Any], form: Form = "plain"
) -> dict[str, Any]:
    """What a file holds: weights as they lie in memory, the state and `extra`. All ranks call it.

    Raises:
        TypeError, ValueError: `extra` holds what would not load without running code.
    """
    check_which("save", weights)
    parts = {name: updater.contents(weights, form) for name, updater in updaters.items()}
    for name, value in extra.items():
        try:
            _check_plain(f"save: {name}", value)
        except RecursionError:
            raise ValueError(f"save: {name} must not hold itself, nor be nested this deeply.") from None
    return {"format": FORMAT, "parts": parts, "extra": dict(extra)}


def load(path: FilePath, updaters: Mapping[str, Saved], moves: Mapping[str, Moves | None]) -> dict[str, Any]:
    """Read what `save` wrote into the updaters, all or nothing, and return the extra. `moves` are by updater."""
    parts, extra = read(path, "load")
    stage(parts, updaters, moves)()
    return extra


def stage(
    parts: Mapping[str, Any], updaters: Mapping[str, Saved], moves: Mapping[str, Moves | None] = _AS_SAVED
) -> Callable[[], None]:
    """Check the parts of a file; the function returned makes them the updaters', all or nothing."""
    check_names("load", updaters, parts)
    staged = {name: updater.stage_contents(parts[name], moves.get(name)) for name, updater in updaters.items()}
    reports: dict[str, LoadReport] = {}

    def commit() -> None:
        reports.update((name, take_up()) for name, take_up in staged.items())

    def take() -> None:
        if len(staged) == 1:
            commit()
        else:
            insist(commit)
        differences = [line for report in reports.values() for line in report.differences]
        if differences:
            warnings.warn(f"load: {'; '.join(differences)}. The code's is used.", stacklevel=4)
        dropped = [line for report in reports.values() for line in report.problems()]
        if dropped:
            warnings.warn(f"load: {_first(dropped)}. What was not saved starts anew.", stacklevel=4)

    return take


def _first(lines: list[str]) -> str:
    return "; ".join(lines[:5]) + (f" (and {len(lines) - 5} more: updater.loaded)" if len(lines) > 5 else "")


def read(path: FilePath, owner: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts and extra that `save` wrote; of a checkpoint in parts whole. `Updater.load` says what it raises."""
    return whole(path, owner, opened(path, owner))


def whole(path: FilePath, owner: str, contents: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts and extra of what `opened` found."""
    if in_parts.KEY not in contents:
        return contents["parts"], contents["extra"]
    where = sealed.path_of(owner, path)
    if problem := in_parts.damage(where, contents, owner):
        raise ValueError(problem)
    return in_parts.whole(where, contents, owner)


def opened(path: FilePath, owner: str) -> dict[str, Any]:
    """What lies in a file: of a checkpoint in parts the index, and nobody has looked whether its parts are there."""
    return checked(path, owner, *sealed.read(sealed.path_of(owner, path), owner))


def checked(path: FilePath, owner: str, contents: Any, has_seal: bool) -> dict[str, Any]:
    """What was read from a file, if that is what `save` writes."""
    another = f"{owner}: {str(path)!r} must be a checkpoint that updater.save wrote, and is another file."
    if not isinstance(contents, dict) or not {"format", "parts", "extra"} <= set(contents):
        raise ValueError(another)
    found, parts, extra = contents["format"], contents["parts"], contents["extra"]
    if type(found) is not int or found not in (_UNSEALED, FORMAT, in_parts.FORMAT):
        later = has_seal and type(found) is int and found > in_parts.FORMAT
        raise (LaterVersionError if later else ValueError)(
            f"{owner}: {str(path)!r} has format {shown(found)}, and this version reads {_UNSEALED} to "
            f"{in_parts.FORMAT}."
        )
    if has_seal != (found != _UNSEALED):
        raise ValueError(f"{owner}: {str(path)!r} cannot be read: it is damaged, the checksum at its end is missing.")
    if not isinstance(parts, dict) or not isinstance(extra, dict):
        raise ValueError(another)
    if found == in_parts.FORMAT:
        in_parts.check(owner, sealed.path_of(owner, path), contents)
        return contents
    return {"parts": parts, "extra": extra}


def check_names(owner: str, expected: Iterable[str], found: Mapping[str, Any]) -> None:
    """ValueError unless `found` has exactly the expected names."""
    if not isinstance(found, Mapping) or set(expected) != set(found):
        names = sorted(map(as_name, found)) if isinstance(found, Mapping) else type(found).__name__
        raise ValueError(f"{owner}: expected the updaters {sorted(expected)}, found {names}.")


def _check_plain(where: str, value: Any) -> None:
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(where, key)
            _check_plain(f"{where}[{key!r}]", item)
    elif type(value) in (list, tuple, torch.Size):
        for item in value:
            _check_plain(where, item)
    elif type(value) in (Tensor, torch.nn.Parameter):
        for name, item in vars(value).items():
            _check_plain(f"{where}.{name}", item)
    elif type(value) not in _PLAIN:  # of a subclass one cannot know
        raise TypeError(
            f"{where} must be made of dict, list, tuple, str, int, float, bool, None and tensors, "
            f"got {type(value).__name__}: only those load without running code."
        )
