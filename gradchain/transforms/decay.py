"""Weight decay."""

from __future__ import annotations

from typing import Annotated, Any

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.says import Says
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform


class add_decayed_weights(Transform):
    """Add a multiple of the weights to the updates, so that they shrink.

        u = g + weight_decay w

    Its place is its meaning: after the rule and before the learning rate it is the decoupled decay of AdamW; before
    the rule it is an L2 penalty, as torch.optim.SGD's and Adam's `weight_decay`. Biases and norms are usually left
    out: `masked(add_decayed_weights(0.05), min_ndim(2))`; or given less, `multiply(0.05, (norm | bias, 0.1))`. A
    parameter without a gradient does not decay. A sparse gradient is that of the rows it names: a decay of the others
    too cannot be meant with it and is refused, unless `lazy` says that just those rows decay.

    Args:
        weight_decay: at least 0; a number or a schedule. It is multiplied by the learning rate that follows.
        lazy: where a gradient is sparse, decay the rows that it names, each as often as it is named, and no others.

    Shapes: elementwise, any.
    Units: decoupled, 1 / learning rate: per update the weights lose the fraction learning_rate · weight_decay.
    Raises: ValueError or TypeError for a decay that is negative or not a number.
    Equals: optax.add_decayed_weights, with `masked` in place of its mask.
    Paper: Loshchilov and Hutter, 2017, https://arxiv.org/abs/1711.05101

    >>> import gradchain as gch
    >>> gch.masked(gch.add_decayed_weights(gch.cosine(0.04, 0.4, 1000)), gch.min_ndim(2))
    masked(add_decayed_weights(cosine(0.04, 0.4, 1000)), min_ndim(2))
    """

    descends = False
    role = "decay"
    per_parameter = True

    weight_decay: Annotated[Hyper, "[0, inf)"]
    lazy: bool = False

    def check(self) -> None:
        lazy: object = self.lazy
        if not isinstance(lazy, bool):
            raise TypeError(f"add_decayed_weights: lazy must be True or False, got {lazy!r}.")

    def says(self) -> Says:
        return {} if self.lazy else {"refuses_rows": _ALL_ROWS}

    def written(self) -> dict[str, Any]:
        """Its fields; `lazy` only where it is, as configs of before there was any have it."""
        fields = super().written()
        return fields if self.lazy else {name: fields[name] for name in fields if name != "lazy"}

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        return g + self.weight_decay * ctx.params, state


_ALL_ROWS = (
    "decays all rows. To decay those that the gradient names, write add_decayed_weights(…, lazy=True); to decay none, "
    "masked(add_decayed_weights(…), ~gch.named(…))."
)
