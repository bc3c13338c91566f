"""A program that has everything a printer can meet."""

from __future__ import annotations

from gradchain.core.operations import OPERATIONS
from gradchain.engine.planning.lower import Program

A, B = ("load", 0), ("load", 1)


def everything() -> Program:
    """A program with every operation, each over what came before it, and numbers of every kind."""
    instructions: list = [("gt", (A, ("scalar", 0))), ("lt", (B, ("entry", 0)))]
    mask, value = ("value", 0), A
    for op, operation in sorted(OPERATIONS.items()):
        numbers, masks = iter([value, B, ("scalar", 0)]), iter([mask, ("value", 1)])
        instructions.append((op, tuple(next(numbers if kind == "n" else masks) for kind in operation.takes)))
        last = ("value", len(instructions) - 1)
        mask, value = (last, value) if operation.mask else (mask, last)
    instructions.append(("where", (mask, value, ("zero",))))
    return Program([0, 1], [0, 1], [0], instructions, [(1, ("value", len(instructions) - 1))])


def every_number() -> Program:
    """A program with every operation that numbers know, over numbers of the host, of the device and per parameter."""
    a, b, each = ("scalar", 0), ("scalar", 1), ("entry", 0)
    numbers: list = [("gt", (a, b))]
    for op, operation in OPERATIONS.items():
        if operation.host is not None:
            given = iter([("device", len(numbers) - 1), each if len(numbers) % 2 else b, a])
            numbers.append((op, tuple(("device", 0) if kind == "m" else next(given) for kind in operation.takes)))
    out = ("mul", (A, ("device", len(numbers) - 1)))
    return Program([0], [0, 1], [0], [out], [(0, ("value", 0))], numbers=numbers)
