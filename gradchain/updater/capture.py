"""An update inside a CUDA graph: what a replay has to be told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import copy

from gradchain.core.transform import walk
from gradchain.engine.captured import Captured
from gradchain.updater.bound import Bound
from gradchain.updater.in_backward import InBackward
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
        bound, captured = self._bound, self._captured
        run = copy(captured.run_of_it)
        run.records, run.used = {}, {}
        assert captured.received is not None
        bound.target.parameters()  # the model may hold others by now, which `run` does not look for
        waiting, bound.micro = bound.micro, MicroBatch(loss=captured.run_of_it.loss)
        bound.engine.captured = captured
        try:
            info = bound.run(captured.received, run, captured.lent, None)
        finally:
            bound.engine.captured, bound.micro = None, waiting
        bound.clocks["micro"] += 1
        return info


class Capturing:
    """The part of an Updater that puts an update into a CUDA graph."""

    _bound: Bound
    _in_backward: InBackward | None
    _refuse_while_averaged: Callable[[str], None]

    def capturing(self) -> AbstractContextManager[CapturedUpdate]:
        """One update inside, to be captured in a CUDA graph; it does not count, for a capture runs nothing.

        What a graph holds is fixed, but a learning rate moves: `advance()` sends the numbers of the coming update to
        where the graph's kernels read them, and counts it. Each replay needs one.

            for _ in range(3):                                   # eagerly, to compile and to make the state
                updater.update(loss_of(model(inputs)))
            graph = torch.cuda.CUDAGraph()
            with updater.capturing() as captured, torch.cuda.graph(graph):
                loss = loss_of(model(inputs))                    # of tensors that stay where they are
                updater.update(loss)
            for batch in loader:
                inputs.copy_(batch)
                info = captured.advance()
                graph.replay()

        Needs `GRADCHAIN_EXECUTORS=triton`. Not supported: links that may hold the chain (`accumulate`, `amp_scale`,
        `skip_nonfinite`), that ask for whole tensors (`map`), keep a number of the device in their state or take a
        closure; `clip_by_norm` with per="tensor" or with groups; several ranks; in_backward. Loading a state, or
        moving the model, needs a new capture.

        Raises:
            ValueError, RuntimeError: for what cannot be captured.
        """
        self._refuse_while_averaged("capturing")
        if self._in_backward is not None:
            raise ValueError("capturing: an updater bound with in_backward=True updates in backward hooks: bind anew.")
        return _capturing(self._bound)


@contextmanager
def _capturing(bound: Bound) -> Iterator[CapturedUpdate]:
    _refuse(bound)
    captured = bound.engine.captured = Captured()
    state, clocks, records, news = bound.state, dict(bound.clocks), dict(bound.records), bound.news
    try:
        yield CapturedUpdate(bound, captured)
    finally:
        # what was captured has not run
        bound.engine.captured, captured.recording = None, False
        bound.state, bound.clocks, bound.records, bound.news = state, clocks, records, news
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
