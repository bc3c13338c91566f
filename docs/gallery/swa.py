"""SWA, VGG-16 on CIFAR-100: https://github.com/timgaripov/swa.

The rate is flat, falls on a line, and is flat again; from then on the weights at the ends of epochs are averaged, all
alike. Before the average is evaluated its batch norms see the data once.
"""

import gradchain as gch

settings = {"lr": 0.05, "swa_lr": 0.01, "swa_start": 161, "epochs": 300, "momentum": 0.9, "weight_decay": 5e-4}


def chain(s=settings):
    flat, low = 0.5 * s["swa_start"], 0.9 * s["swa_start"]
    lr = gch.schedules.piecewise((flat, s["lr"]), (low, s["swa_lr"]), shape="linear")
    return gch.chain(
        gch.sgd(gch.by("epoch", lr), momentum=s["momentum"], weight_decay=s["weight_decay"]),
        gch.average_params("mean", on="average"),
    )


def train(model, loader, loss, s=settings):
    updater = chain(s).bind(model)
    for epoch in range(1, s["epochs"] + 1):
        for batch in loader:
            updater.update(loss(model, batch))
        updater.tick("epoch")
        if epoch >= s["swa_start"]:
            updater.tick("average")
            updater.update_batch_norm(loader)
    return updater
