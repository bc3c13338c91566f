"""Files written while the run goes on: a copy of it as it was at a step, and a thread that writes one at a time.

The copy lies in memory of the host that is kept and used again, two of it: one is being written, one waits. A third has
to wait until a copy is free, so memory is bounded.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from gradchain.core import _torch

T = TypeVar("T")
COPIES = 2


class Copy:
    """Memory for one copy of what a file holds."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, ...], Tensor] = {}
        self._used: dict[tuple[str, ...], Tensor] = {}

    def of(self, contents: Mapping[str, Any]) -> dict[str, Any]:
        """The contents with tensors of their own. What stands here is written over by the next call."""
        self._used = {}
        copied: dict[str, Any] = self._copied(contents, ())
        self._kept = self._used  # what is not there any more is let go
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()  # copies into pinned memory are only begun
        return copied

    def _copied(self, value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value, path)
        if isinstance(value, dict):
            pairs = ((key, self._copied(item, (*path, str(key)))) for key, item in value.items())
            return OrderedDict(pairs) if isinstance(value, OrderedDict) else dict(pairs)
        if type(value) in (list, tuple):
            return type(value)([self._copied(item, (*path, str(i))) for i, item in enumerate(value)])
        return value

    def _tensor(self, tensor: Tensor, path: tuple[str, ...]) -> Tensor:
        if _torch.is_dtensor(tensor):
            return _torch.joined_as(self._tensor(_torch.shard(tensor.detach()), path), tensor)
        if (
            type(tensor) is not Tensor
            or tensor.requires_grad
            or tensor.layout is not torch.strided
            or tensor.is_quantized
            or vars(tensor)
        ):
            return _cloned(tensor)
        kept = self._kept.get(path)
        if kept is None or (kept.shape, kept.dtype, kept.stride()) != (tensor.shape, tensor.dtype, tensor.stride()):
            kept = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        with torch.no_grad():
            kept.copy_(tensor, non_blocking=tensor.is_cuda)
        self._used[path] = kept
        return kept


def _cloned(tensor: Tensor) -> Tensor:
    """A copy of a tensor of any kind, with what hangs on it."""
    made = tensor.detach().to("cpu", copy=True)
    if isinstance(tensor, torch.nn.Parameter):
        made = torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
    vars(made).update(vars(tensor))
    return made


def _alone(act: Callable[[], T]) -> T:
    return act()


class Writer:
    """Writes copies in a thread, which ends where none waits, and which the interpreter waits for as it exits.

    Attributes:
        waited: seconds that the run has waited for a copy to be free.
    """

    def __init__(self) -> None:
        self.waited = 0.0
        self._free = [Copy() for _ in range(COPIES)]
        self._waiting: list[tuple[Copy, dict[str, Any], Callable[[Mapping[str, Any]], object]]] = []
        self._turn = threading.Condition()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def write(
        self,
        contents: Mapping[str, Any],
        put: Callable[[Mapping[str, Any]], object],
        together: Callable[[Callable[[], dict[str, Any]]], dict[str, Any]] = _alone,
    ) -> bool:
        """Copy the contents now and have `put` write the copy later. Returns whether it had to wait for a copy.

        Args:
            contents: what is to be written.
            put: writes it, in the thread.
            together: makes the copy; where ranks write together, none of them goes on unless all have theirs.
        """
        with self._turn:
            begin = time.monotonic()
            had_to = not self._free
            self._turn.wait_for(lambda: self._free)
            self.waited += time.monotonic() - begin
            copy = self._free.pop()
        try:
            copied = together(lambda: copy.of(contents))
        except BaseException:
            with self._turn:
                self._free.append(copy)
            raise
        with self._turn:
            self._waiting.append((copy, copied, put))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="gradchain.checkpoints")
                self._thread.start()
        return had_to

    def wait(self) -> None:
        """Until all is written or has failed."""
        with self._turn:
            self._turn.wait_for(lambda: self._thread is None)

    def has_failed(self) -> bool:
        """Whether something went wrong since it was last asked what."""
        with self._turn:
            return self._error is not None

    def failed(self) -> BaseException | None:
        """What went wrong since this was last asked."""
        with self._turn:
            error, self._error = self._error, None
        return error

    def _work(self) -> None:
        while True:
            with self._turn:
                if not self._waiting:
                    self._thread = None
                    self._turn.notify_all()
                    return
                copy, copied, put = self._waiting.pop(0)
            try:
                put(copied)
            except BaseException as error:  # it is the run's to know, at its next call
                with self._turn:
                    self._error = self._error or error
            del copied
            with self._turn:
                self._free.append(copy)
                self._turn.notify_all()
