"""How many arguments a user's function takes: what decides in which form it is called."""

from __future__ import annotations

import inspect
import math

from gradchain.selectors.source import code


def arity(owner: str, fn: object, *forms: str) -> int:
    """With how many arguments to call `fn`: those of the first form that fits its signature.

    Arguments with a default are not filled unless a form needs them: `F.normalize` takes one.

    Args:
        owner: begins the sentence of an error.
        fn: the user's function. One without a signature (torch's own) gets the first form.
        *forms: the arguments of each form, such as "updates, params", shortest first.

    Raises:
        TypeError: it is no function, or fits no form.
    """
    shown = " or ".join(f"fn({form})" for form in forms)
    if not callable(fn) or isinstance(fn, type):
        raise TypeError(f"{owner}: fn must be a function, called as {shown}, got {code(fn)}.")
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return forms[0].count(",") + 1
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    least = sum(p.default is p.empty for p in positional)
    most = math.inf if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(positional)
    if not any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
        for count in (form.count(",") + 1 for form in forms):
            if least <= count <= most:
                return count
    raise TypeError(f"{owner}: fn must be called as {shown}, got {code(fn)}{inspect.signature(fn)}.")
