"""A chain where an optimizer is wanted: the facade, the doors of trainers, and a class for those who make it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import gradchain as gch
from gradchain.adapters import accelerate, lightning, transformers
from gradchain.adapters.optimizer import ChainOptimizer
from gradchain.adapters.zero import PartOptimizer, optimizer_class


def facade(model: nn.Module, batch: Tensor) -> None:
    optimizer = gch.chain(gch.accumulate(2), gch.adamw(1e-3)).bind(model).as_optimizer()
    assert_type(optimizer, ChainOptimizer)
    taken: torch.optim.Optimizer = optimizer
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    model(batch).mean().backward()
    taken.step()
    optimizer.step(lambda: model(batch).mean())
    scheduler.step()
    assert_type(optimizer.updater, gch.Updater)
    assert_type(optimizer.info, gch.UpdateInfo | None)
    assert_type(optimizer.flush(), gch.UpdateInfo)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.zero_grad(set_to_none=True)


def doors(accelerator: Any, optimizer: Any) -> list[Any]:
    with accelerate.averaged(optimizer):
        accelerate.log(accelerator, optimizer, step=3, loss=0.5)
    accelerate.close_windows(optimizer)
    return [lightning.callback(averages=False, log=True), transformers.callback(close_windows=False)]


def sharded(model: nn.Module) -> None:
    made = optimizer_class(gch.adamw(1e-3), model)
    assert_type(made, type[PartOptimizer])
    part = made(model.parameters())
    wanted: type[torch.optim.Optimizer] = made
    print(wanted, part.step())


def wrong(model: nn.Module, updater: gch.Updater) -> None:
    torch.optim.lr_scheduler.StepLR(updater, 10)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    list(updater)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    updater.as_optimizer(0.1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    print(updater.as_optimizer().updat)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    lightning.callback(average=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    optimizer_class(0.1, model)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
