"""What a step comes to, and that it comes to nothing where kernels cannot run it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

from gradchain.core.notices import notice
from gradchain.core.state import Links
from gradchain.core.step import Notes
from gradchain.engine.commit import Commit
from gradchain.engine.executors.base import NoKernel
from gradchain.engine.operations import Unrecorded


class Tells(Protocol):
    """What tells why steps ran otherwise than by kernels: an engine.

    Attributes:
        captured: what a step goes into that is captured; else None.
        reason: why the last step ran by the reference.
    """

    captured: Any
    reason: str

    def count(self, why: str) -> None:
        """One more step that did not run again."""


P = ParamSpec("P")
E = TypeVar("E", bound=Tells)


class Outcome(NamedTuple):
    """What a step comes to: whether weights are written, the new state, what links left, and what is to be written."""

    applied: bool
    state: Links
    notes: Notes
    commit: Commit


def none_where_it_cannot(
    step: Callable[Concatenate[E, P], Outcome | None],
) -> Callable[Concatenate[E, P], Outcome | None]:
    """The step, which gives None and keeps the reason where a chain cannot be recorded or no executor can run it."""

    @functools.wraps(step)
    def tried(self: E, /, *args: P.args, **kwargs: P.kwargs) -> Outcome | None:
        try:
            return step(self, *args, **kwargs)
        except (Unrecorded, NoKernel) as reason:
            if self.captured is not None:
                raise self.captured.refusal(str(reason)) from None
            if self.reason != str(reason):  # where all steps do, one is enough to look whether it was said
                notice("engine", f"steps of a chain run by the reference, operation after operation: {reason}")
            self.reason = str(reason)
            self.count(f"the reference ran it: {reason}")
            return None

    return tried
