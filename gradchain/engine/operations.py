"""What recording, planning and executors all know: reductions, the dtypes of kernels, and why a chain cannot run.

The elementwise operations are in `core.operations`, for Tensors compute with them. A reduction of a kernel is the
engine's alone (Tensors have norms and sums of their own, over ranks and under autograd), so the table of those is here:
each once, in torch, C, Triton and the torch that Inductor compiles. A new reduction is one record.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gradchain.core.operations import OPERATIONS

BOOLEAN = frozenset(name for name, operation in OPERATIONS.items() if operation.mask)
"""Operations whose elements are true or false."""


@dataclass(frozen=True)
class Meeting:
    """How partial results of a reduction meet, all in float64. Of nothing at all it is 0.

    Attributes:
        host: of two numbers of the host.
        c: C of two, "{0}" and "{1}".
        triton: Triton of two blocks, element by element.
        block: Triton of all elements of a block, "{0}".
        torch: the method of tensors, and the function of torch, that meets all elements.
        helper: C that stands before the kernel.
        pragma: what gcc has to be told of a loop that meets elements.
    """

    host: Callable[[float, float], float]
    c: str
    triton: str
    block: str
    torch: str
    helper: str = ""
    pragma: str = ""


SUM = Meeting(operator.add, c="{0} + {1}", triton="{0} + {1}", block="tl.sum({0})", torch="sum")
# Magnitudes compare as their bits do, and a NaN is larger than all: one comparison, which gcc makes vector code of. In
# Triton the second term of a block is NaN where any element is, else 0.
LARGEST = Meeting(
    lambda a, b: b if b > a or b != b else a,
    c="LARGER({0}, {1})",
    helper="""\
static inline double LARGER(double a, double b) {
  union { double f; int64_t i; } x, y; x.f = a; y.f = b;
  return x.i > y.i ? a : b;
}""",
    triton="tl.where(({1} > {0}) | ({1} != {1}), {1}, {0})",
    block="tl.max(tl.where({0} == {0}, {0}, 0.0)) + tl.sum(tl.where({0} != {0}, {0}, 0.0))",
    torch="amax",
    pragma="#pragma GCC unroll 1",  # gcc makes no vectors of choices once they are unrolled
)


@dataclass(frozen=True)
class Reduction:
    """What makes one number of the elements of a tensor.

    Attributes:
        truth: of a tensor, as a 0-d one of float64.
        meet: how what the elements give meets.
        c: C of what one element `v` gives.
        triton: Triton of what the elements `wide` give, which are float64.
        torch: torch of the same.
        most: how many elements `truth` makes one number of in the same order by any number of threads.
    """

    truth: Callable[[Tensor], Tensor]
    meet: Meeting
    c: str
    triton: str
    torch: str
    most: int = 1 << 14  # torch reduces so many in one thread


_STRIP = 1 << 9


def _squares(v: Tensor) -> Tensor:
    """By norms of strips of a copy in float64: of what is float64 torch's norms are vector code."""
    norm, wide = torch.linalg.vector_norm, v.reshape(-1).double()
    whole = wide.numel() - wide.numel() % _STRIP
    rest: Tensor = norm(wide[whole:]).square()
    if whole:
        rest = rest + norm(norm(wide[:whole].view(-1, _STRIP), dim=-1)).square()
    return rest


REDUCTIONS: dict[str, Reduction] = {
    "sum": Reduction(lambda v: v.sum(dtype=torch.float64), SUM, c="(double)v", triton="wide", torch="wide"),
    "sum1": Reduction(
        lambda v: torch.linalg.vector_norm(v, 1, dtype=torch.float64),
        SUM,
        c="fabs((double)v)",
        triton="tl.abs(wide)",
        torch="wide.abs()",
    ),
    "sum2": Reduction(
        _squares,
        SUM,
        c="(double)v * (double)v",
        triton="wide * wide",
        torch="(wide * wide)",
        most=_STRIP << 8,  # each strip is one thread's, and so are the norms of as many
    ),
    "max": Reduction(
        lambda v: torch.linalg.vector_norm(v, float("inf"), dtype=torch.float64),
        LARGEST,
        c="fabs((double)v)",
        triton="tl.abs(wide)",
        torch="wide.abs()",
    ),
    "bad": Reduction(
        lambda v: (~torch.isfinite(v)).sum(dtype=torch.float64),
        SUM,
        c="(double)!((v - v) == 0)",
        triton="((wide - wide) != 0.0).to(tl.float64)",
        torch="(~torch.isfinite(wide)).double()",
    ),
}
"""Every reduction: the sums of elements, magnitudes and squares, the largest magnitude, how many are not finite."""


class Type(NamedTuple):
    """What printed programs call a dtype."""

    c: str
    triton: str


TYPES = {
    torch.float32: Type("f32", "tl.float32"),
    torch.float64: Type("f64", "tl.float64"),
    torch.bfloat16: Type("bf16", "tl.uint16"),  # by its bits, in both: the same on every device and in the interpreter
    torch.float16: Type("f16", "tl.float16"),
}
"""The dtypes that kernels read and write."""


class Unrecorded(Exception):  # noqa: N818  # not an error: it says that this step runs by the reference
    """A link did what no tape can hold; the sentence says what."""
