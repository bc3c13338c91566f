"""Which parameters there are: their names in order, and what a selector may know of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from gradchain.selectors import resolve

if TYPE_CHECKING:
    from gradchain.selectors import Predicate


@dataclass(eq=False)
class Fact:
    """What is known of one parameter: its name, the tensor, and the module that holds it (None for a bare tensor).

    `parameter` follows the model, where the updater sees that another tensor took its place.
    """

    name: str
    parameter: Tensor
    owner: nn.Module | None = None


class Index:
    """The ordered names of some parameters. Two entries of the algebra meet where their names do.

    Identity is the fast path: Tensors made from one another share their Index, and subsets are kept, so that the
    same mask of the same parameters is the same object at every step.
    """

    __slots__ = ("_members", "_rest", "_shared", "_subsets", "complex", "facts", "kept", "names", "position", "root")

    def __init__(self, facts: Iterable[Fact], root: Index | None = None) -> None:
        self.root: Index = root or self  # all parameters, over which selectors are resolved
        self.facts: tuple[Fact, ...] = tuple(facts)
        self.names: tuple[str, ...] = tuple(f.name for f in self.facts)
        self.position: dict[str, int] = {name: i for i, name in enumerate(self.names)}
        self.complex: frozenset[str] = frozenset(f.name for f in self.facts if f.parameter.is_complex())
        self._subsets: dict[tuple[str, ...], Index] = {}
        self._shared: dict[Index, Index] = {}  # what is in another Index too, and what is not: asked at every step
        self._rest: dict[Index, Index] = {}
        self._members: dict[Predicate, Index] = {}
        self.kept: dict[object, object] = {}  # what links decided once about these parameters, by what decided it
        if len(self.position) != len(self.names):
            twice = next(n for i, n in enumerate(self.names) if self.position[n] != i)
            raise ValueError(f"Tensors: names must be unique, got {twice!r} twice.")

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Index:
        """The Index of bare named tensors, of which no owner is known."""
        return cls(Fact(name, tensor) for name, tensor in tensors.items())

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.position

    def __repr__(self) -> str:
        return f"Index({', '.join(self.names)})"

    def subset(self, names: Iterable[str]) -> Index:
        """The entries whose name is in `names`, in this order; the same object whenever asked for the same names."""
        if isinstance(names, Index):
            if names is self:
                return self
            shared = self._shared.get(names)
            if shared is None:
                shared = self.subset(names.position)
                if names.root is self.root:  # one of few; another's would be kept alive, with its tensors
                    self._shared[names] = shared
            return shared
        wanted = names if isinstance(names, (set, frozenset, dict)) else frozenset(names)
        if 2 * len(wanted) < len(self.names):  # a few of many: as in backward, one parameter at a time
            kept = tuple(sorted((n for n in wanted if n in self.position), key=self.position.__getitem__))
        else:
            kept = tuple(n for n in self.names if n in wanted)
        if len(kept) == len(self.names):
            return self
        found = self._subsets.get(kept)
        if found is None:
            found = self._subsets[kept] = Index((self.facts[self.position[n]] for n in kept), self.root)
        return found

    def without(self, other: Index) -> Index:
        """The entries that `other` lacks."""
        found = self._rest.get(other)
        if found is None:
            found = self.subset([n for n in self.names if n not in other])
            if other.root is self.root:
                self._rest[other] = found
        return found

    def within(self, other: Index) -> bool:
        """Whether `other` has all of these entries."""
        return self.subset(other) is self

    def members(self, selector: Predicate) -> Index:
        """The entries `selector` matches. Resolved once, over all parameters: a selector is static.

        ValueError if it matches none of them at all; that it matches none of these is no error.
        """
        found = self._members.get(selector)
        if found is None:
            whole = self if self.root is self else self.root.members(selector)
            matched = resolve(selector, self.known) if whole is self else whole
            found = self._members[selector] = self.subset(matched)
        return found

    @property
    def known(self) -> list[tuple[str, Tensor, nn.Module | None]]:
        """What a selector is asked about: name, parameter and owner of each entry."""
        return [(f.name, f.parameter, f.owner) for f in self.facts]

    def union(self, other: Index) -> Index:
        """The entries of both, this order first."""
        extra = [f for f in other.facts if f.name not in self.position]
        return self if not extra else Index((*self.facts, *extra))
