"""What all candidates share: a step that is timed, and the time that belongs to forward and backward."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.recipes import Cell

now = time.process_time if os.environ.get("BENCHMARK_CLOCK") == "processor" else time.perf_counter


class Unable(Exception):  # noqa: N818
    """Why a candidate cannot run a recipe; it goes into the report."""


class Took(NamedTuple):
    """Seconds of one step: all of it, and what was neither forward nor backward."""

    whole: float
    part: float


class _Backward:
    """A clock that runs inside `Tensor.backward`, whoever calls it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.installed = False

    @contextlib.contextmanager
    def clock(self) -> Iterator[None]:
        """For as long as steps are timed: a method set anew at each step would empty the interpreter's caches."""
        real = torch.Tensor.backward

        def timed(tensor: Tensor, *args: Any, **kwargs: Any) -> None:
            start = now()
            try:
                real(tensor, *args, **kwargs)
            finally:
                self.seconds += now() - start

        torch.Tensor.backward = timed  # type: ignore[method-assign]
        self.installed = True
        try:
            yield
        finally:
            self.installed = False
            torch.Tensor.backward = real  # type: ignore[method-assign]


BACKWARD = _Backward()


class Candidate:
    """A model and an optimizer of its own. Subclasses say what happens with a loss."""

    name = ""
    traced = True  # whether live bytes can be counted by a dispatch mode
    ours = False
    trains = True  # whether its weights are compared

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.model = cell.workload.build()
        self.number = 0  # the micro-batch that comes next

    # what a subclass gives

    def context(self) -> AbstractContextManager[Any]:
        """Where the forward of a recipe with autocast runs."""
        return torch.autocast("cpu", dtype=torch.float16)

    def backward(self, loss: Tensor) -> None:
        """From the loss to the gradients."""
        (loss / self.cell.recipe.micro if self.cell.recipe.micro > 1 else loss).backward()

    def step(self, last: bool) -> None:
        """From the gradients to the weights, and the gradients released; nothing where the window is not full."""
        raise NotImplementedError

    def update(self, loss: Tensor, last: bool) -> None:
        """Both, as a user writes it."""
        self.backward(loss)
        self.step(last)

    def norm(self) -> float | None:
        """The norm before the last clip, where the candidate tells it."""
        return None

    def average(self) -> dict[str, Tensor] | None:
        """The averaged weights, where the recipe has them."""
        return None

    # time

    def turn(self) -> Took:
        """What a round asks of a candidate: the workload's steps in a row, and the mean of those that are timed.

        In training one optimizer runs all the time. Where a step is microseconds of Python, the first ones after
        another candidate's turn measure how that one has emptied the caches.
        """
        workload = self.cell.workload
        took = []
        for _ in range(workload.settle + workload.steps):
            took.append(self.round())
            self.check_clip()
        timed = took[workload.settle :]
        many = len(timed) * self.cell.recipe.per
        return Took(*(sum(seconds) / many for seconds in zip(*timed, strict=True)))

    def round(self) -> Took:
        """One step with its micro-batches, timed, under `BACKWARD.clock()`."""
        assert BACKWARD.installed, "without the clock in backward the part would hold backward"
        whole = part = 0.0
        micro = self.cell.recipe.micro
        for k in range(micro):
            start = now()
            loss, around = self.forward()
            forward, before = now(), BACKWARD.seconds
            self.update(loss, k == micro - 1)
            end, backward = now(), BACKWARD.seconds - before
            part += around + end - forward - backward
            del loss
            whole += now() - start
            assert backward > 0, f"{self.name}: backward passed by its clock"
        return Took(whole, part)

    def forward(self) -> tuple[Tensor, float]:
        """The loss of the coming micro-batch, and the seconds that went into the context around the model."""
        model, number, loss = self.model, self.number, self.cell.workload.loss
        self.number += 1
        if not self.cell.recipe.first:
            return loss(model, number), 0.0
        start = now()
        with self.context():
            entered = now()
            out = loss(model, number)
            computed = now()
        return out, now() - computed + entered - start

    def check_clip(self) -> None:
        """Fails if the last step did not clip."""
        norm = self.norm()
        if self.cell.recipe.clip and norm is not None:
            bound = self.cell.max_norm
            assert norm > bound, f"{self.name}: norm {norm:.3g} was not clipped to {bound:.3g}"


class Bare(Candidate):
    """Forward, backward, and releasing the gradients: what everyone pays."""

    name = "bare"
    trains = False

    def step(self, last: bool) -> None:
        if last:
            for parameter in self.model.parameters():
                parameter.grad = None


@contextlib.contextmanager
def limit(seconds: int, what: str) -> Iterator[None]:
    """Unable after so many seconds."""

    def stop(*_: object) -> None:
        raise Unable(f"{what} took over {seconds} s")

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
