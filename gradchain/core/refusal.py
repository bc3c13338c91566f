"""What is not finite: how it is found and named, what a gate holds for, and the error where it comes too often."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.weights import Weights


class Diverged(FloatingPointError):  # noqa: N818  # what happened to the run, and no fault of a call
    """A run has left its way: too many updates in a row were not finite, or far above what is usual.

    It is raised before anything is written. Where each of those updates was skipped, which is so for all that are not
    finite, weights and state are those before the first of them.

    Attributes:
        last_good: the checkpoint to go back to, as `guard(last_good=…)` knows it; None where nobody knows one.
        of_window: whether it is about a window of micro-batches, and not one of them. Open windows are then dropped,
            else the one micro-batch is, so that a run may go on.

    >>> import gradchain as gch
    >>> gch.Diverged("the loss is NaN", last_good="run/10.pt").last_good
    'run/10.pt'
    """

    def __init__(self, message: str, last_good: str | None = None) -> None:
        super().__init__(message)
        self.last_good = last_good
        self.of_window = False

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.last_good)


class Refusal(FloatingPointError):  # noqa: N818  # a chain with a gate makes no error of it
    """A link met a loss or gradient that is not finite. The innermost chain with an active gate holds for it.

    Where there is none, it is the error that the user sees.

    Args:
        why: what was not finite, in words.
        owner: the address of the link.
    """

    def __init__(self, why: str, owner: str) -> None:
        self.why, self.owner = why, owner
        super().__init__(
            f"update: {why}; weights and state are untouched. To skip such updates put skip_nonfinite() in the chain."
        )


def is_finite(loss: Any) -> bool:
    """Whether a loss is; reading one that lies on a device waits for it."""
    return math.isfinite(loss.item() if isinstance(loss, Tensor) else loss)


def first_offender(tensors: Tensors) -> str:
    """The first entry with an inf or NaN, where there is one."""
    return next(name for name in tensors if not tensors.select([name]).all_finite())


def nonfinite_in(made: Tensors | Weights, before: Mapping[str, State], after: Mapping[str, State]) -> str:
    """What a chain made that has inf or NaN, in words: its updates, or the new state of one of its links. Else "".

    Args:
        made: the updates, or the weights that a link returned.
        before: the states that these links had.
        after: and those that they have made.
    """
    tensors = made.tensors if isinstance(made, Weights) else made
    if not tensors.all_finite():
        return f"what the chain made has inf or NaN, the first offending parameter is {first_offender(tensors)!r}"
    for address, field in _new_fields(before, after):
        if not field.all_finite():
            return f"{address} would have inf or NaN, the first offending parameter is {first_offender(field)!r}"
    return ""


def _new_fields(
    before: Mapping[str, State], after: Mapping[str, State], path: str = ""
) -> Iterator[tuple[str, Tensors]]:
    """The Tensors that are others than before, each with its address."""
    for name, state in after.items():
        old = before[name]
        for field, value in state.items():
            if isinstance(value, Tensors) and len(value) and value is not old[field]:
                yield f"{path}{name}.{field}", value
        yield from _new_fields(old.held(), state.held(), f"{path}{name}/")
