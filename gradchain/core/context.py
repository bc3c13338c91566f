"""What a link may look at while it updates: read-only, and nothing that was not given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradchain.core.hyper import Override
from gradchain.core.index import Fact, Index
from gradchain.core.tensors import Tensors
from gradchain.core.weights import Weights

if TYPE_CHECKING:
    from gradchain.selectors import Predicate


@dataclass
class Run:
    """What one update shares among the contexts of its links."""

    params: Tensors | Callable[[], Tensors] | None = None  # a function is called when a link first asks
    clocks: Mapping[str, float] = field(default_factory=dict)
    loss: Any = None
    evaluate: Callable[[Tensors, str], tuple[Any, Tensors]] | None = None
    buffers: Callable[[], Mapping[str, Tensor]] | None = None
    observed: Mapping[str, float] = field(default_factory=dict)
    news: Mapping[str, tuple[int, Sequence[float]]] | None = None  # how often each was observed, and the latest ones
    overrides: Mapping[str, Override] = field(default_factory=dict)
    autocast: torch.dtype | None = None
    # the micro-batch: was its loss scaled by the chain, does autograd already sum the window, must the window close
    scaled: bool = False
    summed: bool = False
    last: bool = False
    flushing: bool = False
    weight: float | None = None
    over_ranks: Callable[[float], float] | None = None  # sum over ranks divided by their number
    trace: Any = None  # the engine's, where it will run this step again from its numbers alone
    # what the links leave behind
    records: dict[str, Any] = field(default_factory=dict)
    used: dict[str, float] = field(default_factory=dict)
    held: tuple[str, str] | None = None
    detail: str = ""


class Context:
    """What a link may look at: the weights, the clocks, the loss, facts about each parameter.

    Reading what was not given raises; there is no default step.

    Args:
        params: the weights before this update.
        step: applied updates so far, from 0. Schedules read it.
        clocks: other named clocks that `by(...)` schedules read.
        loss: the loss, unscaled and detached, reduced over the window as the gradients are.
        evaluate: for links that need the gradient elsewhere: weights -> (loss, updates).
        observed: numbers put there with `updater.observe`.
    """

    __slots__ = ("_index", "_outermost", "_path", "_run")

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
        given = dict(clocks or {})
        if step is not None:
            given["step"] = step
        run = Run(params, given, loss, observed=observed or {}, autocast=autocast)
        if evaluate is not None:
            given_evaluate = evaluate
            run.evaluate = lambda weights, path: given_evaluate(weights)
        self._set(run, "", None, True)

    @classmethod
    def of(cls, run: Run) -> Context:
        """The context of a chain under this run."""
        return cls.__new__(cls)._set(run, "", None, True)

    def _set(self, run: Run, path: str, index: Index | None, outermost: bool) -> Context:
        self._run, self._path, self._index, self._outermost = run, path, index, outermost
        return self

    def enter(self, name: str) -> Context:
        """The context of a held link: its address is one name longer."""
        path = f"{self._path}/{name}" if self._path else name
        return Context.__new__(Context)._set(self._run, path, self._index, self._outermost)

    def narrow(self, index: Index) -> Context:
        """The same address, seen by a mask or branch: only these parameters, and not part of the outermost chain."""
        return Context.__new__(Context)._set(self._run, self._path, index, False)

    def _need(self, what: str, value: Any) -> Any:
        if value is None:
            where = f"{self._path}: " if self._path else ""
            raise RuntimeError(f"{where}Context.{what} was not given. Pass it: gch.Context(params, {what}=…).")
        return value

    def under(self, run: Run) -> Context:
        """The same address in another run."""
        return Context.__new__(Context)._set(run, self._path, self._index, self._outermost)

    @property
    def trace(self) -> Any:
        """What notes how the numbers of this update follow from each other, or None."""
        return self._run.trace

    def _read(self, what: str) -> None:
        """Note that a link has read what may be another at each update, and is no number of the chain's."""
        if self._run.trace is not None:
            self._run.trace.breaks(f"{self._path} reads {what}")

    @property
    def address(self) -> str:
        """The address of the link that is running."""
        return self._path

    @property
    def params(self) -> Tensors:
        """The weights before this update; inside a mask or branch, those of its members."""
        given = self._need("params", self._run.params)
        params: Tensors = given if isinstance(given, Tensors) else given()
        self._run.params = params
        return params if self._index is None else params.select(self._index)

    @property
    def index(self) -> Index:
        """Which parameters are in sight: all, or inside a mask or branch its members."""
        return self.params.index if self._index is None else self._index

    @property
    def clocks(self) -> Mapping[str, float]:
        """Every named clock."""
        return self._run.clocks

    @property
    def step(self) -> int:
        """Applied updates so far, from 0."""
        step: int = self._need("step", self._run.clocks.get("step"))
        return step

    @property
    def loss(self) -> Any:
        """The loss, unscaled and detached, reduced over the window as the gradients are."""
        self._read("the loss")
        return self._need("loss", self._run.loss)

    @property
    def facts(self) -> tuple[Fact, ...]:
        """What is known of each parameter: name, tensor, owning module."""
        return self.params.index.facts

    @property
    def buffers(self) -> Mapping[str, Tensor]:
        """The model's buffers, by name."""
        self._read("buffers")
        buffers: Mapping[str, Tensor] = self._need("buffers", self._run.buffers)()
        return buffers

    @property
    def observed(self) -> Mapping[str, float]:
        """Numbers put there with `updater.observe(name, number)`."""
        self._read("what was observed")
        return self._run.observed

    def news(self, name: str, seen: int) -> tuple[Sequence[float], int]:
        """What was observed under a name after the first `seen` times, oldest first, and how often in all.

        Without an updater what the context was given is new.
        """
        self._read("what was observed")
        if self._run.news is None:
            given = [self._run.observed[name]] if name in self._run.observed else []
            return given, seen + len(given)
        count, latest = self._run.news.get(name, (seen, ()))
        return latest[len(latest) - min(count - seen, len(latest)) :], count

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype the model computes in, where autocast is on."""
        return self._run.autocast

    @property
    def last(self) -> bool:
        """Whether an open window must close with this micro-batch."""
        return self._run.last

    @property
    def flushing(self) -> bool:
        """Whether this is no micro-batch, but the closing of a part-filled window."""
        return self._run.flushing

    @property
    def weight(self) -> float | None:
        """The weight given to this micro-batch, or None."""
        return self._run.weight

    @property
    def has_loss(self) -> bool:
        """Whether the loss is known."""
        self._read("the loss")
        return self._run.loss is not None

    @property
    def outermost(self) -> bool:
        """Whether this is a link of the outermost chain: not in a mask, nor in a branch."""
        return self._outermost

    @property
    def loss_was_scaled(self) -> bool:
        """Whether the gradients come from a loss that the chain scaled; else they are true ones."""
        return self._run.scaled and self._outermost

    @property
    def window_is_summed(self) -> bool:
        """Whether the gradients already are the sum over the open window."""
        return self._run.summed and self._outermost

    def members(self, selector: Predicate) -> Index:
        """Which of the parameters in sight `selector` matches."""
        return self.params.index.members(selector)

    def new_params(self, updates: Tensors | Weights) -> Tensors:
        """The weights to be, if `updates` were applied now, in the compute dtype."""
        params = self.params
        if isinstance(updates, Weights):
            return params.overlay(updates.tensors)
        return params.overlay(params + updates)

    def evaluate(self, params: Tensors) -> tuple[Any, Tensors]:
        """The loss and its gradients at other weights, by calling the closure again.

        Raises:
            RuntimeError: where there is no closure: call `updater.update(closure)`.
        """
        if self._run.evaluate is None:
            raise RuntimeError(
                f"{self._path}: needs to evaluate the loss again. Call updater.update(closure) with a function that "
                "returns the loss and does not call backward."
            )
        return self._run.evaluate(params, self._path)

    def record(self, name: str, value: Any) -> None:
        """Put a number where `info["<address>.<name>"]` and `updater.metrics` show it. It is read lazily."""
        self._run.records[f"{self._path}.{name}" if self._path else name] = value

    @property
    def averaged_over_ranks(self) -> bool:
        """Whether gradients are averaged over ranks before the links see them."""
        return self._run.over_ranks is not None

    def over_ranks(self, value: float) -> float:
        """The mean over ranks of a host number, where the gradients are averaged over ranks; else the number."""
        return value if self._run.over_ranks is None else self._run.over_ranks(value)

    # left behind for the updater, by our own links

    def close_window(self, loss: Any, scaled: bool) -> None:
        """Make `loss` the loss that later links see, reduced over the window, and say whether the window was scaled."""
        self._run.loss, self._run.scaled = loss, scaled

    def explain(self, detail: str) -> None:
        """Say in `info.detail` why the chain was held."""
        self._run.detail = detail

    def overridden(self) -> Mapping[str, Override]:
        """The overrides in force, by full address."""
        return self._run.overrides

    def held(self, reason: str) -> None:
        """Note which link held the chain, and for what reason; the last to hold wins."""
        self._run.held = (self._path, reason)

    def use(self, name: str, value: float) -> None:
        """Note the value that a scheduled or overridden hyperparameter had in this update."""
        self._run.used[f"{self._path}.{name}" if self._path else name] = value
