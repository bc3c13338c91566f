"""Chains and executors that an updater's modes, copies and lifetime are tried on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from little import DOUBLE, full_chain, loss_of, net
from torch import Tensor, nn

import gradchain as gch

EXECUTORS = ("native", "patterns", "blocks", "reference")


@dataclass
class Life:
    """A chain, what it is bound with, and whether it is given closures."""

    tx: Callable[[], gch.Transform]
    options: dict[str, Any] = field(default_factory=dict)
    closure: bool = False
    dtype: torch.dtype = DOUBLE

    def begin(self, executor: str, seed: int = 0) -> tuple[nn.Module, gch.Updater]:
        """A model and an updater of it."""
        model = net(seed, self.dtype)
        return model, run_by(self.tx().bind(model, **self.options), executor)

    def update(self, model: nn.Module, updater: gch.Updater, rows: Tensor) -> gch.UpdateInfo:
        """One micro-batch."""
        rows = rows.to(self.dtype)
        return updater.update(functools.partial(loss_of, model, rows) if self.closure else loss_of(model, rows))


def run_by(updater: gch.Updater, executor: str) -> gch.Updater:
    """The updater; without executors every step runs by the reference."""
    if executor == "reference":
        updater._bound.engine.executors = ()
    return updater


def execute(monkeypatch: pytest.MonkeyPatch, executor: str) -> None:
    """Let engines that are made from now on choose this executor, and what it cannot run go to blocks."""
    if executor != "reference":
        monkeypatch.setenv("GRADCHAIN_EXECUTORS", f"{executor},blocks")


def twice(tensor: Tensor) -> Tensor:
    """A whole tensor's function, which a pickle knows by name."""
    return 2 * tensor


def cubed(tensor: Tensor) -> Tensor:
    """Products of matrices, which autocast would round."""
    return tensor @ tensor.mT @ tensor if tensor.ndim == 2 else tensor


def whitened(updates: gch.Tensors, params: gch.Tensors) -> gch.Tensors:
    """A rule over whole matrices."""
    return updates.map(cubed)


def doubled(updates: gch.Tensors, params: gch.Tensors) -> gch.Tensors:
    """Code of a user's, which asks for whole tensors."""
    return updates.map(twice)


def spread() -> gch.Transform:
    """Numbers per parameter, norms per group, a selector that takes all."""
    rates = gch.multiply(gch.linear(0.1, 0.01, 8), (gch.bias, 0.5))
    return gch.chain(
        gch.clip_by_norm(0.5, per=(gch.bias, gch.min_ndim(2))),
        gch.masked(gch.add_decayed_weights(0.1), gch.everything),
        gch.adam(rates),
    )


LIVES = {
    "sgd": Life(lambda: gch.sgd(0.1)),
    "momentum": Life(lambda: gch.sgd(gch.cosine(0.1, 0.0, 20), momentum=0.9)),
    "adamw": Life(lambda: gch.adamw(0.05, mask=gch.min_ndim(2))),
    "recipe": Life(lambda: full_chain(2)),
    "buffered window": Life(lambda: gch.chain(gch.accumulate(3, dtype=torch.float32), gch.adam(0.05))),
    "partition": Life(
        lambda: gch.partition(
            ("slow", gch.bias, gch.chain(gch.accumulate(2), gch.sgd(0.1))), (gch.rest, gch.lion(0.01))
        )
    ),
    "per parameter": Life(spread),
    "gates": Life(lambda: gch.chain(gch.skip_nonfinite(), gch.adam(0.05))),
    "sam": Life(lambda: gch.chain(gch.sam(0.1), gch.adam(0.05)), closure=True),
    "average": Life(lambda: gch.chain(gch.adam(0.05), gch.average_params(0.9))),
    "in backward": Life(lambda: gch.adamw(0.05), {"in_backward": True}),
    "from torch": Life(lambda: gch.from_torch(torch.optim.AdamW, lr=0.05)),
    "mapped": Life(lambda: gch.chain(gch.stateless(doubled), gch.sgd(0.05))),
    "matrices": Life(lambda: gch.chain(gch.stateless(whitened), gch.sgd(0.05))),
    "bfloat16": Life(lambda: gch.adamw(0.05), dtype=torch.bfloat16),
}
