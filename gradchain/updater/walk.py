"""The walk of the data: from a loss through backward and the chain to the new weights, and the windows on the way."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypedDict

import torch
from torch import Tensor

from gradchain.core.refusal import Diverged
from gradchain.core.roles import WindowState
from gradchain.core.state import Links
from gradchain.core.step import Step
from gradchain.core.tensors import Tensors
from gradchain.updater.autograd import raise_explained
from gradchain.updater.bound import Bound
from gradchain.updater.checkpoint import Checkpoint
from gradchain.updater.evaluation import Evaluation
from gradchain.updater.forward import Forward
from gradchain.updater.gradients import Marks
from gradchain.updater.in_backward import InBackward
from gradchain.updater.info import UpdateInfo
from gradchain.updater.modes import refuse_inference
from gradchain.updater.ranks import LATE, withheld
from gradchain.updater.state_dict import states
from gradchain.updater.target import Target
from gradchain.updater.window import MicroBatch, weight_of

_NO_GRADIENTS = (
    "a chain that only averages the weights takes no gradients. Call updater.step({}) after the weights have moved, or "
    "put an optimizer in front of the average."
)


class BackwardOptions(TypedDict, total=False):
    """What a backward takes besides the loss, as `torch.Tensor.backward` has it."""

    retain_graph: bool | None
    create_graph: bool
    inputs: Any


BACKWARD = tuple(BackwardOptions.__annotations__)


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
        self._diverged = False  # whether the windows that are dropped are what a gate gave up for
        self._wire()

    def _wire(self) -> None:
        """The journal drops a window by this, and keeps nothing alive by it."""
        self.bound.journal.drop = weakref.WeakMethod(self._drop)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._wire()

    def update(
        self, loss: Tensor | Callable[[], Tensor], weight: Any, last: bool, keep_grads: bool, **backward: Any
    ) -> UpdateInfo:
        """Backward, the chain, the new weights."""
        closure = None
        if keep_grads and self.in_backward is not None:
            raise ValueError("update: keep_grads=True: an updater bound with in_backward=True frees each gradient.")
        if not isinstance(loss, Tensor) and callable(loss):
            refuse_inference("update")
            closure = partial(self._forward, loss)
            loss = closure(last=last or None)
        self._backward(loss, weight=weight, last=last, **backward)
        self.bound.journal.lost = "update failed"  # this micro-batch is in the window already
        return self._step(None, keep_grads, closure, look=False)

    def backward(self, loss: Tensor, **options: Any) -> None:
        """Backward of a loss through the chain's scaling; its `step` comes later."""
        self._backward(loss, **options)
        self.bound.journal.close()

    def _backward(
        self,
        loss: Tensor,
        *,
        weight: Any = None,
        last: bool = False,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Any = None,
    ) -> None:
        refuse_inference("backward")
        if not self.bound.takes_gradients:
            raise RuntimeError(f"update: {_NO_GRADIENTS}")
        micro = self.bound.micro
        if weight is not None:
            weight = weight_of(weight)
        micro.check(loss, weight, self.bound.gated)
        if self.in_backward is not None:
            self.in_backward.check_counted("update")
            self.in_backward.check_ranks()
        self._refuse_late_closing("update", last)
        if weight == 0 and self.in_backward is not None and self.bound.stands_alone:
            micro.weight = weight
            micro.add(loss)
            return  # its hooks would update
        # may raise, as a schedule may: nothing has happened yet, and the open window stays
        scaled = self.bound.scaled(loss, weight)
        marks = self._opened(micro, weight)
        micro.last = micro.last or last
        withhold = self.bound.withholds()
        with withheld(self.bound.target, withhold) if weight != 0 else self._of_nothing(withhold):
            micro.unsynchronised = micro.unsynchronised or self._gradients_withheld()
            try:
                scaled.backward(retain_graph=retain_graph, create_graph=create_graph, inputs=inputs)
            except RuntimeError as error:
                raise_explained(error)
                raise
        reached = self.bound.gradients.reached(marks) if self.in_backward is None else self.in_backward.close()
        if not reached and not self._gradients_withheld():
            raise RuntimeError(
                "update: the loss reaches none of the bound parameters. Was it computed from another model, or "
                "under torch.no_grad()?"
            )
        micro.add(loss)
        self.bound.window.begun = True

    @contextmanager
    def _of_nothing(self, withhold: bool) -> Iterator[None]:
        """The backward of a micro-batch of weight 0, whose gradients are 0; it runs, for ranks meet in it."""
        with withheld(self.bound.target, withhold), self.bound.gradients.made_zero():
            yield

    def _opened(self, micro: MicroBatch, weight: float | None) -> Marks | None:
        """Before a backward: `.grad` and the window as it wants them. What tells later whether it reached them."""
        bound, journal = self.bound, self.bound.journal
        journal.open = True
        parked, fails = False, "backward failed"
        if bound.target.sharded:
            journal.lost = fails  # what FSDP2 was given back cannot be taken again
        if not micro.backwards:
            journal.away = partial(self._closed_again, bound.state)
            micro.weight = weight
            bound.make_room(weight)
            parked = self._open_micro_batch()
        marks = bound.gradients.marks(look=not parked) if micro.backwards or parked else None
        if self.in_backward is not None:
            self.checkpoint.warn_of_other_weights()
            self.in_backward.open()
        journal.lost = fails  # from here on autograd adds to what is there
        journal.away = None
        return marks

    def _closed_again(self, state: Links) -> None:
        """Nothing was added yet: the window is where it was."""
        self.bound.state = state
        self.bound.gradients.clear(look=False)

    def _forward(self, closure: Callable[[], Tensor], last: bool | None = None) -> Tensor:
        """The loss of a closure, under the context that a forward without one would run in."""
        with torch.enable_grad(), self.context(last=last):
            return closure()

    def step(self, grads: Mapping[str, Tensor | None] | None, last: bool, keep_grads: bool) -> UpdateInfo:
        """The chain and the new weights, from the gradients that lie in `.grad` or are given."""
        self._refuse_late_closing("step", last)
        return self._step(grads, keep_grads, None, last)

    def _step(
        self,
        grads: Mapping[str, Tensor | None] | None,
        keep_grads: bool,
        closure: Callable[[], Tensor] | None,
        last: bool = False,
        look: bool = True,
    ) -> UpdateInfo:
        if not self.bound.takes_gradients:
            grads, keep_grads = self._no_gradients(grads), True  # those in `.grad` are for somebody else
        elif self.bound.micro.weight == 0 and grads is None and self.bound.stands_alone:
            return self.bound.passed_over(self.bound.facts(), keep_grads)
        elif self.in_backward is not None:
            if grads is None:
                return self.in_backward.finish()
            self.in_backward.check_counted("step")
        micro, window = self.bound.micro, self.bound.window
        scaled = micro.backwards > 0 and grads is None
        gradients = self.bound.gradients
        received = gradients.gather(look, closure is not None) if grads is None else gradients.from_mapping(grads)
        if not len(received) and self.bound.takes_gradients and not self._gradients_withheld():
            raise RuntimeError(
                "step: no bound parameter has a gradient. Call updater.update(loss), or loss.backward() first."
            )
        self._check_raw_window(scaled, last)
        self.checkpoint.warn_of_other_weights()
        only_adds = scaled and not keep_grads and closure is None and self.bound.only_adds(received, last)
        step = self.bound.facts(
            None if only_adds else self.bound.params(look=False),  # whoever made `received` has looked
            scaled=scaled,
            summed=scaled and window.name is not None,
            weight=micro.weight,
            evaluate=None if closure is None else Evaluation(self.bound, closure).at,
            micro=replace(micro, last=True) if last else micro,
        )
        lent = keep_grads or grads is not None
        return self._run(received, step, lent, keep_grads=keep_grads, only_adds=only_adds)

    def _run(self, received: Tensors, step: Step, lent: bool, **how: Any) -> UpdateInfo:
        """The chain. Where the run diverges, what led to it must not be in the next update: it is dropped."""
        try:
            return self.bound.run(received, step, lent, **how)
        except Diverged as error:
            journal = self.bound.journal
            self._diverged, journal.lost = error.of_window, f"{journal.walking} failed"
            raise

    def check_waiting(self, owner: str, lost: str) -> None:
        """RuntimeError while a backward waits for its step: `lost` says what would become of its gradient."""
        if self.in_backward is not None:
            self.in_backward.check_counted(owner)
        if self.bound.micro.backwards:
            raise RuntimeError(
                f"{owner}: a backward is waiting for its step(), and {lost}. Call updater.step() first, or "
                "updater.zero_grad() to drop it."
            )

    def check_writable(self, sync: bool) -> None:
        """RuntimeError where a state would lack a gradient, or hold a window that differs from rank to rank."""
        self.check_waiting("state_dict", "its gradient would be lost")
        window = self.bound.window
        if window.differs(self.bound.state) and not sync:
            cure = "call state_dict(sync=True) on every rank"
            if window.unsynchronised and self.bound.target.sharded:  # which cannot reduce it before it closes
                cure = "have every micro-batch reduced into a buffer: accumulate(…, dtype=…)"
            raise RuntimeError(
                f"state_dict: the open window differs from rank to rank. Save where a window closes, or {cure}."
            )

    def check_dropped(self, owner: str) -> None:
        """RuntimeError where the updater cannot drop what a backward did: it has updated the weights, or still runs."""
        self.bound.journal.alone(owner)
        if self.in_backward is not None:
            self.in_backward.check_counted(owner)

    @staticmethod
    def _no_gradients(grads: Mapping[str, Tensor | None] | None) -> Mapping[str, Tensor | None]:
        """What a step takes where the chain takes no gradients. RuntimeError where some are given."""
        if grads and any(grad is not None for grad in grads.values()):
            raise RuntimeError(f"step: {_NO_GRADIENTS}")
        return {} if grads is None else grads

    def hook_anew(self) -> None:
        """The model is another: hooks go from the old parameters to the new ones."""
        if self.in_backward is not None:
            self.in_backward.remove()
            self.in_backward = InBackward(self.bound)

    def suitable(self, target: Target) -> Target:
        """This model, if it may be rebound to; else ValueError."""
        if self.in_backward is not None:
            self.in_backward.check(target, "rebind")
        return target

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

    def _check_raw_window(self, scaled: bool, last: bool) -> None:
        if scaled or not self.bound.target.replicated or self.bound.window.name is None:
            return
        if self.bound.window.micro(self.bound.state) or self.bound.withholds(last):
            raise RuntimeError(
                "step: under DDP a window of several micro-batches needs updater.backward(loss) or update(loss) in "
                "place of loss.backward(): the ranks must reduce the whole window."
            )

    def _drop(self, why: str) -> None:
        """Drop the window that lies in `.grad` or has diverged, and say so. Of an update in backward, note it is torn.

        A window elsewhere is part of the state, which is as it was.
        """
        if self.in_backward is not None:
            self.in_backward.broken_off()
        micro = self._open_micros() if self._diverged else self.bound.window.micro(self.bound.state)
        many = "one micro-batch" if micro == 1 else f"{micro} micro-batches"
        try:
            if micro:
                warnings.warn(f"{why}: the open window of {many} was dropped.", stacklevel=6)
        finally:
            if micro:
                self.bound.drop_window()
            else:
                self.bound.drop_gradients()
            self._diverged = False

    def _open_micros(self) -> int:
        """How many micro-batches are in a window, wherever it lies."""
        every_state = states(self.bound.chain, self.bound.state)
        return max((inner.micro for _, inner in every_state if isinstance(inner, WindowState)), default=0)

    def flush(self) -> UpdateInfo:
        """Apply the open window although it is not full."""
        if self.in_backward is not None:
            self.in_backward.check_counted("flush")
        if self.bound.micro.backwards:
            raise RuntimeError("flush: a backward is waiting for its step(). Call updater.step(last=True).")
        window, weights = self.bound.window, self.bound.parameters()
        self.bound.state = window.in_dtypes_of(window.reduced(self.bound.state, "flush"), weights)
        if not self._open_micros():
            return UpdateInfo("window", int(self.bound.clocks["step"]), None, {}, dict, "no window is open")
        params = self.bound.params()
        self.checkpoint.warn_of_other_weights()  # after a look: the model may have been given other tensors
        nothing = params.select(())
        step = self.bound.facts(params, flushing=True, scaled=True, micro=MicroBatch(last=True))
        return self._run(nothing, step, False, waiting=self.bound.micro)

    def context(self, last: bool | None = None, autocast: torch.dtype | bool | None = None) -> Forward:
        """Where the forward of a micro-batch runs."""
        return Forward(self.bound, last, autocast)
