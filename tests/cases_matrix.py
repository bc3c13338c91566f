"""Rows of the rules that see a parameter as a matrix: factored second moments, orthogonal updates, eigenbases."""

from __future__ import annotations

from typing import Any

from case import Case
from peers import Peer, Rule, of_optax, of_torch, twin
from rules import falling
from torch import Tensor, nn

import gradchain as gch


def factored(
    decay_rate: float = 0.8, eps: float = 1e-30, floor: float = 0.0, least: int = 0, last: bool = False, offset: int = 0
) -> Rule:
    """Shazeer and Stern, 2018, Algorithms 4 and 5, with the epsilons of Optax and of torch."""

    def direction(g: Tensor, memory: dict[str, Any]) -> Tensor:
        t = memory["t"] = memory.get("t", 0) + 1
        weight, square = max(t - offset, 1) ** -decay_rate, g * g + eps
        order = sorted(range(g.ndim), key=lambda d: g.shape[d])
        a, b = (g.ndim - 2, g.ndim - 1) if last else tuple(order[-2:]) if g.ndim > 1 else (0, 0)
        if g.ndim < 2 or min(g.shape[a], g.shape[b]) < least:
            v = memory["v"] = memory.get("v", 0.0) * (1 - weight) + weight * square
        else:
            row = memory["row"] = memory.get("row", 0.0) * (1 - weight) + weight * square.mean(b, keepdim=True)
            column = memory["column"] = memory.get("column", 0.0) * (1 - weight) + weight * square.mean(a, keepdim=True)
            v = row * column / row.mean(a, keepdim=True).clamp(min=floor)
        return g / v.clamp(min=floor**2).sqrt()

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        return w - lr * direction(g, memory)

    return rule


def _optax_factored(**given: Any) -> Peer:
    return of_optax(
        "optax.scale_by_factored_rms",
        lambda ox, lr: ox.chain(ox.scale_by_factored_rms(**given), ox.scale_by_learning_rate(lr)),
        rtol=1e-6,
        why="its decay is a float32 number",
    )


def capped(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
    count = memory["t"] = memory.get("t", 0) + 1
    return w - min(lr, count**-0.5) * g


ROWS: tuple[Case, ...] = (
    Case(
        "scale_by_factored_rms",
        gch.scale_by_factored_rms(min_dim_size_to_factor=3),
        (twin(factored(least=3)), _optax_factored(min_dim_size_to_factor=3)),
        scope="tensor",
        lr=falling,
        low="the square of bfloat16's smallest number is nothing beside epsilon",
    ),
    Case(
        "scale_by_factored_rms-small",
        gch.scale_by_factored_rms(decay_rate=0.6, epsilon=0.1, min_dim_size_to_factor=0),
        (
            twin(factored(0.6, eps=0.1)),
            _optax_factored(decay_rate=0.6, epsilon=0.1, min_dim_size_to_factor=0),
        ),
        scope="tensor",
    ),
    Case(
        "scale_by_factored_rms-whole",
        gch.scale_by_factored_rms(factored=False, step_offset=2, floor=0.5),
        (twin(factored(least=99, offset=2, floor=0.5)),),
    ),
    Case(
        "scale_by_factored_rms-last",
        gch.scale_by_factored_rms(dims="last", min_dim_size_to_factor=0, epsilon=0, floor=0.7),
        (twin(factored(last=True, eps=0.0, floor=0.7)),),
        scope="tensor",
    ),
    Case(
        "cap_learning_rate",
        gch.cap_learning_rate(0.7),
        (twin(capped),),
        degree=1,
    ),
)
