"""Values as pieces of a program: their repr with every name where a user finds it, in lines of a readable length."""

from __future__ import annotations

import ast
import keyword
from collections.abc import Mapping
from typing import Any

import gradchain as gch
from gradchain import selectors
from gradchain.selectors.source import code

__all__ = ["WIDTH", "argument", "assigned", "called", "literal", "program", "tree"]

WIDTH = 110
SHORT = 24  # letters of a call that is written behind what it is of
SIGNS: dict[type[ast.operator], tuple[str, int]] = {
    ast.BitOr: ("|", 0), ast.BitAnd: ("&", 1), ast.Add: ("+", 2), ast.Sub: ("-", 2), ast.Mult: ("*", 3),
    ast.Div: ("/", 3),
}  # fmt: skip
"""By operator, how it is written and how strongly it binds."""


def program(value: object, shared: dict[str, object] | None = None) -> str:
    """Python source that makes a value, for a program that imports gradchain as gch.

    Args:
        value: a chain, or anything whose repr is code that uses names of gradchain.
        shared: values by the names that stand for them where they occur in it.
    """
    return "\n".join(_lines(tree(value, shared), 0, ""))


def tree(value: object, shared: dict[str, object] | None = None) -> ast.expr:
    """The same as an expression."""
    names = {repr(one): name for name, one in (shared or {}).items()}
    found: ast.expr = _Named(names).visit(ast.parse(repr(value), mode="eval").body)
    return found


def assigned(name: str, value: ast.expr) -> str:
    """The statement that gives an expression a name."""
    lines = _lines(value, 0, "")
    if len(name) + 3 + len(lines[0]) > WIDTH and len(lines) == 1:
        lines = _opened(value, 0, "")
    if len(lines) > 1 and isinstance(value, ast.BinOp):
        lines = ["(", *_lines(value, 4, ""), ")"]
    return "\n".join([f"{name} = {lines[0]}", *lines[1:]])


def called(name: str, arguments: list[ast.expr], named: Mapping[str, ast.expr], indent: int, before: str) -> list[str]:
    """The lines of a call, with an argument to a line where it is long; `before`: what stands in front of it."""
    node = ast.Call(ast.Name(name), arguments, [ast.keyword(key, value) for key, value in named.items()])
    lines = _lines(node, indent, "")
    lines = _opened(node, indent, "") if len(lines[0]) + len(before) > WIDTH else lines
    return [f"{lines[0][:indent]}{before}{lines[0][indent:]}", *lines[1:]]


def argument(text: str, indent: int) -> list[str]:
    """The lines of an argument of a call, which is given as text, with the comma."""
    line = f"{' ' * indent}{text},"
    if len(line) <= WIDTH:
        return [line]
    call: Any = ast.parse(f"f({text})", mode="eval").body
    (node, name), *_ = [(one, "") for one in call.args] + [(k.value, f"{k.arg}=") for k in call.keywords]
    first, *rest = _opened(_Quoted().visit(node), indent, ",")
    return [f"{' ' * indent}{name}{first.lstrip()}", *rest]


def literal(value: object) -> ast.expr:
    """A value of a config as a person writes it there: dicts are `dict(…)` where their keys are names."""
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key) for key in value):
            return ast.Call(ast.Name("dict"), [], [ast.keyword(key, literal(one)) for key, one in value.items()])
        return ast.Dict([literal(key) for key in value], [literal(one) for one in value.values()])
    if isinstance(value, (list, tuple)):
        return (ast.List if isinstance(value, list) else ast.Tuple)([literal(one) for one in value], ast.Load())
    return tree(value)


class _Quoted(ast.NodeTransformer):
    """Text in double quotes."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Name(code(node.value)) if isinstance(node.value, str) else node


class _Named(_Quoted):
    """Names as they are reached from `import gradchain as gch`."""

    def __init__(self, shared: dict[str, str]) -> None:
        # As the parser writes a repr, so that equal code is equal text.
        self.shared = {ast.unparse(ast.parse(text, mode="eval")): name for text, name in shared.items()}

    def visit(self, node: ast.AST) -> Any:
        name = self.shared.get(ast.unparse(node)) if isinstance(node, ast.Call) else None
        return ast.Name(name) if name is not None else super().visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        places = {"gch": gch, "gch.schedules": gch.schedules, "gch.selectors": selectors, "gch.rules": gch.rules}
        place = next((place for place, room in places.items() if hasattr(room, node.id)), None)
        if node.id in ("inf", "nan"):
            return ast.Name(f'float("{node.id}")')
        return ast.Name(node.id if place is None else f"{place}.{node.id}")


def _lines(node: ast.expr, indent: int, ending: str) -> list[str]:
    """The lines of an expression: one if it is short, else opened."""
    whole = " " * indent + ast.unparse(node) + ending
    return [whole] if len(whole) <= WIDTH and not _is_chain(node) else _opened(node, indent, ending)


def _opened(node: ast.expr, indent: int, ending: str) -> list[str]:
    """The lines of an expression with a part to a line: arguments of calls, entries of lists and dicts, operands."""
    space = " " * indent
    if isinstance(node, ast.BinOp) and type(node.op) in SIGNS:
        left, right = _operand(node.left, node, indent, ""), _operand(node.right, node, indent, ending)
        return [*left, f"{space}{SIGNS[type(node.op)][0]} {right[0].lstrip()}", *right[1:]]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if isinstance(node.func.value, (ast.Call, ast.BinOp)):
            return _method(node, node.func, indent, ending)
    if isinstance(node, (ast.Tuple, ast.List)) and node.elts:
        opened, closed = "()" if isinstance(node, ast.Tuple) else "[]"
        parts = [(one, "") for one in node.elts]
    elif isinstance(node, ast.Dict) and node.keys:
        opened, closed = "{}"
        parts = [(one, f"{ast.unparse(key)}: ") for key, one in zip(node.keys, node.values, strict=True) if key]
    elif isinstance(node, ast.Call) and (node.args or node.keywords):
        opened, closed = f"{ast.unparse(node.func)}(", ")"
        parts = [(one, "") for one in node.args] + [(k.value, f"{k.arg}=") for k in node.keywords]
    else:
        return [space + ast.unparse(node) + ending]
    inner = []
    for one, name in parts:
        lines = _lines(one, indent + 4, ",")
        if len(lines[0]) + len(name) > WIDTH:
            lines = _opened(one, indent + 4, ",")
        if name and len(lines) > 1 and isinstance(one, ast.BinOp):
            lines = [" " * (indent + 4) + "(", *_lines(one, indent + 8, ""), " " * (indent + 4) + "),"]
        inner += [" " * (indent + 4) + name + lines[0].lstrip(), *lines[1:]]
    return [space + opened, *inner, space + closed + ending]


def _operand(node: ast.expr, of: ast.BinOp, indent: int, ending: str) -> list[str]:
    """One side of an operator, in parentheses where it binds less."""
    if isinstance(node, ast.BinOp) and type(node.op) in SIGNS:
        binds, around = SIGNS[type(node.op)][1], SIGNS[type(of.op)][1]
        if binds < around or (binds == around and node is of.right):
            return _parenthesized(node, indent, ending)
    return _lines(node, indent, ending)


def _parenthesized(node: ast.expr, indent: int, ending: str) -> list[str]:
    space, whole = " " * indent, f"({ast.unparse(node)}){ending}"
    if indent + len(whole) + 2 <= WIDTH:
        return [space + whole]
    return [f"{space}(", *_lines(node, indent + 4, ""), f"{space}){ending}"]


def _method(node: ast.Call, of: ast.Attribute, indent: int, ending: str) -> list[str]:
    """A call of a method of what a call gives: `….then(…)`."""
    write = _parenthesized if isinstance(of.value, ast.BinOp) else _lines
    lines = write(of.value, indent, "")
    then = ast.Call(ast.Name(f".{of.attr}"), node.args, node.keywords)
    text = ast.unparse(then) + ending
    if len(lines) == 1 and len(lines[0]) + len(text) > WIDTH and len(text) <= SHORT:
        lines = _opened(of.value, indent, "")
    fits = len(lines[-1]) + len(text) <= WIDTH
    after = [text] if fits and len(lines) > 1 else _opened(then, indent, ending)
    return [*lines[:-1], lines[-1] + after[0].lstrip(), *after[1:]]


def _is_chain(node: ast.expr) -> bool:
    """A chain is always opened, a link to a line."""
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "gch.chain"
