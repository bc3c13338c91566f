"""Whatever may stand for a hyperparameter: numbers, schedules, functions, 0-d tensors; and for a selector."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import gradchain as gch


def halving(step: float) -> float:
    return 0.1 * math.exp(-step / 1000)


class triangle(gch.schedules.Schedule):
    peak: float
    width: int

    def curve(self, t: float) -> float:
        return self.peak * (1 - abs((t % self.width) / self.width - 0.5))


def every_kind_of_value() -> list[gch.chain]:
    lr = gch.linear(0.0, 1.0, 500).then(gch.constant(1.0)) * gch.by("epoch", halving)
    assert_type(lr(3), float)
    return [
        gch.adamw(1e-3),
        gch.adamw(1),
        gch.adamw(halving),
        gch.adamw(lambda step: 1e-3 * math.exp(-step)),
        gch.adamw(lr),
        gch.adamw(triangle(1e-3, 100)),
        gch.adamw(torch.tensor(1e-3)),
        gch.adamw(0.5 * triangle(1e-3, 100).clip(low=1e-5) + 1e-5),
        gch.adamw(gch.join((0, 10, halving), (20, None, gch.cosine(0.1, 0.0, 80)))),
        gch.adamw(gch.schedules.per_epoch(gch.schedules.multi_step(0.1, (30, 60)), 500)),
        gch.lion(1e-4, b1=gch.linear(0.9, 0.95, 100), mask=gch.min_ndim(2)),
    ]


def numbers_per_parameter(model: nn.Module) -> gch.chain:
    lr = gch.multiply(
        gch.cosine(0.1, 0.0, 10), (gch.bias, 2.0), {"head.bias": 0.5}, halved, (is_wide, 3), (of_one, 2.0)
    )
    assert_type(lr, gch.multiply)
    deep = gch.layer_decay(0.65, gch.selectors.depth.vit(12, prefix="backbone."))
    own = gch.layer_decay(0.9, lambda name, parameter, owner: parameter.ndim, total=5)
    decay: gch.PerParameter = gch.choose((gch.norm, 0.0), (is_wide, halving), rest=gch.multiply(0.05, deep, own))
    updater = gch.adamw(lr, b1=gch.multiply(0.9, gch.first((gch.bias, 0.5), (gch.norm, 0.1))), weight_decay=decay).bind(
        model
    )
    updater.override("weight_decay", gch.multiply(0.1, (gch.bias, 0.0)))
    assert_type(updater.settings().groups(), dict[str, dict[float, int]])
    assert_type(updater.settings()["head.bias"]["scale_by_learning_rate.learning_rate"], float)
    return updater.chain


def halved(name: str, parameter: Tensor, owner: nn.Module | None) -> float:
    return 0.5 if "head" in name else 1.0


def is_wide(name: str, parameter: Tensor, owner: nn.Module | None) -> bool:
    return parameter.ndim == 2 and parameter.shape[0] > 100 and not isinstance(owner, nn.Embedding)


def of_two(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and "head" in name


def of_one(parameter: Tensor) -> bool:
    return parameter.ndim == 2


class under(gch.Selector):
    prefix: str

    def __call__(self, name: str, parameter: Tensor, owner: nn.Module | None) -> bool:
        return name.startswith(f"{self.prefix}.")


def every_kind_of_selector() -> gch.chain:
    decay = gch.add_decayed_weights(0.05, lazy=True)
    body = gch.named("body.*", re.compile(r"stem\..*")) & ~(gch.norm | gch.bias)
    assert_type(body, gch.Selector)
    return gch.chain(
        gch.freeze(gch.owner(nn.Embedding), until=100),
        gch.clip_by_norm(1.0, per=[under("body"), gch.named("head.*")]),
        gch.masked(decay, is_wide),
        gch.masked(decay, body & is_wide),
        gch.masked(decay, lambda name, parameter, owner: "norm" not in name),
        gch.masked(decay, of_two),
        gch.masked(decay, of_one),
        gch.masked(decay, of_two | gch.bias),
        gch.masked(decay, {"head.weight": True, "head.bias": False}),
        gch.masked(decay, {"head": {"weight": True, "bias": False}}),
        gch.partition(
            ("critic", gch.named("critic.*"), gch.sgd(0.1)),
            (gch.embedding, gch.adam(1e-3)),
            (gch.rest, gch.chain(gch.trace(0.9), gch.scale(-0.1))),
        ),
    )
