"""Order and moments of every hook are MMEngine's own: both loops run here, its Runner and ours, and are compared."""

from __future__ import annotations

import itertools
import json
import logging
import os
from types import SimpleNamespace

import pytest
import torch
from later import later
from torch import nn
from torch.utils.data import DataLoader

import gradchain as gch
from gradchain.cli.convert import convert
from gradchain.loop import moments, parts

runners, hooks, loops = later("mmengine.runner"), later("mmengine.hooks"), later("mmengine.runner.loops")
models, evaluators = later("mmengine.model"), later("mmengine.evaluator")

# Ours by MMEngine's hook for it. Where both do something at a moment, the order is compared.
PARTS = {
    "IterTimerHook": "timer", "DistSamplerSeedHook": "seed", "ParamSchedulerHook": "tick", "CheckpointHook": "save",
    "LoggerHook": "log", "RuntimeInfoHook": "rates",
}  # fmt: skip
OURS = {
    ("rates", "before_train_iter"), ("timer", "before_train_iter"), ("timer", "after_train_iter"),
    ("seed", "before_train_epoch"), ("log", "after_train_iter"), ("log", "after_val_epoch"),
    ("tick", "after_train_epoch"), ("save", "after_train_iter"), ("save", "after_train_epoch"),
    ("save", "after_val_epoch"),
}  # fmt: skip
HOOKS = [("first", 0), ("a", "NORMAL"), ("b", "HIGH"), ("c", 65), ("d", "NORMAL"), ("e", "very_low"), ("last", 100)]


def recorder(name, lines, stop):
    """A hook that writes down each of its moments, of a class that a user would write for MMEngine's Runner."""

    class Recorder(hooks.Hook):
        def __getattribute__(self, stage):
            if stage in ("before_test", "after_test") or stage not in hooks.Hook.stages:
                return super().__getattribute__(stage)

            def record(runner, batch_idx=None, data_batch=None, outputs=None, metrics=None, checkpoint=None):
                has = (data_batch is not None, bool(metrics), checkpoint is not None)
                lines.append((name, stage, runner.iter, runner.epoch, batch_idx, has))
                if stop is not None and stage == stop[0] and runner.iter >= stop[1]:
                    runner.train_loop.stop_training = True

            return record

    return Recorder()


def model():
    torch.manual_seed(0)
    return nn.Linear(2, 1)


def data(batches):
    """That many batches of one item, as MMEngine's model takes them."""
    return DataLoader([{"inputs": torch.ones(2) * (i + 1)} for i in range(batches)], batch_size=1)


def by_mmengine(case, tmp_path, monkeypatch):
    """What MMEngine's Runner calls, in a run with its default hooks and ours."""

    class Model(models.BaseModel):
        def __init__(self):
            super().__init__()
            self.net = model()

        def forward(self, inputs, mode="loss"):
            out = self.net(inputs).square().mean()
            return {"loss": out} if mode == "loss" else [out]

    class Metric(evaluators.BaseMetric):
        def process(self, data_batch, data_samples):
            self.results.append(1.0)

        def compute_metrics(self, results):
            return {"score": sum(results)}

    monkeypatch.setattr(runners.Runner, "_log_env", lambda self, env: None)
    monkeypatch.setattr(loops, "time", SimpleNamespace(sleep=lambda seconds: None))
    by_epoch = "max_epochs" in case["train"]
    lines: list = []
    runner = runners.Runner(
        model=Model(),
        work_dir=str(tmp_path),
        train_dataloader=data(case["batches"]),
        train_cfg={"by_epoch": by_epoch, **case["train"]},
        val_dataloader=data(2),
        val_cfg={},
        val_evaluator=evaluators.Evaluator([Metric()]),
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.01}},
        default_hooks={
            "checkpoint": {"type": "CheckpointHook", "by_epoch": by_epoch, **case.get("save", {"interval": 2})},
            "logger": {"type": "LoggerHook", "interval": case.get("log", 10)},
        },
        experiment_name=f"{tmp_path.name}{next(COUNT)}",
        log_level="CRITICAL",
    )
    for name, priority in HOOKS:
        runner.register_hook(recorder(name, lines, case.get("stop")), priority)
    for hook in case.get("also", ()):
        runner.register_hook(hook(lines))
    for hook in runner._hooks:
        if (name := PARTS.get(type(hook).__name__)) is not None:
            for stage in {s for part, s in OURS if part == name} & {*hook.get_triggered_stages()}:
                monkeypatch.setattr(hook, stage, _told(lines, name, stage, getattr(hook, stage)), raising=False)
    runner.train()
    return lines


COUNT = itertools.count()


def _told(lines, name, stage, call):
    def told(runner, *args, **kwargs):
        lines.append((name, stage))
        return call(runner, *args, **kwargs)

    return told


def watch(lines, monkeypatch):
    """Write down what our loop does itself at a moment."""
    made = parts.built_in

    def watched(run):
        def told(name, stage, call):
            return lambda given: (lines.append((name, stage)) if (name, stage) in OURS else None, call(given))

        return [
            moments.Hook(h.name, h.priority, {s: told(h.name, s, call) for s, call in h.calls.items()})
            for h in made(run)
        ]

    monkeypatch.setattr(parts, "built_in", watched)


def by_ours(case, tmp_path, monkeypatch):
    """What our loop calls with the same hooks."""
    lines: list = []
    watch(lines, monkeypatch)
    train = dict(case["train"])
    epochs, iters = train.pop("max_epochs", None), train.pop("max_iters", None)
    unit = "epoch" if epochs else "iter"
    if iters:
        train.setdefault("val_interval", 1000)
    saving = {"interval": 2, "save_begin": 0, "save_last": True, **case.get("save", {})}
    every, begin = saving["interval"], saving["save_begin"]
    save = {"every": range(begin, 99, every) if begin % every else [(begin, every)], "last": saving["save_last"]}
    updater = gch.sgd(0.01).bind(net := model())

    def validate(run):
        return {"score": sum(len(batch["inputs"]) for batch in run.over(data(2)))}

    run = gch.loop(
        data(case["batches"]),
        updater,
        epochs=epochs,
        iters=iters,
        validate=(validate, gch.loop.intervals(**train), unit),
        checkpoint=gch.loop.checkpoints(tmp_path / f"ours{next(COUNT)}", unit=unit, **save),
        hooks=[
            *((recorder(name, lines, case.get("stop")), priority) for name, priority in HOOKS),
            *(hook(lines) for hook in case.get("also", ())),
        ],
    )
    for batch in run:
        run.update(net(batch["inputs"]).square().mean())
    return lines


def by_converted(case, tmp_path, monkeypatch):
    """What the function calls that `convert` writes for a config of the case, its blanks filled in."""
    lines: list = []
    watch(lines, monkeypatch)
    by_epoch = "max_epochs" in case["train"]
    kind = "EpochBasedTrainLoop" if by_epoch else "IterBasedTrainLoop"
    saving = {"type": "CheckpointHook", "by_epoch": by_epoch, **case.get("save", {"interval": 2})}
    config = {
        "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.01}},
        "train_cfg": {"type": kind, **case["train"]},
        "val_cfg": {"type": "ValLoop"},
        "default_hooks": {"checkpoint": saving},
        "work_dir": str(tmp_path / f"converted{next(COUNT)}"),
    }
    path = tmp_path / "config.py"
    path.write_text("".join(f"{name} = {value!r}\n" for name, value in config.items()))
    found = convert(path, epoch_length=case["batches"])
    scope = {"model": (net := model())}
    exec(str(found), scope)

    def evaluate(run):
        return {"score": sum(len(batch["inputs"]) for batch in run.over(data(2)))}

    recorders = [(recorder(name, lines, case.get("stop")), priority) for name, priority in HOOKS]
    updater, forward = scope["make"](net), lambda batch: net(batch["inputs"]).square().mean()
    scope["train"](updater, data(case["batches"]), forward, evaluate, hooks=recorders)
    return lines


EPOCHS = [
    {"train": {"max_epochs": 3}, "batches": 2},
    {"train": {"max_epochs": 5, "val_interval": 2}, "batches": 3},
    {"train": {"max_epochs": 5, "val_begin": 3, "val_interval": 2}, "batches": 1},
    {"train": {"max_epochs": 6, "val_interval": 4, "dynamic_intervals": [(5, 1)]}, "batches": 2},
    {
        "train": {"max_epochs": 9, "val_begin": 2, "val_interval": 5, "dynamic_intervals": [(4, 3), (7, 1)]},
        "batches": 1,
    },
    {"train": {"max_epochs": 3, "val_begin": 7}, "batches": 1},
    {"train": {"max_epochs": 6, "val_interval": 2}, "batches": 2, "stop": ("after_val", 6)},
    {"train": {"max_epochs": 5, "val_interval": 2}, "batches": 2, "save": {"interval": 3, "save_last": False}},
    {"train": {"max_epochs": 7, "val_interval": 3}, "batches": 1, "save": {"interval": 3, "save_begin": 2}},
    {"train": {"max_epochs": 6, "val_begin": 2}, "batches": 1, "save": {"interval": 2, "save_begin": 2}},
    {
        "train": {"max_epochs": 5, "val_interval": 2}, "batches": 3, "save": {"interval": 1},
        "stop": ("after_train_iter", 7),
    },
]  # fmt: skip
ITERS = [
    {"train": {"max_iters": 5, "val_interval": 2}, "batches": 8},
    {"train": {"max_iters": 7, "val_interval": 3}, "batches": 3},
    {"train": {"max_iters": 7, "val_begin": 5, "val_interval": 2}, "batches": 2},
    {"train": {"max_iters": 12, "val_interval": 5, "dynamic_intervals": [(8, 2), (11, 1)]}, "batches": 5},
    {"train": {"max_iters": 12, "val_begin": 6, "val_interval": 3, "dynamic_intervals": [(10, 2)]}, "batches": 4},
    {"train": {"max_iters": 6, "val_interval": 6}, "batches": 3},
    {"train": {"max_iters": 4}, "batches": 4},
    {"train": {"max_iters": 9, "val_interval": 2}, "batches": 4, "stop": ("after_val", 4)},
    {"train": {"max_iters": 7, "val_interval": 4}, "batches": 4, "save": {"interval": 3, "save_last": False}},
    {"train": {"max_iters": 9}, "batches": 2, "save": {"interval": 2, "save_begin": 1, "save_last": False}},
    {"train": {"max_iters": 8, "val_interval": 9}, "batches": 3, "save": {"interval": 3, "save_begin": 4}},
    {"train": {"max_iters": 9, "val_interval": 4}, "batches": 4, "save": {"interval": 1},
     "stop": ("before_train_iter", 5)},
]  # fmt: skip


ALL = [pytest.param(case, id=str(i)) for i, case in enumerate([*EPOCHS, *ITERS])]


@pytest.mark.parametrize("case", ALL if os.environ.get("GRADCHAIN_LONG") else ALL[::2])
def test_every_hook_is_called_when_and_in_the_order_that_mmengine_has(case, tmp_path, monkeypatch):
    """Seven of a user's at numbers and names of priorities, beside six of its own, with their iter, epoch and index."""
    logging.disable(logging.CRITICAL)
    theirs = by_mmengine(case, tmp_path, monkeypatch)
    monkeypatch.undo()
    ours = by_ours(case, tmp_path, monkeypatch)
    assert ours == theirs
    monkeypatch.undo()
    assert by_converted(case, tmp_path, monkeypatch) == theirs
    stages = {line[1] for line in theirs}
    assert {"before_run", "before_train_iter", "after_train_iter", "before_save_checkpoint", "after_run"} <= stages
    assert {line[:2] for line in theirs} >= OURS - {("save", "after_val_epoch"), ("log", "after_val_epoch")}


class Adds:
    """A hook that adds others, in the run and before it, one of them by a priority of its own."""

    priority = "HIGH"

    def __new__(cls, lines):
        class Adding(hooks.Hook):
            priority = "HIGH"

            def before_run(self, runner):
                runner.register_hook(recorder("early", lines, None), "LOW")

            def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
                if runner.iter == 2:
                    runner.register_hook(recorder("late", lines, None))

        return Adding()


def exchanging(lines):
    """A hook that puts another loader in the place of the first, as MMDetection's YOLOXModeSwitchHook does."""

    class Exchanging(hooks.Hook):
        def before_train_epoch(self, runner):
            if runner.epoch == 1:
                runner.train_loop.dataloader = data(3)

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            lines.append((batch_idx, data_batch["inputs"].tolist()))

    return Exchanging()


@pytest.mark.parametrize("also", [Adds, exchanging])
def test_what_a_hook_does_to_its_runner_is_what_it_does_to_mmengines(also, tmp_path, monkeypatch):
    logging.disable(logging.CRITICAL)
    case = {"train": {"max_epochs": 3, "val_interval": 2}, "batches": 2, "also": [also], "save": {"interval": 1}}
    theirs = by_mmengine(case, tmp_path, monkeypatch)
    monkeypatch.undo()
    if also is Adds:  # one that is to come later in the moment, MMEngine calls then too; of an earlier one it hangs
        at_once = [("early", "before_run", 0), ("late", "after_train_iter", 2)]
        theirs = [line for line in theirs if line[:3] not in at_once]
    assert by_ours(case, tmp_path, monkeypatch) == theirs
    assert ("late" in {line[0] for line in theirs}) == (also is Adds)


def test_records_are_written_when_mmengine_writes_them(tmp_path, monkeypatch):
    """Every so many batches of each epoch, and behind the last of one that is shorter."""
    logging.disable(logging.CRITICAL)
    for batches, interval in ((3, 10), (4, 2), (5, 2), (3, 3), (1, 1), (2, 3)):
        folder = tmp_path / f"{batches}_{interval}"
        by_mmengine({"train": {"max_epochs": 3}, "batches": batches, "log": interval}, folder, monkeypatch)
        monkeypatch.undo()
        (file,) = folder.glob("*/vis_data/scalars.json")
        theirs = [r["iter"] for r in map(json.loads, file.read_text().splitlines()) if "loss" in r]
        updater, records = gch.sgd(0.01).bind(net := model()), []
        run = gch.loop(data(batches), updater, epochs=3, log=records.append, interval=interval)
        for batch in run:
            run.update(net(batch["inputs"]).square().mean())
        left = [3 * batches] if theirs[-1] < 3 * batches else []  # ours has what no record had
        assert [record["iter"] for record in records] == theirs + left, (batches, interval)
