"""What a user reads of a bound chain, and what can be set beside its code."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from gradchain.core.chain import chain
from gradchain.core.hyper import is_number
from gradchain.updater.bound import Bound
from gradchain.updater.info import Metrics
from gradchain.updater.settings import Settings


class Controls:
    """The part of an Updater that neither touches weights nor gradients: counters, numbers, clocks."""

    _bound: Bound

    @property
    def chain(self) -> chain:
        """The chain, as it was bound."""
        return self._bound.chain

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parameters, in order."""
        return self._bound.target.index.names

    @property
    def num_updates(self) -> int:
        """How many updates were applied: the clock "step"."""
        return int(self._bound.clocks["step"])

    @property
    def num_micro(self) -> int:
        """How many micro-batches were stepped, held ones too: the clock "micro"."""
        return int(self._bound.clocks["micro"])

    @property
    def num_skipped(self) -> int:
        """How many updates were skipped for an overflow or a non-finite gradient."""
        return self._bound.num_skipped

    @property
    def clocks(self) -> dict[str, float]:
        """Every clock, by name."""
        return dict(self._bound.clocks)

    @property
    def metrics(self) -> Metrics:
        """The last value of everything that links recorded, by address."""
        return Metrics(self._bound.records)

    def hyperparams(self) -> dict[str, Any]:
        """Address → the number the coming update will use; a dict of numbers by parameter where they differ."""
        return self._bound.hypers.values(self._bound.clocks)

    def settings(self) -> Settings:
        """Which number each parameter has of every hyperparameter that differs, and by which rules: print it."""
        return self._bound.hypers.settings(self._bound.clocks)

    def override(self, name: str, value: Any = None, *, factor: float | None = None) -> None:
        """Set a hyperparameter from now on, in place of the code's: by a value, or times `factor`.

        Args:
            name: an address or a unique suffix of one, such as "learning_rate".
            value: a number, schedule or per-parameter value; None (and no factor) ends the override.
            factor: multiplies what the hyperparameter would be.

        Raises:
            KeyError: no hyperparameter, or more than one, is called so.
            ValueError, TypeError: the value is out of range.
        """
        self._bound.hypers.override(name, value, factor, self._bound.clocks)
        self._bound.follow_clocks()

    def tick(self, clock: str, amount: float = 1) -> None:
        """Advance a named clock that a `by(clock, …)` schedule reads. "step" and "micro" tick by themselves."""
        if clock in ("step", "micro"):
            raise ValueError(f"tick: {clock!r} ticks by itself, once per {'update' if clock == 'step' else 'step()'}.")
        if clock not in self._bound.clocks:
            known = sorted(set(self._bound.clocks) - {"step", "micro"})
            raise KeyError(
                f"tick: nothing reads the clock {clock!r}. Clocks that are read: {', '.join(known) or 'none'}."
            )
        if not is_number(amount) or not 0 <= amount < math.inf:
            raise ValueError(f"tick: amount must be a finite number of at least 0, got {amount!r}.")
        self._bound.clocks[clock] += amount

    def observe(self, name: str, value: float | Tensor) -> None:
        """Put a number where links see it (`ctx.observed`), such as a validation loss for reduce_on_plateau.

        Every call counts once, at the next update that is applied.
        """
        number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        if not isinstance(name, str) or not is_number(number):
            raise TypeError(f"observe: takes a name and a number, got {name!r} and {value!r}.")
        count, latest = self._bound.news.get(name, (0, []))
        self._bound.observed[name] = float(number)
        self._bound.news[name] = (count + 1, [*latest, float(number)])
