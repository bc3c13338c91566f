"""The run: batches of a loader one after the other, and at each moment what is to be done then."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Generic, Literal, TypeAlias, TypeVar, cast

from torch import Tensor

from gradchain.checkpoints import orders, ranks
from gradchain.checkpoints.arguments import is_count, read_updaters
from gradchain.checkpoints.feed import Feed
from gradchain.loop import logs, moments, parts, runner, saving, spacing
from gradchain.loop.bar import Bar
from gradchain.loop.logs import Meter, Record
from gradchain.loop.restore import Restore
from gradchain.loop.spacing import UNITS, Unit
from gradchain.loop.validation import Validation
from gradchain.updater.group import Group
from gradchain.updater.info import UpdateInfo
from gradchain.updater.updater import Updater

B = TypeVar("B")
Stopping = Literal["", "as MMEngine", "now"]
_END = object()


class loop(Generic[B]):
    """The batches of a run, to be gone through with `for`; the forward and the update are in its body.

    A batch is behind when the body asks for the next one. Then hooks are called, numbers are logged, weights are saved
    and validated where that is due. `break`, and an exception in the body or a hook, close files and bar; a new `for`
    over the same loop goes on behind the last batch whose update was made. When the last batch is behind, a window of
    `accumulate` that is not full is applied by `updater.flush()`.

    Args:
        loader: gives batches, anew for each epoch: a DataLoader, a list. What has `set_epoch` is told the epoch.
        updater: an updater, or several as a `gch.group` or a dict by name; updates are counted of the first.
        epochs: end after so many times through the loader;
        updates: or when so many updates were applied, in this run and before it;
        iters: or after so many batches.
        validate: a function of this run or of nothing, which returns numbers by name, one number or None; or (function,
            when) or (function, when, unit). `when` is every so many units, or [(begin, every), …]: from each begin on,
            what `every` divides, with None for never; or a range of counts; and after the last, if the first begin was
            reached. The unit is "update", "iter" or "epoch". A function alone is called after each epoch, or after the
            last update. It runs without gradients and with the models in eval mode, which come back as they were, as
            random numbers do.
        averaged: validate the average weights: True, or the name of the average; for several updaters, names of those.
        observe: names of what validation returns that are given to `updater.observe`, for reduce_on_plateau.
        checkpoint: `gch.loop.checkpoints(folder, …)`, or a folder: once an epoch, or at each update.
        resume: go on from the newest checkpoint, where there is one.
        hooks: functions of this run or of nothing at moments: {moment: function}, or a list of (moment, function) and
            (moment, function, priority); objects with methods called as MMEngine's hooks have them, which get a
            stand-in of its runner. Priorities are MMEngine's names or numbers, the lowest first; NORMAL is 50.
        log: where numbers go: a path ending in .jsonl, `gch.loop.console()`, `gch.loop.tensorboard(folder)`, a function
            of a record, or a list of these. On several ranks the first one logs.
        interval: log every so many batches.
        bar: a progress bar; None shows one on a terminal where tqdm is installed.

    Attributes:
        epoch: how many times it is through the loader.
        iter: how many batches are behind.
        batch: the batch that the body has, to hooks.
        outputs: what was logged since the body began.
        metrics: what the last validation returned.
        extra: plain data of your own, which is in every checkpoint and comes back with it.

    Raises:
        TypeError, ValueError: an argument is not what it must be, or the loader has no batch.

    >>> import torch, gradchain as gch
    >>> model, data = torch.nn.Linear(2, 1), [torch.ones(4, 2)] * 3
    >>> updater = gch.sgd(0.1).bind(model)
    >>> for batch in gch.loop(data, updater, epochs=2):
    ...     info = updater.update(model(batch).square().mean())
    >>> updater.num_updates
    6
    """

    sampler: TypeAlias = orders.sampler
    checkpoints: TypeAlias = saving.checkpoints
    console: TypeAlias = logs.console
    json_lines: TypeAlias = logs.json_lines
    tensorboard: TypeAlias = logs.tensorboard
    Sink: TypeAlias = logs.Sink
    intervals = staticmethod(spacing.of_mmengine)

    def __init__(
        self,
        loader: Iterable[B],
        updater: Updater | Mapping[str, Updater],
        *,
        epochs: int | None = None,
        updates: int | None = None,
        iters: int | None = None,
        validate: Any = None,
        averaged: bool | str | Sequence[str] = False,
        observe: str | Sequence[str] = (),
        checkpoint: saving.checkpoints | str | os.PathLike[str] | None = None,
        resume: bool = True,
        hooks: Any = (),
        log: Any = (),
        interval: int = 10,
        bar: bool | None = None,
    ) -> None:
        limits = {"epochs": epochs, "updates": updates, "iters": iters}
        given = {name: value for name, value in limits.items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"loop: one of epochs, updates and iters must be given, got {given or 'none of them'}.")
        (self._limit_name, self._limit), *_ = given.items()
        if not is_count(self._limit, 1):
            raise ValueError(f"loop: {self._limit_name} must be a whole number of at least 1, got {self._limit!r}.")
        if not is_count(interval, 1):
            raise ValueError(f"loop: interval must be a whole number of at least 1, got {interval!r}.")
        self._by_epoch = epochs is not None
        self._updater: Updater | Group = read_updaters("loop", updater)
        self._each: dict[str, Updater] = {"": updater} if isinstance(updater, Updater) else dict(updater)
        self._feed = Feed(loader, "loop")
        default: Unit = "epoch" if self._by_epoch else "update"
        self._validation = Validation(validate, default, self._each, averaged, observe)
        self._keeper = None if checkpoint is None else saving.Keeper(saving.read(checkpoint), default)
        self._restore = Restore(self, resume)
        self.interval, self.iter, self.rank = interval, 0, ranks.rank()
        self.batch: B | None = None
        self.outputs: dict[str, Any] = {}
        self.metrics: dict[str, Any] = {}
        self.extra: dict[str, Any] = {}
        self._sinks = logs.sinks(log) if self.rank == 0 else []
        self._meter, self._asked = Meter(), bar if self.rank == 0 else False
        self._standin = runner.Runner(self)
        self._every: list[moments.Hook] = parts.built_in(self)
        self.add_hooks(hooks)
        self._bar = Bar(False, 0, None, "")
        self._running = self._ended = self._reading = False
        self._stopping: Stopping = ""
        self.data_time = self.began = self._from = 0.0

    # what the body and hooks read

    @property
    def epoch(self) -> int:
        """How many times it is through the loader."""
        return self._feed.epoch

    @property
    def num_updates(self) -> int:
        """How many updates were applied, by the first updater."""
        return next(iter(self._each.values())).num_updates

    @property
    def total(self) -> int | None:
        """How many batches the run has; None where nobody knows: updates are counted, or the loader has no length."""
        if self._limit_name == "iters":
            return self._limit
        return self._limit * self._feed.length if self._by_epoch and self._feed.length is not None else None

    def __repr__(self) -> str:
        at = f"epoch {self.epoch}, iter {self.iter}, update {self.num_updates}"
        return f"loop({self._limit_name}={self._limit}: {at})"

    # what they do

    def update(self, loss: Tensor | Callable[[], Tensor], name: str | None = None, **given: Any) -> UpdateInfo:
        """`updater.update(loss, …)`, timed and logged: "loss", "forward_time" and "update_time".

        Args:
            loss: as the updater takes it.
            name: which updater, where there are several; then what is logged begins with it.
            **given: further arguments of `updater.update`.
        """
        if (name or "") not in self._each:
            raise KeyError(f"loop: name must be one of {', '.join(self._each) or 'none'}, got {name!r}.")
        begin = time.perf_counter()
        info = self._each[name or ""].update(loss, **given)
        end = time.perf_counter()
        before = f"{name}_" if name else ""
        self._meter.add({f"{before}forward_time": begin - self._from, f"{before}update_time": end - begin})
        self._from = end
        if info.loss is not None:
            self.log({f"{before}loss": info.loss})
        return info

    def log(self, values: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Log numbers, or tensors of one: the mean of each since the last record is in the next one."""
        given = {**(values or {}), **more}
        self._meter.add(given)
        self.outputs.update(given)

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """The seconds spent inside `with`, as this process sees them, are logged under this name."""
        begin = time.perf_counter()
        yield
        self._meter.add({name: time.perf_counter() - begin})

    def over(self, batches: Iterable[B]) -> Iterator[B]:
        """The batches of a validation, with `before_val_iter` and `after_val_iter` around each."""
        self._validation.batches = batches
        for index, batch in enumerate(batches):
            self.call("before_val_iter", batch_idx=index, data_batch=batch)
            yield batch
            self.call("after_val_iter", batch_idx=index, data_batch=batch, outputs=None)

    def stop(self) -> None:
        """End the run once this batch is behind, as if it were the last. On several ranks all call it."""
        self._stopping = "now"

    def call(self, moment: str, **given: Any) -> None:
        """Call the hooks of a moment in their order. The loop does it at its own moments."""
        if moment not in self._hooks:
            raise ValueError(f"loop: moment of a hook must be one of {', '.join(self._hooks)}, got {moment!r}.")
        for hook in self._hooks[moment]:
            hook(given)

    def add_hooks(self, hooks: Any) -> None:
        """Further hooks, given as to the loop. They are called from the next moment on."""
        self._every += [*moments.read(hooks, self, self._standin.hook)]
        self._hooks = moments.in_order(self._every)

    # the run

    def __iter__(self) -> Iterator[B]:
        if self._running:
            raise RuntimeError("loop: is running: there must be one `for` over it at a time. Break out of the other.")
        self._running, self._stopping = True, ""
        if self._ended:  # and what was to be done then was broken off
            self._next_epoch()
        with ExitStack() as stack:
            stack.callback(self._rest)
            if self._keeper is not None:
                stack.callback(self._keeper.folder.close)
            self.call("before_run")
            resumed = self._restore.load()
            for sink in self._sinks:
                stack.callback(sink.close)
                sink.open(resumed)
            unit = "update" if self._limit_name == "updates" else "batch"
            self._bar = Bar(self._asked, *self.progress(), unit)
            stack.callback(self._bar.close)
            self.call("before_train")
            self._validate(self._done())
            yield from self._epochs() if self._by_epoch else self._passes()
            self.call("after_train")
            self.call("after_run")

    def _rest(self) -> None:
        self._running = False
        self.batch = None

    def _epochs(self) -> Iterator[B]:
        """As MMEngine's EpochBasedTrainLoop goes: each time through the loader is an epoch, with validation behind."""
        while not self._done() and not self._stopping:
            self.call("before_train_epoch")
            yield from self._batches()
            if self._now():
                self._flush()
                break
            if self.epoch + 1 >= self._limit or self._stopping:
                self._flush()
            self._ended = True  # to what is saved now
            self.call("after_train_epoch")
            self._next_epoch()
            self._validate(False)
        self._validate(self._is_final())

    def _passes(self) -> Iterator[B]:
        """As MMEngine's IterBasedTrainLoop goes: one epoch to hooks, as often through the loader as that takes."""
        self.call("before_train_epoch")
        while not self._over():
            micro, batches = self._counts(), self.iter
            self._feed.seed()
            yield from self._batches()
            if not self._over() or self._feed.batch == self._feed.length:
                parts.tick(self)
                self._next_epoch()
                self._validate(False)
            if self._limit_name == "updates" and self.iter > batches and self._counts() == micro:
                raise RuntimeError(
                    f"loop: updates={self._limit} must be counted, got {self.iter - batches} batches, a whole epoch, "
                    "without one. Call updater.update(loss) in the body, or give iters."
                )
        self.call("after_train_epoch")

    def _next_epoch(self) -> None:
        self._feed.epoch, self._feed.batch, self._ended = self.epoch + 1, 0, False

    def _batches(self) -> Iterator[B]:
        batches, self._reading = self._feed.open(), True
        try:
            while True:
                begin = time.perf_counter()
                batch = next(batches, _END)
                if batch is _END:
                    return
                self.data_time = time.perf_counter() - begin
                yield from self._body(cast("B", batch))
                del batch  # else two would be in memory while the next one is loaded
                if self._over() if not self._by_epoch else self._now():
                    return
        finally:
            self._reading = False

    def _body(self, batch: B) -> Iterator[B]:
        self.batch, self.outputs = batch, {}
        index = self._feed.batch if self._by_epoch else self.iter
        before = self._counts()
        self.began = time.perf_counter()
        self.call("before_train_iter", batch_idx=index, data_batch=batch)
        self._from = time.perf_counter()
        try:
            yield batch
            if self._counts()[0] != before[0]:
                self.call("after_update")
            self.call("after_train_iter", batch_idx=index, data_batch=batch, outputs=self.outputs)
        except BaseException:  # GeneratorExit where the body was left
            if self._counts() != before:
                self._feed.stay()
                self._behind()
            raise
        self._behind()
        self._bar.go_to(self.progress()[0])
        last = not self._by_epoch and self._over()
        if last:
            self._flush()
        self._validate(last and self._is_final())

    def _behind(self) -> None:
        self.iter += 1
        self._feed.batch += 1
        self.batch = None

    def _flush(self) -> None:
        """Apply windows that are not full: nothing follows that would fill them."""
        before = self.num_updates
        for updater in self._each.values():
            updater.flush()
        if self.num_updates != before:
            self.call("after_update")

    def _validate(self, final: bool) -> None:
        if self._validation.is_due(self.counts(), final):
            self.metrics = self._validation.run(self)
            self.call("after_val_epoch", metrics=self.metrics)
            self.call("after_val")

    # counting

    def _counts(self) -> tuple[int, int]:
        """Updates of the first, and micro-batches of all."""
        return self.num_updates, sum(updater.num_micro for updater in self._each.values())

    def counts(self, ahead: int = 0) -> dict[Unit, int]:
        """How many updates, batches and epochs are behind, once so many more batches are and the epoch, if it ended."""
        numbers = (self.num_updates, self.iter + ahead, self.epoch + self._ended)
        return cast("dict[Unit, int]", dict(zip(UNITS, numbers, strict=True)))

    def progress(self) -> tuple[int, int | None]:
        """How far the run is and how far it goes, in updates where those are its limit and in batches otherwise."""
        return (self.num_updates, self._limit) if self._limit_name == "updates" else (self.iter, self.total)

    def _done(self) -> bool:
        counts = self.counts()
        return counts[cast("Unit", self._limit_name[:-1])] >= self._limit

    def _over(self) -> bool:
        return self._done() or bool(self._stopping)

    def _now(self) -> bool:
        return self._stopping == "now"

    def _is_final(self) -> bool:
        """Whether what comes after the last comes now: not where a hook stopped the run, for MMEngine has it so."""
        return self._done() or self._now()

    def is_last(self, ended: bool) -> bool:
        """Whether nothing comes behind this batch, or this epoch where it has ended; False where nobody knows yet."""
        if self._stopping:
            return True
        if self._limit_name == "updates":
            return self.num_updates >= self._limit
        return self.epoch + 1 >= self._limit if ended else self.iter + 1 == self.total

    def record(self, mode: str, numbers: Mapping[str, Any]) -> None:
        """Give a record to all who log."""
        counts = self.counts(0 if mode == "val" else int(self.batch is not None))
        epoch = self.epoch + int(self._feed.batch > 0 or self.batch is not None)
        made: Record = {"mode": mode, "epoch": epoch, "iter": counts["iter"], "update": counts["update"], **numbers}
        for sink in self._sinks:
            sink(made)
        self._bar.show(made)
