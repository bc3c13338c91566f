"""Weights of a fixed norm: steps along a sphere."""

from __future__ import annotations

from typing import Annotated

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper, is_number
from gradchain.core.scalars import Scalars, maximum, where
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.core.weights import Weights
from gradchain.transforms._correction import LEAST


class HyperballState(State):
    """What hyperball remembers."""

    radius: Annotated[Scalars, "[0, inf] or NaN"]  # R, of each parameter


class hyperball(Transform):
    """Step by a part of the weights' norm, and put the weights back to that norm.

        û = R u / ‖u‖,  v = w - learning_rate û
        w ← R v / ‖v‖,  R = ‖w_0‖, or radius; norms of each tensor

    It stands behind a rule, in place of its learning rate, which is then an angle: how many radians a tensor turns. A
    decay has no use here, as the norm never changes. For matrices; leave norms, biases and embeddings to another branch
    of `partition`. Weights that begin at zero have R = 0 and stay there; a zero update moves nothing.

    Args:
        learning_rate: at least 0; a number or a schedule.
        radius: R of every tensor, above 0; None for the norm it was bound with.

    Shapes: any; one norm per tensor.
    State: `radius`, a number per parameter.
    Units: direction → weights.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: a twin from the formula; over Muon's direction, MuonH.
    Paper: Wen et al., 2025, Hyperball, https://whenwen.github.io/wd_blog/public/hyperball-part-1.html

    >>> import gradchain as gch
    >>> gch.chain(gch.scale_by_adam(), gch.rules.hyperball(0.01))
    chain(scale_by_adam(), hyperball(0.01))
    """

    descends = True
    role = "weights"
    per_parameter = True
    refuses_rows = (
        "takes whole weights. Put these parameters into another branch of gch.partition, or give dense gradients: "
        "sparse=False in nn.Embedding and nn.EmbeddingBag."
    )

    learning_rate: Annotated[Hyper, "[0, inf)"]
    radius: float | None = None

    def check(self) -> None:
        radius: object = self.radius
        if radius is not None and not (is_number(radius) and 0 < radius < float("inf")):  # type: ignore[operator]
            raise ValueError(f"hyperball: radius must be a number in (0, inf) or None, got {radius!r}.")

    def init(self, params: Tensors) -> HyperballState:
        return HyperballState(params.norms() if self.radius is None else Scalars.of(params.index, float(self.radius)))

    def update(self, u: Tensors, state: HyperballState, ctx: Context) -> tuple[Weights, HyperballState]:
        radius = state.radius.select(u)
        w = ctx.params.select(u.index) - self.learning_rate * _of_norm(radius, u)
        return Weights(_of_norm(radius, w)), state


def _of_norm(radius: Scalars, x: Tensors) -> Tensors:
    """Each tensor with this norm; zeros stay zeros."""
    norms = x.norms()
    scaled: Tensors = where(norms > 0, radius / maximum(norms, LEAST), 0.0) * x
    return scaled
