"""Rules by name: what users register, and what makes the rule that a name stands for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, overload

from torch.optim import Optimizer

from gradchain.adapters.torch_names import registered as classes
from gradchain.adapters.torch_optimizers import from_torch
from gradchain.core.config import own_link, registered
from gradchain.core.transform import Transform

T = TypeVar("T", bound=Callable[..., Any])

CALLED = {
    "lr": ("lr", "learning_rate"),
    "momentum": ("momentum", "b1", "beta1", "betas", "decay"),
    "weight_decay": ("weight_decay",),
}
"""What recipes call a number → what the arguments of a rule may be called, the first that it has."""


@overload
def register(name: T, /) -> T: ...
@overload
def register(name: str | None = None) -> Callable[[T], T]: ...
def register(name: Any = None) -> Any:
    """Make a rule known by name, to `from_config` and to the readers of recipes.

    It takes a function that returns a link (an alias), a Transform class, or a `torch.optim.Optimizer` class, which
    becomes the rule of a chain by `from_torch`. Its arguments called `lr` or `learning_rate`, `momentum` and
    `weight_decay` are what the schedulers and the rules per parameter of a recipe drive. In a saved config a Transform
    class then goes by this name; an alias is written as the chain it returns.

    Args:
        name: what it is called; its own name by default.

    Raises:
        ValueError: the name is taken by another object, or by a link of gradchain's.
        TypeError: it is none of the three.

    Equals: MMEngine's OPTIMIZERS.register_module and, for links, Optax's use of plain functions.

    >>> import gradchain as gch
    >>> @gch.register()
    ... def quick(learning_rate, momentum=0.9):
    ...     return gch.sgd(learning_rate, momentum=momentum)
    >>> gch.from_config({"link": "quick", "learning_rate": 0.1})
    chain(trace(0.9), scale_by_learning_rate(0.1))
    """
    if name is not None and not isinstance(name, str):
        return register()(name)  # @gch.register, without the parentheses

    def registering(rule: Any) -> Any:
        is_class = isinstance(rule, type)
        is_optimizer = is_class and issubclass(rule, Optimizer)
        if not callable(rule) or (is_class and not is_optimizer and not issubclass(rule, Transform)):
            raise TypeError(f"register: takes a function, a Transform class or an Optimizer class, got {rule!r}.")
        known = rule.__name__ if name is None else name
        held: Any = classes.get(known, registered.get(known, own_link(known)))
        if held is not None and held is not rule:
            cure = f"Give it another name: register({known + '2'!r})."
            raise ValueError(f"register: {known!r} is taken by {held!r}. {cure}")
        if is_optimizer:
            classes[known] = rule
            registered[known] = partial(from_torch, known)
        else:
            registered[known] = rule
        return rule

    return registering


def builder(name: str) -> Callable[..., Transform]:
    """What makes the rule called `name`: a function of `lr`, `momentum`, `weight_decay` and its own arguments.

    Each number may be a schedule, or one per parameter. What was registered comes first, then the classes that
    `from_torch` knows. `momentum` is the argument of that name, else `b1`, `beta1` or the first of `betas`.

    Raises:
        KeyError: nobody is called so.
        TypeError: from the function, for an argument that the rule has not.

    >>> from gradchain.adapters import registry
    >>> registry.builder("AdamW")(lr=0.1, momentum=0.8)
    from_torch("AdamW", lr=0.1, betas=(0.8, 0.999))
    """
    if name in registered and name not in classes:
        return partial(_built, name, registered[name], registered[name])
    link = from_torch(name)
    return partial(_built, name, partial(from_torch, link.optimizer), link.cls)


def _built(name: str, make: Callable[..., Transform], signed: Callable[..., Any], **given: Any) -> Transform:
    """The rule, with what recipes call a number given to the argument that is it."""
    known = inspect.signature(signed).parameters
    for asked, candidates in CALLED.items():
        if asked not in given or asked in known:
            continue
        found = next((c for c in candidates if c in known), None)
        if found is None:
            raise TypeError(f"{name}: takes no {asked}. It takes: {', '.join(n for n in known if n != 'params')}.")
        value = given.pop(asked)
        given[found] = (value, *given.get(found, known[found].default)[1:]) if found == "betas" else value
    return make(**given)
