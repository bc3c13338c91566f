"""The factor of a loss that a window holds is never one of before: whatever comes between its micro-batches."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

import gradchain as gch

EVENTS = (
    "nothing",
    "override",
    "override ends",
    "load",
    "reset",
    "zero_grad",
    "flush",
    "rebind",
    "tick",
    "copy",
    "raw",
)


def asked_each_time(updater, monkeypatch):
    """The same updater, of which every micro-batch asks its links."""
    monkeypatch.setattr(updater._bound, "_factor_holds", False)
    return updater


def bound(every):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()
    scale = gch.amp_scale(init_scale=8.0, growth_interval=1, always=True)
    return gch.chain(gch.accumulate(every), scale, gch.clip_by_norm(1.0), gch.adamw(0.1)).bind(model), model


def happen(event, updater, model, number):
    if event == "override":
        updater.override("accumulate.every", 2 + number % 3)
    elif event == "override ends":
        updater.override("accumulate.every", 5)
        updater.override("accumulate.every")
    elif event == "load":
        updater.load_state_dict(updater.state_dict())
    elif event == "rebind":
        updater.rebind(model)
    elif event == "tick":
        updater.tick("epoch")
    elif event == "copy":
        model, updater = copy.deepcopy((model, updater))
    elif event == "raw" and not updater._bound.window.micro(updater._bound.state):
        for _ in range(updater.hyperparams()["accumulate.every"]):
            model(torch.ones(1, 3).double()).sum().backward()
            updater.step()
    elif event in ("reset", "zero_grad", "flush"):
        getattr(updater, event)()
    return updater, model


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("event", EVENTS)
def test_a_factor_is_that_of_its_micro_batch(event, at, monkeypatch):
    weights = []
    for ask in (False, True):
        every = gch.by("epoch", gch.schedules.piecewise((0, 4), (1, 3), (2, 2))) if event == "tick" else 4
        updater, model = bound(every)
        if ask:
            asked_each_time(updater, monkeypatch)
        for number in range(14):
            if number % 5 == at:
                updater, model = happen(event, updater, model, number)
            updater.update(model(torch.full((2, 3), 1.0 + number).double()).square().mean())
        weights.append([*model.state_dict().values(), torch.tensor(updater.num_updates)])
    assert all(map(torch.equal, *weights))
    assert weights[0][-1] > 1


def test_a_link_that_says_nothing_is_asked_at_every_micro_batch():
    asked = []

    class counts(gch.Transform):
        multiplies_loss = True  # and nothing of how long its factor holds
        descends = False

        def scale_loss(self, loss, state, ctx):
            asked.append(loss)
            return loss * len(asked)

        def update(self, g, state, ctx):
            return g, state

    model = nn.Linear(1, 1, bias=False).double()
    updater = gch.chain(gch.accumulate(3, reduce="sum"), counts(), gch.sgd(1.0)).bind(model)
    with torch.no_grad():
        model.weight.zero_()
    for _ in range(3):
        updater.update(model(torch.ones(1, 1).double()).sum())
    assert len(asked) == 3
    assert model.weight.item() == pytest.approx(-(1 + 2 + 3), rel=1e-15)


def test_in_a_window_the_links_that_say_so_are_asked_once(monkeypatch):
    updater, model = bound(6)
    asked = []
    real = gch.amp_scale.scale_loss
    monkeypatch.setattr(gch.amp_scale, "scale_loss", lambda *args: asked.append(1) or real(*args))
    for _ in range(6):
        updater.update(model(torch.ones(2, 3).double()).square().mean())
    assert (len(asked), updater.num_updates) == (2, 1)  # as it opens, and once for all that are added to it


@pytest.mark.parametrize("end", ["closes", "zero_grad", "load", "reset"])
def test_no_window_is_kept_alive(end):
    updater, model = bound(3)
    fresh = updater.state_dict()
    for number in range(2):
        updater.update(model(torch.full((2, 3), 1.0 + number).double()).square().mean())
    window = [weakref.ref(grad) for grad in updater._bound.window.state(updater._bound.state).window.values()]
    assert all(ref() is not None for ref in window)
    if end == "closes":
        updater.update(model(torch.ones(2, 3).double()).square().mean())
    elif end == "load":
        updater.load_state_dict(fresh)
    else:
        getattr(updater, end)()
    gc.collect()
    assert [ref() for ref in window] == [None] * 4


def test_a_held_factor_is_no_part_of_a_file():
    updater, model = bound(4)
    for _ in range(2):
        updater.update(model(torch.ones(2, 3).double()).square().mean())
    copied, again = pickle.loads(pickle.dumps((model, updater)))
    for m, u in ((model, updater), (copied, again)):
        for _ in range(2):
            u.update(m(torch.ones(2, 3).double()).square().mean())
    assert all(map(torch.equal, model.state_dict().values(), copied.state_dict().values()))
    assert again.num_updates == 1
