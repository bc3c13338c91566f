"""Expressions of a config file as values: literals, names and what is made of them by hand; nothing is run."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Sequence, ValuesView
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NoReturn

from gradchain.adapters.mmengine.reading.budget import Budget, RefusedError, size

__all__ = ["Imported", "Inherited", "Literals", "Unread", "UnreadableError", "hooked"]

LARGEST = 100_000  # items of a repeated list or text, widths in a format, bits of a power
TOO_LARGE = "it is too large to be meant."
NOT_KNOWN = "what an import brought is not known here."


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
    """A dict from a base, as MMEngine's ConfigDict: keys are attributes too, and it keeps what is put in `hooked`."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, hooked(value))

    def update(self, *given: Any, **named: Any) -> None:
        """Dict into dict, and anything else in place of what was there."""
        for key, value in dict(*given, **named).items():
            mine = self.get(key)
            if isinstance(mine, Inherited) and isinstance(value, dict):
                mine.update(value)
            else:
                self[key] = value

    def pop(self, key: str, default: Any = None) -> Any:
        """It never fails."""
        return super().pop(key, default)

    def copy(self) -> Inherited:
        """Of the same kind."""
        return Inherited(self)


def hooked(value: Any) -> Any:
    """What a dict from a base keeps of a value that is put into it: dicts become of its kind, lists new ones."""
    if type(value) is dict:
        return Inherited({key: hooked(one) for key, one in value.items()})
    return type(value)(map(hooked, value)) if isinstance(value, (list, tuple)) else value


OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.BitOr: operator.or_,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Invert: operator.invert,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
JOINED: dict[type[ast.operator], tuple[type, ...]] = {ast.Add: (list, tuple, str), ast.BitOr: (dict,)}
# functions of values that change nothing; what they make of plain ones is plain, once it is a list
PLAIN: tuple[Callable[..., Any], ...] = (
    abs, all, any, bool, dict, divmod, enumerate, float, int, len, list, max, min, range, reversed, round, sorted, str,
    sum, tuple, zip,
)  # fmt: skip
PURE = {one.__name__: one for one in PLAIN}
# methods that put values in or take them out: data, as literals are; of text those that give text, truths or lists
METHODS: dict[type, set[str]] = {
    dict: {"clear", "copy", "get", "items", "keys", "pop", "setdefault", "update", "values"},
    list: {"append", "clear", "copy", "count", "extend", "index", "insert", "pop", "remove", "reverse"},
    str: {
        "endswith", "format", "join", "lower", "lstrip", "replace", "rsplit", "rstrip", "split", "startswith", "strip",
        "upper",
    },
}  # fmt: skip
METHODS[Inherited] = METHODS[dict] - {"setdefault"}
KINDS = {
    **dict.fromkeys((ast.AsyncFunctionDef, ast.FunctionDef, ast.Lambda), "a function"),
    ast.BinOp: "this arithmetic",
    ast.Call: "a call",
    ast.ClassDef: "a class",
    ast.GeneratorExp: "a generator",
    ast.Set: "a set",
    ast.SetComp: "a comprehension",
    ast.Try: "a try",
    ast.With: "a with that is not `with read_base():`",
}


class Literals:
    """The names of a file so far, and the values of its expressions."""

    def __init__(self, file: object, budget: Budget) -> None:
        self.file, self.budget, self.names = file, budget, dict[str, Any]()

    def refuse(self, node: ast.AST, what: str = "") -> NoReturn:
        """Name the file, the line and the construct."""
        kind = KINDS.get(type(node), f"this ({type(node).__name__})")
        text = " ".join(ast.unparse(node).split())
        text = text if len(text) <= 80 else text[:77] + "..."
        line = getattr(node, "lineno", 0)
        said = what or f"{kind} is not read, since nothing of a config is run. Write its value."
        raise UnreadableError(f"mmengine.read_config: {self.file}, line {line}: `{text}`: {said}")

    def read(self, node: ast.AST, how: Callable[[Any], Any] | None = None) -> Any:
        """The value of an expression; what it cannot have, as a key that is not there, is refused too."""
        self.budget.charge(1)
        try:
            found = (how or self._value)(node)
        except (RefusedError, UnreadableError):
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            # A KeyError's text is the key alone.
            self.refuse(node, f"fails with {type(error).__name__}: {error}.")
        if isinstance(found, Unread):
            raise UnreadableError(found.why)
        return found

    def known(self, node: ast.expr) -> Any:
        """A value that conditions and loops may look at: what an import brought is a name only."""
        found = self.read(node)
        return self.refuse(node, NOT_KNOWN) if isinstance(found, Imported) else found

    def _value(self, node: ast.AST) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                if name in self.names:
                    return self.names[name]
                cure = "a function is read where it is called only." if name in PURE else "the name has no value here."
                return self.refuse(node, cure)
            case ast.List() | ast.Tuple():
                items = self._items(node.elts)
                return items if isinstance(node, ast.List) else tuple(items)
            case ast.Dict():
                return self._mapped(node, zip(node.keys, node.values, strict=True))
            case ast.JoinedStr():
                return self._bounded(node, "".join(str(self.read(one)) for one in node.values))
            case ast.FormattedValue():
                return self._formatted(node)
            case ast.UnaryOp():
                return OPERATORS[type(node.op)](self.read(node.operand))
            case ast.BinOp(op=op) if type(op) in OPERATORS:
                return self._arithmetic(node)
            case ast.IfExp():
                return self.read(node.body if self.known(node.test) else node.orelse)
            case ast.BoolOp():
                return self._either(node)
            case ast.Compare():
                return self._compared(node)
            case ast.ListComp():
                return self._comprehended(node.elt, node.generators)
            case ast.DictComp():
                return dict(self._comprehended(ast.Tuple([node.key, node.value], ast.Load()), node.generators))
            case ast.Subscript():
                owner, index = self.known(node.value), self.read(node.slice)
                return self._bounded(node, owner[index]) if isinstance(index, slice) else owner[index]
            case ast.Slice():
                return slice(*(part and self.read(part) for part in (node.lower, node.upper, node.step)))
            case ast.Attribute(attr=name):
                owner = self.read(node.value)
                if isinstance(owner, Inherited) and name in owner:
                    return owner[name]
                if isinstance(owner, Imported):
                    return Imported(name)
                return self.refuse(node, f"there is no {name!r} to read.")
            case ast.Call():
                return self._call(node)
        return self.refuse(node)

    def _items(self, nodes: Sequence[ast.expr], of_call: bool = False) -> list[Any]:
        """What a list holds, or a call is given, where a generator is read as the list of what it gives."""
        out: list[Any] = []
        for node in nodes:
            match node:
                case ast.Starred(value=many):
                    self.budget.weigh(more := self.read(many))
                    out.extend(more)
                case ast.GeneratorExp() if of_call:
                    out.append(self._comprehended(node.elt, node.generators))
                case _:
                    out.append(self.read(node))
        return out

    def _mapped(self, node: ast.AST, pairs: Iterable[tuple[ast.expr | None, ast.expr]]) -> dict[Any, Any]:
        """Keys and their values; without a key, those of another dict. An argument has one value."""
        out: dict[Any, Any] = {}
        for key, value in pairs:
            if key is None:
                self.budget.weigh(more := {**self.read(value)})
            else:
                more = {self.read(key): self.read(value)}
            if isinstance(node, ast.Call) and (twice := out.keys() & more.keys()):
                self.refuse(node, f"{min(twice)!r} is given twice.")
            out.update(more)
        return out

    # --- conditions, loops and what they set --------------------------------------------------------------------

    def _either(self, node: ast.BoolOp) -> Any:
        found = None
        for one in node.values:
            found = self.known(one)
            if bool(found) is isinstance(node.op, ast.Or):
                break
        return found

    def _compared(self, node: ast.Compare) -> bool:
        pairs = pairwise(map(self.known, (node.left, *node.comparators)))
        for op, pair in zip(node.ops, pairs, strict=True):
            self.budget.weigh(pair)
            if not OPERATORS[type(op)](*pair):
                return False
        return True

    def _comprehended(self, made: ast.expr, parts: Sequence[ast.comprehension]) -> list[Any]:
        """What is made in each round of a comprehension, whose variables are its own."""
        outer = self.names
        self.budget.charge(len(outer) // 16)
        self.names = dict(outer)
        try:
            return [self.read(made) for _ in self._nested(parts)]
        finally:
            self.names = outer

    def _nested(self, parts: Sequence[ast.comprehension]) -> Iterator[None]:
        if not parts:
            yield
            return
        for _ in self.rounds(parts[0]):
            if all(self.known(test) for test in parts[0].ifs):
                yield from self._nested(parts[1:])

    def rounds(self, node: ast.For | ast.comprehension) -> Iterator[None]:
        """Go through what a loop or a comprehension goes through; its variable has each item in turn."""
        found = self.known(node.iter)
        if not isinstance(found, (list, tuple, dict, str, range)) or getattr(node, "is_async", False):
            self.refuse(node.iter, "only lists, dicts, text and ranges are gone through.")
        for one in list(found) if len(found) <= LARGEST else self.refuse(node.iter, TOO_LARGE):
            self.bind(node.target, one)
            yield

    def bind(self, target: ast.expr, value: Any) -> None:
        """Give a target its value, by parts where it is a tuple."""
        if not isinstance(target, (ast.Tuple, ast.List)):
            self.budget.weigh(value)
            owner, key = self.place(target)
            owner[key] = value
            return
        found, parts = list(value) if isinstance(value, (list, tuple)) else [], target.elts
        for i, part in enumerate(parts):
            if isinstance(part, ast.Starred):
                many = len(found) - len(parts) + 1
                found[i : i + many] = [found[i : i + many]]
        if len(found) != len(parts):
            self.refuse(target, f"there must be {len(parts)} values, got {value!r}.")
        for part, one in zip(parts, found, strict=True):
            self.bind(part.value if isinstance(part, ast.Starred) else part, one)

    def place(self, target: ast.expr) -> tuple[Any, Any]:
        """Where a target is to be set or deleted: what holds it, and its name, key or index there."""
        match target:
            case ast.Name(id=name):
                return self.names, name
            case ast.Attribute(value=value) | ast.Subscript(value=value):
                self.budget.weigh(owner := self.read(value))
                if isinstance(target, ast.Subscript) and isinstance(owner, (dict, list)):
                    return owner, self.read(target.slice)
                if isinstance(target, ast.Attribute) and isinstance(owner, Inherited):
                    return owner, target.attr
                self.refuse(target, "there is nothing that can be changed so.")
        return self.refuse(target)

    # --- calls --------------------------------------------------------------------------------------------------

    def _call(self, node: ast.Call) -> Any:
        """A function of Python's that makes a value of values, or a method of a dict, a list or text."""
        given = self._items(node.args, of_call=True)
        names = (None if one.arg is None else ast.Constant(one.arg) for one in node.keywords)
        named = self._mapped(node, zip(names, (one.value for one in node.keywords), strict=True))
        match node.func:
            case ast.Name(id=name) if name in PURE.keys() - self.names.keys():
                called, owner = PURE[name], "" if name == "str" else None
                if any(isinstance(one, Imported) for one in given):
                    self.refuse(node, NOT_KNOWN)
            case ast.Attribute(attr=name):
                owner = self.read(node.func.value)
                if name not in METHODS.get(type(owner), ()):
                    self.refuse(node)
                called = getattr(owner, name)
            case _:
                self.refuse(node)
        self.budget.weigh([owner, given, named])
        if isinstance(owner, str):
            self._check_text(node, owner, name, [*given, *named.values()])
        found = called(*given, **named)
        lazy = isinstance(found, (ItemsView, Iterator, KeysView, ValuesView))
        return self._bounded(node, list(found) if lazy else found)

    # --- arithmetic and text ------------------------------------------------------------------------------------

    def _arithmetic(self, node: ast.BinOp) -> Any:
        left, right, op = self.read(node.left), self.read(node.right), type(node.op)
        if isinstance(left, str) and op is ast.Mod:
            self._check_parts(node, right if isinstance(right, tuple) else [right], re.findall(r"%[^a-zA-Z%]*", left))
        elif isinstance(left, (int, float)) and isinstance(right, (int, float)):
            if op is ast.Pow and size(left) * abs(right) > LARGEST:
                self.refuse(node, TOO_LARGE)
        elif op is ast.Mult and {type(left), type(right)} & {list, tuple, str}:
            items, times = (left, right) if isinstance(right, int) else (right, left)
            if isinstance(times, int) and len(items) * times > LARGEST:
                self.refuse(node, TOO_LARGE)
        elif type(left) is not type(right) or type(left) not in JOINED.get(op, ()):
            self.refuse(node)
        return self._bounded(node, OPERATORS[op](left, right))

    def _formatted(self, node: ast.FormattedValue) -> str:
        value = self.read(node.value)
        form = "" if node.format_spec is None else self.read(node.format_spec)
        self._check_parts(node.value, [value], [form])
        conversions: dict[int, Callable[[object], str]] = {115: str, 114: repr, 97: ascii}
        return format(conversions[node.conversion](value) if node.conversion in conversions else value, form)

    def _check_text(self, node: ast.AST, owner: str, verb: str, given: list[Any]) -> None:
        """A method of text, whose outcome is no longer than its parts say."""
        parts: list[Any] = []
        for one in given:
            parts += one if isinstance(one, (list, tuple)) and verb != "str" else [one]
        fields = re.findall(r"\{[^{}]*", owner) if verb == "format" else []
        self._check_parts(node, parts, fields)
        if (len(owner) + 1) * (1 + sum(len(part) if isinstance(part, str) else 1 for part in parts)) > 10 * LARGEST:
            self.refuse(node, TOO_LARGE)
        if fields and (re.search(r"\{[^{}:]*[.\[]", owner) or re.search(r"\{[^{}]+\{", owner)):
            self.refuse(node, "only whole values are put into text, in a width that is written out.")

    def _check_parts(self, node: ast.AST, parts: Iterable[Any], fields: list[str]) -> None:
        """What is put into text, and how wide it may become there."""
        if not all(isinstance(part, (int, float, str, type(None))) for part in parts):
            self.refuse(node, "only numbers and text are put into text.")
        if any("*" in field or any(int(n) > LARGEST for n in re.findall(r"\d+", field)) for field in fields):
            self.refuse(node, TOO_LARGE)

    def _bounded(self, node: ast.AST, value: Any) -> Any:
        """A value that a few lines cannot have doubled out of all bounds."""
        self.budget.made(value)
        return value if size(value) <= 10 * LARGEST else self.refuse(node, TOO_LARGE)
