"""How a peer is run on a problem: torch.optim and Optax as they are, or a float64 twin written from the paper."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from harness import Problem
from torch import Tensor, nn

Trajectory = "list[dict[str, Any]]"


@dataclass(frozen=True)
class Peer:
    """Who else computes what a row computes.

    Attributes:
        name: who.
        run: the displacement of each parameter after each step of a problem, and what the row watches.
        rtol: of the largest displacement of each parameter. A peer that computes in float64 meets 1e-12.
        why: the reason for a tolerance above that.
        absent: whether it knows parameters without a gradient.
        complex: whether it knows complex parameters.
    """

    name: str
    run: Callable[[Problem], list[dict[str, Any]]]
    rtol: float = 1e-12
    why: str = ""
    absent: bool = True
    complex: bool = False


Weights = dict[str, nn.Parameter]


def of_torch(
    name: str,
    make: Callable[[Weights, float], Any],
    *,
    before: Callable[[list[nn.Parameter], int], Any] | None = None,
    group: Callable[[dict[str, Any], int], None] | None = None,
    after: Callable[[Weights], None] | None = None,
    watch: Callable[[Weights, dict[str, Any], int], dict[str, Any]] | None = None,
    **rest: Any,
) -> Peer:
    """A loop over torch.optim as a user would write it, with None for the gradient of an absent parameter.

    Args:
        name: of the peer.
        make: weights, learning rate → optimizer, or several.
        before: what is done to the parameters' `.grad` before the step.
        group: writes the hyperparameters of a step into a parameter group.
        after: what is done to the weights after the step.
        watch: after the step, what the row watches; given a dict to keep things in and the number of the step.
        **rest: of Peer.
    """

    def run(problem: Problem) -> list[dict[str, Any]]:
        weights = {n: nn.Parameter(p.clone()) for n, p in problem.params.items()}
        made = make(weights, problem.rate(0))
        optimizers = made if isinstance(made, (list, tuple)) else [made]
        out, kept = [], {}
        for t in range(len(problem.grads)):
            gradient = problem.gradient(t, {n: w.detach() for n, w in weights.items()})
            for n, weight in weights.items():
                weight.grad = gradient[n].clone() if n in gradient else None
            if before is not None:
                before([w for w in weights.values() if w.grad is not None], t)
            for optimizer in optimizers:
                for values in optimizer.param_groups:
                    values["lr"] = problem.rate(t) * values.get("multiplier", 1.0)
                    if group is not None:
                        group(values, t)
                optimizer.step()
            if after is not None:
                after(weights)
            moved = {n: weights[n].detach() - p for n, p in problem.params.items()}
            out.append(moved | (watch(weights, kept, t) if watch is not None else {}))
        return out

    return Peer(name, run, **{"complex": True, **rest})


def sgd(weights: Weights, lr: float) -> torch.optim.Optimizer:
    """Plain gradient descent: what turns a rule for gradients into weights."""
    return torch.optim.SGD(weights.values(), lr=lr)


def in_float64() -> AbstractContextManager[Any]:
    """JAX in float64, inside a `with`. The last JAX for Python 3.10 has the switch among its experiments."""
    import jax
    from jax import experimental

    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else experimental.enable_x64(True)


def of_optax(name: str, make: Callable[[Any, Any], Any], **rest: Any) -> Peer:
    """Optax in float64, under jit. `make(optax, lr)` gives the whole transformation, lr being what the problem has."""

    def run(problem: Problem) -> list[dict[str, Any]]:
        import jax
        import optax

        assert not problem.bend, "the gradient would have to be traced"
        with in_float64():
            tx = make(optax, problem.lr)
            params = start = {n: jax.numpy.asarray(p.numpy()) for n, p in problem.params.items()}
            state = tx.init(params)

            @jax.jit
            def step(params: Any, state: Any, grads: Any) -> Any:
                updates, state = tx.update(grads, state, params)
                new = optax.apply_updates(params, updates)
                return new, state, {n: new[n] - start[n] for n in new}

            out = []
            for grads in problem.grads:
                params, state, moved = step(params, state, {n: jax.numpy.asarray(g.numpy()) for n, g in grads.items()})
                out.append({n: torch.tensor(jax.device_get(v)) for n, v in moved.items()})
            return out

    return Peer(name, run, **{"absent": False, **rest})


Rule = Callable[[Tensor, Tensor, dict[str, Any], float, int], Tensor]


def twin(rule: Rule, *, name: str = "a float64 twin", **rest: Any) -> Peer:
    """A loop over parameters: `rule(weight, gradient, memory, lr, step) -> new weight`, written from the paper."""

    def run(problem: Problem) -> list[dict[str, Any]]:
        weights = {n: p.clone() for n, p in problem.params.items()}
        memory: dict[str, dict[str, Any]] = {n: {} for n in weights}
        out = []
        for t in range(len(problem.grads)):
            for n, g in problem.gradient(t, weights).items():
                weights[n] = rule(weights[n], g, memory[n], problem.rate(t), t)
            out.append({n: w - problem.params[n] for n, w in weights.items()})
        return out

    return Peer(name, run, **rest)


def joint_twin(
    step: Callable[[Problem, int, dict[str, Tensor], dict[str, Any]], dict[str, Tensor]],
    *,
    name: str = "a float64 twin",
    **rest: Any,
) -> Peer:
    """A twin that sees all parameters: `step(problem, t, weights, memory) -> new weights of those present`."""

    def run(problem: Problem) -> list[dict[str, Any]]:
        weights, memory = {n: p.clone() for n, p in problem.params.items()}, {}
        out = []
        for t in range(len(problem.grads)):
            weights |= step(problem, t, weights, memory)
            out.append({n: w - problem.params[n] for n, w in weights.items()})
        return out

    return Peer(name, run, **rest)
