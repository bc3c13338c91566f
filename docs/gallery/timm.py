"""timm's train.py with LAMB, as ResNet strikes back has it (A2): https://arxiv.org/abs/2110.00476.

The script: https://github.com/huggingface/pytorch-image-models. Windows of micro-batches end with the epoch: the last
one is the mean over what it has. Vectors have neither decay nor a trust ratio. The gradient's norm is held below 1.
"""

import gradchain as gch

settings = {
    "lr": 5e-3,
    "warmup_lr": 1e-5,
    "min_lr": 0.0,
    "warmup_epochs": 5,
    "epochs": 300,
    "weight_decay": 0.02,
    "eps": 1e-6,
    "clip": 1.0,
    "micro_batches": 4,
    "average": 0.9998,
}


def chain(s=settings):
    warmup = s["warmup_epochs"]
    line, cosine = gch.linear(s["warmup_lr"], s["lr"], warmup), gch.cosine(s["lr"], s["min_lr"], s["epochs"])
    decayed = gch.chain(gch.add_decayed_weights(s["weight_decay"]), gch.rules.scale_by_trust_ratio())
    return gch.chain(
        gch.accumulate(s["micro_batches"]),
        gch.clip_by_norm(s["clip"], eps=0.0),
        gch.scale_by_adam(eps=s["eps"]),
        gch.masked(decayed, gch.min_ndim(2)),
        gch.scale_by_learning_rate(gch.by("epoch", gch.join((0, warmup, line), (warmup, None, cosine), absolute=True))),
        gch.average_params(s["average"]),
    )


def train(model, epochs, loss, s=settings):
    updater = chain(s).bind(model)
    for batches in epochs:
        for i, batch in enumerate(batches, 1):
            updater.update(loss(model, batch), last=i == len(batches))
        updater.tick("epoch")
    return updater
