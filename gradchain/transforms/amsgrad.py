"""Adam whose mean square never falls: AMSGrad's direction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Count
from gradchain.core.state import LARGEST, MEAN, SQUARE, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.transforms._correction import correction


class AmsgradState(State):
    """What scale_by_amsgrad remembers."""

    kinds: ClassVar[Mapping[str, str]] = {"mu": MEAN, "nu": SQUARE, "nu_max": LARGEST}

    count: Count  # t, updates of each parameter so far
    mu: Tensors  # m, the mean gradient
    nu: Annotated[Tensors, "[0, inf] or NaN"]  # v, the mean squared gradient
    nu_max: Annotated[Tensors, "[0, inf] or NaN"]  # the largest so far, of what `max_of` says


class scale_by_amsgrad(Transform):
    """Divide the mean gradient by the root of the largest mean square so far: Adam that forgets no large gradient.

        m_t = b1 m_(t-1) + (1 - b1) g
        v_t = b2 v_(t-1) + (1 - b2) g²
        n_t = max(n_(t-1), v_t)
        u   = (m_t / (1 - b1^t)) / (sqrt(n_t / (1 - b2^t) + eps_root) + eps)

    torch takes the largest v_t and corrects it for its start at zero, as it is written here. Optax takes the largest
    v_t / (1 - b2^t), which is `max_of="nu_hat"`: an early gradient then counts up to 1 / (1 - b2) times as much.

    Args:
        b1: how much of the mean gradient stays, in [0, 1).
        b2: how much of the mean squared gradient stays, in [0, 1).
        eps: added outside the root, in units of the gradient; at least 0.
        eps_root: added inside the root, in units of the squared gradient; at least 0.
        mu_dtype: the dtype `mu` is stored in; None for the parameter's, and float32 for float16.
        bias_correction_mu, bias_correction_nu: whether the two means are corrected for their start at zero.
        max_of: "nu" or "nu_hat": whether the largest is taken before the correction, or after it.
        nu_dtype: the dtype `nu` and `nu_max` are stored in; None for the parameter's, and float32 for float16 and
            bfloat16.

    Shapes: elementwise, any.
    State: `count`; `mu`, `nu` and `nu_max`, three tensors per parameter: 12 bytes per float32 element.
    Units: gradient → dimensionless, about 1 in size or less: the learning rate is the size of a step.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: torch.optim.Adam with amsgrad=True after scale_by_learning_rate; optax.scale_by_amsgrad with
        max_of="nu_hat".
    Paper: Reddi et al., 2018, Algorithm 2, https://openreview.net/forum?id=ryQu7f-RZ

    >>> import gradchain as gch
    >>> gch.rules.scale_by_amsgrad(b2=0.99, max_of="nu_hat")
    scale_by_amsgrad(b2=0.99, max_of="nu_hat")
    """

    descends = False
    role = "normalise"
    per_parameter = True

    b1: Hyper = Hyper(0.9, "[0, 1)")
    b2: Hyper = Hyper(0.999, "[0, 1)")
    eps: Hyper = Hyper(1e-8, "[0, inf)")
    eps_root: Hyper = Hyper(0.0, "[0, inf)")
    mu_dtype: torch.dtype | None = None
    bias_correction_mu: bool = True
    bias_correction_nu: bool = True
    max_of: str = "nu"
    nu_dtype: torch.dtype | None = None

    def check(self) -> None:
        if self.max_of not in ("nu", "nu_hat"):
            raise ValueError(f"scale_by_amsgrad: max_of must be 'nu' or 'nu_hat', got {self.max_of!r}.")

    def init(self, params: Tensors) -> AmsgradState:
        nu, nu_max = params.slow_slot(self.nu_dtype), params.slow_slot(self.nu_dtype)
        return AmsgradState(Count(params.index), params.slot(self.mu_dtype), nu, nu_max)

    def update(self, g: Tensors, state: AmsgradState, ctx: Context) -> tuple[Tensors, AmsgradState]:
        count = state.count.tick(g)
        mu = state.mu.lerp(g, 1 - self.b1)
        nu = self.b2 * state.nu + (1 - self.b2) * g * g
        first = 1 - self.b1**count if self.bias_correction_mu else 1.0
        second = correction(self.b2, count) if self.bias_correction_nu else 1.0
        before, after = (1.0, second) if self.max_of == "nu" else (second, 1.0)
        nu_max = state.nu_max.maximum(nu / before)
        root = (nu_max + after * self.eps_root).sqrt() + after**0.5 * self.eps
        return mu / (root * (first / after**0.5)), AmsgradState(count, mu, nu, nu_max)
