"""Rows of links in front of and behind rules: what composes with any of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import rules
import torch
from case import Case
from peers import Rule, twin
from torch import Tensor

import gradchain as gch

RATE = gch.linear(0.9, 0.1, 12)  # an end that 20 steps reach, and a first value that is its largest
WARM = gch.linear(0.1, 0.8, 7)


# twins: a direction, and what stands around it

Direction = Callable[[Tensor, dict[str, Any]], Tensor]


def adam_direction(b1: float = 0.9, b2: float = 0.999) -> Direction:
    """m̂ / (√v̂ + 1e-8)."""

    def direction(g: Tensor, memory: dict[str, Any]) -> Tensor:
        t = memory["t"] = memory.get("t", 0) + 1
        m = memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * g
        v = memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * g * g
        return m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + 1e-8)

    return direction


def momentum(decay: float) -> Direction:
    """A decaying sum."""

    def direction(g: Tensor, memory: dict[str, Any]) -> Tensor:
        memory["trace"] = g + decay * memory.get("trace", 0)
        return memory["trace"]

    return direction


def careful(direction: Direction, least: float = 1e-3) -> Rule:
    """Liang et al., 2024, Algorithm 1, with the normaliser of its code for AdamW."""

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        u = direction(g, memory)
        k = (u * g > 0).to(g.dtype)
        return w - lr * u * k / k.mean().clamp(min=least)

    return rule


def decayed(share: Callable[[float], float], direction: Direction = lambda g, memory: g) -> Rule:
    """Plain descent, and weights that lose `share` of themselves at a rate."""

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        return w - lr * direction(g, memory) - share(lr) * w

    return rule


def decayed_where_it_shrinks(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
    u = momentum(0.9)(g, memory)
    return w - lr * (u + 0.1 * torch.where(w * u > 0, w, 0.0))


def corrected_gradient(gamma: float, b1: float) -> Rule:
    """Yuan et al., 2024, Algorithm 2 with the last gradient, before plain descent."""

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        c = g + gamma * b1 / (1 - b1) * (g - memory.get("last", 0))
        memory["last"] = g
        return w - lr * c / max(1.0, c.norm().item())

    return rule


def amplified(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
    """Lee et al., 2024, Algorithm 2."""
    memory["mu"] = 0.9 * memory["mu"] + 0.1 * g if "mu" in memory else g
    return w - lr * (g + 1.5 * memory["mu"])


def across(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
    """Prieto et al., 2025, Equation 9."""
    v = g - (g * w).sum() / (w * w).sum() * w
    return w - lr * v * (g.norm() / v.norm() if w.numel() > 1 else 0.0)


ROWS: tuple[Case, ...] = (
    Case(
        "cautious",
        gch.rules.cautious(gch.scale_by_adam()),
        (twin(careful(adam_direction()), name="C-Optim's AdamW as a twin"),),
        lr=rules.falling,
        scope="tensor",
    ),
    Case(
        "cautious-trace",
        gch.rules.cautious(gch.trace(0.9), least=0.4),
        (twin(careful(momentum(0.9), least=0.4)),),
        scope="tensor",
        degree=1,
    ),
    Case(
        "cautious-masks-only",
        gch.rules.cautious(gch.trace(0.9), least=1.0),
        (twin(careful(momentum(0.9), least=1.0)),),
        degree=1,
    ),
    Case(
        "add_decayed_weights-schedule",
        gch.add_decayed_weights(0.1, by="schedule", rate=RATE, peak=0.9),
        (twin(decayed(lambda lr: 0.1 * lr / 0.9)),),
        lr=RATE,
        uses_step=True,
        uses_params=True,
    ),
    Case(
        "add_decayed_weights-corrected",
        gch.add_decayed_weights(0.1, by="corrected", rate=WARM, peak=0.8),
        (twin(decayed(lambda lr: 0.1 * lr**2 / 0.8)),),
        lr=WARM,
        uses_step=True,
        uses_params=True,
    ),
    Case(
        "add_decayed_weights-cautious",
        gch.chain(gch.trace(0.9), gch.add_decayed_weights(0.1, by="cautious")),
        (twin(decayed_where_it_shrinks),),
        covers="add_decayed_weights",
        uses_params=True,
    ),
    Case(
        "correct_gradient",
        gch.rules.correct_gradient(0.3, 0.9),
        (twin(corrected_gradient(0.3, 0.9)),),
        draw=lambda n, g, t: g * (0.05 if t % 3 == 1 else 1.0),
        scope="tensor",
    ),
    Case(
        "grokfast",
        gch.rules.grokfast(0.9, 1.5),
        (twin(amplified, name="gradfilter_ema as a twin"),),
        degree=1,
    ),
    Case(
        "orthogonalize_gradient",
        gch.rules.orthogonalize_gradient(),
        (twin(across),),
        scope="tensor",
        uses_params=True,
    ),
)
