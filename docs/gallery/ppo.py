"""PPO: https://github.com/vwxyzjn/cleanrl, ppo.py.

The rate falls by iteration: one rollout, and all the updates that are made of it, which may be fewer where a bound on
the divergence ends them. So it reads a clock of its own.
"""

import gradchain as gch

settings = {"lr": 2.5e-4, "eps": 1e-5, "clip": 0.5, "iterations": 976, "epochs": 4}


def chain(s=settings):
    lr = gch.by("iteration", gch.linear(s["lr"], 0.0, s["iterations"]))
    return gch.chain(gch.clip_by_norm(s["clip"]), gch.adam(lr, eps=s["eps"]))


def train(agent, rollouts, loss, s=settings):
    updater = chain(s).bind(agent)
    for minibatches in rollouts:
        for _ in range(s["epochs"]):
            for minibatch in minibatches:
                updater.update(loss(agent, minibatch))
        updater.tick("iteration")
    return updater
