"""A run as plain data: what a checkpoint holds beside weights and state, so that the rest is as it would have been."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradchain.checkpoints import place, randomness, ranks
from gradchain.checkpoints.arguments import is_count, named
from gradchain.loop.logs import Record

if TYPE_CHECKING:
    from gradchain.loop.run import loop

FORMAT = 1


class Restore:
    """Saves a run and goes on with one.

    Attributes:
        checked: up to which count of the checkpoints' unit was looked whether one is due.
    """

    def __init__(self, run: loop[Any], wanted: bool) -> None:
        self._run = run
        self._wanted = wanted
        self._saved: tuple[int, ...] = ()
        self.checked = 0

    def save(self, best: str | None = None) -> None:
        """Write a file of the run as it is once the batch, and the epoch if it ended, is behind. All ranks call it."""
        run, keeper = self._run, self._run._keeper
        assert keeper is not None
        ahead = int(run.batch is not None)
        contents = {"loop": self._state(ahead), "extra": run.extra}
        run.call("before_save_checkpoint", checkpoint=contents)
        if best is not None:
            keeper.save_best(named(run._updater), {"run": contents}, best)
            return
        number = run.counts(ahead)[keeper.due.unit]
        keeper.save(named(run._updater), {"run": contents}, number)
        self._saved = self._marks(ahead)

    def is_stale(self) -> bool:
        """Whether anything has moved since the last file."""
        return self._saved != self._marks(0)

    def _marks(self, ahead: int) -> tuple[int, ...]:
        return (self._run.iter + ahead, *self._run._counts())

    def _state(self, ahead: int) -> dict[str, Any]:
        run = self._run
        own = {"random": randomness.state(), "feed": run._feed.state(ahead, run._ended)}
        return {
            "format": FORMAT,
            "iter": run.iter + ahead,
            "ranks": ranks.gathered(own),
            "validation": {"unit": run._validation.when.unit, "checked": run._validation.checked,
                           "done": list(run._validation.done)},
            "best": dict(run._keeper.records) if run._keeper else {},
        }  # fmt: skip

    def load(self) -> Record | None:
        """Go on from the newest file, the first time; and say where that is."""
        run, keeper = self._run, self._run._keeper
        if keeper is None or not self._wanted:
            return None
        self._wanted = False
        found = keeper.newest(named(run._updater))
        if found is None:
            return None
        contents = found.extra.get("run")
        if not isinstance(contents, dict) or not _is_state(contents.get("loop")) or "extra" not in contents:
            raise ValueError(
                f"loop: {str(keeper.folder.path)!r} must have checkpoints that a loop of this version saved, got one "
                "of another. Load it by updater.load(path), and give resume=False."
            )
        state = contents["loop"]
        own = place.own_of("loop", state["ranks"], "Save at the end of an epoch: unit='epoch'.", run._feed)
        found.take()
        self._take(state, own)
        run.extra = contents["extra"]
        run.call("after_load_checkpoint", checkpoint=contents)
        counts = run.counts()
        return {"epoch": run.epoch, "iter": counts["iter"], "update": counts["update"],
                "pending": run._validation.would_be_due(counts, run._done())}  # fmt: skip

    def _take(self, state: dict[str, Any], own: dict[str, Any]) -> None:
        run = self._run
        run.iter = state["iter"]
        place.put(own, run._feed)
        validation, kept = run._validation, state["validation"]
        if kept["unit"] == validation.when.unit:
            validation.checked, validation.done = kept["checked"], tuple(kept["done"])
        else:
            validation.checked = run.counts()[validation.when.unit]
        if run._keeper is not None:
            run._keeper.records.update(state["best"])
            self.checked = run.counts()[run._keeper.due.unit]
        self._saved = self._marks(0)


def _is_state(found: Any) -> bool:
    """Whether it is what `Restore._state` gives."""
    if not isinstance(found, dict) or type(found.get("format")) is not int or found["format"] != FORMAT:
        return False
    kept = found.get("validation")
    if not isinstance(kept, dict) or not is_count(kept.get("checked"), 0) or not isinstance(kept.get("done"), list):
        return False
    right = isinstance(kept.get("unit"), str) and all(is_count(number, -1) for number in kept["done"])
    ranks_, best = found.get("ranks"), found.get("best")
    return right and is_count(found.get("iter"), 0) and place.are_ranks(ranks_) and place.are_records(best)
