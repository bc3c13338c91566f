"""The Updater: a chain bound to a model. It owns the state, walks the data and touches the weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradchain.core.chain import chain
from gradchain.core.context import Run
from gradchain.core.transform import Transform
from gradchain.updater import averages, files, foreign
from gradchain.updater.bound import Bound
from gradchain.updater.capture import Capturing
from gradchain.updater.carry import CarryReport, rebound, restarted
from gradchain.updater.checkpoint import Checkpoint
from gradchain.updater.controls import Controls
from gradchain.updater.evaluation import Evaluation
from gradchain.updater.explanation import explanation
from gradchain.updater.in_backward import InBackward
from gradchain.updater.info import UpdateInfo
from gradchain.updater.ranks import LATE, unsynchronised, withheld
from gradchain.updater.state_dict import LoadReport, states
from gradchain.updater.target import Target
from gradchain.updater.window import MicroBatch

if TYPE_CHECKING:
    from gradchain.selectors import Predicate


class Updater(Controls, Capturing):
    """A chain bound to a model: the one stateful object of a training loop.

    `update(loss)` is `backward(loss)` and `step()`: the loss through the chain's scaling, backward, the gradients
    through the links, the weights. It uses the gradient of this loss and its window, nothing else.

    Args:
        tx: the chain, or a single link.
        target: a module; a dict of modules and tensors; a list of modules or (name, tensor) pairs. Wrappers (DDP,
            DataParallel, torch.compile, checkpoint) do not show in names. Tied weights are one parameter.
        autocast: the dtype the forward computes in under `context()`; None leaves that to the weights, or to an
            autocast around it.
        in_backward: update each parameter during backward, as soon as its gradient is there, and free the gradient:
            the peak of memory is lower by nearly all gradients. For chains in which every link is `per_parameter`.

    Raises:
        TypeError, ValueError: for what cannot be bound, and for a chain whose order cannot be meant.

    >>> import torch, gradchain as gch
    >>> model = torch.nn.Linear(2, 1)
    >>> updater = gch.chain(gch.clip_by_norm(1.0), gch.adamw(1e-2)).bind(model)
    >>> info = updater.update(model(torch.ones(4, 2)).square().mean())
    >>> info.reason, updater.num_updates
    ('applied', 1)
    """

    def __init__(
        self,
        tx: Transform,
        target: Any,
        *,
        autocast: torch.dtype | None = None,
        in_backward: bool = False,
        **options: Any,
    ) -> None:
        foreign.refuse_options(options)
        if autocast is not None and not isinstance(autocast, torch.dtype):
            raise TypeError(f"bind: autocast must be a torch.dtype or None, got {autocast!r}.")
        self._bound = Bound(tx if isinstance(tx, chain) else chain(tx), Target(target), autocast)
        self._checkpoint = Checkpoint(self._bound)
        self._averaged = False
        self._in_backward = InBackward(self._bound) if in_backward else None

    # the walk of the data

    def update(
        self,
        loss: Tensor | Callable[[], Tensor],
        *,
        weight: float | None = None,
        last: bool = False,
        keep_grads: bool = False,
        **backward: Any,
    ) -> UpdateInfo:
        """Backward, the chain, the new weights.

        Args:
            loss: a scalar; or a closure that returns one and does not call backward, for links such as `sam`.
            weight: what this micro-batch counts in the mean over its window, such as its number of tokens.
            last: close the window with this micro-batch, full or not.
            keep_grads: leave in `.grad` what the chain received, in place of None.
            **backward: retain_graph, create_graph, inputs: as `torch.Tensor.backward` has them.

        Raises:
            ValueError, TypeError, RuntimeError, FloatingPointError: in a sentence; weights, state and clocks are then
                untouched.
        """
        closure = None
        self._refuse_while_averaged("update")
        if keep_grads and self._in_backward is not None:
            raise ValueError("update: keep_grads=True: an updater bound with in_backward=True frees each gradient.")
        if not isinstance(loss, Tensor) and callable(loss):
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
        """Backward of a loss through the chain's scaling. May be called often before `step()`: gradients sum.

        The first call of a window clears the `.grad` of the bound parameters. An exception in backward drops the open
        window. See `update` for the arguments.
        """
        self._refuse_while_averaged("backward")
        micro = self._bound.micro
        micro.check(loss, weight, self._bound.gated())
        if self._in_backward is not None:
            self._in_backward.check_micro_batch(micro.backwards)
        self._refuse_late_closing("update", last)
        # may raise, as a schedule may: nothing has happened yet, and the open window stays
        scaled = self._bound.chain.scale_loss(loss, self._bound.state, self._bound.context(Run(weight=weight)))
        micro.last = micro.last or last
        parked = False
        if not micro.backwards:
            micro.weight = weight
            parked = self._open_micro_batch()
        marks = self._bound.gradients.marks() if micro.backwards or parked else []
        if self._in_backward is not None:
            self._checkpoint.warn_of_other_weights()
            self._in_backward.open()
        try:
            with withheld(self._bound.target, self._bound.withholds()):
                micro.unsynchronised = micro.unsynchronised or self._gradients_withheld()
                scaled.backward(retain_graph=retain_graph, create_graph=create_graph, inputs=inputs)
            reached = self._bound.gradients.reached(marks) if self._in_backward is None else self._in_backward.close()
            if not reached and not self._gradients_withheld():
                raise RuntimeError(
                    "update: the loss reaches none of the bound parameters. Was it computed from another model, or "
                    "under torch.no_grad()?"
                )
        except BaseException:
            if self._in_backward is not None:
                self._in_backward.close()  # parameters that had their turn keep weight, slots and count together
            self._drop_window("backward failed")
            raise
        micro.add(loss)
        self._bound.window.begun = True

    def _forward(self, closure: Callable[[], Tensor], last: bool | None = None) -> Tensor:
        """The loss of a closure, under the context that a forward without one would run in."""
        with self.context(last=last):
            return closure()

    def step(
        self, grads: Mapping[str, Tensor | None] | None = None, *, last: bool = False, keep_grads: bool = False
    ) -> UpdateInfo:
        """The chain and the new weights, from the gradients that lie in `.grad` or are given.

        Where `updater.backward` did not run, and in `grads`, gradients are true ones: the chain does not undo a loss
        scale, and `accumulate` divides them itself.

        Args:
            grads: name → gradient, or None for a parameter that has none. Names not given have none either.
            last: close the window with this micro-batch, full or not.
            keep_grads: leave in `.grad` what the chain received, in place of None.
        """
        self._refuse_while_averaged("step")
        self._refuse_late_closing("step", last)
        micro = self._bound.micro
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
        if self._in_backward is not None and grads is None:
            return self._in_backward.finish()
        micro, window = self._bound.micro, self._bound.window
        scaled = micro.backwards > 0 and grads is None
        gradients = self._bound.gradients
        received = gradients.gather(look, closure is not None) if grads is None else gradients.given(grads)
        if not len(received) and not self._gradients_withheld():
            raise RuntimeError(
                "step: no bound parameter has a gradient. Call updater.update(loss), or loss.backward() first."
            )
        self._check_raw_window(scaled)
        run = Run(weight=micro.weight, scaled=scaled, summed=scaled and window.name is not None)
        self._checkpoint.warn_of_other_weights()
        evaluate = None if closure is None else Evaluation(self._bound, closure).at
        info = self._bound.run(received, run, keep_grads or grads is not None, evaluate)
        self._bound.clocks["micro"] += 1
        parked = info.reason == "window"
        window.unsynchronised = parked and (window.unsynchronised or (micro.unsynchronised and window.name is not None))
        if parked or not keep_grads:
            gradients.clear(look=False)
        if parked:
            window.park()
        self._bound.micro = MicroBatch()
        return info

    # windows

    def _open_micro_batch(self) -> bool:
        """Before the first backward of a micro-batch: `.grad` becomes the parked window, or nothing. Which of them."""
        parked = self._bound.window.micro(self._bound.state) > 0
        if parked:
            self._bound.gradients.put_back(self._bound.window.state(self._bound.state).window)
        else:
            self._bound.gradients.clear()
        self._bound.window.put_back()
        return parked

    def _gradients_withheld(self) -> bool:
        """Whether gradients may be None although the loss reaches parameters: FSDP2 keeps them until it reduces."""
        return bool(self._bound.target.sharded) and self._bound.withholds()

    def _refuse_late_closing(self, owner: str, last: bool) -> None:
        if self._bound.micro.unsynchronised and (last or not self._bound.withholds()):
            raise RuntimeError(f"{owner}: {LATE}")

    def _check_raw_window(self, scaled: bool) -> None:
        if scaled or not self._bound.target.replicated or self._bound.window.name is None:
            return
        if self._bound.window.micro(self._bound.state) or self._bound.withholds():
            raise RuntimeError(
                "step: under DDP a window of several micro-batches needs updater.backward(loss) or update(loss) in "
                "place of loss.backward(): the ranks must reduce the whole window."
            )

    def _drop_window(self, why: str) -> None:
        micro = self._bound.window.micro(self._bound.state)
        if micro:
            many = "one micro-batch" if micro == 1 else f"{micro} micro-batches"
            warnings.warn(f"{why}: the open window of {many} was dropped.", stacklevel=4)
        self.zero_grad()

    def zero_grad(self) -> None:
        """Drop the gradients and the open window. Weights, state and clocks stay."""
        self._bound.drop_window()

    def flush(self) -> UpdateInfo:
        """Apply the open window although it is not full, by the mean over what it has. Falsy if none is open.

        On several ranks all call it; it reduces what they have over ranks.
        """
        self._refuse_while_averaged("flush")
        if self._bound.micro.backwards:
            raise RuntimeError("flush: a backward is waiting for its step(). Call updater.step(last=True).")
        self._bound.state = self._bound.window.reduced(self._bound.state, "flush")
        if not any(getattr(inner, "micro", 0) for _, inner in states(self._bound.chain, self._bound.state)):
            return UpdateInfo("window", self.num_updates, None, {}, dict, "no window is open")
        self._checkpoint.warn_of_other_weights()
        coming, self._bound.micro = self._bound.micro, MicroBatch(last=True)
        try:
            nothing = self._bound.gradients.params().select(())
            info = self._bound.run(nothing, Run(flushing=True, scaled=True), False, None)
        finally:
            self._bound.micro = coming  # its forward may have run
        self._bound.gradients.clear()
        return info

    @contextmanager
    def context(self, *, last: bool | None = None, autocast: torch.dtype | bool | None = None) -> Iterator[None]:
        """Where the forward of a micro-batch runs: under autocast, and without reducing over ranks inside a window.

        It reads the window and changes nothing: nesting it, leaving it by an exception and evaluating in it are
        harmless.

        Args:
            last: the coming micro-batch closes the window, full or not.
            autocast: a dtype, or False for none, in place of what `bind` was given; for this forward.
        """
        micro = self._bound.micro
        autocasting = self._autocasting(autocast)
        was_last, micro.last = micro.last, micro.last or bool(last)
        withhold = self._bound.withholds() and not self._must_synchronise()
        decided = micro.backwards > 0 and micro.unsynchronised
        micro.unsynchronised = decided or (withhold and not self._bound.target.sharded)  # FSDP2 decides in backward
        try:
            with unsynchronised(self._bound.target, withhold), autocasting:
                yield
        except BaseException:
            micro.last = was_last  # this forward came to nothing
            raise

    def _must_synchronise(self) -> bool:
        """DDP with static_graph records the graph in the first backward of the run, and must reduce then."""
        modules = self._bound.target.replicated
        return not self._bound.window.begun and any(getattr(m, "static_graph", False) for m in modules)

    def _autocasting(self, autocast: torch.dtype | bool | None) -> AbstractContextManager[Any]:
        """Autocast as `bind` or this forward wants it; where neither says anything, as it is outside."""
        dtype = self._bound.autocast if autocast is None or autocast is True else autocast
        if dtype is None:
            return nullcontext()
        if dtype is not False and not isinstance(dtype, torch.dtype):
            raise TypeError(f"context: autocast must be a torch.dtype, False or None, got {autocast!r}.")
        device = self._bound.target.parameters()[0].device.type
        return torch.autocast(device, dtype=dtype or None, enabled=dtype is not False)

    def explain(self, *, source: bool = False) -> str:
        """How the last step ran and what the chain holds, in words: kernels and executors, bytes, where schedules end.

        Args:
            source: with the source of compiled kernels.
        """
        return explanation(self._bound, source)

    # averages

    def averaged(self, name: str | None = None) -> AbstractContextManager[None]:
        """The model with its average weights inside `with`, and with its own again after it, bit for bit.

        Args:
            name: which link's average, where the chain keeps several.
        """
        self._refuse_while_averaged("averaged")
        return self._averaging(averages.average_state(self._bound.chain, self._bound.state, name)[1])

    @contextmanager
    def _averaging(self, state: Any) -> Iterator[None]:
        self._refuse_while_averaged("averaged")
        with averages.swapped(self._bound.target, state):
            self._averaged = True
            try:
                yield
            finally:
                self._averaged = False

    def averages(self, name: str | None = None) -> dict[str, Tensor]:
        """Name → average weight or buffer, without copies: for a teacher under `torch.func.functional_call`.

        An update writes over them: a graph that holds them from before it then raises in backward, as it would for
        weights.
        """
        self._refuse_while_averaged("averages")
        address, state = averages.average_state(self._bound.chain, self._bound.state, name)
        if address not in self._bound.lent_averages:
            self._bound.lent_averages.append(address)
        return averages.averages(self._bound.target, state)

    def copy_average_to(self, module: nn.Module, name: str | None = None) -> None:
        """Write the average weights and the buffers into another module of the same structure."""
        averages.copy_to(module, self.averages(name))

    def _refuse_while_averaged(self, what: str) -> None:
        if self._averaged:
            raise RuntimeError(f"{what}: not inside `with updater.averaged()`: the model has its average weights.")

    # state

    def state_dict(self, *, sync: bool = False) -> dict[str, Any]:
        """Everything but the weights as plain data that shares no memory with the live state.

        Args:
            sync: inside a window that ranks have not reduced yet, reduce it first; all ranks must call it.

        Raises:
            RuntimeError: inside such a window without `sync`.
        """
        self._refuse_while_averaged("state_dict")
        if self._bound.micro.backwards:
            raise RuntimeError(
                "state_dict: a backward is waiting for its step(), and its gradient would be lost. Call updater.step() "
                "first, or updater.zero_grad() to drop it."
            )
        if self._bound.window.unsynchronised and not sync:
            raise RuntimeError(
                "state_dict: the open window differs from rank to rank. Save where a window closes, or call "
                "state_dict(sync=True) on every rank."
            )
        if sync:
            self._bound.state = self._bound.window.reduced(self._bound.state, "state_dict")
        return self._checkpoint.write()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> LoadReport:
        """Take up a state. Everything is checked before anything changes.

        Args:
            state_dict: what `state_dict()` gave.
            strict: False loads what matches and reports the rest.

        Raises:
            ValueError: it is not such a state, or is that of another chain or model: with addresses and names.
        """
        return self.stage(state_dict, strict)()

    def stage(self, state_dict: Mapping[str, Any], strict: bool = True) -> Callable[[], LoadReport]:
        """Check a state, and return what makes it this updater's."""
        self._refuse_while_averaged("load_state_dict")
        return self._checkpoint.stage(state_dict, strict)

    def contents(self) -> dict[str, Any]:
        """Weights, buffers and state, as `save` writes them. All ranks call it: an open window is reduced over them."""
        self._refuse_while_averaged("save")
        self._checkpoint.refuse_sharded("save")
        return self._checkpoint.contents(self.state_dict(sync=True))

    def stage_contents(self, contents: Mapping[str, Any]) -> Callable[[], LoadReport]:
        """Check weights, buffers and state, and return what makes them this updater's."""
        self._refuse_while_averaged("load")
        return self._checkpoint.stage_contents(contents)

    def save(self, path: str | PathLike[str], **extra: Any) -> None:
        """Write weights, buffers, state and `extra` into one file, atomically. All ranks call it, one writes.

        Raises:
            TypeError: `extra` holds what would not load without running code.
        """
        files.save(path, {"updater": self.contents()}, extra)

    def load(self, path: str | PathLike[str]) -> dict[str, Any]:
        """Read what `save` wrote into the model and this updater, and return the extra.

        Hyperparameters that the code has otherwise than the file stay the code's, and a warning names them. Overrides
        come back; `load_state_dict` reports them.

        Raises:
            FileNotFoundError, ValueError: no such file, a damaged one, or one of another chain or model. Weights and
                state are then untouched.
        """
        parts, extra = files.load(path)
        files.check_names("load", ["updater"], parts)
        report = self.stage_contents(parts["updater"])()
        if report.differences:
            warnings.warn(f"load: {'; '.join(report.differences)}. The code's is used.", stacklevel=2)
        return extra

    def rebind(self, target: Any, remap: Mapping[str, Callable[[Tensor], Tensor]] | None = None) -> CarryReport:
        """Bind to a changed model: state goes along by name, new names start afresh, vanished ones leave.

        Args:
            target: as `bind` takes it.
            remap: name → function of a slot of that parameter, for one whose shape has changed.

        Raises:
            ValueError: a parameter has another shape than its state, and no `remap`.
        """
        self._refuse_while_averaged("rebind")
        report = rebound(self._bound, Target(target), remap or {})
        if self._in_backward is not None:
            self._in_backward.remove()
            self._in_backward = InBackward(self._bound)
        return report

    def reset(self, selector: Predicate | None = None) -> None:
        """Start the state afresh, of all parameters or those a selector matches. Clocks and weights stay."""
        self._refuse_while_averaged("reset")
        bound = self._bound
        members = None if selector is None else bound.active.members(selector)
        bound.state = restarted(bound.state, bound.fresh_state(), members)

    def __repr__(self) -> str:
        return f"{self._bound.chain!r}.bind(<{len(self.names)} parameters>)"

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(foreign.answer(name))
