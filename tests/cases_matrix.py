"""Rows of the rules that see a parameter as a matrix: factored second moments, orthogonal updates, eigenbases."""

from __future__ import annotations

from typing import Any

import rules
import torch
from case import Case
from harness import Problem
from peers import Peer, Rule, joint_twin, of_optax, of_torch, twin
from rules import falling
from torch import Tensor

import gradchain as gch


def factored(
    decay_rate: float = 0.8, eps: float = 1e-30, floor: float = 0.0, least: int = 0, last: bool = False, offset: int = 0
) -> Rule:
    """Shazeer and Stern, 2018, Algorithms 4 and 5, with the epsilons of Optax and of torch."""

    def direction(g: Tensor, memory: dict[str, Any]) -> Tensor:
        t = memory["t"] = memory.get("t", 0) + 1
        weight, square = max(t - offset, 1) ** -decay_rate, g * g + eps
        order = sorted(range(g.ndim), key=lambda d: g.shape[d])
        a, b = (g.ndim - 2, g.ndim - 1) if last else tuple(order[-2:]) if g.ndim > 1 else (0, 0)
        if g.ndim < 2 or min(g.shape[a], g.shape[b]) < least:
            v = memory["v"] = memory.get("v", 0.0) * (1 - weight) + weight * square
        else:
            row = memory["row"] = memory.get("row", 0.0) * (1 - weight) + weight * square.mean(b, keepdim=True)
            column = memory["column"] = memory.get("column", 0.0) * (1 - weight) + weight * square.mean(a, keepdim=True)
            v = row * column / row.mean(a, keepdim=True).clamp(min=floor)
        return g / v.clamp(min=floor**2).sqrt()

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        return w - lr * direction(g, memory)

    return rule


def _optax_factored(**given: Any) -> Peer:
    return of_optax(
        "optax.scale_by_factored_rms",
        lambda ox, lr: ox.chain(ox.scale_by_factored_rms(**given), ox.scale_by_learning_rate(lr)),
        rtol=1e-6,
        why="its decay is a float32 number",
    )


def capped(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
    count = memory["t"] = memory.get("t", 0) + 1
    return w - min(lr, count**-0.5) * g


def polar(x: Tensor, steps: int = 5) -> Tensor:
    """Jordan et al., 2024: Newton–Schulz of each matrix of a stack, in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    y = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        square = y.mT @ y
        y = a * y + y @ (b * square + c * square @ square)
    return y


def momentum_of(g: Tensor, memory: dict[str, Any], momentum: float, nesterov: bool) -> Tensor:
    m = memory["m"] = momentum * memory.get("m", torch.zeros_like(g)) + (1 - momentum) * g
    return momentum * m + (1 - momentum) * g if nesterov else m


def muon(momentum: float = 0.95, nesterov: bool = True, decay: float = 0.0, factor: Any = None, steps: int = 5) -> Rule:
    """Jordan et al., 2024, with the factor of r rows and c columns; vectors go by."""

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        if g.ndim < 2:
            return w - lr * g
        r, c = g.shape[-2:]
        size = max(1, r / c) ** 0.5 if factor is None else factor(r, c)
        return w - lr * (size * polar(momentum_of(g, memory, momentum, nesterov), steps) + decay * w)

    return rule


def furthest(norm: str, g: Tensor) -> Tensor:
    """Pethick et al., 2025: where a ball of radius 1 goes furthest along g."""
    if g.ndim < 2:
        return g / (g.square().mean().sqrt() + 1e-8) if g.numel() else g
    r, c = g.shape[-2:]
    if norm == "spectral":
        return (r / c) ** 0.5 * polar(g) if g.numel() else g
    return g.sign() / max(c, 1) if norm == "sign" else g / (g.norm(dim=-1, keepdim=True) * c**0.5 + 1e-8)


def lmo(norm: str, radius: float = 1.0) -> Rule:
    return lambda w, g, memory, lr, t: w - lr * radius * furthest(norm, g)


def scion(momentum: float, radius: float, head_radius: float, constrained: bool) -> Any:
    """Pethick et al., 2025, Algorithms 1 and 2, with alpha = 1 - momentum."""

    def step(problem: Problem, t: int, weights: dict[str, Tensor], memory: dict[str, Any]) -> dict[str, Tensor]:
        out, rate = {}, problem.rate(t)
        for n, g in problem.gradient(t, weights).items():
            d = memory[n] = momentum * memory.get(n, torch.zeros_like(g)) + (1 - momentum) * g
            end = n.startswith("head.") and g.ndim > 1
            step = (head_radius if end else radius) * furthest("sign" if end else "spectral", d)
            out[n] = (1 - rate if constrained else 1) * weights[n] - rate * step
        return out

    return step


def adaptive_muon(rows: bool) -> Rule:
    """Li et al., 2025, with the norm kept, and Si et al., 2025, Algorithm 1."""

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        if g.ndim < 2:
            return w - lr * g
        r, c = g.shape[-2:]
        ahead = momentum_of(g, memory, 0.95, True)
        o = polar(ahead if rows else ahead.sign())
        if rows:
            o = o * max(1, r / c) ** 0.5
        square = o.square().mean(-1, keepdim=True) if rows else o.square()
        v = memory["v"] = 0.95 * memory.get("v", torch.zeros_like(square)) + 0.05 * square
        p = o / (v.sqrt() + (1e-10 if rows else 1e-8))
        norm = torch.linalg.matrix_norm(p, keepdim=True) + (1e-10 if rows else 1e-8)
        size = torch.linalg.matrix_norm(o, keepdim=True) if rows else 0.2 * (r * c) ** 0.5
        return w - lr * p * size / norm

    return rule


def came(decay: float = 0.0) -> Rule:
    """Luo et al., 2023, Algorithm 2, as the authors' code has it."""

    def over_root(x: Tensor, memory: dict[str, Any], key: str, b: float) -> Tensor:
        r = memory[f"r{key}"] = b * memory.get(f"r{key}", 0.0) + (1 - b) * x.mean(-1, keepdim=True)
        c = memory[f"c{key}"] = b * memory.get(f"c{key}", 0.0) + (1 - b) * x.mean(-2, keepdim=True)
        return (r @ c / r.mean(-2, keepdim=True)).rsqrt()

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        if not g.numel():
            return w
        square = g * g + 1e-30
        if g.ndim < 2:
            v = memory["v"] = 0.999 * memory.get("v", 0.0) + 0.001 * square
            h = g / v.sqrt()
        else:
            h = g * over_root(square, memory, "g", 0.999)
        h = h / max(1.0, float(h.square().mean().sqrt()))
        m = memory["m"] = 0.9 * memory.get("m", 0.0) + 0.1 * h
        u = m if g.ndim < 2 else m * over_root((h - m).square() + 1e-16, memory, "h", 0.9999)
        return w - lr * (u + decay * w)

    return rule


def soap(every: int, b1: float = 0.95, b2: float = 0.95, decay: float = 0.0) -> Rule:
    """Vyas et al., 2024, as the authors' code has it; the first gradient is only looked at."""

    def turned(x: Tensor, bases: list[Tensor], back: bool) -> Tensor:
        for q in bases:
            x = torch.tensordot(x, q, ([0], [int(back)]))  # the next dimension comes first
        return x

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        s = memory["s"] = memory.get("s", -1) + 1
        dims = range(g.ndim) if g.ndim > 1 and g.numel() else ()
        squares = [(x := g.movedim(d, 0).flatten(1)) @ x.T for d in dims]
        grams = memory.get("grams", [torch.zeros_like(x) for x in squares])
        memory["grams"] = [0.95 * old + 0.05 * new for old, new in zip(grams, squares, strict=True)]
        if s == 0:
            memory.update(m=torch.zeros_like(g), v=torch.zeros_like(g))
            memory["bases"] = [torch.linalg.eigh(x)[1].flip(1) for x in memory["grams"]]
            return w
        bases = memory["bases"]
        m = memory["m"] = b1 * memory["m"] + (1 - b1) * g
        v = memory["v"] = b2 * memory["v"] + (1 - b2) * turned(g, bases, False).square()
        u = turned(turned(m, bases, False) / (v.sqrt() + 1e-8), bases, True)
        if s % every == 0:
            for d, q in enumerate(bases):
                product = memory["grams"][d] @ q
                order = (q * product).sum(0).argsort(descending=True)
                memory["v"] = memory["v"].index_select(d, order)
                bases[d] = torch.linalg.qr(product[:, order])[0]
        return w - lr * (u * (1 - b2**s) ** 0.5 / (1 - b1**s) + decay * w)

    return rule


def by_ndim(matrices: Rule, others: Rule) -> Rule:
    return lambda w, g, memory, lr, t: (matrices if g.ndim > 1 else others)(w, g, memory, lr, t)


def adamw(b2: float = 0.999, decay: float = 0.1) -> Rule:
    inner = rules.adam(b2=b2)
    return lambda w, g, memory, lr, t: inner(w, g, memory, lr, t) - lr * decay * w


def _adafactor(**given: Any) -> Any:
    """torch divides by the number of elements, of which an empty weight has none."""
    return lambda w, lr: torch.optim.Adafactor([p for p in w.values() if p.numel()], lr=lr, **given)


FLOOR = "its least root is the epsilon of the dtype"

ROWS: tuple[Case, ...] = (
    Case(
        "scale_by_factored_rms",
        gch.rules.scale_by_factored_rms(min_dim_size_to_factor=3),
        (twin(factored(least=3)), _optax_factored(min_dim_size_to_factor=3)),
        scope="tensor",
        lr=falling,
        low="the square of bfloat16's smallest number is nothing beside epsilon",
    ),
    Case(
        "scale_by_factored_rms-small",
        gch.rules.scale_by_factored_rms(decay_rate=0.6, epsilon=0.1, min_dim_size_to_factor=0),
        (
            twin(factored(0.6, eps=0.1)),
            _optax_factored(decay_rate=0.6, epsilon=0.1, min_dim_size_to_factor=0),
        ),
        scope="tensor",
    ),
    Case(
        "scale_by_factored_rms-whole",
        gch.rules.scale_by_factored_rms(factored=False, step_offset=2, floor=0.5),
        (twin(factored(least=99, offset=2, floor=0.5)),),
    ),
    Case(
        "scale_by_factored_rms-last",
        gch.rules.scale_by_factored_rms(dims="last", min_dim_size_to_factor=0, epsilon=0, floor=0.7),
        (twin(factored(last=True, eps=0.0, floor=0.7)),),
        scope="tensor",
    ),
    Case(
        "cap_learning_rate",
        gch.rules.cap_learning_rate(0.7),
        (twin(capped),),
        degree=1,
    ),
    Case(
        "adafactor",
        gch.adafactor(0.5),
        (of_torch("torch.optim.Adafactor", _adafactor(), complex=False),),
        covers="adafactor",
        lr=None,
        scope="tensor",
        uses_params=True,
        low=FLOOR,
    ),
    Case(
        "adafactor-given",
        gch.adafactor(0.5, -0.6, (0.3, 0.01), 1.5, 0.1),
        (
            of_torch(
                "torch.optim.Adafactor",
                _adafactor(beta2_decay=-0.6, eps=(0.3, 0.01), d=1.5, weight_decay=0.1),
                complex=False,
            ),
        ),
        covers="adafactor",
        lr=None,
        scope="tensor",
        uses_params=True,
    ),
    Case("scale_by_muon", gch.rules.scale_by_muon(dtype=None), (twin(muon()),), scope="tensor"),
    Case(
        "scale_by_muon-given",
        gch.rules.scale_by_muon(
            0.8, False, (3.4445, -4.7750, 2.0315), 3, dtype=None, shape_factor="match_rms_adamw", conv="batch"
        ),
        (twin(muon(0.8, False, factor=lambda r, c: 0.2 * max(r, c) ** 0.5, steps=3)),),
        lr=falling,
        scope="tensor",
        low="products in float32, of signs alone, are a few units in the last place off",
    ),
    Case(
        "muon",
        gch.rules.muon(0.5, dtype=None, matrices=gch.min_ndim(2)),
        (twin(by_ndim(muon(decay=0.1), adamw())),),
        covers="muon",
        lr=None,
        scope="tensor",
        uses_params=True,
        alone=False,
    ),
    Case("scale_by_normuon", gch.rules.scale_by_normuon(dtype=None), (twin(adaptive_muon(rows=True)),), scope="tensor"),
    Case(
        "scale_by_adamuon",
        gch.rules.scale_by_adamuon(dtype=None, shape_factor="match_rms_adamw"),
        (twin(adaptive_muon(rows=False)),),
        scope="tensor",
    ),
    Case(
        "normuon",
        gch.rules.normuon(0.5, dtype=None, matrices=gch.min_ndim(2), aux=gch.sgd(0.5)),
        (twin(adaptive_muon(rows=True)),),
        covers="normuon",
        lr=None,
        scope="tensor",
        uses_params=True,
        alone=False,
    ),
    Case(
        "adamuon",
        gch.rules.adamuon(0.5, dtype=None, weight_decay=0.0, matrices=gch.min_ndim(2), aux=gch.sgd(0.5)),
        (twin(adaptive_muon(rows=False)),),
        covers="adamuon",
        lr=None,
        scope="tensor",
        uses_params=True,
        alone=False,
    ),
    Case("scale_by_lmo", gch.rules.scale_by_lmo(radius=2.0, dtype=None), (twin(lmo("spectral", 2.0)),), scope="tensor"),
    Case(
        "scion",
        gch.rules.scion(0.5, 0.8, 2.0, 3.0, constrained=True, dtype=None, ends=gch.named("head.*", missing_ok=True)),
        (joint_twin(scion(0.8, 2.0, 3.0, True)),),
        covers="scion",
        lr=None,
        scope="tensor",
        uses_params=True,
        counted=False,
        alone=False,
    ),
    Case("scale_by_came", gch.rules.scale_by_came(), (twin(came()),), scope="tensor"),
    Case(
        "came",
        gch.rules.came(0.5, weight_decay=0.1),
        (twin(came(decay=0.1)),),
        covers="came",
        lr=None,
        scope="tensor",
        uses_params=True,
    ),
    Case("scale_by_soap", gch.rules.scale_by_soap(every=3), (twin(soap(3)),), scope="tensor"),
    Case(
        "soap",
        gch.rules.soap(0.5, weight_decay=0.1, every=4, b1=0.9, b2=0.99),
        (twin(soap(4, 0.9, 0.99, 0.1)),),
        covers="soap",
        lr=None,
        scope="tensor",
        uses_params=True,
    ),
)
