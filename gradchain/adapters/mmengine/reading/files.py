"""Config files of OpenMMLab, read without running them: inheritance, references and statements."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from gradchain.adapters.mmengine.reading.budget import Budget
from gradchain.adapters.mmengine.reading.literals import Imported, Inherited, Literals, Unread, UnreadableError, hooked
from gradchain.adapters.mmengine.reading.spoiling import BASE, function, only_defines, spoil

__all__ = ["read_config", "read_names"]

DELETE = "_delete_"
RESERVED = ("filename", "text", "pretty_text", "env_variables")
# bounded, so that a hostile text is gone through once
VARIABLE = r"""\{\{['"]?\s{0,9}\$(\w{1,200})\s{0,9}:\s{0,9}((?:(?!\{\{)\S){0,500}?)\s{0,9}['"]?\}\}"""
MARK = "\ue000"  # of Unicode's private use: around what a `{{_base_.x}}` becomes


def read_config(path: str | os.PathLike[str], only: Collection[str] | None = None) -> dict[str, Any]:
    r"""Read a config file of OpenMMLab, `.py` or `.json`, as a dict, and run nothing of it.

    Read are literals, `dict()`, `list()` and `tuple()`, names given before, arithmetic of numbers, lists and text,
    f-strings, what is set or deleted in a dict or list, and its update, pop, append and the like; conditions, loops,
    comprehensions and assertions about all these, with `len`, `max`, `range` and others of their kind, and text that is
    split, joined, formatted and the like; functions are left out, and what calls one is not read; `_base_` with
    `_delete_`, `{{_base_.x}}`, `_base_.x`, `{{fileDirname}}` and its kin, `{{$VARIABLE:default}}`, bases of installed
    packages (`mmdet::…`, found and not imported); `with read_base():` with imports of config files. Other imports bring
    names: `type=AdamW` is "AdamW".

    Args:
        path: the file.
        only: the names that matter. The others may say what they like: what is not read is left out, and so is what
            it may have changed. By default everything must be read.

    Raises:
        ValueError: a construct that is not read, with file, line and text; bases with a key in common; a dict over
            something else without `_delete_`; a file that inherits from itself; one that is no regular file, or asks,
            with those it inherits from, for more than any recipe does: a million steps and items, and of letters.
        FileNotFoundError: no such file, or base.

    Equals: `mmengine.Config.fromfile(path).to_dict()` of 0.10.7, where a class is its name without the module and
        `_scope_` is left out.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from gradchain.adapters import mmengine
    >>> with TemporaryDirectory() as folder:
    ...     base, child = Path(folder, "base.py"), Path(folder, "child.py")
    ...     _ = base.write_text("optimizer = dict(type='SGD', lr=0.01, momentum=0.9)")
    ...     _ = child.write_text("_base_ = './base.py'\ngpus = 8\noptimizer = dict(lr=0.01 * gpus)")
    ...     mmengine.read_config(child)
    {'optimizer': {'type': 'SGD', 'lr': 0.08, 'momentum': 0.9}, 'gpus': 8}
    """
    return read_names(path, only)[0]


def read_names(path: str | os.PathLike[str], only: Collection[str] | None = None) -> tuple[dict[str, Any], list[str]]:
    """What `read_config` reads, and the names of the file whose values are not read."""
    try:
        found = _File(Path(os.path.abspath(os.path.expanduser(path))), (), only is None, Budget(path)).read()
        if reserved := [key for key in found if key in RESERVED]:
            raise ValueError(f"mmengine.read_config: {path}: {reserved[0]!r} is reserved by MMEngine. Rename it.")
        unread = {name: value for name, value in found.items() if isinstance(value, Unread)}
        if missed := [value.why for name, value in unread.items() if name in (only or ())]:
            raise UnreadableError(missed[0])
        return {name: _plain(value) for name, value in found.items() if name not in unread}, [*unread]
    except RecursionError:
        raise ValueError(f"mmengine.read_config: {path}: it is too deeply nested.") from None


class _LeaveError(Exception):
    """`break` or `continue`, on its way to its loop."""


class _File:
    """One file, and those that it inherits from."""

    def __init__(self, path: Path, heirs: tuple[Path, ...], strict: bool, budget: Budget) -> None:
        self.path, self.heirs, self.strict, self.budget = path, (*heirs, path), strict, budget
        if path in heirs:
            self.refuse("it inherits from itself.")
        if path.suffix not in (".py", ".json"):
            self.refuse("it must be a .py or .json file.")
        try:
            self.text = budget.text(path)
        except (OSError, UnicodeDecodeError) as error:
            needed = f", which {heirs[-1]} inherits from" if heirs else ""
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(f"mmengine.read_config: {path}{needed}: it cannot be read: {error}.") from error
        self.imported: set[str] = set()

    def refuse(self, sentence: str) -> NoReturn:
        raise ValueError(f"mmengine.read_config: {self.path}: {sentence}")

    def read(self) -> dict[str, Any]:
        """Its names and their values, with what it inherits."""
        if self.path.suffix == ".json":
            try:
                own = json.loads(self._substituted())
            except ValueError as error:
                self.refuse(f"it is no JSON: {error}.")
            if not isinstance(own, dict):
                self.refuse("it must hold one object.")
            base = self._bases(own.pop(BASE, []))
        else:
            tree = self._tree(self.text)
            if any(_is_read_base(node) for node in tree.body):
                if any(_assigns_base(node) for node in tree.body):
                    self.refuse("it must inherit by `_base_` or by `with read_base():`, not by both.")
                return self._run(tree, {})
            tree = self._tree(self._substituted())
            given = [node for node in tree.body if _assigns_base(node)]
            tree.body = [node for node in tree.body if node not in given]
            base = self._bases(self._paths(given[0])) if given else Inherited()
            own = self._run(tree, {BASE: base})
        own.pop("_deprecation_", None)
        self.budget.weigh([own, base])
        own = {name: self._resolved(value, base, name) for name, value in own.items()}
        return {k: v for k, v in self._merged(own, base).items() if not k.startswith("__")}

    def _tree(self, text: str) -> ast.Module:
        try:
            return ast.parse(text, str(self.path))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            self.refuse(f"it is no Python: {error}.")

    # --- text ---------------------------------------------------------------------------------------------------

    def _substituted(self) -> str:
        """The text with what stands in `{{ }}` put in: parts of its path, variables of the environment, references."""
        path = self.path
        parts = {
            "fileDirname": str(path.parent),
            "fileBasename": path.name,
            "fileBasenameNoExtension": path.stem,
            "fileExtname": path.suffix,
        }
        text = self.text
        for name, part in parts.items():
            text = re.sub(r"\{\{\s*" + name + r"\s*\}\}", part.replace("\\", "/").replace("\\", r"\\"), text)
        text = re.sub(VARIABLE, self._variable, text)
        return re.sub(r"\{\{\s*" + BASE + r"\.([\w.]+)\s*\}\}", rf'"{MARK}\1{MARK}"', text)

    def _variable(self, found: re.Match[str]) -> str:
        value = os.environ.get(found[1], found[2])
        return value or self.refuse(f"{found[0]}: the variable is not set, and has no default.")

    def _resolved(self, value: Any, base: Mapping[str, Any], name: str) -> Any:
        try:
            return self._dereferenced(value, base, name)
        except UnreadableError as error:  # it refers to something that is not read, so this is not strict
            return Unread(str(error))

    def _dereferenced(self, value: Any, base: Mapping[str, Any], name: str) -> Any:
        """A value with its `{{_base_.x}}` replaced by what they refer to."""
        if isinstance(value, str) and MARK in value:
            return self._referred(value, base, name)
        if isinstance(value, dict):
            items = {key: self._dereferenced(one, base, name) for key, one in value.items()}
            return Inherited(items) if isinstance(value, Inherited) else items
        return type(value)(self._dereferenced(o, base, name) for o in value) if type(value) in (list, tuple) else value

    def _referred(self, value: str, base: Mapping[str, Any], name: str) -> Any:
        inner = value[1:-1]
        if value != f"{MARK}{inner}{MARK}" or MARK in inner:
            self.refuse(f"{name}: a reference `{{{{_base_.x}}}}` must stand alone. Write `_base_.x`, outside of text.")
        found: Any = base
        for key in inner.split("."):
            if not isinstance(found, dict) or key not in found:
                self.refuse(f"{name}: the bases have no {inner!r}.")
            found = found[key]
        if isinstance(found, Unread):
            raise UnreadableError(found.why)
        return hooked(found)

    # --- inheritance --------------------------------------------------------------------------------------------

    def _paths(self, node: ast.stmt) -> Any:
        """What `_base_ = …` says, which must be read whatever else may stay unread."""
        assert isinstance(node, ast.Assign)
        try:
            return Literals(str(self.path), {}, self.budget).value(node.value)
        except UnreadableError as error:
            raise ValueError(str(error)) from None

    def _bases(self, given: Any) -> Inherited:
        """What the bases say together; none of them may say the same name."""
        out = Inherited()
        for one in given if isinstance(given, list) else [given]:
            if not isinstance(one, str):
                self.refuse(f"{BASE} must be a path or a list of them, got {one!r}.")
            base = _File(self._located(one), self.heirs, self.strict, self.budget).read()
            if twice := sorted(out.keys() & base.keys()):
                self.refuse(f"its bases must have no name in common, got {', '.join(twice)}.")
            out.update({name: hooked(value) for name, value in base.items()})
        return out

    def _located(self, name: str) -> Path:
        package, marked, rest = name.partition("::")
        if not marked:
            return Path(os.path.normpath(self.path.parent / name))
        return self._package(package) / ".mim" / "configs" / rest

    def _package(self, name: str) -> Path:
        spec = find_spec(name) if name.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            self.refuse(f"it inherits from the package {name!r}, which is not installed. Give the file by its path.")
        return Path(next(iter(spec.submodule_search_locations)))

    def _merged(self, own: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
        """What is inherited with one's own over it: dict over dict goes into it, `_delete_` begins anew."""
        out = dict(base)
        for name, value in own.items():
            below = out.get(name)
            if not isinstance(value, dict) or name not in out or value.get(DELETE):
                kept = value if name not in out or not isinstance(value, dict) else _without(value, DELETE)
                out[name] = hooked(kept)
            elif isinstance(below, dict):
                out[name] = Inherited(self._merged(_without(value, DELETE), below))
            elif not isinstance(below, Unread):
                self.refuse(f"{name}: a dict over {below!r} must have `_delete_=True`.")
        return out

    # --- statements ---------------------------------------------------------------------------------------------

    def _run(self, tree: ast.Module, names: dict[str, Any]) -> dict[str, Any]:
        """The names that its statements give, without those that are imported."""
        literals = Literals(str(self.path), names, self.budget)
        hidden = {*names}
        self._block(tree.body, literals)
        hidden |= self.imported
        return {n: v for n, v in literals.names.items() if n not in hidden and not n.startswith("__")}

    def _block(self, nodes: Sequence[ast.stmt], literals: Literals) -> None:
        """Statements, one after the other; one that is not read leaves what it may have changed unread."""
        for node in nodes:
            self.budget.charge(1)
            try:
                if _is_read_base(node):
                    self._import_bases(node, literals)
                else:
                    self._execute(node, literals)
            except UnreadableError as error:
                if self.strict:
                    raise
                spoil(node, literals.names, str(error))

    def _execute(self, node: ast.stmt, literals: Literals) -> None:
        match node:
            case ast.Pass() | ast.Expr(value=ast.Constant()):
                pass
            case ast.If():
                self._block(node.body if literals.truth(node.test) else node.orelse, literals)
            case ast.For() | ast.While():
                self._loop(node, literals)
            case ast.FunctionDef() if only_defines(node):  # MMEngine leaves functions out; a call of one is not read
                why = f"{self.path}, line {node.lineno}: {node.name!r} is a function, and nothing of a config is run."
                literals.names[node.name] = function(node, f"mmengine.read_config: {why} Write its value.")
            case ast.Assert(test=test):
                if not literals.truth(test):
                    self.refuse(f"line {node.lineno}: `{ast.unparse(test)[:80]}` is asserted, and is not so.")
            case ast.Break() | ast.Continue():
                raise _LeaveError(node)
            case ast.Import() | ast.ImportFrom():
                self._import(node, literals)
            case ast.Assign(targets=targets, value=value):
                found = literals.value(value)
                for target in targets:
                    self._assign(target, found, literals)
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                self._assign(target, literals.value(value), literals)
            case ast.AnnAssign(target=ast.Name()):
                pass
            case ast.AugAssign(target=target, op=op, value=value):
                # `x += y` on a list, and `x |= y` on a dict, change it itself, for all who have it.
                before = literals.value(target)
                after = literals.value(ast.copy_location(ast.BinOp(target, op, value), node))
                if isinstance(before, list):
                    before[:] = after
                    after = before
                elif isinstance(before, dict):
                    before.update(after)
                    after = before
                self._assign(target, after, literals)
            case ast.Expr(value=ast.Call(func=ast.Attribute()) as call):
                literals.value(call)
            case ast.Delete(targets=targets):
                for target in targets:
                    self._delete(target, literals)
            case _:
                literals.refuse(node)

    def _loop(self, node: ast.For | ast.While, literals: Literals) -> None:
        """A loop over what is known, or as long as it is so; its variable stays, as in Python."""
        while_: Iterator[Any] = iter(lambda: literals.truth(node.test), False)  # type: ignore[union-attr]  # no For
        for one in literals.items(node.iter) if isinstance(node, ast.For) else while_:
            if isinstance(node, ast.For):
                self._assign(node.target, one, literals)
            try:
                self._block(node.body, literals)
            except _LeaveError as left:
                if isinstance(left.args[0], ast.Break):
                    return
        self._block(node.orelse, literals)

    def _import(self, node: ast.Import | ast.ImportFrom, literals: Literals) -> None:
        for one in node.names:
            if one.name == "*":
                self.refuse(f"line {node.lineno}: `{ast.unparse(node)}`: what it brings is not known. Name it.")
            module = isinstance(node, ast.Import)
            name = one.asname or (one.name.partition(".")[0] if module else one.name)
            literals.names[name] = Imported(one.name.rpartition(".")[2])
            self.imported.add(name)

    def _import_bases(self, node: ast.stmt, literals: Literals) -> None:
        """`with read_base(): from .file import names`."""
        assert isinstance(node, ast.With)
        for inner in node.body:
            if not isinstance(inner, ast.ImportFrom) or inner.module is None:
                self.refuse(f"line {inner.lineno}: `with read_base():` must hold `from .file import …` only.")
            base = _File(self._module(inner), self.heirs, self.strict, self.budget)
            found = base.read()
            for one in inner.names:
                if one.name != "*" and one.name not in found:
                    self.refuse(f"line {inner.lineno}: {base.path} has no {one.name!r}.")
                brought = found if one.name == "*" else {one.asname or one.name: found[one.name]}
                literals.names |= {name: hooked(value) for name, value in brought.items()}
                self.imported -= brought.keys()

    def _module(self, node: ast.ImportFrom) -> Path:
        assert node.module is not None
        parts = node.module.split(".")
        if node.level:
            folder = self.path.parent.joinpath(*[".."] * (node.level - 1))
        else:
            folder, parts = self._package(parts[0]), parts[1:]
        return Path(os.path.normpath(folder.joinpath(*parts))).with_suffix(".py")

    def _assign(self, target: ast.expr, value: Any, literals: Literals) -> None:
        self.budget.weigh(value)

        def put(part: ast.expr, one: Any) -> None:
            def how(owner: Any, key: Any) -> None:
                owner[key] = hooked(one) if isinstance(owner, Inherited) else one

            self._change(part, literals, how)

        literals.bind(target, value, put)
        names = (node for node in ast.walk(target) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
        self.imported -= {node.id for node in names}

    def _delete(self, target: ast.expr, literals: Literals) -> None:
        if not isinstance(target, ast.Name):
            self._change(target, literals, lambda owner, key: owner.__delitem__(key))
        elif literals.names.pop(target.id, None) is None:
            literals.refuse(target, "the name has no value here.")

    def _change(self, target: ast.expr, literals: Literals, how: Callable[[Any, Any], None]) -> None:
        """Set or delete what `owner.key` or `owner[key]` means."""
        if not isinstance(target, (ast.Attribute, ast.Subscript)):
            literals.refuse(target)
        owner = literals.value(target.value)
        self.budget.weigh(owner)
        if not isinstance(owner, (Inherited if isinstance(target, ast.Attribute) else (dict, list))):
            literals.refuse(target, "there is nothing that can be changed so.")
        try:
            how(owner, target.attr if isinstance(target, ast.Attribute) else literals.index(target.slice))
        except (LookupError, TypeError, ValueError) as error:
            literals.refuse(target, str(error) if isinstance(error, UnreadableError) else f"fails with {error!r}.")


def _assigns_base(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == BASE


def _is_read_base(node: ast.stmt) -> bool:
    return isinstance(node, ast.With) and [ast.unparse(item) for item in node.items] == ["read_base()"]


def _without(items: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in items.items() if name != key}


def _plain(value: Any) -> Any:
    """A value without our own kinds."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    return value.name if isinstance(value, Imported) else value
