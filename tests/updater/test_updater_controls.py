"""What a user reads and sets: hyperparameters, overrides, clocks, observations, metrics, info, counters."""

import math

import pytest
import torch
from little import data, loss_of, net, same, untouched, weights

import gradchain as gch

RATE = "scale_by_learning_rate.learning_rate"


def falling(step):
    return 0.1 * 0.5**step


def make(**options):
    model = net()
    tx = gch.chain(gch.clip_by_norm(0.5), gch.scale_by_adam(b2=0.95), gch.scale_by_learning_rate(falling))
    return model, tx.bind(model, **options)


def train(model, updater, n=1, seed=1):
    for rows in data(n, seed):
        info = updater.update(loss_of(model, rows))
    return info


def twin(rates):
    """torch's Adam behind its clip, with these learning rates."""
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), 0.1, betas=(0.9, 0.95))
    for rows, rate in zip(data(len(rates)), rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss_of(model, rows).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return model


# hyperparameters


def test_hyperparams_are_those_of_the_coming_update():
    """hyperparams(): address → the number the coming update will use; info.hyperparams: those just used."""
    model, updater = make()
    assert updater.hyperparams() == {
        "clip_by_norm.max_norm": 0.5, "clip_by_norm.eps": 1e-6, "scale_by_adam.b1": 0.9, "scale_by_adam.b2": 0.95,
        "scale_by_adam.eps": 1e-8, "scale_by_adam.eps_root": 0.0, RATE: 0.1,
    }  # fmt: skip
    for t in range(3):
        coming = updater.hyperparams()
        info = train(model, updater)
        assert info.hyperparams == coming
        assert coming[RATE] == falling(t)


def test_a_held_update_uses_and_shows_the_same_numbers():
    """Inside a window the learning rate does not move."""
    model = net()
    updater = gch.chain(gch.accumulate(2), gch.sgd(falling)).bind(model)
    infos = [updater.update(loss_of(model, r)) for r in data(4)]
    assert [i.hyperparams[RATE] for i in infos] == [0.1, 0.1, 0.05, 0.05]
    assert [i.step for i in infos] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"value": 0.02}, [0.1, 0.05, 0.02, 0.02, 0.1 / 16]),
        ({"value": lambda step: 0.01 * step}, [0.1, 0.05, 0.02, 0.03, 0.1 / 16]),
        ({"factor": 0.5}, [0.1, 0.05, 0.0125, 0.00625, 0.1 / 16]),
        ({"value": 0.0}, [0.1, 0.05, 0.0, 0.0, 0.1 / 16]),
    ],
)
def test_override(options, rates):
    """By number, schedule or factor, from now on; None ends it. Weights are as torch's with those learning rates."""
    model, updater = make()
    for t, rows in enumerate(data(5)):
        if t == 2:
            updater.override("learning_rate", **options)
        if t == 4:
            updater.override("learning_rate", None)
        assert updater.hyperparams()[RATE] == pytest.approx(rates[t], rel=1e-15)
        updater.update(loss_of(model, rows))
    torch.testing.assert_close(weights(model), weights(twin(rates)), rtol=1e-12, atol=1e-14)


BAD_OVERRIDES = {
    "unknown": (("learning_rat", 1.0), {}, KeyError, "override: there is no 'learning_rat'. Did you mean .*'learning_"),
    "ambiguous": (("eps", 1.0), {}, KeyError, "override: 'eps' is ambiguous. It could be any of: clip_by_norm.eps, sc"),
    "range": (("b1", 1.0), {}, ValueError, r"scale_by_adam: b1 must be in \[0, 1\), got 1.0."),
    "nan": (("learning_rate", math.nan), {}, ValueError, r"scale_by_learning_rate: learning_rate must be in \[0, inf"),
    "type": (("learning_rate", "0.1"), {}, TypeError, "scale_by_learning_rate: learning_rate must be a number or a sc"),
    "both": (("learning_rate", 1.0), {"factor": 2.0}, ValueError, "override: give a value or factor=, not both."),
    "factor": (
        ("b1",), {"factor": 2.0}, ValueError,
        r"override: factor must leave scale_by_adam.b1 in \[0, 1\), got 2.0, which makes 1.8 of 0.9."),
    "factor type": (("b1",), {"factor": "2"}, TypeError, "override: factor must be a finite number, got '2'."),
    "factor nan": (("b1",), {"factor": math.nan}, ValueError, "override: factor must be a finite number, got nan."),
    "read once": (("init_scale", 4.0), {}, ValueError, "override: amp_scale.init_scale is read once, before the first"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_OVERRIDES)
def test_bad_overrides(kind):
    """Unknown and ambiguous names list the candidates; values are checked as the constructor checks them."""
    args, options, error, sentence = BAD_OVERRIDES[kind]
    model = net()
    updater = gch.chain(
        gch.amp_scale(always=True), gch.clip_by_norm(0.5), gch.scale_by_adam(), gch.scale_by_learning_rate(0.1)
    ).bind(model)
    with untouched(model, updater), pytest.raises(error, match=sentence):
        updater.override(*args, **options)
    assert train(model, updater)


LINKS = {
    "rate": (gch.scale_by_learning_rate(0.1), "learning_rate"),
    "schedule": (gch.scale_by_learning_rate(gch.linear(0.0, 0.1, 10)), "learning_rate"),
    "function": (gch.scale_by_learning_rate(lambda step: 0.01 * step), "learning_rate"),
    "per parameter": (gch.scale_by_learning_rate(gch.multiply(0.1, (gch.bias, 2.0))), "learning_rate"),
    "tensor": (gch.scale_by_learning_rate(torch.tensor(0.1)), "learning_rate"),
    "decay": (gch.add_decayed_weights(0.0), "weight_decay"),
    "b1": (gch.scale_by_adam(), "b1"),
    "clip": (gch.clip_by_norm(1.0), "max_norm"),
    "window": (gch.accumulate(2), "every"),
}


@pytest.mark.parametrize("factor", [-1.0, -1, -0.5, -1e-9])
@pytest.mark.parametrize("kind", LINKS)
def test_a_negative_factor_is_refused_at_once_where_no_number_below_0_may_stand(kind, factor):
    """Also where the number is 0 now, and would be out of range at a later step: the factor is what is wrong."""
    link, name = LINKS[kind]
    model = net()
    updater = (gch.chain(link) if "rate" in name else gch.chain(link, gch.sgd(0.1))).bind(model)
    with (
        untouched(model, updater),
        pytest.raises(ValueError, match=rf"^override: factor must leave \w+\.{name} .*, got"),
    ):
        updater.override(name, factor=factor)
    train(model, updater)
    assert updater.num_micro == 1


@pytest.mark.parametrize(("name", "factor"), [("b1", 1.2), ("every", 0.3), ("max_norm", 0.0), ("b2", 1e9)])
def test_a_factor_that_leaves_the_range_is_what_the_sentence_is_about(name, factor):
    model = net()
    updater = gch.chain(gch.accumulate(2), gch.clip_by_norm(1.0), gch.adam(0.1)).bind(model)
    with untouched(model, updater), pytest.raises(ValueError, match=rf"^override: factor must leave .*{name} .*of "):
        updater.override(name, factor=factor)


def test_a_factor_that_a_schedule_leaves_the_range_with_is_named_later():
    """The sentence of the update says that an override multiplies."""
    model = net()
    updater = gch.adam(0.1, b1=gch.linear(0.1, 0.9, 2)).bind(model)
    updater.override("b1", factor=2.0)
    with pytest.raises(
        ValueError, match=r"b1 must be in \[0, 1\), got 1.0\. It came .* An override multiplies it by 2.0"
    ):
        for _ in range(3):
            train(model, updater)


def test_a_negative_factor_is_right_where_numbers_below_0_are():
    model = net()
    updater = gch.chain(gch.scale_by_adam(), gch.scale(0.1), gch.scale(-1.0)).bind(model)
    updater.override("scale.step_size", factor=-1)
    assert updater.hyperparams()["scale.step_size"] == -0.1


@pytest.mark.parametrize("value", [math.nan, -1.0, "x", None])
@pytest.mark.parametrize("where", ["code", "override"])
def test_a_schedule_that_gives_nonsense(value, where):
    """A schedule out of range at some step: a sentence that names it, the address and the step; nothing changes."""

    def broken(step):
        return value if step == 1 else 0.1

    model = net()
    updater = gch.adam(broken if where == "code" else 0.1).bind(model)
    if where == "override":
        updater.override("learning_rate", broken)
    train(model, updater)
    sentence = "scale_by_learning_rate: learning_rate must be .*, got .* It came from .*broken.* at step 1."
    error = ValueError if isinstance(value, float) else TypeError
    with untouched(model, updater), pytest.raises(error, match=sentence):
        train(model, updater)
    with pytest.raises(error, match=sentence):
        updater.hyperparams()


# clocks


def test_clocks():
    """A by(clock, …) schedule reads the clock the user ticks; "step" and "micro" tick by themselves, held ones too."""
    model = net()
    updater = gch.chain(
        gch.accumulate(2),
        gch.add_decayed_weights(gch.by("micro", lambda m: 0.01 * m)),
        gch.sgd(gch.by("samples", gch.linear(0.1, 0.0, 100))),
    ).bind(model)
    seen = []
    for rows in data(4):
        values = updater.hyperparams()
        seen.append((values[RATE], values["add_decayed_weights.weight_decay"]))
        updater.update(loss_of(model, rows))
        updater.tick("samples", 10)
    assert [s[0] for s in seen] == pytest.approx([0.1, 0.09, 0.08, 0.07])
    assert [s[1] for s in seen] == pytest.approx([0.0, 0.01, 0.02, 0.03])
    assert updater.clocks == {"step": 2, "micro": 4, "samples": 40}


def test_bad_ticks():
    """A clock that nothing reads, one that ticks by itself, and no amount, are refused."""
    _model, updater = make()
    with pytest.raises(KeyError, match=r"tick: nothing reads the clock 'epoch'. Clocks that are read: none."):
        updater.tick("epoch")
    for name, unit in (("step", "update"), ("micro", r"step\(\)")):
        with pytest.raises(ValueError, match=f"tick: '{name}' ticks by itself, once per {unit}."):
            updater.tick(name)
    updater.override("learning_rate", gch.by("epoch", lambda e: 0.1))
    updater.tick("epoch", 2.5)
    for amount in (-1, math.nan, "1", True, math.inf):
        with pytest.raises(ValueError, match="tick: amount must be a finite number of at least 0, got"):
            updater.tick("epoch", amount)
    assert updater.clocks["epoch"] == 2.5
    updater.override("learning_rate", None)
    with pytest.raises(KeyError, match="nothing reads the clock 'epoch'"):
        updater.tick("epoch")


def test_observe():
    """observe puts a number where links see it; anything else is a sentence."""
    seen = []

    def look(g, w, ctx):
        seen.append(dict(ctx.observed))
        return g

    model = net()
    updater = gch.chain(gch.stateless(look), gch.sgd(0.1)).bind(model)
    train(model, updater)
    updater.observe("val_loss", torch.tensor([0.5]))
    updater.observe("accuracy", 1)
    train(model, updater)
    assert seen == [{}, {"val_loss": 0.5, "accuracy": 1.0}]
    for bad in (torch.ones(2), "1", None, True):
        with pytest.raises(TypeError, match="observe: takes a name and a number, got 'x' and "):
            updater.observe("x", bad)
    for far in (10**400, -(10**400)):
        with untouched(model, updater), pytest.raises(ValueError, match="observe: 'x' must be a number that a float"):
            updater.observe("x", far)


# what comes back


def test_info_reads_what_links_recorded():
    """info["…"] takes any unique suffix; an unknown name lists what there is; `in` and iteration agree with it."""
    model, updater = make()
    info = train(model, updater)
    norm = info["clip_by_norm.norm"]
    assert norm > 0 and info["norm"] == norm and updater.metrics["norm"] == norm
    assert list(info) == ["clip_by_norm.norm"] and "norm" in info and "clip_by_norm.norm" in info and "nope" not in info
    assert "norm" in updater.metrics and dict(updater.metrics) == {"clip_by_norm.norm": norm}
    assert repr(info) == f"UpdateInfo('applied', step=0, clip_by_norm.norm={norm:.6g})"
    with pytest.raises(KeyError, match=r"info: there is no 'nope'.* There are: clip_by_norm.norm"):
        info["nope"]


def test_info_of_a_held_update_says_why():
    """A name that was not recorded because the chain was held is a KeyError with the reason; metrics has the last."""
    model = net()
    updater = gch.chain(gch.accumulate(2), gch.clip_by_norm(0.5), gch.sgd(0.1)).bind(model)
    rows = data(3)
    updater.update(loss_of(model, rows[0]))
    norm = updater.update(loss_of(model, rows[1]))["norm"]
    info = updater.update(loss_of(model, rows[2]))
    assert not info and info.reason == "window"
    with pytest.raises(KeyError, match=r"there is no 'norm'.*The chain was held \('window'\); links after the holder"):
        info["norm"]
    assert updater.metrics["norm"] == norm


def test_info_is_a_snapshot():
    """An info kept for later does not change with later updates, overrides and ticks."""

    def shown(info):
        return info["norm"], dict(info.hyperparams), info.loss.item(), info.step, bool(info)

    model = net()
    updater = gch.chain(gch.clip_by_norm(0.5), gch.sgd(gch.by("epoch", lambda e: 0.1 / (1 + e)))).bind(model)
    infos, then = [], []
    for t, rows in enumerate(data(4)):
        infos.append(updater.update(loss_of(model, rows)))
        then.append(shown(infos[-1]))
        updater.tick("epoch")
        updater.override("max_norm", 0.5 + t)
    now = [shown(i) for i in infos]
    assert now == then and len({n[0] for n in now}) == 4


def test_records_are_read_lazily():
    """`applied`, truth and reason wait for nothing: a recorded tensor is read only when it is asked for."""

    class Unready(torch.Tensor):
        def item(self):
            raise AssertionError("read too early")

    def note(g, w, ctx):
        ctx.record("late", torch.ones(()).as_subclass(Unready))
        return g

    model = net()
    updater = gch.chain(gch.stateless(note), gch.sgd(0.1)).bind(model)
    info = train(model, updater)
    assert info and info.applied and info.reason == "applied" and len(updater.metrics) == 1
    with pytest.raises(AssertionError, match="read too early"):
        info["late"]


def test_a_users_holder_gives_its_reason():
    """A user's link that holds the chain: nothing is applied, its reason is in info, it counts as skipped."""

    class odd_only(gch.Transform):
        holds = "even"
        descends = False

        def update(self, g, state, ctx):
            return (g if ctx.clocks["micro"] % 2 else None), state

    model = net()
    updater = gch.chain(odd_only(), gch.sgd(0.1)).bind(model)
    reasons = []
    for rows in data(4):
        kept = weights(model)
        info = updater.update(loss_of(model, rows))
        reasons.append(info.reason)
        assert info.applied != same(weights(model), kept)
    assert reasons == ["even", "applied", "even", "applied"]
    assert (updater.num_updates, updater.num_micro, updater.num_skipped) == (2, 4, 2)


def test_counters_and_nonfinite():
    """skip_nonfinite: reason, detail, counters; one skip too many raises and changes nothing."""
    model = net()
    updater = gch.chain(gch.skip_nonfinite(1), gch.adam(0.1)).bind(model)
    rows = data(4)
    train(model, updater)
    info = updater.update(loss_of(model, rows[1]) * math.inf)
    assert info.reason == "nonfinite" and "first offending parameter is '0.weight'" in info.detail
    with untouched(model, updater), pytest.raises(FloatingPointError, match="skip_nonfinite: at most 1 updates in a r"):
        updater.update(loss_of(model, rows[2]) * math.inf)
    assert updater.update(loss_of(model, rows[3]))
    assert (updater.num_updates, updater.num_micro, updater.num_skipped) == (2, 3, 1)
