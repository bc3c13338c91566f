"""On how many cores and threads a benchmark runs: decided before torch is imported."""

from __future__ import annotations

import os
import sys


def pin(threads: int, core: int | None) -> None:
    """So many cores and threads, for whatever is imported from here on."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        allowed = [c for c in sorted(os.sched_getaffinity(0)) if core is None or c >= core]
        if len(allowed) < threads:
            sys.exit(f"--threads: must be at most {len(allowed)}, the cores that are allowed, got {threads}.")
        os.sched_setaffinity(0, set(allowed[:threads]))
