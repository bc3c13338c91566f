"""Rules that are not elementwise beside their peers: `python -m benchmarks.rules`.

Adafactor's state is of rows and columns, LAMB has one number per tensor, Muon's products are functions of whole
matrices. Each is measured twice: as a link of this file's own, as a user would write it, whose steps are recorded each
time; and as gradchain has it, whose steps run again from their numbers, tensor by tensor. All sides have
weights of their own, get the same gradients, and have turns in one process, on one thread and one core; time is the
processor's, and the ratio is taken within a round, over the fastest peer. Freed memory stays with the process, for all.
`tests/benchmarks/test_rules_beside_peers.py` holds the links to what peers compute.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

import gradchain as gch
from benchmarks.pinning import keep_memory, pin
from benchmarks.quarters import quarters

MATRICES = [(512, 664)] * 100  # 34 M elements
SMALL = [(64, 64)] * 48
MIDDLE = [(256, 256)] * 48
HIDDEN = [(1536, 512), (512, 512), (2048, 512), (512, 2048)] * 8  # those of workload (a)
NEWTON = (3.4445, -4.7750, 2.0315)


class FactoredState(gch.State):
    count: gch.Count
    rows: gch.Tensors
    columns: gch.Tensors


class scale_by_adafactor(gch.Transform):  # noqa: N801  # a link
    """torch.optim.Adafactor's step but its learning rate, of matrices.

    R ← β R + (1 - β) mean of g² over rows, C likewise over columns, β = 1 - t^-0.8
    u = g / √max(R C / mean R, ε²); u / max(1, rms(u)) · max(0.001, rms(w))
    """

    descends = False
    applies = gch.min_ndim(2)

    def init(self, params: gch.Tensors) -> FactoredState:
        rows, columns = params.mean(-1).zeros_like(), params.mean(-2).zeros_like()
        return FactoredState(gch.Count(params.index), rows, columns)

    def update(self, g: gch.Tensors, state: FactoredState, ctx: gch.Context) -> tuple[gch.Tensors, FactoredState]:
        count = state.count.tick(g)
        square, weight = g * g, count**-0.8
        rows = state.rows.lerp(square.mean(-1), weight)
        columns = state.columns.lerp(square.mean(-2), weight)
        u = g * ((rows / rows.mean(-2).maximum(1e-30)).rsqrt() * 1.0) * columns.maximum(1e-30).rsqrt()
        root = u.numels() ** 0.5
        size = gch.maximum(1e-3, ctx.params.norms() / root)
        return u * (size / gch.maximum(1.0, u.norms() / root)), FactoredState(count, rows, columns)


class scale_by_ratio(gch.Transform):  # noqa: N801  # a link
    """LAMB's trust ratio: u ‖w‖ / ‖u‖, u itself where either is zero."""

    descends = False

    def update(self, u: gch.Tensors, state: gch.State, ctx: gch.Context) -> tuple[gch.Tensors, gch.State]:
        weights, norms = ctx.params.norms(), u.norms()
        both = (weights > 0) * (norms > 0)
        return u * gch.where(both, weights / gch.maximum(norms, 1e-38), 1.0), state


def newton_schulz(g: torch.Tensor) -> torch.Tensor:
    """torch.optim.Muon's five products, in bfloat16, of a stack of matrices."""
    a, b, c = NEWTON
    x = g.bfloat16()
    x = x.mT if g.shape[-2] > g.shape[-1] else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if g.shape[-2] > g.shape[-1] else x) * max(1.0, g.shape[-2] / g.shape[-1]) ** 0.5


class MomentumState(gch.State):
    mu: gch.Tensors


class scale_by_muon(gch.Transform):  # noqa: N801  # a link
    """torch.optim.Muon's step but its learning rate: b ← μ b + (1 - μ) g; NS((1 - μ) g + μ b) · √max(1, r / c)."""

    descends = False
    applies = gch.min_ndim(2)

    def init(self, params: gch.Tensors) -> MomentumState:
        return MomentumState(params.slot())

    def update(self, g: gch.Tensors, state: MomentumState, ctx: gch.Context) -> tuple[gch.Tensors, MomentumState]:
        mu = state.mu.lerp(g, 0.05)
        return g.lerp(mu, 0.95).map(newton_schulz, batched=True), MomentumState(mu)


@dataclass(frozen=True)
class Case:
    """A rule over some matrices, what it is measured against, and the most of the fastest peer's time it may take."""

    shapes: list[tuple[int, int]]
    ours: Callable[[], gch.chain]
    peers: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]]
    bound: float


def _adafactor_of_transformers(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    made: torch.optim.Optimizer = Adafactor(params, lr=0.01, relative_step=False, scale_parameter=True)
    return made


def _of_pytorch_optimizer(name: str, **given: Any) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    def made(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        import pytorch_optimizer

        optimizer: torch.optim.Optimizer = getattr(pytorch_optimizer, name)(params, **given)
        return optimizer

    return made


def _muon(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Muon(params, lr=0.01, weight_decay=0.0)


def _muon_of_pytorch_optimizer(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    import pytorch_optimizer

    groups = [{"params": params, "use_muon": True}]
    made: torch.optim.Optimizer = pytorch_optimizer.Muon(groups, lr=0.01, weight_decay=0.0)
    return made


_ADAFACTORS = {
    "torch": lambda params: torch.optim.Adafactor(params, lr=0.01),
    "transformers": _adafactor_of_transformers,
    "pytorch_optimizer": _of_pytorch_optimizer("AdaFactor", lr=0.01),
}
_LAMBS = {"pytorch_optimizer": _of_pytorch_optimizer("Lamb", lr=0.01, weight_decay=0.01)}


def _cases() -> dict[str, Case]:
    def muon() -> gch.chain:
        return gch.chain(scale_by_muon(), gch.scale_by_learning_rate(0.01))

    def lamb() -> gch.chain:
        adam = gch.scale_by_adam(eps=1e-6)
        return gch.chain(adam, gch.add_decayed_weights(0.01), scale_by_ratio(), gch.scale_by_learning_rate(0.01))

    return {
        "Adafactor, 34 M in 100 tensors": Case(
            MATRICES,
            lambda: gch.chain(scale_by_adafactor(), gch.scale_by_learning_rate(0.01)),
            _ADAFACTORS,
            0.25,
        ),
        "Adafactor of gradchain, 34 M in 100 tensors": Case(MATRICES, lambda: gch.adafactor(0.01), _ADAFACTORS, 0.25),
        "LAMB, 34 M in 100 tensors": Case(MATRICES, lamb, _LAMBS, 0.25),
        "LAMB of gradchain, 34 M in 100 tensors": Case(
            MATRICES, lambda: gch.rules.lamb(0.01, eps=1e-6, weight_decay=0.01), _LAMBS, 0.25
        ),
        "Muon, 48 of 256²": Case(MIDDLE, muon, {"torch": _muon}, 0.95),
        "Muon, 48 of 64², over pytorch_optimizer": Case(
            SMALL, muon, {"pytorch_optimizer": _muon_of_pytorch_optimizer}, 1.0
        ),
        "Muon, 48 of 64², over torch": Case(SMALL, muon, {"torch": _muon}, 0.25),
        "Muon of gradchain, 48 of 256²": Case(
            MIDDLE,
            lambda: gch.chain(gch.rules.scale_by_muon(), gch.scale_by_learning_rate(0.01)),
            {"torch": _muon},
            0.95,
        ),
        "Muon of gradchain, hidden matrices of (a)": Case(
            HIDDEN,
            lambda: gch.chain(gch.rules.scale_by_muon(), gch.scale_by_learning_rate(0.01)),
            {"torch": _muon},
            0.85,
        ),
    }


CASES = _cases()


def weights(shapes: list[tuple[int, int]]) -> nn.ParameterList:
    """Weights of these shapes, the same whenever they are made."""
    torch.manual_seed(0)
    return nn.ParameterList([nn.Parameter(torch.randn(shape) / shape[-1] ** 0.5) for shape in shapes])


def sides(case: Case) -> dict[str, tuple[nn.ParameterList, Callable[[], object]]]:
    """By name: weights, and what takes one step of them."""
    made: dict[str, tuple[nn.ParameterList, Callable[[], object]]] = {}
    for name, peer in case.peers.items():
        model = weights(case.shapes)
        made[name] = (model, peer(list(model)).step)
    model = weights(case.shapes)
    return {**made, "gradchain": (model, case.ours().bind(model).step)}


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Quartiles of each side's time in milliseconds, and of ours over the fastest peer's in the same round."""
    made = sides(case)
    grads = [torch.randn(shape) for shape in case.shapes]
    took: dict[str, list[float]] = {name: [] for name in made}
    for number in range(-2, rounds):  # the first two are not told
        for name in list(made)[:: 1 if number % 2 else -1]:
            model, step = made[name]
            for parameter, grad in zip(model, grads, strict=True):
                parameter.grad = grad.clone()
            start = time.process_time()
            step()
            took[name] += [(time.process_time() - start) * 1e3] if number >= 0 else []
    best = min(case.peers, key=lambda name: median(took[name]))
    over = [ours / theirs for ours, theirs in zip(took["gradchain"], took[best], strict=True)]
    ms = {name: quarters(found) for name, found in took.items()}
    return {"ms": ms, "against": best, "over": quarters(over), "bound": case.bound}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rules", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of all sides")
    parser.add_argument("--rule", action="append", help="the beginning of a row's name; more than one may be given")
    parser.add_argument("--output", type=Path, help="where the JSON goes; default: benchmarks/results/<date>.json")
    given = parser.parse_args()
    pin(1, None)
    torch.set_num_threads(1)
    keep_memory()
    from benchmarks import report

    found = {}
    for name, case in CASES.items():
        if given.rule and not name.startswith(tuple(given.rule)):
            continue
        row = found[name] = measure(case, given.rounds)
        low, middle, high = row["over"]
        times = ", ".join(f"{side} {ms[1]:.1f}" for side, ms in row["ms"].items())
        met = "met" if high <= case.bound else "NOT met"
        print(f"{name}: {times} ms; {low:.2f} {middle:.2f} {high:.2f} of {row['against']}, bound {case.bound}: {met}")
    result = {**report.circumstances(given.rounds), "cells": [], "failed": [], "rules": found}
    print(f"written to {report.write(result, given.output)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
