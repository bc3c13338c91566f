"""Disks that are slow, with a signal while they write, and files of more than three gigabytes."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from disk import Disk, Op
from fault_runs import RECIPES, STEPS, Run, straight
from killing import Board, Child, in_child
from torch import nn
from what_goes_wrong import Fault, Kind

import gradchain as gch

RECIPE = RECIPES["window in .grad"]
SLEEP = 0.002  # seconds of each write; a save makes some dozens
READY = 0


def _slow(op: Op) -> None:
    if op.kind in ("write", "fsync"):
        time.sleep(SLEEP)


def foreground(n: int, folder: Path) -> Iterator[str]:
    """Each write and fsync sleeps, and `save` waits for them."""
    path, run = folder / "run.pt", Run(RECIPE)
    for _ in range(n):
        run.step()
        with Disk(folder, _slow):
            run.save(path)
        digest, again = run.digest(), Run(RECIPE)
        again.load(path)  # and with it the random numbers of this process
        yield "" if again.digest() == digest else "the file is not that of the run"
        if run.done == STEPS:
            run = Run(RECIPE)


def background(n: int, folder: Path) -> Iterator[str]:
    """A Checkpointer that writes beside the run: at most one file is written and one waits, and it is said once."""
    for i in range(n):
        run, asked, behind = Run(RECIPE), 0, []
        there = folder / str(i)
        with Disk(there, _slow) as disk, warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            keeper = gch.Checkpointer(there, updater=run.updater, background=True, signals=())
            while run.done < STEPS:
                run.step()
                keeper.save(done=run.done)
                asked += 1
                written = sum(op.kind == "rename" and not op.other.endswith(".json") for op in list(disk.ops))
                behind.append(asked - written)
            keeper.close()
        digest, again = run.digest(), Run(RECIPE)
        second = gch.Checkpointer(there, updater=again.updater, signals=())
        again.done = (second.resume() or {"done": 0})["done"]
        second.close()
        said = sum("files are due faster than they are written" in str(w.message) for w in told)
        if max(behind) > 2 or max(behind) < 2 or said != 1:
            yield f"{max(behind)} files were behind, and it was said {said} times"
        else:
            yield "" if again.digest() == digest else "the newest file is not the run"


def signalled(n: int, folder: Path) -> Iterator[str]:
    """SIGTERM at some moment, most often inside a write: the process saves and ends, and another goes on."""
    expected, rng = straight(RECIPE), random.Random(0)
    for i in range(n):
        board, there = Board(1), folder / str(i)
        child = Child(lambda board=board, there=there, i=i: _looked_after(there, bool(i % 2), board))
        while not board[READY] and not child.wait(0.005):
            pass
        child.wait(rng.random() * 0.4)
        if not child.ended:
            os.kill(child.pid, signal.SIGTERM)
        child.wait()
        by_signal = os.WIFSIGNALED(child.status) and os.WTERMSIG(child.status) == signal.SIGTERM
        if not by_signal and child.said != expected:
            yield f"it ended with {child.said!r}"
            continue
        yield "" if in_child(lambda there=there: _looked_after(there, False)) == expected else "it came to another end"


def _looked_after(folder: Path, background: bool, board: Board | None = None) -> str:
    run = Run(RECIPE)
    with Disk(folder, _slow if board else lambda op: None), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a save had to wait for the disk
        with gch.Checkpointer(folder, updater=run.updater, every=1, keep=2, background=background) as keeper:
            run.done = (keeper.resume() or {"done": 0})["done"]
            while run.done < STEPS:
                if board:
                    board[READY] = 1
                run.step()
                keeper.step(done=run.done)
    return run.digest()


# large


class Large(nn.Module):
    """One weight of 2.2 GB, in one tensor: its bytes are more than a signed 32-bit length has."""

    SIZE = 550_000_000

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(self.SIZE, dtype=torch.float32).remainder_(65_521))


def large(n: int, folder: Path) -> Iterator[str]:
    """Weights of 2.2 GB and a momentum of 1.1: saved, lost and loaded; three trials of one file."""
    for _ in range(n // 3):
        yield from in_child(lambda: "\n".join(_large(folder / "run.pt")), seconds=3600).split("\n")


def _large(path: Path) -> list[str]:
    model = Large()
    chain = gch.chain(gch.trace(0.9, accumulator_dtype=torch.bfloat16), gch.scale(-0.1))
    updater = chain.bind(model)
    updater.step({"weight": torch.full((model.SIZE,), 0.5)})
    before, state = _bits(model.weight), 2 * model.SIZE
    saving = _peak(lambda: updater.save(path))
    size = path.stat().st_size
    with torch.no_grad():
        model.weight.zero_()
    updater.reset()
    loading = _peak(lambda: updater.load(path))
    same = _bits(model.weight) == before and float(updater._bound.state.links["trace"].trace["weight"][-1]) == 0.5
    path.unlink()
    bounds = [int(1.1 * bound) for bound in (state, size + state)]
    return [
        ("" if same else "it is not what was saved") if size > 3 << 30 else f"the file has {size} bytes",
        "" if saving <= bounds[0] else f"saving took {saving} bytes more, above {bounds[0]}",
        "" if loading <= bounds[1] else f"loading took {loading} bytes more, above {bounds[1]}",
    ]


def _bits(tensor: torch.Tensor) -> str:
    return hashlib.blake2b(memoryview(tensor.detach().numpy()).cast("B"), digest_size=16).hexdigest()


def _peak(act: Callable[[], object]) -> int:
    """How many bytes more this process has in memory at most, while it does this."""
    Path("/proc/self/clear_refs").write_text("5")  # the mark of the highest begins anew
    before = _status("VmRSS")
    act()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10


KIND = Kind(
    "A slow disk and a large file",
    f"Each write and fsync below the folder sleeps for {SLEEP * 1000:.0f} ms. Large is a model of one weight of 2.2 GB "
    "with a momentum of 1.1 GB. Lost is a file that is not the run, more files behind than promised, a run that goes "
    "on to another end, or more memory.",
    (
        Fault("foreground", "each write is slow, and `save` is called", "it waits, and the file is whole",
              foreground, 4, 30),
        Fault("background", "each write is slow, and a Checkpointer writes in the background",
              "one file is being written and one waits; then the run waits, which is said once; the newest file is "
              "the run at its end", background, 1, 8),
        Fault("signalled", "SIGTERM while a Checkpointer writes slowly, in the foreground or the background",
              "it saves and ends by the signal, and the run that goes on ends bit for bit the same", signalled, 3, 24),
        Fault("large", "a file of 3.3 GB",
              "it loads bit for bit; `save` takes the memory of the state once more, `load` that of the file and the "
              "state", large, 0, 3),
    ),
    alone=True,
)  # fmt: skip
