"""A state as leaves of a tape, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from gradchain.core.eager import EagerTensors
from gradchain.core.state import S, State
from gradchain.core.tensors import Tensors
from gradchain.engine.recording.numbers import Ledger
from gradchain.engine.recording.tape import Lazy, Tape


def dtypes(state: State) -> Iterator[torch.dtype]:
    """The dtypes of everything in a state that is per parameter."""
    for name, value in state.items():
        if isinstance(value, EagerTensors) and name not in state.whole:
            yield from (t.dtype for t in value._data)
    for inner in state.held().values():
        yield from dtypes(inner)


def whole_of(state: State) -> Iterator[Tensors]:
    """What a state keeps as a whole, replaced as links return it."""
    for name in state.whole:
        yield state[name]
    for inner in state.held().values():
        yield from whole_of(inner)


def mapped(state: S, change: Callable[[Tensors], Tensors]) -> S:
    """`state` with every Tensors of parameters changed; those that come and go are left as they are."""
    changes: dict[str, Any] = {
        name: change(value) for name, value in state.items() if isinstance(value, Tensors) and name not in state.whole
    }
    held = {name: mapped(inner, change) for name, inner in state.held().items()}
    return (state.replace(**changes) if changes else state).holding(held)


def same_memory(state: State, other: State | None, whole: bool = False) -> bool:
    """Whether two states of one chain keep their entries per parameter in the same tensors; with `whole`, all."""
    if type(state) is not type(other) or other is None:
        return False
    for name, value in state.items():
        if isinstance(value, Tensors) and value is not other[name] and (whole or name not in state.whole):
            return False
    links, theirs = state.held(), other.held()
    return links.keys() == theirs.keys() and all(
        same_memory(inner, theirs[name], whole) for name, inner in links.items()
    )


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


def restored(state: State, new: S, ledger: Ledger | None, whole: Callable[[Lazy, Any], EagerTensors]) -> S:
    """`new` with tensors in place of nodes: those of `state`, or what `whole` gives for a field replaced as a whole.

    They will hold the new values once the roots are written. Numbers leave their ledger.
    """
    changes: dict[str, Any] = {}
    for name, value in new.items():
        if isinstance(value, Lazy):
            before = state[name]
            changes[name] = before if name not in new.whole else whole(value, before)
        elif ledger is not None:
            changes[name] = ledger.without_ledger(value)
    held = {n: restored(state.held()[n], inner, ledger, whole) for n, inner in new.held().items()}
    return (new.replace(**changes) if changes else new).holding(held)
