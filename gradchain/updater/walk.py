"""The walk of the data: from a loss through backward and the chain to the new weights, and the windows on the way."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradchain.core.roles import WindowState
from gradchain.updater.bound import Bound
from gradchain.updater.checkpoint import Checkpoint
from gradchain.updater.evaluation import Evaluation
from gradchain.updater.in_backward import InBackward
from gradchain.updater.info import UpdateInfo
from gradchain.updater.modes import refuse_inference
from gradchain.updater.ranks import LATE, unsynchronised, withheld
from gradchain.updater.state_dict import states
from gradchain.updater.window import MicroBatch


class Walk:
    """What `Updater.update` and its halves do, in order, over what is bound.

    Attributes:
        bound: the chain, the model, and everything that changes from step to step.
        checkpoint: what reads and writes it.
        in_backward: the hooks that update during backward, where the user asked for them.
    """

    def __init__(self, bound: Bound, in_backward: bool) -> None:
        self.bound = bound
        self.checkpoint = Checkpoint(bound)
        self.in_backward = InBackward(bound) if in_backward else None

    def update(
        self, loss: Tensor | Callable[[], Tensor], weight: float | None, last: bool, keep_grads: bool, **backward: Any
    ) -> UpdateInfo:
        """Backward, the chain, the new weights."""
        closure = None
        if keep_grads and self.in_backward is not None:
            raise ValueError("update: keep_grads=True: an updater bound with in_backward=True frees each gradient.")
        if not isinstance(loss, Tensor) and callable(loss):
            refuse_inference("update")
            closure = partial(self._forward, loss)
            loss = closure(last=last or None)
        self.backward(loss, weight=weight, last=last, **backward)
        try:
            return self._step(None, keep_grads, closure, look=False)
        except BaseException:
            self._drop_window("update failed")  # this micro-batch is in it already
            raise

    def backward(
        self,
        loss: Tensor,
        *,
        weight: float | None = None,
        last: bool = False,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Any = None,
    ) -> None:
        """Backward of a loss through the chain's scaling."""
        refuse_inference("backward")
        micro = self.bound.micro
        micro.check(loss, weight, self.bound.gated())
        if self.in_backward is not None:
            self.in_backward.check_micro_batch(micro.backwards)
        self._refuse_late_closing("update", last)
        # may raise, as a schedule may: nothing has happened yet, and the open window stays
        scaled = self.bound.scaled(loss, weight)
        micro.last = micro.last or last
        parked = False
        if not micro.backwards:
            micro.weight = weight
            self.bound.make_room(weight)
            parked = self._open_micro_batch()
        marks = self.bound.gradients.marks() if micro.backwards or parked else []
        if self.in_backward is not None:
            self.checkpoint.warn_of_other_weights()
            self.in_backward.open()
        try:
            with withheld(self.bound.target, self.bound.withholds()):
                micro.unsynchronised = micro.unsynchronised or self._gradients_withheld()
                scaled.backward(retain_graph=retain_graph, create_graph=create_graph, inputs=inputs)
            reached = self.bound.gradients.reached(marks) if self.in_backward is None else self.in_backward.close()
            if not reached and not self._gradients_withheld():
                raise RuntimeError(
                    "update: the loss reaches none of the bound parameters. Was it computed from another model, or "
                    "under torch.no_grad()?"
                )
        except BaseException:
            if self.in_backward is not None:
                self.in_backward.close(
                    failed=True
                )  # parameters that had their turn keep weight, slots and count together
            self._drop_window("backward failed")
            raise
        micro.add(loss)
        self.bound.window.begun = True

    def _forward(self, closure: Callable[[], Tensor], last: bool | None = None) -> Tensor:
        """The loss of a closure, under the context that a forward without one would run in."""
        with torch.enable_grad(), self.context(last=last):
            return closure()

    def step(self, grads: Mapping[str, Tensor | None] | None, last: bool, keep_grads: bool) -> UpdateInfo:
        """The chain and the new weights, from the gradients that lie in `.grad` or are given."""
        self._refuse_late_closing("step", last)
        micro = self.bound.micro
        was_last, micro.last = micro.last, micro.last or last
        try:
            return self._step(grads, keep_grads, None)
        except BaseException:
            micro.last = was_last
            raise

    def _step(
        self,
        grads: Mapping[str, Tensor | None] | None,
        keep_grads: bool,
        closure: Callable[[], Tensor] | None,
        look: bool = True,
    ) -> UpdateInfo:
        if self.in_backward is not None and grads is None:
            return self.in_backward.finish()
        micro, window = self.bound.micro, self.bound.window
        scaled = micro.backwards > 0 and grads is None
        gradients = self.bound.gradients
        received = gradients.gather(look, closure is not None) if grads is None else gradients.given(grads)
        if not len(received) and not self._gradients_withheld():
            raise RuntimeError(
                "step: no bound parameter has a gradient. Call updater.update(loss), or loss.backward() first."
            )
        self._check_raw_window(scaled)
        self.checkpoint.warn_of_other_weights()
        step = self.bound.facts(
            scaled=scaled,
            summed=scaled and window.name is not None,
            weight=micro.weight,
            evaluate=None if closure is None else Evaluation(self.bound, closure).at,
        )
        info = self.bound.run(received, step, keep_grads or grads is not None)
        self.bound.clocks["micro"] += 1
        parked = info.reason == "window"
        window.unsynchronised = parked and (window.unsynchronised or (micro.unsynchronised and window.name is not None))
        if parked or not keep_grads:
            gradients.clear(look=False)
        if parked:
            window.park()
        self.bound.micro = MicroBatch()
        return info

    # windows

    def _open_micro_batch(self) -> bool:
        """Before the first backward of a micro-batch: `.grad` becomes the parked window, or nothing. Which of them."""
        held = self.bound.window.state(self.bound.state)
        if held is not None and held.micro:
            self.bound.gradients.put_back(held.window)
        else:
            self.bound.gradients.clear()
        self.bound.window.put_back()
        return held is not None and held.micro > 0

    def _gradients_withheld(self) -> bool:
        """Whether gradients may be None although the loss reaches parameters: FSDP2 keeps them until it reduces."""
        return bool(self.bound.target.sharded) and self.bound.withholds()

    def _refuse_late_closing(self, owner: str, last: bool) -> None:
        if self.bound.micro.unsynchronised and (last or not self.bound.withholds()):
            raise RuntimeError(f"{owner}: {LATE}")

    def _check_raw_window(self, scaled: bool) -> None:
        if scaled or not self.bound.target.replicated or self.bound.window.name is None:
            return
        if self.bound.window.micro(self.bound.state) or self.bound.withholds():
            raise RuntimeError(
                "step: under DDP a window of several micro-batches needs updater.backward(loss) or update(loss) in "
                "place of loss.backward(): the ranks must reduce the whole window."
            )

    def _drop_window(self, why: str) -> None:
        micro = self.bound.window.micro(self.bound.state)
        if micro:
            many = "one micro-batch" if micro == 1 else f"{micro} micro-batches"
            warnings.warn(f"{why}: the open window of {many} was dropped.", stacklevel=5)
        self.bound.drop_window()

    def flush(self) -> UpdateInfo:
        """Apply the open window although it is not full."""
        if self.bound.micro.backwards:
            raise RuntimeError("flush: a backward is waiting for its step(). Call updater.step(last=True).")
        self.bound.state = self.bound.window.reduced(self.bound.state, "flush")
        known = states(self.bound.chain, self.bound.state)
        if not any(isinstance(inner, WindowState) and inner.micro for _, inner in known):
            return UpdateInfo("window", int(self.bound.clocks["step"]), None, {}, dict, "no window is open")
        self.checkpoint.warn_of_other_weights()
        coming, self.bound.micro = self.bound.micro, MicroBatch(last=True)
        try:
            nothing = self.bound.gradients.params().select(())
            info = self.bound.run(nothing, self.bound.facts(flushing=True, scaled=True), False)
        finally:
            self.bound.micro = coming  # its forward may have run
        self.bound.gradients.clear()
        return info

    @contextmanager
    def context(self, last: bool | None = None, autocast: torch.dtype | bool | None = None) -> Iterator[None]:
        """Where the forward of a micro-batch runs."""
        micro = self.bound.micro
        autocasting = self._autocasting(autocast)
        was_last, micro.last = micro.last, micro.last or bool(last)
        withhold = self.bound.withholds() and not self._must_synchronise()
        decided = micro.backwards > 0 and micro.unsynchronised
        micro.unsynchronised = decided or (withhold and not self.bound.target.sharded)  # FSDP2 decides in backward
        try:
            with unsynchronised(self.bound.target, withhold), autocasting:
                yield
        except BaseException:
            micro.last = was_last  # this forward came to nothing
            raise

    def _must_synchronise(self) -> bool:
        """DDP with static_graph records the graph in the first backward of the run, and must reduce then."""
        modules = self.bound.target.replicated
        return not self.bound.window.begun and any(m.static_graph for m in modules)

    def _autocasting(self, autocast: torch.dtype | bool | None) -> AbstractContextManager[Any]:
        """Autocast as `bind` or this forward wants it; where neither says anything, as it is outside."""
        dtype = self.bound.autocast if autocast is None or autocast is True else autocast
        if dtype is None:
            return nullcontext()
        if dtype is not False and not isinstance(dtype, torch.dtype):
            raise TypeError(f"context: autocast must be a torch.dtype, False or None, got {autocast!r}.")
        device = self.bound.target.parameters()[0].device.type
        return torch.autocast(device, dtype=dtype or None, enabled=dtype is not False)
