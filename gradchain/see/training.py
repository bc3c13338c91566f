"""A run as it went, from the lines that it logged: loss, rate, norms, loss scale, skipped updates and times."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradchain.see import paper

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["training"]

OWNER = "see.training"
WHEN = ("update", "iter", "step")
"""What a record may say of when it is, the first of them that is there."""

Series = dict[str, tuple[list[float], list[float]]]
"""Name → updates and the numbers there."""


def training(
    source: str | os.PathLike[str] | Iterable[Mapping[str, Any]], *, width: float = 8.0, title: str = "Training"
) -> Figure:
    """Draw a run as it went: loss, learning rate, norms, loss scale, skipped updates, validation and times.

    It reads what `gch.loop(…, log="run.jsonl")` writes, and any file with a JSON object of numbers a line: "update"
    ("iter" or "step" in its place, or else the number of the line), and of these what is there: "loss" and other names
    with that word, "learning_rate" or "lr", "norm" or "grad_norm", "scale" or "loss_scale", "skipped", and times. An
    address counts by its end, as "clip_by_norm.norm". "skipped" is whether this update was, or a count so far that
    rises. Records with "mode": "val" are points of their own. What is no number, null and NaN leave a gap. Where an
    update comes twice, as after a resumption, the later record counts. Needs the package matplotlib.

    Args:
        source: the file, which may still be written: a last line without its end is left out; or such records.
        width: in inches.
        title: above all panels.

    Raises:
        ValueError: it is no regular file, a line is no JSON object, or there is no number to draw.
        FileNotFoundError: there is no such file.
        TypeError: a record is no mapping.
        ModuleNotFoundError: matplotlib is not installed.

    >>> import gradchain as gch
    >>> figure = gch.see.training({"update": i, "loss": 2.0 / (i + 1), "learning_rate": 0.1} for i in range(50))
    >>> [axes.get_title(loc="left") for axes in figure.axes]
    ['loss', 'learning rate']
    """
    records = records_of(source) if isinstance(source, (str, os.PathLike)) else [*source]
    panels = panels_of(records)
    paper.check_installed(OWNER)
    sheet = paper.Sheet(OWNER, width)
    span = [x for panel in panels.values() for xs, _ in panel.values() for x in xs]
    low, high = min(span), max(span)
    skipped = [x for x, flag in zip(*panels.pop("skipped", {"": ([], [])})[""], strict=True) if flag]
    for name in (panel for panel in _PANELS if panel in panels):
        series = panels[name]
        height = _HEIGHTS.get(name, 1.55) + (paper.legend_height([*series], sheet.letters()) if len(series) > 1 else 0)
        here = skipped if name == first_of(panels) else []
        sheet.row(height, partial(_panel, name, series, (low, high), here, sheet.letters()))
    return sheet.figure(title)


def first_of(panels: Mapping[str, Series]) -> str:
    """The uppermost panel: it has the marks of skipped updates."""
    return next(name for name in _PANELS if name in panels)


# reading


def records_of(path: str | os.PathLike[str]) -> list[Mapping[str, Any]]:
    """The records of a file, whose last line may be torn."""
    file = Path(path)
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise ValueError(f"{OWNER}: {str(path)!r} must be a regular file.")
        text = file.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{OWNER}: there is no file {str(path)!r}.") from None
    lines = text.split(b"\n")
    out: list[Mapping[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            out.append(record)
        elif number < len(lines):  # else it has no end: somebody writes it, or was killed meanwhile
            raise ValueError(f"{OWNER}: {str(path)!r} must have a JSON object on each line; line {number} is none.")
    return out


def panels_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """Panel → name → updates and numbers. ValueError where no record has a number that is drawn."""
    found: dict[str, dict[str, dict[float, float]]] = {}
    for place, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise TypeError(f"{OWNER}: a record must be a mapping of numbers by name, got {type(record).__name__}.")
        update = next((record[name] for name in WHEN if _is_number(record.get(name))), place)
        of_validation = record.get("mode") == "val"
        for name, value in record.items():
            panel = _panel_of(str(name), of_validation)
            if panel is not None and (value is None or isinstance(value, (int, float))):
                shown = f"validation: {name}" if of_validation and panel == "loss" else str(name)
                number = float(value) if _is_number(value) else math.nan
                found.setdefault(panel, {}).setdefault(shown, {})[float(update)] = number
    out: dict[str, Series] = {}
    for panel, series in found.items():
        for name, points in series.items():
            numbers = _with_gaps(points) if panel != "skipped" else {x: y for x, y in points.items() if y == y}
            if numbers:
                out.setdefault(panel, {})[name] = ([*numbers], [*numbers.values()])
    if "skipped" in out:
        xs, counts = next(iter(out["skipped"].values()))
        out["skipped"] = {"": (xs, _risen(counts))}
    if not [panel for panel in out if panel != "skipped"]:
        raise ValueError(
            f"{OWNER}: expected records with numbers such as 'loss', found none in {len(records)} records."
        )
    return out


def _with_gaps(points: Mapping[float, float]) -> dict[float, float]:
    """The numbers in order, with NaN where there is a gap; none where each is between two: it is measured so rarely."""
    ordered = {x: points[x] for x in sorted(points)}
    numbers = {x: y for x, y in ordered.items() if y == y}
    rarely = 2 * len(alone([*ordered.values()])) > len(numbers)
    return numbers if rarely or not numbers else ordered


def alone(ys: Sequence[float]) -> list[int]:
    """The places of numbers that have none beside them."""
    there = [False, *(y == y for y in ys), False]
    return [i for i in range(len(ys)) if there[i : i + 3] == [False, True, False]] if len(ys) > 1 else []


def _risen(counts: Sequence[float]) -> list[float]:
    """How many updates each record skipped: a count so far that never falls is told by its rises."""
    rises = [after - before for before, after in zip([0.0, *counts], counts, strict=False)]
    is_count = min(rises, default=0) >= 0 and max(counts, default=0) > 1
    return rises if is_count else [*counts]


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:  # a whole number that no float is
        return False


_PANELS = ("loss", "validation", "learning rate", "norm", "loss scale", "seconds")
_HEIGHTS = {"loss": 2.4, "validation": 1.8}
_WORDS: tuple[tuple[str, Callable[[list[str]], bool]], ...] = (
    ("skipped", lambda words: "skipped" in words),
    ("seconds", lambda words: "time" in words),
    ("loss scale", lambda words: words[-1] == "scale"),
    ("learning rate", lambda words: words[-1] == "lr" or words[-2:] == ["learning", "rate"]),
    ("norm", lambda words: words[-1] == "norm" and words[0] != "max"),
    ("loss", lambda words: "loss" in words),
)


def _panel_of(name: str, of_validation: bool) -> str | None:
    """Where a number is drawn, by the words of its name; None where it is not."""
    if name in (*WHEN, "epoch", "mode", "eta"):
        return None
    head, _, tail = name.partition("/")  # a hyperparameter of a group is its address/a parameter
    last = (head if "." in head else tail or head).rpartition(".")[2]
    words = last.lower().replace("-", "_").split("_")
    found = next((panel for panel, says in _WORDS if says(words)), None)
    if of_validation and found != "loss":
        return None if found == "seconds" else "validation"
    return found


# drawing


def _panel(
    name: str, series: Series, span: tuple[float, float], skipped: Sequence[float], letters: int, axes: Axes
) -> None:
    low, high = span
    for (label, (xs, ys)), colour in zip(series.items(), paper.colours(len(series)), strict=True):
        few = name == "validation" or label.startswith("validation")
        many = name in ("loss", "norm", "seconds") and len(ys) >= 60 and not few
        style: dict[str, Any] = {"marker": "o", "markersize": 3.5, "clip_on": False} if few or len(xs) == 1 else {}
        axes.plot(
            xs, ys, color=colour, label=label, gid=label, linewidth=0.8 if many else 1.6, alpha=0.35 if many else 1,
            drawstyle="steps-post" if name == "loss scale" else "default", **style,
        )  # fmt: skip
        if single := alone(ys):
            axes.plot([xs[i] for i in single], [ys[i] for i in single], ".", color=colour, label="_", gid=f"{label}, alone")
        if many:
            axes.plot(*_smoothed(xs, ys), color=colour, linewidth=1.8, label="_", gid=f"{label}, smoothed")
    paper.dress(axes)
    axes.set_xlim(low, high if high > low else low + 1)
    _scale(axes, name, [y for _, ys in series.values() for y in ys if y == y])
    for x in skipped:
        axes.axvline(x, color=paper.ORANGE, linewidth=0.9, ymin=0.93, gid="skipped")
    paper.ticks(axes)
    only = next(iter(series))
    said = name if len(series) > 1 or only == name.replace(" ", "_") else f"{name}: {only}"
    paper.heading(axes, f"{said}; {len(skipped)} skipped updates are marked" if skipped else said, letters)
    if len(series) > 1:
        paper.legend(axes, [*series], letters)


def _scale(axes: Axes, name: str, values: Sequence[float]) -> None:
    """A log scale for what spans a decade, above 0; the loss scale is a power of two."""
    if min(values) > 0 and (name == "loss scale" or (name != "learning rate" and max(values) >= 10 * min(values))):
        paper.logarithmic(axes, min(values), max(values), 2 if name == "loss scale" else 10)
    else:
        if min(values) >= 0 and name != "validation":
            axes.set_ylim(bottom=0)
        paper.plain(axes)


def _smoothed(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """The mean of each thirtieth or so, at its middle; a gap where it has more gaps than numbers."""
    size = max(len(ys) // 30, 2)
    parts = [slice(i, i + size) for i in range(0, len(ys) - size + 1, size)]
    numbers = [[y for y in ys[part] if y == y] for part in parts]
    means = [sum(some) / len(some) if 2 * len(some) >= size else math.nan for some in numbers]
    return [sum(xs[part]) / size for part in parts], means
