"""A chain on ranks that share its state out (ZeRO): `torchrun --nproc-per-node 2 docs/examples/torchrun_zero.py`."""

import os
import tempfile

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import gradchain as gch

dist.init_process_group("gloo")  # "nccl" where each rank has a GPU
batches = torch.randn(40, 32, 16, generator=torch.Generator().manual_seed(0))


def build(seed):
    torch.manual_seed(seed)
    model = DistributedDataParallel(torch.nn.Linear(16, 1))
    chain = gch.chain(gch.accumulate(2), gch.clip_by_norm(1.0), gch.adamw(gch.cosine(1e-2, 1e-4, 20)))
    return model, chain.bind(model, zero_redundancy=True)


def train(model, updater, until):
    while updater.num_micro < until:
        x = batches[updater.num_micro].chunk(dist.get_world_size())[dist.get_rank()]  # this rank's rows
        with updater.context():  # no reduction inside a window
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        updater.update(loss)


(model, updater), (resumed, again) = build(1), build(2)
train(model, updater, 21)  # broken off inside a window
path = os.path.join(tempfile.gettempdir(), f"gradchain-{os.getppid()}.pt")  # one name on all ranks
updater.save(path)  # all ranks call it; the file has the whole state, for any number of ranks
train(model, updater, 40)
again.load(path)
train(resumed, again, 40)
same = all(map(torch.equal, model.parameters(), resumed.parameters()))
print(f"{again.num_updates} updates, the same: {same}", flush=True)
dist.destroy_process_group()
