"""Kernels over local shards: a step of weights of which each rank has a part (DTensor), with the engine for plain ones.

The weights, gradients and state of a rank are plain tensors inside DTensors. The engine sees those: elementwise
arithmetic knows nothing of ranks. What it reduces is a part of the number that the rule asked for, and meets the parts
of the other ranks before anything is made of it: all numbers of one reduction in one collective for each process group.
A step run again comes to the same meetings as one that is recorded, so each rank decides alone which it is.
A function of whole tensors gets them gathered where it says so; else that step runs by the reference, which has
DTensors: a function of a shard would silently be another rule.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradchain.core import _torch
from gradchain.core.chain import chain
from gradchain.core.eager import EagerTensors
from gradchain.core.index import Index
from gradchain.core.state import Links
from gradchain.core.step import Step
from gradchain.core.tensors import Tensors
from gradchain.engine.commit import Commit
from gradchain.engine.engine import Engine
from gradchain.engine.executors.base import NoKernel
from gradchain.engine.executors.devices import numbers_on
from gradchain.engine.meetings import FailedElsewhere, Groups, OnEveryRank
from gradchain.engine.operations import REDUCTIONS, SUM, TYPES, Unrecorded
from gradchain.engine.outcome import Outcome, none_where_it_cannot
from gradchain.engine.planning.plan import Part
from gradchain.engine.recording.device import DeviceReduced
from gradchain.engine.recording.reduced import Reduced
from gradchain.engine.recording.tape import Lazy, Tape
from gradchain.engine.replay import Recording, Request
from gradchain.engine.sharded_tape import ShardedTape
from gradchain.engine.twins import ShardedLayout, Twins, changed


class ShardedEngine(Engine):
    """Runs a chain on the shards that this rank has."""

    def __init__(self) -> None:
        super().__init__()
        self._twins = Twins()
        self.tape = partial(ShardedTape, self._twins, self._meetings)
        self.layout = partial(ShardedLayout, self._twins)

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardedEngine, ()

    @none_where_it_cannot
    def step(
        self, tx: chain, step: Step, received: Tensors, state: Links, params: EagerTensors, lent: bool
    ) -> Outcome | None:
        """As by Engine; what is given and what comes out are DTensors."""
        assert isinstance(received, EagerTensors)
        twins, before, everyone = self._twins, self._twins.local, self._twins.everyone
        weights = twins.begin(params)
        if weights is not before:
            self._replays.forget()  # they know over which ranks their numbers meet
        if twins.everyone != everyone:
            self._meetings.forget()
        self._meetings.begin(twins.everyone, twins.device)
        local = twins.of_state(state)
        try:
            grads = twins.gradients(received)
            done = self._step(tx, step._replace(params=weights), grads, local, weights, lent)
        except (OnEveryRank, FailedElsewhere):
            raise
        except (Unrecorded, NoKernel) as reason:
            self._tell_others(str(reason), False, tx, step, received.index, local, weights)
            raise
        except Exception as error:
            if not self._meetings.torn:
                with suppress(Exception):  # it may fail again, and on every rank
                    self._tell_others(repr(error), True, tx, step, received.index, local, weights)
            raise
        if done.applied:
            done.commit.after(partial(_torch.increment_version, params._data))  # autograd holds these, not their shards
        outside = twins.whole_state(state, local, done.state)
        done.commit.after(partial(twins.keep, outside, done.state))
        return done._replace(state=outside)

    def _tell_others(
        self, why: str, failed: bool, tx: chain, step: Step, index: Index, state: Links, weights: EagerTensors
    ) -> None:
        """This rank cannot run a step: go through the links, over memory that nobody reads, to the next meeting.

        RuntimeError where there is none, and the others, which have met in this step, are about to write it.
        """
        self._meetings.absents(why, failed)
        try:
            ghosts = _ghost(weights)
            shadow = changed(state, lambda field: self._twins.carried(field, _ghost(field)))
            self._step(tx, step._replace(params=ghosts), _ghost(weights, index), shadow, ghosts, True)
        finally:
            self.forget()
        if self._meetings.kinds:
            raise RuntimeError(
                f"update: every rank must run a step in the same way, got one that cannot run it by kernels: {why}. "
                "Give its tensors the dtypes and strides that others have, and it the same executors."
            )

    def count_only(self, before: Links, state: Links) -> None:
        """As by Engine; the states are of DTensors."""
        inside = self._twins.counted(before, state)
        if inside is None or self._state is None:
            super().count_only(before, state)
        else:
            super().count_only(self._state, inside)

    def _why_without_numbers(self, request: Request) -> str:
        return self._meetings.absent or super()._why_without_numbers(request)

    def _recorded(self, request: Request) -> Outcome:
        tx, index = request.tx, request.grads.index
        self._meetings.on_device = numbers_on(self.executors) is not None
        self._meetings.agree((id(tx), id(index)), (tx, index))
        return super()._recorded(request)

    def _prepared(self, request: Request, recorded: Recording, why: str = "") -> Outcome:
        done = super()._prepared(request, recorded, why)
        if self._meetings.kinds:  # else nobody waits for this rank, whoever runs its step
            tx, index = request.tx, request.grads.index
            self._meetings.agree((id(tx), id(index), done.applied, *self._meetings.kinds), (tx, index))
        return done

    # parts: a rank that is absent runs none

    def _write(self, tape: Tape, roots: list[tuple[int, int]], commit: Commit) -> list[Part]:
        return [] if self._meetings.absent else super()._write(tape, roots, commit)

    def _fill(self, tape: Tape, outs: list[EagerTensors], parts: list[Part]) -> None:
        if not self._meetings.absent:
            super()._fill(tape, outs, parts)

    def _settle(self, tape: Tape) -> None:
        if self._meetings.absent:
            tape.pending.clear()
        super()._settle(tape)

    def _compute(self, tape: Tape, node: int) -> EagerTensors:
        if not self._meetings.absent:
            return super()._compute(tape, node)
        return self._fresh(tape, tape.indices[node], tape.shapes[node], tape.dtypes(node))

    def _reduce(self, tape: Tape, node: int, kind: str) -> Reduced | DeviceReduced:
        assert isinstance(tape, ShardedTape)
        names = tape.indices[node].names
        reduced: Reduced | DeviceReduced = Reduced(names, [0.0] * len(names))
        if not self._meetings.absent:
            reduced = super()._reduce(tape, node, kind)
        groups = self._twins.groups(names, tape.ones(node))
        if not groups:
            return reduced
        number, largest = self._meetings.next((kind, names)), REDUCTIONS[kind].meet is not SUM
        meet = partial(self._met, number, groups, largest)
        if isinstance(reduced, DeviceReduced):
            return reduced.met(names, meet)
        if self._inputs is None:
            return Reduced(names, _of_list(meet, reduced.rows))
        ledger = self._inputs.ledger
        return Reduced(names, ledger.handle(ledger.meets(partial(_of_list, meet), reduced.rows)))

    def _met(self, number: int, groups: Groups, largest: bool, mine: Tensor) -> Tensor:
        """What the numbers of this rank are with those of the others."""
        met: Tensor = self._meetings.once(number, partial(self._meetings.numbers, mine, groups, largest))
        return met

    def _whole(
        self, value: Lazy, before: Any, received: EagerTensors, roots: list[tuple[int, int]], held: bool
    ) -> EagerTensors:
        tape, kind = value.tape, value.tape.ops[value.node]
        if tape.is_odd(value.node):
            raise OnEveryRank("a link keeps entries of other shapes than their weights' for a while")
        if len(value) and kind[0] == "leaf" and kind != ("leaf", "grad"):
            return tape.leaves[value.node]
        return super()._whole(value, before, received, roots, held)


def _of_list(meet: Callable[[Tensor], Tensor], rows: list[float]) -> list[float]:
    made: list[float] = meet(torch.tensor(rows, dtype=torch.float64, device="cpu")).tolist()
    return made


def _ghost(tensors: EagerTensors, index: Index | None = None) -> EagerTensors:
    """Memory for such entries, as any kernel takes it."""
    index = tensors.index if index is None else index
    like = [tensors._data[tensors.index.position[name]] for name in index.names]
    dtypes = [t.dtype if t.dtype in TYPES else torch.float32 for t in like]
    return EagerTensors(index, [torch.zeros(t.shape, dtype=d, device="cpu") for t, d in zip(like, dtypes, strict=True)])
