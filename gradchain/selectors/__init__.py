"""Which parameters: selectors, by name, by owner module, by number of dimensions.

A selector is a predicate on a parameter: any function `(name, parameter, owner) -> bool`. `name` is the full dotted
name, `parameter` the tensor, `owner` the module that directly holds it (None where only a mapping of tensors is known).
A function of `(name, parameter)` or `(parameter)` will do, and a mapping of every name to True or False, as in Optax.
The ones here are frozen values, combined by `&`, `|` and `~`, also with plain functions:

    >>> import gradchain as gch
    >>> gch.min_ndim(2) & ~(gch.embedding | gch.named("head.*"))
    min_ndim(2) & ~(embedding | named("head.*"))

They are resolved once over all parameters, at bind or init, by `resolve`. Rules give a hyperparameter a number per
parameter: `multiply`, `choose`, `first`, `layer_decay` with the depths in `depth`. This room imports nothing else of
gradchain, but for the words of other libraries.
"""

import typing as _typing

from gradchain.selectors import depth as depth
from gradchain.selectors.base import ParameterFacts, Predicate, Selector, SelectorLike
from gradchain.selectors.names import named
from gradchain.selectors.owners import owner, owner_named
from gradchain.selectors.ready import bias, depthwise, embedding, everything, norm
from gradchain.selectors.resolving import resolve
from gradchain.selectors.rules import PerParameter, choose, first, layer_decay, multiply
from gradchain.selectors.shapes import min_ndim, ndim
from gradchain.words.names import answers as _answers

__all__ = [
    "ParameterFacts",
    "PerParameter",
    "Predicate",
    "Selector",
    "SelectorLike",
    "bias",
    "choose",
    "depthwise",
    "embedding",
    "everything",
    "first",
    "layer_decay",
    "min_ndim",
    "multiply",
    "named",
    "ndim",
    "norm",
    "owner",
    "owner_named",
    "resolve",
]

if not _typing.TYPE_CHECKING:  # to a checker a name that is not here is a mistake
    __getattr__ = _answers(__name__)
