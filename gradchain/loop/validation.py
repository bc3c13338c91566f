"""Validation: when, of which weights, and so that the training after it is as it would be without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from gradchain.checkpoints import randomness
from gradchain.loop import spacing
from gradchain.loop.moments import calling
from gradchain.loop.spacing import Intervals, Unit
from gradchain.updater.updater import Updater

if TYPE_CHECKING:
    from gradchain.loop.run import loop


class Validation:
    """The user's function, and when it is called.

    Attributes:
        checked: the count up to which was looked whether it is due.
        done: how many updates and batches were behind at the last one.
        batches: what the function goes through, where it does so by `run.over`.
    """

    def __init__(
        self, given: Any, default: Unit, updaters: Mapping[str, Updater], averaged: Any, observe: str | Sequence[str]
    ) -> None:
        self._updaters = updaters
        self._function, self.when = _read(given, default)
        self._averaged = _averages(averaged, updaters)
        self._observe = (observe,) if isinstance(observe, str) else tuple(observe)
        self.checked = 0
        self.done: tuple[int, int] = (-1, -1)
        self.batches: Any = None

    def is_due(self, counts: Mapping[Unit, int], final: bool) -> bool:
        """Whether it is now, and from now on only behind this."""
        if self._function is None:
            return False
        due = self.would_be_due(counts, final)
        self.checked = counts[self.when.unit]
        return due

    def would_be_due(self, counts: Mapping[Unit, int], final: bool) -> bool:
        """Whether it is now. `final`: the run is at its end."""
        if self._function is None:
            return False
        now, marks = counts[self.when.unit], (counts["update"], counts["iter"])
        return self.when.due(self.checked, now) or (final and marks[1] > 0 and marks != self.done and self._begun(now))

    def _begun(self, now: int) -> bool:
        """Whether the first begin is reached: not before is it done after the last either."""
        return now >= self.when.begin

    def run(self, run: loop[Any]) -> dict[str, Any]:
        """Call it, and return its numbers by name."""
        counts = run.counts()
        self.done = (counts["update"], counts["iter"])
        run.call("before_val")
        run.call("before_val_epoch")
        with ExitStack() as stack:
            stack.enter_context(randomness.undisturbed())
            stack.enter_context(self._in_eval_mode())
            stack.enter_context(torch.no_grad())
            for name, average in self._averaged.items():
                stack.enter_context(self._updaters[name].averaged(average))
            found = _named(self._function(run))
        for name in self._observe:
            if name not in found:
                raise KeyError(f"loop: observe must be names that validation returns, got {name!r}; it has {[*found]}.")
            for updater in self._updaters.values():
                updater.observe(name, found[name])
        return found

    @contextmanager
    def _in_eval_mode(self) -> Iterator[None]:
        """Each module comes back in the mode that it was in, also one whose mode differs from its model's."""
        roots = [module for updater in self._updaters.values() for _, module in updater._bound.target.roots]
        modes = [(module, module.training) for root in roots for module in root.modules()]
        for root in roots:
            root.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def _read(given: Any, default: Unit) -> tuple[Any, Intervals]:
    if given is None:
        return None, Intervals(default, ((0, None),))
    if not isinstance(given, tuple):
        return calling(given, "validate"), Intervals(default, ((0, 1 if default == "epoch" else None),))
    if len(given) not in (2, 3):
        raise ValueError(
            f"loop: validate must be a function, (function, when) or (function, when, unit), got {len(given)} items."
        )
    function, when, *unit = given
    return calling(function, "validate"), spacing.read("validate", when, unit[0] if unit else "update")


def _averages(given: Any, updaters: Mapping[str, Updater]) -> dict[str, str | None]:
    """Updater → name of its average, or None for the only one."""
    if given is False:
        return {}
    if [*updaters] == [""]:
        if given is True or isinstance(given, str):
            return {"": None if given is True else given}
        raise TypeError(f"loop: averaged must be True, False or the name of an average, got {given!r}.")
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not set(names) <= set(updaters):
        raise ValueError(f"loop: averaged must be names of updaters, of {', '.join(updaters)}, got {given!r}.")
    return dict.fromkeys(names)


def _named(found: Any) -> dict[str, Any]:
    """What a validation returned, by name."""
    if found is None:
        return {}
    if isinstance(found, Mapping):
        return dict(found)
    if isinstance(found, (int, float, torch.Tensor)):
        return {"score": found}
    raise TypeError(f"loop: validate must return numbers by name, one number or None, got {type(found).__name__}.")
