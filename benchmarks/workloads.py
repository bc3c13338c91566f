"""The models: what is trained, and a real forward that is cheap beside the optimizer.

Every loss is multiplied by a number that changes from step to step (`LOUDNESS`): Adam and Lion ignore the size of a
gradient, so only a size that varies shows that a clip, a scale or a window did its work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOUDNESS = (1.0, 2.0, 0.7, 1.5, 1.2)


@dataclass(frozen=True)
class Workload:
    """What is trained.

    Attributes:
        key: its letter.
        title: what it is.
        make: makes the model; the same weights each time it is called.
        forward: (model, micro-batch number) → loss.
        settle: steps of a turn before those that are timed.
        steps: timed steps of a turn.
        halves: whether its forward computes in float16 under autocast.
    """

    key: str
    title: str
    make: Callable[[], nn.Module]
    forward: Callable[[nn.Module, int], Tensor]
    settle: int = 0
    steps: int = 1
    halves: bool = False

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make()

    def loss(self, model: nn.Module, number: int) -> Tensor:
        return self.forward(model, number) * LOUDNESS[number % len(LOUDNESS)]


def decays(parameter: Tensor) -> bool:
    """Which weights the decay mask of R3 selects: matrices in (a) and (b), the gains of (c) and (d)."""
    return parameter.ndim >= 2


# (a)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.before(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, width)
        x = x + self.proj(mixed)
        return x + self.down(F.gelu(self.up(self.after(x))))


class GPT(nn.Module):
    """8 blocks of width 512, 16,384 tokens, head tied to the embedding: 33.9 M parameters in 100 tensors."""

    def __init__(self, tokens: int = 16384, places: int = 256, width: int = 512, depth: int = 8) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(tokens, width), nn.Embedding(places, width)
        self.blocks = nn.ModuleList(Block(width, 8) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


_texts = torch.randint(0, 16384, (16, 1, 17), generator=torch.Generator().manual_seed(1))


def _gpt_loss(model: nn.Module, number: int) -> Tensor:
    ids = _texts[number % len(_texts)]
    # a sum: of a mean the gradients are so small that the ways in which libraries add Adam's eps show
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")


# (b)


def _resnet50_shapes() -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    width_in = 64
    for width, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for i in range(depth):
            for out, inner, kernel in ((width, width_in, 1), (width, width, 3), (4 * width, width, 1)):
                shapes += [(out, inner, kernel, kernel), (out,), (out,)]
            if i == 0:
                shapes += [(4 * width, width_in, 1, 1), (4 * width,), (4 * width,)]
            width_in = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


class Shapes(nn.Module):
    """Parameters of given shapes, and for each a direction that the loss looks along."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(shape) * 0.05 for shape in shapes)


_directions: dict[int, list[Tensor]] = {}


def _linear_loss(model: nn.Module, number: int) -> Tensor:
    assert isinstance(model, Shapes)
    turn = number % 2
    if turn not in _directions:
        generator = torch.Generator().manual_seed(2 + turn)
        _directions[turn] = [torch.randn(p.numel(), generator=generator) for p in model.weights]
    dots = [torch.dot(p.flatten(), d) for p, d in zip(model.weights, _directions[turn], strict=True)]
    return torch.stack(dots).sum() / 100


# (c) and (d)


class Chains(nn.Module):
    """Rows of layers x ← x w + b with w of shape (1, size) and b of shape (size,): two tensors of `size` per layer.

    The targets are the inputs and noise: 8 of them for 4 inputs and two numbers per element to fit, so no weights fit
    them all. The loss is bounded below, and its gradient never dies: after 2000 steps of any recipe its norm is above a
    third of the first ones.
    """

    def __init__(self, rows: int, layers: int, size: int) -> None:
        super().__init__()
        self.rows, self.layers = rows, layers
        self.gains = nn.ParameterList(1 + 0.02 * torch.randn(1, size) for _ in range(rows * layers))
        self.shifts = nn.ParameterList(0.02 * torch.randn(size) for _ in range(rows * layers))
        inputs = torch.randn(4, size)
        self.register_buffer("inputs", inputs)
        self.register_buffer("targets", inputs.repeat(2, 1)[:, None] + torch.randn(8, rows, size))


def _chains_loss(model: nn.Module, number: int) -> Tensor:
    assert isinstance(model, Chains)
    gains, shifts, outs = list(model.gains), list(model.shifts), []
    start = model.inputs[number % 4]  # type: ignore[index]
    for row in range(model.rows):
        x = start
        for at in range(row * model.layers, (row + 1) * model.layers):
            x = torch.addcmul(shifts[at], x, gains[at].view(-1))
        outs.append(x)
    wanted: Tensor = model.targets[number % 8]  # type: ignore[index, assignment]
    return F.smooth_l1_loss(torch.stack(outs), wanted, reduction="sum")


WORKLOADS = {
    w.key: w
    for w in (
        Workload("a", "GPT-like, 33.9 M parameters in 100 tensors", GPT, _gpt_loss, halves=True),
        Workload("b", "ResNet-50's shapes, 25.6 M in 161", lambda: Shapes(_resnet50_shapes()), _linear_loss),
        Workload("c", "1000 tensors of 256", lambda: Chains(50, 10, 256), _chains_loss),
        Workload("d", "20 tensors of 64", lambda: Chains(1, 10, 64), _chains_loss, settle=3, steps=8),
    )
}
