"""tick_on_plateau: a clock that ticks on a plateau, and the numbers that read it."""

import copy

import pytest
import torch
from test_plateau import SETTINGS, metrics
from torch import nn

import gradchain as gch

BOTH = ("patience", "threshold", "threshold_mode", "cooldown", "mode")
HEAD, BODY = gch.named("head.*"), gch.named("body.*")


def net():
    torch.manual_seed(0)
    return nn.ModuleDict({"body": nn.Linear(2, 3), "head": nn.Linear(3, 1)}).double()


def ones(model):
    return {name: torch.ones_like(p) for name, p in model.named_parameters()}


def fallen(start, factor, least=0.0):
    return gch.by("plateau", gch.schedules.exponential(start, factor).clip(low=least))


def bound(momentum, model=None, **given):
    watch = gch.rules.tick_on_plateau("val", "plateau", **given)
    return gch.chain(gch.trace(momentum), gch.scale_by_learning_rate(0.1), watch).bind(model or net())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "eps"])
def test_equals_mmengine(name, seed):
    """The momentum that its scheduler writes into two groups, after every observation: a walk with NaNs."""
    scheduler_of = pytest.importorskip("mmengine.optim").ReduceOnPlateauMomentum
    given = SETTINGS[name]
    factor, least = given.get("factor", 0.1), given.get("min_value", 0.0)
    momentum = gch.selectors.choose((HEAD, fallen(0.6, factor, least)), rest=fallen(0.9, factor, 2 * least))
    updater = bound(momentum, worst=1e9, **{k: v for k, v in given.items() if k in BOTH})
    groups = [{"params": [torch.zeros(1)], "momentum": m} for m in (0.9, 0.6)]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    names = {"threshold_mode": "threshold_rule", "mode": "rule"}
    theirs = {names.get(k, k): {"min": "less", "max": "greater"}.get(v, v) for k, v in given.items() if k in BOTH}
    scheduler = scheduler_of(optimizer, monitor="val", factor=factor, min_value=[2 * least, least], eps=0.0, **theirs)
    for x in [2e9, 1.5e9, *metrics(seed)]:
        updater.observe("val", x)
        scheduler.step()
        scheduler.step({"val": x})
        shown = updater.hyperparams()["trace.decay"]
        got = [shown["body.weight"], shown["head.weight"]]
        assert got == pytest.approx([group["momentum"] for group in optimizer.param_groups], rel=1e-12, abs=1e-12)
    assert optimizer.param_groups[0]["momentum"] < 0.9


def test_what_is_observed_counts_at_once_and_once():
    """Before any update, inside a window, and twice between two of them."""
    model = net()
    watch = gch.rules.tick_on_plateau("val", "plateau", patience=0)
    updater = gch.chain(gch.accumulate(2), gch.sgd(0.1, momentum=fallen(0.8, 0.5)), watch).bind(model)
    for x, now in ((1.0, 0.8), (2.0, 0.4), (0.5, 0.4)):
        updater.observe("val", x)
        assert updater.hyperparams()["trace.decay"] == now
    updater.step(ones(model))
    updater.observe("val", 3.0)
    updater.observe("other", 3.0)
    assert updater.step(ones(model)).hyperparams["trace.decay"] == updater.hyperparams()["trace.decay"] == 0.2
    updater.tick("plateau")  # by hand
    assert updater.hyperparams()["trace.decay"] == 0.1


@pytest.mark.parametrize("form", ["plain", "fixed"])
def test_saved_between_observations(form):
    """A state taken anywhere goes on as the run that it is of: the same weights, best, bad ones and ticks."""
    model, other = net(), net()
    updater, again = (
        bound(fallen(0.9, 0.7), model, patience=1, cooldown=2),
        bound(fallen(0.9, 0.7), other, patience=1, cooldown=2),
    )
    for t, x in enumerate(metrics(1, 30)):
        updater.observe("val", x)
        updater.step(ones(model))
        if t % 4 == 0:
            other.load_state_dict(model.state_dict())
            again.load_state_dict(copy.deepcopy(updater.state_dict(form=form)))
        else:
            again.observe("val", x)
            again.step(ones(other))
        assert torch.equal(other["head"].weight, model["head"].weight)
    assert updater.state_dict()["clocks"]["plateau"] > 3
    bad = updater.state_dict()
    bad["links"]["tick_on_plateau"]["num_bad"] = -1
    with pytest.raises(ValueError, match="num_bad"):
        updater.load_state_dict(bad)


def test_an_observation_that_fails_changes_nothing():
    """Its own numbers may be schedules, which may raise: then it was not made."""

    def patience(step):
        if step > 1:
            raise KeyError("no such step")
        return 0

    model = net()
    updater = bound(fallen(0.9, 0.5), model, patience=patience)
    updater.observe("val", 1.0)
    for _ in range(2):
        updater.step(ones(model))
    before = updater.state_dict()
    with pytest.raises(KeyError, match="no such step"):
        updater.observe("val", 2.0)
    after = updater.state_dict()
    assert all(after[key] == before[key] for key in ("clocks", "observed", "news"))
    assert after["links"]["tick_on_plateau"] == before["links"]["tick_on_plateau"]
    updater.override("patience", 0)
    updater.observe("val", 2.0)
    assert updater.state_dict()["clocks"]["plateau"] == 1


REFUSED = {
    "read by nothing": (
        gch.chain(gch.sgd(0.1, momentum=fallen(0.9, 0.5)), gch.rules.tick_on_plateau("val", "plateaus")),
        "bind: nothing reads the clock 'plateaus', which tick_on_plateau ticks. Clocks that are read: plateau. Write "
        "by('plateaus', schedule) for a number.",
    ),
    "worked at": (
        gch.chain(
            gch.sgd(0.1, momentum=fallen(0.9, 0.5)), gch.rules.tick_on_plateau("val", "plateau"),
            gch.average_params(0.9, on="plateau"),
        ),
        "bind: tick_on_plateau ticks 'plateau', at whose ticks average_params works. Give it a clock of its own.",
    ),
}  # fmt: skip


def test_an_override_may_be_the_one_that_reads():
    """Nothing else has to, and it is saved."""
    model = net()
    updater = gch.chain(gch.sgd(0.1, momentum=0.9), gch.rules.tick_on_plateau("val", "plateau", patience=0)).bind(model)
    updater.override("decay", fallen(0.9, 0.5))
    for x in (1.0, 2.0):
        updater.observe("val", x)
    assert updater.hyperparams()["trace.decay"] == 0.45
    other = gch.chain(gch.sgd(0.1, momentum=0.9), gch.rules.tick_on_plateau("val", "plateau", patience=0)).bind(net())
    other.load_state_dict(updater.state_dict())
    assert other.hyperparams()["trace.decay"] == 0.45


@pytest.mark.parametrize("name", REFUSED)
def test_a_clock_that_cannot_be_is_refused(name):
    chain, sentence = REFUSED[name]
    with pytest.raises(ValueError) as said:
        chain.bind(net())
    assert str(said.value) == sentence


def test_in_branches_and_masks():
    """Wherever it stands it hears what it waits for; two may tick one clock."""
    model = net()
    watch = gch.rules.tick_on_plateau("val", "plateau", patience=0)
    other = gch.rules.tick_on_plateau("loss", "plateau", patience=0)
    updater = gch.partition(
        (HEAD, gch.chain(gch.sgd(0.1, momentum=fallen(0.9, 0.5)), watch)),
        (BODY, gch.chain(gch.sgd(0.1, momentum=fallen(0.8, 0.5)), gch.masked(other, gch.bias))),
    ).bind(model)
    for name in ("val", "loss", "val", "loss"):
        updater.observe(name, 1.0)
    numbers = updater.hyperparams()
    assert sorted(v for a, v in numbers.items() if a.endswith("trace.decay")) == [0.2, 0.225]
    assert "waits for updater.observe('val', value)" not in str(updater.explain())


def test_a_number_observed_in_the_middle_of_an_update_ticks_nothing():
    """From a hook of backward: refused in a sentence, and watch, clock and weights are as they were."""
    model = net()
    updater = bound(fallen(0.9, 0.5), model, patience=0)
    for loss in (1.0, 2.0):
        updater.observe("val", loss)
    before = updater.state_dict()
    handle = model["head"].weight.register_hook(lambda g: updater.observe("val", 3.0))
    with pytest.raises(RuntimeError, match=r"^observe: must not be called while update of the same updater runs"):
        updater.update(model["head"](model["body"](torch.ones(1, 2).double())).sum())
    handle.remove()
    after = updater.state_dict()
    assert after["clocks"] == before["clocks"] and after["observed"] == before["observed"]
    updater.observe("val", 3.0)
    assert updater.state_dict()["clocks"]["plateau"] == before["clocks"]["plateau"] + 1
