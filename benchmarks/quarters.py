"""Quartiles of what rounds took."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import quantiles


def quarters(values: Sequence[float]) -> list[float]:
    """The lower quartile, the median and the upper quartile, none of them outside the values: of few rounds too."""
    return [values[0]] * 3 if len(values) == 1 else quantiles(values, n=4, method="inclusive")
