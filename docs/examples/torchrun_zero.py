"""A chain on several ranks whose state they share out (ZeRO): `torchrun --nproc-per-node 2 docs/examples/torchrun_zero.py`.

The file that all ranks save has the whole state: a run goes on from it on any number of ranks.
"""

import os
import tempfile

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import gradchain as gch

dist.init_process_group("gloo")  # "nccl" where each rank has a GPU
rank, ranks = dist.get_rank(), dist.get_world_size()
points = torch.randn(40, 32, 16, generator=torch.Generator().manual_seed(0))  # 40 batches, the same on every rank


def build():
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.GELU(), torch.nn.Linear(64, 1))
    model = DistributedDataParallel(net)
    chain = gch.chain(gch.accumulate(2), gch.clip_by_norm(1.0), gch.adamw(gch.cosine(1e-2, 1e-4, 20)))
    return model, chain.bind(model, zero_redundancy=True)


def train(model, updater, until):
    while updater.num_micro < until:
        x = points[updater.num_micro].chunk(ranks)[rank]  # this rank's rows of the batch
        with updater.context():  # no reduction inside a window
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        updater.update(loss)


path = os.path.join(tempfile.gettempdir(), f"gradchain-{os.environ['TORCHELASTIC_RUN_ID']}-{os.getppid()}.pt")
model, updater = build()
train(model, updater, 21)  # broken off inside a window
updater.save(path)  # all ranks call it
train(model, updater, 40)
resumed, again = build()
again.load(path)
train(resumed, again, 40)
same = all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))
if rank == 0:
    os.remove(path)
    print(f"{again.num_updates} updates on {ranks} ranks, resumed bit for bit: {same}")
dist.destroy_process_group()
