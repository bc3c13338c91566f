"""A state that was loaded with other weights is told of, once; with the right ones nothing is said, whoever shares."""

import copy
import pickle
import warnings

import pytest
import torch
from little import loss_of
from torch import nn

import gradchain as gch

ROWS = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


class Shared:
    """Two updaters, whose models have a body in common."""

    def __init__(self):
        self.body, self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)
        self.models = {
            "one": {"body": self.body, "first": self.first},
            "two": {"body": self.body, "second": self.second},
        }
        self.updaters = {name: gch.adam(0.1).bind(model) for name, model in self.models.items()}
        self.group = gch.group(**self.updaters)

    def update(self, name):
        head = self.first if name == "one" else self.second
        return self.updaters[name].update(loss_of(nn.Sequential(self.body, nn.Tanh(), head), ROWS))

    def weights(self):
        modules = (self.body, self.first, self.second)
        return [copy.deepcopy(module.state_dict()) for module in modules]

    def set(self, weights):
        for module, saved in zip((self.body, self.first, self.second), weights, strict=True):
            module.load_state_dict(saved)


def said(act):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    assert all(w.filename == __file__ for w in caught)
    return [str(w.message) for w in caught]


def by_group(life, saved, path):
    life.set(saved["weights"])
    life.group.load_state_dict(saved["group"])


def state_first(life, saved, path):
    life.group.load_state_dict(saved["group"])
    life.set(saved["weights"])


def by_file(life, saved, path):
    life.group.load(path)


def one_by_one(life, saved, path):
    for name, updater in life.updaters.items():
        updater.load_state_dict(saved["group"][name])
    life.set(saved["weights"])


def one_alone(life, saved, path):
    life.set(saved["weights"])
    life.updaters["two"].load_state_dict(saved["group"]["two"])


LOADS = {f.__name__: f for f in (by_group, state_first, by_file, one_by_one, one_alone)}
ORDERS = [("one", "two"), ("two", "one"), ("one", "one", "one", "two"), ("two",)]


@pytest.fixture
def trained(tmp_path):
    life = Shared()
    for name in ("one", "two", "one"):
        life.update(name)
    life.group.save(tmp_path / "group.pt")
    return {"weights": life.weights(), "group": life.group.state_dict()}, tmp_path / "group.pt"


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "the same"])
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize("load", LOADS)
def test_a_right_load_is_said_to_be_nothing_else(load, order, fresh, trained):
    """Whichever of the updaters that share weights goes first."""
    saved, path = trained
    life = Shared()
    if not fresh:
        life.update("one")
    LOADS[load](life, saved, path)
    assert said(lambda: [life.update(name) for name in order]) == []


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize("load", ["by_group", "one_by_one", "one_alone"])
def test_other_weights_are_told_of_once_for_each(load, order, trained):
    """Also where it is another updater that is about to change them."""
    saved, path = trained
    life = Shared()
    LOADS[load](life, {**saved, "weights": Shared().weights()}, path)
    told = said(lambda: [life.update(name) for name in order])
    assert len(told) == (1 if load == "one_alone" else 2)
    assert all(line.startswith("update: the state was saved with other weights: ") for line in told)
    assert said(lambda: [life.update(name) for name in ("one", "two")]) == []


def test_updaters_that_share_nothing_do_not_look_for_one_another(trained):
    """The weights of the other may not be there yet."""
    life = Shared()
    other = nn.Linear(3, 2)
    updater = gch.adam(0.1).bind(other)
    state, weights = updater.state_dict(), copy.deepcopy(other.state_dict())
    nn.init.zeros_(other.weight)
    updater.load_state_dict(state)
    assert said(lambda: life.update("one")) == []
    other.load_state_dict(weights)
    assert said(lambda: updater.update(loss_of(other, ROWS))) == []


def test_an_updater_that_is_gone_is_forgotten(trained):
    saved, _ = trained
    life = Shared()
    life.updaters["two"].load_state_dict(saved["group"]["two"])
    del life.group, life.updaters["two"]
    assert said(lambda: life.update("one")) == []


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))], ids=["copy", "pickle"]
)
def test_a_copy_goes_on_waiting(way, trained):
    """It has the weights of its own to look at."""
    saved, _ = trained
    life = Shared()
    life.updaters["one"].load_state_dict(saved["group"]["one"])
    other = way(life)
    assert len(said(lambda: other.update("one"))) == 1
    other = way(life)
    other.set(saved["weights"])
    assert said(lambda: other.update("one")) == []
    assert len(said(lambda: life.update("one"))) == 1


def test_what_came_with_its_weights_may_be_changed(trained):
    """Whoever loads a whole file and then changes weights, means it."""
    _, path = trained
    life = Shared()
    life.group.load(path)
    nn.init.zeros_(life.body.weight)
    assert said(lambda: life.update("one")) == []
