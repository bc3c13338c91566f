"""LoRA+: https://github.com/nikhil-ghosh-berkeley/loraplus.

B, which starts at 0, has 16 times the rate of A, and so have vectors; LoRA's embeddings have a rate of their own.
Biases and the parameters of norms do not decay. What is frozen is left alone without being named.
"""

import gradchain as gch

settings = {"lr": 1e-4, "ratio": 16.0, "embedding_lr": 1e-6, "weight_decay": 0.01}


def chain(s=settings):
    words = gch.named("*lora_embedding_*")
    lr = gch.choose(
        (words, s["embedding_lr"]),
        (gch.named("*lora_B*") | gch.ndim(1), s["lr"] * s["ratio"]),
        rest=s["lr"],
    )
    return gch.chain(
        gch.scale_by_adam(),
        gch.add_decayed_weights(gch.multiply(s["weight_decay"], (gch.bias | gch.norm, 0.0))),
        gch.scale_by_learning_rate(lr),
    )


def train(model, batches, loss, s=settings):
    updater = chain(s).bind(model)
    for batch in batches:
        updater.update(loss(model, batch))
    return updater
