"""Mistakes in a link of somebody's own, in sentences: found where it is made, bound or recorded, at no step's cost."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, fields
from typing import Any

from torch import Tensor

from gradchain.core.scalars import Count, Scalars
from gradchain.core.slots import Slots
from gradchain.core.state import Empty, State
from gradchain.core.tensors import Tensors
from gradchain.core.weights import Weights
from gradchain.selectors.source import code
from gradchain.words.tensors import absent

_NUMBERS = ("float", "int", float, int)
UPDATES: set[type] = {type(None), Weights}
"""Types of updates that were found to be what `update` may return: to ask an abstract class takes longer."""


def checked_result(made: Any, owner: str) -> tuple[Tensors | Weights | None, Any]:
    """What `update` returned, if it is updates and a state. TypeError for anything else."""
    if type(made) is not tuple or len(made) != 2:
        got = f"{len(made)} things" if isinstance(made, tuple) else type(made).__name__
        raise TypeError(
            f"{owner}: update must return two things, the updates and the state, got {got}. Write return g, state."
        )
    out, new = made
    if out is None or isinstance(out, (Tensors, Weights)):
        UPDATES.add(type(out))
        return out, new
    if isinstance(out, State):
        raise TypeError(
            f"{owner}: update must return the updates first and the state second, got {type(out).__name__} first. "
            "Write return g, state."
        )
    cure = "gch.Tensors.of(…) makes them of a dict" if isinstance(out, Mapping) else "compute with g itself, as g * 2"
    raise TypeError(
        f"{owner}: the updates that update returns must be Tensors, or None to hold the chain, got "
        f"{type(out).__name__}: {cure}."
    )


def explained(error: AttributeError, state: Any, owner: str) -> AttributeError:
    """The error of a link that asked Tensors or its state for what is not there, in a sentence; any other is itself.

    No `__getattr__` says it: a class that has one is asked for each attribute that there is more slowly.
    """
    if isinstance(error.obj, Tensors) and error.name:
        if error.name[:1] == "_":
            return error
        return AttributeError(absent(owner, error.name, [n for n in dir(Tensors) if n[:1] != "_"]))
    if error.obj is not state or not isinstance(state, State):
        return error
    has = ", ".join(state.own) or "none"
    cure = f"Its fields: {has}."
    if type(state) is Empty:
        cure = "It has no init, so it remembers nothing. Write def init(self, params), which returns a gch.State."
    return AttributeError(f"{owner}: its state has no field {error.name!r}. {cure}", name=error.name, obj=state)


def checking_init(init: Callable[..., Any]) -> Callable[..., State]:
    """`init` as it is called from outside: given Tensors, it returns a State that a checkpoint can hold."""

    @functools.wraps(init)
    def checked(self: Any, params: Any) -> State:
        owner = type(self).__name__
        check_params(owner, params)
        try:
            state = init(self, params)
        except AttributeError as error:
            raise explained(error, None, owner) from error.__cause__
        if not isinstance(state, State):
            raise TypeError(
                f"{owner}: init must return a gch.State, got {type(state).__name__}. Write a class of its fields, "
                "class Memory(gch.State): m: gch.Tensors; and return Memory(params.slot())."
            )
        for name, value in state.items():
            check_field(owner, name, value)
        return state

    return checked


def check_params(owner: str, params: Any) -> None:
    """TypeError for what `init` is given in place of Tensors."""
    if not isinstance(params, Tensors):
        raise TypeError(
            f"{owner}: init must be given Tensors, got {type(params).__name__}. Write gch.Tensors.of(…) of a module or "
            "of named tensors."
        )


def check_field(owner: str, name: str, value: Any) -> None:
    """TypeError for a field of a state that no checkpoint would bring back."""
    plain = value is None or isinstance(value, (Tensors, Count, Scalars, Slots, bool, int, float, str))
    if plain or (isinstance(value, Tensor) and not value.ndim):
        return
    got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise TypeError(
        f"{owner}: field {name!r} of its state must be Tensors, a Count, Scalars, a number, a string, a tensor of one "
        f"number or None, got {got}. One tensor for each parameter is Tensors: params.slot(), or gch.Tensors.of(…)."
    )


def check_numbers(link: Any) -> None:
    """TypeError for a schedule where the field of a link is annotated as a mere number."""
    for f in fields(link):
        value = link.__dict__.get(f.name)
        if f.type in _NUMBERS and f.name not in link.hypers and callable(value):
            raise TypeError(
                f"{type(link).__name__}: {f.name} must be a number, for its annotation is "
                f"{f.type if isinstance(f.type, str) else f.type.__name__}, got {code(value)}. With {f.name}: "
                "gch.Hyper it takes a schedule."
            )


def refuse_set(self: Any, name: str, value: Any) -> None:
    """What setting an attribute of a link says, in an `__init__` of its own too."""
    raise FrozenInstanceError(
        f"{type(self).__name__}: a link is frozen, so {name!r} cannot be set. Declare it in the class body, as "
        f"{name}: gch.Hyper or {name}: float, and leave __init__ out; another link like this one is "
        f"dataclasses.replace(link, {name}=…)."
    )


def check_called(owner: str, updates: Any, ctx: Any, context: type) -> None:
    """TypeError for what `update` is given in place of Tensors and a Context."""
    if isinstance(updates, Mapping) and not isinstance(updates, Tensors):
        raise TypeError(
            f"{owner}: update must be given Tensors, got {type(updates).__name__}. Write gch.Tensors.of(…) of it."
        )
    if not isinstance(ctx, context):
        raise TypeError(
            f"{owner}: update must be given a gch.Context as the third, got {type(ctx).__name__}. Write "
            "gch.Context(params, step=…)."
        )
