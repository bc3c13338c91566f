"""A diffusion model with its average's rhythm: https://github.com/lucidrains/denoising-diffusion-pytorch.

The average is taken at every tenth update. Up to the hundredth it is a copy, and then it forgets more slowly from
time to time: what stays is 1 - (updates since)^(-2/3), up to 0.995.
"""

import gradchain as gch

settings = {
    "lr": 1e-4,
    "b1": 0.9,
    "b2": 0.99,
    "clip": 1.0,
    "micro_batches": 1,
    "average": 0.995,
    "average_every": 10,
    "average_after": 100,
    "power": 2 / 3,
}


def chain(s=settings):
    def stays(t):
        since = t - s["average_after"]
        return min(s["average"], 1 - (1 + since) ** -s["power"]) if since > 0 else 0.0

    return gch.chain(
        gch.accumulate(s["micro_batches"]),
        gch.clip_by_norm(s["clip"]),
        gch.adam(s["lr"], b1=s["b1"], b2=s["b2"]),
        gch.average_params(stays, every=s["average_every"], buffers="average"),
    )


def train(model, batches, loss, s=settings):
    updater = chain(s).bind(model)
    for batch in batches:
        updater.update(loss(model, batch))
    return updater
