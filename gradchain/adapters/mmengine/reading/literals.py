"""Expressions of a config file as values: literals, names and what is made of them by hand; nothing is run."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from gradchain.adapters.mmengine.reading.budget import PER_STEP, Budget, BudgetError

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
# functions of values that change nothing; what they make of plain ones is plain
PLAIN: tuple[Callable[..., Any], ...] = (
    abs, all, any, bool, divmod, float, int, len, list, max, min, range, round, sorted, str, sum, tuple,
)  # fmt: skip
PURE: dict[str, Callable[..., Any]] = {
    **{one.__name__: one for one in PLAIN},
    "enumerate": lambda items, start=0: list(enumerate(items, start)),
    "reversed": lambda items: list(reversed(items)),
    "zip": lambda *given: list(zip(*given, strict=False)),
}
OF_LISTS = {"append", "clear", "copy", "count", "extend", "index", "insert", "pop", "remove", "reverse"}
# methods of text that give text, a truth or a list of text
OF_TEXT = {
    "endswith", "format", "join", "lower", "lstrip", "replace", "rsplit", "rstrip", "split", "startswith", "strip",
    "upper",
}  # fmt: skip
KINDS = {
    ast.AsyncFunctionDef: "a function",
    ast.Attribute: "an attribute",
    ast.BinOp: "this arithmetic",
    ast.Call: "a call",
    ast.ClassDef: "a class",
    ast.Compare: "this comparison",
    ast.DictComp: "this comprehension",
    ast.FunctionDef: "a function",
    ast.GeneratorExp: "a generator",
    ast.Lambda: "a function",
    ast.ListComp: "this comprehension",
    ast.Set: "a set",
    ast.SetComp: "a comprehension",
    ast.Try: "a try",
    ast.With: "a with that is not `with read_base():`",
}


class Literals:
    """The names of a file so far, and the values of its expressions."""

    def __init__(self, file: str, names: dict[str, Any], budget: Budget) -> None:
        self.file, self.names, self.budget = file, names, budget

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
        self.budget.charge(1)
        try:
            found = self._value(node)
        except BudgetError:
            raise
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
                return self._bounded(node, "".join(str(self.value(one)) for one in node.values))
            case ast.FormattedValue():
                return self._formatted(node)
            case ast.UnaryOp(op=op) if type(op) in OPERATORS:
                return OPERATORS[type(op)](self.value(node.operand))
            case ast.BinOp(op=op) if type(op) in OPERATORS:
                return self._arithmetic(node)
            case ast.IfExp():
                return self.value(node.body if self.truth(node.test) else node.orelse)
            case ast.BoolOp():
                return self._either(node)
            case ast.Compare():
                return self._compared(node)
            case ast.ListComp():
                return self._comprehended(node)
            case ast.DictComp():
                return dict(self._comprehended(node))
            case ast.Subscript():
                return self._part(node)
            case ast.Attribute():
                return self._attribute(node)
            case ast.Call():
                return self._call(node)
        return self.refuse(node)

    def truth(self, node: ast.expr) -> bool:
        """Whether a condition holds."""
        return bool(self._known(node))

    def _known(self, node: ast.expr) -> Any:
        """A value that conditions and functions may look at: what an import brought is a name only."""
        found = self.value(node)
        return self.refuse(node, "what an import brought is not known here.") if isinstance(found, Imported) else found

    def items(self, node: ast.expr) -> Iterator[Any]:
        """What a loop or a comprehension goes over, each item a step."""
        found = self._known(node)
        if not isinstance(found, (list, tuple, dict, str, range)):
            self.refuse(node, "only lists, dicts, text and ranges are gone through.")
        for one in list(found) if len(found) <= LARGEST else self.refuse(node, TOO_LARGE):
            self.budget.charge(1)
            yield one

    def _comprehended(self, node: ast.ListComp | ast.DictComp | ast.GeneratorExp) -> list[Any]:
        """What is made in each round of a comprehension, whose variables are its own; of a dict, pairs."""
        outer = self.names
        self.budget.charge(len(outer) // 16)
        self.names = dict(outer)
        try:
            if isinstance(node, ast.DictComp):
                return [(self.value(node.key), self.value(node.value)) for _ in self._nested(node.generators)]
            return [self.value(node.elt) for _ in self._nested(node.generators)]
        finally:
            self.names = outer

    def _nested(self, parts: Sequence[ast.comprehension]) -> Iterator[None]:
        if not parts:
            yield
            return
        for one in self.items(parts[0].iter):
            self.bind(parts[0].target, one)
            if not parts[0].is_async and all(self.truth(test) for test in parts[0].ifs):
                yield from self._nested(parts[1:])

    def bind(self, target: ast.expr, value: Any, change: Callable[[ast.expr, Any], None] | None = None) -> None:
        """Give names their values, by parts where the target is a tuple; `change` sets what is no name, if that may."""
        match target:
            case ast.Name(id=name):
                self.names[name] = value
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                starred = [i for i, part in enumerate(parts) if isinstance(part, ast.Starred)]
                many = len(value) - len(parts) + 1 if isinstance(value, (list, tuple)) and starred else 1
                if not isinstance(value, (list, tuple)) or many < 0 or len(value) != len(parts) + many - 1:
                    self.refuse(target, f"there must be {len(parts)} values, got {value!r}." if change else "")
                found = list(value)
                for i in starred:
                    found[i : i + many] = [found[i : i + many]]
                for part, one in zip(parts, found, strict=True):
                    self.bind(part.value if isinstance(part, ast.Starred) else part, one, change)
            case _ if change is not None:
                change(target, value)
            case _:
                self.refuse(target)

    def _either(self, node: ast.BoolOp) -> Any:
        found = None
        for one in node.values:
            found = self._known(one)
            if bool(found) is isinstance(node.op, ast.Or):
                break
        return found

    def _compared(self, node: ast.Compare) -> bool:
        left = self._known(node.left)
        for op, right in zip(node.ops, map(self._known, node.comparators), strict=True):
            self.budget.weigh([left, right])
            if not OPERATORS[type(op)](left, right):
                return False
            left = right
        return True

    def _part(self, node: ast.Subscript) -> Any:
        owner, index = self.value(node.value), self.index(node.slice)
        if isinstance(index, slice):
            self.budget.charge(len(owner) // PER_STEP)
        return owner[index]

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
                more = self.value(node.value)
                self.budget.weigh(more)
                out.extend(more)
            else:
                out.append(self.value(node))
        return out

    def _dict(self, node: ast.Dict) -> dict[Any, Any]:
        out: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                self.budget.weigh(more := self.value(value))
                out.update(more)
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
        if isinstance(node.func, ast.Name) and node.func.id in PURE.keys() - self.names.keys():
            return self._pure(node, node.func.id)
        given = [self.value(one) for one in node.args if not isinstance(one, ast.Starred)]
        if len(given) < len(node.args) or len(given) > 2:
            self.refuse(node)
        self.budget.weigh(given)
        match node.func:
            case ast.Name(id="dict") if "dict" not in self.names and len(given) <= 1:
                return dict(*given, **self._named(node))
            case ast.Attribute(value=owner, attr=verb):
                return self._method(node, self.value(owner), verb, given)
        return self.refuse(node)

    def _pure(self, node: ast.Call, name: str) -> Any:
        """A function of Python's that makes a value of values."""
        # a generator is read as the list of what it gives
        given = [self._comprehended(n) if isinstance(n, ast.GeneratorExp) else self._known(n) for n in node.args]
        named = self._named(node)
        self.budget.weigh([given, named])
        if name == "str" and not all(isinstance(one, (int, float, str, type(None))) for one in given):
            self.refuse(node, "only numbers and text are put into text.")
        return self._bounded(node, PURE[name](*given, **named))

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
        self.budget.weigh([owner, given, named])
        match owner, verb:
            case dict(), "items" | "keys" | "values" if not given and not named:
                return [tuple(one) if verb == "items" else one for one in getattr(owner, verb)()]
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
            case dict(), "setdefault" | "clear" if type(owner) is dict and not named:
                return getattr(owner, verb)(*given)
            case list(), _ if verb in OF_LISTS and not named:
                return getattr(owner, verb)(*given)
            case str(), _ if verb in OF_TEXT and (not named or verb == "format"):
                return self._of_text(node, owner, verb, given, named)
        return self.refuse(node)

    def _of_text(self, node: ast.Call, owner: str, verb: str, given: list[Any], named: dict[str, Any]) -> Any:
        """A method of text; no text becomes longer than its parts say."""
        parts = [*named.values()]
        for one in given:
            parts += one if isinstance(one, (list, tuple)) else [one]
        if not all(isinstance(part, (int, float, str, type(None))) for part in parts):
            self.refuse(node, "only numbers and text are put into text.")
        if (len(owner) + 1) * (1 + sum(len(part) if isinstance(part, str) else 1 for part in parts)) > 10 * LARGEST:
            self.refuse(node, TOO_LARGE)
        if verb == "format":
            fields = re.findall(r"\{[^{}]*", owner)
            if any(re.search(r"[.\[]", field.partition(":")[0]) for field in fields) or re.search(r"\{[^{}]+\{", owner):
                self.refuse(node, "only whole values are put into text, in a width that is written out.")
            self._check_widths(node, fields)
        return self._bounded(node, getattr(owner, verb)(*given, **named))

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
        elif op is ast.BitOr and type(left) is type(right) is dict:
            self.budget.weigh([left, right])
        elif op is not ast.Add or type(left) is not type(right) or not isinstance(left, (list, tuple, str)):
            self.refuse(node)
        return self._bounded(node, OPERATORS[op](left, right))

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
        self.budget.charge(size // PER_STEP + 1 if isinstance(value, (int, str)) else size)
        return value if size <= 10 * LARGEST else self.refuse(node, TOO_LARGE)
