"""SAC: https://github.com/vwxyzjn/cleanrl, sac_continuous_action.py.

Three chains with rhythms of their own: two critics as one model, the actor, and the temperature, which is one tensor.
The targets are the critics' average. The actor's loss runs through the critics, and leaves nothing in them.
"""

import torch

import gradchain as gch

settings = {"critic_lr": 1e-3, "actor_lr": 3e-4, "tau": 0.005, "actor_every": 2}


def critic_chain(s=settings):
    return gch.chain(gch.adam(s["critic_lr"]), gch.average_params(1 - s["tau"]))


def actor_chain(s=settings):
    return gch.adam(s["actor_lr"])


def temperature_chain(s=settings):
    return gch.adam(s["critic_lr"])


def train(critics, actor, log_alpha, batches, losses, s=settings):
    q, pi = critic_chain(s).bind(critics), actor_chain(s).bind(actor)
    alpha = temperature_chain(s).bind({"log_alpha": log_alpha})

    def targets(x):
        return torch.func.functional_call(critics, q.averages(), (x,))

    for i, batch in enumerate(batches):
        q.update(losses["critic"](batch, targets))
        if i % s["actor_every"] == 0:
            for _ in range(s["actor_every"]):  # to make up for the ones left out
                pi.update(losses["actor"](batch))
                alpha.update(losses["temperature"](batch))
    return gch.group(critics=q, actor=pi, temperature=alpha)
