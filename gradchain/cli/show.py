"""`python -m gradchain show`: what lies in a file as a chain in words, and as a picture of its hyperparameters."""

from __future__ import annotations

import ast
import inspect
import os
import stat
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradchain as gch
from gradchain.cli.code import program
from gradchain.cli.recipe import chains, read
from gradchain.cli.run_log import run_log
from gradchain.see import saved
from gradchain.see.curves import drawn
from gradchain.see.lines import Clocks
from gradchain.see.run import Run
from gradchain.see.subjects import Subject, subjects_of
from gradchain.see.told import told

__all__ = ["show"]

OWNER = "show"
OF_CONFIGS = {"_base_", "lr_config", "optim_wrapper", "optimizer_config", "param_scheduler", "train_cfg"}
MOST_BYTES = 50_000_000  # of a program, or of JSON
PICTURES = (".png", ".svg", ".pdf")
LOOKED_FOR = "a function chain(), a chain or an updater"


def show(
    path: str,
    *,
    name: str | None = None,
    epochs: int | None = None,
    iters: int | None = None,
    epoch_length: int | None = None,
    batch_size: int | None = None,
    at: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    save: str | None = None,
) -> str:
    """Read a file, and say what chain is in it; with `save`, draw it too.

    A checkpoint and a chain as JSON are read, and nothing in them is run; so is an OpenMMLab config. A file of JSON
    lines is the log of a run, whose numbers are told and drawn. Any other Python
    file is the user's own program: it is run, as a module that is imported, under the name of the file.

    Args:
        path: the file.
        name: what to look at in a program, where it has several chains.
        epochs: the length of the run, with `epoch_length`; None: what a config says, else what schedules say.
        iters: the length of the run in micro-batches, in place of it.
        epoch_length: micro-batches per epoch.
        batch_size: over all ranks, where a config's auto_scale_lr is enabled.
        at: the updates of the table.
        names: the hyperparameters to draw, with `save`.
        save: the picture's file, `.png`, `.svg` or `.pdf`.

    Raises: ValueError, TypeError, KeyError, LookupError, OSError, ModuleNotFoundError: in a sentence.
    """
    if save is not None and Path(save).suffix not in PICTURES:
        raise ValueError(f"{OWNER}: --save must name a .png, .svg or .pdf file, got {save!r}.")
    if names is not None and save is None:
        raise ValueError(f"{OWNER}: --names must come with --save, for it says what is drawn.")
    if Path(path).suffix == ".jsonl":
        _size(path)
        asked: dict[str, object] = {"name": name, "epochs": epochs, "iters": iters, "epoch_length": epoch_length}
        asked |= {"batch_size": batch_size, "at": at, "names": names}
        return run_log(OWNER, path, asked, save, os.path.basename(path))
    if epochs is not None and iters is not None:
        raise ValueError(f"{OWNER}: one of --epochs and --iters must be given, got both.")
    if epochs is not None and epoch_length is None:
        raise ValueError(f"{OWNER}: --epoch-length must be given with --epochs: the micro-batches of an epoch.")
    subjects, own, remarks = _found(path, name, epoch_length, batch_size)
    micro = iters if epochs is None else epochs * (epoch_length or 1)
    updates = None if (micro or own) is None else _updates(subjects, micro or own or 1)
    try:
        run = Run(OWNER, subjects, updates, {}, max([99, *(at or ())]) + 1, at or (), epoch_length)
    except (ArithmeticError, AttributeError, RuntimeError) as error:  # those of others come in a sentence
        raise ValueError(f"{OWNER}: a schedule raised {type(error).__name__}: {error}.") from error
    except LookupError as error:
        if epoch_length is None and "'epoch' goes" in str(error):
            raise ValueError(f"{OWNER}: --epoch-length must be given, for the chain reads the clock 'epoch'.") from None
        raise
    text = "\n\n".join([told(subjects, run, at, program), *(["\n".join(["remarks:", *remarks])] if remarks else [])])
    if save is not None:
        _save(drawn(run, names, title=os.path.basename(path)), save)
        text += f"\n\nthe picture is in {save}"
    return text


def _updates(subjects: Sequence[Subject], micro: int) -> int:
    """How many updates so many micro-batches make; a window that is not full at the end is one."""
    found = (Clocks(OWNER, subject.chain, {}).update_at("micro", micro - 1, micro) for subject in subjects)
    return max(micro if update is None else update + 1 for update in found)


def _save(figure: Any, path: str) -> None:
    try:
        figure.savefig(path)
    except OSError as error:
        raise OSError(f"{OWNER}: {path!r} cannot be written: {error.strerror or error}.") from None


# what lies in a file

Found = tuple[list[Subject], int | None, list[str]]
"""The chains, how long their run is in micro-batches where the file says it, and remarks."""


def _found(path: str, name: str | None, epoch_length: int | None, batch_size: int | None) -> Found:
    size = _size(path)
    if Path(path).suffix not in (".py", ".json"):
        return saved.from_checkpoint(OWNER, path), None, []
    if size > MOST_BYTES:
        raise ValueError(f"{OWNER}: {path!r} must have at most {MOST_BYTES:,} bytes, got {size:,}.")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{OWNER}: {path!r} must be text in UTF-8.") from None
    if Path(path).suffix == ".json":
        subjects = saved.from_json(OWNER, text)
        return _of_config(path, epoch_length, batch_size) if subjects is None else (subjects, None, [])
    kind = _kind(path, text)
    if kind == "config":
        return _of_config(path, epoch_length, batch_size)
    if kind == "program":
        return subjects_of(OWNER, _picked(path, _ran(path, text), name)), None, []
    raise ValueError(
        f"{OWNER}: {path!r} must have {LOOKED_FOR}, or be an OpenMMLab config. It was not run, for it does not import "
        "gradchain."
    )


def _size(path: str) -> int:
    """The bytes of a regular file. ValueError for anything else: a FIFO would be waited for."""
    if "\0" in path:
        raise ValueError(f"{OWNER}: the file must be the name of one, got {path!r}.")
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{OWNER}: there is no file {path!r}.") from None
    except OSError as error:
        raise OSError(f"{OWNER}: {path!r} cannot be read: {error.strerror or error}.") from None
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{OWNER}: {path!r} must be a regular file.")
    return found.st_size


def _kind(path: str, text: str) -> str:
    """Whether a Python file is a "config", which is never run, a "program", or neither, ""."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{OWNER}: {path!r} must be Python: {str(error) or 'it is too deeply nested'}.") from None
    roots = {root.partition(".")[0] for node in ast.walk(tree) for root in _imported(node)}
    if "gradchain" in roots:
        return "program"
    stored = {target.id for node in tree.body for target in _stored(node) if isinstance(target, ast.Name)}
    inherits = any(isinstance(node, ast.With) and "read_base" in ast.unparse(node.items[0]) for node in tree.body)
    return "config" if inherits or stored & OF_CONFIGS or "optimizer" in stored else ""


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield node.module or ""


def _stored(node: ast.stmt) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.AnnAssign) else []


def _of_config(path: str, epoch_length: int | None, batch_size: int | None) -> Found:
    """The optimizers of an OpenMMLab config; what is only likely to be a slip is a remark."""
    try:
        config, _, builder = read(path, epoch_length, batch_size, strict=False)
        parts, remarks = chains(builder, config)
    except ValueError as error:
        raise ValueError(str(error).replace("convert:", f"{OWNER}:", 1)) from None
    name, number = builder.length
    micro = number * builder.epoch_length if name == "max_epochs" else number
    return [Subject(part.key or "", part.chain) for part in parts], micro, remarks


# a program


def _ran(path: str, text: str) -> types.ModuleType:
    """The module that a file is, once it has run. ValueError for whatever it raises."""
    module = types.ModuleType(Path(path).stem)
    module.__file__ = path
    with _as_imported(module, path):
        try:
            exec(compile(text, path, "exec", dont_inherit=True), vars(module))
        except (Exception, SystemExit) as error:
            raise ValueError(f"{OWNER}: {path!r} raised {type(error).__name__}: {error}{_line(error, path)}") from error
    return module


@contextmanager
def _as_imported(module: types.ModuleType, path: str) -> Iterator[None]:
    """Modules beside the file are found, annotations of links in it are too, and it sees no arguments of ours."""
    before = sys.path[:], sys.argv[:], sys.modules.get(module.__name__)
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    sys.argv[:] = [path]
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        sys.path[:], sys.argv[:] = before[0], before[1]
        if before[2] is None:
            sys.modules.pop(module.__name__, None)
        else:
            sys.modules[module.__name__] = before[2]


def _line(error: BaseException, path: str) -> str:
    """Where in the file that was, if it was there."""
    trace, line = error.__traceback__, None
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == path else line
        trace = trace.tb_next
    return "." if line is None else f", in line {line}."


def _picked(path: str, module: types.ModuleType, name: str | None) -> Any:
    """The chain or updater of a program: the one that is named, else `updater` or `chain`, else the only one."""
    kinds = (gch.chain, gch.Updater, gch.Group)
    there = {key: value for key, value in vars(module).items() if isinstance(value, kinds)}
    there |= {key: vars(module)[key] for key in ("chain", "updater") if _is_own(vars(module).get(key), module)}
    if name is not None:
        if name not in vars(module):
            raise KeyError(f"{OWNER}: {path!r} has no {name!r}. It has: {', '.join(there) or 'no chain'}.")
        return _made(path, module, name)
    chosen = next((key for key in ("updater", "chain") if key in there), None)
    if chosen is None and len({id(value) for value in there.values()}) > 1:
        raise KeyError(f"{OWNER}: {path!r} has several chains: name one with --name: {', '.join(there)}.")
    if not there:
        raise ValueError(f"{OWNER}: {path!r} must have {LOOKED_FOR}, got none of them.")
    return _made(path, module, chosen or next(iter(there)))


def _is_own(value: Any, module: types.ModuleType) -> bool:
    """Whether it is a function of the program, and not gradchain's own class of that name."""
    return inspect.isfunction(value) and value.__module__ == module.__name__


def _made(path: str, module: types.ModuleType, name: str) -> Any:
    """What a name is, or what its function gives."""
    value = vars(module)[name]
    if not inspect.isfunction(value):
        return value
    with _as_imported(module, path):
        try:
            return value()
        except (Exception, SystemExit) as error:
            said = f"{type(error).__name__}: {error}{_line(error, path)}"
            raise ValueError(f"{OWNER}: {name}() of {path!r} raised {said}") from error
