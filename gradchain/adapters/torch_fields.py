"""The numeric arguments of an optimizer class as hyperparameters: `lr`, `momentum`, `betas[0]`."""

from __future__ import annotations

import inspect
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradchain.core import _torch
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper, evaluated, is_number, varies
from gradchain.core.scalars import Scalars
from gradchain.core.slots import same
from gradchain.core.step import Step
from gradchain.selectors import PerParameter
from gradchain.words.arguments import our_words

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


class Field(Hyper):
    """One number of a parameter group. What the class thinks of it is asked of its constructor."""

    def __init__(self, name: str, value: Value, accepted: Callable[[Mapping[str, Any]], Any]) -> None:
        super().__init__(None, "[-inf, inf]")
        self.name, self.owner, self.value = name, "from_torch", value
        self._accepted = accepted

    def checked(self, value: Any, owner: str, cause: str = "") -> Any:
        """A number that the class takes, or one for each parameter."""
        if isinstance(value, Scalars):
            return value
        value = super().checked(value, owner, cause)
        if is_number(value):
            self._accepted({self.name: value})
        return value


class Fields:
    """What an optimizer class is constructed with: the numbers that links may schedule, and the rest.

    Attributes:
        hypers: the numbers, by name; one of a pair or list is `betas[0]`.
        flags: numbers that the class reads in its groups and does not take itself, given per parameter.
        constants: arguments of the class in which a number stands for every schedule.
    """

    def __init__(self, cls: type[Optimizer], given: Mapping[str, Any]) -> None:
        self._cls, self._signature = cls, inspect.signature(cls).parameters
        self._given = dict(given)
        beside = {n: v for n, v in given.items() if n not in self._signature and isinstance(v, PerParameter)}
        self.flags = {n: v for n, v in beside.items() if _mentions(cls, n)}
        self.constants = {name: self._constant(name, v) for name, v in given.items() if name not in self.flags}
        groups = self._tried().param_groups
        group = groups[0]
        if group.get("differentiable"):
            raise ValueError(
                f"from_torch: {cls.__name__}: differentiable must be False, got True: the class works on copies, in "
                "place, and has no derivative. The links of gradchain have one, under torch.func."
            )
        self.hypers: dict[str, Field] = {}
        for name, value in group.items():
            # where flags make the class give groups numbers of their own, there is no one number to tell
            told = varies(given.get(name)) or all(same(value, other.get(name)) for other in groups)
            if told and (name in self._signature or name in given):
                self._add(name, given.get(name, value), value)

    def _add(self, name: str, given: Any, value: Any) -> None:
        if is_number(value):
            self.hypers[name] = Field(name, given, self._accepted)
        elif isinstance(value, (tuple, list)) and value and all(map(is_number, value)):
            for i, part in enumerate(given):
                self.hypers[f"{name}[{i}]"] = Field(f"{name}[{i}]", part, self._accepted)

    def _constant(self, name: str, value: Any) -> Any:
        """An argument as the constructor may have it: for a schedule the class's own default, else its first value."""
        if isinstance(value, tuple):
            whole = self._default(name)
            defaults = whole if isinstance(whole, tuple) and len(whole) == len(value) else (None,) * len(value)
            return tuple(_number(part, default) for part, default in zip(value, defaults, strict=True))
        return _number(value, self._default(name))

    def _default(self, name: str) -> Any:
        return self._signature[name].default if name in self._signature else None

    def made(self, params: Any, **changes: Any) -> Optimizer:
        """An optimizer over these parameters. TypeError or ValueError, in a sentence, where the class refuses."""
        try:
            with _torch.on_host():
                optimizer = self._cls(params, **{**self.constants, **changes})
        except Exception as error:
            names = [n for n in self._signature if n not in ("params", "self", "args", "kwargs")]
            takes = f" It takes: {', '.join(names)}." if isinstance(error, TypeError) else ""
            meant = [own for word in self.constants if word not in self._signature for own in our_words(word, names)]
            takes = f" Write {' and '.join(f'{word}=' for word in meant)}.{takes}" if meant else takes
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"from_torch: {self._cls.__name__}: {in_words(error).rstrip('.')}.{takes}") from None
        _refuse_inner(optimizer)
        return optimizer

    def _accepted(self, values: Mapping[str, Any]) -> None:
        """Raises unless the class takes these numbers in place of its own."""
        changes = self.grouped(values)
        self._tried(**{n: v for n, v in changes.items() if n in self._signature})

    def _tried(self, **changes: Any) -> Optimizer:
        """The class over a matrix that is nobody's; with flags, over one in a group for each of what these may be."""
        flags = [[_number(start, None) for start in value.starts()] for value in self.flags.values()]
        groups = [dict(zip(self.flags, values, strict=True)) for values in itertools.product(*flags)]
        params = [nn.Parameter(torch.zeros(2, 2, device="cpu")) for _ in groups]
        if not self.flags:
            try:
                return self.made(params, **changes)
            except (TypeError, ValueError):
                return self.made([{"params": params}], **changes)  # it may take groups only, or say better why not
        return self.made([{"params": [p], **group} for p, group in zip(params, groups, strict=True)], **changes)

    def grouped(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Numbers by the names of hyperparameters, as the fields of a parameter group."""
        out: dict[str, Any] = {}
        for name, value in values.items():
            whole, _, part = name.partition("[")
            if not part:
                out[name] = value
                continue
            parts = out.get(whole, self.constants.get(whole, self._default(whole)))
            i = int(part[:-1])
            out[whole] = (*parts[:i], value, *parts[i + 1 :])
        return out


def bare(error: Exception) -> bool:
    """Whether it is an assert that says nothing but what was asserted."""
    return isinstance(error, AssertionError) and (not str(error) or str(error).startswith("assert "))


def in_words(error: Exception) -> str:
    """What a class raised, in its words; with the error's name where those are no sentence."""
    said = str(error)
    asserted = isinstance(error, AssertionError) and not bare(error)
    if isinstance(error, (TypeError, ValueError)) or asserted or (type(error) in (Exception, RuntimeError) and said):
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _mentions(cls: type[Optimizer], name: str) -> bool:
    """Whether the source of a class has this word: one that it has not is a slip, and no flag of its groups."""
    for base in cls.__mro__[: cls.__mro__.index(Optimizer)]:
        try:
            source = inspect.getsource(inspect.getmodule(base) or base)
        except (OSError, TypeError):
            return True  # there is none to look at
        if f"'{name}'" in source or f'"{name}"' in source:
            return True
    return False


def _refuse_inner(optimizer: Optimizer) -> None:
    """ValueError for a class that keeps another optimizer: what that one remembers is in nobody's state."""
    for name, value in vars(optimizer).items():
        inner = _optimizer_in(value) if name not in ("state", "param_groups") else None
        if inner is not None:
            raise ValueError(
                f"from_torch: {type(optimizer).__name__} cannot be the rule of a chain: it keeps another optimizer in "
                f"its {name}, whose memory would be in no checkpoint. Give from_torch that one's class, "
                f"{type(inner).__name__}, and say the rest by links, such as sam()."
            )


def _optimizer_in(value: Any) -> Optimizer | None:
    """The first optimizer in a value, or in what lists and dicts hold."""
    if isinstance(value, Optimizer):
        return value
    held = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return next((found for found in map(_optimizer_in, held) if found is not None), None)


def _number(value: Any, default: Any) -> Any:
    """What stands for a schedule or for one number per parameter: the class may refuse a warmup's first 0."""
    if isinstance(value, Scalars):
        return next(iter(value.values()))
    if isinstance(value, PerParameter):
        return _number(next(iter(value.starts())), default)
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else value
    if not callable(value) or isinstance(value, type):
        return value
    if is_number(default) and math.isfinite(default):
        return default
    first = evaluated(value, Context.of(Step(clocks=defaultdict(float, step=0))))
    return first if is_number(first) and first != 0 else 1e-3
