"""Aliases of gradient descent, and of rules that see signs only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gradchain.core.chain import chain
from gradchain.optimizers import _parts as parts
from gradchain.selectors import SelectorLike
from gradchain.transforms.asgd import average_each, scale_by_asgd
from gradchain.transforms.lion import scale_by_lion
from gradchain.transforms.rprop import scale_by_rprop
from gradchain.transforms.scale import scale, scale_by_learning_rate
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


@answering
def sgd(
    learning_rate: Value,
    momentum: Value = 0.0,
    nesterov: bool = False,
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
    accumulator_dtype: torch.dtype | None = None,
    *,
    dampening: Value = 0.0,
    maximize: bool = False,
) -> chain:
    """Gradient descent with momentum; the decay of the weights that `mask` selects is an L2 penalty, before momentum.

    Equals torch.optim.SGD, and optax.sgd, which has no weight decay and no dampening. With a momentum or a decay of
    the number 0 that link is left out, so there is nothing to override.

    >>> import gradchain as gch
    >>> gch.sgd(0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    chain(add_decayed_weights(0.0001), trace(0.9, nesterov=True), scale_by_learning_rate(0.1))
    """
    direction = parts.momentum(momentum, nesterov, accumulator_dtype, dampening)
    front = [*parts.ascent(maximize), *parts.decay(weight_decay, mask)]
    return chain(*front, *direction, scale_by_learning_rate(learning_rate))


@answering
def asgd(
    learning_rate: Value = 1e-2,
    lambd: Value = 1e-4,
    alpha: Value = 0.75,
    t0: float = 1e6,
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
    *,
    maximize: bool = False,
) -> chain:
    """Gradient descent with a falling rate, and the mean of the weights from update t0 + 1 of each parameter on.

    Polyak and Juditsky, 1992, https://doi.org/10.1137/0330046. Equals torch.optim.ASGD; the mean, its state `ax`, is
    in the model `with updater.averaged():`. In a branch of `partition` write `scale_by_asgd` alone, and `average_each`
    behind the partition.

    >>> import gradchain as gch
    >>> gch.asgd(0.01, t0=100)
    chain(scale_by_asgd(0.01), average_each(start=101))
    """
    front = [*parts.ascent(maximize), *parts.decay(weight_decay, mask)]
    return chain(*front, scale_by_asgd(learning_rate, lambd, alpha), average_each(t0 + 1))


@answering
def rprop(
    learning_rate: Value = 1e-2,
    eta_minus: Value = 0.5,
    eta_plus: Value = 1.2,
    min_step_size: Value = 1e-6,
    max_step_size: Value = 50.0,
    *,
    maximize: bool = False,
) -> chain:
    """Steps of the sign, longer while it stays and shorter where it turns: Riedmiller and Braun, 1993.

    https://doi.org/10.1109/ICNN.1993.298623. Equals torch.optim.Rprop. optax.rprop is another rule: see
    `scale_by_rprop`. The learning rate is the first step of each element, a number.

    >>> import gradchain as gch
    >>> gch.rprop(0.01, max_step_size=1.0)
    chain(scale_by_rprop(0.01, max_step_size=1.0), scale(-1.0))
    """
    direction = scale_by_rprop(learning_rate, eta_minus, eta_plus, min_step_size, max_step_size)
    return chain(*parts.ascent(maximize), direction, scale(-1.0))


@answering
def lion(
    learning_rate: Value,
    b1: Value = 0.9,
    b2: Value = 0.99,
    weight_decay: Value = 1e-3,
    mask: SelectorLike | None = None,
    mu_dtype: torch.dtype | None = None,
) -> chain:
    """Lion with decoupled decay of what `mask` selects: Chen et al., 2023, https://arxiv.org/abs/2302.06675.

    Equals optax.lion; torch has none. It wants a learning rate 3 to 10 times smaller than AdamW's, and a decay as much
    larger.

    >>> import gradchain as gch
    >>> gch.lion(1e-4, weight_decay=0.1)
    chain(scale_by_lion(), add_decayed_weights(0.1), scale_by_learning_rate(0.0001))
    """
    return parts.rule(scale_by_lion(b1, b2, mu_dtype), learning_rate, weight_decay, mask, False, decoupled=True)
