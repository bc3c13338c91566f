"""An updater that is used as it is not meant to be: it says so in a sentence, or what is meant comes out."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
from misuse_runs import DROPPED, GOES_ON, SAME, BrokenError, Run, quiet, refused, trials, unchanged
from torch import Tensor
from what_goes_wrong import Fault, Kind


def _closure(run: Run) -> str:
    def closure() -> Tensor:
        run.ours.update(run.loss(0, 0))
        return run.loss(0, 0)

    return refused(lambda: run.ours.update(closure), (RuntimeError,), "update: must not be called while update")


def _threads(n: int, folder: Path) -> Iterator[str]:
    """Two threads that update at once: each call is whole or refused, and the count is that of those taken."""
    for i in range(n):
        run, taken, odd = Run(i, window=1), [], []
        waits = threading.Event()

        def closure(run: Run = run, waits: threading.Event = waits) -> Tensor:
            waits.set()
            other = threading.Thread(target=meanwhile)
            other.start()
            other.join()
            return run.loss(0, 0)

        def meanwhile(run: Run = run, odd: list[str] = odd, waits: threading.Event = waits) -> None:
            waits.wait()
            odd.append(refused(lambda: run.ours.update(run.loss(0, 1)), (RuntimeError,), "update: must not be called"))

        taken.append(run.ours.update(closure))
        yield odd[0] or ("" if run.ours.num_updates == len(taken) else "an update was lost")


def _link(run: Run) -> str:
    if run.ours.num_micro % 2 == 0:  # the next one closes no window, and no link behind it runs
        run.both()
    run.told.append(1)
    with quiet():
        said = refused(lambda: run.ours.update(run.loss(0, run.at)), (BrokenError,))
    run.theirs.zero_grad()  # the window that was open is dropped, which is said
    run.told.clear()
    return said


def _schedule(run: Run) -> str:
    if run.ours.num_micro % 2 == 0:
        run.both()
    run.late.extend([1])
    with quiet():
        try:
            run.ours.update(run.loss(0, run.at))
        except BrokenError:
            run.theirs.zero_grad()
            return ""
    run.theirs.update(run.loss(1, run.at))  # it was asked twice, and the second answer was one
    run.at += 1
    return ""


def _saver(run: Run) -> str:
    class Unwritable:
        pass

    before = run.seen(0)
    said = refused(lambda: run.ours.save("run.pt", extra=Unwritable()), (TypeError,), "save: extra must be made of")
    return said or ("" if run.seen(0) == before else "it left something changed")


def _child(run: Run) -> str:
    """A forked child that trains on comes to what the parent comes to."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            run.both(4)
            os.write(write, run.seen(0).encode()[:60_000])
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        found = file.read()
    os.waitpid(child, 0)
    run.both(4)
    return "" if found == run.seen(0).encode()[:60_000] else "the child came to something else"


def _copied(run: Run) -> str:
    if run.ours.num_micro % 2:
        run.both()
    how = copy.deepcopy if run.at % 4 else lambda both: pickle.loads(pickle.dumps(both))
    try:
        model, updater = how((run.models[0], run.ours))
    except (pickle.PicklingError, AttributeError):  # a lambda in the chain
        model, updater = copy.deepcopy((run.models[0], run.ours))
    before = run.seen(0)
    updater.update(model(torch.ones(1, 6)).square().mean())
    return "" if run.seen(0) == before else "the copy shares something"


def _loaded(run: Run) -> str:
    """A load in the middle of a window puts back all of it."""
    run.both(1 if run.ours.num_micro % 2 == 0 else 0)
    state, weights = run.ours.state_dict(), copy.deepcopy(run.models[0].state_dict())
    run.ours.update(run.loss(0, 1000))
    run.models[0].load_state_dict(weights)
    run.ours.load_state_dict(state)
    return ""


def _twice(run: Run) -> str:
    loss = run.loss(0, run.at)
    loss.backward()
    run.models[0].zero_grad()
    with quiet():
        said = refused(lambda: run.ours.update(loss), (RuntimeError,), "update: the graph of the loss was freed")
    run.theirs.zero_grad()  # backward had begun, so the open window is dropped, which is said
    return said


def _zeroed(run: Run) -> str:
    run.models[0].zero_grad()
    run.loss(0, 5).backward()  # and gradients of the user's, which are not the updater's
    return ""


KIND = Kind(
    "Misuse",
    "Each trial is a run with a window, a clip, Adam and a schedule, begun at another place of its window, beside one "
    "that is not misused. Lost is one that is taken in silence, leaves anything changed where it is refused, or after "
    "which four more micro-batches come to other weights or moments.",
    (
        Fault("threads", "an update in another thread, while one runs", "it is refused", _threads, 5, 200),
        Fault("in a closure", "an update inside the closure of an update", SAME, unchanged(_closure), 5, 200),
        Fault("link", "a link raises", DROPPED, trials(_link), 5, 200),
        Fault("schedule", "a schedule raises", "as before, or the update that it gives when asked again",
              trials(_schedule), 5, 200),
        Fault("saver", "a save is given what cannot be written", SAME, trials(_saver), 5, 200),
        Fault("child", "a forked child trains on (one thread)", "it comes to what its parent comes to",
              trials(_child), 3, 100),
        Fault("copy", "a copy of model and updater trains on", GOES_ON, trials(_copied), 5, 200),
        Fault("load", "a state is loaded in the middle of a window", GOES_ON, trials(_loaded), 5, 200),
        Fault("backward twice", "the user has called `loss.backward()` before", DROPPED, trials(_twice), 5, 200),
        Fault("zero_grad", "the user calls `zero_grad()` and a backward of their own between updates", GOES_ON,
              trials(_zeroed), 5, 200),
    ),
    alone=True,
)  # fmt: skip
