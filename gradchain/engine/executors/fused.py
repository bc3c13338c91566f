"""torch's fused kernels for that part of a program which is one of them, and calls over lists for the rest of it.

A factor of the gradient that lies on the device, as that of a clip, is handed to the kernel where it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradchain.core import _torch
from gradchain.engine.commit import Commit
from gradchain.engine.executors.base import NoKernel
from gradchain.engine.executors.chunks import chunked
from gradchain.engine.executors.foreach import Foreach
from gradchain.engine.executors.given import Given
from gradchain.engine.executors.lists import ListRunner, Script, born
from gradchain.engine.executors.patterns import Match, matched, takes
from gradchain.engine.planning.lower import Program, Value
from gradchain.engine.planning.rows import Column, HandsOver

KERNELS = (torch.float32, torch.float64)
LARGEST = 2.0**127  # that a kernel divides gradients by at once, in float32


class Fused:
    """Programs of which a part is AdamW, Adam or SGD, on one device."""

    name = "fused"
    grids = False

    def __init__(self, device: torch.device | str) -> None:
        self.device = self.numbers_on = torch.device(device)

    def legal(self, program: Program, dtypes: Sequence[torch.dtype]) -> str | None:
        """Why no fused kernel computes a part of this program, or None."""
        if program.reduce or len(set(dtypes)) != 1:
            return "fused kernels neither reduce, nor take several dtypes"
        if dtypes[0] not in KERNELS:
            return "fused kernels round as they go in low precision"
        if _parted(program) is None:
            return "no fused kernel of torch computes a part of this that can be done first"
        return Foreach(self.device).legal(program, dtypes)

    def ready(self, program: Program, dtypes: Sequence[torch.dtype], sizes: Sequence[int]) -> FusedRunner:
        """The kernel, where its arguments are, and what comes after it."""
        parted = _parted(program)
        if parted is None:
            raise NoKernel("no fused kernel of torch computes a part of this")
        match, rest = parted
        lists = Foreach(self.device)
        after = lists.ready(rest, dtypes, sizes) if rest.stores else None
        return FusedRunner(program, match, after, lists.ready(program, dtypes, sizes), sizes, dtypes[0])


class FusedRunner(HandsOver):
    """One fused kernel over rows, what comes after it, and what runs where the numbers are none that it can take."""

    scratch = None  # it depends on whether the kernel can take the numbers, and may write the gradients
    source = None

    def __init__(
        self,
        program: Program,
        match: Match,
        after: ListRunner | None,
        otherwise: ListRunner,
        sizes: Sequence[int],
        dtype: torch.dtype,
    ) -> None:
        self._program, self._match = program, match
        self._after, self._otherwise = after, otherwise
        self._sizes, self._dtype = sizes, dtype
        self._whole, self._some = chunked(sizes, 0, 0), chunked(sizes, 1, dtype.itemsize)

    def run(self, columns: Sequence[Column], scalars: Sequence[Any], entries: Sequence[Any]) -> None:
        """Run over all rows; see Runner."""
        self.launch(columns, scalars, entries)

    def launch(self, columns: Sequence[Column], scalars: Sequence[Any], entries: Sequence[Any]) -> None:
        """Run over all rows without waiting; gradients that are read again stay as they are."""
        self.handed_to = Foreach.name
        self._otherwise.launch(columns, scalars, entries)

    def write(self, commit: Commit, columns: Sequence[Column], scalars: Sequence[Any], entries: Sequence[Any]) -> None:
        """Have a commit run it over all rows, without waiting; see Runner."""
        match = self._match
        numbers = {name: scalars[slot] for name, slot in match.scalars.items()}
        taken = not any(isinstance(n, Tensor) for n in numbers.values()) and takes(numbers)
        self.handed_to = "" if taken else Foreach.name
        if not taken:
            self._otherwise.write(commit, columns, scalars, entries)
            return
        factor = _factor(match, Given(self._program, scalars, entries, self._otherwise.device, self._dtype))
        gradient = columns[match.columns["g"]]
        # the kernel writes over gradients that it divides by a number, and takes that in float32
        apart = factor is not None and (gradient.lent or gradient.stays or self._dtype is torch.float64)
        scale, rest = (None, None) if factor is None or self._dtype is torch.float64 else self._divisors(factor)
        calls: list[Callable[[], object]] = []
        for chunk in self._some if apart else self._whole:
            held = {name: chunk.cut(columns[i].tensors) for name, i in match.columns.items()}
            grads = held["g"]
            if apart:
                grads, (op, number) = [], ("mul", factor) if scale is None else ("div", rest)
                calls.append(born(grads, _torch.foreach(op), [held["g"], number]))
            elif isinstance(rest, Tensor):
                calls.append(_divided(held["p"], grads, rest))
            calls.append(match.kernel(held, grads, scale, numbers))
            calls.extend([partial(grads.clear)] if apart else [])
        commit.add(Script(calls, 1 if apart else 0))
        if self._after is not None:
            self._after.write(commit, columns, scalars, entries)

    def _divisors(self, factor: Any) -> tuple[Tensor, Tensor | float]:
        """What the kernel divides gradients by, and what they are divided by before: 1 where one number is enough.

        A norm of float32 gradients may be beyond float32, and nobody waits to hear whether it is.
        """
        if isinstance(factor, Tensor):
            whole = factor.reciprocal()
            scale = whole.clamp(-LARGEST, LARGEST)
            return scale.to(torch.float32), (whole / scale).to(torch.float32)
        number = partial(torch.full, (), dtype=torch.float32, device=self._otherwise.device)
        inverse = 1.0 / factor if factor else math.inf
        if abs(inverse) > LARGEST:
            most = math.copysign(LARGEST, inverse)
            return number(most), number(inverse / most)
        return number(inverse), 1.0


def _divided(params: list[Tensor], grads: list[Tensor], by: Tensor) -> Callable[[], object]:
    """Gradients divided by a number of the device, in place, by one call of C that does nothing where it is 1.

    That is a step of SGD at a rate of 0, which divides gradients by their scale, and which is told by that very number
    whether to be left out. The weights stay as they are.
    """
    hyper = {"lr": 0.0, "momentum": 0.0, "weight_decay": 0.0, "found_inf": by}
    return _torch.fused_sgd(params, grads, [], False, by, **hyper)


def _factor(match: Match, given: Given) -> Any:
    """What the gradient is multiplied by: a number of the host or of the device; None where it is as it is."""
    factor: Any = 1.0
    for op, value in match.factors or ():
        factor = factor * given[value] if op == "mul" else factor / given[value]
    return None if not isinstance(factor, Tensor) and factor == 1.0 else factor


def _parted(program: Program) -> tuple[Match, Program] | None:
    """The part of a program that is a fused kernel, and what is left to be done once that has run. None for none."""
    match = matched(program, whole=False)
    if match is None or any(_per_row(program, value) for _, value in match.factors or ()):
        return None
    done = {column: value for column, value in program.stores if column in match.written}
    gone = set(done) | ({match.columns["g"]} if match.factors else set())
    rest = _Rest(program, {value: ("load", column) for column, value in done.items()}, gone)
    left = [(column, rest.moved(value)) for column, value in program.stores if column not in done]
    if rest.impossible:
        return None
    numbers = program.numbers if rest.on_device else []
    return match, replace(program, instructions=rest.instructions, stores=left, numbers=numbers)


def _per_row(program: Program, value: Value) -> bool:
    """Whether a number is another one for each row: a kernel divides all gradients by the same."""
    if value[0] == "device":
        return any(_per_row(program, operand) for operand in program.numbers[value[1]][1])
    return bool(value[0] == "entry")


class _Rest:
    """What is left of a program once some of its values lie in columns.

    Attributes:
        instructions: what has still to be computed.
        impossible: whether that reads something that is there no more.
        on_device: whether it reads numbers that are computed on the device.
    """

    def __init__(self, program: Program, known: dict[Value, Value], gone: set[int]) -> None:
        self._program, self._gone = program, gone
        self._moved: dict[Value, Value] = dict(known)
        self.instructions: list[tuple[str, tuple[Value, ...]]] = []
        self.impossible = self.on_device = False

    def moved(self, value: Value) -> Value:
        """The operand that holds a value of the program from then on."""
        if value not in self._moved:
            if value[0] == "value":
                op, operands = self._program.instructions[value[1]]
                given = tuple(map(self.moved, operands))
                self.instructions.append((op, given))
                self._moved[value] = ("value", len(self.instructions) - 1)
            else:
                self.on_device |= value[0] == "device"
                self.impossible |= value[0] == "load" and value[1] in self._gone
                self._moved[value] = value
        return self._moved[value]
