"""Gradient descent with noise on the gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradchain.core.chain import chain
from gradchain.transforms.noise import add_noise
from gradchain.transforms.scale import scale_by_learning_rate
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


@answering
def noisy_sgd(learning_rate: Value, eta: Value = 0.01, gamma: Value = 0.55, seed: int = 0) -> chain:
    """Gradient descent with noise that becomes less: Neelakantan et al., 2015, https://arxiv.org/abs/1511.06807.

    Equals optax.noisy_sgd in distribution, with `seed` in place of its `key`; the numbers are others.

    >>> import gradchain as gch
    >>> gch.rules.noisy_sgd(0.1, seed=7)
    chain(add_noise(0.01, 0.55, 7), scale_by_learning_rate(0.1))
    """
    return chain(add_noise(eta, gamma, seed), scale_by_learning_rate(learning_rate))
