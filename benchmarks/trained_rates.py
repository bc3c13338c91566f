"""The rate at which each rule trains the demo's network; see `trained.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import gradchain as gch

Make: TypeAlias = "Callable[[Any, float], Any]"
"""The chain of a rate's curve, and of the rate at its highest where the rule takes a number."""


def alias(name: str, **words: Any) -> Make:
    """An alias of this name, the rate first."""
    return lambda curve, rate: getattr(gch.rules, name)(curve, **words)


def link(name: str, *values: Any, **words: Any) -> Make:
    """A direction by itself, with a rate behind it."""
    return lambda curve, rate: gch.chain(getattr(gch.rules, name)(*values, **words), gch.scale_by_learning_rate(curve))


RATES: dict[str, tuple[Make, float]] = {
    "sgd": (alias("sgd"), 0.3),
    "sgd, momentum": (alias("sgd", momentum=0.9, nesterov=True), 0.05),
    "adam": (alias("adam"), 0.003),
    "adamw": (alias("adamw"), 0.003),
    "nadamw": (alias("nadamw"), 0.003),
    "lion": (alias("lion"), 0.001),
    "scale_by_sign": (link("scale_by_sign"), 0.001),
}
