"""MMEngine's parameter schedulers as functions of the micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

from gradchain.adapters.mmengine.composing import compose
from gradchain.adapters.mmengine.entries import Clock, Entry, is_whole
from gradchain.adapters.mmengine.legacy import read_legacy
from gradchain.adapters.mmengine.windows import Act, read
from gradchain.schedules import Schedule, constant

__all__ = ["Fields", "schedules"]

Fields: TypeAlias = "dict[str, Callable[[float], Schedule]]"
"""By field of a parameter group: a function of its base value that gives the schedule."""


def schedules(
    param_scheduler: Any = None,
    *,
    max_epochs: int | None = None,
    max_iters: int | None = None,
    epoch_length: int,
    strict: bool = True,
    lr_config: Mapping[str, Any] | None = None,
    momentum_config: Mapping[str, Any] | None = None,
) -> Any:
    clock = _clock(max_epochs, max_iters, epoch_length)
    if lr_config is not None or momentum_config is not None:
        if param_scheduler is not None:
            Entry("lr_config", {}, strict).refuse("it must come without param_scheduler: one format at a time.")
        return _fields(read_legacy(lr_config, momentum_config, clock, strict))
    if isinstance(param_scheduler, Mapping) and "type" not in param_scheduler:
        return {
            name: _of_list(one, f"param_scheduler[{name!r}]", clock, strict) for name, one in param_scheduler.items()
        }
    return _of_list(param_scheduler, "param_scheduler", clock, strict)


def _clock(max_epochs: int | None, max_iters: int | None, epoch_length: int) -> Clock:
    if (max_epochs is None) == (max_iters is None):
        raise ValueError(
            f"mmengine.schedules: max_epochs or max_iters must be given, one of the two, got {max_epochs!r} and "
            f"{max_iters!r}."
        )
    for name, value in (("max_epochs", max_epochs), ("max_iters", max_iters), ("epoch_length", epoch_length)):
        if value is not None and (isinstance(value, bool) or not is_whole(value) or value < 1):
            raise ValueError(f"mmengine.schedules: {name} must be a whole number of at least 1, got {value!r}.")
    iters = max_iters if max_epochs is None else max_epochs * epoch_length
    assert iters is not None
    return Clock(max_epochs, iters, epoch_length)


def _of_list(config: Any, name: str, clock: Clock, strict: bool) -> Fields:
    entries = [] if config is None else list(config) if isinstance(config, (list, tuple)) else [config]
    alone = not isinstance(config, (list, tuple))
    acts: dict[str, list[Act]] = {}
    for i, entry in enumerate(entries):
        act = read(entry, name if alone else f"{name}[{i}]", clock, strict)
        if act is not None:
            acts.setdefault(act.field, []).append(act)
    return _fields({field: partial(compose, tuple(moving), clock.iters) for field, moving in acts.items()})


def _fields(moving: Fields) -> Fields:
    """What moves, and the fields that every recipe is asked for, which stay where they are."""
    return {"lr": constant, "momentum": constant, "weight_decay": constant} | moving
