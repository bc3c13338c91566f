"""From a selector and all parameters to names: `resolve`."""

from collections.abc import Callable, Iterable
from typing import Any

from gradchain.selectors.asking import ALL, shown, sight, taken
from gradchain.selectors.base import ParameterFacts, Selector, SelectorLike, predicate, truth
from gradchain.selectors.names import some
from gradchain.selectors.source import code
from gradchain.words.remarks import remark


def resolve(
    selector: SelectorLike,
    parameters: Iterable[ParameterFacts],
    *,
    allow_empty: bool = False,
    allow_missing: bool = False,
) -> tuple[str, ...]:
    """Returns the names of the selected parameters, in the order given.

    The selector is called once per parameter.

    Args:
        selector: a selector; any function `(name, parameter, owner) -> bool`, or of `(name, parameter)` or
            `(parameter)`; or a mapping of every name to True or False.
        parameters: `(name, parameter, owner)` of every parameter there is, selected or not.
        allow_empty: lets the selector match nothing, and its patterns too.
        allow_missing: lets one that says so itself match nothing, with a warning.

    Raises:
        TypeError: `selector` is no predicate, or answered something other than True or False.
        ValueError: it matches nothing; or one of its patterns does; or two parameters have one name.
        Exception: what the selector raised, with the parameter's name added.

    >>> import gradchain as gch
    >>> import torch
    >>> facts = [("w", torch.zeros(2, 2), None), ("b", torch.zeros(2), None)]
    >>> gch.selectors.resolve(lambda name, parameter, owner: parameter.ndim == 1, facts)
    ('b',)
    >>> gch.selectors.resolve(gch.ndim(4), facts)
    Traceback (most recent call last):
    ValueError: ndim(4) matches none of the 2 parameters: w, b. Change the selector, or leave out what it selects for.
    """
    asks = predicate(selector, "resolve")
    facts, form = list(parameters), sight(asks, "resolve")
    _check_names(facts)
    chosen = tuple(entry[0] for entry in facts if answer_of(asks, entry, form, "Selector", truth))
    if allow_empty:
        return chosen
    sentences = asks.unmatched(facts) if facts and isinstance(asks, Selector) else []
    if sentences:
        raise ValueError(" ".join(sentences))
    if not chosen:
        sentence = _nothing(asks, [name for name, _, _ in facts])
        if not (allow_missing and isinstance(asks, Selector) and asks.optional()):
            raise ValueError(sentence)
        remark(sentence)
    return chosen


def answer_of(
    function: Callable[..., Any],
    entry: ParameterFacts,
    form: slice = ALL,
    what: str = "Function",
    check: Callable[..., Any] | None = None,
) -> Any:
    """Returns what a function answers of a parameter.

    Args:
        function: takes `(name, parameter, owner)`, or some of it.
        entry: these three.
        form: which of them it takes: its `sight`.
        what: what the function is, for the error.
        check: makes of the answer and the function what is returned, or raises.

    Raises:
        Exception: what the function or the check raised, with the parameter's name added.
    """
    try:
        answer = function(*taken(entry, form))
        return answer if check is None else check(answer, function)
    except Exception as error:
        called = "" if form == ALL else f", called as {shown(function, form)}"
        _raise_with_name(error, f"({what} {code(function)}, parameter {code(entry[0])}{called}.){_asked(error, form)}")
        raise


def _asked(error: Exception, form: slice) -> str:
    """What a function of one argument gets, where it used it as something else: a name, or a tree."""
    if not isinstance(error, AttributeError) or form.stop - form.start > 1:
        return ""
    return (
        " It is asked of each parameter by itself: lambda p has the parameter, lambda name its name, lambda n, p both."
    )


def _raise_with_name(error: Exception, where: str) -> None:
    """Lengthens the error's own sentence; an error that holds no sentence becomes the cause of one that does."""
    if len(error.args) == 1 and isinstance(error.args[0], str) and not isinstance(error, KeyError):
        sentence = f"{error.args[0]} {where}"
        error.args = (sentence,)
        if str(error) == sentence:
            return
    raise RuntimeError(f"{type(error).__name__}: {error} {where}") from error


def _check_names(facts: list[ParameterFacts]) -> None:
    seen: set[str] = set()
    for name, _, _ in facts:
        if name in seen:
            raise ValueError(f"resolve: names must differ, got {code(name)} twice. Give each parameter once.")
        seen.add(name)


def _nothing(selector: object, names: list[str]) -> str:
    if not names:
        return f"{code(selector)} has no parameters to select from. Give a model that has some."
    return (
        f"{code(selector)} matches none of the {len(names)} parameters: {some(names)}. "
        "Change the selector, or leave out what it selects for."
    )
