"""Chains that draw, for the tests of random numbers in executors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from twins import Shapes as Shapes

import gradchain as gch
from gradchain.core.eager import EagerTensors

KINDS_OF_NUMBERS = {
    "float32": (torch.float32,),
    "float64": (torch.float64,),
    "mixed": (torch.float32, torch.float64, torch.complex64, torch.bfloat16, torch.complex128),
    "low": (torch.bfloat16, torch.float16),
}


class probe(gch.Transform):
    """Replace the weights by random numbers, of two draws."""

    descends = True

    kind: str

    def update(self, g, state, ctx):
        random = ctx.random(7)
        drawn = getattr(random, self.kind)
        first, second = drawn(g), drawn(g, draw=3)
        size = 2.0**-20 if self.kind == "bits" else 1.0
        return gch.Weights(size * first.maximum(second)), state


def noisy(seed: int) -> gch.Transform:
    """Noise twice, in a mask and on the rate."""
    return gch.chain(
        gch.add_noise(0.1, 0.5, seed),
        gch.masked(gch.add_noise(0.2, 0.3, seed), gch.named("head.*")),
        gch.scale(-0.1),
    )


def steps(updater: gch.Updater, many: int = 2, first: int = 0) -> gch.UpdateInfo:
    """Steps with gradients that follow from their number."""
    info = None
    for t in range(first, first + many):
        info = updater.step({n: 0.01 * (t + 1) * torch.ones_like(p) for n, p in _weights(updater)})
    return info


def _weights(updater: gch.Updater) -> list[tuple[str, Tensor]]:
    return [(fact.name, fact.parameter.detach()) for fact in updater._bound.target.index.facts]


def by_hand(tx: gch.Transform, model: nn.Module, many: int = 2) -> dict[str, Tensor]:
    """The weights after the same steps by the reference alone, without an updater."""
    with torch.no_grad():
        params = gch.Tensors.of(model).clone()
        state, names = tx.init(params), {n: p.detach() for n, p in model.named_parameters()}
        for t in range(many):
            grads = {n: 0.01 * (t + 1) * torch.ones_like(p) for n, p in names.items()}
            out, state = tx.update(EagerTensors.at(params.index, grads), state, gch.Context(params, step=t))
            params = gch.apply_updates(params, out)
        return {n: params[n].to(p.dtype) if not p.is_complex() else params[n] for n, p in names.items()}
