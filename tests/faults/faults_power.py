"""The power goes: what a save leaves on the disk when only what was synced is certain to be there."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from disk import Disk
from fault_runs import RECIPES, Run
from power import images
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
    rng, tried, again = random.Random(0), 0, Run(RECIPE)
    while tried < n:
        there, image = folder / "there", folder / "image"
        shutil.rmtree(there, ignore_errors=True)
        there.mkdir()
        run, returned = Run(RECIPE), [(0, 0)]  # after how many calls, and at which step
        with Disk(there) as disk:
            for _ in range(SAVES):
                run.step()
                run.save(there / name)
                returned.append((len(disk.ops), run.done))
        for many, way in images(there, disk.ops, image, rng):
            least = max(step for after, step in returned if after <= many)
            try:
                found = _loaded(again, image / name)
            except Exception as error:
                yield f"after {many} calls, {way}: {error}"
            else:
                wrong = f"after {many} calls, {way}: step {found} is there, and {least} was saved"
                yield "" if least <= found <= least + 1 else wrong
            tried += 1
            if tried >= n:
                return


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
