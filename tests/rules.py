"""Twins written from the papers, schedules and user functions: what the rows of cases.py are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import noise
import numpy as np
import torch
from harness import Problem, observed
from peers import Rule, Weights, in_float64
from torch import Tensor, nn

import gradchain as gch

# schedules: plain arithmetic, so that they are the same function to torch, to jax's tracers and to us


def optax_plateau(problem: Problem) -> list[dict[str, Any]]:
    """optax.contrib.reduce_on_plateau behind SGD, given what is observed at every update."""
    import jax
    import optax

    with in_float64():
        tx = optax.contrib.reduce_on_plateau(factor=0.5, patience=3, rtol=1e-4, cooldown=1, min_scale=0.2)
        params = start = {n: jax.numpy.asarray(p.numpy()) for n, p in problem.params.items()}
        state, out = tx.init(params), []
        for t, grads in enumerate(problem.grads):
            scaled, state = tx.update(
                {n: jax.numpy.asarray(g.numpy()) for n, g in grads.items()}, state, value=observed(t)
            )
            params = {n: params[n] - problem.rate(t) * scaled[n] for n in params}
            out.append({n: torch.tensor(jax.device_get(params[n] - start[n])) for n in params})
        return out


def plateaus(**given: Any) -> Any:
    """Writes into a group what torch's ReduceLROnPlateau has made of the rate after each observation."""
    kept: dict[str, Any] = {}

    def write(group: dict[str, Any], t: int) -> None:
        if t == 0:
            optimizer = torch.optim.SGD([torch.zeros(1)], lr=group["lr"])
            kept["scheduler"] = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **given)
        kept["scheduler"].step(observed(t))
        group["lr"] = kept["scheduler"].optimizer.param_groups[0]["lr"]

    return write


def noisy(problem: Problem, t: int, weights: Weights, memory: dict[str, Any]) -> Weights:
    """SGD with noise on the gradients, whose numbers are those of a link called add_noise with seed 5."""
    size, out = (0.3 / (1 + t) ** 0.55) ** 0.5, {}
    for name, g in problem.gradient(t, weights).items():
        drawn = noise.drawn("normal", 5, "add_noise", name, t, g.numel(), np.float64)
        out[name] = weights[name] - problem.rate(t) * (g + size * torch.from_numpy(drawn).reshape(g.shape))
    return out


def often(step: Any) -> Any:
    """Two updates of three."""
    return step % 3 != 1


def size(updates: gch.Tensors) -> Any:
    return updates.norm()


def falling(step: Any) -> Any:
    return 0.9 / (1 + 0.25 * step)


def rising(step: Any) -> Any:
    return 0.1 + 0.05 * step


def b1(step: float) -> float:
    return 0.95 - 0.4 / (2 + step)


def b2(step: float) -> float:
    return 0.99 - 0.3 / (2 + step)


# user functions


def with_weights(updates: gch.Tensors, params: gch.Tensors) -> gch.Tensors:
    return updates + 0.1 * params


def centre(g: Tensor) -> Tensor:
    return g - g.mean() if g.numel() else g


def centred(updates: gch.Tensors, params: gch.Tensors) -> gch.Tensors:
    return updates.map(centre)


def at_least_zero(w: Tensor) -> Tensor:
    return torch.view_as_complex(torch.view_as_real(w).clamp(min=0)) if w.is_complex() else w.clamp(min=0)


def halfway(new: Tensor, old: Tensor) -> Tensor:
    return 0.5 * (new + old)


# rules, one parameter at a time


def adam(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    nesterov: bool = False,
    mu_dtype: torch.dtype | None = None,
    nu_dtype: torch.dtype | None = None,
) -> Rule:
    """Kingma and Ba, 2014, Algorithm 1; with nesterov Dozat, 2016, without the schedule of b1."""

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        count = memory["t"] = memory.get("t", 0) + 1
        # lerp, and not b1 m + (1 - b1) g: where m is rounded to store it, an ulp decides which way
        m = memory.get("m", torch.zeros_like(g)).to(g.dtype).lerp(g, 1 - b1)
        v = b2 * memory.get("v", torch.zeros_like(g)).to(g.dtype) + (1 - b2) * g * g
        memory["m"] = m if mu_dtype is None else m.to(mu_dtype)
        memory["v"] = v if nu_dtype is None else v.to(nu_dtype)
        ahead = m / (1 - b1**count)
        if nesterov:
            ahead = b1 * m / (1 - b1 ** (count + 1)) + (1 - b1) * g / (1 - b1**count)
        return w - lr * ahead / ((v / (1 - b2**count) + eps_root).sqrt() + eps)

    return rule


def lion(b1: float, b2: float, decay: float = 0.0) -> Rule:
    """Chen et al., 2023, Algorithm 2."""

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        m = memory.get("m", torch.zeros_like(g))
        memory["m"] = b2 * m + (1 - b2) * g
        return w - lr * ((b1 * m + (1 - b1) * g).sign() + decay * w)

    return rule


# rules over all parameters


def together(tensors: dict[str, Tensor]) -> Tensor:
    """The 2-norm of everything."""
    return torch.stack([t.norm() for t in tensors.values()]).norm() if tensors else torch.zeros(())


def clipped(bound: float) -> Callable[..., dict[str, Tensor]]:
    def step(problem: Problem, t: int, weights: dict[str, Tensor], memory: dict[str, Any]) -> dict[str, Tensor]:
        g = problem.gradient(t, weights)
        factor = bound / max(bound, together(g).item())
        return {n: weights[n] - problem.rate(t) * factor * g[n] for n in g}

    return step


def windows(k: int, mean: bool = True) -> Callable[..., dict[str, Tensor]]:
    """Sum k micro-batches; a parameter absent from one adds nothing to the sum."""

    def step(problem: Problem, t: int, weights: dict[str, Tensor], memory: dict[str, Any]) -> dict[str, Tensor]:
        total = memory.setdefault("sum", {})
        for n, g in problem.gradient(t, weights).items():
            total[n] = total.get(n, 0) + g / (k if mean else 1)
        if (t + 1) % k:
            return {}
        memory["sum"] = {}
        return {n: weights[n] - problem.rate(t // k) * g for n, g in total.items()}

    return step


def skipped(problem: Problem, t: int, weights: dict[str, Tensor], memory: dict[str, Any]) -> dict[str, Tensor]:
    g = problem.gradient(t, weights)
    if not all(bool(torch.isfinite(v).all()) for v in g.values()):
        return {}
    return {n: weights[n] - problem.rate(t) * g[n] for n in g}


def sharpness_aware(rho: float) -> Callable[..., dict[str, Tensor]]:
    """Foret et al., 2020, Algorithm 1, as in davda54/sam."""

    def step(problem: Problem, t: int, weights: dict[str, Tensor], memory: dict[str, Any]) -> dict[str, Tensor]:
        g = problem.gradient(t, weights)
        factor = rho / (together(g) + 1e-12)
        up = {n: weights[n] + factor * g[n] if n in g else w for n, w in weights.items()}
        there = problem.gradient(t, up)
        return {n: weights[n] - problem.rate(t) * there[n] for n in g}

    return step


def halfway_run(problem: Problem) -> list[dict[str, Any]]:
    """Gradient descent after which the body goes only half of the way."""
    weights, out = dict(problem.params), []
    for t in range(len(problem.grads)):
        for n, g in problem.gradient(t, weights).items():
            rate = problem.rate(t) * (0.5 if n.startswith("body.") else 1.0)
            weights[n] = weights[n] - rate * g
        out.append({n: w - problem.params[n] for n, w in weights.items()})
    return out


# what is done around torch.optim


def clip_in_groups(params: list[nn.Parameter], t: int) -> None:
    """Each of two groups is clipped by a norm of its own. The groups are told apart by shape, as the table has them."""
    bound = 1.0 + 0.2 * min(t, 10)
    body = [p for p in params if p.shape in ((4, 3), (3,))]
    rest = [p for p in params if p.shape not in ((4, 3), (3,))]
    for group in (body, rest):
        if group:
            nn.utils.clip_grad_norm_(group, bound)


def clip_exactly(params: list[nn.Parameter], t: int) -> None:
    """clip_grad_norm_ without its eps of 1e-6."""
    if not params:
        return
    norm = torch.stack([p.grad.norm() for p in params]).norm().item()
    for p in params:
        p.grad *= min(1.0, 2.0 / norm) if norm else 1.0


def forget_body(params: list[nn.Parameter], t: int) -> None:
    for p in params:
        if t < 7 and p.shape in ((4, 3), (3,)):
            p.grad = None


def clamp_after(weights: Weights) -> None:
    with torch.no_grad():
        for w in weights.values():
            if w.grad is not None:
                w.clamp_(min=0)


class _Bag(nn.Module):
    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.held = nn.ParameterList(list(weights.values()))


def averaged_model(decay: float | None, start: int = 0, every: int = 1) -> Callable[..., dict[str, Any]]:
    """The averages that torch's own AveragedModel keeps beside the loop; the live weights until `start`."""

    def watch(weights: Weights, kept: dict[str, Any], t: int) -> dict[str, Any]:
        from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

        bag = _Bag(weights)
        if not kept:
            fn = None if decay is None else get_ema_multi_avg_fn(decay)
            kept["average"] = AveragedModel(bag, multi_avg_fn=fn)
        if t >= start and (t - start) % every == 0:
            kept["average"].update_parameters(bag)
        values = (bag if t < start else kept["average"].module).held
        return {f"average of {n}": v.detach().clone() for n, v in zip(weights, values, strict=True)}

    return watch


def average(state: Any) -> dict[str, Any]:
    """The averages that average_params keeps."""
    tensors = state.links["average_params"].average
    return {f"average of {n}": tensors[n] for n in tensors}


def grad_scaler(problem: Problem) -> list[dict[str, Any]]:
    """torch.amp.GradScaler around gradient descent, backward and all."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
    weights = {n: nn.Parameter(p.clone()) for n, p in problem.params.items()}
    optimizer = torch.optim.SGD(weights.values(), lr=problem.rate(0))
    out = []
    for grads in problem.grads:
        optimizer.zero_grad()
        terms = [(weights[n] * g).sum() for n, g in grads.items()]
        if terms:
            scaler.scale(torch.stack(terms).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        moved: dict[str, Any] = {n: w.detach() - problem.params[n] for n, w in weights.items()}
        out.append({**moved, "loss scale": scaler.get_scale()})
    return out


def optax_sam(problem: Problem) -> list[dict[str, Any]]:
    """optax.contrib.sam in its opaque mode."""
    import jax
    import optax

    with in_float64():
        tx = optax.contrib.sam(
            optax.sgd(problem.rate(0)),
            optax.chain(optax.contrib.normalize(), optax.sgd(0.5)),
            opaque_mode=True,
            reset_state=False,
        )
        params = start = {n: jax.numpy.asarray(p.numpy()) for n, p in problem.params.items()}
        state = tx.init(params)

        def step(params: Any, state: Any, grads: Any) -> Any:
            def gradient(at: Any, _: int) -> Any:
                return {n: grads[n] + problem.bend * jax.numpy.tanh(at[n]) for n in grads}

            updates, state = tx.update(gradient(params, 0), state, params, grad_fn=gradient)
            return optax.apply_updates(params, updates), state

        step = jax.jit(step)
        out = []
        for grads in problem.grads:
            params, state = step(params, state, {n: jax.numpy.asarray(g.numpy()) for n, g in grads.items()})
            out.append({n: torch.tensor(jax.device_get(params[n] - start[n])) for n in params})
        return out
