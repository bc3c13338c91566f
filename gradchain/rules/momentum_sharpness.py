"""Sharpness-aware minimisation that looks where momentum points: for the price of none."""

from __future__ import annotations

from typing import Annotated

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.roles import AverageState
from gradchain.core.scalars import Count
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.core.weights import Weights
from gradchain.transforms._anchor import anchored


class MsamState(AverageState):
    """What msam remembers; `average` is w, and `buffers` has no entries."""

    count: Count  # updates of each parameter so far


class msam(Transform):
    """Step, and train a little way further on, where momentum will lead.

        w ← w - learning_rate v
        w̃ = w - rho v / (‖v‖ + 1e-12),  the norm over all parameters in sight

    Gradients are taken at w̃, which the model holds: that is `sam` in the direction of momentum, which is a steep one,
    without a second pass. It stands behind `trace` or another rule, in place of its learning rate, and v is what that
    rule gives: behind `scale_by_adam` its direction. w is what is evaluated and deployed: `with updater.averaged():`,
    `gch.read_weights(path, averaged=True)`. A decay in front of it is at w̃. It owns the weights: what else writes into
    them after a parameter's first update changes w̃ alone, until the next. ‖v‖ is recorded as "norm".

    Args:
        learning_rate: at least 0; a number or a schedule.
        rho: how far to look, in units of the weights; at least 0.

    Shapes: any; one norm over all.
    State: `count`; `average`, one tensor per parameter, float32 for float16 and bfloat16.
    Units: direction → weights.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: behind trace(momentum), the authors' MSAM, https://github.com/MarlonBecker/MSAM, which recovers w from w̃.
        Their AdamW_MSAM looks along the mean gradient instead, not along Adam's direction.
    Paper: Becker, Altrock and Risse, 2024, Algorithm 1, https://arxiv.org/abs/2401.12033

    >>> import gradchain as gch
    >>> gch.chain(gch.trace(0.9), gch.rules.msam(0.1, rho=0.3))
    chain(trace(0.9), msam(0.1))
    """

    descends = True
    role = "weights"
    refuses_rows = (
        "moves whole weights. Give dense gradients: sparse=False in nn.Embedding and nn.EmbeddingBag; or put these "
        "parameters into another branch of gch.partition."
    )

    learning_rate: Annotated[Hyper, "[0, inf)"]
    rho: Hyper = Hyper(0.3, "[0, inf)")

    def init(self, params: Tensors) -> MsamState:
        w = params.clone().stored_as(params.slow_slot())
        return MsamState(w, params.select(()), Count(params.index))

    def update(self, v: Tensors, state: MsamState, ctx: Context) -> tuple[Weights, MsamState]:
        count, norm = state.count.tick(v), v.norm()
        ctx.record("norm", norm)
        kept = anchored(state.count, state.average, ctx.params)
        w = kept.select(v.index) - self.learning_rate * v
        there = w - self.rho / (norm + 1e-12) * v
        return Weights(there), MsamState(kept.overlay(w), state.buffers_after(), count)
