"""A chain in words: its links as a column, its hyperparameters at some updates as a table, the size of its state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from gradchain.core.tensors import Tensors
from gradchain.see.paper import fitting
from gradchain.see.run import Curve, Run
from gradchain.see.subjects import Subject
from gradchain.updater.explanation import state_sizes

__all__ = ["told"]

MOST_COLUMNS = 9
MOST_GROUPS = 24
MOST_LETTERS = 56


def told(
    subjects: Sequence[Subject],
    run: Run,
    at: Sequence[int] | None = None,
    written: Callable[[object], str] = repr,
) -> str:
    """All of it, a paragraph each.

    Args:
        subjects: the chains.
        run: their hyperparameters.
        at: the updates of the table; None: the first, those where something begins or ends, and the last.
        written: gives the code of a chain.
    """
    parts = [part for subject in subjects for part in (_column(subject, written), _state(subject))]
    return "\n\n".join("\n".join(part) for part in (*parts, _table(run, at)) if part)


def _column(subject: Subject, written: Callable[[object], str]) -> list[str]:
    """The chain, a link to a line, and how far it is."""
    head = [f"{subject.name}:"] if subject.name else []
    lines = written(subject.chain).splitlines()
    index = subject.index
    if index is not None:
        elements = sum(fact.parameter.numel() for fact in index.facts)
        lines.append(f"{len(index)} parameters of {elements:,} elements")
    if subject.clocks is not None:
        lines.append(f"at {', '.join(f'{name} {reading:,g}' for name, reading in subject.clocks.items())}")
    for address, override in (subject.overrides or {}).items():
        what = f"{override.value!r}" if override.factor is None else f"times {override.factor:.6g}"
        lines.append(f"override of {address}: {what}")
    return [*head, *lines]


def _state(subject: Subject) -> list[str]:
    """Bytes of each link that has some; of a chain without a model, how often those of a matrix."""
    if subject.state is not None:
        rows = [(address, f"{size:,} bytes") for address, size in subject.state.items() if size]
        total = sum(subject.state.values())
        head = f"state: {total:,} bytes" if total else "state: no tensors yet"
    else:
        rows = list(_state_of_one(subject))
        head = "state of matrices in float32:" if rows else ""
    width = max((len(address) for address, _ in rows), default=0)
    return [line for line in (head, *(f"    {address:{width}}  {size}" for address, size in rows)) if line]


def _state_of_one(subject: Subject) -> Iterator[tuple[str, str]]:
    weight = Tensors.of({"weight": torch.zeros(64, 64)})
    try:
        sizes = [*state_sizes(subject.chain, subject.chain.init(weight))]
    except Exception:  # it depends on which parameters there are: a selector that finds none of them, for one
        return
    yield from ((address, f"{size / 16384:.4g} times the weights") for address, size in sizes if size)


# the table


def _table(run: Run, at: Sequence[int] | None) -> list[str]:
    steps = _columns(run) if at is None else [*at]
    if odd := [step for step in steps if not 0 <= step < run.updates]:
        raise ValueError(f"{run.owner}: at must be updates of the run, from 0 to {run.updates - 1}, got {odd[0]}.")
    rows = [["at update", *(f"{step:,}" for step in steps)]]
    for address, curves in run.curves.items():
        rows += _rows(address, curves, [run.place(step) for step in steps])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_cells(row, widths)).rstrip() for row in rows]


def _cells(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    yield row[0].ljust(widths[0])
    yield from (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))


def _columns(run: Run) -> list[int]:
    """The updates at which something begins or ends, with the first and the last; of many a few."""
    places = {step for curves in run.curves.values() for curve in curves for step in curve.borders}
    ends = {curve.end for curves in run.curves.values() for curve in curves if curve.end}
    inside = sorted(step for step in places | ends if 0 < step < run.updates - 1)
    most = MOST_COLUMNS - 2
    chosen = inside if len(inside) <= most else [inside[round(i * (len(inside) - 1) / (most - 1))] for i in range(most)]
    return sorted({0, *chosen, run.updates - 1})


def _rows(address: str, curves: Sequence[Curve], places: Sequence[int]) -> Iterator[list[str]]:
    """A hyperparameter; where groups have numbers of their own, a row each below its name."""
    if len(curves) == 1 and not curves[0].line.group:
        yield [address, *_numbers(curves[0], places)]
        return
    yield [address, *("" for _ in places)]
    for curve in curves[:MOST_GROUPS]:
        yield [f"    {fitting(curve.line.called, MOST_LETTERS)}", *_numbers(curve, places)]
    if len(curves) > MOST_GROUPS:
        yield [f"    and {len(curves) - MOST_GROUPS} groups more", *("" for _ in places)]


def _numbers(curve: Curve, places: Sequence[int]) -> Iterator[str]:
    """Its numbers; of one that does not move the first alone."""
    for i, place in enumerate(places):
        yield f"{curve.values[place]:.6g}" if curve.moves or not i else ""
