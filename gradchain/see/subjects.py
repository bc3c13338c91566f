"""What is looked at: a chain, an updater or several of them, as one thing with a name, a chain and perhaps a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gradchain.core.chain import chain
from gradchain.core.hyper import Override
from gradchain.core.index import Index
from gradchain.core.transform import Transform
from gradchain.updater import Updater
from gradchain.updater.explanation import state_sizes
from gradchain.updater.group import Group
from gradchain.updater.target import Target

__all__ = ["Subject", "subjects_of"]


@dataclass(frozen=True)
class Subject:
    """One chain that is looked at.

    name: that of the updater in a group, else "". index: the parameters, None where no model is known. overrides: those
    in force, by address. clocks: how far it is. state: bytes by address of a link, None where there is no state yet.
    """

    name: str
    chain: chain
    index: Index | None = None
    overrides: Mapping[str, Override] | None = None
    clocks: Mapping[str, float] | None = None
    state: Mapping[str, int] | None = None

    def address(self, own: str) -> str:
        """An address of its chain among those of all."""
        return f"{self.name}/{own}" if self.name else own


def subjects_of(owner: str, given: Any, model: Any = None) -> list[Subject]:
    """What a user gave, each chain of it. TypeError for what has none, and for a model beside an updater."""
    if isinstance(given, Subject):
        return [given]
    if isinstance(given, list) and given and all(isinstance(one, Subject) for one in given):
        return given
    if isinstance(given, (Updater, Group)):
        if model is not None:
            raise TypeError(f"{owner}: model must not come with an updater, which is bound to one.")
        return list(_bound(given))
    if isinstance(given, Transform):
        tx = given if isinstance(given, chain) else chain(given)
        return [Subject("", tx, None if model is None else Target(model).index)]
    raise TypeError(f"{owner}: the first argument must be a chain, an updater or a group, got {type(given).__name__}.")


def _bound(given: Updater | Group) -> Iterator[Subject]:
    for name, updater in {"": given}.items() if isinstance(given, Updater) else given.items():
        bound, clocks = updater._bound, updater.clocks  # in order again, where an earlier call left something open
        sizes = dict(state_sizes(bound.chain, bound.state))
        yield Subject(name, updater.chain, bound.target.index, dict(bound.hypers.overrides), clocks, sizes)
