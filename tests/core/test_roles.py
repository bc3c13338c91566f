"""What links and states say of themselves: roles, what arguments decide, and users' links in the updater's parts."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Mapping
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

import gradchain as gch
from gradchain.core.says import Role, Says
from gradchain.core.transform import registry, walk

LR = gch.scale_by_learning_rate(0.1)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def losses(model: nn.Module, many: int):
    """Losses of one batch after the other, each made when it is asked for."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(many):
        yield model(torch.randn(5, 3, generator=generator, dtype=torch.float64)).square().mean()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


# roles


@pytest.mark.parametrize("role", get_args(Role))
def test_every_role_is_taken(role):
    """Each of the words, on a user's link."""
    assert type("mine", (gch.Transform,), {"role": role})().role == role


@pytest.mark.parametrize("role", ["cilp", "Clip", "clip ", "gate", "normalize", None, 1, True, ("clip",), ["clip"], {}])
def test_any_other_role_is_a_sentence_when_the_class_is_made(role):
    """Spellings, other words, other kinds: the names there are, and nothing registered."""
    before = dict(registry)
    with pytest.raises(ValueError) as raised:
        type("mine", (gch.Transform,), {"role": role, "__module__": "gradchain.mine"})
    assert str(raised.value) == (
        "mine: role must be one of 'clip', 'unscale', 'scale', 'normalise', 'decay', 'learning_rate', 'weights', "
        f"'optimizer', 'average', 'freeze', 'gradient', got {role!r}. Leave it out where none is meant."
    )
    assert registry == before


def test_a_link_derives_from_roles_but_from_no_link():
    """One role, two of them, and none of the links."""

    class both(gch.Gate, gch.Freezes):
        holds = "mine"

    assert (both().holds, both().role) == ("mine", "freeze")
    for link in registry.values():
        with pytest.raises(TypeError, match=rf"mine: {link.__name__} is final. To tweak a link, wrap it in your own."):
            type("mine", (link,), {})
        with pytest.raises(TypeError, match="is final"):
            type("mine", (link, gch.Gate), {})


# what an argument decides

SAID = {
    "descends": (None, True),
    "per_parameter": (False, True),
    "holds": ("", "mine"),
    "read_once": (frozenset(), frozenset({"size"})),
    "calls_back": (False, True),
    "uniform": (frozenset(), frozenset({"size"})),
    "observes": (frozenset(), frozenset({"val_loss"})),
    "refuses_rows": ("", "takes all rows. Give dense gradients."),
}


def test_the_table_has_every_name():
    assert SAID.keys() == Says.__annotations__.keys()


@pytest.mark.parametrize("name", SAID)
def test_a_class_says_it_or_an_argument_decides(name):
    """In the class body; by `says`; by `says` for some and the class for the rest; read from link and class alike."""
    common, said = SAID[name]

    class plain(gch.Transform):
        pass

    by_class = type("by_class", (gch.Transform,), {name: said})

    class by_argument(gch.Transform):
        yes: bool

        def says(self):
            return {name: said} if self.yes else {}

    class by_own_init(gch.Transform):
        def __init__(self, yes):
            object.__setattr__(self, "yes", yes)

        def says(self):
            return {name: said if self.yes else common}

    turned = type("turned", (gch.Transform,), {name: said, "says": lambda self: {name: common}})

    assert getattr(plain(), name) == getattr(plain, name) == common
    assert getattr(by_class(), name) == getattr(by_class, name) == said
    assert [getattr(by_argument(yes), name) for yes in (True, False)] == [said, common]
    assert [getattr(by_own_init(yes), name) for yes in (True, False)] == [said, common]
    assert (getattr(turned(), name), getattr(turned, name)) == (common, said)
    for other in SAID.keys() - {name}:
        assert getattr(by_argument(True), other) == SAID[other][0]


@pytest.mark.parametrize("link", [
    gch.clip_by_norm(1.0, per="tensor"), gch.clip_by_norm(1.0), gch.scale(-1.0), gch.scale(1.0),
    gch.scale_by_learning_rate(0.1, flip_sign=False), gch.average_params(0.9, buffers="average"),
], ids=repr)  # fmt: skip
def test_what_is_decided_goes_along_with_copies(link):
    """Pickled and copied links say the same, and no field is added to what a config has."""
    for other in (pickle.loads(pickle.dumps(link)), copy.deepcopy(link), gch.from_config(gch.to_config(link))):
        assert other == link
        assert all(getattr(other, name) == getattr(link, name) for name in SAID)


@pytest.mark.parametrize("name", ["per_paramter", "role", "hypers", "update"])
def test_says_about_something_else_is_a_sentence(name):
    """A misspelt name, and what no argument decides, at bind."""
    link = type("mine", (gch.Transform,), {"says": lambda self: {name: True}})()
    with pytest.raises(ValueError) as raised:
        gch.chain(link, LR).bind(net())
    assert str(raised.value) == (
        "mine: says must be about descends, per_parameter, holds, read_once, calls_back, uniform, observes, "
        f"refuses_rows, got {name!r}."
    )  # fmt: skip


def test_a_decided_uniform_refuses_a_value_per_parameter():
    """What `says` returns is what the checks at construction go by."""

    class mine(gch.Transform):
        size: gch.Hyper = gch.Hyper(1.0)
        one: bool = False

        def says(self):
            return {"uniform": frozenset({"size"})} if self.one else {}

    spread = gch.multiply(1.0, (gch.bias, 2.0))
    mine(spread)
    with pytest.raises(TypeError, match=r"mine: size must be one number for all parameters"):
        mine(spread, one=True)


# a window of a user's


class pairs(gch.KeepsWindow):
    """Sum `many` micro-batches; the whole of what the updater needs of a window."""

    descends = False
    many: gch.Hyper = gch.Hyper(2, "integer [1, inf)")
    in_grad: bool = True

    def sums_in_grad(self):
        return self.in_grad

    def size(self, state):
        return state.size if state.micro else int(self.many)

    def init(self, params):
        return gch.WindowState(params.select(()))

    def drop_window(self, state):
        return gch.WindowState(state.window.select(()))

    def update(self, g, state, ctx):
        if not ctx.micro.flushing:
            window = g if ctx.micro.summed else state.window.overlay(g).overlay(g + state.window)
            state = gch.WindowState(window, state.micro + 1, self.size(state), scaled=ctx.micro.scaled)
        if not state.micro or (state.micro < state.size and not ctx.micro.last):
            return None, state
        return state.window, self.drop_window(state)


def windowed(link, act):
    """Weights, reasons and `.grad` fields along a run of updates with `link` in front."""
    model = net()
    updater = gch.chain(link, gch.adam(0.1)).bind(model)
    told = []
    for i, loss in enumerate(losses(model, 9)):
        told.append(act(updater, i, loss).reason)
        told.append([p.grad is None for p in model.parameters()])
    return weights(model), told, updater.state_dict()["links"]["scale_by_adam"], updater


def plainly(updater, i, loss):
    return updater.update(loss)


def closing_early(updater, i, loss):
    return updater.update(loss, last=i % 4 == 0)


def flushing(updater, i, loss):
    info = updater.update(loss)
    return updater.flush() if i % 3 == 0 else info


def dropping(updater, i, loss):
    info = updater.update(loss)
    if i % 4 == 2:
        updater.zero_grad()
    return info


def saving(updater, i, loss):
    info = updater.update(loss)
    updater.load_state_dict(updater.state_dict())
    return info


@pytest.mark.parametrize("many", [2, 3, lambda step: 1 + step % 3], ids=["2", "3", "a schedule"])
@pytest.mark.parametrize("in_grad", [True, False])
@pytest.mark.parametrize("act", [plainly, closing_early, flushing, dropping, saving])
def test_a_users_window_is_what_accumulate_is(act, in_grad, many):
    """Held, closed early, flushed, dropped, saved inside: the same weights bit for bit, wherever the window lies."""
    ours = gch.accumulate(many, reduce="sum", dtype=None if in_grad else torch.float64)
    mine, told, adam, updater = windowed(pairs(many, in_grad), act)
    wanted, also_told, other_adam, other = windowed(ours, act)
    assert same(mine, wanted) and told == also_told
    assert same(adam["mu"], other_adam["mu"]) and adam["count"] == other_adam["count"]
    assert updater._bound.window.name == ("pairs" if in_grad else None)
    assert {"window", "applied"} <= {word for word in told if isinstance(word, str)}
    assert other.clocks == updater.clocks


def test_a_users_window_behind_another_link_is_a_buffer():
    """Only the first link's lies in `.grad`."""
    updater = gch.chain(gch.skip_nonfinite(), pairs(), LR).bind(net())
    assert updater._bound.window.name is None


@pytest.mark.parametrize("where", ["outermost", "branch"])
def test_a_window_needs_its_state(where):
    """A link that keeps one and has another state is refused at bind, with its address."""

    class forgetful(gch.KeepsWindow):
        descends = False

        def size(self, state):
            return 2

    links = [forgetful(), LR] if where == "outermost" else [gch.partition((gch.rest, gch.chain(forgetful(), LR)))]
    address = "forgetful" if where == "outermost" else "partition/rest/forgetful"
    with pytest.raises(TypeError) as raised:
        gch.chain(*links).bind(net())
    assert str(raised.value) == f"chain: the state of {address} must be a WindowState, got Empty."


# a gate of a user's


class GateState(gch.State):
    skipped: int = 0


class stop(gch.Gate):
    """Hold where anything is not finite, and count it."""

    descends = False
    on: bool = True

    def active(self, ctx):
        return self.on

    def init(self, params):
        return GateState()

    def refused(self, why, state, ctx):
        return GateState(state.skipped + 1)

    def update(self, g, state, ctx):
        if not self.on or g.all_finite():
            return g, state
        return None, self.refused("the updates are not finite", state, ctx)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_users_gate_lets_a_loss_that_is_not_finite_be(bad):
    """The update is skipped and counted, weights stay; the next one is applied."""
    model = net()
    updater = gch.chain(stop(), LR).bind(model)
    kept = weights(model)
    first, second = losses(model, 2)
    info = updater.update(first * bad)
    assert (info.reason, bool(info), updater.num_skipped) == ("nonfinite", False, 1)
    assert same(weights(model), kept) and updater.state_dict()["links"]["stop"] == {"skipped": 1}
    assert updater.update(second) and not same(weights(model), kept)


def test_a_gate_that_is_not_active_is_none():
    """Then such a loss raises as without it."""
    model = net()
    updater = gch.chain(stop(on=False), LR).bind(model)
    with pytest.raises(FloatingPointError, match="loss is nan"):
        updater.update(next(losses(model, 1)) * float("nan"))


def test_a_holder_that_is_no_gate_promises_nothing():
    """It may hold for a reason of that name: that is not what makes a gate."""
    holder = type("holder", (gch.Transform,), {
        "descends": False, "holds": "nonfinite", "update": lambda self, g, state, ctx: (g, state),
    })  # fmt: skip
    model = net()
    with pytest.raises(FloatingPointError):
        gch.chain(holder(), LR).bind(model).update(next(losses(model, 1)) * float("nan"))


@pytest.mark.parametrize("on", [True, False])
def test_an_unscaling_gate_that_does_nothing_is_told_of(on):
    """By what `active` says of the model, not by the name of an argument."""

    class unscale(gch.Gate):
        descends = False
        role = "unscale"
        working: bool

        def active(self, ctx):
            return self.working

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gch.chain(unscale(on), LR).bind(net())
    assert [str(w.message)[:27] for w in caught] == ([] if on else ["bind: unscale does nothing:"])


# a freeze of a user's


class freeze_shapes(gch.Freezes):
    """Leave parameters with so many dimensions alone."""

    descends = False
    ndim: int
    for_good: bool = True

    def _those(self, index):
        return index.subset([f.name for f in index.facts if f.parameter.ndim == self.ndim])

    def frozen(self, index):
        return self._those(index) if self.for_good else ()

    def update(self, g, state, ctx):
        return g.select(g.index.without(self._those(g.index))), state


def test_a_users_freeze_excuses_from_the_sign():
    """For good, and only then."""
    model = net()
    updater = gch.chain(freeze_shapes(1), gch.masked(gch.sgd(0.1), gch.min_ndim(2))).bind(model)
    before = weights(model)
    updater.update(next(losses(model, 1)))
    moved = {n for n, w in weights(model).items() if not torch.equal(w, before[n])}
    assert moved == {"0.weight", "2.weight"}
    with pytest.raises(ValueError, match="would climb"):
        gch.chain(freeze_shapes(1, for_good=False), gch.masked(gch.sgd(0.1), gch.min_ndim(2))).bind(net())


@pytest.mark.parametrize("link", [gch.freeze(gch.everything), gch.freeze(gch.bias)], ids=repr)
@pytest.mark.parametrize("inside", ["mask", "branch"])
def test_a_freeze_excuses_those_that_pass_it(link, inside):
    """In a mask or branch the others are not frozen, whatever the selector would match of them."""
    first = gch.named("0.*")
    held = gch.masked(link, first) if inside == "mask" else gch.partition((first, link), (gch.rest, gch.scale(1.0)))
    with pytest.raises(ValueError, match="would climb"):
        gch.chain(held, gch.masked(gch.sgd(0.1), gch.named("0.weight"))).bind(net())
    gch.chain(held, LR).bind(net())


# an average of a user's


class FourState(gch.AverageState):
    seen: int = 0


class halfway(gch.Transform):
    """Keep the mean of the weights now and those of before."""

    descends = False
    role = "average"

    def init(self, params):
        return FourState(params.clone(), params.select(()))

    def update(self, g, state, ctx):
        return g, FourState(state.average.lerp(ctx.new_params(g), 0.5), state.buffers, state.seen + 1)


def test_a_users_average_is_swapped_in():
    """`averaged`, `averages`, `copy_average_to`: what average_params(0.5) gives, by a state of the user's."""
    model, other = net(), net()
    mine, ours = gch.chain(LR, halfway()).bind(model), gch.chain(LR, gch.average_params(0.5)).bind(other)
    for a, b in zip(losses(model, 4), losses(other, 4), strict=True):
        mine.update(a)
        ours.update(b)
    assert same(mine.averages(), ours.averages()) and not same(mine.averages(), weights(model))
    kept = weights(model)
    with mine.averaged(), ours.averaged():
        assert same(weights(model), weights(other)) and not same(weights(model), kept)
    assert same(weights(model), kept)
    copied = net(3)
    mine.copy_average_to(copied)
    assert same(weights(copied), dict(mine.averages()))


def test_two_averages_are_told_apart():
    """A user's beside ours: one must be named."""
    updater = gch.chain(LR, halfway(), gch.average_params(0.9)).bind(net())
    with pytest.raises(KeyError, match=r"there are several averages, name one of: halfway, average_params"):
        updater.averages()
    assert updater.averages("halfway").keys() == updater.averages("average_params").keys()


# states that hold states


class TwiceState(gch.State):
    links: Mapping[str, gch.State]
    runs: int = 0
    last: gch.Tensors | None = None


class twice(gch.Transform):
    """Run a link, and remember something beside its state."""

    per_parameter = True
    descends = False
    inner: gch.Transform

    def parts(self, index):
        return [("inner", self.inner, index)]

    def init(self, params):
        return TwiceState({"inner": self.inner.init(params)}, 0, params.zeros_like())

    def update(self, g, state, ctx):
        out, inner = self.inner.update(g, state.links["inner"], ctx.enter("inner"))
        return out, state.replace(links={"inner": inner}, runs=state.runs + 1, last=out)


def test_held_states_are_found_in_one_way():
    """Of a state that has none, of ours, of a user's; and a copy with others."""
    params = gch.Tensors.of({"w": torch.ones(2)})
    link = twice(gch.trace(0.9))
    state = link.init(params)
    assert dict(gch.trace(0.9).init(params).held()) == {}
    assert state.held() is state.links and list(state.held()) == ["inner"]
    assert list(gch.chain(link).init(params).held()) == ["twice"]
    other = state.holding({"inner": "other"})
    assert (other.held(), other.runs, type(other)) == ({"inner": "other"}, 0, TwiceState)
    assert state["runs"] == 0 and state["last"] is state.last
    plain = gch.trace(0.9).init(params)
    assert plain.holding({}) is plain


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_users_state_that_holds_one_is_saved_and_carried(in_backward):
    """Both parts of it: loaded into a fresh updater, and taken along by rebind; also one parameter at a time."""
    model, other = net(), net()
    tx = gch.chain(twice(gch.trace(0.9)), LR)
    updater, fresh = (tx.bind(m, in_backward=in_backward) for m in (model, other))
    for loss in losses(model, 3):
        updater.update(loss)
    saved = updater.state_dict()
    assert saved["links"].keys() >= {"twice", "twice/inner"}
    other.load_state_dict(model.state_dict())
    fresh.load_state_dict(saved)
    updater.rebind(model)
    for a, b in zip(losses(model, 3), losses(other, 3), strict=True):
        updater.update(a)
        fresh.update(b)
    assert same(weights(model), weights(other))
    again, loaded = updater.state_dict()["links"], fresh.state_dict()["links"]
    assert same(again["twice"]["last"], loaded["twice"]["last"])
    assert same(again["twice/inner"]["trace"], loaded["twice/inner"]["trace"])


@pytest.mark.parametrize("name", ["held", "holding", "items", "own", "replace"])
def test_a_field_that_every_state_has_already_is_a_sentence(name):
    """It would take the place of what the updater calls."""
    with pytest.raises(TypeError) as raised:
        type("MyState", (gch.State,), {"__annotations__": {name: "gch.Tensors"}})
    assert str(raised.value) == f"MyState: a field must not be called {name!r}, which every State has already."


# what is asked of functions of a user's


@pytest.mark.parametrize(
    "name", ["at", "clocks", "length", "starts", "resolve", "rules", "active", "selector", "until"]
)
def test_an_attribute_of_a_users_function_means_nothing(name):
    """A schedule of the user's is a function, whatever else it has: numpy's functions have an `at`."""

    def rate(step):
        return 0.1 / (step + 1)

    def other(step):
        return 0.1 / (step + 1)

    setattr(other, name, lambda *args: 1 / 0)
    moved = []
    for schedule in (rate, other):
        model = net()
        updater = gch.chain(gch.scale_by_learning_rate(schedule)).bind(model)
        for loss in losses(model, 3):
            updater.update(loss)
        updater.explain()
        moved.append(weights(model))
    assert same(*moved)


def test_a_function_of_numpys_is_a_schedule():
    g = gch.Tensors.of({"w": torch.ones(2)})
    link = gch.scale(np.cos)
    assert link.update(g, link.init(g), gch.Context(g, step=0))[0]["w"].tolist() == [1.0, 1.0]


def test_links_of_one_kind_are_found_by_type():
    """Ours say by their class what they are."""
    tx = gch.chain(gch.accumulate(2), gch.amp_scale(always=True), gch.skip_nonfinite(), gch.freeze(gch.bias),
                   gch.masked(gch.trace(0.9), gch.bias), LR)  # fmt: skip
    kinds = {kind: [a for a, link, _ in walk(tx, None) if isinstance(link, kind)] for kind in (
        gch.KeepsWindow, gch.Gate, gch.Freezes, gch.Wraps)}  # fmt: skip
    assert kinds == {
        gch.KeepsWindow: ["accumulate"], gch.Gate: ["amp_scale", "skip_nonfinite"], gch.Freezes: ["freeze"],
        gch.Wraps: ["masked"],
    }  # fmt: skip
