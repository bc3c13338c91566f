"""A chain in a loop of Accelerate, which accumulates, clips, logs, and saves all there is."""

import tempfile

import accelerate
import torch
from accelerate.tracking import GeneralTracker, on_main_process

import gradchain as gch
from gradchain.adapters.accelerate import averaged, log


class Prints(GeneralTracker):  # in place of "tensorboard" or "wandb"
    name, requires_logging_directory, tracker = "prints", False, None

    @on_main_process
    def log(self, values, step=None, **kwargs):
        print(step, sorted(values))


accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2, log_with=Prints())
accelerator.init_trackers("example")
model = torch.nn.Linear(8, 1)
updater = gch.chain(gch.clip_by_norm(1.0), gch.adamw(gch.cosine(1e-2, 0.0, 40)), gch.average_params(0.9)).bind(model)
model, optimizer = accelerator.prepare(model, updater.as_optimizer())
for x in torch.randn(16, 4, 8):
    with accelerator.accumulate(model):
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
log(accelerator, optimizer, step=updater.num_updates, loss=loss.item())
folder = tempfile.mkdtemp()
accelerator.save_state(folder)
accelerator.load_state(folder)
with averaged(optimizer):
    print(updater.num_updates, model(torch.ones(1, 8)).shape)
