"""Rows of the links that own the weights: those that hold two sets of them, project them, or look elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from case import Case
from harness import Problem, observed
from later import later
from peers import Peer, in_float64, joint_twin, twin
from rules import falling, rising, together
from torch import Tensor, nn

import gradchain as gch

schedulefree = later("schedulefree")


# who computes weights and an average


def average_of(link: str) -> Callable[[Any], dict[str, Any]]:
    """The averages that a link keeps."""

    def watch(state: Any) -> dict[str, Any]:
        tensors = state.links[link].average
        return {f"average of {n}": tensors[n] for n in tensors}

    return watch


def averaging(rule: Callable[..., Tensor], *, name: str = "a float64 twin", **rest: Any) -> Peer:
    """A twin whose rule keeps what it averages in `memory["x"]`, the weights at first."""

    def run(problem: Problem) -> list[dict[str, Any]]:
        weights = {n: p.clone() for n, p in problem.params.items()}
        memory: dict[str, dict[str, Any]] = {n: {"x": p.clone(), "t": 0} for n, p in weights.items()}
        out = []
        for t in range(len(problem.grads)):
            for n, g in problem.gradient(t, weights).items():
                memory[n]["t"] += 1
                weights[n] = rule(weights[n], g, memory[n], problem.rate(t), t)
            moved: dict[str, Any] = {n: w - problem.params[n] for n, w in weights.items()}
            out.append(moved | {f"average of {n}": memory[n]["x"] for n in weights})
        return out

    return Peer(name, run, **rest)


def of_schedulefree(name: str, rate: Any, *, x: Callable[..., Tensor], **given: Any) -> Peer:
    """A class of schedulefree in its training mode, and what its eval() would make of the weights: `x` of weight, state
    and group."""

    def run(problem: Problem) -> list[dict[str, Any]]:
        weights = {n: nn.Parameter(p.clone()) for n, p in problem.params.items()}
        optimizer = getattr(schedulefree, name)([*weights.values()], lr=1.0, **given)
        optimizer.train()
        out = []
        for t, grads in enumerate(problem.grads):
            for n, weight in weights.items():
                weight.grad = grads[n].clone()
            optimizer.param_groups[0]["lr"] = rate(t) if callable(rate) else rate
            optimizer.step()
            group = optimizer.param_groups[0]
            moved: dict[str, Any] = {n: w.detach() - problem.params[n] for n, w in weights.items()}
            points = {f"average of {n}": x(w.detach(), optimizer.state[w], group) for n, w in weights.items()}
            out.append(moved | points)
        return out

    return Peer(f"schedulefree.{name}", run, absent=False)


def recovered(w: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """What eval() makes of a weight."""
    b1 = group["momentum"] if "momentum" in group else group["betas"][0]
    return w.lerp(state["z"], 1 - 1 / b1)


def kept(w: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """The same of a reference implementation, which keeps it."""
    return state["x"].clone()


def of_optax_pair(name: str, make: Callable[..., Any], start: Callable[..., Any], read: Callable[..., Any]) -> Peer:
    """A transformation of Optax that has two sets of weights. `read(optax, params, state)` gives both."""

    def run(problem: Problem) -> list[dict[str, Any]]:
        import jax
        import optax

        with in_float64():
            tx = make(optax, problem.lr)
            first = {n: jax.numpy.asarray(p.numpy()) for n, p in problem.params.items()}
            params = start(optax, first)
            state = tx.init(params)

            @jax.jit
            def step(params: Any, state: Any, grads: Any) -> Any:
                updates, state = tx.update(grads, state, params)
                params = optax.apply_updates(params, updates)
                return params, state, read(optax, params, state)

            out = []
            for grads in problem.grads:
                given = {n: jax.numpy.asarray(g.numpy()) for n, g in grads.items()}
                params, state, (live, average) = step(params, state, given)
                row: dict[str, Any] = {n: torch.tensor(jax.device_get(live[n] - first[n])) for n in first}
                out.append(row | {f"average of {n}": torch.tensor(jax.device_get(average[n])) for n in first})
            return out

    return Peer(name, run, absent=False)


# rules


def schedule_free(
    rate: Any,
    b1: float = 0.9,
    power: float = 2.0,
    r: float = 0.0,
    warmup: int = 0,
    *,
    b2: float = 0.0,
    decay: float = 0.0,
    z_decay: float = 0.0,
    rectify: float = 0.0,
) -> Callable[..., Tensor]:
    """Defazio et al., 2024, equations 3 to 6 and Algorithm 1, over gradient descent, or over Adam where there is b2."""

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        k = memory["t"]
        eta = rate(t) if callable(rate) else rate
        eta *= min(1.0, k / warmup) if warmup else 1.0
        if rectify:
            limit = 2 / (1 - rectify) - 1
            length = limit - 2 * k * rectify**k / (1 - rectify**k)
            known = (length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)
            eta *= known**0.5 if length > 4 else 0.0
        if b2:
            memory["v"] = b2 * memory.get("v", 0.0) + (1 - b2) * g * g
            g = g / ((memory["v"] / (1 - b2**k)).sqrt() + 1e-8)
        z = memory.get("z", w)
        memory["max"] = max(memory.get("max", 0.0), eta)
        weight = k**r * memory["max"] ** power
        memory["sum"] = memory.get("sum", 0.0) + weight
        c = weight / memory["sum"] if memory["sum"] else 0.0
        z = z - eta * (g + decay * w + z_decay * z)
        memory["z"], memory["x"] = z, (1 - c) * memory["x"] + c * z
        return (1 - b1) * z + b1 * memory["x"]

    return rule


def lookahead(k: int, alpha: float) -> Callable[..., Tensor]:
    """Zhang et al., 2019, Algorithm 1, over gradient descent; its two loops in one."""

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        fast = w - lr * g
        if memory["t"] % k:
            return fast
        memory["x"] = memory["x"] + alpha * (fast - memory["x"])
        return memory["x"]

    return rule


def primal_averages(rate: Any, mu_y: float, mu_x: float, *, adam: bool = False, decay: float = 0.0) -> Any:
    """Defazio et al., 2025, as their code has it: y and z alone, and x recovered from them."""

    def rule(y: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        k, eta, z = memory["t"], rate(t) if callable(rate) else rate, memory.get("z", y)
        if adam:
            m = memory["m"] = 0.9 * memory.get("m", 0.0) + 0.1 * g
            v = memory["v"] = 0.999 * memory.get("v", 0.0) + 0.001 * g * g
            g = m / (1 - 0.9**k) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)
        d = g + decay * y
        y = mu_x * y + (1 - mu_x) * z + eta * (mu_y * mu_x - 1) * d
        z = memory["z"] = z - eta * d
        memory["x"] = (y - (1 - mu_y) * z) / mu_y
        return y

    return rule


def ahead_along_momentum(rate: Any, rho: float) -> Peer:
    """Becker et al., 2024, Algorithm 1, of a rule whose momentum is the gradient; w is recovered, not kept."""

    def run(problem: Problem) -> list[dict[str, Any]]:
        there, v, norm, out = dict(problem.params), dict[str, Tensor](), 1.0, []
        live = dict(there)
        for t in range(len(problem.grads)):
            g = problem.gradient(t, there)
            w = {n: there[n] + rho * v[n] if n in v else there[n] for n in there}
            norm = together(g) + 1e-12 if g else norm
            for n in g:
                v[n] = g[n] / norm
                live[n] = w[n] - rate(t) * g[n]
                there[n] = live[n] - rho * v[n]
            moved: dict[str, Any] = {n: x - problem.params[n] for n, x in there.items()}
            out.append(moved | {f"average of {n}": x for n, x in live.items()})
        return out

    return Peer("a float64 twin", run, complex=True)


def adaptive_sharpness(rho: float, eta: float) -> Callable[..., dict[str, Tensor]]:
    """Kwon et al., 2021, Algorithm 1."""

    def step(problem: Problem, t: int, weights: dict[str, Tensor], memory: dict[str, Any]) -> dict[str, Tensor]:
        g = problem.gradient(t, weights)
        size = {n: weights[n].abs() + eta for n in g}
        scaled = {n: size[n] * g[n] for n in g}
        factor = rho / (together(scaled) + 1e-12)
        up = {n: w + factor * size[n] * scaled[n] if n in g else w for n, w in weights.items()}
        there = problem.gradient(t, up)
        return {n: weights[n] - problem.rate(t) * there[n] for n in g}

    return step


def on_ball(rate: Callable[[int], float], radius: float | None = None) -> Callable[..., Tensor]:
    """A step along the sphere of the weights' norm, and back onto it."""

    def unit(x: Tensor) -> Tensor:
        return x / x.norm() if x.numel() and x.norm() > 0 else x

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        r = memory.setdefault("radius", radius or w.norm())
        return r * unit(w - rate(t) * r * unit(g))

    return rule


def clipped_logits(bound: float) -> Callable[..., dict[str, Tensor]]:
    """Kimi Team, 2025, Algorithm 1, of weights whose names begin with body, after gradient descent."""

    def step(problem: Problem, t: int, weights: dict[str, Tensor], memory: dict[str, Any]) -> dict[str, Tensor]:
        factor = min(1.0, bound / observed(t)) ** 0.5
        new = {n: weights[n] - problem.rate(t) * g for n, g in problem.gradient(t, weights).items()}
        return {n: factor * w if n.startswith("body.") else w for n, w in new.items()}

    return step


FREE = {"watch": average_of("schedule_free"), "lr": None, "uses_params": True}

ROWS: tuple[Case, ...] = (
    Case(
        "schedule_free",
        gch.rules.schedule_free(rising, 0.8, 1.5, r=0.5, warmup_steps=6),
        (
            averaging(schedule_free(rising, 0.8, 1.5, 0.5, 6), complex=True),
            of_schedulefree(
                "SGDScheduleFree", rising, x=recovered, momentum=0.8, weight_lr_power=1.5, r=0.5, warmup_steps=6
            ),
        ),
        uses_step=True,
        **FREE,
    ),
    Case(
        "schedule_free-z",
        gch.rules.schedule_free(falling, 0.0, r=1.0, z_decay=0.1, state_dtype=torch.float64),
        (averaging(schedule_free(falling, 0.0, r=1.0, z_decay=0.1), complex=True),),
        uses_step=True,
        **FREE,
    ),
    Case(
        "schedule_free-rectified",
        gch.rules.schedule_free(0.5, rectify=0.9),
        (averaging(schedule_free(0.5, rectify=0.9), complex=True),),
        **FREE,
    ),
    Case(
        "schedule_free_sgd",
        gch.rules.schedule_free_sgd(0.5, warmup_steps=5, weight_decay=0.1),
        (
            averaging(schedule_free(0.5, warmup=5, decay=0.1), complex=True),
            of_schedulefree("SGDScheduleFree", 0.5, x=recovered, momentum=0.9, weight_decay=0.1, warmup_steps=5),
        ),
        covers="schedule_free_sgd",
        **FREE,
    ),
    Case(
        "schedule_free_adamw",
        gch.rules.schedule_free_adamw(0.5, weight_decay=0.1),
        (
            averaging(schedule_free(0.5, b2=0.999, decay=0.1)),
            of_schedulefree("AdamWScheduleFree", 0.5, x=recovered, weight_decay=0.1),
            of_optax_pair(
                "optax.contrib.schedule_free_adamw",
                lambda ox, lr: ox.contrib.schedule_free_adamw(0.5, weight_decay=0.1),
                lambda ox, params: params,
                lambda ox, params, state: (params, ox.contrib.schedule_free_eval_params(state, params)),
            ),
        ),
        covers="schedule_free_adamw",
        **FREE,
    ),
    Case(
        "schedule_free_adamw-z",
        gch.rules.schedule_free_adamw(0.5, warmup_steps=4, b2=0.9, r=0.5, z_decay=0.1),
        (
            averaging(schedule_free(0.5, r=0.5, warmup=4, b2=0.9, z_decay=0.1)),
            of_schedulefree(
                "AdamWScheduleFreeReference",
                0.5,
                x=kept,
                betas=(0.9, 0.9),
                weight_decay=0.1,
                warmup_steps=4,
                r=0.5,
                decay_at_z=True,
            ),
        ),
        covers="schedule_free_adamw",
        **FREE,
    ),
    Case(
        "schedule_free_radam",
        gch.rules.schedule_free_radam(0.5, b2=0.9, weight_decay=0.1),
        (
            averaging(schedule_free(0.5, b2=0.9, decay=0.1, rectify=0.9)),
            of_schedulefree("RAdamScheduleFree", 0.5, x=recovered, betas=(0.9, 0.9), weight_decay=0.1),
        ),
        covers="schedule_free_radam",
        **FREE,
    ),
    Case(
        "lookahead",
        gch.rules.lookahead(3, 0.4),
        (
            averaging(lookahead(3, 0.4), complex=True),
            of_optax_pair(
                "optax.lookahead",
                lambda ox, lr: ox.lookahead(ox.sgd(lr), 3, 0.4),
                lambda ox, params: ox.LookaheadParams.init_synced(params),
                lambda ox, params, state: (params.fast, params.slow),
            ),
        ),
        lr=falling,
        watch=average_of("lookahead"),
        uses_params=True,
    ),
    Case(
        "primal_averaging",
        gch.rules.primal_averaging(falling, 0.6, 0.8, state_dtype=torch.float64),
        (averaging(primal_averages(falling, 0.6, 0.8), complex=True),),
        lr=None,
        watch=average_of("primal_averaging"),
        uses_step=True,
        uses_params=True,
        counted=False,
    ),
    Case(
        "gpa_adamw",
        gch.rules.gpa_adamw(0.5, 0.7, 0.9, weight_decay=0.1),
        (averaging(primal_averages(0.5, 0.7, 0.9, adam=True, decay=0.1)),),
        covers="gpa_adamw",
        lr=None,
        watch=average_of("primal_averaging"),
        uses_params=True,
    ),
    Case(
        "msam",
        gch.rules.msam(falling, 0.4),
        (ahead_along_momentum(falling, 0.4),),
        lr=None,
        watch=average_of("msam"),
        scope="joint",
        bend=0.5,
        uses_step=True,
        uses_params=True,
        counted=False,
        low="the gradient of its problem depends on the weights, and is taken in their precision",
    ),
    Case(
        "asam",
        gch.rules.asam(0.5, 0.1),
        (joint_twin(adaptive_sharpness(0.5, 0.1)),),
        bend=0.5,
        scope="joint",
        uses_params=True,
        needs_closure=True,
        low="the gradient of its problem depends on the weights, and is taken in their precision",
    ),
    Case(
        "hyperball",
        gch.rules.hyperball(falling),
        (twin(on_ball(falling), complex=True),),
        lr=None,
        scope="tensor",
        uses_step=True,
        uses_params=True,
    ),
    Case(
        "hyperball-radius",
        gch.rules.hyperball(rising, radius=2.0),
        (twin(on_ball(rising, 2.0), complex=True),),
        lr=None,
        scope="tensor",
        uses_step=True,
        uses_params=True,
    ),
    Case(
        "qk_clip",
        gch.rules.qk_clip("val_loss", gch.named("body.*"), max_logit=0.4),
        (joint_twin(clipped_logits(0.4), complex=True),),
        uses_params=True,
        alone=False,
        own_time=False,
    ),
)
