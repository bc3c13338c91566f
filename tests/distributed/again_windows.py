"""Scenarios: windows over ranks whose steps run again, weighted, closed early and flushed; and ranks that meet anew."""

import tempfile

import again_scenarios
import torch
import torch.distributed as dist
from again_scenarios import STEPS, TOLD, WAYS, told
from ddp_windows import counts, summed
from later import later
from little_shards import fed, mesh_of, parameters
from little_task import loss_of, net, rows, weights
from torch import nn

import gradchain as gch

fsdp = later("torch.distributed.fsdp")

MICROS = 22
FLUSHED = (7, 16, 18)  # after these micro-batches: in an open window, in none, in one that is shorter than the first


def chains():
    lr = gch.linear(0.02, 0.08, 5)
    rest = (gch.clip_by_norm(0.2), gch.adamw(lr), gch.average_params(0.9))
    return {
        "mean": gch.chain(gch.accumulate(3), *rest),
        "sum": gch.chain(gch.accumulate(3, reduce="sum"), *rest),
        "buffer": gch.chain(gch.accumulate(3, dtype=torch.float64), *rest),
    }


# FSDP2 keeps a window in `.grad` where nobody can reduce it before it closes, so no flush there
RUN_AGAIN = [
    ("replicas", "mean", True),
    ("replicas", "sum", False),
    ("replicas", "buffer", True),
    ("shards", "mean", False),
    ("shards", "sum", False),
    ("shards", "buffer", True),
]
MIXED = [RUN_AGAIN[0], RUN_AGAIN[-1]]
TRIED = [(*of, "again") for of in RUN_AGAIN] + [(*of, way) for of in MIXED for way in ("recorded", "one records")]


class Talks:
    """How often ranks talk about numbers inside of this."""

    def __enter__(self):
        self.own, self.many = dist.all_reduce, 0
        dist.all_reduce = self
        return self

    def __call__(self, *args, **options):
        self.many += 1
        return self.own(*args, **options)

    def __exit__(self, *raised):
        dist.all_reduce = self.own


def over_ranks(kind, model):
    """The model as torch trains it over ranks; itself in one process."""
    if kind == "replicas":
        return nn.parallel.DistributedDataParallel(model)
    return model if kind is None else fsdp.fully_shard(model, mesh=mesh_of((dist.get_world_size(),)))


def of_windows(kind, name, flushes, way, rank):
    """Micro-batches of as many rows as differ from rank to rank, weighed by them."""
    model = net()
    seen, parts = over_ranks(kind, model), (0, 1) if rank is None else (rank,)
    updater = chains()[name].bind(seen)
    if rank is not None and rank in WAYS[way]:
        updater._bound.engine._why_without_numbers = lambda request: TOLD
    reasons, flushed = [], 0
    with Talks() as talks:
        for micro in range(MICROS):
            many = sum(counts(micro, r) for r in parts)
            with updater.context():
                loss = sum(summed(seen(rows(micro, r, counts(micro, r)))) for r in parts) / many
            reasons.append(updater.update(loss, weight=many / len(parts)).reason)
            if flushes and micro in FLUSHED:
                reasons.append(updater.flush().reason)
                flushed += reasons[-1] == "applied"
    engine = updater._bound.engine
    counted = {"again": engine.num_replayed, "why": dict(engine.not_replayed), "said": str(updater.explain())}
    found = {**counted, "reasons": reasons, "steps": MICROS + flushed, "by_reference": engine.reason}
    return {**found, "weights": weights(model), "talks": talks.many}


def windows(kind, name, flushes, way, world):
    return of_windows(kind, name, flushes, way, dist.get_rank())


# the groups of ranks are others


def _meet_anew():
    """The process groups end, and others begin, as after a failure that a run survives."""
    rank, world, where = dist.get_rank(), dist.get_world_size(), [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(where)
    dist.destroy_process_group()
    dist.init_process_group("gloo", init_method=f"file://{where[0]}/meeting", rank=rank, world_size=world)


class Groups(Talks):
    """Of which process groups ranks talk inside of this."""

    def __enter__(self):
        self.seen = set()
        return super().__enter__()

    def __call__(self, *args, group=None, **options):
        self.seen.add(group)
        return super().__call__(*args, group=group, **options)


def meeting_anew(world):
    """After three steps the groups are others, and nothing else is: the weights are the same DTensors."""
    params = parameters("rows", world)
    updater = again_scenarios.chains()["clip, adamw, average"].bind(params)
    with Groups() as at_first:
        fed(updater, params, "rows", world, [0])
    fed(updater, params, "rows", world, [1, 2])
    _meet_anew()
    with Groups() as anew:
        fed(updater, params, "rows", world, [3])
    with Groups() as after:
        found = fed(updater, params, "rows", world, range(4, STEPS))
    now = set(params["0.a"].device_mesh.get_all_groups())
    met = {"now": anew.seen == after.seen == now, "asked": (at_first.many, anew.many)}
    return told(updater, params, {**found, **met})


def _anew(kind, model):
    """The same weights over other process groups."""
    kept = weights(model)
    _meet_anew()
    if kind == "shards":  # those of the groups before are of no use there
        model = net()
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), kept, strict=True):
                parameter.copy_(value)
    return over_ranks(kind, model)


def of_rebound(kind, rank):
    """Gates that ask for a mean over ranks; in the middle of a window the groups end, and the updater is rebound."""
    model = net()
    seen, parts = over_ranks(kind, model), (0, 1) if rank is None else (rank,)
    tx = gch.chain(gch.accumulate(2, dtype=torch.float64), gch.rules.skip_spikes(of="loss", warmup=2), gch.adamw(0.05))
    updater = tx.bind(seen)

    def teach(micros):
        for micro in micros:
            with updater.context():
                loss = sum(loss_of(seen(rows(micro, r))) for r in parts) / len(parts)
            updater.update(loss)

    teach(range(9))
    recorded = dict(updater._bound.engine.not_replayed)
    if rank is not None:
        seen = _anew(kind, model)
        updater.rebind(seen)
    teach(range(9, 18))
    engine = updater._bound.engine
    counted = {"before": recorded, "why": dict(engine.not_replayed), "again": engine.num_replayed}
    return {**counted, "weights": weights(seen)}


def rebound(kind, world):
    return of_rebound(kind, dist.get_rank())


def scenarios():
    """Each by what it is asked as, with those of the other file; the last are those that end the process groups."""
    asked = again_scenarios.scenarios()
    asked |= {("windows", *of): (windows, *of) for of in TRIED}
    asked |= {("rebound", kind): (rebound, kind) for kind in ("replicas", "shards")}
    return asked | {("anew",): (meeting_anew,)}
