"""The printed loop validates, saves and logs when the loop of the config does, in all the ways that configs say it."""

from __future__ import annotations

import bisect
import random

import pytest
import torch
from later import later
from torch import nn

from gradchain.cli.convert import convert
from gradchain.cli.script import Writer

hooks = later("mmengine.hooks")

SGD = {"type": "SGD", "lr": 0.1}
NEW = {"optim_wrapper": {"optimizer": SGD}, "train_cfg": {"by_epoch": True, "max_epochs": 6}}
OLD = {"optimizer": SGD, "optimizer_config": None, "lr_config": {"policy": "fixed"}}


def converted(config, folder):
    folder.mkdir(exist_ok=True)
    path = folder / "config.py"
    path.write_text("".join(f"{name} = {value!r}\n" for name, value in config.items()))
    return convert(path, epoch_length=2)


def arguments(config, folder):
    """What the printed program gives to the loop, a line each."""
    lines = converted(config, folder).loop.splitlines()
    begin = lines.index("    run = gch.loop(")
    return [line.strip().rstrip(",") for line in lines[begin + 1 : lines.index("    )")]]


def counts(config, folder, monkeypatch):
    """Run it over two batches an epoch: how many batches were behind at each validation, and the files."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    scope = {}
    exec(str(converted(config, folder)), scope)
    net, validated = nn.Linear(1, 1), []
    scope["train"](
        scope["make"](net), [torch.ones(1, 1)] * 2, lambda x: net(x).sum(), lambda run: validated.append(run.iter)
    )
    saved = sorted(file.stem for file in folder.glob("work_dirs/config/*.pt"))
    return validated, saved


def of_mmcv(given, by_epoch, length):
    """mmcv 1.7's EvalHook._should_evaluate, with MMDetection's intervals that change, by their documents; and last."""
    found, start = [], given.get("start")
    pairs = [(0, given.get("interval", 1)), *given.get("dynamic_intervals", ())]
    for now in range(1, length + 1):
        every = pairs[bisect.bisect([begin for begin, _ in pairs], now) - 1][1]
        due = now % every == 0 if start is None else now >= start and (now - start) % every == 0
        if due or (now == length and now >= (start or 1)):
            found.append(now * (2 if by_epoch else 1))
    return found


@pytest.mark.parametrize(
    "given",
    [
        {"interval": 4, "metric": "mIoU"}, {"interval": 2, "start": 3}, {"interval": 2, "start": 4}, {"start": 5},
        {"interval": 3, "dynamic_intervals": [(7, 1)]}, {"interval": 4, "by_epoch": True},
        {"interval": 3, "start": 1}, {},
    ],
)  # fmt: skip
def test_an_old_config_validates_when_its_hook_does(given, tmp_path, monkeypatch):
    """In what its runner counts, which train_detector and its like write into the hook."""
    for by_epoch in (True, False):
        runner = {"type": "EpochBasedRunner", "max_epochs": 9} if by_epoch else {"type": "IterBasedRunner",
                  "max_iters": 9}  # fmt: skip
        config = OLD | {"runner": runner, "evaluation": given}
        found = counts(config, tmp_path / str(by_epoch), monkeypatch)[0]
        assert found == of_mmcv(given, by_epoch, 9)


@pytest.mark.parametrize(
    ("runner", "given", "expected"),
    [
        ({"max_epochs": 5}, {"interval": 2}, ["epoch_00000002", "epoch_00000004", "epoch_00000005"]),
        ({"max_iters": 5}, {"interval": 2}, ["iter_00000002", "iter_00000004", "iter_00000005"]),
        ({"max_iters": 5}, {"interval": 2, "by_epoch": False, "max_keep_ckpts": 1}, ["iter_00000005"]),
        ({"max_iters": 5}, {"max_keep_ckpts": 3}, ["iter_00000005"]),
        ({"max_epochs": 5}, None, []),
    ],
)
def test_an_old_config_saves_when_its_hook_does(runner, given, expected, tmp_path, monkeypatch):
    kind = "EpochBasedRunner" if "max_epochs" in runner else "IterBasedRunner"
    config = OLD | {"runner": {"type": kind, **runner}, "checkpoint_config": given, "evaluation": {}}
    assert counts(config, tmp_path / "run", monkeypatch)[1] == expected


def test_the_best_is_what_mmengines_hook_takes_for_it(tmp_path):
    """Three hundred names of numbers, with keys and rules of the config's own."""
    draw = random.Random(0)
    words = ["acc", "top", "AR@", "auc", "mAP", "loss", "LOSS", "coco", "val", "Acc", "x", "mIoU", "err"]
    for _ in range(300):
        names = ["/".join(draw.choices(words, k=draw.randint(1, 2))) + f"_{i}" * i for i in range(draw.randint(1, 3))]
        given = {"save_best": names if draw.random() < 0.7 or len(names) > 1 else names[0]}
        if draw.random() < 0.3:
            given["greater_keys"] = draw.choice(words) if draw.random() < 0.5 else draw.choices(words, k=2)
        if draw.random() < 0.3:
            given["less_keys"] = draw.choices(words, k=2)
        if draw.random() < 0.4:
            rules = draw.choices(["greater", "less"], k=draw.choice([1, len(names)]))
            given["rule"] = rules if draw.random() < 0.6 or len(rules) > 1 else rules[0]
        try:
            rules = hooks.CheckpointHook(**given).rules
        except ValueError:
            rules = None
        config = {"default_hooks": {"checkpoint": {"interval": 1, **given}}}
        writer = Writer(config, "a.py", ("max_epochs", 3), False, False, (), "")
        written = "; ".join(writer._checkpoints(False))
        if rules is None:
            assert writer._out.remarks, given
        else:
            pairs = [(name, {"greater": "max", "less": "min"}[rule]) for name, rule in zip(names, rules, strict=True)]
            expected = str(pairs if len(pairs) > 1 else pairs[0]).replace("'", '"')
            assert f"best={expected}" in written, given


LOG = 'log=[gch.loop.console(), "work_dirs/config/log.jsonl"]'


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"default_hooks": {"checkpoint": {"save_begin": 3, "interval": 2}}}, "every=range(3, 7, 2)"),
        ({"default_hooks": {"checkpoint": {"save_begin": 4, "interval": 2}}}, "every=[(4, 2)]"),
        ({"work_dir": "runs/a", "default_hooks": {"checkpoint": {"out_dir": "disk"}}}, '("disk/a", every'),
        ({"work_dir": 'my "best" \u00e4'}, 'gch.loop.checkpoints("my \\"best\\" \u00e4", every=1'),
        ({"work_dir": 'my "best" \u00e4'}, '"my \\"best\\" \u00e4/log.jsonl"'),
        ({"default_hooks": {"logger": {"interval": 7}}}, "interval=7"), ({"default_hooks": {"timer": None}}, LOG),
        ({"train_cfg": {"by_epoch": False, "max_iters": 9}, "default_hooks": {"checkpoint": {"interval": 1,
          "save_last": False}}}, 'every=None, unit="iter")'),
        ({"train_cfg": {"by_epoch": False, "max_iters": 9}, "default_hooks": {"checkpoint": {"interval": 2,
          "save_last": False}}}, "last=False"),
    ],
)  # fmt: skip
def test_what_a_config_says_of_its_loop_is_in_the_program(changed, line, tmp_path):
    assert [one for one in arguments(NEW | {"val_cfg": None} | changed, tmp_path) if line in one], line


def test_a_logger_that_is_switched_off_writes_nothing(tmp_path):
    for config in (NEW | {"default_hooks": {"logger": None}}, OLD | {"runner": {"max_epochs": 2}, "log_config": None,
                   "evaluation": {}}):  # fmt: skip
        assert not [one for one in arguments(config, tmp_path) if one.startswith(("log=", "interval="))]


def test_of_hooks_that_are_no_default_it_is_said_whether_they_run(tmp_path):
    """Those that do are given to the loop, in whichever of the two lists they stand; the others have their reason."""
    given = {"sync": {"type": "SyncBuffersHook"}, "own": {"type": "Mine", "n": 2, "priority": 30},
             "draw": {"type": "SegVisualizationHook"}, "off": None}  # fmt: skip
    config = NEW | {"default_hooks": given, "custom_hooks": [{"type": "ProfilerHook"}, {"type": "EmptyCacheHook"}]}
    remarks = converted(config, tmp_path).remarks
    for said in (
        "SyncBuffersHook is yours to give to the loop: train(…, hooks=[SyncBuffersHook()]).",
        "Mine is yours to give to the loop: train(…, hooks=[(Mine(n=2), 30)]).",
        "EmptyCacheHook is yours to give to the loop: train(…, hooks=[EmptyCacheHook()]).",
        "default_hooks.draw: SegVisualizationHook is not here: its part of the loop needs MMEngine's models or data.",
        "ProfilerHook is not here, because it writes by MMEngine's backends: put the loop in "
        "`with torch.profiler.profile(…)`.",
    ):
        assert said in remarks
