"""YOLOv5: https://github.com/ultralytics/yolov5.

During the warm-up, which is counted in micro-batches, windows grow from one micro-batch to four, biases come down to
the rate that all others come up to, which moves itself, and momentum rises. Gradients of a window are summed. A window
that an epoch leaves open is dropped, and the next one is as much shorter.
"""

import bisect
import math

import torch

import gradchain as gch

settings = {
    "lr": 0.01,
    "final": 0.01,  # of the rate, at the last epoch
    "epochs": 300,
    "batches_per_epoch": 7393,
    "batch": 16,
    "nominal_batch": 64,
    "warmup_epochs": 3.0,
    "warmup_bias_lr": 0.1,
    "momentum": (0.8, 0.937),
    "weight_decay": 5e-4,
    "clip": 10.0,
    "average": 0.9999,
    "average_ramp": 2000,
}


def window(warmup, full):
    """How many micro-batches a window has that opens at i: the script's count to its end does not see epochs."""
    ends, want = [-1], gch.linear(1.0, full, warmup)
    for i in range(warmup + 1):
        if i - ends[-1] >= max(1, round(want(i))):
            ends.append(i)
    last, every = ends[-1], max(1, round(full))

    def length(i):
        return ends[bisect.bisect_left(ends, i)] + 1 - i if i <= last else every - (i - last - 1) % every

    return length


def chain(s=settings):
    warmup = max(round(s["warmup_epochs"] * s["batches_per_epoch"]), 100)
    full = s["nominal_batch"] / s["batch"]
    ramp = gch.by("micro", gch.linear(0.0, 1.0, warmup))
    main = s["lr"] * gch.by("epoch", gch.linear(1.0, s["final"], s["epochs"]))
    decay = s["weight_decay"] * s["batch"] * max(round(full), 1) / s["nominal_batch"]
    return gch.chain(
        gch.accumulate(gch.by("micro", window(warmup, full)), reduce="sum"),
        gch.amp_scale(),
        gch.clip_by_norm(s["clip"]),
        gch.add_decayed_weights(gch.multiply(decay, (gch.bias | gch.norm, 0.0))),
        gch.trace(gch.by("micro", gch.linear(*s["momentum"], warmup)), nesterov=True),
        gch.scale_by_learning_rate(
            gch.choose((gch.bias, s["warmup_bias_lr"] * (1.0 - ramp) + main * ramp), rest=main * ramp)
        ),
        gch.average_params(
            lambda t: s["average"] * (1 - math.exp(-(t + 1) / s["average_ramp"])), buffers="average"
        ),
    )  # fmt: skip


def train(model, epochs, loss, s=settings):
    updater = chain(s).bind(model, autocast=torch.float16)
    for batches in epochs:
        for batch in batches:
            with updater.context():
                value = loss(model, batch)
            updater.update(value)
        updater.zero_grad()  # what is left of a window
        updater.tick("epoch")
    return updater
