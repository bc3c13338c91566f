"""Links in front of and behind rules, beside the packages that have them, and one step by hand where one can err."""

from __future__ import annotations

import math

import pytest
import torch
from later import later
from little import largest
from torch import Tensor, nn

import gradchain as gch

po, grok = later("pytorch_optimizer"), later("pytorch_optimizer.optimizer.grokfast")
SHAPES = {"weight": (6, 5), "conv": (4, 3, 2, 2), "bias": (7,)}
WARM = gch.schedules.warmup_cosine(0.0, 0.4, 5, 20)


def drawn(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}


def one(link: gch.Transform, g: list[float], w: list[float] | None = None, dtype=torch.float64, step=0) -> list[float]:
    """The updates that a link makes at first of one tensor."""
    grads, params = (gch.Tensors.of({"w": torch.tensor(v, dtype=dtype)}) for v in (g, g if w is None else w))
    tx = gch.chain(link)
    out, _ = tx.update(grads, tx.init(params), gch.Context(params, step=step))
    return out["w"].tolist()


def beside(tx: gch.Transform, theirs, steps: int = 25, before=lambda model, t: None) -> float:
    """How far apart our weights and those of a torch optimizer are after some steps, as a part of the way."""
    ours, other = (nn.ParameterDict({n: nn.Parameter(w) for n, w in drawn(0).items()}) for _ in range(2))
    updater, optimizer = tx.bind(ours), theirs(other.parameters())
    for t in range(steps):
        for model in (ours, other):
            for name, g in drawn(t + 1).items():
                model[name].grad = g * (0.02 if t % 3 else 1.0)
        before(other, t)
        updater.step()
        optimizer.step()
    way = largest(w - drawn(0)[n] for n, w in other.items())
    return largest(ours[n] - w for n, w in other.items()) / way


# beside other packages


def test_correct_gradient_is_mars_of_pytorch_optimizer():
    """Without eps: theirs adds 1e-15 to the square besides, and does not scale eps by the bias correction."""
    tx = gch.chain(gch.rules.correct_gradient(0.025, 0.9), gch.adam(0.1, 0.9, 0.99, eps=0.0))
    given = {"optimize_1d": True, "weight_decay": 0.0, "eps": 0.0, "foreach": False}
    assert beside(tx, lambda p: po.MARS(p, lr=0.1, betas=(0.9, 0.99), **given)) < 1e-5


def test_grokfast_is_gradfilter_ema():
    kept: dict[str, Tensor] | None = None

    def before(model: nn.Module, t: int) -> None:
        nonlocal kept
        kept = grok.gradfilter_ema(model, kept, alpha=0.9, lamb=1.5)

    tx = gch.chain(gch.rules.grokfast(0.9, 1.5), gch.sgd(0.1))
    assert beside(tx, lambda p: torch.optim.SGD(p, lr=0.1), before=before) < 1e-12


@pytest.mark.parametrize("warmup", [True, False])
def test_grokfast_ma_is_gradfilter_ma(warmup):
    kept = None

    def before(model: nn.Module, t: int) -> None:
        nonlocal kept
        kept = grok.gradfilter_ma(model, kept, window_size=4, lamb=1.5, warmup=warmup)

    tx = gch.chain(gch.rules.grokfast_ma(4, 1.5, warmup), gch.sgd(0.1))
    assert beside(tx, lambda p: torch.optim.SGD(p, lr=0.1), before=before) < 1e-12


def test_orthogonalize_gradient_is_orthograd():
    tx = gch.chain(gch.rules.orthogonalize_gradient(), gch.sgd(0.1))
    assert beside(tx, lambda p: po.OrthoGrad(torch.optim.SGD(p, lr=0.1))) < 1e-12


def test_cautious_differs_from_pytorch_optimizer_by_its_normaliser_alone():
    """(Σ k + 1) / n in place of Σ k / n: a few per cent on small tensors, which is stated."""
    theirs = lambda p: po.Lion(p, lr=0.1, betas=(0.9, 0.99), weight_decay=0.0, cautious=True, foreach=False)  # noqa: E731
    tx = gch.chain(gch.rules.cautious(gch.scale_by_lion()), gch.scale_by_learning_rate(0.1))
    assert 1e-3 < beside(tx, theirs) < 0.4
    assert beside(gch.chain(gch.scale_by_lion(), gch.scale_by_learning_rate(0.1)), theirs) > 0.4

    class plus_one(gch.Transform):
        """What makes theirs of ours: mean k / ((Σ k + 1) / n)."""

        descends = False

        def update(self, u, state, ctx):
            share = (1.0 * (u.abs() > 0)).sums()
            return u * (share / (share + 1)), state

    tx = gch.chain(gch.rules.cautious(gch.scale_by_lion()), plus_one(), gch.scale_by_learning_rate(0.1))
    assert beside(tx, theirs) < 1e-12


# cautious


def test_cautious_by_hand():
    link = gch.rules.cautious(gch.trace(0.5))
    w = gch.Tensors.of({"w": torch.zeros(4, dtype=torch.float64)})
    ctx, state = gch.Context(w), link.init(w)
    first = [1.0, 2.0, 0.0, -4.0], [4 / 3, 8 / 3, 0.0, -16 / 3]
    for g, expected in (first, ([-1.0, 1.0, 1.0, 1.0], [-2 / 3, 8 / 3, 4 / 3, 0.0])):
        u, state = link.update(gch.Tensors.of({"w": torch.tensor(g, dtype=torch.float64)}), state, ctx)
        assert u["w"].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_cautious_compares_signs_so_that_no_product_underflows(size):
    out = one(gch.rules.cautious(gch.scale(0.5)), [size, -size, 0.0, 0.0], dtype=torch.float32)
    assert out == pytest.approx([size, -size, 0.0, 0.0], rel=1e-6)


def test_cautious_hides_no_nan():
    out = one(gch.rules.cautious(gch.trace(0.9)), [math.nan, 1.0])
    assert math.isnan(out[0])


def test_the_least_mean_bounds_the_factor():
    assert one(gch.rules.cautious(gch.trace(0.0)), [1.0, *[0.0] * 9999])[0] == pytest.approx(1000.0)


@pytest.mark.parametrize(
    "inner",
    [gch.adam(0.1), gch.scale(-1.0), gch.scale_by_schedule(gch.linear(-1.0, -2.0, 5)), gch.project(torch.relu)],
    ids=repr,
)
def test_cautious_refuses_what_turns_the_sign_or_owns_the_weights(inner):
    with pytest.raises(ValueError, match=r"^cautious: inner must be a direction"):
        gch.rules.cautious(inner)


@pytest.mark.parametrize("held", [gch.accumulate(2), gch.skip_nonfinite()], ids=repr)
@pytest.mark.parametrize("name", ["cautious", "mine"])
def test_nothing_in_it_may_hold_whatever_it_is_called(held, name):
    link = gch.rules.cautious(gch.chain(held, gch.trace(0.9)))
    tx = gch.chain(link if name == "cautious" else (name, link), gch.sgd(0.1))
    with pytest.raises(ValueError, match=r"may hold the chain, which only"):
        tx.bind(nn.Linear(2, 1))
    with pytest.raises(ValueError, match=r"may hold the chain, which only"):
        gch.chain(("other", gch.masked(held, gch.bias)), gch.sgd(0.1)).bind(nn.Linear(2, 1))


# decay


SCHEDULES = [
    (gch.constant(0.3), None),
    (0.3, 0.3),
    (gch.linear(0.0, 0.3, 7), 0.3),
    (gch.linear(0.3, 0.0, 7), 0.3),
    (WARM, 0.4),
    (2.0 * WARM + 0.1, 0.9),
    (gch.schedules.one_cycle(0.1, 0.7, 30, 100), 0.7),
    (gch.schedules.warmup_stable_decay(0.0, 0.5, warmup_steps=10, steps=100, decay_steps=20), 0.5),
    (gch.linear(0.0, 0.2, 3).then(gch.cosine(0.6, 0.1, 5)), 0.6),
    (gch.schedules.warmup_cosine(0.0, 0.25, 100, 3_000_000), 0.25),
    (gch.schedules.warmup_cosine(0.0, 0.25, 2_900_000, 3_000_000), 0.25),
    (gch.schedules.inverse_sqrt(0.0, 0.2, 5), None),
    (gch.by("epoch", gch.linear(0.3, 0.0, 7)), None),
    (lambda step: 0.1, None),
    (torch.tensor(0.1), None),
]


@pytest.mark.parametrize(("rate", "peak"), SCHEDULES)
def test_the_peak_is_the_schedules_own_and_not_the_last_rate_seen(rate, peak):
    if peak is None and not (isinstance(rate, gch.schedules.Schedule) and rate.length == 0):
        with pytest.raises(ValueError, match=r"^add_decayed_weights: peak must be given where rate has no end"):
            gch.add_decayed_weights(0.1, by="schedule", rate=rate)
        return
    peak = 0.3 if peak is None else peak
    link = gch.add_decayed_weights(0.1, by="schedule", rate=rate)
    assert one(link, [0.0], [1.0]) == pytest.approx([0.1 / peak])


@pytest.mark.parametrize("by", ["schedule", "corrected"])
def test_a_measured_decay_needs_its_rate(by):
    with pytest.raises(ValueError, match=r"^add_decayed_weights: rate must be the learning rate where by is"):
        gch.add_decayed_weights(0.1, by=by)


def test_what_each_decay_takes_of_a_weight():
    """At half of the peak, without a gradient: η λ, λ η / η_max, λ η² / η_max."""
    rate = gch.linear(0.2, 0.1, 1)
    taken = {"learning_rate": 0.1 * 0.5, "schedule": 0.5 * 0.5, "corrected": 0.5 * 0.1 * 0.5, "cautious": 0.0}
    for by, part in taken.items():
        model = nn.ParameterDict({"w": nn.Parameter(torch.ones(1, dtype=torch.float64))})
        tx = gch.chain(gch.add_decayed_weights(0.5, by=by, rate=rate), gch.scale_by_learning_rate(rate))
        updater = tx.bind(model)
        for _ in range(2):
            model["w"].data.fill_(1.0)
            updater.step({"w": torch.zeros(1, dtype=torch.float64)})
        assert 1 - model["w"].item() == pytest.approx(part), by


def test_a_cautious_decay_is_where_the_step_shrinks_the_weight():
    link = gch.add_decayed_weights(0.1, by="cautious")
    assert one(link, [1.0, 1.0, 0.0, -1e-30], [2.0, -2.0, 2.0, -1e-30]) == pytest.approx([1.2, 1.0, 0.0, -1.1e-30])
    assert math.isnan(one(link, [math.nan], [1.0])[0])


def test_a_measured_decay_follows_multipliers_and_overrides_of_the_rate():
    """Both act on the decay as on the step."""
    rate = gch.linear(0.2, 0.1, 4)
    both = gch.multiply(rate, (gch.named("1.*"), 0.5))
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).double()
    tx = gch.chain(gch.add_decayed_weights(0.5, by="schedule", rate=rate), gch.scale_by_learning_rate(both))
    updater, before = tx.bind(model), [p.detach().clone() for p in model.parameters()]
    updater.step({n: torch.zeros_like(p) for n, p in model.named_parameters()})
    left = [(p / b).mean().item() for p, b in zip(model.parameters(), before, strict=True)]
    assert left == pytest.approx([0.5, 0.5, 0.75, 0.75])


# in front


def test_the_first_correction_is_from_nothing_and_the_norm_is_of_each_tensor():
    """c = (1 + γ β/(1-β)) g at first, as in the authors' code; then it is bounded by 1."""
    link = gch.rules.correct_gradient(0.1, 0.9)
    assert one(link, [0.3, 0.4]) == pytest.approx([0.57, 0.76])
    assert one(link, [3.0, 4.0]) == pytest.approx([0.6, 0.8])


def test_an_absent_gradient_keeps_the_last_one_and_the_first_average():
    w = gch.Tensors.of({"a": torch.zeros(1, dtype=torch.float64), "b": torch.zeros(1, dtype=torch.float64)})
    front, slow = gch.rules.correct_gradient(1.0, 0.5), gch.rules.grokfast(0.5, 1.0)
    states, ctx = [front.init(w), slow.init(w)], gch.Context(w)
    out = {}
    for g in ({"a": 0.1, "b": 0.1}, {"b": 0.2}, {"a": 0.4, "b": 0.4}):
        grads = gch.Tensors.of({n: torch.tensor([v], dtype=torch.float64) for n, v in g.items()})
        for i, link in enumerate((front, slow)):
            out[i], states[i] = link.update(grads, states[i], ctx)
    assert out[0]["a"].item() == pytest.approx(0.7) and out[0]["b"].item() == pytest.approx(0.6)
    assert out[1]["a"].item() == pytest.approx(0.4 + 0.25) and out[1]["b"].item() == pytest.approx(0.4 + 0.275)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("g", "w"), [([3.0], [0.7]), ([0.3, 0.6, 0.1], [0.1, 0.2, 1 / 30]), ([2.0, 1.0], [0.0, 0.0])])
def test_what_lies_along_the_weights_is_nothing_and_no_weights_are_along_nothing(g, w, dtype):
    """Rounding is not blown up to the norm of the gradient."""
    expected = g if not any(w) else [0.0] * len(g)
    assert one(gch.rules.orthogonalize_gradient(), g, w, dtype) == pytest.approx(expected)


@pytest.mark.parametrize("size", [1e-37, 1e-20, 1e20, 1e37])
def test_orthogonal_gradients_of_any_size(size):
    out = one(gch.rules.orthogonalize_gradient(), [3 * size, 4 * size], [2.0 / size, 0.0], torch.float32)
    assert out == pytest.approx([0.0, 5 * size])
