"""nanoGPT: GPT-2 with 124 million parameters, https://github.com/karpathy/nanoGPT.

40 micro-batches to an update, a clip of the true gradient, decay for matrices alone, and a warm-up that does not begin
at 0: update t of the first W has the rate lr (t + 1) / (W + 1).
"""

import torch

import gradchain as gch

settings = {
    "lr": 6e-4,
    "min_lr": 6e-5,
    "warmup": 2000,
    "steps": 600_000,
    "b1": 0.9,
    "b2": 0.95,
    "weight_decay": 0.1,
    "clip": 1.0,
    "micro_batches": 40,
}


def chain(s=settings):
    warmup = gch.linear(s["lr"] / (s["warmup"] + 1), s["lr"], s["warmup"])
    lr = warmup.then(gch.cosine(s["lr"], s["min_lr"], s["steps"] - s["warmup"]))
    return gch.chain(
        gch.accumulate(s["micro_batches"]),
        gch.amp_scale(),
        gch.clip_by_norm(s["clip"]),
        gch.scale_by_adam(b1=s["b1"], b2=s["b2"]),
        gch.add_decayed_weights(gch.multiply(s["weight_decay"], (~gch.min_ndim(2), 0.0))),
        gch.scale_by_learning_rate(lr),
    )


def train(model, batches, loss, s=settings):
    updater = chain(s).bind(model, autocast=torch.float16)  # in bfloat16 leave amp_scale out
    for batch in batches:
        with updater.context():
            value = loss(model, batch)
        updater.update(value)
    return updater
