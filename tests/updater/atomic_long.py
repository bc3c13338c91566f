"""Every line of every scene, by every executor; and 300 interrupts. Prints the table that is kept beside it.

PYTHONPATH=tests python tests/updater/atomic_long.py > tests/updater/atomic_long.txt
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from atomic_chains import SCENES, injections

SIGNALS = 300


def main() -> int:
    """The table; whether anything was mixed."""
    torch.set_num_threads(1)
    faults = 0
    print(f"{'scene':32}{'executors':18}{'injected':>9}{'lines':>7}{'share':>7}{'before':>8}{'dropped':>8}"
          f"{'after':>7}{'faults':>8}")  # fmt: skip
    for executors in sys.argv[1:] or ("native", "patterns,blocks", "blocks", "reference"):
        for scene in SCENES:
            tally = injections(scene, executors)
            faults += len(tally.faults)
            sides = [tally.sides[side] for side in ("before", "dropped", "after")]
            print(
                f"{scene.name:32}{executors:18}{sum(tally.sides.values()):9}{len(tally.reached):7}{tally.share:7.1%}"
                f"{sides[0]:8}{sides[1]:8}{sides[2]:7}{len(tally.faults):8}",
                flush=True,
            )
            for fault in tally.faults[:5]:
                print(f"    {fault}", file=sys.stderr)
    script = str(Path(__file__).with_name("atomic_signals.py"))
    done = subprocess.run([sys.executable, script, str(SIGNALS)], capture_output=True, text=True, check=False)
    print(f"two threads, 3 × 1,048,576 weights: {done.stdout.strip() or done.stderr[-300:]}")
    return faults + abs(done.returncode)


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
