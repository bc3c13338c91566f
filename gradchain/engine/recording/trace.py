"""Numbers that remember how they were computed, so that a step can be run again without running its links.

A recording costs the links' own Python at every step. What it leaves is a tape, which is the same at the next step, and
numbers, which are not: they follow from clocks, schedules, counts and norms. A trace is the program of those numbers.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper, is_number
from gradchain.core.scalars import HOST, Count, Operand, Scalars
from gradchain.core.step import Step
from gradchain.core.transform import Transform

if TYPE_CHECKING:
    from gradchain.engine.planning.rows import Column

Op = tuple[Callable[..., Any], int, int, int]
"""(function, first operand, second operand or -1, result), all as slots."""


class Trace:
    """The program of the numbers of one step.

    Attributes:
        gradients: those of a step that is run again, for its reductions.
        values: the number in each slot: constants, inputs, and what this step computed.
        ops: what is computed, in order. A guard is an op whose function raises `Other` where a truth is another one.
        step: what schedules are asked under: the clocks, and the parameters.
        broken: why the step cannot be run again from its numbers; "" if it can.
    """

    def __init__(self, clocks: Mapping[str, float]) -> None:
        self.step = Step(clocks=clocks)
        self.gradients: Column | None = None
        self.values: list[Any] = []
        self.ops: list[Op] = []
        self.broken = ""

    def number(self, value: Any) -> Traced:
        """A number that is given anew at each step."""
        self.values.append(value)
        return Traced(self, len(self.values) - 1)

    def slot(self, value: Any) -> int:
        """Where a number is: that of a traced one, or a new one for a constant."""
        if type(value) is Traced:
            return value.slot
        self.values.append(value)
        return len(self.values) - 1

    def applied(self, fn: Callable[..., Any], a: Any, b: Any = None) -> Traced:
        """`fn` of one number or of two, now and whenever the step is run again."""
        if b is None:
            first, second, result = self.slot(a), -1, fn(plain(a))
        else:
            first, second, result = self.slot(a), self.slot(b), fn(plain(a), plain(b))
        out = self.number(result)
        self.ops.append((fn, first, second, out.slot))
        return out

    def hyper(self, link: Transform, hyper: Hyper, ctx: Context) -> Any:
        """A hyperparameter that is not a mere number, resolved now and whenever the step is run again."""
        value = link.value_of(hyper, ctx.under(self.step))
        if not is_number(value) and not (type(value) is Scalars and value.column):
            self.breaks(f"{ctx.address}.{hyper.name} is no host number")
            return value
        out = self.number(value)
        # what is kept with the trace keeps neither it nor this step's context alive, else only a collector frees them
        bare, trace = ctx.under(Step()), weakref.proxy(self)
        self.ops.append((lambda _: _like(link.value_of(hyper, bare.under(trace.step)), value), out.slot, -1, out.slot))
        return out

    def reads(self, owner: str, what: str) -> None:
        """A link reads what the program does not hold."""
        self.breaks(f"{owner} reads {what}")

    def breaks(self, why: str) -> None:
        """Something was done that the program does not hold."""
        self.broken = self.broken or why


class Other(Exception):  # noqa: N818  # not an error: this step takes another way through the links
    """A condition on numbers came out otherwise than in the traced step."""


def _like(value: Any, first: Any) -> Any:
    """A hyperparameter, as long as it is of the traced kind: a number, or a column over the same parameters."""
    if is_number(value) and is_number(first):
        return value
    if type(value) is Scalars and type(first) is Scalars and value.column and first.column:
        if value.column[0] is first.column[0]:
            return value
    raise Other


def _still_true(value: Any) -> Any:
    if not value:
        raise Other
    return value


def _still_false(value: Any) -> Any:
    if value:
        raise Other
    return value


class Traced(Operand[Any]):
    """A number of a trace. It computes as the number does; where Python asks for more than that, the trace breaks."""

    __slots__ = ("slot", "trace")

    def __init__(self, trace: Trace, slot: int) -> None:
        self.trace, self.slot = trace, slot

    @property
    def value(self) -> Any:
        """The number, in this step."""
        return self.trace.values[self.slot]

    def _asked(self, what: str) -> Any:
        self.trace.breaks(f"a number was asked for its {what}")
        return self.value

    def _binary(self, op: str, a: Any, b: Any) -> Any:
        other = b if a is self else a
        if isinstance(other, (int, float, Traced)):
            return self.trace.applied(HOST[op], a, b)
        if isinstance(other, Count):
            return self._binary(op, *(x.value if isinstance(x, Count) else x for x in (a, b)))
        if isinstance(other, (Scalars, Tensor)):
            self.trace.breaks("a number met numbers per parameter or a tensor")
            return HOST[op](plain(a), plain(b))
        return NotImplemented  # Tensors know what to do

    def _apply(self, op: str, args: tuple[Any, ...]) -> Any:
        for arg in args:
            if isinstance(arg, Operand) and not isinstance(arg, (Traced, Scalars)):
                return arg._apply(op, args)  # type: ignore[attr-defined]  # Tensors
        if op in HOST and len(args) <= 2 and not any(isinstance(a, (Scalars, Tensor)) for a in args):
            return self.trace.applied(HOST[op], *args)
        self.trace.breaks(f"{op} of numbers")
        return HOST[op](*map(plain, args))

    def _is_mask(self) -> bool:
        return True  # one number is a condition for all

    def __neg__(self) -> Traced:
        return self.trace.applied(operator.neg, self)

    def __abs__(self) -> Traced:
        return self.trace.applied(operator.abs, self)

    def __mod__(self, other: float) -> Traced:
        return self.trace.applied(operator.mod, self, other)

    def __floordiv__(self, other: float) -> Traced:
        return self.trace.applied(operator.floordiv, self, other)

    def __eq__(self, other: object) -> Any:
        return self.trace.applied(operator.eq, self, other) if isinstance(other, (int, float, Traced)) else False

    def __bool__(self) -> bool:
        truth = bool(self.value)
        self.trace.ops.append((_still_true if truth else _still_false, self.slot, -1, self.slot))
        return truth

    def __float__(self) -> float:
        return float(self._asked("float"))

    def __int__(self) -> int:
        return int(self._asked("int"))

    def __index__(self) -> int:
        return operator.index(self._asked("index"))

    def __repr__(self) -> str:
        return repr(self._asked("repr"))


def plain(value: Any) -> Any:
    """The number itself."""
    return value.value if type(value) is Traced else value
