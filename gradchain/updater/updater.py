"""The Updater: a chain bound to a model. It owns the state, walks the data and touches the weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from gradchain._lazy import at_home
from gradchain.core.chain import chain
from gradchain.core.transform import Transform
from gradchain.engine.commit import Commit
from gradchain.updater import averages, batch_norm, files, foreign, ticks
from gradchain.updater.bound import Bound
from gradchain.updater.capture import CapturedUpdate, capturing
from gradchain.updater.carry import CarryReport, rebound, reset
from gradchain.updater.files import FilePath, Format
from gradchain.updater.fixed import Form, check_form
from gradchain.updater.info import UpdateInfo
from gradchain.updater.journal import Pending
from gradchain.updater.modes import outside_inference, refuse_transforms
from gradchain.updater.moving import Changed, Moves
from gradchain.updater.parts import Which
from gradchain.updater.readings import Readings
from gradchain.updater.state_dict import LoadReport
from gradchain.updater.target import Target
from gradchain.updater.walk import BACKWARD, BackwardOptions, Walk
from gradchain.words.arguments import Nothing, answering

if TYPE_CHECKING:
    from gradchain.adapters.optimizer import ChainOptimizer
    from gradchain.selectors import SelectorLike


class Updater(Readings, foreign.Stranger):
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
            the peak of memory is lower by nearly all gradients. For chains in which every link is `per_parameter`. On
            several ranks a gradient must be reduced before its turn: FSDP2 and hooks of your own do so, DDP does not.
        zero_redundancy: under DistributedDataParallel, share the state out over its ranks, as ZeRO does: each has a
            part of it, updates that part of the weights, and gets the rest from the others. Steps are those without
            it. `state_dict`, `save` and what reads averages gather: all ranks call them.

    Raises:
        TypeError, ValueError: for what cannot be bound, and for a chain whose order cannot be meant.

    >>> import torch, gradchain as gch
    >>> model = torch.nn.Linear(2, 1)
    >>> updater = gch.chain(gch.clip_by_norm(1.0), gch.adamw(1e-2)).bind(model)
    >>> info = updater.update(model(torch.ones(4, 2)).square().mean())
    >>> info.reason, updater.num_updates
    ('applied', 1)
    """

    @answering
    def __init__(
        self,
        tx: Transform,
        target: Any,
        *,
        autocast: torch.dtype | None = None,
        in_backward: bool = False,
        zero_redundancy: bool = False,
        **options: Unpack[Nothing],
    ) -> None:
        foreign.refuse_options(options)
        refuse_transforms("bind")
        if autocast is not None and not isinstance(autocast, torch.dtype):
            raise TypeError(f"bind: autocast must be a torch.dtype or None, got {autocast!r}.")
        if not isinstance(zero_redundancy, bool):
            raise TypeError(f"bind: zero_redundancy must be True or False, got {zero_redundancy!r}.")
        with outside_inference():
            whole = tx if isinstance(tx, chain) else chain(tx)
            self._bound = Bound(whole, Target(target), autocast, zero_redundancy=zero_redundancy)
            self._walk = Walk(self._bound, in_backward)

    # the walk of the data

    def update(
        self,
        loss: Tensor | Callable[[], Tensor],
        *,
        weight: float | Tensor | None = None,
        last: bool = False,
        keep_grads: bool = False,
        **backward: Unpack[BackwardOptions],
    ) -> UpdateInfo:
        """Backward, the chain, the new weights: all of it or nothing, whatever exception or signal breaks it off.

        Only a window in `.grad` to which backward has begun to add is dropped then, with a warning. What a second
        exception keeps from being finished, the next call finishes; where that fails, it says to load a checkpoint.

        Args:
            loss: a scalar; or a closure that returns one and does not call backward, for links such as `sam`.
            weight: what this micro-batch counts in the mean over its window, such as its number of tokens; a number, or
                a tensor of one. With 0 it adds nothing, whatever its loss is, and alone it applies nothing.
            last: close the window with this micro-batch, full or not.
            keep_grads: leave in `.grad` what the chain received, in place of None.
            **backward: retain_graph, create_graph, inputs: as `torch.Tensor.backward` has them.

        Raises:
            ValueError, TypeError, RuntimeError, FloatingPointError: in a sentence; all is untouched. With in_backward,
                parameters that had their turn stay updated, and all calls refuse until weights and state are loaded.
        """
        self._check("update")
        if backward:
            foreign.refuse_arguments("update", backward, ("weight", "last", "keep_grads", *BACKWARD))
        return self._bound.journal.walk("update", self._walk.update, loss, weight, last, keep_grads, **backward)

    def backward(
        self,
        loss: Tensor,
        *,
        weight: float | Tensor | None = None,
        last: bool = False,
        **backward: Unpack[BackwardOptions],
    ) -> None:
        """Backward of a loss through the chain's scaling. May be called often before `step()`: gradients sum.

        The first call of a window clears the `.grad` of the bound parameters. An exception in backward drops the open
        window. See `update` for the arguments.
        """
        self._check("backward")
        if backward:
            foreign.refuse_arguments("backward", backward, ("weight", "last", *BACKWARD))
        self._bound.journal.walk("backward", self._walk.backward, loss, weight=weight, last=last, **backward)

    def step(
        self,
        grads: Mapping[str, Tensor | None] | None = None,
        *,
        last: bool = False,
        keep_grads: bool = False,
        **options: Unpack[Nothing],
    ) -> UpdateInfo:
        """The chain and the new weights, from the gradients that lie in `.grad` or are given.

        Where `updater.backward` did not run, and in `grads`, gradients are true ones: the chain does not undo a loss
        scale, and `accumulate` divides them itself.

        Args:
            grads: name → gradient, or None for a parameter that has none. Names not given have none either.
            last: close the window with this micro-batch, full or not.
            keep_grads: leave in `.grad` what the chain received, in place of None.
        """
        self._check("step")
        if options:
            foreign.refuse_arguments("step", options, ("grads", "last", "keep_grads"))
        if grads is None and "accelerate.state" in sys.modules:
            foreign.refuse_held_back()
        with outside_inference():
            return self._bound.journal.walk("step", self._walk.step, grads, last, keep_grads)

    @answering
    def zero_grad(self) -> None:
        """Drop the gradients and the open window. Weights, state and clocks stay."""
        bound = self._recovered()
        self._walk.check_dropped("zero_grad")
        bound.journal.guard(bound.journal.write, Pending(Commit(), bound.drop_window))

    @answering
    def flush(self) -> UpdateInfo:
        """Apply the open window although it is not full, by the mean over what it has. Falsy if none is open.

        On several ranks all call it; it reduces what they have over ranks.
        """
        self._check("flush")
        with outside_inference():
            return self._bound.journal.walk("flush", self._walk.flush)

    @answering
    def context(
        self, *, last: bool | None = None, autocast: torch.dtype | bool | None = None
    ) -> AbstractContextManager[None]:
        """Where the forward of a micro-batch runs: under autocast, and without reducing over ranks inside a window.

        It reads the window and changes nothing: nesting it, leaving it by an exception and evaluating in it are
        harmless.

        Args:
            last: the coming micro-batch closes the window, full or not.
            autocast: a dtype, or False for none, in place of what `bind` was given; for this forward.
        """
        self._recovered()
        return self._walk.context(last, autocast)

    def capturing(self) -> AbstractContextManager[CapturedUpdate]:
        """One update inside, to be captured in a CUDA graph; it does not count, for a capture runs nothing.

        What a graph holds is fixed, but a learning rate moves: `advance()` sends the numbers of the coming update to
        where the graph's kernels read them, and counts it. Each replay needs one.

            side = torch.cuda.Stream()                           # what is captured must be new to no other stream
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):                               # eagerly, to compile and to make the state
                    loss = loss_of(model(inputs))
                    updater.update(loss)
            torch.cuda.current_stream().wait_stream(side)
            del loss                                             # its graph holds tensors of the other stream
            graph = torch.cuda.CUDAGraph()
            with updater.capturing() as captured, torch.cuda.graph(graph):
                loss = loss_of(model(inputs))                    # of tensors that stay where they are
                updater.update(loss)
            for batch in loader:
                inputs.copy_(batch)
                info = captured.advance()                        # on the stream of the replay
                graph.replay()

        Needs `GRADCHAIN_EXECUTORS=triton`. Not supported: links that may hold the chain (`accumulate`, `amp_scale`,
        `skip_nonfinite`), that ask for whole tensors (`map`), keep a number of the device in their state or take a
        closure; `clip_by_norm` with per="tensor" or with groups; several ranks; in_backward. Loading a state, or
        moving the model, needs a new capture.

        Raises:
            ValueError, RuntimeError: for what cannot be captured.
        """
        self._check("capturing")
        if self._walk.in_backward is not None:
            raise ValueError("capturing: an updater bound with in_backward=True updates in backward hooks: bind anew.")
        return capturing(self._bound)

    def as_optimizer(self) -> ChainOptimizer:
        """A real `torch.optim.Optimizer` over this updater: for Lightning, Accelerate, transformers, ignite.

        And for torch's schedulers and GradScaler. It is described at its class, `adapters.optimizer.ChainOptimizer`.
        """
        return cast("ChainOptimizer", at_home("adapters.optimizer", "ChainOptimizer")(self))

    # what there is to set beside the code

    @answering
    def override(self, name: str, value: Any = None, *, factor: float | None = None) -> None:
        """Set a hyperparameter from now on, in place of the code's: by a value, or times `factor`.

        Args:
            name: an address or a unique suffix of one, such as "learning_rate".
            value: a number, schedule or per-parameter value; None (and no factor) ends the override.
            factor: multiplies what the hyperparameter would be.

        Raises:
            KeyError: no hyperparameter, or more than one, is called so.
            ValueError, TypeError: the value is out of range.
        """
        with outside_inference():
            self._recovered().hypers.override(name, value, factor, self._bound.clocks)
            self._bound.follow_clocks()

    @answering
    def tick(self, clock: str, amount: float = 1) -> None:
        """Advance a named clock that a `by(clock, …)` schedule reads. "step" and "micro" tick by themselves.

        Links that work at its ticks do so now, all or nothing: `average_params(0.999, on="ema")` averages the weights
        as they are, once for each of `amount` ticks. Nothing of an open window changes.

        Args:
            clock: its name.
            amount: how far it goes, at least 0; a whole number where a link works at its ticks.

        Raises:
            KeyError: nothing reads such a clock.
            ValueError: it ticks by itself, or the amount is no such number.
            RuntimeError: a link works at its ticks, and it is inside `averaged()` or in the middle of an update.
        """
        ticks.tick(self._recovered(), clock, amount, (self._check, self._walk.check_dropped))

    def observe(self, name: str, value: float | Tensor) -> None:
        """Put a number where links see it (`ctx.observed`), such as a validation loss for reduce_on_plateau.

        Every call counts once, at the next update that is applied; a clock that it ticks does so at once.
        """
        self._recovered().observe(name, value)

    # averages

    def averaged(self, name: str | None = None) -> AbstractContextManager[None]:
        """The model with its average weights inside `with`, and with its own again after it, bit for bit.

        Args:
            name: which link's average, where the chain keeps several.
        """
        self._check("averaged")
        state = averages.average_state(self._bound.chain, self._bound.state, name)[1]
        return averages.swapped(self._bound.target, state, self._bound.journal, partial(self._check, "averaged"))

    def averages(self, name: str | None = None) -> dict[str, Tensor]:
        """Name → average weight or buffer in the model's dtype: for a teacher under `torch.func.functional_call`.

        They are no copies, but where the average is kept in a wider dtype, as that of half weights is. An update writes
        over those: a graph that holds them from before it then raises in backward, as it would for weights.
        """
        self._check("averages")
        with outside_inference():
            addresses, state = averages.average_state(self._bound.chain, self._bound.state, name)
            self._bound.lent_averages.update(addresses)
            return averages.averages(self._bound.target, state)

    def copy_average_to(self, module: nn.Module, name: str | None = None) -> None:
        """Write the average weights and the buffers into another module of the same structure, in its dtypes."""
        self._check("averages")
        with outside_inference():
            state = averages.average_state(self._bound.chain, self._bound.state, name)[1]
            averages.copy_to(module, averages.stored_averages(self._bound.target, state))

    def update_batch_norm(
        self, loader: Iterable[Any], forward: Callable[[Any], object] | None = None, name: str | None = None
    ) -> None:
        """Make the batch-norm statistics of the average, by a pass over data; the model is as before after it.

        They are means over all batches of the model in training mode at its average weights, as those of
        `torch.optim.swa_utils.update_bn`, and kept with the average: `averaged()`, `averages()`, `copy_average_to`,
        checkpoints and `gch.read_weights(path, averaged=True)` have them, until the average moves. Where that averages
        buffers, it goes on from them. Norms that the model keeps in evaluation mode are left alone.

        Args:
            loader: batches: tensors, or tuples of which the first is what the model takes.
            forward: what is called with each batch as it comes, in place of the model.
            name: which link's average, where the chain keeps several.

        Raises:
            ValueError: there is no batch; or several modules are bound, and no `forward`.
            KeyError, RuntimeError: as `averaged` has them.
        """
        self._check("update_batch_norm")
        with outside_inference():
            batch_norm.update(self._bound, self.averaged(name), loader, forward, name)

    def _check(self, owner: str, loads: bool = False) -> None:
        """Before anything is changed or written. RuntimeError where `owner` must not be called."""
        journal = self._bound.journal
        journal.alone(owner)
        if journal.open or journal.torn:
            journal.enter(owner, loads)
        refuse_transforms(owner)
        if journal.averaged:
            raise RuntimeError(f"{owner}: not inside `with updater.averaged()`: the model has its average weights.")

    # state

    @answering
    def state_dict(self, *, sync: bool = False, form: Form = "plain") -> dict[str, Any]:
        """Everything but the weights as plain data that shares no memory with the live state.

        Args:
            sync: inside a window that ranks have not reduced yet, reduce it first; all ranks must call it.
            form: "fixed" for torch.distributed.checkpoint: keys and shapes are those of a state that is fresh.

        Raises:
            RuntimeError: inside such a window without `sync`.
        """
        check_form(form)
        self._check("state_dict")
        self._walk.check_writable(sync)
        with outside_inference():
            return self._walk.checkpoint.write(form, sync)

    def load_state_dict(
        self,
        state_dict: Mapping[str, Any],
        strict: bool = True,
        **changed: Unpack[Changed],
    ) -> LoadReport:
        """Take up a state. Everything is checked before anything changes, each field by what its State declares.

        Args:
            state_dict: what `state_dict()` gave, in either form.
            strict: False loads what matches, by kind where a rule took another's place, and reports the rest.
            **changed: what has changed since: rename, links and resize as for `load`.

        Raises:
            ValueError: it is not such a state, holds what no run can come to, or is that of another chain or model:
                with addresses and names.
            RuntimeError: inside `averaged()`, or the model has changed since it was bound.
        """
        return self.stage(state_dict, strict, Moves.of("load_state_dict", strict, changed))()

    def stage(
        self, state_dict: Mapping[str, Any], strict: bool = True, moves: Moves | None = None
    ) -> Callable[[], LoadReport]:
        """Check a state, and return what makes it this updater's."""
        self._check("load_state_dict", loads=True)
        with outside_inference():
            return self._bound.journal.guard(self._walk.checkpoint.stage, state_dict, strict, moves=moves)

    def contents(self, weights: Which = "all", form: Form = "plain") -> dict[str, Any]:
        """Weights, buffers and state as they lie in memory. All ranks call it: an open window is reduced over them."""
        self._check("save")
        self._walk.checkpoint.refuse_sharded("save", form)
        self._walk.check_writable(sync=True)
        with outside_inference():
            return self._walk.checkpoint.contents(form, weights)

    def stage_contents(self, contents: Mapping[str, Any], moves: Moves | None = None) -> Callable[[], LoadReport]:
        """Check weights, buffers and state, and return what makes them this updater's."""
        self._check("load", loads=True)
        with outside_inference():
            return self._bound.journal.guard(self._walk.checkpoint.stage_contents, contents, moves)

    def save(self, path: FilePath, *, weights: Which = "all", format: Format | None = None, **extra: Any) -> None:
        """Write weights, buffers, state and `extra` into one file, atomically. All ranks call it, one writes.

        The file is what `torch.save` writes, a dict of "format", "parts" and "extra" that `torch.load` reads, and after
        it the checksum of all that. Where `path` is a link, the file that it leads to is replaced. A file that is
        replaced gives its mode to the new one, else the umask does.

        Args:
            path: the file. `gch.read_weights(path)` gives its weights without a model.
            weights: "trainable" leaves out frozen ones, "none" all, and buffers: `load` leaves them as they are then.
            format: "safetensors" is for other tools too: weights by name, all else behind "gradchain/". None goes by
                the suffix.
            **extra: plain data and tensors, which `load` returns.

        Raises:
            TypeError: `path` is no path, or `extra` holds what would not load without running code.
            ValueError: `path` is a folder, a device or a FIFO, `extra` holds itself, or an argument is none of its
                words. As safetensors: a tensor is sparse, without values or of a dtype that the format has not.
            ModuleNotFoundError: the package safetensors is to write it and is not installed.
            OSError: it cannot be written, as on a full disk. The file before it is then as it was.
            RuntimeError: inside `averaged()`, between `backward` and `step`, with sharded weights, or torch cannot
                write a tensor.
        """
        files.save(path, {"updater": self}, weights, format, extra)

    def load(self, path: FilePath, *, strict: bool = True, **changed: Unpack[Changed]) -> dict[str, Any]:
        """Read what `save` wrote into the model and this updater, and return the extra.

        Hyperparameters that the code has otherwise than the file stay the code's, and a warning names them. Overrides
        come back; `load_state_dict` reports them. Which weights require a gradient is the model's to say: the file does
        not, and loading changes no `requires_grad`. Weights that were not saved stay as they are, and the next update
        warns if they are others than those that the state was saved with.

        The checksum is verified before anything of the file is used; of a file of before there was one, those of its
        zip. Whatever is raised, weights, buffers and state are untouched. `updater.loaded` is the report.

        Args:
            path: the file.
            strict: False drops what has no place, and what was not saved starts anew; slots go to others of their kind.
            **changed: what has changed since the save.
                rename: saved name of a parameter or buffer → its name now, `*` carried over: `{"old.*": "new.*"}`.
                links: saved address of a link → its address here: `{"scale_by_adam": "masked/scale_by_adam"}`.
                resize: glob of names → how what has another shape is taken over: "overlap" (what both have), "anew", or
                    a function of the weight and of each slot.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no regular file, is damaged, or is of another chain or model.
            OSError: it cannot be opened or read.
            TypeError: `path` is no path.
            ModuleNotFoundError: it is a file of safetensors, and that package is not installed.
            RuntimeError: inside `averaged()`, with sharded weights, or the model has changed since it was bound.
        """
        return files.load(path, {"updater": self}, {"updater": Moves.of("load", strict, changed)})

    def rebind(self, target: Any, remap: Mapping[str, Callable[[Tensor], Tensor]] | None = None) -> CarryReport:
        """Bind to a changed model: state goes along by name, new names start afresh, vanished ones leave.

        Args:
            target: as `bind` takes it.
            remap: name → function of a slot of that parameter, for one whose shape has changed.

        Raises:
            ValueError: a parameter has another shape than its state, and no `remap`.
        """
        self._check("rebind")
        self._walk.check_dropped("rebind")
        with outside_inference():
            changed, anew = self._walk.suitable(Target(target)), self._walk.hook_anew
            return self._bound.journal.guard(rebound, self._bound, changed, remap or {}, anew)

    def reset(self, selector: SelectorLike | None = None) -> None:
        """Start the state afresh, of all parameters or those a selector matches. Clocks and weights stay."""
        self._check("reset")
        with outside_inference():
            self._bound.journal.guard(reset, self._bound, selector)

    # copies

    def __getstate__(self) -> dict[str, Any]:
        self._check("copy")
        self._bound.target.check()
        self._walk.check_waiting("copy", "torch copies no gradient of a parameter")
        return self.__dict__
