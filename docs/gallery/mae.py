"""MAE, fine-tuning a ViT-B: https://github.com/facebookresearch/mae.

Each layer nearer to the input has 0.65 of the rate of the next, and its floor is multiplied too. Vectors, the class
token and the position embedding do not decay. A window of micro-batches that an epoch leaves open is dropped.
"""

import torch

import gradchain as gch

settings = {
    "base_lr": 5e-4,  # for a batch of 256
    "batch": 1024,
    "min_lr": 1e-6,
    "warmup_epochs": 5,
    "epochs": 100,
    "updates_per_epoch": 1251,
    "micro_batches": 1,
    "weight_decay": 0.05,
    "layers": 12,
    "layer_decay": 0.65,
}


def chain(s=settings):
    peak, n = s["base_lr"] * s["batch"] / 256, s["updates_per_epoch"]
    lr = gch.schedules.warmup_cosine(0.0, peak, s["warmup_epochs"] * n, s["epochs"] * n, end=s["min_lr"])
    deeper = gch.layer_decay(s["layer_decay"], gch.selectors.depth.vit(s["layers"], blocks="blocks"))
    plain = gch.ndim(1) | gch.named("cls_token") | gch.named("pos_embed")
    return gch.chain(
        gch.accumulate(s["micro_batches"]),
        gch.amp_scale(),
        gch.scale_by_adam(),
        gch.add_decayed_weights(gch.multiply(s["weight_decay"], (plain, 0.0))),
        gch.scale_by_learning_rate(gch.multiply(lr, deeper)),
    )


def train(model, epochs, loss, s=settings):
    updater = chain(s).bind(model, autocast=torch.float16)
    for batches in epochs:
        for batch in batches:
            with updater.context():
                value = loss(model, batch)
            updater.update(value)
        updater.zero_grad()  # what is left of a window
    return updater
