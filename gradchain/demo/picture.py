"""The picture of a run: loss, learning rate and gradient norm over its updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradchain.see.paper import BLUE, GREEN, INK, ORANGE, dress

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(
    history: Mapping[str, Sequence[float]], path: Path, *, title: str, window: int, per_epoch: int, bound: float
) -> None:
    """Write a PNG.

    Args:
        history: as `Training.history`.
        path: the file.
        title: the line above the picture.
        window: micro-batches to one update.
        per_epoch: micro-batches to one epoch.
        bound: the norm above which gradients are clipped.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1)
    figure = Figure(figsize=(8, 8.4), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, color=INK, x=0.02, ha="left")
    loss, rate, norm = figure.subplots(3, 1, sharex=True, height_ratios=[1.5, 1, 1])
    _loss(loss, history, window, per_epoch)
    _rate(rate, history["learning_rate"])
    _norm(norm, history["norm"], bound)
    for axes in (loss, rate, norm):
        dress(axes)
    norm.set_xlabel("updates", color=INK)
    norm.set_xlim(0, max(1, len(history["norm"])))
    figure.savefig(path, dpi=150)


def _heading(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=10.5, color=INK)


def _loss(axes: Axes, history: Mapping[str, Sequence[float]], window: int, per_epoch: int) -> None:
    losses = means(history["loss"], window)
    axes.plot(range(1, len(losses) + 1), losses, color=BLUE, linewidth=0.7, alpha=0.35, label="training, each update")
    epochs = means(history["loss"][: len(history["test_loss"]) * per_epoch], per_epoch)
    ends = [(i + 1) * per_epoch / window for i in range(len(epochs))]
    centres = [end - per_epoch / window / 2 for end in ends]
    axes.plot(centres, epochs, color=BLUE, linewidth=1.8, label="training, mean of the epoch")
    test = {"color": ORANGE, "linewidth": 1.8, "marker": "o", "markersize": 3.5}
    axes.plot(ends, history["test_loss"], label="test, averaged weights", **test)  # type: ignore[arg-type]
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    _heading(axes, "loss (cross entropy; with smoothed labels the least possible is 0.50)")


def _rate(axes: Axes, rates: Sequence[float]) -> None:
    axes.plot(range(1, len(rates) + 1), rates, color=GREEN, linewidth=1.8)
    axes.set_ylim(bottom=0)
    _heading(axes, "learning rate")


def _norm(axes: Axes, norms: Sequence[float], bound: float) -> None:
    axes.plot(range(1, len(norms) + 1), norms, color=BLUE, linewidth=0.9)
    axes.axhline(bound, color=ORANGE, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.annotate(
        f"clipped above {bound:g}",
        (1, bound),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        color=ORANGE,
    )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    _heading(axes, "norm of the gradient, before clipping")


def means(values: Sequence[float], size: int) -> list[float]:
    """The mean of each `size` values in a row; the last may be of fewer."""
    groups = [values[i : i + size] for i in range(0, len(values), size)]
    return [sum(group) / len(group) for group in groups]
