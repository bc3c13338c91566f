"""One file for a run: weights, buffers, state and what else the user keeps. Written whole or not at all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from gradchain.updater import sealed

FORMAT = 2
_UNSEALED = 1  # the format of files that had no seal yet
_PLAIN = (str, int, float, bool, type(None))


def save(path: str | PathLike[str], parts: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    """Write `parts` and `extra` to `path`: all ranks call it, the first writes.

    The file appears under its name only when it is whole and on disk: a run killed meanwhile keeps the one before.
    """
    where = sealed.path_of("save", path)
    for name, value in extra.items():
        try:
            _check_plain(f"save: {name}", value)
        except RecursionError:
            raise ValueError(f"save: {name} must not hold itself, nor be nested this deeply.") from None
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    try:
        if not distributed or torch.distributed.get_rank() == 0:
            sealed.write(where, {"format": FORMAT, "parts": dict(parts), "extra": dict(extra)})
    finally:
        if distributed:
            torch.distributed.barrier()  # also where the write failed: the other ranks wait here


def load(path: str | PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts and extra that `save` wrote; `Updater.load` says what it raises."""
    where = sealed.path_of("load", path)
    contents, has_seal = sealed.read(where)
    if not isinstance(contents, dict) or not {"format", "parts", "extra"} <= set(contents):
        raise ValueError(f"load: {str(path)!r} must be a checkpoint that updater.save wrote, and is another file.")
    found, parts, extra = contents["format"], contents["parts"], contents["extra"]
    if type(found) is not int or found not in (_UNSEALED, FORMAT):
        raise ValueError(f"load: {str(path)!r} has format {found!r}, and this version reads {_UNSEALED} and {FORMAT}.")
    if has_seal != (found == FORMAT):
        raise ValueError(f"load: {str(path)!r} cannot be read: it is damaged, the checksum at its end is missing.")
    if not isinstance(parts, dict) or not isinstance(extra, dict):
        raise ValueError(f"load: {str(path)!r} must be a checkpoint that updater.save wrote, and is another file.")
    return parts, extra


def check_names(owner: str, expected: Iterable[str], found: Mapping[str, Any]) -> None:
    """ValueError unless `found` has exactly the expected names."""
    if not isinstance(found, Mapping) or set(expected) != set(found):
        names = sorted(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
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
