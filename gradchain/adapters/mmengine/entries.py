"""One entry of a config, read with its faults named: what cannot be meant is refused, what is dubious is said."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, NoReturn

from gradchain.words.remarks import remark

__all__ = ["OWNER", "Clock", "Entry", "listed"]

Test = Callable[[Any], bool]
# MMEngine's optimizer around one of torch's, which shares its state out over ranks
ZERO = "ZeroRedundancyOptimizer"
OWNER = "mmengine.from_config"
"""How the errors and warnings of whole recipes begin."""


@dataclass(frozen=True)
class Clock:
    """How long the run is: its epochs, None in a loop of iterations, its micro-batches, and those of one epoch."""

    epochs: int | None
    iters: int
    epoch_length: int

    def looks(self) -> list[int]:
        """Iterations at which a curve is looked at: a thousand over the run, and the first of them."""
        return sorted({i * (self.iters - 1) // 1024 for i in range(1025)} | {*range(min(self.iters, 64))})


@dataclass(frozen=True)
class Entry:
    """A dict of a config, with the name that errors and warnings give it, after that of who reads it."""

    name: str
    items: Mapping[str, Any]
    strict: bool
    owner: str = "mmengine.schedules"

    @property
    def scope(self) -> str:
        """The project whose type it is, where that is said: `mmpose.ConstantLR`, or `_scope_` beside it."""
        return scope_and_name(self.items.get("type"))[0] or str(self.items.get("_scope_", ""))

    def refuse(self, sentence: str, kind: type[Exception] = ValueError) -> NoReturn:
        """What cannot be read at all, or what the original refuses as well."""
        raise kind(f"{self.owner}: {self.name}: {sentence}")

    def object_to(self, sentence: str) -> None:
        """What cannot be meant, though the original takes it silently or fails on the way: strict refuses."""
        if self.strict:
            self.refuse(sentence)
        self.remark(sentence)

    def remark(self, sentence: str) -> None:
        """What is legal, and most likely a slip: a warning from the user's line."""
        remark(f"{self.owner}: {self.name}: {sentence}")

    def only(
        self, known: Iterable[str], required: Iterable[str] = (), belongs: Mapping[str, str] | None = None
    ) -> None:
        """Every key is known, and no required one is missing.

        belongs: cures for keys that belong elsewhere; where there are such, an unknown key is only objected to.
        """
        known = sorted({*known, *required})
        for key in self.items:
            if key not in known:
                cure = near(key, known, f"it takes {listed(known)}.")
                sentence = f"every key must be known, got {key!r}; {(belongs or {}).get(key, cure)}"
                self.refuse(sentence, TypeError) if belongs is None else self.object_to(sentence)
        for key in required:
            if key not in self.items:
                self.refuse(f"{key} must be given.", TypeError)

    def get(self, key: str, default: Any, rule: str, test: Test) -> Any:
        """A value that passes a test, or the sentence `key must be rule`."""
        value = self.items.get(key, default)
        if not test(value):
            self.refuse(f"{key} must be {rule}, got {value!r}.", TypeError if isinstance(value, str) else ValueError)
        return value

    def inner(self, key: str, rule: str = "a dict", absent: Mapping[str, Any] | None = None) -> Entry:
        """The dict under a key as an entry of its own, or the sentence `key must be rule`. absent: what None is."""
        given = self.items.get(key)
        items = absent if given is None else given
        if not isinstance(items, Mapping):
            self.refuse(f"{key} must be {rule}, got {given!r}.", TypeError)
        return replace(self, name=f"{self.name}.{key}", items=items)

    def number(
        self, key: str, default: float | None, rule: str = "a finite number", test: Test = lambda x: True
    ) -> float:
        """A finite number."""
        return self.get(key, default, rule, lambda x: is_number(x) and test(x))  # type: ignore[no-any-return]

    def positive(self, key: str, default: float | None) -> float:
        """A number above 0."""
        return self.number(key, default, "a positive number", lambda x: x > 0)

    def from_0(self, key: str, default: float | None) -> float:
        """A number of at least 0."""
        return self.number(key, default, "a number of at least 0", lambda x: x >= 0)

    def whole_from(self, least: int, key: str, default: float | None) -> float:
        """A number without a fraction, of at least so much."""
        rule = f"a whole number of at least {least}"
        return self.number(key, default, rule, lambda x: is_whole(x) and x >= least)

    def maybe(self, key: str) -> float | None:
        """A finite number, or None where it is not given."""
        return self.get(key, None, "a finite number or None", lambda x: x is None or is_number(x))  # type: ignore[no-any-return]

    def flag(self, key: str, default: bool) -> bool:
        """True or False."""
        return self.get(key, default, "True or False", lambda x: isinstance(x, bool))  # type: ignore[no-any-return]

    def one_of(self, key: str, *words: str) -> str:
        """One of these words; the first where nothing is given."""
        rule = f"{', '.join(map(repr, words[:-1]))} or {words[-1]!r}"
        return self.get(key, words[0], rule, lambda x: x in words)  # type: ignore[no-any-return]

    def numbers(self, key: str, default: object = None) -> list[float]:
        """A list of finite numbers."""
        return list(self.get(key, default, "a list of numbers", is_numbers))

    def one_floor(self, name: str, base: float, default: float | None = None) -> float:
        """`name`, or `name`_ratio times the base value: one of the two."""
        floor, ratio = self.maybe(name), self.maybe(f"{name}_ratio")
        if floor is None and ratio is None:
            return self.refuse(f"{name} or {name}_ratio must be given, got neither.") if default is None else default
        if floor is not None and ratio is not None:
            self.refuse(f"{name} or {name}_ratio must be given, not both, got {floor!r} and {ratio!r}.")
        return base * ratio if floor is None else floor  # type: ignore[operator]


def type_name(given: object) -> str | None:
    """The name of a type, written as a string or as the class, without its scope; None if it is neither."""
    return scope_and_name(given)[1] if isinstance(given, (str, type)) else None


def scope_and_name(given: Any) -> tuple[str, str]:
    """The project and the name of a type, given as a string, with a path or a scope before it, or as a class."""
    written = f"{given.__module__}.{given.__name__}" if isinstance(given, type) else str(given)
    before, _, name = written.replace("::", ".").replace(":", ".").rpartition(".")
    return before.partition(".")[0], name


def is_number(value: object) -> bool:
    """Whether this is a finite real number; a bool is a slip."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_numbers(value: object) -> bool:
    """Whether this is a list of finite numbers."""
    return isinstance(value, (list, tuple)) and all(map(is_number, value))


def is_whole(value: object) -> bool:
    """Whether this is a number without a fraction."""
    return isinstance(value, Integral) or (isinstance(value, Real) and float(value).is_integer())


def whole(value: float) -> float:
    """An int where the number has no fraction."""
    return int(value) if is_whole(value) else value


def near(word: object, known: Iterable[str], otherwise: str) -> str:
    """What was meant by a word that is not known, or else another sentence."""
    found = difflib.get_close_matches(str(word), list(known), 1)
    return f"did you mean {found[0]!r}?" if found else otherwise


def listed(words: Iterable[str]) -> str:
    """Words in a sentence."""
    return ", ".join(sorted(words))
