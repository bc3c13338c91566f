"""Kernels over local shards: a step of weights of which each rank has a part (DTensor), with the engine for plain ones.

The weights, gradients and state of a rank are plain tensors inside DTensors. The engine sees those: elementwise
arithmetic knows nothing of ranks. What it reduces is a part of the number that the rule asked for, and meets the parts
of the other ranks before anything is made of it: all numbers of one reduction in one collective for each process group.
What needs whole tensors runs by the reference, which has them: a function of a shard would silently be another rule.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradchain.core import _torch
from gradchain.core.chain import chain
from gradchain.core.eager import EagerTensors
from gradchain.core.state import Links, S
from gradchain.core.step import Step
from gradchain.core.tensors import Tensors
from gradchain.engine.engine import Engine
from gradchain.engine.operations import REDUCTIONS, SUM, Unrecorded
from gradchain.engine.outcome import Outcome, none_where_it_cannot
from gradchain.engine.recording.device import DeviceReduced
from gradchain.engine.recording.reduced import Reduced
from gradchain.engine.recording.tape import Lazy, Tape
from gradchain.engine.replay import Request


class ShardedTape(Tape):
    """A tape of shards, which no link gets to see."""

    def computed(self, node: int) -> EagerTensors:
        """Unrecorded: who asks for tensors means whole ones."""
        raise Unrecorded("a link asks for whole tensors, of which each rank has a shard")


class ShardedEngine(Engine):
    """Runs a chain on the shards that this rank has."""

    tape = ShardedTape

    def __init__(self) -> None:
        super().__init__()
        self._twins = Twins()

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardedEngine, ()

    @none_where_it_cannot
    def step(
        self, tx: chain, step: Step, received: Tensors, state: Links, params: EagerTensors, lent: bool
    ) -> Outcome | None:
        """As by Engine; what is given and what comes out are DTensors."""
        assert isinstance(received, EagerTensors)
        twins = self._twins
        twins.begin(params)
        local = twins.state(state, twins.local)
        weights, grads = twins.local(params), twins.gradients(received)
        done = super().step(tx, step._replace(params=weights), grads, local, weights, lent)
        if done is None:
            return None
        if done.applied:
            done.commit.after(partial(_torch.increment_version, params._data))  # autograd holds these, not their shards
        outside = twins.state(done.state, twins.whole)
        done.commit.after(partial(twins.keep, outside))
        return done._replace(state=outside)

    def _why_without_numbers(self, request: Request) -> str:
        return "several ranks take part"

    def _reduce(self, tape: Tape, node: int, kind: str) -> Reduced | DeviceReduced:
        reduced = super()._reduce(tape, node, kind)
        if not isinstance(reduced, Reduced):
            raise Unrecorded("numbers on the device do not meet over ranks")
        return Reduced(reduced.names, self._twins.over_ranks(reduced.names, reduced.rows, kind))

    def _whole(
        self, value: Lazy, before: Any, received: EagerTensors, roots: list[tuple[int, int]], held: bool
    ) -> EagerTensors:
        kind = value.tape.ops[value.node]
        if len(value) and kind[0] == "leaf" and kind != ("leaf", "grad"):
            return value.tape.leaves[value.node]
        return super()._whole(value, before, received, roots, held)


class Twins:
    """Tensors of DTensors, and the same tensors as this rank has them."""

    def __init__(self) -> None:
        self._params: EagerTensors | None = None
        self._weights: dict[str, Any] = {}
        self._groups: dict[str, list[Any]] = {}  # of each weight, over which its elements are shared out
        self._of: dict[int, tuple[EagerTensors, EagerTensors]] = {}  # by the id of either: whole, local
        self._found: dict[int, tuple[EagerTensors, EagerTensors]] = {}
        self._gradients: dict[int, Tensor] = {}  # by the id of a shard

    def begin(self, params: EagerTensors) -> None:
        """A step of these weights begins."""
        self._found, self._gradients = {}, {}
        last = self._params
        if last is not None and last.index is params.index and all(map(_same, last._data, params._data)):
            return
        self._params, self._of = params, {}
        self._weights = dict(zip(params.index.names, params._data, strict=True))
        self._groups = {name: _torch.groups_of_shards(weight) for name, weight in self._weights.items()}

    def local(self, tensors: EagerTensors) -> EagerTensors:
        """The shards behind weights, or behind a field of the state; the same object for the same Tensors."""
        known = self._of.get(id(tensors)) or self._found.get(id(tensors))
        if known is None:
            data = tensors._values()
            if not any(map(_torch.is_dtensor, data)):
                return tensors
            shards = [self._shard(n, t) for n, t in zip(tensors.index.names, data, strict=True)]
            known = tensors, EagerTensors(tensors.index, shards)
        self._note(*known)
        return known[1]

    def _note(self, whole: EagerTensors, local: EagerTensors) -> None:
        self._found[id(whole)] = self._found[id(local)] = whole, local

    def _shard(self, name: str, tensor: Tensor) -> Tensor:
        if not _torch.shards_alike(tensor, self._weights.get(name)):
            raise Unrecorded(f"{name!r} lies over the ranks otherwise than its weight")
        return _torch.shard(tensor)

    def gradients(self, grads: EagerTensors) -> EagerTensors:
        """The shards of gradients; one that is not yet reduced, or lies otherwise, is first laid out as its weight."""
        shards = []
        for name, grad in zip(grads.index.names, grads._values(), strict=True):
            laid = _torch.sharded_as(grad, self._weights[name])
            shards.append(self._shard(name, laid))
            self._gradients[id(shards[-1])] = laid
        made = EagerTensors(grads.index, shards)
        self._note(grads, made)
        return made

    def whole(self, tensors: EagerTensors) -> EagerTensors:
        """The DTensors of shards: those they came from, where they did."""
        known = self._found.get(id(tensors))
        if known is not None:
            return known[0]
        rows = list(zip(tensors.index.names, tensors._values(), strict=True))
        if not any(n in self._weights and _torch.is_dtensor(self._weights[n]) for n, _ in rows):
            return tensors
        made = EagerTensors(tensors.index, [self._joined(n, t) for n, t in rows])
        self._note(made, tensors)
        return made

    def _joined(self, name: str, shard: Tensor) -> Tensor:
        known = self._gradients.get(id(shard))
        return _torch.joined_as(shard, self._weights[name]) if known is None else known

    def state(self, state: S, change: Any) -> S:
        """`state` with every Tensors of it changed."""
        fields = {name: value for name, value in state.items() if isinstance(value, EagerTensors) and len(value)}
        changed = {name: new for name, value in fields.items() if (new := change(value)) is not value}
        held = {name: self.state(inner, change) for name, inner in state.held().items()}
        return (state.replace(**changed) if changed else state).holding(held)

    def keep(self, state: Links) -> None:
        """The step was written: what its state has is known at the next one."""
        kept: set[int] = set()
        self.state(state, lambda value: kept.add(id(value)) or value)  # type: ignore[func-returns-value]
        self._of = {}
        for whole, local in self._found.values():
            if id(whole) in kept:
                self._of[id(whole)] = self._of[id(local)] = whole, local

    def over_ranks(self, names: tuple[str, ...], rows: list[float], kind: str) -> list[float]:
        """Numbers of shards as those of whole tensors: one collective for each process group."""
        groups: dict[Any, list[int]] = {}
        for at, name in enumerate(names):
            for group in self._groups[name]:
                groups.setdefault(group, []).append(at)
        rows = list(rows)
        for group, places in groups.items():
            mine = [rows[at] for at in places]
            for at, value in zip(places, _met(mine, kind, group), strict=True):
                rows[at] = value
        return rows


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b


def _met(rows: list[float], kind: str, group: Any) -> list[float]:
    """The numbers of all ranks of a group, together."""
    reduce, op = torch.distributed.all_reduce, torch.distributed.ReduceOp
    if REDUCTIONS[kind].meet is SUM:
        sums = torch.tensor(rows, dtype=torch.float64)
        reduce(sums, op.SUM, group=group)
        return sums.tolist()
    # which of a NaN and a number is larger, backends do not agree on
    nans = [float(math.isnan(v)) for v in rows]
    both = torch.tensor([[0.0 if math.isnan(v) else v for v in rows], nans], dtype=torch.float64)
    reduce(both, op.MAX, group=group)
    largest, nan = both.tolist()
    return [math.nan if bad else value for value, bad in zip(largest, nan, strict=True)]
