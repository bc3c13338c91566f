"""Schedules: functions step -> value, as frozen values that can be joined, multiplied, compared and printed."""

import typing as _typing

from gradchain.schedules.arithmetic import clipped, combined
from gradchain.schedules.averaging import ema_exponential, ema_warmup
from gradchain.schedules.base import Schedule, ScheduleLike, clocks_of, evaluate
from gradchain.schedules.clocks import by, per_epoch
from gradchain.schedules.cosines import cosine, cosine_restarts, cosine_wave, warmup_cosine
from gradchain.schedules.decays import exponential, inverse_sqrt, inverse_time
from gradchain.schedules.joins import chained, join, taken
from gradchain.schedules.overlays import overlay
from gradchain.schedules.phases import one_cycle, warmup_stable_decay
from gradchain.schedules.ramps import constant, linear, polynomial
from gradchain.schedules.repeats import repeated
from gradchain.schedules.stairs import multi_step, piecewise, step_decay
from gradchain.words.names import answers as _answers

__all__ = [
    "Schedule",
    "ScheduleLike",
    "by",
    "chained",
    "clipped",
    "clocks_of",
    "combined",
    "constant",
    "cosine",
    "cosine_restarts",
    "cosine_wave",
    "ema_exponential",
    "ema_warmup",
    "evaluate",
    "exponential",
    "inverse_sqrt",
    "inverse_time",
    "join",
    "linear",
    "multi_step",
    "one_cycle",
    "overlay",
    "per_epoch",
    "piecewise",
    "polynomial",
    "repeated",
    "step_decay",
    "taken",
    "warmup_cosine",
    "warmup_stable_decay",
]

if not _typing.TYPE_CHECKING:  # to a checker a name that is not here is a mistake
    __getattr__ = _answers(__name__)
