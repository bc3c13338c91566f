"""StyleGAN2-ADA at 256², on 8 GPUs: https://github.com/NVlabs/stylegan2-ada-pytorch.

Regularisation is lazy: an update of its own at every 4th or 16th batch, of the loss times that interval. As there are
then r + 1 updates to r batches, the rate is times r / (r + 1), and betas have that power. The average of the generator
has a half-life in images, which grows at first, and is taken once per batch, though the generator is updated twice.
"""

import gradchain as gch

settings = {
    "lr": 2.5e-3,
    "b1": 0.0,
    "b2": 0.99,
    "eps": 1e-8,
    "generator_every": 4,
    "discriminator_every": 16,
    "batch": 64,
    "half_life": 20_000,  # images
    "ramp": 0.05,
    "bound": 1e5,
}


def adam(every, s=settings):
    part = every / (every + 1)
    return gch.chain(
        gch.nan_to_num(nan=0.0, posinf=s["bound"], neginf=-s["bound"]),
        gch.adam(s["lr"] * part, b1=s["b1"] ** part, b2=s["b2"] ** part, eps=s["eps"]),
    )


def generator_chain(s=settings):
    def decay(batches):
        images = min(s["half_life"], batches * s["batch"] * s["ramp"])
        return 0.5 ** (s["batch"] / images) if images else 0.0

    return gch.chain(adam(s["generator_every"], s), gch.average_params(decay, on="batch", buffers="copy"))


def discriminator_chain(s=settings):
    return adam(s["discriminator_every"], s)


def train(generator, discriminator, batches, losses, s=settings):
    g, d = generator_chain(s).bind(generator), discriminator_chain(s).bind(discriminator)
    for i, batch in enumerate(batches):
        g.update(losses["generator"](batch))
        if i % s["generator_every"] == 0:
            g.update(losses["path_length"](batch) * s["generator_every"])
        d.update(losses["discriminator"](batch))
        if i % s["discriminator_every"] == 0:
            d.update(losses["r1"](batch) * s["discriminator_every"])
        g.tick("batch")
    return gch.group(generator=g, discriminator=d)
