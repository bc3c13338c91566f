"""What a selector is, and how selectors combine."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn, TypeAlias, final

import torch
from typing_extensions import dataclass_transform

from gradchain.selectors.source import code
from gradchain.words.arguments import answering

Predicate: TypeAlias = Callable[[str, torch.Tensor, torch.nn.Module | None], bool]
"""Any function `(name, parameter, owner) -> bool`. Every `Selector` is one."""

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

    def __repr__(self) -> str:
        args, kwargs = self.arguments()
        written = [code(value) for value in args] + [f"{key}={code(value)}" for key, value in kwargs.items()]
        return f"{type(self).__name__}({', '.join(written)})"

    def __and__(self, other: Predicate) -> "Selector":
        return conjunction(self, other)

    def __rand__(self, other: Predicate) -> "Selector":
        return conjunction(other, self)

    def __or__(self, other: Predicate) -> "Selector":
        return disjunction(self, other)

    def __ror__(self, other: Predicate) -> "Selector":
        return disjunction(other, self)

    def __invert__(self) -> "Selector":
        return negation(self)

    def __bool__(self) -> NoReturn:
        raise TypeError(f"{self!r} has no truth value. Combine selectors with & | ~, not with and, or, not.")


@final
class conjunction(Selector):
    """What `a & b` makes: selected by every operand, asked from left to right until one says no.

    Args:
        operands: two or more predicates. A conjunction among them is taken apart: `a & (b & c)` equals `a & b & c`.
    """

    operands: tuple[Predicate, ...]

    def __init__(self, *operands: Predicate) -> None:
        object.__setattr__(self, "operands", _flat(conjunction, "&", operands))

    def __call__(self, name: str, parameter: torch.Tensor, owner: torch.nn.Module | None) -> bool:
        return all(truth(part(name, parameter, owner), part) for part in self.operands)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.operands, {}

    def unmatched(self, parameters: Sequence[ParameterFacts]) -> list[str]:
        return _unmatched(self.operands, parameters)

    def __repr__(self) -> str:
        return " & ".join(f"({part!r})" if isinstance(part, disjunction) else code(part) for part in self.operands)


@final
class disjunction(Selector):
    """What `a | b` makes: selected by at least one operand, asked from left to right until one says yes.

    Args:
        operands: two or more predicates. A disjunction among them is taken apart: `a | (b | c)` equals `a | b | c`.
    """

    operands: tuple[Predicate, ...]

    def __init__(self, *operands: Predicate) -> None:
        object.__setattr__(self, "operands", _flat(disjunction, "|", operands))

    def __call__(self, name: str, parameter: torch.Tensor, owner: torch.nn.Module | None) -> bool:
        return any(truth(part(name, parameter, owner), part) for part in self.operands)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.operands, {}

    def unmatched(self, parameters: Sequence[ParameterFacts]) -> list[str]:
        return _unmatched(self.operands, parameters)

    def __repr__(self) -> str:
        return " | ".join(code(part) for part in self.operands)


@final
class negation(Selector):
    """What `~a` makes: selected where the operand does not select.

    Args:
        operand: a predicate.
    """

    operand: Predicate

    def __post_init__(self) -> None:
        check_predicate(self.operand, "~")

    def __call__(self, name: str, parameter: torch.Tensor, owner: torch.nn.Module | None) -> bool:
        return not truth(self.operand(name, parameter, owner), self.operand)

    def unmatched(self, parameters: Sequence[ParameterFacts]) -> list[str]:
        return _unmatched((self.operand,), parameters)

    def __invert__(self) -> Selector:
        return self.operand if isinstance(self.operand, Selector) else negation(self)

    def __repr__(self) -> str:
        compound = isinstance(self.operand, (conjunction, disjunction))
        return f"~({self.operand!r})" if compound else f"~{code(self.operand)}"


def truth(answer: object, predicate: Predicate) -> bool:
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
    raise TypeError(f"{code(predicate)}: a selector must return True or False, got {got}. {cure}")


def check_predicate(value: object, rule: str) -> None:
    """Refuses what cannot be asked about a parameter.

    Args:
        value: what was given as a selector.
        rule: who was given it, for the error.

    Raises:
        TypeError: it is no function, or a class or module, which are callable but no predicates.
    """
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
        return
    raise TypeError(f"{rule}: a selector must be a function (name, parameter, owner) -> bool, got {got}. {cure}")


def _flat(kind: type[Selector], sign: str, operands: tuple[Predicate, ...]) -> tuple[Predicate, ...]:
    flat: list[Predicate] = []
    for part in operands:
        check_predicate(part, sign)
        flat.extend(part.operands if isinstance(part, kind) else [part])  # type: ignore[attr-defined]
    if len(flat) < 2:
        raise TypeError(f"{sign}: needs two selectors or more, got {len(flat)}.")
    return tuple(flat)


def _unmatched(operands: tuple[Predicate, ...], parameters: Sequence[ParameterFacts]) -> list[str]:
    parts = [part for part in operands if isinstance(part, Selector)]
    return [sentence for part in parts for sentence in part.unmatched(parameters)]
