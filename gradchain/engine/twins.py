"""Twins: the tensors of a step as DTensors, and the same as this rank has them, in the same memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradchain.core import _torch
from gradchain.core.eager import EagerTensors
from gradchain.core.state import Links, S
from gradchain.core.tensors import Tensors
from gradchain.engine.meetings import Groups, OnEveryRank
from gradchain.engine.planning.layout import Layout

Ones = Mapping[str, "frozenset[int]"]
"""Name → the dimensions along which an entry has one element in all, and its weight may have several."""


class Twins:
    """What is known of the tensors of the current step beside the memory of this rank.

    Attributes:
        everyone: the process groups over which together all ranks meet.
        device: where these meet.
        groups_of: of each weight, the dimensions that ranks share out, each with its process group.
        shapes: the shapes of the whole weights.
        ones: by the id of local Tensors, these and their `Ones`, where they have any.
        local: the shards of the weights: others as soon as anything is otherwise.
    """

    def __init__(self) -> None:
        self.everyone: list[Any] = []
        self.device = torch.device("cpu")
        self.groups_of: dict[str, list[tuple[int, Any]]] = {}
        self.shapes: dict[str, torch.Size] = {}
        self.ones: dict[int, tuple[EagerTensors, Ones]] = {}
        self.local: EagerTensors | None = None
        self._params: EagerTensors | None = None
        self._weights: dict[str, Tensor] = {}
        self._of_meshes: list[tuple[Tensor, list[Any]]] = []  # one weight of each, and the groups that it had
        self._states: tuple[Links, Links] | None = None  # after the last step: as DTensors, and local
        self._gradients: dict[int, Tensor] = {}  # by the id of a shard
        self._guard: tuple[Any, Callable[..., bool] | None] = (None, None)  # of gradients; of which parameters

    def begin(self, params: EagerTensors) -> EagerTensors:
        """A step of these weights begins. Their shards."""
        self._gradients = {}
        shards = list(map(_torch.shard, params._data))
        last, local = self._params, self.local
        if last is not None and local is not None and last.index is params.index:
            same = all(map(_same, last._data, params._data)) and all(map(_same, local._data, shards))
            if same and all(_torch.groups_of_ranks(weight) == groups for weight, groups in self._of_meshes):
                return local
        self._params, names = params, params.index.names
        self._weights = dict(zip(names, params._data, strict=True))
        self.shapes = {name: weight.shape for name, weight in self._weights.items()}
        self.groups_of = {name: _torch.groups_of_shards(weight) for name, weight in self._weights.items()}
        # a mesh asks for its groups by name: after a new init_process_group they are others
        self._of_meshes = [(weight, _torch.groups_of_ranks(weight)) for weight in _of_each_mesh(params._data)]
        self.everyone = list(dict.fromkeys(group for _, groups in self._of_meshes for group in groups))
        self.device = shards[0].device if shards else self.device
        for fact, weight in zip(params.index.facts, params._data, strict=True):
            fact.place = _torch.place_of(weight)
        self.local = EagerTensors(params.index, shards)
        return self.local

    def groups(self, names: tuple[str, ...], ones: Ones) -> Groups:
        """Over which process groups numbers of entries meet, and which of them."""
        places: dict[Any, list[int]] = {}
        for at, name in enumerate(names):
            for dim, group in self.groups_of[name]:
                if name not in ones or dim not in ones[name]:
                    places.setdefault(group, []).append(at)
        return {group: None if len(at) == len(names) else at for group, at in places.items()}

    # gradients, and what is made in a step

    def gradients(self, grads: EagerTensors) -> EagerTensors:
        """The shards of gradients; one that is not yet reduced, or lies otherwise, is first laid out as its weight."""
        names, values = grads.index.names, grads._values()
        if not _torch.lie_alike(values, [self._weights[name] for name in names]):
            values = list(map(self._laid, names, values))
        shards = list(map(_torch.shard, values))
        self._gradients = dict(zip(map(id, shards), values, strict=True))
        made, (index, guard) = EagerTensors(grads.index, shards), self._guard
        if index is not grads.index or guard is None or not guard(*shards):
            self._guard = grads.index, _torch.guard(shards)
        made.alike = self._guard[1]
        return made

    def _laid(self, name: str, grad: Tensor) -> Tensor:
        weight = self._weights[name]
        laid = _torch.sharded_as(grad, weight)
        if _torch.is_dtensor(laid) is not _torch.is_dtensor(weight):
            raise OnEveryRank(f"the gradient of {name!r} lies over the ranks otherwise than its weight")
        return laid

    def joined(self, tensors: EagerTensors) -> EagerTensors:
        """Local Tensors as DTensors that lie as their weights."""
        rows = zip(tensors.index.names, tensors._values(), strict=True)
        return EagerTensors(tensors.index, [_torch.joined_as(t, self._weights[n]) for n, t in rows])

    def parts(self, made: EagerTensors) -> EagerTensors:
        """The shards of DTensors that lie as their weights. OnEveryRank for other shapes."""
        values = made._values()
        for name, value in zip(made.index.names, values, strict=True):
            if value.shape != self.shapes[name]:
                raise OnEveryRank("a function of whole tensors gives other shapes than the weights'")
        return EagerTensors(made.index, list(map(_torch.shard, values)), compared=made._compared)

    # entries of other shapes

    def ones_of(self, tensors: EagerTensors) -> Ones:
        """Of the entries that have one element along some dimensions: these."""
        known = self.ones.get(id(tensors))
        return {} if known is None else known[1]

    def with_ones(self, tensors: EagerTensors, ones: Ones) -> EagerTensors:
        """Local Tensors, of which this is known from here on."""
        if ones:
            self.ones[id(tensors)] = tensors, ones  # an id is only its own while the object lives
        return tensors

    def carried(self, tensors: EagerTensors, to: EagerTensors) -> EagerTensors:
        """Others in the place of local Tensors: what is known of those is known of them."""
        return self.with_ones(to, self.ones_of(tensors))

    # state

    def of_state(self, state: Links) -> Links:
        """A state with shards in place of DTensors: that of the last step, where it is its state."""
        if self._states is not None:
            outside, inside = self._states
            if state is outside:
                return inside
        known = {} if self._states is None else _pairs(*self._states)
        return changed(state, lambda field: known[id(field)] if id(field) in known else self._of_field(field))

    def _of_field(self, field: EagerTensors) -> EagerTensors:
        values, ones = field._values(), dict[str, frozenset[int]]()
        for name, value in zip(field.index.names, values, strict=True):
            dims = _torch.unsharded_dims(value, self._weights[name]) if name in self._weights else None
            if dims is None:
                raise OnEveryRank(f"state of {name!r} lies over the ranks otherwise than its weight")
            if dims:
                ones[name] = dims
        return self.with_ones(EagerTensors(field.index, list(map(_torch.shard, values))), ones)

    def whole_state(self, before: S, local: S, after: S) -> S:
        """A state after a step, with DTensors in place of shards.

        Args:
            before: the state before it, with DTensors.
            local: the same, with shards.
            after: the state after it, with shards.
        """
        changes: dict[str, Any] = {}
        for name, value in after.items():
            if isinstance(value, EagerTensors) and len(value):
                changes[name] = before[name] if value is local[name] else self._whole(value, before[name])
        held, theirs = before.held(), local.held()
        inner = {name: self.whole_state(held[name], theirs[name], new) for name, new in after.held().items()}
        return (after.replace(**changes) if changes else after).holding(inner)

    def _whole(self, tensors: EagerTensors, before: Any) -> EagerTensors:
        """The DTensors of shards: those they came from, or like those of a field that they take the place of."""
        lay = dict(zip(before.index.names, before._data, strict=True)) if isinstance(before, EagerTensors) else {}
        data = []
        for name, shard in zip(tensors.index.names, tensors._values(), strict=True):
            known = self._gradients.get(id(shard))
            like = lay.get(name, self._weights[name])
            data.append(_torch.joined_as(shard, like) if known is None else known)
        return EagerTensors(tensors.index, data)

    def keep(self, outside: Links, inside: Links) -> None:
        """The step was written: the next one begins at this state."""
        self._states, self._gradients = (outside, inside), {}
        if self.ones:
            fields = {id(field) for field in _fields(inside)}
            self.ones = {at: known for at, known in self.ones.items() if at in fields}

    def counted(self, before: Links, state: Links) -> Links | None:
        """The shards of a state that took the place of the last step's, without one; None where it is another's."""
        if self._states is None or before is not self._states[0]:
            return None
        inside = self.of_state(state)
        self.keep(state, inside)
        return inside


class ShardedLayout(Layout):
    """How shards lie in memory; what is known of Tensors is known of their copies."""

    def __init__(self, twins: Twins, params: EagerTensors) -> None:
        super().__init__(params)
        self._twins = twins

    def state(self, tensors: Tensors, taken: set[int] | None = None) -> EagerTensors:
        """A field of the state; see Layout."""
        assert isinstance(tensors, EagerTensors)
        return self._twins.carried(tensors, super().state(tensors, taken))


def changed(state: S, change: Callable[[EagerTensors], EagerTensors]) -> S:
    """`state` with every Tensors of it changed."""
    fields = {name: value for name, value in state.items() if isinstance(value, EagerTensors) and len(value)}
    held = {name: changed(inner, change) for name, inner in state.held().items()}
    found = {name: change(value) for name, value in fields.items()}
    return (state.replace(**found) if found else state).holding(held)


def _fields(state: Any) -> list[EagerTensors]:
    found: list[EagerTensors] = []
    changed(state, partial(_seen, found))
    return found


def _seen(found: list[EagerTensors], field: EagerTensors) -> EagerTensors:
    found.append(field)
    return field


def _pairs(outside: Links, inside: Links) -> dict[int, EagerTensors]:
    """The local Tensors of a state, by the id of what has the DTensors."""
    return {id(whole): local for whole, local in zip(_fields(outside), _fields(inside), strict=True)}


def _same(a: Any, b: Any) -> bool:
    return a is b


def _of_each_mesh(tensors: list[Tensor]) -> list[Tensor]:
    """The first DTensor over each mesh."""
    found: dict[int, Tensor] = {}
    for tensor in tensors:
        if _torch.is_dtensor(tensor):
            found.setdefault(id(tensor.device_mesh), tensor)
    return list(found.values())
