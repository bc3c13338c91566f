"""A step after which the weights are divided: proximal decay."""

from __future__ import annotations

from typing import Annotated

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform


class step_proximally(Transform):
    """Make the updates a step down, and the weights after it smaller by proximal decay.

        w_new = (w - learning_rate g) / (1 + learning_rate weight_decay)
        u     = w_new - w = -learning_rate (g + weight_decay w) / (1 + learning_rate weight_decay)

    It stands in the place of `scale_by_learning_rate`, with no `add_decayed_weights` before it. The weights never
    change their sign by it, however large the decay; for a small learning_rate · weight_decay it is AdamW's.

    Args:
        learning_rate: at least 0; a number or a schedule.
        weight_decay: at least 0; a number or a schedule; `choose((min_ndim(2), 0.02), rest=0.0)` leaves some out.

    Shapes: elementwise, any.
    Units: learning_rate is weights per unit of the updates before it; weight_decay is 1 / learning_rate.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: how the authors' Adan and pytorch_optimizer's, with its weight_decouple=False, end a step.
    Paper: Zhuang et al., 2022, https://arxiv.org/abs/2202.00089; Xie et al., 2022, Algorithm 1,
        https://arxiv.org/abs/2208.06677

    >>> import gradchain as gch
    >>> gch.chain(gch.scale_by_adam(), gch.rules.step_proximally(1e-3, 0.1))
    chain(scale_by_adam(), step_proximally(0.001, 0.1))
    """

    descends = True
    role = "learning_rate"
    per_parameter = True
    refuses_rows = "decays all rows. Write scale_by_learning_rate(…) for that parameter, which decays none."

    learning_rate: Annotated[Hyper, "[0, inf)"]
    weight_decay: Annotated[Hyper, "[0, inf)"]

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        rate = -self.learning_rate / (1 + self.learning_rate * self.weight_decay)
        return rate * (g + self.weight_decay * ctx.params), state
