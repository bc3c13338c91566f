"""Scenarios: steps over ranks that run again, beside the same ones recorded each time, on all ranks or on one."""

import itertools

import torch
import torch.distributed as dist
from later import later
from little_shards import fed, laid, mesh_of, numbers, parameters, wholes
from little_task import loss_of, net, rows, weights
from torch import nn
from two_ranks import sentence

import gradchain as gch
from gradchain.engine.executors.native import NativeRunner

fsdp, tensor = later("torch.distributed.fsdp"), later("torch.distributed.tensor")

STEPS = 8
TOLD = "it is told so"  # why a rank records each time


class unread(gch.Transform):
    """A norm that nobody reads: ranks meet for it all the same, and no guard stands on it."""

    def update(self, g, state, ctx):
        g.norm(p=1.0)
        return g, state


unread.__module__ = "gradchain.of_this_test"  # of our own links the code need not run at every step; but it is no link


def chains():
    lr = gch.linear(0.02, 0.08, 5)
    return {
        "clip, adamw, average": gch.chain(gch.clip_by_norm(0.2), gch.adamw(lr), gch.average_params(0.9)),
        "gates": gch.chain(gch.amp_scale(init_scale=64.0, always=True), gch.skip_nonfinite(), gch.adamw(lr)),
        "window": gch.chain(gch.accumulate(2, dtype=torch.float64), gch.clip_by_norm(0.2, p=1.0), gch.adamw(lr)),
        "window of gradients": gch.chain(gch.accumulate(2), gch.clip_by_norm(0.2), gch.sgd(lr, momentum=0.9)),
        "norms of each": gch.rules.lamb(lr),
        "means": gch.adafactor(lr),
        "gathered": gch.rules.muon(lr, dtype=None, matrices=gch.min_ndim(2)),
        "unread at last": gch.chain(gch.clip_by_norm(0.2), unread(), gch.sgd(lr)),
        "unread": gch.chain(unread(), gch.skip_nonfinite(), gch.clip_by_norm(0.2), gch.adamw(lr)),
    }


RESHARDED = {
    "without state": gch.chain(gch.clip_by_norm(0.2), gch.sgd(gch.linear(0.02, 0.08, 5))),
    "with state": gch.chain(gch.clip_by_norm(0.2), gch.adamw(0.05)),
}
WAYS = {"again": (), "recorded": range(64), "one records": (1,)}  # the ranks that record each time
TRIED = [("rows", name, way) for name in chains() for way in WAYS] + [("in turn", name, "again") for name in chains()]


def infinite(step, params):
    """In the fifth step there is infinity in what one rank has, or in the only process."""
    grad = params["0.a"].grad
    local = getattr(grad, "_local_tensor", grad)
    if step == 4 and (local is grad or dist.get_rank() == 0):
        local[0, 0] = float("inf")


def spoils(name):
    return infinite if name in ("gates", "unread") else None


def told(updater, params, found):
    engine = updater._bound.engine
    counts = {"again": engine.num_replayed, "why": dict(engine.not_replayed), "said": str(updater.explain())}
    return {**found, **counts, "weights": wholes(params)}


def ran(kind, name, way, world):
    params = parameters(kind, world)
    updater = chains()[name].bind(params)
    if kind is not None and dist.get_rank() in WAYS[way]:
        updater._bound.engine._why_without_numbers = lambda request: TOLD
    return told(updater, params, fed(updater, params, kind, world, range(STEPS), spoils(name)))


def alone(name):
    return ran(None, name, "again", 1)


# weights that lie otherwise


def moved(world):
    """After three steps the shards lie elsewhere, after five those of one rank."""

    def spoil(step, params):
        if step == 3 or (step == 5 and dist.get_rank() == 1):
            for parameter in params.values():
                parameter._local_tensor = parameter._local_tensor.detach().clone()

    params = parameters("rows", world)
    updater = chains()["clip, adamw, average"].bind(params)
    return told(updater, params, fed(updater, params, "rows", world, range(STEPS), spoil))


def resharded(name, world):
    """After four steps all matrices, which were shared out by rows, are shared out by columns."""
    mesh, params = mesh_of((world,)), parameters("rows", world)
    params = {n: p for n, p in params.items() if p.ndim == 2}
    updater = RESHARDED[name].bind(params)
    found = {"by_reference": [], "counts": []}
    for step in range(STEPS):
        kind = "rows" if step < 4 else "columns"
        for key, parameter in params.items():
            if step == 4:
                parameter.data = parameter.detach().redistribute(mesh, [tensor.Shard(1)])
            parameter.grad = laid(kind, key, numbers(key, step), world)
        updater.step()
        found["by_reference"].append(updater._bound.engine.reason)
        found["counts"].append(updater._bound.engine.num_replayed)
    return told(updater, params, found)


def resharded_alone(name):
    params = {n: p for n, p in parameters(None, 1).items() if p.ndim == 2}
    updater = RESHARDED[name].bind(params)
    return told(updater, params, fed(updater, params, None, 1, range(STEPS)))


# something fails on one rank in a step that would run again


def failing(times, world):
    """In the fourth step what reduces fails on one rank, once or each time; then the same step, and the rest."""
    params = parameters("rows", world)
    updater = chains()["gates"].bind(params)
    fed(updater, params, "rows", world, range(3))
    before, kept, failed = wholes(params), NativeRunner.run, []

    def fails(self, *args):
        failed.append(1)
        if len(failed) > times:
            return kept(self, *args)
        raise MemoryError("there is none")

    if dist.get_rank() == 1:
        NativeRunner.run = fails
    said = ""
    try:
        if times > 1:
            said = sentence(Exception, fed, updater, params, "rows", world, [3])
        else:
            fed(updater, params, "rows", world, [3])
    finally:
        NativeRunner.run = kept
    unchanged = all(torch.equal(a, b) for a, b in zip(wholes(params).values(), before.values(), strict=True))
    rest = range(3 if times > 1 else 4, STEPS)
    return said, unchanged, told(updater, params, fed(updater, params, "rows", world, rest, infinite))


# a mean over ranks among the numbers


GATES = {
    "shards": gch.chain(gch.skip_nonfinite(), gch.rules.skip_spikes(of="loss", warmup=2), gch.adamw(0.05)),
    # every rank has the whole gradient: where the first gate holds, ranks do not meet for the second
    "replicas": gch.chain(
        gch.amp_scale(init_scale=64.0, always=True), gch.rules.skip_spikes(of="loss", warmup=2), gch.adamw(0.05)
    ),
}


def of_losses(kind, rank, way):
    """Each rank has rows of its own, and gates look at the mean of all losses; one is infinite, and one is far off."""
    model = seen = net()
    if rank is not None and kind == "shards":
        fsdp.fully_shard(model, mesh=mesh_of((dist.get_world_size(),)))
    elif rank is not None:
        seen = nn.parallel.DistributedDataParallel(model)
    updater = GATES[kind].bind(seen)
    if rank in WAYS[way]:
        updater._bound.engine._why_without_numbers = lambda request: TOLD
    reasons = [updater.update(_loss(seen, step, rank)).reason for step in range(STEPS)]
    found = {"reasons": reasons, "value": float(updater.metrics["skip_spikes.value"])}
    engine = updater._bound.engine
    return {**found, "weights": weights(model), "again": engine.num_replayed, "why": dict(engine.not_replayed)}


def _loss(model, step, rank):
    """Of the rows of one rank, or the mean of the losses of two."""
    far = 1e3 if step == 6 else 1.0
    each = [far * loss_of(model(rows(step, r))) for r in ((rank,) if rank is not None else (0, 1))]
    if step == 5 and rank in (None, 0):
        each[0] = each[0] * float("inf")
    return sum(each) / len(each)


def losses(kind, way, world):
    return of_losses(kind, dist.get_rank(), way)


def scenarios():
    """Each by what it is asked as."""
    asked = {("ran", *of): (ran, *of) for of in TRIED}
    asked |= {("failing", times): (failing, times) for times in (1, 99)}
    asked |= {("losses", *of): (losses, *of) for of in itertools.product(GATES, WAYS)}
    asked |= {("resharded", name): (resharded, name) for name in RESHARDED}
    return asked | {("moved",): (moved,)}
