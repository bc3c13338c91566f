"""A run that is broken off at any micro-batch and resumed is the unbroken one, bit for bit, whatever gives batches."""

from __future__ import annotations

import random

import numpy
import pytest
import torch
from torch import nn

import gradchain as gch
from gradchain.demo.training import digest

ITEMS = 22
DATA = torch.utils.data.TensorDataset(torch.arange(3.0 * ITEMS).view(ITEMS, 3) / ITEMS, torch.ones(ITEMS, 1))


class Keeps:
    """A loader that keeps its own place, as torchdata's StatefulDataLoader does."""

    def __init__(self):
        self.at = 0

    def __iter__(self):
        while self.at < ITEMS:
            self.at += 4
            yield DATA[self.at - 4 : self.at]
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def by_sampler():
    return torch.utils.data.DataLoader(DATA, 4, sampler=gch.loop.sampler(DATA, seed=2))


LOADERS = {
    "shuffled": lambda: torch.utils.data.DataLoader(DATA, 4, shuffle=True),
    "sampler": by_sampler,
    "list": lambda: [DATA[i : i + 4] for i in range(0, ITEMS, 4)],
    "stateful": Keeps,
}
CHAIN = gch.chain(gch.accumulate(2), gch.add_noise(0.01, 0.55, seed=3), gch.adamw(1e-2), gch.average_params(0.9))


class Mean:
    """An object of the user's own."""

    def __init__(self):
        self.sum = 0.0

    def state_dict(self):
        return {"sum": self.sum}

    def load_state_dict(self, state):
        self.sum = state["sum"]


def training(folder, loader, *, stop=None, chain=CHAIN, epochs=2, every=1, **given):
    """A run up to a micro-batch, or to its end: what it comes to."""
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1))
    updater, mean, order = chain.bind(model), Mean(), torch.Generator().manual_seed(5)
    also = {"mean": mean, "order": order}
    with gch.Checkpointer(folder, updater=updater, loader=loader, every=every, also=also, **given) as keeper:
        keeper.resume()
        for inputs, targets in keeper.batches(epochs):
            drawn = random.random() + numpy.random.rand() + torch.rand((), generator=order).item()
            loss = (model(inputs) - targets).square().mean() * drawn
            updater.update(loss)
            mean.sum += loss.item()
            keeper.step(last=loss.detach())
            if updater.num_micro == stop:
                return None
    found = [updater.contents(), torch.get_rng_state(), random.getstate(), numpy.random.rand(), mean.sum]
    return digest([*found, order.get_state(), keeper.epoch])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return {kind: training(tmp_path_factory.mktemp(kind), make()) for kind, make in LOADERS.items()}


@pytest.mark.parametrize("stop", [1, 4, 6, 7, 11])
@pytest.mark.parametrize("kind", LOADERS)
def test_it_goes_on_bit_for_bit(kind, stop, whole, tmp_path):
    """In a window, at the end of an epoch, in the second; what happened after the last file happens again."""
    training(tmp_path, LOADERS[kind](), stop=stop)
    assert training(tmp_path, LOADERS[kind]()) == whole[kind]


def test_a_window_that_is_half_full_is_saved_when_asked(tmp_path):
    model = nn.Linear(1, 1)

    def run(micros, resume):
        updater = CHAIN.bind(model)
        with gch.Checkpointer(tmp_path, updater=updater) as keeper:
            found = keeper.resume() if resume else None
            for k in range(updater.num_micro, micros):
                updater.update(model(torch.full((1, 1), k + 1.0)).square().mean())
            if not resume:
                keeper.save(at="three")
        return found, digest(updater.contents())

    with torch.no_grad():
        before = [p.clone() for p in model.parameters()]
    _, at_three = run(3, False)
    _, expected = run(0, True)
    assert expected == at_three
    found, resumed = run(8, True)
    assert found == {"at": "three"}
    with torch.no_grad():
        for p, saved in zip(model.parameters(), before, strict=True):
            p.copy_(saved)
    updater = CHAIN.bind(model)
    for k in range(8):
        updater.update(model(torch.full((1, 1), k + 1.0)).square().mean())
    assert digest(updater.contents()) == resumed


def test_a_loader_gone_through_by_itself(tmp_path):
    """One that keeps its place is taken as it is; any other is refused, for nobody knows where it is."""
    model = nn.Linear(3, 1)

    def run(loader, stop):
        updater = gch.sgd(0.0).bind(model)
        seen = []
        with gch.Checkpointer(tmp_path, updater=updater, loader=loader, every=1) as keeper:
            keeper.resume()
            for inputs, _ in loader:
                seen.append(inputs[0, 0].item())
                updater.update(model(inputs).mean())
                keeper.step()
                if len(seen) == stop:
                    break
        return seen

    assert run(Keeps(), 2) + run(Keeps(), None) == [DATA[i][0][0].item() for i in range(0, ITEMS, 4)]
    with pytest.raises(RuntimeError, match=r"gone through by keeper.batches\(\), or have state_dict"):
        gch.Checkpointer(tmp_path / "b", updater=(u := gch.sgd(0.0).bind(model)), loader=[1], every=1).__enter__()
        keeper = gch.Checkpointer(tmp_path / "c", updater=u, loader=[torch.ones(1, 3)], every=1)
        u.update(model(torch.ones(1, 3)).mean())
        keeper.step()


def test_several_updaters(tmp_path):
    def run(stop):
        torch.manual_seed(1)
        both = {name: gch.adamw(1e-2).bind(nn.Linear(2, 2)) for name in ("a", "b")}
        with gch.Checkpointer(tmp_path, updater=both, every=2) as keeper:
            keeper.resume()
            while both["a"].num_updates < stop:
                for updater in both.values():
                    updater.step({n: torch.randn_like(p) for n, p in updater._bound.parameters().items()})
                keeper.step()
        return digest([u.contents() for u in both.values()])

    expected = run(4)
    assert run(0) == expected
    assert sorted(gch.group(a=gch.adamw(1e-2).bind(nn.Linear(2, 2)), b=gch.adamw(1e-2).bind(nn.Linear(2, 2)))) == [
        *torch.load(tmp_path / "update_00000004.pt", weights_only=True)["parts"]
    ]
