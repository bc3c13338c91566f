"""Random models and random rules for them, as configs meet them: kinds of norms, shared modules, tied weights."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

NAMES = (
    "backbone", "backbone2", "neck", "head", "norm", "bn", "conv", "conv_offset", "layers", "bias", "weight", "attn",
    "a", "ab", "query_embed",
)  # fmt: skip
RULES = ("norm_decay_mult", "bias_decay_mult", "dwconv_decay_mult", "flat_decay_mult", "bias_lr_mult")


class Own(nn.Module):
    """What has its parameters itself: a scalar, a bias of two dimensions, one that only ends in bias; and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.bias = nn.Parameter(torch.rand(3)), nn.Parameter(torch.rand(2, 2))
        self.scale, self.q_bias = nn.Parameter(torch.rand(())), nn.Parameter(torch.rand(2))
        self.register_buffer("average", torch.zeros(2))


class OwnNorm(nn.LayerNorm):
    pass


class OwnConv(nn.Conv2d):
    pass


LEAVES = (
    lambda: nn.Linear(2, 2),
    lambda: nn.Conv2d(2, 2, 1),
    lambda: nn.Conv2d(2, 4, 1, groups=2),
    lambda: nn.Conv2d(1, 2, 1),
    lambda: nn.Conv1d(2, 2, 1, groups=2),
    lambda: nn.ConvTranspose2d(2, 2, 1, groups=2),
    lambda: nn.BatchNorm1d(2),
    lambda: nn.BatchNorm2d(2, affine=False),
    lambda: nn.SyncBatchNorm(2),
    lambda: nn.InstanceNorm2d(2, affine=True),
    lambda: nn.GroupNorm(1, 2),
    lambda: nn.RMSNorm(2),
    lambda: OwnNorm([2, 2]),
    lambda: OwnConv(2, 2, 1, groups=2),
    lambda: nn.LSTM(2, 2),
    lambda: nn.MultiheadAttention(2, 1),
    lambda: nn.PReLU(2),
    lambda: nn.ParameterList([nn.Parameter(torch.rand(2)) for _ in range(2)]),
    lambda: nn.ParameterDict({"bias": nn.Parameter(torch.rand(2)), "norm": nn.Parameter(torch.rand(2, 2))}),
    lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
    Own,
)


def _tree(draw: random.Random, depth: int = 0) -> nn.Module:
    module = nn.Module() if draw.random() < 0.7 else nn.Sequential()
    plain = isinstance(module, nn.Sequential)
    for i, name in enumerate(draw.sample(NAMES, draw.randint(1, 4))):
        child = draw.choice(LEAVES)() if depth > 1 or draw.random() < 0.6 else _tree(draw, depth + 1)
        dotted = f"{name}.x" if draw.random() < 0.06 else name  # torch's own setattr lets it through
        module._modules[str(i) if plain else dotted] = child
    for name in draw.sample(("cls_token", "gamma", "logit_scale", "temperature"), 0 if plain else draw.randint(0, 2)):
        module.register_parameter(name, nn.Parameter(torch.rand(draw.choice([(), (2,), (2, 2)]))))
    return module


def _tie(draw: random.Random, model: nn.Module) -> None:
    """One module in two places, or one parameter under two names."""
    places = [(owner, name) for owner in model.modules() for name in owner._modules]
    if draw.random() < 0.5 and len(places) > 1:
        (a, one), (b, other) = draw.sample(places, 2)
        if not any(module is b for module in a._modules[one].modules()):
            b._modules[other] = a._modules[one]
        return
    held = [(owner, name) for owner in model.modules() for name, p in owner._parameters.items() if p is not None]
    if len(held) > 1:
        (a, one), (b, other) = draw.sample(held, 2)
        b._parameters[other] = a._parameters[one]


def random_model(seed: int, tied: float = 0.2) -> nn.Module:
    """Some are wrapped, some have frozen parameters; in float64. Nothing runs them: see `loss`."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    model = _tree(draw)
    while not any(True for _ in model.parameters()):
        model = _tree(draw)
    if draw.random() < tied:
        _tie(draw, model)
    model = model.double()
    if draw.random() < 0.25:
        for parameter in list(model.parameters())[1:]:
            parameter.requires_grad_(draw.random() < 0.7)
    return nn.DataParallel(model) if draw.random() < 0.1 else model


def _key(draw: random.Random, names: list[str]) -> str:
    """A part of some parameter's name, as people write custom keys, or any letters of it."""
    name = draw.choice(names)
    parts = name.split(".")
    if draw.random() < 0.3:
        first = draw.randrange(len(name))
        return name[first : draw.randint(first + 1, len(name))]
    first = draw.randrange(len(parts))
    key = ".".join(parts[first : draw.randint(first + 1, len(parts))])
    return draw.choice(["", "", "."]) + key + draw.choice(["", "", "."])


def random_rules(draw: random.Random, model: nn.Module) -> dict[str, Any]:
    """A `paramwise_cfg` for this model."""
    inner = model.module if isinstance(model, nn.DataParallel) else model
    names = [name for name, _ in inner.named_parameters()]
    factor = lambda: draw.choice([0.0, 0.1, 0.3, 1.0, 2.5, round(draw.uniform(0, 2), 4)])  # noqa: E731
    rules: dict[str, Any] = {name: factor() for name in RULES if draw.random() < 0.35}
    keys: dict[str, dict[str, float]] = {}
    for _ in range(draw.randint(0, 4)):
        entry = {name: factor() for name in ("lr_mult", "decay_mult") if draw.random() < 0.6}
        own = {"lr": draw.uniform(0.01, 0.2), "weight_decay": draw.uniform(0, 0.1)}
        keys[_key(draw, names)] = entry | {name: value for name, value in own.items() if draw.random() < 0.1}
    if keys:
        rules["custom_keys"] = keys
    if draw.random() < 0.6:
        rules["bypass_duplicate"] = draw.random() < 0.8
    return rules


def random_optimizer(draw: random.Random) -> dict[str, Any]:
    kind = draw.choice(["SGD", "SGD", "AdamW", "Adam", "RMSprop", "NAdam"])
    optimizer: dict[str, Any] = {"type": kind, "lr": round(draw.uniform(0.01, 0.1), 4)}
    if kind == "SGD":
        optimizer |= draw.choice([{}, {"momentum": 0.9}, {"momentum": 0.8, "nesterov": True}])
    if kind == "AdamW":
        optimizer["betas"] = draw.choice([(0.9, 0.95), [0.8, 0.99]])
    return optimizer | draw.choice([{}, {"weight_decay": 0.0}, {"weight_decay": 0.05}, {"weight_decay": 0.1}])


def loss(model: nn.Module, step: int) -> Tensor:
    """A number of every trained parameter that differs from step to step: a model of any kind has one."""
    generator = torch.Generator().manual_seed(1000 + step)
    out = torch.zeros((), dtype=torch.float64)
    for parameter in model.parameters():
        push = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.requires_grad:
            out = out + (parameter * push).sum() + 0.2 * (parameter * parameter).sum()
    return out
