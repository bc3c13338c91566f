"""Selectors that take no arguments: `bias`, `norm`, `embedding`, `depthwise`, `everything`. They are values, not calls.

>>> import gradchain as gch
>>> import torch
>>> linear, layer_norm, words = torch.nn.Linear(3, 3), torch.nn.LayerNorm(3), torch.nn.Embedding(9, 3)
>>> gch.bias("head.bias", linear.bias, linear), gch.bias("attention.in_proj_bias", torch.zeros(9), None)
(True, False)
>>> gch.norm("norm.weight", layer_norm.weight, layer_norm), gch.norm("head.weight", linear.weight, linear)
(True, False)
>>> gch.embedding("words.weight", words.weight, words), gch.embedding("head.weight", linear.weight, linear)
(True, False)
>>> conv = torch.nn.Conv2d(3, 6, 3, groups=3)
>>> gch.depthwise("conv.weight", conv.weight, conv), gch.depthwise("head.weight", linear.weight, linear)
(True, False)
>>> gch.everything("any.weight", torch.ones(3), None)
True
"""

import re
from collections.abc import Callable
from typing import final

import torch
from torch import nn

from gradchain.selectors.base import Selector
from gradchain.selectors.owners import require_owner
from gradchain.selectors.source import code

# read along the parents: torch's own norms, their lazy and fused subclasses, and those of other libraries
_NORM_NAME = re.compile(r"(?<!Weight)(?<!Spectral)Norm(\d+d)?$")
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@final
class ready_made(Selector):
    """A selector without arguments, printed as its label.

    Args:
        label: one of `bias`, `norm`, `embedding`, `depthwise`, `everything`.

    Raises:
        ValueError: another label.
    """

    label: str

    def __post_init__(self) -> None:
        if self.label not in _RULES:
            raise ValueError(f"ready_made: label must be one of {', '.join(_RULES)}, got {code(self.label)}.")

    def __call__(self, name: str, parameter: torch.Tensor, owner: nn.Module | None) -> bool:
        return _RULES[self.label](self, name, owner)

    def __repr__(self) -> str:
        return self.label

    def __reduce__(self) -> str:
        return self.label  # copied and pickled as the one value of this module


def _is_bias(selector: Selector, name: str, owner: nn.Module | None) -> bool:
    return name.rpartition(".")[2] == "bias"


def _is_norm(selector: Selector, name: str, owner: nn.Module | None) -> bool:
    return any(_NORM_NAME.search(cls.__name__) for cls in type(require_owner(owner, selector)).__mro__)


def _is_embedding(selector: Selector, name: str, owner: nn.Module | None) -> bool:
    return isinstance(require_owner(owner, selector), _EMBEDDINGS)


def _is_depthwise(selector: Selector, name: str, owner: nn.Module | None) -> bool:
    conv = require_owner(owner, selector)
    return isinstance(conv, _CONVOLUTIONS) and conv.in_channels == conv.groups


def _is_anything(selector: Selector, name: str, owner: nn.Module | None) -> bool:
    return True


_RULES: dict[str, Callable[[Selector, str, nn.Module | None], bool]] = {
    "bias": _is_bias,
    "norm": _is_norm,
    "embedding": _is_embedding,
    "depthwise": _is_depthwise,
    "everything": _is_anything,
}

bias = ready_made("bias")
"""Selects the parameters whose last name is exactly `bias`.

Not `in_proj_bias` of attention and `bias_ih_l0` of an LSTM: add `named("*_bias", "*.bias_*")`, or use `~min_ndim(2)`.
"""

norm = ready_made("norm")
"""Selects the weights and biases of normalisation modules.

A module is one if the name of its class, or of a parent class, ends in `Norm` or `Norm2d` (1d, 3d). So are torch's
batch, instance, group, layer and RMS norms with all their subclasses, and `LlamaRMSNorm`, `T5LayerNorm`,
`FrozenBatchNorm2d` of other libraries. Not names ending in `WeightNorm` or `SpectralNorm`, which hold a layer's own
weights. For a norm called otherwise add `owner(ItsClass)`. Needs a module: raises ValueError where only tensors are
known.
"""

embedding = ready_made("embedding")
"""Selects the weights of `nn.Embedding` and `nn.EmbeddingBag`, subclasses included.

A weight shared with an output layer belongs to the module that comes first. A position embedding that is a plain
Parameter is not one: select it by name. Needs a module: raises ValueError where only tensors are known.
"""

depthwise = ready_made("depthwise")
"""Selects the weights and biases of convolutions with as many groups as input channels.

A convolution of a single channel is one too, as MMEngine counts; its `dwconv` rules are about
`depthwise & owner(torch.nn.Conv2d)`. Needs a module: raises ValueError where only tensors are known.
"""

everything = ready_made("everything")
"""Selects every parameter. `everything & f` makes a selector of a plain function, to be negated or printed."""
