"""Sizes of whole tensors: updates bounded by their root mean square, or made as large as their weights are."""

from __future__ import annotations

from typing import Annotated

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import maximum
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.rules._units import WHOLE_WEIGHTS, rms


class clip_by_block_rms(Transform):
    """Scale the updates of each tensor down where their root mean square exceeds a bound.

        u = g min(1, threshold / rms(g)),  rms(g) = ‖g‖ / √numel

    Updates inside the bound pass bit for bit. Behind a rule that divides by a second moment it holds steps back where
    that is out of date, as Adafactor has it.

    Args:
        threshold: the bound, above 0.

    Shapes: any; one number per tensor.
    Units: unchanged.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: optax.clip_by_block_rms.
    Paper: Shazeer and Stern, 2018, Section 6, https://arxiv.org/abs/1804.04235

    >>> import torch, gradchain as gch
    >>> g = gch.Tensors.of({"w": torch.tensor([3.0, 3.0, 3.0, 3.0]), "b": torch.tensor([0.5])})
    >>> link = gch.rules.clip_by_block_rms(1.0)
    >>> u, _ = link.update(g, link.init(g), gch.Context())
    >>> u["w"], u["b"]
    (tensor([1., 1., 1., 1.]), tensor([0.5000]))
    """

    descends = False
    role = "clip"
    per_parameter = True
    refuses_rows = WHOLE_WEIGHTS

    threshold: Annotated[Hyper, "(0, inf)"]

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        return self.threshold / maximum(rms(g), self.threshold) * g, state


class scale_by_param_block_norm(Transform):
    """Multiply the updates of each tensor by the norm of its weights.

        u = g max(‖w‖, min_scale)

    Args:
        min_scale: what the norm is at least, so that weights of 0 move; above 0.

    Shapes: any; one number per tensor.
    Units: dimensionless → weights.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: optax.scale_by_param_block_norm.

    >>> import gradchain as gch
    >>> gch.rules.scale_by_param_block_norm(1e-2)
    scale_by_param_block_norm(0.01)
    """

    descends = False
    role = "scale"
    per_parameter = True
    refuses_rows = WHOLE_WEIGHTS

    min_scale: Hyper = Hyper(1e-3, "(0, inf)")

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        return maximum(ctx.params.norms(), self.min_scale) * g, state


class scale_by_param_block_rms(Transform):
    """Multiply the updates of each tensor by the root mean square of its weights.

        u = g max(rms(w), min_scale),  rms(w) = ‖w‖ / √numel

    The learning rate is then relative to the weights, as Adafactor has it.

    Args:
        min_scale: what the root mean square is at least, so that weights of 0 move; above 0.

    Shapes: any; one number per tensor.
    Units: dimensionless → weights.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: optax.scale_by_param_block_rms.
    Paper: Shazeer and Stern, 2018, Section 8, https://arxiv.org/abs/1804.04235

    >>> import gradchain as gch
    >>> gch.rules.scale_by_param_block_rms()
    scale_by_param_block_rms()
    """

    descends = False
    role = "scale"
    per_parameter = True
    refuses_rows = WHOLE_WEIGHTS

    min_scale: Hyper = Hyper(1e-3, "(0, inf)")

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        return maximum(rms(ctx.params), self.min_scale) * g, state
