"""modded-nanoGPT's speed run: NorMuon for matrices, Adam for the rest, https://github.com/KellerJordan/modded-nanogpt.

The rate follows three stages of the batch size and falls over the last 60 %. Adam's parameters are updated at every
second step, with the sum of two gradients. Muon's momentum rises, and falls again at the end. Adam's decay is by the
square of its rate: the rate itself is in the decay. Not here: the embedding that is untied from the head after two
thirds, the coefficients and factors of each bank, and what else the script does in the fused steps.
"""

import gradchain as gch

settings = {
    "steps": 1270,
    "extension": 15,  # steps after the schedule's end, at its last rate
    "stages": (1.0, 1.52, 1.73),
    "cooldown": 0.6,
    "floor": 0.15,
    "muon": {"lr": 0.023, "b2": 0.9, "weight_decay": 1.2},
    "momentum": {"low": 0.85, "high": 0.95, "warmup": 300, "cooldown": 50},
    "adam": {"lr": 0.008, "eps": 1e-10, "weight_decay": 0.005},
}
BANKS = gch.named("qk_bank") | gch.named("vo_bank") | gch.named("mlp_bank")
HEAD, WORDS = gch.named("lm_head.*"), gch.named("bigram_embed.*")
SCALARS, GATE = gch.named("scalars"), gch.named("smear_gate.*")


def shape(s=settings):
    """The rate's multiplier: the stages, and a straight way from them down to the floor."""
    n, (first, second, third) = s["steps"], s["stages"]
    stages = gch.schedules.piecewise((0, first), (round(n / 3), second), (round(2 * n / 3), third))
    gone = gch.schedules.piecewise((int(n * (1 - s["cooldown"])), 0.0), (n, 1.0), shape="linear")
    return stages * (1.0 - gone) + s["floor"] * gone


def chain(s=settings):
    muon, adam, m, last = s["muon"], s["adam"], s["momentum"], s["steps"] + s["extension"]
    points = (0, m["low"]), (m["warmup"], m["high"]), (last - m["cooldown"], m["high"]), (last, m["low"])
    momentum = gch.schedules.piecewise(*points, shape="linear")
    lr = gch.multiply(adam["lr"] * shape(s), (WORDS, 75.0), (SCALARS, 5.0), (GATE, 0.01))
    decay = adam["lr"] * adam["weight_decay"] * shape(s)
    factors = (HEAD, 150.0), (WORDS, 5.0 * 75.0), (SCALARS | GATE, 0.0)
    return gch.partition(
        ("muon", BANKS, gch.chain(
            gch.rules.scale_by_normuon(momentum, b2=muon["b2"]),
            gch.add_decayed_weights(muon["weight_decay"], by="cautious"),
            gch.scale_by_learning_rate(muon["lr"] * shape(s)),
        )),
        ("adam", gch.rest, gch.chain(
            gch.accumulate(2, reduce="sum"),
            gch.scale_by_adam(
                b1=gch.choose((HEAD, 0.5), (WORDS, 0.75), rest=0.9),
                b2=gch.choose((HEAD | WORDS, 0.95), rest=0.99),
                eps=adam["eps"],
            ),
            gch.add_decayed_weights(gch.multiply(decay, *factors), by="cautious"),
            gch.scale_by_learning_rate(lr),
        )),
    )  # fmt: skip


def train(model, batches, loss, s=settings):
    updater = chain(s).bind(model)
    for batch in batches:
        updater.update(loss(model, batch))
    return updater
