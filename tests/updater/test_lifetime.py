"""A model and its updater are freed when the last name of them goes, and a freed updater leaves nothing on a model."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from little import data, loss_of, net
from lives import EXECUTORS, LIVES, Life, execute
from torch import nn

import gradchain as gch

# the first optimizer of a process imports much, and torch keeps the frames of imports that failed
torch.optim.AdamW([torch.zeros(1)])


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    """What only the collector of cycles would free stays alive."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def watched(model: nn.Module, updater: gch.Updater) -> dict[str, Any]:
    """References that keep nothing alive."""
    state = updater._bound.state
    slots = [t for part in _states(state) for _, v in part.items() if isinstance(v, gch.Tensors) for t in v._data]
    return {
        "the model": weakref.ref(model),
        "a weight": weakref.ref(model[0].weight),
        "the updater": weakref.ref(updater),
        "what it is bound to": weakref.ref(updater._bound),
        **{f"slot {i}": weakref.ref(slot) for i, slot in enumerate(slots)},
    }


def _states(state: Any) -> Iterator[Any]:
    yield state
    for inner in getattr(state, "links", {}).values():
        yield from _states(inner)


def alive(references: dict[str, Any]) -> list[str]:
    """What is still there."""
    return [name for name, reference in references.items() if reference() is not None]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", LIVES)
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_model_and_updater_are_freed_at_once(
    steps: int, name: str, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fresh, after the first step and after some that ran again, by each executor: nothing waits for the collector."""
    execute(monkeypatch, executor)
    life = LIVES[name]
    model, updater = life.begin(executor)
    for rows in data(steps):
        life.update(model, updater, rows)
    references = watched(model, updater)
    del model, updater
    assert alive(references) == []


def _averages(life: Life, model: nn.Module, updater: gch.Updater) -> None:
    updater.averages()
    with updater.averaged():
        life.begin("native")
    life.update(model, updater, data(1)[0])


def _overrides(life: Life, model: nn.Module, updater: gch.Updater) -> None:
    updater.override("learning_rate", gch.linear(0.1, 0.0, 5))
    life.update(model, updater, data(1)[0])
    updater.override("learning_rate", gch.multiply(0.1, (gch.bias, 2.0)))
    life.update(model, updater, data(1)[0])
    updater.hyperparams(), updater.settings(), updater.metrics, updater.explain()


def _rebind(life: Life, model: nn.Module, updater: gch.Updater) -> None:
    updater.rebind(model)
    life.update(model, updater, data(1)[0])


def _reset(life: Life, model: nn.Module, updater: gch.Updater) -> None:
    updater.reset(gch.bias)
    updater.reset()
    life.update(model, updater, data(1)[0])


def _load(life: Life, model: nn.Module, updater: gch.Updater) -> None:
    updater.load_state_dict(copy.deepcopy(updater.state_dict()))
    life.update(model, updater, data(1)[0])


def _missing_gradients(life: Life, model: nn.Module, updater: gch.Updater) -> None:
    for _ in range(3):
        updater.update(model[0](data(1)[0].to(life.dtype)).sum())
        life.update(model, updater, data(1)[0])


def _failure(life: Life, model: nn.Module, updater: gch.Updater) -> None:
    with suppress(ValueError):
        updater.update(loss_of(model, data(1)[0]).detach())
    with suppress(ValueError):
        updater.override("learning_rate", -1.0)


def _copies(life: Life, model: nn.Module, updater: gch.Updater) -> None:
    pickle.loads(pickle.dumps((model, updater)))
    copy.deepcopy((model, updater))
    life.update(model, updater, data(1)[0])


def _infos(life: Life, model: nn.Module, updater: gch.Updater) -> None:
    info = life.update(model, updater, data(1)[0])
    assert dict(info.hyperparams)


DOINGS: dict[str, tuple[str, Callable[[Life, nn.Module, gch.Updater], None]]] = {
    "averages": ("average", _averages),
    "overrides": ("adamw", _overrides),
    "overrides in backward": ("in backward", _overrides),
    "rebind": ("adamw", _rebind),
    "rebind in backward": ("in backward", _rebind),
    "reset": ("recipe", _reset),
    "load": ("recipe", _load),
    "missing gradients": ("adamw", _missing_gradients),
    "missing gradients per parameter": ("partition", _missing_gradients),
    "failure": ("adamw", _failure),
    "copies": ("recipe", _copies),
    "copies in backward": ("in backward", _copies),
    "infos": ("per parameter", _infos),
}


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("doing", DOINGS)
def test_nothing_one_does_with_an_updater_keeps_it_alive(
    doing: str, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every method that makes or keeps something, too."""
    execute(monkeypatch, executor)
    name, act = DOINGS[doing]
    life = LIVES[name]
    model, updater = life.begin(executor)
    for rows in data(3):
        life.update(model, updater, rows)
    act(life, model, updater)
    references = watched(model, updater)
    del model, updater
    assert alive(references) == []


def test_an_updater_keeps_its_model() -> None:
    """As torch's optimizers keep their parameters: what it updates exists as long as it does."""
    model = net()
    updater = gch.adam(0.1).bind(model)
    reference = weakref.ref(model[0].weight)
    del model
    assert reference() is not None
    del updater
    assert reference() is None


def _hooks(model: nn.Module) -> int:
    return sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())


@pytest.mark.parametrize("end", ["deleted", "rebound"])
def test_an_updater_that_is_gone_leaves_no_hook(end: str) -> None:
    """A model trained on by another updater, or another model bound: no parameter calls back, and none moves."""
    model, other = net(), net()
    updater = gch.adamw(0.05).bind(model, in_backward=True)
    updater.update(loss_of(model, data(1)[0]))
    assert _hooks(model) == 4
    if end == "deleted":
        del updater
    else:
        updater.rebind(other)
        assert _hooks(other) == 4
    assert _hooks(model) == 0
    before = [p.detach().clone() for p in model.parameters()]
    loss_of(model, data(1)[0]).backward()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert all(p.grad is not None for p in model.parameters())
