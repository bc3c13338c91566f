"""What a link may look at while it updates: nothing that was not given, and nothing that it may write to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from gradchain.core import _torch
from gradchain.core.hyper import Override
from gradchain.core.index import Fact, Index
from gradchain.core.lent import Lent
from gradchain.core.micro import Micro
from gradchain.core.random import Random, check_seed
from gradchain.core.refusal import Refusal, first_offender, is_finite
from gradchain.core.step import Notes, Recorder, Step
from gradchain.core.tensors import Tensors
from gradchain.core.weights import Weights

if TYPE_CHECKING:
    from gradchain.selectors import SelectorLike


class Context:
    """What a link may look at: the weights, the clocks, the loss, facts about each parameter.

    Reading what was not given raises; there is no default step. What is read is what everybody has, not a copy: the
    weights are those of the model, the clocks those of the updater; buffers alone are copies. A link must not write to
    them, nor to the updates it is given, and nothing keeps it from doing so: it returns new ones.

    Args:
        params: the weights before this update.
        step: applied updates so far, from 0. Schedules read it.
        clocks: other named clocks that `by(...)` schedules read.
        loss: the loss, unscaled and detached, reduced over the window as the gradients are.
        evaluate: for links that need the gradient elsewhere: weights -> (loss, updates).
        observed: numbers put there with `updater.observe`.
    """

    __slots__ = ("_gated", "_index", "_notes", "_outermost", "_path", "_step")

    def __init__(
        self,
        params: Tensors | None = None,
        *,
        step: int | None = None,
        clocks: Mapping[str, float] | None = None,
        loss: Any = None,
        evaluate: Callable[[Tensors], tuple[Any, Tensors]] | None = None,
        observed: Mapping[str, float] | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        if params is not None and not isinstance(params, Tensors):
            raise TypeError(
                f"Context: params must be Tensors, got {type(params).__name__}. Write gch.Tensors.of(…) of a module or "
                "of named tensors."
            )
        all_clocks = dict(clocks or {})
        if step is not None:
            all_clocks["step"] = step
        ask = None if evaluate is None else lambda weights, path: evaluate(weights)
        facts = Step(params, all_clocks, loss, ask, observed=observed or {}, autocast=autocast)
        self._set(facts, Notes(facts), "", None, True)

    @classmethod
    def of(cls, step: Step, notes: Notes | None = None) -> Context:
        """The context of a chain in this update; what links leave goes into `notes`."""
        return cls.__new__(cls)._set(step, Notes(step) if notes is None else notes, "", None, True)

    def _set(self, step: Step, notes: Notes, path: str, index: Index | None, outermost: bool) -> Context:
        self._step, self._notes, self._path, self._index, self._outermost = step, notes, path, index, outermost
        self._gated = False
        return self

    def _of(self, path: str, index: Index | None, outermost: bool) -> Context:
        """Another place in the same update, under the same gates."""
        inner = Context.__new__(Context)._set(self._step, self._notes, path, index, outermost)
        inner._gated = self._gated
        return inner

    def enter(self, name: str) -> Context:
        """The context of a held link: its address is one name longer."""
        path = f"{self._path}/{name}" if self._path else name
        return self._of(path, self._index, self._outermost)

    def narrow(self, index: Index) -> Context:
        """The same address, seen by a mask or branch: only these parameters, and not part of the outermost chain."""
        return self._of(self._path, index, False)

    def under_gate(self) -> Context:
        """The same place, where a gate of the chain will hold for an evaluation that is not finite."""
        inner = self._of(self._path, self._index, self._outermost)
        inner._gated = True
        return inner

    def turned(self, step: Step) -> Context:
        """This very context, turned to another update: for whoever keeps one for nothing but looks."""
        self._step, self._notes.params = step, None
        return self

    def under(self, step: Step) -> Context:
        """The same address in another update."""
        return Context.__new__(Context)._set(step, Notes(step), self._path, self._index, self._outermost)

    def _need(self, what: str, value: Any) -> Any:
        if value is None:
            where = f"{self._path}: " if self._path else ""
            raise RuntimeError(f"{where}Context.{what} was not given. Pass it: gch.Context(params, {what}=…).")
        return value

    @property
    def recorder(self) -> Recorder | None:
        """What notes how the numbers of this update follow from each other, or None."""
        return self._step.recorder

    def _read(self, what: str) -> None:
        """Note that a link has read what may be another at each update, and is no number of the chain's."""
        if self._step.recorder is not None:
            self._step.recorder.reads(self._path, what)

    @property
    def address(self) -> str:
        """The address of the link that is running."""
        return self._path

    @property
    def params(self) -> Tensors:
        """The weights before this update; inside a mask or branch, those of its members."""
        params = self._notes.params
        if params is None:
            source = self._need("params", self._step.params)
            params = self._notes.params = source if isinstance(source, Tensors) else source()
        assert params is not None
        return params if self._index is None else params.select(self._index)

    @property
    def index(self) -> Index:
        """Which parameters are in sight: all, or inside a mask or branch its members."""
        return self.params.index if self._index is None else self._index

    @property
    def clocks(self) -> Mapping[str, float]:
        """Every named clock."""
        return self._step.clocks

    @property
    def step(self) -> int:
        """Applied updates so far, from 0."""
        step: int = self._need("step", self._step.clocks.get("step"))
        return step

    def random(self, seed: int) -> Random:
        """Random numbers of this link in this update, which nothing has to remember: `ctx.random(seed).normal(g)`.

        They follow from the seed, the link's address, the parameter's name, `step` and the element. So they are the
        same on every device and in every number of threads, after a resume, and on ranks that hold parts of a tensor;
        and they are the same again where a link runs twice at one step, as in an update that was held, or on each
        micro-batch in front of a window.

        Args:
            seed: a whole number, at least 0.
        """
        return Random(check_seed(f"{self._path or 'Context'}.random", seed), self._path, self.step)

    @property
    def loss(self) -> Any:
        """The loss, unscaled and detached, reduced over the window as the gradients are."""
        return self._need("loss", self._notes.loss)

    @property
    def facts(self) -> tuple[Fact, ...]:
        """What is known of each parameter: name, tensor, owning module."""
        return self.params.index.facts

    @property
    def buffers(self) -> Mapping[str, Tensor]:
        """The model's buffers, by name: copies, to be read. A write into one fails the update; see `write_buffers`."""
        self._read("buffers")
        buffers: Mapping[str, Tensor] = self._need("buffers", self._step.buffers)()
        if self._notes.lent is None:
            self._notes.lent = {}
        return self._notes.lent.setdefault(self._path, Lent(buffers, "ctx.buffers"))

    @property
    def observed(self) -> Mapping[str, float]:
        """Numbers put there with `updater.observe(name, number)`."""
        self._read("what was observed")
        return self._step.observed

    def news(self, name: str, seen: int) -> tuple[Sequence[float], int]:
        """What was observed under a name after the first `seen` times, oldest first, and how often in all.

        Without an updater what the context was given is new.
        """
        recorder = self._step.recorder
        if recorder is None:
            return _news(name, self._step, seen)
        many = int(recorder.number_from(partial(_how_many, name), seen))
        return [recorder.number_from(partial(_nth, name, i), seen) for i in range(many)], recorder.number_from(
            partial(_count, name), seen
        )

    def of_buffers(self, fn: Callable[..., Tensors], *args: Any) -> Tensors:
        """`fn(buffers, *args)`: tensors that a link makes of the model's buffers, and of what it remembers.

        They are copies, as `buffers` are: `fn` may keep them, and a write into one fails the update.
        """
        self._need("buffers", self._step.buffers)
        in_step = partial(_of_buffers, fn, self._path)
        return (
            in_step(self._step, *args)
            if self._step.recorder is None
            else self._step.recorder.tensors_from(in_step, *args)
        )

    def write_buffers(self, values: Mapping[str, Tensor]) -> None:
        """Have buffers of the model be other tensors once this update is applied: name → what it is to be.

        For a link that says so: it derives from `WritesBuffers` in place of `Transform`. They are written with the
        weights, all or nothing: none is where the update is held, skipped or fails. Until then `buffers` are as before.
        At ticks, which apply no update, they are written with the link's new state.

        Raises:
            ValueError, TypeError: for what is no buffer, or no tensor that it could be.
        """
        buffers = self.buffers
        own = {name: _checked_buffer(self._path, name, value, buffers) for name, value in values.items()}
        if self._notes.buffers is None:
            self._notes.buffers = {}
        self._notes.buffers.setdefault(self._path, {}).update(own)

    @property
    def buffers_to_be(self) -> Mapping[str, Mapping[str, Tensor]]:
        """What links have given `write_buffers` in this update: address → name → tensor."""
        return self._notes.buffers or {}

    def check_buffers(self) -> None:
        """RuntimeError where a link has written into `buffers`."""
        self._notes.check_buffers()

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype the model computes in, where autocast is on."""
        return self._step.autocast

    @property
    def micro(self) -> Micro:
        """Facts of the micro-batch, for links that keep a window of them or undo a loss scale."""
        return Micro(self._step, self._notes, self._outermost)

    @property
    def has_loss(self) -> bool:
        """Whether the loss is known."""
        return self._notes.loss is not None

    @property
    def outermost(self) -> bool:
        """Whether this is a link of the outermost chain: not in a mask, nor in a branch."""
        return self._outermost

    def members(self, selector: SelectorLike) -> Index:
        """Which of the parameters in sight `selector` matches."""
        return self.params.index.members(selector)

    def new_params(self, updates: Tensors | Weights) -> Tensors:
        """The weights to be, if `updates` were applied now, in the compute dtype."""
        params = self.params
        if isinstance(updates, Weights):
            return params.overlay(updates.tensors)
        return params.overlay(params + updates)

    @property
    def evaluates(self) -> bool:
        """Whether there is a closure to evaluate the loss by."""
        return self._step.evaluate is not None

    def evaluate(self, params: Tensors, *, gated: bool = True) -> tuple[Any, Tensors]:
        """The loss and its gradients at other weights, by calling the closure again.

        A loss or gradient that is not finite passes the gates of the chain as the first gradient does, on whichever
        side of the link they stand: `skip_nonfinite` and `amp_scale` skip the update. Without a gate a loss that is
        not finite raises on the CPU, and on an accelerator it is not looked at.

        Args:
            params: where to evaluate.
            gated: False gives the link what there is, finite or not: for one that makes use of it, as a line search
                does of an infinite loss. `refuse` is then how it gives up.

        Raises:
            RuntimeError: where there is no closure: call `updater.update(closure)`.
        """
        if self._step.evaluate is None:
            raise RuntimeError(
                f"{self._path}: needs to evaluate the loss again. Call updater.update(closure) with a function that "
                "returns the loss and does not call backward."
            )
        loss, grads = self._step.evaluate(params, self._path)
        if gated:
            self._look(loss, grads)
        return loss, grads

    def _look(self, loss: Any, grads: Tensors) -> None:
        """Refuse an evaluation that is not finite, where somebody is to look."""
        if not self._gated and (_torch.under_functorch() or (isinstance(loss, Tensor) and not loss.is_cpu)):
            return
        finite = loss is None or is_finite(loss)  # one who evaluates without an updater may know gradients only
        if self._gated and self._step.over_ranks is not None:
            finite = self._step.over_ranks(float(not finite)) == 0  # all ranks go the same way
        if not finite:
            self.refuse(f"the loss that {self._path} evaluated is {float(loss)}")
        if self._gated and not grads.all_finite():
            self.refuse(
                f"the gradient that {self._path} evaluated has inf or NaN, the first offending parameter is "
                f"{first_offender(grads)!r}"
            )

    @property
    def gated(self) -> bool:
        """Whether a gate of the chain holds for what `evaluate` refuses here."""
        return self._gated

    def refuse(self, why: str) -> NoReturn:
        """End this update without applying it, as where the gradient is not finite; `why` is a clause that says it.

        The innermost chain around the link that has an active gate holds, and its gate counts a skip or backs off; all
        that comes after that gate is as before. Without a gate it is a FloatingPointError.
        """
        raise Refusal(why, self._path)

    def record(self, name: str, value: Any) -> None:
        """Put a number where `info["<address>.<name>"]` and `updater.metrics` show it. It is read lazily."""
        self._notes.records[f"{self._path}.{name}" if self._path else name] = value

    # left behind for whoever runs the chain, by our own links

    def explain(self, detail: str) -> None:
        """Say in `info.detail` why the chain was held."""
        self._notes.detail = detail

    def overridden(self) -> Mapping[str, Override]:
        """The overrides in force, by full address."""
        return self._step.overrides

    def held(self, reason: str) -> None:
        """Note which link held the chain, and for what reason: the last link to hold, and its first word, win."""
        if self._notes.held is None or self._notes.held[0] != self._path:
            self._notes.held = (self._path, reason)

    def use(self, name: str, value: float) -> None:
        """Note the value that a scheduled or overridden hyperparameter had in this update."""
        self._notes.used[f"{self._path}.{name}" if self._path else name] = value


def _checked_buffer(owner: str, name: str, value: Any, buffers: Mapping[str, Tensor]) -> Tensor:
    """A copy of what a buffer is to be, which neither the link nor a kernel changes until it is written."""
    place = buffers.get(name)
    if place is None:
        raise ValueError(f"{owner}: write_buffers must be given buffers of the model, got {name!r}, which is none.")
    if not isinstance(value, Tensor):
        raise TypeError(f"{owner}: {name!r} must be a tensor to be written, got {type(value).__name__}.")
    if value.shape != place.shape or not torch.can_cast(value.dtype, place.dtype):
        raise ValueError(
            f"{owner}: {name!r} must have shape {tuple(place.shape)} in {place.dtype} to be written, got "
            f"{tuple(value.shape)} in {value.dtype}."
        )
    return value.detach().to(place, copy=True)


def _news(name: str, step: Step, seen: int) -> tuple[Sequence[float], int]:
    if step.news is None:
        news = [step.observed[name]] if name in step.observed else []
        return news, seen + len(news)
    count, latest = step.news.get(name, (seen, ()))
    return latest[len(latest) - min(count - seen, len(latest)) :], count


def _how_many(name: str, step: Step, seen: int) -> int:
    return len(_news(name, step, seen)[0])


def _nth(name: str, at: int, step: Step, seen: int) -> float:
    return _news(name, step, seen)[0][at]


def _count(name: str, step: Step, seen: int) -> int:
    return _news(name, step, seen)[1]


def _of_buffers(fn: Callable[..., Tensors], owner: str, step: Step, *args: Any) -> Tensors:
    assert step.buffers is not None
    lent = Lent(step.buffers(), "ctx.of_buffers")
    found = fn(lent, *args)
    lent.check(owner)
    return found
