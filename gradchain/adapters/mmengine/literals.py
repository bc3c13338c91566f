"""Expressions of a config file as values: literals, names and what is made of them by hand; nothing is run."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

__all__ = ["Imported", "Inherited", "Literals", "Unread", "UnreadableError", "hooked"]

LARGEST = 100_000  # items of a repeated list or text, widths in a format, bits of a power


class UnreadableError(ValueError):
    """What a config file says in a way that is not read."""


@dataclass(frozen=True)
class Unread:
    """The value of a name that came from something unreadable: why, and what names that may change when it is used."""

    why: str
    touches: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Imported:
    """What an import brought, a class as a rule: its name."""

    name: str


class Inherited(dict[str, Any]):
    """A dict from a base: as in MMEngine's ConfigDict keys are attributes too, and update merges."""

    def merge(self, other: dict[str, Any]) -> None:
        """`update`: dict into dict, and anything else in place of what was there."""
        for key, value in other.items():
            mine = self.get(key)
            if isinstance(mine, Inherited) and isinstance(value, dict):
                mine.merge(value)
            else:
                self[key] = hooked(value)


def hooked(value: Any) -> Any:
    """What a dict from a base keeps of a value that is put into it: dicts become of its kind, lists new ones."""
    if type(value) is dict:
        return Inherited({key: hooked(one) for key, one in value.items()})
    return type(value)(map(hooked, value)) if isinstance(value, (list, tuple)) else value


TOO_LARGE = "it is too large to be meant."

NUMBERS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
}
KINDS = {
    ast.AsyncFunctionDef: "a function",
    ast.Attribute: "an attribute",
    ast.BinOp: "this arithmetic",
    ast.BoolOp: "a condition",
    ast.Call: "a call",
    ast.ClassDef: "a class",
    ast.Compare: "a comparison",
    ast.DictComp: "a comprehension",
    ast.For: "a loop",
    ast.FunctionDef: "a function",
    ast.GeneratorExp: "a comprehension",
    ast.If: "a condition",
    ast.IfExp: "a condition",
    ast.Lambda: "a function",
    ast.ListComp: "a comprehension",
    ast.Set: "a set",
    ast.SetComp: "a comprehension",
    ast.Try: "a try",
    ast.While: "a loop",
    ast.With: "a with that is not `with read_base():`",
}


class Literals:
    """The names of a file so far, and the values of its expressions."""

    def __init__(self, file: str, names: dict[str, Any]) -> None:
        self.file, self.names = file, names

    def refuse(self, node: ast.AST, what: str = "") -> NoReturn:
        """Name the file, the line and the construct."""
        kind = KINDS.get(type(node), f"this ({type(node).__name__})")
        text = " ".join(ast.unparse(node).split())
        text = text if len(text) <= 80 else text[:77] + "..."
        line = getattr(node, "lineno", 0)
        said = what or f"{kind} is not read, since nothing of a config is run. Write its value."
        raise UnreadableError(f"mmengine.read_config: {self.file}, line {line}: `{text}`: {said}")

    def value(self, node: ast.AST) -> Any:
        """The value of an expression; what it cannot have, as a key that is not there, is refused too."""
        try:
            found = self._value(node)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            if isinstance(error, UnreadableError):
                raise
            # A KeyError's text is the key alone.
            self.refuse(node, f"fails with {type(error).__name__}: {error}.")
        if isinstance(found, Unread):
            raise UnreadableError(found.why)
        return found

    def _value(self, node: ast.AST) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return self.names[name] if name in self.names else self.refuse(node, "the name has no value here.")
            case ast.List():
                return self._items(node.elts)
            case ast.Tuple():
                return tuple(self._items(node.elts))
            case ast.Dict():
                return self._dict(node)
            case ast.JoinedStr():
                return self._bounded(node, self._text(node))
            case ast.FormattedValue():
                return self._formatted(node)
            case ast.UnaryOp(op=op) if type(op) in SIGNS:
                return SIGNS[type(op)](self.value(node.operand))
            case ast.BinOp(op=op) if type(op) in NUMBERS:
                return self._arithmetic(node)
            case ast.Subscript():
                return self.value(node.value)[self.index(node.slice)]
            case ast.Attribute():
                return self._attribute(node)
            case ast.Call():
                return self._call(node)
        return self.refuse(node)

    def index(self, node: ast.AST) -> Any:
        """What stands between brackets."""
        if isinstance(node, ast.Slice):
            parts = (node.lower, node.upper, node.step)
            return slice(*(None if part is None else self.value(part) for part in parts))
        return self.value(node)

    def _items(self, nodes: list[ast.expr]) -> list[Any]:
        out: list[Any] = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                out.extend(self.value(node.value))
            else:
                out.append(self.value(node))
        return out

    def _dict(self, node: ast.Dict) -> dict[Any, Any]:
        out: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                out.update(self.value(value))
            else:
                out[self.value(key)] = self.value(value)
        return out

    def _attribute(self, node: ast.Attribute) -> Any:
        owner = self.value(node.value)
        if isinstance(owner, Imported):
            return Imported(node.attr)
        if isinstance(owner, Inherited) and node.attr in owner:
            return owner[node.attr]
        return self.refuse(node, f"there is no {node.attr!r} to read.")

    def _call(self, node: ast.Call) -> Any:
        given = [self.value(one) for one in node.args if not isinstance(one, ast.Starred)]
        if len(given) < len(node.args) or len(given) > 2:
            self.refuse(node)
        match node.func:
            case ast.Name(id="dict") if "dict" not in self.names and len(given) <= 1:
                return dict(*given, **self._named(node))
            case ast.Name(id="list" | "tuple" as kind) if kind not in self.names and not node.keywords:
                return (list if kind == "list" else tuple)(*given)
            case ast.Attribute(value=owner, attr=verb):
                return self._method(node, self.value(owner), verb, given)
        return self.refuse(node)

    def _named(self, node: ast.Call) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for keyword in node.keywords:
            more = self.value(keyword.value) if keyword.arg is None else {keyword.arg: self.value(keyword.value)}
            if twice := out.keys() & more.keys():
                self.refuse(node, f"{min(twice)!r} is given twice.")
            out |= more
        return out

    def _method(self, node: ast.Call, owner: Any, verb: str, given: list[Any]) -> Any:
        """The methods of dicts and lists that put values in or take them out: data, as literals are."""
        named = self._named(node)
        match owner, verb:
            case Inherited(), "update":
                return owner.merge(dict(*given, **named))
            case dict(), "update":
                return owner.update(*given, **named)
            case dict(), "copy" if not given and not named:
                return type(owner)(owner)
            case dict(), "pop" | "get" if given and not named:
                # A pop from a dict of a base never fails.
                silent = [None] if verb == "pop" and isinstance(owner, Inherited) else []
                return getattr(owner, verb)(*(given + silent)[:2])
            case list(), "append" | "extend" if len(given) == 1 and not named:
                return getattr(owner, verb)(*given)
            case list(), "insert" | "pop" | "copy" if not named:
                return getattr(owner, verb)(*given)
        return self.refuse(node)

    def _arithmetic(self, node: ast.BinOp) -> Any:
        left, right, op = self.value(node.left), self.value(node.right), type(node.op)
        if isinstance(left, str) and op is ast.Mod:
            self._check_widths(node, re.findall(r"%[^a-zA-Z%]*", left))
            parts = right if isinstance(right, tuple) else (right,)
            if not all(isinstance(part, (int, float, str)) for part in parts):
                self.refuse(node)
        elif isinstance(left, (int, float)) and isinstance(right, (int, float)):
            if op is ast.Pow and isinstance(left, int) and left.bit_length() * abs(right) > LARGEST:
                self.refuse(node, TOO_LARGE)
        elif op is ast.Mult and {type(left), type(right)} & {list, tuple, str}:
            items, times = (left, right) if isinstance(right, int) else (right, left)
            if isinstance(times, int) and len(items) * times > LARGEST:
                self.refuse(node, TOO_LARGE)
        elif op is not ast.Add or type(left) is not type(right) or not isinstance(left, (list, tuple, str)):
            self.refuse(node)
        return self._bounded(node, NUMBERS[op](left, right))

    def _text(self, node: ast.JoinedStr) -> str:
        return "".join(str(self.value(one)) for one in node.values)

    def _formatted(self, node: ast.FormattedValue) -> str:
        value = self.value(node.value)
        form = "" if node.format_spec is None else str(self.value(node.format_spec))
        if not isinstance(value, (int, float, str, type(None))):
            self.refuse(node.value, "only numbers and text are put into text.")
        self._check_widths(node, [form])
        conversions: dict[int, Callable[[object], str]] = {115: str, 114: repr, 97: ascii}
        return format(conversions[node.conversion](value) if node.conversion in conversions else value, form)

    def _check_widths(self, node: ast.AST, forms: list[str]) -> None:
        if any("*" in form or any(int(n) > LARGEST for n in re.findall(r"\d+", form)) for form in forms):
            self.refuse(node, TOO_LARGE)

    def _bounded(self, node: ast.AST, value: Any) -> Any:
        """A value that a few lines cannot have doubled out of all bounds."""
        size = value.bit_length() if isinstance(value, int) else len(value) if hasattr(value, "__len__") else 0
        return value if size <= 10 * LARGEST else self.refuse(node, TOO_LARGE)
