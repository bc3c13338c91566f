"""Every schedule with arguments that show what it is: the pages of schedules draw these."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import docstrings
import drawings

import gradchain as gch
from gradchain import schedules as s

# name → the schedule drawn, until when, in which unit
CURVES: dict[str, tuple[Any, float, str]] = {
    "by": (gch.by("epoch", s.step_decay(0.1, 30)), 100, "epochs"),
    "chained": (gch.linear(0.0, 0.1, 10).then(gch.cosine(0.1, 0.0, 90)), 100, "updates"),
    "clipped": (gch.cosine(0.1, 0.0, 100).clip(0.02, 0.08), 100, "updates"),
    "combined": (gch.linear(0.0, 1.0, 10) * s.inverse_time(0.1, 0.05), 100, "updates"),
    "constant": (gch.constant(0.1), 100, "updates"),
    "cosine": (gch.cosine(0.1, 0.01, 100), 120, "updates"),
    "cosine_restarts": (s.cosine_restarts(0.1, 0.0, 20, 2), 140, "updates"),
    "cosine_wave": (s.cosine_wave(0.1, 0.0, 40), 120, "updates"),
    "ema_exponential": (s.ema_exponential(0.9998), 10_000, "updates"),
    "ema_warmup": (s.ema_warmup(0.999), 2_000, "updates"),
    "exponential": (s.exponential(0.1, 0.97), 100, "updates"),
    "inverse_sqrt": (s.inverse_sqrt(0.0, 0.1, 20), 200, "updates"),
    "inverse_time": (s.inverse_time(0.1, 0.05), 100, "updates"),
    "join": (gch.join((0, 10, gch.linear(0.0, 0.1, 10)), (10, None, gch.cosine(0.1, 0.0, 90))), 110, "updates"),
    "linear": (gch.linear(0.0, 0.1, 40), 100, "updates"),
    "multi_step": (s.multi_step(0.1, (30, 60, 90), 0.5), 120, "updates"),
    "one_cycle": (s.one_cycle(0.004, 0.1, 30, 100, 4e-7), 110, "updates"),
    "overlay": (s.overlay(8.0, (0, 40, gch.linear(0.25, 1.0, 39)), (20, 60, 0.5), (30, None, 1.0, 0.5)), 80, "updates"),
    "per_epoch": (s.per_epoch(s.exponential(0.1, 0.7), 10), 100, "updates"),
    "piecewise": (s.piecewise((0, 0.1), (30, 0.05), (70, 0.01), shape="linear"), 100, "updates"),
    "polynomial": (s.polynomial(0.1, 0.0, 80, power=2.0), 100, "updates"),
    "repeated": (gch.linear(0.01, 0.1, 20).then(gch.linear(0.1, 0.01, 20)).repeat(), 120, "updates"),
    "step_decay": (s.step_decay(0.1, 30, 0.5), 120, "updates"),
    "taken": (gch.constant(0.05).take(40).then(gch.constant(0.1)), 100, "updates"),
    "warmup_cosine": (s.warmup_cosine(0.0, 0.1, 20, 100), 110, "updates"),
    "warmup_stable_decay": (s.warmup_stable_decay(0.0, 0.1, 10, 100, 30), 110, "updates"),
}  # fmt: skip
POINTS = 481


@dataclass(frozen=True)
class Curve:
    """A schedule by its name."""

    name: str

    @cached_property
    def thing(self) -> Any:
        """Its class."""
        return getattr(s, self.name)

    @cached_property
    def doc(self) -> docstrings.Docstring:
        """Its docstring."""
        return docstrings.read(self.thing)

    @property
    def spelled(self) -> str:
        """As users write it."""
        return f"gch.{self.name}" if self.name in gch.__all__ else f"gch.schedules.{self.name}"

    @cached_property
    def drawn(self) -> tuple[str, str]:
        """Its curve as SVG, and what the picture shows."""
        schedule, until, unit = CURVES[self.name]
        clock = next(iter(schedule.clocks))
        times = [until * i / (POINTS - 1) for i in range(POINTS)]
        values = [(t, float(schedule.at({clock: t}))) for t in times]
        return drawings.curve(f"{self.name} over {unit}", values, unit), f"`{schedule!r}`, over {until:,g} {unit}."


def schedules() -> list[str]:
    """Every public schedule, by name."""
    kinds = (n for n in s.__all__ if inspect.isclass(getattr(s, n)) and issubclass(getattr(s, n), s.Schedule))
    return sorted(set(kinds) - {"Schedule"})
