"""Programs that torch has a fused kernel for: recognised by what they compute, not by which link wrote them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradchain.core import _torch
from gradchain.engine.commit import Commit
from gradchain.engine.executors.base import NoKernel
from gradchain.engine.executors.blocks import Blocks
from gradchain.engine.planning.lower import Program, Value
from gradchain.engine.planning.rows import Column, HandsOver, Runner

TINY = torch.finfo(torch.float32).tiny

# A pattern is a term: ("op", term, …), a column "p", "m", …, a scalar "$name", or "g", the gradient, which may be
# multiplied and divided by any number of scalars. A name that stands twice stands for the same thing.
Term = Any
# of lists by name, gradients, what those are divided by, and numbers by name: one call of C that is to be made
Kernel = Callable[[dict[str, list[Tensor]], Any, "Tensor | None", dict[str, float]], Callable[[], object]]


def _adam(decay: bool) -> dict[str, Term]:
    mu = ("lerp", "m", "g", "$w1")
    nu = ("add", ("mul", "$b2", "v"), ("mul", ("mul", "$w2", "g"), "g"))
    root = ("sqrt", ("add", nu, "$eps_root"))
    direction: Term = ("div", mu, ("mul", ("add", root, "$eps"), "$c"))
    if decay:
        direction = ("add", direction, ("mul", "$decay", "p"))
    return {"p": ("add", "p", ("mul", "$step", direction)), "m": mu, "v": nu}


def _sgd(decay: bool, momentum: bool, nesterov: bool) -> dict[str, Term]:
    g: Term = ("add", "g", ("mul", "$decay", "p")) if decay else "g"
    if not momentum:
        return {"p": ("add", "p", ("mul", "$step", g))}
    buffer = ("add", g, ("mul", "$momentum", "b"))
    direction = ("add", g, ("mul", "$momentum2", buffer)) if nesterov else buffer
    return {"p": ("add", "p", ("mul", "$step", direction)), "b": buffer}


class Patterns:
    """Programs equal to AdamW, Adam or SGD, run by torch's fused kernels."""

    name = "patterns"
    grids = False
    numbers_on = None

    def legal(self, program: Program, dtypes: Sequence[torch.dtype]) -> str | None:
        """Why no fused kernel computes this program, or None."""
        if program.reduce or program.entries or program.draws or len(set(dtypes)) != 1:
            return "fused kernels neither reduce, nor take numbers per parameter or several dtypes"
        match = matched(program)
        if match is None:
            return "no fused kernel of torch computes this"
        if dtypes[0] not in (torch.float32, torch.float64):
            return "fused kernels round as they go in low precision"
        if match.factors and dtypes[0] is torch.float64:
            return "fused kernels take the gradient's factor in float32 only"
        return None

    def ready(self, program: Program, dtypes: Sequence[torch.dtype], sizes: Sequence[int]) -> Runner:
        """The kernel and where its arguments are."""
        match = matched(program)
        if match is None:
            raise NoKernel("no fused kernel of torch computes this")
        return PatternRunner(match, Blocks().ready(program, dtypes, sizes))


class Match:
    """How a program is an instance of a pattern."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.columns: dict[str, int] = {}
        self.scalars: dict[str, int] = {}
        self.factors: list[tuple[str, Value]] | None = None
        self.gradient: Value | None = None

    @property
    def written(self) -> set[int]:
        """The columns that the kernel writes, but for a gradient that it scales."""
        return {column for name, column in self.columns.items() if name != "g"}


class PatternRunner(HandsOver):
    """One fused kernel over rows, and what runs where the numbers are none that it can take."""

    scratch = 0  # but for numbers that the kernel cannot take
    source = None

    def __init__(self, match: Match, otherwise: Runner) -> None:
        self._match = match
        self._otherwise = otherwise

    def run(self, columns: Sequence[Column], scalars: Sequence[float], entries: Sequence[float]) -> None:
        """Run the kernel over all rows; see Runner."""
        commit = Commit()
        self.write(commit, columns, scalars, entries)
        commit.fire()

    def write(
        self, commit: Commit, columns: Sequence[Column], scalars: Sequence[float], entries: Sequence[float]
    ) -> None:
        """Have a commit run the kernel over all rows; see Runner."""
        match = self._match
        numbers = {name: scalars[slot] for name, slot in match.scalars.items()}
        taken = takes(numbers)
        self.handed_to = "" if taken else Blocks.name
        if not taken:
            self._otherwise.write(commit, columns, scalars, entries)
            return
        factor = 1.0
        for op, (_, slot) in match.factors or ():
            factor = factor * scalars[slot] if op == "mul" else factor / scalars[slot]
        held = {name: columns[i] for name, i in match.columns.items()}
        grads = held["g"].tensors
        scale = None
        if factor != 1.0:
            # the kernel overwrites gradients it unscales, and divides by the scale, which float32 has to hold
            if held["g"].lent or held["g"].stays or abs(factor) < TINY:
                grads, factor = _torch.pointwise("mul", (grads, factor), len(grads)), 1.0
            else:
                scale = torch.tensor(1.0 / factor, dtype=torch.float32, device="cpu")
        lists = {name: column.tensors for name, column in held.items()}
        commit.add(_Fused(match.kernel, lists, grads, scale, numbers))


class _Fused:
    """One call of a fused kernel, which says nowhere that it ran: a row of our own, behind all others, shows it.

    That row is such that whatever moves another moves it: weights of 0 and 1, nothing remembered, a gradient of 1.
    """

    def __init__(
        self,
        kernel: Kernel,
        held: dict[str, list[Tensor]],
        grads: list[Tensor],
        scale: Tensor | None,
        numbers: dict[str, float],
    ) -> None:
        self._kernel, self._scale, self._numbers = kernel, scale, numbers
        self._tried = False
        self._own = {name: grads[0].new_zeros(2) for name in held if name != "g"}
        self._own["p"][1] = 1.0
        self._held = {name: [*tensors, self._own[name]] for name, tensors in held.items() if name != "g"}
        self._grads = [*grads, grads[0].new_ones(2)]

    @property
    def begun(self) -> bool:
        """Whether the kernel ran. Where it moves nothing it may run again."""
        return self._tried and any(t.tolist() != [0.0, float(name == "p")] for name, t in self._own.items())

    def __call__(self) -> None:
        if not self.begun:
            self._tried = True
            self._kernel(self._held, self._grads, self._scale, self._numbers)()


def takes(numbers: dict[str, float]) -> bool:
    """Whether the kernel of a pattern has arguments for these numbers."""
    if "$b2" in numbers:  # one that it takes 1 - b2 of by itself, and none inside the root
        return not numbers["$eps_root"] and abs(1.0 - numbers["$w2"] - numbers["$b2"]) <= 2.0**-53
    momentum = numbers.get("$momentum")  # without it the kernel leaves its buffer as it was
    return momentum != 0.0 and numbers.get("$momentum2", momentum) == momentum


def _fused_adamw(
    held: dict[str, list[Tensor]], grads: Any, scale: Tensor | None, s: dict[str, float]
) -> Callable[[], object]:
    # what a program has outside of the kernel's corrections, which are 1 long after the start, is in lr
    lr, rate = -s["$step"] / s["$c"], -s["$step"]
    decay = s.get("$decay", 0.0) * rate / lr if lr else 0.0
    hyper = {"lr": lr, "beta1": 1 - s["$w1"], "beta2": s["$b2"], "weight_decay": decay, "eps": s["$eps"]}
    steps = [_long_ago(held["p"][0].device)] * len(held["p"])
    return _torch.fused_adamw(held["p"], grads, held["m"], held["v"], steps, scale, **hyper)


def _fused_sgd(nesterov: bool) -> Kernel:
    def call(
        held: dict[str, list[Tensor]], grads: Any, scale: Tensor | None, s: dict[str, float]
    ) -> Callable[[], object]:
        hyper = {"lr": -s["$step"], "momentum": s.get("$momentum", 0.0), "weight_decay": s.get("$decay", 0.0)}
        return _torch.fused_sgd(held["p"], grads, held.get("b", []), nesterov, scale, **hyper)

    return call


@functools.lru_cache(maxsize=16)
def _long_ago(device: torch.device) -> Tensor:
    """A step at which bias corrections 1 - b^t are 1."""
    return torch.full((), 1e9, dtype=torch.float32, device=device)


_PATTERNS: list[tuple[dict[str, Term], Kernel]] = [
    (_adam(True), _fused_adamw),
    (_adam(False), _fused_adamw),
    *((_sgd(decay, True, nesterov), _fused_sgd(nesterov)) for decay in (True, False) for nesterov in (True, False)),
    *((_sgd(decay, False, False), _fused_sgd(False)) for decay in (True, False)),
]


def matched(program: Program, whole: bool = True) -> Match | None:
    """The pattern a program is an instance of, or, where it need not be the whole one, some of its stores."""
    for pattern, kernel in _PATTERNS:
        if len(pattern) > len(program.stores) or (whole and len(pattern) != len(program.stores)):
            continue
        match = Match(kernel)
        stores = dict(program.stores)
        if all(_store(program, name, term, stores, match) for name, term in pattern.items()) and match.gradient:
            return match
    return None


def _store(program: Program, name: str, term: Term, stores: dict[int, Value], match: Match) -> bool:
    """Whether some store that is still free writes this term over the column of this name."""
    wanted = match.columns.get(name)
    for column, value in stores.items():
        if wanted is not None and column != wanted:
            continue
        trial = _copied(match)
        trial.columns[name] = column
        if _unify(program, term, value, trial):
            match.columns, match.scalars = trial.columns, trial.scalars
            match.factors, match.gradient = trial.factors, trial.gradient
            return len(set(match.columns.values())) == len(match.columns)
    return False


def _copied(match: Match) -> Match:
    copy = Match(match.kernel)
    copy.columns, copy.scalars = dict(match.columns), dict(match.scalars)
    copy.factors, copy.gradient = match.factors, match.gradient
    return copy


def _unify(program: Program, term: Term, value: Value, match: Match) -> bool:
    if term == "g":
        return _unify_gradient(program, value, match)
    if isinstance(term, str):
        held, kind = (match.scalars, "scalar") if term[0] == "$" else (match.columns, "load")
        return bool(value[0] == kind and held.setdefault(term, value[1]) == value[1])
    if value[0] != "value":
        return False
    op, operands = program.instructions[value[1]]
    return op == term[0] and all(_unify(program, t, v, match) for t, v in zip(term[1:], operands, strict=True))


def _unify_gradient(program: Program, value: Value, match: Match) -> bool:
    """A column behind any number of scalar factors; the same one wherever the pattern has the gradient."""
    if match.gradient is not None:
        return value == match.gradient
    factors: list[tuple[str, Value]] = []
    inner = value
    while inner[0] == "value":
        op, operands = program.instructions[inner[1]]
        number = next((o for o in operands if o[0] in ("scalar", "device")), None)
        if op not in ("mul", "div") or number is None or (op == "div" and operands[1] is not number):
            return False
        inner = next(o for o in operands if o is not number)
        factors.append((op, number))
    if inner[0] != "load" or match.columns.setdefault("g", inner[1]) != inner[1]:
        return False
    match.gradient, match.factors = value, factors
    return True
