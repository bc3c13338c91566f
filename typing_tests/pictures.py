"""Pictures, as users write them: each is a figure of matplotlib's."""

from pathlib import Path
from typing import Any

import torch
from typing_extensions import assert_type

import gradchain as gch

model = torch.nn.Linear(2, 1)
updater = gch.chain(gch.clip_by_norm(1.0), gch.adamw(gch.cosine(1e-3, 0.0, 10))).bind(model)
figure = gch.see.curves(updater)
figure.savefig(Path("curves.png"))
gch.see.curves(gch.adamw(1e-3)).savefig("chain.svg")
gch.see.training("run.jsonl").savefig("run.pdf")
gch.see.training([{"update": 1, "loss": 0.5}], width=6.0, title="A run").suptitle("A run")
gch.see.settings(updater).savefig("settings.png")
shared: Any = gch.adamw(1e-3).bind(torch.nn.parallel.DistributedDataParallel(model), zero_redundancy=True)
assert_type(gch.adamw(1e-3).bind(model, zero_redundancy=False), gch.Updater)
