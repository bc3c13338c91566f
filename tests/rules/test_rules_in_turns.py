"""Gates and clips that know what is usual, and links that work now and not then: in runs, one step by hand, resumed."""

from __future__ import annotations

import copy
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from later import later
from little import largest
from torch import Tensor, nn

import gradchain as gch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
from pairs import Pair

po = later("pytorch_optimizer")
SHAPES = {"weight": (6, 5), "conv": (4, 3, 2, 2), "bias": (7,)}


def drawn(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}


def model() -> nn.ParameterDict:
    return nn.ParameterDict({n: nn.Parameter(w) for n, w in drawn(0).items()})


def steps(updater: gch.Updater, sizes, start: int = 0) -> list[str]:
    """A step for each size of its gradients; why each was or was not applied."""
    return [updater.step({n: s * g for n, g in drawn(start + t + 1).items()}).reason for t, s in enumerate(sizes)]


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in module.named_parameters()}


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def state(updater: gch.Updater, name: str) -> dict:
    return updater.state_dict()["links"][name]


# spikes

GATES = {
    "spikes": lambda: gch.rules.skip_spikes(4.0, 0.9, warmup=3),
    "large": lambda: gch.rules.skip_large_updates(400.0),
}


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("bad", [50.0, 1e30, math.inf, math.nan])
def test_a_spike_is_held_and_leaves_no_trace(name, bad):
    """Weights, moments, counts and statistics are those of a run without that step, whatever its size."""
    tx = gch.chain(GATES[name](), gch.adamw(0.01))
    hit, spared = model(), model()
    a, b = tx.bind(hit), tx.bind(spared)
    for t in range(9):
        if t == 5:
            (reason,) = steps(a, [bad], 100)
            assert reason == tx.links[0].holds
            assert a.num_skipped == 1
        steps(a, [1.0], t), steps(b, [1.0], t)
    assert equal(hit, spared)
    mine, other = a.state_dict(), b.state_dict()
    assert mine["clocks"]["step"] == other["clocks"]["step"]
    if name == "spikes":
        mine, other = state(a, "skip_spikes"), state(b, "skip_spikes")
        assert [mine[k] for k in ("count", "mean", "var")] == [other[k] for k in ("count", "mean", "var")]
        assert mine["skip_rate"] > other["skip_rate"] == 0


def test_a_drift_is_no_spike_and_a_jump_is():
    updater = gch.chain(gch.rules.skip_spikes(4.0, 0.9, warmup=5), gch.sgd(0.0)).bind(model())
    assert set(steps(updater, [1.0 * 1.05**t for t in range(60)])) == {"applied"}
    assert steps(updater, [1.05**60 * 10]) == ["spike"]
    info = updater.step(drawn(7))
    assert info["skip_spikes.value"] < info["skip_spikes.bound"]


def test_numbers_that_are_alike_are_no_spikes():
    """Where the deviation is 0, rounding is not a spike; a thousandth is."""
    updater = gch.chain(gch.rules.skip_spikes(6.0, warmup=2), gch.sgd(0.0)).bind(model())
    g = drawn(1)
    sizes = [1.0, 1.0, 1.0 + 1e-14, 1.0, 1.001]
    assert [updater.step({n: s * v for n, v in g.items()}).reason for s in sizes] == ["applied"] * 4 + ["spike"]


def test_a_run_that_goes_on_knows_what_is_usual(tmp_path):
    tx = gch.chain(gch.rules.skip_spikes(4.0, warmup=3), gch.rules.clip_by_zscore(warmup=3), gch.sgd(0.1))
    net, fresh = model(), model()
    first = tx.bind(net)
    steps(first, [1.0] * 6)
    first.save(tmp_path / "run.pt")
    second = tx.bind(fresh)
    second.load(tmp_path / "run.pt")
    assert steps(second, [50.0], 6) == steps(first, [50.0], 6) == ["spike"]
    assert steps(tx.bind(model()), [50.0]) == ["applied"]
    assert equal(net, fresh)


def test_it_warns_once_where_most_updates_are_skipped():
    """The level rose for good: 34 skips in a row are half of about the last 50, and the warning says what to do."""
    updater = gch.chain(gch.rules.skip_spikes(4.0, warmup=3), gch.sgd(0.1)).bind(model())
    steps(updater, [1.0] * 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(steps(updater, [50.0] * 34)) == {"spike"}
    with pytest.warns(UserWarning, match=r"^skip_spikes: more than 50% of about the last 50 updates were skipped"):
        steps(updater, [50.0])
    steps(updater, [1.0] * 5)
    with pytest.warns(UserWarning, match=r"more than 50%"):
        steps(updater, [50.0] * 12)


def test_a_loss_may_be_the_spike():
    net = nn.Linear(2, 1).double()
    updater = gch.chain(gch.rules.skip_spikes(4.0, warmup=3, of="loss"), gch.sgd(1e-6)).bind(net)
    data = torch.randn(9, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reasons = [
        updater.update(net(x).square().sum() * 1e-3 + loss).reason
        for x, loss in zip(data, [1.0, 1.1, 0.9, 1.0, 5.0, 1.0, math.nan, math.inf, 1.0], strict=True)
    ]
    assert reasons == ["applied"] * 4 + ["spike", "applied", "spike", "spike", "applied"]
    with pytest.raises(RuntimeError, match=r"skip_spikes: Context.loss was not given"):
        updater.step({n: torch.ones_like(p) for n, p in net.named_parameters()})


def test_a_gradient_that_is_not_finite_is_held_where_the_loss_is_looked_at():
    net = nn.Linear(2, 1).double()
    updater = gch.chain(gch.rules.skip_spikes(of="loss"), gch.sgd(0.1)).bind(net)
    loss = torch.where(net(torch.zeros(2).double()) > 1e9, 1.0, 0.0).sum() + (net.bias * 0).sqrt().sum()
    assert updater.update(loss).reason == "spike"


def test_a_gate_on_spikes_holds_for_what_sam_evaluates():
    net = nn.Linear(2, 1).double()
    updater = gch.chain(gch.rules.skip_spikes(), gch.sam(0.1), gch.sgd(0.1)).bind(net)
    before, calls = weights(net), []

    def closure() -> Tensor:
        calls.append(1)
        return net(torch.ones(2).double()).sum() * (1.0 if len(calls) == 1 else math.nan)

    assert updater.update(closure).reason == "spike"
    assert all(torch.equal(before[n], p) for n, p in net.named_parameters())
    assert state(updater, "skip_spikes")["skip_rate"] > 0


@pytest.mark.parametrize("name", GATES)
def test_gates_run_again_from_their_numbers(name):
    pair = Pair(gch.chain(GATES[name](), gch.adamw(0.01)), model(), ("blocks",))
    said = [pair.step(t, size=50.0 if t in (7, 8, 20) else 1.0) for t in range(26)]
    assert said.count("applied") == 23
    assert pair.replayed >= 20, pair.again.explain()


# clips


def test_clip_by_ema_norm_is_adagc():
    ours, other = model(), model()
    updater = gch.chain(gch.rules.clip_by_ema_norm(1.05, 1.0, 0.9, 6), gch.adam(0.1)).bind(ours)
    optimizer = po.AdaGC(
        other.parameters(), lr=0.1, beta=0.9, warmup_steps=6, weight_decay=0.0, eps=1e-8, foreach=False
    )
    for t in range(25):
        for net in (ours, other):
            for name, g in drawn(t + 1).items():
                net[name].grad = g * (20.0 if t in (3, 11, 19) else 1.0)
        updater.step()
        optimizer.step()
    assert largest(ours[n] - w for n, w in other.items()) < 1e-7


@pytest.mark.parametrize("link", [gch.rules.clip_by_zscore(warmup=3), gch.rules.clip_by_ema_norm(warmup=3)], ids=repr)
@pytest.mark.parametrize("bad", [1e3, 1e12, math.inf, math.nan])
def test_an_outlier_does_not_make_room_for_the_next(link, bad):
    """Whatever its size, what is usual afterwards is little more than before; and what is not finite is not in it."""
    params, tx = gch.Tensors.of(drawn(0)), gch.chain(link)
    kept = tx.init(params)
    for t in range(12):
        _, kept = tx.update(gch.Tensors.of(drawn(t + 1)), kept, gch.Context(params, step=t))
    _, after = tx.update(bad * gch.Tensors.of(drawn(50)), kept, gch.Context(params, step=12))
    level = (lambda s: [s.mean]) if isinstance(link, gch.rules.clip_by_zscore) else (lambda s: list(s.gamma.values()))
    (before, now) = (level(next(iter(s.links.values()))) for s in (kept, after))
    assert all(math.isfinite(v) and v <= 1.2 * u for u, v in zip(before, now, strict=True))


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("link", [gch.rules.clip_by_zscore(warmup=3), gch.rules.clip_by_ema_norm(warmup=3)], ids=repr)
def test_what_is_not_finite_at_first_poisons_nothing(link, bad):
    params, tx = gch.Tensors.of(drawn(0)), gch.chain(link)
    kept = tx.init(params)
    for t in range(6):
        g = gch.Tensors.of(drawn(t + 1))
        out, kept = tx.update(bad * g if t == 1 else g, kept, gch.Context(params, step=t))
    assert out.all_finite()


# when


TRUTHS = {
    "python": lambda step: step % 3 != 1,
    "numpy": lambda step: np.bool_(step % 3 != 1),
    "tensor": lambda step: torch.tensor(step % 3 != 1),
    "number": lambda step: 1 if step % 3 != 1 else 0,
    "schedule": gch.schedules.piecewise((0, 1.0), (1, 0.0), (2, 1.0)).take(3).repeat(),
}


@pytest.mark.parametrize("kind", TRUTHS)
def test_when_takes_truths_of_every_kind_and_its_link_rests(kind):
    net, by_hand = model(), drawn(0)
    updater = gch.chain(gch.when(TRUTHS[kind], gch.trace(0.5)), gch.sgd(0.1)).bind(net)
    trace = {n: torch.zeros_like(w) for n, w in by_hand.items()}
    for t in range(7):
        steps(updater, [1.0], t)
        for n, g in drawn(t + 1).items():
            if t % 3 != 1:
                trace[n] = g + 0.5 * trace[n]
            by_hand[n] = by_hand[n] - 0.1 * (trace[n] if t % 3 != 1 else g)
    assert all(torch.allclose(net[n], w, rtol=1e-13, atol=1e-15) for n, w in by_hand.items())


@pytest.mark.parametrize("otherwise", ["pass", "zero"])
def test_when_runs_again_from_its_numbers(otherwise):
    tx = gch.chain(gch.when(lambda step: step % 4 < 2, gch.scale_by_adam(), otherwise), gch.sgd(0.05))
    pair = Pair(tx, model(), ("blocks",))
    for t in range(24):
        pair.step(t, absent=("bias",) if t in (5, 6) else ())
    assert pair.replayed >= 16, pair.again.explain()


def test_a_whole_rule_may_rest_and_nothing_moves():
    net = model()
    updater = gch.chain(gch.when(lambda step: step >= 1, gch.adam(0.1), otherwise="zero")).bind(net)
    before = weights(net)
    steps(updater, [1.0])
    assert all(torch.equal(before[n], p) for n, p in net.items())
    steps(updater, [1.0], 1)
    assert not any(torch.equal(before[n], p) for n, p in net.items())
    assert state(updater, "when/scale_by_adam")["count"] == 1


@pytest.mark.parametrize("where", ["outermost", "in a branch"])
def test_a_predicate_may_ask_the_context(where):
    """Of the loss, and of what was observed; it is asked at every step, and is written and printed as its function."""
    link = gch.when(in_trouble, gch.scale(0.0))
    tx = gch.chain(link if where == "outermost" else gch.partition((gch.rest, link)), gch.sgd(0.1))
    net = nn.Linear(2, 1).double()
    updater = tx.bind(net)
    moved = []
    for loss, noted in ((1.0, 0.0), (30.0, 0.0), (1.0, 0.0), (1.0, 9.0), (2.0, 0.0)):
        updater.observe("noise", noted)
        before = weights(net)
        updater.update(net(torch.ones(2).double()).square().sum() * 0.1 + loss)
        moved.append(not torch.equal(before["bias"], net.bias))
    assert moved == [True, False, True, False, True]
    assert repr(link) == "when(in_trouble, scale(0.0))"
    assert gch.from_config(gch.to_config(link), {"in_trouble": in_trouble}) == link == copy.deepcopy(link)
    assert "predicate" not in str(updater.hyperparams())
    assert "calls code of yours" in updater.explain()


def in_trouble(step: int, ctx: gch.Context) -> bool:
    return ctx.loss > 10.0 or ctx.observed["noise"] > 1.0


def test_a_predicate_of_another_clock_and_an_override():
    net = model()
    by_epoch = gch.by("epoch", gch.schedules.piecewise((0, 0.0), (1, 1.0)))
    updater = gch.chain(gch.when(by_epoch, gch.scale(0.0)), gch.sgd(0.1)).bind(net)
    moved = []
    for t, do in enumerate((None, "tick", "off", "on")):
        if do == "tick":
            updater.tick("epoch")
        elif do:
            updater.override("predicate", 0.0 if do == "off" else 1.0)
        before = weights(net)
        steps(updater, [1.0], t)
        moved.append(not torch.equal(before["bias"], net["bias"]))
    assert moved == [True, False, True, False]


def test_weights_stay_where_a_link_that_owns_them_rests():
    net = model()
    halved = gch.when(lambda step: step % 2 == 1, gch.project(lambda w: 0.5 * w))
    updater = gch.chain(gch.sgd(0.0), halved).bind(net)
    steps(updater, [1.0] * 4)
    assert all(torch.allclose(net[n], 0.25 * w) for n, w in drawn(0).items())


# switch


def test_switch_is_a_torch_optimizer_and_then_a_new_one():
    """Moments and bias correction of the second begin when it does; so do those of a parameter that was absent then."""
    ours, other = model(), model()
    tx = gch.switch(gch.adamw(0.05), gch.chain(gch.clip_by_norm(1.0), gch.adam(0.1)), at=5)
    updater, optimizer = tx.bind(ours), torch.optim.AdamW(other.parameters(), lr=0.05)
    for t in range(12):
        if t == 5:
            optimizer = torch.optim.Adam(other.parameters(), lr=0.1)
        for net in (ours, other):
            for name, g in drawn(t + 1).items():
                net[name].grad = None if (name, t) in (("bias", 2), ("bias", 5), ("conv", 7)) else g.clone()
        if t >= 5:
            nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        updater.step()
        optimizer.step()
    assert all(torch.allclose(ours[n], w, rtol=1e-12, atol=1e-13) for n, w in other.items())


class AnchorState(gch.State):
    anchor: gch.Tensors


class to_anchor(gch.Transform):
    """A link that remembers the weights it began with."""

    descends = False

    def init(self, params):
        return AnchorState(params.clone())

    def update(self, g, state, ctx):
        return g + ctx.params - state.anchor, state


def test_the_second_begins_with_the_weights_of_that_moment():
    net = model()
    updater = gch.switch(gch.sgd(0.3), gch.chain(to_anchor(), gch.sgd(0.1)), at=3).bind(net)
    steps(updater, [1.0] * 3)
    begun = weights(net)
    steps(updater, [1.0] * 2, 3)
    anchor = state(updater, "switch/second/to_anchor")["anchor"]
    assert all(torch.equal(anchor[n], begun[n]) for n in begun)


@pytest.mark.parametrize("k", [0, 2, 3, 4, 6])
def test_switch_goes_on_from_a_checkpoint_in_either_phase(k, tmp_path):
    tx = gch.switch(gch.adam(0.05), gch.sgd(0.1, momentum=0.9), at=4)
    through, early, fresh = model(), model(), model()
    steps(tx.bind(through), [1.0] * 8)
    updater, other = tx.bind(early), tx.bind(fresh)
    steps(updater, [1.0] * k)
    steps(other, [1.0] * 5, 50)  # whatever it did before
    updater.save(tmp_path / "run.pt")
    other.load(tmp_path / "run.pt")
    steps(other, [1.0] * (8 - k), k)
    assert equal(fresh, through)


@pytest.mark.parametrize("at", [0, 1, 6, 100])
def test_switch_runs_again_from_its_numbers(at):
    rule = gch.switch(gch.adamw(gch.linear(0.1, 0.05, 9)), gch.chain(gch.clip_by_norm(0.5), gch.lion(0.01)), at=at)
    pair = Pair(rule, model(), ("blocks",))
    for t in range(20):
        pair.step(t, absent=("bias",) if t in (5, 11) else ())
    assert pair.replayed >= 10, pair.again.explain()


def test_whole_rules_take_turns_in_branches_and_in_each_other():
    inner = gch.switch(gch.sgd(0.1), gch.adam(0.1), at=2)
    tx = gch.partition((gch.named("bias"), gch.switch(inner, gch.lion(0.1), at=4)), (gch.rest, gch.sgd(0.1)))
    net = model()
    assert set(steps(tx.bind(net), [1.0] * 6)) == {"applied"}


REFUSED = {
    "climbs in one of them": (gch.switch(gch.sgd(0.1), gch.trace(0.9), at=3), "would climb: nothing on the way"),
    "turns twice in one": (
        gch.chain(gch.switch(gch.trace(0.9), gch.sgd(0.1), at=3), gch.sgd(0.1)),
        "would pass two learning rates",
    ),
    "holds": (gch.switch(gch.chain(gch.accumulate(2), gch.sgd(0.1)), gch.sgd(0.1), at=3), "may hold the chain"),
    "owns": (
        gch.switch(gch.chain(gch.project(torch.relu), gch.sgd(0.1)), gch.sgd(0.1), at=3),
        "owns the weights, but",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_each_turn_is_held_to_the_order_of_links(why):
    tx, sentence = REFUSED[why]
    with pytest.raises(ValueError, match=sentence):
        tx.bind(model())


def test_a_turn_may_own_the_weights():
    tx = gch.switch(gch.chain(gch.sgd(0.1), gch.project(torch.relu)), gch.adam(0.1), at=2)
    assert set(steps(tx.bind(model()), [1.0] * 4)) == {"applied"}


# freeze, snapshot


@pytest.mark.parametrize(("start", "until"), [(0, 3), (2, 4), (3, None), (0, None), (1, 2)])
def test_freeze_has_a_window_of_steps(start, until):
    net = model()
    updater = gch.chain(gch.freeze(gch.named("bias"), until=until, start=start), gch.adam(0.1)).bind(net)
    moved = []
    for t in range(6):
        before = weights(net)
        steps(updater, [1.0], t)
        assert not torch.equal(before["conv"], net["conv"])
        moved.append(not torch.equal(before["bias"], net["bias"]))
    assert moved == [not (start <= t < (until if until is not None else 99)) for t in range(6)]
    assert updater.state_dict()["links"]["scale_by_adam"]["count"] in (6, {"weight": 6, "conv": 6, "bias": sum(moved)})


def test_what_is_frozen_from_a_step_on_must_still_descend():
    with pytest.raises(ValueError, match=r"would climb"):
        gch.partition((gch.named("bias"), gch.freeze(gch.named("bias"), start=2)), (gch.rest, gch.sgd(0.1))).bind(
            model()
        )


def test_snapshots_see_the_updates_where_they_stand():
    seen = {"before": lambda u: u.norm(), "is large": lambda u: u.norm() > 1.0}
    tx = gch.chain(
        gch.rules.monitor(seen), gch.clip_by_norm(1.0, eps=0), gch.rules.monitor({"after": lambda u: u.norm()}, 0.5),
        gch.sgd(0.1),
    )  # fmt: skip
    updater = tx.bind(model())
    for t in range(3):
        g = drawn(t + 1)
        info = updater.step({n: v.clone() for n, v in g.items()})
        norm = math.sqrt(sum(v.square().sum().item() for v in g.values()))
        assert info["before"] == pytest.approx(norm) and info["is large"] == 1.0
        assert info["after"] == pytest.approx(1.0)


def test_what_is_no_measure_is_refused():
    with pytest.raises(TypeError, match=r"^monitor: measures must be a mapping from names to functions, got 3\.$"):
        gch.rules.monitor(3)
    for measure, got in (
        (lambda u: u, "got EagerTensors"),
        (lambda u: None, "got NoneType"),
        (lambda u: "3", "got str"),
    ):
        link, w = gch.rules.snapshot("size", measure), gch.Tensors.of(drawn(0))
        with pytest.raises(TypeError, match=rf"must return a number, {got}"):
            link.update(w, link.init(w), gch.Context(w))


def test_configs_of_before_there_was_a_window_or_a_meaning():
    """A chain with none of the new arguments is written as it was."""
    old = gch.chain(gch.freeze(gch.bias, until=3), gch.add_decayed_weights(0.1), gch.sgd(0.1))
    frozen, decay, *_ = gch.to_config(old)["links"]
    assert list(frozen["fields"]) == ["selector", "until"] and list(decay) == ["link", "weight_decay"]
    assert gch.from_config(copy.deepcopy(gch.to_config(old))) == old
