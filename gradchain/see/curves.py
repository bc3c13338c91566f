"""Every hyperparameter over a run, in one figure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from gradchain.see import paper
from gradchain.see.lines import Clock
from gradchain.see.run import Curve, Run
from gradchain.see.subjects import subjects_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curves", "drawn"]


def curves(
    subject: Any,
    updates: int | None = None,
    *,
    model: Any = None,
    names: Sequence[str] | None = None,
    clocks: Mapping[str, Clock] | None = None,
    width: float = 10.0,
    title: str = "Hyperparameters",
) -> Figure:
    """Draw every hyperparameter over a run: those that move or differ as lines, the others in words below.

    Learning rates come first. Each has a panel, with a line for each group of parameters that has numbers of its
    own, and a second one on a log scale where its numbers span a decade. Lines upright are where windows of its
    schedule begin and end, and stairs are; dashed ones where it ends and stays from then on. What links see is
    drawn: under `accumulate` a schedule of micro-batches is at that which closes the window. Needs the package
    matplotlib, and no display.

    Args:
        subject: a chain, an updater or a group of them. Of an updater, overrides are in force.
        updates: how many the run has; None: as many as schedules have, and a twentieth.
        model: what a chain would be bound to, so that groups are those of its parameters. Without, each rule is a group
            by itself, of whatever parameters.
        names: the hyperparameters to draw, by address or a unique suffix of it; None: those that move or differ.
        clocks: how clocks go that schedules read, other than "step" and "micro": updates for each tick, or a function
            update -> reading.
        width: in inches. A narrow figure, below 8, has panels below each other.
        title: above all panels.

    Returns:
        The figure: `.savefig("picture.png")` writes it, a notebook shows it.

    Raises:
        TypeError, ValueError: an argument is none of these, or updates must be given: no schedule has an end.
        LookupError: a clock of which `clocks` does not say how it goes.
        KeyError: a name that is none, or several.
        ModuleNotFoundError: matplotlib is not installed.

    >>> import gradchain as gch
    >>> warmup = gch.linear(0.0, 1e-3, 100).then(gch.cosine(1e-3, 0.0, 900))
    >>> figure = gch.see.curves(gch.adamw(warmup, weight_decay=0.05))
    >>> [axes.get_title(loc="left") for axes in figure.axes][:1]
    ['scale_by_learning_rate.learning_rate']
    """
    run = Run("see.curves", subjects_of("see.curves", subject, model), updates, clocks or {})
    return drawn(run, names, width, title)


def drawn(run: Run, names: Sequence[str] | None = None, width: float = 10.0, title: str = "Hyperparameters") -> Figure:
    """The figure of a run."""
    paper.check_installed(run.owner)
    sheet = paper.Sheet(run.owner, width)
    chosen = run.chosen(names)
    if not chosen:
        raise ValueError(f"{run.owner}: the chain must have a hyperparameter that is a number, to be drawn, got none.")
    for address in chosen:
        _row(sheet, run, address)
    said = run.said(chosen)
    if said:
        wide = sheet.letters() + 4
        lines = [line for part in said for line in textwrap.wrap(part, wide, break_long_words=False)]
        sheet.row(0.17 * len(lines) + 0.12, partial(_in_words, lines))
    return sheet.figure(title)


# panels


def _row(sheet: paper.Sheet, run: Run, address: str) -> None:
    """The panel of a hyperparameter, and that on a log scale where it says more."""
    curves = run.curves[address]
    positive = [value for curve in curves for value in _finite(curve) if value > 0]
    logs = bool(positive) and max(positive) >= 10 * min(positive)
    letters = sheet.letters(2 if sheet.wide and logs else 1)
    labels = [curve.line.called for curve in curves]
    height = 2.1 + (paper.legend_height(labels, letters) if len(curves) > 1 else 0)
    panels = [partial(_panel, run, address, letters, False)] + [partial(_panel, run, address, letters, True)] * logs
    sheet.row(height, *panels)


def _panel(run: Run, address: str, letters: int, log: bool, axes: Axes) -> None:
    curves = run.curves[address]
    for curve, colour in zip(curves, paper.colours(len(curves)), strict=True):
        point = "o" if len(run.steps) == 1 else ""
        axes.plot(run.steps, curve.values, point + "-", color=colour, linewidth=1.7, label=curve.line.called, gid=address)
    paper.dress(axes)
    axes.set_xlim(0, max(run.updates, 1))
    values = [value for curve in curves for value in _finite(curve)]
    if log:
        positive = [value for value in values if value > 0]
        paper.logarithmic(axes, min(positive), max(positive))
    elif values and _from_zero(values):
        axes.set_ylim(bottom=0)
    if not log:
        paper.plain(axes)
    ends = {curve.end for curve in curves if curve.end}
    paper.mark(axes, {at for curve in curves for at in curve.borders}, ends, letters)
    paper.ticks(axes)
    paper.heading(axes, "the same, on a log scale" if log else address, letters)
    if len(curves) > 1 and not log:
        paper.legend(axes, [curve.line.called for curve in curves], letters)


def _finite(curve: Curve) -> list[float]:
    """The values that have a place: a schedule of a user's may have others."""
    return [value for value in curve.values if math.isfinite(value)]


def _from_zero(values: Sequence[float]) -> bool:
    """Whether an axis begins at 0: nothing is below, and something comes near."""
    return min(values) >= 0 and min(values) <= 0.3 * max(values) and max(values) > 0


def _in_words(lines: Sequence[str], axes: Axes) -> None:
    axes.axis("off")
    axes.text(
        0, 1, "\n".join(lines), transform=axes.transAxes, va="top", fontsize=8.5, color="#666666", linespacing=1.4
    )
