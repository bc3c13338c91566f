"""A small run beside one that is never misused, for what is used as it is not meant to be."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

import gradchain as gch

SAME = "it is refused in a sentence, nothing has changed, and the run is bit for bit the one without it"
DROPPED = "it is an error; weights and state are as before, and the open window is dropped with a warning"
GOES_ON = "the run is bit for bit the one without it"


class BrokenError(Exception):
    """What the user's code raises."""


class raises_once(gch.Transform):
    """A link that raises when it is told to."""

    descends = False
    calls_back = True
    told: list[int]

    def update(self, g: gch.Tensors, state: gch.State, ctx: gch.Context) -> tuple[gch.Tensors, gch.State]:
        _raise(self.told)
        return g, state


def _raise(told: list[int]) -> None:
    if told:
        told.clear()
        raise BrokenError


class Run:
    """A small model, its updater, and one that is never misused."""

    def __init__(self, seed: int, window: int = 2) -> None:
        self.told: list[int] = []  # filled: the next link that looks raises
        self.late: list[int] = []  # the next schedule does
        torch.manual_seed(seed)
        self.models = nn.Linear(6, 5), nn.Linear(6, 5)
        self.models[1].load_state_dict(self.models[0].state_dict())
        self.ours, self.theirs = (
            gch.chain(
                gch.accumulate(window), gch.clip_by_norm(1.0), raises_once(told), gch.scale_by_adam(),
                gch.scale_by_learning_rate(lambda step, late=late: _raise(late) or 0.01),
            ).bind(model)
            for model, told, late in zip(self.models, (self.told, []), (self.late, []), strict=True)
        )  # fmt: skip
        self.at = 0

    def loss(self, which: int, at: int) -> Tensor:
        """That of a micro-batch, of the misused run or the other."""
        rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(at))
        return self.models[which](rows).square().mean()

    def both(self, steps: int = 1) -> None:
        """The same micro-batches for both."""
        for _ in range(steps):
            for which, updater in enumerate((self.ours, self.theirs)):
                updater.update(self.loss(which, self.at))
            self.at += 1

    def seen(self, which: int) -> str:
        """Weights and state."""
        updater = (self.ours, self.theirs)[which]
        weights = {n: p.detach() for n, p in self.models[which].named_parameters()}
        return f"{weights} {updater.state_dict()}"

    def differ(self) -> str:
        """What is wrong, if the misused run is not the other one."""
        self.both(4)
        ours, theirs = (
            [*m.state_dict().values(), *u.state_dict()["links"]["scale_by_adam"]["mu"].values()]
            for m, u in zip(self.models, (self.ours, self.theirs), strict=True)
        )
        same = all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        counts = self.ours.num_updates == self.theirs.num_updates
        return "" if same and counts else "the run is another than without it"


def refused(call: Callable[[], object], kinds: tuple[type[BaseException], ...], owner: str = "") -> str:
    """What is wrong, where a call is not refused by one of these with a sentence that begins so."""
    try:
        call()
    except kinds as error:
        return "" if str(error).startswith(owner) else f"it says {error}"
    return "it was taken"


def each(n: int, use: Callable[[Run], str]) -> Iterator[str]:
    """Runs that are misused once, each at another place of its window, and go on."""
    for i in range(n):
        run = Run(i)
        run.both(i % 5)
        yield use(run) or run.differ()


def unchanged(call: Callable[[Run], str]) -> Callable[[int, Path], Iterator[str]]:
    """Trials of something that is refused: nothing has changed, and the run goes on as if it had not been."""

    def use(run: Run) -> str:
        before = run.seen(0)
        return call(run) or ("" if run.seen(0) == before else "it left something changed")

    return lambda n, folder: each(n, use)


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def trials(use: Callable[[Run], str]) -> Callable[[int, Path], Iterator[str]]:
    """Trials of a misuse."""
    return lambda n, folder: each(n, use)
