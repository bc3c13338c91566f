"""The commands, `gradchain` or `python -m gradchain`: `convert` writes a config as code, `show` what is in a file."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradchain._version import __version__
from gradchain.cli.options import Parser, whole, wholes, words

CONVERT = """\
Print the gradchain code that replaces the optimization part of an OpenMMLab config file, in the format of MMEngine or
of mmcv 1.x, and the loop around your own forward, where the file has one; and, as comments under it, what each key
became, what is not read and what looks like a slip. Nothing of the file is run, and no OpenMMLab package is needed."""

SHOW = """\
Print the chain in a file: its links, its hyperparameters at some updates, the size of its state. The file is a Python
program with a function chain(), a chain or an updater, which is run; or a checkpoint, a chain as JSON, or an OpenMMLab
config, of which nothing is run and which need no model. Of the log of a run, JSON lines, print the
numbers; --save draws it."""


# some of MMEngine's constructors assert, and are read as they are
REFUSALS = (ValueError, TypeError, OSError, NotImplementedError, AssertionError)


def parser() -> Parser:
    """The commands and their options."""
    name = "gradchain" if Path(sys.argv[0]).stem == "gradchain" else "python -m gradchain"
    out = Parser(prog=name, description="Optimizer chains for PyTorch.", allow_abbrev=False)
    out.add_argument("--version", action="version", version=f"gradchain {__version__}")
    commands = out.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    _add_convert(commands)
    _add_show(commands)
    return out


def _command(commands: Any, name: str, line: str, page: str) -> Any:
    """A command that has a line in the list of them, and a page of its own."""
    lines = argparse.RawDescriptionHelpFormatter
    return commands.add_parser(name, help=line, description=page, formatter_class=lines, allow_abbrev=False)


def _add_convert(commands: Any) -> None:
    one = _command(commands, "convert", "an OpenMMLab config file as code", CONVERT)
    one.add_argument("config", metavar="CONFIG", help="the config file, .py or .json")
    one.add_argument(
        "--epoch-length", type=whole(1), metavar="N", help="micro-batches per epoch, len(train_dataloader)"
    )
    one.add_argument("--batch-size", type=whole(1), metavar="N", help="of all ranks, where auto_scale_lr is enabled")
    one.add_argument(
        "--ranks", type=whole(1), metavar="N", help="processes, where a constructor scales by them: YOLOv5's"
    )
    one.add_argument(
        "--strict",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="refuse what MMEngine ignores or fails on later (default); --no-strict says it in a remark",
    )
    one.add_argument(
        "--custom-imports",
        action="store_true",
        help="import the modules that custom_imports names, so that what they register is known",
    )


def _add_show(commands: Any) -> None:
    one = _command(commands, "show", "the chain in a file, in words and as a picture", SHOW)
    add = one.add_argument
    add(
        "file",
        metavar="FILE",
        help="a program or config, .py; a chain or config, .json; a log, .jsonl; else a checkpoint",
    )
    add("--name", metavar="NAME", help="which chain of a program; by default updater, chain, or the only one")
    add("--epochs", type=whole(1), metavar="N", help="the length of the run, with --epoch-length")
    add("--iters", type=whole(1), metavar="N", help="the length of the run in micro-batches, in place of --epochs")
    add("--epoch-length", type=whole(1), metavar="N", help="micro-batches per epoch, len(train_dataloader)")
    add("--batch-size", type=whole(1), metavar="N", help="of all ranks, where a config has auto_scale_lr enabled")
    add("--at", type=wholes(0), metavar="N,N", help="the updates of the table, from 0, with commas between them")
    add("--names", type=words, metavar="NAME,NAME", help="what --save draws: hyperparameters by the ends of addresses")
    add("--save", metavar="PICTURE", help="draw the hyperparameters too, into a .png, .svg or .pdf file")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: with a sentence 1 where `convert` refuses, 2 where `show` does."""
    options = parser().parse_args(arguments)
    if options.command == "show":
        return _show(options)
    from gradchain.cli.convert import convert  # loads torch, which --help and --version do without

    try:
        found = convert(
            options.config,
            epoch_length=options.epoch_length,
            batch_size=options.batch_size,
            strict=options.strict,
            custom_imports=options.custom_imports,
            ranks=options.ranks,
        )
    except (*REFUSALS, KeyError) as refusal:
        print(refusal.args[0] if isinstance(refusal, KeyError) else refusal, file=sys.stderr)
        return 1
    _say(str(found))
    return 0


def _say(text: object) -> None:
    """To the standard output, whose reader may have gone: `| head`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what the interpreter flushes as it exits


def _show(options: argparse.Namespace) -> int:
    from gradchain.cli.show import show  # loads torch

    given = {name: value for name, value in vars(options).items() if name not in ("command", "file")}
    try:
        found = show(options.file, **given)
    except (*REFUSALS, LookupError, ImportError) as refusal:
        said = refusal.args[0] if isinstance(refusal, KeyError) else refusal
        print(" ".join(str(said).split()), file=sys.stderr)
        return 2
    _say(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
