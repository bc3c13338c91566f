"""What `adopt` is given beside the optimizer and the scheduler, checked before anything is read from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.amp import GradScaler
from torch.optim.swa_utils import AveragedModel

from gradchain.core.transform import Transform


def check_arguments(scaler: Any, average: Any, front: Any, clock: Any, step: Any) -> None:
    """TypeError or ValueError where one of them is of another kind than it is read as."""
    _check_is(scaler, GradScaler, "scaler must be a torch.amp.GradScaler or None")
    _check_is(average, AveragedModel, "average must be a torch.optim.swa_utils.AveragedModel or None")
    if not isinstance(front, Sequence) or not all(isinstance(link, Transform) for link in front):
        raise TypeError(f"adopt: front must be a list of links, got {front!r}. Write front=[gch.clip_by_norm(1.0)].")
    if clock is not None and (not isinstance(clock, str) or not clock):
        raise ValueError(f"adopt: clock must be the name of a clock or None, got {clock!r}. Write clock='epoch'.")
    if step is not None and (isinstance(step, bool) or not isinstance(step, int) or step < 0):
        raise ValueError(f"adopt: step must be a whole number of at least 0 or None, got {step!r}. Write step=50.")


def _check_is(value: Any, kind: type, rule: str) -> None:
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"adopt: {rule}, got {type(value).__name__}.")
