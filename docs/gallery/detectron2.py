"""detectron2's Mask R-CNN, schedule 1x: https://github.com/facebookresearch/detectron2.

The warm-up is a straight line to the value that the main schedule has where the line ends, so the two meet, whatever
that schedule is. The parameters of norms do not decay.
"""

import gradchain as gch

settings = {
    "lr": 0.02,
    "drops": (60_000, 80_000),
    "gamma": 0.1,
    "warmup": 1000,
    "warmup_factor": 0.001,
    "momentum": 0.9,
    "weight_decay": 1e-4,
}


def warmed_up(main, s=settings):
    """The main schedule with its first updates replaced by a line."""
    line = gch.linear(s["warmup_factor"] * main(0), main(s["warmup"]), s["warmup"])
    return gch.join((0, s["warmup"], line), (s["warmup"], None, main), absolute=True)


def chain(s=settings):
    lr = warmed_up(gch.schedules.multi_step(s["lr"], s["drops"], s["gamma"]), s)
    return gch.sgd(lr, momentum=s["momentum"], weight_decay=gch.multiply(s["weight_decay"], (gch.norm, 0.0)))


def train(model, batches, loss, s=settings):
    updater = chain(s).bind(model)
    for batch in batches:
        updater.update(loss(model, batch))
    return updater
