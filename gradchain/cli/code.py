"""A chain as a piece of a program: its repr with every name where a user finds it, in lines of a readable length."""

from __future__ import annotations

import ast
from typing import Any, TypeGuard

import gradchain as gch
from gradchain import selectors
from gradchain.selectors.source import code

__all__ = ["program"]

WIDTH = 110


def program(value: object, shared: dict[str, object] | None = None) -> str:
    """Python source that makes a value, for a program that begins with `imports`.

    Args:
        value: a chain, or anything whose repr is code that uses names of gradchain.
        shared: values by the names that stand for them where they occur in it.
    """
    names = {repr(one): name for name, one in (shared or {}).items()}
    tree = ast.parse(repr(value), mode="eval").body
    return "\n".join(_lines(_Named(names).visit(tree), 0, ""))


class _Named(ast.NodeTransformer):
    """Names as they are reached from `import gradchain as gch`."""

    def __init__(self, shared: dict[str, str]) -> None:
        # As the parser writes a repr, so that equal code is equal text.
        self.shared = {ast.unparse(ast.parse(text, mode="eval")): name for text, name in shared.items()}

    def visit(self, node: ast.AST) -> Any:
        name = self.shared.get(ast.unparse(node)) if isinstance(node, ast.Call) else None
        return ast.Name(name) if name is not None else super().visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Name(code(node.value)) if isinstance(node.value, str) else node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        places = {"gch": gch, "gch.schedules": gch.schedules, "gch.selectors": selectors, "gch.rules": gch.rules}
        place = next((place for place, room in places.items() if hasattr(room, node.id)), None)
        if node.id in ("inf", "nan"):
            return ast.Name(f'float("{node.id}")')
        return ast.Name(node.id if place is None else f"{place}.{node.id}")


def _lines(node: ast.expr, indent: int, ending: str) -> list[str]:
    """The lines of an expression: one if it is short, else its call opened, with an argument to a line."""
    space, whole = " " * indent, ast.unparse(node) + ending
    if indent + len(whole) <= WIDTH and not _is_chain(node):
        return [space + whole]
    if _is_product(node):
        left, right = _lines(node.left, indent, ""), _lines(node.right, indent, ending)
        return [*left, f"{space}* {right[0].lstrip()}", *right[1:]]
    if isinstance(node, ast.Tuple):
        opened, parts, closed = "(", [(one, "") for one in node.elts], ")"
    elif isinstance(node, ast.Call):
        opened, closed = f"{ast.unparse(node.func)}(", ")"
        parts = [(one, "") for one in node.args] + [(k.value, f"{k.arg}=") for k in node.keywords]
    else:
        return [space + whole]
    inner = []
    for one, name in parts:
        lines = _lines(one, indent + 4, ",")
        inner += [" " * (indent + 4) + name + lines[0].lstrip(), *lines[1:]]
    return [space + opened, *inner, space + closed + ending]


def _is_product(node: ast.expr) -> TypeGuard[ast.BinOp]:
    """Whether it is a product whose factors need no parentheses, to be opened inside those of a call."""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Mult) or isinstance(node.right, ast.BinOp):
        return False
    return not isinstance(node.left, ast.BinOp) or _is_product(node.left)


def _is_chain(node: ast.expr) -> bool:
    """A chain is always opened, a link to a line."""
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "gch.chain"
