"""Code of the user's that raises, or that asks the updater for more, in the middle of a call of the updater."""

from __future__ import annotations

import copy
import itertools
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from disk import Disk, Op
from misuse_runs import DROPPED, GOES_ON, SAME, BrokenError, Run, quiet, refused, trials, unchanged
from what_goes_wrong import Fault, Kind


def _raise(*given: Any) -> None:
    raise BrokenError


def _forward(run: Run) -> str:
    handle = run.models[0].register_forward_hook(_raise)
    try:
        return refused(lambda: run.ours.update(lambda: run.loss(0, run.at)), (BrokenError,))
    finally:
        handle.remove()


HOOKS: tuple[Callable[[torch.nn.Linear], Any], ...] = (
    lambda model: model.weight.register_hook(_raise),
    lambda model: model.bias.register_post_accumulate_grad_hook(_raise),
    lambda model: model.register_full_backward_hook(_raise),
)
_hooks = itertools.cycle(HOOKS)


def _backward(run: Run) -> str:
    handle = next(_hooks)(run.models[0])
    try:
        with quiet():
            said = refused(lambda: run.ours.update(run.loss(0, run.at)), (BrokenError,))
    finally:
        handle.remove()
    run.theirs.zero_grad()  # the window that was open is dropped, which is said
    return said


def _observed(run: Run) -> str:
    class Unread:
        __float__ = __index__ = item = _raise

    return refused(lambda: run.ours.observe("x", Unread()), (TypeError,), "observe: takes a name and a number")


ASKED: tuple[Callable[[Run, str], object], ...] = (
    lambda run, path: run.ours.load_state_dict({}),
    lambda run, path: run.ours.save(path),
    lambda run, path: run.ours.load(path),
    lambda run, path: run.ours.state_dict(),
    lambda run, path: run.ours.zero_grad(),
    lambda run, path: run.ours.reset(),
    lambda run, path: run.ours.rebind(run.models[0]),
    lambda run, path: copy.deepcopy(run.ours),
    lambda run, path: run.ours.flush(),
)
_asked = itertools.cycle(ASKED)


def _inside(run: Run) -> str:
    """A hook asks for what must see whole micro-batches: each is refused, and the update goes on."""
    ask, lost = next(_asked), []

    def hook(grad: torch.Tensor) -> None:
        lost.append(refused(lambda: ask(run, path), (RuntimeError,)))

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/run.pt"
        run.ours.save(path)
        handle = run.models[0].weight.register_hook(hook)
        run.both()
        handle.remove()
    return "" if lost and not any(lost) else str(lost)


def _signalled(run: Run) -> str:
    """A handler raises at some moment of an update: it was made, or not, or its window was dropped, which is said."""
    before = run.ours.num_micro
    old = signal.signal(signal.SIGALRM, _raise)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + 1e-4 * (torch.initial_seed() % 23))
                run.ours.update(run.loss(0, run.at))
                time.sleep(0.01)
            except BrokenError:
                pass
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, old)
    if run.ours.num_micro > before:
        run.theirs.update(run.loss(1, run.at))
    elif any("was dropped" in str(w.message) for w in caught):
        run.theirs.zero_grad()
    run.at += 1
    return "" if run.seen(0) == run.seen(1) else "it is neither as before nor as after"


def _saver(n: int, folder: Path) -> Iterator[str]:
    """What is no error of the disk's is raised at each call that a save makes of it."""
    path, kinds = folder / "run.pt", itertools.cycle((KeyboardInterrupt, BrokenError, MemoryError))
    run = Run(0)
    run.both(3)
    run.ours.save(path)
    old, state = path.read_bytes(), run.seen(0)
    with Disk(folder) as disk:
        run.ours.save(path)
    many = sum(op.kind != "close" for op in disk.ops)
    for at in itertools.islice(itertools.cycle(range(many)), n):
        seen, kind = itertools.count(), next(kinds)

        def before(op: Op, at: int = at, seen: Iterator[int] = seen, kind: type[BaseException] = kind) -> None:
            if op.kind != "close" and next(seen) == at:
                raise kind

        with Disk(folder, before):
            lost = refused(lambda: run.ours.save(path), (KeyboardInterrupt, BrokenError, MemoryError, RuntimeError))
        if path.read_bytes() != old or os.listdir(folder) != [path.name]:
            lost = lost or "the file is another, or something is left beside it"
            old = path.read_bytes()
        yield lost or ("" if run.seen(0) == state else "the run is another")
    yield run.differ()


KIND = Kind(
    "The user's code raises",
    "Runs as those of `misuse`, in which a hook, a handler of a signal or an object of the user's raises, or calls the "
    "updater that is at work. Lost is what leaves weights, moments, counts or the open window other than the promise "
    "says, now or after four more micro-batches.",
    (
        Fault("forward", "a forward hook raises in a closure", "nothing has changed; " + GOES_ON,
              unchanged(_forward), 5, 50),
        Fault("backward", "a hook of a tensor, of a gradient or of a module raises in backward", DROPPED,
              trials(_backward), 6, 60),
        Fault("observed", "what is observed raises as it is read", SAME, unchanged(_observed), 5, 50),
        Fault("inside", "a hook in backward saves, loads, copies, resets, rebinds, flushes or drops the window",
              "it is refused in a sentence, the update goes on, and " + GOES_ON, trials(_inside), 9, 90),
        Fault("signals", "the handler of a signal raises at some moment of an update",
              "the micro-batch was taken, or was not, or its window was dropped with a warning; " + GOES_ON,
              trials(_signalled), 10, 150),
        Fault("saver", "an interrupt, no memory or an error of the user's at each call of a save",
              "the file before stays, nothing is left beside it, and " + GOES_ON, _saver, 20, 150),
    ),
    alone=True,
)  # fmt: skip
