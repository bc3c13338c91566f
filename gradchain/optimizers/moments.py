"""Aliases of the rules that divide a mean gradient by what they know of its size: Adam and its kin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gradchain.core.chain import chain
from gradchain.core.transform import Transform
from gradchain.optimizers import _parts as parts
from gradchain.selectors import SelectorLike
from gradchain.transforms.adam import scale_by_adam
from gradchain.transforms.adamax import scale_by_adamax
from gradchain.transforms.amsgrad import scale_by_amsgrad
from gradchain.transforms.nadam import scale_by_nadam
from gradchain.transforms.radam import scale_by_radam
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


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
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
    amsgrad: bool = False,
    maximize: bool = False,
) -> chain:
    """Adam: Kingma and Ba, 2014, https://arxiv.org/abs/1412.6980; the decay of what `mask` selects is an L2 penalty.

    Equals torch.optim.Adam, optax.adam, and with amsgrad optax.amsgrad but for the place of its correction: see
    `scale_by_amsgrad`. A decay as in AdamW is that of `adamw`. The number 0 leaves the decay out.

    >>> import gradchain as gch
    >>> gch.adam(1e-3, b2=0.99)
    chain(scale_by_adam(b2=0.99), scale_by_learning_rate(0.001))
    """
    direction = _adam("adam", b1, b2, eps, eps_root, nesterov, mu_dtype, nu_dtype, amsgrad)
    return parts.rule(direction, learning_rate, weight_decay, mask, maximize)


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
    amsgrad: bool = False,
    maximize: bool = False,
) -> chain:
    """Adam with decoupled decay of what `mask` selects: Loshchilov and Hutter, 2017, https://arxiv.org/abs/1711.05101.

    Equals torch.optim.AdamW, and optax.adamw, whose weight_decay is 1e-4 by default. The number 0 leaves the decay out.

    >>> import gradchain as gch
    >>> gch.adamw(3e-4, b2=0.95, weight_decay=0.1, mask=gch.min_ndim(2))
    chain(scale_by_adam(b2=0.95), masked(add_decayed_weights(0.1), min_ndim(2)), scale_by_learning_rate(0.0003))
    """
    direction = _adam("adamw", b1, b2, eps, eps_root, nesterov, mu_dtype, nu_dtype, amsgrad)
    return parts.rule(direction, learning_rate, weight_decay, mask, maximize, decoupled=True)


def _adam(
    owner: str,
    b1: Value,
    b2: Value,
    eps: Value,
    eps_root: Value,
    nesterov: bool,
    mu_dtype: torch.dtype | None,
    nu_dtype: torch.dtype | None,
    amsgrad: bool,
) -> Transform:
    if not amsgrad:
        return scale_by_adam(b1, b2, eps, eps_root, nesterov, mu_dtype, nu_dtype)
    if nesterov:
        raise ValueError(f"{owner}: nesterov must be False with amsgrad=True, got {nesterov!r}.")
    return scale_by_amsgrad(b1, b2, eps, eps_root, mu_dtype, nu_dtype=nu_dtype)


@answering
def sparse_adam(
    learning_rate: Value = 1e-3,
    b1: Value = 0.9,
    b2: Value = 0.999,
    eps: Value = 1e-8,
    *,
    mu_dtype: torch.dtype | None = None,
    nu_dtype: torch.dtype | None = None,
    maximize: bool = False,
) -> chain:
    """Adam for sparse gradients, of embeddings: the moments of rows without a gradient rest, as everywhere here.

    Kingma and Ba, 2014, https://arxiv.org/abs/1412.6980. Equals torch.optim.SparseAdam, which adds eps to the root of
    the uncorrected mean square: in that alone it differs from `adam`, which takes sparse gradients too. Dense
    gradients, which torch refuses, are those of all rows.

    >>> import gradchain as gch
    >>> gch.sparse_adam(1e-3)
    chain(scale_by_adam(eps_hat=True), scale_by_learning_rate(0.001))
    """
    direction = scale_by_adam(b1, b2, eps, 0.0, False, mu_dtype, nu_dtype, eps_hat=True)
    return parts.rule(direction, learning_rate, 0.0, None, maximize)


@answering
def nadam(
    learning_rate: Value = 2e-3,
    b1: Value = 0.9,
    b2: Value = 0.999,
    eps: Value = 1e-8,
    weight_decay: Value = 0.0,
    momentum_decay: Value = 4e-3,
    decoupled_weight_decay: bool = False,
    mask: SelectorLike | None = None,
    *,
    mu_dtype: torch.dtype | None = None,
    nu_dtype: torch.dtype | None = None,
    maximize: bool = False,
) -> chain:
    """Adam that looks one step ahead, with a growing momentum: Dozat, 2016.

    https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ. Equals torch.optim.NAdam; optax.nadam with
    momentum_decay=math.inf, which is `adam(…, nesterov=True)`. The decay of what `mask` selects is an L2 penalty, or
    with decoupled_weight_decay that of AdamW.

    >>> import gradchain as gch
    >>> gch.nadam(1e-3)
    chain(scale_by_nadam(), scale_by_learning_rate(0.001))
    """
    direction = scale_by_nadam(b1, b2, eps, momentum_decay, mu_dtype, nu_dtype)
    return parts.rule(direction, learning_rate, weight_decay, mask, maximize, decoupled=decoupled_weight_decay)


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
    also schedules its momentum, as `nadam` does; it is equal as its momentum_decay goes to infinity.

    >>> import gradchain as gch
    >>> gch.nadamw(1e-3, weight_decay=0.0)
    chain(scale_by_adam(nesterov=True), scale_by_learning_rate(0.001))
    """
    direction = scale_by_adam(b1, b2, eps, eps_root, True, mu_dtype, nu_dtype)
    return parts.rule(direction, learning_rate, weight_decay, mask, False, decoupled=True)


@answering
def radam(
    learning_rate: Value = 1e-3,
    b1: Value = 0.9,
    b2: Value = 0.999,
    eps: Value = 1e-8,
    eps_root: Value = 0.0,
    threshold: Value = 5.0,
    *,
    nesterov: bool = False,
    eps_hat: bool = True,
    weight_decay: Value = 0.0,
    decoupled_weight_decay: bool = False,
    mask: SelectorLike | None = None,
    mu_dtype: torch.dtype | None = None,
    nu_dtype: torch.dtype | None = None,
    maximize: bool = False,
) -> chain:
    """Adam that is momentum until its mean square can be trusted: Liu et al., 2019, https://arxiv.org/abs/1908.03265.

    Equals torch.optim.RAdam; optax.radam with eps_hat=False. The decay of what `mask` selects is an L2 penalty, or
    with decoupled_weight_decay that of AdamW.

    >>> import gradchain as gch
    >>> gch.radam(1e-3, weight_decay=0.01, decoupled_weight_decay=True)
    chain(scale_by_radam(), add_decayed_weights(0.01), scale_by_learning_rate(0.001))
    """
    direction = scale_by_radam(b1, b2, eps, eps_root, threshold, nesterov, eps_hat, mu_dtype, nu_dtype)
    return parts.rule(direction, learning_rate, weight_decay, mask, maximize, decoupled=decoupled_weight_decay)


@answering
def adamax(
    learning_rate: Value = 2e-3,
    b1: Value = 0.9,
    b2: Value = 0.999,
    eps: Value = 1e-8,
    weight_decay: Value = 0.0,
    decoupled_weight_decay: bool = False,
    mask: SelectorLike | None = None,
    *,
    mu_dtype: torch.dtype | None = None,
    maximize: bool = False,
) -> chain:
    """Adam with the infinity norm: Kingma and Ba, 2014, https://arxiv.org/abs/1412.6980.

    Equals torch.optim.Adamax and optax.adamax; with decoupled_weight_decay optax.adamaxw, whose weight_decay is 1e-4 by
    default. Without it the decay of what `mask` selects is an L2 penalty.

    >>> import gradchain as gch
    >>> gch.adamax(1e-3, weight_decay=0.01)
    chain(add_decayed_weights(0.01), scale_by_adamax(), scale_by_learning_rate(0.001))
    """
    direction = scale_by_adamax(b1, b2, eps, mu_dtype)
    return parts.rule(direction, learning_rate, weight_decay, mask, maximize, decoupled=decoupled_weight_decay)
