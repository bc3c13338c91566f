"""Optax under jit, as it is fastest: weights and state live in JAX and are donated.

Forward, backward and gradients are torch's, of a model with the same weights, in the same rounds as everyone's. Its
optimizer part is the jitted update with its dispatch, until the new weights are there, and the release of the
gradients, which the others' parts hold too. The way of gradients to JAX and of weights back is not in it: a JAX user
has none. So its part is compared and may be the best peer's; a whole step it does not have.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from torch import Tensor

from benchmarks.candidate import Candidate, Took, now
from benchmarks.other_peers import library
from benchmarks.recipes import (
    B1,
    B2,
    DECAY,
    EMA,
    EPS,
    FIRST_STEPS,
    LION_B2,
    MOMENTUM,
    STEPS,
    WARM_UP,
    Cell,
    multipliers,
    rates,
)
from benchmarks.workloads import decays


class Optax(Candidate):
    """optax, jitted."""

    name = "optax (jit)"
    traced = False

    def __init__(self, cell: Cell) -> None:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        if torch.get_num_threads() == 1:
            os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
        library("optax")
        super().__init__(cell)
        import jax

        self.jax = jax
        self.masks = {n: decays(p) for n, p in self.model.named_parameters()}
        self.weights = {n: jax.numpy.array(p.detach().numpy(), copy=True) for n, p in self.model.named_parameters()}
        tx = self._chain()
        self.scale = {"scale": cell.recipe.loss_scale, "tracker": 0} if cell.recipe.scaled else None
        self.state: Any = {"tx": jax.jit(tx.init)(self.weights)}
        if self.scale is not None:
            self.state |= {
                "ema": {n: w.copy() for n, w in self.weights.items()},
                "started": jax.numpy.array(cell.recipe.first),
                "scale": jax.numpy.array(cell.recipe.loss_scale),
                "tracker": jax.numpy.array(0),
            }
        self.jitted = jax.jit(self._scaled(tx) if cell.recipe.scaled else self._plain(tx), donate_argnums=(0, 1))

    def _chain(self) -> Any:
        import optax

        recipe, rate = self.cell.recipe, rates(self.cell.recipe)
        decay = optax.add_decayed_weights(DECAY, mask=self.masks if recipe.scaled else None)
        rule = {
            "adamw": lambda: [optax.scale_by_adam(B1, B2, EPS), decay],
            "lion": lambda: [optax.scale_by_lion(B1, LION_B2), decay],
            "sgd": lambda: [decay, optax.trace(MOMENTUM, nesterov=True)],
            "own": lambda: [self._own(), decay],
        }[recipe.rule]()
        clip = [optax.clip_by_global_norm(self.cell.max_norm)] if recipe.clip else []
        factors = multipliers(recipe, self.model)
        if factors:
            rule.append(optax.stateless(lambda u, _: {n: factors[n] * x for n, x in u.items()}))
        start, end = (WARM_UP, FIRST_STEPS) if recipe.first else (0, STEPS)
        schedule = optax.cosine_decay_schedule(rate, end - start, alpha=0.1) if recipe.scheduled else rate
        if start:
            schedule = optax.join_schedules((optax.linear_schedule(0.0, rate, start), schedule), [start])
        return optax.chain(*clip, *rule, optax.scale_by_learning_rate(schedule))

    def _own(self) -> Any:
        import jax
        import jax.numpy as jnp
        import optax

        def init(params: Any) -> Any:
            return jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params)

        def update(g: Any, state: Any, params: Any = None) -> Any:
            m = jax.tree.map(lambda m, g: B1 * m + (1 - B1) * g, state[0], g)
            s = jax.tree.map(lambda s, g: jnp.maximum(B2 * s, jnp.abs(g)), state[1], g)
            u = jax.tree.map(lambda m, s, g: m / (s + EPS) * (0.75 + 0.25 * jnp.sign(m * g)), m, s, g)
            return u, (m, s)

        return optax.GradientTransformation(init, update)

    def _plain(self, tx: Any) -> Any:
        import optax

        def run(weights: Any, state: Any, grads: Any) -> Any:
            updates, inner = tx.update(grads, state["tx"], weights)
            return optax.apply_updates(weights, updates), {"tx": inner}

        return run

    def _scaled(self, tx: Any) -> Any:
        import jax
        import jax.numpy as jnp
        import optax

        def run(weights: Any, state: Any, grads: Any) -> Any:
            grads = jax.tree.map(lambda g: g / state["scale"], grads)
            finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads)]))

            def applied() -> Any:
                updates, inner = tx.update(grads, state["tx"], weights)
                new = optax.apply_updates(weights, updates)
                part = jnp.where(state["started"], 1 - EMA, 1.0)
                ema = jax.tree.map(lambda a, w: a + part * (w - a), state["ema"], new)
                grown = jnp.where(state["tracker"] + 1 == 2000, 2.0, 1.0) * state["scale"]
                tracker = (state["tracker"] + 1) % 2000
                return new, {"tx": inner, "ema": ema, "started": jnp.array(True), "scale": grown, "tracker": tracker}

            def held() -> Any:
                return weights, {**state, "scale": 0.5 * state["scale"], "tracker": jnp.array(0)}

            return jax.lax.cond(finite, applied, held)

        return run

    def backward(self, loss: Tensor) -> None:
        if self.scale is not None:
            loss = loss * float(self.state["scale"])
        super().backward(loss)

    def round(self) -> Took:
        """One step; only the jitted update and the release of the gradients are timed."""
        jax, micro = self.jax, self.cell.recipe.micro
        for _ in range(micro):
            self.backward(self.forward()[0])
        named = dict(self.model.named_parameters())
        grads = {n: jax.numpy.array(p.grad.numpy(), copy=True) for n, p in named.items() if p.grad is not None}
        jax.block_until_ready(grads)
        self.model.zero_grad()
        start = now()
        self.weights, self.state = self.jitted(self.weights, self.state, grads)
        jax.block_until_ready((self.weights, self.state))
        del grads
        part = now() - start
        self._read()
        return Took(math.nan, part)

    def _read(self) -> None:
        import numpy

        with torch.no_grad():
            for n, p in self.model.named_parameters():
                p.copy_(torch.from_numpy(numpy.array(self.weights[n])))

    def average(self) -> dict[str, Tensor] | None:
        if self.scale is None:
            return None
        import numpy

        return {n: torch.from_numpy(numpy.array(w)) for n, w in self.state["ema"].items()}


PEERS = (Optax,)
