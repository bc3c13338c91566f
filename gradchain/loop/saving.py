"""Files of a run in a folder: every so often, the last few, the best; and the newest whole one to go on from.

When to save and what is here; the files are those of `gradchain.checkpoints`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gradchain.checkpoints import ranks
from gradchain.checkpoints.arguments import Best, better, read_best, read_keep
from gradchain.checkpoints.folder import Folder, Found
from gradchain.loop import spacing
from gradchain.loop.spacing import Intervals, Unit
from gradchain.updater import files
from gradchain.updater.in_parts import has_parts
from gradchain.updater.parts import Which
from gradchain.updater.updater import Updater


class checkpoints:
    """Save a run now and then, and go on from the newest file.

    A file has weights, buffers, the state of chains, random numbers of each rank, the place in the loader and what
    hooks add. It is written whole or not at all. A run that goes on from it is the one that was never interrupted, bit
    for bit. Of weights that are sharded, and of a state that ranks share out, each rank writes its part, as it does
    for `gch.Checkpointer`.

    Args:
        folder: where to. Files of other names in it are left alone.
        every: every so many of `unit`, or (begin, every) pairs or a range as for `validate`; None for the last only.
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
        every: int | range | Sequence[tuple[int, int | None]] | None = 1,
        unit: Unit | None = None,
        *,
        keep: int | None = None,
        best: Best | Sequence[Best] = (),
        last: bool = True,
        weights: Which = "all",
    ) -> None:
        self.keep, self.best = read_keep("loop.checkpoints", keep), read_best("loop.checkpoints", best)
        self.folder = Path(folder)
        self.last, self.weights = last, weights
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
        self.folder = Folder(settings.folder, self.due.unit, "loop", "resume=False starts anew.")
        self.records: dict[str, float] = {}

    def save(self, updaters: Mapping[str, Updater], extra: Mapping[str, Any], number: int) -> None:
        """Write a file of this number, and remove what is too old. All ranks call it."""
        put = partial(self.folder.write, number=number, keep=self.settings.keep)
        self._write(updaters, extra, self.folder.path_of(number), put)

    def save_best(self, updaters: Mapping[str, Updater], extra: Mapping[str, Any], metric: str) -> None:
        """Write the file of the best by this metric. All ranks call it."""
        put = partial(self.folder.write_best, metric=metric)
        self._write(updaters, extra, self.folder.path_of_best(metric), put)

    def _write(
        self,
        updaters: Mapping[str, Updater],
        extra: Mapping[str, Any],
        path: Path,
        put: Callable[[Mapping[str, Any]], object],
    ) -> None:
        """The first rank does it, of whole weights; of those that are sharded each rank writes its part."""
        if any(map(has_parts, updaters.values())):
            self.folder.write_parts(files.contents(updaters, self.settings.weights, extra, "fixed"), path, put)
        else:
            found = files.contents(updaters, self.settings.weights, extra)
            ranks.by_first("loop", partial(put, found))

    def newest(self, updaters: Mapping[str, Updater]) -> Found | None:
        """The newest file that is whole, of which nothing is taken yet; None where there is no file."""
        return self.folder.newest(updaters)

    def better(self, metrics: Mapping[str, float]) -> list[str]:
        """The metrics that are better than ever before."""
        for name, _ in self.settings.best:
            if name not in metrics:
                known = ", ".join(metrics) or "none"
                raise KeyError(f"loop: best must be a number that validation returns, got {name!r}; it has {known}.")
        found = better(self.settings.best, self.records, metrics)
        self.records.update(found)
        return list(found)
