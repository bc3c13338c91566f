"""Functions of whole tensors between kernels: who runs what, in how many stacks, and that a step run again is the same.

What a map gives in memory is in tests/core/test_maps.py. The links are what a user might write: Muon's direction, and
a rule whose basis is computed every few updates.
"""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from pairs import Pair
from torch import nn
from twins import EXECUTORS, Shapes, Twins

import gradchain as gch
from gradchain.engine import replay

A, B, C = 3.4445, -4.775, 2.0315


def newton_schulz(g, dtype=torch.bfloat16, steps=5):
    """Of a stack of matrices: towards the nearest orthogonal ones, by products in `dtype`."""
    tall = g.shape[-2] > g.shape[-1]
    x = (g.mT if tall else g).to(dtype)
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return (x.mT if tall else x) * max(1.0, g.shape[-2] / g.shape[-1]) ** 0.5


class MomentumState(gch.State):
    mu: gch.Tensors


class muon_direction(gch.Transform):
    """Nesterov's momentum of matrices, made orthogonal."""

    b: gch.Hyper = gch.Hyper(0.95, "[0, 1)")
    dtype: torch.dtype = torch.bfloat16

    def init(self, params):
        return MomentumState(params.slot())

    def update(self, g, state, ctx):
        mu = state.mu.lerp(g, 1 - self.b)
        return g.lerp(mu, self.b).map(partial(newton_schulz, dtype=self.dtype), batched=True), MomentumState(mu)


def muon(lr, decay=0.1, dtype=torch.bfloat16):
    return gch.chain(muon_direction(dtype=dtype), gch.add_decayed_weights(decay), gch.scale_by_learning_rate(lr))


class Matrices(nn.Module):
    def __init__(self, *shapes, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        for i, shape in enumerate(shapes):
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            self.register_parameter(f"w{i}", nn.Parameter(drawn))

    def give(self, t, absent=()):
        """Gradients of step t."""
        generator = torch.Generator().manual_seed(100 + t)
        for name, p in self.named_parameters():
            drawn = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
            p.grad = None if name in absent else drawn


def ran(updater):
    """Executor and kind of each kernel of the last step."""
    assert updater._bound.engine.reason == "", updater._bound.engine.reason
    return [(part.executor, part.program.reduce and part.program.reduce[0]) for part in updater._bound.engine.ran]


# kernels in front of it and behind it


def test_in_front_of_a_map_and_behind_it_kernels_are_native():
    """Clip, momentum, map, decay, rate: the clip's sum, a program in front, one behind, and a call for each stack."""
    model = Matrices(*[(256, 256)] * 10, (64, 64), (64, 64), (512, 520))
    updater = gch.chain(gch.clip_by_norm(1.0), muon(0.02)).bind(model)
    for t in range(3):
        model.give(t)
        updater.step()
        assert ran(updater) == [("native", "sum2"), ("native", None), ("native", None)]
    assert (
        "  map newton_schulz: 13 entries in 4 calls: 1 of 8 × (256×256), 1 of 2 × (256×256), 1 of 2 × (64×64), "
        "1 of 1 × (512×520)" in updater.explain().splitlines()
    )


def test_each_map_is_told():
    class twice(gch.Transform):
        def update(self, g, state, ctx):
            return g.map(torch.tanh).map(partial(torch.mul, other=2.0), batched=True), state

    model = Matrices((3, 3), (3, 3), (), dtype=torch.float64)
    updater = gch.chain(twice(), gch.sgd(0.1)).bind(model)
    assert "map" not in updater.explain()
    model.give(0)
    updater.step()
    lines = updater.explain().splitlines()
    assert "  map tanh: 3 entries one by one" in lines
    assert "  map mul: 3 entries in 2 calls: 1 of 2 × (3×3), 1 of 1 × (one element)" in lines


# equal to the reference


class mixed(gch.Transform):
    """Several results, numbers per parameter, a mask, and a map of what a map gave."""

    def update(self, u, state, ctx):
        rates = u.norms() / gch.maximum(u.numels(), 1)
        a, b, above = u.map(
            lambda t, w, r: (t * torch.tanh(w) - r, torch.cos(t), t > w), ctx.params, rates, batched=True
        )
        c = (a * b).map(lambda t, o: t + o.square(), b, batched=True)
        return 0.5 * u + c * a.where(b > 0.5, b) + 0.1 * u.where(gch.where(above, u, b) > 0, 1.0), state


@pytest.mark.parametrize("dtypes", [(torch.float64,), (torch.float32,), (torch.float64, torch.float32)], ids=str)
@pytest.mark.parametrize("kind", EXECUTORS)
def test_maps_between_kernels_are_those_of_the_reference(kind, dtypes):
    tx = gch.chain(gch.clip_by_norm(1.0), gch.trace(0.9), mixed(), gch.sgd(0.05))
    twins = Twins(tx, Shapes(dtypes, long=300), EXECUTORS[kind])
    for t in range(6):
        twins.gradients(t, absent=("head.cube", "body.scale") if t in (2, 3) else (), turned=t == 4)
        twins.compare()


# run again from its numbers


@pytest.fixture
def of_ours(monkeypatch):
    """Links of this file are run again as gradchain's own are."""
    monkeypatch.setattr(replay, "users_code", lambda tx: "")


CHAINS = {
    "several": lambda: gch.chain(gch.clip_by_norm(1.0), mixed(), gch.sgd(gch.linear(0.1, 0.01, 9))),
    "by turns": lambda: gch.chain(by_turns(3), gch.sgd(0.05)),
    "by turns of two links": lambda: gch.chain(by_turns(3), gch.sgd(0.05, momentum=0.9), by_turns(2)),
    "counted": lambda: gch.chain(counted(), gch.sgd(0.05)),
}


class counted(gch.Transform):
    """A Count among what a function is given."""

    def init(self, params):
        return CountState(gch.Count(params.index))

    def update(self, u, state, ctx):
        count = state.count.tick(u)
        return u.map(lambda t, c: t / c, count, batched=True) + u.map(lambda t, c: t / (1 + c), count), CountState(
            count
        )


class CountState(gch.State):
    count: gch.Count


class TurnsState(gch.State):
    count: gch.Count
    kept: gch.Tensors
    other: gch.Tensors


class by_turns(gch.Transform):
    """Two tensors of each entry's shape, computed anew every `every`-th update of that parameter."""

    every: int

    def init(self, params):
        return TurnsState(gch.Count(params.index), params.slot(), params.slot())

    def update(self, u, state, ctx):
        count = state.count.tick(u)
        old = (state.kept, state.other)
        kept, other = u.map_where(count.due(self.every), two, old, state.kept, batched=True)
        return u + 0.1 * kept - 0.1 * other, TurnsState(count, kept, other)


def two(t, old):
    return torch.tanh(t) + 0.5 * old, torch.sin(t)


@pytest.mark.parametrize("name", CHAINS)
def test_a_step_run_again_is_the_step_recorded(name, of_ours):
    """Also where parameters sat out, so that their counts differ from then on."""
    pair = Pair(CHAINS[name](), Shapes(long=50), ("native",))
    for t in range(36):
        pair.step(t, size=1.0 + t % 3, absent=("head.weight", "body.scale") if t in (7, 8, 15) else ())
    assert pair.replayed >= 8, pair.again.explain()
    for updater in (pair.again, pair.recorded):
        assert {executor for executor, _ in ran(updater)} == {"native"}
    assert [str(c) for c in pair.again._bound.engine.ran_maps] == [str(c) for c in pair.recorded._bound.engine.ran_maps]


def test_work_by_turns_is_done_when_it_is_due_and_only_then(of_ours, monkeypatch):
    """With the very calls counted, in steps that are recorded and in those that run again."""
    seen: list[tuple[int, ...]] = []

    def fn(t, old):
        seen.append(tuple(t.shape))
        return two_unspied(t, old)

    two_unspied = two
    monkeypatch.setitem(by_turns.update.__wrapped__.__globals__, "two", fn)
    model = Matrices((2, 3), (2, 3), (4,), dtype=torch.float64)
    updater = gch.chain(by_turns(3), gch.sgd(0.1)).bind(model)
    told = []
    for t in range(12):
        model.give(t)
        updater.step()
        told.append(list(seen))
        seen.clear()
    assert told == [[(2, 2, 3), (1, 4)] if t % 3 == 0 else [] for t in range(12)]
    assert updater._bound.engine.num_replayed >= 6
    for t in range(12, 24):  # w0 misses its turn, and has it at its next update
        model.give(t, absent=("w0",) if t == 12 else ())
        updater.step()
        told.append(list(seen))
        seen.clear()
    assert told[12:16] == [[(1, 2, 3), (1, 4)], [(1, 2, 3)], [], [(1, 2, 3), (1, 4)]]


def turns_by_hand(weights, grads_of, every, steps, absent):
    """The same rule in plain torch."""
    weights = {n: w.detach().clone() for n, w in weights.items()}
    kept, other = ({n: torch.zeros_like(w) for n, w in weights.items()} for _ in range(2))
    counts = dict.fromkeys(weights, 0)
    for t in range(steps):
        for n, g in grads_of(t).items():
            if n in absent(t):
                continue
            counts[n] += 1
            if (counts[n] - 1) % every == 0:
                kept[n], other[n] = two(g, kept[n])
            weights[n] -= 0.1 * (g + 0.1 * kept[n] - 0.1 * other[n])
    return weights


@pytest.mark.parametrize("kind", EXECUTORS)
@pytest.mark.parametrize("resumed", [None, 4, 5, 6])
def test_by_turns_equals_the_rule_by_hand_and_after_a_load(kind, resumed, tmp_path):
    """Each parameter on its own count, which is in the file as what was computed is."""

    def absent(t):
        return {"w0"} if t in (1, 6) else {"w2"} if t == 3 else set()

    model = Matrices((2, 3), (2, 3), (4,), (), dtype=torch.float64)
    start = dict(model.named_parameters())
    by_hand = copy.deepcopy(model)

    def grads_of(t):
        by_hand.give(t)
        return {n: p.grad for n, p in by_hand.named_parameters()}

    want = turns_by_hand(start, grads_of, 3, 10, absent)
    updater = gch.chain(by_turns(3), gch.sgd(0.1)).bind(model)
    for t in range(10):
        if t == resumed:
            updater.save(tmp_path / "run.pt")
            model = Matrices((2, 3), (2, 3), (4,), (), dtype=torch.float64)
            updater = gch.chain(by_turns(3), gch.sgd(0.1)).bind(model)
            updater.load(tmp_path / "run.pt")
        engine = updater._bound.engine
        engine.executors = tuple(e for e in engine.executors if e.name in EXECUTORS[kind])
        model.give(t, absent(t))
        updater.step()
        assert {executor for executor, _ in ran(updater)} <= set(EXECUTORS[kind])
    for n, p in model.named_parameters():
        assert (p.detach() - want[n]).abs().max() <= 1e-14, n


# Muon


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has none")
@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16), (512, 520)], ids=str)
def test_muon_is_that_of_torch(shape):
    """Products in bfloat16: 5e-2 of what was moved."""
    ours, theirs = Matrices(shape, shape), Matrices(shape, shape)
    start = {n: p.detach().clone() for n, p in ours.named_parameters()}
    updater = muon(0.02).bind(ours)
    optimizer = torch.optim.Muon(theirs.parameters(), lr=0.02, weight_decay=0.1, momentum=0.95)
    for t in range(4):
        ours.give(t)
        theirs.give(t)
        updater.step()
        optimizer.step()
        assert ran(updater) == [("native", None), ("native", None)]
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        moved = (q - start[name]).norm()
        assert (p - q).norm() <= 5e-2 * moved, name
        assert p.dtype is torch.float32


@pytest.mark.parametrize("kind", EXECUTORS)
def test_muon_in_float64_is_the_rule_by_hand(kind):
    """From the paper, matrix by matrix: 1e-12."""
    shapes = [(24, 24), (24, 24), (16, 40), (40, 16), (1, 7)]
    model = Matrices(*shapes, dtype=torch.float64)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    moments = {n: torch.zeros_like(w) for n, w in weights.items()}
    updater = muon(0.02, dtype=torch.float64).bind(model)
    engine = updater._bound.engine
    engine.executors = tuple(e for e in engine.executors if e.name in EXECUTORS[kind])
    for t in range(5):
        model.give(t)
        for n, p in model.named_parameters():
            g, m, w = p.grad, moments[n], weights[n]
            m.mul_(0.95).add_(g, alpha=0.05)
            x = 0.05 * g + 0.95 * m
            rows, columns = x.shape
            x = (x.T if rows > columns else x) / x.norm()
            for _ in range(5):
                s = x @ x.T
                x = A * x + B * (s @ x) + C * (s @ (s @ x))
            x = x.T if rows > columns else x
            w.mul_(1 - 0.02 * 0.1).sub_(x, alpha=0.02 * max(1, rows / columns) ** 0.5)
        updater.step()
        assert {executor for executor, _ in ran(updater)} <= set(EXECUTORS[kind])
    for n, p in model.named_parameters():
        assert (p.detach() - weights[n]).abs().max() <= 1e-12, n
