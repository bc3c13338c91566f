"""What a tape knows of memory: how the weights lie in it, and what is still to be computed into it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from gradchain.core.eager import EagerTensors
from gradchain.core.index import Index
from gradchain.core.shapes import Shapes


class Laid(Protocol):
    """How the weights lie in memory, as a tape asks for it."""

    index: Index

    def state(self, tensors: EagerTensors) -> EagerTensors:
        """Tensors, each laid out as its weight."""

    def shapes(self, index: Index) -> Shapes:
        """The shapes of the weights of these names."""

    def odd(self, tensors: EagerTensors) -> Shapes | None:
        """The shapes of entries; None where each has that of its weight."""


class Pending(NamedTuple):
    """A reduction along dimensions that is to be computed: of a node, into the tensors of a leaf."""

    node: int
    kind: str
    dims: tuple[tuple[int, ...], ...]
    leaf: int
