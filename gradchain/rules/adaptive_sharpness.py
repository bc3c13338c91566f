"""Sharpness-aware minimisation that is the same however the weights are scaled."""

from __future__ import annotations

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform


class asam(Transform):
    """Replace the gradient by the gradient at the worst of the weights nearby, near in proportion to their size.

        T = |w| + eta, elementwise
        u = ∇L(w + rho T² g / (‖T g‖ + 1e-12)),  the norm over all parameters in sight

    As `sam`, of which it is the adaptive form: it calls the closure once more, `updater.update(closure)`, and stands
    first in the chain or behind `amp_scale`, and in front of `accumulate`. Where a layer's weights are
    scaled up and the next one's down, which leaves the network as it is, the place looked at is scaled with them. Its
    rho is about ten times that of `sam`. The norm of T g is recorded as "norm".

    Args:
        rho: how far to look, relative to the weights; at least 0.
        eta: what is added to the size of every weight, so that one of 0 is moved too; at least 0.

    Shapes: elementwise, any; one norm over all.
    Units: unchanged.
    Raises: ValueError or TypeError for an argument outside its range; RuntimeError without a closure.
    Equals: the authors' code, https://github.com/SamsungLabs/ASAM, where biases have T = 1; with eta=0
        https://github.com/davda54/sam with adaptive=True.
    Paper: Kwon, Kim, Park and Choi, 2021, Algorithm 1, https://arxiv.org/abs/2102.11600

    >>> import gradchain as gch
    >>> gch.chain(gch.rules.asam(rho=1.0), gch.sgd(0.1, momentum=0.9))
    chain(asam(rho=1.0), trace(0.9), scale_by_learning_rate(0.1))
    """

    descends = False
    role = "gradient"
    refuses_rows = (
        "moves and evaluates whole weights. Give dense gradients: sparse=False in nn.Embedding and nn.EmbeddingBag."
    )

    rho: Hyper = Hyper(0.5, "[0, inf)")
    eta: Hyper = Hyper(0.01, "[0, inf)")

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        size = ctx.params.select(g.index).abs() + self.eta
        scaled = size * g
        norm = scaled.norm()
        ctx.record("norm", norm)
        _, u = ctx.evaluate(ctx.new_params(self.rho / (norm + 1e-12) * (size * scaled)))
        return u.select(g.index), state
