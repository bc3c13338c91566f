"""WGAN-GP: five updates of the critic to one of the generator, https://github.com/caogang/wgan-gp.

The critic's gradient is that of three losses, each with a backward of its own. What the generator's loss leaves in the
critic's gradients is cleared before the critic's next backward.
"""

import gradchain as gch

settings = {"lr": 1e-4, "b1": 0.5, "b2": 0.9, "critic_updates": 5, "penalty": 10.0}


def chain(s=settings):
    """The same for both."""
    return gch.adam(s["lr"], b1=s["b1"], b2=s["b2"])


def train(generator, critic, batches, noise, penalty, s=settings):
    g, d = chain(s).bind(generator), chain(s).bind(critic)
    for i, real in enumerate(batches, 1):
        fake = generator(noise(len(real))).detach()
        d.backward(-critic(real).mean())
        d.backward(critic(fake).mean())
        d.backward(s["penalty"] * penalty(critic, real, fake))
        d.step()
        if i % s["critic_updates"] == 0:
            g.update(-critic(generator(noise(len(real)))).mean())
    return gch.group(generator=g, critic=d)
