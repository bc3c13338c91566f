"""SimSiam: https://github.com/facebookresearch/simsiam.

The encoder's rate is a cosine over the epochs; the predictor keeps the first one.
"""

import gradchain as gch

settings = {"base_lr": 0.05, "batch": 512, "epochs": 100, "momentum": 0.9, "weight_decay": 1e-4}


def chain(s=settings):
    first = s["base_lr"] * s["batch"] / 256
    lr = gch.choose((gch.named("predictor.*"), first), rest=gch.by("epoch", gch.cosine(first, 0.0, s["epochs"])))
    return gch.sgd(lr, momentum=s["momentum"], weight_decay=s["weight_decay"])


def train(model, epochs, loss, s=settings):
    updater = chain(s).bind(model)
    for batches in epochs:
        for batch in batches:
            updater.update(loss(model, batch))
        updater.tick("epoch")
    return updater
