"""Rows of the elementwise rules of Optax and beyond it, with their twins from the papers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import rules
import torch
from case import Case
from later import later
from peers import Peer, Rule, joint_twin, of_optax, of_torch, twin
from rules import falling, rising
from torch import Tensor

import gradchain as gch

jettify = later("torch_optimizer")
kozistr = later("pytorch_optimizer")
Memory = dict[str, Any]

# twins, one parameter at a time


def _ticked(memory: Memory) -> int:
    memory["t"] = memory.get("t", 0) + 1
    return memory["t"]


def _averaged(memory: Memory, name: str, new: Any, b: float) -> Any:
    """A mean that starts at zero, of which b stays."""
    memory[name] = b * memory.get(name, 0.0) + (1 - b) * new
    return memory[name]


def belief(b1: float, b2: float, eps: float, eps_root: float) -> Rule:
    """Zhuang et al., 2020, Algorithm 2."""

    def rule(w: Tensor, g: Tensor, memory: Memory, lr: float, t: int) -> Tensor:
        count, m = _ticked(memory), _averaged(memory, "m", g, b1)
        s = memory["s"] = _averaged(memory, "s", (g - m) ** 2, b2) + eps_root
        return w - lr * (m / (1 - b1**count)) / ((s / (1 - b2**count)).sqrt() + eps)

    return rule


def yogi(b1: float, b2: float, eps: float, start: float) -> Rule:
    """Zaheer et al., 2018, Algorithm 2."""

    def rule(w: Tensor, g: Tensor, memory: Memory, lr: float, t: int) -> Tensor:
        count, v = _ticked(memory), memory.get("v", start)
        memory.setdefault("m", start)
        m = _averaged(memory, "m", g, b1)
        v = memory["v"] = v - (1 - b2) * torch.sign(v - g**2) * g**2
        return w - lr * (m / (1 - b1**count)) / ((v / (1 - b2**count)).sqrt() + eps)

    return rule


def adan(b1: float, b2: float, b3: float, eps: float, decay: float = 0.0, proximal: bool = True) -> Rule:
    """Xie et al., 2022, Algorithm 1, in the letters b = 1 - β."""

    def rule(w: Tensor, g: Tensor, memory: Memory, lr: float, t: int) -> Tensor:
        count, d = _ticked(memory), g - memory.get("g", g)
        m, v = _averaged(memory, "m", g, b1), _averaged(memory, "v", d, b2)
        n, memory["g"] = _averaged(memory, "n", (g + b2 * d) ** 2, b3), g
        u = (m / (1 - b1**count) + b2 * v / (1 - b2**count)) / ((n / (1 - b3**count)).sqrt() + eps)
        return (w - lr * u) / (1 + lr * decay) if proximal else w - lr * (u + decay * w)

    return rule


def aggmo(betas: tuple[float, ...], decay: float = 0.0) -> Rule:
    """Lucas et al., 2018, Equation 4."""

    def rule(w: Tensor, g: Tensor, memory: Memory, lr: float, t: int) -> Tensor:
        g = g + decay * w
        before = memory.get("v", [torch.zeros_like(g)] * len(betas))
        memory["v"] = [b * v + g for b, v in zip(betas, before, strict=True)]
        return w - lr / len(betas) * sum(memory["v"])

    return rule


def adopt(b1: float, b2: float, eps: float, exponent: float, decay: float = 0.0, nesterov: bool = False) -> Rule:
    """Taniguchi et al., 2024, Algorithm 2; the first update fills v."""

    def rule(w: Tensor, g: Tensor, memory: Memory, lr: float, t: int) -> Tensor:
        count = _ticked(memory)
        if count == 1:
            memory["v"], memory["m"] = g**2, torch.zeros_like(g)
            return w - lr * decay * w
        n = g / memory["v"].sqrt().clamp(min=eps)
        bound = (count - 1) ** exponent
        n = n.clamp(-bound, bound)
        m = _averaged(memory, "m", n, b1)
        _averaged(memory, "v", g**2, b2)
        return w - lr * ((b1 * m + (1 - b1) * n if nesterov else m) + decay * w)

    return rule


def ademamix(b1: float, b2: float, b3: float, alpha: float, eps: float, warmup: float = 0, decay: float = 0.0) -> Rule:
    """Pagliardini et al., 2024, Algorithm 1, with the warm-ups as the authors' code has them: in half-lives."""

    def life(b: float) -> float:
        return math.log(0.5) / math.log(b) - 1

    def rule(w: Tensor, g: Tensor, memory: Memory, lr: float, t: int) -> Tensor:
        count, a, b = _ticked(memory), alpha, b3
        if count < warmup:
            a = alpha * count / warmup
            b = 0.5 ** (1 / ((1 - count / warmup) * life(b1) + count / warmup * life(b3) + 1))
        m1, m2 = _averaged(memory, "m1", g, b1), _averaged(memory, "m2", g, b)
        v = _averaged(memory, "v", g**2, b2)
        u = (m1 / (1 - b1**count) + a * m2) / ((v / (1 - b2**count)).sqrt() + eps)
        return w - lr * (u + decay * w)

    return rule


def simplified_ademamix(b1: float, b2: float, alpha: float, eps: float, decay: float = 0.0) -> Rule:
    """Morwani et al., 2025."""

    def rule(w: Tensor, g: Tensor, memory: Memory, lr: float, t: int) -> Tensor:
        count = _ticked(memory)
        memory["m"] = b1 * memory.get("m", 0.0) + g
        v = _averaged(memory, "v", g**2, b2)
        return w - lr * ((memory["m"] + alpha * g) / ((v / (1 - b2**count)).sqrt() + eps) + decay * w)

    return rule


def laprop(b1: float, b2: float, eps: float, decay: float = 0.0) -> Rule:
    """Ziyin et al., 2020, Algorithm 1."""

    def rule(w: Tensor, g: Tensor, memory: Memory, lr: float, t: int) -> Tensor:
        count, v = _ticked(memory), _averaged(memory, "v", g**2, b2)
        m = _averaged(memory, "m", g / ((v / (1 - b2**count)).sqrt() + eps), b1)
        return w - lr * (m / (1 - b1**count) + decay * w)

    return rule


def adam_atan2(b1: float, b2: float, a: float, b: float, decay: float = 0.0) -> Rule:
    """Everett et al., 2024, Section 4.3."""

    def rule(w: Tensor, g: Tensor, memory: Memory, lr: float, t: int) -> Tensor:
        count, m, v = _ticked(memory), _averaged(memory, "m", g, b1), _averaged(memory, "v", g**2, b2)
        return w - lr * (a * torch.atan2(m / (1 - b1**count), b * (v / (1 - b2**count)).sqrt()) + decay * w)

    return rule


def mean(b: float, debias: bool = True, sign: bool = False, decay: float = 0.0) -> Rule:
    """The moving average of the gradients, or its sign."""

    def rule(w: Tensor, g: Tensor, memory: Memory, lr: float, t: int) -> Tensor:
        count, m = _ticked(memory), _averaged(memory, "m", g, b)
        u = m / (1 - b**count) if debias else m
        return w - lr * ((u.sign() if sign else u) + decay * w)

    return rule


def optimistic(alpha: float, beta: float) -> Rule:
    """Mokhtari et al., 2019."""

    def rule(w: Tensor, g: Tensor, memory: Memory, lr: float, t: int) -> Tensor:
        u, memory["g"] = alpha * g + beta * (g - memory.get("g", g)), g
        return w - lr * u

    return rule


def optimistic_adam(alpha: float, beta: float) -> Rule:
    """Daskalakis et al., 2017, Algorithm 1: the optimistic step of Adam's direction."""
    direction, step = rules.adam(), optimistic(alpha, beta)

    def rule(w: Tensor, g: Tensor, memory: Memory, lr: float, t: int) -> Tensor:
        u = -direction(torch.zeros_like(w), g, memory.setdefault("adam", {}), 1.0, t)
        return step(w, u, memory, lr, t)

    return rule


def bounded_lion(b1: float, b2: float, bound: Callable[[Tensor], Tensor]) -> Rule:
    """Lion with another function than the sign."""

    def rule(w: Tensor, g: Tensor, memory: Memory, lr: float, t: int) -> Tensor:
        m = memory.get("m", torch.zeros_like(g))
        memory["m"] = b2 * m + (1 - b2) * g
        return w - lr * bound(b1 * m + (1 - b1) * g)

    return rule


def acprop(b1: float, b2: float, eps: float, decay: float = 0.0) -> Rule:
    """Zhuang et al., 2021, Algorithm 2; the first update is the gradient."""

    def rule(w: Tensor, g: Tensor, memory: Memory, lr: float, t: int) -> Tensor:
        count, m = _ticked(memory), memory.get("m", torch.zeros_like(g))
        s = memory["s"] / (1 - b2 ** (count - 1)) if count > 1 else torch.ones_like(g)
        memory["s"] = _averaged(memory, "s", (g - m) ** 2, b2) + eps
        _averaged(memory, "m", g, b1)
        return w - lr * (g / (s.sqrt() + eps) + decay * w)

    return rule


def cocob(alpha: float, eps: float, decay: float = 0.0) -> Rule:
    """Orabona and Tommasi, 2017, Algorithm 2."""

    def rule(w: Tensor, g: Tensor, memory: Memory, lr: float, t: int) -> Tensor:
        g = lr * (g + decay * w)
        first = memory.setdefault("w", w)
        most = memory["L"] = torch.maximum(memory.get("L", torch.full_like(w, eps)), g.abs())
        total = memory["G"] = memory.get("G", 0.0) + g.abs()
        won = memory["R"] = (memory.get("R", 0.0) - g * (w - first)).clamp(min=0)
        theta = memory["θ"] = memory.get("θ", 0.0) - g
        return first + theta / (most * torch.maximum(total + most, alpha * most)) * (most + won)

    return rule


def madgrad(momentum: float, eps: float, decay: float = 0.0) -> Rule:
    """Defazio and Jelassi, 2021, Algorithm 1."""

    def rule(w: Tensor, g: Tensor, memory: Memory, lr: float, t: int) -> Tensor:
        rate, first = (lr + eps) * _ticked(memory) ** 0.5, memory.setdefault("w", w)
        g = g + decay * w
        memory["v"], memory["s"] = memory.get("v", 0.0) + rate * g**2, memory.get("s", 0.0) + rate * g
        return momentum * w + (1 - momentum) * (first - memory["s"] / (memory["v"] ** (1 / 3) + eps))

    return rule


def qhm(decay: float, nu: float) -> Rule:
    """Ma and Yarats, 2018, Algorithm 1."""

    def rule(w: Tensor, g: Tensor, memory: Memory, lr: float, t: int) -> Tensor:
        return w - lr * ((1 - nu) * g + nu * _averaged(memory, "m", g, decay))

    return rule


def at(rate: Callable[[int], float], rule: Rule) -> Rule:
    """A rule that has its learning rate inside, or none."""
    return lambda w, g, memory, lr, t: rule(w, g, memory, rate(t), t)


# peers


def _optax(name: str, make: Callable[[Any], Any], **rest: Any) -> Peer:
    """A link of Optax's before a learning rate."""
    return of_optax(f"optax.{name}", lambda ox, lr: ox.chain(make(ox), ox.scale_by_learning_rate(lr)), **rest)


def _jettify(name: str, **given: Any) -> Callable[..., Any]:
    return lambda weights, lr: getattr(jettify, name)(weights.values(), lr=lr, **given)


def _kozistr(name: str, **given: Any) -> Peer:
    """A class of pytorch_optimizer, whose count is that of a group."""
    make = lambda weights, lr: getattr(kozistr, name)(weights.values(), lr=lr, foreach=False, **given)  # noqa: E731
    return of_torch(f"pytorch_optimizer.{name}", make, absent=False, complex=False)


def _with_eps_of_1e_6(ox: Any) -> Any:
    return ox.scale_by_belief(b1=0.8, b2=0.95, eps=1e-6, eps_root=1e-6)


def _warm(end: float) -> Callable[[Any], Any]:
    """A straight line to `end` at the eighth update, as Optax counts: from 0."""
    return lambda count: end * _least((count + 1.0) / 8)


def _least(x: Any) -> Any:
    import jax

    return jax.numpy.minimum(x, 1.0)


ROOTS = "it takes the root of an int32 counter, which jax does in float32"
STARTS = "what the mean gradient starts at is rounded to bfloat16, and is more than that gradient"
TINY = "the square of bfloat16's smallest number is zero in float32, and there is no eps"

ROWS: tuple[Case, ...] = (
    # AdaBelief
    Case(
        "scale_by_belief",
        gch.rules.scale_by_belief(),
        (
            _optax("scale_by_belief", lambda ox: ox.scale_by_belief()),
            twin(belief(0.9, 0.999, 1e-16, 1e-16)),
            of_torch(
                "torch_optimizer.AdaBelief",
                _jettify("AdaBelief", eps=1e-16, rectify=False, weight_decouple=True),
                complex=False,
            ),
        ),
        lr=falling,
    ),
    Case(
        "scale_by_belief-eps",
        gch.rules.scale_by_belief(0.8, 0.95, 1e-6, 1e-6),
        (
            _optax("scale_by_belief(eps=1e-6)", _with_eps_of_1e_6),
            of_torch(
                "torch_optimizer.AdaBelief(eps=1e-6)",
                _jettify("AdaBelief", betas=(0.8, 0.95), eps=1e-6, rectify=False, weight_decouple=True),
                complex=False,
            ),
        ),
    ),
    Case(
        "scale_by_belief-nesterov",
        gch.rules.scale_by_belief(nesterov=True),
        (_optax("scale_by_belief(nesterov=True)", lambda ox: ox.scale_by_belief(nesterov=True)),),
    ),
    Case(
        "adabelief",
        gch.rules.adabelief(0.5, weight_decay=0.1),
        (
            of_torch(
                "torch_optimizer.AdaBelief(weight_decay=0.1)",
                _jettify("AdaBelief", eps=1e-16, rectify=False, weight_decouple=True, weight_decay=0.1),
                complex=False,
            ),
            of_optax(
                "optax.adabelief, decayed",
                lambda ox, lr: ox.chain(ox.scale_by_belief(), ox.add_decayed_weights(0.1), ox.scale(-lr)),
            ),
        ),
        covers="adabelief",
        lr=None,
        uses_params=True,
    ),
    # Yogi
    Case(
        "scale_by_yogi",
        gch.rules.scale_by_yogi(),
        (
            _optax("scale_by_yogi", lambda ox: ox.scale_by_yogi()),
            twin(yogi(0.9, 0.999, 1e-3, 1e-6)),
            of_torch("torch_optimizer.Yogi", _jettify("Yogi"), complex=False),
        ),
        lr=falling,
        low=STARTS,
    ),
    Case(
        "scale_by_yogi-eps_root",
        gch.rules.scale_by_yogi(0.8, 0.9, 0.1, 0.1, 0.5),
        (_optax("scale_by_yogi(eps_root=0.1)", lambda ox: ox.scale_by_yogi(0.8, 0.9, 0.1, 0.1, 0.5)),),
    ),
    Case(
        "yogi",
        gch.rules.yogi(0.5, eps=1e-2),
        (of_optax("optax.yogi", lambda ox, lr: ox.yogi(lr, eps=1e-2)), twin(yogi(0.9, 0.999, 1e-2, 1e-6))),
        covers="yogi",
        lr=None,
        low=STARTS,
    ),
    # Adan, of which Optax has another rule
    Case(
        "scale_by_adan",
        gch.rules.scale_by_adan(),
        (twin(adan(0.98, 0.92, 0.99, 1e-8)), _kozistr("Adan")),
        lr=falling,
    ),
    Case(
        "scale_by_adan-eps",
        gch.rules.scale_by_adan(0.8, 0.7, 0.9, 0.1),
        (twin(adan(0.8, 0.7, 0.9, 0.1)), _kozistr("Adan", betas=(0.8, 0.7, 0.9), eps=0.1)),
    ),
    Case(
        "adan",
        gch.rules.adan(0.5, weight_decay=0.1),
        (twin(adan(0.98, 0.92, 0.99, 1e-8, decay=0.1)), _kozistr("Adan", weight_decay=0.1)),
        covers="adan",
        lr=None,
        uses_params=True,
    ),
    Case(
        "adan-decoupled",
        gch.rules.adan(0.5, weight_decay=0.1, proximal=False),
        (twin(adan(0.98, 0.92, 0.99, 1e-8, decay=0.1, proximal=False)),),
        covers="adan",
        lr=None,
        uses_params=True,
    ),
    Case(
        "step_proximally",
        gch.rules.step_proximally(falling, 0.3),
        (twin(lambda w, g, m, lr, t: (w - falling(t) * g) / (1 + 0.3 * falling(t))),),
        lr=None,
        uses_step=True,
        uses_params=True,
    ),
    # ADOPT
    Case(
        "scale_by_adopt",
        gch.rules.scale_by_adopt(),
        (
            _optax("contrib.scale_by_adopt", lambda ox: ox.contrib.scale_by_adopt()),
            twin(adopt(0.9, 0.9999, 1e-6, 0.25)),
        ),
        lr=falling,
    ),
    Case(
        "scale_by_adopt-unclipped",
        gch.rules.scale_by_adopt(0.8, 0.9, 1e-3, use_clipping=False),
        (
            _optax(
                "contrib.scale_by_adopt(use_clipping=False)",
                lambda ox: ox.contrib.scale_by_adopt(0.8, 0.9, 1e-3, use_clipping=False),
            ),
        ),
    ),
    Case(
        "scale_by_adopt-nesterov",
        gch.rules.scale_by_adopt(nesterov=True, clip_exponent=0.5),
        (
            _optax(
                "contrib.scale_by_adopt(nesterov=True)",
                lambda ox: ox.contrib.scale_by_adopt(nesterov=True, clip_value_fn=lambda t: t**0.5),
            ),
            twin(adopt(0.9, 0.9999, 1e-6, 0.5, nesterov=True)),
        ),
    ),
    Case(
        "adopt",
        gch.rules.adopt(0.5, b2=0.99, weight_decay=0.1),
        (
            twin(adopt(0.9, 0.99, 1e-6, 0.25, decay=0.1)),
            of_optax(
                "optax.contrib.adopt, decayed",
                lambda ox, lr: ox.chain(ox.contrib.scale_by_adopt(b2=0.99), ox.add_decayed_weights(0.1), ox.scale(-lr)),
            ),
        ),
        covers="adopt",
        lr=None,
        uses_params=True,
    ),
    # AdEMAMix
    Case(
        "scale_by_ademamix",
        gch.rules.scale_by_ademamix(b3=0.99),
        (
            _optax("contrib.scale_by_ademamix", lambda ox: ox.contrib.scale_by_ademamix(b3=0.99)),
            twin(ademamix(0.9, 0.999, 0.99, 6.0, 1e-8)),
        ),
        lr=falling,
    ),
    Case(
        "scale_by_ademamix-warm",
        gch.rules.scale_by_ademamix(b3=0.99, alpha=4.0, alpha_warmup=12, b3_warmup=12),
        (twin(ademamix(0.9, 0.999, 0.99, 4.0, 1e-8, warmup=12)),),
        lr=falling,
    ),
    Case(
        "scale_by_ademamix-alpha_warmup",
        gch.rules.scale_by_ademamix(0.8, 0.95, 0.9, 4.0, 0.1, 0.1, alpha_warmup=8),
        (
            _optax(
                "contrib.scale_by_ademamix(alpha=…)",
                lambda ox: ox.contrib.scale_by_ademamix(0.8, 0.95, 0.9, _warm(4.0), 0.1, 0.1),
            ),
        ),
    ),
    Case(
        "ademamix",
        gch.rules.ademamix(0.5, weight_decay=0.1),
        (
            of_optax("optax.contrib.ademamix", lambda ox, lr: ox.contrib.ademamix(lr, weight_decay=0.1)),
            twin(ademamix(0.9, 0.999, 0.9999, 5.0, 1e-8, decay=0.1)),
        ),
        covers="ademamix",
        lr=None,
        uses_params=True,
    ),
    Case(
        "scale_by_simplified_ademamix",
        gch.rules.scale_by_simplified_ademamix(0.9, 0.95, 3.0, 0.1, 0.1),
        (
            _optax(
                "contrib.scale_by_simplified_ademamix",
                lambda ox: ox.contrib.scale_by_simplified_ademamix(0.9, 0.95, 3.0, 0.1, 0.1),
            ),
        ),
        lr=falling,
    ),
    Case(
        "simplified_ademamix",
        gch.rules.simplified_ademamix(0.5, alpha=2.0, weight_decay=0.1),
        (
            of_optax(
                "optax.contrib.simplified_ademamix",
                lambda ox, lr: ox.contrib.simplified_ademamix(lr, alpha=2.0, weight_decay=0.1),
            ),
            twin(simplified_ademamix(0.99, 0.95, 2.0, 1e-8, decay=0.1)),
        ),
        covers="simplified_ademamix",
        lr=None,
        uses_params=True,
    ),
    # LaProp and Adam-atan2
    Case(
        "scale_by_laprop",
        gch.rules.scale_by_laprop(0.8, 0.95, 0.1),
        (twin(laprop(0.8, 0.95, 0.1)),),
        lr=falling,
    ),
    Case(
        "laprop",
        gch.rules.laprop(0.5, weight_decay=0.1),
        (twin(laprop(0.9, 0.999, 1e-15, decay=0.1)),),
        covers="laprop",
        lr=None,
        uses_params=True,
    ),
    Case(
        "scale_by_adam_atan2",
        gch.rules.scale_by_adam_atan2(),
        (twin(adam_atan2(0.9, 0.999, 1.27, 1.0)),),
        lr=falling,
        degree=0,
        low=TINY,
    ),
    Case(
        "adam_atan2",
        gch.rules.adam_atan2(0.5, b2=0.95, a=1.0, b=2.0, weight_decay=0.1),
        (twin(adam_atan2(0.9, 0.95, 1.0, 2.0, decay=0.1)),),
        covers="adam_atan2",
        lr=None,
        uses_params=True,
        low=TINY,
    ),
    # means of gradients, and their signs
    Case(
        "ema",
        gch.rules.ema(0.9),
        (_optax("ema", lambda ox: ox.ema(0.9)), twin(mean(0.9))),
        lr=falling,
        degree=1,
    ),
    Case(
        "ema-biased",
        gch.rules.ema(0.8, debias=False),
        (_optax("ema(debias=False)", lambda ox: ox.ema(0.8, debias=False)), twin(mean(0.8, debias=False))),
        degree=1,
        counted=False,
    ),
    Case(
        "sign_sgd",
        gch.rules.sign_sgd(0.5),
        (of_optax("optax.sign_sgd", lambda ox, lr: ox.sign_sgd(lr)),),
        covers="sign_sgd",
        lr=None,
        degree=0,
    ),
    Case(
        "signum",
        gch.rules.signum(0.5),
        (of_optax("optax.signum", lambda ox, lr: ox.signum(lr)), twin(mean(0.9, sign=True))),
        covers="signum",
        lr=None,
        degree=0,
        counted=False,
    ),
    Case(
        "tiger",
        gch.rules.tiger(0.5, weight_decay=0.1),
        (twin(mean(0.965, sign=True, decay=0.1)), _kozistr("Tiger", weight_decay=0.1)),
        covers="tiger",
        lr=None,
        uses_params=True,
        counted=False,
    ),
    Case(
        "scale_by_qhm",
        gch.rules.scale_by_qhm(0.9, 0.6),
        (
            twin(qhm(0.9, 0.6)),
            of_torch("torch_optimizer.QHM", _jettify("QHM", momentum=0.9, nu=0.6), complex=False),
        ),
        lr=falling,
        degree=1,
    ),
    Case(
        "scale_by_aggmo",
        gch.rules.scale_by_aggmo((0.0, 0.6, 0.9)),
        (
            twin(aggmo((0.0, 0.6, 0.9))),
            of_torch("torch_optimizer.AggMo", _jettify("AggMo", betas=(0.0, 0.6, 0.9)), complex=False),
        ),
        lr=falling,
        degree=1,
    ),
    Case(
        "aggmo",
        gch.rules.aggmo(0.5, weight_decay=0.1),
        (
            twin(aggmo((0.0, 0.9, 0.99), 0.1)),
            of_torch(
                "torch_optimizer.AggMo", _jettify("AggMo", betas=(0.0, 0.9, 0.99), weight_decay=0.1), complex=False
            ),
        ),
        covers="aggmo",
        lr=None,
        uses_params=True,
    ),
    # optimism
    Case(
        "scale_by_optimistic_gradient",
        gch.rules.scale_by_optimistic_gradient(0.9, 0.4),
        (
            _optax("scale_by_optimistic_gradient", lambda ox: ox.scale_by_optimistic_gradient(0.9, 0.4)),
            twin(optimistic(0.9, 0.4)),
        ),
        lr=falling,
        degree=1,
    ),
    Case(
        "optimistic_gradient_descent",
        gch.rules.optimistic_gradient_descent(0.5),
        (of_optax("optax.optimistic_gradient_descent", lambda ox, lr: ox.optimistic_gradient_descent(lr)),),
        covers="optimistic_gradient_descent",
        lr=None,
        degree=1,
    ),
    Case(
        "optimistic_adam",
        gch.rules.optimistic_adam(0.5, alpha=0.9, beta=0.3),
        (of_optax("optax.optimistic_adam_v2", lambda ox, lr: ox.optimistic_adam_v2(lr, alpha=0.9, beta=0.3)),),
        covers="optimistic_adam",
        lr=None,
    ),
    Case(
        "optimistic_adam-plain",
        gch.rules.optimistic_adam(0.5, nesterov=False),
        (
            of_optax("optax.optimistic_adam_v2", lambda ox, lr: ox.optimistic_adam_v2(lr, nesterov=False)),
            twin(optimistic_adam(1.0, 1.0)),
        ),
        covers="optimistic_adam",
        lr=None,
    ),
    # noise
    Case(
        "noisy_sgd",
        gch.rules.noisy_sgd(0.5, 0.3, 0.55, seed=5),
        (joint_twin(rules.noisy),),
        covers="noisy_sgd",
        lr=None,
        scope="tensor",
        uses_step=True,
        own_time=False,
    ),
    # Lion's modes
    Case(
        "scale_by_lion-smooth",
        gch.scale_by_lion(mode="smooth", smooth_beta=3.0),
        (
            _optax("scale_by_lion(mode='smooth')", lambda ox: ox.scale_by_lion(mode="smooth", smooth_beta=3.0)),
            twin(bounded_lion(0.9, 0.99, lambda c: torch.tanh(3.0 * c))),
        ),
        lr=falling,
    ),
    Case(
        "scale_by_lion-refined",
        gch.scale_by_lion(0.1, 0.8, mode="refined"),
        (
            _optax("scale_by_lion(mode='refined')", lambda ox: ox.scale_by_lion(0.1, 0.8, mode="refined")),
            twin(bounded_lion(0.1, 0.8, lambda c: c.clamp(-1, 1))),
        ),
    ),
    # those that keep where the weights began
    Case(
        "scale_by_acprop",
        gch.rules.scale_by_acprop(),
        (
            _optax("contrib.scale_by_acprop", lambda ox: ox.contrib.scale_by_acprop()),
            twin(acprop(0.9, 0.999, 1e-16)),
        ),
        lr=falling,
    ),
    Case(
        "acprop",
        gch.rules.acprop(0.5, b2=0.9, eps=1e-3, eps_root=1e-3, weight_decay=0.1),
        (
            of_optax(
                "optax.contrib.acprop",
                lambda ox, lr: ox.contrib.acprop(lr, b2=0.9, eps=1e-3, eps_root=1e-3, weight_decay=0.1),
            ),
            twin(acprop(0.9, 0.9, 1e-3, decay=0.1)),
        ),
        covers="acprop",
        lr=None,
        uses_params=True,
    ),
    Case(
        "scale_by_cocob",
        gch.rules.scale_by_cocob(alpha=3.0),
        (
            of_optax("optax.contrib.scale_by_cocob", lambda ox, lr: ox.contrib.scale_by_cocob(alpha=3.0)),
            twin(at(lambda t: 1.0, cocob(3.0, 1e-8))),
        ),
        lr=None,
        uses_params=True,
        counted=False,  # it begins at the weights that there are, which a first anchor is, too
    ),
    Case(
        "cocob",
        gch.rules.cocob(rising, weight_decay=0.1),
        (
            of_optax("optax.contrib.cocob", lambda ox, lr: ox.contrib.cocob(rising, weight_decay=0.1)),
            twin(at(rising, cocob(100.0, 1e-8, decay=0.1))),
        ),
        covers="cocob",
        lr=None,
        uses_step=True,
        uses_params=True,
        counted=False,  # it begins at the weights that there are, which a first anchor is, too
    ),
    Case(
        "scale_by_madgrad",
        gch.rules.scale_by_madgrad(falling),
        (
            of_optax(
                "optax.contrib.scale_by_madgrad",
                lambda ox, lr: ox.contrib.scale_by_madgrad(falling),
                rtol=1e-6,
                why=ROOTS,
            ),
            twin(at(falling, madgrad(0.9, 1e-6))),
        ),
        lr=None,
        uses_step=True,
        uses_params=True,
    ),
    Case(
        "madgrad",
        gch.rules.madgrad(0.5, momentum=0.0, weight_decay=0.1),
        (
            of_optax(
                "optax.contrib.madgrad",
                lambda ox, lr: ox.contrib.madgrad(lr, momentum=0.0, weight_decay=0.1),
                rtol=1e-6,
                why=ROOTS,
            ),
            of_torch(
                "torch_optimizer.MADGRAD",
                _jettify("MADGRAD", momentum=0.0, weight_decay=0.1),
                absent=False,
                complex=False,
            ),
            twin(madgrad(0.0, 1e-6, decay=0.1)),
        ),
        covers="madgrad",
        lr=None,
        uses_params=True,
    ),
)
