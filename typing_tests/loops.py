"""A run as a user writes it: the body has the loader's batches, hooks have the run."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import assert_type

import gradchain as gch


class Scores(gch.loop.Sink):
    def __call__(self, record: dict[str, object]) -> None:
        self.last = record


def warn(run: gch.loop[tuple[Tensor, Tensor]]) -> None:
    assert_type(run.epoch, int)
    assert_type(run.batch, "tuple[Tensor, Tensor] | None")


def train(model: nn.Module, loader: DataLoader[tuple[Tensor, Tensor]], pairs: list[tuple[Tensor, Tensor]]) -> None:
    updater = gch.sgd(0.1).bind(model)
    run = gch.loop(
        pairs,
        updater,
        updates=1000,
        validate=(lambda: {"loss": 1.0}, [(500, 100)]),
        averaged=False,
        observe=("loss",),
        checkpoint=gch.loop.checkpoints("runs", 100, "update", keep=3, best=("loss", "min")),
        hooks=[("after_update", warn, "LOW")],
        log=["run.jsonl", gch.loop.console(), gch.loop.tensorboard("runs"), Scores()],
        bar=False,
    )
    for inputs, targets in run:
        assert_type(inputs, Tensor)
        info = run.update(F.cross_entropy(model(inputs), targets), last=False)
        assert_type(info, gch.UpdateInfo)
        run.log(accuracy=0.5)
        run.stop()
    assert_type(iter(run), Iterator[tuple[Tensor, Tensor]])
    assert_type(run.num_updates, int)
    assert_type(gch.loop.intervals(1, 10, [(90, 1)]), list[tuple[int, "int | None"]])
    order = gch.loop.sampler(len(pairs), seed=1)
    assert_type(next(iter(order)), int)
    for _ in gch.loop(loader, {"model": updater}, epochs=torch.tensor(3).numel(), checkpoint="runs"):
        updater.update(model(torch.ones(1)).sum())
