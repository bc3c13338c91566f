"""A physics-informed network: https://github.com/PredictiveIntelligenceLab/jaxpi, its Allen-Cahn example.

Each loss has a weight that makes the norms of their gradients alike: the mean norm over its own, a moving average of
which is taken now and then. The chain is Adam at a rate that falls by a constant factor.
"""

import torch

import gradchain as gch

settings = {
    "lr": 1e-3,
    "factor": 0.9,
    "factor_steps": 2000,
    "b1": 0.9,
    "b2": 0.999,
    "eps": 1e-8,
    "weights_momentum": 0.9,
    "weights_every": 1000,
}


def chain(s=settings):
    lr = gch.schedules.exponential(s["lr"], s["factor"], s["factor_steps"])
    return gch.adam(lr, b1=s["b1"], b2=s["b2"], eps=s["eps"])


def balanced(model, losses, weights, stays):
    """The moving average of mean norm / norm, for the gradient of each loss."""

    def norm(loss):
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        return torch.nn.utils.get_total_norm(torch.autograd.grad(loss, [*model.parameters()], **options)).item()

    norms = {k: norm(loss) for k, loss in losses.items()}
    mean = sum(norms.values()) / len(norms)
    return {k: stays * weights[k] + (1 - stays) * mean / norm for k, norm in norms.items()}


def train(model, batches, losses, s=settings):
    updater = chain(s).bind(model)
    weights = dict.fromkeys(losses(model, batches[0]), 1.0)
    for i, batch in enumerate(batches):
        parts = losses(model, batch)
        if i % s["weights_every"] == 0:
            weights = balanced(model, parts, weights, s["weights_momentum"])
        updater.update(sum(weights[k] * loss for k, loss in parts.items()))
    return updater
