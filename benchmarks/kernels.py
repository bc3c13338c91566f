"""A clock inside the kernels of an engine: what is left of a step's time is the host's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from benchmarks.candidate import now
from benchmarks.ours import Ours
from gradchain.engine.commit import Commit
from gradchain.engine.executors import native


def host(ours: Ours) -> float:
    """Seconds of an optimizer part that pass outside kernels, over one turn. With one thread only."""
    workload = ours.cell.workload
    for _ in range(workload.settle):
        ours.round()
    with Kernels(ours.engine) as kernels:
        parts = [ours.round().part for _ in range(workload.steps)]
    return (sum(parts) - kernels.seconds) / (len(parts) * ours.cell.recipe.per)


class Kernels:
    """Those that reduce, and those that a commit has write.

    Attributes:
        seconds: what passed inside them, so far.
    """

    def __init__(self, engine: Any) -> None:
        self.seconds = 0.0
        self._runners = [part.runner for plan in engine._plans.values() for part in plan.parts]
        self._patches = ExitStack()

    def __enter__(self) -> Kernels:
        printed, fire = any(hasattr(runner, "_drive") for runner in self._runners), Commit.fire
        drive = self._timed(native.driver()) if printed else None  # without a compiler there is none

        def fired(commit: Commit) -> None:
            # printed C passes through the driver below; what calls torch's kernels is a write of its own
            commit._writes[:] = [w if isinstance(w, native.Kernels) else _Clocked(w, self) for w in commit._writes]
            fire(commit)

        with ExitStack() as stack:
            stack.enter_context(patch.object(Commit, "fire", fired))
            stack.enter_context(patch.object(native, "driver", lambda: drive))
            for runner in self._runners:
                key, timed = ("_drive", drive) if hasattr(runner, "_drive") else ("run", self._timed(runner.run))
                stack.enter_context(patch.object(runner, key, timed))
            self._patches = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    def _timed(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            start = now()
            try:
                return real(*args)
            finally:
                self.seconds += now() - start

        return timed


class _Clocked:
    """A write of a commit under a clock."""

    def __init__(self, write: Any, kernels: Kernels) -> None:
        self._write, self._call = write, kernels._timed(write)

    @property
    def begun(self) -> bool:
        return bool(self._write.begun)

    def __call__(self) -> None:
        self._call()
