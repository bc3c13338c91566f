"""Chains of every kind that has a state of its own, and a little data, for the tests of `as_optimizer`."""

import io

import torch
from torch import nn

import gradchain as gch

CHAINS = {
    "constant": lambda: gch.chain(gch.adamw(1e-2)),
    "schedule": lambda: gch.chain(gch.clip_by_norm(0.1), gch.adamw(gch.cosine(1e-2, 1e-4, 40))),
    "window": lambda: gch.chain(gch.accumulate(3), gch.adamw(1e-2)),
    "averages": lambda: gch.chain(gch.sgd(0.1, momentum=0.9), gch.average_params(0.9)),
    "partition": lambda: gch.chain(
        gch.partition((gch.bias, gch.sgd(0.05, momentum=0.9)), (gch.rest, gch.adamw(1e-2)))
    ),
    "from_torch": lambda: gch.chain(gch.accumulate(2), gch.from_torch("NAdam", lr=1e-2)),
    "per parameter": lambda: gch.chain(gch.adamw(gch.multiply(gch.linear(1e-2, 1e-3, 30), (gch.bias, 0.5)))),
    "window and averages": lambda: gch.chain(gch.accumulate(4), gch.lion(1e-3), gch.average_params(0.95)),
    "noise and skips": lambda: gch.chain(gch.skip_nonfinite(), gch.trace(0.9), gch.scale_by_learning_rate(0.01)),
    "no rate": lambda: gch.chain(gch.trace(0.5), gch.scale(-0.1)),
}  # fmt: skip


def model_of(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def batches(count: int) -> list[torch.Tensor]:
    return list(torch.randn(count, 8, 3, generator=torch.Generator().manual_seed(7)))


def loss_of(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return (model(batch) - batch.sum(1, keepdim=True)).square().mean()


def stored(value):
    """What comes back of it through a file that runs no code."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models are bitwise equal."""
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(t, theirs[n]) for n, t in ours.items())
