"""ConvNeXt-L, fine-tuning: https://github.com/facebookresearch/ConvNeXt.

Twelve groups of blocks have rates of their own. Rate and decay are cosines over the updates, and the decay of what has
none stays at none. The average has the buffers too.
"""

import gradchain as gch

settings = {
    "lr": 5e-5,
    "min_lr": 1e-6,
    "epochs": 30,
    "updates_per_epoch": 2502,
    "weight_decay": (1e-8, 1e-9),
    "depths": (3, 3, 27, 3),
    "layer_decay": 0.8,
    "average": 0.9999,
}


def chain(s=settings):
    steps = s["epochs"] * s["updates_per_epoch"]
    deeper = gch.layer_decay(s["layer_decay"], gch.selectors.depth.convnext(s["depths"]))
    return gch.chain(
        gch.scale_by_adam(),
        gch.add_decayed_weights(gch.multiply(gch.cosine(*s["weight_decay"], steps), (gch.ndim(1), 0.0))),
        gch.scale_by_learning_rate(gch.multiply(gch.cosine(s["lr"], s["min_lr"], steps), deeper)),
        gch.average_params(s["average"], buffers="average"),
    )


def train(model, batches, loss, s=settings):
    updater = chain(s).bind(model)
    for batch in batches:
        updater.update(loss(model, batch))
    return updater
