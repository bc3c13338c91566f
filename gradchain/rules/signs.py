"""Steps of one size in the direction of the mean gradient: Signum, and Tiger."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gradchain.core.chain import chain
from gradchain.optimizers import _parts as parts
from gradchain.rules.moving_average import ema
from gradchain.selectors import SelectorLike
from gradchain.transforms.scale import scale_by_learning_rate
from gradchain.transforms.sign import scale_by_sign
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


@answering
def sign_sgd(learning_rate: Value) -> chain:
    """The sign of the gradient: Bernstein et al., 2018, Algorithm 1, https://arxiv.org/abs/1802.04434.

    Equals optax.sign_sgd.

    >>> import gradchain as gch
    >>> gch.rules.sign_sgd(1e-4)
    chain(scale_by_sign(), scale_by_learning_rate(0.0001))
    """
    return chain(scale_by_sign(), scale_by_learning_rate(learning_rate))


@answering
def signum(learning_rate: Value, beta: Value = 0.9, accumulator_dtype: torch.dtype | None = None) -> chain:
    """The sign of the mean gradient: Bernstein et al., 2018, Algorithm 2, https://arxiv.org/abs/1802.04434.

    Equals optax.signum.

    >>> import gradchain as gch
    >>> gch.rules.signum(1e-4)
    chain(ema(0.9, debias=False), scale_by_sign(), scale_by_learning_rate(0.0001))
    """
    return chain(ema(beta, False, accumulator_dtype), scale_by_sign(), scale_by_learning_rate(learning_rate))


@answering
def tiger(
    learning_rate: Value,
    beta: Value = 0.965,
    weight_decay: Value = 0.01,
    mask: SelectorLike | None = None,
    accumulator_dtype: torch.dtype | None = None,
) -> chain:
    """Signum with decoupled decay of what `mask` selects: Su, 2023, https://kexue.fm/archives/9512.

    Equals pytorch_optimizer.Tiger. It is Lion with b1 = b2. The number 0 leaves the decay out.

    >>> import gradchain as gch
    >>> gch.rules.tiger(1e-3, weight_decay=0.0)
    chain(ema(0.965, debias=False), scale_by_sign(), scale_by_learning_rate(0.001))
    """
    return parts.descent(chain(ema(beta, False, accumulator_dtype), scale_by_sign()), learning_rate, weight_decay, mask)
