"""What a selector is, and how selectors combine."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn, TypeAlias, final

import torch
from typing_extensions import dataclass_transform

from gradchain.selectors.asking import sight, taken
from gradchain.selectors.source import code
from gradchain.words.arguments import answering

Predicate: TypeAlias = Callable[[str, torch.Tensor, torch.nn.Module | None], bool]
"""Any function `(name, parameter, owner) -> bool`. Every `Selector` is one."""

SelectorLike: TypeAlias = (
    Predicate | Callable[[str, torch.Tensor], bool] | Callable[[torch.Tensor], bool] | Mapping[str, Any]
)
"""What selects: a predicate, a function of `(name, parameter)` or `(parameter)`, or name → bool of every parameter."""

ParameterFacts: TypeAlias = tuple[str, torch.Tensor, torch.nn.Module | None]
"""`(name, parameter, owner)`: what a predicate is asked about. A selector sees these three and nothing else."""


@dataclass_transform(frozen_default=True)
@dataclass(frozen=True, repr=False)
class Selector(ABC):
    """A frozen predicate on a parameter, combined by `&`, `|` and `~`.

    A subclass becomes a frozen dataclass: its typed fields are its arguments, and repr, equality, hash and pickling
    come free. Check arguments in `__post_init__`. A concrete selector is not subclassed: combine it. A selector has no
    truth value, so that `a and b`, which would silently be `b`, raises.

    >>> import gradchain as gch
    >>> class under(gch.Selector):
    ...     prefix: str
    ...
    ...     def __call__(self, name, parameter, owner):
    ...         return name.startswith(self.prefix + ".")
    >>> under("head") & ~gch.bias
    under("head") & ~bias
    >>> (under("head") & ~gch.bias)("head.weight", torch.zeros(2, 3), None)
    True
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for parent in cls.__mro__[1:]:
            if parent is not Selector and issubclass(parent, Selector):
                raise TypeError(
                    f"{cls.__name__}: {parent.__name__} is final, and {cls.__name__} subclasses it. "
                    "Subclass Selector, or combine selectors with & | ~."
                )
        dataclass(frozen=True, repr=False)(cls)
        cls.__init__ = answering(cls.__init__)  # type: ignore[method-assign]  # the dataclass gave each class its own

    @abstractmethod
    def __call__(self, name: str, parameter: torch.Tensor, owner: torch.nn.Module | None) -> bool:
        """Returns whether the parameter is selected.

        Args:
            name: the full dotted name.
            parameter: the tensor. Look at its shape and dtype, not at its values: selection happens once.
            owner: the module that directly holds the parameter, or None where only a mapping of tensors is known.
        """

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns `(args, kwargs)` with `type(self)(*args, **kwargs) == self`: for the repr, and for a config."""
        own = [field for field in fields(self) if field.init]
        args = tuple(getattr(self, field.name) for field in own if not field.kw_only)
        return args, {field.name: getattr(self, field.name) for field in own if field.kw_only}

    def unmatched(self, parameters: Sequence[ParameterFacts]) -> list[str]:
        """Returns a sentence for each part of this selector that was meant to match something and matches nothing.

        A misspelt pattern under `~` or `|` makes a selector that does match, but not what was meant. `resolve` raises
        these sentences. Only what names parameters outright has any: `named` does, `norm` and `owner` do not.

        Args:
            parameters: every parameter the selector is resolved over.
        """
        return []

    def optional(self) -> bool:
        """Returns whether this selector says itself that it may match nothing, as `named(…, missing_ok=True)` does."""
        return False

    def __repr__(self) -> str:
        args, kwargs = self.arguments()
        written = [code(value) for value in args] + [f"{key}={code(value)}" for key, value in kwargs.items()]
        return f"{type(self).__name__}({', '.join(written)})"

    def __and__(self, other: SelectorLike) -> Selector:
        return conjunction(self, other)

    def __rand__(self, other: SelectorLike) -> Selector:
        return conjunction(other, self)

    def __or__(self, other: SelectorLike) -> Selector:
        return disjunction(self, other)

    def __ror__(self, other: SelectorLike) -> Selector:
        return disjunction(other, self)

    def __invert__(self) -> Selector:
        return negation(self)

    def __bool__(self) -> NoReturn:
        raise TypeError(f"{self!r} has no truth value. Combine selectors with & | ~, not with and, or, not.")


@final
class conjunction(Selector):
    """What `a & b` makes: selected by every operand, asked from left to right until one says no.

    Args:
        operands: two or more predicates. A conjunction among them is taken apart: `a & (b & c)` equals `a & b & c`.
    """

    operands: tuple[Any, ...]

    def __init__(self, *operands: SelectorLike) -> None:
        _keep(self, _flat(conjunction, "&", operands), "&")

    def __call__(self, name: str, parameter: torch.Tensor, owner: torch.nn.Module | None) -> bool:
        return all(_answers(self, (name, parameter, owner)))

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.operands, {}

    def unmatched(self, parameters: Sequence[ParameterFacts]) -> list[str]:
        return _unmatched(self.operands, parameters)

    def optional(self) -> bool:
        return any(_optional(self.operands))

    def __repr__(self) -> str:
        return " & ".join(f"({part!r})" if isinstance(part, disjunction) else code(part) for part in self.operands)


@final
class disjunction(Selector):
    """What `a | b` makes: selected by at least one operand, asked from left to right until one says yes.

    Args:
        operands: two or more predicates. A disjunction among them is taken apart: `a | (b | c)` equals `a | b | c`.
    """

    operands: tuple[Any, ...]

    def __init__(self, *operands: SelectorLike) -> None:
        _keep(self, _flat(disjunction, "|", operands), "|")

    def __call__(self, name: str, parameter: torch.Tensor, owner: torch.nn.Module | None) -> bool:
        return any(_answers(self, (name, parameter, owner)))

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.operands, {}

    def unmatched(self, parameters: Sequence[ParameterFacts]) -> list[str]:
        return _unmatched(self.operands, parameters)

    def optional(self) -> bool:
        return all(_optional(self.operands))

    def __repr__(self) -> str:
        return " | ".join(code(part) for part in self.operands)


@final
class negation(Selector):
    """What `~a` makes: selected where the operand does not select.

    Args:
        operand: a predicate.
    """

    operand: Any

    def __post_init__(self) -> None:
        operand = predicate(self.operand, "~")
        object.__setattr__(self, "operand", operand)
        object.__setattr__(self, "_given", sight(operand, "~"))

    def __call__(self, name: str, parameter: torch.Tensor, owner: torch.nn.Module | None) -> bool:
        return not truth(self.operand(*taken((name, parameter, owner), self.__dict__["_given"])), self.operand)

    def unmatched(self, parameters: Sequence[ParameterFacts]) -> list[str]:
        return _unmatched((self.operand,), parameters)

    def __invert__(self) -> Selector:
        return self.operand if isinstance(self.operand, Selector) else negation(self)

    def __repr__(self) -> str:
        compound = isinstance(self.operand, (conjunction, disjunction))
        return f"~({self.operand!r})" if compound else f"~{code(self.operand)}"


@final
class mapped(Selector):
    """What a mapping of names stands for: each parameter is selected or not by its own name, as in a mask of Optax.

    Args:
        choices: name → True or False, of every parameter there is; or nested mappings of the parts of names.

    Raises:
        TypeError: a name is no string, or what it stands for neither True nor False.
        ValueError: no name; where it is resolved, a name that no parameter has, or a parameter that it does not name.
    """

    choices: tuple[tuple[str, bool], ...]

    def __init__(self, choices: Mapping[str, Any]) -> None:
        flat = dict(_flattened(choices, ""))
        if not flat:
            raise ValueError("A selector must be a function or a mapping of names, got an empty mapping.")
        object.__setattr__(self, "choices", tuple(flat.items()))
        object.__setattr__(self, "_selected", frozenset(name for name, chosen in flat.items() if chosen))

    def __call__(self, name: str, parameter: torch.Tensor, owner: torch.nn.Module | None) -> bool:
        return name in self.__dict__["_selected"]

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (dict(self.choices),), {}

    def unmatched(self, parameters: Sequence[ParameterFacts]) -> list[str]:
        given, names = dict(self.choices), {name: None for name, _, _ in parameters}
        missed = [name for name in names if name not in given]
        unknown = [name for name in given if name not in names]
        out = []
        if unknown:
            near = [code(n) for n in difflib.get_close_matches(unknown[0], names, 1)]
            below = [code(f"{unknown[0]}.*")] if any(n.startswith(f"{unknown[0]}.") for n in names) else []
            cure = f" Write named({below[0]})." if below else f" Did you mean {near[0]}?" if near else ""
            out = [f"There is no parameter {code(unknown[0])} among the {len(names)}, which a mapping names.{cure}"]
        if missed:
            out.append(
                f"A mapping must name every parameter, but {len(missed)} of {len(names)} are not in it, first "
                f"{code(missed[0])}. For some of them write named(…)."
            )
        return out

    def __invert__(self) -> Selector:
        return mapped({name: not chosen for name, chosen in self.choices})

    def __repr__(self) -> str:
        return f"{{{', '.join(f'{code(name)}: {chosen}' for name, chosen in self.choices)}}}"


def _flattened(choices: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, bool]]:
    for name, value in choices.items():
        if not isinstance(name, str):
            raise TypeError(f"A mapping that selects must have names for keys, got {code(name)}.")
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", truth(value, f"The mapping at {code(prefix + name)}")


def truth(answer: object, predicate: object) -> bool:
    """Returns what a predicate answered as a bool.

    Args:
        answer: what it returned: a bool, or numpy's.
        predicate: what returned it, for the error.

    Raises:
        TypeError: it is anything else. A tensor, a match object, None or a number is a slip more often than a choice.
    """
    if isinstance(answer, bool):
        return answer
    kind = type(answer)
    if kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_"):
        return bool(answer)
    if answer is None:
        got, cure = "None", "Return True or False on every path."
    elif isinstance(answer, torch.Tensor):
        got = f"a Tensor of shape {tuple(answer.shape)}"
        cure = "Select by name, shape or owner; for a choice by value, wrap it in bool(...)."
    else:
        got, cure = f"{code(answer)} ({kind.__name__})", "Wrap it in bool(...)."
        if isinstance(answer, Mapping):
            cure = "It is asked of one parameter at a time: lambda parameter: parameter.ndim >= 2."
        elif kind in (int, float):
            cure += " A number for each parameter is multiply(value, function), where the number goes."
    who = predicate if isinstance(predicate, str) else code(predicate)
    raise TypeError(f"{who}: a selector must return True or False, got {got}. {cure}")


def predicate(value: Any, rule: str) -> Any:
    """Returns what can be asked about a parameter: the function given, or the selector that a mapping stands for.

    Args:
        value: what was given as a selector.
        rule: who was given it, for the error.

    Raises:
        TypeError: it is neither, or a class or module, which are callable but no predicates.
    """
    if isinstance(value, Mapping):
        return mapped(value)
    if isinstance(value, type):
        cure = f"Call it: {value.__name__}(...)." if issubclass(value, Selector) else f"Write owner({code(value)})."
        got = f"the class {code(value)}"
    elif isinstance(value, torch.nn.Module):
        got, cure = f"a {type(value).__name__} module", f"Write owner({code(type(value))}), or its name: named(...)."
    elif isinstance(value, str):
        got, cure = code(value), f"Write named({code(value)})."
    elif not callable(value):
        got, cure = code(value), "See gradchain.selectors for ready ones."
    else:
        sight(value, rule)
        return value
    raise TypeError(f"{rule}: a selector must be a function (name, parameter, owner) -> bool, got {got}. {cure}")


def _keep(selector: Selector, operands: tuple[Any, ...], sign: str) -> None:
    object.__setattr__(selector, "operands", operands)
    object.__setattr__(selector, "_given", tuple(sight(operand, sign) for operand in operands))


def _answers(selector: conjunction | disjunction, entry: ParameterFacts) -> Iterator[bool]:
    for operand, given in zip(selector.operands, selector.__dict__["_given"], strict=True):
        yield truth(operand(*taken(entry, given)), operand)


def _flat(kind: type[Selector], sign: str, operands: tuple[Any, ...]) -> tuple[Any, ...]:
    flat: list[Any] = []
    for given in operands:
        operand = predicate(given, sign)
        flat.extend(operand.operands if isinstance(operand, kind) else [operand])  # type: ignore[attr-defined]
    if len(flat) < 2:
        raise TypeError(f"{sign}: needs two selectors or more, got {len(flat)}.")
    return tuple(flat)


def _unmatched(operands: tuple[Any, ...], parameters: Sequence[ParameterFacts]) -> list[str]:
    parts = [part for part in operands if isinstance(part, Selector)]
    return [sentence for part in parts for sentence in part.unmatched(parameters)]


def _optional(operands: tuple[Any, ...]) -> list[bool]:
    return [isinstance(part, Selector) and part.optional() for part in operands]
