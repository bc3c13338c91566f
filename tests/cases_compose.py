"""Rows of links in front of and behind rules: what composes with any of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import rules
import torch
from case import Case
from harness import Problem
from peers import Peer, Rule, joint_twin, of_optax, of_torch, sgd, twin
from torch import Tensor, nn

import gradchain as gch

RATE = gch.linear(0.9, 0.1, 12)  # an end that 20 steps reach, and a first value that is its largest
WARM = gch.linear(0.1, 0.8, 7)
DATA_DEPENDENT = "it reads from the device whether to hold the chain"


# twins: a direction, and what stands around it

Direction = Callable[[Tensor, dict[str, Any]], Tensor]


def adam_direction(b1: float = 0.9, b2: float = 0.999) -> Direction:
    """m̂ / (√v̂ + 1e-8)."""

    def direction(g: Tensor, memory: dict[str, Any]) -> Tensor:
        t = memory["t"] = memory.get("t", 0) + 1
        m = memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * g
        v = memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * g * g
        return m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + 1e-8)

    return direction


def momentum(decay: float) -> Direction:
    """A decaying sum."""

    def direction(g: Tensor, memory: dict[str, Any]) -> Tensor:
        memory["trace"] = g + decay * memory.get("trace", 0)
        return memory["trace"]

    return direction


def careful(direction: Direction, least: float = 1e-3) -> Rule:
    """Liang et al., 2024, Algorithm 1, with the normaliser of its code for AdamW."""

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        u = direction(g, memory)
        k = (u * g > 0).to(g.dtype)
        return w - lr * u * k / k.mean().clamp(min=least)

    return rule


def decayed(share: Callable[[float], float], direction: Direction = lambda g, memory: g) -> Rule:
    """Plain descent, and weights that lose `share` of themselves at a rate."""

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        return w - lr * direction(g, memory) - share(lr) * w

    return rule


def decayed_where_it_shrinks(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
    u = momentum(0.9)(g, memory)
    return w - lr * (u + 0.1 * torch.where(w * u > 0, w, 0.0))


def corrected_gradient(gamma: float, b1: float) -> Rule:
    """Yuan et al., 2024, Algorithm 2 with the last gradient, before plain descent."""

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        c = g + gamma * b1 / (1 - b1) * (g - memory.get("last", 0))
        memory["last"] = g
        return w - lr * c / max(1.0, c.norm().item())

    return rule


def amplified(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
    """Lee et al., 2024, Algorithm 2."""
    memory["mu"] = 0.9 * memory["mu"] + 0.1 * g if "mu" in memory else g
    return w - lr * (g + 1.5 * memory["mu"])


def amplified_in_a_window(size: int, lamb: float, warmup: bool) -> Rule:
    """Lee et al., 2024, Algorithm 1; the authors' code waits for a full window."""

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        last = memory["last"] = [*memory.get("last", []), g][-size:]
        slow = sum(last) / len(last) if len(last) == size or not warmup else 0.0
        return w - lr * (g + lamb * slow)

    return rule


def across(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
    """Prieto et al., 2025, Equation 9."""
    v = g - (g * w).sum() / (w * w).sum() * w
    return w - lr * v * (g.norm() / v.norm() if w.numel() > 1 else 0.0)


# norms that are usual, and those that are not


def bursts(name: str, g: Tensor, t: int) -> Tensor:
    """A large gradient now and then, and one that is infinite."""
    return g * {9: 40.0, 11: math.inf, 15: 7.0, 16: 9.0}.get(t, 1.0)


def large(name: str, g: Tensor, t: int) -> Tensor:
    """A large gradient now and then."""
    return g * {6: 5.0, 9: 40.0, 15: 7.0, 16: 9.0}.get(t, 1.0)


def spiked(z: float, decay: float, warmup: int) -> Callable[..., dict[str, Tensor]]:
    """Descent that leaves out steps whose norm is a spike."""

    def step(problem: Problem, t: int, weights: dict[str, Tensor], memory: dict[str, Any]) -> dict[str, Tensor]:
        g = problem.gradient(t, weights)
        x, seen = rules.together(g).item(), memory.setdefault("seen", [0, 0.0, 0.0])
        n, mean, var = seen
        if not math.isfinite(x) or (n >= warmup and x > mean + z * max(math.sqrt(var), 1e-6 * mean)):
            return {}
        a = max(1 / (n + 1), 1 - decay)
        memory["seen"] = [n + 1, mean + a * (x - mean), (1 - a) * (var + a * (x - mean) ** 2)]
        return {name: weights[name] - problem.rate(t) * g[name] for name in g}

    return step


def guarded(times: float, decay: float, warmup: int) -> Callable[..., dict[str, Tensor]]:
    """Descent that leaves out steps whose norm is so many times the mean of the norms of all others."""

    def step(problem: Problem, t: int, weights: dict[str, Tensor], memory: dict[str, Any]) -> dict[str, Tensor]:
        g = problem.gradient(t, weights)
        x, (n, mean) = rules.together(g).item(), memory.get("seen", (0, 0.0))
        if not g or not math.isfinite(x) or (n >= warmup and x > times * mean):
            return {}
        memory["seen"] = n + 1, mean + max(1 / (n + 1), 1 - decay) * (x - mean)
        return {name: weights[name] - problem.rate(t) * g[name] for name in g}

    return step


def not_large(problem: Problem, t: int, weights: dict[str, Tensor], memory: dict[str, Any]) -> dict[str, Tensor]:
    g = problem.gradient(t, weights)
    return {n: weights[n] - problem.rate(t) * g[n] for n in g} if rules.together(g).item() ** 2 < 400 else {}


def zclipped(to: Callable[[float, float, float], float], warmup: int, decay: float) -> Callable[..., Any]:
    """Kumar et al., 2025, Algorithm 1: `to` of mean, deviation and z-score gives what a norm is clipped to."""

    def step(problem: Problem, t: int, weights: dict[str, Tensor], memory: dict[str, Any]) -> dict[str, Tensor]:
        g = problem.gradient(t, weights)
        if not g:
            return {}
        norm, norms = rules.together(g).item(), memory.setdefault("norms", [])
        factor = 1.0
        if len(norms) < warmup:
            norms.append(norm)
            memory["mean"] = sum(norms) / len(norms)
            memory["var"] = sum((n - memory["mean"]) ** 2 for n in norms) / len(norms)
        else:
            s = math.sqrt(memory["var"]) + 1e-6
            z = (norm - memory["mean"]) / s
            new = to(memory["mean"], s, z) if z > 2.5 else norm
            factor = new / norm if norm else 1.0
            memory["mean"] = decay * memory["mean"] + (1 - decay) * new
            memory["var"] = decay * memory["var"] + (1 - decay) * (new - memory["mean"]) ** 2
        return {n: weights[n] - problem.rate(t) * factor * g[n] for n in g}

    return step


def adagc(problem: Problem, t: int, weights: dict[str, Tensor], memory: dict[str, Any]) -> dict[str, Tensor]:
    """Wang et al., 2025, Algorithm 1, in front of descent."""
    g, out = problem.gradient(t, weights), {}
    early = min(1.0, 1.5 / (rules.together(g).item() + 1e-8))
    for name, grad in g.items():
        count, gamma = memory.get(name, (0, math.inf))
        norm = grad.norm().item()
        if count + 1 < 5:
            h = early
            gamma = min(gamma, h * norm)
        else:
            h = min(1.0, 1.1 * max(gamma, 1e-8) / max(norm, 1e-8))
            gamma = 0.9 * gamma + 0.1 * h * norm
        memory[name] = count + 1, gamma
        out[name] = weights[name] - problem.rate(t) * h * grad
    return out


# now one link, now another


def sometimes(otherwise: float) -> Rule:
    """Momentum two times of three; else the gradient, or nothing."""

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        return w - lr * (momentum(0.9)(g, memory) if t % 3 != 1 else otherwise * g)

    return rule


def adam_then_momentum(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
    """The momentum begins with the seventh update."""
    return w - lr * (adam_direction(0.8, 0.9)(g, memory) if t < 7 else momentum(0.9)(g, memory))


def _forget(params: list[nn.Parameter], t: int) -> None:
    for p in params:
        if 4 <= t < 11 and p.shape in ((4, 3), (3,)):
            p.grad = None


def watched(decay: float) -> Peer:
    """Descent, and the average of what the gradient's norm was."""

    def run(problem: Problem) -> list[dict[str, Any]]:
        weights, mean, out = dict(problem.params), 0.0, []
        for t in range(len(problem.grads)):
            g = problem.gradient(t, weights)
            mean = decay * mean + (1 - decay) * rules.together(g).item()
            weights |= {n: weights[n] - problem.rate(t) * g[n] for n in g}
            out.append({n: w - problem.params[n] for n, w in weights.items()} | {"mean": mean})
        return out

    return Peer("a float64 twin", run)


ROWS: tuple[Case, ...] = (
    Case(
        "cautious",
        gch.rules.cautious(gch.scale_by_adam()),
        (twin(careful(adam_direction()), name="C-Optim's AdamW as a twin"),),
        lr=rules.falling,
        scope="tensor",
    ),
    Case(
        "cautious-trace",
        gch.rules.cautious(gch.trace(0.9), least=0.4),
        (twin(careful(momentum(0.9), least=0.4)),),
        scope="tensor",
        degree=1,
    ),
    Case(
        "cautious-masks-only",
        gch.rules.cautious(gch.trace(0.9), least=1.0),
        (twin(careful(momentum(0.9), least=1.0)),),
        degree=1,
    ),
    Case(
        "add_decayed_weights-schedule",
        gch.add_decayed_weights(0.1, by="schedule", rate=RATE, peak=0.9),
        (twin(decayed(lambda lr: 0.1 * lr / 0.9)),),
        lr=RATE,
        uses_step=True,
        uses_params=True,
    ),
    Case(
        "add_decayed_weights-corrected",
        gch.add_decayed_weights(0.1, by="corrected", rate=WARM, peak=0.8),
        (twin(decayed(lambda lr: 0.1 * lr**2 / 0.8)),),
        lr=WARM,
        uses_step=True,
        uses_params=True,
    ),
    Case(
        "add_decayed_weights-cautious",
        gch.chain(gch.trace(0.9), gch.add_decayed_weights(0.1, by="cautious")),
        (twin(decayed_where_it_shrinks),),
        covers="add_decayed_weights",
        uses_params=True,
    ),
    Case(
        "correct_gradient",
        gch.rules.correct_gradient(0.3, 0.9),
        (twin(corrected_gradient(0.3, 0.9)),),
        draw=lambda n, g, t: g * (0.05 if t % 3 == 1 else 1.0),
        scope="tensor",
    ),
    Case(
        "grokfast",
        gch.rules.grokfast(0.9, 1.5),
        (twin(amplified, name="gradfilter_ema as a twin"),),
        degree=1,
    ),
    Case(
        "grokfast_ma",
        gch.rules.grokfast_ma(4, 1.5),
        (twin(amplified_in_a_window(4, 1.5, True), name="gradfilter_ma as a twin"),),
        degree=1,
    ),
    Case(
        "orthogonalize_gradient",
        gch.rules.orthogonalize_gradient(),
        (twin(across),),
        scope="tensor",
        uses_params=True,
    ),
    Case(
        "guard",
        gch.guard(math.inf, math.inf, 4.0, skip=True, decay=0.9, warmup=4),
        (joint_twin(guarded(4.0, 0.9, 4)),),
        draw=bursts,
        low="a loss that is infinite in float16 is finite in float64",
        scope="joint",
        may_hold=True,
        gate=DATA_DEPENDENT,
        own_time=False,
    ),
    Case(
        "skip_spikes",
        gch.rules.skip_spikes(3.0, 0.9, warmup=4),
        (joint_twin(spiked(3.0, 0.9, 4)),),
        draw=bursts,
        scope="joint",
        may_hold=True,
        gate=DATA_DEPENDENT,
        own_time=False,
    ),
    Case(
        "skip_large_updates",
        gch.rules.skip_large_updates(400.0),
        (
            joint_twin(not_large),
            of_optax(
                "optax.skip_large_updates",
                lambda ox, lr: ox.MultiSteps(
                    ox.sgd(lr),
                    1,
                    should_skip_update_fn=functools.partial(ox.skip_large_updates, max_squared_norm=400.0),
                ),
                rtol=1e-6,
                why="MultiSteps accumulates in float32 and casts, whatever the gradients are",
            ),
        ),
        draw=large,
        scope="joint",
        may_hold=True,
        gate=DATA_DEPENDENT,
        own_time=False,
    ),
    *(
        Case(
            f"clip_by_zscore-{to}",
            gch.rules.clip_by_zscore(2.5, 0.9, 6, to),
            (joint_twin(zclipped(rule, 6, 0.9)),),
            lr=rules.falling,
            draw=large,
            scope="joint",
            own_time=False,
        )
        for to, rule in (
            ("reciprocal", lambda mean, s, z: mean + s * 2.5**2 / z),
            ("bound", lambda mean, s, z: mean + s * 2.5),
            ("mean", lambda mean, s, z: mean),
        )
    ),
    Case(
        "clip_by_ema_norm",
        gch.rules.clip_by_ema_norm(1.1, 1.5, 0.9, 5),
        (joint_twin(adagc),),
        draw=large,
        scope="joint",
    ),
    Case(
        "when",
        gch.when(rules.often, gch.trace(0.9)),
        (
            twin(sometimes(1.0)),
            of_optax(
                "optax.conditionally_transform",
                lambda ox, lr: ox.chain(ox.conditionally_transform(ox.trace(0.9), rules.often), ox.scale(-lr)),
            ),
        ),
        degree=1,
        uses_step=True,
    ),
    Case(
        "when-zero",
        gch.when(rules.often, gch.trace(0.9), otherwise="zero"),
        (
            twin(sometimes(0.0)),
            of_optax(
                "optax.conditionally_mask",
                lambda ox, lr: ox.chain(ox.conditionally_mask(ox.trace(0.9), rules.often), ox.scale(-lr)),
            ),
        ),
        degree=1,
        uses_step=True,
    ),
    Case(
        "switch",
        gch.switch(gch.scale_by_adam(0.8, 0.9), gch.trace(0.9), at=7),
        (twin(adam_then_momentum),),
        lr=rules.falling,
        uses_step=True,
        rests=True,
    ),
    Case(
        "freeze-window",
        gch.freeze(gch.named("body.*"), until=11, start=4),
        (of_torch("torch.optim.SGD with .grad None", sgd, before=_forget),),
        degree=1,
        uses_step=True,
        alone=False,
    ),
    Case(
        "snapshot",
        gch.rules.snapshot("size", rules.size, 0.9),
        (watched(0.9),),
        watch=lambda state: {"mean": state.links["snapshot"].mean},
        scope="joint",
        degree=1,
        own_time=False,
    ),
    Case(
        "monitor",
        gch.rules.monitor({"size": rules.size}),
        (watched(0.0),),
        covers="monitor",
        watch=lambda state: {"mean": state.links["snapshot"].mean},
        scope="joint",
        degree=1,
        own_time=False,
    ),
)
