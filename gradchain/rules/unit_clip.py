"""Bound each unit's gradient by the norm of its weights."""

from __future__ import annotations

from typing import Annotated

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.rules._units import WHOLE_WEIGHTS, of_unit


class adaptive_grad_clip(Transform):
    """Scale down the gradient of each unit where it is too long beside the unit's weights.

        limit_i = clipping max(‖w_i‖, eps)
        u_i     = g_i min(1, limit_i / ‖g_i‖)

    A unit i is what makes one output: a row of a matrix, a filter of a convolution, in torch's layout; a vector is one
    unit. Units inside their limit pass bit for bit. It comes before the rule. The last layer is usually left out:
    `masked(adaptive_grad_clip(0.01), ~named("head.*"))`.

    Args:
        clipping: the longest gradient per length of weights, above 0; 0.01 in the paper for batches of 4096.
        eps: what the norm of weights is at least, so that those of 0 move; above 0.
        axis: the dimensions that a norm is over, one or several, the same for every parameter. None for a unit's.

    Shapes: any; units are reduced.
    Units: unchanged.
    Raises: ValueError or TypeError for an argument outside its range; in an update for a dimension that a parameter
        has not.
    Equals: optax.adaptive_grad_clip, whose units are those of Flax: the same of transposed weights. It calls a matrix
        of one row or column one unit, and bounds by what is near 0 where a norm is below 1e-6 and above its limit.
    Paper: Brock et al., 2021, https://arxiv.org/abs/2102.06171

    >>> import torch, gradchain as gch
    >>> w = gch.Tensors.of({"w": torch.tensor([[3.0, 4.0], [3.0, 4.0]])})
    >>> g = gch.Tensors.of({"w": torch.tensor([[1.0, 0.0], [0.0, 0.1]])})
    >>> link = gch.rules.adaptive_grad_clip(0.1)
    >>> link.update(g, link.init(w), gch.Context(w))[0]["w"]
    tensor([[0.5000, 0.0000],
            [0.0000, 0.1000]])
    """

    descends = False
    role = "clip"
    per_parameter = True
    refuses_rows = WHOLE_WEIGHTS

    clipping: Annotated[Hyper, "(0, inf)"]
    eps: Hyper = Hyper(1e-3, "(0, inf)")
    axis: int | tuple[int, ...] | None = None

    def check(self) -> None:
        axis: object = list(self.axis) if isinstance(self.axis, list) else self.axis
        several = axis if isinstance(axis, (tuple, list)) else (axis,)
        if axis is not None and not (several and all(type(d) is int for d in several)):
            raise TypeError(f"adaptive_grad_clip: axis must be an int, a tuple of ints or None, got {self.axis!r}.")
        object.__setattr__(self, "axis", tuple(several) if isinstance(axis, list) else axis)

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        along = of_unit if self.axis is None else self.axis
        limit = self.clipping * ctx.params.select(g.index).norms(along).maximum(self.eps)
        return limit / g.norms(along).maximum(limit) * g, state
