"""Our chain in other people's trainers, with the packages themselves: equal to our loop, and exact when resumed."""

import warnings

import pytest
import torch
from adapters.trainer_chains import CHAINS, batches, loss_of, model_of, same
from torch.utils.data import DataLoader

import gradchain as gch

DATA = batches(24)
TRAINED = ["constant", "schedule", "window", "averages", "partition", "from_torch", "window and averages"]
chains = pytest.mark.parametrize("make", [pytest.param(CHAINS[name], id=name) for name in TRAINED])


def ours(make, data, every=1, clip=None, seed=0, rate=None):
    """What a hand-written loop with the Updater comes to; the trainer averages `every` gradients, and clips."""
    model = model_of(seed)
    updater = make().bind(model)
    for start in range(0, len(data), every):
        group = data[start : start + every]
        if rate is not None:
            updater.override("learning_rate", rate(start // every))
        model.zero_grad()
        for batch in group:
            (loss_of(model, batch) / every).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        updater.step()
    return model, updater


def gap(one, other):
    return max(float((a - b).detach().abs().max()) for a, b in zip(one.parameters(), other.parameters(), strict=True))


# Lightning


def lightning_module(make, seed=0, decay=None, manual=False, by_step=False):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model_of(seed)
            self.automatic_optimization = not manual

        def training_step(self, batch, _):
            if by_step:  # a plain loader starts anew where an epoch was broken off
                batch = DATA[self.trainer.global_step]
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


@chains
def test_lightning_trains_as_our_loop_does(make, tmp_path):
    module = lightning_module(make)
    trainer = fit(module, tmp_path, 12)
    assert trainer.global_step == 12
    assert same(module.model, ours(make, DATA[:12])[0])


def test_lightning_accumulates_and_clips_and_schedules(tmp_path):
    module = lightning_module(CHAINS["constant"], decay=0.9)
    trainer = fit(module, tmp_path, 8, accumulate_grad_batches=3, gradient_clip_val=0.05)
    expected, _ = ours(CHAINS["constant"], DATA, every=3, clip=0.05, rate=lambda step: 1e-2 * 0.9**step)
    assert trainer.global_step == 8
    assert gap(module.model, expected) < 1e-6


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_lightning_in_other_precisions(precision, tmp_path):
    module = lightning_module(CHAINS["averages"])
    start = model_of()
    trainer = fit(module, tmp_path, 6, precision=precision)
    assert trainer.optimizers[0].updater.num_updates == 6
    assert 0 < gap(module.model.float(), start)


@chains
@pytest.mark.parametrize("cut", [1, 5])
def test_lightning_resumes_bit_for_bit(make, cut, tmp_path):
    whole = lightning_module(make, decay=0.95, by_step=True)
    fit(whole, tmp_path, 10)
    first = lightning_module(make, decay=0.95, by_step=True)
    fit(first, tmp_path, cut).save_checkpoint(tmp_path / "at.ckpt")
    again = lightning_module(make, seed=3, decay=0.95, by_step=True)
    trainer = fit(again, tmp_path, 10, resume=tmp_path / "at.ckpt")
    assert trainer.global_step == 10
    assert same(whole.model, again.model)


@chains
def test_lightning_manual_counts_its_steps(make, tmp_path):
    module = lightning_module(make, manual=True)
    trainer = fit(module, tmp_path, 7)
    assert trainer.global_step == 7 and trainer.optimizers[0].updater.num_micro == 7
    assert same(module.model, ours(make, DATA[:7])[0])


# Accelerate


def accelerated(make, every=1, seed=0, decay=None, **options):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=every, **options)
    model = model_of(seed)
    optimizer = make().bind(model).as_optimizer()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay or 1.0)
    return accelerator, *accelerator.prepare(model, optimizer, scheduler)


def accelerated_steps(accelerator, model, optimizer, scheduler, data, clip=None):
    for batch in data:
        with accelerator.accumulate(model):
            with accelerator.autocast():
                loss = loss_of(model, batch)
            accelerator.backward(loss)
            if clip is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


@chains
@pytest.mark.parametrize("every", [1, 2])
def test_accelerate_trains_as_our_loop_does(make, every):
    run = accelerated(make, every)
    accelerated_steps(*run, DATA[:12])
    expected, updater = ours(make, DATA[:12], every)
    assert run[2].optimizer.updater.num_micro == 12 // every == updater.num_micro
    assert gap(run[1], expected) < 1e-7


def test_accelerate_clips_and_schedules():
    run = accelerated(CHAINS["constant"], 2, decay=0.9)
    accelerated_steps(*run, DATA[:12], clip=0.05)
    expected, _ = ours(CHAINS["constant"], DATA[:12], 2, clip=0.05, rate=lambda step: 1e-2 * 0.9**step)
    assert gap(run[1], expected) < 1e-6


def test_accelerate_under_autocast():
    run = accelerated(CHAINS["averages"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        accelerated_steps(*run, DATA[:6])
    assert run[2].optimizer.updater.num_updates == 6


@chains
@pytest.mark.parametrize("cut", [1, 5])
def test_accelerate_resumes_bit_for_bit(make, cut, tmp_path):
    run = accelerated(make, decay=0.95)
    accelerated_steps(*run, DATA[:cut])
    run[0].save_state(str(tmp_path))
    accelerated_steps(*run, DATA[cut : cut + 7])
    again = accelerated(make, seed=3, decay=0.95)
    again[0].load_state(str(tmp_path))
    accelerated_steps(*again, DATA[cut : cut + 7])
    assert same(run[1], again[1])


# ignite


@chains
def test_ignite_trains_and_resumes(make, tmp_path):
    engine = pytest.importorskip("ignite.engine")
    handlers = pytest.importorskip("ignite.handlers")

    def run(seed, data, resume=None):
        model = model_of(seed)
        optimizer = make().bind(model).as_optimizer()
        trainer = engine.create_supervised_trainer(
            model, optimizer, lambda out, y: (out - y).square().mean(), device="cpu"
        )
        both = {"model": model, "optimizer": optimizer}
        if resume is not None:
            handlers.Checkpoint.load_objects(both, checkpoint=torch.load(resume, weights_only=True))
        trainer.run([(b, b.sum(1, keepdim=True)) for b in data], max_epochs=1)
        torch.save({name: part.state_dict() for name, part in both.items()}, tmp_path / f"{seed}.pt")
        return model

    whole = run(0, DATA[:12])
    assert same(whole, ours(make, DATA[:12])[0])
    run(0, DATA[:5])
    assert same(whole, run(3, DATA[5:12], tmp_path / "0.pt"))


# the Trainer of transformers


def hf_trainer(make, folder, steps, seed=0, every=1, decay=0.95):
    transformers = pytest.importorskip("transformers")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model_of(seed)

        def forward(self, x):
            return {"loss": loss_of(self.model, x)}

    net = Net()
    optimizer = make().bind(net).as_optimizer()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=8, gradient_accumulation_steps=every,
        save_strategy="steps", save_steps=5, report_to=[], use_cpu=True, disable_tqdm=True, max_grad_norm=0.0,
        dataloader_pin_memory=False, logging_strategy="no", remove_unused_columns=False,
    )  # fmt: skip
    rows = torch.cat(DATA)
    data = [{"x": row} for row in rows]
    return net, transformers.Trainer(net, arguments, train_dataset=data, optimizers=(optimizer, scheduler))


@chains
def test_transformers_trains_and_resumes_bit_for_bit(make, tmp_path):
    whole, trainer = hf_trainer(make, tmp_path / "a", 9)
    trainer.train()
    assert trainer.state.global_step == 9 and trainer.optimizer.optimizer.updater.num_micro == 9
    again, resumed = hf_trainer(make, tmp_path / "b", 9, seed=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-5"))
    assert same(whole, again)


def test_transformers_accumulates_as_torchs_class_would(tmp_path):
    net, trainer = hf_trainer(CHAINS["constant"], tmp_path / "a", 6, every=3, decay=0.9)
    trainer.train()
    other, theirs = hf_trainer(lambda: gch.chain(gch.sgd(0.1)), tmp_path / "b", 6, every=3)
    optimizer = torch.optim.AdamW(other.parameters(), 1e-2)
    theirs.optimizer, theirs.lr_scheduler = optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    theirs.train()
    assert trainer.optimizer.optimizer.updater.num_updates == 6
    assert gap(net, other) < 1e-6


# an updater in an optimizer's place


def test_an_updater_as_it_is_is_answered_with_the_door(tmp_path):
    """Where a framework asks it for something; those that look at its class alone say that it is no Optimizer."""
    updater = CHAINS["constant"]().bind(model_of())
    transformers = pytest.importorskip("transformers")
    with pytest.raises(AttributeError, match=r"as_optimizer\(\)"):
        torch.optim.swa_utils.SWALR(updater, 0.1)
    module = lightning_module(CHAINS["constant"])
    module.configure_optimizers = lambda: {"optimizer": updater}
    with pytest.raises(AttributeError, match=r"as_optimizer\(\)"):
        fit(module, tmp_path, 1)
    _, trainer = hf_trainer(CHAINS["constant"], tmp_path, 1)
    with pytest.raises(AttributeError, match=r"as_optimizer\(\)"):
        transformers.Trainer(
            trainer.model, trainer.args, train_dataset=trainer.train_dataset, optimizers=(updater, None)
        ).train()


# the callbacks


def test_lightnings_callback_validates_averages_closes_windows_and_logs(tmp_path):
    from gradchain.adapters.lightning import callback

    module = lightning_module(lambda: gch.chain(gch.accumulate(5), gch.clip_by_norm(1.0), *AVERAGED))
    seen = []
    module.validation_step = lambda *_: seen.append(module.model[0].weight.detach().clone())
    lightning = pytest.importorskip("lightning.pytorch")
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[callback()], num_sanity_val_steps=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, DataLoader(DATA[:12], batch_size=None), DataLoader(DATA[:1], batch_size=None))
    updater = trainer.optimizers[0].updater
    assert updater.num_updates == 6 and updater.num_micro == 24  # 5, 5 and what is left, twice
    assert "clip_by_norm.norm" in trainer.callback_metrics
    assert len(seen) == 2 and not torch.equal(seen[1], module.model[0].weight)
    assert torch.equal(seen[1], updater.averages()["0.weight"])


def test_lightnings_callback_puts_the_weights_back_where_validation_fails(tmp_path):
    from gradchain.adapters.lightning import callback

    module = lightning_module(lambda: gch.chain(*AVERAGED))

    def fails(*_):
        raise ArithmeticError("mine")

    module.validation_step = fails
    lightning = pytest.importorskip("lightning.pytorch")
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[callback()], num_sanity_val_steps=0,
    )  # fmt: skip
    with warnings.catch_warnings(), pytest.raises(ArithmeticError, match="mine"):
        warnings.simplefilter("ignore")
        trainer.fit(module, DataLoader(DATA[:4], batch_size=None), DataLoader(DATA[:1], batch_size=None))
    assert same(module.model, ours(lambda: gch.chain(*AVERAGED), DATA[:4])[0])


def test_transformers_callback_evaluates_averages_closes_windows_and_logs(tmp_path):
    from gradchain.adapters.transformers import callback

    make = lambda: gch.chain(gch.accumulate(5), gch.clip_by_norm(1.0), *AVERAGED)  # noqa: E731
    net, trainer = hf_trainer(make, tmp_path, 24, decay=1.0)
    seen, forward = [], net.forward
    net.forward = lambda x: seen.append((net.training, net.model[0].weight.detach().clone())) or forward(x)
    transformers = pytest.importorskip("transformers")

    class Watches(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **given):
            kept.update(logs)

    kept, trainer.eval_dataset = {}, [{"x": row} for row in DATA[0]]
    trainer.args.eval_strategy, trainer.args.eval_steps = transformers.trainer_utils.IntervalStrategy.STEPS, 12
    for each in (callback(), Watches()):
        trainer.add_callback(each)
    trainer.train()
    updater = trainer.optimizer.optimizer.updater
    assert updater.num_updates == 5 and updater.num_micro == 24
    own = [weight for training, weight in seen if training]
    evaluated = [weight for training, weight in seen if not training]
    assert len(evaluated) == 2 and not any(torch.equal(evaluated[0], weight) for weight in own)
    assert "clip_by_norm.norm" in kept


AVERAGED = (gch.sgd(0.1), gch.average_params(0.9))
