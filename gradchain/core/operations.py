"""Each elementwise operation, once: what it is of tensors, of numbers of the host, in C and in Triton.

Rules are written in these operations: Tensors compute them, a tape records them by name, kernels are printed of them.
The table lies in core, which computes with its truths and may not know the engine. The texts of kernels lie beside
those, though only the engine reads them: were they in its rooms, a new operation would cost a place in each. A text is
a text; nothing here knows who prints it.

To add an operation, add its record to the table. Tensors, both printers, every executor and the tests of every
operation follow from it; where a piece is missing, the record cannot be made, or a test names the piece. What is
peculiar to one is a field of `Operation` (a lerp wants ends of one dtype), not a line elsewhere. A rule then needs a
word to call it by: a method of Tensors, or a function of `scalars` where numbers have it too, with rows in the tests
of such words (`tests/engine/programs.py`, `test_masks.py`). Two names are more than operations: by "where" masks
choose too, and "number" makes 0 and 1 of one, so Tensors and the lowering know them.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradchain.core.elementary import ANGLES, EXPONENTIALS, LOGARITHMS, POWERS


@dataclass(frozen=True)
class Operation:
    """What is done to each element.

    Attributes:
        name: as tapes and programs have it.
        takes: a letter per operand: "n" numbers, "m" a mask.
        truth: of tensors and numbers, at least one of them a tensor: what every executor is held to.
        c: C of it, over "{0}", "{1}" … of the compute type C, masks being ints. F(sqrt) is sqrt or sqrtf, as C is.
        triton: Triton of it, over the same, in the compute dtype "{C}". It rounds as the truth does.
        host: of numbers of the host alone. None where numbers do not have it, on a device either.
        wide: Triton of it in float64, where that is another.
        helper: C that stands before the kernel.
        column: of float64 tensors and host numbers, where that gives the host's very bits.
        lists: what it is over whole lists, `torch._foreach_` and this, by the kinds of operands: t a list of tensors,
            s one host number, S one host number per tensor, z one 0-d tensor.
        fits: what its operands, as columns, go through first, where torch does not promote them by itself.
        traced: of tensors, for Inductor, where its own of the truth is not near enough.
        mask: whether its elements are truth values.
        typed: whether the truth takes a last operand, the dtype of the result.
    """

    name: str
    takes: str
    truth: Callable[..., Any]
    c: str
    triton: str
    host: Callable[..., Any] | None = None
    wide: str = ""
    helper: str = ""
    column: Callable[..., Tensor] | None = None
    lists: Mapping[str, str] = field(default_factory=dict)
    fits: Callable[[Sequence[Any]], Sequence[Any]] | None = None
    traced: Callable[..., Tensor] | None = None
    mask: bool = False
    typed: bool = False

    @functools.cached_property
    def logical(self) -> bool:
        """Whether all it takes are masks: to any other operation a mask is 0 and 1."""
        return "n" not in self.takes


def divide(a: Any, b: Any) -> Any:
    """`a / b` with a tensor's answer to zero: inf or nan, where Python would raise."""
    if isinstance(b, (int, float)) and b == 0 and isinstance(a, (int, float)):
        return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1.0, b)
    return a / b


def _unbounded(rule: Callable[[float], float]) -> Callable[[Any], float]:
    """A function of the math module with a tensor's answer to what is too large: inf, where Python would raise."""

    def of_number(a: Any) -> float:
        try:
            return rule(a)
        except OverflowError:
            return math.inf

    return of_number


def _logarithm(rule: Callable[[float], float], pole: float) -> Callable[[Any], float]:
    """A logarithm with a tensor's answer at its pole and below: -inf and nan, where Python would raise."""

    def of_number(a: Any) -> float:
        return rule(a) if a > pole else -math.inf if a == pole else math.nan

    return of_number


def _integral(rule: Callable[[Any], int]) -> Callable[[Any], Any]:
    """What gives Python an int, as a float with the sign of its zero. inf and nan stay, and so do ints."""

    def of_number(a: Any) -> Any:
        return a if isinstance(a, int) or not math.isfinite(a) else math.copysign(rule(a), a)

    return of_number


def _remainder(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int) and b:
        return a % b
    if b == 0 or math.isinf(a):  # where Python would raise
        return math.nan
    left = math.fmod(a, b)
    return left + b if left != 0 and (b < 0) != (left < 0) else left


def _maximum(a: Any, b: Any) -> Tensor:
    # clamp takes a number as it is: making a tensor of it would wait for the device
    if isinstance(b, Tensor):
        return torch.maximum(a, b) if isinstance(a, Tensor) else torch.clamp_min(b, a)
    return torch.clamp_min(a, b)


def _minimum(a: Any, b: Any) -> Tensor:
    if isinstance(b, Tensor):
        return torch.minimum(a, b) if isinstance(a, Tensor) else torch.clamp_max(b, a)
    return torch.clamp_max(a, b)


def _of_tensors(rule: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Any], Tensor]:
    """A function of two tensors that torch, or one of its transforms, does not have of a number and a tensor."""

    def of_any(a: Any, b: Any) -> Tensor:
        a = a if isinstance(a, Tensor) else torch.full_like(b, a)
        return rule(a, b if isinstance(b, Tensor) else torch.full_like(a, b))

    return of_any


def _traced_expm1(a: Tensor) -> Tensor:
    # Inductor takes 1 from exp(a), which leaves nothing of a small number
    half = torch.tanh(0.5 * a)
    return torch.where(a.abs() < 1.0, 2.0 * half / (1.0 - half), torch.exp(a) - 1.0)


def _traced_erf(a: Tensor) -> Tensor:
    # Inductor's of float32 is near in units of 1, not of a small result
    return torch.erf(a.double()).to(a.dtype)


def _traced_remainder(a: Tensor, b: Tensor) -> Tensor:
    # Inductor takes b * floor(a / b) from a, whose product is rounded, and NaN where b is infinite
    left = torch.fmod(a, b)
    return torch.where((left != 0) & ((b < 0) != (left < 0)), left + b, left)


def _lerp(start: Any, end: Any, weight: Any) -> Tensor:
    # torch.lerp wants a weight of the very dtype of its ends; a float64 0-d weight over float32 ends is ours.
    if isinstance(weight, Tensor):
        moved: Tensor = start + weight * (end - start)
        return moved
    return torch.lerp(start, end, weight)


def _ends_alike(columns: Sequence[Any]) -> Sequence[Any]:
    """Both ends of a lerp in the wider dtype of the two: torch.lerp wants one, where sums and products promote."""
    start, end, weight = columns
    pairs = list(zip(start, end, strict=True))
    if all(a.dtype == b.dtype for a, b in pairs):
        return columns
    wide = [torch.promote_types(a.dtype, b.dtype) for a, b in pairs]
    return [*([t.to(d) for t, d in zip(ends, wide, strict=True)] for ends in (start, end)), weight]


def _where(condition: Any, a: Any, b: Any) -> Tensor:
    if isinstance(condition, Tensor):  # truths of the host, one per parameter, lie in a column of numbers
        return torch.where(condition if condition.dtype is torch.bool else condition != 0, a, b)
    # a truth of the host, as what a count is compared with
    chosen, like = a if condition else b, a if isinstance(a, Tensor) else b
    whole = isinstance(chosen, Tensor) and chosen.shape == like.shape
    return chosen if whole else torch.zeros_like(like) + chosen  # type: ignore[no-any-return]


def _not(mask: Any) -> Any:
    return torch.logical_not(mask) if isinstance(mask, Tensor) else not mask


def _number(mask: Any, dtype: Any) -> Any:
    return mask.to(dtype) if isinstance(mask, Tensor) else float(mask)


def _divided_columns(a: Any, b: Any) -> Tensor:
    return torch.div(a if isinstance(a, Tensor) else torch.full_like(b, a), b)  # not by a reciprocal


def _arithmetic() -> list[Operation]:
    add, sub, mul = operator.add, operator.sub, operator.mul
    lists = {"tt": "mul", "ts": "mul", "tS": "mul", "tz": "mul"}
    return [
        Operation("add", "nn", add, "({0} + {1})", "({0} + {1})", add, column=add, lists={"tt": "add", "ts": "add"}),
        Operation("sub", "nn", sub, "({0} - {1})", "({0} - {1})", sub, column=sub, lists={"tt": "sub", "ts": "sub"}),
        Operation("mul", "nn", mul, "({0} * {1})", "({0} * {1})", mul, column=mul, lists=lists),
        Operation(
            "div",
            "nn",
            operator.truediv,
            c="({0} / {1})",
            triton="tl.div_rn({0}, {1})",  # `/` is approximate in float32
            wide="({0} / {1})",
            host=divide,
            column=_divided_columns,
            lists={"tt": "div", "ts": "div", "tS": "div"},
        ),
        Operation(
            "pow",
            "nn",
            torch.pow,
            c="F(POW)({0}, {1})",
            helper=POWERS,
            triton="libdevice.pow({0}, {1})",
            host=operator.pow,
            lists={"ts": "pow", "st": "pow"},
        ),
        Operation(
            "lerp",
            "nnn",
            _lerp,
            c="LERP({0}, {1}, {2})",
            helper="static inline C LERP(C a, C b, C w) "
            "{ return F(fabs)(w) < (C)0.5 ? a + w * (b - a) : b - (b - a) * ((C)1 - w); }",
            triton="tl.where(tl.abs({2}) < 0.5, {0} + {2} * ({1} - {0}), {1} - ({1} - {0}) * (1.0 - {2}))",
            lists={"tts": "lerp"},
            fits=_ends_alike,
        ),
    ]


def _extremes() -> list[Operation]:
    """NaNs go through them in C and Triton as through torch's."""
    return [
        Operation(
            "maximum",
            "nn",
            _maximum,
            c="MAXIMUM({0}, {1})",
            helper="static inline C MAXIMUM(C a, C b) { C r = a <= b ? b : a; return b != b ? b : r; }",
            triton="tl.where(({0} >= {1}) | ({0} != {0}), {0}, {1})",
            host=lambda a, b: a if a != a or a > b else b,
            lists={"tt": "maximum", "ts": "clamp_min"},
        ),
        Operation(
            "minimum",
            "nn",
            _minimum,
            c="MINIMUM({0}, {1})",
            helper="static inline C MINIMUM(C a, C b) { C r = a >= b ? b : a; return b != b ? b : r; }",
            triton="tl.where(({0} <= {1}) | ({0} != {0}), {0}, {1})",
            host=lambda a, b: a if a != a or a < b else b,
            lists={"tt": "minimum", "ts": "clamp_max"},
        ),
    ]


def _of_one() -> list[Operation]:
    return [
        Operation(
            "sqrt",
            "n",
            torch.sqrt,
            c="F(sqrt)({0})",
            triton="tl.sqrt_rn({0})",  # sqrt is approximate in float32
            wide="tl.sqrt({0})",
            host=lambda a: math.nan if a < 0 else math.sqrt(a),
            lists={"t": "sqrt"},
        ),
        Operation(
            "rsqrt",
            "n",
            torch.rsqrt,
            c="((C)1 / F(sqrt)({0}))",
            triton="tl.div_rn(1.0, tl.sqrt_rn({0}))",
            wide="(1.0 / tl.sqrt({0}))",
            lists={"t": "rsqrt"},
        ),
        Operation(
            "sign",
            "n",
            torch.sign,
            c="((C)(({0} > 0) - ({0} < 0)))",  # of a NaN it is 0
            triton="(({0} > 0.0).to({C}) - ({0} < 0.0).to({C}))",
            lists={"t": "sign"},
        ),
        Operation("abs", "n", torch.abs, "F(fabs)({0})", "tl.abs({0})", operator.abs, lists={"t": "abs"}),
    ]


def _elementary() -> list[Operation]:
    """In float32 their C is ours; in Triton the device's library has them."""
    return [
        _function("exp", torch.exp, _unbounded(math.exp), EXPONENTIALS),
        _function("expm1", torch.expm1, _unbounded(math.expm1), EXPONENTIALS, _traced_expm1),
        _function("tanh", torch.tanh, math.tanh, EXPONENTIALS),
        _function("log", torch.log, _logarithm(math.log, 0.0), LOGARITHMS),
        _function("log1p", torch.log1p, _logarithm(math.log1p, -1.0), LOGARITHMS),
        Operation(
            "erf",
            "n",
            torch.erf,
            c="F(erf)({0})",
            triton="libdevice.erf({0})",
            host=math.erf,
            lists={"t": "erf"},
            traced=_traced_erf,
        ),
        Operation(
            "atan2",
            "nn",
            _of_tensors(torch.atan2),
            c="F(ATAN2)({0}, {1})",
            helper=ANGLES,
            triton="libdevice.atan2({0}, {1})",
            host=math.atan2,
        ),
    ]


def _function(
    name: str, truth: Callable[..., Any], host: Callable[..., Any], helper: str, traced: Any = None
) -> Operation:
    c, triton = f"F({name.upper()})({{0}})", f"libdevice.{name}({{0}})"
    return Operation(name, "n", truth, c, triton, host, helper=helper, lists={"t": name}, traced=traced)


def _steps() -> list[Operation]:
    """Each gives the very bits of torch's, the sign of a zero too.

    But for a remainder whose quotient is too large for its dtype: torch's vectors have NaN there, C has the remainder.
    """
    return [
        Operation(
            "round",
            "n",
            torch.round,
            c="F(rint)({0})",  # half to even
            triton="libdevice.rint({0})",
            host=_integral(round),
            lists={"t": "round"},
        ),
        Operation(
            "floor", "n", torch.floor, "F(floor)({0})", "tl.floor({0})", _integral(math.floor), lists={"t": "floor"}
        ),
        Operation(
            "remainder",
            "nn",
            _of_tensors(torch.remainder),
            c="REMAINDER({0}, {1})",
            helper="static inline C REMAINDER(C a, C b) "
            "{ C left = F(fmod)(a, b); return left != 0 && (b < 0) != (left < 0) ? left + b : left; }",
            triton="tl.where((libdevice.fmod({0}, {1}) != 0.0) & (({1} < 0.0) != (libdevice.fmod({0}, {1}) < 0.0)), "
            "libdevice.fmod({0}, {1}) + {1}, libdevice.fmod({0}, {1}))",
            host=_remainder,
            traced=_traced_remainder,
        ),
    ]


def _truths() -> list[Operation]:
    """What gives masks, and what takes them."""
    compared = [
        Operation(name, "nn", rule, f"({{0}} {sign} {{1}})", f"({{0}} {sign} {{1}})", rule, mask=True)
        for name, sign, rule in (
            ("lt", "<", operator.lt),
            ("le", "<=", operator.le),
            ("gt", ">", operator.gt),
            ("ge", ">=", operator.ge),
            ("eq", "==", operator.eq),
        )
    ]
    return [
        *compared,
        Operation("isfinite", "n", torch.isfinite, "(({0} - {0}) == 0)", "(({0} - {0}) == 0.0)", mask=True),
        Operation("isnan", "n", torch.isnan, "({0} != {0})", "({0} != {0})", mask=True),
        Operation("and", "mm", operator.and_, "({0} & {1})", "({0} & {1})", mask=True),
        Operation("or", "mm", operator.or_, "({0} | {1})", "({0} | {1})", mask=True),
        Operation("not", "m", _not, "(!{0})", "({0} == 0)", mask=True),
        Operation("number", "m", _number, "((C){0})", "{0}.to({C})", typed=True),  # a mask as 0 and 1
        Operation(
            "where",
            "mnn",
            _where,
            c="({0} ? {1} : {2})",
            triton="tl.where({0}, {1}, {2})",
            host=lambda condition, a, b: a if condition else b,
        ),
    ]


OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (*_arithmetic(), *_extremes(), *_of_one(), *_elementary(), *_steps(), *_truths())
}
"""Every elementwise operation, by its name."""
