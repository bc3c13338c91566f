"""Random expressions over Tensors: seeded, 5–40 operations, runnable on any kind of Tensors.

`expression(seed)` is a straight line of steps over four inputs. It is grown one step at a time while it is evaluated
on samples: a step is kept only where it neither overflows nor magnifies rounding, so that two right executors agree to
a stated bound. `expression(seed).outputs(inputs)` runs it on EagerTensors, Lazy or anything else; `.shrunk(i)` is the
smallest program that still computes node i.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import methodcaller
from typing import Any

import torch

import gradchain as gch
from gradchain.core.eager import EagerTensors
from gradchain.core.scalars import Scalars, atan2, maximum, minimum, where
from gradchain.core.tensors import Tensors
from gradchain.engine.operations import BOOLEAN

INPUTS = ("g", "p", "a", "b")
NOISE = 1e-12  # how far the samples are moved, relatively, to see what a step does to rounding errors
GROWTH = 30.0  # how many times that a value may move, relative to the largest of its entry

# An operand: ("node", i), ("number", x), ("each", seed) one number per parameter, ("members", seed) some names,
# ("p", exponent) of a norm.
Operand = tuple[str, Any]


@dataclass(frozen=True)
class Step:
    """One operation, by its name in OPERATIONS."""

    op: str
    args: tuple[Operand, ...]

    def __repr__(self) -> str:
        shown = (f"{k[0]}{v}" if k in ("node", "each", "members") else str(v) for k, v in self.args)
        return f"{self.op}({', '.join(shown)})"


OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
    "neg": lambda a: -a,
    "lerp": lambda a, b, w: a.lerp(b, w),
    "maximum": maximum,
    "minimum": minimum,
    "clamp": lambda a, low, high: a.clamp(low, high),
    "sqrt": lambda a: a.sqrt(),
    "rsqrt": lambda a: a.rsqrt(),
    "sign": lambda a: a.sign(),
    "abs": lambda a: a.abs(),
    **{op: methodcaller(op) for op in ("exp", "expm1", "log", "log1p", "tanh", "erf", "round", "floor")},
    "atan2": atan2,
    "remainder": lambda a, b: a % b,
    "where": where,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "not": lambda a: ~a,
    "isfinite": lambda a: a.isfinite(),
    "isnan": lambda a: a.isnan(),
    "select": lambda a, members: a.select(members),
    "overlay": lambda a, b: a.overlay(b),
    "zeros": lambda a: a.zeros_like(),
    "norm": lambda a, p: a.norm(p),
    "norms": lambda a, p: a.norms(p=p),
    "sum": lambda a: a.sum(),
    "sums": lambda a: a.sums(),
    "numels": lambda a: a.numels(),
    "all_finite": lambda a: 1.0 if a.all_finite() else 0.5,  # a branch on the host
}
NUMBERS = frozenset({"norm", "norms", "sum", "sums", "numels", "all_finite"})


def _each(seed: int, names: Sequence[str]) -> Scalars:
    return Scalars({n: 0.25 + ((7 * i + 3 * seed) % 11) / 8 for i, n in enumerate(names)})


def _members(seed: int, names: Sequence[str]) -> list[str]:
    kept = [n for i, n in enumerate(names) if (i * 5 + seed) % 3]
    return kept or list(names[:1])


@dataclass(frozen=True)
class Expression:
    """Steps over the inputs; node i is input i, or the result of step i - len(INPUTS).

    Attributes:
        seed: where it came from.
        steps: what it does.
        results: the nodes that are its outputs, each with every entry of the inputs.
    """

    seed: int
    steps: tuple[Step, ...]
    results: tuple[int, ...]

    def nodes(self, inputs: Mapping[str, Tensors]) -> list[Any]:
        """The value of every node."""
        names = list(inputs["p"])
        values: list[Any] = [inputs[name] for name in INPUTS]
        for step in self.steps:
            values.append(applied(step, values, names))
        return values

    def outputs(self, inputs: Mapping[str, Tensors]) -> list[Tensors]:
        """The values of the results."""
        values = self.nodes(inputs)
        return [values[i] for i in self.results]

    def shrunk(self, node: int) -> Expression:
        """The steps that `node` needs, and no others."""
        needed = {node}
        for i in range(node, len(INPUTS) - 1, -1):
            if i in needed:
                needed |= {v for k, v in self.steps[i - len(INPUTS)].args if k == "node"}
        kept = sorted({i for i in needed if i >= len(INPUTS)})
        at = {old: new + len(INPUTS) for new, old in enumerate(kept)} | {i: i for i in range(len(INPUTS))}
        steps = (self.steps[i - len(INPUTS)] for i in kept)
        moved = (replace(s, args=tuple((k, at[v] if k == "node" else v) for k, v in s.args)) for s in steps)
        return Expression(self.seed, tuple(moved), (at[node],))

    def __str__(self) -> str:
        lines = [f"n{i + len(INPUTS)} = {step!r}" for i, step in enumerate(self.steps)]
        return "\n".join(
            [
                f"# seed {self.seed}; inputs {', '.join(f'n{i}={n}' for i, n in enumerate(INPUTS))}",
                *lines,
                f"results {self.results}",
            ]
        )


def applied(step: Step, values: Sequence[Any], names: Sequence[str]) -> Any:
    """The result of one step over the values of the nodes before it."""
    read = {
        "node": lambda v: values[v],
        "number": lambda v: v,
        "p": lambda v: v,
        "each": lambda v: _each(v, names),
        "members": lambda v: _members(v, names),
    }
    return OPERATIONS[step.op](*(read[kind](value) for kind, value in step.args))


# samples: what a growing expression is tried on


SHAPES = ((5, 3), (), (17,), (64,))


def sample(seed: int, zero: bool = False) -> dict[str, Any]:
    """Float64 values of the inputs: gradients, weights, and two fields of state, which may be zero."""
    generator = torch.Generator().manual_seed(seed)

    def normal(scale: float) -> dict[str, torch.Tensor]:
        drawn = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES)
        return {f"w{i}": scale * d for i, d in enumerate(drawn)}

    g, p, a, b = (normal(1.0) for _ in INPUTS)
    if zero:
        a = {n: torch.zeros_like(v) for n, v in a.items()}
        b = {n: torch.zeros_like(v) for n, v in b.items()}
    first = Tensors.of(p)
    assert isinstance(first, EagerTensors)
    rows = [EagerTensors.at(first.index, side) for side in (g, a, b)]
    return {"g": rows[0], "p": first, "a": rows[1], "b": rows[2]}


def moved(inputs: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The same values, each moved by about NOISE."""
    generator = torch.Generator().manual_seed(seed)

    def nudge(value: torch.Tensor) -> torch.Tensor:
        return value * (1 + NOISE * torch.randn(value.shape, generator=generator, dtype=value.dtype))

    index = inputs["p"].index
    return {k: EagerTensors.at(index, {n: nudge(v[n]) for n in v}) for k, v in inputs.items()}


class _Growing:
    """An expression in the making, with what it gives on each sample and on its moved twin."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.steps: list[Step] = []
        plain = [sample(seed), sample(seed + 1, zero=True)]
        self.pairs = [([s[n] for n in INPUTS], [m[n] for n in INPUTS]) for s in plain for m in [moved(s, seed)]]
        self.names = list(plain[0]["p"])
        self.kinds = ["tensors"] * len(INPUTS)  # tensors, part (some entries only), mask, part mask, number

    def step(self, op: str, *args: Operand) -> int | None:
        """Add a step; returns its node, or None where it was refused."""
        step = Step(op, args)
        results = []
        for values, twins in self.pairs:
            result, twin = applied(step, values, self.names), applied(step, twins, self.names)
            if not _tame(result, twin):
                return None
            results.append((result, twin))
        for (values, twins), (result, twin) in zip(self.pairs, results, strict=True):
            values.append(result)
            twins.append(twin)
        self.steps.append(step)
        first = results[0][0]
        partial = isinstance(first, Tensors) and len(first) < len(self.names)
        kind = "number" if op in NUMBERS else "mask" if op in BOOLEAN else "tensors"
        self.kinds.append(f"part {kind}" if partial and kind != "number" else kind)
        return len(self.kinds) - 1

    def some(self, kind: str = "tensors") -> Operand | None:
        """A node of a kind, late ones more often."""
        found = [i for i, k in enumerate(self.kinds) if k == kind]
        return ("node", found[int(len(found) * self.random.random() ** 0.5)]) if found else None

    def number(self, low: float = 0.1, high: float = 2.0) -> Operand:
        return ("number", round(self.random.uniform(low, high), 3))

    def factor(self) -> Operand:
        """A number, or one per parameter."""
        return self.number() if self.random.random() < 0.7 else ("each", self.random.randrange(8))


def _tame(value: Any, twin: Any) -> bool:
    """Whether a value is finite, of ordinary size, and not made of rounding errors."""
    if isinstance(value, float | int):
        value, twin = Scalars({"": value}), Scalars({"": twin})
    for name in value:
        x, y = torch.as_tensor(value[name]), torch.as_tensor(twin[name])
        if x.dtype is torch.bool:
            if not torch.equal(x, y):
                return False
            continue
        x, y = x.double(), y.double()
        largest = float(x.abs().max()) if x.numel() else 0.0
        if not (largest < 1e4 and torch.isfinite(y).all()):
            return False
        if x.numel() and float((x - y).abs().max()) > GROWTH * NOISE * largest:
            return False
    return True


def _arithmetic(grow: _Growing) -> None:
    op = grow.random.choice(["add", "sub", "mul", "maximum", "minimum"])
    a, b = grow.some(), grow.some() if grow.random.random() < 0.6 else grow.factor()
    assert a is not None and b is not None
    grow.step(op, *((b, a) if grow.random.random() < 0.4 else (a, b)))


def _quotient(grow: _Growing) -> None:
    size = grow.step("abs", grow.some())
    if size is not None:
        over = grow.step("add", ("node", size), grow.number())
        if over is not None:
            grow.step("div", grow.some() if grow.random.random() < 0.7 else grow.factor(), ("node", over))


def _root(grow: _Growing) -> None:
    size = grow.step("abs", grow.some())
    if size is None:
        return
    if grow.random.random() < 0.4:
        grow.step("sqrt", ("node", size))
        return
    held = grow.step("maximum", ("node", size), grow.number())
    if held is not None and grow.random.random() < 0.5:
        grow.step("rsqrt", ("node", held))
    elif held is not None:
        swapped = grow.random.random() < 0.3
        grow.step("pow", *([grow.number(), ("node", held)] if swapped else [("node", held), grow.factor()]))


def _one(grow: _Growing) -> None:
    op = grow.random.choice(["neg", "sign", "abs", "clamp", "scaled", "divided", "zeros"])
    if op == "clamp":
        grow.step("clamp", grow.some(), grow.number(-1.0, -0.1), grow.number())
    elif op == "scaled":
        grow.step("mul", grow.some(), grow.factor())
    elif op == "divided":
        grow.step("div", grow.some(), grow.factor())
    else:
        grow.step(op, grow.some())


def _curve(grow: _Growing) -> None:
    """A function of one, of two, or a step of one. Where it is steep it is refused."""
    op = grow.random.choice(["exp", "expm1", "tanh", "erf", "log", "log1p", "atan2", "remainder", "round", "floor"])
    if op in ("atan2", "remainder"):
        pair = grow.some(), grow.some() if grow.random.random() < 0.5 else grow.factor()
        grow.step(op, *(pair[::-1] if grow.random.random() < 0.3 else pair))
    elif op in ("log", "log1p"):
        size = grow.step("abs", grow.some())
        over = None if size is None else grow.step("add", ("node", size), grow.number())
        if over is not None:
            grow.step(op, ("node", over))
    else:
        grow.step(op, grow.some())


def _average(grow: _Growing) -> None:
    grow.step("lerp", grow.some(), grow.some(), grow.number(0.05, 0.95) if grow.random.random() < 0.8 else ("each", 2))


def _masked(grow: _Growing) -> None:
    """A comparison, sometimes joined with another, and a choice by it."""
    op = grow.random.choice(["lt", "le", "gt", "ge", "eq", "isfinite", "isnan"])
    other = grow.some() if grow.random.random() < 0.5 else grow.number(-1.0, 1.0)
    mask = grow.step(op, grow.some(), *([] if op.startswith("is") else [other]))
    before = grow.some("mask")
    if mask is not None and before is not None and grow.random.random() < 0.5:
        joined = grow.random.choice(["and", "or", "not"])
        mask = grow.step(joined, ("node", mask), *([] if joined == "not" else [before]))
    if mask is not None and grow.random.random() < 0.2:  # a mask is 0 and 1 in arithmetic
        joined = grow.random.choice(["mul", "sub", "div"])
        grow.step(joined, ("node", mask), grow.factor() if joined == "div" else grow.some())
    elif mask is not None:
        # `where` is what Tensors.where calls, with the condition first
        grow.step("where", ("node", mask), grow.some(), grow.some() if grow.random.random() < 0.6 else grow.factor())


def _reduction(grow: _Growing) -> None:
    """A number made of everything so far, and its use."""
    op = grow.random.choice(["norm", "norms", "sum", "sums", "numels", "all_finite"])
    power: list[Operand] = [("p", grow.random.choice([1.0, 2.0, 2.0, float("inf")]))] if op.startswith("norm") else []
    if op == "sum" or op == "sums":
        source = grow.step("abs", grow.some())
        found = None if source is None else grow.step(op, ("node", source))
    else:
        found = grow.step(op, grow.some(), *power)
    over = None if found is None else grow.step("add", ("node", found), grow.number())
    if over is not None:
        grow.kinds[over] = "number"
        ratio = grow.step("div", grow.number(), ("node", over))
        if ratio is not None:
            grow.kinds[ratio] = "number"
            if grow.random.random() < 0.8:
                grow.step("mul", grow.some(), ("node", ratio))
            else:
                grow.step("add", ("node", ratio), grow.some())


def _part(grow: _Growing) -> None:
    """Some entries, something done to them, put back."""
    part = grow.step("select", grow.some(), ("members", grow.random.randrange(6)))
    if part is None:
        return
    op = grow.random.choice(["mul", "add", "abs", "norm", "none", "meet"])
    inner: int | None = part
    if op in ("mul", "add"):
        inner = grow.step(op, ("node", part), grow.factor())
    elif op == "abs":
        inner = grow.step("abs", ("node", part))
    elif op == "meet":  # an entry absent from one side is absent from the result
        inner = grow.step("sub", grow.some(), ("node", part))
    elif op == "norm":
        size = grow.step("norm", ("node", part), ("p", 2.0))
        over = None if size is None else grow.step("add", ("node", size), grow.number())
        if over is not None:
            grow.kinds[over] = "number"
            inner = grow.step("div", ("node", part), ("node", over))
    if inner is not None:
        grow.step("overlay", grow.some(), ("node", inner))


_MOVES = {_arithmetic: 7, _quotient: 2, _root: 3, _one: 3, _curve: 3, _average: 3, _masked: 3, _reduction: 2, _part: 2}


@functools.cache
def expression(seed: int, results: int = 3, least: int = 5, most: int = 40) -> Expression:
    """The random expression of a seed: between `least` and `most` steps, and as many results."""
    grow = _Growing(seed)
    length = grow.random.randint(least, most)
    moves, weights = list(_MOVES), list(_MOVES.values())
    with torch.no_grad():
        while len(grow.steps) < length:
            grow.random.choices(moves, weights)[0](grow)
    del grow.steps[most:], grow.kinds[len(INPUTS) + most :]
    whole = [i for i, kind in enumerate(grow.kinds) if kind == "tensors" and i >= len(INPUTS)]
    late = whole[-2 * results :] or [0]
    chosen = [late[-1], *(grow.random.choice(late) for _ in range(results - 1))]
    return Expression(seed, tuple(grow.steps), tuple(chosen))


# a link whose update is a random expression


class Memory(gch.State):
    """Two fields of the parameters' shapes, and how often each was updated."""

    a: Tensors
    b: Tensors
    count: gch.Count


class random_rule(gch.Transform):
    """Turn the updates into what a random expression makes of them, of the weights and of two fields of state."""

    seed: int

    def init(self, params):
        return Memory(params.zeros_like(), params.clone(), gch.Count(params))

    def update(self, updates, state, ctx):
        out, a, b = expression(self.seed).outputs({"g": updates, "p": ctx.params, "a": state.a, "b": state.b})
        count = state.count.tick(updates)
        return out * (1 - 0.5**count), state.replace(a=state.a.lerp(a, 0.3), b=b, count=count)
