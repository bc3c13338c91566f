"""Aliases: each is a function that returns the chain one would write by hand, with torch's defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gradchain.combinators.masked import masked
from gradchain.core.chain import chain
from gradchain.core.transform import Transform
from gradchain.selectors import SelectorLike
from gradchain.transforms.adam import scale_by_adam
from gradchain.transforms.decay import add_decayed_weights
from gradchain.transforms.lion import scale_by_lion
from gradchain.transforms.scale import scale_by_learning_rate
from gradchain.transforms.trace import trace
from gradchain.words.arguments import answering
from gradchain.words.names import answers

if TYPE_CHECKING:
    from gradchain.core.hyper import Value

__all__ = ["adam", "adamw", "lion", "nadamw", "sgd"]


def _decay(weight_decay: Value, mask: SelectorLike | None) -> list[Transform]:
    """The decay as none or one link: none for the number 0, masked where there is a mask."""
    if isinstance(weight_decay, (int, float)) and weight_decay == 0:
        return []
    decay = add_decayed_weights(weight_decay)
    return [decay if mask is None else masked(decay, mask)]


@answering
def sgd(
    learning_rate: Value,
    momentum: Value = 0.0,
    nesterov: bool = False,
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
    accumulator_dtype: torch.dtype | None = None,
) -> chain:
    """Gradient descent with momentum; the decay of the weights that `mask` selects is an L2 penalty, before momentum.

    Equals torch.optim.SGD with dampening=0, and optax.sgd, which has no weight decay. With a momentum or a decay of
    the number 0 that link is left out, so there is nothing to override.

    >>> import gradchain as gch
    >>> gch.sgd(0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    chain(add_decayed_weights(0.0001), trace(0.9, nesterov=True), scale_by_learning_rate(0.1))
    """
    plain = isinstance(momentum, (int, float)) and momentum == 0
    direction = [] if plain else [trace(momentum, nesterov, accumulator_dtype)]
    return chain(*_decay(weight_decay, mask), *direction, scale_by_learning_rate(learning_rate))


@answering
def adam(
    learning_rate: Value,
    b1: Value = 0.9,
    b2: Value = 0.999,
    eps: Value = 1e-8,
    eps_root: Value = 0.0,
    mu_dtype: torch.dtype | None = None,
    *,
    nesterov: bool = False,
    nu_dtype: torch.dtype | None = None,
) -> chain:
    """Adam, without weight decay: Kingma and Ba, 2014, https://arxiv.org/abs/1412.6980.

    Equals torch.optim.Adam and optax.adam. torch's `weight_decay` here is `add_decayed_weights` before `scale_by_adam`;
    its amsgrad is not offered.

    >>> import gradchain as gch
    >>> gch.adam(1e-3, b2=0.99)
    chain(scale_by_adam(b2=0.99), scale_by_learning_rate(0.001))
    """
    direction = scale_by_adam(b1, b2, eps, eps_root, nesterov, mu_dtype, nu_dtype)
    return chain(direction, scale_by_learning_rate(learning_rate))


@answering
def adamw(
    learning_rate: Value,
    b1: Value = 0.9,
    b2: Value = 0.999,
    eps: Value = 1e-8,
    weight_decay: Value = 0.01,
    mask: SelectorLike | None = None,
    *,
    eps_root: Value = 0.0,
    mu_dtype: torch.dtype | None = None,
    nu_dtype: torch.dtype | None = None,
    nesterov: bool = False,
) -> chain:
    """Adam with decoupled decay of what `mask` selects: Loshchilov and Hutter, 2017, https://arxiv.org/abs/1711.05101.

    Equals torch.optim.AdamW, and optax.adamw, whose weight_decay is 1e-4 by default. The number 0 leaves the decay out.

    >>> import gradchain as gch
    >>> gch.adamw(3e-4, b2=0.95, weight_decay=0.1, mask=gch.min_ndim(2))
    chain(scale_by_adam(b2=0.95), masked(add_decayed_weights(0.1), min_ndim(2)), scale_by_learning_rate(0.0003))
    """
    direction = scale_by_adam(b1, b2, eps, eps_root, nesterov, mu_dtype, nu_dtype)
    return chain(direction, *_decay(weight_decay, mask), scale_by_learning_rate(learning_rate))


@answering
def nadamw(
    learning_rate: Value,
    b1: Value = 0.9,
    b2: Value = 0.999,
    eps: Value = 1e-8,
    weight_decay: Value = 0.01,
    mask: SelectorLike | None = None,
    *,
    eps_root: Value = 0.0,
    mu_dtype: torch.dtype | None = None,
    nu_dtype: torch.dtype | None = None,
) -> chain:
    """AdamW that looks one step ahead: Dozat, 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ.

    Equals optax.nadamw, whose weight_decay is 1e-4 by default. torch.optim.NAdam with decoupled_weight_decay=True
    also schedules its momentum; it is equal as its momentum_decay goes to infinity.

    >>> import gradchain as gch
    >>> gch.nadamw(1e-3, weight_decay=0.0)
    chain(scale_by_adam(nesterov=True), scale_by_learning_rate(0.001))
    """
    dtypes = {"mu_dtype": mu_dtype, "nu_dtype": nu_dtype}
    return adamw(learning_rate, b1, b2, eps, weight_decay, mask, eps_root=eps_root, nesterov=True, **dtypes)


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
    direction = scale_by_lion(b1, b2, mu_dtype)
    return chain(direction, *_decay(weight_decay, mask), scale_by_learning_rate(learning_rate))


if not TYPE_CHECKING:  # to a checker a name that is not here is a mistake
    __getattr__ = answers(__name__)
