"""State: what one link remembers, as a small dataclass of plain named things."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from typing_extensions import Self, dataclass_transform

from gradchain.core import _torch
from gradchain.core.domain import Domain
from gradchain.core.eager import EagerTensors
from gradchain.core.scalars import Count, Scalars
from gradchain.core.tensors import Tensors

# What a slot is, so that another rule may go on with it: what `kinds` of a State says, or words of its own.
MEAN = "mean gradient"
SQUARE = "mean squared gradient"
LARGEST = "largest mean squared gradient"
SUM = "decaying sum of gradients"
AVERAGE = "average weights"

_OWN = frozenset({"domains", "held", "holding", "items", "own", "problem", "replace"})
_NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass_transform(frozen_default=True, eq_default=False)
class State:
    """What a link remembers. Subclassing makes a frozen dataclass.

    Fields are `Tensors`, `Count`, `Scalars`, numbers, bools, strings, 0-d tensors, or None; `links` holds the states
    of held links by name. The same fields at every step. Names in `whole` are Tensors replaced as they are returned:
    for all others, an entry that an update did not return stays as it was. Names in `added` came after others: where a
    checkpoint lacks one, its default is what that checkpoint means. `kinds` says what fields are, in words that others
    have too, `kinds: ClassVar[Mapping[str, str]] = {"mu": "mean gradient"}`: a rule that takes this one's place in the
    middle of a run goes on with them.

    What a checkpoint may hold is declared beside the field, in the words of a hyperparameter's interval: a number
    `scale: Annotated[float, "(0, inf)"]`, the elements of Tensors `nu: Annotated[Tensors, "[0, inf] or NaN"]`, since a
    run that diverged is saved and loaded too. A Count needs no such words, for it is an integer of at least 0, nor do
    Tensors that may hold anything. What fields must be to one another is for `problem` to say.
    """

    whole: ClassVar[frozenset[str]] = frozenset()
    added: ClassVar[frozenset[str]] = frozenset()
    own: ClassVar[tuple[str, ...]] = ()  # the names of the link's own fields, known once
    domains: ClassVar[Mapping[str, Domain]] = _NONE  # what each of them may hold
    kinds: ClassVar[Mapping[str, str]] = _NONE

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        taken = next((name for name in inspect.get_annotations(cls) if name in _OWN), None)
        if taken is not None:
            raise TypeError(f"{cls.__name__}: a field must not be called {taken!r}, which every State has already.")
        dataclass(frozen=True, eq=False)(cls)
        cls.own = tuple(f.name for f in fields(cls) if f.name != "links")  # type: ignore[arg-type]

        declared = {n: Domain.declared(a, cls.__module__) for n, a in inspect.get_annotations(cls).items()}
        cls.domains = {name: declared.get(name) or cls.domains.get(name, Domain()) for name in cls.own}

        def flatten(state: Any) -> tuple[list[Any], Any]:
            return [state[f.name] for f in fields(state)], None

        _torch.register_pytree(cls, flatten, lambda values, _: cls(*values))

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.__dict__.update(changes)
        return copy

    def problem(self) -> str | None:
        """What its fields cannot be together, in a clause, if a checkpoint has them so; each by itself is right."""
        return None

    def __getitem__(self, name: str) -> Any:
        """One of the fields, by name."""
        return self.__dict__[name]

    def held(self) -> Mapping[str, State]:
        """The states of held links, by name; none where the link holds no others."""
        links: Mapping[str, State] = self.__dict__.get("links", _NONE)
        return links

    def holding(self, links: Mapping[str, State]) -> Self:
        """A copy with other states of held links; itself where there are none."""
        return self.replace(links=links) if links else self

    def items(self) -> Iterator[tuple[str, Any]]:
        """The link's own fields, by name; the states of held links are not among them."""
        values = self.__dict__
        for name in self.own:
            yield name, values[name]


class Empty(State):
    """The state of a link that remembers nothing."""


class Links(State):
    """The states of held links, by name."""

    links: Mapping[str, State] = field(default_factory=dict)


def _flatten_count(count: Count) -> tuple[list[Any], Any]:
    return [], count


_torch.register_pytree(Count, _flatten_count, lambda _, count: count)
_torch.register_pytree(
    Scalars, lambda s: (list(s.values()), tuple(s)), lambda v, n: Scalars(dict(zip(n, v, strict=True)))
)


S = TypeVar("S", bound=State)


def as_stored(old: State, new: S, owner: str) -> S:
    """`new` as it is kept: rounded to the stored dtypes, entries that were absent this time as `old` has them."""
    if new is old:
        return new
    if type(new) is not type(old):
        raise TypeError(f"{owner}: update must return its own kind of state, {type(old).__name__}, got {new!r}.")
    changes: dict[str, Any] = {}
    for name, value in new.items():
        before = old[name]
        if value is before:
            continue
        if isinstance(value, Tensors) and name not in new.whole:
            try:
                changes[name] = value.stored_as(before)
            except ValueError as error:
                raise ValueError(f"{owner}: in field {name!r}, {error}.") from None
        elif isinstance(value, (Count, Scalars)):
            changes[name] = before.overlay(value)
    return new.replace(**changes) if changes else new


def merged(old: S, fresh: State) -> S:
    """`old` with the entries of parameters that only `fresh` knows; numbers stay as `old` has them."""
    changes: dict[str, Any] = {}
    for name, value in old.items():
        other = fresh[name]
        if isinstance(value, Tensors):
            changes[name] = other.overlay(value) if len(value) else other
        elif isinstance(value, (Count, Scalars)):
            changes[name] = other.overlay(value)
    theirs = fresh.held()
    links = {n: merged(s, theirs[n]) if n in theirs else s for n, s in old.held().items()}
    return (old.replace(**changes) if changes else old).holding(links)


def narrowed(state: S, names: Any) -> S:
    """`state` with only the entries of these parameters."""
    changes: dict[str, Any] = {
        name: value.select(names) for name, value in state.items() if isinstance(value, (Tensors, Count, Scalars))
    }
    links = {n: narrowed(s, names) for n, s in state.held().items()}
    return (state.replace(**changes) if changes else state).holding(links)


def overlaid(state: S, parts: Sequence[State]) -> S:
    """`state` with the entries of every part in place of its own; numbers stay. The other way round from `merged`."""
    changes: dict[str, Any] = {}
    for name, value in state.items():
        theirs = [part[name] for part in parts]
        if isinstance(value, Tensors) and any(len(t) for t in theirs):
            entries = {n: t for tensors in (value, *theirs) for n, t in tensors.items()}
            changes[name] = EagerTensors.at(value.index, {n: entries[n] for n in value})
        elif isinstance(value, Scalars):
            for numbers in theirs:
                changes[name] = changes.get(name, value).overlay(numbers)
        elif isinstance(value, Count):
            counts = {n: count.of(n) for count in (value, *theirs) for n in count.names}
            changes[name] = Count(value.names, counts)
    links = {n: overlaid(s, [part.held()[n] for part in parts]) for n, s in state.held().items()}
    return (state.replace(**changes) if changes else state).holding(links)
