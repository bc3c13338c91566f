"""Scenarios: `bind(model, zero_redundancy=True)` under DDP, on as many ranks as are asked for."""

import os
import re
import warnings
from pathlib import Path
from tempfile import mkdtemp

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from little_task import loss_of, rows
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_ranks import sentence

import gradchain as gch

AMP = {"init_scale": 64.0, "growth_interval": 2, "always": True}
CHAINS = {
    "clip, adamw": lambda: gch.chain(gch.clip_by_norm(0.2), gch.adamw(1e-2)),
    "momentum": lambda: gch.chain(gch.sgd(gch.cosine(0.01, 0.0, 20), momentum=0.9, nesterov=True)),
    "lion": lambda: gch.chain(gch.lion(1e-3)),
    "muon": lambda: gch.chain(gch.rules.muon(1e-2, head=None, dtype=None)),
    "adafactor": lambda: gch.chain(gch.adafactor(1e-2)),
    "averages": lambda: gch.chain(gch.clip_by_norm(0.2), gch.sgd(0.1, momentum=0.9), gch.average_params(0.9)),
    "masked": lambda: gch.chain(
        gch.scale_by_adam(), gch.masked(gch.add_decayed_weights(0.1), gch.min_ndim(2)), gch.scale_by_learning_rate(1e-2)
    ),
    "clips in a partition": lambda: gch.chain(
        gch.partition((gch.bias, gch.chain(gch.clip_by_norm(0.1), gch.sgd(0.05))), (gch.rest, gch.adamw(1e-2)))
    ),
    "window": lambda: gch.chain(gch.accumulate(3), gch.clip_by_norm(0.2), gch.adamw(1e-2), gch.average_params(0.9)),
    "window in a buffer": lambda: gch.chain(
        gch.accumulate(3, dtype=torch.float64), gch.clip_by_norm(0.2), gch.lion(1e-2)
    ),
    "loss scale": lambda: gch.chain(gch.amp_scale(**AMP), gch.clip_by_norm(0.5), gch.adamw(1e-2)),
    "window, loss scale": lambda: gch.chain(gch.accumulate(2), gch.amp_scale(**AMP), gch.adamw(1e-2)),
    "norm of each": lambda: gch.chain(gch.clip_by_norm(0.1, per="tensor"), gch.rules.lamb(1e-2)),
    "noise": lambda: gch.chain(gch.add_noise(0.1, 0.5, seed=3), gch.sgd(0.1)),
    "frozen": lambda: gch.chain(gch.freeze(gch.named("body.0.*")), gch.adamw(1e-2)),
    "closure": lambda: gch.chain(gch.sam(0.05), gch.adamw(1e-2)),
}


class Net(nn.Module):
    """Sizes that ranks do not divide, a single number, one row, and a kernel."""

    def __init__(self, wide=8):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, wide), nn.Tanh(), nn.Linear(wide, 2))
        self.row = nn.Parameter(torch.full((1, wide + 2), 0.1))
        self.one = nn.Parameter(torch.tensor(0.7))
        self.kernel = nn.Parameter(torch.ones(1, 5, 3))

    def forward(self, x):
        more = nn.functional.conv1d(self.row.sin().expand(5, -1).unsqueeze(0), self.kernel).mean()
        return self.body(x) * self.one + more


def net(seed=7, wide=7):
    torch.manual_seed(seed)
    return Net(wide).double()


def batch(micro, rank, world):
    """What a rank sees of a micro-batch; the whole of it with rank=None."""
    return rows(micro, rank) if rank is not None else torch.cat([rows(micro, r) for r in range(world)])


def fed(updater, model, micros, rank, world, closes=False, spoiled=()):
    reasons = []
    for micro in micros:

        def loss(micro=micro):
            made = loss_of(model(batch(micro, rank, world)))
            return made * float("inf") if micro in spoiled and rank in (None, 1) else made

        if closes:
            reasons.append(updater.update(loss).reason)
            continue
        with updater.context():
            made = loss()
        reasons.append(updater.update(made).reason)
    return reasons


def come_to(updater, model, reasons=()):
    """What a run has come to; the averages, where there are some."""
    found = {"weights": {n: p.detach().clone() for n, p in zip(updater.names, model.parameters(), strict=True)}}
    if "average_params" in repr(updater.chain):
        found["averages"] = {n: t.clone() for n, t in updater.averages().items()}
        with updater.averaged():
            found["inside"] = [p.detach().clone() for p in model.parameters()]
    return {**found, "reasons": reasons, "clocks": updater.clocks}


SPOILED = {"loss scale": (3,), "window, loss scale": (4,)}
STEPS = 9


def alone(name, world):
    model = net()
    updater = CHAINS[name]().bind(model)
    reasons = fed(updater, model, range(STEPS), None, world, name == "closure", SPOILED.get(name, ()))
    return come_to(updater, model, reasons)


def bound(name, seed=7, zero=True, **ddp):
    model = net(seed)
    wrapped = DistributedDataParallel(model, **ddp)
    return model, wrapped, CHAINS[name]().bind(wrapped, zero_redundancy=zero)


def sharded(name, view, world):
    rank = dist.get_rank()
    model, wrapped, updater = bound(name, gradient_as_bucket_view=view)
    reasons = fed(updater, wrapped, range(STEPS), rank, world, name == "closure", SPOILED.get(name, ()))
    found = come_to(updater, model, reasons)
    return {**found, "explained": str(updater.explain()), "reference": updater._bound.engine.reason}


# what is kept


def folder_of(world):
    """A folder of this run that all ranks know."""
    said = [mkdtemp(prefix="gradchain-zero-")] if dist.get_rank() == 0 else [None]
    dist.broadcast_object_list(said)
    return Path(said[0])


KEPT = ("adafactor", "averages", "window", "window in a buffer", "loss scale")
CUT = 5  # inside the windows


def saved(name, zero, world):
    """A file written on all ranks, by ranks that share the state out or not; and the run that goes on."""
    rank, path = dist.get_rank(), folder_of(world) / "run.pt"
    model, wrapped, updater = bound(name, zero=zero)
    fed(updater, wrapped, range(CUT), rank, world)
    updater.save(path, at=CUT)
    fed(updater, wrapped, range(CUT, STEPS), rank, world)
    return {"path": path, **come_to(updater, model)}


def resumed(name, path, zero, world):
    """What goes on from such a file."""
    model, wrapped, updater = bound(name, seed=3, zero=zero)
    extra = updater.load(path)
    fed(updater, wrapped, range(extra["at"], STEPS), dist.get_rank(), world)
    return come_to(updater, model)


def resumed_alone(name, path, world):
    model = net(3)
    updater = CHAINS[name]().bind(model)
    fed(updater, model, range(updater.load(path)["at"], STEPS), None, world)
    return come_to(updater, model)


def by_dcp(name, world):
    """Saved in parts and read in parts, beside the weights; what is read is what one rank has, or whole."""
    rank, path = dist.get_rank(), folder_of(world)
    model, wrapped, updater = bound(name)
    fed(updater, wrapped, range(6), rank, world)
    weights = model.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"updater": updater.state_dict(form="fixed"), "model": weights}, checkpoint_id=path)
        found = {}
        for zero in (True, False):
            again, wrapped_again, other = bound(name, seed=3, zero=zero)
            read = {"updater": other.state_dict(form="fixed"), "model": again.state_dict()}
            dcp.load(read, checkpoint_id=path)
            again.load_state_dict(read["model"])
            other.load_state_dict(read["updater"])
            fed(other, wrapped_again, range(6, STEPS), rank, world)
            found[zero] = come_to(other, again)
    return found


def plain_state(world):
    """state_dict() is whole and plain on every rank, of a window that differs with sync=True."""
    rank = dist.get_rank()
    _, wrapped, updater = bound("window")
    fed(updater, wrapped, range(4), rank, world)
    said = sentence(RuntimeError, updater.state_dict)
    state = updater.state_dict(sync=True)
    _, wrapped, other = bound("window", zero=False)
    fed(other, wrapped, range(4), rank, world)
    return said, state["links"], other.state_dict(sync=True)["links"]


# the parts


def sizes(world):
    """Bytes of the state: of all ranks, and of this one, as explain() has them; and as tensors lie there."""
    found = {}
    for name in ("clip, adamw", "averages", "muon"):
        wide = nn.Linear(3, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 8)
        model = nn.Sequential(*wide).double()
        updater = CHAINS[name]().bind(DistributedDataParallel(model), zero_redundancy=True)
        wrapped = updater._bound.target.roots[0][1]
        fed(updater, wrapped, range(2), dist.get_rank(), world)
        told = re.findall(r"state of \S+: ([\d,]+) bytes, ([\d,]+) of them on this rank", str(updater.explain()))
        whole, mine = (sum(int(pair[i].replace(",", "")) for pair in told) for i in (0, 1))
        kept = [t for s in updater._bound.state.links.values() for _, v in s.items() if isinstance(v, gch.Tensors)
                for t in v.values()]  # fmt: skip
        found[name] = whole, mine, sum(t.to_local().untyped_storage().nbytes() for t in kept)
    return found


def skipped_on_one(world):
    """A non-finite gradient on one rank: no rank steps, and state and weights stay."""
    rank = dist.get_rank()
    model = net()
    wrapped = DistributedDataParallel(model)
    updater = gch.chain(gch.skip_nonfinite(), gch.adamw(1e-2)).bind(wrapped, zero_redundancy=True)
    fed(updater, wrapped, range(2), rank, world)
    before = [p.detach().clone() for p in model.parameters()]
    made = loss_of(wrapped(batch(2, rank, world)))
    made.backward()
    if rank == 0:
        model.one.grad.fill_(float("nan"))
    for p in model.parameters():  # as a reduction would have
        dist.all_reduce(p.grad)
    info = updater.step()
    same = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    return info.reason, same, updater.num_updates


def changed(world):
    """A layer goes, and the state is carried over; a reset starts afresh."""
    rank = dist.get_rank()
    runs = []
    for zero in (True, False):
        model, wrapped, updater = bound("clip, adamw", zero=zero)
        fed(updater, wrapped, range(3), rank, world)
        model.kernel.requires_grad_(False)
        torch.manual_seed(5)
        model.body[2] = nn.Linear(7, 2).double()
        wrapped = DistributedDataParallel(model)
        report = updater.rebind(wrapped)
        fed(updater, wrapped, range(3, 6), rank, world)
        updater.reset(gch.bias)
        fed(updater, wrapped, range(6, 9), rank, world)
        runs.append((come_to(updater, model)["weights"], report.carried, report.fresh))
    return runs


def verified(world):
    """GRADCHAIN_VERIFY holds the kernels against the reference of all ranks."""
    os.environ["GRADCHAIN_VERIFY"] = "1"
    try:
        return [sharded(name, False, world) for name in ("clip, adamw", "window")]
    finally:
        del os.environ["GRADCHAIN_VERIFY"]


def refused(world):
    model = net()
    tx = gch.adamw(1e-2)
    strange = nn.ModuleDict({"in": DistributedDataParallel(net()), "out": nn.Linear(2, 2)})
    complex_ = nn.ParameterDict({"z": nn.Parameter(torch.ones(3, dtype=torch.complex128))})
    rows_ = DistributedDataParallel(nn.Embedding(8, 2, sparse=True))
    wrapped = DistributedDataParallel(model)

    def bind(target, tx=tx, **more):
        return sentence(ValueError, tx.bind, target, zero_redundancy=True, **more)

    return {
        "no DDP": bind(model),
        "beside DDP": bind(strange),
        "complex": bind(DistributedDataParallel(complex_)),
        "sparse": bind(rows_),
        "in backward": bind(wrapped, in_backward=True),
        "a class": sentence(TypeError, gch.from_torch("NAdam", lr=1e-2).bind, wrapped, zero_redundancy=True),
        "no bool": sentence(TypeError, tx.bind, wrapped, zero_redundancy=2),
    }


def chains(views=(False,), names=tuple(CHAINS)):
    return {(name, view): (sharded, name, view) for name in names for view in views}


def on_two():
    asked = chains() | chains((True,), ("clip, adamw", "window", "window in a buffer", "averages"))
    asked |= {("saved", name, zero): (saved, name, zero) for name in KEPT for zero in (True, False)}
    asked |= {("dcp", name): (by_dcp, name) for name in ("clip, adamw", "averages", "window in a buffer")}
    single = {"state": plain_state, "sizes": sizes, "skipped": skipped_on_one, "changed": changed}
    single |= {"verified": verified, "refused": refused}
    return asked | {(name,): (function,) for name, function in single.items()}


FEW = ("clip, adamw", "muon")


def on_four():
    return chains(names=FEW) | {("sizes",): (sizes,), ("saved", "averages", True): (saved, "averages", True)}


class Resumed:
    """What goes on from files, by the name of the chain, on as many ranks as are asked for."""

    def __init__(self, paths):
        self.paths = paths

    def __call__(self):
        return {key: (resumed, name, path, zero) for key, (name, path, zero) in self.paths.items()}
