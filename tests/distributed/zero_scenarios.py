"""Scenarios: ZeroRedundancyOptimizer over a chain, beside the same chain over all parameters on each rank."""

import copy

import torch
import torch.distributed as dist
from adapters.trainer_table import answers
from little_task import loss_of, share, weights
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from two_ranks import Scenarios, sentence

import gradchain as gch
from gradchain.adapters.zero import optimizer_class

scenario = Scenarios()

CHAINS = {
    "constant": lambda: gch.chain(gch.adamw(1e-2)),
    "schedule": lambda: gch.chain(gch.adamw(gch.cosine(1e-2, 1e-4, 30))),
    "window": lambda: gch.chain(gch.accumulate(3), gch.adamw(1e-2)),
    "averages": lambda: gch.chain(gch.sgd(0.1, momentum=0.9), gch.average_params(0.9)),
    "partition": lambda: gch.chain(gch.partition((gch.bias, gch.sgd(0.05)), (gch.rest, gch.adamw(1e-2)))),
    "one matrix": lambda: gch.chain(gch.masked(gch.scale(0.5), gch.named("4.weight")), gch.sgd(0.1)),
    "frozen": lambda: gch.chain(gch.freeze(gch.named("0.*")), gch.lion(1e-3)),
    "per parameter": lambda: gch.chain(gch.adamw(gch.multiply(gch.linear(1e-2, 1e-3, 30), (gch.bias, 0.5)))),
    "clip of each": lambda: gch.chain(gch.clip_by_norm(0.1, per="tensor"), gch.clip_by_value(0.05), gch.adamw(1e-2)),
    "window and averages": lambda: gch.chain(gch.accumulate(4), gch.lion(1e-3), gch.average_params(0.95)),
}
REFUSED = {
    "a norm over all": lambda: gch.chain(gch.clip_by_norm(1.0), gch.sgd(0.1)),
    "in a branch": lambda: gch.chain(gch.masked(gch.clip_by_norm(1.0), gch.bias), gch.sgd(0.1)),
    "a gate": lambda: gch.chain(gch.skip_nonfinite(), gch.sgd(0.1)),
    "a loss scale": lambda: gch.chain(gch.amp_scale(), gch.sgd(0.1)),
    "a closure": lambda: gch.chain(gch.sam(0.05), gch.sgd(0.1)),
    "a function": lambda: gch.chain(gch.stateless(lambda u, params: u), gch.sgd(0.1)),
    "a plateau": lambda: gch.chain(gch.sgd(0.1), gch.reduce_on_plateau("loss")),
    "a class": lambda: gch.chain(gch.from_torch("NAdam", lr=1e-2)),
}


def net(seed=7):
    torch.manual_seed(seed)
    deep = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2, bias=False))
    return deep.double()


def sharded(make, seed=7, **options):
    model = DistributedDataParallel(net(seed))
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=optimizer_class(make(), model), **options)
    return model, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)


def whole(make, seed=7):
    model = DistributedDataParallel(net(seed))
    optimizer = make().bind(model.module).as_optimizer()
    return model, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)


def train(run, micros, rank, scheduled=True):
    model, optimizer, scheduler = run
    for micro in micros:
        optimizer.zero_grad()
        loss_of(model(share(micro, rank))).backward()
        optimizer.step()
        if scheduled:
            scheduler.step()
    return weights(model)


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def saved(optimizer):
    """The whole state, on every rank."""
    optimizer.consolidate_state_dict(to=0)
    both = [copy.deepcopy(optimizer.state_dict()) if optimizer.rank == 0 else None]
    dist.broadcast_object_list(both)
    return both[0]


@scenario
def trains(rank):
    found = {}
    for name, make in CHAINS.items():
        for view in (False, True):
            run = sharded(make, parameters_as_bucket_view=view)
            found[name, view] = equal(train(run, range(9), rank), train(whole(make), range(9), rank))
            updater = run[1].optim.updater
            found[name, "part"] = len(updater._bound.active), updater.num_micro
    return found


@scenario
def resumes(rank):
    """Cut in windows, and between them."""
    found = {}
    for name, make in CHAINS.items():
        for cut in (1, 4, 6):
            run = sharded(make)
            train(run, range(cut), rank)
            state, model = saved(run[1]), copy.deepcopy(run[0].module.state_dict())
            expected = train(run, range(cut, cut + 7), rank)
            again = sharded(make, seed=3)
            again[0].module.load_state_dict(model)
            again[1].load_state_dict(state)
            again[2].load_state_dict({**run[2].state_dict(), "last_epoch": cut, "_step_count": cut + 1})
            found[name, cut] = equal(expected, train(again, range(cut, cut + 7), rank))
    return found


@scenario
def refuses(rank):
    model = net()
    said = {name: sentence(ValueError, optimizer_class, make(), model) for name, make in REFUSED.items()}
    made = optimizer_class(CHAINS["constant"](), model)
    said["groups"] = sentence(ValueError, made, [{"params": [p]} for p in model.parameters()])
    said["strangers"] = sentence(ValueError, made, net().parameters())
    said["none"] = sentence(ValueError, made, [])
    updater = CHAINS["constant"]().bind(model)
    given = {
        "as parameters": lambda: ZeroRedundancyOptimizer(updater, torch.optim.AdamW),
        "its class": lambda: ZeroRedundancyOptimizer(model.parameters(), gch.Updater),
    }
    said["bare"] = answers(given)
    said["options"] = sentence(TypeError, made, model.parameters(), lr=0.1)
    return said


@scenario
def another_state(rank):
    """Of another chain, or of one rank's part: nothing changes."""
    run, other = sharded(CHAINS["constant"]), sharded(CHAINS["averages"])
    train(run, range(3), rank)
    train(other, range(3), rank)
    twin = copy.deepcopy(run[1].optim.state_dict())
    said = sentence(ValueError, run[1].load_state_dict, saved(other[1]))
    part = run[1].optim.state_dict()
    moved = {"state": {}, "param_groups": part["param_groups"]}
    return {
        "said": [said, sentence(ValueError, run[1].optim.load_state_dict, moved)],
        "same": all(equal(twin["state"][n].values(), part["state"][n].values()) for n in twin["state"]),
    }


@scenario
def closures(rank):
    def both(run):
        model, optimizer, _ = run
        losses = []
        for micro in range(4):

            def closure(micro=micro):
                optimizer.zero_grad()
                loss = loss_of(model(share(micro, rank)))
                loss.backward()
                return loss

            losses.append(optimizer.step(closure).detach())
        return [*weights(model), *losses]

    make = CHAINS["constant"]
    return equal(both(sharded(make)), both(whole(make)))
