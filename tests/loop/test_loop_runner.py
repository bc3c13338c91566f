"""Hook classes written for MMEngine's Runner run through a stand-in; which of MMEngine's own do not, and why."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch
from docs.doc_blocks import tables
from later import later
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

import gradchain as gch
from gradchain.loop.runner import NOT_HERE

hooks = later("mmengine.hooks")
DATA = [torch.ones(2, 3)] * 4
PAGE = Path(gch.__file__).parent.parent / "docs" / "loop.md"


def train(*given, epochs=2, validate=None, data=DATA, checkpoint=None, log=(), lr=0.1):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    updater = gch.sgd(lr).bind(model)
    run = gch.loop(
        data, updater, epochs=epochs, validate=validate, hooks=given, checkpoint=checkpoint, log=log, interval=2
    )
    for batch in run:
        run.update(model(batch).mean())
    return run, updater


HERE = {
    "DistSamplerSeedHook": lambda: hooks.DistSamplerSeedHook(),
    "EarlyStoppingHook": lambda: hooks.EarlyStoppingHook("acc", rule="greater", patience=2),
    "EmptyCacheHook": lambda: hooks.EmptyCacheHook(after_iter=True),
    "IterTimerHook": lambda: hooks.IterTimerHook(),
    "SyncBuffersHook": lambda: hooks.SyncBuffersHook(),
}


def test_each_of_mmengines_hooks_runs_or_is_refused_with_its_reason():
    """All that mmengine.hooks has; the page says of each which, and why."""
    named = {name for name in importlib.import_module("mmengine.hooks").__all__ if name != "Hook"}
    assert named == set(HERE) | set(NOT_HERE)
    rows = {cells[0].strip("`"): cells[1] for cells in tables(PAGE.read_text())["MMEngine's hook"]}
    assert set(rows) == named
    for name in sorted(named):
        if name in HERE:
            assert rows[name].startswith("runs"), name
            assert train(HERE[name]())[0].iter == 8
            continue
        assert rows[name] == f"not here, because {NOT_HERE[name]}"
        hook = object.__new__(getattr(hooks, name))  # it is refused by its kind, whatever it was made with
        with pytest.raises(TypeError, match=re.escape(f"loop: {name} is not here, because {NOT_HERE[name]}.")):
            train(hook)


def test_one_of_a_users_own_that_derives_from_them_is_refused_too():
    class Mine(hooks.EMAHook):
        def __init__(self):
            pass

    with pytest.raises(TypeError, match="loop: EMAHook is not here"):
        train(Mine())


def test_early_stopping_stops():
    """After two validations without a better score, at the end of an epoch."""
    scores = iter([0.1, 0.2, 0.2, 0.2, 0.9])
    run, _ = train(HERE["EarlyStoppingHook"](), epochs=9, validate=lambda: {"acc": next(scores)})
    assert (run.epoch, run.iter) == (4, 16)


def test_the_sampler_is_seeded_and_the_timer_logs():
    order = DistributedSampler(range(6), num_replicas=1, rank=0)
    records = []
    run, _ = train(
        HERE["DistSamplerSeedHook"](), HERE["IterTimerHook"](), data=DataLoader(torch.ones(6, 3), sampler=order),
        log=records.append,
    )  # fmt: skip
    assert order.epoch == 1
    assert all(record["data_time"] > 0 and record["time"] > 0 for record in records)
    assert run._standin.message_hub.get_info("eta") == 0


class Mine:
    """A hook of no base class at all, as a user has it for MMEngine: what it finds in `runner`."""

    priority = "LOW"

    def __init__(self):
        self.seen = []

    def before_train(self, runner):
        self.seen.append((runner.max_epochs, runner.max_iters, len(runner.train_dataloader), type(runner.model)))

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen.append((runner.epoch, runner.iter, batch_idx, data_batch.shape))
        if runner.iter == 2:
            for group in runner.optim_wrapper.optimizer.param_groups:
                group["lr"] = group["lr"] * 0.5

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        runner.message_hub.update_scalar("train/mine", outputs["loss"].item())
        runner.visualizer.add_scalars({"more": batch_idx})
        self.seen.append(round(runner.optim_wrapper.get_lr()["lr"][0], 9))

    def after_val_epoch(self, runner, metrics=None):
        self.seen.append(metrics)
        runner.logger.info("best so far")

    def before_save_checkpoint(self, runner, checkpoint):
        checkpoint["mine"] = {"seen": len(self.seen)}

    def after_load_checkpoint(self, runner, checkpoint):
        self.seen.append(checkpoint["mine"])


def test_a_hook_of_a_users_own(tmp_path):
    hook, records = Mine(), []
    _, updater = train(hook, epochs=1, validate=lambda: {"acc": 1.0}, checkpoint=tmp_path, log=records.append)
    shape = torch.Size([2, 3])
    assert hook.seen == [
        (1, 4, 4, nn.Linear), (0, 0, 0, shape), 0.1, (0, 1, 1, shape), 0.1, (0, 2, 2, shape), 0.05, (0, 3, 3, shape),
        0.05, {"acc": 1.0},
    ]  # fmt: skip
    assert [record["more"] for record in records if record["mode"] == "train"] == [
        0,
        1.5,
        3,
    ]  # a LOW one comes after the log
    assert all("mine" in record for record in records if record["mode"] == "train")
    assert updater.hyperparams(by="value")["scale_by_learning_rate.learning_rate"] == 0.05
    again = Mine()
    train(again, epochs=1, checkpoint=tmp_path)
    assert {"seen": 9} in again.seen


def test_its_priority_may_be_given_with_it():
    calls = []

    class Late:
        def __init__(self, name):
            self.name = name

        def after_run(self, runner):
            calls.append(self.name)

    train((Late("c"), "LOWEST"), (Late("a"), 0), Late("b"))
    assert calls == ["a", "b", "c"]


def put(name, value):
    return lambda runner: setattr(runner.train_loop, name, value)


@pytest.mark.parametrize(
    ("what", "kind", "sentence"),
    [
        (lambda r: r.cfg, AttributeError, "runner has no 'cfg', because there is no config: give the hook"),
        (lambda r: r.seed, AttributeError, "runner has no 'seed': it stands in for MMEngine's Runner, and has .*iter"),
        (lambda r: r.param_schedulers, AttributeError, "no 'param_schedulers', because learning rates are schedules"),
        (lambda r: r.val_loop.total_length, AttributeError, "no 'val_loop', because validation is a function of the"),
        (lambda r: r.save_checkpoint("a"), AttributeError, "no 'save_checkpoint', because the loop saves"),
        (lambda r: setattr(r, "param_schedulers", []), AttributeError, "no 'param_schedulers', because learning"),
        (lambda r: r.train_loop.val_interval, AttributeError, "runner.train_loop has no 'val_interval': it stands in"),
        (put("_max_iters", 3), AttributeError, "runner.train_loop._max_iters cannot be set: of it dataloader and stop"),
        (put("dataloader_iterator", []), AttributeError, "train_loop.dataloader_iterator cannot be set"),
        (put("dataloader", [DATA[0]]), ValueError, "dataloader must be set before an epoch begins, .* in the middle"),
        (put("dataloader", 3), ValueError, "dataloader must be set before an epoch begins"),
        (lambda r: r.optim_wrapper.step(), AttributeError, "runner.optim_wrapper has no 'step': .*get_lr, optimizer"),
        (lambda r: r.optim_wrapper.param_groups[0]["momentum"], KeyError, "there is no 'momentum'"),
        (lambda r: r.optim_wrapper.param_groups[0]["initial_lr"], KeyError, "nobody has set 'initial_lr'"),
        (lambda r: r.optim_wrapper.param_groups[0].pop("lr"), TypeError, "'lr' cannot be taken out: it is the chain's"),
        (lambda r: r.message_hub.get_scalar("train/lr"), KeyError, "no scalar 'train/lr'; it has .*get_lr()"),
        (lambda r: r.message_hub.get_scalar("train/loss"), KeyError, "no scalar 'train/loss'; it has nothing yet"),
        (lambda r: r.message_hub.statistics, AttributeError, "runner.message_hub has no 'statistics': it stands in for"),
        (lambda r: r.visualizer.add_image("a", 3), AttributeError, "runner.visualizer has no 'add_image', because it"),
        (lambda r: r.call_hook("before_test"), ValueError, "moment of a hook must be one of before_run, .*'before_test'"),
        (lambda r: r.register_hook({"type": "Mine"}), TypeError, "hooks must be .*got {'type': 'Mine'}"),
    ],
)
def test_what_the_stand_in_lacks_is_said(what, kind, sentence):
    """Nothing that is set or asked for is passed over."""

    class Asking:
        def before_train_iter(self, runner, batch_idx):
            what(runner)

    with pytest.raises(kind, match=sentence):
        train(Asking())


def test_how_long_a_run_of_updates_is_nobody_knows():
    """A sentence in place of None, of which IterTimerHook takes one away."""
    model = nn.Linear(3, 1)
    updater = gch.sgd(0.1).bind(model)
    with pytest.raises(ValueError, match=r"runner.max_iters must be known to be read, .* Give gch.loop iters="):
        for batch in gch.loop(DATA, updater, updates=2, hooks=[HERE["IterTimerHook"]()]):
            updater.update(model(batch).mean())


def test_groups_are_read_as_hooks_read_them():
    """By name with a default, whether one is there, and with the rate of the beginning kept beside it."""
    seen = []

    class Warming:
        def before_train(self, runner):
            for group in runner.optim_wrapper.optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])

        def before_train_iter(self, runner, batch_idx):
            (group,) = runner.optim_wrapper.optimizer.param_groups
            if "fix_lr" not in group and group.get("lr_scale", 1) == 1:
                group["lr"] = group["initial_lr"] * (batch_idx + 1) / 4
            seen.append((group["lr"], sorted(group)))

    train(Warming(), epochs=1)
    keys = ["initial_lr", "lr", "scale_by_learning_rate.learning_rate"]
    assert seen == [(pytest.approx(0.1 * i / 4), keys) for i in (1, 2, 3, 4)]
    with pytest.raises(ValueError, match="'lr' must be one number for all parameters, .* gives them 2. updater.over"):
        train(Warming(), lr=gch.multiply(0.1, (gch.bias, 2.0)))


def test_what_was_logged_is_in_the_message_hub():
    """As RuntimeInfoHook and IterTimerHook put it there: a loss that a hook looks at, times, what validation gave."""
    seen = []

    class Looking:
        def after_train_iter(self, runner, batch_idx, outputs=None):
            hub = runner.message_hub
            assert hub.get_scalar("train/loss").current() == outputs["loss"].item()
            assert hub.get_info("iter") == runner.iter and hub.get_info("max_epochs") == 2
            seen.append(outputs["loss"].item())

        def after_train_epoch(self, runner):
            losses, times = (runner.message_hub.get_scalar(f"train/{name}") for name in ("loss", "time"))
            assert losses.mean(3) == pytest.approx(sum(seen[-3:]) / 3)
            assert (losses.min(), losses.max()) == (min(seen), max(seen))
            assert times.mean() >= runner.message_hub.get_scalar("train/data_time").mean() > 0

        def after_val_epoch(self, runner, metrics=None):
            assert runner.message_hub.get_scalar("val/acc").current() == 0.5

    train(Looking(), validate=lambda: {"acc": torch.tensor(0.5), "table": "of words"})
    assert len(seen) == 8


def test_without_such_hooks_nothing_is_kept():
    assert train()[0]._standin.message_hub.log_scalars == {}
