"""The schedulers of a recipe that read a metric, as links."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradchain.adapters.mmengine.entries import OWNER, Entry, is_number, type_name
from gradchain.combinators.masked import masked
from gradchain.core.transform import Transform
from gradchain.schedules import Schedule, constant
from gradchain.selectors import SelectorLike
from gradchain.transforms.plateau import reduce_on_plateau

__all__ = ["Rates", "plateaus", "read_plateau"]

KEYS = (
    "monitor", "rule", "factor", "patience", "threshold", "threshold_rule", "cooldown", "min_value", "eps", "begin",
    "end", "by_epoch", "verbose", "last_step", "param_name", "type", "_scope_",
)  # fmt: skip
PURE = ("Linear", "Constant", "MultiStep", "Step", "Exponential")
EPS = 1e-8
Rates = Callable[["Sequence[float] | None"], "list[tuple[SelectorLike | None, float, float]]"]
"""The least rate of each group, or None -> the parameters of one learning rate and least rate, all as None."""


def plateaus(param_scheduler: Any) -> tuple[Any, list[tuple[str, Mapping[str, Any]]]]:
    """A scheduler or a list of them without those that read a metric, and these, with their places."""
    entries = param_scheduler if isinstance(param_scheduler, (list, tuple)) else [param_scheduler]
    found = [
        (f"param_scheduler[{i}] ({entry['type']})", entry)
        for i, entry in enumerate(entries)
        if isinstance(entry, Mapping) and str(type_name(entry.get("type"))).startswith("ReduceOnPlateau")
    ]
    reading = [id(entry) for _, entry in found]
    others = [entry for entry in entries if id(entry) not in reading]
    return (others or None) if found else param_scheduler, found


def read_plateau(
    found: Sequence[tuple[str, Mapping[str, Any]]],
    others: Any,
    rate: float,
    moves: Callable[[float], Any],
    rates: Rates,
    strict: bool,
) -> list[Transform]:
    """The links that a ReduceOnPlateauLR is, beside the other schedulers.

    rate: the optimizer's own learning rate; moves: what they make of one; rates: those of the parameters.
    """
    if not found:
        return []
    entry = Entry(found[-1][0], found[-1][1], strict, OWNER)
    if len(found) > 1:
        entry.refuse(f"there must be at most one scheduler that reads a metric, got {len(found)}.")
    _check(entry, others)
    rule = entry.get("rule", "less", "'less' or 'greater'", lambda x: x in ("less", "greater"))
    rel = entry.get("threshold_rule", "rel", "'rel' or 'abs'", lambda x: x in ("rel", "abs"))
    given = {
        "factor": entry.number("factor", 0.1),
        "patience": entry.number("patience", 10),
        "threshold": entry.number("threshold", 1e-4),
        "threshold_mode": rel,
        "cooldown": entry.number("cooldown", 0),
        "mode": "min" if rule == "less" else "max",
        "worst": 1e9,
    }
    least, eps = entry.items.get("min_value", 0.0), entry.number("eps", EPS)
    if not is_number(least) and not (isinstance(least, (list, tuple)) and all(map(is_number, least))):
        entry.refuse(f"min_value must be a number, or a list with one for each group, got {least!r}.", TypeError)
    if isinstance(least, (list, tuple)):
        try:
            groups = rates(least)
        except ValueError as error:
            entry.refuse(str(error))
    else:
        groups = [(who, each, least) for who, each, _ in rates(None)] if least or eps != EPS else [(None, rate, 0.0)]
    curve = moves(1.0)
    links: list[Transform] = []
    for who, each, low in groups:
        if each == 0.0:
            continue  # a rate of 0 falls no further
        bounds = {"min_value": _at(low, curve, 0.0), "eps": _at(eps, curve, EPS)}
        link = reduce_on_plateau(entry.items.get("monitor", "loss"), **given, **bounds, base=each)
        links.append(link if who is None else masked(link, who))
    return links


def _check(entry: Entry, others: Any) -> None:
    given = entry.items
    entry.only(KEYS)
    field = given.get("param_name", "lr") if "ParamScheduler" in str(type_name(given["type"])) else "lr"
    if "Momentum" in str(type_name(given["type"])) or field != "lr":
        entry.refuse("only the learning rate can be reduced on a plateau: reduce_on_plateau scales the updates.")
    if not entry.flag("by_epoch", True):
        entry.refuse("by_epoch must be True, as in MMEngine, got False: it counts validations.")
    if given.get("last_step", -1) != -1:
        entry.refuse(f"last_step must be -1, got {given['last_step']!r}; what it has seen is in the checkpoint.")
    if given.get("begin", 0) != 0 or "end" in given:
        entry.refuse("begin and end must not be given: it reads every observation.")
    for other in others or ():
        kind = str(type_name(other.get("type")))
        if kind.endswith("LR") and kind.removesuffix("LR") not in PURE:
            entry.refuse(
                f"the other schedulers of the learning rate must only multiply, got {kind}, which acts on what a "
                "reduction leaves."
            )


def _at(bound: float, curve: Any, usual: float) -> Any:
    """A bound of the rate in force, in units of the rate without what the other schedulers have made of it.

    Where those have made it 0, nothing lies above the bound. The usual eps is none to them.
    """
    if bound == usual or not isinstance(curve, Schedule) or isinstance(curve, constant):
        return bound
    return bound / curve.clip(low=1e-30)
