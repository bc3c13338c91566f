"""Updating each parameter as soon as backward has its gradient, and freeing the gradient at once."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gradchain.core import _torch
from gradchain.core.eager import EagerTensors
from gradchain.core.row_gradients import as_gradients, as_rows
from gradchain.core.state import Links, narrowed, overlaid
from gradchain.core.transform import walk
from gradchain.engine.commit import Commit
from gradchain.engine.engine import Engine
from gradchain.updater import verify
from gradchain.updater.bound import Bound
from gradchain.updater.info import UpdateInfo
from gradchain.updater.journal import IN_BACKWARD, Pending
from gradchain.updater.ranks import AFTER_ITS_TURN, Replicas
from gradchain.updater.target import Target
from gradchain.updater.window import MicroBatch


class InBackward:
    """Hooks on the parameters that run the chain for one parameter at a time.

    No gradient outlives its parameter's turn, so the peak of memory is lower by nearly all gradients. Only chains in
    which each parameter's update depends on that parameter alone can do so. An exception in backward leaves the
    parameters that had their turn updated, each wholly, and the updater torn: it refuses everything until a load.

    On several ranks a gradient must be whole when its turn comes: FSDP2 reduces it before, and so do hooks of the
    user's, after which ours run; DDP does so after it, and is refused.
    """

    def __init__(self, bound: Bound) -> None:
        self._bound = bound
        self._replicas = Replicas()
        self.check(bound.target)
        self._engines: dict[str, Engine] = {}
        self._states: dict[str, Links] | None = None  # the new states of this backward; None outside one
        self._info: UpdateInfo | None = None
        self._listen()

    def _listen(self) -> None:
        """Put hooks on the parameters there are now, but for frozen ones, which torch lets have none.

        They go with this: the model holds nothing of it, and is left nothing.
        """
        wanted = {name: p for name, p in self._bound.parameters().items() if p.requires_grad}
        self._handles = [
            parameter.register_post_accumulate_grad_hook(_hook(name, weakref.ref(self)))  # type: ignore[no-untyped-call]
            for name, parameter in wanted.items()
        ]
        self._heard = list(map(id, wanted.values()))
        self._release = weakref.finalize(self, _remove, self._handles)
        self._release.atexit = False

    def __getstate__(self) -> dict[str, Any]:
        lost = ("_release", "_handles", "_replicas")
        return {name: value for name, value in self.__dict__.items() if name not in lost}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._replicas = Replicas()
        self._listen()  # a copied parameter has no hooks

    def check(self, target: Target, owner: str = "bind") -> None:
        """ValueError for a chain that needs several gradients at once, or a model of which none is whole in time."""
        check(self._bound)
        if self._replicas.reduce(target):
            raise ValueError(f"{owner}: {AFTER_ITS_TURN}")

    def arrived(self, name: str, parameter: Tensor) -> None:
        """Backward has the gradient of a parameter: update it, if this backward is the updater's."""
        if self._states is None or parameter.grad is None:
            return
        if name in self._states:
            raise RuntimeError(
                f"update: {name!r} must have its whole gradient when its turn comes, got more of it later in the same "
                "backward, as of a reduction over ranks or a module that ran twice under FSDP2 or a reentrant "
                "checkpoint. Bind without in_backward."
            )
        self._update(name, parameter)

    def _update(self, name: str, parameter: Tensor) -> None:
        bound = self._bound
        grad, parameter.grad = parameter.grad, None
        assert grad is not None
        grad = grad.detach() if grad.layout is torch.strided else as_rows(name, grad.detach())
        received = as_gradients(bound.target.index, {name: grad})
        active, whole = bound.activated(received)
        if name not in self._engines:
            self._engines[name], _ = verify.parts([parameter], bound.engine)
        engine = self._engines[name]
        params = EagerTensors.at(received.index, {name: parameter})
        state: Any = narrowed(whole, received.index)
        step = bound.facts(params, scaled=True)
        outcome = bound.computed(received, state, step, engine, False)
        info = bound.info(outcome, step)

        def follow() -> None:
            bound.active, bound.state, self._info = active, whole, info
            assert self._states is not None
            self._states[name] = outcome.state
            bound.records.update(outcome.notes.records)

        bound.journal.write(Pending(outcome.commit, follow, ends=False))

    def check_ranks(self) -> None:
        """RuntimeError under DDP, before anything happens."""
        if self._replicas.reduce(self._bound.target):
            raise RuntimeError(f"update: {AFTER_ITS_TURN}")

    def check_counted(self, owner: str) -> None:
        """RuntimeError while the update of a backward waits for the step that counts it."""
        if self._bound.micro.backwards:
            raise RuntimeError(
                f"{owner}: a backward has updated the weights, as in_backward=True has it, and waits for its step(), "
                "which counts the update. Call updater.step() first. Losses of one update are summed before backward."
            )

    def open(self) -> None:
        """Backward begins: gradients are taken as they come."""
        self._bound.target.lie()
        wanted = [p for p in self._bound.target.last_seen if p.requires_grad]
        if list(map(id, wanted)) != self._heard or not all(map(_torch.runs_last, wanted, self._handles)):
            self.remove()
            self._listen()
        self._states, self._info = {}, None

    def close(self, failed: bool = False) -> bool:
        """Backward is over, or failed: the new states become the chain's. Whether any parameter had its turn."""
        for name, parameter in () if failed else self._bound.parameters().items():
            self.arrived(name, parameter)  # torch calls no hooks of a Parameter that another tensor was swapped into
        states = list((self._states or {}).values())
        if states:
            self._bound.state = overlaid(self._bound.state, states)
        self._states = None
        return bool(states)

    def broken_off(self) -> None:
        """The update came to nothing: parameters that had their turn keep weight, slots and count together."""
        if self._info is not None:
            self._bound.journal.torn = IN_BACKWARD
        self.close(failed=True)
        for engine in self._engines.values():
            engine.forget()
        self._info = None

    def finish(self) -> UpdateInfo:
        """What the backward before it did, as an update."""
        info, bound = self._info, self._bound
        if info is None or not bound.micro.backwards:  # a load has written over it
            raise RuntimeError(
                "step: an updater bound with in_backward=True updates in updater.backward(loss), which has not run. "
                "Call updater.update(loss)."
            )
        clocks = {**bound.clocks, "micro": bound.clocks["micro"] + 1, "step": bound.clocks["step"] + 1}

        def follow() -> None:
            bound.clocks, bound.micro, self._info = clocks, MicroBatch(), None

        bound.journal.write(Pending(Commit(), follow))
        return info

    def remove(self) -> None:
        """Take the hooks off the parameters."""
        self._release()


def _hook(name: str, listening: weakref.ref[InBackward]) -> Any:
    def hook(parameter: Tensor) -> None:
        listener = listening()
        if listener is not None:
            listener.arrived(name, parameter)

    return hook


def _remove(handles: Iterable[Any]) -> None:
    for handle in handles:
        handle.remove()


def check(bound: Bound) -> None:
    """ValueError for a chain that needs several gradients at once."""
    for address, link, _ in walk(bound.chain, None):
        if not link.per_parameter:
            raise ValueError(
                f"bind: in_backward=True updates one parameter at a time, and {address} does not say that it can: its "
                "class needs per_parameter = True. Leave it out, or bind without in_backward."
            )
