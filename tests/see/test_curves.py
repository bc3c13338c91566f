"""Curves: what is drawn is what an update uses, at every step; borders and ends; groups; what is refused."""

import gzip
import json
import math
from pathlib import Path

import pytest
import torch
from later import later
from torch import nn

import gradchain as gch
from gradchain.adapters import mmengine
from gradchain.see.run import EVERY, Run
from gradchain.see.subjects import subjects_of

S = gch.schedules
DATA = Path(__file__).parents[3] / "shared" / "openmmlab"
recorded = pytest.mark.skipif(not DATA.exists(), reason="the recorded recipes are not at ../shared/openmmlab")


def model():
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def drawn(figure, address):
    """The lines of a hyperparameter: label → the numbers by update, on the linear panel; the log one has the same."""
    panels = [[line for line in axes.get_lines() if line.get_gid() == address] for axes in figure.axes]
    found = [{line.get_label(): points(line) for line in lines} for lines in panels if lines]
    assert found and all(one == found[0] for one in found)
    return found[0]


def points(line):
    return dict(zip(map(int, line.get_xdata()), map(float, line.get_ydata()), strict=True))


def marked(figure, address, kind):
    """The updates with an upright line of a kind in the panels of a hyperparameter."""
    panels = [axes for axes in figure.axes if any(line.get_gid() == address for line in axes.get_lines())]
    found = [sorted(line.get_xdata()[0] for line in axes.get_lines() if line.get_gid() == kind) for axes in panels]
    assert all(one == found[0] for one in found)
    return found[0]


RATE = "scale_by_learning_rate.learning_rate"
CLIMB = gch.linear(0.0, 0.4, 7)
SCHEDULES = {
    "linear": (CLIMB, [], [7]),
    "then": (CLIMB.then(gch.cosine(0.4, 0.0, 20)), [7], [27]),
    "three parts": (CLIMB.then(gch.constant(0.4).take(5)).then(gch.cosine(0.4, 0.0, 9)), [7, 12], [21]),
    "join with a gap": (gch.join((2, 9, CLIMB), (15, 30, gch.linear(0.4, 0.1, 15))), [2, 9, 15], [30]),
    "join, the last without an end": (
        gch.join((0, 7, CLIMB), (12, None, S.multi_step(0.4, (4, 8)))),
        [7, 12, 16],
        [20],
    ),
    "join, absolute": (gch.join((3, 20, gch.linear(0.5, 0.1, 12)), absolute=True), [3, 12], [20]),
    "multi_step": (S.multi_step(0.5, (10, 20)), [10], [20]),
    "step_decay": (S.step_decay(0.5, 10), [10, 20, 30, 40], []),
    "step_decay, taken": (S.step_decay(0.5, 10).take(25), [10, 20], [25]),
    "piecewise": (S.piecewise((0, 0.5), (5, 0.4), (30, 0.1), shape="linear"), [5], [30]),
    "per_epoch": (S.per_epoch(S.multi_step(0.5, (2, 3)), 10), [20], [30]),
    "warm-up times stairs": (CLIMB * S.per_epoch(S.multi_step(0.5, (2, 3)), 10), [7, 20], [30]),
    "overlay": (S.overlay(0.5, (0, 8, gch.linear(0.2, 1.0, 7)), (4, 30, 0.5)), [4, 7, 8], [30]),
    "repeated": (gch.linear(0.4, 0.1, 10).repeat(3), [10, 20], [30]),
    "restarts": (S.cosine_restarts(0.4, 0.0, 5, 2, cycles=3), [5, 15], [35]),
    "one cycle": (S.one_cycle(0.1, 0.4, 8, 34), [8], [34]),
    "one cycle and back": (S.one_cycle(0.1, 0.4, 8, 34, return_steps=20), [8, 20], [34]),
    "warm-up, stable, decay": (S.warmup_stable_decay(0.0, 0.4, 8, 34, 10), [8, 24], [34]),
    "warm-up and cosine": (S.warmup_cosine(0.0, 0.4, 8, 34), [8], [34]),
    "inverse square root": (S.inverse_sqrt(0.0, 0.4, 8), [8], []),
    "clipped": (gch.cosine(0.4, 0.0, 30).clip(low=0.1), [], [30]),
    "a fraction of an update": (gch.linear(0.0, 0.4, 7.5).then(gch.cosine(0.4, 0.0, 20)), [8], [28]),
    "the clock of micro-batches": (gch.by("micro", CLIMB.then(gch.cosine(0.4, 0.0, 20))), [7], [27]),
    "a function": (lambda step: 0.5 / (1 + step), [], []),
    "a schedule of a user's": (type("halving", (S.Schedule,), {"curve": lambda self, t: 0.5**t})(), [], []),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_schedule_is_drawn_at_every_update_and_its_borders_are_marked(name):
    schedule, borders, ends = SCHEDULES[name]
    figure = gch.see.curves(gch.sgd(schedule), 40)
    at = schedule.at if isinstance(schedule, S.Schedule) else lambda clocks: schedule(clocks["step"])
    (values,) = drawn(figure, RATE).values()
    assert values == {step: at({"step": step, "micro": step}) for step in range(40)}
    assert marked(figure, RATE, "border") == borders and marked(figure, RATE, "end") == ends


CHAINS = {
    "adamw, per parameter": lambda: gch.adamw(
        gch.multiply(CLIMB.then(gch.cosine(0.4, 0.0, 9)), (gch.bias, 2.0), (gch.named("0.*"), 0.1)),
        b1=gch.linear(0.85, 0.95, 9),
        weight_decay=gch.multiply(0.01, (gch.norm | gch.bias, 0.0)),
    ),
    "a window": lambda: gch.chain(gch.accumulate(3), gch.sgd(gch.by("micro", gch.linear(0.1, 0.0, 40)))),
    "a window that grows": lambda: gch.chain(
        gch.accumulate(lambda step: 1 + step // 2), gch.sgd(gch.by("micro", gch.linear(0.1, 0.0, 40)), momentum=0.9)
    ),
    "branches": lambda: gch.partition(
        ("deep", gch.named("0.*"), gch.adamw(gch.linear(0.1, 0.0, 8))),
        (gch.rest, gch.sgd(lambda step: 0.1 / (1 + step))),
    ),
    "choose": lambda: gch.sgd(gch.choose((gch.bias, gch.linear(0.1, 0.0, 9)), rest=gch.multiply(0.2, (gch.norm, 0.5)))),
    "a mapping, a function, layers": lambda: gch.sgd(
        gch.multiply(
            gch.linear(0.2, 0.1, 9), {"0.weight": 3.0}, lambda name, p: 1.0 + p.ndim,
            gch.layer_decay(0.5, lambda name, p, owner: int(name[0]), total=3),
        )
    ),
    "a mean of the weights": lambda: gch.chain(gch.sgd(0.1), gch.average_params(S.ema_warmup(0.9))),
    "a tensor": lambda: gch.sgd(torch.tensor(0.25), momentum=gch.linear(0.5, 0.9, 5)),
}  # fmt: skip


def used(updater, net, updates):
    """What each update used, as the updater says itself: address → numbers by update, or by parameter and update."""
    seen = []
    while updater.num_updates < updates:
        info = updater.update(net(torch.ones(4, 3)).square().mean())
        if info:
            seen.append(info.hyperparams)
    return seen


@pytest.mark.parametrize("name", CHAINS)
def test_lines_are_what_a_run_uses(name):
    """For every parameter: the groups are those that have its number at each update."""
    net = model()
    updater = CHAINS[name]().bind(net)
    run = Run("test", subjects_of("test", updater), 12, {})
    for step, hypers in enumerate(used(updater, net, 12)):
        assert hypers.keys() == run.curves.keys()
        for address, value in hypers.items():
            given = [*value.values()] if isinstance(value, dict) else [value]
            counted = [curve.values[step] for curve in run.curves[address] for _ in range(curve.line.count)]
            if isinstance(value, dict):
                assert sorted(counted) == sorted(given), (address, step)
            else:
                assert {*counted} == {*given}, (address, step)


def test_all_of_them_are_in_the_figure():
    """What moves or differs as lines, one for each group; the others in words."""
    figure = gch.see.curves(CHAINS["adamw, per parameter"]().bind(model()))
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left") != ""] == [
        RATE, "the same, on a log scale", "scale_by_adam.b1", "add_decayed_weights.weight_decay",
    ]  # fmt: skip
    assert [*drawn(figure, "add_decayed_weights.weight_decay")] == ["the others (2)", "norm | bias x0 (4)"]
    assert sorted(drawn(figure, RATE)) == [
        "bias x2 (2)", 'bias x2, named("0.*") x0.1 (1)', 'named("0.*") x0.1 (1)', "the others (2)",
    ]  # fmt: skip
    (said,) = [text.get_text() for axes in figure.axes for text in axes.texts if "constant" in text.get_text()]
    assert (
        " ".join(said.split()) == "constant: scale_by_adam.b2 0.999, scale_by_adam.eps 1e-08, scale_by_adam.eps_root 0"
    )


@pytest.mark.parametrize("name", ["learning_rate", "b1", "average_params.decay", "add_decayed_weights.weight_decay"])
def test_only_what_is_one_number_for_all_over_the_run_is_called_constant(name):
    """What is not drawn and moves, or differs among parameters, is named without a number."""
    updater = gch.chain(CHAINS["adamw, per parameter"](), gch.average_params(S.warmup_cosine(0.0, 0.9, 4, 12))).bind(
        model()
    )
    figure = gch.see.curves(updater, names=[name])
    (text,) = [text.get_text() for axes in figure.axes for text in axes.texts if "constant" in text.get_text()]
    said = " ".join(text.split())
    constant, _, others = said.partition(" not drawn: ")
    assert constant.startswith("constant: ")
    told = dict(word.rsplit(" ", 1) for word in constant.removeprefix("constant: ").split(", "))
    run = Run("test", subjects_of("test", updater), None, {})
    values = {a: {v for curve in curves for v in curve.values} for a, curves in run.curves.items()}
    (drawn_one,) = run.chosen([name])
    one = {a: next(iter(found)) for a, found in values.items() if len(found) == 1 and a != drawn_one}
    assert {a: float(number) for a, number in told.items()} == pytest.approx(one)
    assert sorted(others.split(", ")) == sorted(values.keys() - one.keys() - {drawn_one})


def test_those_that_are_named_are_drawn_whatever_they_are():
    figure = gch.see.curves(gch.adamw(gch.cosine(0.1, 0.0, 9)), names=["b2", "weight_decay"])
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == [
        "scale_by_adam.b2", "add_decayed_weights.weight_decay",
    ]  # fmt: skip


def test_without_a_model_each_rule_is_a_group():
    lr = gch.multiply(gch.linear(1.0, 0.0, 10), gch.first((gch.norm, 0.5), (gch.bias, 2.0)), {"head.weight": 10.0})
    lines = drawn(gch.see.curves(gch.sgd(lr)), RATE)
    assert {label: values[0] for label, values in lines.items()} == {
        "the others": 1.0, "norm x0.5": 0.5, "bias x2": 2.0, '"head.weight" x10': 10.0,
    }  # fmt: skip
    layers = gch.multiply(0.1, gch.layer_decay(0.5, gch.selectors.depth.vit(12)), (gch.bias, 0.0))
    found = drawn(gch.see.curves(gch.sgd(layers), 10), RATE)
    assert len(found) == 15 and found["layer 0 of 14 x0.00012207"][0] == 0.1 * 0.5**13
    inner = gch.choose((gch.bias, gch.linear(1.0, 0.0, 4)), rest=lr)
    assert [*drawn(gch.see.curves(gch.sgd(inner)), RATE)][:2] == ["bias", "the others: the others"]


def test_with_a_model_a_chain_has_its_groups():
    lr = gch.multiply(gch.linear(1.0, 0.0, 10), (gch.bias, 2.0))
    assert drawn(gch.see.curves(gch.sgd(lr), model=model()), RATE) == drawn(
        gch.see.curves(gch.sgd(lr).bind(model())), RATE
    )


def test_several_updaters_are_in_one_figure():
    both = gch.group(
        g=gch.sgd(gch.linear(1.0, 0.0, 10)).bind(model()), d=gch.sgd(gch.linear(2.0, 0.0, 20)).bind(model())
    )
    figure = gch.see.curves(both)
    (first,), (second,) = (drawn(figure, f"{name}/{RATE}").values() for name in "gd")
    assert (first[5], second[5]) == (0.5, 1.5) and len(first) == len(second) == 21


def test_overrides_are_in_force():
    updater = gch.sgd(gch.linear(1.0, 0.0, 10), momentum=0.9).bind(model())
    updater.override("learning_rate", factor=0.5)
    updater.override("decay", gch.linear(0.5, 0.9, 20))
    figure = gch.see.curves(updater)
    (rates,), (decays,) = drawn(figure, RATE).values(), drawn(figure, "trace.decay").values()
    assert rates[4] == 0.5 * gch.linear(1.0, 0.0, 10)(4) and decays[10] == gch.linear(0.5, 0.9, 20)(10)
    assert updater.num_updates == 0


def test_clocks_are_said_how_to_go():
    tx = gch.sgd(gch.by("epoch", S.multi_step(1.0, (2, 3))) * gch.by("samples", gch.linear(1.0, 0.0, 6400)))
    with pytest.raises(LookupError, match=r"see\.curves: clocks must say how 'epoch' goes, in updates for each tick"):
        gch.see.curves(tx, 100)
    figure = gch.see.curves(tx, 100, clocks={"epoch": 10, "samples": lambda update: 64 * update})
    (values,) = drawn(figure, RATE).values()
    assert values == {u: 0.1 ** ((u >= 20) + (u >= 30)) * (1 - 64 * u / 6400) for u in range(100)} or all(
        math.isclose(values[u], 0.1 ** ((u >= 20) + (u >= 30)) * (1 - 64 * u / 6400)) for u in range(100)
    )
    assert marked(figure, RATE, "border") == [20, 30] and marked(figure, RATE, "end") == [100]


def test_a_link_that_works_at_ticks_is_drawn_by_its_clock():
    tx = gch.chain(gch.sgd(0.1), gch.average_params(gch.linear(0.5, 0.9, 4), on="epoch"))
    (values,) = drawn(gch.see.curves(tx, 60, clocks={"epoch": 10}), "average_params.decay").values()
    assert values == {u: gch.linear(0.5, 0.9, 4)(u // 10) for u in range(60)}


def test_a_long_run_has_fewer_points_and_all_borders():
    """Both sides of each, so that stairs are upright."""
    tx = gch.sgd(S.multi_step(0.1, (123_457, 900_001)))
    (values,) = drawn(gch.see.curves(tx, 1_000_000), RATE).values()
    assert EVERY <= len(values) < EVERY + 12 and {0, 999_999} <= set(values)
    assert values[123_456] == 0.1 and values[123_457] == 0.1 * 0.1 and values[900_000] == 0.1 * 0.1


@pytest.mark.parametrize("width", [4.0, 10.0])
def test_words_stand_apart(width):
    """No text lies over another one, nor beyond the edge, however narrow."""
    wordy = 'named("a_module_with_a_long_name.*", "another.*")'
    lr = gch.multiply(gch.join(*((100 * i, 100 * (i + 1), gch.linear(0.1, 0.0, 100)) for i in range(12))),
                      (gch.named("a_module_with_a_long_name.*", "another.*"), 0.1), (gch.bias, 2.0))  # fmt: skip
    figure = gch.see.curves(gch.adamw(lr, b1=gch.linear(0.8, 0.9, 1199)), width=width)
    assert wordy in "".join(drawn(figure, RATE))
    check_apart(figure)


def check_apart(figure):
    """Of every two texts that are seen, neither covers the other; none is cut off by the edge."""
    figure.canvas.draw()
    boxes = [(text.get_text(), *text.get_window_extent().extents) for text in seen(figure) if text.get_text()]
    for i, (said, left, low, right, high) in enumerate(boxes):
        assert left >= -1 and right <= figure.bbox.x1 + 1 and low >= -1, said
        for other, x0, y0, x1, y1 in boxes[:i]:
            assert right < x0 + 1 or x1 < left + 1 or high < y0 + 2 or y1 < low + 2, (said, other)


def seen(figure):
    """The texts on the paper: labels of ticks outside of the limits are not."""
    yield from figure.texts
    for axes in figure.axes:
        yield from axes.texts
        if not axes.axison:
            continue
        yield from (axes._left_title, axes.xaxis.label, *(axes.get_legend().get_texts() if axes.get_legend() else ()))
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
            yield from (label for place, label in ticks if min(low, high) <= place <= max(low, high))


def test_texts_that_lie_over_each_other_are_seen():
    figure = gch.see.curves(gch.sgd(gch.linear(1.0, 0.0, 10)))
    figure.axes[0].text(0.5, 0.5, "one")
    figure.axes[0].text(0.5, 0.5, "two")
    figure.canvas.draw()
    with pytest.raises(AssertionError, match="one"):
        check_apart(figure)


def test_no_window_is_opened():
    """Figures are matplotlib's own, and pyplot does not hear of them."""
    before = later("matplotlib.pyplot").get_fignums()
    gch.see.curves(gch.sgd(gch.linear(1.0, 0.0, 10)))
    assert later("matplotlib.pyplot").get_fignums() == before


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        ({"subject": 3}, TypeError, "the first argument must be a chain, an updater or a group, got int"),
        ({"subject": nn.Linear(1, 1)}, TypeError, "must be a chain, an updater or a group, got Linear"),
        ({"updates": 0}, ValueError, "updates must be a whole number from 1 to 1000000000, got 0"),
        ({"updates": 1.5}, ValueError, "updates must be a whole number"),
        ({"updates": True}, ValueError, "updates must be a whole number"),
        ({"updates": 10**12}, ValueError, "updates must be a whole number"),
        ({"subject": gch.sgd(0.1)}, ValueError, "updates must be given, for no schedule of the chain has an end"),
        ({"names": []}, ValueError, "names must be a list of at least one name"),
        ({"names": "b1"}, ValueError, "names must be a list of at least one name, got 'b1'"),
        ({"names": ["rho"]}, KeyError, "see.curves"),
        ({"width": 1}, ValueError, "width must be inches from 4 to 100, got 1"),
        ({"width": math.nan}, ValueError, "width must be inches"),
        ({"clocks": {"epoch": 0}}, ValueError, r"clocks\['epoch'\] must be updates for each tick, above 0, got 0"),
        ({"model": nn.Linear(1, 1), "subject": gch.sgd(0.1).bind(nn.Linear(1, 1))}, TypeError, "must not come with"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_in_a_sentence(given, error, sentence):
    with pytest.raises(error, match=sentence) as refusal:
        gch.see.curves(**{"subject": gch.sgd(gch.linear(1.0, 0.0, 10)), **given})
    assert str(refusal.value.args[0]).startswith("see.curves: ")


def test_matplotlib_that_is_missing_is_said(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"see\.curves: needs the package matplotlib.*gradchain\[see\]"):
        gch.see.curves(gch.sgd(gch.linear(1.0, 0.0, 10)))


# against MMEngine


def rows(name):
    with gzip.open(DATA / name, "rt") as file:
        return [json.loads(line) for line in file]


def picked():
    """Of each kind of schedulers the shortest recipe, of one optimizer without a hook of its own; some of these."""
    if not DATA.exists():
        return []
    recipes = {row["id"]: row for row in rows("recipes.jsonl.gz")}
    kinds = {}
    for row in sorted(rows("trajectories.jsonl.gz"), key=lambda row: row["total_steps"]):
        recipe = recipes.get(row["id"])
        if recipe is None or recipe.get("scheduler_hook"):
            continue
        if recipe["optim_wrapper"].get("optimizer", {}).get("type") not in ("SGD", "Adam", "AdamW"):
            continue
        given = recipe["param_scheduler"] or []
        if row["total_steps"] <= 8_000 and isinstance(row["lr"][0], list):
            kinds.setdefault(tuple(s["type"] for s in (given if isinstance(given, list) else [given])), (recipe, row))
    return list(kinds.values())[:: 1 + len(kinds) // 14]


def chain_of(recipe, row):
    length = {"max_epochs": recipe["epochs"]} if "epochs" in recipe else {"max_iters": recipe["iters"]}
    wrapper = {"optimizer": recipe["optim_wrapper"]["optimizer"]}
    given = {**length, "epoch_length": row["epoch_length"], "strict": False}
    (part,) = mmengine.unbound(wrapper, recipe["param_scheduler"], **given)
    return part.chain


@recorded
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("recipe", "row"), [pytest.param(*pair, id=pair[0]["id"]) for pair in picked()])
def test_the_drawn_rate_is_that_of_mmengine(recipe, row):
    """At each update that was recorded and is drawn."""
    chain = chain_of(recipe, row)
    (values,) = drawn(gch.see.curves(chain, row["total_steps"], names=["learning_rate"]), RATE).values()
    wanted = dict(zip(row["steps"], row["lr"][0], strict=True))
    assert len(values.keys() & wanted.keys()) == len(wanted) > 10
    assert all(math.isclose(values[step], rate, rel_tol=1e-9, abs_tol=1e-18) for step, rate in wanted.items())


def test_a_schedule_of_a_users_may_be_no_number_now_and_then():
    for odd in (math.inf, -math.inf, math.nan):
        figure = gch.see.curves(gch.sgd(lambda step, odd=odd: odd if step in (3, 4) else 10.0**-step), 9)
        assert len(figure.axes) == 2
        figure.canvas.draw()
    gch.see.curves(gch.sgd(lambda step: math.inf), 9).canvas.draw()


def test_a_run_of_one_update_is_a_point():
    figure = gch.see.curves(gch.sgd(0.1), 1)
    assert figure.axes[0].get_lines()[0].get_marker() == "o"
    assert gch.see.curves(gch.sgd(0.1), 2).axes[0].get_lines()[0].get_marker() in ("", "None")


def test_a_chain_without_a_number_is_said():
    with pytest.raises(ValueError, match=r"see\.curves: the chain must have a hyperparameter that is a number"):
        gch.see.curves(gch.chain(gch.scale_by_sign()), 9)
