"""Schedule-free AdamW on MNIST: https://github.com/facebookresearch/schedule_free, examples/mnist.

No schedule. The model is where gradients are taken; what is evaluated and saved for use is `updater.averaged()`, so
there is no train() and eval() of the optimizer to forget.
"""

import gradchain as gch

settings = {"lr": 2.5e-3, "b1": 0.9, "b2": 0.999, "weight_decay": 0.0, "epochs": 14}


def chain(s=settings):
    return gch.rules.schedule_free_adamw(s["lr"], b1=s["b1"], b2=s["b2"], weight_decay=s["weight_decay"])


def train(model, batches, loss, evaluate, s=settings):
    updater = chain(s).bind(model)
    for _ in range(s["epochs"]):
        for batch in batches:
            updater.update(loss(model, batch))
        with updater.averaged():
            evaluate(model)
    return updater
