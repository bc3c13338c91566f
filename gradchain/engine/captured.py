"""A step whose launches go into a CUDA graph, and what changes in them from replay to replay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from gradchain.engine.executor import Column
from gradchain.engine.numbers import DeviceReduced
from gradchain.engine.record import Unrecorded
from gradchain.engine.triton_executor import Launch, TritonRunner


class Captured:
    """The launches of one step, in order.

    While the graph is captured they are queued into it with empty tables. Before each replay the chain is walked
    once more on the host, launching nothing: each launch it would make must be the one that was captured, over the
    same memory, and its numbers are sent to that launch's table.
    """

    def __init__(self) -> None:
        self.recording = True
        self._launches: list[tuple[TritonRunner, Launch]] = []
        self._reduced: list[DeviceReduced] = []
        self._queued: list[Callable[[], object]] = []
        self._next = 0
        self._next_reduced = 0

    def refusal(self, why: str) -> RuntimeError:
        """The error for a step that cannot be captured, or is another one than was captured."""
        cure = "Run it without a graph." if self.recording else "Capture it anew."
        return RuntimeError(f"capturing: a captured step must be the same kernels each time, but {why}. {cure}")

    def run(
        self, runner: Any, executor: str, columns: Sequence[Column], scalars: Sequence[Any], entries: Sequence[Any]
    ) -> Any:
        """A launch: into the graph, or checked against it. Returns where it leaves its sums."""
        if not isinstance(runner, TritonRunner):
            raise Unrecorded(f"the executor {executor!r} fixes its numbers; GRADCHAIN_EXECUTORS=triton does not")
        launch = runner.prepared(columns, scalars, entries)
        if self.recording:
            launch.reserve()
            self._launches.append((runner, launch))
            self.queue(launch)
            return launch.sums
        if self._next == len(self._launches):
            raise Unrecorded("this one has more kernels")
        known, before = self._launches[self._next]
        if runner is not known or launch.text != before.text or launch.aligned != before.aligned:
            raise Unrecorded("this one has another kernel")
        fixed = len(columns) * 8 * len(columns[0].tensors) if columns else 0
        lie_there = [t.data_ptr() for t in launch.held] == [t.data_ptr() for t in before.held]
        if launch.cells[:fixed] != before.cells[:fixed] or not lie_there:
            raise Unrecorded("weights, state or gradients moved")
        before.cells = launch.cells
        self._next += 1
        return before.sums

    def reduced(self, made: DeviceReduced) -> DeviceReduced:
        """What a reduction gave: the same tensors at every replay."""
        if self.recording:
            made.queue = self.queue
            self._reduced.append(made)
            return made
        self._next_reduced += 1
        return self._reduced[self._next_reduced - 1]

    def queue(self, launch: Callable[[], object]) -> None:
        """Launch into the graph. Without a device nothing runs before `replay`."""
        self._queued.append(launch)
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            launch()

    def begin(self) -> None:
        """Before a step that is to be replayed."""
        self._next = self._next_reduced = 0

    def complete(self) -> None:
        """Every launch was met: send their numbers."""
        if self._next != len(self._launches):
            raise self.refusal("this one has fewer kernels")
        for _, launch in self._launches:
            launch.send()

    def replay(self) -> None:
        """The launches one by one: what replaying the graph does, where there is none."""
        for launch in self._queued:
            launch()
