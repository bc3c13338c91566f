"""Random numbers on a tape: a line that reads no memory, or tensors made beside the kernels where those cannot."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradchain.core.eager import EagerTensors
from gradchain.core.index import Fact, Index
from gradchain.core.random import Draw
from gradchain.core.scalars import Scalars

if TYPE_CHECKING:
    from gradchain.engine.recording.tape import Lazy, Tape


def on_tape(like: Lazy, draw: Draw) -> Lazy:
    """The numbers of a draw. Kernels go over memory, so they draw where that has the elements in their order."""
    tape, index = like.tape, like.index
    weights = tape.weights
    rows = [(fact, weights._data[weights.index.position[fact.name]]) for fact in index.facts]
    odd = tape.is_odd(like.node)  # of entries with other shapes than their weights', no kernel knows the elements
    others = [fact.name for fact, weight in rows if odd or _first(fact, weight) is None]
    if not others:
        return _line(like, draw, rows)
    made = _beside(tape, like, draw, index.subset(others))
    if len(others) == len(index):
        return made
    return tape.node(("overlay", _line(like, draw, rows).node, made.node), index)


def _line(like: Lazy, draw: Draw, rows: list[tuple[Fact, Tensor]]) -> Lazy:
    """One operation on the tape: what it is like says in which dtype, the rest are numbers."""
    tape, index = like.tape, like.index
    firsts = [_first(fact, weight) or 0 for fact, weight in rows]
    numbers = (*_columns(index, draw), draw.step, Scalars.over(index, _column(firsts)) if any(firsts) else 0.0)
    operands = [tape.operand(number, index) for number in numbers]
    return tape.node(("draw", like.node, *operands, (draw.kind, draw.stream)), index)


def _first(fact: Fact, weight: Tensor) -> int | None:
    """Which element of the whole comes first in memory; None where those in memory do not follow each other."""
    if not weight.is_contiguous():
        return None
    return 0 if fact.place is None else fact.place.of_reals(weight.shape).run(weight.shape)


def _columns(index: Index, draw: Draw) -> list[Scalars]:
    """Both words of the keys, per parameter: exact in float64."""
    place = ("random", draw.address)
    known: Any = index.memo.get(place)  # one seed for each link: somebody may draw with another at each step
    if known is None or known[0] != draw.seed:
        keys = draw.keys(index.names)
        known = index.memo[place] = draw.seed, [_column([key[i] for key in keys]) for i in range(2)]
    return [Scalars.over(index, column) for column in known[1]]


def _column(numbers: list[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")


def _beside(tape: Tape, like: Lazy, draw: Draw, index: Index) -> Lazy:
    """Tensors of the numbers: made anew whenever the step is run again."""
    weights, dtypes = tape.weights, dict(zip(like.index.names, tape.dtypes(like.node), strict=True))
    kinds = [dtypes[name] for name in index.names]
    places = [weights._data[weights.index.position[name]] for name in index.names]
    shapes = [shape for shape, name in zip(like._shapes(), like.index.names, strict=True) if name in index]
    return tape.leaf("extra", tape.in_memory(partial(_made, index, places, shapes, kinds, draw), draw.step))


def _made(
    index: Index, weights: list[Tensor], shapes: list[torch.Size], dtypes: list[torch.dtype], draw: Draw, step: Any
) -> EagerTensors:
    entries = zip(index.facts, shapes, dtypes, (weight.device for weight in weights), strict=True)
    return EagerTensors(index, draw._replace(step=step).of_all(list(entries)))
