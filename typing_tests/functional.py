"""Chains without an updater: pure functions of Tensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import gradchain as gch


def descend(module: nn.Module, grads: dict[str, Tensor]) -> Tensor:
    tx = gch.chain(gch.clip_by_norm(1.0), gch.adamw(1e-3))
    params = gch.Tensors.of(module)
    state = tx.init(params)
    for step in range(3):
        updates, state = tx.update(gch.Tensors.of(grads), state, gch.Context(params, step=step, loss=0.5))
        params = gch.apply_updates(params, updates)
    assert_type(params, gch.Tensors)
    assert_type(params["weight"], Tensor)
    return params["weight"].sum()


def final(rate: Tensor) -> Tensor:
    tx = gch.chain(gch.trace(0.9), gch.scale_by_learning_rate(rate))
    params = gch.Tensors.of({"w": torch.ones(2)})
    updates, _ = tx.update(2 * params, tx.init(params), gch.Context(params, step=0))
    return gch.apply_updates(params, updates)["w"].sum()


slope: Tensor = torch.func.grad(final)(torch.tensor(0.1))


def algebra(a: gch.Tensors, b: gch.Tensors) -> gch.Tensors:
    assert_type(-a, gch.Tensors)
    assert_type(a + b, gch.Tensors)
    assert_type(a.norms(), gch.Scalars)
    ratio = gch.where(a.norms() > 0, a.norms() / b.norms(), 1.0)
    bounded = gch.maximum(gch.minimum(ratio, 10.0), gch.sqrt(a.norm()))
    assert_type(a.atan2(b).tanh(), gch.Tensors)
    assert_type(a % 2.0, gch.Tensors)
    assert_type(5.0 % a, gch.Tensors)
    bent: gch.Tensors = gch.exp(-a.norm()) * gch.atan2(a, b).log1p().expm1().erf() + gch.remainder(a, b).round().floor()
    mixed = bent + (a * b / 2 - b**2).abs().sqrt().clamp(0.0, 1.0).to(torch.bfloat16)
    for name, tensor in mixed.items():
        assert_type(name, str)
        assert_type(tensor, Tensor)
    result: gch.Tensors = bounded * mixed.lerp(b, 0.5).select(["w"]).where(a.isfinite() & ~(a > b), 0.0)
    return result
