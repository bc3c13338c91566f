"""10,000 mutations of checkpoints: bytes of files and plain data. Prints the table that is kept beside it.

PYTHONPATH=tests python tests/updater/mutated_long.py > tests/updater/mutated_long.txt
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import torch
from mutated import KINDS, SCENES, Tally, of_bytes, plain

COLUMNS = ("refused", "the same contents", "taken as given", "said", "silent", "poisoned", "undocumented", "changed")
FAULTS = 4  # the last so many of them


def line(name: str, counts: dict[str, int]) -> str:
    """One row of the table."""
    return f"{name:42}{sum(counts.get(c, 0) for c in COLUMNS[:4]) + sum(counts.get(c, 0) for c in COLUMNS[4:]):8}" + (
        "".join(f"{counts.get(column, 0):{len(column) + 3}}" for column in COLUMNS)
    )


def main(each: int) -> int:
    """The table; how often something went wrong."""
    torch.set_num_threads(1)
    total: dict[str, int] = {}
    print(f"{'':42}{'tried':>8}" + "".join(f"{column:>{len(column) + 3}}" for column in COLUMNS))

    def show(name: str, tally: Tally) -> None:
        for column in COLUMNS:
            total[column] = total.get(column, 0) + tally.counts[column]
        print(line(name, tally.counts), flush=True)
        for fault in tally.faults[:20]:
            print(f"    {fault}", file=sys.stderr, flush=True)

    for scene in SCENES:
        show(f"{scene.name}: plain data", plain(scene, random.Random(0), each))
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as folder:
                show(f"{scene.name}: {kind}", of_bytes(scene, kind, Path(folder), random.Random(0), each // 4))
    print(line("all", total))
    return sum(total[column] for column in COLUMNS[-FAULTS:])


if __name__ == "__main__":
    sys.exit(1 if main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000) else 0)
