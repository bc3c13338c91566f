"""An update inside a CUDA graph: what a replay has to be told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gradchain.core.transform import walk
from gradchain.engine.captured import Captured
from gradchain.updater.bound import Bound
from gradchain.updater.info import UpdateInfo
from gradchain.updater.window import MicroBatch


class CapturedUpdate:
    """An update that a graph replays. `advance()` comes before each replay."""

    def __init__(self, bound: Bound, captured: Captured) -> None:
        self._bound, self._captured = bound, captured

    def advance(self) -> UpdateInfo:
        """Send the numbers of the coming update (schedules, counts, overrides) to the device, and count it.

        One `graph.replay()` must follow: it moves the weights. What the update records is read from the device when
        it is asked for, and is that of the last replay by then.

        Raises:
            RuntimeError: the update is no longer the one that was captured: a weight or a state moved, a link
                computes something else, a parameter was added. Nothing has changed then.
        """
        self._bound.journal.enter("advance")
        return self._bound.journal.guard(self._advance)

    def _advance(self) -> UpdateInfo:
        bound, captured, journal = self._bound, self._captured, self._bound.journal
        assert captured.received is not None
        bound.target.parameters()  # the model may hold others by now, which `run` does not look for
        facts = captured.step
        step = bound.facts(
            bound.gradients.params(look=False),
            scaled=facts.scaled,
            summed=facts.summed,
            weight=facts.weight,
            micro=MicroBatch(loss=facts.loss),
        )
        journal.open = True
        journal.away = self._back
        bound.engine.captured = captured
        try:
            return bound.run(captured.received, step, captured.lent, keep_grads=True, waiting=bound.micro)
        finally:
            journal.home()

    def _back(self) -> None:
        self._bound.engine.captured = None


@contextmanager
def capturing(bound: Bound) -> Iterator[CapturedUpdate]:
    """One update that is captured; see Updater.capturing."""
    _refuse(bound)
    captured = bound.engine.captured = Captured()
    state, clocks, records, news = bound.state, dict(bound.clocks), dict(bound.records), bound.news

    def back() -> None:  # what was captured has not run
        bound.engine.captured, captured.recording = None, False
        bound.state, bound.clocks, bound.records, bound.news = state, clocks, records, news

    try:
        try:
            yield CapturedUpdate(bound, captured)
        finally:
            back()
    except BaseException:  # it may have come in the line above
        back()
        raise
    if captured.received is None:
        raise RuntimeError("capturing: no update ran inside. Call updater.update(loss) under torch.cuda.graph.")


def _refuse(bound: Bound) -> None:
    """RuntimeError, ValueError for what cannot be captured."""
    holding = next((address for address, link, _ in walk(bound.chain, None) if link.holds), None)
    if holding is not None:
        raise ValueError(
            f"capturing: every update must be applied, but {holding} may hold the chain. Leave it out, or run the "
            "update after the graph: backward in the graph, then updater.step()."
        )
    if bound.target.distributed:
        raise ValueError("capturing: updates over several ranks cannot be captured. Run them without a graph.")
    if not bound.engine.last or bound.engine.reason or any(p.executor != "triton" for p in bound.engine.last):
        why = bound.engine.reason or "no update has run by Triton's kernels"
        raise RuntimeError(
            f"capturing: the last update must have run by Triton's kernels, but {why}. Set "
            "GRADCHAIN_EXECUTORS=triton and run one update of the same kind first, which compiles them."
        )
