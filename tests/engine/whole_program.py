"""A program that has everything a printer can meet."""

from __future__ import annotations

from gradchain.core._torch import POINTWISE
from gradchain.engine.operations import BOOLEAN
from gradchain.engine.planning.lower import Program
from gradchain.engine.recording.numbers import RULES as NUMBER_RULES

A, B = ("load", 0), ("load", 1)
ONE = {"sqrt", "rsqrt", "sign", "abs", "not", "number", "isfinite", "isnan"}


def everything() -> Program:
    """A program with every operation, each over what came before it, and numbers of every kind."""
    instructions: list = [("gt", (A, ("scalar", 0))), ("lt", (B, ("entry", 0)))]
    mask, value = ("value", 0), A
    for op in sorted(POINTWISE):
        if op == "where":
            operands: tuple = (mask, value, ("scalar", 1))
        elif op == "lerp":
            operands = (value, B, ("scalar", 0))
        elif op in ("and", "or"):
            operands = (mask, ("value", 1))
        else:
            operands = ((mask if op in ("not", "number") else value),) if op in ONE else (value, B)
        instructions.append((op, operands))
        last = ("value", len(instructions) - 1)
        mask, value = (last, value) if op in BOOLEAN else (mask, last)
    instructions.append(("where", (mask, value, ("zero",))))
    return Program([0, 1], [0, 1], [0], instructions, [(1, ("value", len(instructions) - 1))])


def every_number() -> Program:
    """A program with every operation that numbers know, over numbers of the host, of the device and per parameter."""
    a, b, each = ("scalar", 0), ("scalar", 1), ("entry", 0)
    numbers: list = [("gt", (a, b))]
    for op in NUMBER_RULES:
        last = ("device", len(numbers) - 1)
        given = {"where": (("device", 0), last, each), "abs": (last,), "sqrt": (last,)}
        numbers.append((op, given.get(op, (last, each if len(numbers) % 2 else b))))
    out = ("mul", (A, ("device", len(numbers) - 1)))
    return Program([0], [0, 1], [0], [out], [(0, ("value", 0))], numbers=numbers)
