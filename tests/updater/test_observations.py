"""A link that waits for a number which nobody observes: somebody is told, once, with the name and the call."""

import copy
import warnings

import pytest
import torch
from torch import nn

import gradchain as gch
from gradchain.updater.observations import PATIENCE


class waits(gch.Transform):
    """A user's link that says what it waits for."""

    descends = False
    observes = frozenset({"accuracy"})

    def update(self, g, state, ctx):
        return g, state


PLATEAU = gch.reduce_on_plateau("val_loss")
CHAINS = {
    "last": (gch.chain(gch.sgd(0.1), PLATEAU), "reduce_on_plateau", "val_loss"),
    "first": (gch.chain(PLATEAU, gch.sgd(0.1)), "reduce_on_plateau", "val_loss"),
    "mask": (gch.chain(gch.sgd(0.1), gch.masked(PLATEAU, gch.bias)), "masked/reduce_on_plateau", "val_loss"),
    "branch": (
        gch.partition((gch.bias, gch.chain(PLATEAU, gch.sgd(0.1))), (gch.rest, gch.sgd(0.1))),
        "partition/branch/reduce_on_plateau", "val_loss",
    ),
    "own": (gch.chain(waits(), gch.sgd(0.1)), "waits", "accuracy"),
}  # fmt: skip


def bound(chain):
    return chain.bind(nn.Linear(1, 1))


def updates(updater, n):
    """What is warned of in `n` updates."""
    one = {name: torch.ones(p.shape) for name, p in updater._bound.parameters().items()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(n):
            updater.step(one)
    assert all(w.filename == __file__ for w in caught)
    return [str(w.message) for w in caught]


@pytest.mark.parametrize("kind", CHAINS)
def test_a_link_that_nobody_calls_is_told_of_once(kind):
    chain, address, name = CHAINS[kind]
    updater = bound(chain)
    assert updates(updater, PATIENCE) == []
    sentence = f"update: {address} waits for updater.observe({name!r}, value), which was not called in 1000 updates, "
    assert updates(updater, 1) == [sentence + "and changes nothing until then."]
    assert updates(updater, 3) == []


@pytest.mark.parametrize("kind", CHAINS)
def test_one_that_was_called_is_not(kind):
    """Once is enough, also before a load."""
    chain, _, name = CHAINS[kind]
    updater, other = bound(chain), bound(chain)
    updates(updater, 10)
    updater.observe(name, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other.load_state_dict(updater.state_dict())
        assert updates(other, 1)[1:] == []
    for each in (updater, other):
        assert updates(each, PATIENCE) == []


def test_other_names_are_shown():
    updater = bound(CHAINS["last"][0])
    updater.observe("accuracy", 1.0)
    updates(updater, PATIENCE)
    assert updates(updater, 1)[0].endswith("and changes nothing until then. Observed were 'accuracy'.")


def test_it_is_told_as_an_error_where_warnings_are_errors_and_nothing_changes():
    updater = bound(CHAINS["last"][0])
    updates(updater, PATIENCE)
    before = copy.deepcopy(updater.state_dict())
    with pytest.raises(UserWarning, match=r"waits for updater\.observe"):
        updater.step({"bias": torch.ones(1)})
    assert str(updater.state_dict()) == str(before)
    updater.step({"bias": torch.ones(1)})


@pytest.mark.parametrize("kind", CHAINS)
def test_explain_says_what_is_waited_for(kind):
    chain, address, name = CHAINS[kind]
    updater = bound(chain)
    line = f"{address} waits for updater.observe({name!r}, value), which was not called"
    assert line in updater.explain().splitlines()
    updater.observe(name, 1.0)
    assert line not in updater.explain().splitlines()


@pytest.mark.parametrize("name", ["val_los", "valloss", "loss", "validation_loss", "Val_loss", "val/loss", "val-loss"])
def test_a_name_like_the_one_that_is_waited_for_is_told_of_once(name):
    updater = bound(CHAINS["last"][0])
    with pytest.warns(
        UserWarning, match=f"^observe: reduce_on_plateau waits for 'val_loss', and {name!r} was"
    ) as caught:
        updater.observe(name, 1.0)
    assert caught[0].filename == __file__
    updater.observe(name, 0.5)
    assert updater._bound.observed[name] == 0.5


@pytest.mark.parametrize("name", ["accuracy", "f1", "epoch_time"])
def test_other_names_are_nobodys_business(name):
    updater = bound(CHAINS["last"][0])
    updater.observe(name, 1.0)


def test_a_like_name_beside_the_right_one_is_right():
    updater = bound(CHAINS["last"][0])
    updater.observe("val_loss", 1.0)
    updater.observe("val_loss2", 1.0)
    bound(gch.sgd(0.1)).observe("val_loss", 1.0)
