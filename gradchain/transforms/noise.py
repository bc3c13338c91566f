"""Noise on the updates."""

from __future__ import annotations

from typing import Annotated

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.random import check_seed
from gradchain.core.scalars import sqrt
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform


class add_noise(Transform):
    """Add normal noise to the updates, less from step to step.

        u = g + √(eta / (1 + t)^gamma) z,  z ~ N(0, 1),  t applied updates so far

    Nothing is kept: the noise follows from the seed, the link's address, the parameter's name, t and the element. A
    run that is resumed, spread over ranks or given another number of threads gets the very same; a link that moves to
    another address, or a parameter that is renamed, another. An update that was held is tried again with the same
    noise, and in front of a window each micro-batch gets it. Its place is its meaning: before the rule it is noise on
    the gradients; behind the learning rate it is that of Langevin dynamics.

    Args:
        eta: the variance of the first update, at least 0.
        gamma: how fast the variance falls, at least 0; at 0 it stays.
        seed: a whole number, at least 0.

    Shapes: elementwise, any; complex parameters in their real and imaginary parts.
    Units: √eta has the unit of the updates.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: optax.add_noise in distribution, with `seed` in place of its `key`; the numbers are others.
    Paper: Neelakantan et al., 2015, Section 3, https://arxiv.org/abs/1511.06807; the numbers: Salmon et al., 2011,
        https://doi.org/10.1145/2063384.2063405

    >>> import torch, gradchain as gch
    >>> g = gch.Tensors.of({"w": torch.zeros(3)})
    >>> noise = gch.add_noise(eta=0.01, gamma=0.55, seed=0)
    >>> noise.update(g, noise.init(g), gch.Context(g, step=0))[0]["w"]
    tensor([0.0850, 0.0736, 0.0198])
    """

    descends = False
    per_parameter = True
    refuses_rows = (
        "adds noise to all rows. Keep the gradient dense, or leave that parameter out with "
        "masked(add_noise(…), selector)."
    )

    eta: Annotated[Hyper, "[0, inf)"]
    gamma: Annotated[Hyper, "[0, inf)"]
    seed: int

    def check(self) -> None:
        check_seed("add_noise", self.seed)

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        variance = self.eta / (1 + ctx.step) ** self.gamma
        return g + sqrt(variance) * ctx.random(self.seed).normal(g), state
