"""One file for a run: weights, buffers, state and what else the user keeps. Written whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = 1
_STARTED = time.time()
_PLAIN = (str, int, float, bool, type(None), Tensor, torch.nn.Parameter)


def save(path: str | PathLike[str], parts: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    """Write `parts` and `extra` to `path`: all ranks call it, the first writes.

    The file appears under its name only when it is whole and on disk: a run killed meanwhile keeps the one before.
    """
    for name, value in extra.items():
        _check_plain(f"save: {name}", value)
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    try:
        if not distributed or torch.distributed.get_rank() == 0:
            _write(Path(path), {"format": FORMAT, "parts": dict(parts), "extra": dict(extra)})
    finally:
        if distributed:
            torch.distributed.barrier()  # also where the write failed: the other ranks wait here


def _write(path: Path, contents: dict[str, Any]) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save: there is no folder {str(path.parent)!r}. Create it first.")
    _sweep(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _sync_folder(folder: Path) -> None:
    """Put the new name on disk too: a file that is whole but not findable is lost with the power."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows has no such call
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(path: Path) -> None:
    """Remove what runs that were killed inside a write left beside `path`, if it is older than this process."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            if left.stat().st_mtime < _STARTED:
                left.unlink()


def load(path: str | PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts and extra that `save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a whole file of ours, or of a format this version does not know.
    """
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"load: there is no file {str(path)!r}.") from None
    except Exception as error:
        raise ValueError(
            f"load: {str(path)!r} cannot be read: it is cut short, or no checkpoint of gradchain "
            f"({type(error).__name__})."
        ) from error
    if not isinstance(contents, dict) or not {"format", "parts", "extra"} <= set(contents):
        raise ValueError(f"load: {str(path)!r} must be a checkpoint that updater.save wrote, and is another file.")
    if contents["format"] != FORMAT:
        raise ValueError(f"load: {str(path)!r} has format {contents['format']!r}, and this version reads {FORMAT}.")
    return contents["parts"], contents["extra"]


def check_names(owner: str, expected: Iterable[str], found: Mapping[str, Any]) -> None:
    """ValueError unless `found` has exactly the expected names."""
    if set(expected) != set(found):
        raise ValueError(f"{owner}: expected the updaters {sorted(expected)}, found {sorted(found)}.")


def _check_plain(where: str, value: Any) -> None:
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(where, key)
            _check_plain(f"{where}[{key!r}]", item)
    elif type(value) in (list, tuple, torch.Size):
        for item in value:
            _check_plain(where, item)
    elif type(value) not in _PLAIN:  # of a subclass one cannot know
        raise TypeError(
            f"{where} must be made of dict, list, tuple, str, int, float, bool, None and tensors, "
            f"got {type(value).__name__}: only those load without running code."
        )
