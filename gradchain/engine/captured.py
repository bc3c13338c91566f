"""A step whose launches go into a CUDA graph, and what changes in them from replay to replay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from gradchain.core.eager import EagerTensors
from gradchain.core.step import Step
from gradchain.core.tensors import Tensors
from gradchain.engine.executors.triton import Launch, TritonRunner
from gradchain.engine.operations import Unrecorded
from gradchain.engine.planning.rows import Column
from gradchain.engine.recording.device import DeviceReduced


def captures(device: torch.device) -> bool | None:
    """Whether a graph is being captured on this device; None where it has no graphs."""
    if device.type != "cuda":
        return None
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


class Captured:
    """The launches of one step, in order.

    While the graph is captured they are queued into it with empty tables. Before each replay the chain is walked
    once more on the host, launching nothing: each launch it would make must be the one that was captured, over the
    same memory, and its numbers are sent to that launch's table.

    Attributes:
        recording: whether the graph is being captured.
        received: the gradients that the step was captured with.
        step: the facts of that update.
        lent: whether those gradients stay the user's.
        queued: what runs in the graph, in order. It keeps alive the memory that the graph runs in.
    """

    def __init__(self) -> None:
        self.recording = True
        self.received: Tensors | None = None
        self.step = Step()
        self.lent = False
        self.queued: list[Callable[[], object]] = []
        self._launches: list[tuple[TritonRunner, Launch]] = []
        self._reduced: list[DeviceReduced] = []
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
            given = {t.data_ptr() for t in (*scalars, *entries) if isinstance(t, torch.Tensor)}
            if not given.issuperset(t.data_ptr() for t in launch.held):
                raise Unrecorded("a number is a tensor that is no float64 of the weights' device")
            launch.reserve()
            self._launches.append((runner, launch))
            self.queue(launch)
            return launch.sums
        if self._next == len(self._launches):
            raise Unrecorded("this one has more kernels")
        known, before = self._launches[self._next]
        if runner is not known or launch.text != before.text:
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
        """Launch into the graph. On a device without graphs nothing runs: the tables are empty yet."""
        self.queued.append(launch)
        if self._launches and captures(self._launches[0][0].device):
            launch()

    def begin(self, received: Tensors, step: Step, lent: bool) -> None:
        """A step begins: the one that is captured, or a replay of it."""
        self._next = self._next_reduced = 0
        if self.recording:
            stray = next((t.device for t in _weights(step) if captures(t.device) is False), None)
            if stray is not None:
                raise RuntimeError(
                    f"capturing: the update must run while a graph is captured on {stray}, got none. Put it under "
                    "torch.cuda.graph(graph), on that device."
                )
            if self.received is not None:
                raise self.refusal("a second update came before the first was captured")
            self.received, self.step, self.lent = received, step, lent

    def complete(self) -> Sending:
        """A step came to its end. Where it is a replay, all launches were met: what sends their numbers."""
        if not self.recording and self._next != len(self._launches):
            raise self.refusal("this one has fewer kernels")
        return Sending([] if self.recording else [launch for _, launch in self._launches])


def _weights(step: Step) -> list[torch.Tensor]:
    return step.params._data if isinstance(step.params, EagerTensors) else []


class Sending:
    """The numbers of launches on their way to where a graph reads them. Until it is replayed nothing is written."""

    begun = False  # what a replay reads is sent anew before it

    def __init__(self, launches: list[Launch]) -> None:
        self._launches = launches

    def __call__(self) -> None:
        for launch in self._launches:
            launch.send()
