"""Inputs that are tried in a forked child, each with a limit on its time and its memory."""

from __future__ import annotations

import os
import re
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

SECONDS = 5.0  # for one input; most take some milliseconds
MEMORY = 1 << 30  # beside what the process has when it begins
BATCH = 500  # inputs of one child


def _size() -> int:
    """How much address space this process has."""
    return int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10


def tried(n: int, attempt: Callable[[int], str]) -> Iterator[str]:
    """What `attempt(i)` says, for each i below n; where the child that tries it ends, how it did."""
    at = 0
    while at < n:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            _child(range(at, min(at + BATCH, n)), attempt, write)
        os.close(write)
        with os.fdopen(read, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                yield line.rstrip("\n")
                at += 1
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            yield f"input {at}: " + ("took too long" if status == -signal.SIGALRM else f"ended the process: {status}")
            at += 1


def _child(inputs: range, attempt: Callable[[int], str], write: int) -> None:
    """Try these, one line each, and end."""
    limit = _size() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # in whatever code it is
    status = 1
    try:
        for i in inputs:
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            said = attempt(i)
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.write(write, f"{said!r}\n".encode() if said else b"\n")
        status = 0
    finally:
        os._exit(status)
