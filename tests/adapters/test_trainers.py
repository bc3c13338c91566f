"""Our chain in other people's trainers, with the packages themselves: equal to our loop, and exact when resumed."""

import copy

import pytest
import torch
from adapters.trainer_chains import CHAINS, loss_of, model_of, same
from adapters.trainer_runs import (
    DATA,
    TURNED,
    accelerated,
    accelerated_steps,
    fit,
    gap,
    hf_trainer,
    lightning_module,
    ours,
    widened_loss_of,
)

import gradchain as gch

TRAINED = ["constant", "schedule", "window", "averages", "partition", "from_torch", "window and averages"]
chains = pytest.mark.parametrize("make", [pytest.param(CHAINS[name], id=name) for name in TRAINED])


@pytest.fixture
def anew(monkeypatch):
    """Accelerate keeps its precision for the whole process, and transformers tells it by the environment."""
    state = pytest.importorskip("accelerate.state").AcceleratorState
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    state._reset_state(reset_partial_state=True)
    yield
    state._reset_state(reset_partial_state=True)


def shows(make, model, data):
    """Whether a precision does: the run is another than in float32. Under Lion, which takes signs, it need not be."""
    return make is CHAINS["window and averages"] or gap(model.double(), ours(make, data)[0].double()) > 1e-9


# Lightning


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


PRECISIONS = {
    "bf16-mixed": {"autocast": torch.bfloat16},
    "bf16-true": {"dtype": torch.bfloat16},
    "64-true": {"dtype": torch.float64},
}


@pytest.mark.parametrize("precision", PRECISIONS)
@chains
def test_lightning_in_other_precisions(make, precision, tmp_path):
    """As by hand in that precision, which is another run than in float32; and resumed, the uninterrupted one."""
    whole = lightning_module(make, by_step=True)
    fit(whole, tmp_path, 10, precision=precision)
    expected, _ = ours(make, DATA[:10], **PRECISIONS[precision])
    assert same(whole.model, expected) and shows(make, expected, DATA[:10])
    first = lightning_module(make, by_step=True)
    fit(first, tmp_path, 5, precision=precision).save_checkpoint(tmp_path / "at.ckpt")
    again = lightning_module(make, seed=3, by_step=True)
    if precision == "64-true":
        again.double()  # Lightning loads the weights before it converts the module: they would be rounded to float32
    fit(again, tmp_path, 10, resume=tmp_path / "at.ckpt", precision=precision)
    assert same(whole.model, again.model)


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


@chains
def test_accelerate_under_an_autocast_around_it(make):
    run = accelerated(make)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        accelerated_steps(*run, DATA[:6])
        expected, _ = ours(make, DATA[:6])
    assert same(run[1], expected) and shows(make, expected, DATA[:6])


@chains
def test_accelerate_in_bf16(make, anew, tmp_path):
    run = accelerated(make, mixed_precision="bf16")
    accelerated_steps(*run, DATA[:5])
    run[0].save_state(str(tmp_path))
    accelerated_steps(*run, DATA[5:12])
    expected, _ = ours(make, DATA[:12], autocast=torch.bfloat16, loss_of=widened_loss_of)
    assert same(run[1], expected) and shows(make, expected, DATA[:12])
    again = accelerated(make, seed=3, mixed_precision="bf16")
    again[0].load_state(str(tmp_path))
    accelerated_steps(*again, DATA[5:12])
    assert same(run[1], again[1])


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


def test_a_micro_batch_that_accelerate_holds_back_is_no_step_of_an_updater(anew):
    """It was given to `prepare` as it is, which nobody can see; nothing changes. Its own words are not asked."""
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = model_of()
    model, updater = accelerator.prepare(model, CHAINS["constant"]().bind(model))
    start = copy.deepcopy(model)
    with accelerator.accumulate(model):
        accelerator.backward(loss_of(model, DATA[0]))
        with pytest.raises(RuntimeError, match=r"step: Accelerate holds this micro-batch back .*as_optimizer\(\)"):
            updater.step()
        assert same(model, start) and updater.clocks == {"step": 0, "micro": 0}
        assert all(p.grad is not None for p in model.parameters())
        assert updater.update(loss_of(model, DATA[0])).applied  # a loop of its own
        accelerator.backward(loss_of(model, DATA[0]))
        updater.as_optimizer().step()  # one that was not prepared steps, as torch's would
        assert updater.step({name: p.grad for name, p in model.named_parameters()}).applied
    with accelerator.accumulate(model):
        accelerator.backward(loss_of(model, DATA[1]))
        assert updater.step().applied and updater.num_updates == 4


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


@chains
def test_transformers_in_bf16(make, anew, tmp_path):
    whole, trainer = hf_trainer(make, tmp_path / "a", 9, decay=1.0, bf16=True)
    trainer.train()
    expected, _ = ours(make, whole.seen, autocast=torch.bfloat16, loss_of=lambda *both: loss_of(*both).float())
    assert same(whole.model, expected) and shows(make, expected, whole.seen)
    again, resumed = hf_trainer(make, tmp_path / "b", 9, seed=3, decay=1.0, bf16=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-5"))
    assert same(whole, again)


# an override of the user's, set in the middle of a run

OVERRIDES = {
    "a rate": ("constant", {"name": "learning_rate", "value": 0.03}),
    "a rate's factor": ("schedule", {"name": "learning_rate", "factor": 0.5}),
    "a schedule": ("window", {"name": "learning_rate", "value": gch.linear(0.03, 0.0, 10)}),
    "another number": ("averages", {"name": "average_params.decay", "value": 0.5}),
    "a moment's": ("window and averages", {"name": "scale_by_lion.b1", "value": 0.5}),
    "a class's": ("from_torch", {"name": "lr", "value": 0.03}),
}  # fmt: skip
overridden = pytest.mark.parametrize(
    "make, turned", [pytest.param(CHAINS[chain], how, id=name) for name, (chain, how) in OVERRIDES.items()]
)


@overridden
def test_an_override_in_lightning(make, turned, tmp_path):
    """It takes hold, and the checkpoint brings it back."""
    whole = lightning_module(make, by_step=True, turned=turned)
    trainer = fit(whole, tmp_path, 10)
    expected, updater = ours(make, DATA[:10], turned=turned)
    assert same(whole.model, expected)
    assert trainer.optimizers[0].updater.hyperparams() == updater.hyperparams() != make().bind(expected).hyperparams()
    first = lightning_module(make, by_step=True, turned=turned)
    fit(first, tmp_path, 5).save_checkpoint(tmp_path / "at.ckpt")
    again = lightning_module(make, seed=3, by_step=True)
    fit(again, tmp_path, 10, resume=tmp_path / "at.ckpt")
    assert same(whole.model, again.model)


@overridden
def test_an_override_in_accelerate(make, turned, tmp_path):
    run = accelerated(make)
    accelerated_steps(*run, DATA[:5], turned=turned)
    run[0].save_state(str(tmp_path))
    accelerated_steps(*run, DATA[5:10])
    assert same(run[1], ours(make, DATA[:10], turned=turned)[0])
    again = accelerated(make, seed=3)
    again[0].load_state(str(tmp_path))
    accelerated_steps(*again, DATA[5:10])
    assert same(run[1], again[1])


@overridden
def test_an_override_in_transformers(make, turned, tmp_path):
    whole, trainer = hf_trainer(make, tmp_path / "a", 9, decay=1.0, turned=turned)
    trainer.train()
    assert same(whole.model, ours(make, whole.seen, turned=turned)[0])
    again, resumed = hf_trainer(make, tmp_path / "b", 9, seed=3, decay=1.0)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-5"))
    assert same(whole, again)


@pytest.mark.parametrize("name", ["a rate", "a rate's factor"])
def test_an_override_is_multiplied_by_a_trainers_scheduler(name, tmp_path):
    """Whatever the order in which they come."""
    chain, how = OVERRIDES[name]
    module = lightning_module(CHAINS[chain], decay=0.9, by_step=True, turned=how)
    fit(module, tmp_path, 8)
    wanted = {"a rate": lambda n: 1e-2 if n < TURNED else 0.03, "a rate's factor": lambda n: (1, 0.5)[n >= TURNED]}[
        name
    ]
    key = "value" if name == "a rate" else "factor"
    model = model_of()
    updater = CHAINS[chain]().bind(model)
    for number, batch in enumerate(DATA[:8]):
        updater.override("learning_rate", **{key: wanted(number) * 0.9**number})
        updater.update(loss_of(model, batch))
    assert gap(module.model, model) < 1e-6
