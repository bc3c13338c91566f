"""What a run shows while it goes on, and how it is stopped."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from gradchain.demo.training import Training


@contextmanager
def progress(run: Training, quiet: bool) -> Iterator[Callable[[], None]]:
    """A function to call after each micro-batch: a bar on a terminal, a line now and then elsewhere."""
    if quiet:
        yield lambda: None
    elif sys.stderr.isatty():
        with _bar(run) as show:
            yield show
    else:
        yield _lines(run)


@contextmanager
def _bar(run: Training) -> Iterator[Callable[[], None]]:
    from tqdm import tqdm

    with tqdm(total=run.total, initial=run.done, unit=" micro-batches", dynamic_ncols=True, leave=False) as bar:

        def show() -> None:
            bar.update(run.done - bar.n)
            bar.set_postfix_str(f"loss {run.history['loss'][-1]:.2f}, test {run.accuracy:.1%}", refresh=False)

        yield show


def _lines(run: Training) -> Callable[[], None]:
    often = max(1, run.settings.epochs // 5)

    def show() -> None:
        epoch, position = divmod(run.done, run.data.micro_batches)
        if not position and epoch % often == 0:
            loss, accuracy = run.history["test_loss"][-1], run.history["accuracy"][-1]
            print(f"epoch {epoch} of {run.settings.epochs}: test loss {loss:.3f}, test accuracy {accuracy:.1%}")

    return show


class Stop:
    """Whether the user has asked to stop."""

    requested = False

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Ask, as a signal handler; asked a second time, do not wait."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Inside, Ctrl-C waits for the end of a micro-batch: what is saved then is between two steps."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python gives signals to the main thread only
        return
    before = signal.signal(signal.SIGINT, stop.ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
