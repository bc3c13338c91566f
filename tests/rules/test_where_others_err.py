"""One step by hand, or a few, where implementations of a rule are known to differ; and theirs, where installed."""

import math

import pytest
import torch
from harness import problem
from later import later
from peers import of_optax, of_torch
from torch import nn

import gradchain as gch

po = later("pytorch_optimizer")
DOUBLE = torch.float64


def walked(tx, gradients, start=1.0):
    """The weight after each gradient of one number."""
    w = nn.Parameter(torch.tensor([start], dtype=DOUBLE))
    updater, seen = tx.bind({"w": w}), []
    for g in gradients:
        updater.step({"w": torch.tensor([g], dtype=DOUBLE)})
        seen.append(w.item())
    return seen


def of_theirs(peer, lr=0.5):
    """How far a peer has moved each weight after each step of a problem, and the gradients."""
    run = problem(lr=lr, steps=7, shapes={"w": (5,)})
    return [row["w"] for row in peer.run(run)], [g["w"] for g in run.grads]


def test_rprop_moves_in_its_first_step():
    """By the rate, then by 1.2 of it, then by half of that where the sign turned, and stays there in that step."""
    assert walked(gch.rprop(0.1), [2.0, 3.0, -1.0, -1.0]) == pytest.approx([0.9, 0.78, 0.78, 0.84], rel=1e-14)
    moved, _ = of_theirs(of_optax("optax.rprop", lambda ox, lr: ox.rprop(lr)))
    assert not moved[0].any(), "Optax 0.2.8 has the step of the update before: optax PR 1725"


def test_adadelta_descends_whether_or_not_it_is_given_a_rate():
    """The first step is lr g √ε / √((1 - ρ) g² + ε), against g."""
    step = 2.0 * math.sqrt(1e-6) / math.sqrt(0.1 * 4.0 + 1e-6)
    assert walked(gch.adadelta(), [2.0]) == pytest.approx([1.0 - step], rel=1e-14)
    assert walked(gch.adadelta(0.5), [2.0]) == pytest.approx([1.0 - 0.5 * step], rel=1e-14)
    moved, grads = of_theirs(of_optax("optax.adadelta", lambda ox, lr: ox.adadelta()))
    assert torch.equal(moved[0].sign(), grads[0].sign()), "without a rate Optax's ascends"


def test_radam_moves_before_its_mean_square_is_known():
    """By the corrected mean, five times: with b2 = 0.999 the sixth update is the first that is rectified."""
    assert walked(gch.radam(0.1), [2.0] * 5) == pytest.approx([1.0 - 0.2 * t for t in range(1, 6)], rel=1e-13)
    before, after = walked(gch.radam(0.1), [2.0] * 6)[-2:]
    limit = 2 / (1 - 0.999) - 1
    length = limit - 12 * 0.999**6 / (1 - 0.999**6)
    rectified = math.sqrt((length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length))
    assert before - after == pytest.approx(0.1 * rectified, rel=1e-7)
    moved, _ = of_theirs(of_torch("RAdam", lambda w, lr: po.RAdam(w.values(), lr=lr)))
    assert not moved[4].any() and moved[5].all(), "by default pytorch_optimizer waits"


def test_nadam_looks_ahead_by_corrections_of_their_own():
    """b1 m / (1 - b1²) + (1 - b1) g / (1 - b1): at first 0.9 · 0.1 / 0.19 + 1 times g. timm's NAdamW has 1.9 of it."""
    tx = gch.chain(gch.scale_by_adam(nesterov=True, eps=0.0), gch.scale_by_learning_rate(0.1))
    assert walked(tx, [3.0]) == pytest.approx([1.0 - 0.1 * (0.09 / 0.19 + 1.0)], rel=1e-14)


def test_adafactor_multiplies_by_the_size_of_the_weights_also_where_a_rate_is_given():
    """Weights of 4 move by 4 of what weights of 1 move by. timm leaves that out where it is given a rate."""
    small, large = (walked(gch.adafactor(0.1), [2.0], start)[0] for start in (1.0, 4.0))
    assert 1.0 - small == pytest.approx(0.1, rel=1e-12)
    assert 4.0 - large == pytest.approx(4 * 0.1, rel=1e-12)


def test_simplified_ademamix_sums_gradients():
    """m = b1 m + g, (m + α g) / √v̂: the steps are 1 and then 1.99 for b1 = 0.99. pytorch_optimizer averages."""
    tx = gch.rules.simplified_ademamix(0.1, eps=0.0)
    assert walked(tx, [2.0, 2.0]) == pytest.approx([0.9, 0.9 - 0.199], rel=1e-14)


def test_amsgrad_keeps_the_largest_mean_square_before_its_correction():
    """Of the gradients 2 and 0: v is 0.4, then 0.36, and stays 0.4, corrected by 0.19. Optax keeps 0.4 / 0.1."""
    tx = gch.chain(gch.rules.scale_by_amsgrad(0.0, 0.9, 0.0), gch.scale_by_learning_rate(0.1))
    kept = walked(tx, [2.0, 0.0, 1.0])[1:]
    assert kept[0] == 0.9
    v = max(0.4, 0.9 * 0.36 + 0.1)
    assert kept[1] == pytest.approx(0.9 - 0.1 / math.sqrt(v / (1 - 0.9**3)), rel=1e-14)


def test_belief_adds_its_eps_to_the_mean_square_that_it_keeps():
    """So it is in the square of later updates too, once for each."""
    link = gch.rules.scale_by_belief(0.0, 0.5, eps=0.0, eps_root=0.1)
    tx = gch.chain(link, gch.scale_by_learning_rate(1.0))
    s = [0.1, 0.5 * 0.1 + 0.1]
    expected = [1.0 - 2.0 / math.sqrt(s[0] / 0.5), 1.0 - 2.0 / math.sqrt(s[0] / 0.5) - 2.0 / math.sqrt(s[1] / 0.75)]
    assert walked(tx, [2.0, 2.0]) == pytest.approx(expected, rel=1e-14)


def test_laprop_divides_before_it_averages():
    """By the corrected root of the square of this gradient too: the first step is the rate, whatever the gradient."""
    assert walked(gch.rules.laprop(0.1), [1e-3]) == pytest.approx([0.9], rel=1e-9)
    second = walked(gch.rules.laprop(0.1, 0.5, 0.5, 0.0), [1.0, 3.0])[1]
    n = 3.0 / math.sqrt((0.25 + 0.5 * 9.0) / 0.75)
    assert second == pytest.approx(0.9 - 0.1 * (0.25 * 1.0 + 0.5 * n) / 0.75, rel=1e-14)


@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_the_ratio_is_there_without_a_decay(name):
    """‖w‖ / ‖u‖: a weight of 4 moves by 4 of what one of 1 does. timm has it only where there is a decay."""
    small, large = (start - walked(getattr(gch.rules, name)(0.1), [2.0], start)[0] for start in (1.0, 4.0))
    assert large == pytest.approx(4 * small, rel=1e-12)
