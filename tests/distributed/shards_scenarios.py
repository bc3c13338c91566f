"""Scenarios: chains over shards of several kinds, all in one set of processes."""

import datetime
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from later import later
from little_task import loss_of, net, share, weights
from torch import nn

import gradchain as gch

device_mesh, fsdp = later("torch.distributed.device_mesh"), later("torch.distributed.fsdp")
parallel = later("torch.distributed.tensor.parallel")


def made(kind):
    """A model whose sizes the ranks do not divide; torch splits a layer only in equal parts."""
    if kind != "tensor":
        return net()
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()


class by_own_norm(gch.Transform):
    """Each update over its own norm, as LAMB and LARS have it."""

    def update(self, g, state, ctx):
        return g * (ctx.params.norms() / (g.norms() + 1e-3)) / (1.0 + g.norms(float("inf"))), state


def chains():
    """Every kind of reduction, gates, windows, masks, parts, averages."""
    adamw = gch.adamw(0.05)
    return {
        "clip, adamw, average": gch.chain(gch.clip_by_norm(0.2), adamw, gch.average_params(0.9)),
        "norms of each": gch.chain(by_own_norm(), gch.sgd(0.05, momentum=0.9)),
        "gates": gch.chain(gch.amp_scale(init_scale=64.0, always=True), gch.skip_nonfinite(), adamw),
        "window": gch.chain(gch.accumulate(2, dtype=torch.float64), gch.clip_by_norm(0.2, p=1.0), adamw),
        "parts": gch.partition(
            (gch.min_ndim(2), gch.chain(gch.clip_by_norm(0.3, per="tensor"), adamw)),
            (gch.rest, gch.chain(gch.masked(gch.add_decayed_weights(0.1), gch.named("0.*")), gch.lion(0.01))),
        ),
    }


def by_fsdp(model, world):
    mesh = device_mesh.init_device_mesh("cpu", (world,))
    fsdp.fully_shard(model[0], mesh=mesh)
    return fsdp.fully_shard(model, mesh=mesh)


def by_hsdp(model, world):
    mesh = device_mesh.init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard"))
    return fsdp.fully_shard(model, mesh=mesh)


def split(model, mesh):
    plan = {"0": parallel.ColwiseParallel(), "2": parallel.RowwiseParallel()}
    return parallel.parallelize_module(model, mesh, plan)


def by_tensor(model, world):
    return split(model, device_mesh.init_device_mesh("cpu", (world,)))


def mixed(model, world):
    """Some parameters are plain."""
    mesh = device_mesh.init_device_mesh("cpu", (world,))
    return fsdp.fully_shard(model, mesh=mesh, ignored_params={model[2].weight})


KINDS = {"fsdp": by_fsdp, "hsdp": by_hsdp, "tensor": by_tensor, "mixed": mixed}


def steps(updater, model, spoil=None):
    """Eight micro-batches, the same rows on every rank; before the fourth step `spoil` may change gradients."""
    reasons, ran = [], []
    for micro in range(8):
        with updater.context():
            loss = loss_of(model(share(micro, None)))
        updater.backward(loss)
        if micro == 3 and spoil is not None:
            spoil(model)
        reasons.append(updater.step().reason)
        ran.append(updater._bound.engine.reason)
    return {"weights": weights(model), "reasons": reasons, "ran": ran, "explained": str(updater.explain())}


def spoil_on_the_first(model):
    """Only in what one rank has."""
    for parameter in list(model.parameters())[:1] if dist.get_rank() == 0 else ():
        parameter.grad._local_tensor.fill_(float("inf"))


def average(updater):
    averages = updater.averages()
    return [t.full_tensor() if hasattr(t, "full_tensor") else t for t in averages.values()]


def scenario(world):
    out = {}
    for kind, shard in KINDS.items():
        for name, tx in chains().items():
            model = shard(made(kind), world)
            updater = tx.bind(model)
            out[kind, name] = steps(updater, model, spoil_on_the_first if name == "gates" and kind == "fsdp" else None)
            if "average" in name:
                out[kind, name]["average"] = average(updater)
    model = by_fsdp(net(), world)
    out["whole"] = steps(gch.chain(gch.sgd(0.1), gch.project(lambda w: w / (1.0 + w.norm()))).bind(model), model)
    return out


def alone(kind, name):
    model, tx = made(kind), chains()[name]
    updater = tx.bind(model)
    return {**steps(updater, model), "average": average(updater) if "average" in name else None}


def run(world, folder):
    """What each rank returned."""
    mp.spawn(_rank, (world, str(folder)), nprocs=world)
    outcomes = [torch.load(Path(folder) / f"{world}-{rank}.pt", weights_only=False) for rank in range(world)]
    assert not any(isinstance(o, str) for o in outcomes), "\n".join(o for o in outcomes if isinstance(o, str))
    return outcomes


def _rank(rank, world, folder):
    torch.set_num_threads(1)
    meeting = f"file://{folder}/{world}.meeting"
    patience = datetime.timedelta(seconds=20)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world, timeout=patience)
    try:
        outcome = scenario(world)
    except Exception:
        outcome = traceback.format_exc()
    torch.save(outcome, Path(folder) / f"{world}-{rank}.pt")
    dist.destroy_process_group()
