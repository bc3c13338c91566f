"""What becomes of an evaluation that is not finite: it is refused, and the gate over the link that asked holds."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from gradchain.core.tensors import Tensors


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
