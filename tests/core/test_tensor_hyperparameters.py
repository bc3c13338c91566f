"""Hyperparameters given as tensors, numpy's numbers, and schedules that return them."""

import copy
import pickle
import re
from fractions import Fraction

import numpy as np
import pytest
import torch

import gradchain as gch

DOUBLE = torch.float64

# link or chain of one number, and two numbers it may be; what must come last makes the rest a chain that descends
END = gch.scale(-0.1)
ONE = {
    "learning_rate": (lambda v: gch.sgd(v), 0.1, 0.3),
    "momentum": (lambda v: gch.sgd(0.1, momentum=v), 0.5, 0.9),
    "nesterov": (lambda v: gch.sgd(0.1, momentum=v, nesterov=True), 0.5, 0.9),
    "weight_decay": (lambda v: gch.adamw(0.1, weight_decay=v), 0.01, 0.5),
    "b1": (lambda v: gch.adam(0.1, b1=v), 0.9, 0.5),
    "b2": (lambda v: gch.adam(0.1, b2=v), 0.999, 0.5),
    "eps": (lambda v: gch.adam(0.1, eps=v), 1e-8, 1.0),
    "eps_root": (lambda v: gch.nadamw(0.1, eps_root=v), 0.0, 1.0),
    "lion b1": (lambda v: gch.lion(0.1, b1=v), 0.0, 0.999),
    "lion b2": (lambda v: gch.lion(0.1, b2=v), 0.9, 0.1),
    "step_size": (lambda v: gch.chain(gch.scale(v), gch.sgd(0.1)), 2.0, -0.5),
    "step_size_fn": (lambda v: gch.chain(gch.scale_by_schedule(v), gch.sgd(0.1)), 2.0, -0.5),
    "max_norm": (lambda v: gch.chain(gch.clip_by_norm(v), gch.sgd(0.1)), 1.0, 0.1),
    "max_norm, each": (lambda v: gch.chain(gch.clip_by_norm(v, per="tensor"), gch.sgd(0.1)), 1.0, 0.1),
    "max_value": (lambda v: gch.chain(gch.clip_by_value(v), gch.sgd(0.1)), 1.0, 0.1),
    "decay of an average": (lambda v: gch.chain(gch.sgd(0.1), gch.average_params(v)), 0.9, 0.1),
    "masked": (lambda v: gch.chain(gch.masked(gch.scale(v), gch.named("a")), gch.sgd(0.1)), 1.0, 0.1),
    "partition": (lambda v: gch.partition((gch.named("a"), gch.sgd(v)), (gch.rest, gch.adam(v))), 0.1, 0.3),
    "accumulate": (lambda v: gch.chain(gch.accumulate(2), gch.sgd(v)), 0.1, 0.3),
}
ROWS = {
    **ONE,
    "multiply": (lambda v: gch.sgd(gch.multiply(v, (gch.named("a"), 0.5))), 0.1, 0.3),
    "multiply, momentum": (lambda v: gch.sgd(0.1, momentum=gch.multiply(v, (gch.named("a"), 0.5))), 0.5, 0.9),
    "choose": (lambda v: gch.sgd(gch.choose((gch.named("a"), v), rest=0.2)), 0.1, 0.3),
    "choose, rest": (lambda v: gch.adam(gch.choose((gch.named("a"), 0.2), rest=v)), 0.1, 0.3),
    "multiply, choose": (
        lambda v: gch.sgd(gch.multiply(gch.choose((gch.named("a"), 0.2), rest=v), (gch.named("b"), 2.0))), 0.1, 0.3,
    ),
}  # fmt: skip


def model():
    generator = torch.Generator().manual_seed(0)
    drawn = {n: torch.randn(3, 2, generator=generator, dtype=DOUBLE) for n in "ab"}
    return {n: w.requires_grad_() for n, w in drawn.items()}


def trained(tx, do=lambda updater, t: None, engine=True, steps=6):
    """The weights after each step; `do` is called before each. Every hyperparameter shown is the one that is used."""
    weights = model()
    updater = tx.bind(weights)
    if not engine:
        updater._bound.engine.executors = ()
    seen = []
    for t in range(steps):
        do(updater, t)
        shown = updater.hyperparams()
        info = updater.update(sum((-1.0) ** t * (1 + t) * w.square().sum() for w in weights.values()))
        assert {k: v for k, v in info.hyperparams.items() if k in shown} == shown
        seen.append([w.detach().clone() for w in weights.values()])
        if any(link.role == "average" for link in updater.chain.links):
            seen[-1] += [average.clone() for average in updater.averages().values()]
    return seen


def alike(one, other):
    return all(torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("engine", [True, False], ids=["engine", "reference"])
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_tensor_is_read_anew_at_every_update(name, engine, dtype):
    """Filled with another number after three steps it is a schedule that jumps there, to the bit, however steps run."""
    make, first, then = ROWS[name]
    tensor = torch.tensor(first, dtype=dtype)
    numbers = [tensor.item(), torch.tensor(then, dtype=dtype).item()]

    def fill(updater, t):
        tensor.fill_(first if t < 4 else then)

    length = 2 if name == "accumulate" else 1
    ours = trained(make(tensor), fill, engine)
    theirs = trained(make(lambda t: numbers[t >= 4 // length]), engine=engine)
    assert alike(ours, theirs)
    assert not alike(ours, trained(make(first), engine=engine)), "the row shows nothing"


@pytest.mark.parametrize("engine", [True, False], ids=["engine", "reference"])
@pytest.mark.parametrize("value", [
    lambda v: v, lambda v: gch.multiply(v, (gch.named("a"), 0.5)), lambda v: gch.choose((gch.named("a"), v), rest=0.2)
], ids=["plain", "multiply", "choose"])  # fmt: skip
def test_an_override_by_a_tensor_is_read_anew(engine, value):
    """override(name, tensor), also inside a per-parameter value."""
    tensor = torch.tensor(0.1, dtype=DOUBLE)

    def ours(updater, t):
        if t == 1:
            updater.override("learning_rate", value(tensor))
        tensor.fill_(0.1 if t < 3 else 0.3)

    def theirs(updater, t):
        if t == 1:
            updater.override("learning_rate", value(lambda step: 0.1 if step < 3 else 0.3))

    assert alike(trained(gch.adam(0.05), ours, engine), trained(gch.adam(0.05), theirs, engine))


def test_a_factor_on_a_tensor():
    """override(factor=) multiplies what the tensor holds now."""
    tensor = torch.tensor(0.1, dtype=DOUBLE)
    updater = gch.sgd(tensor).bind(model())
    updater.override("learning_rate", factor=0.5)
    assert updater.hyperparams()["scale_by_learning_rate.learning_rate"] == 0.05
    tensor.fill_(0.4)
    assert updater.hyperparams()["scale_by_learning_rate.learning_rate"] == 0.2


READ = {
    "a function": (lambda t: lambda step: t, True),
    "of a choice": (lambda t: gch.choose((gch.named("a"), t), rest=0.5), True),
    "a factor": (lambda t: gch.multiply(1.0, (gch.named("a"), t)), False),
    "a schedule's": (lambda t: gch.linear(0.5, t, 1), False),
    "a product's": (lambda t: t * gch.constant(1.0), False),
}


@pytest.mark.parametrize("name", READ)
def test_a_number_of_a_schedule_or_a_factor_is_read_once(name):
    """And what docs/concepts/numbers_and_clocks.md names in their place follows the tensor."""
    make, follows = READ[name]
    tensor = torch.tensor(0.5, dtype=DOUBLE)
    weights = {"a": torch.ones(2, dtype=DOUBLE, requires_grad=True), "b": torch.ones(2, dtype=DOUBLE)}
    updater, moved = gch.sgd(make(tensor)).bind(weights), []
    for number in (0.5, 0.25):
        tensor.fill_(number)
        before = weights["a"].detach().clone()
        updater.step({"a": torch.ones(2, dtype=DOUBLE)})
        moved.append((before - weights["a"].detach())[0].item())
    assert moved == [0.5, 0.25 if follows else 0.5]


WRONG = {
    "nan": (float("nan"), "must be in [0, inf), got nan"),
    "negative": (-1.0, "must be in [0, inf), got -1.0"),
    "inf": (float("inf"), "must be in [0, inf), got inf"),
    "true": (True, "must be a number or a schedule (step -> value), got True"),
    "complex": (1j, "must be a number or a schedule (step -> value), got 1j"),
    "two": ([0.1, 0.2], "must be a number or a 0-d tensor, got shape (2,)"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("how", ["link", "filled", "schedule", "override", "overridden", "choose", "multiply"])
@pytest.mark.filterwarnings("ignore:.*named tensors")
def test_a_tensor_is_checked_as_a_number_is(wrong, how):
    """Where it is given, and wherever it is read; weights and state are then as they were."""
    value, rule = WRONG[wrong]
    bad = torch.tensor(value)
    sentence = re.escape(f"scale_by_learning_rate: learning_rate {rule}")
    refused = pytest.raises((ValueError, TypeError), match=sentence)
    if how == "link":
        with refused:
            gch.sgd(bad)
        return
    if how in ("filled", "multiply", "choose") and (bad.ndim or not isinstance(value, float)):
        return  # a tensor of a number holds nothing else
    weights = model()
    before = {n: w.detach().clone() for n, w in weights.items()}
    tensor = torch.tensor(0.1)
    given = {
        "filled": tensor,
        "schedule": lambda step: bad,
        "multiply": gch.multiply(tensor, (gch.named("a"), 1.0)),
        "choose": gch.choose((gch.named("a"), tensor), rest=0.1),
    }
    updater = gch.sgd(given.get(how, 0.1)).bind(weights)
    if how == "override":
        with refused:
            updater.override("learning_rate", bad)
        assert updater.update(sum(w.sum() for w in weights.values()))
        return
    if how == "overridden":
        updater.override("learning_rate", lambda step: bad)
    tensor.fill_(value) if isinstance(value, float) else None
    with refused:
        updater.update(sum(w.sum() for w in weights.values()))
    assert all(torch.equal(w, before[n]) for n, w in weights.items()) and updater.num_updates == 0
    if how in ("multiply", "choose"):  # and when it is bound
        with refused:
            gch.sgd(given[how]).bind(model())


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, np.int64, np.uint8, Fraction])
def test_numbers_of_numpy(kind):
    """numpy's scalars are numbers wherever Python's are: kept as these, so that configs and reprs are plain."""
    one = kind(1)
    for tx in (
        gch.sgd(one), gch.chain(gch.scale(one), gch.sgd(0.1)), gch.chain(gch.accumulate(one), gch.sgd(0.1)),
        gch.sgd(gch.multiply(one, (gch.named("a"), one))), gch.sgd(gch.multiply(0.1, {"a": one})),
        gch.sgd(gch.choose((gch.named("a"), one), rest=0.1)), gch.sgd(lambda t: one),
        gch.sgd(gch.multiply(0.1, gch.first((gch.named("a"), one)))), gch.sgd(gch.multiply(0.1, lambda n, p, o: one)),
    ):  # fmt: skip
        trained(tx, lambda updater, t: updater.override("scale_by_learning_rate.learning_rate", one) if t == 3 else 0)
    tx = gch.chain(gch.clip_by_norm(one), gch.sgd(one))
    assert gch.from_config(gch.to_config(tx)) == tx == gch.chain(gch.clip_by_norm(1), gch.sgd(1))
    assert repr(tx) in (repr(gch.chain(gch.clip_by_norm(v), gch.sgd(v))) for v in (1, 1.0))


@pytest.mark.parametrize(
    "wrong", [np.float32("nan"), np.float64("inf"), np.int64(-1), np.bool_(True), np.array([0.1, 0.1])]
)
def test_numbers_of_numpy_are_checked(wrong):
    """Where they are given and where a schedule returns them."""
    for make in (lambda: gch.sgd(wrong), lambda: trained(gch.sgd(lambda t: wrong))):
        with pytest.raises((ValueError, TypeError), match=r"scale_by_learning_rate: learning_rate must be"):
            make()


def test_what_follows_it_stays_a_tensor():
    """One that requires a gradient, or under torch.func, is not read: the update can be differentiated."""
    lr = torch.tensor(0.1, dtype=DOUBLE, requires_grad=True)
    tx, g = gch.chain(gch.sgd(lr)), gch.Tensors.of({"a": torch.ones(2, dtype=DOUBLE)})
    updates, _ = tx.update(g, tx.init(g), gch.Context(g, step=0))
    assert torch.autograd.grad(updates["a"].sum(), lr)[0].item() == -2.0

    def out(rate):
        updates, _ = gch.sgd(rate).update(g, gch.sgd(0.1).init(g), gch.Context(g, step=0))
        return updates["a"]

    found = torch.func.vmap(out)(torch.tensor([0.1, 0.2], dtype=DOUBLE))
    assert found[:, 0].tolist() == [-0.1, -0.2]
    assert torch.func.grad(lambda rate: out(rate).sum())(torch.tensor(0.1, dtype=DOUBLE)).item() == -2.0


def test_a_tensor_on_a_device_is_not_waited_for():
    """One that the host cannot read at once is taken as it is: only its shape is looked at."""
    meta = torch.tensor(-1.0, device="meta")
    tx = gch.sgd(meta)
    assert tx.links[-1].learning_rate is meta
    with pytest.raises(ValueError, match=r"learning_rate must be a number or a 0-d tensor, got shape \(2,\)"):
        gch.sgd(torch.zeros(2, device="meta"))


def test_what_is_read_once_is_a_number():
    """amp_scale's first scale and the plateau's base and worst are read before the first update, not when filled."""
    tensor = torch.tensor(2.0)
    amp, plateau = gch.amp_scale(tensor), gch.reduce_on_plateau("x", base=tensor, worst=tensor)
    tensor.fill_(0.0)
    assert amp == gch.amp_scale(2.0) and plateau == gch.reduce_on_plateau("x", base=2.0, worst=2.0)


def test_a_link_with_a_tensor_is_copied_pickled_and_written():
    """With the number it holds then; a copy goes its own way."""
    tensor = torch.tensor(0.5)
    tx = gch.sgd(tensor)
    copied, thawed = copy.deepcopy(tx), pickle.loads(pickle.dumps(tx))
    assert gch.to_config(tx) == gch.to_config(gch.sgd(0.5))
    tensor.fill_(0.25)
    for other in (copied, thawed):
        assert other.bind(model()).hyperparams()["scale_by_learning_rate.learning_rate"] == 0.5
    assert tx.bind(model()).hyperparams()["scale_by_learning_rate.learning_rate"] == 0.25


def test_steps_run_again_with_a_tensor():
    """A tensor costs no recording: gradchain's own links run again from their numbers, as with a schedule."""
    weights, tensor = model(), torch.tensor(0.1)
    updater = gch.adamw(tensor).bind(weights)
    recorded = []
    engine = updater._bound.engine
    record = engine._record
    engine._record = lambda *a, **k: (recorded.append(1), record(*a, **k))[1]
    for t in range(8):
        tensor.fill_(0.1 / (1 + t))
        updater.step({n: torch.ones_like(w) for n, w in weights.items()})
    assert len(recorded) <= 3
