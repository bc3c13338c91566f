"""Runs of other people's trainers, and the loop by hand that each is held against."""

import contextlib
import warnings

import pytest
import torch
from adapters.trainer_chains import batches, loss_of, model_of
from torch.utils.data import DataLoader

DATA = batches(24)
TURNED = 3
"""At which step a run is given an override."""


def ours(make, data, every=1, clip=None, rate=None, dtype=torch.float32, autocast=None, loss_of=loss_of, turned=None):
    """What a hand-written loop with the Updater comes to; the trainer averages `every` gradients, and clips."""
    model = model_of().to(dtype)
    updater = make().bind(model)
    under = contextlib.nullcontext() if autocast is None else torch.autocast("cpu", autocast)
    for start in range(0, len(data), every):
        group = data[start : start + every]
        if rate is not None:
            updater.override("learning_rate", rate(start // every))
        if turned is not None and start == TURNED * every:
            updater.override(**turned)
        model.zero_grad()
        for batch in group:
            with under:
                loss = loss_of(model, batch.to(dtype))
            (loss / every).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        updater.step()
    return model, updater


def gap(one, other):
    return max(float((a - b).detach().abs().max()) for a, b in zip(one.parameters(), other.parameters(), strict=True))


# Lightning


def lightning_module(make, seed=0, decay=None, manual=False, by_step=False, turned=None):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model_of(seed)
            self.automatic_optimization = not manual

        def training_step(self, batch, _):
            step = self.trainer.global_step
            if turned is not None and step == TURNED:
                self.trainer.optimizers[0].updater.override(**turned)
            if by_step:  # a plain loader starts anew where an epoch was broken off
                batch = DATA[step].to(self.model[0].weight.dtype)
            if not manual:
                return loss_of(self.model, batch)
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss_of(self.model, batch))
            optimizer.step()
            return None

        def configure_optimizers(self):
            optimizer = make().bind(self.model).as_optimizer()
            if decay is None:
                return optimizer
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    return Module()


def fit(module, folder, steps, resume=None, **options):
    lightning = pytest.importorskip("lightning.pytorch")
    trainer = lightning.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, DataLoader(DATA, batch_size=None), ckpt_path=resume, weights_only=True if resume else None)
    return trainer


# Accelerate


def widened_loss_of(model, batch):
    """As where Accelerate was asked for bf16: what a model gives becomes float32."""
    return (model(batch).float() - batch.sum(1, keepdim=True)).square().mean()


def accelerated(make, every=1, seed=0, decay=None, **options):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=every, **options)
    model = model_of(seed)
    optimizer = make().bind(model).as_optimizer()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay or 1.0)
    return accelerator, *accelerator.prepare(model, optimizer, scheduler)


def accelerated_steps(accelerator, model, optimizer, scheduler, data, clip=None, turned=None):
    for number, batch in enumerate(data):
        if turned is not None and number == TURNED:
            optimizer.optimizer.updater.override(**turned)
        with accelerator.accumulate(model):
            with accelerator.autocast():
                loss = loss_of(model, batch)
            accelerator.backward(loss)
            if clip is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


# the Trainer of transformers


def hf_trainer(make, folder, steps, seed=0, every=1, decay=0.95, turned=None, **options):
    """The model, and its trainer; the model notes the batches it trains on, whose order is the trainer's."""
    transformers = pytest.importorskip("transformers")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.seen = model_of(seed), []

        def forward(self, x):
            self.seen.append(x.detach())
            return {"loss": loss_of(self.model, x)}

    net = Net()
    optimizer = make().bind(net).as_optimizer()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=8, gradient_accumulation_steps=every,
        save_strategy="steps", save_steps=5, report_to=[], use_cpu=True, disable_tqdm=True, max_grad_norm=0.0,
        dataloader_pin_memory=False, logging_strategy="no", remove_unused_columns=False, **options,
    )  # fmt: skip
    rows = torch.cat(DATA)
    data = [{"x": row} for row in rows]

    class Turns(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **given):
            if turned is not None and state.global_step == TURNED:
                optimizer.updater.override(**turned)

    return net, transformers.Trainer(
        net, arguments, train_dataset=data, optimizers=(optimizer, scheduler), callbacks=[Turns()]
    )
