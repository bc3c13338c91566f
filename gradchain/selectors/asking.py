"""Which of name, parameter and owner a function asks for: by its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from gradchain.selectors.source import code

ALL = slice(0, 3)
"""Of `(name, parameter, owner)`: all three."""

_FORMS = {0: ALL, 1: slice(1, 2), 2: slice(0, 2), 3: ALL}


def sight(function: Callable[..., Any], rule: str) -> slice:
    """Which part of `(name, parameter, owner)` a function is called with.

    One that must have three arguments, or takes any number, is given all; one of two `(name, parameter)`; one of one
    `(parameter)`, or `(name)` where it calls it so. Arguments with a default keep it, but for an owner that is None.

    Args:
        function: any function. One without a signature is given all three.
        rule: who was given it, for the error.

    Raises:
        TypeError: it must have more arguments, or others by keyword, or takes none.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ALL
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    least = sum(p.default is p.empty for p in places)
    most = 3 if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(places)
    if least > 3 or not most or any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
        raise TypeError(
            f"{rule}: a function of a parameter must take (name, parameter, owner), (name, parameter) or (parameter), "
            f"got {code(function)}{inspect.signature(function)}."
        )
    if most > len(places) or (len(places) > 2 and (places[2].default is None or places[2].name in ("owner", "module"))):
        return ALL
    if least == 1 and places[0].name == "name":
        return slice(0, 1)
    return _FORMS[least or min(most, 3)]


def taken(entry: tuple[Any, ...], form: slice) -> tuple[Any, ...]:
    """These of `(name, parameter, owner)`."""
    return entry[form]


def shown(function: Callable[..., Any], form: slice) -> str:
    """How a function is called: `fn(name, parameter)`."""
    return f"{code(function)}({', '.join(('name', 'parameter', 'owner')[form])})"
