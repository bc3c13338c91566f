"""Moments of a run and what is called at them, in MMEngine's order: by priority, and then as they were given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

MOMENTS = (
    "before_run", "after_load_checkpoint", "before_train", "before_train_epoch", "before_train_iter", "after_update",
    "after_train_iter", "after_train_epoch", "before_val", "before_val_epoch", "before_val_iter", "after_val_iter",
    "after_val_epoch", "after_val", "before_save_checkpoint", "after_train", "after_run",
)  # fmt: skip
"""MMEngine's of a training and its validations, and `after_update`: the body applied an update."""

PRIORITIES = {
    "HIGHEST": 0, "VERY_HIGH": 10, "HIGH": 30, "ABOVE_NORMAL": 40, "NORMAL": 50, "BELOW_NORMAL": 60, "LOW": 70,
    "VERY_LOW": 90, "LOWEST": 100,
}  # fmt: skip


class Hook(NamedTuple):
    """What is called at some moments, and when among the others there.

    Attributes:
        name: what it is, to a reader.
        priority: from 0, the first, to 100.
        calls: moment → function of what the moment gives by name: `batch_idx`, `data_batch`, `outputs`, `metrics`,
            `checkpoint`.
    """

    name: str
    priority: int
    calls: Mapping[str, Callable[[Mapping[str, Any]], object]]


def priority_of(value: Any) -> int:
    """A priority as a number from 0 to 100."""
    number = PRIORITIES.get(value.upper()) if isinstance(value, str) else getattr(value, "value", value)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= 100:
        raise ValueError(
            f"loop: priority of a hook must be a whole number from 0 to 100 or one of {', '.join(PRIORITIES)}, got "
            f"{value!r}."
        )
    return number


def in_order(hooks: Iterable[Hook]) -> dict[str, list[Callable[[Mapping[str, Any]], object]]]:
    """Moment → what is called then, in order."""
    ordered = sorted(hooks, key=lambda hook: hook.priority)
    return {moment: [hook.calls[moment] for hook in ordered if moment in hook.calls] for moment in MOMENTS}


def read(given: Any, run: Any, of_object: Callable[[Any, int | None], Hook]) -> Iterator[Hook]:
    """The hooks that a user gave.

    Args:
        given: a mapping of moments to functions or lists of them; or a list of (moment, function), (moment, function,
            priority), (object, priority) and objects with methods that are called as moments.
        run: what functions of one argument are called with.
        of_object: makes a hook of such an object.
    """
    if isinstance(given, Mapping):
        given = [(moment, f) for moment, fs in given.items() for f in (fs if isinstance(fs, (list, tuple)) else [fs])]
    alone = isinstance(given, tuple) and len(given) > 1 and (isinstance(given[0], str) or not _is_entry(given[1]))
    if alone or isinstance(given, str) or not isinstance(given, Iterable):
        given = [given]
    for entry in given:
        if isinstance(entry, tuple) and len(entry) in (2, 3) and isinstance(entry[0], str):
            yield _function(*entry, run=run)
        elif isinstance(entry, tuple) and len(entry) == 2 and _is_hook(entry[0]):
            yield of_object(entry[0], priority_of(entry[1]))
        elif not isinstance(entry, (Mapping, tuple)) and _is_hook(entry):
            yield of_object(entry, None)
        else:
            raise TypeError(
                "loop: hooks must be (moment, function) pairs, (moment, function, priority), or objects with methods "
                f"that are called as moments, got {entry!r}. The moments: {', '.join(MOMENTS)}."
            )


def _is_entry(given: Any) -> bool:
    return isinstance(given, tuple) or _is_hook(given)


def _is_hook(entry: Any) -> bool:
    return not isinstance(entry, (str, type)) and any(callable(getattr(entry, moment, None)) for moment in MOMENTS)


def _function(moment: str, function: Any, priority: Any = "NORMAL", *, run: Any) -> Hook:
    if moment not in MOMENTS:
        raise ValueError(f"loop: moment of a hook must be one of {', '.join(MOMENTS)}, got {moment!r}.")
    called = calling(function, f"hook at {moment}")
    return Hook(getattr(function, "__qualname__", moment), priority_of(priority), {moment: lambda _: called(run)})


def calling(function: Any, what: str) -> Callable[[Any], Any]:
    """A function of the run, of one that takes it or takes nothing."""
    if not callable(function):
        raise TypeError(f"loop: {what} must be a function of the run or of nothing, got {function!r}.")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # one of C's that does not say
        return function  # type: ignore[no-any-return]
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in places if p.default is p.empty]
    if len(needed) > 1 or any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
        raise TypeError(f"loop: {what} must be a function of the run or of nothing, got {function!r}.")
    takes = needed or any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return function if takes else lambda _: function()
