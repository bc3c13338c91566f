"""Small models, data and comparisons for the tests of the Updater."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import gradchain as gch

DOUBLE = torch.float64


def net(seed: int = 0, dtype: torch.dtype = DOUBLE) -> nn.Sequential:
    """Two layers with a tanh between, the same for the same seed."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


def data(n: int, seed: int = 1, dtype: torch.dtype = DOUBLE) -> list[Tensor]:
    """`n` micro-batches of five rows."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 3, generator=generator, dtype=DOUBLE).to(dtype) for _ in range(n)]


def loss_of(model: nn.Module, rows: Tensor) -> Tensor:
    """A loss with no symmetry."""
    return (model(rows) - rows[:, :2].sin()).square().mean()


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters, by name."""
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def distance(model: nn.Module, other: nn.Module | Mapping[str, Tensor]) -> float:
    """The largest difference between the weights of two models."""
    theirs = weights(other) if isinstance(other, nn.Module) else other
    mine = weights(model)
    assert mine.keys() == theirs.keys()
    return max((mine[n] - theirs[n]).abs().max().item() for n in mine if mine[n].numel())


def same(a: Any, b: Any) -> bool:
    """Whether plain data is equal bit for bit, tensors with their dtypes."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return type(a) is type(b) and a.dtype == b.dtype and torch.equal(_bits(a), _bits(b))
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def _bits(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().flatten().view(kinds[tensor.element_size()])


def snapshot(model: nn.Module, updater: gch.Updater) -> Any:
    """Everything that an error must leave as it was, but for an open window."""
    counts = (updater.num_updates, updater.num_micro, updater.num_skipped)
    return copy.deepcopy([dict(model.state_dict()), updater.state_dict(), counts])


@contextmanager
def untouched(model: nn.Module, updater: gch.Updater) -> Iterator[None]:
    """Weights, buffers, state, clocks and overrides are after the block what they were before it, to the bit."""
    before = snapshot(model, updater)
    yield
    after = snapshot(model, updater)
    for one, other in zip(before, after, strict=True):
        assert same(one, other), (one, other)


def full_chain(k: int = 2, average: Any = 0.9) -> gch.Transform:
    """A chain with a window, a loss scale, a clip, moments, decay, a schedule and an average."""
    return gch.chain(
        gch.accumulate(k),
        gch.amp_scale(1024.0, growth_interval=3, always=True),
        gch.clip_by_norm(0.5),
        gch.scale_by_adam(b2=0.95),
        gch.masked(gch.add_decayed_weights(0.1), gch.min_ndim(2)),
        gch.scale_by_learning_rate(gch.linear(0.0, 0.05, 4).then(gch.cosine(0.05, 0.01, 10))),
        gch.average_params(average, buffers="average"),
    )


class BoomError(RuntimeError):
    """Raised by the links, hooks and closures below."""


class boom(torch.autograd.Function):
    """The identity, whose backward raises."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise BoomError("backward")


class Fuse:
    """A function for `stateless` that raises while it is lit."""

    def __init__(self) -> None:
        self.lit = False

    def __call__(self, updates: gch.Tensors, params: gch.Tensors) -> gch.Tensors:
        if self.lit:
            raise BoomError("link")
        return updates


def largest(values) -> float:
    """The largest element of some tensors; NaN where there is one, which Python's max may drop."""
    return float(torch.stack([value.detach().abs().max().double() for value in values]).max())
