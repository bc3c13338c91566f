"""Addresses by any suffix: what is suggested for one that is not there is always one that is found."""

import itertools
import re

import pytest
import torch

import gradchain as gch
from gradchain.core.address import find

BRANCHES = ("head", "rest", "branch#2")
ADDRESSES = [
    f"partition/{branch}/{name}"
    for branch in BRANCHES
    for name in ("scale_by_adam.b1", "scale_by_adam.b2", "scale_by_learning_rate.learning_rate")
] + ["masked/add_decayed_weights.weight_decay"]
WORDS = {"learning_rate": ("learning_rate", "lr"), "b1": ("b1", "beta1"), "b2": ("b2", "beta_2")}


def suggested(query):
    """What the sentence for an address that is not there says was meant."""
    with pytest.raises(KeyError) as raised:
        find(query, ADDRESSES, "here")
    sentence = raised.value.args[0]
    assert sentence.startswith(f"here: there is no {query!r}.")
    return re.findall(r"'([^']+)'", sentence.partition("Did you mean")[2].partition("There are")[0])


@pytest.mark.parametrize(("branch", "ours"), [*itertools.product(BRANCHES, WORDS)])
def test_a_branch_and_a_number_name_the_one_that_is_meant(branch, ours):
    """Whatever lies between, and by the words of other libraries."""
    for word, between in itertools.product(WORDS[ours], "/."):
        (meant,) = suggested(f"{branch}{between}{word}")
        assert meant in ADDRESSES and meant.startswith(f"partition/{branch}/") and meant.endswith(f".{ours}")


@pytest.mark.parametrize("query", ["lr", "learning_rat", "beta1", "wd", "rest/b3", "decay", "partition/learning_rate"])
def test_whatever_is_suggested_is_found(query):
    """A word that several addresses end in is none: they are told in its place."""
    near = suggested(query)
    assert near and len(near) == len(set(near))
    assert {find(word, ADDRESSES, "here") for word in near} <= set(ADDRESSES)


def test_an_override_of_a_branch_is_told_its_address():
    """Without a name a branch is called "branch", and the last one "rest"."""
    model = torch.nn.Linear(2, 2)
    updater = gch.partition((gch.min_ndim(2), gch.adam(1e-3)), (gch.rest, gch.sgd(0.1))).bind(model)
    with pytest.raises(KeyError, match=r"Did you mean 'partition/rest/scale_by_learning_rate\.learning_rate'\?"):
        updater.override("rest/learning_rate", 0.2)
    updater.override("rest/scale_by_learning_rate.learning_rate", 0.2)
    assert updater.hyperparams()["partition/rest/scale_by_learning_rate.learning_rate"] == 0.2
