"""The sign of an interpolated momentum: Lion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.state import MEAN, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform


class LionState(State):
    """What scale_by_lion remembers."""

    kinds: ClassVar[Mapping[str, str]] = {"mu": MEAN}

    mu: Tensors  # m, the mean gradient


class scale_by_lion(Transform):
    """Replace the updates by the sign of a mean of gradient and momentum.

        c   = b1 m_(t-1) + (1 - b1) g
        u   = sign(c)      (mode "smooth": tanh(smooth_beta c), "refined": c held between -1 and 1)
        m_t = b2 m_(t-1) + (1 - b2) g

    Every element moves by exactly the learning rate, so it wants one 3 to 10 times smaller than Adam's, and a weight
    decay larger by as much. Half of Adam's memory. torch's sign of NaN is 0: one NaN gradient stays in the momentum and
    stops that element silently, so put `skip_nonfinite` or `amp_scale` before it. The other modes make smaller steps
    where c is below 1, which has the unit of the gradient: they are for gradients of a known size.

    Args:
        b1: how much of the momentum counts in the direction, in [0, 1).
        b2: how much of the momentum stays, in [0, 1).
        mu_dtype: the dtype `mu` is stored in; None for the parameter's, and float32 for float16.
        mode: "hard", the sign, or "smooth" or "refined".
        smooth_beta: how steep the tanh of mode "smooth" is, in 1 / units of the gradient; at least 0.

    Shapes: elementwise, any; complex parameters in their real and imaginary parts.
    State: `mu`, one tensor per parameter: 4 bytes per float32 element.
    Units: gradient → dimensionless, -1, 0 or 1, or in between: the learning rate is the size of a step.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: optax.scale_by_lion in each mode, but for a NaN, of which its sign is NaN. torch has none.
    Paper: Chen et al., 2023, Algorithm 2, https://arxiv.org/abs/2302.06675

    >>> import gradchain as gch
    >>> gch.scale_by_lion(b1=0.95, b2=0.98)
    scale_by_lion(b1=0.95, b2=0.98)
    """

    descends = False
    role = "normalise"
    per_parameter = True

    b1: Hyper = Hyper(0.9, "[0, 1)")
    b2: Hyper = Hyper(0.99, "[0, 1)")
    mu_dtype: torch.dtype | None = None
    mode: str = "hard"
    smooth_beta: Hyper = Hyper(1.0, "[0, inf)")

    def check(self) -> None:
        if self.mode not in ("hard", "smooth", "refined"):
            raise ValueError(f"scale_by_lion: mode must be 'hard' or 'smooth' or 'refined', got {self.mode!r}.")

    def written(self) -> dict[str, Any]:
        """Its fields; a mode only where it is another, as configs of before there was any have it."""
        fields = super().written()
        plain = self.mode == "hard"
        return {n: fields[n] for n in fields if n not in ("mode", "smooth_beta")} if plain else fields

    def init(self, params: Tensors) -> LionState:
        return LionState(params.slot(self.mu_dtype))

    def update(self, g: Tensors, state: LionState, ctx: Context) -> tuple[Tensors, LionState]:
        c = state.mu.lerp(g, 1 - self.b1)
        return self._bounded(c), LionState(state.mu.lerp(g, 1 - self.b2))

    def _bounded(self, c: Tensors) -> Tensors:
        """The direction, brought between -1 and 1."""
        if self.mode == "smooth":
            return (self.smooth_beta * c).tanh()
        return c.sign() if self.mode == "hard" else c.clamp(-1.0, 1.0)
