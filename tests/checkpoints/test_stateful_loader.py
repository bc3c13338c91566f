"""torchdata's StatefulDataLoader: broken off anywhere, a run goes on from its place, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradchain as gch
from gradchain.demo.training import digest

stateful = pytest.importorskip("torchdata.stateful_dataloader")

ITEMS = 14
BATCHES = 14  # of two epochs
CHAIN = gch.chain(gch.accumulate(2), gch.adamw(1e-2))

# torchdata 0.11 calls what torch 2.13 has deprecated; JAX warns of workers that are forked where it was imported
pytestmark = pytest.mark.filterwarnings("ignore:.set_vital. is deprecated:UserWarning", "ignore:os.fork:RuntimeWarning")


class Items(torch.utils.data.Dataset):
    """Augmented at random in the process of the run: the random numbers of a worker begin anew with torchdata."""

    def __init__(self, noise):
        self.noise = noise

    def __len__(self):
        return ITEMS

    def __getitem__(self, index):
        drawn = torch.rand(3) if self.noise else 0.0
        return torch.tensor([1.0, index, index**2]) + drawn


def loader_of(workers):
    return stateful.StatefulDataLoader(Items(not workers), 2, shuffle=True, num_workers=workers)


def training(folder, workers, by_itself, stop=None):
    """Up to a micro-batch or the end of the second epoch: what it comes to, and what it saw."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1))
    updater, loader = CHAIN.bind(model), loader_of(workers)
    with gch.Checkpointer(folder, updater=updater, loader=loader) as keeper:
        seen = (keeper.resume() or {"seen": []})["seen"]
        batches = through(loader, seen) if by_itself else keeper.batches(2)
        for batch in batches:
            seen.append(batch.sum().item())
            updater.update(model(batch / ITEMS).square().mean())
            if len(seen) == stop:
                keeper.save(seen=seen)
                return seen
    return seen, digest([updater.contents(), torch.get_rng_state()])


def through(loader, seen):
    """The loader alone knows where in an epoch it is."""
    while len(seen) < BATCHES:
        yield from loader


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return {(w, b): training(tmp_path_factory.mktemp("straight"), w, b) for w in (0, 2) for b in (False, True)}


@pytest.mark.parametrize("stop", [3, 10])
@pytest.mark.parametrize("by_itself", [False, True], ids=["by batches()", "by itself"])
@pytest.mark.parametrize("workers", [0, 2])
def test_it_goes_on_in_the_middle_of_an_epoch(workers, by_itself, stop, straight, tmp_path):
    expected, run = straight[workers, by_itself]
    assert len(set(expected)) == BATCHES
    assert training(tmp_path, workers, by_itself, stop) == expected[:stop]
    assert training(tmp_path, workers, by_itself) == (expected, run)
