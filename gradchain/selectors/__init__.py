"""Which parameters: selectors, by name, by owner module, by number of dimensions.

A selector is a predicate on a parameter: any function `(name, parameter, owner) -> bool`. `name` is the full dotted
name, `parameter` the tensor, `owner` the module that directly holds it (None where only a mapping of tensors is known).
The ones here are frozen values, combined by `&`, `|` and `~`, also with plain functions:

    >>> import gradchain as gch
    >>> gch.min_ndim(2) & ~(gch.embedding | gch.named("head.*"))
    min_ndim(2) & ~(embedding | named("head.*"))

They are resolved once over all parameters, at bind or init, by `resolve`. This room imports nothing else of gradchain.
"""

from gradchain.selectors.base import ParameterFacts, Predicate, Selector
from gradchain.selectors.names import named
from gradchain.selectors.owners import owner
from gradchain.selectors.ready import bias, embedding, everything, norm
from gradchain.selectors.resolving import resolve
from gradchain.selectors.shapes import min_ndim, ndim

__all__ = [
    "ParameterFacts",
    "Predicate",
    "Selector",
    "bias",
    "embedding",
    "everything",
    "min_ndim",
    "named",
    "ndim",
    "norm",
    "owner",
    "resolve",
]
