"""The micro-batch that an update stands for, as links see it that keep a window or undo a loss scale."""

from __future__ import annotations

from typing import Any

from gradchain.core.step import Notes, Step


class Micro:
    """Facts of a micro-batch and its window: `ctx.micro`. Other links need none of them."""

    __slots__ = ("_notes", "_outermost", "_step")

    def __init__(self, step: Step, notes: Notes, outermost: bool) -> None:
        self._step, self._notes, self._outermost = step, notes, outermost

    @property
    def last(self) -> bool:
        """Whether an open window must close with this micro-batch."""
        return self._step.last

    @property
    def flushing(self) -> bool:
        """Whether this is no micro-batch, but the closing of a part-filled window."""
        return self._step.flushing

    @property
    def weight(self) -> float | None:
        """The weight given to this micro-batch, or None."""
        return self._step.weight

    @property
    def mean_weight(self) -> float | None:
        """The mean of that over ranks: all must ask for it, and talk once, however often they ask.

        A link that reads it in an update asks for it in `scale_loss` too. There ranks talk, so a step knows the number.
        """
        if self._step.mean_weight is None:
            return self._step.weight
        if self._step.recorder is None:
            return self._step.mean_weight()
        mean: float = self._step.recorder.number_from(_mean_weight)
        return mean

    @property
    def scaled(self) -> bool:
        """Whether the gradients come from a loss that the chain scaled; else they are true ones."""
        return self._notes.scaled and self._outermost

    @property
    def summed(self) -> bool:
        """Whether the gradients already are the sum over the open window."""
        return self._step.summed and self._outermost

    @property
    def averaged_over_ranks(self) -> bool:
        """Whether gradients are averaged over ranks before the links see them."""
        return self._step.over_ranks is not None

    def over_ranks(self, value: float) -> float:
        """The mean over ranks of a host number, where the gradients are averaged over ranks; else the number."""
        return value if self._step.over_ranks is None else self._step.over_ranks(value)

    def close(self, loss: Any, scaled: bool) -> None:
        """Make `loss` the loss that later links see, reduced over the window, and say whether the window was scaled."""
        self._notes.loss, self._notes.scaled = loss, scaled


def _mean_weight(step: Step) -> Any:
    assert step.mean_weight is not None
    return step.mean_weight()
