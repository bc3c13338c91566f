"""The Updater: a chain bound to a model. It owns the state, walks the data and touches the weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradchain.core.chain import chain
from gradchain.core.checks import check_chain
from gradchain.core.context import Context, Run
from gradchain.core.state import Links, merged
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform, walk
from gradchain.updater import averages, files, foreign
from gradchain.updater.carry import CarryReport, carried, restarted
from gradchain.updater.checkpoint import Checkpoint
from gradchain.updater.evaluation import Evaluation
from gradchain.updater.gradients import Gradients, over_ranks, owned, unsynchronised, withheld
from gradchain.updater.hyperparameters import Hyperparameters
from gradchain.updater.info import Metrics, UpdateInfo
from gradchain.updater.state_dict import LoadReport, rebuilt, states
from gradchain.updater.target import Target

if TYPE_CHECKING:
    from gradchain.selectors import Predicate


class Updater:
    """A chain bound to a model: the one stateful object of a training loop.

    `update(loss)` is `backward(loss)` and `step()`: the loss through the chain's scaling, backward, the gradients
    through the links, the weights. It uses the gradient of this loss and its window, nothing else.

    Args:
        tx: the chain, or a single link.
        target: a module; a dict of modules and tensors; a list of modules or (name, tensor) pairs. Wrappers (DDP,
            DataParallel, torch.compile, checkpoint) do not show in names. Tied weights are one parameter.
        autocast: the dtype the forward computes in under `context()`; None for the weights' own.

    Raises:
        TypeError, ValueError: for what cannot be bound, and for a chain whose order cannot be meant.

    >>> import torch, gradchain as gch
    >>> model = torch.nn.Linear(2, 1)
    >>> updater = gch.chain(gch.clip_by_norm(1.0), gch.adamw(1e-2)).bind(model)
    >>> info = updater.update(model(torch.ones(4, 2)).square().mean())
    >>> info.reason, updater.num_updates
    ('applied', 1)
    """

    def __init__(self, tx: Transform, target: Any, *, autocast: torch.dtype | None = None, **options: Any) -> None:
        foreign.refuse_options(options)
        if autocast is not None and not isinstance(autocast, torch.dtype):
            raise TypeError(f"bind: autocast must be a torch.dtype or None, got {autocast!r}.")
        self._chain = tx if isinstance(tx, chain) else chain(tx)
        self._autocast = autocast
        self._attach(Target(target))
        active = [f.name for f in self._target.index.facts if f.parameter.requires_grad]
        self._active = self._target.index.subset(active)
        with torch.no_grad():
            self._state: Links = self._chain.init(self._gradients.params().select(self._active))
        check_chain(self._chain, self._target.index, self._state, autocast)
        self._hypers = Hyperparameters(self._chain)
        self._clocks: dict[str, float] = {"step": 0, "micro": 0}
        self._clocks.update({name: 0 for name in sorted(self._hypers.clocks()) if name not in self._clocks})
        self._skipped = 0
        self._observed: dict[str, float] = {}
        self._records: dict[str, Any] = {}
        self._fingerprint: dict[str, int] | None = None
        self._averaged = False
        self._forget_micro_batch()
        self._unsynced_window = False

    def _attach(self, target: Target) -> None:
        self._target = target
        self._gradients = Gradients(target)

    def _forget_micro_batch(self) -> None:
        """No backward since the last step, and nothing known of the coming one."""
        self._backwards = 0
        self._loss: Any = None
        self._weight: float | None = None
        self._last = False
        self._unsynced_forward = False

    # what there is

    @property
    def chain(self) -> chain:
        """The chain, as it was bound."""
        return self._chain

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parameters, in order."""
        return self._target.index.names

    @property
    def num_updates(self) -> int:
        """How many updates were applied: the clock "step"."""
        return int(self._clocks["step"])

    @property
    def num_micro(self) -> int:
        """How many micro-batches were stepped, held ones too: the clock "micro"."""
        return int(self._clocks["micro"])

    @property
    def num_skipped(self) -> int:
        """How many updates were skipped for an overflow or a non-finite gradient."""
        return self._skipped

    @property
    def clocks(self) -> dict[str, float]:
        """Every clock, by name."""
        return dict(self._clocks)

    @property
    def metrics(self) -> Metrics:
        """The last value of everything that links recorded, by address."""
        return Metrics(self._records)

    def hyperparams(self) -> dict[str, float]:
        """Address → the number the coming update will use."""
        return self._hypers.values(self._clocks)

    def override(self, name: str, value: Any = None, *, factor: float | None = None) -> None:
        """Set a hyperparameter from now on, in place of the code's: by number or schedule, or times `factor`.

        Args:
            name: an address or a unique suffix of one, such as "learning_rate".
            value: a number or schedule; None (and no factor) ends the override.
            factor: multiplies what the hyperparameter would be.

        Raises:
            KeyError: no hyperparameter, or more than one, is called so.
            ValueError, TypeError: the value is out of range.
        """
        self._hypers.override(name, value, factor)
        for clock in self._hypers.clocks() - set(self._clocks):
            self._clocks[clock] = 0

    def tick(self, clock: str, amount: float = 1) -> None:
        """Advance a named clock that a `by(clock, …)` schedule reads. "step" and "micro" tick by themselves."""
        if clock in ("step", "micro"):
            raise ValueError(f"tick: {clock!r} ticks by itself, once per {'update' if clock == 'step' else 'step()'}.")
        if clock not in self._clocks:
            known = sorted(set(self._clocks) - {"step", "micro"})
            raise KeyError(f"tick: nothing reads a clock {clock!r}. Clocks that are read: {', '.join(known) or 'none'}.")
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not amount >= 0:
            raise ValueError(f"tick: amount must be a number of at least 0, got {amount!r}.")
        self._clocks[clock] += amount

    def observe(self, name: str, value: float | Tensor) -> None:
        """Put a number where links see it (`ctx.observed`), such as a validation loss for reduce_on_plateau."""
        number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        if not isinstance(name, str) or isinstance(number, bool) or not isinstance(number, (int, float)):
            raise TypeError(f"observe: takes a name and a number, got {name!r} and {value!r}.")
        self._observed[name] = float(number)

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
        if not isinstance(loss, Tensor) and callable(loss):
            closure = loss
            with self.context(last=last or None):
                loss = closure()
        self.backward(loss, weight=weight, last=last, **backward)
        return self._step(None, keep_grads, closure)

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
        self._last = self._last or last
        self._check_loss(loss, weight)
        if self._last and self._unsynced_forward:
            raise RuntimeError(
                "update: last=True, but the forward ran without synchronisation over ranks. Say it where the forward "
                "runs: with updater.context(last=True)."
            )
        if not self._backwards:
            self._weight = weight
            self._open_micro_batch()
        ctx = self._context(Run(weight=self._weight))
        marks = self._gradients.marks()
        try:
            scaled = self._chain.scale_loss(loss, self._state, ctx)
            with withheld(self._target, self._withholds()):
                scaled.backward(retain_graph=retain_graph, create_graph=create_graph, inputs=inputs)
            if not self._gradients.reached(marks) and not self._gradients_withheld():
                raise RuntimeError(
                    "update: the loss reaches none of the bound parameters. Was it computed from another model, or "
                    "under torch.no_grad()?"
                )
        except BaseException:
            self._drop_window("backward failed")
            raise
        self._backwards += 1
        detached = loss.detach()
        self._loss = detached if self._loss is None else self._loss + detached

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
        self._last = self._last or last
        return self._step(grads, keep_grads, None)

    def _step(
        self, grads: Mapping[str, Tensor | None] | None, keep_grads: bool, closure: Callable[[], Tensor] | None
    ) -> UpdateInfo:
        scaled = self._backwards > 0 and grads is None
        received = self._gradients.gather() if grads is None else self._gradients.given(grads)
        if not len(received) and not self._gradients_withheld():
            raise RuntimeError(
                "step: no bound parameter has a gradient. Call updater.update(loss), or loss.backward() first."
            )
        self._check_raw_window(scaled)
        run = Run(weight=self._weight, scaled=scaled, summed=scaled and self._window_link() is not None)
        lent = keep_grads or grads is not None
        info = self._run_chain(received, run, lent, closure)
        self._clocks["micro"] += 1
        if info.reason == "window" and self._window_link() is not None:
            self._unsynced_window = self._unsynced_window or self._unsynced_forward
        elif info.reason != "window":
            self._unsynced_window = False
        if not keep_grads or (info.reason == "window"):
            self._gradients.clear()
        self._forget_micro_batch()
        return info

    def _run_chain(
        self, received: Tensors, run: Run, lent: bool, closure: Callable[[], Tensor] | None
    ) -> UpdateInfo:
        """The links, left to right, and what they decided: applied or held. All or nothing."""
        self._activate(received)
        self._warn_of_other_weights()
        ctx = self._context(run)
        if closure is not None:
            run.evaluate = Evaluation(self, self._chain, self._gradients, closure).at
        with torch.no_grad():
            out, state = self._chain.update(received, self._state, ctx)
            assert isinstance(state, Links)
            state = self._owning(state, received, lent)
            if out is not None:
                self._gradients.apply(out)
        info = self._info(run, out is not None)
        self._state = state
        self._records.update(run.records)
        if out is not None:
            self._clocks["step"] += 1
        elif info.reason != "window":
            self._skipped += 1
        return info

    def _info(self, run: Run, applied: bool) -> UpdateInfo:
        reason = "applied" if applied else (run.held[1] if run.held else "held")
        clocks, overrides, hypers = dict(self._clocks), dict(self._hypers.overrides), self._hypers
        return UpdateInfo(
            reason,
            int(clocks["step"]),
            self._loss,
            run.records,
            lambda: {**hypers.values_under(clocks, overrides), **run.used},
            run.detail,
        )

    def _owning(self, state: Links, received: Tensors, users: bool) -> Links:
        """`state`, sharing no memory with the weights, nor with gradients that stay the user's."""
        lent = {id(p) for p in self._target.parameters()}
        # a gradient that is a view lies in a bucket of DDP's, which the next reduction overwrites
        lent |= {id(t._base) for t in received.values() if t._base is not None}
        if users:
            lent |= {id(t) for t in received.values()}
        changes = {}
        for address, inner in states(self._chain, state):
            kept = {n: owned(v, lent) for n, v in inner.items() if isinstance(v, Tensors) and len(v)}
            if any(kept[n] is not getattr(inner, n) for n in kept):
                changes[address] = inner.replace(**kept)
        return rebuilt(self._chain, state, changes) if changes else state  # type: ignore[return-value]

    def _context(self, run: Run) -> Context:
        """The context of a run: what the updater knows, put into it."""
        run.params = self._gradients.params()
        run.clocks = self._clocks
        run.loss = self._loss if run.loss is None else run.loss
        run.buffers = self._target.buffers()
        run.observed = self._observed
        run.overrides = self._hypers.overrides
        run.autocast = self._autocast
        run.last = self._last
        if self._distributed():
            run.over_ranks = over_ranks
        return Context.of(run)

    def _activate(self, received: Tensors) -> None:
        """Make state for parameters whose first gradient this is."""
        new = [name for name in received if name not in self._active]
        if not new:
            return
        active = self._target.index.subset([*self._active.names, *new])
        with torch.no_grad():
            fresh = self._chain.init(self._gradients.params().select(active))
        self._state = merged(self._state, fresh)  # type: ignore[assignment]
        self._active = active

    # windows

    def _window_link(self) -> str | None:
        """The name of the first link, where its window lies in `.grad`."""
        named = self._chain.named
        return named[0][0] if named and named[0][1].sums_in_grad else None

    def _window(self) -> Any:
        """The state of the link whose window lies in `.grad`, or None."""
        name = self._window_link()
        return None if name is None else self._state.links[name]

    def _open_micro_batch(self) -> None:
        """Before the first backward of a micro-batch: `.grad` becomes the parked window, or nothing."""
        window = self._window()
        if window is not None and window.micro:
            self._gradients.put_back(window.window)
        else:
            self._gradients.clear()

    def _closes(self) -> bool:
        """Whether the coming micro-batch closes the window, or there is none."""
        window, name = self._window(), self._window_link()
        if name is None or self._last:
            return True
        ctx = self._context(Run())
        size = window.size if window.micro else int(dict(self._chain.named)[name].at(ctx.enter(name)).every)  # type: ignore[attr-defined]
        return bool(window.micro + 1 >= size)

    def _withholds(self) -> bool:
        """Whether ranks need not agree on the coming micro-batch."""
        return self._distributed() and not self._closes()

    def _distributed(self) -> bool:
        return bool(self._target.replicated or self._target.sharded)

    def _gradients_withheld(self) -> bool:
        """Whether gradients may be None although the loss reaches parameters: FSDP2 keeps them until it reduces."""
        return bool(self._target.sharded) and self._withholds()

    def _check_raw_window(self, scaled: bool) -> None:
        if scaled or not self._target.replicated or self._window_link() is None or (self._closes() and not self._window().micro):
            return
        raise RuntimeError(
            "step: under DDP a window of several micro-batches needs updater.backward(loss) or update(loss) in place "
            "of loss.backward(): the ranks must reduce the whole window."
        )

    def _drop_window(self, why: str) -> None:
        window = self._window()
        if window is not None and window.micro:
            warnings.warn(f"{why}: the open window of {window.micro} micro-batches was dropped.", stacklevel=4)
        self.zero_grad()

    def zero_grad(self) -> None:
        """Drop the gradients and the open window. Weights, state and clocks stay."""
        self._gradients.clear()
        self._state = self._chain.drop_window(self._state)  # type: ignore[assignment]
        self._unsynced_window = False
        self._forget_micro_batch()

    def flush(self) -> UpdateInfo:
        """Apply the open window although it is not full, by the mean over what it has. Falsy if none is open.

        On several ranks all call it; it reduces what they have over ranks.
        """
        self._refuse_while_averaged("flush")
        if self._backwards:
            raise RuntimeError("flush: a backward is waiting for its step(). Call updater.step(last=True).")
        if not any(getattr(inner, "micro", 0) for _, inner in states(self._chain, self._state)):
            return UpdateInfo("window", self.num_updates, None, {}, dict, "no window is open")
        self._reduce_window("flush")
        run = Run(flushing=True, last=True, scaled=True)
        ctx_empty = self._gradients.params().select(())
        self._last = True
        info = self._run_chain(ctx_empty, run, False, None)
        self._gradients.clear()
        self._unsynced_window = False
        self._forget_micro_batch()
        return info

    def _reduce_window(self, owner: str) -> None:
        """Make an unsynchronised window the mean over ranks, as its closing backward would have."""
        if not self._unsynced_window:
            return
        if self._target.sharded:
            raise RuntimeError(
                f"{owner}: FSDP2 holds the window's gradients where they cannot be reduced now. Close the window with "
                "its last micro-batch: updater.context(last=True)."
            )
        name, window = self._window_link(), self._window()
        assert name is not None
        reduced = window.window.map(lambda grad: over_ranks(grad.clone()))
        self._state = self._state.replace(links={**self._state.links, name: window.replace(window=reduced)})
        self._unsynced_window = False

    @contextmanager
    def context(
        self, *, last: bool | None = None, autocast: torch.dtype | bool | None = None
    ) -> Iterator[None]:
        """Where the forward of a micro-batch runs: under autocast, and without reducing over ranks inside a window.

        It reads the window and changes nothing: nesting it, leaving it by an exception and evaluating in it are
        harmless.

        Args:
            last: the coming micro-batch closes the window, full or not.
            autocast: a dtype, or False for none, in place of what `bind` was given; for this forward.
        """
        self._last = self._last or bool(last)
        withhold = self._withholds() and not self._must_synchronise()
        self._unsynced_forward = withhold
        dtype = self._autocast if autocast is None or autocast is True else (autocast or None)
        with unsynchronised(self._target, withhold), self._autocasting(dtype):
            yield

    def _must_synchronise(self) -> bool:
        """DDP with static_graph records the graph in the first backward of the run, and must reduce then."""
        return self.num_micro == 0 and any(getattr(m, "static_graph", False) for m in self._target.replicated)

    def _autocasting(self, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
        device = self._target.parameters()[0].device.type
        return torch.autocast(device, dtype=dtype, enabled=dtype is not None)

    def _check_loss(self, loss: Any, weight: Any) -> None:
        if not isinstance(loss, Tensor):
            raise TypeError(f"update: loss must be a scalar tensor or a closure that returns one, got {type(loss).__name__}.")
        if loss.numel() != 1:
            raise ValueError(f"update: loss must be a scalar, got shape {tuple(loss.shape)}. Reduce it: loss.mean().")
        if not loss.requires_grad:
            raise ValueError(
                "update: loss has no graph: it was computed under torch.no_grad(), detached, or from no parameter."
            )
        if weight is not None and (isinstance(weight, bool) or not isinstance(weight, (int, float)) or not weight > 0):
            raise ValueError(f"update: weight must be a number above 0, got {weight!r}.")
        if self._backwards and weight != self._weight:
            raise ValueError(f"update: weight must be that of the micro-batch's first backward, {self._weight!r}, got {weight!r}.")
        if loss.device.type == "cpu" and not bool(torch.isfinite(loss.detach()).all()) and not self._gated():
            raise FloatingPointError(
                f"update: loss is {loss.item()}; weights and state are untouched. To skip such updates put "
                "skip_nonfinite() in the chain."
            )

    def _gated(self) -> bool:
        """Whether a link will stop a non-finite gradient."""
        ctx = self._context(Run())
        gates = [(a, link) for a, link, _ in walk(self._chain, None) if link.holds in ("overflow", "nonfinite")]
        return any(getattr(link, "active", lambda _: True)(ctx) for _, link in gates)

    # averages

    def averaged(self, name: str | None = None) -> AbstractContextManager[None]:
        """The model with its average weights inside `with`, and with its own again after it, bit for bit.

        Args:
            name: which link's average, where the chain keeps several.
        """
        self._refuse_while_averaged("averaged")
        return self._averaging(averages.average_state(self._chain, self._state, name))

    @contextmanager
    def _averaging(self, state: Any) -> Iterator[None]:
        self._refuse_while_averaged("averaged")
        with averages.swapped(self._target, state):
            self._averaged = True
            try:
                yield
            finally:
                self._averaged = False

    def averages(self, name: str | None = None) -> dict[str, Tensor]:
        """Name → average weight or buffer, without copies: for a teacher under `torch.func.functional_call`."""
        self._refuse_while_averaged("averages")
        return averages.averages(self._target, averages.average_state(self._chain, self._state, name))

    def copy_average_to(self, module: nn.Module, name: str | None = None) -> None:
        """Write the average weights and the buffers into another module of the same structure."""
        averages.copy_to(module, self.averages(name))

    def _refuse_while_averaged(self, what: str) -> None:
        if self._averaged:
            raise RuntimeError(f"{what}: not inside `with updater.averaged()`: the model has its average weights there.")

    # state

    def state_dict(self, *, sync: bool = False) -> dict[str, Any]:
        """Everything but the weights as plain data that shares no memory with the live state.

        Args:
            sync: inside a window that ranks have not reduced yet, reduce it first; all ranks must call it.

        Raises:
            RuntimeError: inside such a window without `sync`.
        """
        if self._unsynced_window and not sync:
            raise RuntimeError(
                "state_dict: the open window differs from rank to rank. Save where a window closes, or call "
                "state_dict(sync=True) on every rank."
            )
        self._reduce_window("state_dict")
        return Checkpoint(self).write()

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
        return Checkpoint(self).stage(state_dict, strict)

    def contents(self) -> dict[str, Any]:
        """Weights, buffers and state, as `save` writes them."""
        self._refuse_while_averaged("save")
        return Checkpoint(self).contents()

    def stage_contents(self, contents: Mapping[str, Any]) -> Callable[[], LoadReport]:
        """Check weights, buffers and state, and return what makes them this updater's."""
        self._refuse_while_averaged("load")
        return Checkpoint(self).stage_contents(contents)

    def save(self, path: str | PathLike[str], **extra: Any) -> None:
        """Write weights, buffers, state and `extra` into one file, atomically. All ranks call it, one writes.

        Raises:
            TypeError: `extra` holds what would not load without running code.
        """
        files.save(path, {"updater": self.contents()}, extra)

    def load(self, path: str | PathLike[str]) -> dict[str, Any]:
        """Read what `save` wrote into the model and this updater, and return the extra.

        Raises:
            FileNotFoundError, ValueError: no such file, a damaged one, or one of another chain or model. Weights and
                state are then untouched.
        """
        parts, extra = files.load(path)
        files.check_names("load", ["updater"], parts)
        self.stage_contents(parts["updater"])()
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
        new = Target(target)
        active = new.index.subset([f.name for f in new.index.facts if f.parameter.requires_grad or f.name in self._active])
        with torch.no_grad():
            fresh = self._chain.init(Gradients(new).params().select(active))
            check_chain(self._chain, new.index, fresh, self._autocast)
            state, report = carried(self._chain, self._state, fresh, remap or {}, new.index)
        self._attach(new)
        self._state, self._active = state, active
        self._forget_micro_batch()
        return report

    def reset(self, selector: Predicate | None = None) -> None:
        """Start the state afresh, of all parameters or those a selector matches. Clocks and weights stay."""
        self._refuse_while_averaged("reset")
        with torch.no_grad():
            fresh = self._chain.init(self._gradients.params().select(self._active))
        self._state = restarted(self._state, fresh, None if selector is None else self._active.members(selector))

    def _warn_of_other_weights(self) -> None:
        """Once after a load: the state belongs to weights, and these should be they."""
        if self._fingerprint is not None:
            Checkpoint(self).compare_fingerprint(self._fingerprint)
            self._fingerprint = None

    def __repr__(self) -> str:
        return f"{self._chain!r}.bind(<{len(self.names)} parameters>)"

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(foreign.answer(name))
