"""A state as leaves of a tape, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from gradchain.core.eager import EagerTensors
from gradchain.core.scalars import Scalars
from gradchain.core.state import S, State
from gradchain.core.tensors import Tensors
from gradchain.engine.recording.numbers import Each, Number
from gradchain.engine.recording.tape import Lazy, Tape


def dtypes(state: State) -> Iterator[torch.dtype]:
    """The dtypes of everything in a state that is per parameter."""
    for name, value in state.items():
        if isinstance(value, EagerTensors) and name not in state.whole:
            yield from (t.dtype for t in value._data)
    for inner in state.held().values():
        yield from dtypes(inner)


def mapped(state: S, change: Callable[[Tensors], Tensors]) -> S:
    """`state` with every Tensors of parameters changed; those that come and go are left as they are."""
    changes: dict[str, Any] = {
        name: change(value) for name, value in state.items() if isinstance(value, Tensors) and name not in state.whole
    }
    held = {name: mapped(inner, change) for name, inner in state.held().items()}
    return (state.replace(**changes) if changes else state).holding(held)


def roots_of(tape: Tape, old: State, new: State) -> list[tuple[int, int]]:
    """(leaf, node): what is written over which field of the state."""
    roots = []
    for name, before in old.items():
        after = new[name]
        if not isinstance(before, Lazy) or after is before:
            continue
        after = tape.leaf("extra", after)
        if after.node != before.node:
            roots.append((before.node, after.node))
    for name, inner in old.held().items():
        roots += roots_of(tape, inner, new.held()[name])
    return roots


def restored(state: State, new: S, whole: Callable[[Lazy, Any], EagerTensors]) -> S:
    """`new` with tensors in place of nodes: those of `state`, or what `whole` gives for a field replaced as a whole.

    They will hold the new values once the roots are written. A number on the device becomes a tensor there.
    """
    changes: dict[str, Any] = {}
    for name, value in new.items():
        if isinstance(value, Lazy):
            before = state[name]
            changes[name] = before if name not in new.whole else whole(value, before)
        elif isinstance(value, Number):
            changes[name] = value.tensor()
        elif isinstance(value, Each):
            changes[name] = Scalars(dict(value))
    held = {n: restored(state.held()[n], inner, whole) for n, inner in new.held().items()}
    return (new.replace(**changes) if changes else new).holding(held)
