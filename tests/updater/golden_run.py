"""The run of the golden files: `python tests/updater/golden_run.py FILE`, by the code whose format they are in.

It writes FILE after five micro-batches, in the middle of a window, and prints the weights after six more.
"""

import json
import sys
import warnings

import torch
from torch import nn

import gradchain as gch


def run():
    """A model, its updater, and what trains them for a number of micro-batches."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(torch.linspace(-1, 1, p.numel()).double().reshape(p.shape) + i)
    updater = gch.chain(
        gch.accumulate(2),
        gch.clip_by_norm(1.0),
        gch.scale_by_adam(),
        gch.masked(gch.add_decayed_weights(0.1), gch.min_ndim(2)),
        gch.trace(0.5),
        gch.scale_by_learning_rate(gch.linear(0.1, 0.0, 10) * gch.by("epoch", gch.schedules.exponential(1.0, 0.5))),
        gch.average_params(0.9),
    ).bind(model)
    return model, updater


def train(model, updater, first, last):
    """Micro-batches from the first to before the last."""
    for k in range(first, last):
        x = torch.linspace(-1, 1, 6).double().reshape(2, 3) * (k + 1)
        updater.update(model(x).sin().sum())
    return [p.detach().flatten().tolist() for p in model.parameters()]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    model, updater = run()
    train(model, updater, 0, 3)
    updater.tick("epoch")
    updater.override("b1", 0.8)
    train(model, updater, 3, 5)
    updater.save(sys.argv[1], epoch=1)
    print(json.dumps(train(model, updater, 5, 11)))
