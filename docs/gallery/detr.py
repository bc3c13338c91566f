"""DETR: https://github.com/facebookresearch/detr.

A tenth of the rate for the backbone, a tight clip, one drop. All parameters decay.
"""

import gradchain as gch

settings = {"lr": 1e-4, "lr_backbone": 1e-5, "drop": 200, "weight_decay": 1e-4, "clip": 0.1}


def chain(s=settings):
    backbone = gch.named("*backbone*"), s["lr_backbone"] / s["lr"]
    lr = gch.by("epoch", gch.schedules.step_decay(s["lr"], s["drop"]))
    return gch.chain(
        gch.clip_by_norm(s["clip"]),
        gch.scale_by_adam(),
        gch.add_decayed_weights(s["weight_decay"]),
        gch.scale_by_learning_rate(gch.multiply(lr, backbone)),
    )


def train(model, epochs, loss, s=settings):
    updater = chain(s).bind(model)
    for batches in epochs:
        for batch in batches:
            updater.update(loss(model, batch))
        updater.tick("epoch")
    return updater
