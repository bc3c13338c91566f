"""CLIP: https://github.com/mlfoundations/open_clip.

Update t of the warm-up has the rate lr (t + 1) / W. The temperature's logarithm is clamped after each update, as a
rule that owns the weight: it lies in its bounds to the last bit.
"""

import math

import gradchain as gch

settings = {
    "lr": 5e-4,
    "warmup": 10_000,
    "steps": 80_000,
    "b1": 0.9,
    "b2": 0.98,
    "eps": 1e-6,
    "weight_decay": 0.2,
    "largest_logit_scale": math.log(100),
}


def chain(s=settings):
    warmup = gch.linear(s["lr"] / s["warmup"], s["lr"], s["warmup"] - 1).take(s["warmup"])
    lr = warmup.then(gch.cosine(s["lr"], 0.0, s["steps"] - s["warmup"]))
    plain = gch.ndim(0) | gch.ndim(1)  # the script goes by names too: bn, ln, bias and logit_scale
    return gch.chain(
        gch.scale_by_adam(b1=s["b1"], b2=s["b2"], eps=s["eps"]),
        gch.add_decayed_weights(gch.multiply(s["weight_decay"], (plain, 0.0))),
        gch.scale_by_learning_rate(lr),
        gch.project(lambda w: w.clamp(0.0, s["largest_logit_scale"]), gch.named("logit_scale")),
    )


def train(model, batches, loss, s=settings):
    updater = chain(s).bind(model)
    for batch in batches:
        updater.update(loss(model, batch))
    return updater
