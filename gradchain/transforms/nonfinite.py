"""Put finite numbers in the place of NaN and inf."""

from __future__ import annotations

import math

import torch

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Scalar, Scalars, as_number
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform


class nan_to_num(Transform):
    """Replace NaN and infinite elements of the updates by finite numbers.

        u = nan where g is NaN, posinf where g = inf, neginf where g = -inf, else g

    One bad element then costs one element. It also hides what made it: to drop the whole update instead, and be told
    which parameter it was, write `skip_nonfinite`. After the largest finite value a norm is huge: clip by value, or
    give bounds, as StyleGAN does: `nan_to_num(posinf=1e5, neginf=-1e5)`.

    Args:
        nan: what replaces NaN, a finite number in units of the updates.
        posinf: what replaces inf, a finite number; None for the largest finite value of the parameter's dtype.
        neginf: what replaces -inf, a finite number; None for the lowest finite value of the parameter's dtype.

    Shapes: elementwise, any; complex parameters in their real and imaginary parts.
    Units: unchanged.
    Raises: ValueError or TypeError for a replacement that is not a finite number.
    Equals: torch.nan_to_num; optax.zero_nans does the NaNs only and keeps a flag for each parameter.

    >>> import gradchain as gch
    >>> gch.nan_to_num(posinf=1e5, neginf=-1e5)
    nan_to_num(posinf=100000.0, neginf=-100000.0)
    """

    descends = False
    per_parameter = True

    nan: Hyper = Hyper(0.0)
    posinf: float | None = None
    neginf: float | None = None

    def check(self) -> None:
        for name, value in (("posinf", self.posinf), ("neginf", self.neginf)):
            if value is None:
                continue
            number = as_number(value)
            if number is None:
                raise TypeError(f"nan_to_num: {name} must be a finite number or None, got {value!r}.")
            if not math.isfinite(number):
                raise ValueError(f"nan_to_num: {name} must be a finite number or None, got {value!r}.")
            object.__setattr__(self, name, number)

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        largest = Scalars({f.name: torch.finfo(f.parameter.dtype).max for f in g.index.facts})
        high: Scalar = largest if self.posinf is None else self.posinf
        low: Scalar = -largest if self.neginf is None else self.neginf
        u = g.where(~g.isnan(), self.nan)
        u = u.where(u < math.inf, high)
        return u.where(u > -math.inf, low), state
