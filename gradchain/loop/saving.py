"""Files of a run in a folder: every so often, the last few, the best; and the newest whole one to go on from.

When to save and what is here; how a file is written and read is the updater's. `Folder` is all that knows of files.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from gradchain.loop import spacing
from gradchain.loop.spacing import Intervals, Unit, is_count
from gradchain.updater import files
from gradchain.updater.parts import Which

Best = tuple[str, Literal["min", "max"]]


class Saves(Protocol):
    """What writes and reads files: an Updater, or a group of them."""

    def save(self, path: files.FilePath, *, weights: Which = ..., **extra: Any) -> None:
        """Write all into a file."""

    def load(self, path: files.FilePath) -> dict[str, Any]:
        """Read it, and return the extra."""


class Folder:
    """Files of a run by number, in a folder that may hold others too: only those with such a name are its own.

    Args:
        path: the folder, which is made where it is not there.
        unit: what is counted, the first part of a name.
        weights: which weights are written.
    """

    def __init__(self, path: Path, unit: str, weights: Which) -> None:
        self.path, self._unit, self._weights = path, unit, weights
        self._name = re.compile(rf"{unit}_(\d{{8,}})\.pt")

    def numbered(self) -> list[tuple[int, Path]]:
        """Number and file, from the first to the last."""
        if not self.path.is_dir():
            return []
        found = [(self._name.fullmatch(file.name), file) for file in self.path.iterdir()]
        return sorted((int(match[1]), file) for match, file in found if match)

    def write(self, updaters: Saves, number: int, extra: Mapping[str, Any]) -> None:
        """A file of this number."""
        self._write(updaters, f"{self._unit}_{number:08}.pt", extra)

    def write_best(self, updaters: Saves, metric: str, extra: Mapping[str, Any]) -> None:
        """The file of the best by this metric, in place of the one before."""
        self._write(updaters, f"best_{re.sub(r'[^A-Za-z0-9_.-]', '_', metric)}.pt", extra)

    def _write(self, updaters: Saves, name: str, extra: Mapping[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        updaters.save(self.path / name, weights=self._weights, **extra)

    def thin(self, keep: int | None) -> None:
        """Remove all but the newest."""
        for _, file in [] if keep is None else self.numbered()[:-keep]:
            with contextlib.suppress(FileNotFoundError):
                file.unlink()

    def load_newest(self, updaters: Saves) -> dict[str, Any] | None:
        """Load the newest file that is whole, and return its extra; None where there is no file.

        Raises:
            ValueError: none of them is whole, or the newest is of another chain or model.
        """
        skipped = []
        for _, file in reversed(self.numbered()):
            try:
                files.read(file, "loop")
            except ValueError as error:
                skipped.append(str(error))
                continue
            if skipped:
                warnings.warn(f"{' '.join(skipped)} The one before is used, {str(file)!r}.", stacklevel=2)
            return updaters.load(file)
        if skipped:
            raise ValueError(f"{skipped[0]} No other in {str(self.path)!r} is whole. resume=False starts anew.")
        return None


class checkpoints:
    """Save a run now and then, and go on from the newest file.

    A file has weights, buffers, the state of chains, random numbers of each rank, the place in the loader and what
    hooks add. It is written whole or not at all. A run that goes on from it is the one that was never interrupted, bit
    for bit.

    Args:
        folder: where to. Files of other names in it are left alone.
        every: every so many of `unit`, or (begin, every) pairs as for `validate`; None for the last only.
        unit: "update", "iter" (batches) or "epoch"; None is "epoch" in a run over epochs, "update" otherwise.
        keep: how many of the newest stay; None for all.
        best: (metric, "min" or "max"), or a list of them: after a validation that is better than all before, one more
            file, `best_<metric>.pt`.
        last: save when the run ends, too.
        weights: "trainable" leaves out frozen weights, as for `updater.save`.

    >>> import gradchain as gch
    >>> saving = gch.loop.checkpoints("runs/1", every=1000, unit="update", keep=3, best=("val_loss", "min"))
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        every: int | Sequence[tuple[int, int | None]] | None = 1,
        unit: Unit | None = None,
        *,
        keep: int | None = None,
        best: Best | Sequence[Best] = (),
        last: bool = True,
        weights: Which = "all",
    ) -> None:
        if keep is not None and not is_count(keep, 1):
            raise ValueError(f"loop.checkpoints: keep must be a whole number of at least 1 or None, got {keep!r}.")
        pairs = [best] if isinstance(best, tuple) and best and isinstance(best[0], str) else list(best)
        for pair in pairs:
            if not isinstance(pair, tuple) or len(pair) != 2 or pair[1] not in ("min", "max"):
                raise ValueError(
                    f'loop.checkpoints: best must be (metric, "min" or "max") or a list of such, got {pair!r}.'
                )
        self.folder = Path(folder)
        self.keep, self.last, self.weights = keep, last, weights
        self.best: tuple[Best, ...] = tuple(pairs)  # type: ignore[arg-type]
        self._every, self._unit = every, unit
        self.intervals("update")

    def intervals(self, default: Unit) -> Intervals:
        """When it is due, in a run that counts so where nothing else was said."""
        return spacing.read("checkpoints", self._every, self._unit or default)


def read(given: Any) -> checkpoints:
    """What a user gave as `checkpoint`: these, or only a folder."""
    if isinstance(given, checkpoints):
        return given
    if isinstance(given, (str, os.PathLike)):
        return checkpoints(given)
    raise TypeError(f"loop: checkpoint must be a folder or loop.checkpoints(folder, …), got {given!r}.")


class Keeper:
    """What a run saves and when.

    Attributes:
        records: metric → the best so far.
    """

    def __init__(self, settings: checkpoints, default: Unit) -> None:
        self.settings, self.due = settings, settings.intervals(default)
        self.folder = Folder(settings.folder, self.due.unit, settings.weights)
        self.records: dict[str, float] = {}

    def save(self, updaters: Saves, number: int, extra: Mapping[str, Any], first: bool) -> None:
        """Write a file; `first` is whether this rank is the one that writes, which removes what is too old."""
        self.folder.write(updaters, number, extra)
        if first:
            self.folder.thin(self.settings.keep)

    def better(self, metrics: Mapping[str, float]) -> list[str]:
        """The metrics that are better than ever before. What is not finite is not."""
        found = []
        for name, rule in self.settings.best:
            if name not in metrics:
                known = ", ".join(metrics) or "none"
                raise KeyError(f"loop: best must be a number that validation returns, got {name!r}; it has {known}.")
            value, before = metrics[name], self.records.get(name)
            improved = before is None or (value < before if rule == "min" else value > before)
            if math.isfinite(value) and improved:
                self.records[name] = value
                found.append(name)
        return found
