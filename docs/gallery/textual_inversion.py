"""Textual inversion: https://github.com/huggingface/diffusers, examples/textual_inversion.

A new word is learned: of the whole embedding, which Adam and its decay would move, only its row changes. The other
rows are written as they were, bit for bit.
"""

import torch

import gradchain as gch

settings = {
    "lr": 5e-4,  # times micro-batches and batch
    "micro_batches": 4,
    "batch": 1,
    "b1": 0.9,
    "b2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.01,
}


def chain(new_words, s=settings):
    def only_new(weight, old):
        rows = torch.zeros(len(weight), 1, dtype=torch.bool)
        rows[new_words] = True
        return torch.where(rows, weight, old)

    lr = s["lr"] * s["micro_batches"] * s["batch"]
    return gch.chain(
        gch.accumulate(s["micro_batches"]),
        gch.adamw(lr, b1=s["b1"], b2=s["b2"], eps=s["eps"], weight_decay=s["weight_decay"]),
        gch.project(only_new),
    )


def train(embedding, new_words, batches, loss, s=settings):
    updater = chain(new_words, s).bind(embedding)
    for batch in batches:
        updater.update(loss(embedding, batch))
    return updater
