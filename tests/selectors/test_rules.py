"""multiply, choose, first, layer_decay and the depths: what they give each parameter, and what they are as values."""

import copy
import itertools
import pickle
import re

import pytest
import torch
from torch import nn

import gradchain as gch
from gradchain import selectors
from gradchain.selectors import bias, choose, depth, depthwise, first, layer_decay, multiply, named, norm, owner_named
from gradchain.selectors.rules import settings_of, starts_of

MODEL = nn.ModuleDict({"body": nn.Linear(2, 3), "ln": nn.LayerNorm(3), "head": nn.Linear(3, 2)})
FACTS = [(name, p, MODEL.get_submodule(name.rpartition(".")[0])) for name, p in MODEL.named_parameters()]
NAMES = [name for name, _, _ in FACTS]
CODE = {**vars(selectors), "cosine": gch.cosine, "torch": torch}


def twice(name, parameter, owner):
    return 2.0 if name == "ln.weight" else 1.0


def by_width(name, parameter, owner):
    return parameter.ndim


EVERY = [
    multiply(0.1),
    multiply(1),
    multiply(0.1, (bias, 2.0)),
    multiply(gch.cosine(0.1, 0.0, 100), (bias | norm, 0.0), (named("head.*"), 10)),
    multiply(0.1, first((norm, 0.0), (bias, 2.0))),
    multiply(0.1, {"head.bias": 3.0, "ln.weight": 0.5}),
    multiply(0.1, layer_decay(0.65, depth.vit(12))),
    multiply(0.1, layer_decay(0.5, depth.swin((2, 2, 6, 2), prefix="backbone.", stages="layers"))),
    multiply(0.1, layer_decay(0.5, depth.convnext((3, 3, 9, 3), last=7))),
    multiply(0.1, layer_decay(0.5, depth.convnext_stages())),
    multiply(0.1, layer_decay(0.5, depth.resnet((3, 4, 6, 3), together=(3, 2, 3, 3)))),
    multiply(multiply(0.1, (bias, 2.0)), (norm, 0.5)),
    choose((bias, 0.1), rest=0.2),
    choose((bias, gch.cosine(0.1, 0.0, 10)), (norm, multiply(0.3, (named("ln.weight"), 2.0))), rest=0.2),
]


def numbers(value):
    """Name → number, by hand: the start times the factors from left to right."""
    out = {}
    for name, setting in zip(NAMES, settings_of(value, FACTS), strict=True):
        number = setting.value
        for factor in setting.factors:
            number = number * factor
        out[name] = number
    return out


@pytest.mark.parametrize("value", EVERY, ids=repr)
def test_is_a_value(value):
    """repr is its code; equality, hash, copies, pickles and configs agree with it."""
    again = eval(repr(value), dict(CODE))
    for other in (
        again,
        copy.deepcopy(value),
        pickle.loads(pickle.dumps(value)),
        gch.from_config(gch.to_config(value)),
    ):
        assert other == value and hash(other) == hash(value) and repr(other) == repr(value)
    assert value != multiply(0.1, (bias, 7.0))
    assert not callable(value)  # or it would pass for a schedule


def test_a_pickle_leaves_the_hash_behind():
    """The hash of a string differs from process to process, so a kept one must not travel."""
    value = multiply(0.1, (named("head.*"), 2.0))
    hash(value)
    assert "_hash" in vars(value) and "_hash" not in vars(pickle.loads(pickle.dumps(value)))


def test_a_users_function_in_a_config():
    """It is written by name, and looked up in names."""
    value = multiply(0.1, twice, (twice, 2.0), layer_decay(0.5, by_width, total=3))
    config = gch.to_config(value)
    assert gch.from_config(config, names={"twice": twice, "by_width": by_width}) == value
    with pytest.raises(KeyError, match="is not gradchain's"):
        gch.from_config(config)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (multiply(0.1), [0.1] * 6),
        (multiply(0.1, (bias, 2.0)), [0.1, 0.2, 0.1, 0.2, 0.1, 0.2]),
        (multiply(0.1, (bias, 2.0), (named("head.*"), 10.0)), [0.1, 0.2, 0.1, 0.2, 1.0, 2.0]),
        (multiply(0.1, first((norm, 0.0), (bias, 2.0))), [0.1, 0.2, 0.0, 0.0, 0.1, 0.2]),
        (multiply(0.1, first((bias, 2.0), (norm, 0.0))), [0.1, 0.2, 0.0, 0.2, 0.1, 0.2]),
        (multiply(0.1, first((norm, 0.0)), first((bias, 2.0))), [0.1, 0.2, 0.0, 0.0, 0.1, 0.2]),
        (multiply(1.0, {"head.bias": 3.0, "ln.weight": 0.5}), [1.0, 1.0, 0.5, 1.0, 1.0, 3.0]),
        (multiply(1.0, twice), [1.0, 1.0, 2.0, 1.0, 1.0, 1.0]),
        (multiply(1.0, layer_decay(0.5, by_width, total=3)), [1.0, 0.5, 0.5, 0.5, 1.0, 0.5]),
        (choose((bias, 1.0), (norm, 2.0), rest=3.0), [3.0, 1.0, 2.0, 1.0, 3.0, 1.0]),
        (choose((bias, multiply(1.0, (norm, 5.0))), rest=3.0), [3.0, 1.0, 3.0, 5.0, 3.0, 1.0]),
        (multiply(choose((bias, 1.0), rest=3.0), (norm, 2.0)), [3.0, 1.0, 6.0, 2.0, 3.0, 1.0]),
    ],
    ids=itertools.count(),
)
def test_gives_exactly(value, expected):
    """Every matching rule multiplies, of `first` and `choose` only the first that matches counts."""
    assert list(numbers(value).values()) == expected


def test_factors_are_kept_in_the_order_written():
    """The order is the base, then the rules: 0.1 · 0.1 · 0.7 is another float than 0.1 · (0.1 · 0.7)."""
    for order in [((bias, 0.1), (bias, 0.7)), ((bias, 0.7), (bias, 0.1))]:
        assert settings_of(multiply(0.1, *order), FACTS)[-1].factors == tuple(factor for _, factor in order)
    assert numbers(multiply(0.1, (bias, 0.1), (bias, 0.7)))["head.bias"] == 0.1 * 0.1 * 0.7 != 0.1 * (0.1 * 0.7)


def test_what_matched_is_said():
    """A setting names the rules that made it, in their order."""
    value = multiply(choose((norm, 0.5), rest=1.0), (bias, 2.0), {"ln.bias": 3.0}, layer_decay(0.5, by_width, total=3))
    found = dict(zip(NAMES, settings_of(value, FACTS), strict=True))
    assert found["ln.bias"].rules == ("norm", "bias x2", "by name x3", "layer 1 of 3 x0.5")
    assert found["body.weight"].rules == ("layer 2 of 3 x1",)


def test_the_starts_are_listed():
    """starts_of gives every value that may have to be evaluated; a plain value is its own."""
    curve = gch.cosine(0.1, 0.0, 10)
    assert list(starts_of(multiply(choose((bias, curve), rest=multiply(3.0, (norm, 2.0)))))) == [curve, 3.0]
    assert list(starts_of(curve)) == [curve]


def test_a_selector_matches_something_or_is_an_error():
    """A misspelt name is an error in every kind of rule; `first` may have a pair that an earlier one covers."""
    for rule in [(named("haed.*"), 2.0), first((bias, 1.0), (named("haed.*"), 2.0))]:
        with pytest.raises(ValueError, match=r'Did you mean "head\.\*"'):
            multiply(0.1, rule).settings(FACTS)
    with pytest.raises(ValueError, match=r'Did you mean "head\.\*"'):
        choose((named("haed.*"), 0.1), rest=0.2).settings(FACTS)
    with pytest.raises(ValueError, match=r'no parameter "haed\.bias" among the 6. Did you mean "head\.bias"'):
        multiply(0.1, {"haed.bias": 2.0}).settings(FACTS)
    multiply(0.1, first((norm | bias, 0.0), (bias & norm, 0.5))).settings(FACTS)


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: multiply("fast"), TypeError, "multiply: a value must be a number, a schedule (step -> value) or a"),
        (lambda: multiply(True), TypeError, "multiply: a value must be a number"),
        (
            lambda: multiply(0.1, 2.0),
            TypeError,
            "multiply: a rule must be (selector, factor), first(…), layer_decay(…),",
        ),
        (lambda: multiply(0.1, (2.0, bias)), TypeError, "multiply: a selector must be a function"),
        (lambda: multiply(0.1, (bias, 2.0, 3.0)), TypeError, "multiply: a pair must be (selector, factor), got"),
        (lambda: multiply(0.1, (bias, "2")), TypeError, 'multiply: a factor must be a number, got "2".'),
        (lambda: multiply(0.1, (bias, True)), TypeError, "multiply: a factor must be a number, got True."),
        (lambda: multiply(0.1, (bias, float("inf"))), ValueError, "multiply: a factor must be finite, got inf."),
        (lambda: multiply(0.1, {}), ValueError, "multiply: a mapping must have at least one name, got none."),
        (lambda: multiply(0.1, {"w": None}), TypeError, 'multiply: the factor of "w" must be a number, got None.'),
        (lambda: first(), ValueError, "first: needs at least one pair (selector, factor), got none."),
        (lambda: first(bias, 2.0), TypeError, "first: a pair must be (selector, factor), got bias."),
        (lambda: choose(rest=1.0), ValueError, "choose: needs at least one pair (selector, value), got none."),
        (lambda: choose((bias, 1.0), rest=None), TypeError, "choose: a value must be a number"),
        (lambda: choose((bias, "a"), rest=1.0), TypeError, "choose: a value must be a number"),
        (lambda: layer_decay(0.0, depth.vit(2)), ValueError, "layer_decay: rate must be above 0, got 0.0."),
        (
            lambda: layer_decay(0.5, 3),
            TypeError,
            "layer_decay: depth must be a function (name, parameter, owner) -> int",
        ),
        (lambda: layer_decay(0.5, by_width), TypeError, "layer_decay: total must be the number of layers where depth"),
        (
            lambda: layer_decay(0.5, by_width, total=0),
            ValueError,
            "layer_decay: total must be an integer of at least 1",
        ),
        (lambda: depth.vit(0), ValueError, "depth.vit: layers must be integers of at least 1, got 0."),
        (lambda: depth.convnext((3, 3, 9)), ValueError, "depth.convnext: depths must be four numbers, got (3, 3, 9)."),
        (lambda: depth.resnet((3, 4), (1,)), ValueError, "depth.resnet: together must have a number for each of the 2"),
        (lambda: owner_named(), ValueError, "owner_named: needs at least one pattern, got none."),
        (lambda: owner_named(nn.Linear), TypeError, "owner_named: a pattern must be a string, got torch.nn.Linear."),
        (lambda: owner_named(""), ValueError, "owner_named: a pattern must not be empty."),
    ],
    ids=itertools.count(),
)
def test_bad_arguments(make, kind, text):
    """Refused where they are written, in a sentence."""
    with pytest.raises(kind, match=f"^{re.escape(text)}"):
        make()


def test_bad_answers():
    """A function that gives no factor, or no depth, is named with the parameter."""
    with pytest.raises(TypeError, match=r'the factor of .* for "body.weight" must be a number, got None'):
        multiply(0.1, lambda name, p, o: None).settings(FACTS)
    for answer in (3, -1, 0.5, None):
        with pytest.raises(ValueError, match=re.escape(f"must be an integer in [0, 3), got {answer!r} for parameter")):
            multiply(0.1, layer_decay(0.5, lambda n, p, o, a=answer: a, total=3)).settings(FACTS)
    with pytest.raises(RuntimeError, match=r'KeyError: .*parameter "body.weight"'):
        multiply(0.1, lambda name, p, o: {}[name]).settings(FACTS)


@pytest.mark.parametrize(
    ("layers", "total", "expected"),
    [
        (depth.vit(12), 14, {"cls_token": 0, "patch_embed.projection.bias": 0, "layers.0.ln1.weight": 1}),
        (depth.vit(12), 14, {"layers.11.gamma": 12, "ln1.weight": 13, "head.fc.weight": 13, "layers_scale": 13}),
        (depth.vit(12, "backbone.", "blocks"), 14, {"backbone.blocks.2.w": 3, "blocks.2.w": 13, "head.blocks.1.w": 13}),
        (
            depth.swin((2, 2, 6, 2)),
            14,
            {"patch_embed.norm.bias": 0, "stages.0.blocks.0.w": 1, "stages.1.blocks.1.w": 4},
        ),
        (
            depth.swin((2, 2, 6, 2)),
            14,
            {"stages.0.downsample.norm.bias": 2, "stages.3.blocks.1.w": 12, "norm3.bias": 13},
        ),
        (
            depth.convnext((3, 3, 27, 3)),
            14,
            {"downsample_layers.0.0.w": 0, "downsample_layers.3.0.w": 12, "stages.0.2.w": 1},
        ),
        (
            depth.convnext((3, 3, 27, 3)),
            14,
            {"stages.2.0.w": 3, "stages.2.26.w": 11, "stages.3.1.w": 12, "norm3.bias": 13},
        ),
        (
            depth.convnext((3, 3, 9, 3)),
            8,
            {"stages.2.8.w": 5, "stages.3.0.w": 6, "downsample_layers.1.0.w": 2, "fc.w": 7},
        ),
        (
            depth.convnext_stages(),
            6,
            {"downsample_layers.3.0.w": 0, "stages.0.0.w": 1, "stages.3.0.w": 4, "norm3.w": 5},
        ),
        (
            depth.resnet((2, 2, 2, 2)),
            10,
            {"bn1.bias": 0, "layer1.0.w": 1, "layer2.1.w": 4, "layer4.1.w": 8, "fc.bias": 9},
        ),
    ],
    ids=itertools.count(),
)
def test_depths(layers, total, expected):
    """Each ready depth, on the names it is about."""
    assert layers.total == total
    assert {name: layers(name, torch.zeros(1), None) for name in expected} == expected


def test_depthwise_and_owner_named():
    """By the numbers of a convolution, and by the name of its class or a parent of it."""
    plain, wise, single = nn.Conv2d(4, 8, 3), nn.Conv1d(4, 8, 3, groups=4), nn.ConvTranspose2d(1, 2, 3)
    assert [depthwise("w", conv.weight, conv) for conv in (plain, wise, single, nn.Linear(1, 1))] == [
        False, True, True, False,
    ]  # fmt: skip
    names = owner_named("_BatchNorm", "Layer*")
    asked = (nn.BatchNorm2d(2), nn.LayerNorm(2), nn.GroupNorm(1, 2))
    assert [names("w", m.weight, m) for m in asked] == [True, True, False]
    assert eval(repr(names & depthwise), dict(CODE)) == names & depthwise
    with pytest.raises(ValueError, match="needs a module"):
        depthwise("w", torch.zeros(2), None)
