"""A chain in the Trainer of transformers, whose scheduler multiplies the chain's rate."""

import tempfile

import torch
import transformers

import gradchain as gch
from gradchain.adapters.transformers import callback


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(8, 1)

    def forward(self, x, labels):
        out = self.net(x)
        return {"loss": torch.nn.functional.mse_loss(out, labels), "logits": out}


net = Net()
optimizer = gch.chain(gch.adamw(1e-2), gch.average_params(0.9)).bind(net).as_optimizer()
scheduler = transformers.get_linear_schedule_with_warmup(optimizer, 4, 32)
rows = [{"x": x, "labels": x.sum(0, keepdim=True)} for x in torch.randn(64, 8)]
arguments = transformers.TrainingArguments(
    output_dir=tempfile.mkdtemp(), num_train_epochs=4, eval_strategy="epoch", save_strategy="no", report_to=[],
    use_cpu=True, disable_tqdm=True, max_grad_norm=1.0, dataloader_pin_memory=False, remove_unused_columns=False,
)  # fmt: skip
trainer = transformers.Trainer(
    net, arguments, train_dataset=rows, eval_dataset=rows, optimizers=(optimizer, scheduler), callbacks=[callback()]
)
trainer.train()
print(trainer.state.global_step, optimizer.updater.num_updates)
