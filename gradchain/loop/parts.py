"""What a run does by itself at its moments, each at the priority that MMEngine's hook for it has."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from gradchain.checkpoints import ranks
from gradchain.loop import logs
from gradchain.loop.moments import PRIORITIES, Hook

if TYPE_CHECKING:
    from gradchain.loop.run import loop

EPOCH = "epoch"


def built_in(run: loop[Any]) -> list[Hook]:
    """In the order in which MMEngine's Runner registers its own."""
    logging, saving = Logging(run), Saving(run)
    rows: list[tuple[str, str, dict[str, Any]]] = [
        ("rates", "VERY_HIGH", {
            "before_train_iter": logging.read_rates, "after_train_iter": logging.keep_of_batch,
            "after_val_epoch": logging.keep_of_validation,
        }),
        ("timer", "NORMAL", {"before_train_iter": logging.waited, "after_train_iter": logging.worked}),
        ("seed", "NORMAL", {"before_train_epoch": lambda _: run._feed.seed() if run._by_epoch else None}),
        ("log", "BELOW_NORMAL", {
            "before_train": logging.begin, "after_train_iter": logging.now_and_then,
            "after_val_epoch": logging.validated, "after_train": logging.end,
        }),
        ("tick", "LOW", {"after_train_epoch": lambda _: tick(run) if run._by_epoch else None}),
        ("save", "VERY_LOW", {
            "after_train_iter": saving.after_batch, "after_train_epoch": saving.after_epoch,
            "after_val_epoch": saving.best, "after_train": saving.end,
        }),
    ]  # fmt: skip
    return [Hook(name, PRIORITIES[priority], calls) for name, priority, calls in rows]


def tick(run: loop[Any]) -> None:
    """An epoch is over: the clock of that name ticks in each chain that reads it."""
    for updater in run._each.values():
        if EPOCH in updater.clocks:
            updater.tick(EPOCH)


class Logging:
    """What is measured, and when it is told."""

    def __init__(self, run: loop[Any]) -> None:
        self._run = run
        self._rates: dict[str, float] = {}
        self._begin = 0.0
        self._from = 0

    def begin(self, _: Mapping[str, Any]) -> None:
        """What is left of the run is judged by what comes from here on."""
        self._begin, self._from = time.perf_counter(), self._run.progress()[0]

    def read_rates(self, given: Mapping[str, Any]) -> None:
        """The learning rates of the update to come; after it they are those of the next."""
        run = self._run
        self._rates = {}  # or the record of a last batch would have those of an older one
        done, total = run.progress()
        if not run._sinks or not (self._is_due(given["batch_idx"]) or (total is not None and done + 1 >= total)):
            return
        self._rates = {
            f"{name}.{address}" if name else address: value
            for name, updater in run._each.items()
            for address, value in updater.hyperparams(by="value").items()
            if "learning_rate" in address
        }

    def keep_of_batch(self, given: Mapping[str, Any]) -> None:
        """What hooks find in `runner.message_hub`, where there are any that do."""
        if self._run._standin._used:
            self._run._standin.message_hub.keep("train", given["outputs"])

    def keep_of_validation(self, given: Mapping[str, Any]) -> None:
        """The same of a validation."""
        if self._run._standin._used:
            self._run._standin.message_hub.keep("val", logs.numbers(given["metrics"]))

    def waited(self, _: Mapping[str, Any]) -> None:
        """The seconds that the batch took to come."""
        self._run._meter.add({"data_time": self._run.data_time})

    def worked(self, _: Mapping[str, Any]) -> None:
        """The seconds that all of the batch took, the wait for it and the body."""
        run = self._run
        took = run.data_time + time.perf_counter() - run.began
        run._meter.add({"time": took})
        if run._standin._used:
            run._standin.message_hub.keep("train", {"data_time": run.data_time, "time": took})

    def now_and_then(self, given: Mapping[str, Any]) -> None:
        """A record every `interval` batches, counted as MMEngine does: in each epoch anew."""
        if self._is_due(given["batch_idx"]):
            self._tell()

    def end(self, _: Mapping[str, Any]) -> None:
        """What no record had yet."""
        if self._run._meter:
            self._tell()

    def _is_due(self, index: int) -> bool:
        """In an epoch that is shorter than that, behind its last."""
        run = self._run
        length = run._feed.length if run._by_epoch else None
        return (index + 1) % (run.interval if length is None else min(run.interval, length)) == 0

    def _tell(self) -> None:
        run = self._run
        if not run._sinks and not run._bar.shown:
            return
        means = run._meter.take()
        found = {**{n: v for n, v in means.items() if "time" not in n}, **self._rates}
        for name, updater in run._each.items():
            before = f"{name}." if name else ""
            found.update({f"{before}{address}": value for address, value in updater.metrics.items()})
            found[f"{before}skipped"] = updater.num_skipped
        found.update({n: v for n, v in means.items() if "time" in n})
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            found["memory"] = torch.cuda.max_memory_allocated() / 2**20
        done, total = run.progress()
        if total is not None and done > self._from:
            found["eta"] = (time.perf_counter() - self._begin) / (done - self._from) * (total - done)
        run.record("train", found)

    def validated(self, given: Mapping[str, Any]) -> None:
        """A record of what a validation returned."""
        if self._run._sinks or self._run._bar.shown:
            self._run.record("val", logs.numbers(given["metrics"]))


class Saving:
    """When the run is saved."""

    def __init__(self, run: loop[Any]) -> None:
        self._run = run

    def after_batch(self, _: Mapping[str, Any]) -> None:
        """Every so many batches or updates, and behind the last."""
        keeper, run = self._run._keeper, self._run
        if keeper is None or keeper.due.unit == EPOCH:
            return
        now, before = run.counts(1)[keeper.due.unit], run._restore.checked
        run._restore.checked = now
        if keeper.due.due(before, now) or (keeper.settings.last and not run._by_epoch and run.is_last(ended=False)):
            run._restore.save()

    def after_epoch(self, _: Mapping[str, Any]) -> None:
        """Every so many epochs, and behind the last."""
        keeper, run = self._run._keeper, self._run
        if keeper is None or keeper.due.unit != EPOCH or not run._by_epoch:
            return
        epoch = run.epoch + 1
        if keeper.due.due(epoch - 1, epoch) or (keeper.settings.last and run.is_last(ended=True)):
            run._restore.save()

    def best(self, given: Mapping[str, Any]) -> None:
        """After a validation that is the best so far."""
        keeper = self._run._keeper
        if keeper is not None:
            found = keeper.better(logs.numbers(given["metrics"]))
            for metric in ranks.of_first(found):  # what each rank has validated may differ, and all must save
                self._run._restore.save(best=metric)

    def end(self, _: Mapping[str, Any]) -> None:
        """What has changed since, as a window that was flushed or a run that was stopped."""
        keeper = self._run._keeper
        if keeper is not None and keeper.settings.last and self._run._restore.is_stale():
            self._run._restore.save()
