"""What pictures are drawn on: a figure without a window, its panels, and how axes, marks and legends look."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BLUE", "FAINT", "GREEN", "INK", "ORANGE", "Sheet", "apart", "colours", "dress", "fitting"]

INK, FAINT, BLUE, ORANGE, GREEN = "#222222", "#999999", "#2f6db3", "#d1662a", "#2a8a6a"
COLOURS = (BLUE, ORANGE, GREEN, "#8a5fbf", "#b8902a", "#c2527f", "#4aa3a8", "#6b6b6b")
WIDE = 8.0  # inches from which on two panels stand side by side
LEAST = 4.0


class Sheet:
    """A figure of rows, each as high as it says, which needs no display.

    Args:
        owner: begins the sentence of an error.
        width: in inches.
    """

    def __init__(self, owner: str, width: float) -> None:
        if not (isinstance(width, (int, float)) and LEAST <= width <= 100):
            raise ValueError(f"{owner}: width must be inches from {LEAST:g} to 100, got {width!r}.")
        self.width, self.wide = float(width), width >= WIDE
        self._rows: list[tuple[float, list[Callable[[Axes], None]]]] = []

    def row(self, height: float, *panels: Callable[[Axes], None]) -> None:
        """Add a row: one panel, or two, which a narrow sheet has one below the other."""
        if self.wide:
            self._rows.append((height, list(panels)))
        else:
            self._rows += [(height, [panel]) for panel in panels]

    def figure(self, title: str) -> Figure:
        """Draw all of it."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        height = sum(height for height, _ in self._rows) + 0.55
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08, hspace=0.0, wspace=0.02)
        figure = Figure(figsize=(self.width, height), layout=layout, facecolor="white", dpi=100)
        FigureCanvasAgg(figure)
        figure.suptitle(fitting(title, self.width / 0.1), fontsize=12.5, color=INK, x=0.015, ha="left")
        columns = max(len(panels) for _, panels in self._rows)
        grid = figure.add_gridspec(len(self._rows), columns, height_ratios=[h for h, _ in self._rows])
        for i, (_, panels) in enumerate(self._rows):
            for j, draw in enumerate(panels):
                draw(figure.add_subplot(grid[i, j] if len(panels) == columns else grid[i, :]))
        return figure

    def letters(self, columns: int = 1) -> int:
        """About how many letters of a legend fit into the breadth of a panel."""
        return int((self.width / columns - 0.9) / 0.072)


def fitting(text: str, letters: float) -> str:
    """A text that is cut in its middle where it is too long."""
    most = max(int(letters), 8)
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[len(text) - most // 2 :]}"


def apart(labels: Sequence[str], letters: float) -> list[str]:
    """Texts that fit and still differ: where cuts in their middle make some equal, what all begin and end with goes."""
    ends = [commonprefix(labels), commonprefix([label[::-1] for label in labels])]
    words = [max(end.rfind(letter) for letter in "/. ") + 1 for end in ends]
    for before, after in ((0, 0), words, map(len, ends)):
        inner = [label[before : max(before, len(label) - after)] for label in labels]
        cut = [fitting(f"{'…' * (before > 0)}{text}{'…' * (after > 0)}", letters) for text in inner]
        if len(set(cut)) == len(set(labels)):
            break
    return cut


def dress(axes: Axes) -> None:
    """Make axes look as all of ours do."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(labelcolor=INK, which="both", length=3, color=FAINT, labelsize=9)
    axes.grid(axis="y", color="#e8e8e8", linewidth=0.8)
    axes.set_axisbelow(True)


def heading(axes: Axes, text: str, letters: int) -> None:
    """What a panel shows, above its left end, and above the numbers of marks."""
    axes.set_title(fitting(text, letters), loc="left", fontsize=10, color=INK, pad=15 if axes.texts else 6)


def plain(axes: Axes) -> None:
    """Numbers beside a panel with no more digits than they need."""
    axes.yaxis.set_major_formatter("{x:.6g}")


def logarithmic(axes: Axes, low: float, high: float, base: int = 10) -> None:
    """A log scale up the side, for numbers from `low` to `high`, with few of them named."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log", nonpositive="mask", base=base)
    axes.yaxis.set_minor_formatter(NullFormatter())
    if low < 1e-6 * high:  # nearly 0, as a cosine is at its end
        axes.set_ylim(bottom=1e-6 * high)
    near = base == 10 and high < 200 * low
    axes.yaxis.set_major_locator(LogLocator(base, subs=(1.0, 3.0) if near else (1.0,), numticks=6))
    if near:
        plain(axes)


def ticks(axes: Axes, kind: str = "updates") -> None:
    """Few whole numbers below a panel, as a reader writes them, and what they count."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
    axes.set_xlabel(kind, color=FAINT, fontsize=9, loc="right", labelpad=1)


def short(number: float) -> str:
    """A count in few letters: 90000 is 90k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 10 * size or (abs(number) >= size and (number * 10 / size) == int(number * 10 / size)):
            return f"{number / size:.6g}{letter}"
    return f"{number:.6g}"


def colours(number: int) -> list[Any]:
    """As many colours as there are lines: apart from each other where they are few, else from dark to light."""
    if number <= len(COLOURS):
        return [*COLOURS[:number]]
    from matplotlib import colormaps

    return [colormaps["viridis"](0.92 * i / (number - 1)) for i in range(number)]


def legend(axes: Axes, labels: Sequence[str], letters: int, at_most: int = 6) -> None:
    """Below the panel what its lines are; of very many a few, the first and the last among them.

    Args:
        axes: the panel, whose lines are called by these labels in their order.
        labels: what they are called.
        letters: how many fit side by side.
        at_most: how many of them are named.
    """
    from matplotlib.lines import Line2D

    lines = {str(line.get_label()): line for line in axes.get_lines()}
    chosen = [*_evenly(len(labels), at_most)]
    cut = apart([labels[i] for i in chosen], min(letters - 6, 56))
    columns = max(1, min(len(chosen), letters // (max(map(len, cut)) + 7)))
    out = axes.legend(
        [Line2D([], [], color=lines[labels[i]].get_color(), linewidth=1.7) for i in chosen],
        cut,
        loc="upper left",
        bbox_to_anchor=(0, -0.18 / max(axes.get_window_extent().height / 200, 0.5)),
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        borderaxespad=0,
        handlelength=1.4,
        columnspacing=1.4,
    )
    if len(chosen) < len(labels):
        out.set_title(f"{len(labels)} groups, some of them:")
        out.get_title().set(fontsize=8.5, color=INK)
        out.set_alignment("left")


def legend_height(labels: Sequence[str], letters: int, at_most: int = 6) -> float:
    """The inches that `legend` needs."""
    longest = max(min(len(label), letters - 6, 56) for label in labels)
    shown = min(len(labels), at_most)
    columns = max(1, min(shown, letters // (longest + 7)))
    return 0.18 * (math.ceil(shown / columns) + (len(labels) > shown)) + 0.1


def _evenly(number: int, at_most: int) -> Iterator[int]:
    if number <= at_most:
        yield from range(number)
    else:
        yield from (round(i * (number - 1) / (at_most - 1)) for i in range(at_most))


def mark(axes: Axes, places: Iterable[int], ends: Iterable[int], letters: int) -> None:
    """Lines upright where something begins or ends, and above them where that is, as far as there is room.

    Args:
        axes: the panel, with its limits.
        places: where windows begin and end, and stairs are.
        ends: those from which on nothing moves: they are dashed, and named first.
        letters: how many fit side by side.
    """
    low, high = axes.get_xlim()
    last = set(ends)
    for place in sorted({*places, *last}):
        if low <= place <= high:
            style: Any = (0, (4, 3)) if place in last else (0, (1, 2))
            kind = "end" if place in last else "border"
            axes.axvline(place, color=FAINT, linewidth=0.9, linestyle=style, zorder=0.5, label="_", gid=kind)
    room = 6 / letters * (high - low)
    named: list[float] = []
    for place in (*sorted(last), *sorted(set(places) - last)):
        if low <= place <= high and all(abs(place - other) > room for other in named):
            named.append(place)
            where = ("data", "axes fraction")
            axes.annotate(
                short(place), (place, 1), xycoords=where, xytext=(0, 2), textcoords="offset points", ha="center",
                va="bottom", fontsize=8, color="#666666", annotation_clip=False,
            )  # fmt: skip


def check_installed(owner: str) -> None:
    """ModuleNotFoundError, with its cure, where matplotlib is not there."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError(
            f"{owner}: needs the package matplotlib, which is not installed. Install it: pip install gradchain[see]."
        )
