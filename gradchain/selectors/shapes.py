"""By number of dimensions: `ndim`, `min_ndim`."""

from typing import final

import torch

from gradchain._numbers import as_number
from gradchain.selectors.base import Selector
from gradchain.selectors.source import code


@final
class ndim(Selector):
    """Selects the parameters with exactly `n` dimensions.

    `ndim(2)` is the matrices: weights of `Linear`, and of `Embedding` too.

    Args:
        n: number of dimensions, 0 or more.

    Raises:
        ValueError: `n` is negative, or no integer.

    >>> import gradchain as gch
    >>> import torch
    >>> gch.ndim(2)("weight", torch.zeros(3, 2), None), gch.ndim(2)("weight", torch.zeros(3, 2, 5, 5), None)
    (True, False)
    """

    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", _count("ndim", self.n))

    def __call__(self, name: str, parameter: torch.Tensor, owner: torch.nn.Module | None) -> bool:
        return parameter.ndim == self.n


@final
class min_ndim(Selector):
    """Selects the parameters with `n` dimensions or more.

    `min_ndim(2)` is what most recipes decay: weights of linear, convolution and embedding layers, but no bias and no
    normalisation weight.

    Args:
        n: least number of dimensions, 0 or more.

    Raises:
        ValueError: `n` is negative, or no integer.

    >>> import gradchain as gch
    >>> import torch
    >>> gch.min_ndim(2)("weight", torch.zeros(3, 2, 5, 5), None), gch.min_ndim(2)("bias", torch.zeros(3), None)
    (True, False)
    """

    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", _count("min_ndim", self.n))

    def __call__(self, name: str, parameter: torch.Tensor, owner: torch.nn.Module | None) -> bool:
        return parameter.ndim >= self.n


def _count(rule: str, n: object) -> int:
    count = as_number(n)
    if not isinstance(count, int) or count < 0:
        raise ValueError(f"{rule}: n must be a non-negative integer, got {code(n)}.")
    return count
