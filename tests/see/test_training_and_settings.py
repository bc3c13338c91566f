"""A run as it went, and the numbers of each layer: what is drawn, and what is refused."""

import json
import math
import os

import pytest
import torch
from test_curves import check_apart, points
from torch import nn

import gradchain as gch
from gradchain.see.settings import MOST_ROWS, layers_of


def panels(figure):
    """Heading of a panel, up to what it says further → gid of a line → its points."""
    return {
        axes.get_title(loc="left").partition(";")[0].partition(":")[0]: {
            line.get_gid(): points(line) for line in axes.get_lines() if line.get_gid() != "skipped"
        }
        for axes in figure.axes
    }


def skipped(figure):
    return sorted(
        {line.get_xdata()[0] for axes in figure.axes for line in axes.get_lines() if line.get_gid() == "skipped"}
    )


RECORDS = [
    {
        "update": i, "epoch": i // 10, "loss": 2.0 / (1 + i), "learning_rate": 0.1 - 0.001 * i, "grad_norm": 1.0 + i,
        "scale": 65536.0 / 2 ** (i // 20), "skipped": i // 20, "time_data": 0.01,
    }
    for i in range(50)
]  # fmt: skip


def written(tmp_path, records, end="\n"):
    file = tmp_path / "run.jsonl"
    file.write_text("\n".join(map(json.dumps, records)) + end)
    return file


# training


@pytest.mark.parametrize("width", [5.0, 8.0])
def test_every_number_of_a_run_is_drawn(tmp_path, width):
    figure = gch.see.training(written(tmp_path, RECORDS), width=width)
    found = panels(figure)
    wanted = {"loss": "loss", "learning rate": "learning_rate", "norm": "grad_norm", "loss scale": "scale",
              "seconds": "time_data"}  # fmt: skip
    assert [*found] == [*wanted]
    for panel, name in wanted.items():
        assert found[panel][name] == {r["update"]: r[name] for r in RECORDS}
    assert skipped(figure) == [20, 40]
    check_apart(figure)
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear", "log", "log", "linear"]


def test_a_run_of_the_updaters_own_numbers():
    """What `hyperparams(by="value")` and an info give, flat."""
    net = nn.Linear(2, 1)
    lr = gch.multiply(gch.linear(0.1, 0.0, 20), (gch.bias, 2.0))
    updater = gch.chain(gch.clip_by_norm(1.0), gch.sgd(lr)).bind(net)
    records = []
    for i in range(20):
        numbers = updater.hyperparams(by="value")
        info = updater.update(net(torch.ones(4, 2)).square().mean())
        records.append({"update": i, "loss": info.loss.item(), **numbers, **dict(info)})
    found = panels(gch.see.training(records))
    assert [*found] == ["loss", "learning rate", "norm"]
    assert [*found["norm"]] == ["clip_by_norm.norm"]
    rates = found["learning rate"]
    assert rates["scale_by_learning_rate.learning_rate/bias"][10] == 2 * gch.linear(0.1, 0.0, 20)(10)


SHAPES = {
    "keys are missing": ([{"update": 3, "loss": 1.0}, {}, {"update": 7, "loss": 0.5}], {"loss": {3: 1.0, 7: 0.5}}),
    "iter": ([{"iter": 3, "loss": 1.0}, {"iter": 6, "loss": 0.5}], {"loss": {3: 1.0, 6: 0.5}}),
    "lines": ([{"loss": 1.0}, {"loss": 0.5}], {"loss": {0: 1.0, 1: 0.5}}),
    "null": ([{"update": 1, "loss": None}, {"update": 2, "loss": 0.5}], {"loss": {2: 0.5}}),
    "not finite": ([{"update": 1, "loss": math.nan}, {"update": 2, "loss": 0.5}], {"loss": {2: 0.5}}),
    "words": ([{"update": 1, "loss": "big"}, {"update": 2, "loss": 0.5}], {"loss": {2: 0.5}}),
    "again": ([{"update": u, "loss": x} for u, x in ((1, 9.0), (2, 0.5), (1, 1.0))], {"loss": {1: 1.0, 2: 0.5}}),
    "one record": ([{"update": 1, "loss": 9.0}], {"loss": {1: 9.0}}),
    "parts of a loss": ([{"update": 1, "loss": 3.0, "loss_cls": 1.0}], {"loss": {1: 3.0}, "loss_cls": {1: 1.0}}),
    "validation": (
        [{"update": 1, "loss": 3.0}, {"mode": "val", "update": 1, "loss": 2.0, "accuracy": 0.5}],
        {"loss": {1: 3.0}, "validation: loss": {1: 2.0}, "accuracy": {1: 0.5}},
    ),
    "other numbers": ([{"update": 1, "loss": 3.0, "eta": 8.0, "temperature": 9.0}], {"loss": {1: 3.0}}),
    "negative": ([{"update": 1, "loss": -3.0}, {"update": 2, "loss": -5.0}], {"loss": {1: -3.0, 2: -5.0}}),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_records_of_any_shape(name, tmp_path):
    records, wanted = SHAPES[name]
    figure = gch.see.training(written(tmp_path, records))
    assert {key: value for panel in panels(figure).values() for key, value in panel.items()} == wanted
    figure.canvas.draw()


@pytest.mark.parametrize(
    ("counts", "at"),
    [([0, 0, 1, 1, 3], [2, 4]), ([False, True, True], [1, 2]), ([1, 0, 1], [0, 2]), ([0, 1, 0, 0], [1]), ([2, 2], [0])],
)
def test_skipped_updates_are_those_that_were(counts, at):
    """A count so far, or what each record says of its own update."""
    assert skipped(gch.see.training({"update": i, "loss": 1.0, "skipped": c} for i, c in enumerate(counts))) == at


def test_many_points_have_their_mean_over_them():
    figure = gch.see.training({"update": i, "loss": float(i % 2)} for i in range(600))
    mean = panels(figure)["loss"]["loss, smoothed"]
    assert len(mean) == 30 and set(mean.values()) == {0.5}


def test_a_file_that_is_still_written_is_read_up_to_there(tmp_path):
    file = written(tmp_path, RECORDS, end='\n{"update": 50, "los')
    assert len(panels(gch.see.training(file))["loss"]["loss"]) == 50


def fifo(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda p: p / "none.jsonl", FileNotFoundError, "there is no file"),
        (lambda p: p, ValueError, "must be a regular file"),
        (fifo, ValueError, "must be a regular file"),
        (lambda p: "/dev/zero", ValueError, "must be a regular file"),
        (lambda p: written(p, [{"loss": 1}], "\n{oops\n"), ValueError, "JSON object on each line; line 2 is none"),
        (lambda p: written(p, [[1, 2]]), ValueError, "line 1 is none"),
        (lambda p: written(p, [], "[" * 100_000 + "\n"), ValueError, "line 1 is none"),
        (lambda p: written(p, [], ""), ValueError, "expected records with numbers such as 'loss', found none in 0"),
        (lambda p: written(p, [{"epoch": 1}]), ValueError, "found none in 1"),
        (lambda p: written(p, [{"skipped": 1}]), ValueError, "found none in 1"),
        (lambda p: [3], TypeError, "a record must be a mapping of numbers by name, got int"),
    ],
    ids=map(str, range(11)),
)
def test_what_is_no_run_is_refused_in_a_sentence(make, error, sentence, tmp_path):
    with pytest.raises(error, match=sentence) as refusal:
        gch.see.training(make(tmp_path))
    assert str(refusal.value).startswith("see.training: ") and "\n" not in str(refusal.value)


# settings


class Net(nn.Module):
    def __init__(self, blocks=4):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(blocks))
        self.head = nn.Linear(4, 2)


def dots(axes):
    """Layer → the numbers of its points."""
    names = dict(
        zip((round(y) for y in axes.get_yticks()), (t.get_text() for t in axes.get_yticklabels()), strict=True)
    )
    out = {}
    for scatter in axes.collections:
        for x, y in scatter.get_offsets():
            out.setdefault(names[round(y)], set()).add(float(x))
    return out


@pytest.mark.parametrize("width", [5.0, 10.0])
def test_rates_by_layer(width):
    warm = gch.linear(0.0, 0.5, 10).then(gch.cosine(0.5, 0.0, 30))
    lr = gch.multiply(warm, gch.layer_decay(0.5, gch.selectors.depth.vit(4)))
    updater = gch.adamw(lr, weight_decay=gch.multiply(0.1, (gch.norm | gch.bias, 0.0))).bind(Net())
    figure = gch.see.settings(updater, width=width)
    decay, rate = figure.axes
    assert (
        rate.get_title(loc="left") == "scale_by_learning_rate.learning_rate, at update 10"
        and rate.get_xscale() == "log"
    )
    assert dots(rate)["cls_token"] == {0.5 * 0.5**5} and dots(rate)["head"] == {0.5}
    assert [dots(rate)[f"layers.{i}.0"] for i in range(4)] == [{0.5 * 0.5 ** (4 - i)} for i in range(4)]
    assert dots(decay)["layers.0.0"] == {0.0, 0.1} and dots(decay)["layers.0.1"] == {0.0}
    assert decay.get_title(loc="left") == "add_decayed_weights.weight_decay, at update 0"
    check_apart(figure)


def test_every_layer_is_what_the_updater_says():
    """At the update that is asked for."""
    net = Net()
    lr = gch.multiply(gch.linear(0.0, 0.5, 10), (gch.bias, 2.0), (gch.named("layers.1.*"), 0.1))
    updater = gch.sgd(lr).bind(net)
    (axes,) = gch.see.settings(updater, at=3).axes
    for _ in range(3):
        updater.update(sum(p.sum() for p in net.parameters()))
    numbers = updater.hyperparams()["scale_by_learning_rate.learning_rate"]
    wanted = {}
    for name, number in numbers.items():
        wanted.setdefault(name.rpartition(".")[0] or name, set()).add(number)
    assert dots(axes) == wanted


def test_one_number_for_all_is_shown_by_the_learning_rate():
    (axes,) = gch.see.settings(gch.adamw(0.01).bind(Net())).axes
    assert axes.get_title(loc="left").startswith("scale_by_learning_rate.learning_rate")
    assert {x for found in dots(axes).values() for x in found} == {0.01}


def test_several_updaters_and_names():
    both = gch.group(a=gch.sgd(gch.multiply(0.1, (gch.bias, 2.0))).bind(Net()), b=gch.adam(0.1).bind(Net()))
    (axes,) = gch.see.settings(both).axes
    assert axes.get_title(loc="left").startswith("a/scale_by_learning_rate") and "a/head" in dots(axes)
    (axes,) = gch.see.settings(both, names=["b2"]).axes
    assert axes.get_title(loc="left").startswith("b/scale_by_adam.b2")


@pytest.mark.parametrize("blocks", [1, 12, 40, 60])
def test_there_are_as_many_rows_as_can_be_read(blocks):
    numbers = dict.fromkeys((name for name, _ in Net(blocks).named_parameters()), 0.1)
    layers = layers_of(numbers)
    assert len(layers) <= MOST_ROWS and sum(n for counts in layers.values() for n in counts.values()) == len(numbers)


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        ({"updater": gch.sgd(0.1)}, TypeError, "updater must be an updater or a group of them, got chain"),
        ({"at": -1}, ValueError, "at must be an update, a whole number of at least 0, or None, got -1"),
        ({"at": 1.5}, ValueError, "at must be an update"),
        ({"names": ["rho"]}, KeyError, "there is no 'rho'"),
        ({"names": []}, ValueError, "names must be a list"),
        ({"width": 0}, ValueError, "width must be inches"),
    ],
)
def test_settings_that_cannot_be_drawn_are_refused(given, error, sentence):
    with pytest.raises(error, match=sentence) as refusal:
        gch.see.settings(**{"updater": gch.sgd(0.1).bind(Net()), **given})
    assert str(refusal.value.args[0]).startswith("see.settings: ")


# gaps, odd numbers, long names


def drawn_lines(records, name="loss"):
    """The points of lines of this name, without what is drawn over them."""
    (axes, *_) = gch.see.training(records).axes
    return [line for line in axes.get_lines() if line.get_gid() == name]


def test_where_there_is_no_number_the_line_has_a_gap():
    """A run of NaN is not joined over, nor is its mean; what is measured now and then is."""
    for none in (None, math.nan, math.inf, 10**400):
        records = [{"update": i, "loss": none if 300 < i < 500 else 1.0 + i} for i in range(1000)]
        (line,) = drawn_lines(records)
        assert [int(x) for x, y in zip(*line.get_data(), strict=True) if y != y] == [*range(301, 500)]
        (mean,) = drawn_lines(records, "loss, smoothed")
        gaps = [x for x, y in zip(*mean.get_data(), strict=True) if y != y]
        assert gaps and all(290 < x < 510 for x in gaps)
    rarely = [{"update": i, "loss": None if i % 4 else 1.0 + i} for i in range(40)]
    assert drawn_lines(rarely)[0].get_xdata().tolist() == [*range(0, 40, 4)]
    once = [{"update": i, "loss": None if i in (4, 6) else 1.0} for i in range(12)]
    assert drawn_lines(once, "loss, alone")[0].get_xdata().tolist() == [5]
    later = [*({"update": i, "loss": 1.0} for i in range(4)), {"update": 0, "loss": None}]
    assert math.isnan(drawn_lines(later)[0].get_ydata()[0])  # what was logged again counts, whatever it is
    with pytest.raises(ValueError, match="expected records with numbers such as 'loss', found none in 9 records"):
        gch.see.training([{"update": i, "loss": math.nan} for i in range(9)])


def test_names_that_differ_in_their_middle_are_told_apart():
    names = [f"a/very_long_name_of_a_branch_{i}/and_more_of_it/scale_by_learning_rate.learning_rate" for i in range(4)]
    figure = gch.see.training([{"update": i, **dict.fromkeys(names, 0.1)} for i in range(9)], width=5)
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == [f"…very_long_name_of_a_branch_{i}…" for i in range(4)]
