"""A run and its files: saved now and then, and gone on with as if it had never been killed."""

from __future__ import annotations

import math
import os
import signal
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from typing_extensions import Self

from gradchain.checkpoints import objects, place, randomness, ranks
from gradchain.checkpoints.arguments import Best, better, is_count, named, read_best, read_keep, read_updaters
from gradchain.checkpoints.background import Writer
from gradchain.checkpoints.feed import Feed
from gradchain.checkpoints.folder import Folder
from gradchain.checkpoints.watch import Watch, read_signals
from gradchain.updater import files, sealed
from gradchain.updater.fixed import Form
from gradchain.updater.in_parts import has_parts
from gradchain.updater.parts import Which, check_which
from gradchain.updater.updater import Updater

OWNER = "Checkpointer"
FORMAT = 1
_KEY = "checkpointer"


class Checkpointer:
    """Saves a run now and then, keeps the newest files and the best, and goes on from the newest whole one.

    `resume()` before the loop, `step()` after each micro-batch, `close()` at the end, or `with`. A file has weights,
    buffers, the state of the chain with an open window, the random numbers of each rank, the place in the loader, the
    objects in `also`, and what is given to `step` and `save` by name. It is written whole or not at all, and is a file
    as `updater.save` writes it. A run that goes on from it is the one that was never interrupted, bit for bit.

    Files are `update_<number>.pt` and `best_<metric>.pt`; `manifest_update.json` says which were whole, in the order
    in which they were saved, and is made anew where it is lost. Files of other names are left alone.

    Args:
        folder: where to; made where it is not there.
        updater: an Updater, or several: a `gch.group` or a dict by name. Updates are counted of the first.
        every: save every so many applied updates; None for never by count.
        seconds: save where so many seconds have gone by since the last file, by a clock that nobody can set; None for
            never by time. With both, whichever comes first.
        keep: how many of the newest stay; None for all. The newest whole one and the best are never removed, and the
            others only once the new file is on disk.
        best: (metric, "min" or "max"), or a list of them: a number of this name that is given to `step` or `save` and
            is better than all before is saved as one more file, `best_<metric>.pt`. What is not finite is never best.
        background: copy the run at the step, and write it in a thread meanwhile. At most one file is being written
            and one waits: a third waits for the first, and a warning says so once. What goes wrong is raised by the
            next call.
        loader: gives the batches. One with state_dict and load_state_dict, as torchdata's StatefulDataLoader, is
            asked for its place; any other, as a DataLoader or a list, is to be gone through by `batches()`.
        also: objects of your own by name: with state_dict and load_state_dict, or a torch.Generator. On several ranks
            the first one's are saved.
        weights: "trainable" leaves out frozen weights, as for `updater.save`.
        signals: at which signals to save at the next step, and then let the process end as it would have, or call the
            handler that was there. A second one does so at once. Python allows it in the main thread only.

    Raises:
        TypeError, ValueError: an argument is not what it must be.

    On several ranks all make one over the same folder and call the same methods; the first writes and decides. Of
    weights that are sharded, and of a state that ranks share out, each writes its part, into a folder beside the file.

    >>> import tempfile, torch, gradchain as gch
    >>> model = torch.nn.Linear(2, 1)
    >>> updater = gch.adamw(1e-2).bind(model)
    >>> with gch.Checkpointer(tempfile.mkdtemp(), updater=updater, every=2, keep=3, best=("val_loss", "min")) as keeper:
    ...     start = keeper.resume()
    ...     for step in range(5):
    ...         info = updater.update(model(torch.ones(4, 2)).square().mean())
    ...         path = keeper.step(step=step)
    >>> start, keeper.last_good.name, gch.adamw(1e-2).bind(model).load(keeper.last_good)["step"]
    (None, 'update_00000004.pt', 3)
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        updater: Updater | Mapping[str, Updater],
        every: int | None = None,
        seconds: float | None = None,
        keep: int | None = 3,
        best: Best | Sequence[Best] = (),
        background: bool = False,
        loader: Iterable[Any] | None = None,
        also: Mapping[str, Any] | None = None,
        weights: Which = "all",
        signals: int | Iterable[int] = (signal.SIGTERM,),
    ) -> None:
        self._updaters = named(read_updaters(OWNER, updater))
        self._every, self._seconds = _read_every(every), _read_seconds(seconds)
        self._keep, self._rules = read_keep(OWNER, keep), read_best(OWNER, best)
        check_which(OWNER, weights)
        self._weights = weights
        self._feed = None if loader is None else Feed(loader, OWNER)
        self._also = objects.read(OWNER, {} if also is None else also)
        path = sealed.path_of(OWNER, folder)
        self._folder = Folder(path, "update", OWNER, "Move them away to begin anew.")
        self._records: dict[str, float] = {}
        self._checked = self._updates()
        self._since = time.monotonic()
        self._running = False  # whether somebody goes through `batches`
        self._seen: tuple[int, ...] | None = None  # the counts as the batch in hand was given out
        self._began = self._counts()
        self._agreed: tuple[int, ...] = ()
        self._in_parts = any(map(has_parts, self._updaters.values()))
        self._group = torch.distributed.new_group(backend="gloo") if self._in_parts and background else None
        self._writer = Writer() if background else None
        self._written: dict[str, float] = {}  # records of files that are there
        self._told = False
        self._process = os.getpid()
        if self._writer is not None:
            weakref.finalize(self, _tell_lost, self._writer, self._process)
        self._watch = Watch(read_signals(OWNER, signals), OWNER)

    def __repr__(self) -> str:
        at = self._updates()
        return f"Checkpointer({str(self.folder)!r}, every={self._every!r}, seconds={self._seconds!r}: update {at})"

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self._folder.path

    @property
    def epoch(self) -> int:
        """How many times the run is through the loader."""
        return 0 if self._feed is None else self._feed.epoch

    @property
    def last_good(self) -> Path | None:
        """The newest file that is whole, None where there is none. It is looked through when this is asked for."""
        return self._folder.last_good()

    # the run

    def resume(self) -> dict[str, Any] | None:
        """Go on from the newest whole file: the run is as it was saved. Returns the entries given to `step` or `save`.

        A file that is damaged is passed over, and a warning says which and why. None where there is no file.

        Raises:
            ValueError: no file is whole; or the newest is of another chain or model, was not written by a
                Checkpointer, or was saved by other ranks in the middle of an epoch. All is as it was before.
            RuntimeError: another run writes into the folder; or `batches()` is being gone through.
        """
        self._check("resume")
        if self._running:
            raise RuntimeError(
                f"{OWNER}: resume() must be called outside of the `for` over batches(), got a call inside: that loop "
                "has a place of its own in the loader. Leave it, resume, and begin another."
            )
        ranks.by_all(OWNER, self._wait)
        ranks.by_first(OWNER, self._folder.take)
        found = self._folder.newest(self._updaters)
        if found is None:
            return None
        extra = dict(found.extra)
        held = extra.pop(_KEY, None)
        if not _is_held(held):
            raise ValueError(
                f"{OWNER}: {str(found.path)!r} must be a file that a Checkpointer of this version saved, and is none. "
                "Load it by updater.load(path), and give the Checkpointer another folder."
            )
        own = place.own_of(OWNER, held["ranks"], "Save between epochs, or leave out loader.", self._feed)
        back = objects.put(self._also, held["also"], OWNER)
        try:
            if own["loader"] is not None and self._feed is not None and self._feed.is_stateful():
                self._feed.loader.load_state_dict(own["loader"])  # it was gone through without `batches`
                self._feed.loader.state_dict()  # torchdata's begins here, and draws, before the run's numbers are put
            found.take()
        except BaseException:
            back()
            raise
        place.put(own, self._feed)
        self._began = self._counts()
        self._records = self._written = dict(held["best"])
        self._checked, self._since = self._updates(), time.monotonic()
        return extra

    def batches(self, epochs: int = 1) -> Iterator[Any]:
        """The batches of the loader from where the run is on, until it is so many times through.

        What the loader is made of and has `set_epoch` is told the epoch. What was seen of an epoch before a resume is
        not given again: `gch.loop.sampler` leaps over it, any other loader passes over it.

        Args:
            epochs: how many times through the loader in all, those before a resume counted too.
        """
        feed = self._feed
        if feed is None:
            raise ValueError(f"{OWNER}: loader must be given for batches(), got None.")
        if not is_count(epochs, 0):
            raise ValueError(f"{OWNER}: epochs must be a whole number of at least 0, got {epochs!r}.")
        if self._running:
            raise RuntimeError(f"{OWNER}: batches() is being gone through: there must be one `for` at a time.")
        self._running = True
        try:
            while feed.epoch < epochs:
                feed.seed()
                for batch in feed.open():
                    self._seen = self._counts()
                    try:
                        yield batch
                    except GeneratorExit:
                        if self._ahead():
                            feed.stay()
                            feed.batch += 1
                        raise
                    feed.batch += 1
                    self._seen = None
                    del batch  # else two would be in memory while the next one is loaded
                feed.epoch, feed.batch = feed.epoch + 1, 0
        finally:
            self._running, self._seen = False, None

    def step(self, **extra: Any) -> Path | None:
        """After each micro-batch: save where it is due, by count, by time, as the best, or for a signal.

        Args:
            **extra: plain data and tensors, which `resume` returns; and the metrics of `best`, where there are new
                ones.

        Returns:
            The newest file that was written, None where nothing was due.

        Raises:
            TypeError: `extra` holds what would not load without running code, or a metric is no number.
            OSError: a file cannot be written. The files before it are as they were, and the run can go on.
        """
        self._check("step")
        if not ranks.several():  # else all hear of it where the next file is due
            self._raise_failed()
        self._seen = () if self._seen is not None else None  # a batch that was stepped is behind, whatever it did
        counts, before = self._updates(), self._checked
        self._checked = counts
        by_count = self._every is not None and counts // self._every > before // self._every
        by_time, caught = self._heard()
        best = self._better(extra)
        numbered = by_count or by_time or caught > 0
        path = self._save(numbered, best, extra) if numbered or best else None
        if caught:
            ranks.by_all(OWNER, self._wait)
            self._end(caught)
        return path

    def save(self, **extra: Any) -> Path:
        """Save now, an open window too, and return the file. Arguments and errors are those of `step`."""
        self._check("save")
        return self._save(True, self._better(extra), extra)

    def close(self) -> None:
        """Write what waits, listen for signals no more, and let others write into the folder. May be called again."""
        if os.getpid() != self._process:
            return
        self._watch.end()
        try:
            self._wait()
        finally:
            self._folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.close()
        return False

    # what is due

    def _updates(self) -> int:
        return next(iter(self._updaters.values())).num_updates

    def _counts(self) -> tuple[int, ...]:
        return tuple(updater.num_micro for updater in self._updaters.values())

    def _ahead(self) -> bool:
        """Whether the batch in hand is behind as soon as this step is: it was stepped, or updated with."""
        return self._seen is not None and self._seen != self._counts()

    def _heard(self) -> tuple[bool, int]:
        """Whether a file is due by time, and which signal came. Ranks agree where an update was made or skipped."""
        late = self._seconds is not None and time.monotonic() - self._since >= self._seconds
        heard = [int(late), self._watch.caught]
        if ranks.several():
            counts = tuple(n for u in self._updaters.values() for n in (u.num_updates, u.num_skipped))
            if counts == self._agreed:
                return False, 0
            self._agreed = counts
            heard = ranks.largest(heard)
        return bool(heard[0]), heard[1]

    def _better(self, extra: Mapping[str, Any]) -> dict[str, float]:
        """The metrics that are the best so far, as the first rank has them."""
        given = {name: _number(name, extra[name]) for name, _ in self._rules if name in extra}
        return ranks.of_first(better(self._rules, self._records, given)) if given else {}

    def _end(self, caught: int) -> None:
        """The run is saved: the signal goes to whoever had it before."""
        self._folder.close()
        if not self._watch.caught:  # it came to another rank
            self._watch.caught = caught
        self._watch.pass_on()

    # files

    def _save(self, numbered: bool, best: Mapping[str, float], extra: Mapping[str, Any]) -> Path:
        """Write the files of the run as it is now. All ranks call it."""
        number = self._updates()
        records = {**self._records, **best}
        mine = ranks.by_all(OWNER, partial(self._own, extra))
        saved = {**mine["extra"], _KEY: self._state(mine, records)}
        form: Form = "fixed" if self._in_parts else "plain"
        contents = ranks.by_all(OWNER, partial(files.contents, self._updaters, self._weights, saved, form))

        def write(found: Mapping[str, Any]) -> None:
            for metric in best:
                self._write(found, self._folder.path_of_best(metric), partial(self._folder.write_best, metric=metric))
            if numbered:
                put = partial(self._folder.write, number=number, keep=self._keep)
                self._write(found, self._folder.path_of(number), put)
            self._written = records

        if self._in_parts:
            self._put_together(contents, write)
        else:
            ranks.by_first(OWNER, partial(self._put, contents, write))
        self._records = records
        if numbered:
            self._since = time.monotonic()
        return self._folder.path_of(number) if numbered else self._folder.path_of_best([*best][-1])

    def _write(self, found: Mapping[str, Any], path: Path, put: Callable[[Mapping[str, Any]], object]) -> None:
        """One file: by this process, or by all ranks of a run in parts."""
        if self._in_parts:
            self._folder.write_parts(found, path, put, self._group)
        else:
            put(found)

    def _put_together(self, contents: Mapping[str, Any], write: Callable[[Mapping[str, Any]], None]) -> None:
        """The same on all ranks, which write together."""
        if self._writer is None:
            write(contents)
            return
        if any(ranks.gathered(self._writer.has_failed())):
            ranks.by_all(OWNER, self._wait)  # it failed on all of them, on each in its time
        waited = self._writer.write(contents, write, partial(ranks.by_all, OWNER))
        self._tell_slow(any(ranks.gathered(waited)))

    def _put(self, contents: Mapping[str, Any], write: Callable[[Mapping[str, Any]], None]) -> None:
        """Have the files written: now, or later from a copy of what they hold now."""
        if self._writer is None:
            write(contents)
            return
        self._raise_failed()
        self._tell_slow(self._writer.write(contents, write))

    def _tell_slow(self, waited: bool) -> None:
        if waited and not self._told:
            self._told = True
            warnings.warn(
                f"{OWNER}: files are due faster than they are written: the run waited for one. Save more seldom, or "
                "to a faster disk.",
                stacklevel=6,
            )

    def _raise_failed(self) -> None:
        """What went wrong in the background."""
        error = None if self._writer is None else self._writer.failed()
        if error is not None:
            self._records = dict(self._written)
            raise error

    def _wait(self) -> None:
        """Until what was begun in the background is written, or has failed."""
        if self._writer is not None:
            self._writer.wait()
            self._raise_failed()

    def _own(self, extra: Mapping[str, Any]) -> dict[str, Any]:
        """What this rank has for itself."""
        own = {"random": randomness.state(), **self._place()}
        return {"extra": _plain(extra), "own": own, "also": objects.states(self._also)}

    def _state(self, mine: Mapping[str, Any], records: Mapping[str, float]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "ranks": ranks.gathered(mine["own"]),
            "also": mine["also"],
            "best": dict(records),
        }

    def _place(self) -> dict[str, Any]:
        """Where this rank is in its loader, whoever goes through it."""
        feed = self._feed
        if feed is None:
            return {"feed": None, "loader": None}
        if self._running or not feed.is_stateful():
            if not self._running and not feed.batch and not feed.epoch and self._counts() != self._began:
                raise RuntimeError(
                    f"{OWNER}: loader must be gone through by keeper.batches(), or have state_dict and "
                    f"load_state_dict, got a {type(feed.loader).__name__} that was gone through by itself. Write "
                    "`for batch in keeper.batches():`, or leave out loader."
                )
            return {"feed": feed.state(int(self._ahead())), "loader": None}
        return {"feed": feed.state(0), "loader": feed.loader.state_dict()}

    def _check(self, owner: str) -> None:
        if os.getpid() != self._process:
            raise RuntimeError(
                f"{OWNER}.{owner}: must be called in the process that made it, got a forked child. Make one there, "
                "with a folder of its own."
            )


def _tell_lost(writer: Writer, process: int) -> None:
    """Where nobody closed it, nobody has heard what went wrong last. A forked child has no part in it."""
    error = writer.failed() if os.getpid() == process else None
    if error is not None:
        warnings.warn(f"{OWNER}: a file was not written, and nothing asked for it since. {error}", stacklevel=2)


def _read_every(every: Any) -> int | None:
    if every is not None and not is_count(every, 1):
        raise ValueError(f"{OWNER}: every must be a whole number of at least 1 or None, got {every!r}.")
    return every  # type: ignore[no-any-return]


def _read_seconds(seconds: Any) -> float | None:
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
        raise ValueError(f"{OWNER}: seconds must be a number above 0 or None, got {seconds!r}.")
    return float(seconds)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise TypeError(f"{OWNER}: {name} must be a number, for best goes by it, got {type(value).__name__}.") from None


def _is_held(held: Any) -> bool:
    """Whether it is what `_state` gives."""
    if not isinstance(held, dict) or type(held.get("format")) is not int or held["format"] != FORMAT:
        return False
    return place.are_ranks(held.get("ranks")) and place.are_records(held.get("best")) and _are_states(held.get("also"))


def _are_states(also: Any) -> bool:
    return isinstance(also, dict) and all(isinstance(name, str) for name in also)


def _plain(extra: Mapping[str, Any]) -> dict[str, Any]:
    """The user's entries; numpy's numbers as Python has them."""
    if _KEY in extra:
        raise ValueError(f"{OWNER}: an entry must not be called {_KEY!r}: the file has its own there. Rename it.")
    found = {}
    for name, value in extra.items():
        is_numpy = type(value).__module__ == "numpy" and getattr(value, "shape", None) == ()
        found[name] = value.item() if is_numpy else value
    return found
