"""A state as leaves of a tape, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from gradchain.core.eager import EagerTensors
from gradchain.core.scalars import Scalars
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.engine.recording.numbers import Each, Number
from gradchain.engine.recording.tape import Lazy, Tape


def dtypes(state: State) -> Iterator[torch.dtype]:
    """The dtypes of everything in a state that is per parameter."""
    for name, value in state.items():
        if isinstance(value, EagerTensors) and name not in state.whole:
            yield from (t.dtype for t in value._data)
    for inner in getattr(state, "links", {}).values():
        yield from dtypes(inner)


def mapped(state: State, change: Callable[[Tensors], Tensors]) -> Any:
    """`state` with every Tensors of parameters changed; those that come and go are left as they are."""
    changes: dict[str, Any] = {
        name: change(value) for name, value in state.items() if isinstance(value, Tensors) and name not in state.whole
    }
    links = getattr(state, "links", None)
    if links is not None:
        changes["links"] = {name: mapped(inner, change) for name, inner in links.items()}
    return state.replace(**changes) if changes else state


def roots_of(tape: Tape, old: Any, new: Any) -> list[tuple[int, int]]:
    """(leaf, node): what is written over which field of the state."""
    roots = []
    for name, before in old.items():
        after = getattr(new, name)
        if not isinstance(before, Lazy) or after is before:
            continue
        after = tape.leaf("extra", after)
        if after.node != before.node:
            roots.append((before.node, after.node))
    for name, inner in getattr(old, "links", {}).items():
        roots += roots_of(tape, inner, new.links[name])
    return roots


def restored(state: Any, new: Any, whole: Callable[[Lazy, Any], EagerTensors]) -> Any:
    """`new` with tensors in place of nodes: those of `state`, or what `whole` gives for a field replaced as a whole.

    They will hold the new values once the roots are written. A number on the device becomes a tensor there.
    """
    changes: dict[str, Any] = {}
    for name, value in new.items():
        if isinstance(value, Lazy):
            before = getattr(state, name)
            changes[name] = before if name not in new.whole else whole(value, before)
        elif isinstance(value, Number):
            changes[name] = value.tensor()
        elif isinstance(value, Each):
            changes[name] = Scalars(dict(value))
    links = getattr(new, "links", None)
    if links is not None:
        changes["links"] = {n: restored(state.links[n], inner, whole) for n, inner in links.items()}
    return new.replace(**changes) if changes else new
