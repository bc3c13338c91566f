"""The files of a run in a folder that may hold others too: numbered ones of which the newest stay, and the best."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from gradchain.checkpoints import in_parts, manifest, ranks
from gradchain.checkpoints.arguments import file_of_best
from gradchain.checkpoints.lock import Lock
from gradchain.checkpoints.manifest import Entry
from gradchain.updater import files, sealed
from gradchain.updater import in_parts as of_ranks
from gradchain.updater.files import Saved


class Found(NamedTuple):
    """The newest file that is whole, checked against what it is to be loaded into.

    Attributes:
        path: where it is.
        extra: what lies in it beside weights and state.
        take: makes its weights and state the model's and the updater's.
    """

    path: Path
    extra: dict[str, Any]
    take: Callable[[], None]


class Folder:
    """Files of a run by number: only those with such a name are its own.

    Args:
        path: the folder, which is made where it is not there.
        unit: what is counted, the first part of a name.
        owner: who says what is wrong.
        anew: what one does to begin anew, as a sentence.
    """

    def __init__(self, path: Path, unit: str, owner: str, anew: str) -> None:
        self.path, self._unit, self._owner, self._anew = path, unit, owner, anew
        self._name = re.compile(rf"{unit}_(\d{{8,}})\.pt")
        self._own = re.compile(rf"({unit}_\d{{8,}}|best_[A-Za-z0-9_.-]+)\.pt")
        self._lock = Lock(path / ".lock", owner)
        self._entries: list[Entry] | None = None  # known once it was looked

    def __repr__(self) -> str:
        return f"{self._owner}: {str(self.path)!r}"

    # who may write

    def take(self) -> None:
        """Be the one that writes here, until `close`. RuntimeError where somebody else does."""
        with sealed.in_words("save", self.path):
            made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            for folder in reversed(made):
                sealed.sync_folder(folder.parent)  # else the power takes the folder, and with it what was saved
            self._lock.take()

    def close(self) -> None:
        """Let others write."""
        self._lock.release()

    # out

    def path_of(self, number: int) -> Path:
        """Where the file of a number lies."""
        return self.path / f"{self._unit}_{number:08}.pt"

    def path_of_best(self, metric: str) -> Path:
        """Where the best by a metric lies."""
        return self.path / file_of_best(metric)

    def write(self, contents: Mapping[str, Any], number: int, keep: int | None) -> Path:
        """A file of this number, then remove what is too old, then say what there is. One process calls it."""
        file = self.path_of(number)
        self._put(file, contents)
        known, self._entries = self._known(), None  # where it is broken off here, the next one looks anew
        with sealed.in_words("save", file):
            entries = [entry for entry in known if entry.number != number]
            entries.append(Entry(file.name, number, file.stat().st_size, sealed.seal_of(file)))
            gone = [] if keep is None else entries[:-keep]
            for entry in gone:
                with contextlib.suppress(FileNotFoundError):
                    (self.path / entry.file).unlink()
                in_parts.remove(self.path / entry.file)
            self._entries = [entry for entry in entries[len(gone) :] if (self.path / entry.file).exists()]
        manifest.write(self._manifest, self._entries)
        return file

    def write_best(self, contents: Mapping[str, Any], metric: str) -> Path:
        """The file of the best by this metric, in place of the one before."""
        file = self.path_of_best(metric)
        self._put(file, contents)
        return file

    def write_parts(
        self, contents: Mapping[str, Any], file: Path, put: Callable[[Mapping[str, Any]], object], group: Any = None
    ) -> None:
        """A file of a run in parts: every rank writes its own, and then the first has `put` write the index.

        All ranks call it, with contents in the fixed form.
        """
        ranks.by_first(self._owner, self._begin, group)
        index = in_parts.write(contents, file, self._owner, group)
        ranks.by_first(self._owner, partial(put, index), group)

    def _begin(self) -> None:
        self.take()
        in_parts.sweep(self.path, self._own)

    def _put(self, file: Path, contents: Mapping[str, Any]) -> None:
        put = partial(sealed.write_zip, contents)
        self.take()
        try:
            sealed.write(file, put)
        except FileNotFoundError:  # somebody removed the folder since
            if of_ranks.KEY in contents:
                raise  # and with it the parts
            self.take()
            sealed.write(file, put)
        in_parts.remove(file, but=contents.get(of_ranks.KEY, {}).get("folder", ""))

    # in

    @property
    def _manifest(self) -> Path:
        return self.path / f"manifest_{self._unit}.json"

    def _known(self) -> list[Entry]:
        if self._entries is None:
            self._entries = self._looked()
        return self._entries

    def _looked(self) -> list[Entry]:
        """What there is, from the first that was saved to the last.

        A file that the manifest does not list was put there as a run was killed before it could say so, where its
        number is higher than those; or by somebody else.
        """
        there = {}
        for file in self.path.iterdir() if self.path.is_dir() else ():
            if match := self._name.fullmatch(file.name):
                there[file.name] = Entry(file.name, int(match[1]), 0, "")
        listed = [entry for entry in manifest.read(self._manifest) or () if entry.file in there]
        last = listed[-1].number if listed else -1
        others = sorted(set(there) - {entry.file for entry in listed}, key=lambda name: there[name].number)
        older = [there[name] for name in others if there[name].number <= last]
        return [*older, *listed, *(there[name] for name in others if there[name].number > last)]

    def last_good(self) -> Path | None:
        """The newest file that is whole, looked through now; None where there is none."""
        for entry in reversed(self._looked()):
            try:
                sealed.verify(self.path / entry.file, self._owner)
                of_ranks.verify(self.path / entry.file, self._owner)
            except (ValueError, OSError):
                continue
            return self.path / entry.file
        return None

    def newest(self, updaters: Mapping[str, Saved]) -> Found | None:
        """The newest file that is whole, None where there is no file. All ranks call it, and all get the same one.

        Raises:
            ValueError: none of them is whole, or the newest is of another chain or model.
        """
        skipped: list[str] = []
        for name in ranks.of_first(ranks.by_first(self._owner, self._names)) or ():
            given = ranks.by_first(self._owner, partial(self._opened, name))
            problem, shards = ranks.of_first(("", None) if given is None else (given[0], given[1].get(of_ranks.KEY)))
            problem = problem or self._damage(name, shards)
            if problem:
                skipped.append(problem)
                continue
            if skipped:
                used = f"The one before is used, {str(self.path / name)!r}."
                warnings.warn(f"{' '.join(skipped)} {used}", stacklevel=3)
                self._forget_after(name)
            return ranks.by_all(self._owner, partial(self._staged, name, None if given is None else given[1], updaters))
        if skipped:
            raise ValueError(f"{skipped[0]} No other in {str(self.path)!r} is whole. {self._anew}")
        return None

    def _names(self) -> list[str]:
        """Those of the files, the newest first."""
        self._entries = self._looked()
        return [entry.file for entry in reversed(self._entries)]

    def _opened(self, name: str) -> tuple[str, dict[str, Any]]:
        """Why a file is not whole, or what lies in it. ValueError for one of a later version: it is no damage."""
        try:
            return "", files.opened(self.path / name, self._owner)
        except files.LaterVersionError:
            raise
        except (ValueError, OSError) as error:
            return str(error), {}

    def _damage(self, name: str, shards: Mapping[str, Any] | None) -> str:
        """What is wrong with the parts of a file that has some: each rank looks at its share of them."""
        if shards is None:
            return ""
        look = partial(
            of_ranks.damage, self.path / name, {of_ranks.KEY: shards}, self._owner, ranks.rank(), ranks.many()
        )
        return next(filter(None, ranks.gathered(ranks.by_all(self._owner, look))), "")

    def _forget_after(self, name: str) -> None:
        """What is not whole does not count."""
        if self._entries is not None:
            self._entries = self._entries[: [entry.file for entry in self._entries].index(name) + 1]

    def _staged(self, name: str, given: dict[str, Any] | None, updaters: Mapping[str, Saved]) -> Found:
        path = self.path / name
        contents = files.opened(path, self._owner) if given is None else given
        parts, extra = contents["parts"], contents["extra"]
        if of_ranks.KEY in contents:
            parts, extra = of_ranks.shares(path, contents, updaters, ranks.rank(), ranks.many(), self._owner)
        return Found(path, extra, files.stage(parts, updaters))
