"""What a statement that is not read may have changed: names that it binds, and dicts and lists within its reach."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Collection, Iterable
from typing import Any

from gradchain.adapters.mmengine.reading.literals import Unread

__all__ = ["BASE", "function", "only_defines", "spoil"]

BASE = "_base_"
REACH_EVERYTHING = {"globals", "locals", "vars", "exec", "eval", "setattr", "__import__"}


def spoil(node: ast.stmt, names: dict[str, Any], why: str) -> None:
    """Mark what a statement that is not read may have changed."""
    bound, used = _scope([node])
    named = bound | used
    for name in named & names.keys():
        if isinstance(before := names[name], Unread):
            bound |= before.touches  # a function of the file: what its body names
    if named & REACH_EVERYTHING:
        bound |= names.keys()
    base = names.get(BASE, {})
    from_base = base.keys() if BASE in bound else _of_base(list(ast.walk(node)), base.keys())
    near = [names[name] for name in (named | bound) & names.keys() - {BASE}] + [base[name] for name in from_base]
    reached = _containers(near)
    marked = _marks(named | bound)
    for within, surely in ((base, from_base), (names, bound - {BASE})):
        shared = {n for n, one in within.items() if n != BASE and not reached.isdisjoint(_containers(one))}
        within |= dict.fromkeys(shared | surely, Unread(why, marked))


def _marks(names: set[str]) -> frozenset[str]:
    return frozenset(names - vars(builtins).keys())


def only_defines(node: ast.FunctionDef) -> bool:
    """Whether a function changes nothing where it is defined, and what it may change when called is seen."""
    given = node.args
    runs = [*node.decorator_list, *given.defaults, *(one for one in given.kw_defaults if one is not None)]
    return not runs and not _scope([node])[1] & REACH_EVERYTHING


def function(node: ast.FunctionDef, why: str) -> Unread:
    """What its name means: what names that may change when it is used."""
    return Unread(why, _marks(set.union(*_scope([node]))))


def _scope(nodes: Iterable[ast.AST]) -> tuple[set[str], set[str]]:
    """The names that nodes bind and those that they use, without those of functions and comprehensions in them."""
    bound: set[str] = set()
    used: set[str] = set()
    for node in nodes:
        inside = _scope(ast.iter_child_nodes(node))
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                used.add(name)
            case ast.Name(id=name):
                bound.add(name)
            case ast.Import() | ast.ImportFrom():
                bound |= {one.asname or one.name.partition(".")[0] for one in node.names}
            case ast.ExceptHandler(name=str() as name):
                bound |= inside[0] | {name}
                used |= inside[1]
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                own = _scope([part.target for part in node.generators])[0]
                bound |= inside[0] - own
                used |= inside[1] - own
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda() | ast.ClassDef():
                shared = {name for one in ast.walk(node) if isinstance(one, ast.Global) for name in one.names}
                own = (inside[0] | {one.arg for one in ast.walk(node) if isinstance(one, ast.arg)}) - shared
                bound |= (inside[0] & shared) | ({node.name} if not isinstance(node, ast.Lambda) else set())
                used |= inside[1] - own
            case _:
                bound |= inside[0]
                used |= inside[1]
    return bound, used


def _of_base(inside: list[ast.AST], known: Collection[str]) -> set[str]:
    """The names of the bases that these nodes use: `_base_.x` and `_base_["x"]` one, a bare `_base_` all."""
    used: set[str] = set()
    single = 0
    for node in inside:
        match node:
            case ast.Attribute(value=ast.Name(id="_base_"), attr=name):
                used, single = used | {name}, single + 1
            case ast.Subscript(value=ast.Name(id="_base_"), slice=ast.Constant(value=str() as name)):
                used, single = used | {name}, single + 1
            case ast.Name(id="_base_"):
                single -= 1
    return (used if not single else set(known)) & set(known)


def _containers(value: Any) -> set[int]:
    """The identities of the dicts and lists in a value."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, (dict, list, tuple)) and id(one) not in seen:
            seen.add(id(one))
            waiting.extend(one.values() if isinstance(one, dict) else one)
    return seen
