"""The commands, `gradchain` or `python -m gradchain`: `convert` writes an OpenMMLab config as code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gradchain._version import __version__
from gradchain.cli.options import Parser, whole

CONVERT = """\
Print the gradchain code that replaces the optimization part of an OpenMMLab config file, in the format of MMEngine or
of mmcv 1.x, and, as comments under it, what each key became, what is not read and what looks like a slip. Nothing of
the file is run, and no OpenMMLab package is needed."""


def parser() -> Parser:
    """The commands and their options."""
    name = "gradchain" if Path(sys.argv[0]).stem == "gradchain" else "python -m gradchain"
    out = Parser(prog=name, description="Optimizer chains for PyTorch.", allow_abbrev=False)
    out.add_argument("--version", action="version", version=f"gradchain {__version__}")
    commands = out.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    one = commands.add_parser(
        "convert",
        help="an OpenMMLab config file as code",
        description=CONVERT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    one.add_argument("config", metavar="CONFIG", help="the config file, .py or .json")
    one.add_argument(
        "--epoch-length", type=whole(1), metavar="N", help="micro-batches per epoch, len(train_dataloader)"
    )
    one.add_argument("--batch-size", type=whole(1), metavar="N", help="of all ranks, where auto_scale_lr is enabled")
    one.add_argument(
        "--strict",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="refuse what MMEngine ignores or fails on later (default); --no-strict says it in a remark",
    )
    one.add_argument(
        "--custom-imports",
        action="store_true",
        help="import the modules that custom_imports names, so that optimizers they register are known",
    )
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 1 and a sentence where a config is refused."""
    options = parser().parse_args(arguments)
    from gradchain.cli.convert import convert  # loads torch, which --help and --version do without

    try:
        found = convert(
            options.config,
            epoch_length=options.epoch_length,
            batch_size=options.batch_size,
            strict=options.strict,
            custom_imports=options.custom_imports,
        )
    except (ValueError, TypeError, KeyError, OSError, NotImplementedError) as refusal:
        print(refusal.args[0] if isinstance(refusal, KeyError) else refusal, file=sys.stderr)
        return 1
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
