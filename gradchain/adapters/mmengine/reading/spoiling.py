"""What a statement that is not read may have changed: names that it binds, and dicts and lists within its reach."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Collection
from typing import Any

from gradchain.adapters.mmengine.reading.literals import Unread

__all__ = ["BASE", "function", "spoil"]

BASE = "_base_"
BUILTINS = vars(builtins).keys()
REACH_EVERYTHING = {"globals", "locals", "vars", "exec", "eval", "setattr", "__import__"}


def spoil(node: ast.stmt, names: dict[str, Any], why: str) -> None:
    """Mark what a statement that is not read may have changed."""
    bound, used = _scope(node)
    named = bound | used
    for name in named & names.keys():
        if isinstance(before := names[name], Unread):
            bound |= before.touches  # a function of the file: what its body names
    if named & REACH_EVERYTHING:
        bound |= names.keys()
    base = names.get(BASE, {})
    from_base = base.keys() if BASE in bound else _of_base(node, base)
    near = [names[name] for name in (named | bound) & names.keys() - {BASE}] + [base[name] for name in from_base]
    reached = _containers(near)
    unread = Unread(why, frozenset((named | bound) - BUILTINS))
    for within, surely in ((base, from_base), (names, bound - {BASE})):
        shared = {n for n, one in within.items() if n != BASE and not reached.isdisjoint(_containers(one))}
        within |= dict.fromkeys(sorted(shared | surely), unread)


def function(node: ast.FunctionDef, why: str) -> Unread | None:
    """What the name of a function means, whose call may change what its body names; None where `def` does more."""
    given, names = node.args, _scope(node)
    if node.decorator_list or given.defaults or any(given.kw_defaults) or names[1] & REACH_EVERYTHING:
        return None
    return Unread(why, frozenset(set.union(*names) - BUILTINS))


def _scope(node: ast.AST) -> tuple[set[str], set[str]]:
    """The names that a node binds and those that it uses, without those of functions and comprehensions in it."""
    inside = [_scope(child) for child in ast.iter_child_nodes(node)]
    bound = {name for names, _ in inside for name in names}
    used = {name for _, names in inside for name in names}
    match node:
        case ast.Name(id=name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(name)
        case ast.arg(arg=name) | ast.ExceptHandler(name=str() as name) | ast.MatchAs(name=str() as name):
            bound.add(name)
        case ast.MatchStar(name=str() as name) | ast.MatchMapping(rest=str() as name):
            bound.add(name)
        case ast.Import() | ast.ImportFrom():
            bound |= {one.asname or one.name.partition(".")[0] for one in node.names}
        case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            own = set[str]().union(*(_scope(part.target)[0] for part in node.generators))
            bound, used = bound - own, used - own
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda() | ast.ClassDef():
            shared = {name for one in ast.walk(node) if isinstance(one, ast.Global) for name in one.names}
            used -= bound - shared
            bound = (bound & shared) | ({node.name} if not isinstance(node, ast.Lambda) else set())
    return bound, used


def _of_base(node: ast.AST, known: Collection[str]) -> set[str]:
    """The names of the bases that a node uses: `_base_.x` and `_base_["x"]` one, a bare `_base_` all."""
    used: list[str] = []
    bare = 0
    for one in ast.walk(node):
        match one:
            case ast.Name(id="_base_"):
                bare += 1
            case (
                ast.Attribute(value=ast.Name(id="_base_"), attr=name)
                | ast.Subscript(value=ast.Name(id="_base_"), slice=ast.Constant(value=str() as name))
            ):
                used.append(name)
    return set(known) & set(known if bare > len(used) else used)


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
