"""The words of other libraries, asked of an Updater."""

import re

import pytest
import torch
from little import untouched

import gradchain as gch
from gradchain.updater import foreign


@pytest.mark.parametrize("name", sorted(foreign.NAMES))
def test_a_foreign_attribute_is_answered_bound_and_unbound(name):
    """Those of torch's optimizers, schedulers and scalers, of Optax's, MMEngine's and averages'."""
    updater = gch.adamw(1e-3).bind(torch.nn.Linear(2, 1))
    for asked, head in ((updater, f"Updater: has no {name!r}; use "), (updater.chain, f"chain: has no {name!r}. Bind")):
        if hasattr(type(asked), name):
            continue
        with pytest.raises(AttributeError) as raised:
            getattr(asked, name)
        assert str(raised.value).startswith(head)
        assert foreign.NAMES[name] in str(raised.value)


@pytest.mark.parametrize("name", sorted({n for n in dir(gch.Updater) if n[:1] != "_" and len(n) > 5}))
def test_a_misspelt_method_of_the_updater_is_mended(name):
    updater = gch.adamw(1e-3).bind(torch.nn.Linear(2, 1))
    with pytest.raises(AttributeError) as raised:
        getattr(updater, name[:-1] + "_" + name[-1])
    assert f"Did you mean '{name}'?" in str(raised.value)


CALLS = {
    "zero_grad: does not take 'set_to_none': leave it out": lambda u, loss: u.zero_grad(set_to_none=True),
    "update: does not take 'wieght': write weight=.": lambda u, loss: u.update(loss, wieght=3),
    "update: does not take 'closure': it goes to update": lambda u, loss: u.update(loss, closure=None),
    "backward: does not take 'retain_grap': write retain_g": lambda u, loss: u.backward(loss, retain_grap=True),
    "step: does not take 'closure': it goes to update": lambda u, loss: u.step(closure=lambda: loss),
    "override: does not take 'lr'": lambda u, loss: u.override(lr=0.1),
    "override: there is no 'lr'. Did you mean 'learning_rate'?": lambda u, loss: u.override("lr", 0.1),
    "override: there is no 'betas'. Did you mean 'b1' or 'b2'?": lambda u, loss: u.override("betas", 0.1),
    "override: there is no 'wd'. Did you mean 'weight_decay'?": lambda u, loss: u.override("wd", 0.1),
    "override: there is no 'momentum'. Did you mean 'b1'?": lambda u, loss: u.override("momentum", 0.1),
    "override: there is no 'beta2'. Did you mean 'b2'?": lambda u, loss: u.override("beta2", 0.1),
    "override: there is no 'epsilon'. Did you mean 'eps'?": lambda u, loss: u.override("epsilon", 0.1),
    "step: grads must map names to gradients, got Tensor. A loss goes to update(": lambda u, loss: u.step(loss),
    "step: grads must map names to gradients, got function. A closure goes": lambda u, loss: u.step(lambda: loss),
}  # fmt: skip


@pytest.mark.parametrize("sentence", CALLS)
def test_a_foreign_call_of_the_updater_is_answered_and_changes_nothing(sentence):
    model = torch.nn.Linear(2, 1)
    updater = gch.adamw(1e-3).bind(model)
    with untouched(model, updater), pytest.raises((TypeError, KeyError)) as raised:
        CALLS[sentence](updater, model(torch.ones(1, 2)).sum())
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    ("name", "ours"), [("learning_rate", "lr"), ("b1", "betas[0]"), ("beta2", "betas[1]"), ("wd", "weight_decay")]
)
def test_our_word_is_answered_with_theirs_in_from_torch(name, ours):
    updater = gch.from_torch("AdamW", lr=0.1).bind(torch.nn.Linear(2, 1))
    with pytest.raises(KeyError, match=re.escape(f"Did you mean {ours!r}?")):
        updater.override(name, 0.1)
