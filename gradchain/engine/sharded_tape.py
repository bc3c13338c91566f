"""A tape of shards, which no link gets to see: what it knows of a node beside the part that this rank has.

What decides here must be the same on every rank, and local shapes are not: a shard may have one row, or none. So it is
kept of entries along which dimensions they have one element in all, as a mean along them does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from gradchain.core.eager import EagerTensors
from gradchain.core.maps import gathered
from gradchain.core.random import Draw
from gradchain.core.shapes import Shapes
from gradchain.engine.meetings import Groups, Meetings, OnEveryRank
from gradchain.engine.recording.host import HostLedger
from gradchain.engine.recording.tape import Lazy, Tape
from gradchain.engine.twins import Ones, Twins

_EVERY = frozenset(range(64))  # dimensions: zeros fit whatever they meet
_FULL: frozenset[int] = frozenset()


class ShardedTape(Tape):
    """Records what is done to shards."""

    def __init__(self, twins: Twins, meetings: Meetings, *args: Any) -> None:
        super().__init__(*args)
        self._twins, self._meetings = twins, meetings
        self._ones: dict[int, Ones] = {}

    def ones(self, node: int) -> Ones:
        """Of the entries of a node that have one element in all along some dimensions: these."""
        if not self._twins.ones:
            return {}
        if node not in self._ones:
            self._ones[node] = {name: dims for name, dims in self._ones_of(node).items() if dims}
        return self._ones[node]

    def _ones_of(self, node: int) -> Mapping[str, frozenset[int]]:
        op, *operands = self.ops[node]
        names = self.indices[node].names
        if op == "leaf":
            return self._twins.ones_of(self.leaves[node])
        if op == "zero":
            return dict.fromkeys(names, _EVERY)
        if op == "store":  # it keeps the shapes of what was there
            return self.ones(operands[1])
        nodes = [o for o in operands if isinstance(o, int)]
        if op == "overlay":
            under, over = nodes
            return {n: self.ones(over if n in self.indices[over] else under).get(n, _FULL) for n in names}
        return {n: frozenset.intersection(*(self.ones(o).get(n, _FULL) for o in nodes)) for n in names}

    def is_odd(self, node: int) -> bool:
        return bool(self.ones(node))

    def whole_shapes(self, of: Lazy) -> Shapes:
        ones, weights = self.ones(of.node), self._twins.shapes
        return tuple(
            torch.Size([1 if d in ones.get(name, _FULL) else n for d, n in enumerate(weights[name])])
            for name in of.index.names
        )

    def computed(self, node: int) -> EagerTensors:
        return self._twins.with_ones(super().computed(node), self.ones(node))

    def in_memory(self, fn: Callable[..., Any], *args: Any) -> Any:
        made = super().in_memory(fn, *args)
        if self._twins.ones and isinstance(made, EagerTensors):
            ones = [self._twins.ones_of(arg) for arg in args if isinstance(arg, EagerTensors)]
            found = {name: dims for of in ones for name, dims in of.items() if name in made.index}
            self._twins.with_ones(made, found)
        return made

    def drawn(self, like: Lazy, draw: Draw) -> Lazy:
        if self.is_odd(like.node):
            raise OnEveryRank("a link draws random numbers for entries of other shapes than their weights'")
        return super().drawn(like, draw)

    # whole tensors

    def whole(self, node: int) -> EagerTensors:
        """Unrecorded: who asks for tensors means whole ones."""
        raise OnEveryRank("a link asks for whole tensors, of which each rank has a shard")

    def map(self, fn: Callable[..., Any], operands: Sequence[Any], gather: bool) -> Any:
        """`fn` of tensors that are gathered; of what it gives this rank keeps its part."""
        nodes = [o.node for o in operands if type(o) is Lazy]
        if not gather:
            self.whole(nodes[0])
        if any(map(self.is_odd, nodes)):
            raise OnEveryRank("a function of whole tensors is given entries of other shapes than their weights'")
        parts = [self.computed(o.node) if type(o) is Lazy else o for o in operands]
        gather_and_call = partial(self._gathered, fn, self._meetings.next("map"))
        if isinstance(self.ledger, HostLedger):
            return self.ledger.met_in_memory(gather_and_call, *parts)
        return gather_and_call(*parts)

    def _gathered(self, fn: Callable[..., Any], number: int, *parts: Any) -> Any:
        given = [self._twins.joined(o) if isinstance(o, EagerTensors) else o for o in parts]
        made = self._meetings.once(number, lambda: self._meetings.of_all(lambda: gathered(fn, *given)))
        return tuple(map(self._twins.parts, made)) if isinstance(made, tuple) else self._twins.parts(made)

    # reductions along dimensions

    def along(self, of: Lazy, kind: str, dims: tuple[tuple[int, ...], ...]) -> Lazy:
        """A reduction along dimensions: where ranks share those out, it is computed and meets at once.

        When somebody first reads it depends on local shapes, and ranks must come to a meeting in the same order.
        """
        if (of.node, kind, dims) in self._along:
            return super().along(of, kind, dims)
        before, names = self.ones(of.node), of.index.names
        found = super().along(of, kind, dims)
        ones = {n: before.get(n, _FULL).union(d) for n, d in zip(names, dims, strict=True)}
        made = self._twins.with_ones(self.leaves[found.node], ones)
        shared = {
            n: [g for dim, g in self._twins.groups_of[n] if dim in d and dim not in before.get(n, _FULL)]
            for n, d in zip(names, dims, strict=True)
        }
        if any(shared.values()):
            self._settle(self)
            self._meet(of, made, kind, dims, shared)
        return found

    def _meet(
        self, of: Lazy, made: EagerTensors, kind: str, dims: tuple[tuple[int, ...], ...], shared: dict[str, list[Any]]
    ) -> None:
        """Parts of reductions, each of this rank's elements, become the whole: all in one collective for each group."""
        rows = zip(of._shapes(), self.whole_shapes(of), dims, shared.values(), strict=True)
        taken = [(at, *row) for at, row in enumerate(rows) if row[-1]]
        counts = [[math.prod(shape[d] for d in ds) for shape in shapes] for _, *shapes, ds, _ in taken]
        sizes = [made._data[at].numel() for at, *_ in taken]
        places: dict[Any, list[int]] = {}
        end = 0
        for size, row in zip(sizes, taken, strict=True):
            begin, end = end, end + size
            for group in row[-1]:
                places.setdefault(group, []).extend(range(begin, end))
        groups = {group: None if len(at) == end else at for group, at in places.items()}
        number = self._meetings.next((kind, dims, of.index.names))
        meet = partial(self._met, number, kind, [at for at, *_ in taken], counts, groups)
        if isinstance(self.ledger, HostLedger):
            self.ledger.set_cell(made, self.ledger.meets(meet, made))
        else:
            meet(made)

    def _met(
        self, number: int, kind: str, places: list[int], counts: list[list[int]], groups: Groups, made: EagerTensors
    ) -> EagerTensors:
        """The same tensors, once what other ranks have is in them."""
        outs = [made._data[at] for at in places]
        parts = [_part(kind, out, mine).flatten() for out, (mine, _) in zip(outs, counts, strict=True)]
        ours = torch.cat(parts)
        met = self._meetings.once(number, lambda: self._meetings.numbers(ours, groups, kind == "amax"))
        split = torch.split(met, [part.numel() for part in parts])
        for out, part, (_, all_of) in zip(outs, split, counts, strict=True):
            out.copy_(_finished(kind, part, all_of).view(out.shape))
        return made


def _part(kind: str, value: torch.Tensor, count: int) -> torch.Tensor:
    """What meets, of a reduction of so many elements on this rank."""
    wide = value.to(torch.float64)
    if not count:
        return torch.full_like(wide, -torch.inf if kind == "amax" else 0.0)
    return wide * count if kind == "mean" else wide * wide if kind == "norm" else wide


def _finished(kind: str, met: torch.Tensor, count: int) -> torch.Tensor:
    """The reduction, of what has met and how many elements there are in all."""
    return met / count if kind == "mean" else met.sqrt() if kind == "norm" else met
