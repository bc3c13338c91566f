"""DINO: self-distillation with a teacher that is an average, https://github.com/facebookresearch/dino.

The norm of each tensor is clipped by itself, the last layer rests for the first epoch, decay grows while the rate
falls, and the average's decay goes to 1. The warm-up is one of `linspace`: its last update has the full rate already.
"""

import torch

import gradchain as gch

settings = {
    "base_lr": 5e-4,  # for a batch of 256
    "batch": 512,
    "min_lr": 1e-6,
    "warmup_epochs": 10,
    "epochs": 100,
    "updates_per_epoch": 2502,
    "weight_decay": (0.04, 0.4),
    "clip": 3.0,
    "freeze_epochs": 1,
    "teacher": 0.996,
}


def chain(s=settings):
    peak, n = s["base_lr"] * s["batch"] / 256, s["updates_per_epoch"]
    steps, warmup = s["epochs"] * n, s["warmup_epochs"] * n
    lr = gch.linear(0.0, peak, warmup - 1).take(warmup).then(gch.cosine(peak, s["min_lr"], steps - warmup))
    return gch.chain(
        gch.amp_scale(),
        gch.clip_by_norm(s["clip"], per="tensor"),
        gch.freeze(gch.named("*last_layer*"), until=s["freeze_epochs"] * n),
        gch.scale_by_adam(),
        gch.add_decayed_weights(gch.multiply(gch.cosine(*s["weight_decay"], steps), (gch.ndim(1), 0.0))),
        gch.scale_by_learning_rate(lr),
        gch.average_params(gch.cosine(s["teacher"], 1.0, steps)),
    )


def train(student, batches, loss, s=settings):
    updater = chain(s).bind(student, autocast=torch.float16)
    for batch in batches:
        teacher = torch.func.functional_call(student, updater.averages(), (batch,))
        with updater.context():
            value = loss(student(batch), teacher.detach())
        updater.update(value)
    return updater
