"""Aliases of the rules that divide a gradient by squares of gradients: RMSprop, Adagrad, Adadelta."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gradchain.core.chain import chain
from gradchain.optimizers import _parts as parts
from gradchain.selectors import SelectorLike
from gradchain.transforms.adadelta import scale_by_adadelta
from gradchain.transforms.rms import scale_by_rms, scale_by_stddev
from gradchain.transforms.rss import scale_by_rss
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


@answering
def rmsprop(
    learning_rate: Value = 1e-2,
    decay: Value = 0.99,
    eps: Value = 1e-8,
    initial_scale: Value = 0.0,
    eps_in_sqrt: bool = False,
    centered: bool = False,
    momentum: Value = 0.0,
    nesterov: bool = False,
    bias_correction: bool = False,
    *,
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
    accumulator_dtype: torch.dtype | None = None,
    maximize: bool = False,
) -> chain:
    """Divide by the root of a mean square, then momentum; the decay of what `mask` selects is an L2 penalty.

    Paper: Tieleman and Hinton, 2012, http://www.cs.toronto.edu/~hinton/coursera/lecture6/lec6.pdf. Equals
    torch.optim.RMSprop; optax.rmsprop with eps_in_sqrt=True, whose decay is 0.9 by default, and whose momentum stands
    behind the learning rate: the same while that is one number.

    >>> import gradchain as gch
    >>> gch.rmsprop(1e-3, momentum=0.9)
    chain(scale_by_rms(), trace(0.9), scale_by_learning_rate(0.001))
    """
    divide = scale_by_stddev if centered else scale_by_rms
    direction = divide(decay, eps, initial_scale, eps_in_sqrt, bias_correction)
    behind = parts.momentum(momentum, nesterov, accumulator_dtype)
    return parts.rule(direction, learning_rate, weight_decay, mask, maximize, momentum=behind)


@answering
def adagrad(
    learning_rate: Value = 1e-2,
    initial_accumulator_value: Value = 0.0,
    eps: Value = 1e-10,
    *,
    eps_in_sqrt: bool = False,
    lr_decay: Value = 0.0,
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
    maximize: bool = False,
) -> chain:
    """Divide by the root of the sum of all squares.

    Paper: Duchi et al., 2011, https://jmlr.org/papers/v12/duchi11a.html. Equals torch.optim.Adagrad; optax.adagrad with
    eps_in_sqrt=True and its defaults, 0.1 and 1e-7. The decay of what `mask` selects is an L2 penalty.

    >>> import gradchain as gch
    >>> gch.adagrad(0.1, lr_decay=1e-3)
    chain(scale_by_rss(lr_decay=0.001), scale_by_learning_rate(0.1))
    """
    direction = scale_by_rss(initial_accumulator_value, eps, eps_in_sqrt, lr_decay)
    return parts.rule(direction, learning_rate, weight_decay, mask, maximize)


@answering
def adadelta(
    learning_rate: Value = 1.0,
    rho: Value = 0.9,
    eps: Value = 1e-6,
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
    *,
    maximize: bool = False,
) -> chain:
    """Steps of the size of those before: Zeiler, 2012, https://arxiv.org/abs/1212.5701.

    Equals torch.optim.Adadelta; optax.adadelta with learning_rate=1.0, which without one climbs. The decay of what
    `mask` selects is an L2 penalty.

    >>> import gradchain as gch
    >>> gch.adadelta()
    chain(scale_by_adadelta(), scale_by_learning_rate(1.0))
    """
    return parts.rule(scale_by_adadelta(rho, eps), learning_rate, weight_decay, mask, maximize)
