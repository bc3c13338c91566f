"""resolve: from a selector and all parameters to names, and what it says when that cannot be."""

import re
from fnmatch import fnmatchcase

import numpy as np
import pytest
import torch
from torch import nn

from gradchain.selectors import (
    bias,
    choose,
    embedding,
    everything,
    min_ndim,
    multiply,
    named,
    ndim,
    norm,
    owner,
    resolve,
)
from gradchain.selectors import names as by_names
from gradchain.selectors.rules import settings_of

MODEL = nn.ModuleDict({"body": nn.Linear(2, 3), "ln": nn.LayerNorm(3), "head": nn.Linear(3, 2)})
FACTS = [(name, p, MODEL.get_submodule(name.rpartition(".")[0])) for name, p in MODEL.named_parameters()]


def sentence(kind, text):
    return pytest.raises(kind, match=f"^{re.escape(text)}$")


def test_names_come_in_the_order_given():
    """The result is a tuple in the order of the parameters, whatever the order of the patterns."""
    assert resolve(named("head.bias", "body.*"), FACTS) == ("body.weight", "body.bias", "head.bias")
    assert resolve(named("head.bias", "body.*"), FACTS[::-1]) == ("head.bias", "body.bias", "body.weight")


def test_parameters_may_be_an_iterator():
    """An iterator of facts is walked once, and still searched for close spellings."""
    assert resolve(bias, iter(FACTS)) == ("body.bias", "ln.bias", "head.bias")
    with pytest.raises(ValueError, match="none of the 6 parameters"):
        resolve(named("x"), iter(FACTS))


def test_a_selector_is_asked_once_per_parameter():
    """A function is called once for each parameter, with its three facts."""
    calls = []
    resolve(lambda name, parameter, owner: not calls.append((name, parameter, owner)), FACTS)
    assert len(calls) == len(FACTS)
    assert all(a is b for call, fact in zip(calls, FACTS, strict=True) for a, b in zip(call, fact, strict=True))


def test_numpy_booleans_are_booleans():
    """numpy's bool is taken as one."""
    assert resolve(lambda n, p, o: np.bool_(p.ndim == 2), FACTS) == ("body.weight", "head.weight")


def test_nothing_matched():
    """A selector that selects nothing is an error that shows it and some names."""
    with sentence(
        ValueError,
        "ndim(4) & ~bias matches none of the 6 parameters: body.weight, body.bias, ln.weight, ln.bias and 2 more. "
        "Change the selector, or leave out what it selects for.",
    ):
        resolve(ndim(4) & ~bias, FACTS)
    with sentence(ValueError, "everything has no parameters to select from. Give a model that has some."):
        resolve(everything, [])
    with sentence(ValueError, 'named("a") has no parameters to select from. Give a model that has some.'):
        resolve(named("a"), [])


def test_allow_empty():
    """With allow_empty nothing need match, nor any pattern."""
    assert resolve(ndim(4), FACTS, allow_empty=True) == ()
    assert resolve(everything, [], allow_empty=True) == ()
    assert resolve(named("haed.*", "ln.bias"), FACTS, allow_empty=True) == ("ln.bias",)


def test_kinds_need_not_match():
    """norm, owner and ndim may match nothing inside a selector that matches something."""
    assert len(resolve(~(embedding | owner(nn.Conv2d) | ndim(4)), FACTS)) == 6
    assert resolve(norm | owner(nn.Conv2d), FACTS) == ("ln.weight", "ln.bias")


def test_missing_ok():
    """With missing_ok a pattern may match nothing, but the whole selector may not."""
    assert len(resolve(~named("pos_embed", missing_ok=True), FACTS)) == 6
    with pytest.raises(ValueError, match=r'^named\("pos_embed", missing_ok=True\) matches none of the 6 parameters'):
        resolve(named("pos_embed", missing_ok=True), FACTS)


GONE = named("pos_embed", missing_ok=True)


@pytest.mark.parametrize("selector", [GONE, GONE | named("cls", missing_ok=True), GONE & norm, norm & GONE], ids=repr)
def test_a_pair_whose_patterns_may_be_missing_changes_nothing_with_a_warning(selector):
    for value in (multiply(0.5, (selector, 2.0)), choose((selector, 2.0), rest=0.5)):
        with pytest.warns(UserWarning, match=r"matches none of the 6 parameters"):
            found = settings_of(value, FACTS)
        assert [(one.value, one.factors) for one in found] == [(0.5, ())] * 6


@pytest.mark.parametrize("selector", [GONE | ndim(4), ndim(4) & norm, GONE & named("haed.*")], ids=repr)
def test_a_pair_of_which_another_part_matches_nothing_is_an_error(selector):
    with pytest.raises(ValueError, match="matches none of the 6 parameters"):
        settings_of(multiply(0.5, (selector, 2.0)), FACTS)


@pytest.mark.parametrize(
    ("pattern", "cure"),
    [
        ("haed.*", 'Did you mean "head.*"?'),
        ("*.wieght", 'Did you mean "*.weight"?'),
        ("*.baised", 'Did you mean "*.bias"?'),
        ("Head.*", 'Did you mean "head.*"?'),
        ("haed.wieght", 'Did you mean "head.weight"?'),
        ("bias", 'Did you mean "*.bias"?'),
        ("head", 'Did you mean "head.*"?'),
        ("headweight", 'Did you mean "head.weight"?'),
        ("zzz", "The names are like body.weight, body.bias, ln.weight, ln.bias and 2 more; "
         "missing_ok=True lets a pattern match nothing."),
        (re.compile("head"), "It matches a part of some names, and must match the whole: begin and end it with .*"),
        (re.compile("zzz"), "The names are like body.weight, body.bias, ln.weight, ln.bias and 2 more; "
         "missing_ok=True lets a pattern match nothing."),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "wrap",
    [lambda s: s, lambda s: ~s, lambda s: bias | s, lambda s: ~(bias & ~s)],
    ids=["s", "~s", "bias | s", "~(bias & ~s)"],
)
def test_a_pattern_that_matches_nothing(pattern, cure, wrap):
    """One dead pattern beside a live one is named, with a close spelling that works, also under ~, | and &."""
    shown = f'"{pattern}"' if isinstance(pattern, str) else repr(pattern)
    with sentence(ValueError, f"named: the pattern {shown} matches none of the 6 parameters. {cure}"):
        resolve(wrap(named("ln.*", pattern)), FACTS)


def test_full_names_are_looked_up_each_once(monkeypatch):
    asked = []
    monkeypatch.setattr(
        by_names, "fnmatchcase", lambda name, pattern: asked.append(pattern) or fnmatchcase(name, pattern)
    )
    facts = [(f"p{i}", torch.zeros(1), None) for i in range(100)]
    chosen = resolve(named(*[name for name, _, _ in facts[:50]], "*9", "p[1]?"), facts)
    assert chosen == tuple(n for n, _, _ in facts if n in {f"p{i}" for i in range(50)} or n.endswith("9"))
    assert len(asked) <= 2 * 2 * len(facts)
    with pytest.raises(ValueError, match='the pattern "p100" matches none'):
        resolve(named("p1", "p100"), facts)


def test_every_dead_pattern_is_named():
    """Two dead patterns make two sentences in one error."""
    with sentence(
        ValueError,
        'named: the pattern "haed.*" matches none of the 6 parameters. Did you mean "head.*"? '
        'named: the pattern "boddy.*" matches none of the 6 parameters. Did you mean "body.*"?',
    ):
        resolve(named("haed.*") | named("boddy.*"), FACTS)


ASK = "<lambda>: a selector must return True or False, got"
NUMBERS = "A number for each parameter is multiply(value, function), where the number goes."
AT = '(Selector <lambda>, parameter "body.weight".)'


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (None, f"{ASK} None. Return True or False on every path. {AT}"),
        (
            torch.tensor([True, False]),
            f"{ASK} a Tensor of shape (2,). "
            f"Select by name, shape or owner; for a choice by value, wrap it in bool(...). {AT}",
        ),
        (1, f"{ASK} 1 (int). Wrap it in bool(...). {NUMBERS} {AT}"),
        (0.5, f"{ASK} 0.5 (float). Wrap it in bool(...). {NUMBERS} {AT}"),
        ("yes", f'{ASK} "yes" (str). Wrap it in bool(...). {AT}'),
    ],
)
def test_an_answer_that_is_no_bool(answer, text):
    """None, a tensor, a number or a string is refused with the function, the parameter and a cure."""
    with sentence(TypeError, text):
        resolve(lambda name, parameter, owner: answer, FACTS)


def test_a_wrong_answer_inside_a_combination():
    """The function that gave the wrong answer is named, and the whole selector too."""

    def forgetful(name, parameter, owner):
        return None

    expected = "forgetful: a selector must return True or False, got None. Return True or False on every path. "
    with sentence(TypeError, expected + '(Selector ~(min_ndim(1) & forgetful), parameter "body.weight".)'):
        resolve(~(min_ndim(1) & forgetful), FACTS)
    with sentence(TypeError, expected + '(Selector ndim(7) | forgetful, parameter "body.weight".)'):
        resolve(ndim(7) | forgetful, FACTS)


def test_an_error_gains_the_name_of_the_parameter():
    """The error keeps its type and object, and its sentence says at which parameter it came."""
    original = ValueError("no depth in this name.")

    def depth(name, parameter, owner):
        if name == "ln.bias":
            raise original
        return True

    with sentence(ValueError, 'no depth in this name. (Selector depth, parameter "ln.bias".)') as caught:
        resolve(depth, FACTS)
    assert caught.value is original


class OddError(Exception):
    def __str__(self):
        return "odd"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KeyError("layer"), "KeyError: 'layer'"),
        (OSError(2, "gone"), "FileNotFoundError: [Errno 2] gone"),
        (OddError("a"), "OddError: odd"),
    ],
)
def test_an_error_without_a_sentence_becomes_the_cause_of_one(error, text):
    """A KeyError, an error with several arguments or with its own __str__ is wrapped in a RuntimeError."""

    def fails(name, parameter, owner):
        raise error

    with sentence(RuntimeError, f'{text} (Selector fails, parameter "body.weight".)') as caught:
        resolve(fails, FACTS)
    assert caught.value.__cause__ is error


def test_a_missing_owner_names_the_parameter():
    """owner over bare tensors says which selector and which parameter."""
    with sentence(
        ValueError,
        "owner(torch.nn.LayerNorm) needs a module; here only a tensor is known, not what holds it. "
        "Give the module itself, or select by name with named(...). "
        '(Selector ~owner(torch.nn.LayerNorm), parameter "w".)',
    ):
        resolve(~owner(nn.LayerNorm), [("w", torch.ones(1), None)])


@pytest.mark.parametrize(
    ("selector", "got"),
    [
        ("*.bias", '"*.bias". Write named("*.bias").'),
        (nn.Linear, "the class torch.nn.Linear. Write owner(torch.nn.Linear)."),
        (MODEL["ln"], "a LayerNorm module. Write owner(torch.nn.LayerNorm), or its name: named(...)."),
        (named, "the class gradchain.selectors.names.named. Call it: named(...)."),
        (None, "None. See gradchain.selectors for ready ones."),
    ],
)
def test_what_is_no_selector(selector, got):
    """A string, a class, a module or None is refused with what to write."""
    with sentence(TypeError, f"resolve: a selector must be a function (name, parameter, owner) -> bool, got {got}"):
        resolve(selector, FACTS)


def test_names_must_differ():
    """Two parameters of one name are refused."""
    with sentence(ValueError, 'resolve: names must differ, got "w" twice. Give each parameter once.'):
        resolve(everything, [("w", torch.ones(1), None)] * 2)


def test_a_wildcard_is_kept_when_words_around_it_are_mended():
    """Two misspelt words around a wildcard are mended together, among 2,000 names."""
    facts = [(f"blocks.{i}.attn.{kind}.weight", torch.empty(0), None) for i in range(500) for kind in "qkvo"]
    with sentence(
        ValueError,
        'named: the pattern "blokcs.*.wieght" matches none of the 2000 parameters. Did you mean "blocks.*.weight"?',
    ):
        resolve(named("blokcs.*.wieght"), facts)
