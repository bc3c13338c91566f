"""The schedulers of a recipe that read a metric: a link that scales the updates, or a clock that a number reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradchain.adapters.mmengine.curves.kinds import SUFFIXES, TYPES
from gradchain.adapters.mmengine.entries import OWNER, Entry, is_number, is_numbers, type_name
from gradchain.core.transform import Transform
from gradchain.optimizers import _parts as parts
from gradchain.schedules import Schedule, by, constant, exponential
from gradchain.selectors import SelectorLike
from gradchain.transforms.plateau import reduce_on_plateau, tick_on_plateau

if TYPE_CHECKING:
    from gradchain.core.hyper import Value

__all__ = ["Groups", "Plateau", "plateaus", "reducing"]

FAMILY = "ReduceOnPlateau"
KEYS = (
    "monitor", "rule", "factor", "patience", "threshold", "threshold_rule", "cooldown", "min_value", "eps", "begin",
    "end", "by_epoch", "verbose", "last_step", "type", "_scope_",
)  # fmt: skip
PURE = ("LinearLR", "LinearMomentum", "LinearParam", "Constant", "MultiStep", "Step", "Exponential")
EPS = 1e-8
MOST = 100_000  # reductions that are gone through for the one that eps keeps from happening
Groups = Callable[[str, "Sequence[float] | None"], "list[tuple[SelectorLike | None, float, float]]"]
"""(a field, the least number of each group or None) -> the parameters of one number and one least, all as None."""


class Plateau:
    """A scheduler that reads a metric.

    Attributes:
        entry, field, factor: its dict, what it reduces, and by what.
        least, eps: below which it does not, one number or one for each group; smaller reductions are left out.
        bounded, alone: whether one of these two was chosen; whether nothing else moves the field.
        watch: what says when, as a link takes it.
    """

    def __init__(self, entry: Entry, others: Sequence[Any]) -> None:
        self.entry = entry
        kind = str(type_name(entry.items["type"])).removeprefix(FAMILY)
        if kind not in SUFFIXES:
            entry.refuse(f"type must be {FAMILY} and one of {', '.join(SUFFIXES)}, got {entry.items['type']!r}.")
        entry.only(KEYS, () if SUFFIXES[kind] else ("param_name",))
        self.field: Any = SUFFIXES[kind] or entry.get(
            "param_name", None, "the name of a number, as 'momentum'", lambda x: isinstance(x, str) and x.isidentifier()
        )
        if not entry.flag("by_epoch", True):
            entry.refuse("by_epoch must be True, as in MMEngine, got False: it counts validations.")
        if (last := entry.items.get("last_step", -1)) != -1:
            entry.refuse(f"last_step must be -1, got {last!r}; what it has seen is in the checkpoint.")
        if entry.items.get("begin", 0) != 0 or "end" in entry.items:
            entry.refuse("begin and end must not be given: it reads every observation.")
        rule = entry.one_of("rule", "less", "greater")
        self.watch: dict[str, Any] = {
            "observed": entry.items.get("monitor", "loss"),
            "patience": entry.whole_from(0, "patience", 10),
            "threshold": entry.from_0("threshold", 1e-4),
            "threshold_mode": entry.one_of("threshold_rule", "rel", "abs"),
            "cooldown": entry.whole_from(0, "cooldown", 0),
            "mode": "min" if rule == "less" else "max",
            "worst": 1e9,
        }
        self.eps = entry.number("eps", EPS)
        self.least: float | Sequence[float] = entry.items.get("min_value", 0.0)
        if not is_number(self.least) and not is_numbers(self.least):
            rule = "a number, or a list with one for each group"
            entry.refuse(f"min_value must be {rule}, got {self.least!r}.", TypeError)
        self.bounded = self.least != 0.0 or self.eps != EPS
        kinds = [(str(type_name(one.get("type"))), one) for one in others if isinstance(one, Mapping)]
        moving = [k for k, one in kinds if k in TYPES and self.field == (TYPES[k].field or one.get("param_name"))]
        if impure := [kind for kind in moving if not kind.startswith(PURE)]:
            what = "the learning rate" if self.field == "lr" else repr(self.field)
            entry.refuse(
                f"the other schedulers of {what} must only multiply, got {impure[0]}, which acts on what a reduction "
                "leaves."
            )
        self.alone = not moving
        self.factor = entry.number("factor", 0.1, "a number of at least 0 and below 1", lambda x: 0 <= x < 1)

    @property
    def clock(self) -> str:
        """What counts the reductions."""
        return f"{self.field}_plateau"

    def tick(self) -> tick_on_plateau:
        """The link that counts the reductions, which the number reads."""
        if self.bounded and not self.alone:
            self.entry.refuse(
                f"min_value and eps must not be given where other schedulers move {self.field!r}, which they bound."
            )
        return tick_on_plateau(clock=self.clock, **self.watch)

    def groups(self, of: Groups) -> list[tuple[SelectorLike | None, float, float]]:
        """The parameters of one number and one least number."""
        try:
            if is_number(self.least):
                return [(who, number, self.least) for who, number, _ in of(self.field, None)]  # type: ignore[misc]
            return of(self.field, self.least)  # type: ignore[arg-type]  # no number
        except ValueError as error:
            self.entry.refuse(str(error))

    def falls(self, base: float, least: float, moving: Value) -> Value:
        """A number that begins at a base value, and is what others make of it meanwhile."""
        if isinstance(moving, Schedule):
            fall = self._fall(1.0, 0.0, self.eps / base) if base else constant(1.0)
            return moving if isinstance(fall, constant) else moving * by(self.clock, fall)
        fall = self._fall(base, least, self.eps)
        return moving if isinstance(fall, constant) else by(self.clock, fall)

    def _fall(self, base: float, least: float, eps: float) -> Schedule:
        """The number after so many reductions: the first that eps leaves out is the last."""
        count, value = 0, base
        while count < MOST and value - (lower := max(value * self.factor, least)) > eps:
            count, value = count + 1, lower
        if count == 0:
            return constant(base)
        if self.factor == 0.0:
            return constant(base).take(1).then(constant(value))
        falling: Schedule = exponential(base, self.factor)
        falling = falling.clip(low=least) if least > 0.0 else falling
        return falling if value == least else falling.take(count)


def plateaus(param_scheduler: Any, strict: bool) -> tuple[Any, dict[str, Plateau]]:
    """A scheduler or a list of them without those that read a metric, and these by field."""
    entries = list(param_scheduler) if isinstance(param_scheduler, (list, tuple)) else [param_scheduler]
    reading = {
        i: Entry(f"param_scheduler[{i}] ({entry['type']})", entry, strict, OWNER)
        for i, entry in enumerate(entries)
        if isinstance(entry, Mapping) and str(type_name(entry.get("type"))).startswith(FAMILY)
    }
    others = [entry for i, entry in enumerate(entries) if i not in reading]
    found: dict[str, Plateau] = {}
    for entry in reading.values():  # what the others are is checked where they are read
        one = Plateau(entry, others)
        if found.setdefault(one.field, one) is not one:
            entry.refuse(f"there must be at most one scheduler that reads a metric for {one.field!r}, got two.")
    return (others or None) if found else param_scheduler, found


def reducing(plateau: Plateau, rate: float, ratio: float, curve: Any, groups: Groups) -> list[Transform]:
    """The links that a ReduceOnPlateauLR is, beside the other schedulers.

    rate: the optimizer's own learning rate; ratio: what rates are multiplied by before schedules see them, this one
    was; curve: what those make of 1; groups: the rates of the parameters.
    """
    found = (
        [(who, each * ratio, low) for who, each, low in plateau.groups(groups)]
        if plateau.bounded
        else [(None, rate, 0.0)]
    )
    links = []
    for who, each, low in found:
        if each != 0.0:  # a rate of 0 falls no further
            bounds = {"min_value": _at(low, curve, 0.0), "eps": _at(plateau.eps, curve, EPS)}
            link = reduce_on_plateau(**plateau.watch, **bounds, factor=plateau.factor, base=each)
            links.append(parts.among(link, who))
    return links


def _at(bound: float, curve: Any, usual: float) -> Any:
    """A bound of the rate in force, in units of the rate without what the other schedulers have made of it.

    Where those have made it 0, nothing lies above the bound. The usual eps is none to them.
    """
    if bound == usual or not isinstance(curve, Schedule) or isinstance(curve, constant):
        return bound
    return bound / curve.clip(low=1e-30)
