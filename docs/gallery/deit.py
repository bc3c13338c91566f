"""DeiT: ViT-B from scratch, https://github.com/facebookresearch/deit.

The rate changes once per epoch. The script tells its scheduler the number of the epoch that is over, so the first two
epochs have the first rate: epoch e has the rate of e - 1.
"""

import torch

import gradchain as gch

settings = {
    "base_lr": 5e-4,  # for a batch of 512
    "batch": 1024,
    "warmup_lr": 1e-6,
    "min_lr": 1e-5,
    "warmup_epochs": 5,
    "epochs": 300,
    "weight_decay": 0.05,
    "average": 0.99996,
}


def rate(s=settings):
    """By epoch: a line, then the cosine that began with the line, not after it."""
    peak, warmup = s["base_lr"] * s["batch"] / 512, s["warmup_epochs"]
    line, cosine = gch.linear(s["warmup_lr"], peak, warmup), gch.cosine(peak, s["min_lr"], s["epochs"])
    return gch.join((1, None, gch.join((0, warmup, line), (warmup, None, cosine), absolute=True)))


def chain(s=settings):
    plain = gch.ndim(1) | gch.named("pos_embed") | gch.named("cls_token")
    return gch.chain(
        gch.amp_scale(),
        gch.scale_by_adam(),
        gch.add_decayed_weights(gch.multiply(s["weight_decay"], (plain, 0.0))),
        gch.scale_by_learning_rate(gch.by("epoch", rate(s))),
        gch.average_params(s["average"]),
    )


def train(model, epochs, loss, s=settings):
    updater = chain(s).bind(model, autocast=torch.float16)
    for batches in epochs:
        for batch in batches:
            with updater.context():
                value = loss(model, batch)
            updater.update(value)
        updater.tick("epoch")
    return updater
