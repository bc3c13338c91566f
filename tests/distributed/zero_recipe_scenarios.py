"""Scenarios: real recipes whose optimizer is MMEngine's ZeroRedundancyOptimizer, by MMEngine and by their chain."""

import copy
import functools
import gzip
import json
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from later import later
from little_task import loss_of, rows
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradchain.adapters import mmengine

optim, registry = later("mmengine.optim"), later("mmengine.registry")

FOLDER = Path(__file__).parents[3] / "shared" / "openmmlab"
EPOCH, MOST = 3, 36  # micro-batches of an epoch, and of a run
# id → what it has
RECIPES = {
    "mmdetection3d-18e5a7fe64": "SGD, biases faster and without decay, clip, warm-up by iterations, stairs",
    "mmpretrain-f261d50d7a": "AdamW, rules by kind and by name, clip, warm-up, cosine by iterations",
    "mmdetection3d-6bb889001a": "AdamW with betas, clip, cosines of lr and of momentum",
    "mmpretrain-3d42f1abb1": "SGD, a head ten times as fast",
    "mmdetection3d-7bb51fb013": "Adam with L2, cosine",
}
WINDOWS = {"mmpretrain-f261d50d7a": 3}  # accumulative_counts beside


class Net(nn.Module):
    """A backbone, a head and an embedding, by the names that recipes have rules for."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 7), nn.LayerNorm(7), nn.Tanh())
        self.backbone.absolute_pos_embed = nn.Parameter(torch.full((1, 7), 0.1))
        self.head = nn.Linear(7, 2)

    def forward(self, x):
        return self.head(self.backbone(x) + self.backbone.absolute_pos_embed)


@functools.cache
def recipes():
    with gzip.open(FOLDER / "recipes.jsonl.gz", "rt") as file:
        every = {row["id"]: row for row in map(json.loads, file)}
    return {name: every[name] for name in RECIPES}


def shared_out(name):
    """The recipe's wrapper, with its optimizer made by ZeroRedundancyOptimizer, as MMEngine's documents have it."""
    given = copy.deepcopy(recipes()[name]["optim_wrapper"])
    inner = given["optimizer"]
    given["optimizer"] = {**inner, "type": "ZeroRedundancyOptimizer", "optimizer_type": inner["type"]}
    return given | ({"accumulative_counts": WINDOWS[name]} if name in WINDOWS else {})


def made():
    torch.manual_seed(5)
    return DistributedDataParallel(Net().double())


def length(name):
    """Micro-batches that are run, and those of the whole run."""
    row = recipes()[name]
    total = row.get("iters") or row["epochs"] * EPOCH
    return min(total, MOST) // WINDOWS.get(name, 1) * WINDOWS.get(name, 1), total


def by_mmengine(name, model):
    """Trained as MMEngine's Runner does: the weights, and how many tensors of state this rank has."""
    row, (steps, total) = recipes()[name], length(name)
    wrapper = optim.build_optim_wrapper(model, shared_out(name))
    wrapper.initialize_count_status(model, 0, total)
    given, schedulers = copy.deepcopy(row["param_scheduler"]), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the order of step calls, which is the Runner's
        for entry in given if isinstance(given, list) else [given]:
            entry.setdefault("end", row.get("epochs") or 1 if entry.get("by_epoch", True) else total)
            default = {"optimizer": wrapper, "epoch_length": EPOCH}
            schedulers.append(registry.PARAM_SCHEDULERS.build(entry, default_args=default))
        for i in range(steps):
            with wrapper.optim_context(model):
                loss = loss_of(model(rows(i, dist.get_rank())))
            wrapper.update_params(loss)
            for scheduler in schedulers:
                if not scheduler.by_epoch or (row.get("epochs") and (i + 1) % EPOCH == 0):
                    scheduler.step()
    return len(wrapper.optimizer.optim.state)


def by_chain(name, model):
    row, (steps, _) = recipes()[name], length(name)
    lengths = {"max_epochs": row.get("epochs"), "max_iters": row.get("iters"), "epoch_length": EPOCH}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # keys of layers that this model has not
        updater = mmengine.from_config(model, shared_out(name), row["param_scheduler"], **lengths, strict=False)
    for i in range(steps):
        with updater.context():
            loss = loss_of(model(rows(i, dist.get_rank())))
        updater.update(loss)
    return str(updater.explain())


def compared(name, world):
    """Both runs from one start: each rank's weights, and what says that state is shared out."""
    start, theirs, ours = made(), made(), made()
    tensors, explained = by_mmengine(name, theirs), by_chain(name, ours)
    weights = [{n: p.detach().clone() for n, p in one.module.named_parameters()} for one in (start, theirs, ours)]
    return {"weights": weights, "tensors": tensors, "explained": explained}


def recipes_on_ranks():
    return {("recipe", name): (compared, name) for name in RECIPES} if FOLDER.is_dir() else {}
