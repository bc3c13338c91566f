"""Multiply the updates by a number: plainly, by a schedule, or by minus the learning rate."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.says import Says
from gradchain.core.signs import is_negative
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform


class scale(Transform):
    """Multiply the updates by a number.

        u = step_size g

    A parameter group's learning-rate multiplier is written `multiply` in the learning rate itself.

    Args:
        step_size: any finite number or schedule. A negative one flips the sign: see `scale_by_schedule`.

    Shapes: elementwise, any.
    Units: step_size times the unit of the updates.
    Raises: ValueError or TypeError for an argument that is not a finite number.
    Equals: optax.scale.

    >>> import gradchain as gch
    >>> gch.masked(gch.scale(0.1), gch.named("backbone.*"))
    masked(scale(0.1), named("backbone.*"))
    """

    role = "scale"
    per_parameter = True

    step_size: Hyper

    def says(self) -> Says:
        """What is negative flips the sign."""
        return {"descends": self._flips}

    @cached_property
    def _flips(self) -> bool | None:
        return is_negative(self.__dict__["step_size"])

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        return self.step_size * g, state


class scale_by_schedule(Transform):
    """Multiply the updates by a schedule's value, whatever its sign.

        u = f(step) g

    `step` counts applied updates from 0: the first update is multiplied by f(0). A learning rate that is not negative
    goes into `scale_by_learning_rate`, which flips the sign.

    Args:
        step_size_fn: a function step -> factor. bind looks at it at a few steps: one that is negative there flips the
            sign, one that is positive does not, and one of both signs, or that cannot be asked yet, is trusted.

    Shapes: elementwise, any.
    Units: dimensionless factor.
    Raises: TypeError for an argument that is neither function nor number; ValueError for a value that is not finite.
    Equals: optax.scale_by_schedule.

    >>> import gradchain as gch
    >>> gch.scale_by_schedule(gch.linear(0.0, 1.0, 100))
    scale_by_schedule(linear(0.0, 1.0, 100))
    """

    role = "scale"
    per_parameter = True

    step_size_fn: Hyper

    def says(self) -> Says:
        """A negative schedule flips the sign."""
        return {"descends": self._flips}

    @cached_property
    def _flips(self) -> bool | None:
        return is_negative(self.__dict__["step_size_fn"])

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        return self.step_size_fn * g, state


class scale_by_learning_rate(Transform):
    """Multiply the updates by minus the learning rate: from here on they are steps down, to be added to the weights.

        u = -learning_rate g

    Args:
        learning_rate: at least 0; a number or a schedule, which reads the applied updates from 0. Write
            `multiply(rate, (selector, 0.1))` for groups with a multiplier, `choose` for groups with their own rates.
        flip_sign: False multiplies by plus the learning rate: for updates that point down already, or to climb.

    Shapes: elementwise, any.
    Units: weights per unit of the updates before it.
    Raises: ValueError or TypeError for a learning rate that is negative or not a number.
    Equals: optax.scale_by_learning_rate.

    >>> import gradchain as gch
    >>> gch.scale_by_learning_rate(gch.cosine(0.1, 0.0, 1000))
    scale_by_learning_rate(cosine(0.1, 0.0, 1000))
    """

    role = "learning_rate"
    per_parameter = True

    learning_rate: Annotated[Hyper, "[0, inf)"]
    flip_sign: bool = True

    def says(self) -> Says:
        """It flips the sign; who tells it not to is trusted to know why."""
        return {"descends": True if self.flip_sign else None}

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        return (-self.learning_rate if self.flip_sign else self.learning_rate) * g, state
