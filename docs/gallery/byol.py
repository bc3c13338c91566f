"""BYOL with LARS: https://github.com/google-deepmind/deepmind-research, folder byol.

LARS is written as it reads: decay, a step as long as the weights say, momentum, and the rate last. Biases and the
parameters of norms have neither decay nor that length. The target is an average whose decay goes to 1.
"""

import torch

import gradchain as gch

settings = {
    "base_lr": 0.2,  # for a batch of 256
    "batch": 4096,
    "images": 1_281_167,
    "epochs": 1000,
    "warmup_epochs": 10,
    "momentum": 0.9,
    "weight_decay": 1.5e-6,
    "trust": 1e-3,
    "target": 0.996,
}


def chain(s=settings):
    steps = s["epochs"] * s["images"] // s["batch"]
    warmup = s["warmup_epochs"] * s["images"] // s["batch"]
    lr = gch.schedules.warmup_cosine(0.0, s["base_lr"] * s["batch"] / 256, warmup, steps)
    adapted = gch.chain(
        gch.add_decayed_weights(s["weight_decay"]),
        gch.rules.scale_by_trust_ratio(trust_coefficient=s["trust"]),
    )
    return gch.chain(
        gch.masked(adapted, ~(gch.bias | gch.norm)),
        gch.trace(s["momentum"]),
        gch.scale_by_learning_rate(lr),
        gch.average_params(gch.cosine(s["target"], 1.0, steps)),
    )


def train(online, batches, loss, s=settings):
    updater = chain(s).bind(online)
    for batch in batches:
        target = torch.func.functional_call(online, updater.averages(), (batch,))
        updater.update(loss(online(batch), target.detach()))
    return updater
