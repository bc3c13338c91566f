"""What an updater is in the middle of, and how it is put in order where that is broken off.

An exception may come at any moment: an interrupt, no memory, a link that raises. A call that changes weights or state
goes through `guard`, which deals with what it left before the exception goes on; where a second exception keeps it
from that, the next call of the updater does it first. What was decided and has begun to be written is finished: the
new values are absolute, so finishing may begin anew. What has not begun is forgotten. What cannot be taken back, as a
sum of gradients that autograd has added to, is dropped, and that is said.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

from gradchain.engine.commit import Commit

P = ParamSpec("P")
R = TypeVar("R")


_ANY_TIME = ("averaged", "averages")
"""What a closure may ask for: a teacher's weights."""
IN_BACKWARD = "an update during backward was broken off: some parameters had theirs, and others had not"
IN_PLACE = (
    "an update was broken off inside a class that works in place (in_place=True): some weights may have theirs, and "
    "others not"
)


class Pending:
    """What was decided: writes, and what holds once they are done.

    Args:
        commit: the writes.
        settle: makes what follows from them so. It may be called more than once.
        ends: whether what the updater was in the middle of ends with it.
    """

    def __init__(self, commit: Commit, settle: Callable[[], object], ends: bool = True) -> None:
        self._commit, self._settle, self.ends = commit, settle, ends
        self._written = False

    @property
    def begun(self) -> bool:
        """Whether some of it may have happened: then all of it has to."""
        return self._written or self._commit.begun

    @property
    def torn(self) -> bool:
        """Whether it was broken off where it can be neither finished nor taken back."""
        return self._commit.torn

    def finish(self) -> None:
        """All of it, or what is left of it."""
        self._commit.fire()
        self._written = True
        self._settle()


class Journal:
    """The state of a call that changes something.

    Attributes:
        open: whether there is anything to put in order, should this not be the call that is at work.
        pending: what was decided and is being written.
        away: puts back what is to be only for a while, such as weights that are not the model's own.
        busy: whether the engine is in a step.
        lost: what the open window is lost to, if this comes to nothing; "" where it is not lost.
        averaged: whether the model has its average weights, for as long as the user wants them.
        torn: what left some parameters with an update and others without, for good; "" where nothing did.
        drop: drops the open window, and says what it is lost to.
        walking: which call walks the data; "" where none does.
    """

    def __init__(self, forget: Callable[[], None]) -> None:
        self._forget = forget
        self.drop: weakref.WeakMethod[Callable[[str], None]] | None = None
        self.open = False
        self.pending: Pending | None = None
        self.away: Callable[[], None] | None = None
        self.busy = False
        self.lost = ""
        self.averaged = False
        self.torn = ""
        self.walking = ""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "drop": None, "walking": ""}  # a copied walk gives its own

    def guard(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call this. Where it is broken off, what it leaves is put in order, and gradients are on or off as before."""
        enabled = torch.is_grad_enabled()
        try:
            return call(*args, **kwargs)
        except BaseException:
            self._broken_off(enabled)
            raise

    def walk(self, owner: str, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Guard a call that uses gradients, and is at work from here on; `alone` has said that no other is."""
        enabled = torch.is_grad_enabled()
        try:
            self.walking = owner
            return call(*args, **kwargs)
        except BaseException:
            self._broken_off(enabled)
            raise
        finally:
            self.walking = ""

    def _broken_off(self, enabled: bool) -> None:
        """A call was: put in order what it leaves, and gradients on or off as they were."""
        try:
            if self.open:
                self._recover()
        finally:
            _gradients(enabled)

    def alone(self, owner: str) -> None:
        """RuntimeError where a call walks the data: what lies in `.grad` is then neither as before it nor as after."""
        if self.walking and owner not in _ANY_TIME and self._at_work():  # an interrupt may have left the word alone
            raise RuntimeError(
                f"{owner}: must not be called while {self.walking} of the same updater runs: from a hook, a schedule, "
                "a closure or another thread. Call it when that has returned; another thread has its own model and "
                "updater."
            )

    def enter(self, owner: str, loads: bool = False) -> None:
        """Before the updater does anything: put in order what an earlier call left.

        RuntimeError where it is torn, but for what `loads` and so mends it.
        """
        if loads:
            self.discard()
            return
        if self.open:
            self.settle()
        if self.torn:
            raise RuntimeError(
                f"{owner}: {self.torn}. Load what was saved: updater.load(path), or the model's weights and "
                "updater.load_state_dict(state)."
            )

    def settle(self) -> None:
        """Put in order what an earlier call left; nothing, where it is that very call that asks."""
        if self.open and not self._at_work():
            self._recover()

    def discard(self) -> None:
        """Before a load: finish what can be finished, and forget the rest, for it is written over."""
        try:
            self.settle()
        except RuntimeError:
            self.pending = None
            self._recover()

    def write(self, pending: Pending) -> None:
        """Write what was decided, and make what follows from it so."""
        self.open = True
        self.pending = pending
        self._finish(pending)

    def _finish(self, pending: Pending) -> None:
        pending.finish()
        if pending.ends:
            self.close()
        else:
            self.pending = None

    def close(self) -> None:
        """What was begun has come to its end. In this order: until nothing is pending, nothing is dropped."""
        self.busy, self.lost = False, ""
        self.pending = None
        self.open = self.away is not None

    def home(self) -> None:
        """Put back what was to be only for a while."""
        if self.away is not None:
            self.away()
            self.away = None

    def _recover(self) -> None:
        """Finish what has begun to be written, take back or drop the rest. May be called again until it returns."""
        if self.busy:
            self._forget()
        self.home()
        if self.pending is not None and self.pending.torn:
            self.torn = IN_PLACE
        elif self.pending is not None and self.pending.begun:
            try:
                self._finish(self.pending)
            except Exception as error:
                raise RuntimeError(
                    f"update: an update was broken off while weights were written, and cannot be finished now ({error})"
                    ". The next call tries again; to give it up, load what was saved: updater.load(path)."
                ) from error
        self.pending = None
        self.busy = False
        drop = None if self.drop is None else self.drop()
        if self.lost and drop is not None:
            drop(self.lost)
        self.lost = ""
        self.open = False

    def _at_work(self) -> bool:
        """Whether a call that is guarded runs, in this thread or another: a closure or a hook asks for something."""
        for frame in sys._current_frames().values():
            at: object = frame
            while at is not None:
                if at.f_code in _GUARDS and at.f_locals.get("self") is self:  # type: ignore[attr-defined]  # a frame
                    return True
                at = at.f_back  # type: ignore[attr-defined]
        return False


_GUARDS = (Journal.guard.__code__, Journal.walk.__code__)


def insist(act: Callable[[], object]) -> None:
    """Do what may be done again, and again at once where it is broken off."""
    enabled = torch.is_grad_enabled()
    try:
        act()
    except BaseException:
        act()
        _gradients(enabled)
        raise


def _gradients(enabled: bool) -> None:
    """Leave gradients on or off: a `with` that is broken off as it ends may not have."""
    if torch.is_grad_enabled() != enabled:
        torch.set_grad_enabled(enabled)
