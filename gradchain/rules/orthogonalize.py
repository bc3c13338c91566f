"""Take the part along the weights out of the gradient."""

from __future__ import annotations

from gradchain.core.context import Context
from gradchain.core.scalars import where
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.rules._units import WHOLE_WEIGHTS

_ROUNDING = 1e-6  # of the gradient: what is left of it below that is what float32 makes of nothing


class orthogonalize_gradient(Transform):
    """Take out of each gradient what points along its weights, and give the rest the norm it had: OrthoGrad.

        d = w / ‖w‖,  v = g - ⟨g, d⟩ d,  u = v ‖g‖ / ‖v‖,  all per tensor

    A step along the weights makes logits larger and decides nothing anew; without it softmax does not collapse, and
    networks generalise sooner without decay. It stands in front of a rule. What has one element, or lies along its
    weights up to rounding, is 0; where the weights are 0 the gradient stays. Scales and biases are better left out:
    `masked(orthogonalize_gradient(), min_ndim(2))`.

    Shapes: any; one product over each whole tensor, of complex ones as pairs of reals.
    Units: unchanged.
    Raises: RuntimeError where the context has no params.
    Equals: pytorch_optimizer's OrthoGrad, LucasPrietoAl/grokking-at-the-edge-of-numerical-stability.
    Paper: Prieto et al., 2025, Equation 9, https://arxiv.org/abs/2501.04697

    >>> import torch, gradchain as gch
    >>> g, w = (gch.Tensors.of({"w": torch.tensor(v)}) for v in ([3.0, 4.0], [2.0, 0.0]))
    >>> link = gch.rules.orthogonalize_gradient()
    >>> link.update(g, link.init(w), gch.Context(w))[0]["w"]
    tensor([0., 5.])
    """

    descends = False
    per_parameter = True
    refuses_rows = WHOLE_WEIGHTS

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        w, size, before = ctx.params, ctx.params.norms(), g.norms()
        d, n = w / where(size > 0, size, 1.0), g / where(before > 0, before, 1.0)
        v = n - (n * d).sums() * d
        left = v.norms()
        outside = left > _ROUNDING
        return where(outside, before / where(outside, left, 1.0), 0.0) * v, state
