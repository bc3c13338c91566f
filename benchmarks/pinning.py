"""On how many cores and threads a benchmark runs, decided before torch is imported; what becomes of freed memory."""

from __future__ import annotations

import ctypes
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


def keep_memory() -> bool:
    """Whether freed memory stays with this process from here on, as glibc has it; elsewhere nothing is done.

    By default glibc gives the pages of freed gradients back to the kernel, or not, by what this process freed before:
    on (b) that is 6 ms of a step, whoever's step it is, and plain SGD takes 9.
    """
    trim, mmap = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    return mallopt is not None and bool(mallopt(mmap, 32 << 20)) and bool(mallopt(trim, 2**31 - 1))


def leave() -> None:
    """End a rank whose work is written down: a thread of gloo's may abort a process that ends by itself."""
    sys.stdout.flush()
    os._exit(0)
