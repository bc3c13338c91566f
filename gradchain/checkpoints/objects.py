"""Objects of the user's own that are saved with a run: what has a state, or a torch.Generator."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch


def is_stateful(thing: Any) -> bool:
    """Whether it gives its state and takes it."""
    return callable(getattr(thing, "state_dict", None)) and callable(getattr(thing, "load_state_dict", None))


def read(owner: str, given: Any) -> dict[str, Any]:
    """Objects by name. TypeError for what has no state."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{owner}: also must be a dict of objects by name, got {type(given).__name__}.")
    for name, thing in given.items():
        if not isinstance(name, str) or not (is_stateful(thing) or isinstance(thing, torch.Generator)):
            raise TypeError(
                f"{owner}: also[{name!r}] must have state_dict and load_state_dict, or be a torch.Generator, got "
                f"{type(thing).__name__}. Give plain data to step and save."
            )
    return dict(given)


def states(things: Mapping[str, Any]) -> dict[str, Any]:
    """What each is in."""
    return {n: t.get_state() if isinstance(t, torch.Generator) else t.state_dict() for n, t in things.items()}


def put(things: Mapping[str, Any], saved: Mapping[str, Any], owner: str) -> Callable[[], None]:
    """Have each be in what was saved; where one refuses, all are as before. What is returned takes it back."""
    _tell(things, saved, owner)
    before = copy.deepcopy(states({name: things[name] for name in things if name in saved}))

    def back() -> None:
        for name, state in before.items():
            _load(things[name], state)

    try:
        for name in before:
            _load(things[name], saved[name])
    except BaseException:
        back()
        raise
    return back


def _load(thing: Any, state: Any) -> None:
    if isinstance(thing, torch.Generator):
        thing.set_state(state)
    else:
        thing.load_state_dict(state)


def _tell(things: Mapping[str, Any], saved: Mapping[str, Any], owner: str) -> None:
    for who, names in (("file", set(saved) - set(things)), ("program", set(things) - set(saved))):
        if names:
            warnings.warn(
                f"{owner}: also: the {who} alone has {', '.join(map(repr, sorted(names)))}, which stays as it is.",
                stacklevel=5,
            )
