"""The sign of the updates."""

from __future__ import annotations

from gradchain.core.context import Context
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform


class scale_by_sign(Transform):
    """Replace each element of the updates by its sign.

        u = sign(g), 0 where g = 0

    Every element moves by exactly the learning rate. Behind `trace` it is signSGD with momentum. A NaN becomes 0, as
    torch has it, and is seen no more: put `skip_nonfinite` or `amp_scale` before it.

    Shapes: elementwise, any; complex parameters in their real and imaginary parts.
    Units: gradient → dimensionless, -1, 0 or 1: the learning rate is the size of a step.
    Equals: optax.scale_by_sign, where a NaN stays a NaN.
    Paper: Bernstein et al., 2018, Algorithm 1, https://arxiv.org/abs/1802.04434

    >>> import gradchain as gch
    >>> gch.chain(gch.trace(0.9), gch.scale_by_sign())
    chain(trace(0.9), scale_by_sign())
    """

    descends = False
    role = "normalise"
    per_parameter = True

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        return g.sign(), state
