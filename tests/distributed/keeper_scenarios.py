"""Scenarios of a Checkpointer on two ranks under DDP."""

from __future__ import annotations

import os
import signal

import torch
import torch.distributed as dist
from ddp_state import shared_folder
from ddp_windows import plain_chain
from little_task import loss_of, net, rows, weights
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_ranks import Scenarios, sentence

import gradchain as gch
from gradchain.updater import sealed

scenario = Scenarios()


def training(folder, rank, stop=None, **given):
    """Each rank with its share and its draws, up to a batch or to the end."""
    torch.manual_seed(rank)  # dropout differs
    model = net()
    ddp = DistributedDataParallel(nn.Sequential(model, nn.Dropout(0.2)))
    torch.manual_seed(rank)
    updater = plain_chain(2).bind(ddp)
    data = torch.stack([rows(micro, 0, 1)[0] for micro in range(22)])
    loader = torch.utils.data.DataLoader(data, 2, sampler=gch.loop.sampler(data, seed=1))
    with gch.Checkpointer(folder, updater=updater, loader=loader, best=("drawn", "min"), **given) as keeper:
        found = keeper.resume()
        for batch in keeper.batches(2):
            with updater.context():
                loss = loss_of(ddp(batch))
            updater.update(loss)
            keeper.step(drawn=torch.rand(()), micro=updater.num_micro)
            if updater.num_micro == stop:
                break
    return {"weights": weights(model), "draws": torch.get_rng_state(), "found": found, "micro": updater.num_micro}


@scenario
def resumed(rank):
    """Broken off in mid-epoch, in the foreground and in the background."""
    folder = shared_folder("keeper")
    out = {"whole": training(folder / "whole", rank, every=1)}
    for background in (False, True):
        there = folder / str(background)
        training(there, rank, stop=7, every=1, background=background)
        dist.barrier()
        out[background] = training(there, rank, every=1, background=background)
        dist.barrier()
        out[background]["files"] = sorted(path.name for path in there.iterdir())
    return out


@scenario
def a_signal_on_one_rank(rank):
    """Both save at the same update, and each calls its handler."""
    folder, called = shared_folder("signal"), []
    before = signal.signal(signal.SIGTERM, lambda number, frame: called.append(number))
    model = net()
    ddp = DistributedDataParallel(model)
    updater = gch.sgd(0.01).bind(ddp)
    keeper = gch.Checkpointer(folder, updater=updater)
    saved = []
    for micro in range(4):
        updater.update(loss_of(ddp(rows(micro, rank, 2)[0])))
        if micro == 2 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        saved.append(keeper.step() is not None)
    keeper.close()
    signal.signal(signal.SIGTERM, before)
    return {"saved": saved, "called": called}


@scenario
def a_failure_of_the_first_rank(rank):
    """All hear of it, and go on."""
    folder = shared_folder("failure")
    model = net()
    ddp = DistributedDataParallel(model)
    updater = gch.sgd(0.01).bind(ddp)
    keeper, write = gch.Checkpointer(folder, updater=updater), sealed.write

    def fail(path, put):
        raise OSError(28, "No space left on device")

    sealed.write = fail
    said = sentence((OSError, RuntimeError), keeper.save)
    sealed.write = write
    path = keeper.save()
    dist.barrier()
    keeper.close()
    return {"said": said, "there": path.exists()}


@scenario
def a_run_that_diverges_on_one_rank(rank):
    """The loss that is looked at is the mean over ranks: both raise at the same update, with the same file."""
    folder = shared_folder("diverged")
    model = net()
    ddp = DistributedDataParallel(model)
    watch = gch.guard(max_consecutive=1, loss=2.0, warmup=4, last_good=lambda: keeper.last_good)
    updater = gch.chain(watch, gch.sgd(1e-4)).bind(ddp)
    keeper = gch.Checkpointer(folder, updater=updater, every=2)
    for micro in range(12):
        loss = loss_of(ddp(rows(micro, rank, 2)[0]))
        try:
            updater.update(loss * 1000 if rank == 1 and micro >= 7 else loss)
        except gch.Diverged as error:
            keeper.close()
            return {"micro": micro, "back": error.last_good, "weights": weights(model)}
        keeper.step()
    return {}
