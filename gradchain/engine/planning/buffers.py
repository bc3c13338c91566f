"""Memory of what a link keeps whole, as `accumulate` its window: made once, then written over step by step."""

from __future__ import annotations

import torch

from gradchain.core.eager import EagerTensors
from gradchain.core.index import Index
from gradchain.core.shapes import Shapes
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.engine.planning.layout import Layout, like
from gradchain.engine.recording.leaves import whole_of


class Buffers:
    """The buffers of one engine: those that hold something, and those that wait for the next window."""

    def __init__(self) -> None:
        self._held: list[EagerTensors] = []
        self._waiting: list[EagerTensors] = []
        self._now: list[EagerTensors] = []

    def clear(self) -> None:
        """Forget them all: the state came from elsewhere, or the weights are others."""
        self._held, self._waiting, self._now = [], [], []

    def begin(self) -> None:
        """A step begins; what one that failed had chosen was not written."""
        self._now = []

    def place(
        self, layout: Layout, index: Index, shapes: Shapes | None, dtypes: list[torch.dtype], before: object
    ) -> EagerTensors:
        """Memory for these entries, to be written once nothing can fail: where they lie now, if it is ours, or waits.

        Args:
            layout: of the weights, which the entries follow.
            index: the entries.
            shapes: theirs; None for those of the weights.
            dtypes: theirs.
            before: what the link has kept so far.
        """
        for buffer in [b for b in self._held if b is before] + self._waiting:
            fits = buffer.index is index and [t.dtype for t in buffer._data] == dtypes and layout.odd(buffer) == shapes
            if fits and not any(b is buffer for b in self._now):
                break
        else:
            buffer = fresh(index, layout, shapes, dtypes)
        self._now.append(buffer)
        return buffer

    def settle(self, state: State) -> None:
        """The step was done, and this is the new state: what it no longer has waits, one buffer for a parameter."""
        if not (self._held or self._waiting or self._now):
            return
        has = {id(tensors) for tensors in whole_of(state)}  # a window that was not written is open all the same
        now = {id(buffer) for buffer in self._now}
        others = [b for b in self._held if id(b) not in now]
        free = [b for b in others if id(b) not in has]
        old = [b for b in self._waiting if id(b) not in now]
        self._waiting = free + [b for b in old if not any(len(b.index.subset(f.index)) for f in free)]
        self._held = self._now + [b for b in others if id(b) in has]


def fresh(index: Index, layout: Layout, shapes: Shapes | None, dtypes: list[torch.dtype]) -> EagerTensors:
    """Memory for entries of these shapes, or of their weights', laid out as those."""
    weights = [layout.tensors[layout.index.position[name]] for name in index.names]
    each = [w.shape for w in weights] if shapes is None else shapes
    return EagerTensors(index, [like(w, s, d) for w, s, d in zip(weights, each, dtypes, strict=True)])


def window_of(index: Index, copied: bool, received: EagerTensors) -> Tensors:
    """Gradients for a window to keep."""
    kept = received.select(index)
    return kept.clone() if copied else kept
