"""The program of a recipe: its imports, the chains, and a function that binds them to a model."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import gradchain as gch
from gradchain.adapters.mmengine.groups.constructors import NORM
from gradchain.adapters.mmengine.recipe.whole import Unbound
from gradchain.cli.code import assigned, called, literal, tree
from gradchain.cli.text import commented, documented
from gradchain.schedules import Schedule
from gradchain.selectors import Selector

__all__ = ["of_chains", "of_config"]

LONG = {"curve": 60, "where": 40, "": 10_000}  # letters of what gets a name where it is written more than once
KINDS: dict[type, str] = {Schedule: "curve", Selector: "where"}
OURS, ADAPTER = "import gradchain as gch", "from gradchain.adapters import mmengine"
NORMS = "what MMEngine takes for a norm: not RMSNorm, as gch.norm does"


def of_chains(parts: Sequence[Unbound], name: str, imports: list[str], notes: Sequence[str] = ()) -> str:
    """The chains as code, `tx`, and `make(model)` that binds them.

    notes: what is said above the chains.
    """
    several = parts[0].key is not None
    trees = {f"tx_{part.key}" if several else "tx": tree(part.chain, {"norm": NORM}) for part in parts}
    curves = _repeated(list(trees.values()))
    lines = [assigned(label, value) for label, value in curves]
    bound = [_bound(part, tx) for part, tx in zip(parts, trees, strict=True)]
    group = ["gch.group(", *(f"    {part.key}={one}," for part, one in zip(parts, bound, strict=True)), ")"]
    group = group if several else bound
    lines += [*commented(notes), *(assigned(tx, value) for tx, value in trees.items())]
    return _program("\n".join([*lines, "", "", *_function(name, "", group)]), name, imports, [OURS])


def of_config(
    wrapper: Any, schedulers: Any, given: dict[str, Any], printed: str, name: str, imports: list[str], loop: bool
) -> str:
    """A recipe whose rules need the model: `make(model)` reads it then, by `from_config`.

    printed: what is the chain then; loop: whether a loop comes under it.
    """
    arguments = [ast.Name("model"), literal(wrapper), *([] if schedulers is None else [literal(schedulers)])]
    named = {key: literal(value) for key, value in given.items()}
    body = called("mmengine.from_config", list(arguments), named, 4, "return ")
    body[0] = body[0].strip()
    function = _function(name, f"print({printed}) then is the chain", body, indent=False)
    needed = loop or any(line.startswith("gch.") for line in imports)
    return _program("\n".join(["", *function]), name, imports, [*([OURS] if needed else ()), ADAPTER])


def _function(name: str, more: str, returned: Sequence[str], indent: bool = True) -> list[str]:
    """`make(model)`, which returns an expression in lines."""
    first, *rest = returned
    return [
        "def make(model):",
        *documented(f"The updater of {name}{': ' if more else ''}{more}.", 4),
        f"    {first}" if first.startswith("return ") else f"    return {first}",
        *(f"    {one}" if indent else one for one in rest),
    ]


def _bound(part: Unbound, tx: str) -> str:
    """The call that binds a chain."""
    target = f"model.{part.of}" if isinstance(part.of, str) else "model"
    if isinstance(part.of, (list, tuple)):
        target = "{" + ", ".join(f'"{name}": model.{name}' for name in part.of) + "}"
    autocast = f", autocast={part.autocast}" if part.autocast is not None else ""
    return f"{tx}.bind({target}{autocast}{', zero_redundancy=True' if part.zero_redundancy else ''})"


def _program(body: str, name: str, imports: list[str], ours: list[str]) -> str:
    """A module: what it is, what it imports, of ours and of the user's, and its body."""
    if "norm" in _names(body):
        body = "\n".join([*commented([NORMS]), assigned("norm", tree(NORM)), "", body])
    libraries = [f"import {module}\n" for module in ("re", "torch") if module in _names(body)]
    top = "\n".join([*libraries, "\n".join(ours) + "\n", *(f"{line}\n" for line in _grouped(imports))])
    head = "\n".join(commented([f"The optimization part of {name}: updater = make(model)."]))
    return f"{head}\n{top}\n{body}"


def _names(body: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)}


def _grouped(lines: list[str]) -> list[str]:
    """Imports of the user's modules together, and then what is done with them."""
    imports = [line for line in lines if line.startswith("import ")]
    return ["\n".join(part) for part in (imports, [line for line in lines if line not in imports]) if part]


# what is written once


def _repeated(trees: list[ast.expr]) -> list[tuple[str, ast.expr]]:
    """Long curves and selectors that occur more than once, by names that take their place; the trees are changed."""
    found: list[tuple[str, ast.expr]] = []
    while len(found) < 9:
        everything = [*trees, *(node for _, node in found)]
        counts = Counter(text for one in everything for text, _ in _parts(one))
        texts = [text for text, count in counts.items() if count > 1 and len(text) >= LONG[_kind(text)]]
        if not texts:
            break
        text = max(texts, key=len)
        label = f"{_kind(text)}_{len(found)}"
        node = next(node for one in everything for part, node in _parts(one) if part == text)
        trees[:] = [_Replaced(text, label).visit(one) for one in trees]
        found = [*((name, _Replaced(text, label).visit(one)) for name, one in found), (label, node)]
    # what stands in another is made before it, and the first of a kind has no number
    return _numbered(found[::-1], trees)


def _numbered(found: list[tuple[str, ast.expr]], trees: list[ast.expr]) -> list[tuple[str, ast.expr]]:
    """Names in the order in which they are given; the trees are changed."""
    seen = Counter[str]()
    for i, (old, _) in enumerate(found):
        kind = old.partition("_")[0]
        seen[kind] += 1
        new = kind if seen[kind] == 1 else f"{kind}{seen[kind]}"
        trees[:] = [_Replaced(old, new).visit(one) for one in trees]
        found = [(new if j == i else name, _Replaced(old, new).visit(one)) for j, (name, one) in enumerate(found)]
    return found


def _parts(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """All expressions inside one, as text."""
    for one in ast.walk(node):
        if isinstance(one, (ast.Call, ast.BinOp)):
            yield ast.unparse(one), one


def _kind(text: str) -> str:
    """What a value is called: a schedule "curve", a selector "where"; "" for others."""
    return _kind_of(ast.parse(text, mode="eval").body)


def _kind_of(node: ast.expr) -> str:
    match node:
        case ast.BinOp(left=left, right=right):
            return _kind_of(left) or _kind_of(right)
        case ast.UnaryOp(operand=operand):
            return _kind_of(operand)
        case ast.Call(func=func) if (made := _found(func)) is not None:
            return next((kind for of, kind in KINDS.items() if isinstance(made, type) and issubclass(made, of)), "")
        case ast.Call(func=ast.Attribute(value=owner)):  # a method of a schedule
            return _kind_of(owner)
        case _:
            return "where" if isinstance(_found(node), Selector) else ""


def _found(node: ast.expr) -> Any:
    """What a name with dots means in a program: one of gradchain's; None for any other expression."""
    parts = ast.unparse(node).split(".")
    if parts[0] != "gch" or not all(part.isidentifier() for part in parts):
        return NORM if parts == ["norm"] else None
    found: Any = gch
    for part in parts[1:]:
        found = getattr(found, part, None)
    return found


class _Replaced(ast.NodeTransformer):
    def __init__(self, text: str, name: str) -> None:
        self.text, self.name = text, name

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, (ast.Call, ast.BinOp, ast.Name)) and ast.unparse(node) == self.text:
            return ast.Name(self.name)
        return super().visit(node)
