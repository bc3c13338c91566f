"""Scenarios: updating in backward on several ranks. A gradient must be whole when its parameter's turn comes."""

import copy

import torch
import torch.distributed as dist
from little_task import loss_of, net, share, train, weights
from torch import nn
from torch.distributed._composable.replicate import replicate
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DataParallel, DistributedDataParallel
from two_ranks import Scenarios, sentence

import gradchain as gch
from gradchain.updater import ranks

scenario = Scenarios()

CHAINS = {
    "adamw": gch.adamw(gch.linear(1e-1, 1e-2, 6), mask=gch.min_ndim(2)),
    "momentum": gch.sgd(0.1, momentum=0.9),
    "lion": gch.lion(0.01),
    "partition": gch.partition((gch.bias, gch.lion(1e-2)), (gch.rest, gch.nadamw(1e-2))),
    "clip": gch.chain(gch.clip_by_norm(0.1, per="tensor"), gch.sgd(0.1)),
}


class Own(DistributedDataParallel):
    """A class of the user's, as Lightning and others have."""


def hooked(model):
    ddp = DistributedDataParallel(model)
    ddp.register_comm_hook(None, allreduce_hook)
    return ddp


def composed(model):
    """DDP that no attribute of the model shows."""
    replicate(model)
    with torch.no_grad():
        model(share(0, 0))  # it is made in the first forward
    return model


WRAPS = {
    "plain": DistributedDataParallel,
    "bucket_view": lambda m: DistributedDataParallel(m, gradient_as_bucket_view=True),
    "static_graph": lambda m: DistributedDataParallel(m, static_graph=True),
    "both": lambda m: DistributedDataParallel(m, static_graph=True, gradient_as_bucket_view=True),
    "unused": lambda m: DistributedDataParallel(m, find_unused_parameters=True),
    "small_buckets": lambda m: DistributedDataParallel(m, bucket_cap_mb=1e-5),
    "delayed": lambda m: DistributedDataParallel(
        m, delay_all_reduce_named_params=[("2.weight", m[2].weight)], param_to_hook_all_reduce=m[0].weight
    ),
    "comm_hook": hooked,
    "subclass": Own,
    "compiled": lambda m: torch.compile(DistributedDataParallel(m), backend="eager"),
    "of_compiled": lambda m: DistributedDataParallel(torch.compile(m, backend="eager")),
    "a_part": lambda m: nn.Sequential(DistributedDataParallel(m[0]), m[1], m[2]),
    "replicate": composed,
}


def same(model, start):
    return all(torch.equal(p, q) for p, q in zip(weights(model), start, strict=True))


@scenario
def refused_at_bind(rank):
    """The wrapper is bound, or what is inside it."""
    said = {}
    for name, wrap in WRAPS.items():
        model = net()
        ddp = wrap(model)
        targets = {"whole": ddp, "inside": model}
        if name == "plain":
            targets |= {"list": [ddp], "pairs": list(model.named_parameters()), "layer": model[0]}
        for of, target in targets.items():
            said[name, of] = sentence(ValueError, gch.sgd(0.1).bind, target, in_backward=True)
        gch.sgd(0.1).bind(ddp)  # without it, as ever
    return said


@scenario
def wrapped_later(rank):
    """After bind, or after updates: the next update changes nothing; once DDP is gone it goes on."""
    said = {}
    for name, wrap in WRAPS.items():
        for updates in (0, 2) if name in ("plain", "bucket_view") else (2,):
            model = net()
            updater = gch.sgd(0.1).bind(model, in_backward=True)
            train(updater, model, range(updates), rank)
            ddp = wrap(model)  # which gives all ranks the same weights
            start, clocks = weights(model), updater.clocks
            forward = model if name == "delayed" else ddp  # whose own can only be in float32
            loss = loss_of(forward(share(5, rank)))
            said[name, updates] = sentence(RuntimeError, updater.update, loss)
            assert same(model, start)
            assert updater.clocks == clocks
            if name in ("plain", "bucket_view"):
                loss.backward()  # what DDP has begun it ends
                del ddp, loss, forward
                model.zero_grad()
                assert updater.update(loss_of(model(share(6, rank))))
    return said


@scenario
def put_into_the_model_later(rank):
    """A layer of the bound model is replaced by DDP of it."""
    model = net()
    updater = gch.sgd(0.1).bind(model, in_backward=True)
    model[0] = DistributedDataParallel(model[0])
    return sentence(RuntimeError, updater.update, loss_of(model(share(0, rank))))


@scenario
def rebound(rank):
    """Refused, and the updater is as it was."""
    model, other = net(), net()
    updater = gch.sgd(0.1, momentum=0.9).bind(model, in_backward=True)
    updater.update(loss_of(model(share(0, None))))
    said = sentence(ValueError, updater.rebind, DistributedDataParallel(other))
    for micro in (1, 2):
        updater.update(loss_of(model(share(micro, None))))
    return {"said": said, "weights": weights(model)}


@scenario
def copied(rank):
    """A deep copy looks for itself."""
    model, updater = (m := net()), gch.sgd(0.1).bind(m, in_backward=True)
    again, other = copy.deepcopy((model, updater))
    ddp = DistributedDataParallel(again)
    said = sentence(RuntimeError, other.update, loss_of(ddp(share(0, rank))))
    assert updater.update(loss_of(model(share(0, rank))))  # that one is nobody's
    return said


@scenario
def ddp_of_others(rank):
    """DDP of another model, or that was told to ignore what is bound, is nobody's business."""
    elsewhere, model = DistributedDataParallel(net()), net()
    updater = CHAINS["adamw"].bind(model, in_backward=True)
    train(updater, model, range(4))
    assert updater.update(loss_of(model(share(4, None))))
    both = nn.ModuleDict({"own": net(), "shared": nn.Linear(3, 2).double()})
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        both, [n for n, _ in both.named_parameters() if n.startswith("own")]
    )
    wrapped = DistributedDataParallel(both)
    assert gch.sgd(0.1).bind(both["own"], in_backward=True)
    sentence(ValueError, gch.sgd(0.1).bind, both["shared"], in_backward=True)
    del elsewhere, wrapped
    return {"weights": weights(model)}


def fsdp2(rank, chain, each=True, mesh=(2,), **options):
    model = net()
    names = ("replicate", "shard") if len(mesh) == 2 else ("shard",)
    mesh = init_device_mesh("cpu", mesh, mesh_dim_names=names)
    for layer in model if each else ():
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    updater = chain.bind(model, in_backward=True)
    out = {"weights": train(updater, model, range(8), rank), "clocks": updater.clocks}
    return out | {"free": all(p.grad is None for p in model.parameters())}


@scenario
def sharded(rank):
    """FSDP2 reduces before a turn."""
    return {name: fsdp2(rank, chain) for name, chain in CHAINS.items()}


@scenario
def sharded_otherwise(rank):
    ways = {
        "whole": {"each": False},
        "kept": {"reshard_after_forward": False},
        "replicated": {"mesh": (2, 1)},
        "hybrid": {"mesh": (1, 2)},
    }
    return {name: fsdp2(rank, CHAINS["adamw"], **way) for name, way in ways.items()}


def twice():
    torch.manual_seed(7)
    layer = nn.Linear(3, 3).double()
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(3, 2).double())


@scenario
def sharded_twice(rank):
    """A module that runs twice in one forward."""
    model, mesh = twice(), init_device_mesh("cpu", (2,))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    updater = CHAINS["momentum"].bind(model, in_backward=True)
    try:
        return {"weights": train(updater, model, range(4), rank)}
    except RuntimeError as error:
        return {"said": str(error), "torn": sentence(RuntimeError, updater.state_dict)}


def mean(grad):
    dist.all_reduce(grad)
    return grad / 2


def reduce_in_place(parameter):
    parameter.grad = mean(parameter.grad)


def on_gradients(model):
    for p in model.parameters():
        p.register_hook(lambda g: mean(g.clone()))


def on_accumulation(model):
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(reduce_in_place)


@scenario
def hooks_of_the_user(rank):
    """Their own reductions come first, whether registered before bind, after it, or between updates."""
    out = {}
    for name, register in {"gradients": on_gradients, "accumulation": on_accumulation}.items():
        for when in (0, 1, 3):
            model = net()
            if when == 0:
                register(model)
            updater = CHAINS["adamw"].bind(model, in_backward=True)
            if when == 3:
                train(updater, model, range(3))  # the whole batch on each rank
            if when:
                register(model)
            out[name, when] = train(updater, model, range(3 if when == 3 else 0, 8), rank)
    return out


@scenario
def data_parallel(rank):
    model = net()
    wrapped = DataParallel(model)
    updater = CHAINS["adamw"].bind(wrapped, in_backward=True)
    return {"weights": train(updater, wrapped, range(8)), "names": updater.names}


@scenario
def unseen(rank):
    """Were DDP not seen, what it writes after the turn would be: no second update of a parameter in one backward."""
    seen = ranks.Replicas.reduce
    ranks.Replicas.reduce = lambda self, target: False
    try:
        said = {}
        for name in ("plain", "bucket_view"):
            model = net()
            updater = gch.sgd(0.1).bind(model, in_backward=True)
            ddp = WRAPS[name](model)
            loss = loss_of(ddp(share(0, rank)))
            said[name] = sentence(RuntimeError, updater.update, loss), sentence(RuntimeError, updater.state_dict)
        return said
    finally:
        ranks.Replicas.reduce = seen
