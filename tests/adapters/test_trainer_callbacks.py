"""The doors of trainers: averages in for validation, windows closed at an epoch's end, metrics to its logger."""

import warnings

import pytest
import torch
from adapters.trainer_chains import same
from adapters.trainer_runs import DATA, accelerated, accelerated_steps, hf_trainer, lightning_module, ours
from torch.utils.data import DataLoader

import gradchain as gch

AVERAGED = (gch.sgd(0.1), gch.average_params(0.9))


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


# Accelerate


def tracked():
    """What is logged, and where to."""
    tracking = pytest.importorskip("accelerate.tracking")
    logged = []

    class Notes(tracking.GeneralTracker):
        name, requires_logging_directory, tracker = "notes", False, None

        def log(self, values, step=None, **kwargs):
            logged.append((step, values))

    return logged, Notes()


def test_accelerates_calls_validate_averages_close_windows_and_log():
    from gradchain.adapters.accelerate import averaged, close_windows, log

    logged, tracker = tracked()
    run = accelerated(
        lambda: gch.chain(gch.accumulate(5), gch.clip_by_norm(1.0), *AVERAGED), decay=1.0, log_with=tracker
    )
    accelerator, model, optimizer, _ = run
    accelerator.init_trackers("test")
    updater, own = optimizer.optimizer.updater, []
    for epoch in (0, 1):
        accelerated_steps(*run, DATA[12 * epoch : 12 * epoch + 12])
        close_windows(optimizer)
        close_windows(optimizer)  # none is open
        log(accelerator, optimizer, step=epoch, loss=0.5)
        own.append(model[0].weight.detach().clone())
        mean = updater.averages()["0.weight"].clone()
        with averaged(optimizer):
            assert torch.equal(model[0].weight, mean)
            assert not torch.equal(model[0].weight, own[-1])
        assert torch.equal(model[0].weight, own[-1])
    assert updater.num_updates == 6 and updater.num_micro == 24  # 5, 5 and what is left, twice
    assert [step for step, _ in logged] == [0, 1] and logged[1][1]["loss"] == 0.5
    assert logged[1][1]["clip_by_norm.norm"] == float(updater.metrics["clip_by_norm.norm"])


def test_accelerates_average_is_out_again_where_validation_fails():
    from gradchain.adapters.accelerate import averaged

    run = accelerated(lambda: gch.chain(*AVERAGED))
    accelerated_steps(*run, DATA[:4])
    with pytest.raises(ArithmeticError, match="mine"), averaged(run[2]):
        raise ArithmeticError("mine")
    assert same(run[1], ours(lambda: gch.chain(*AVERAGED), DATA[:4])[0])


@pytest.mark.parametrize("of", ["averaged", "close_windows", "log"])
def test_accelerates_calls_are_for_chains(of):
    module = pytest.importorskip("gradchain.adapters.accelerate")
    run = accelerated(lambda: gch.chain(*AVERAGED))
    call = {
        "averaged": lambda *optimizers: module.averaged(*optimizers).__enter__(),
        "close_windows": module.close_windows,
        "log": lambda *optimizers: module.log(run[0], *optimizers),
    }[of]
    theirs = torch.optim.SGD(run[1].parameters(), 0.1)
    for wrong in ((), (theirs,), (run[2], theirs), (run[2].optimizer.updater,)):
        with pytest.raises(TypeError, match=rf"{of}: optimizers must be what accelerator.prepare\(updater.as_optim"):
            call(*wrong)
