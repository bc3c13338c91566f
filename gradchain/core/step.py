"""What one update is: its facts, filled in once by whoever runs the chain, and the notes its links leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gradchain.core.hyper import Override
    from gradchain.core.lent import Lent
    from gradchain.core.scalars import Scalar
    from gradchain.core.tensors import Tensors


class Recorder(Protocol):
    """What is told how the numbers of an update come about, so that they can be computed again without the links."""

    def number_from(self, of: Callable[..., Scalar], *args: Scalar) -> Scalar:
        """`of(step, *args)`, now and whenever the update is computed again: a number of the recorder's.

        Args:
            of: gives a number, or one per parameter, from the facts of an update.
            args: numbers of the recorder's, which it takes as plain ones.
        """

    def tensors_from(self, of: Callable[..., Tensors], *args: Tensors | Scalar) -> Tensors:
        """The same where `of` makes tensors, and takes some."""

    def reads(self, owner: str, what: str) -> None:
        """A link reads what may be another thing at each update, and is no number of the chain's."""


class Step(NamedTuple):
    """The facts of one update. Nothing changes them while it runs.

    Attributes:
        params: the weights before it, or a function that gives them when a link first asks.
        clocks: every named clock.
        loss: the loss of the micro-batch, unscaled and detached; None where it is not known.
        evaluate: (weights, address) → the loss there and its gradients as the link at the address receives them.
        buffers: gives the model's buffers.
        observed: the numbers that `updater.observe` put there.
        news: how often each was observed, and the latest ones; None where nobody counts.
        overrides: those in force, by full address.
        autocast: the dtype the model computes in, where autocast is on.
        scaled: whether the gradients come from a loss that the chain scaled.
        summed: whether they already are the sum over the open window.
        last: whether an open window must close with this micro-batch.
        flushing: whether this is no micro-batch, but the closing of a part-filled window.
        weight: what the micro-batch counts in the mean over its window, or None.
        mean_weight: gives the mean of that over ranks, however often it is asked; None where there is one rank.
        over_ranks: gives the mean over ranks of a host number, where gradients are averaged over ranks.
        recorder: where the numbers of this update are noted, to be computed again.
    """

    params: Tensors | Callable[[], Tensors] | None = None
    clocks: Mapping[str, float] = {}  # never written to
    loss: Any = None
    evaluate: Callable[[Tensors, str], tuple[Any, Tensors]] | None = None
    buffers: Callable[[], Mapping[str, Tensor]] | None = None
    observed: Mapping[str, float] = {}  # never written to
    news: Mapping[str, tuple[int, Sequence[float]]] | None = None
    overrides: Mapping[str, Override] = {}  # never written to
    autocast: torch.dtype | None = None
    scaled: bool = False
    summed: bool = False
    last: bool = False
    flushing: bool = False
    weight: float | None = None
    over_ranks: Callable[[float], float] | None = None
    mean_weight: Callable[[], float] | None = None
    recorder: Recorder | None = None


class Notes:
    """What the links of one update leave behind.

    Attributes:
        records: address.name → what `ctx.record` was given.
        used: address.name → the value of a hyperparameter that is not a mere number.
        held: the link that held the chain, and the reason.
        detail: why it did, in words.
        loss: the loss of the whole window, from where that closed on; else that of the step.
        scaled: whether the chain scaled it.
        buffers: address → what the link there would have the model's buffers be, by name; None where none would.
        lent: address → the buffers that the link there was shown; None where none was.
    """

    __slots__ = ("buffers", "detail", "held", "lent", "loss", "params", "records", "scaled", "used")

    def __init__(self, step: Step) -> None:
        self.records: dict[str, Any] = {}
        self.used: dict[str, Any] = {}
        self.held: tuple[str, str] | None = None
        self.detail = ""
        self.loss, self.scaled = step.loss, step.scaled
        self.params: Tensors | None = None  # once a link asked for them
        self.buffers: dict[str, dict[str, Tensor]] | None = None
        self.lent: dict[str, Lent] | None = None

    def check_buffers(self) -> None:
        """RuntimeError where a link has written into the buffers that it was shown."""
        for address, lent in (self.lent or {}).items():
            lent.check(address)
