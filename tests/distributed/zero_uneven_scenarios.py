"""Scenarios: ZeRO over models that ranks cannot share out evenly, and runs whose parameters or optimizers change."""

import contextlib

import torch
import torch.distributed as dist
from little_task import loss_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_ranks import sentence
from zero_recipe_scenarios import recipes_on_ranks
from zero_updater_scenarios import CHAINS, SPOILED, batch, come_to, fed, folder_of, net

import gradchain as gch


class One(nn.Module):
    """A single number: fewer parameters than ranks."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return x * self.one


class Uneven(nn.Module):
    """Nothing, numbers, two rows, memory in other orders, and one tensor that is larger than all others together."""

    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(0, 3))
        self.one = nn.Parameter(torch.tensor(0.7))
        self.single = nn.Parameter(torch.ones(1, 1, 1))
        self.two = nn.Parameter(torch.randn(2, 3))
        self.conv = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        self.turned = nn.Parameter(torch.randn(3, 6).t())
        self.large = nn.Linear(3, 1025)
        self.out = nn.Linear(1025, 2)

    def forward(self, x):
        seen = self.conv(x.view(-1, 3, 1, 1).expand(-1, 3, 3, 3)).mean((1, 2, 3))[:, None]
        more = (x @ self.two.t()).sum(1, keepdim=True) + (x @ self.turned.t()).tanh().mean(1, keepdim=True)
        wide = 0.02 * self.out(self.large(x).tanh())
        return wide * self.one * self.single.sum() + seen + more + self.nothing.sum()


MODELS = {"one": One, "uneven": Uneven}
RUNS = [
    ("one", "averages"), ("one", "window in a buffer"), ("uneven", "averages"), ("uneven", "window in a buffer"),
    ("uneven", "muon"), ("uneven", "adafactor"), ("uneven", "loss scale"),
]  # fmt: skip
KEPT = [("one", "averages"), ("uneven", "averages"), ("uneven", "window in a buffer")]
STEPS, CUT = 7, 4


def made(kind, seed=7):
    torch.manual_seed(seed)
    return MODELS[kind]().double()


def alone(kind, name, world):
    model = made(kind)
    updater = CHAINS[name]().bind(model)
    return come_to(updater, model, fed(updater, model, range(STEPS), None, world, spoiled=SPOILED.get(name, ())))


def sharded(kind, name, world):
    model = made(kind)
    wrapped = DistributedDataParallel(model)
    updater = CHAINS[name]().bind(wrapped, zero_redundancy=True)
    reasons = fed(updater, wrapped, range(STEPS), dist.get_rank(), world, spoiled=SPOILED.get(name, ()))
    return come_to(updater, model, reasons)


def saved(kind, name, world):
    path = folder_of(world) / "run.pt"
    wrapped = DistributedDataParallel(made(kind))
    updater = CHAINS[name]().bind(wrapped, zero_redundancy=True)
    fed(updater, wrapped, range(CUT), dist.get_rank(), world)
    updater.save(path, at=CUT)
    return path


def resumed(kind, name, path, zero, world):
    """What goes on from such a file: on ranks, shared out or not, or with world=1 in this process, which sees all."""
    model, rank = made(kind, seed=3), dist.get_rank() if dist.is_initialized() else None
    wrapped = model if rank is None else DistributedDataParallel(model)
    updater = CHAINS[name]().bind(wrapped, zero_redundancy=zero)
    updater.load(path)
    return come_to(updater, model, fed(updater, wrapped, range(CUT, STEPS), rank, world))


def on_four():
    return {key: (sharded, *key) for key in RUNS} | {("saved", *key): (saved, *key) for key in KEPT}


# what changes in a run; each in one process too, where there is no process group


def bound(tx, model, zero=True, **ddp):
    if not dist.is_initialized():
        return None, model, tx.bind(model)
    wrapped = DistributedDataParallel(model, **ddp)
    return dist.get_rank(), wrapped, tx.bind(wrapped, zero_redundancy=zero)


def frozen_and_back(world):
    """A layer is frozen in mid-run and comes back, under a DDP made anew each time."""
    model = net()
    rank, wrapped, updater = bound(CHAINS["averages"](), model)
    for i in range(9):
        if i in (3, 6):
            model.body[0].requires_grad_(i == 6)
            if rank is not None:
                wrapped = DistributedDataParallel(model)
            updater.rebind(wrapped)
        fed(updater, wrapped, [i], rank, world)
    return come_to(updater, model)


def frozen_alone(world):
    """The same under one DDP, which knows both."""
    model = net()
    rank, wrapped, updater = bound(CHAINS["averages"](), model, find_unused_parameters=True)
    for i in range(9):
        if i in (3, 6):
            model.body[0].requires_grad_(i == 6)
        fed(updater, wrapped, [i], rank, world)
    return come_to(updater, model)


class Branches(nn.Module):
    """Two layers, of which one has no part in some losses."""

    def __init__(self):
        super().__init__()
        self.always, self.sometimes, self.both = nn.Linear(3, 3), nn.Linear(3, 1), True

    def forward(self, x):
        return self.always(x) + (self.sometimes(x) if self.both else 0)


def unused(world):
    """Windows of which some have no gradient at all for a layer, and others in one micro-batch alone."""
    torch.manual_seed(3)
    model = Branches().double()
    tx = gch.chain(gch.accumulate(2), gch.clip_by_norm(0.2), gch.adamw(1e-2))
    rank, wrapped, updater = bound(tx, model, find_unused_parameters=True)
    for i in range(12):
        model.both = i % 4 < 2 or i > 8
        fed(updater, wrapped, [i], rank, world)
    return come_to(updater, model)


def several(world):
    """Two optimizers of two models in turn, one of them with a window that the user's own no_sync keeps open."""
    torch.manual_seed(1)
    makes, judges = nn.Linear(3, 3).double(), nn.Linear(3, 2).double()
    tx = gch.chain(gch.accumulate(2), gch.clip_by_norm(0.2), gch.adamw(1e-2))
    rank, left, one = bound(tx, makes)
    _, right, other = bound(gch.chain(gch.sgd(0.1, momentum=0.9)), judges)
    for i in range(8):
        x = batch(i, rank, world)
        with left.no_sync() if rank is not None and i % 2 == 0 else contextlib.nullcontext():
            one.update(loss_of(judges(left(x))))
        with torch.no_grad():
            seen = makes(x)
        other.update(loss_of(right(seen)))
    found = come_to(one, makes), come_to(other, judges)
    weights = {f"{i}.{n}": p for i, one in enumerate(found) for n, p in one["weights"].items()}
    return {"weights": weights, "clocks": [one["clocks"] for one in found]}


CHANGES = {"frozen and back": frozen_and_back, "frozen under one DDP": frozen_alone, "unused": unused}
CHANGES |= {"several": several}


def unreduced(zero, world):
    """What was frozen when DDP was made, and then is not: no rank takes a step with it, until DDP is made anew."""
    model = net()
    model.body[0].requires_grad_(False)
    rank, wrapped, updater = bound(CHAINS["clip, adamw"](), model, zero)
    fed(updater, wrapped, range(2), rank, world)
    before = [p.detach().clone() for p in model.parameters()]
    model.body[0].requires_grad_(True)
    said = [sentence(ValueError, fed, updater, wrapped, [2], rank, world)]
    same = all(map(torch.equal, before, model.parameters())) and updater.num_updates == 2
    said.append(sentence(ValueError, CHAINS["clip, adamw"]().bind, wrapped, zero_redundancy=zero))
    said.append(sentence(ValueError, updater.rebind, wrapped))
    updater.zero_grad()
    wrapped = DistributedDataParallel(model)
    updater.rebind(wrapped)
    fed(updater, wrapped, range(2, 5), rank, world)
    return {"said": said, "same": same, **come_to(updater, model)}


def unfrozen_alone(world):
    model = net()
    model.body[0].requires_grad_(False)
    updater = CHAINS["clip, adamw"]().bind(model)
    fed(updater, model, range(2), None, world)
    model.body[0].requires_grad_(True)
    fed(updater, model, range(2, 5), None, world)
    return come_to(updater, model)


class OnTwo:
    """What goes on from files of four ranks, runs that change, and recipes."""

    def __init__(self, paths):
        self.paths = paths

    def __call__(self):
        kept = {(*key, zero): (resumed, *key, path, zero) for key, path in self.paths.items() for zero in (True, False)}
        changes = {(name,): (function,) for name, function in CHANGES.items()}
        changes |= {("unreduced", zero): (unreduced, zero) for zero in (True, False)}
        return kept | changes | recipes_on_ranks()
