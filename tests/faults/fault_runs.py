"""The runs that are killed and starved: chains in the middle of something, fed by random numbers of three libraries."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

import gradchain as gch

STEPS = 12


def nothing(run: Run) -> None:
    """Done between steps."""


@dataclass(frozen=True)
class Recipe:
    """A chain and what is done beside it.

    Attributes:
        name: of the recipe.
        chain: makes the chain.
        sparse: whether rows of a table are looked up, whose gradient is sparse.
        between: done after each micro-batch.
    """

    name: str
    chain: Callable[[], gch.Transform] = field(repr=False)
    sparse: bool = False
    between: Callable[[Run], None] = field(default=nothing, repr=False)


def numbers() -> dict[str, Any]:
    """Where the random numbers of this process stand, as plain data."""
    kind, keys, *rest = numpy.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [kind, torch.tensor(keys.tolist()), *rest],
    }


def put(saved: Mapping[str, Any]) -> None:
    """Have them stand there."""
    torch.set_rng_state(saved["torch"])
    random.setstate(saved["python"])
    kind, keys, *rest = saved["numpy"]
    numpy.random.set_state((kind, numpy.array(keys.tolist(), dtype=numpy.uint32), *rest))


class Run:
    """A model, its updater, and how far it has come. What is random comes from the generators of the process.

    Attributes:
        done: how many micro-batches there were.
    """

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(0)
        random.seed(0)
        numpy.random.seed(0)
        first = nn.Embedding(11, 4, sparse=True) if recipe.sparse else nn.Linear(3, 4)
        rest = (nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.recipe, self.done = recipe, 0
        self.model = nn.Sequential(first, *rest)
        self.updater = recipe.chain().bind(self.model)

    def step(self) -> None:
        """One micro-batch: of torch's random numbers, weighed by Python's and numpy's."""
        rows = torch.randint(0, 11, (5,)) if self.recipe.sparse else torch.randn(5, 3)
        wanted = torch.randn(5, 2) * random.random() + float(numpy.random.rand())
        self.updater.update((self.model(rows) - wanted).square().mean())
        self.done += 1
        self.recipe.between(self)

    def save(self, path: Path, **more: Any) -> None:
        """Write all of it, by the updater alone."""
        self.updater.save(path, done=self.done, random=numbers(), **more)

    def load(self, path: Path) -> dict[str, Any]:
        """Read it."""
        extra = self.updater.load(path)
        put(extra["random"])
        self.done = extra["done"]
        return extra

    def shown(self) -> Any:
        """All that makes the run: weights, buffers, state, counts, hyperparameters, random numbers."""
        updater = self.updater
        counts = [self.done, updater.num_updates, updater.num_micro, updater.num_skipped]
        model, state = dict(self.model.state_dict()), updater.state_dict()
        return [model, state, counts, updater.hyperparams(), numbers()]

    def digest(self) -> str:
        """All that makes the run, in a checksum of its bits."""
        found = hashlib.blake2b(digest_size=16)
        _feed(found, self.shown())
        return found.hexdigest()


def _feed(into: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        value = value.detach().contiguous()
        into.update(f"{value.dtype}{tuple(value.shape)}".encode())
        into.update(value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            into.update(f"{key!r}:".encode())
            _feed(into, item)
    elif isinstance(value, (list, tuple)):
        into.update(f"[{len(value)}".encode())
        for item in value:
            _feed(into, item)
    else:
        into.update(repr(value).encode())


def straight(recipe: Recipe, steps: int = STEPS, make: Callable[[Recipe], Run] = Run) -> str:
    """The digest of a run that nothing happens to."""
    run = make(recipe)
    while run.done < steps:
        run.step()
    return run.digest()


# the recipes


def _observing(run: Run) -> None:
    run.updater.observe("val_loss", 1.0 + run.done % 3)


def _overriding(run: Run) -> None:
    if run.done == 3:
        run.updater.override("learning_rate", factor=0.5)
    if run.done == 5:
        run.updater.override("b1", gch.by("epoch", gch.linear(0.9, 0.5, 10)))
    if run.done == 9:
        run.updater.override("learning_rate")
    run.updater.tick("epoch", 0.5)


def _clocked() -> gch.Transform:
    rate = gch.linear(0.05, 0.01, 9) * gch.by("epoch", lambda e: 0.9**e)
    return gch.chain(gch.scale_by_adam(), gch.scale_by_learning_rate(rate))


def _three() -> gch.Transform:
    return gch.partition(
        (gch.bias, gch.lion(1e-2)),
        ("slow", gch.named("0.*"), gch.chain(gch.accumulate(3), gch.sgd(0.05, momentum=0.9))),
        (gch.rest, gch.adamw(1e-2)),
    )


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("window in .grad", lambda: gch.chain(gch.accumulate(4), gch.clip_by_norm(0.5), gch.adam(0.05))),
        Recipe("window in a buffer", lambda: gch.chain(gch.accumulate(4, dtype=torch.float64), gch.adam(0.05))),
        Recipe(
            "scale about to grow",
            lambda: gch.chain(gch.amp_scale(1024.0, growth_interval=3, always=True), gch.adam(0.05)),
        ),
        Recipe("average", lambda: gch.chain(gch.adamw(0.05), gch.average_params(0.9, buffers="average"))),
        Recipe("schedule-free", lambda: gch.rules.schedule_free_adamw(0.05)),
        Recipe("noise", lambda: gch.chain(gch.add_noise(0.1, 0.55, 0), gch.sgd(gch.cosine(0.1, 0.0, 12)))),
        Recipe("sparse rows", lambda: gch.sparse_adam(0.05), sparse=True),
        Recipe(
            "plateau",
            lambda: gch.chain(
                gch.scale_by_adam(), gch.reduce_on_plateau("val_loss", patience=2), gch.scale_by_learning_rate(0.05)
            ),
            between=_observing,
        ),
        Recipe("lookahead", lambda: gch.chain(gch.adam(0.05), gch.rules.lookahead(3, 0.5))),
        Recipe("muon", lambda: gch.rules.muon(0.02, head=gch.named("5.*"))),
        Recipe("three rules", _three),
        Recipe("overrides", _clocked, between=_overriding),
        Recipe("freeze", lambda: gch.chain(gch.freeze(gch.named("0.*"), until=5), gch.adam(0.05))),
    )
}
