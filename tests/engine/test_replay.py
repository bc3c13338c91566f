"""A step that is run again from its numbers is the step that its links would have made, bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from pairs import Pair
from test_equal import GRADIENTS, LOSSES, RATE
from torch import nn
from twins import Shapes, drawn_like

import gradchain as gch
from gradchain.engine import replay

pytestmark = [
    pytest.mark.filterwarnings("ignore:chain. scale_by_.* divides out the scale"),
    pytest.mark.filterwarnings("ignore:bind. float16"),
]
HEAD = gch.named("head.*")
CHAINS = {
    **GRADIENTS,
    **LOSSES,
    "scheduled clip": lambda: gch.chain(gch.clip_by_norm(gch.linear(0.1, 3.0, 9)), gch.sgd(0.05, momentum=0.9)),
    "clip that ends": lambda: gch.chain(gch.clip_by_norm(lambda t: 0.1 if t < 6 else math.inf), gch.sgd(0.05)),
    "by epoch": lambda: gch.adamw(gch.by("epoch", gch.linear(0.1, 0.01, 3))),
    "betas": lambda: gch.chain(gch.scale_by_adam(b1=gch.linear(0.5, 0.9, 9)), gch.scale_by_learning_rate(0.05)),
    "frozen": lambda: gch.chain(gch.freeze(HEAD, until=6), gch.adam(0.05)),
    "growing average": lambda: gch.chain(gch.adam(0.05), gch.average_params(lambda t: (1 + t) / (10 + t), start=4)),
    "per parameter": lambda: gch.adamw(
        gch.multiply(RATE, (HEAD, 0.5), (gch.min_ndim(2), 0.3)),
        weight_decay=gch.choose((gch.min_ndim(2), 0.1), rest=0.0),
    ),
    "sparse average": lambda: gch.chain(gch.adam(0.05), gch.average_params("mean", every=5)),
}
# whose steps are recorded each time: they run code of the user's, or a closure
NEVER = {
    "project", "stateless", "radam", "lamb", "centred", "muon", "per name", "branchy", "zeroes", "anchored", "masks",
    "curves", "sam", "asam", "in turns", "from torch", "from torch, in branches",
}  # fmt: skip
STEPS = 14


@pytest.mark.parametrize("name", list(CHAINS))
def test_a_step_run_again_is_the_step(name):
    pair = Pair(CHAINS[name]())
    for t in range(STEPS):
        closure = name in ("sam", "asam")
        pair.step(t, loss=name in LOSSES and not closure, closure=closure)
    if name in NEVER:
        assert pair.replayed == 0
    else:
        assert pair.replayed >= 5, "the links ran at nearly every step"


def test_what_is_never_run_again_is_in_the_table():
    """The table is that of test_equal.py, which has every link."""
    assert set(CHAINS) > NEVER


class counted(torch.optim.SGD):
    steps = 0

    def step(self, closure=None):
        counted.steps += 1
        return super().step(closure)


def test_an_optimizer_class_of_a_users_is_called_once_an_update():
    updater = gch.from_torch(counted, lr=gch.linear(0.1, 0.01, 9)).bind(model := Shapes())
    before = counted.steps
    for t in range(6):
        updater.step({n: drawn_like(p, t) for n, p in model.named_parameters()})
    assert counted.steps - before == 6


def test_a_trace_that_fails_leaves_nothing(monkeypatch):
    """A number is asked for what only a float has, after norms were taken: the step is recorded once more, whole."""

    class stubborn(gch.Transform):
        def update(self, g, state, ctx):
            return (g.norm().hex() and g), state

    monkeypatch.setattr(replay, "users_code", lambda tx: "")
    pair = Pair(gch.chain(gch.clip_by_norm(1.0, per="tensor"), stubborn(), gch.sgd(0.05)))
    for t in range(6):
        pair.step(t)
        ran = [
            [(part.names, part.program.reduce) for part in u._bound.engine.last] for u in (pair.again, pair.recorded)
        ]
        assert ran[0] == ran[1]
    assert pair.replayed == 0
    assert "recording its numbers failed: AttributeError" in pair.again.explain()


def test_the_steps_in_between_may_be_of_any_kind():
    pair = Pair(gch.chain(gch.amp_scale(64.0, growth_interval=4, always=True), gch.clip_by_norm(1.0), gch.adamw(0.01)))
    said = []
    for t in range(40):
        size = math.inf if t in (11, 12, 30) else 1.0
        said.append(pair.step(t, size=size, loss=t not in (12,), absent=("head.long",) if t == 20 else ()))
        if t == 15:
            pair.each(lambda _, u: u.override("learning_rate", 0.02))
        if t == 18:
            pair.each(lambda _, u: u.override("learning_rate"))
    assert said.count("overflow") >= 2
    assert 10 <= pair.replayed < 36
    assert pair.again._bound.state.links["amp_scale"].scale != 64.0


def test_keep_grads_given_grads_and_last():
    pair = Pair(gch.chain(gch.clip_by_norm(1.0), gch.adamw(0.01)))
    for t in range(24):
        kept = t % 8 >= 6
        pair.step(t, keep_grads=kept)
        if kept:
            assert all(p.grad is not None for p in pair.models[0].parameters())
    for t in range(6):
        drawn = {n: drawn_like(p, t) for n, p in pair.models[0].named_parameters()}
        before = {n: g.clone() for n, g in drawn.items()}
        pair.each(lambda _, u, drawn=drawn: bool(u.step(drawn)))
        assert all(torch.equal(g, before[n]) for n, g in drawn.items()), "gradients of the user's were written"
    assert pair.replayed > 8


@pytest.mark.parametrize("edit", ["load", "reset", "data", "assign", "tick", "frozen", "dtype", "rebind", "swap"])
def test_what_changes_between_steps_is_seen(edit):
    pair = Pair(gch.chain(gch.clip_by_norm(1.0), gch.adamw(gch.by("epoch", gch.linear(0.1, 0.01, 3)))))
    saved = {}

    def change(model, updater):
        parameter = model.body.bias
        if edit == "load":
            updater.load_state_dict(saved[id(updater)])
        elif edit == "reset":
            updater.reset()
        elif edit == "data":
            parameter.data = parameter.data.clone() + 1.0
        elif edit == "assign":
            model.body.bias = nn.Parameter(parameter.detach() + 1.0)
        elif edit == "tick":
            updater.tick("epoch")
        elif edit == "frozen":
            parameter.requires_grad_(not parameter.requires_grad)
        elif edit == "dtype":
            model.float()
        elif edit == "rebind":
            updater.rebind(model)
        elif edit == "swap":
            parameter.data, model.body.scale.data = parameter.data * 2, model.body.scale.data * 3

    for t in range(8):
        pair.step(t)
        if t == 2:
            pair.each(lambda _, u: saved.update({id(u): u.state_dict()}))
    before = pair.replayed
    assert before >= 4
    pair.each(change)
    for t in range(8, 16):
        pair.step(t)
    assert pair.replayed >= before + 4


def test_a_schedule_that_fails_fails_the_same_and_nothing_is_written():
    def rate(step: float) -> float:
        if 7 <= calls[-1] < 10:
            raise ArithmeticError("no rate today")
        return -1.0 if calls[-1] == 12 else 0.01

    calls = [0]
    pair = Pair(gch.chain(gch.clip_by_norm(rate), gch.adamw(0.1)))
    failed = []
    for t in range(18):
        calls[-1] = t
        outcome = pair.step(t)
        failed += [t] if isinstance(outcome, tuple) else []
    assert failed == [7, 8, 9, 12]
    assert pair.replayed >= 7


def test_a_schedule_may_come_to_give_a_tensor():
    def rate(step: float):
        return torch.tensor(0.01, dtype=torch.float64) if step >= 6 else 0.01

    pair = Pair(gch.adamw(rate))
    for t in range(12):
        pair.step(t)
    assert pair.replayed >= 2


def test_code_of_a_users_runs_at_every_step():
    seen = []

    class noted(gch.Transform):
        def update(self, g, state, ctx):
            seen.append(ctx.step)
            return 1.0 * g, state

    share = {"of": 1.0}
    scaled = gch.stateless(lambda g, w: share["of"] * g)
    pair = Pair(gch.chain(noted(), scaled, gch.sgd(0.05)))
    for t in range(9):
        share["of"] = 1.0 / (1 + t)
        pair.step(t)
    assert seen == [t for t in range(9) for _ in range(2)]
    assert all(type(step) is int for step in seen)
    assert pair.replayed == 0


def test_numbers_that_a_user_sees_are_plain():
    updater = gch.chain(gch.clip_by_norm(1.0), gch.adamw(gch.cosine(0.1, 0.01, 9))).bind(model := Shapes())
    for t in range(8):
        for i, p in enumerate(model.parameters()):
            p.grad = drawn_like(p, 100 * t + i)
        info = updater.step()
        assert type(info._records["clip_by_norm.norm"]) is float
        assert all(type(v) in (int, float) for v in info.hyperparams.values())
        state = updater._bound.state.links["scale_by_adam"]
        assert type(state.count.value) is int
        assert state.count.value == t + 1
    assert updater._bound.engine.num_replayed >= 4
    assert f"{updater._bound.engine.num_replayed} steps needed nothing but their numbers" in updater.explain()


def test_gradients_are_not_kept():
    """A traced step lets go of the gradients it saw."""
    import gc
    import weakref

    updater = gch.chain(gch.clip_by_norm(1.0), gch.adamw(0.1)).bind(model := Shapes())
    alive = []
    for t in range(8):
        for i, p in enumerate(model.parameters()):
            p.grad = drawn_like(p, 100 * t + i)
            alive.append(weakref.ref(p.grad))
        updater.step()
        p = None
        gc.collect()
        assert sum(ref() is not None for ref in alive) == 0
    assert updater._bound.engine.num_replayed >= 4
