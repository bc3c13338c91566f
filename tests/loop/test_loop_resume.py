"""A run that is broken off anywhere and resumed is the unbroken one, bit for bit: weights, state, draws, logs."""

from __future__ import annotations

import json
import os
import random
import warnings

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset

import gradchain as gch
from gradchain.checkpoints import randomness
from gradchain.demo.training import digest

ITEMS = 22
NOISE = gch.add_noise(0.01, 0.55, seed=3)


class Noisy(torch.utils.data.Dataset):
    """Items that draw from torch's, Python's and numpy's random numbers when they are loaded."""

    def __len__(self):
        return ITEMS

    def __getitem__(self, index):
        drawn = torch.rand(()).item() + random.random() + numpy.random.rand()
        return torch.full((3,), index / ITEMS) + drawn, torch.ones(1)


class Stream(IterableDataset):
    """No length, an order drawn anew each epoch."""

    def __iter__(self):
        for index in torch.randperm(ITEMS).tolist():
            yield torch.full((3,), index / ITEMS) + torch.rand(()), torch.ones(1)


class Stateful:
    """A loader that keeps its own place, as torchdata's has it; it refuses to be gone through to skip."""

    def __init__(self):
        self.at, self.loaded = 0, 0

    def __iter__(self):
        order = torch.randperm(ITEMS, generator=torch.Generator().manual_seed(3)).tolist()
        while self.at < ITEMS:
            self.at += 4
            self.loaded += 1
            yield torch.tensor(order[self.at - 4 : self.at]).view(-1, 1).expand(-1, 3) / ITEMS, torch.ones(1)
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def data():
    generator = torch.Generator().manual_seed(5)
    return TensorDataset(torch.randn(ITEMS, 3, generator=generator), torch.randn(ITEMS, 1, generator=generator))


def with_batch_sampler():
    return DataLoader(Noisy(), batch_sampler=BatchSampler(RandomSampler(range(ITEMS), replacement=True), 4, False))


def with_generator():
    return DataLoader(Noisy(), 4, shuffle=True, generator=torch.Generator().manual_seed(9))


LOADERS = {
    "shuffled": lambda: DataLoader(data(), 4, shuffle=True),
    "noisy": lambda: DataLoader(Noisy(), 4, shuffle=True),
    "generator": with_generator,
    "batch sampler": with_batch_sampler,
    "sampler": lambda: DataLoader(Noisy(), 4, sampler=gch.loop.sampler(ITEMS, seed=2)),
    "stream": lambda: DataLoader(Stream(), 4),
    "list": lambda: [(torch.ones(2, 3) * i, torch.zeros(1)) for i in range(6)],
    "stateful": Stateful,
    "workers": lambda: DataLoader(Noisy(), 4, shuffle=True, num_workers=1),
    "sampler, workers": lambda: DataLoader(Noisy(), 4, sampler=gch.loop.sampler(ITEMS), num_workers=1),
}
LIMITS = ({"epochs": 3}, {"updates": 8}, {"iters": 15})


class KilledError(Exception):
    pass


def training(loader, limit, folder, *, kill=None, unit="iter", average=True):
    """Train, to be broken off in the body of a batch. Returns the run and all that there is to compare."""
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 1))
    lr = gch.multiply(gch.linear(0.1, 0.01, 9) * gch.by("epoch", gch.linear(1.0, 0.5, 2)), (gch.bias, 2.0))
    tail = [gch.average_params(0.9)] if average else []
    updater = gch.chain(gch.accumulate(2), NOISE, gch.adamw(lr), *tail).bind(model)
    seen = []

    def validate(run):
        seen.append(model[0].weight.sum().item() + torch.rand(()).item())
        return {"val": seen[-1]}

    run = gch.loop(
        loader,
        updater,
        **limit,
        validate=(validate, [(0, 2), (4, 1)]),
        averaged=average,
        checkpoint=gch.loop.checkpoints(folder, 1, unit, keep=2, best=("val", "min")),
        log=folder.parent / f"{folder.name}.jsonl",
        interval=1,
    )
    run.extra.setdefault("losses", [])
    for x, y in run:
        if kill is not None and run.iter == kill:
            raise KilledError
        loss = (model(x + 0.01 * torch.randn_like(x)) - y).square().mean()
        run.update(loss)
        run.extra["losses"].append(loss.item() + random.random() + numpy.random.rand())
    lines = [json.loads(line) for line in (folder.parent / f"{folder.name}.jsonl").read_text().splitlines()]
    kept = [{n: v for n, v in line.items() if "time" not in n and n != "eta"} for line in lines]
    position = (run.iter, run.epoch, run.num_updates)
    return run, digest([updater.contents(), randomness.state(), run.extra, kept, list(position)])


ALONE = [kind for kind in LOADERS if "workers" not in kind]
LONG = bool(os.environ.get("GRADCHAIN_LONG"))
RUNS = [
    pytest.param(kind, limit, id=f"{kind}-{next(iter(limit))}")
    for i, kind in enumerate(ALONE)
    for j, limit in enumerate(LIMITS)
    if LONG or kind == "noisy" or i % len(LIMITS) == j
]


@pytest.mark.parametrize(("kind", "limit"), RUNS)
def test_broken_off_and_resumed_it_is_the_unbroken_run(kind, limit, tmp_path):
    """In the first, a middle and the last batch of an epoch, twice in one run, and where a window is half full."""
    whole, expected = training(LOADERS[kind](), limit, tmp_path / "whole")
    assert whole.iter >= 15
    for kills in ([1], [3, 4], [6], [7, 13]) if LONG else ([3, 4], [13]) if kind == "noisy" else ([6, 8],):
        folder = tmp_path / f"broken{kills}"
        for kill in kills:
            with pytest.raises(KilledError):
                training(LOADERS[kind](), limit, folder, kill=kill)
        resumed, found = training(LOADERS[kind](), limit, folder)
        assert found == expected, kills
        assert resumed.iter == whole.iter


@pytest.mark.filterwarnings("ignore:os.fork")  # JAX says so of every fork once another test has loaded it
@pytest.mark.parametrize("kind", ["workers", "sampler, workers"])
def test_with_workers_too(kind, tmp_path):
    expected = training(LOADERS[kind](), {"epochs": 2}, tmp_path / "whole")[1]
    with pytest.raises(KilledError):
        training(LOADERS[kind](), {"epochs": 2}, tmp_path / "broken", kill=9)
    assert training(LOADERS[kind](), {"epochs": 2}, tmp_path / "broken")[1] == expected


@pytest.mark.filterwarnings("ignore:os.fork")
@pytest.mark.parametrize("generator", [None, 9])
def test_workers_that_are_kept_give_the_same_order(generator, tmp_path):
    """They draw a seed where they start: in a run that is resumed that is another epoch. In and between epochs."""

    def train(folder, kill=None):
        torch.manual_seed(0)
        own = None if generator is None else torch.Generator().manual_seed(generator)
        loader = DataLoader(data(), 6, shuffle=True, generator=own, num_workers=1, persistent_workers=True)
        updater = gch.sgd(0.1).bind(model := nn.Linear(3, 1))
        seen = []
        run = gch.loop(loader, updater, epochs=3, checkpoint=gch.loop.checkpoints(folder, 1, "iter"))
        for x, y in run:
            if run.iter == kill:
                break
            run.update((model(x + torch.randn_like(x)) - y).square().mean())
            seen.append(x.tolist())
        return seen, digest([updater.contents(), randomness.state()])

    seen, whole = train(tmp_path / "whole")
    assert len(seen) == 12
    for kill in (4, 6):
        before, _ = train(tmp_path / f"{kill}", kill)
        after, resumed = train(tmp_path / f"{kill}")
        assert (before + after, resumed) == (seen, whole), kill


@pytest.mark.parametrize("unit", ["update", "epoch"])
def test_at_whatever_it_is_saved(unit, tmp_path):
    """A run that was saved long ago trains again what came after."""
    expected = training(LOADERS["noisy"](), {"epochs": 3}, tmp_path / "whole", unit=unit)[1]
    for kill in (8, 17):
        with pytest.raises(KilledError):
            training(LOADERS["noisy"](), {"epochs": 3}, tmp_path / f"{kill}", unit=unit, kill=kill)
        assert training(LOADERS["noisy"](), {"epochs": 3}, tmp_path / f"{kill}", unit=unit)[1] == expected


def test_what_was_seen_is_not_loaded_again_where_the_order_is_known(tmp_path):
    """The loop's sampler leaps, and a loader that keeps its place goes to it; others load it again and pass over it."""

    class Counting(Noisy):
        loaded = 0

        def __getitem__(self, index):
            type(self).loaded += 1
            return super().__getitem__(index)

    for order, expected in ((gch.loop.sampler(ITEMS), ITEMS - 12), (RandomSampler(range(ITEMS)), ITEMS)):
        folder = tmp_path / type(order).__name__
        with pytest.raises(KilledError):
            training(DataLoader(Counting(), 4, sampler=order), {"epochs": 1}, folder, kill=3)
        Counting.loaded = 0
        training(DataLoader(Counting(), 4, sampler=order), {"epochs": 1}, folder)
        assert Counting.loaded == expected
    with pytest.raises(KilledError):
        training(Stateful(), {"epochs": 1}, tmp_path / "stateful", kill=3)
    again = Stateful()
    training(again, {"epochs": 1}, tmp_path / "stateful")
    assert again.loaded == 3


def test_a_loop_that_was_left_goes_on_where_it_was(tmp_path):
    """`break` after an update: the batch is behind. Before it: it comes again. As if nobody had left."""
    orders = []
    for leave in ((), (2, 5, 9), (0, 17)):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        updater = gch.sgd(0.1).bind(model)
        run = gch.loop(DataLoader(data(), 4, shuffle=True), updater, epochs=3)
        order, pending = [], list(leave)
        while run.epoch < 3:
            for x, _ in run:
                updater.update(model(x).square().mean())
                order.append(x.sum().item())
                if pending and run.iter == pending[0]:
                    pending.pop(0)
                    break
        orders.append((order, model.weight.tolist()))
    assert orders[0] == orders[1] == orders[2]
    assert len(orders[0][0]) == 18


def test_a_finished_run_is_not_trained_further(tmp_path):
    run, _ = training(LOADERS["noisy"](), {"epochs": 1}, tmp_path / "a")
    again, _ = training(LOADERS["noisy"](), {"epochs": 1}, tmp_path / "a")
    assert (again.iter, again.num_updates, again.metrics.keys()) == (run.iter, run.num_updates, run.metrics.keys())


def test_it_may_be_resumed_to_go_further(tmp_path):
    training(LOADERS["noisy"](), {"epochs": 1}, tmp_path / "a")
    assert training(LOADERS["noisy"](), {"epochs": 2}, tmp_path / "a")[0].epoch == 2


# files


def test_the_newest_whole_file_is_taken(tmp_path):
    """A file that is torn is passed over with its name; where none is whole, nothing begins anew in silence."""
    folder = tmp_path / "a"
    training(LOADERS["noisy"](), {"iters": 4}, folder)
    newest, before = (folder / f"iter_0000000{i}.pt" for i in (4, 3))
    newest.write_bytes(newest.read_bytes()[:-9])
    with pytest.warns(UserWarning, match=r"iter_00000004.pt' cannot be read: .* The one before is used, .*00000003"):
        assert training(LOADERS["noisy"](), {"iters": 4}, folder)[0].iter == 4
    for file in (newest, before):
        file.write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"No other in .* is whole. resume=False starts anew."):
        training(LOADERS["noisy"](), {"iters": 4}, folder)


def test_a_file_of_another_chain_is_refused_not_passed_over(tmp_path):
    training(LOADERS["noisy"](), {"iters": 4}, tmp_path / "a")
    with pytest.raises(ValueError, match="average_params"):
        training(LOADERS["noisy"](), {"iters": 4}, tmp_path / "a", average=False)


def test_only_its_own_files_go(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    for name in ("iter_1.pt", "epoch_00000001.pt", "iter_00000001.pt.bak", "best_other.pt"):
        (folder / name).write_text("mine")
    training(LOADERS["noisy"](), {"iters": 6}, folder)
    mine = {"iter_1.pt", "epoch_00000001.pt", "iter_00000001.pt.bak", "best_other.pt"}
    assert {f.name for f in folder.iterdir()} == mine | {
        "iter_00000005.pt", "iter_00000006.pt", "best_val.pt", "manifest_iter.json",
    }  # fmt: skip


@pytest.mark.parametrize(("rule", "best"), [("min", 1), ("max", 3)])
def test_the_best_is_kept_over_a_resume(rule, best, tmp_path):
    """What is no number is never the best, and a worse one after a resume does not replace it."""
    values = [2.0, 1.0, float("nan"), 3.0, 2.0, 1.5]
    for epochs in (3, 6):
        model = nn.Linear(1, 1)
        updater = gch.sgd(0.1).bind(model)
        saving = gch.loop.checkpoints(tmp_path, best=("score", rule), keep=1)
        run = gch.loop(
            [torch.ones(1, 1)], updater, epochs=epochs, checkpoint=saving, validate=lambda r: values[r.iter - 1]
        )
        for x in run:
            updater.update(model(x).mean())
    extra = gch.sgd(0.1).bind(model).load(tmp_path / "best_score.pt")
    assert extra["run"]["loop"]["iter"] - 1 == best
    files = ["best_score.pt", "epoch_00000006.pt", "manifest_epoch.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == files


def test_two_updaters_are_one_run(tmp_path):
    """A generator and a discriminator: one file has both."""

    def train(epochs, folder):
        torch.manual_seed(0)
        g, d = nn.Linear(2, 2), nn.Linear(2, 1)
        both = {"g": gch.adam(0.01).bind(g), "d": gch.chain(gch.accumulate(2), gch.sgd(0.1)).bind(d)}
        run = gch.loop(DataLoader(data().tensors[0][:, :2], 4, shuffle=True), both, epochs=epochs, checkpoint=folder)
        for x in run:
            run.update((d(x) - d(g(torch.randn_like(x)).detach())).mean(), "d")
            run.update(d(g(torch.randn_like(x))).mean(), "g")
        return run, digest([u.contents() for u in both.values()])

    whole, expected = train(3, tmp_path / "whole")
    assert (whole.num_updates, whole._each["d"].num_updates) == (18, 9)
    train(2, tmp_path / "a")
    assert train(3, tmp_path / "a")[1] == expected


def test_with_other_ranks_only_from_the_end_of_an_epoch(tmp_path):
    """A file of two ranks, which is made here by hand from one of one."""
    for unit, refused in (("iter", True), ("epoch", False)):
        folder = tmp_path / unit
        with pytest.raises(KilledError):
            training(LOADERS["noisy"](), {"epochs": 2}, folder, unit=unit, kill=8, average=False)
        (file,) = sorted(folder.glob(f"{unit}_*"))[-1:]
        parts = torch.load(file, weights_only=True)
        parts["extra"]["run"]["loop"]["ranks"] *= 2
        gch.updater.sealed.write(file, lambda f, p=parts: gch.updater.sealed.write_zip(p, f))
        if refused:
            with pytest.raises(ValueError, match="ranks must be the 2 that the checkpoint was saved with"):
                training(LOADERS["noisy"](), {"epochs": 2}, folder, unit=unit, average=False)
        else:
            with pytest.warns(UserWarning, match="is of 2 ranks, and here are 1: random numbers begin anew"):
                training(LOADERS["noisy"](), {"epochs": 2}, folder, unit=unit, average=False)


def test_data_that_has_become_shorter_is_said(tmp_path):
    with pytest.raises(KilledError):
        training(LOADERS["list"](), {"epochs": 1}, tmp_path / "a", kill=5)
    with pytest.raises(ValueError, match=r"loader must give the 5 batches of epoch 1 that were seen before .*, got 2"):
        training(LOADERS["list"]()[:2], {"epochs": 1}, tmp_path / "a")


def test_a_file_that_no_loop_saved_is_said(tmp_path):
    updater = gch.sgd(0.1).bind(model := nn.Linear(1, 1))
    updater.save(tmp_path / "update_00000001.pt")
    run = gch.loop([torch.ones(1, 1)], updater, updates=2, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="must have checkpoints that a loop of this version saved"):
        next(iter(run))
    with warnings.catch_warnings():
        for x in gch.loop([torch.ones(1, 1)], updater, updates=2, checkpoint=tmp_path, resume=False):
            updater.update(model(x).mean())
    assert updater.num_updates == 2
