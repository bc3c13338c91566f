"""Options in, a trained network, a checkpoint and a picture out."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import torch

from gradchain.cli.options import Parser, whole
from gradchain.demo.compare import compare, table
from gradchain.demo.folders import CHECKPOINT, PICTURE, folder_for
from gradchain.demo.picture import draw
from gradchain.demo.progress import progress, stoppable
from gradchain.demo.recipe import MAX_NORM, WINDOW, Settings
from gradchain.demo.training import RefusedError, Training

EXTRAS = {"sklearn": "scikit-learn", "numpy": "numpy", "matplotlib": "matplotlib", "tqdm": "tqdm"}

DESCRIPTION = """\
Train a small network on scikit-learn's digits, on the CPU, with a chain of gradchain: accumulation, clipping, AdamW
with a decay mask, a warm-up and a cosine, and an average of the weights that is evaluated. Takes about ten seconds.

A run may be killed at any moment, and --resume goes on from its last checkpoint: what comes out is the same bit for
bit, as the hash shows that is printed at the end."""

EXAMPLES = """\
examples:
  python -m gradchain.demo                       a new run, in gradchain-demo/run-1
  python -m gradchain.demo --resume              go on with the newest run
  python -m gradchain.demo --compare             the same recipe by hand, beside it"""


def parser() -> Parser:
    """The options."""
    out = Parser(
        prog="python -m gradchain.demo",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    usual = Settings()
    add = out.add_argument
    add("--seed", type=whole(0), default=usual.seed, help=f"of weights, order and dropout (default: {usual.seed})")
    add("--epochs", type=whole(1, 10_000), default=usual.epochs, help=f"passes over the data (default: {usual.epochs})")
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for checkpoint and picture (default: a new gradchain-demo/run-N)",
    )
    add("--checkpoint-every", type=whole(1), default=300, metavar="N", help="in micro-batches (default: 300)")
    add("--resume", action="store_true", help="go on with the run in --out (default: the newest), or begin it")
    add("--compare", action="store_true", help="train beside plain torch, in float64 and float32; writes nothing")
    add("--quiet", action="store_true", help="no progress, only what came out")
    return out


def train(options: argparse.Namespace) -> int:
    """Train to the end or to Ctrl-C, and say what came out."""
    folder = folder_for(options.out, options.resume)
    checkpoint = folder / CHECKPOINT
    run = Training(Settings(options.seed, options.epochs))
    if options.resume and checkpoint.exists():
        run.load(checkpoint)
    introduce(run, checkpoint, options.quiet)
    begin, behind = perf_counter(), run.done
    with stoppable() as stop, progress(run, options.quiet) as show:
        for _ in run.steps():
            show()
            if run.done % options.checkpoint_every == 0 or run.done == run.total or stop.requested:
                run.save(checkpoint)
            if stop.requested and run.done < run.total:
                break
    if run.done < run.total:
        again = ["python", "-m", "gradchain.demo", "--resume", "--out", str(folder), "--seed", str(options.seed)]
        print(f"\nStopped after {run.done} of {run.total} micro-batches, and saved. To go on:")
        print(shlex.join([*again, "--epochs", str(options.epochs)]))
        return 130
    since = f", since micro-batch {behind}" if behind else ""
    conclude(run, folder, f"{perf_counter() - begin:.1f} s{since}")
    return 0


def introduce(run: Training, checkpoint: Path, quiet: bool) -> None:
    """Say what is going to be done."""
    if quiet:
        return
    print("\n".join(["The chain:", *(f"    {link!r}" for _, link in run.updater.chain.named)]))
    print(
        f"{len(run.data.images)} images to train on, {len(run.data.test_images)} to test; seed {run.settings.seed}, "
        f"{run.settings.epochs} epochs, {run.total} micro-batches, {run.updates} updates"
    )
    print(f"Going on from micro-batch {run.done}" if run.done else "From the beginning", f"-> {checkpoint}", flush=True)


def conclude(run: Training, folder: Path, took: str) -> None:
    """Draw the picture, and say what came out."""
    settings, picture = run.settings, folder / PICTURE
    title = f"Digits: {run.accuracy:.1%} of the test images right after {run.updates} updates (seed {settings.seed})"
    per_epoch = run.data.micro_batches
    draw(run.history, picture, title=title, window=WINDOW, per_epoch=per_epoch, bound=MAX_NORM)
    print(f"test accuracy      {run.accuracy:.2%}, with the averaged weights")
    print(f"training took      {took}")
    print(f"weights and state  sha256 {run.digest()}")
    print(f"checkpoint         {(folder / CHECKPOINT).resolve()}")
    print(f"picture            {picture.resolve()}")


def compare_all(options: argparse.Namespace) -> int:
    """Run the recipe both ways in both dtypes. 1 if they do not agree."""
    for name in ("out", "resume"):
        if getattr(options, name):
            raise RefusedError(f"--{name} is for training: --compare writes and reads no files.")
    if not options.quiet:
        print(
            "Every micro-batch is run twice, by the chain and by hand, in turn; this takes about a minute.", flush=True
        )
    agree = True
    for dtype in (torch.float64, torch.float32):
        found = compare(Settings(options.seed, options.epochs), dtype)
        print(table(found), flush=True)
        agree = agree and found.agrees
    print(f"torch {torch.__version__} on the CPU, {torch.get_num_threads()} thread.")
    return 0 if agree else 1


def check_extras() -> None:
    """Refuse where a package of the demo is missing."""
    missing = [package for module, package in EXTRAS.items() if importlib.util.find_spec(module) is None]
    if missing:
        names = " ".join(missing)
        raise RefusedError(
            f"the demo needs {' and '.join(missing)}: {shlex.quote(sys.executable)} -m pip install {names}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit code."""
    reader = parser()
    options = reader.parse_args(arguments)
    torch.set_num_threads(1)  # the network is too small for more, and the order of sums depends on how many there are
    try:
        check_extras()
        return compare_all(options) if options.compare else train(options)
    except RefusedError as refusal:
        reader.error(str(refusal))
    except KeyboardInterrupt:
        print("\nStopped at once; --resume goes on from the last checkpoint.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
