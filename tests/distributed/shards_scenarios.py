"""Scenarios: chains over shards of several kinds, all in one set of processes."""

import datetime
import os
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from later import later
from little_shards import KINDS, STEPS, chains, fed, parameters, wholes
from little_task import loss_of, net, share, weights
from torch import nn
from two_ranks import sentence

import gradchain as gch
from benchmarks.pinning import leave
from gradchain.engine.executors.blocks import Blocks
from gradchain.engine.executors.native import Native, NativeRunner

device_mesh, fsdp = later("torch.distributed.device_mesh"), later("torch.distributed.fsdp")
parallel = later("torch.distributed.tensor.parallel")


def told(updater, params, found):
    """What a run has come to."""
    return {
        **found,
        "weights": wholes(params),
        "explained": str(updater.explain()),
        "averages": wholes(updater.averages()) if "average_params" in repr(updater.chain) else {},
    }


def laid_out(kind, name, world):
    params = parameters(kind, world)
    updater = chains()[name].bind(params)
    return told(updater, params, fed(updater, params, kind, world, range(STEPS)))


# models that torch shards


def by_layers(model, world):
    mesh = device_mesh.init_device_mesh("cpu", (world,))
    fsdp.fully_shard(model[0], mesh=mesh)
    return fsdp.fully_shard(model, mesh=mesh)


def with_replicas(model, world):
    mesh = device_mesh.init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard"))
    return fsdp.fully_shard(model, mesh=mesh)


def _split(model, mesh):
    plan = {"0": parallel.ColwiseParallel(), "2": parallel.RowwiseParallel()}
    return parallel.parallelize_module(model, mesh, plan)


def by_tensor(model, world):
    return _split(model, device_mesh.init_device_mesh("cpu", (world,)))


def by_both(model, world):
    """FSDP2 over tensor parallelism."""
    mesh = device_mesh.init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("data", "tensor"))
    _split(model, mesh["tensor"])
    for layer in (model[0], model[2]):
        fsdp.fully_shard(layer, mesh=mesh["data"])
    return fsdp.fully_shard(model, mesh=mesh["data"])


def but_one(model, world):
    """One parameter is plain."""
    mesh = device_mesh.init_device_mesh("cpu", (world,))
    return fsdp.fully_shard(model, mesh=mesh, ignored_params={model[2].weight})


MODELS = {"layers": by_layers, "replicas": with_replicas, "tensor": by_tensor, "both": by_both, "but one": but_one}
MODEL_CHAINS = ("clip, adamw, average", "window of gradients", "gates")


def made(kind):
    """A model whose sizes the ranks do not divide; torch splits a layer only in equal parts."""
    if kind not in ("tensor", "both"):
        return net()
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def trained(updater, model, micros, spoil=None):
    """Micro-batches, the same rows on every rank; before the fourth step `spoil` may change gradients."""
    reasons, by_reference = [], []
    for micro in micros:
        with updater.context():
            loss = loss_of(model(share(micro, None)))
        updater.backward(loss)
        if micro == 3 and spoil is not None:
            spoil(model)
        reasons.append(updater.step().reason)
        by_reference.append(updater._bound.engine.reason)
    return {"reasons": reasons, "by_reference": by_reference, "weights": weights(model)}


def on_the_first(model):
    """Infinite in what one rank has."""
    if dist.get_rank() == 0:
        next(iter(model.parameters())).grad._local_tensor.fill_(float("inf"))


def of_model(kind, name, world):
    model = MODELS[kind](made(kind), world)
    updater = chains()[name].bind(model)
    found = trained(updater, model, range(6), on_the_first if (kind, name) == ("layers", "gates") else None)
    return {**found, "explained": str(updater.explain())}


# one rank cannot run what the others can


def with_gaps(tensor):
    """The same numbers, every second one of memory."""
    return torch.stack([tensor, torch.zeros_like(tensor)], -1)[..., 0]


def gaps(first, last=STEPS):
    def spoil(step, params):
        if dist.get_rank() == 1 and first <= step < last:
            params["2.e"]._local_tensor = with_gaps(params["2.e"]._local_tensor.detach())
        elif dist.get_rank() == 1:
            params["2.e"]._local_tensor = params["2.e"]._local_tensor.detach().contiguous()

    return spoil


def unable(refuses):
    """Executors of this rank that refuse some programs from here on; what puts them in order again."""
    kept = [(kind, kind.legal) for kind in (Native, Blocks)]
    if dist.get_rank() == 1:
        for kind, legal in kept:
            kind.legal = lambda self, program, dtypes, legal=legal: (
                "it is told so" if refuses(program) else legal(self, program, dtypes)
            )
    return lambda: [setattr(kind, "legal", legal) for kind, legal in kept]


REFUSED = {
    "gaps from the first": ("rows", gaps(0), None),
    "gaps later": ("rows", gaps(3), None),
    "gaps, over two dimensions": ("rows and columns", gaps(0), None),
    "gaps for a while": ("rows", gaps(2, 4), None),
    "no executor reduces": ("rows", None, lambda program: bool(program.reduce)),
    "no executor writes": ("rows", None, lambda program: bool(program.stores)),
    "no executor reduces along dimensions": ("rows", None, lambda program: bool(program.along)),
}
REFUSED_CHAINS = ("clip, adamw, average", "numbers of each", "window of gradients", "factored")
ONE_REFUSES = [(case, name) for case in REFUSED for name in REFUSED_CHAINS[:: 1 if "gaps" in case[:4] else 3]]


def refused(case, name, world):
    kind, spoil, refuses = REFUSED[case]
    order = (lambda: None) if refuses is None else unable(refuses)
    params = parameters(kind, world)
    updater = chains()[name].bind(params)
    try:
        return told(updater, params, fed(updater, params, kind, world, range(STEPS), spoil))
    finally:
        order()


def too_late(world):
    """One rank cannot write any more what all have agreed to run, once they have met: it must not go its own way."""
    params = parameters("rows", world)
    updater = chains()["clip, adamw, average"].bind(params)
    fed(updater, params, "rows", world, range(2))
    updater._bound.engine.forget()
    order = unable(lambda program: bool(program.stores))
    try:
        return sentence(RuntimeError, fed, updater, params, "rows", world, [2]) if dist.get_rank() == 1 else ""
    finally:
        if dist.get_rank() != 1:
            fed(updater, params, "rows", world, [2])
        order()


def told_to_use(executors, ranks, kind, name, world):
    """Some ranks are told to use other executors."""
    if dist.get_rank() in ranks:
        os.environ["GRADCHAIN_EXECUTORS"] = executors
    try:
        return laid_out(kind, name, world)
    finally:
        os.environ.pop("GRADCHAIN_EXECUTORS", None)


OTHERS = {"blocks": "clip, adamw, average", "foreach": "gates"}

# numbers that stay on the device, as on CUDA

ON_DEVICE = [("rows", "clip, adamw, average"), ("rows", "gates"), ("rows", "parts"), ("some plain", "norms of each"),
             ("in turn", "window")]  # fmt: skip


# something fails on one rank

FAILS = {"reducing": (NativeRunner, "run", 0), "filling": (NativeRunner, "run", 3), "planning": (Native, "ready", 0)}


def failing(case, world):
    """In the third step something fails on one rank: what each says, whether anything changed, and the step again."""
    kind, method, chain = FAILS[case]
    name, kept, params = REFUSED_CHAINS[chain], getattr(kind, method), parameters("rows", world)
    updater = chains()[name].bind(params)
    fed(updater, params, "rows", world, range(2))
    before = [p.to_local().clone() for p in params.values()]
    updater._bound.engine.forget()
    if dist.get_rank() == 1:
        setattr(kind, method, fails)
    try:
        said = sentence(Exception, fed, updater, params, "rows", world, [2])
    finally:
        setattr(kind, method, kept)
    same = all(torch.equal(p.to_local(), b) for p, b in zip(params.values(), before, strict=True))
    return said, same, told(updater, params, fed(updater, params, "rows", world, range(2, STEPS)))


def fails(*_):
    raise MemoryError("there is none")


# functions of whole tensors


def orthogonal(matrix):
    """Newton-Schulz: of a part of the rows it would be another matrix."""
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(5):
        x = 1.5 * x - 0.5 * (x @ x.mT) @ x
    return x


def by_qr(matrix):
    wide = matrix.shape[0] < matrix.shape[1]
    return torch.linalg.qr(matrix.mT)[0].mT.contiguous() if wide else torch.linalg.qr(matrix)[0]


def two_of_it(matrix):
    return orthogonal(matrix), matrix - matrix.mean()


def products(matrix):
    return matrix @ matrix.mT


class of_matrices(gch.Transform):
    applies = gch.min_ndim(2)

    fn: object
    gather: bool
    batched: bool = False

    def update(self, g, state, ctx):
        made = (0.5 * g).map(self.fn, batched=self.batched, gather=self.gather)
        made = made[0] + made[1] if isinstance(made, tuple) else made
        return made + g * 0.1, state


class by_products(gch.Transform):
    """A map that gives other shapes, which another takes."""

    applies = gch.min_ndim(2)

    gather: bool

    def update(self, g, state, ctx):
        squares = g.map(products, gather=self.gather)
        return squares.map(torch.matmul, g, gather=self.gather) * 0.1, state


def maps():
    def chain(link):
        return gch.chain(gch.clip_by_norm(0.5), link, gch.sgd(0.05, momentum=0.9))

    return {
        "as it is": chain(of_matrices(orthogonal, False)),
        "gathered": chain(of_matrices(orthogonal, True)),
        "in stacks": chain(of_matrices(orthogonal, True, True)),
        "two results": chain(of_matrices(two_of_it, True)),
        "by its rows": chain(of_matrices(by_qr, True)),
        "no rule of torch's": chain(of_matrices(by_renorm, True)),
        "other shapes": chain(by_products(True)),
    }


def mapped(kind, name, world):
    params = parameters(kind, world)
    updater = maps()[name].bind(params)
    return told(updater, params, fed(updater, params, kind, world, range(STEPS)))


def by_renorm(matrix):
    return torch.renorm(matrix, 2, 0, 1.0)


def no_rule(world):
    params = parameters("rows", world)
    updater = gch.chain(of_matrices(by_renorm, False), gch.sgd(0.05)).bind(params)
    return sentence(NotImplementedError, fed, updater, params, "rows", world, range(1))


def project(world):
    model = by_layers(net(), world)
    return trained(gch.chain(gch.sgd(0.1), gch.project(lambda w: w / (1.0 + w.norm()))).bind(model), model, range(3))


# what is kept


def resumed(kind, name, world):
    """Three steps, saved, loaded by another, and three more; and the same without."""
    first, second = parameters(kind, world), parameters(kind, world)
    updater = chains()[name].bind(first)
    fed(updater, first, kind, world, range(3))
    with torch.no_grad():
        for mine, theirs in zip(second.values(), first.values(), strict=True):
            mine.copy_(theirs)
    again = chains()[name].bind(second)
    again.load_state_dict(updater.state_dict())
    return told(again, second, fed(again, second, kind, world, range(3, STEPS)))


def averaged(world):
    params = parameters("rows", world)
    updater = chains()["clip, adamw, average"].bind(params)
    fed(updater, params, "rows", world, range(3))
    with updater.averaged():
        inside = wholes(params)
    return inside, wholes(updater.averages()), fed(updater, params, "rows", world, range(3, STEPS))["by_reference"]


def verified(kind, name, world):
    os.environ["GRADCHAIN_VERIFY"] = "1"
    try:
        return laid_out(kind, name, world)
    finally:
        del os.environ["GRADCHAIN_VERIFY"]


def talk(world):
    """How many collectives a step has, beyond the first, which agrees."""
    counts, reduce = [], dist.all_reduce
    params = parameters("rows", world)
    updater = gch.chain(gch.skip_nonfinite(), gch.clip_by_norm(0.2), gch.adamw(0.05)).bind(params)
    calls = []
    dist.all_reduce = lambda *args, **how: calls.append(1) or reduce(*args, **how)
    try:
        for step in range(4):
            fed(updater, params, "rows", world, [step])
            counts.append(len(calls))
            calls.clear()
    finally:
        dist.all_reduce = reduce
    return counts


NOT_WHOLE = ("clip, adamw, average", "factored", "window of gradients", "noise")
KEPT = [("rows", name) for name in NOT_WHOLE] + [("rows and columns", name) for name in NOT_WHOLE[:2]]


def scenarios():
    """Each by what it is asked as."""
    asked = {("laid", kind, name): (laid_out, kind, name) for kind in KINDS for name in chains()}
    asked |= {("model", kind, name): (of_model, kind, name) for kind in MODELS for name in MODEL_CHAINS}
    asked |= {("refused", case, name): (refused, case, name) for case, name in ONE_REFUSES}
    asked |= {("map", kind, name): (mapped, kind, name) for kind in ("rows", "rows and columns") for name in maps()}
    asked |= {("resumed", kind, name): (resumed, kind, name) for kind, name in KEPT}
    asked |= {("verified", kind, name): (verified, kind, name) for kind, name in KEPT}
    asked |= {("other", name): (told_to_use, name, (1,), "rows", chain) for name, chain in OTHERS.items()}
    asked |= {("device", *of): (told_to_use, "fused,foreach", range(64), *of) for of in ON_DEVICE}
    asked |= {("fails", case): (failing, case) for case in FAILS}
    single = {
        "late": too_late,
        "no rule": no_rule,
        "project": project,
        "averaged": averaged,
        "talk": talk,
    }
    return asked | {(name,): (function,) for name, function in single.items()}


MESHES = ("replicated rows", "rows and columns", "rows twice")  # of two dimensions, neither of one rank, from four on
MESH_MODELS = ("replicas", "both")
MESH_CHAINS = ("clip, adamw, average", "factored")


def of_meshes():
    """Those that say something of a mesh of two dimensions which two ranks do not."""
    asked = [("laid", kind, name) for kind in MESHES for name in MESH_CHAINS]
    asked += [("model", kind, MESH_CHAINS[0]) for kind in MESH_MODELS]
    return {one: scenarios()[one] for one in asked}


def alone(kind, name, only=None, steps=range(STEPS)):
    """The same in one process, over whole tensors."""
    params = parameters(None, 1)
    tx = chains()[name] if only is None else only
    updater = tx.bind(params)
    return told(updater, params, fed(updater, params, None, 1, steps))


def model_alone(kind, name):
    model = made(kind)
    return trained(chains()[name].bind(model), model, range(6))


def run(world, folder, asked=scenarios):
    """What each rank returned of what is asked."""
    mp.spawn(_rank, (world, str(folder), asked), nprocs=world)
    outcomes = [torch.load(Path(folder) / f"{world}-{rank}.pt", weights_only=False) for rank in range(world)]
    assert not any(isinstance(o, str) for o in outcomes), "\n".join(o for o in outcomes if isinstance(o, str))
    return outcomes


def _rank(rank, world, folder, scenarios):
    torch.set_num_threads(1)
    meeting, outcome = f"file://{folder}/{world}.meeting", {}
    patience = datetime.timedelta(seconds=60)  # what a rank waits for another one before it says so
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world, timeout=patience)
    asked = None
    try:
        for asked, (function, *given) in scenarios().items():
            outcome[asked] = function(*given, world)
    except Exception:
        outcome = f"rank {rank}, {asked}:\n{traceback.format_exc()}"
    torch.save(outcome, Path(folder) / f"{world}-{rank}.pt")
    dist.destroy_process_group()
    leave()
