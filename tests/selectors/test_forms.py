"""The forms of a selector: functions of three, two or one argument, and mappings of names, wherever one is taken."""

import copy
import functools
import operator
import pickle
import re
from collections import OrderedDict
from types import MappingProxyType

import pytest
import torch
from torch import nn

import gradchain as gch
from gradchain.selectors import resolve


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(2, 3), nn.Linear(3, 2)


MODEL = Net()
FACTS = [(name, p, MODEL.get_submodule(name.rpartition(".")[0])) for name, p in MODEL.named_parameters()]
WIDE = ("body.weight", "head.weight")
MAPPING = {name: p.ndim == 2 for name, p in MODEL.named_parameters()}


def three(name, parameter, owner):
    return name.endswith("weight") and parameter.ndim == 2 and isinstance(owner, nn.Linear)


def two(name, parameter):
    return name.endswith("weight") and parameter.ndim == 2


def one(parameter):
    return parameter.ndim == 2


def of_name(name):
    return name.endswith("weight")


class Asked:
    def __init__(self, ndim):
        self.ndim = ndim

    def of_three(self, name, parameter, owner):
        return two(name, parameter) and owner is not None

    def of_two(self, name, parameter):
        return two(name, parameter)

    def of_one(self, parameter):
        return parameter.ndim == self.ndim

    def __call__(self, name, parameter):
        return two(name, parameter)


class of_one(Asked):
    def __call__(self, parameter):
        return parameter.ndim == self.ndim


def with_threshold(parameter, least=2):
    return parameter.ndim >= least


def with_default(name, parameter, least=2):
    return parameter.ndim >= least


def optional_owner(name, parameter, owner=None):
    return two(name, parameter) and owner is not None


def all_optional(name="", parameter=None, owner=None):
    return two(name, parameter) and owner is not None


def any_number(*facts):
    return three(*facts)


def by_keyword(parameter, *, least=2):
    return parameter.ndim >= least


def limited(least, parameter):
    return parameter.ndim >= least


FORMS = {
    "three": three, "two": two, "one": one, "name": of_name, "lambda of three": lambda n, p, o: p.ndim == 2,
    "lambda of two": lambda n, p: p.ndim == 2, "lambda of one": lambda p: p.ndim == 2,
    "lambda of name": lambda name: "weight" in name, "method of three": Asked(2).of_three,
    "method of two": Asked(2).of_two, "method of one": Asked(2).of_one, "object of two": Asked(2),
    "object of one": of_one(2), "threshold": with_threshold, "default": with_default, "optional owner": optional_owner,
    "all optional": all_optional, "any number": any_number, "keyword": by_keyword,
    "partial": functools.partial(limited, 2), "partial keyword": functools.partial(three, owner=MODEL.body),
    "mapping": MAPPING, "ordered": OrderedDict(MAPPING), "read-only": MappingProxyType(MAPPING),
    "nested": {"body": {"weight": True, "bias": False}, "head": {"weight": True, "bias": False}},
    "half nested": {"body": {"weight": True, "bias": False}, "head.weight": True, "head.bias": False},
}  # fmt: skip
forms = pytest.mark.parametrize("form", FORMS)


@forms
def test_every_form_selects(form):
    assert resolve(FORMS[form], FACTS) == WIDE


SGD = gch.sgd(0.1)
PLACES = {
    "masked": lambda s: gch.chain(gch.masked(gch.scale(0.5), s), SGD),
    "partition": lambda s: gch.partition((s, gch.sgd(0.05)), (gch.rest, SGD)),
    "named branch": lambda s: gch.partition(("a", s, gch.sgd(0.05)), (gch.rest, SGD)),
    "freeze": lambda s: gch.chain(gch.freeze(s), SGD),
    "clip": lambda s: gch.chain(gch.clip_by_norm(0.1, per=[s]), SGD),
    "project": lambda s: gch.chain(SGD, gch.project(torch.zeros_like, s)),
    "multiply": lambda s: gch.sgd(gch.multiply(0.1, (s, 0.5))),
    "first": lambda s: gch.sgd(gch.multiply(0.1, gch.first((s, 0.5)))),
    "choose": lambda s: gch.sgd(gch.choose((s, 0.05), rest=0.1)),
    "mask of adamw": lambda s: gch.adamw(0.1, weight_decay=0.5, mask=s),
    "mask of sgd": lambda s: gch.sgd(0.1, weight_decay=0.5, mask=s),
    "and": lambda s: gch.chain(gch.masked(gch.scale(0.5), gch.everything & s), SGD),
    "or": lambda s: gch.chain(gch.masked(gch.scale(0.5), s | gch.named("head.weight")), SGD),
    "not": lambda s: gch.chain(gch.masked(gch.scale(0.5), ~(gch.everything & s)), SGD),
}


def trained(make, selector):
    model = copy.deepcopy(MODEL)
    updater = make(selector).bind(model)
    for _ in range(2):
        updater.update(sum((p * (i + 1)).sum() for i, p in enumerate(model.parameters())))
    return updater, torch.cat([p.detach().flatten() for p in model.parameters()])


@forms
@pytest.mark.parametrize("place", PLACES)
def test_every_form_will_do_in_every_place(place, form):
    """The weights are those with the function of three arguments, to the bit; and the chain has a hash."""
    expected = trained(PLACES[place], three)[1]
    updater, found = trained(PLACES[place], FORMS[form])
    assert torch.equal(found, expected)
    assert hash(updater.chain) == hash(updater.chain)


@forms
def test_reset_takes_every_form(form):
    model = copy.deepcopy(MODEL)
    updater = gch.chain(gch.trace(0.9), SGD).bind(model)
    updater.update(sum(p.sum() for p in model.parameters()))
    updater.reset(FORMS[form])
    kept = updater.state_dict()["links"]["trace"]["trace"]
    assert {name for name, value in kept.items() if not value.any()} == set(WIDE)


@pytest.mark.parametrize("form", [form for form, value in FORMS.items() if hasattr(value, "items")])
def test_a_mapping_is_a_value(form):
    """It goes through pickle, deepcopy, a config and its own code, and nobody can change it from outside."""
    given = copy.deepcopy(dict(FORMS[form]))
    link = gch.masked(gch.scale(0.5), given)
    given.clear()
    others = [pickle.loads(pickle.dumps(link)), copy.deepcopy(link), gch.from_config(gch.to_config(link))]
    for other in [*others, eval(repr(link), vars(gch))]:
        assert other == link
        assert hash(other) == hash(link)
        assert resolve(other.selector, FACTS) == WIDE
    assert resolve(~link.selector, FACTS) == ("body.bias", "head.bias")
    assert ~~link.selector == link.selector


FACTORS = {
    "three": lambda name, parameter, owner: 0.5 if parameter.ndim == 2 else 1.0,
    "two": lambda name, parameter: 0.5 if parameter.ndim == 2 else 1.0,
    "one": lambda parameter: 0.5 if parameter.ndim == 2 else 1.0,
    "name": lambda name: 0.5 if name.endswith("weight") else 1.0,
    "method": operator.methodcaller("__class__"),
}


@pytest.mark.parametrize("form", ["three", "two", "one", "name"])
def test_functions_that_give_factors_have_the_same_forms(form):
    expected = trained(PLACES["multiply"], three)[1]
    assert torch.equal(trained(lambda s: gch.sgd(gch.multiply(0.1, s)), FACTORS[form])[1], expected)


@pytest.mark.parametrize(
    "depth",
    [lambda name, parameter, owner: parameter.ndim - 1, lambda name, parameter: parameter.ndim - 1,
     lambda parameter: parameter.ndim - 1, lambda name: int(name.endswith("weight"))],
    ids=["three", "two", "one", "name"],
)  # fmt: skip
def test_functions_that_give_depths_have_the_same_forms(depth):
    updater = gch.sgd(gch.multiply(0.1, gch.layer_decay(0.5, depth, total=2))).bind(copy.deepcopy(MODEL))
    rates = updater.hyperparams()["scale_by_learning_rate.learning_rate"]
    assert rates == {"body.weight": 0.1, "body.bias": 0.05, "head.weight": 0.1, "head.bias": 0.05}


# what is refused


def four(name, parameter, owner, more):
    return True


NO_FORMS = {"four": four, "none": lambda: True, "keyword": lambda parameter, *, least: True}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", NO_FORMS)
def test_a_function_of_other_arguments_is_refused_where_it_is_given(place, form):
    with pytest.raises(TypeError) as raised:
        PLACES[place](NO_FORMS[form])
    forms = "must take (name, parameter, owner), (name, parameter) or (parameter), got "
    assert forms in str(raised.value)
    assert str(raised.value).partition(":")[0] in (
        "masked", "partition", "freeze", "clip_by_norm", "project", "multiply", "first", "choose", "&", "|", "~"
    )  # fmt: skip


@pytest.mark.parametrize("form", NO_FORMS)
def test_a_factor_or_depth_of_other_arguments_is_refused_where_it_is_given(form):
    for make in (lambda f: gch.multiply(0.1, f), lambda f: gch.layer_decay(0.5, f, total=2)):
        with pytest.raises(TypeError, match=r"^(multiply|layer_decay): a function of a parameter must take \(name, "):
            make(NO_FORMS[form])


SHORT = {
    "a name too many": ({**MAPPING, "body.wieght": True}, r'no parameter "body\.wieght" among the 4.*"body\.weight"\?'),
    "a module's name": ({"body": True, "head": False}, r'no parameter "body" among the 4.*Write named\("body\.\*"\)'),
    "a name missing": ({"body.weight": True}, r'3 of 4 are not in it, first "body\.bias"\. .*named\('),
    "nested and missing": ({"body": {"weight": True}}, r'3 of 4 are not in it, first "body\.bias"'),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", SHORT)
def test_a_mapping_must_name_every_parameter_and_no_other(place, kind):
    mapping, sentence = SHORT[kind]
    model = copy.deepcopy(MODEL)
    with pytest.raises(ValueError, match=sentence):
        PLACES[place](mapping).bind(model)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("mapping", "error"),
    [
        ({}, ValueError),
        ({"w": 0.5}, TypeError),
        ({"w": None}, TypeError),
        ({3: True}, TypeError),
        ({"w": {}}, ValueError),
    ],
    ids=["empty", "number", "None", "key", "nested empty"],
)
def test_a_mapping_of_something_else_is_refused_where_it_is_given(place, mapping, error):
    with pytest.raises(error, match=r"mapping|must return True or False"):
        PLACES[place](mapping)


def test_what_a_function_was_called_with_is_in_its_error():
    """A function of one argument that is not called name has the parameter."""
    with pytest.raises(Exception, match=re.escape('parameter "body.weight", called as <lambda>(parameter).)')):
        resolve(lambda n: n.endswith("bias"), FACTS)
    with pytest.raises(Exception, match=re.escape("called as <lambda>(name, parameter).)")):
        resolve(lambda parameter, name: parameter.ndim == 2, FACTS)


@pytest.mark.parametrize(
    "of_a_tree",
    [
        lambda tree: {name: p.ndim > 1 for name, p in tree.items()},
        lambda params: dict.fromkeys(["w"], True),
        lambda n: n.endswith("bias"),
    ],
    ids=["tree", "mapping", "name"],
)
def test_a_function_of_a_tree_or_a_name_is_told_what_it_is_asked(of_a_tree):
    with pytest.raises(
        (TypeError, AttributeError), match=r"asked of (each parameter by itself|one parameter at a time)"
    ):
        resolve(of_a_tree, FACTS)


@pytest.mark.parametrize("given", [(two,), (gch.scale(0.5),), ()], ids=["function", "link", "nothing"])
def test_masked_with_one_argument_names_its_form_and_multiply(given):
    with pytest.raises(
        TypeError, match=r"^masked: .*masked\(link, selector\).*where a function gives numbers.*multiply"
    ):
        gch.masked(*given)


@pytest.mark.parametrize("form", ["three", "two", "one", "name"])
@pytest.mark.parametrize("place", [p for p in PLACES if p not in ("multiply", "first", "choose")])
def test_a_function_that_gives_numbers_in_place_of_a_choice_names_multiply(place, form):
    with pytest.raises(TypeError, match=r"must return True or False, got .*multiply\(value, function\)"):
        PLACES[place](FACTORS[form]).bind(copy.deepcopy(MODEL))
