"""A chain in a loop of Accelerate, which accumulates, clips, and saves all there is."""

import tempfile

import accelerate
import torch

import gradchain as gch

accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
model = torch.nn.Linear(8, 1)
updater = gch.chain(gch.adamw(gch.cosine(1e-2, 0.0, 40)), gch.average_params(0.9)).bind(model)
model, optimizer = accelerator.prepare(model, updater.as_optimizer())
for x in torch.randn(16, 4, 8):
    with accelerator.accumulate(model):
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
folder = tempfile.mkdtemp()
accelerator.save_state(folder)
accelerator.load_state(folder)
with updater.averaged():
    print(updater.num_updates, model(torch.ones(1, 8)).shape)
