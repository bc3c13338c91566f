"""Config files of OpenMMLab, read without running them: inheritance, references and statements."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from gradchain.adapters.mmengine.reading.budget import Budget, RefusedError
from gradchain.adapters.mmengine.reading.literals import Imported, Inherited, Literals, Unread, UnreadableError, hooked
from gradchain.adapters.mmengine.reading.spoiling import BASE, function, spoil

__all__ = ["read_config", "read_names"]

DELETE, DEPRECATION = "_delete_", "_deprecation_"
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
        found = _File(Path(os.path.abspath(os.path.expanduser(path))), (), only is None, Budget(path)).contents()
        if reserved := [key for key in found if key in RESERVED]:
            raise RefusedError(f"mmengine.read_config: {path}: {reserved[0]!r} is reserved by MMEngine. Rename it.")
        unread = {name: value.why for name, value in found.items() if isinstance(value, Unread)}
        if missed := [why for name, why in unread.items() if name in (only or ())]:
            raise UnreadableError(missed[0])
        read = {name: value for name, value in found.items() if name not in unread}
        return _rebuilt(read, lambda one: one.name if isinstance(one, Imported) else one, dict), [*unread]
    except RecursionError:
        raise RefusedError(f"mmengine.read_config: {path}: it is too deeply nested.") from None


class _LeaveError(Exception):
    """`break` or `continue`, on its way to its loop."""


class _File(Literals):
    """One file, and those that it inherits from."""

    def __init__(self, path: Path, heirs: tuple[Path, ...], strict: bool, budget: Budget) -> None:
        super().__init__(path, budget)
        self.path, self.heirs, self.strict = path, (*heirs, path), strict
        self.imported: set[str] = set()
        if path in heirs:
            self.fail("it inherits from itself.")
        if path.suffix not in (".py", ".json"):
            self.fail("it must be a .py or .json file.")
        try:
            self.text = budget.text(path)
        except (OSError, UnicodeDecodeError) as error:
            needed = f", which {heirs[-1]} inherits from" if heirs else ""
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else RefusedError
            raise kind(f"mmengine.read_config: {path}{needed}: it cannot be read: {error}.") from error

    def fail(self, sentence: str) -> NoReturn:
        """Refuse the file, whichever of its names matter."""
        raise RefusedError(f"mmengine.read_config: {self.path}: {sentence}")

    def contents(self) -> dict[str, Any]:
        """Its names and their values, with what it inherits."""
        base = self._of_json() if self.path.suffix == ".json" else self._of_python()
        given = {name for name, value in self.names.items() if not isinstance(value, (Imported, Unread))}
        hidden = {BASE, *(self.imported - given)}
        own = {name: v for name, v in self.names.items() if name not in hidden and not name.startswith("__")}
        self.budget.weigh([own, base])
        return self._merged({name: self._resolved(name, value, base) for name, value in own.items()}, base)

    def _of_json(self) -> Inherited:
        """Set the names that a file of JSON gives; what it inherits."""
        try:
            self.names = json.loads(self._substituted())
        except ValueError as error:
            self.fail(f"it is no JSON: {error}.")
        if not isinstance(self.names, dict):
            self.fail("it must hold one object.")
        self.names.pop(DEPRECATION, None)
        return self._bases(self.names.pop(BASE, []))

    def _of_python(self) -> Inherited:
        """Set the names that the statements of a file give; what it inherits by `_base_`."""
        body, base = self._parsed(self.text), Inherited()
        lazy = any(_is_read_base(node) for node in body)
        if not lazy:
            body = self._parsed(self._substituted())
        if given := [node for node in body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == BASE]:
            if lazy:
                self.fail("it must inherit by `_base_` or by `with read_base():`, not by both.")
            try:
                base = self._bases(self.read(given[0].value))
            except UnreadableError as error:  # it must be read, whatever else may stay unread
                raise RefusedError(str(error)) from None
        self.names[BASE] = base
        try:
            self._block([node for node in body if node not in given])
        except _LeaveError as left:
            self.fail(f"line {left.args[0].lineno}: `{ast.unparse(left.args[0])}` must stand in a loop.")
        if not lazy:
            self.names.pop(DEPRECATION, None)
        return base

    def _parsed(self, text: str) -> list[ast.stmt]:
        try:
            return ast.parse(text, str(self.path)).body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            self.fail(f"it is no Python: {error}.")

    # --- text ---------------------------------------------------------------------------------------------------

    def _substituted(self) -> str:
        """The text with what stands in `{{ }}` put in: parts of its path, variables of the environment, references."""
        parts = {
            "fileDirname": self.path.parent.as_posix(),
            "fileBasename": self.path.name,
            "fileBasenameNoExtension": self.path.stem,
            "fileExtname": self.path.suffix,
        }
        text = re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: parts.get(found[1], found[0]), self.text)
        text = re.sub(VARIABLE, self._variable, text)
        return re.sub(r"\{\{\s*" + BASE + r"\.([\w.]+)\s*\}\}", rf'"{MARK}\1{MARK}"', text)

    def _variable(self, found: re.Match[str]) -> str:
        value = os.environ.get(found[1], found[2])
        return value or self.fail(f"{found[0]}: the variable is not set, and has no default.")

    def _resolved(self, name: str, value: Any, base: Inherited) -> Any:
        """A value with its `{{_base_.x}}` replaced by what they refer to."""

        def referred(one: Any) -> Any:
            if not isinstance(one, str) or MARK not in one:
                return one
            if not (whole := re.fullmatch(f"{MARK}([^{MARK}]*){MARK}", one)):
                how = "must stand alone. Write `_base_.x`, outside of text."
                self.fail(f"{name}: a reference `{{{{_base_.x}}}}` {how}")
            found: Any = base
            for key in whole[1].split("."):
                if not isinstance(found, dict) or key not in found:
                    self.fail(f"{name}: the bases have no {whole[1]!r}.")
                found = found[key]
            if isinstance(found, Unread):
                raise UnreadableError(found.why)
            return hooked(found)

        try:
            return _rebuilt(value, referred)
        except UnreadableError as error:  # something is not read, so this is not strict
            return Unread(str(error))

    # --- inheritance --------------------------------------------------------------------------------------------

    def _bases(self, given: Any) -> Inherited:
        """What the bases say together; none of them may say the same name."""
        out = Inherited()
        for one in given if isinstance(given, list) else [given]:
            if not isinstance(one, str):
                self.fail(f"{BASE} must be a path or a list of them, got {one!r}.")
            package, marked, rest = one.partition("::")
            path = self._package(package) / ".mim/configs" / rest if marked else self.path.parent / one
            found = self._inherited(path)
            if twice := sorted(out.keys() & found.keys()):
                self.fail(f"its bases must have no name in common, got {', '.join(twice)}.")
            out |= found
        return out

    def _inherited(self, path: Path) -> dict[str, Any]:
        """What another file says."""
        base = _File(Path(os.path.normpath(path)), self.heirs, self.strict, self.budget)
        return {name: hooked(value) for name, value in base.contents().items()}

    def _package(self, name: str) -> Path:
        spec = find_spec(name) if name.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            self.fail(f"it inherits from the package {name!r}, which is not installed. Give the file by its path.")
        return Path(next(iter(spec.submodule_search_locations)))

    def _merged(self, own: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
        """What is inherited with one's own over it: dict over dict goes into it, `_delete_` begins anew."""
        out = dict(base)
        for name, value in own.items():
            if name not in out or not isinstance(value, dict):
                out[name] = hooked(value)
                continue
            over, below = {key: one for key, one in value.items() if key != DELETE}, out[name]
            if value.get(DELETE):
                out[name] = hooked(over)
            elif isinstance(below, dict):
                out[name] = Inherited(self._merged(over, below))
            elif not isinstance(below, Unread):
                self.fail(f"{name}: a dict over {below!r} must have `_delete_=True`.")
        return out

    # --- statements ---------------------------------------------------------------------------------------------

    def _block(self, nodes: Sequence[ast.stmt]) -> None:
        """Statements, one after the other; one that is not read leaves what it may have changed unread."""
        for node in nodes:
            try:
                self.read(node, self._execute)
            except UnreadableError as error:
                if self.strict:
                    raise
                self.budget.weigh(self.names)  # all of them are looked through
                spoil(node, self.names, str(error))

    def _execute(self, node: ast.stmt) -> None:
        match node:
            case ast.Pass():
                pass
            case ast.Expr():
                self.read(node.value)
            case ast.If():
                self._block(node.body if self.known(node.test) else node.orelse)
            case ast.For() | ast.While():
                self._loop(node)
            case ast.Break() | ast.Continue():
                raise _LeaveError(node)
            case ast.Assert():
                if not self.known(node.test):
                    self.fail(f"line {node.lineno}: `{ast.unparse(node.test)[:80]}` is asserted, and is not so.")
            case ast.FunctionDef(name=name):  # MMEngine leaves functions out; a call of one is not read
                why = f"line {node.lineno}: {name!r} is a function, and nothing of a config is run. Write its value."
                found = function(node, f"mmengine.read_config: {self.path}, {why}")
                self.names[name] = found or self.refuse(node)
            case ast.Import() | ast.ImportFrom():
                self._import(node)
            case ast.With() if _is_read_base(node):
                self._import_bases(node)
            case ast.Assign(targets=targets):
                found = self.read(node.value)
                for target in targets:
                    self.bind(target, found)
            case ast.AnnAssign(target=target, value=value):
                if value is not None:
                    self.bind(target, self.read(value))
            case ast.AugAssign(target=target):
                # `x += y` on a list, and `x |= y` on a dict, change it itself, for all who have it.
                before = self.read(target)
                after = self.read(ast.copy_location(ast.BinOp(target, node.op, node.value), node))
                if isinstance(before, list):
                    before[:] = after
                elif isinstance(before, dict):
                    before.update(after)
                self.bind(target, before if isinstance(before, (list, dict)) else after)
            case ast.Delete(targets=targets):
                for owner, key in map(self.place, targets):
                    del owner[key]
            case _:
                self.refuse(node)

    def _loop(self, node: ast.For | ast.While) -> None:
        """A loop over what is known, or as long as it is so; its variable stays, as in Python."""
        for _ in self.rounds(node) if isinstance(node, ast.For) else iter(lambda: bool(self.known(node.test)), False):
            try:
                self._block(node.body)
            except _LeaveError as left:
                if isinstance(left.args[0], ast.Break):
                    return
        self._block(node.orelse)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        for one in node.names:
            if one.name == "*":
                self.fail(f"line {node.lineno}: `{ast.unparse(node)}`: what it brings is not known. Name it.")
            path = one.name.split(".")
            name = one.asname or path[0]
            self.names[name] = Imported(path[-1])
            self.imported.add(name)

    def _import_bases(self, node: ast.With) -> None:
        """`with read_base(): from .file import names`."""
        for inner in node.body:
            if not isinstance(inner, ast.ImportFrom) or inner.module is None:
                self.fail(f"line {inner.lineno}: `with read_base():` must hold `from .file import …` only.")
            parts = inner.module.split(".")
            folder = self.path.parents[inner.level - 1] if inner.level else self._package(parts.pop(0))
            path = folder.joinpath(*parts).with_suffix(".py")
            found = self._inherited(path)
            for one in inner.names:
                if one.name != "*" and one.name not in found:
                    self.fail(f"line {inner.lineno}: {path} has no {one.name!r}.")
                self.names |= found if one.name == "*" else {one.asname or one.name: found[one.name]}


def _is_read_base(node: ast.stmt) -> bool:
    return isinstance(node, ast.With) and [ast.unparse(item) for item in node.items] == ["read_base()"]


def _rebuilt(value: Any, leaf: Callable[[Any], Any], kind: type[dict[Any, Any]] | None = None) -> Any:
    """A value of new dicts, of one kind or of their own, and new lists, with something else for all that is neither."""
    if isinstance(value, dict):
        return (kind or type(value))({key: _rebuilt(one, leaf, kind) for key, one in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(_rebuilt(one, leaf, kind) for one in value)
    return leaf(value)
