"""Which parameters there are: their names in order, and what a selector may know of each."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from gradchain.core.place import Place
from gradchain.selectors import resolve

if TYPE_CHECKING:
    from gradchain.selectors import SelectorLike

T = TypeVar("T")

_serials = itertools.count()


@dataclass(eq=False)
class Fact:
    """What is known of one parameter: its name, the tensor, and the module that holds it (None for a bare tensor).

    `parameter` follows the model, where the updater sees that another tensor took its place. Where it is a part of a
    tensor that is spread over ranks, `place` says which: random numbers are those of the whole.
    """

    name: str
    parameter: Tensor
    owner: nn.Module | None = None
    place: Place | None = None


class Index:
    """The ordered names of some parameters. Two entries of the algebra meet where their names do.

    Identity is the fast path: Tensors made from one another share their Index, and subsets are kept, so that the
    same mask of the same parameters is the same object at every step.

    An Index holds subsets that are smaller than it, never itself nor anything above: what it knows of those goes by
    their serial number. So a model that nothing else holds is freed at once, and needs no collector of cycles.
    """

    __slots__ = (
        "__weakref__", "_all", "_members", "_parts", "_rest", "_root", "_serial", "_shared", "_subsets",
        "complex", "facts", "memo", "names", "position",
    )  # fmt: skip

    def __init__(self, facts: Iterable[Fact], root: Index | None = None) -> None:
        mine = tuple(facts)
        self._set(mine, mine if root is None else root.facts, root, {})

    def _set(
        self, facts: tuple[Fact, ...], every: tuple[Fact, ...], root: Index | None, subsets: dict[Any, Index]
    ) -> None:
        self.facts = facts
        self._all = every  # over which selectors are resolved
        self._root: Any = None if root is None else weakref.ref(root)
        self._serial = next(_serials)
        self.names: tuple[str, ...] = tuple(f.name for f in self.facts)
        self.position: dict[str, int] = {name: i for i, name in enumerate(self.names)}
        self.complex: frozenset[str] = frozenset(f.name for f in self.facts if f.parameter.is_complex())
        self._subsets: dict[tuple[str, ...], Index] = subsets
        # what is in another Index too, and what is not: asked at every step; None is all of it
        self._shared: dict[int, Index | None] = {}
        self._rest: dict[int, Index | None] = {}
        self._members: dict[object, Index | None] = {}
        self._parts: dict[object, list[tuple[Any, Index | None]]] = {}
        self.memo: dict[object, object] = {}  # what else was decided once about these parameters: it holds no Index
        if len(self.position) != len(self.names):
            twice = next(n for i, n in enumerate(self.names) if self.position[n] != i)
            raise ValueError(f"Tensors: names must be unique, got {twice!r} twice.")

    def __getstate__(self) -> tuple[Any, ...]:
        return self.facts, self._all, None if self._root is None else self.root, self._subsets

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._set(*state)

    @property
    def root(self) -> Index:
        """All parameters, of which these are some."""
        if self._root is None:
            return self
        root: Index | None = self._root()
        if root is None:  # nothing but this was left of it
            root = Index(self._all)
            self._root = weakref.ref(root)
        return root

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
            shared = self._shared.get(names._serial, _UNKNOWN)
            if shared is _UNKNOWN:
                shared = self._noted(self.subset(names.position))
                if names._all is self._all:  # one of few; others come and go
                    self._shared[names._serial] = shared
            return self if shared is None else shared
        wanted = names if isinstance(names, (set, frozenset, dict)) else frozenset(names)
        if 2 * len(wanted) < len(self.names):  # a few of many: as in backward, one parameter at a time
            chosen = tuple(sorted((n for n in wanted if n in self.position), key=self.position.__getitem__))
        else:
            chosen = tuple(n for n in self.names if n in wanted)
        if len(chosen) == len(self.names):
            return self
        found = self._subsets.get(chosen)
        if found is None:
            found = self._subsets[chosen] = Index((self.facts[self.position[n]] for n in chosen), self.root)
        return found

    def _noted(self, part: Index) -> Index | None:
        """A part of this as this may hold it: itself it must not."""
        return None if part is self else part

    def without(self, other: Index) -> Index:
        """The entries that `other` lacks."""
        rest = self._rest.get(other._serial, _UNKNOWN)
        if rest is _UNKNOWN:
            rest = self._noted(self.subset([n for n in self.names if n not in other]))
            if other._all is self._all:
                self._rest[other._serial] = rest
        return self if rest is None else rest

    def within(self, other: Index) -> bool:
        """Whether `other` has all of these entries."""
        return self.subset(other) is self

    def members(self, selector: SelectorLike) -> Index:
        """The entries `selector` matches. Resolved once, over all parameters: a selector is static.

        ValueError if it matches none of them at all; that it matches none of these is no error.
        """
        found = self._members.get(selector, _UNKNOWN)
        if found is _UNKNOWN:
            root = self.root
            matched = resolve(selector, self.entries) if root is self else root.members(selector)
            found = self._members[selector] = self._noted(self.subset(matched))
        return self if found is None else found

    def parts(self, key: object, decide: Callable[[], Iterable[tuple[T, Index]]]) -> list[tuple[T, Index]]:
        """Labelled parts of these parameters, which a link decides once; by what it decides them."""
        labelled = self._parts.get(key)
        if labelled is None:
            labelled = self._parts[key] = [(label, self._noted(part)) for label, part in decide()]
        return [(label, self if part is None else part) for label, part in labelled]

    @property
    def entries(self) -> list[tuple[str, Tensor, nn.Module | None]]:
        """What a selector is asked about: name, parameter and owner of each entry."""
        return [(f.name, f.parameter, f.owner) for f in self.facts]

    def union(self, other: Index) -> Index:
        """The entries of both, this order first."""
        extra = [f for f in other.facts if f.name not in self.position]
        return self if not extra else Index((*self.facts, *extra))


_UNKNOWN: Any = object()
