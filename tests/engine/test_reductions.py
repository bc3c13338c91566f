"""Norms, sums and finite checks of every executor against exact sums, on numbers chosen to be hard."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from twins import EXECUTORS, by_executors

import gradchain as gch
from gradchain.engine.operations import REDUCTIONS

INF, NAN = float("inf"), float("nan")


@pytest.fixture(params=list(EXECUTORS))
def executors(request) -> tuple[str, ...]:
    return EXECUTORS[request.param]


class seen(gch.Transform):
    """Records reductions and changes nothing."""

    p: float = 2.0

    def update(self, u, state, ctx):
        ctx.record("norm", u.norm(self.p))
        ctx.record("sum", u.sum())
        ctx.record("finite", float(u.all_finite()))
        for name, value in u.norms(p=self.p).items():
            ctx.record(f"norm of {name}", value)
        for name, value in u.sums().items():
            ctx.record(f"sum of {name}", value)
        return u, state


def reduced(executors, p=2.0, scale=1.0, **grads) -> gch.UpdateInfo:
    """What the link above records of these gradients, behind a scale that folds into the reduction."""
    weights = {n: torch.zeros_like(g).requires_grad_(True) for n, g in grads.items()}
    updater = by_executors(gch.chain(gch.scale(scale), seen(p), gch.sgd(0.0)).bind(weights), *executors)
    info = updater.step(grads)
    assert updater._bound.engine.reason == ""
    assert {part.executor for part in updater._bound.engine.last} <= set(executors)
    return info


def exact(values: list[float], p: float) -> float:
    magnitudes = [abs(v) for v in values]
    if p == INF:
        return max(magnitudes, default=0.0)
    largest = max(magnitudes, default=0.0) or 1.0
    return largest * math.fsum((v / largest) ** p for v in magnitudes) ** (1 / p)


def drawn(seed: int, *shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


HARD = {
    "far apart": torch.tensor([1e20, -1e-20, 1e-38, 3.0, -1e20] * 41, dtype=torch.float32),
    "squares overflow": torch.full((1000,), 3e38),
    "squares underflow": torch.full((1000,), 1e-40),
    "fp16 near its largest": torch.full((513,), 65504.0, dtype=torch.float16),
    "fp16 near its least": torch.full((513,), 6e-8, dtype=torch.float16),
    "bf16": drawn(1, 5000, dtype=torch.bfloat16),
    "long": drawn(2, 300_001) + 1.0,
    "long, one large": torch.cat([torch.full((200_000,), 1e-4), torch.tensor([1e4])]),
    "cancelling": torch.cat([torch.full((70_000,), 0.1), torch.full((70_000,), -0.1), torch.tensor([1e-9])]),
    "float64": drawn(3, 70_001, dtype=torch.float64),
    "one": torch.tensor([-7.0]),
    "0-d": torch.tensor(-7.0),
}


@pytest.mark.parametrize("p", [1.0, 2.0, INF, 3.0])
@pytest.mark.parametrize("name", list(HARD))
def test_norms_and_sums_against_exact_sums(name, p, executors):
    if name == "squares overflow" and p == 3.0:
        pytest.skip("the cube of the largest float32 is no float64 of any use: torch's general norm is inf here")
    grad, other = HARD[name], torch.tensor([2.5, -1.5], dtype=HARD[name].dtype)
    info = reduced(executors, p, grad=grad, other=other)
    mine, small = grad.double().flatten().tolist(), other.double().tolist()
    assert info["norm of grad"] == pytest.approx(exact(mine, p), rel=1e-12)
    assert info["norm of other"] == pytest.approx(exact(small, p), rel=1e-12)
    assert info["seen.norm"] == pytest.approx(exact(mine + small, p), rel=1e-12)
    # a sum of n terms in float64 is off by at most about sqrt(n) of its own ulps of the sum of magnitudes
    room = 1e-13 * math.fsum(map(abs, mine))
    assert abs(info["sum of grad"] - math.fsum(mine)) <= room
    assert abs(info["seen.sum"] - math.fsum(mine + small)) <= room + 1e-12
    assert info["finite"] == 1.0


@pytest.mark.parametrize("bad", [INF, -INF, NAN])
@pytest.mark.parametrize("p", [1.0, 2.0, INF, 3.0])
@pytest.mark.parametrize("at", [0, 17, 70_000])
def test_what_is_not_finite_is_seen_wherever_it_is(bad, p, at, executors):
    grad = drawn(5, 70_001)
    grad[at] = bad
    info = reduced(executors, p, grad=grad, other=torch.ones(3))
    for value in (info["norm of grad"], info["seen.norm"]):
        assert math.isnan(value) if bad != bad else value == INF
    assert info["norm of other"] == pytest.approx(3 ** (1 / p) if p != INF else 1.0)
    assert math.isnan(info["sum of grad"]) if bad != bad else info["sum of grad"] == bad
    assert info["sum of other"] == 3.0
    assert info["finite"] == 0.0


def test_infinities_of_both_signs_sum_to_nan(executors):
    info = reduced(executors, grad=torch.tensor([INF, -INF]), other=torch.tensor([NAN, INF]))
    assert math.isnan(info["sum of grad"])
    assert info["norm of grad"] == INF
    assert math.isnan(info["norm of other"])
    assert math.isnan(reduced(executors, INF, grad=torch.tensor([NAN, INF, 1.0]))["norm of grad"])


def test_finite_numbers_whose_squares_overflow_float64_are_finite(executors):
    info = reduced(executors, grad=torch.full((5,), 1e200, dtype=torch.float64))
    assert info["seen.norm"] == INF  # as torch's
    assert info["finite"] == 1.0


@pytest.mark.parametrize("p", [1.0, 2.0, INF, 3.0])
def test_nothing_to_reduce(p, executors):
    info = reduced(executors, p, empty=torch.zeros(0), none=torch.zeros(2, 0, 3))
    assert info["seen.norm"] == 0.0
    assert info["norm of empty"] == 0.0
    assert info["sum of none"] == 0.0
    assert info["finite"] == 1.0


@pytest.mark.parametrize("p", [1.0, 2.0, INF, 3.0])
def test_a_factor_in_front_changes_the_norm_by_just_that(p, executors):
    grad = drawn(7, 1000)
    alone, scaled = (reduced(executors, p, s, grad=grad) for s in (1.0, -0.37))
    assert scaled["seen.norm"] == pytest.approx(0.37 * alone["seen.norm"], rel=1e-12)
    assert scaled["seen.sum"] == pytest.approx(-0.37 * alone["seen.sum"], rel=1e-12)


def test_a_product_that_overflows_is_not_finite(executors):
    """As by the reference, which looks at the scaled numbers: they are what the next link would get."""
    values = (torch.tensor([1e30, 1.0]), torch.tensor([1e-30, 1.0]))
    for names in (executors, ()):
        weights = {"w": torch.zeros(2, requires_grad=True)}
        chain = gch.chain(gch.scale(1e20), gch.skip_nonfinite(), gch.sgd(1e-20))
        updater = by_executors(chain.bind(weights), *names)
        assert [updater.step({"w": v}).reason for v in values] == ["nonfinite", "applied"]


@pytest.mark.parametrize("p", [1.0, 2.0, INF])  # any other norm is torch's, which splits the work by threads
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_the_same_bits_for_one_and_two_threads(p, dtype, executors):
    before = torch.get_num_threads()
    grads = {"long": drawn(8, (1 << 18) + 333, dtype=dtype), "short": drawn(9, 5, dtype=dtype)}
    try:
        bits = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            info = reduced(executors, p, **grads)
            bits.append([info[f"seen.{name}"].hex() for name in ("norm", "sum")])
    finally:
        torch.set_num_threads(before)
    assert bits[0] == bits[1]


class chosen(gch.Transform):
    """Records norms and row sums of choices whose sides read what the condition does not, and changes nothing."""

    descends = False

    def update(self, u, state, ctx):
        w = ctx.params
        several = (gch.where(u > 0.1, 0.5 * u, w + u), gch.where(w < u, w * w, u), gch.where(u > w, 1.0, w - u))
        for i, v in enumerate(several):
            ctx.record(f"norm {i}", v.norm())
            ctx.record(f"largest {i}", v.norm(INF))
            ctx.record(f"rows {i}", (v * v).sum(-1).norm())
        return u, state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_a_choice_reads_each_element_of_its_own(dtype, executors):
    """Vectors of lanes whose conditions differ from each other, and from those of the lanes beside them."""
    updates = []
    for which in (executors, ()):
        weights = {"w": drawn(1, 40, 117, dtype=dtype).requires_grad_(True)}
        updater = by_executors(gch.chain(chosen(), gch.sgd(0.0)).bind(weights), *which)
        updates.append(updater.step({"w": drawn(2, 40, 117, dtype=dtype)}))
        assert (updater._bound.engine.reason == "") == (which != ())
    mine, reference = updates
    names = [f"chosen.{of} {i}" for of in ("norm", "largest", "rows") for i in range(3)]
    for name in names:
        assert mine[name] == pytest.approx(reference[name], rel=1e-6 if dtype != torch.bfloat16 else 1e-2), name


def test_finite_check_and_clip_share_one_kernel(executors):
    weights = {"a": torch.zeros(10, requires_grad=True), "b": torch.zeros(3, 2, requires_grad=True)}
    chain = gch.chain(
        gch.skip_nonfinite(), gch.amp_scale(always=True), gch.clip_by_norm(1.0), gch.clip_by_norm(0.5), gch.lion(0.1)
    )
    updater = by_executors(chain.bind(weights), *executors)
    updater.step({n: torch.ones_like(w) for n, w in weights.items()})
    reductions = [part.program.reduce for part in updater._bound.engine.last if part.program.reduce]
    assert [kind for kind, _ in reductions] == ["sum2"]
    assert updater.metrics["clip_by_norm.norm"] == pytest.approx(4.0)
    assert updater.metrics["clip_by_norm#2.norm"] == pytest.approx(1.0, rel=1e-6)


def test_a_norm_per_group_reads_each_member_once(executors):
    weights = {n: torch.zeros(4, requires_grad=True) for n in ("a.x", "a.y", "b.x")}
    groups = [gch.named("a.*"), gch.named("b.*")]
    updater = by_executors(gch.chain(gch.clip_by_norm(1.0, per=groups), gch.sgd(0.1)).bind(weights), *executors)
    updater.step({n: torch.full_like(w, i + 1.0) for i, (n, w) in enumerate(weights.items())})
    read = [name for part in updater._bound.engine.last if part.program.reduce for name in part.names]
    assert sorted(read) == ["a.x", "a.y", "b.x"]
    assert updater.metrics["clip_by_norm.norm"] == pytest.approx(6.0)


def test_a_wrong_reduction_is_seen(monkeypatch):
    """The bound is tight enough: sums in float32 do not pass."""
    wrong = dataclasses.replace(REDUCTIONS["sum2"], truth=lambda v: v.float().square().sum())
    monkeypatch.setitem(REDUCTIONS, "sum2", wrong)
    grad = HARD["long"]
    norm = reduced(("blocks",), grad=grad)["seen.norm"]
    assert norm != pytest.approx(exact(grad.double().tolist(), 2.0), rel=1e-12)
