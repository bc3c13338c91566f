"""The numbers of each layer: a picture of `updater.settings()`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from gradchain.core.address import find
from gradchain.see import paper
from gradchain.see.lines import Clock, Clocks
from gradchain.see.run import Run
from gradchain.see.subjects import Subject, subjects_of
from gradchain.updater import Updater
from gradchain.updater.group import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["settings"]

OWNER = "see.settings"
MOST_ROWS = 48
Layers = dict[str, dict[float, int]]
"""Layer → number → how many parameters have it."""


def settings(
    updater: Updater | Group,
    *,
    at: int | None = None,
    names: Sequence[str] | None = None,
    clocks: Mapping[str, Clock] | None = None,
    width: float = 8.0,
    title: str = "Layers",
) -> Figure:
    """Draw which number each layer has: rates by layer, where decay is left out, groups of any kind.

    Each hyperparameter that differs among parameters has a panel, or the learning rate where none does. A row is a
    module, named as deep as fits; a point in it a number that some of its parameters have, the larger the more of them.
    Needs the package matplotlib.

    Args:
        updater: one, or a group of them.
        at: the update whose numbers these are; None: the first at which a hyperparameter is largest, if schedules end.
        names: the hyperparameters to draw, by address or a unique suffix of it.
        clocks: as for `curves`.
        width: in inches. A narrow figure, below 8, has panels below each other.
        title: above all panels.

    Raises:
        TypeError, ValueError, LookupError, KeyError, ModuleNotFoundError: as `curves`.

    >>> import torch, gradchain as gch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    >>> updater = gch.sgd(gch.multiply(0.1, (gch.named("0.*"), 0.1))).bind(model)
    >>> [axes.get_title(loc="left") for axes in gch.see.settings(updater).axes]
    ['scale_by_learning_rate.learning_rate, at update 0']
    """
    if not isinstance(updater, (Updater, Group)):
        raise TypeError(f"{OWNER}: updater must be an updater or a group of them, got {type(updater).__name__}.")
    if at is not None and (isinstance(at, bool) or not isinstance(at, int) or at < 0):
        raise ValueError(f"{OWNER}: at must be an update, a whole number of at least 0, or None, got {at!r}.")
    paper.check_installed(OWNER)
    found: dict[str, tuple[int, dict[str, float]]] = {}
    each = {"": updater} if isinstance(updater, Updater) else dict(updater)
    for one, subject in zip(each.values(), subjects_of(OWNER, updater), strict=True):
        found |= _numbers(one, subject, at, clocks or {})
    if isinstance(names, str) or names == []:
        raise ValueError(f"{OWNER}: names must be a list of at least one name, got {names!r}.")
    chosen = [find(name, found, OWNER) for name in names] if names is not None else _differing(found)
    sheet = paper.Sheet(OWNER, width)
    for address in chosen:
        update, numbers = found[address]
        layers = layers_of(numbers)
        sheet.row(0.17 * len(layers) + 0.9, partial(_panel, address, update, layers, sheet.letters()))
    return sheet.figure(title)


def _numbers(
    updater: Updater, subject: Subject, at: int | None, clocks: Mapping[str, Clock]
) -> dict[str, tuple[int, dict[str, float]]]:
    """Address → the update that is looked at, and the number of each parameter then."""
    bound, time = updater._bound, Clocks(OWNER, subject.chain, clocks)
    time.check(bound.hypers.clocks())
    out = {}
    peaks = {} if at is not None else _peaks(subject, clocks, updater.num_updates)
    seen: dict[int, dict[str, Any]] = {}
    for own in bound.hypers.values(time.at(at or 0, bound.hypers.clocks())):
        address = subject.address(own)
        update = at if at is not None else peaks[address]
        if update not in seen:
            seen[update] = bound.hypers.values(time.at(update, bound.hypers.clocks()))
        value = seen[update][own]
        numbers = value if isinstance(value, dict) else dict.fromkeys(updater.names, value)
        out[address] = (update, {subject.address(name): float(number) for name, number in numbers.items()})
    return out


def _peaks(subject: Subject, clocks: Mapping[str, Clock], now: int) -> dict[str, int]:
    """Address → the first update at which it is largest; the coming one where its schedules have no end."""
    run = Run(OWNER, [subject], None, clocks, default=now + 1)
    out = {}
    for address, curves in run.curves.items():
        tops = [max(curve.values) for curve in curves]
        values = curves[tops.index(max(tops))].values
        out[address] = run.steps[values.index(max(values))] if any(c.moves for c in curves) else now
    return out


def _differing(found: Mapping[str, tuple[int, Mapping[str, float]]]) -> list[str]:
    differing = [address for address, (_, numbers) in found.items() if len(set(numbers.values())) > 1]
    return differing or [a for a in found if a.endswith((".learning_rate", ".lr"))] or [*found][:1]


def layers_of(numbers: Mapping[str, float]) -> Layers:
    """The numbers by module, as deep as gives at most so many rows."""
    paths = {name: name.split(".")[:-1] or [name] for name in numbers}
    deepest = max(map(len, paths.values()))
    for depth in range(deepest, 0, -1):
        layers: Layers = {}
        for name, number in numbers.items():
            counts = layers.setdefault(".".join(paths[name][:depth]), {})
            counts[number] = counts.get(number, 0) + 1
        if len(layers) <= MOST_ROWS:
            break
    return layers


def _panel(address: str, update: int, layers: Layers, letters: int, axes: Axes) -> None:
    points = [(x, row, n) for row, counts in enumerate(layers.values()) for x, n in counts.items()]
    values = [x for x, _, _ in points]
    log = min(values) > 0 and max(values) >= 10 * min(values)
    sizes = [min(18 + 9 * n, 70) for _, _, n in points]
    axes.scatter(values, [row for _, row, _ in points], s=sizes, color=paper.BLUE, zorder=3, gid=address, linewidths=0)
    paper.dress(axes)
    if log:
        axes.set_xscale("log")
    else:
        low, high = min(0.0, *values), max(values)
        axes.set_xlim(low - 0.03 * (high - low or 1), high + 0.06 * (high - low or 1))
        axes.xaxis.set_major_formatter("{x:.6g}")
    every = -(-len(layers) // MOST_ROWS)
    names = [*layers]
    axes.set_yticks(range(0, len(names), every), paper.apart(names[::every], letters // 3))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", labelsize=8.5, length=0)
    paper.heading(axes, f"{address}, at update {update}", letters)
