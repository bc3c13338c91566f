"""A chain in Lightning: the trainer accumulates and saves; validation runs with the average weights."""

import lightning.pytorch as lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

import gradchain as gch
from gradchain.adapters.lightning import callback


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(8, 1)

    def training_step(self, batch, _):
        x, y = batch
        return torch.nn.functional.mse_loss(self.net(x), y)

    def validation_step(self, batch, _):
        self.log("val_loss", self.training_step(batch, _))

    def configure_optimizers(self):
        tx = gch.chain(gch.clip_by_norm(1.0), gch.adamw(gch.cosine(1e-2, 0.0, 40)), gch.average_params(0.9))
        return tx.bind(self.net).as_optimizer()


x = torch.randn(64, 8)
loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8)
module = Module()
trainer = lightning.Trainer(
    max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False, callbacks=[callback()],
)  # fmt: skip
trainer.fit(module, loader, loader)
print(trainer.global_step, sorted(trainer.callback_metrics))
