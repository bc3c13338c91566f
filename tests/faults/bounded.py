"""Inputs that are tried in a forked child, each with a limit on its time and its memory."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SECONDS = 5.0  # of a core for one input; most take some milliseconds
WAITING = 60.0  # seconds of the clock, for one that waits: this may be a busy machine
MEMORY = 1 << 30  # beside what the process has when it begins
BATCH = 500  # inputs of one child


def _size() -> int:
    """How much address space this process has."""
    return int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10


def tried(
    n: int,
    attempt: Callable[[int], tuple[str, Any]],
    learn: Callable[[Any], object],
    named: Callable[[int], object],
) -> Iterator[str]:
    """What is wrong with each input below n; where the child that tries it ends, how it did.

    Args:
        n: how many.
        attempt: tries one, and gives what is wrong, and what else is to be known of it, as JSON has it.
        learn: told of that, in this process.
        named: what an input is called where it is lost.
    """
    at = 0
    while at < n:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            _child(range(at, min(at + BATCH, n)), attempt, write)
        os.close(write)
        ended = False
        try:
            with os.fdopen(read, encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    said, note = json.loads(line)
                    yield f"input {named(at)}: {said}" if said else ""
                    learn(note)
                    at += 1
            ended = True
        finally:
            if not ended:  # nobody wants more of them
                os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            how = "took too long" if status in (-signal.SIGALRM, -signal.SIGPROF) else f"ended the process: {status}"
            yield f"input {named(at)}: {how}"
            at += 1


def _child(inputs: range, attempt: Callable[[int], tuple[str, Any]], write: int) -> None:
    """Try these, one line each, and end."""
    limit = _size() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)  # it ends the process in whatever code it is
    status = 1
    try:
        for i in inputs:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            signal.setitimer(signal.ITIMER_REAL, WAITING)
            said = attempt(i)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            line = memoryview(f"{json.dumps(said)}\n".encode())
            while line:
                line = line[os.write(write, line) :]
        status = 0
    finally:
        os._exit(status)
