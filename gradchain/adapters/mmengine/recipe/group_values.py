"""The numbers of a recipe's parameter groups, as values of hyperparameters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from typing import TYPE_CHECKING, Any

from gradchain.adapters.mmengine.curves.hook_schedules import HookSchedules
from gradchain.adapters.mmengine.curves.schedules import Fields
from gradchain.adapters.mmengine.entries import Clock, is_number, type_name
from gradchain.adapters.mmengine.groups.params import One
from gradchain.adapters.mmengine.recipe.hooks import Averaging
from gradchain.adapters.mmengine.recipe.optimizers import Optimizer
from gradchain.adapters.mmengine.recipe.plateaus import Plateau
from gradchain.adapters.mmengine.recipe.wrappers import Around
from gradchain.schedules import Schedule, by, constant
from gradchain.selectors import Selector, SelectorLike, bias, choose, named
from gradchain.selectors.base import predicate

if TYPE_CHECKING:
    from gradchain.core.hyper import Value

__all__ = ["Numbers", "Recipe"]

# what constructors leave in a group for the log
LABELS = ("lr_mult", "decay_mult", "lr_scale", "layer_id")


@dataclass(frozen=True)
class Recipe:
    """What all optimizers of a recipe share; `is_old`: whether it is in the format of mmcv 1.x."""

    is_old: bool
    clock: Clock
    schedules: Callable[[Any], Fields]
    ratio: float
    averaging: Averaging | None
    setting: HookSchedules | None
    strict: bool

    @property
    def name(self) -> str:
        """What errors call the dict of an optimizer."""
        return "config" if self.is_old else "optim_wrapper"


@dataclass(frozen=True)
class Numbers:
    """The numbers of the parameter groups, as values of hyperparameters.

    one: the optimizer's dict and its parameters; plateaus: by field what reduces it on a plateau, beside the schedules.
    """

    one: One
    optimizer: Optimizer
    fields: Fields
    plateaus: Mapping[str, Plateau]
    around: Around
    recipe: Recipe

    def all(self) -> dict[str, Value]:
        """By field what a link is given: those that the config names, and those that move or differ."""
        known, items = self.optimizer.parameters(), self.one.parameters.fields()
        own = [n for n in items if n in known]
        moved = (*self.fields, *self.plateaus)
        for odd in (n for n in items if n not in known and n not in (*moved, *LABELS)):
            self.optimizer.entry.object_to(
                f"{odd!r} of a parameter group must be an argument of the optimizer; put the parameters that have it "
                "in a branch of partition."
            )
        out = {}
        for field in dict.fromkeys((*moved, *(n for n in own if n != "lars_exclude"))):
            value = self.value(field)
            if value is not None and (field in self.optimizer.args or value != self.optimizer.base(field)):
                out[field] = value
        return out

    def base(self, field: str) -> float:
        """The number that the optimizer itself begins with."""
        base = self.optimizer.base(field)
        if not is_number(base):
            self.optimizer.entry.refuse(f"{field} must be a number, got {base!r}.")
        return base * self.recipe.ratio if field == "lr" else base  # type: ignore[no-any-return]

    def value(self, field: str) -> Value | None:
        """The value of one field; None where the optimizer has no such number."""
        start, plateau = self.optimizer.base(field), self.plateaus.get(field)
        given = self.one.parameters.numbers(field, start)
        make = self.fields.get(field, constant)
        if field == "momentum" and "betas" in self.optimizer.parameters() and plateau is None and _stays(make):
            return start  # type: ignore[no-any-return]  # an item of a group reaches betas by a scheduler only
        if given == [None]:
            if plateau is not None or not _stays(make):
                self.optimizer.entry.refuse(f"it has no {field!r}, which a scheduler moves.")
            if field in self.optimizer.args and self.optimizer.parameters().get(field) is not None:
                self.optimizer.entry.refuse(f"{field} must be a number, got None.")
            return None
        if odd := [v for v in given if not is_number(v)]:
            where, cure = "", ""
            if len(given) > 1:
                where, cure = " where groups differ", "; put the parameters of a group in a branch of partition"
            self.optimizer.entry.refuse(f"{field} must be a number{where}, got {odd[0]!r}{cure}.")

        def curve(base: float, least: float | None = None) -> Value:
            number = base * self.recipe.ratio if field == "lr" else base
            schedule = make(number)
            if field == "lr" and base == 0 != start and any(schedule(t) != 0.0 for t in self.recipe.clock.looks()):
                self.optimizer.entry.remark(
                    f"{field} of 0 does not stay: its schedule has an absolute value, such as eta_min, that it goes to."
                )
            value = self._read(schedule)
            if plateau is None:
                return value
            return plateau.falls(number, plateau.least if least is None else least, value)  # type: ignore[arg-type]

        if plateau is not None and not is_number(plateau.least):
            *some, (_, base, least) = plateau.groups(self.by_group)
            of_groups = [(who, curve(start, low)) for who, start, low in some]
            return choose(*of_groups, rest=curve(base, least)) if some else curve(base, least)  # type: ignore[arg-type]
        setting = self.recipe.setting
        if field == "lr" and setting is not None and setting.biases is not None and self._has_biases(setting):
            [base] = given
            of_biases = self._read(setting.biases(base * self.recipe.ratio))
            return choose((bias, of_biases), rest=curve(base))
        scaled = [number * self.recipe.ratio if field == "lr" else number for number in given]
        proportional = plateau is None and (len(given) == 1 or self._proportional(make, scaled))
        return self.one.parameters.value(field, start, curve, proportional=proportional)  # type: ignore[no-any-return]

    def curve(self, field: str, base: float) -> Value:
        """What the schedulers make of a number over the run."""
        return self._read(self.fields.get(field, constant)(base))

    def by_group(self, field: str, least: Sequence[float] | None) -> list[tuple[SelectorLike | None, float, float]]:
        """The parameters of one number and one least number, by group; None where that is all of them."""
        base, given = self.optimizer.base(field), self.one.parameters
        if least is None:
            numbers = given.numbers(field, base)
            if len(numbers) > 1 and given.settings is None and not self.recipe.strict:
                raise NotImplementedError(
                    "mmengine.from_config: min_value and eps of groups, of which by strict=False some may be empty, "
                    "depend on the model. mmengine.from_config(model, …) reads them."
                )
            return [(None, numbers[0], 0.0)] if len(numbers) == 1 else self._selected(field, numbers)
        if given.groups is None:
            if given.waits or (len(least) == 1 and not self.one.config.get("paramwise_cfg")):
                return [(None, base, least[0])]
            raise NotImplementedError(
                "mmengine.from_config: min_value must be one number where no model is at hand: what groups there are "
                "depends on the model. mmengine.from_config(model, …) reads it."
            )
        if len(least) != (count := max(given.groups.values()) + 1):
            raise ValueError(f"min_value must have a number for each of the {count} groups, got {len(least)}.")
        together = defaultdict[tuple[float, float], list[str]](list)
        for name, items in (given.settings or {}).items():
            if items is not None:
                together[items.get(field, base), least[given.groups[name]]].append(name)
        if len(together) == 1:
            return [(None, *next(iter(together)))]
        return [(named(*map(escape, names)), *key) for key, names in together.items()]

    def _selected(self, field: str, numbers: Iterable[Any]) -> list[tuple[SelectorLike | None, float, float]]:
        """The parameters of each number, by selectors."""
        some = {n: self.where(field, lambda one, n=n: one == n) for n in numbers}  # type: ignore[misc]
        return [(who, number, 0.0) for number, who in some.items() if not isinstance(who, bool)]

    def _proportional(self, make: Callable[[float], Schedule], numbers: Iterable[float]) -> bool:
        """Whether the curve of each number is so many times that of 1, wherever one looks."""
        unit, looks = make(1.0), self.recipe.clock.looks()
        units = [unit(t) for t in looks]
        for number in numbers:
            values = map(make(number), looks)
            if any(abs(value - number * one) > 1e-12 * abs(value) for value, one in zip(values, units, strict=True)):
                return False
        return True

    def _has_biases(self, setting: HookSchedules) -> bool:
        """Whether the third group, which the hook takes for the biases, is that; False where there is one group."""
        constructor = str(type_name(self.one.config.get("constructor")))
        if not constructor.startswith("YOLOv"):
            if self.one.config.get("paramwise_cfg"):
                setting.entry.refuse("constructor must be YOLOv5's or v7's: it takes the third group for the biases.")
            return False
        settings = self.one.parameters.settings
        trained = [name for name, items in settings.items() if items is not None] if settings is not None else ["bias"]
        return any(name.rpartition(".")[2] == "bias" for name in trained)

    def where(self, field: str, holds: Callable[[Any], bool]) -> Selector | bool:
        """The parameters whose group has such a value of a field; True or False where it is all of them, or none."""
        base, kind = self.optimizer.base(field) or 0.0, lambda v: float(holds(v))
        chosen = self.one.parameters.value(field, base, kind, proportional=False)
        if not isinstance(chosen, choose):
            return bool(chosen)
        out: Selector | None = named("*") if chosen.rest else None
        for selector, value in reversed(chosen.pairs):
            one = predicate(selector, "mmengine")
            out = (one if out is None else out | one) if value else (None if out is None else out & ~one)
        return False if out is None else out

    def _read(self, schedule: Schedule) -> Value:
        """A number where nothing moves, else the schedule, in micro-batches where those are not updates."""
        if isinstance(schedule, constant):
            return schedule.value
        return by("micro", schedule) if self.around.counts_micro else schedule


def _stays(make: Callable[[float], Schedule]) -> bool:
    """Whether no scheduler moves a field."""
    return isinstance(make(1.0), constant)
