"""What is read of an updater: an info is a mapping, hyperparameters fit a logger, and all of it shows itself."""

import csv
import io
import json
import re
from collections.abc import Mapping

import pytest
import torch
from cases import CASES
from little import data, loss_of, net
from test_shown import check_html

import gradchain as gch
from gradchain.updater.explanation import Explanation
from gradchain.updater.hyperparameters import Hyperparameters, by_value
from gradchain.updater.info import Metrics
from gradchain.updater.target import Target

RATE = "scale_by_learning_rate.learning_rate"


class recorder(gch.Transform):
    """Records what it was given under names that a user may choose."""

    descends = False

    names: tuple[str, ...] = ()
    on: str = "cpu"

    def update(self, g, state, ctx):
        for number, name in enumerate(self.names):
            ctx.record(name, torch.full((), number + 0.5, device=self.on))
        return g, state


def trained(*links, steps=1):
    """An updater over a small net, and the info of its last update."""
    model = net()
    updater = gch.chain(*links).bind(model)
    infos = [updater.update(loss_of(model, rows)) for rows in data(steps)]
    return updater, infos[-1]


# an info as a mapping


@pytest.mark.parametrize("names", [(), ("norm",), ("a", "b", "long name"), ("x/y", "µ")], ids=len)
def test_an_info_is_a_mapping_of_what_was_recorded(names):
    """All that a mapping does, by full names and floats; and it is still true where weights changed."""
    updater, info = trained(recorder(names), gch.clip_by_norm(0.5), gch.sgd(0.1))
    want = {f"recorder.{name}": number + 0.5 for number, name in enumerate(names)}
    want["clip_by_norm.norm"] = info["clip_by_norm.norm"]
    assert isinstance(info, Mapping)
    assert dict(info) == {**info} == dict(info.items()) == dict(zip(info.keys(), info.values(), strict=True)) == want
    assert len(info) == len(want) and list(info) == list(want)
    assert all(type(value) is float for value in info.values())
    assert info == want and want == info and info == updater.metrics and info != {**want, "more": 1.0}
    assert json.loads(json.dumps(dict(info))) == want
    assert info.get("norm") == want["clip_by_norm.norm"] or "norm" in names
    assert info.get("nope") is None and info.get("nope", 3) == 3
    match info:
        case {"clip_by_norm.norm": norm, **others}:
            assert norm == want["clip_by_norm.norm"] and len(others) == len(names)
        case _:
            pytest.fail("an info is no mapping to a match statement")
    assert info and info.applied and info.reason == "applied" and info.step == 0


def test_an_info_of_nothing_is_an_empty_mapping_and_says_why():
    """A window that is held records nothing; that weights changed is not whether anything was recorded."""
    _, held = trained(gch.accumulate(2), gch.clip_by_norm(0.5), gch.sgd(0.1))
    assert dict(held) == {} and len(held) == 0 and not held and held.reason == "window"
    _, bare = trained(gch.sgd(0.1))
    assert dict(bare) == {} and len(bare) == 0 and bare
    updater = gch.chain(gch.accumulate(2), gch.sgd(0.1)).bind(net())
    assert dict(updater.flush()) == {} and not updater.flush()


def test_what_is_read_lazily_stays_lazy():
    """Names, their number and whether one is there wait for no device; a value does. On meta it cannot be had."""
    _, info = trained(recorder(("a", "b"), on="meta"), gch.sgd(0.1))
    assert list(info) == list(info.keys()) == ["recorder.a", "recorder.b"]
    assert len(info) == 2 and "a" in info and "c" not in info and bool(info)
    assert len(info.items()) == len(info.values()) == 2 and info.get("c") is None
    for read in (lambda: info["a"], lambda: dict(info), lambda: [*info.values()], lambda: repr(info)):
        with pytest.raises(RuntimeError, match="meta"):
            read()


# hyperparameters for a logger


CURVE = gch.linear(0.0, 1.0, 4)
SPREADS = {
    "one number": (0.25, {"": 0.25}),
    "a schedule": (gch.linear(0.5, 1.0, 4), {"": 0.5}),
    "a function": (lambda step: 0.5 / (step + 1), {"": 0.5}),
    "a tensor": (torch.tensor(0.25), {"": 0.25}),
    "two values": (gch.multiply(0.5, (gch.bias, 0.5)), {"/0.weight": 0.5, "/0.bias": 0.25}),
    "values that meet": (gch.choose((gch.bias, 0.5), rest=gch.linear(0.5, 1.0, 4)), {"/0.weight": 0.5}),
    "all at zero": (gch.multiply(CURVE, (gch.bias, 0.5)), {"/0.weight": 0.0}),
    "a mapping": (
        gch.multiply(1.0, {"0.weight": 0.5, "0.bias": 0.25, "2.weight": 0.5}),
        {"/0.weight": 0.5, "/0.bias": 0.25, "/2.bias": 1.0},
    ),
    "a function of the name": (gch.multiply(0.5, lambda name: 0.5 if "weight" in name else 1.0), None),
}


@pytest.mark.parametrize("spread", SPREADS)
def test_hyperparams_by_value_are_flat(spread):
    """One number under its address; of numbers per parameter each once, under the first parameter that has it."""
    lr, want = SPREADS[spread]
    model = net()
    updater = gch.chain(gch.trace(0.9), gch.scale_by_learning_rate(lr)).bind(model)
    flat = updater.hyperparams(by="value")
    assert all(type(name) is str and type(value) is float for name, value in flat.items())
    if want is not None:
        assert flat == {"trace.decay": pytest.approx(0.9), **{RATE + name: value for name, value in want.items()}}
    full = updater.hyperparams()[RATE]
    assert updater.hyperparams(by="parameter")[RATE] == full
    numbers = list(full.values()) if isinstance(full, dict) else [full]
    shown = [value for name, value in flat.items() if name.startswith(RATE)]
    assert sorted(shown) == sorted({float(number) for number in numbers})
    both = gch.group(a=updater, b=gch.sgd(0.1).bind(net()))
    assert both.hyperparams(by="value") == {**{f"a/{n}": v for n, v in flat.items()}, f"b/{RATE}": 0.1}


def test_a_group_keeps_its_name_while_its_number_moves():
    """So that a logger draws one line for it: also under an override, and after a warm-up that began at zero."""
    model = net()
    lr = gch.multiply(CURVE, (gch.bias, 0.5))
    updater = gch.chain(gch.trace(0.9), gch.scale_by_learning_rate(lr)).bind(model)
    seen = []
    for rows in data(4):
        updater.update(loss_of(model, rows))
        seen.append(updater.hyperparams(by="value"))
    assert [s[f"{RATE}/0.weight"] for s in seen] == [0.25, 0.5, 0.75, 1.0]
    assert [s[f"{RATE}/0.bias"] for s in seen] == [0.125, 0.25, 0.375, 0.5]
    assert {len(s) for s in seen} == {3}
    updater.override("learning_rate", factor=0.5)
    assert updater.hyperparams(by="value")[f"{RATE}/0.bias"] == 0.25
    updater.override("learning_rate", 0.125)
    assert updater.hyperparams(by="value")[RATE] == 0.125


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
def test_every_hyperparameter_of_every_link_can_be_logged(case):
    hypers = Hyperparameters(gch.chain(case.link))
    try:
        hypers.attach(Target(net()).index)
    except ValueError:
        pytest.skip("it selects what this net does not have")
    clocks = {"step": 3, "micro": 3, "epoch": 1}
    values = hypers.values(clocks)
    flat = by_value(values)
    assert all(type(value) is float for value in flat.values())
    assert {next(a for a in values if n == a or n.startswith(f"{a}/")) for n in flat} == values.keys()


def test_what_they_may_be_listed_by_is_said():
    updater = gch.sgd(0.1).bind(net())
    for wrong in ("values", None, 1):
        with pytest.raises(ValueError, match=f'hyperparams: by must be "parameter" or "value", got {wrong!r}.'):
            updater.hyperparams(by=wrong)


def test_a_logger_takes_both(tmp_path):
    """As Lightning's: names to floats, in every step the same names."""
    loggers = pytest.importorskip("lightning.pytorch.loggers")
    logger = loggers.CSVLogger(tmp_path)
    model = net()
    lr = gch.multiply(gch.linear(0.1, 0.2, 3), (gch.bias, 0.5))
    updater = gch.chain(gch.clip_by_norm(0.5), gch.adam(lr)).bind(model)
    written = []
    for step, rows in enumerate(data(3)):
        info = updater.update(loss_of(model, rows))
        written.append({**info, **updater.hyperparams(by="value")})
        logger.log_metrics(written[-1], step)
    logger.save()
    with open(next(tmp_path.rglob("metrics.csv"))) as file:
        read = list(csv.DictReader(file))
    assert [{n: float(v) for n, v in row.items() if n != "step"} for row in read] == written


# how they show themselves


def shown_things():
    model = net()
    lr = gch.multiply(0.1, (gch.named("0.<i>*", missing_ok=True) | gch.bias, 0.5))
    links = [gch.clip_by_norm(0.5), *[gch.clip_by_value(9.0)] * 8, gch.scale_by_adam(), gch.scale_by_learning_rate(lr)]
    updater = gch.chain(*links).bind(model)
    info = updater.update(loss_of(model, data(1)[0]))
    plain = gch.sgd(0.1).bind(net())
    return {
        "Updater": updater,
        "UpdateInfo": info,
        "Metrics": updater.metrics,
        "Settings": updater.settings(),
        "Settings of one number": plain.settings(),
        "Explanation": updater.explain(source=True),
        "Group": gch.group(**{"a<b>": updater, "other": plain}),
    }


THINGS = list(shown_things())
NOT_SHOWN = ("bind", "group")  # the calls in a repr


def printed(thing) -> str:
    """What rich's `print` writes of it."""
    console = pytest.importorskip("rich.console").Console(width=200, file=io.StringIO())
    console.print(thing)
    return console.file.getvalue()


@pytest.mark.parametrize("thing", THINGS)
def test_it_is_a_table_in_a_notebook(thing):
    """With nothing in it that is not text of ours, and with what its repr says."""
    shown = shown_things()[thing]
    words = "".join(check_html(shown._repr_html_()).itertext())
    for word in re.findall(r"[a-z_]{4,}|\d\.\d{1,3}", repr(shown)):
        assert word in words or word in NOT_SHOWN, word


@pytest.mark.parametrize("thing", THINGS)
def test_rich_prints_it(thing):
    """With what its repr says; `print` of rich too, which reads brackets in strings as its markup."""
    pretty = pytest.importorskip("rich.pretty")
    shown = shown_things()[thing]
    text = pretty.pretty_repr(shown, max_width=200)
    for word in re.findall(r"[a-z_]{4,}", repr(shown)):
        if "Settings" not in thing:  # whose repr counts in words
            assert word in text or word in NOT_SHOWN, word
    assert printed(shown).splitlines()[0] == (repr(shown) if thing == "Explanation" else text).splitlines()[0]


def test_an_explanation_is_text_that_shows_its_lines():
    """It is a str in all else; what looks like markup in it stays."""
    updater = gch.chain(
        gch.masked(gch.scale(2.0), gch.named("[bold]*", missing_ok=True) | gch.bias), gch.sgd(0.1)
    ).bind(net())
    text = updater.explain()
    assert isinstance(text, str) and isinstance(text, Explanation) and text == str(text) == repr(text)
    assert text.splitlines()[0] in f"{text}" and text + "" == text and hash(text) == hash(str(text))
    assert printed(text) == f"{text}\n" and '"[bold]*"' in text


def test_a_long_chain_is_a_column_in_what_an_updater_shows():
    updater = shown_things()["Updater"]
    lines = repr(updater).splitlines()
    assert lines[0] == "chain(" and lines[-1] == ").bind(<4 parameters>)" and len(lines) == len(updater.chain.links) + 2
    assert updater.explain().startswith(f"{updater.chain!r}\n4 parameters of ")


def test_metrics_are_a_mapping_too():
    updater, info = trained(gch.clip_by_norm(0.5), gch.sgd(0.1))
    assert isinstance(updater.metrics, Metrics) and dict(updater.metrics) == dict(info)
