"""The hyperparameters of a bound chain: what they will be, which clocks they read, and overriding them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gradchain import schedules
from gradchain.core.address import find
from gradchain.core.config import from_config, to_config
from gradchain.core.context import Context, Run
from gradchain.core.hyper import Hyper, Override, is_number
from gradchain.core.transform import Transform, walk


class Hyperparameters:
    """Every numeric hyperparameter of a chain, by address."""

    def __init__(self, chain: Transform) -> None:
        self._fields: dict[str, tuple[str, Transform, Hyper]] = {
            f"{address}.{name}": (address, link, hyper)
            for address, link, _ in walk(chain, None)
            for name, hyper in link.hypers.items()
            if not isinstance(link.__dict__[name], str)
        }
        self.overrides: dict[str, Override] = {}

    def values(self, clocks: Mapping[str, float]) -> dict[str, float]:
        """Address → the number at these clocks."""
        return self.values_under(clocks, self.overrides)

    def values_under(self, clocks: Mapping[str, float], overrides: Mapping[str, Override]) -> dict[str, float]:
        """Address → the number at these clocks, under these overrides."""
        ctx = Context.of(Run(clocks=clocks, overrides=overrides))
        return {full: link.value_of(hyper, ctx.enter(at)) for full, (at, link, hyper) in self._fields.items()}

    def clocks(self) -> frozenset[str]:
        """The named clocks that some schedule reads."""
        return self.clocks_under(self.overrides)

    def clocks_under(self, overrides: Mapping[str, Override]) -> frozenset[str]:
        """The named clocks that some schedule would read under these overrides."""
        given = [link.__dict__[hyper.name] for _, link, hyper in self._fields.values()]
        given += [override.value for override in overrides.values()]
        return frozenset(name for value in given for name in clocks_of(value))

    def override(self, name: str, value: Any, factor: float | None, clocks: Mapping[str, float]) -> None:
        """Put a number, a schedule or a factor in place of a hyperparameter; neither of them ends that."""
        full = find(name, self._fields, "override")
        if value is None and factor is None:
            self.overrides.pop(full, None)
            return
        if value is not None and factor is not None:
            raise ValueError("override: give a value or factor=, not both.")
        address, link, hyper = self._fields[full]
        if hyper.name in link.read_once:
            raise ValueError(f"override: {full} is read once, before the first update. Give it to {address}(…).")
        override = Override(value, factor)
        if factor is not None:
            if not is_number(factor) or not math.isfinite(factor):
                kind = ValueError if is_number(factor) else TypeError
                raise kind(f"override: factor must be a finite number, got {factor!r}.")
            ctx = Context.of(Run(clocks=clocks, overrides={full: override}))
            link.value_of(hyper, ctx.enter(address))  # raises where the product is out of range
        elif not callable(value) or isinstance(value, Tensor):
            hyper.checked(value, address)
        self.overrides[full] = override

    def saved_overrides(self) -> dict[str, Any]:
        """The overrides as plain data."""
        return {a: {"value": to_config(o.value), "factor": o.factor} for a, o in self.overrides.items()}

    def restored(self, saved: Mapping[str, Any]) -> tuple[dict[str, Override], list[str]]:
        """Overrides from plain data, and a sentence for each that cannot be had again."""
        found, lost = {}, []
        for address, data in saved.items():
            try:
                if address not in self._fields:
                    raise KeyError(f"the chain has no {address}")
                found[address] = Override(from_config(data["value"]), data["factor"])
            except (KeyError, TypeError, ValueError) as error:
                lost.append(f"override of {address} was not restored: {str(error.args[0]).rstrip('.')}")
        return found, lost


def clocks_of(value: Any) -> frozenset[str]:
    """The clocks that a hyperparameter's value reads; a number reads none."""
    if isinstance(value, Tensor) or not callable(value):
        return frozenset()
    return schedules.clocks_of(value)
