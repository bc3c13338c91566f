"""Updates of a norm of one, whatever the gradient's."""

from __future__ import annotations

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform


class normalize_by_update_norm(Transform):
    """Divide the updates by their norm.

        u = scale_factor g / (‖g‖ + eps)

    The norm is over all parameters in sight: those of the chain, or the members in `masked` and `partition`. The step
    does not become smaller near a minimum, so the learning rate has to. With eps = 0 a gradient of zeros is NaN.

    Args:
        scale_factor: the norm that the updates get, above 0.
        eps: added to the norm, in its unit; at least 0.

    Shapes: any; one norm over whole tensors.
    Units: any → those of scale_factor.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: optax.normalize_by_update_norm; with eps=0 optax.contrib.normalize.

    >>> import torch, gradchain as gch
    >>> g = gch.Tensors.of({"w": torch.tensor([3.0, 4.0])})
    >>> link = gch.rules.normalize_by_update_norm(10.0, eps=0.0)
    >>> link.update(g, link.init(g), gch.Context())[0]["w"]
    tensor([6., 8.])
    """

    descends = False
    role = "normalise"
    uniform = frozenset({"scale_factor", "eps"})

    scale_factor: Hyper = Hyper(1.0, "(0, inf)")
    eps: Hyper = Hyper(1e-6, "[0, inf)")

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        return g / ((g.norm() + self.eps) / self.scale_factor), state


def normalize() -> chain:
    """Updates divided by their norm over all parameters, to which nothing is added: a gradient of zeros is NaN.

    Equals optax.contrib.normalize.

    >>> import gradchain as gch
    >>> gch.rules.normalize()
    chain(normalize_by_update_norm(eps=0.0))
    """
    return chain(normalize_by_update_norm(eps=0.0))
