"""Averages that are taken when a named clock ticks: each against a twin in float64 that is written from the formula."""

import copy
import random
import warnings

import pytest
import torch
from little import BoomError, data, loss_of, net, same, untouched, weights
from torch import nn

import gradchain as gch
from gradchain.updater.observations import PATIENCE

EARLY = gch.named("0.*")
WARM = gch.schedules.ema_warmup(0.9)


def ema(decay=0.9, **options):
    return gch.average_params(decay, on="ema", **options)


class Twin:
    """The average of each weight by the formula, in numbers of Python's float64.

    Args:
        decay: of the tick and the name; None for a mean.
    """

    def __init__(self, model, decay, start=0, every=1, members=lambda name: True):
        self.decay, self.start, self.every, self.members = decay, start, every, members
        self.ticks = self.many = 0
        self.average = {n: w.tolist() for n, w in weights(model).items()}

    def tick(self, model):
        now, age = {n: w.tolist() for n, w in weights(model).items()}, self.ticks - self.start
        if age < 0:
            self.average = now
        elif age % self.every == 0:
            for name in now:
                share = 1 / (self.many + 1) if self.decay is None else 1 - self.decay(self.ticks, name)
                self.average[name] = mixed(self.average[name], now[name], share)
            self.many += 1
        self.ticks += 1

    def check(self, model, updater, link=None):
        found = updater.averages(link)
        for name, weight in weights(model).items():
            expected = torch.tensor(self.average[name], dtype=torch.float64) if self.members(name) else weight
            torch.testing.assert_close(found[name].double(), expected, rtol=1e-12, atol=1e-14)


def mixed(a, b, share):
    if isinstance(a, list):
        return [mixed(x, y, share) for x, y in zip(a, b, strict=True)]
    return a + share * (b - a)


def constant(decay):
    return lambda t, name: decay


def early(name):
    return name.startswith("0.")


AVERAGES = {
    "a constant": (lambda: ema(0.9), {"decay": constant(0.9)}),
    "a start": (lambda: ema(0.9, start=3), {"decay": constant(0.9), "start": 3}),
    "every so many": (lambda: ema(0.9, start=1, every=3), {"decay": constant(0.9), "start": 1, "every": 3}),
    "a mean": (lambda: ema("mean", start=2, every=2), {"decay": None, "start": 2, "every": 2}),
    "a schedule": (lambda: ema(WARM), {"decay": lambda t, name: WARM(t)}),
    "a function": (lambda: ema(lambda t: (1 + t) / (10 + t)), {"decay": lambda t, name: (1 + t) / (10 + t)}),
    "another clock": (
        lambda: ema(gch.by("ema", gch.linear(0.0, 1.0, 10))), {"decay": lambda t, name: min(t / 10, 1.0)},
    ),
    "per parameter": (
        lambda: ema(gch.choose((EARLY, lambda t: 1 / (2 + t)), rest=0.5)),
        {"decay": lambda t, name: 1 / (2 + t) if early(name) else 0.5},
    ),
    "decay 0": (lambda: ema(0.0), {"decay": constant(0.0)}),
    "decay 1": (lambda: ema(1.0, start=1), {"decay": constant(1.0), "start": 1}),
}  # fmt: skip
PLACES = {
    "last": (lambda tx: gch.chain(gch.adam(0.1), tx), lambda name: True),
    "a window": (lambda tx: gch.chain(gch.accumulate(3), gch.adam(0.1), tx), lambda name: True),
    "a window of its own": (
        lambda tx: gch.chain(gch.clip_by_norm(0.5), gch.accumulate(2), gch.adam(0.1), tx), lambda name: True,
    ),
    "a mask": (lambda tx: gch.chain(gch.adam(0.1), gch.masked(tx, EARLY)), early),
    "a branch": (
        lambda tx: gch.partition((EARLY, gch.chain(gch.adam(0.1), tx)), (gch.rest, gch.sgd(0.1))), early,
    ),
    "a gate": (lambda tx: gch.chain(gch.amp_scale(64.0, always=True), gch.sgd(0.1, momentum=0.9), tx), lambda n: True),
    "from torch": (lambda tx: gch.chain(gch.from_torch("NAdam", lr=0.05), tx), lambda name: True),
    "alone": (lambda tx: tx, lambda name: True),
}  # fmt: skip


def moved(model, updater, rows):
    """One update; where the chain takes no gradients, somebody else moves the weights."""
    if not updater._bound.takes_gradients:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * rows.mean())
    else:
        updater.update(loss_of(model, rows))


def run(model, updater, seed, ticks, twin=None, watch=None):
    """Updates and ticks, each a random number of the one after some of the other."""
    rng, many = random.Random(seed), 0
    batches = iter(data(10 * ticks, rng.randrange(1 << 20)))
    while many < ticks:
        for _ in range(rng.randrange(4)):
            moved(model, updater, next(batches))
        amount = rng.choice((1, 1, 1, 0, 2, 3))
        updater.tick("ema", amount)
        many += amount
        for _ in range(amount if twin else 0):
            twin.tick(model)
        if watch:
            watch()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", AVERAGES)
def test_it_is_the_formula_over_ticks(kind, place):
    """Whatever the updates are: start, every, schedules and means count ticks."""
    make, how = AVERAGES[kind]
    wrap, members = PLACES[place]
    if kind == "per parameter" and place in ("a mask", "a branch"):
        make, how = lambda: ema(gch.choose((gch.bias, 0.25), rest=0.5)), {
            "decay": lambda t, name: 0.25 if name.endswith("bias") else 0.5
        }  # fmt: skip
    model = net()
    updater = wrap(make()).bind(model)
    twin = Twin(model, members=members, **how)
    run(model, updater, kind + place, 12, twin, lambda: twin.check(model, updater))
    assert updater.clocks["ema"] == twin.ticks


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["a mean", "a schedule", "per parameter"])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(kind, place, tmp_path):
    """From a file and from a state in either form, with a window open or not."""
    make = AVERAGES["a start" if kind == "per parameter" and place in ("a mask", "a branch") else kind][0]
    model = net()
    updater = PLACES[place][0](make()).bind(model)
    run(model, updater, 3, 5)
    for way in ("file", "plain", "fixed"):
        mine, again = copy.deepcopy((model, updater)), net(7)
        second = PLACES[place][0](make()).bind(again)
        if way == "file":
            updater.save(tmp_path / "run.pt")
            second.load(tmp_path / "run.pt")
        else:
            again.load_state_dict(model.state_dict())
            second.load_state_dict(updater.state_dict(form=way))
        for each in (mine, (again, second)):
            run(*each, 4, 6)
        assert same(mine[1].state_dict(), second.state_dict())
        assert same(dict(mine[0].state_dict()), dict(again.state_dict()))


def test_updates_leave_it_alone_and_ticks_the_weights():
    model = net()
    updater = gch.chain(gch.adam(0.1), ema()).bind(model)
    before = updater.averages()
    for rows in data(3):
        updater.update(loss_of(model, rows))
    assert all(torch.equal(a, net().state_dict()[n]) for n, a in before.items())
    own, state = weights(model), updater.state_dict()["links"]["scale_by_adam"]
    updater.tick("ema")
    assert same(own, weights(model)) and same(state, updater.state_dict()["links"]["scale_by_adam"])
    assert updater.num_updates == updater.num_micro == 3


def test_two_averages_on_two_clocks_and_one_at_updates():
    model = net()
    tx = gch.chain(
        gch.sgd(0.1),
        ("fast", ema(0.5)),
        ("slow", gch.average_params(0.9, on="epoch")),
        ("each", gch.average_params(0.7)),
    )
    updater = tx.bind(model)
    fast, slow, each = (Twin(model, constant(d)) for d in (0.5, 0.9, 0.7))
    for i, rows in enumerate(data(9)):
        updater.update(loss_of(model, rows))
        each.tick(model)
        if i % 2 == 0:
            updater.tick("ema")
            fast.tick(model)
        if i % 3 == 0:
            updater.tick("epoch")
            slow.tick(model)
    for name, twin in (("fast", fast), ("slow", slow), ("each", each)):
        twin.check(model, updater, name)


def test_a_generator_that_steps_twice_is_averaged_as_if_it_stepped_once():
    """The average at ticks is that of another updater that only averages, called once per batch."""
    model = net()
    updater, other = gch.chain(gch.adam(0.1), ema()).bind(model), gch.average_params(0.9).bind(model)
    for rows in data(6):
        for _ in range(2):
            updater.update(loss_of(model, rows))
        updater.tick("ema")
        other.step({})
        for name, average in other.averages().items():
            torch.testing.assert_close(updater.averages()[name], average, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("how", ["keep", "copy", "average"])
def test_buffers_are_those_of_the_tick(how):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    updater = gch.chain(gch.sgd(0.1), ema(0.5, buffers=how)).bind(model)
    mean = None
    for i, rows in enumerate(data(8)):
        updater.update(loss_of(model, rows))
        if i % 2:
            updater.tick("ema")
            now = model[1].running_mean.clone()
            mean = now if mean is None or how == "copy" else mean.lerp(now, 0.5)
    updater.update(loss_of(model, data(1)[0]))
    expected = model[1].running_mean if how == "keep" else mean
    torch.testing.assert_close(updater.averages()["1.running_mean"], expected, rtol=1e-12, atol=0)
    assert updater.averages()["1.num_batches_tracked"] == (9 if how == "keep" else 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_averages_of_half_weights_move_by_small_parts(dtype):
    model = net(0, dtype)
    updater = ema(0.999).bind(model)
    first = weights(model)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    for _ in range(100):
        updater.tick("ema")
    stored = updater._bound.state.links["average_params"].average["0.weight"]
    expected = first["0.weight"].double() * 0.999**100 + model[0].weight.detach().double() * (1 - 0.999**100)
    assert stored.dtype == torch.float32
    torch.testing.assert_close(stored.double(), expected, rtol=1e-5, atol=1e-6)


def test_under_autocast_and_in_inference_mode():
    plain, updater = (ema().bind(net()) for _ in range(2))
    plain.tick("ema")
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        updater.tick("ema")
    assert same(plain.state_dict(), updater.state_dict())
    assert not updater.averages()["0.weight"].is_inference()


def test_in_an_open_window_nothing_of_it_changes():
    """Between micro-batches, and between backward and step."""
    model, other = net(), net()
    updater, twin = (gch.chain(gch.accumulate(3), gch.adam(0.1), ema()).bind(m) for m in (model, other))
    for i, rows in enumerate(data(7)):
        twin.update(loss_of(other, rows))
        updater.backward(loss_of(model, rows))
        updater.tick("ema", i % 2)
        updater.step()
        updater.tick("ema")
    assert same(weights(model), weights(other))
    assert updater.clocks["ema"] == 10 and twin.clocks["ema"] == 0


def test_in_backward():
    """After an update; between backward and step some weights would be new and the rest of the update not."""
    model, other = net(), net()
    updater = gch.chain(gch.adam(0.1), ema()).bind(model, in_backward=True)
    twin = gch.chain(gch.adam(0.1), ema()).bind(other)
    for rows in data(4):
        for m, u in ((model, updater), (other, twin)):
            u.update(loss_of(m, rows))
            u.tick("ema")
    assert same(updater.averages(), twin.averages())
    updater.backward(loss_of(model, rows))
    with pytest.raises(RuntimeError, match=r"^tick: "):
        updater.tick("ema")
    updater.step()
    updater.tick("ema")


def test_numbers_that_are_shown_and_overridden_are_those_of_the_clock():
    model = net()
    updater = gch.chain(gch.sgd(gch.linear(1e-3, 0.0, 50)), ema(gch.linear(0.0, 0.8, 8))).bind(model)
    for rows in data(3):
        updater.update(loss_of(model, rows))
        updater.update(loss_of(model, rows))
        updater.tick("ema")
    assert updater.hyperparams()["average_params.decay"] == pytest.approx(0.3)
    lines = updater.explain().splitlines()
    assert "average_params works at ticks of 'ema', 3 so far, not at updates" in lines
    assert any(line.startswith("average_params.decay ends at tick 8 of 'ema': linear") for line in lines)
    assert any("learning_rate ends at update 50" in line for line in lines)
    updater.override("decay", lambda t: t / 100)
    assert updater.hyperparams()["average_params.decay"] == 0.03
    twin = Twin(model, lambda t, name: t / 100)
    twin.ticks, twin.average = 3, {n: a.tolist() for n, a in updater.averages().items()}
    updater.tick("ema", 2)
    twin.tick(model)
    twin.tick(model)
    twin.check(model, updater)
    each = gch.chain(gch.sgd(0.1), ema(gch.multiply(gch.linear(0.0, 1.0, 4), (gch.bias, 0.5)))).bind(net())
    each.tick("ema", 2)
    assert {row["average_params.decay"] for row in each.settings().values()} == {0.25, 0.5}


def test_the_engine_runs_steps_again_between_ticks():
    """Where a tick moved the state elsewhere, each step would be planned anew."""
    model = net()
    updater = gch.chain(gch.clip_by_norm(1.0), gch.adamw(0.1), ema()).bind(model)
    for rows in data(10):
        held = updater.averages()
        updater.update(loss_of(model, rows))
        updater.tick("ema")
        assert all(a.data_ptr() == updater.averages()[n].data_ptr() for n, a in held.items())
    assert updater._bound.engine.num_replayed == 9


def lit(fuse):
    def decay(step):
        if fuse and step >= 2:
            raise BoomError("schedule")
        return 0.5

    return decay


@pytest.mark.parametrize("amount", [1, 3])
def test_an_error_leaves_everything_as_it_was(amount):
    """In the second of two averages, and in a later of several ticks."""
    model, fuse = net(), [1]
    updater = gch.chain(gch.sgd(0.1), ("a", ema(0.9)), ("b", ema(lit(fuse)))).bind(model)
    updater.tick("ema", 2 if amount == 1 else 1)
    updater.update(loss_of(model, data(1)[0]))
    with untouched(model, updater), pytest.raises(BoomError):
        updater.tick("ema", amount)
    fuse.clear()
    updater.tick("ema", amount)
    assert updater.clocks["ema"] == (3 if amount == 1 else 4)


WRONG = {
    "half": 0.5, "one and a half": 1.5, "negative": -1, "nan": float("nan"), "inf": float("inf"), "a word": "1",
    "none": None, "a vector": torch.ones(2),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_number_of_ticks_is_refused(kind):
    model = net()
    updater = gch.chain(gch.sgd(0.1), ema()).bind(model)
    with untouched(model, updater), pytest.raises(ValueError, match=r"^tick: amount must be .*, got .*\.$"):
        updater.tick("ema", WRONG[kind])


@pytest.mark.parametrize("amount", [2, 2.0, torch.tensor(2)])
def test_numbers_of_other_kinds_are_numbers_of_ticks(amount):
    updater = ema().bind(net())
    updater.tick("ema", amount)
    assert updater.clocks["ema"] == 2 and updater.state_dict()["links"]["average_params"]["num_averaged"] == 2


def test_a_clock_that_nothing_reads_is_told_with_those_that_are():
    with pytest.raises(KeyError, match=r"tick: nothing reads the clock 'emma'. Clocks that are read: ema."):
        ema().bind(net()).tick("emma")


def test_not_while_the_model_has_its_average_weights():
    model = net()
    updater = gch.chain(gch.sgd(0.1), ema()).bind(model)
    with updater.averaged(), pytest.raises(RuntimeError, match=r"^tick: not inside `with updater\.averaged"):
        updater.tick("ema")
    with updater.averaged():
        other = gch.sgd(gch.by("epoch", gch.linear(0.1, 0.0, 3))).bind(net())
        other.tick("epoch", 0.5)


def test_not_in_the_middle_of_an_update():
    model = net()
    updater = gch.chain(gch.sam(0.1), gch.sgd(0.1), ema()).bind(model)
    calls = []

    def closure():
        if calls.append(0) or len(calls) == 2:
            updater.tick("ema")
        return loss_of(model, data(1)[0])

    with untouched(model, updater), pytest.raises(RuntimeError, match=r"^tick: must not be called while update of"):
        updater.update(closure)
    model.register_full_backward_hook(lambda *_: updater.tick("ema"))
    with untouched(model, updater), pytest.raises(RuntimeError, match=r"^tick: must not be called while update of"):
        updater.update(lambda: loss_of(model, data(1)[0].requires_grad_()))


@pytest.mark.parametrize("on", ["", "two words", 3, True, b"ema", ["ema"], "step", "micro"])
def test_what_is_no_clock_is_refused(on):
    with pytest.raises(ValueError, match=r"^average_params: on must be .*\. None averages at updates\.$"):
        gch.average_params(0.9, on=on)


def test_configs_say_on_where_there_is_one():
    """Without, it is a config as there was before: older files differ in nothing."""
    assert "'on'" not in str(gch.to_config(gch.average_params(0.9)))
    for tx in (ema(0.9, every=2), gch.average_params("mean")):
        assert gch.from_config(gch.to_config(tx)) == tx
        assert eval(repr(tx), {"average_params": gch.average_params}) == tx


def test_a_clock_that_nobody_ticks_is_told_of_once():
    updater = gch.chain(gch.sgd(0.1), ema()).bind(nn.Linear(1, 1))
    line = "average_params waits for updater.tick('ema'), which was not called"
    assert line in updater.explain().splitlines()
    one = {"weight": torch.ones(1, 1)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(PATIENCE + 3):
            updater.step(one)
    assert [str(w.message) for w in caught] == [f"update: {line} in 1000 updates, and changes nothing until then."]
    assert caught[0].filename == __file__
    updater.tick("ema")
    assert line not in updater.explain()


def test_rebind_and_reset_keep_the_clock():
    model = net()
    updater = gch.chain(gch.sgd(0.1), ema("mean")).bind(model)
    updater.tick("ema", 3)
    updater.rebind(nn.Sequential(*model, nn.Linear(2, 2).double()))
    updater.tick("ema")
    assert updater.clocks["ema"] == 4
    updater.reset()
    assert updater.clocks["ema"] == 4 and updater.state_dict()["links"]["average_params"]["num_averaged"] == 0


class count_ticks(gch.AtTicks):
    """A user's link that works at ticks: it counts them, and sums the weights."""

    class Seen(gch.State):
        total: gch.Tensors
        times: int = 0

    descends = False
    every_clock: str = "ema"

    @property
    def clock(self):
        return self.every_clock

    def init(self, params):
        return self.Seen(params.slot())

    def update(self, g, state, ctx):
        return g, state

    def ticked(self, state, ctx):
        return self.Seen(state.total + ctx.params, state.times + 1)


def test_a_users_link_works_at_ticks_too():
    model = net()
    updater = gch.chain(gch.sgd(0.1), gch.masked(count_ticks(), EARLY)).bind(model)
    total = torch.zeros(4, 3).double()
    for rows in data(3):
        updater.update(loss_of(model, rows))
        updater.tick("ema")
        total += model[0].weight.detach()
    held = updater.state_dict()["links"]["masked/count_ticks"]
    torch.testing.assert_close(held["total"]["0.weight"], total)
    assert held["times"] == 3 and set(held["total"]) == {"0.weight", "0.bias"}
