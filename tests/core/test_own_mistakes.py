"""Mistakes in a link of one's own, and Tensors in it: a sentence with the link and the cure.

Each is met twice: where tensors are computed at once, and where they are recorded.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from little import data, loss_of, net, same, weights

import gradchain as gch


class Memory(gch.State):
    """One field, of whatever kind a test gives it."""

    m: gch.Tensors


def link(update=None, init=None, **body):
    """A link of a user's called `mine`."""
    methods = {"update": update} if update else {}
    if init:
        methods["init"] = init
    return type("mine", (gch.Transform,), {"descends": False, **methods, **body})


def passes(self, g, state, ctx):
    return g, state


RESULTS = {
    "updates alone": (lambda self, g, s, ctx: g, r"^mine: update must return two things, .* got \w+. Write return g"),
    "nothing": (lambda self, g, s, ctx: None, "^mine: update must return two things, .* got NoneType"),
    "three": (lambda self, g, s, ctx: (g, s, 1), "^mine: update must return two things, .* got 3 things"),
    "a dict": (lambda self, g, s, ctx: ({**g}, s), r"^mine: the updates .* got dict: gch\.Tensors\.of"),
    "a tensor": (lambda self, g, s, ctx: (torch.ones(2), s), "^mine: the updates .* got Tensor: compute with g itself"),
    "the state first": (
        lambda self, g, s, ctx: (s, g),
        "^mine: update must return the updates first .* got Empty first",
    ),
    "no init": (
        lambda self, g, s, ctx: (g + s.m, s),
        r"^mine: its state has no field 'm'. It has no init, .* def init",
    ),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_what_update_returns(kind):
    update, sentence = RESULTS[kind]
    made = link(update)()
    params = gch.Tensors.of(net())
    with pytest.raises((TypeError, AttributeError), match=sentence):
        made.update(params, made.init(params), gch.Context(params, step=0))
    model = net()
    updater = gch.chain(gch.trace(0.9), made, gch.scale_by_learning_rate(0.1)).bind(model)
    before, state = weights(model), updater.state_dict()
    with pytest.raises((TypeError, AttributeError), match=sentence):
        updater.update(loss_of(model, data(1)[0]))
    assert same(weights(model), before) and same(updater.state_dict(), state)


def test_a_field_that_is_not_there_is_told_with_those_that_are():
    made = link(lambda self, g, s, ctx: (g + s.mu, s), lambda self, params: Memory(params.slot()))()
    model = net()
    updater = gch.chain(made, gch.scale_by_learning_rate(0.1)).bind(model)
    with pytest.raises(AttributeError, match=r"^mine: its state has no field 'mu'. Its fields: m\.$"):
        updater.update(loss_of(model, data(1)[0]))


STATES = {
    "a dict": (lambda self, p: {"m": p.slot()}, r"^mine: init must return a gch\.State, got dict"),
    "Tensors": (lambda self, p: p.slot(), r"^mine: init must return a gch\.State, got EagerTensors"),
    "nothing": (lambda self, p: None, r"^mine: init must return a gch\.State, got NoneType"),
    "a dict in a field": (lambda self, p: Memory({**p}), "^mine: field 'm' of its state must be Tensors.* got dict"),
    "a list in a field": (lambda self, p: Memory([1]), "^mine: field 'm' of its state must be Tensors.* got list"),
    "a tensor in a field": (lambda self, p: Memory(torch.ones(3)), r"^mine: field 'm' .* got a tensor of shape \(3,\)"),
}


@pytest.mark.parametrize("kind", STATES)
def test_what_init_returns_is_said_at_bind(kind):
    init, sentence = STATES[kind]
    with pytest.raises(TypeError, match=sentence):
        gch.chain(link(passes, init)(), gch.scale_by_learning_rate(0.1)).bind(net())


@pytest.mark.parametrize("schedule", [gch.linear(0.0, 1.0, 10), lambda step: 0.1], ids=["ours", "a function"])
@pytest.mark.parametrize("annotation", [float, "float", int], ids=["float", "written", "int"])
def test_a_schedule_for_a_mere_number(annotation, schedule):
    made = link(passes, __annotations__={"b": annotation})
    with pytest.raises(TypeError, match=r"^mine: b must be a number, for its annotation is .* b: gch\.Hyper it takes"):
        made(schedule)
    assert made(0.5).b == 0.5
    link(passes, __annotations__={"b": gch.Hyper})(schedule)


def test_an_init_of_its_own_that_sets():
    def init(self, b):
        self.b = b

    with pytest.raises(dataclasses.FrozenInstanceError, match=r"^mine: a link is frozen, so 'b' .* b: gch\.Hyper"):
        link(passes, __init__=init)(0.5)


ABSENT = {
    "square": (lambda g: g.square(), r"no 'square': write g \* g"),
    "mul_": (lambda g: g.mul_(2), r"no 'mul_': nothing is changed in place, write g \* other"),
    "add_": (lambda g: g.add_(1), r"no 'add_': nothing is changed in place, write g \+ other"),
    "sqrt_": (lambda g: g.sqrt_(), r"no 'sqrt_': nothing is changed in place, write g\.sqrt"),
    "item": (lambda g: g.item(), "no 'item': there is no single element"),
    "a misspelling": (lambda g: g.sqart(), r"no 'sqart': write g\.sqrt"),
    "what is for whole tensors": (lambda g: g.view(-1), r"no 'view': write g\.map\(lambda t: t\.view"),
    "a shape": (lambda g: g.shape, "no 'shape': each tensor has its own"),
    "keepdim": (
        lambda g: g.mean(-1, keepdim=True),
        "^mean: does not take 'keepdim': leave it out: dimensions are kept",
    ),
    "the mean of all": (lambda g: g.mean(), "^mean: .*Of each whole tensor it is its sums over its numels"),
    "a norm along": (lambda g: g.norm(dim=-1), "^norm: does not take 'dim': norms, with an s, is along"),
    "clamp": (lambda g: g.clamp(min=0.0), "^clamp: does not take 'min': write low="),
}


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("word", ABSENT)
def test_words_of_torch_on_tensors(word, recorded):
    asked, sentence = ABSENT[word]
    with pytest.raises((AttributeError, TypeError), match=sentence):
        _asked(asked, recorded)


def _asked(fn, recorded):
    """What a function makes of Tensors in a link, which is called by hand or records on a tape."""
    made = link(lambda self, g, s, ctx: (fn(g), s))()
    if not recorded:
        g = gch.Tensors.of({"w": torch.tensor([-1.5, 2.5])})
        return made.update(g, made.init(g), gch.Context(g, step=0))[0]
    w = torch.nn.Parameter(torch.zeros(2))
    gch.chain(made, gch.scale(-1.0)).bind({"w": w}).step({"w": torch.tensor([-1.5, 2.5])})
    return {"w": -w.detach()}


def test_words_of_torch_in_an_init():
    made = link(passes, init=lambda self, params: Memory(params.square()))()
    with pytest.raises(AttributeError, match=r"no 'square': write g \* g"):
        made.init(gch.Tensors.of(net()))


def test_what_is_there_is_asked_for_as_of_any_class():
    """A class with a `__getattr__` has each of its attributes found more slowly, at every step."""
    for kind in (gch.Tensors, gch.State, type(gch.Tensors.of(net()))):
        assert not hasattr(kind, "__getattr__")


@pytest.mark.parametrize("recorded", [False, True])
def test_functions_of_python(recorded):
    """abs and round of Tensors, as of a tensor."""
    assert _asked(abs, recorded)["w"].tolist() == [1.5, 2.5]
    assert _asked(round, recorded)["w"].tolist() == [-2.0, 2.0]


def test_dicts_in_place_of_tensors():
    """Who knows Optax gives dicts: each call says what it wants."""
    w = {"w": torch.ones(2)}
    params, tx = gch.Tensors.of(w), gch.adam(0.1)
    state, ctx = tx.init(params), gch.Context(params, step=0)
    of = r"gch\.Tensors\.of\(…\)"
    for owner, one in (("chain", tx), ("scale", gch.scale(-1.0)), ("scale_by_adam", gch.scale_by_adam())):
        with pytest.raises(TypeError, match=rf"^{owner}: init must be given Tensors, got dict. Write {of}"):
            one.init(w)
    with pytest.raises(TypeError, match=rf"^chain: update must be given Tensors, got dict. Write {of}"):
        tx.update(w, state, ctx)
    for wrong in (params, w):
        with pytest.raises(
            TypeError, match=r"^chain: update must be given a gch\.Context .*gch\.Context\(params, step"
        ):
            tx.update(params, state, wrong)
    with pytest.raises(TypeError, match=rf"^Context: params must be Tensors, got dict. Write {of}"):
        gch.Context(w, step=0)
    for given in ((w, params), (params, w)):
        with pytest.raises(TypeError, match=rf"^apply_updates: \w+ must be Tensors, got dict. Write {of}"):
            gch.apply_updates(*given)


def test_tensors_made_of_a_dict_share_one_plan():
    """A plan knows the names of the weights, whatever a link has made its Tensors of."""
    made = link(lambda self, g, s, ctx: (gch.Tensors.of({n: torch.tanh(t) for n, t in reversed([*g.items()])}), s))()
    ours, twin = net(), net()
    updater = gch.chain(made, gch.adam(0.1)).bind(ours)
    other = gch.chain(link(lambda self, g, s, ctx: (g.map(torch.tanh), s))(), gch.adam(0.1)).bind(twin)
    for rows in data(4):
        updater.update(loss_of(ours, rows))
        other.update(loss_of(twin, rows))
    assert updater._bound.engine.num_plans == 1
    assert updater.explain().count("entries were read as tensors: what a link makes of those torch computes") == 1
    assert same(weights(ours), weights(twin))
