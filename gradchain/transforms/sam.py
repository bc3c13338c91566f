"""The gradient a little way uphill: sharpness-aware minimisation."""

from __future__ import annotations

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform


class sam(Transform):
    """Replace the gradient by the gradient at the worst of the weights nearby.

        u = ∇L(w + rho g / (‖g‖ + 1e-12)),  ‖g‖ over all parameters in sight

    It calls the closure once more, so an update costs twice: `updater.update(closure)`. First in the chain, or behind
    `amp_scale` and other gates; a clip behind it clips the new gradient. It stands in front of `accumulate`, whose
    window has then the gradient uphill of each micro-batch: behind one it would look at the last alone, and behind a
    rule it would take the place of what that made, so both are refused. The running statistics of
    batch norms move in both passes, unless the closure sees to it. A zero gradient looks at w itself. The norm of g is
    recorded as "norm".

    Args:
        rho: how far to look, in units of the weights; at least 0.

    Shapes: any; one norm over all.
    Units: unchanged.
    Raises: ValueError or TypeError for a rho that is negative or not a number; RuntimeError without a closure.
    Equals: https://github.com/davda54/sam with adaptive=False; optax.contrib.sam with sgd(rho) behind normalize, whose
        state machine takes two calls.
    Paper: Foret, Kleiner, Mobahi and Neyshabur, 2020, Algorithm 1, https://arxiv.org/abs/2010.01412

    >>> import gradchain as gch
    >>> gch.chain(gch.sam(rho=0.1), gch.trace(0.9), gch.scale_by_learning_rate(0.1))
    chain(sam(rho=0.1), trace(0.9), scale_by_learning_rate(0.1))
    """

    descends = False
    role = "gradient"
    refuses_rows = (
        "moves and evaluates whole weights. Give dense gradients: sparse=False in nn.Embedding and nn.EmbeddingBag."
    )

    rho: Hyper = Hyper(0.05, "[0, inf)")

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        norm = g.norm()
        ctx.record("norm", norm)
        _, u = ctx.evaluate(ctx.new_params(self.rho / (norm + 1e-12) * g))
        return u.select(g.index), state
