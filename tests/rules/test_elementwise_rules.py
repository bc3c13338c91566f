"""Elementwise rules beyond torch.optim: steps by hand where implementations differ, and other packages as they are."""

import itertools
import math

import pytest
import torch
from harness import gap, problem, trajectory
from later import later
from peers import of_optax, of_torch

import gradchain as gch

others = later("pytorch_optimizer")
STEPS = 25


def walked(link: gch.Transform, gradients: list[float | None]) -> list[tuple[float, gch.State]]:
    """The update and the state after each gradient of one number; None is an absent one."""
    params = gch.Tensors.of({"w": torch.zeros((), dtype=torch.float64)})
    state, out = link.init(params), []
    for t, g in enumerate(gradients):
        present = {} if g is None else {"w": torch.tensor(g, dtype=torch.float64)}
        u, state = link.update(gch.Tensors.of(present), state, gch.Context(params, step=t))
        out.append((u["w"].item() if g is not None else 0.0, state))
    return out


# by hand


def adan(mean: float, difference: float, square: float) -> float:
    """The second update from corrected means, where b2 is 3/4."""
    return (mean + 0.75 * difference) / math.sqrt(square)


def test_adan_looks_ahead_by_b2_of_the_difference():
    """Of the gradients 1 and 3 the difference is 0, then 2; Optax 0.2.8 has 1 - b2 where the paper has b2."""
    link = gch.rules.scale_by_adan(0.5, 0.75, 0.5, eps=0.0)
    (first, early), (second, late) = walked(link, [1.0, 3.0])
    assert first == pytest.approx(1.0, rel=1e-14)
    assert early.diff["w"].item() == 0.0
    assert late.diff["w"].item() == 0.25 * 2.0
    assert late.nu["w"].item() == 0.5 * 0.5 + 0.5 * (3.0 + 0.75 * 2.0) ** 2
    mean, difference = (0.25 + 1.5) / 0.75, 0.5 / (1 - 0.75**2)
    assert second == pytest.approx(adan(mean, difference, late.nu["w"].item() / 0.75), rel=1e-14)
    theirs = (mean + 0.25 * difference) / math.sqrt((0.25 + 0.5 * (3.0 + 0.25 * 2.0) ** 2) / 0.75)
    assert abs(second / theirs - 1) > 0.04


def test_adan_takes_the_difference_to_the_last_gradient_there_was():
    """Steps in which a parameter has no gradient are none: not even one of a gradient of zero."""
    link = gch.rules.scale_by_adan(0.5, 0.75, 0.5)
    with_a_gap = walked(link, [None, 1.0, None, None, 3.0])
    assert [with_a_gap[1][0], with_a_gap[4][0]] == [u for u, _ in walked(link, [1.0, 3.0])]
    assert with_a_gap[3][1].previous["w"].item() == 1.0


def test_adopt_fills_v_first_and_clips_by_the_updates_before():
    """Of the gradients 1, 10, 10: no step; then a bound of 1; then of 2 ** 0.25. pytorch_optimizer's are one later."""
    (none, first), (second, _), (third, last) = walked(gch.rules.scale_by_adopt(b2=0.5), [1.0, 10.0, 10.0])
    assert none == 0.0
    assert (first.nu["w"].item(), first.mu["w"].item()) == (1.0, 0.0)
    assert second == pytest.approx(0.1 * 1.0, rel=1e-14)
    assert third == pytest.approx(0.9 * 0.1 + 0.1 * 2**0.25, rel=1e-14)
    assert 10 / math.sqrt(50.5) > 2**0.25, "the bound decided"
    assert last.nu["w"].item() == pytest.approx(0.25 + 25 + 50, rel=1e-14)


def test_adopt_without_its_clip_divides_by_what_was_known():
    """The second update is g / |g before|, in full."""
    assert walked(gch.rules.scale_by_adopt(b1=0.0, use_clipping=False), [0.5, 10.0])[1][0] == pytest.approx(20.0)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_a_first_gradient_of_any_size_makes_no_step_of_adopt(size):
    """And no NaN, though 0 stands where the rule divides."""
    params = gch.Tensors.of({"w": torch.zeros(2)})
    link = gch.rules.scale_by_adopt(use_clipping=False)
    g = gch.Tensors.of({"w": torch.full((2,), size)})
    assert link.update(g, link.init(params), gch.Context(params, step=0))[0]["w"].tolist() == [0.0, 0.0]


def test_warm_ups_of_ademamix_begin_with_the_first_update():
    """alpha t / T from t = 1; 1 / ln of what stays in a straight line from b1; both at their end after T updates."""
    link = gch.rules.scale_by_ademamix(0.5, 0.5, 0.9, 6.0, alpha_warmup=4, b3_warmup=4)
    states = [state for _, state in walked(link, [1.0] * 6)]
    shares = [1 - t for t in (0.0, *(state.m2["w"].item() for state in states))]
    stays = [late / early for early, late in itertools.pairwise(shares)]
    ways = [min(t / 4, 1.0) for t in range(1, 7)]
    lives = [(1 - way) / math.log(0.5) + way / math.log(0.9) for way in ways]
    assert stays == pytest.approx([math.exp(1 / life) for life in lives], rel=1e-12)
    assert stays[3:] == pytest.approx([0.9] * 3, rel=1e-14)
    first = walked(link, [1.0])[0][0]
    assert first == pytest.approx(1.0 + 6.0 / 4 * states[0].m2["w"].item(), rel=1e-7)


def test_b1_and_b3_of_nothing_have_warm_ups_too():
    """A mean of which nothing stays has a logarithm of minus infinity."""
    for b1, b3 in ((0.0, 0.9), (0.5, 0.0), (0.0, 0.0)):
        link = gch.rules.scale_by_ademamix(b1, 0.5, b3, b3_warmup=3)
        assert all(math.isfinite(u) for u, _ in walked(link, [1.0, -2.0, 0.5, 1.0]))


def test_optimism_begins_with_the_second_update():
    """alpha g, then alpha g + beta (g - g_previous)."""
    link = gch.rules.scale_by_optimistic_gradient(alpha=2.0, beta=0.5)
    assert [u for u, _ in walked(link, [1.0, None, 3.0])] == [2.0, 0.0, 7.0]


def test_acprop_divides_by_nothing_at_first():
    """g, then g over what the first gradient strayed from 0, then over both."""
    updates = [u for u, _ in walked(gch.rules.scale_by_acprop(b1=0.5, b2=0.5, eps=0.0, eps_root=0.0), [2.0, 3.0, 5.0])]
    square = (0.25 * 4 + 0.5 * (3 - 1) ** 2) / 0.75
    assert updates == pytest.approx([2.0, 3.0 / 2.0, 5.0 / math.sqrt(square)], rel=1e-14)


def test_proximal_decay_never_turns_a_weight():
    """However large it is; AdamW's does where learning_rate · weight_decay is above 1."""
    link = gch.rules.step_proximally(1.0, 9.0)
    params = gch.Tensors.of({"w": torch.tensor([2.0, -4.0])})
    u, _ = link.update(params.zeros_like(), link.init(params), gch.Context(params))
    assert (params["w"] + u["w"]).tolist() == pytest.approx([0.2, -0.4])


def test_proximal_decay_leaves_out_what_the_mask_leaves_out():
    """Those move as without decay."""
    tx = gch.rules.adan(0.5, weight_decay=0.1, mask=gch.named("body.*"))
    masked, plain, decayed = (
        trajectory(x, problem(lr=0.5))
        for x in (tx, gch.chain(gch.rules.adan(0.5)), gch.chain(gch.rules.adan(0.5, weight_decay=0.1)))
    )
    for name in ("head.weight", "scale"):
        assert gap([{name: row[name]} for row in masked], [{name: row[name]} for row in plain]) == 0
    assert gap([{"w": row["body.bias"]} for row in masked], [{"w": row["body.bias"]} for row in decayed]) <= 1e-14


# other packages


def distance(tx: gch.Transform, name: str, **given) -> float:
    """How far the weights are from those of a class of pytorch_optimizer, over their largest displacement."""

    def make(weights, lr):
        return getattr(others, name)(weights.values(), lr=lr, **{"foreach": False, **given})

    run = problem(lr=0.05, steps=STEPS)
    return gap(trajectory(gch.chain(tx), run), of_torch(name, make).run(run))


R = gch.rules
SAME = {
    "AdaBelief": (R.adabelief(0.05, weight_decay=0.1), {"weight_decay": 0.1}),
    "Yogi": (R.yogi(0.05), {}),
    "Adan, decoupled": (
        R.adan(0.05, weight_decay=0.1, proximal=False),
        {"weight_decay": 0.1, "weight_decouple": True},
    ),
    "ADOPT": (
        R.adopt(0.05, weight_decay=0.1),
        {"weight_decay": 0.1, "weight_decouple": True, "clip_lambda": lambda step: (step - 1) ** 0.25},
    ),
    "AdEMAMix": (
        R.ademamix(0.05, alpha_warmup=15, b3_warmup=15, weight_decay=0.1),
        {"t_alpha_beta3": 15, "weight_decay": 0.1, "weight_decouple": True},
    ),
    "LaProp": (R.laprop(0.05), {}),
    "SignSGD": (R.signum(0.05), {}),
    "QHM": (
        gch.chain(R.scale_by_qhm(0.9, 0.6), gch.scale_by_learning_rate(0.05)),
        {"momentum": 0.9, "nu": 0.6},
    ),
    "AggMo": (
        R.aggmo(0.05, (0.0, 0.5, 0.9, 0.99), weight_decay=0.1),
        {"betas": (0.0, 0.5, 0.9, 0.99), "weight_decay": 0.1},
    ),
    "MADGRAD": (R.madgrad(0.05, weight_decay=0.1), {"weight_decay": 0.1}),
}

LOOSE = {"LaProp": 1e-8}  # it adds 1e-15 to the mean square


@pytest.mark.parametrize("case", SAME)
def test_same_as_pytorch_optimizer(case):
    """25 steps in float64, at the arguments that make it the same rule."""
    tx, given = SAME[case]
    assert distance(tx, case.partition(",")[0], **given) <= LOOSE.get(case, 1e-12)


def test_where_pytorch_optimizer_differs():
    """By how much, so that the docstrings stay true: its ADOPT at its defaults, its simplified AdEMAMix."""
    assert 1e-3 < distance(R.adopt(0.05), "ADOPT") < 0.2
    assert distance(R.simplified_ademamix(0.05, alpha=1.0), "SimplifiedAdEMAMix", alpha=1.0, weight_decay=0.0) > 0.1


def test_where_optax_differs():
    """Its Adan is the paper's in the first step only."""
    run = problem(lr=0.05, steps=STEPS)
    theirs = of_optax("optax.adan", lambda ox, lr: ox.chain(ox.scale_by_adan(), ox.scale(-lr))).run(run)
    ours = trajectory(gch.chain(R.adan(0.05)), run)
    assert gap(ours[:1], theirs[:1]) <= 1e-12
    assert gap(ours, theirs) > 0.1
