"""The power goes: what a save leaves on the disk when only what was synced is certain to be there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from fault_runs import RECIPES, Run
from power import cut
from what_goes_wrong import Fault, Kind

RECIPE = RECIPES["window in .grad"]
SAVES = 3


def _loaded(run: Run, path: Path) -> int:
    """The step that a file brings back, 0 where there is no file."""
    run.done = 0
    if path.exists():
        run.load(path)
    return run.done


def files(n: int, folder: Path, name: str = "run.pt") -> Iterator[str]:
    """`updater.save`, to one name: what is there loads, and is of the last save that returned or the one under way."""
    again = Run(RECIPE)

    def saves(there: Path, returned: Callable[[int], None]) -> None:
        run = Run(RECIPE)
        for _ in range(SAVES):
            run.step()
            run.save(there / name)
            returned(run.done)

    return cut(n, folder, saves, lambda image: _loaded(again, image / name))


def tensors(n: int, folder: Path) -> Iterator[str]:
    """The same, as safetensors."""
    return files(n, folder, "run.safetensors")


PROMISE = "the file that loads is that of the last save that returned, or of the one under way"
KIND = Kind(
    "The power goes",
    "The calls of some saves are recorded. After each prefix of them a folder is laid out as a disk may hold it then: "
    "bytes that were not synced are there, missing, zeros or in pieces, and names changed since their folder was "
    "synced are the old or the new ones. Lost is one that does not load, or is older than a save that had returned.",
    (
        Fault("a file", "the power goes at any call of `updater.save`", PROMISE, files, 250, 4000),
        Fault("a file of safetensors", "the same, for a `.safetensors`", PROMISE, tensors, 100, 2000),
    ),
)
