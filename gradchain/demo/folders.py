"""Where a run writes: a new folder, or the one that it goes on in."""

from __future__ import annotations

from pathlib import Path

from gradchain.demo.training import RefusedError

HOME = Path("gradchain-demo")  # under the working directory; runs are numbered in it
CHECKPOINT, PICTURE = "checkpoint.pt", "training.png"


def folder_for(out: Path | None, resume: bool) -> Path:
    """The folder of a run, made if it is not there.

    Args:
        out: the folder asked for, or None: then a new one, or with `resume` the newest.
        resume: whether a checkpoint there is gone on with.

    Raises:
        RefusedError: there is a checkpoint and it was not asked to go on with it, or the folder cannot be made.
    """
    try:
        if out is None:
            return _newest() if resume else _new()
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefusedError(f"--out: cannot make the folder {out or HOME}: {error.strerror}.") from error
    if not resume and (out / CHECKPOINT).exists():
        raise RefusedError(f"{out} has a run already: add --resume to go on with it, or choose another --out.")
    return out


def _numbers() -> list[int]:
    names = [path.name.removeprefix("run-") for path in HOME.glob("run-*")]
    return sorted(int(name) for name in names if name.isdecimal())


def _newest() -> Path:
    numbers = _numbers()
    return HOME / f"run-{numbers[-1]}" if numbers else _new()


def _new() -> Path:
    number = max(_numbers(), default=0)
    HOME.mkdir(exist_ok=True)
    while True:
        number += 1
        try:
            (HOME / f"run-{number}").mkdir()
        except FileExistsError:  # another run was faster
            continue
        return HOME / f"run-{number}"
