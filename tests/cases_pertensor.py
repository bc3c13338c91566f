"""Rows of the rules with a number per tensor, per row or per dimension."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import rules
import torch
from case import Case, Clip
from harness import spiky
from peers import Rule, of_optax, twin
from rules import falling
from torch import Tensor

import gradchain as gch

BODY = gch.named("body.*")
IN_BODY = ((4, 3), (3,))  # rules of twins know a parameter by its shape


# twins, one parameter at a time


def rows_of(x: Tensor) -> Tensor:
    """A tensor as rows; a vector as one."""
    return x.flatten(1) if x.ndim > 1 else x.reshape(1, -1)


def root_mean_square(x: Tensor) -> float:
    return x.square().mean().sqrt().item() if x.numel() else 0.0


def trusting(min_norm: float = 0.0, coefficient: float = 1.0, eps: float = 0.0, decay: float = 0.0) -> Rule:
    """You, Gitman and Ginsburg, 2017, Algorithm 1, without momentum."""

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        a, b = max(w.norm().item(), min_norm), max(g.norm().item(), min_norm)
        ratio = coefficient * a / (b + decay * a + eps) if a and b else 1.0
        return w - lr * ratio * (g + decay * w)

    return rule


def layerwise_adam(decay: float, bare: Callable[[Tensor], bool] = lambda w: False) -> Rule:
    """You et al., 2019, Algorithm 2, with φ(z) = z; `bare` parameters have no ratio."""
    adam = rules.adam(eps=1e-6)

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        u = w - adam(w, g, memory, 1.0, t) + decay * w
        ratio = 1.0 if bare(w) or not w.norm() or not u.norm() else w.norm() / u.norm()
        return w - lr * ratio * u

    return rule


def on_a_sphere(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
    """Bernstein et al., 2020, Algorithm 1."""
    a, b = max(w.norm().item(), 1e-6), max(g.norm().item(), 1e-6)
    return (w - lr * g * a / b) / (1 + lr**2) ** 0.5


def with_tensor_moments(b1: float, b2: float, eps: float, eps_root: float = 0.0, decay: float = 0.0) -> Rule:
    """Ginsburg et al., 2019, Algorithm 1."""

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        square = g.square().sum()
        memory["v"] = b2 * memory["v"] + (1 - b2) * square if "v" in memory else square
        memory["m"] = b1 * memory.get("m", 0.0) + g / ((memory["v"] + eps_root).sqrt() + eps) + decay * w
        return w - lr * memory["m"]

    return rule


def bounded(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
    return w - lr * g / max(1.0, root_mean_square(g) / 0.7)


def bounded_units(clipping: float, eps: float) -> Rule:
    """Brock et al., 2021, Equation 3."""

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        out = torch.empty_like(g)
        for i, (a, b) in enumerate(zip(rows_of(w), rows_of(g), strict=True)):
            limit, norm = clipping * max(a.norm().item(), eps), b.norm().item()
            rows_of(out)[i] = b * limit / norm if norm > limit else b
        return w - lr * out

    return rule


def stable(b1: float, b2: float, eps: float, decay: float) -> Rule:
    """Wortsman et al., 2023, Algorithm 2, whose betas are corrected in place of the moments."""

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        count = memory["t"] = memory.get("t", 0) + 1
        c1, c2 = (b * (1 - b ** (count - 1)) / (1 - b**count) for b in (b1, b2))
        m = memory["m"] = c1 * memory.get("m", 0.0) + (1 - c1) * g
        v = memory["v"] = c2 * memory.get("v", 0.0) + (1 - c2) * g * g
        rate = lr / max(1.0, root_mean_square(g / v.clamp(min=eps**2).sqrt()))
        return w - rate * decay * w - rate * m / (v.sqrt() + eps)

    return rule


def covered(b1: float, b2: float, eps: float = 1e-8) -> Rule:
    """Anil et al., 2019, Algorithm SM3-II over rows, columns and so on, with momentum."""

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        kept = memory.setdefault("kept", [torch.zeros(())] * max(g.ndim, 1))
        least = kept[0].expand(g.shape)
        for other in kept[1:]:
            least = torch.minimum(least, other)
        v = b2 * least + (1.0 if b2 == 1 else 1 - b2) * g * g
        if g.numel():
            of = range(g.ndim)
            memory["kept"] = [v.amax([j for j in of if j != i], keepdim=True) for i in of] if g.ndim > 1 else [v]
        m = memory["m"] = b1 * memory.get("m", 0.0) + (1 - b1) * g / (v + eps).sqrt()
        return w - lr * m

    return rule


def by_blocks(blocks: Callable[[Tensor], int], decay: float = 0.0, eps: float = 1e-8) -> Rule:
    """Zhang et al., 2024, Algorithm 1: one second moment for each of so many blocks of consecutive elements."""

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        count = memory["t"] = memory.get("t", 0) + 1
        if not g.numel():
            return w
        m = memory["m"] = 0.9 * memory.get("m", 0.0) + 0.1 * g
        square = (g * g).reshape(blocks(g), -1).mean(1, keepdim=True)
        v = memory["v"] = 0.999 * memory.get("v", 0.0) + 0.001 * square
        root = (v / (1 - 0.999**count)).sqrt() + eps
        return w - lr * (((m / (1 - 0.9**count)).reshape(blocks(g), -1) / root).reshape(g.shape) + decay * w)

    return rule


def number_of_rows(g: Tensor) -> int:
    return g.shape[0] if g.ndim else 1


def without_radial(inner: Rule, delta: float, ratio: float, decay: float, eps: float = 1e-8) -> Rule:
    """Heo et al., 2020, Algorithms 1 and 2, as the authors' code has them."""

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        u, shrink = w - inner(w, g, memory, 1.0, t), 1.0
        if w.ndim > 1 and w.numel():
            for shape in ((w.shape[0], -1), (1, -1)):
                a, b, step = w.reshape(shape), g.reshape(shape), u.reshape(shape)
                cosine = (a * b).sum(1).abs() / (a.norm(dim=1) + eps) / (b.norm(dim=1) + eps)
                if cosine.max() < delta / a.shape[1] ** 0.5:
                    unit = a / (a.norm(dim=1, keepdim=True) + eps)
                    u, shrink = (step - unit * (unit * step).sum(1, keepdim=True)).reshape(w.shape), ratio
                    break
        return w - lr * u - lr * decay * shrink * w

    return rule


def heavy_ball(momentum: float, nesterov: bool) -> Rule:
    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        memory["b"] = momentum * memory.get("b", 0.0) + g
        return w - lr * (g + momentum * memory["b"] if nesterov else memory["b"])

    return rule


# Optax in torch's layout


def turned(ox: Any, inner: Any) -> Any:
    """A rule of Optax over matrices (inputs, outputs), which is what Flax's kernels are."""
    import jax

    def turn(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.reshape(x.shape[0], -1).T if x.ndim > 1 and x.size else x, tree)

    def update(updates: Any, state: Any, params: Any) -> Any:
        out, state = inner.update(turn(updates), state, turn(params))
        return jax.tree.map(lambda u, p: u.T.reshape(p.shape), out, params), state

    return ox.GradientTransformation(lambda params: inner.init(turn(params)), update)


def with_elements(ox: Any, inner: Any) -> Any:
    """A rule of Optax that takes neither numbers nor empty parameters, given vectors of one in place of them."""
    import jax

    def vectors(tree: Any) -> Any:
        def vector(x: Any) -> Any:
            return x if x.ndim and x.size else x.reshape(-1) if x.size else jax.numpy.zeros(1)

        return jax.tree.map(vector, tree)

    def update(updates: Any, state: Any, params: Any) -> Any:
        out, state = inner.update(vectors(updates), state, vectors(params))
        return jax.tree.map(lambda u, p: u[: p.size].reshape(p.shape) if p.size < 2 else u, out, params), state

    return ox.GradientTransformation(lambda params: inner.init(vectors(params)), update)


def in_body(tree: Any) -> dict[str, bool]:
    return {n: n.startswith("body.") for n in tree}


def descending(ox: Any, lr: Any, link: Any) -> Any:
    return ox.chain(link, ox.scale_by_learning_rate(lr))


def largest_rms(g: dict[str, Tensor]) -> float:
    return max(root_mean_square(v) for v in g.values())


ROWS: tuple[Case, ...] = (
    # relative to the weights
    Case(
        "scale_by_trust_ratio",
        gch.rules.scale_by_trust_ratio(),
        (
            of_optax("optax.scale_by_trust_ratio", lambda ox, lr: descending(ox, lr, ox.scale_by_trust_ratio())),
            twin(trusting()),
        ),
        lr=falling,
        degree=0,
        scope="tensor",
        uses_params=True,
    ),
    Case(
        "scale_by_trust_ratio-least",
        gch.rules.scale_by_trust_ratio(1.5, 0.3, 0.2),
        (
            of_optax(
                "optax.scale_by_trust_ratio", lambda ox, lr: descending(ox, lr, ox.scale_by_trust_ratio(1.5, 0.3, 0.2))
            ),
            twin(trusting(1.5, 0.3, 0.2)),
        ),
        scope="tensor",
        uses_params=True,
    ),
    Case(
        "scale_by_trust_ratio-apart",
        gch.rules.scale_by_trust_ratio(trust_coefficient=0.4, eps=0.1, weight_decay=0.3),
        (twin(trusting(coefficient=0.4, eps=0.1, decay=0.3)),),
        scope="tensor",
        uses_params=True,
    ),
    Case(
        "lamb",
        gch.rules.lamb(0.5, weight_decay=0.1),
        (of_optax("optax.lamb", lambda ox, lr: ox.lamb(lr, weight_decay=0.1)), twin(layerwise_adam(0.1))),
        covers="lamb",
        lr=None,
        scope="tensor",
        uses_params=True,
    ),
    Case(
        "lamb-mask",
        gch.rules.lamb(0.5, weight_decay=0.1, mask=BODY, trust_ratio_mask=~BODY),
        (
            of_optax(
                "optax.lamb, masked",
                lambda ox, lr: ox.chain(
                    ox.scale_by_adam(eps=1e-6),
                    ox.add_decayed_weights(0.1, in_body),
                    ox.masked(ox.scale_by_trust_ratio(), lambda tree: {n: not b for n, b in in_body(tree).items()}),
                    ox.scale_by_learning_rate(lr),
                ),
            ),
        ),
        covers="lamb",
        lr=None,
        scope="tensor",
        uses_params=True,
        alone=False,
    ),
    Case(
        "lars",
        gch.rules.lars(0.5, 0.1, trust_coefficient=0.2, eps=0.01, nesterov=True),
        (of_optax("optax.lars", lambda ox, lr: ox.lars(lr, 0.1, trust_coefficient=0.2, eps=0.01, nesterov=True)),),
        covers="lars",
        lr=None,
        scope="tensor",
        uses_params=True,
    ),
    Case(
        "fromage",
        gch.rules.fromage(0.5),
        (of_optax("optax.fromage", lambda ox, lr: ox.fromage(lr)), twin(on_a_sphere)),
        covers="fromage",
        lr=None,
        scope="tensor",
        uses_params=True,
    ),
    Case(
        "shrink_by_learning_rate",
        gch.chain(gch.rules.shrink_by_learning_rate(falling)),
        (twin(lambda w, g, m, lr, t: (w - falling(t) * g) / (1 + falling(t) ** 2) ** 0.5),),
        covers="shrink_by_learning_rate",
        lr=None,
        uses_params=True,
        uses_step=True,
    ),
    Case(
        "scale_by_param_block_norm",
        gch.rules.scale_by_param_block_norm(0.9),
        (
            of_optax(
                "optax.scale_by_param_block_norm",
                lambda ox, lr: descending(ox, lr, ox.scale_by_param_block_norm(0.9)),
            ),
            twin(lambda w, g, m, lr, t: w - lr * g * max(w.norm().item(), 0.9)),
        ),
        lr=lambda step: 0.2 / (1 + step),
        degree=None,
        scope="tensor",
        uses_params=True,
    ),
    Case(
        "scale_by_param_block_rms",
        gch.rules.scale_by_param_block_rms(0.9),
        (
            of_optax(
                "optax.scale_by_param_block_rms",
                lambda ox, lr: descending(ox, lr, ox.scale_by_param_block_rms(0.9)),
                rtol=1e-12,
            ),
            twin(lambda w, g, m, lr, t: w - lr * g * max(root_mean_square(w), 0.9)),
        ),
        lr=lambda step: 0.2 / (1 + step),
        scope="tensor",
        uses_params=True,
    ),
    # sizes of updates
    Case(
        "clip_by_block_rms",
        gch.rules.clip_by_block_rms(0.7),
        (
            of_optax("optax.clip_by_block_rms", lambda ox, lr: descending(ox, lr, ox.clip_by_block_rms(0.7))),
            twin(bounded),
        ),
        draw=spiky,
        scope="tensor",
        clip=Clip(largest_rms, 0.7, keeps_direction=False),
    ),
    Case(
        "adaptive_grad_clip",
        gch.rules.adaptive_grad_clip(0.3, eps=0.5),
        (
            of_optax(
                "optax.adaptive_grad_clip, turned",
                lambda ox, lr: descending(ox, lr, turned(ox, ox.adaptive_grad_clip(0.3, eps=0.5))),
            ),
            twin(bounded_units(0.3, 0.5)),
        ),
        draw=spiky,
        scope="tensor",
        uses_params=True,
    ),
    Case(
        "normalize_by_update_norm",
        gch.rules.normalize_by_update_norm(2.0, 0.1),
        (
            of_optax(
                "optax.normalize_by_update_norm",
                lambda ox, lr: descending(ox, lr, ox.normalize_by_update_norm(2.0, 0.1)),
            ),
        ),
        draw=spiky,
        scope="joint",
    ),
    Case(
        "normalize",
        gch.rules.normalize(),
        (of_optax("optax.contrib.normalize", lambda ox, lr: descending(ox, lr, ox.contrib.normalize())),),
        covers="normalize",
        draw=spiky,
        scope="joint",
        degree=0,
        zero=False,
    ),
    Case(
        "centralize",
        gch.rules.centralize(),
        (
            of_optax("optax.centralize", lambda ox, lr: descending(ox, lr, ox.centralize())),
            twin(lambda w, g, m, lr, t: w - lr * (g - (g.mean(tuple(range(1, g.ndim)), True) if g.ndim > 1 else 0))),
        ),
        scope="tensor",
        degree=1,
    ),
    # a second moment per tensor, block or dimension
    Case(
        "scale_by_novograd",
        gch.rules.scale_by_novograd(),
        (
            of_optax("optax.scale_by_novograd", lambda ox, lr: descending(ox, lr, ox.scale_by_novograd())),
            twin(with_tensor_moments(0.9, 0.25, 1e-8)),
        ),
        lr=falling,
        scope="tensor",
        uses_params=True,
    ),
    Case(
        "scale_by_novograd-decay",
        gch.rules.scale_by_novograd(0.8, 0.9, 0.1, 0.2, 0.3),
        (
            of_optax(
                "optax.scale_by_novograd",
                lambda ox, lr: descending(ox, lr, ox.scale_by_novograd(0.8, 0.9, 0.1, 0.2, 0.3)),
            ),
            twin(with_tensor_moments(0.8, 0.9, 0.1, 0.2, 0.3)),
        ),
        lr=0.1,
        scope="tensor",
        uses_params=True,
    ),
    Case(
        "novograd",
        gch.rules.novograd(0.5, weight_decay=0.1),
        (of_optax("optax.novograd", lambda ox, lr: ox.novograd(lr, weight_decay=0.1)),),
        covers="novograd",
        lr=None,
        scope="tensor",
        uses_params=True,
    ),
    Case(
        "scale_by_stable_adam",
        gch.rules.scale_by_stable_adam(weight_decay=0.2),
        (twin(stable(0.9, 0.99, 1e-6, 0.2)),),
        lr=falling,
        draw=spiky,
        scope="tensor",
        uses_params=True,
    ),
    Case(
        "stable_adamw",
        gch.rules.stable_adamw(0.5, 0.8, 0.95, 0.1),
        (twin(stable(0.8, 0.95, 0.1, 0.01)),),
        covers="stable_adamw",
        lr=None,
        draw=spiky,
        scope="tensor",
        uses_params=True,
    ),
    Case(
        "scale_by_sm3",
        gch.rules.scale_by_sm3(),
        (
            of_optax("optax.scale_by_sm3", lambda ox, lr: descending(ox, lr, with_elements(ox, ox.scale_by_sm3()))),
            twin(covered(0.9, 1.0)),
        ),
        lr=falling,
        scope="tensor",
    ),
    Case(
        "scale_by_sm3-mean",
        gch.rules.scale_by_sm3(0.5, 0.9, 0.1),
        (
            of_optax(
                "optax.scale_by_sm3",
                lambda ox, lr: descending(ox, lr, with_elements(ox, ox.scale_by_sm3(0.5, 0.9, 0.1))),
            ),
            twin(covered(0.5, 0.9, 0.1)),
        ),
        scope="tensor",
    ),
    Case(
        "sm3",
        gch.rules.sm3(0.5, 0.8),
        (of_optax("optax.sm3", lambda ox, lr: with_elements(ox, ox.sm3(lr, 0.8))),),
        covers="sm3",
        lr=None,
        scope="tensor",
    ),
    Case(
        "scale_by_adam_mini",
        gch.rules.scale_by_adam_mini(),
        (twin(by_blocks(lambda g: 1)),),
        lr=falling,
        scope="tensor",
    ),
    Case(
        "scale_by_adam_mini-blocks",
        gch.rules.scale_by_adam_mini(blocks=[(BODY, 1)], rest="row"),
        (twin(by_blocks(lambda g: 1 if g.shape in IN_BODY else number_of_rows(g))),),
        scope="tensor",
        alone=False,
    ),
    Case(
        "adam_mini",
        gch.rules.adam_mini(0.5, weight_decay=0.1, rest="row"),
        (twin(by_blocks(number_of_rows, 0.1)),),
        covers="adam_mini",
        lr=None,
        scope="tensor",
        uses_params=True,
    ),
    # no step along the weights
    Case(
        "drop_radial",
        gch.rules.drop_radial(gch.trace(0.9, nesterov=True), 0.6, 0.3, 0.1),
        (twin(without_radial(heavy_ball(0.9, True), 0.6, 0.3, 0.1)),),
        lr=lambda step: 0.1 / (1 + step),
        scope="tensor",
        uses_params=True,
    ),
    Case(
        "adamp",
        gch.rules.adamp(0.5, weight_decay=0.1, delta=0.6),
        (twin(without_radial(rules.adam(), 0.6, 0.1, 0.1)),),
        covers="adamp",
        lr=None,
        scope="tensor",
        uses_params=True,
    ),
    Case(
        "sgdp",
        gch.rules.sgdp(0.5, 0.5, weight_decay=0.1, delta=0.6),
        (twin(without_radial(heavy_ball(0.5, False), 0.6, 0.1, 0.2)),),
        covers="sgdp",
        lr=None,
        scope="tensor",
        uses_params=True,
    ),
)
