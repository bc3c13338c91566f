"""Scenarios: under DDP and FSDP2, micro-batches of weight 0 on one rank or on both, which must not hang the other."""

import torch
from ddp_windows import plain_chain, summed
from fsdp2_scenarios import sharded
from little_task import net, rows, weights
from torch.nn.parallel import DistributedDataParallel
from two_ranks import Scenarios

import gradchain as gch

scenario = Scenarios()

# how many rows each rank counts of each micro-batch; windows are of four
COUNTS = {
    "by turns": lambda micro, rank: 0 if rank == micro % 2 else 2 + micro,
    "opening": lambda micro, rank: 0 if micro % 4 == 0 else 1 + rank,
    "closing": lambda micro, rank: 0 if micro % 4 == 3 else 1 + rank,
    "opening on one": lambda micro, rank: 0 if micro % 4 == 0 and rank == 0 else 2 + micro,
    "closing on one": lambda micro, rank: 0 if micro % 4 == 3 and rank == 1 else 2 + micro,
    "one rank": lambda micro, rank: 0 if rank == 0 else 3 + micro,
    "a window": lambda micro, rank: 0 if micro < 4 else 2 + rank,
    "the last window": lambda micro, rank: 2 + rank if micro < 4 else 0,
    "a window on one": lambda micro, rank: 0 if micro < 4 and rank == 1 else 2 + micro,
}


def loss_of(model, micro, rank, n, finite):
    """The mean over the rows that count: NaN where none does, as cross_entropy has it."""
    loss = summed(model(rows(micro, rank, max(n, 1))))
    return loss * 0 / torch.tensor(float(finite)) if n == 0 else loss / n


def ran(rank, chain, wrap, finite=False):
    results = {}
    for kind, count in COUNTS.items():
        model = net()
        wrapped = wrap(model)
        updater, reasons = chain().bind(wrapped), []
        for micro in range(8):
            n = count(micro, rank)
            with updater.context():
                loss = loss_of(wrapped, micro, rank, n, finite)
            reasons.append(updater.update(loss, weight=torch.tensor(n)).reason)
        results[kind] = {"weights": weights(model), "reasons": reasons}
        updater.state_dict()  # no window is said to be open
    return results


@scenario
def plain(rank):
    return ran(rank, plain_chain, DistributedDataParallel)


@scenario
def static_graph(rank):
    return ran(rank, plain_chain, lambda model: DistributedDataParallel(model, static_graph=True))


@scenario
def bucket_view(rank):
    return ran(rank, plain_chain, lambda model: DistributedDataParallel(model, gradient_as_bucket_view=True))


@scenario
def unused_allowed(rank):
    return ran(rank, plain_chain, lambda model: DistributedDataParallel(model, find_unused_parameters=True))


@scenario
def buffer(rank):
    return ran(rank, lambda: gch.chain(gch.accumulate(4, dtype=torch.float64), gch.clip_by_norm(0.5),
                                       gch.sgd(0.1, momentum=0.9)), DistributedDataParallel)  # fmt: skip


@scenario
def fsdp2(rank):
    return ran(rank, plain_chain, sharded, finite=True)


@scenario
def flushed(rank):
    """A part-filled window of nothing, and one that has something on the second rank."""
    model = net()
    ddp = DistributedDataParallel(model)
    updater, reasons = plain_chain().bind(ddp), []
    for n in (0, 3 * rank):
        for micro in range(2):
            with updater.context():
                loss = loss_of(ddp, micro, rank, n, False)
            updater.update(loss, weight=n)
        reasons.append(updater.flush().reason)
    return {"weights": weights(model), "reasons": reasons}


@scenario
def alone(rank):
    """Without a window a rank of weight 0 has gradients of 0 in the mean over ranks, as it is without weights."""
    model = net()
    ddp = DistributedDataParallel(model)
    updater = gch.sgd(0.1).bind(ddp)
    for micro in range(4):
        n = 0 if rank == 0 else 3
        updater.update(loss_of(ddp, micro, rank, n, False), weight=n)
    return {"weights": weights(model)}
