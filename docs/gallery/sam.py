"""SAM in its adaptive form, a Wide ResNet on CIFAR-10: https://github.com/davda54/sam.

Two passes to a step. In the second the statistics of batch norms rest, which is the closure's to say. The script sets
the rate behind each step, from the epoch, so the first step of an epoch has the rate of the epoch before.
"""

import gradchain as gch

settings = {
    "lr": 0.1,
    "epochs": 200,
    "drops": (0.3, 0.6, 0.8),  # parts of the run
    "gamma": 0.2,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "rho": 2.0,
}


def chain(s=settings):
    drops = tuple(s["epochs"] * part for part in s["drops"])
    lr = gch.by("epoch", gch.schedules.multi_step(s["lr"], drops, s["gamma"]))
    return gch.chain(
        gch.rules.asam(s["rho"], eta=0.0),
        gch.sgd(lr, momentum=s["momentum"], weight_decay=s["weight_decay"]),
    )


def still(model):
    """Batch norms use the batch, and remember nothing of it."""
    for module in model.modules():
        if hasattr(module, "track_running_stats"):
            module.momentum = 0.0


def train(model, epochs, loss, s=settings):
    updater = chain(s).bind(model)
    momenta = {m: m.momentum for m in model.modules() if hasattr(m, "track_running_stats")}
    for epoch, batches in enumerate(epochs):
        for i, batch in enumerate(batches):

            def closure(batch=batch):
                value = loss(model, batch)
                still(model)  # from the second pass on
                return value

            updater.update(closure)
            for module, momentum in momenta.items():
                module.momentum = momentum
            if i == 0 and epoch:
                updater.tick("epoch")
    return updater
