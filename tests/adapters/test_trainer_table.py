"""Each consumer of optimizers, with the package itself: how it runs a chain, and what it says to an Updater as it is.

What comes out is the table in docs/trainers.md, which these tests compare. GRADCHAIN_WRITE=1 writes it. The row of
ZeroRedundancyOptimizer is tests/distributed/test_zero.py's.
"""

import copy
import itertools

import pytest
import torch
from adapters.test_as_optimizer import BATCHES, SCHEDULERS, bound, gap, train
from adapters.trainer_chains import CHAINS, loss_of, model_of, same, stored
from adapters.trainer_runs import DATA, accelerated, accelerated_steps, fit, hf_trainer, lightning_module, ours
from adapters.trainer_table import YES, answers, check
from later import later
from torch.optim import lr_scheduler, swa_utils

import gradchain as gch

state_dicts = later("torch.distributed.checkpoint.state_dict")

FEW = [CHAINS[name] for name in ("schedule", "window", "from_torch", "window and averages")]
CUTS = 1, 5
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def updater_of(model=None, make=CHAINS["constant"]):
    return make().bind(model_of() if model is None else model)


def legs(run, saved):
    """Whether a consumer trains as our loop does, and whether it goes on from the file that `run` leaves."""

    def trains(make, cut):
        return same(run(make, DATA[: cut + 4]), ours(make, DATA[: cut + 4])[0])

    def resumes(make, cut):
        whole = run(make, DATA[: cut + 7])
        run(make, DATA[:cut])
        return same(whole, run(make, DATA[cut : cut + 7], 3, saved))

    return trains, resumes


def every(run, makes=FEW):
    """Whether it is so for each chain, and where it is cut."""
    return YES[all(run(make, cut) for make, cut in itertools.product(makes, CUTS))]


def test_lightning(tmp_path):
    def trains(make, cut):
        module = lightning_module(make)
        fit(module, tmp_path, cut + 4)
        return same(module.model, ours(make, DATA[: cut + 4])[0])

    def resumes(make, cut):
        whole, first, again = (lightning_module(make, seed=s, decay=0.95, by_step=True) for s in (0, 0, 3))
        fit(whole, tmp_path, 10)
        fit(first, tmp_path, cut).save_checkpoint(tmp_path / "at.ckpt")
        fit(again, tmp_path, 10, resume=tmp_path / "at.ckpt")
        return same(whole.model, again.model)

    def given(form):
        def run():
            module = lightning_module(CHAINS["constant"])
            module.configure_optimizers = lambda: form(updater_of(module.model))
            fit(module, tmp_path, 1)

        return run

    forms = {
        "alone": lambda updater: updater,
        "in a list": lambda updater: [updater],
        "in two lists": lambda updater: ([updater], []),
        "in a dict": lambda updater: {"optimizer": updater},
    }
    bare = answers({name: given(form) for name, form in forms.items()})
    check("Lightning, automatic", "lightning", every(trains), every(resumes), bare)


def test_lightning_manual(tmp_path):
    def run(make, steps, **options):
        module = lightning_module(make, manual=True, by_step=True)
        trainer = fit(module, tmp_path, steps, **options)
        assert trainer.global_step == steps
        return module.model, trainer

    def trains(make, cut):
        return same(run(make, cut)[0], ours(make, DATA[:cut])[0])

    def resumes(make, cut):
        run(make, cut)[1].save_checkpoint(tmp_path / "at.ckpt")
        return same(run(make, 10)[0], run(make, 10, resume=tmp_path / "at.ckpt")[0])

    def alone():
        module = lightning_module(CHAINS["constant"], manual=True)
        module.configure_optimizers = lambda: updater_of(module.model)
        fit(module, tmp_path, 1)

    check("Lightning, manual", "lightning", every(trains), every(resumes), answers({"": alone}))


def test_fabric(tmp_path):
    fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu")

    def run(make, data, seed=0, resume=None):
        model = model_of(seed)
        both = dict(zip(("model", "optimizer"), fabric.setup(model, make().bind(model).as_optimizer()), strict=True))
        if resume is not None:
            fabric.load(resume, both)
        for batch in data:
            both["optimizer"].zero_grad()
            fabric.backward(loss_of(both["model"], batch))
            both["optimizer"].step()
        fabric.save(tmp_path / "at.ckpt", both)
        return model

    trains, resumes = legs(run, tmp_path / "at.ckpt")

    def alone():
        model = model_of()
        _, optimizer = fabric.setup(model, updater_of(model))
        fabric.backward(loss_of(model, DATA[0]))
        optimizer.step()
        assert same(model, ours(CHAINS["constant"], DATA[:1])[0])

    check("Lightning Fabric", "lightning", every(trains), every(resumes), answers({"": alone}))


def test_accelerate(tmp_path):
    def trains(make, cut):
        run = accelerated(make, 2)
        accelerated_steps(*run, DATA[: 2 * cut])
        return same(run[1], ours(make, DATA[: 2 * cut], 2)[0])

    def resumes(make, cut):
        run, again = accelerated(make, decay=0.95), accelerated(make, seed=3, decay=0.95)
        accelerated_steps(*run, DATA[:cut])
        run[0].save_state(str(tmp_path))
        accelerated_steps(*run, DATA[cut : cut + 7])
        again[0].load_state(str(tmp_path))
        accelerated_steps(*again, DATA[cut : cut + 7])
        return same(run[1], again[1])

    def prepared(every):
        accelerator = accelerated(CHAINS["constant"], every)[0]
        model, updater = accelerator.prepare(*(lambda m: (m, updater_of(m)))(model_of()))
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, DATA[0]))
            updater.step()
            updater.zero_grad()
        assert updater.num_updates == 1

    bare = answers({"accumulating": lambda: prepared(2), "otherwise": lambda: prepared(1)})
    check("Accelerate", "accelerate", every(trains), every(resumes), bare)


def test_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")

    def trains(make, cut):
        net, trainer = hf_trainer(make, tmp_path, cut + 4, decay=1.0)
        trainer.train()
        return same(net.model, ours(make, net.seen)[0])

    def resumes(make, _):
        whole, trainer = hf_trainer(make, tmp_path / "a", 9)
        trainer.train()
        again, resumed = hf_trainer(make, tmp_path / "b", 9, seed=3)
        resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-5"))
        return same(whole, again)

    def given(**which):
        net, trainer = hf_trainer(CHAINS["constant"], tmp_path, 1)
        if "optimizers" in which:
            which = {"optimizers": (updater_of(net), None)}
        transformers.Trainer(net, trainer.args, train_dataset=trainer.train_dataset, **which).train()

    bare = answers(
        {
            "optimizers": lambda: given(optimizers=True),
            "class": lambda: given(optimizer_cls_and_kwargs=(gch.Updater, {})),
        }
    )
    check("Trainer of transformers", "transformers", every(trains), every(resumes), bare)


def test_ignite(tmp_path):
    engine, handlers = pytest.importorskip("ignite.engine"), pytest.importorskip("ignite.handlers")

    def run(make, data, seed=0, resume=None, bare=False):
        model = model_of(seed)
        updater = make().bind(model)
        optimizer = updater if bare else updater.as_optimizer()
        both = {"model": model, "optimizer": optimizer}
        trainer = engine.create_supervised_trainer(model, optimizer, lambda out, y: (out - y).square().mean())
        if resume is not None:
            handlers.Checkpoint.load_objects(both, checkpoint=torch.load(resume, weights_only=True))
        trainer.run([(b, b.sum(1, keepdim=True)) for b in data], max_epochs=1)
        torch.save({name: part.state_dict() for name, part in both.items()}, tmp_path / "at.pt")
        return model

    trains, resumes = legs(run, tmp_path / "at.pt")

    def alone():
        assert same(run(CHAINS["constant"], DATA[:5], bare=True), ours(CHAINS["constant"], DATA[:5])[0])

    bare = answers(
        {
            "supervised trainer": alone,
            "LRScheduler": lambda: handlers.LRScheduler(lr_scheduler.StepLR(updater_of(), 1)),
            "LinearCyclicalScheduler": lambda: handlers.LinearCyclicalScheduler(updater_of(), "lr", 0.1, 0.2, 4),
        }
    )
    check("ignite", "pytorch-ignite", every(trains), every(resumes), bare)


def test_torchs_schedulers():
    def trains(name):
        model, optimizer = bound(CHAINS["constant"])
        twin = model_of()
        theirs = torch.optim.AdamW(twin.parameters(), lr=1e-2)
        train(optimizer, model, BATCHES, SCHEDULERS[name](optimizer))
        train(theirs, twin, BATCHES, SCHEDULERS[name](theirs))
        assert optimizer.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
        return gap(model, twin) < 1e-6

    def resumes(make, cut):
        model, optimizer = bound(make)
        again, resumed = bound(make, 3)
        ones, others = (lr_scheduler.StepLR(o, 2, 0.7) for o in (optimizer, resumed))
        train(optimizer, model, BATCHES[:cut], ones)
        for one, other in ((model, again), (optimizer, resumed), (ones, others)):
            other.load_state_dict(stored(one.state_dict()))
        train(optimizer, model, BATCHES[cut : cut + 7], ones)
        train(resumed, again, BATCHES[cut : cut + 7], others)
        return same(model, again)

    as_torchs = {True: f"all {len(SCHEDULERS)} as over AdamW of torch, to 1e-6", False: "**no**"}[
        all(map(trains, SCHEDULERS))
    ]
    bare = answers({name: lambda make=make: make(updater_of()) for name, make in SCHEDULERS.items()})
    check("torch.optim.lr_scheduler", "torch", as_torchs, every(resumes), bare)


def test_grad_scaler():
    def run(model, optimizer, scaler, data):
        for batch in data:
            optimizer.zero_grad()
            scaler.scale(loss_of(model, batch)).backward()
            scaler.step(optimizer)
            scaler.update()
        return model

    def scaled(make, seed=0):
        return *bound(make, seed), torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def trains(make, cut):
        return same(run(*scaled(make), DATA[: cut + 4]), ours(make, DATA[: cut + 4])[0])  # by a power of two: exact

    def resumes(make, cut):
        parts, again = scaled(make), scaled(make, 3)
        run(*parts, DATA[:cut])
        for one, other in zip(parts, again, strict=True):
            other.load_state_dict(stored(one.state_dict()))
        return same(run(*parts, DATA[cut : cut + 7]), run(*again, DATA[cut : cut + 7]))

    def alone():
        model = model_of()
        run(model, updater_of(model), torch.amp.GradScaler("cpu"), DATA[:1])

    check("torch.amp.GradScaler", "torch", every(trains), every(resumes), answers({"": alone}))


def test_swa_utils():
    def run(model, optimizer, averaged, scheduler, data):
        for batch in data:
            train(optimizer, model, [batch], scheduler)
            averaged.update_parameters(model)
        return averaged.module

    def parts(make, seed=0):
        model, optimizer = bound(make, seed)
        return (
            model,
            optimizer,
            swa_utils.AveragedModel(model),
            swa_utils.SWALR(optimizer, swa_lr=0.05, anneal_epochs=3),
        )

    def trains(make, cut):
        one = parts(make)
        found = run(*one, DATA[: cut + 4])
        model, seen = model_of(), []
        updater = make().bind(model)
        for step, batch in enumerate(DATA[: cut + 4]):
            updater.override("learning_rate", RATES[step])
            updater.update(loss_of(model, batch))
            seen.append(copy.deepcopy(model))
        means = [torch.stack(ps).mean(0) for ps in zip(*(m.parameters() for m in seen), strict=True)]
        return max(float((a - b).abs().max()) for a, b in zip(means, found.parameters(), strict=True)) < 1e-6

    def resumes(make, cut):
        one, other = parts(make), parts(make, 3)
        run(*one, DATA[:cut])
        for here, there in zip(one, other, strict=True):
            there.load_state_dict(stored(here.state_dict()))
        return same(run(*one, DATA[cut : cut + 7]), run(*other, DATA[cut : cut + 7]))

    theirs = torch.optim.AdamW(model_of().parameters(), lr=1e-2)
    scheduler, RATES = swa_utils.SWALR(theirs, swa_lr=0.05, anneal_epochs=3), []
    for _ in range(9):
        RATES.append(theirs.param_groups[0]["lr"])
        theirs.step()
        scheduler.step()
    means = {"bit for bit": "as by hand, to 1e-6"}.get(every(trains, [CHAINS["constant"]]), "**no**")
    model = model_of()
    bare = answers(
        {
            "SWALR": lambda: swa_utils.SWALR(updater_of(), 0.1),
            "update_bn": lambda: swa_utils.update_bn([torch.ones(2, 3)], updater_of()),
            "update_parameters": lambda: swa_utils.AveragedModel(model).update_parameters(updater_of()),
        }
    )
    check("torch.optim.swa_utils", "torch", means, every(resumes, [CHAINS["constant"], CHAINS["window"]]), bare)


def test_distributed_checkpoint():
    def resumes(make, cut):
        found = []
        for flat in (False, True):
            options = state_dicts.StateDictOptions(flatten_optimizer_state_dict=flat)
            (model, optimizer), (again, resumed) = bound(make), bound(make, 3)
            train(optimizer, model, BATCHES[:cut])
            saved = stored(state_dicts.get_optimizer_state_dict(model, optimizer, options=options))
            again.load_state_dict(model.state_dict())
            state_dicts.set_optimizer_state_dict(again, resumed, saved, options=options)
            train(optimizer, model, BATCHES[cut : cut + 7])
            train(resumed, again, BATCHES[cut : cut + 7])
            found.append(same(model, again))
        return all(found)

    def asked(call, **options):
        def run():
            model = model_of()
            getattr(state_dicts, call)(model, updater_of(model), **options)

        return run

    bare = answers(
        {
            "get_state_dict": asked("get_state_dict"),
            "get_optimizer_state_dict": asked("get_optimizer_state_dict"),
            "set_state_dict": asked("set_state_dict", model_state_dict={}, optim_state_dict={}),
            "set_optimizer_state_dict": asked("set_optimizer_state_dict", optim_state_dict={}),
        }
    )
    check("torch.distributed.checkpoint, nested and flat", "torch", "–", every(resumes), bare)
