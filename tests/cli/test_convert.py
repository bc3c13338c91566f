"""`python -m gradchain convert`: what it prints runs, and is the recipe."""

import gzip
import importlib.util
import itertools
import json
import math
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import gradchain as gch
from gradchain.__main__ import main
from gradchain.adapters import mmengine, torch_names
from gradchain.adapters.mmengine.entries import Entry
from gradchain.adapters.mmengine.groups.params import optimizers
from gradchain.cli.code import WIDTH, program
from gradchain.cli.convert import convert
from gradchain.core import config as links
from gradchain.selectors.rules import settings_of
from gradchain.updater.target import Target

DATA = Path(__file__).parents[3] / "shared" / "openmmlab"
recorded = pytest.mark.skipif(not DATA.exists(), reason="the recorded recipes are not at ../shared/openmmlab")
MULTI = "MultiOptimWrapperConstructor"

SGD = {"type": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
CLIPPED = {
    "optim_wrapper": {"type": "OptimWrapper", "optimizer": SGD, "clip_grad": {"max_norm": 35, "norm_type": 2}},
    "param_scheduler": [{"type": "MultiStepLR", "milestones": [8, 11], "by_epoch": True, "gamma": 0.1}],
    "train_cfg": {"type": "EpochBasedTrainLoop", "max_epochs": 12, "val_interval": 1},
    "model": {"type": "RetinaNet"},
}


def rows(name):
    if not DATA.exists():
        return []
    with gzip.open(DATA / name, "rt") as file:
        return [json.loads(line) for line in file]


def config_of(row):
    """A recorded recipe as the names of a config file."""
    wrapper = row["optim_wrapper"]
    if "optimizer" not in wrapper:
        wrapper = {"constructor": MULTI, **wrapper}
    config = {"optim_wrapper": wrapper, "param_scheduler": row["param_scheduler"]}
    config["train_cfg"] = {"max_epochs": row["epochs"]} if "epochs" in row else {"max_iters": row.get("iters")}
    return config | ({"custom_hooks": row["hooks"]} if row.get("hooks") else {})


def kind(row):
    """What makes a recipe another kind of recipe: its types and the keys of its rules."""
    wrapper, schedulers = row["optim_wrapper"], row["param_scheduler"]
    parts = [wrapper.get("type"), wrapper.get("constructor"), sorted(wrapper.get("paramwise_cfg") or {})]
    parts += [wrapper.get("optimizer", {}).get("type"), sorted(wrapper.get("clip_grad") or {})]
    return str([*parts, json.dumps(schedulers).count("type"), "convert_to" in json.dumps(schedulers), "hooks" in row])


KINDS = list({kind(row): row for row in rows("recipes.jsonl.gz")}.values())


# Why some are refused: what no chain is, and what MMEngine fails on as well.
REASONS = (
    r"it makes one optimizer for each (resolution|stage), and the model changes",
    r"type 'DeepSpeedOptimWrapper' is not read",
    r"needs at least one optimizer",
    r"a scheduler that reads a metric is no function of the step",
    r"optimizer must have weight_decay where bias_decay_mult multiplies it",
    r"the config must say how long the run is",
    r"end must be above begin",
)


def named(row):
    return row["id"]


def write(folder, config):
    path = folder / "config.py"
    path.write_text("\n".join(f"{name} = {value!r}" for name, value in config.items()))
    return path


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm1d(4), nn.Conv2d(4, 4, 1, groups=4)
        self.attn, self.bn = nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, x):
        return x + self.bn(self.attn(self.conv(self.norm(x)[..., None, None]).flatten(1))).tanh()


class Small(nn.Module):
    """A model with what the rules of recipes are about."""

    def __init__(self, names=(), keys=()):
        super().__init__()
        torch.manual_seed(0)
        self.cls_token = nn.Parameter(torch.randn(4))
        self.absolute_pos_embed = nn.Parameter(torch.randn(4))
        self.backbone, self.head = nn.Sequential(Block(), Block()), nn.Linear(4, 4)
        self.used = names
        for name in names:
            self.add_module(name, Block())
        for key in keys:
            self.grow("outer." + key.strip("."))
        self.double()

    def grow(self, path):
        """A module whose name has the key of a rule in it."""
        here = self
        for step in [*path.split("."), "deep"]:
            if step not in here._modules:
                here.add_module(step, Block())
            here = here._modules[step]

    def forward(self, x):
        x = self.backbone(x + self.cls_token + self.absolute_pos_embed)
        for name in self.used:
            x = self._modules[name](x)
        return self.head(x).tanh().mean()


def executed(printed, config):
    """What a printed program makes of a fresh model."""
    names = [key for key, value in config["optim_wrapper"].items() if isinstance(value, dict) and "optimizer" in value]
    rules = config["optim_wrapper"].get("paramwise_cfg") or {}
    keys = rules.get("custom_keys", [key for key, value in rules.items() if isinstance(value, dict)])
    model, same = (Small(names, keys) for _ in range(2))
    scope = {"model": model}
    exec(compile(printed, "printed", "exec"), scope)
    return model, scope["make"](model), same


def numbers(updater):
    """Every number of every parameter, by address."""
    if isinstance(updater, gch.Group):
        return {f"{key}/{name}": value for key, one in updater.items() for name, value in numbers(one).items()}
    return updater.hyperparams()


def check_same(ours, theirs):
    """Equal numbers, whether one stands for all parameters or each has its own."""
    assert ours.keys() == theirs.keys()
    for address, one in ours.items():
        other = theirs[address]
        names = {*(one if isinstance(one, dict) else ()), *(other if isinstance(other, dict) else ())} or {None}
        for name in names:
            a, b = (value[name] if isinstance(value, dict) else value for value in (one, other))
            assert math.isclose(a, b, rel_tol=1e-12), (address, name)


def train(model, updater, steps=6):
    """Some micro-batches; of several optimizers each makes its step."""
    torch.manual_seed(1)
    for _ in range(steps):
        x = torch.randn(8, 4, dtype=torch.float64)
        for one in updater.values() if isinstance(updater, gch.Group) else [updater]:
            one.update(model(x))
    return torch.nn.utils.parameters_to_vector(model.parameters())


@recorded
def test_there_are_many_kinds_of_recipes():
    assert len(KINDS) >= 80


@recorded
@pytest.mark.parametrize(
    "row", [*KINDS[::2], *(pytest.param(r, marks=pytest.mark.slow) for r in KINDS[1::2])], ids=named
)
def test_the_printed_code_is_the_recipe(row, tmp_path, capsys):
    """It runs, and moves the weights of a model as `from_config` does, which reads the rules beside the model."""
    config = config_of(row)
    path = write(tmp_path, config)
    if main(["convert", str(path), "--epoch-length", "3", "--no-strict"]):
        refused = capsys.readouterr().err
        assert any(re.search(reason, refused) for reason in REASONS), refused
        return
    printed = capsys.readouterr().out
    length = {key: value for key, value in config["train_cfg"].items() if value}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model, updater, same_model = executed(printed, config)
        except (AttributeError, NotImplementedError, ValueError) as error:  # the toy lacks what its rules ask for
            assert "mmengine.from_config(" in printed and str(error).startswith("mmengine.")
            return
        beside = mmengine.from_config(
            same_model, config["optim_wrapper"], config["param_scheduler"], **length, epoch_length=3,
            custom_hooks=config.get("custom_hooks"), strict=False,
        )  # fmt: skip
    check_same(numbers(updater), numbers(beside))
    if "Amp" in str(config["optim_wrapper"]) or "YOLOv" in str(config["optim_wrapper"]):
        return  # float64 weights have no use for a loss scale; what is no weight or bias, YOLO's constructor leaves out
    ours, theirs = train(model, updater), train(same_model, beside)
    assert not torch.equal(ours, torch.nn.utils.parameters_to_vector(Small().parameters()))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    check_same(numbers(updater), numbers(beside))


@recorded
def test_most_kinds_are_converted(tmp_path):
    """The rest is refused since its rules depend on the model, or for what no chain can be."""
    done = 0
    for row in KINDS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                mmengine.unbound(
                    config_of(row)["optim_wrapper"], row["param_scheduler"], epoch_length=3, strict=False,
                    **({"max_epochs": row["epochs"]} if "epochs" in row else {"max_iters": row.get("iters", 9)}),
                )  # fmt: skip
            except (NotImplementedError, ValueError):
                continue
        done += 1
    assert done >= 60


def modules():
    spec = importlib.util.spec_from_file_location("openmmlab_modules", DATA / "modules.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def own(row):
    return not row.get("error") and row["constructor"].startswith(("Default", "ForceDefault")) and row.get("params")


PARAMWISE = [row for row in rows("paramwise.jsonl.gz") if own(row)]


@recorded
@pytest.mark.parametrize("module", sorted({row["module"] for row in PARAMWISE}))
def test_rules_without_a_model_come_to_the_recorded_settings(module):
    """Written for any model and resolved by this one, by factors and by values."""
    model = modules().build(module)
    facts = Target(model).index.entries
    tried = 0
    for row in (row for row in PARAMWISE if row["module"] == module):
        config = {"constructor": row["constructor"], **row["optim_wrapper"]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rules = optimizers(None, Entry("optim_wrapper", config, False))[0].parameters
        for field in ("lr", "weight_decay"):
            base = config["optimizer"].get(field)
            if base is None:
                continue
            for proportional in (True, False):
                value = rules.value(field, base, float, proportional=proportional)
                try:
                    with warnings.catch_warnings():
                        warnings.filterwarnings("ignore", ".*missing_ok=True.* matches none")  # a key it has not
                        found = settings_of(value, facts)
                except ValueError as error:
                    assert "matches none" in str(error)  # a kind that this model has not
                    continue
                for (name, parameter, _), setting in zip(facts, found, strict=True):
                    wanted = row["params"].get(name)
                    if "conv_offset" in name and "dcn_offset_lr_mult" in (config.get("paramwise_cfg") or {}):
                        continue  # only a model tells that what it is in is none of mmcv's: a remark says so
                    if wanted is not None and parameter.requires_grad:
                        ours = math.prod(setting.factors, start=setting.value)
                        assert math.isclose(ours, wanted[field], rel_tol=1e-15), (row["id"], field, name)
                        tried += 1
    assert tried


def test_a_printed_program_is_imported_and_shown_as_it_is(tmp_path, capsys):
    """Into a file, and that file is what `show` reads and a training imports: no name in it is left open."""
    path = write(tmp_path, CLIPPED)
    assert main(["convert", str(path), "--epoch-length", "100"]) == 0
    printed = tmp_path / "converted.py"
    printed.write_text(capsys.readouterr().out)
    assert main(["show", str(printed)]) == 0
    assert "gch.clip_by_norm(35)" in capsys.readouterr().out
    exec(printed.read_text(), scope := {})
    assert repr(scope["make"](Small()).chain) == repr(scope["tx"])


def test_the_program_and_its_table(tmp_path, capsys):
    path = write(tmp_path, CLIPPED)
    assert main(["convert", str(path), "--epoch-length", "100"]) == 0
    code, _, notes = capsys.readouterr().out.partition("\n# What each key became:\n")
    assert code == (
        "# The optimization part of config.py: updater = make(model).\n"
        "import gradchain as gch\n"
        "\n"
        "tx = gch.chain(\n"
        "    gch.clip_by_norm(35),\n"
        "    gch.add_decayed_weights(0.0001),\n"
        "    gch.trace(0.9),\n"
        "    gch.scale_by_learning_rate(0.1 * gch.schedules.per_epoch(gch.schedules.multi_step(1.0, (8, 11)), 100)),\n"
        ")\n"
        "\n"
        "\n"
        "def make(model):\n"
        '    """The updater of config.py."""\n'
        "    return tx.bind(model)\n"
        "\n"
        "\n"
        "def train(updater, loader, forward, hooks=(), resume=False):\n"
        '    """The loop of config.py: forward(batch) gives its loss."""\n'
        "    run = gch.loop(\n"
        "        loader,\n"
        "        updater,\n"
        "        epochs=12,\n"
        '        checkpoint=gch.loop.checkpoints("work_dirs/config", every=1, unit="epoch"),\n'
        "        resume=resume,\n"
        "        hooks=hooks,\n"
        '        log=[gch.loop.console(), "work_dirs/config/log.jsonl"],\n'
        "        interval=10,\n"
        "    )\n"
        "    for batch in run:\n"
        "        with updater.context():\n"
        "            loss = forward(batch)\n"
        "        run.update(loss)\n"
        "    return run\n"
    )
    table = dict(line[1:].split(maxsplit=1) for line in notes.splitlines() if line.startswith("#   "))
    became = {key: re.split(r"\s{2,}", rest)[-1] for key, rest in table.items()}
    assert became == {
        "optim_wrapper.type": "nothing: the chain is the same without it",
        "optim_wrapper.optimizer.type": "the rule",
        "optim_wrapper.optimizer.lr": "scale_by_learning_rate",
        "optim_wrapper.optimizer.momentum": "trace",
        "optim_wrapper.optimizer.weight_decay": "add_decayed_weights",
        "optim_wrapper.clip_grad.max_norm": "clip_by_norm",
        "optim_wrapper.clip_grad.norm_type": "clip_by_norm",
        "param_scheduler[0].type": "scale_by_learning_rate",
        "param_scheduler[0].milestones": "scale_by_learning_rate",
        "param_scheduler[0].by_epoch": "scale_by_learning_rate",
        "param_scheduler[0].gamma": "scale_by_learning_rate",
        "train_cfg.type": "the loop",
        "train_cfg.max_epochs": "the length of the run",
        "train_cfg.val_interval": "nothing: the file has no val_cfg",
    }
    assert "# Not read: model.\n" in notes


def test_the_whole_output_is_a_program(tmp_path):
    """What is not code in it is a comment."""
    path = write(tmp_path, CLIPPED | {"param_scheduler": [{"type": "MultiStepLR", "milestones": [8, 20]}]})
    found = convert(path, epoch_length=100)
    assert [remark for remark in found.remarks if "milestones [20] are never reached" in remark]
    scope = {"model": Small()}
    exec(str(found), scope)
    assert repr(scope["make"](scope["model"]).chain).startswith("chain(\n    clip_by_norm(35),\n")
    assert max(map(len, found.code.splitlines())) <= WIDTH + 20


def test_the_old_format(tmp_path):
    config = {
        "optimizer": SGD | {"paramwise_cfg": {"norm_decay_mult": 0.0}},
        "optimizer_config": {"grad_clip": {"max_norm": 35}},
        "lr_config": {
            "policy": "step",
            "warmup": "linear",
            "warmup_iters": 500,
            "warmup_ratio": 0.001,
            "step": [8, 11],
        },
        "runner": {"type": "EpochBasedRunner", "max_epochs": 12},
    }
    code = convert(write(tmp_path, config), epoch_length=100).code
    assert "gch.clip_by_norm(35)" in code
    assert "gch.add_decayed_weights(gch.multiply(0.0001, (norm, 0.0)))" in code
    scope = {"model": Small()}
    exec(code, scope)
    lr = mmengine.schedules(lr_config=config["lr_config"], max_epochs=12, epoch_length=100)["lr"](0.1)
    assert scope["make"](scope["model"]).hyperparams()["scale_by_learning_rate.learning_rate"] == lr(0)
    other = {k: v for k, v in config.items() if k != "runner"} | {"total_epochs": 12}
    assert convert(write(tmp_path, other), epoch_length=100).code == code


def test_several_optimizers_become_a_group(tmp_path):
    wrapper = {"constructor": MULTI, "generator": {"optimizer": SGD}, "disc": {"optimizer": SGD, "modules": "critic"}}
    found = convert(write(tmp_path, CLIPPED | {"optim_wrapper": wrapper}), epoch_length=1)
    assert "    return gch.group(\n        generator=tx_generator.bind(model." in found.code
    model = Small(["generator", "critic"])
    scope = {"model": model}
    exec(found.code, scope)
    assert list(scope["make"](scope["model"])) == ["generator", "disc"]
    assert {row[0]: row[2] for row in found.table}["optim_wrapper.disc.optimizer.momentum"] == "disc/trace"


def test_a_loss_scale_and_a_scaled_rate(tmp_path):
    wrapper = {"type": "AmpOptimWrapper", "optimizer": SGD, "dtype": "bfloat16"}
    config = CLIPPED | {"optim_wrapper": wrapper, "auto_scale_lr": {"enable": True, "base_batch_size": 16}}
    path = write(tmp_path, config)
    code = convert(path, epoch_length=1, batch_size=64).code
    assert "amp_scale" not in code  # only float16 is scaled
    assert ".bind(model, autocast=torch.bfloat16)" in code
    assert "import torch\n" in code
    assert "0.4 * gch.schedules" in code
    with pytest.raises(ValueError, match="--batch-size must be given where auto_scale_lr is enabled"):
        convert(path, epoch_length=1)


REFUSED = {
    "no recipe": ({"model": 1}, [], "convert: the config must have optim_wrapper, or optimizer"),
    "no length": ({k: v for k, v in CLIPPED.items() if k != "train_cfg"}, [], "convert: the config must say how long"),
    "no epochs": (CLIPPED, [], "convert: --epoch-length must be given"),
    "misspelt": (
        CLIPPED | {"optim_wrapper": {"optimizer": SGD, "grad_clip": {"max_norm": 1}}},
        ["--epoch-length", "9"],
        "mmengine.from_config: optim_wrapper: every key must be known, got 'grad_clip'; did you mean 'clip_grad'?",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_one_sentence_and_exit_code_1(name, tmp_path, capsys):
    config, options, sentence = REFUSED[name]
    assert main(["convert", str(write(tmp_path, config)), *options]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert sentence in printed.err
    assert printed.err.count("\n") == 1


def test_half_precision_has_a_loss_scale(tmp_path):
    for dtype in ("float16", None):
        wrapper = {"type": "AmpOptimWrapper", "optimizer": SGD, "dtype": dtype}
        code = convert(write(tmp_path, CLIPPED | {"optim_wrapper": wrapper}), epoch_length=1).code
        assert "gch.amp_scale()" in code and ".bind(model, autocast=torch.float16)" in code


def test_what_is_not_read_is_listed(tmp_path):
    """Names without a part in the chain, and those whose values are not read; hooks only where they do nothing."""
    path = write(tmp_path, CLIPPED | {"default_hooks": {"logger": {"type": "LoggerHook"}}})
    assert sorted(convert(path, epoch_length=9).unread) == ["model"]
    path.write_text(path.read_text() + "\nprompt = open('x')\ndef f():\n    pass\n")
    assert sorted(convert(path, epoch_length=9).unread) == ["f", "model", "prompt"]
    path.write_text(path.read_text() + "\ndefault_hooks['param_scheduler'] = open('x')\n")
    found = convert(path, epoch_length=9)
    assert "default_hooks" in found.unread and [r for r in found.remarks if r.startswith("default_hooks is not read")]


@pytest.mark.parametrize("kind", ["YOLOv5ParamSchedulerHook", "mmyolo.PPYOLOEParamSchedulerHook"])
def test_a_hook_that_sets_the_schedule_is_read(kind, tmp_path):
    config = {k: v for k, v in CLIPPED.items() if k != "param_scheduler"}
    config["default_hooks"] = {
        "param_scheduler": {"type": kind, "warmup_epochs": 2},
        "timer": {"type": "IterTimerHook"},
    }
    found = convert(write(tmp_path, config), epoch_length=700)
    assert "1400" in found.code and "default_hooks.param_scheduler.warmup_epochs" in [row[0] for row in found.table]
    config["default_hooks"]["param_scheduler"]["type"] = "MyHook"
    with pytest.raises(ValueError, match="type must be one of PPYOLOEParamSchedulerHook, ParamSchedulerHook, YOLOv5"):
        convert(write(tmp_path, config), epoch_length=700)
    found = convert(write(tmp_path, config), epoch_length=700, strict=False)
    assert any("what another does to the update is yours" in remark for remark in found.remarks)


def test_an_optimizer_at_the_top_is_of_the_old_format(tmp_path):
    """Without optimizer_config too: its rules stand inside it."""
    config = {"optimizer": SGD | {"paramwise_cfg": {"bias_decay_mult": 0.0}}, "total_epochs": 3}
    assert "gch.bias & ~norm & " in convert(write(tmp_path, config), epoch_length=1).code


def test_types_are_of_the_project_that_the_file_is_of(tmp_path):
    rising = [{"type": "ConstantLR", "factor": 2.5, "begin": 3, "end": 4}]
    config = CLIPPED | {"param_scheduler": rising}
    with pytest.raises(ValueError, match=r"factor must be a number from 0 to 1, got 2\.5; only MMPose's own"):
        convert(write(tmp_path, config), epoch_length=1)
    assert "2.5" in convert(write(tmp_path, config | {"default_scope": "mmpose"}), epoch_length=1).code


def test_custom_imports_are_imported_where_asked_for(tmp_path, monkeypatch, capsys):
    """A registered optimizer works in the command: MMEngine's registry, or ours. The program says how it is known."""
    for known, name in itertools.product((torch_names.registered, links.registered), ("TwiceSGD", "ThriceSGD")):
        monkeypatch.setitem(known, name, None)  # so that it is taken out again at the end
        del known[name]
    names = {"mine": "TwiceSGD", "ours": "ThriceSGD"}
    (tmp_path / "mine_of_mm.py").write_text(
        "import torch\nfrom mmengine.registry import OPTIMIZERS\n@OPTIMIZERS.register_module()\n"
        f"class {names['mine']}(torch.optim.SGD):\n    pass\n"
    )
    (tmp_path / "ours_of_gch.py").write_text(
        f"import torch\nimport gradchain as gch\n@gch.register()\nclass {names['ours']}(torch.optim.SGD):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for module, kind in (("mine_of_mm", names["mine"]), ("ours_of_gch", names["ours"])):
        config = CLIPPED | {
            "custom_imports": {"imports": [module], "allow_failed_imports": False},
            "optim_wrapper": {"optimizer": {"type": kind, "lr": 0.1}},
        }
        path = str(write(tmp_path, config))
        assert main(["convert", path, "--epoch-length", "2"]) == 1
        assert f"there is no optimizer '{kind}'" in capsys.readouterr().err
        assert main(["convert", path, "--epoch-length", "2", "--custom-imports"]) == 0
        scope = {"model": Small()}
        exec(capsys.readouterr().out, scope)
        assert kind in repr(scope["make"](scope["model"]).chain)
    plain = CLIPPED | {"custom_imports": {"imports": "no_such_module_at_all"}}
    found = convert(write(tmp_path, plain), epoch_length=2)
    assert "custom_imports names no_such_module_at_all: --custom-imports imports it" in found.remarks[0]
    with pytest.raises(ValueError, match="custom_imports: 'no_such_module_at_all' cannot be imported"):
        convert(write(tmp_path, plain), epoch_length=2, custom_imports=True)
    plain["custom_imports"]["allow_failed_imports"] = True
    assert convert(write(tmp_path, plain), epoch_length=2, custom_imports=True).code.count("import ") == 1


def test_iterations_need_no_epoch_length(tmp_path):
    config = CLIPPED | {"train_cfg": {"max_iters": 20}, "param_scheduler": [{"type": "PolyLR", "by_epoch": False}]}
    assert "polynomial" in convert(write(tmp_path, config)).code
    config["param_scheduler"] = [{"type": "LinearLR", "convert_to_iter_based": True, "end": 1}]
    with pytest.raises(ValueError, match="--epoch-length must be given"):
        convert(write(tmp_path, config))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["convert", "x.py", "--epoch-length", "0"], "must be a whole number of at least 1, got '0'"),
        (["invert"], "invalid choice: 'invert'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_bad_options_are_one_sentence_and_exit_code_2(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("command", ["convert", "show"])
def test_a_reader_that_has_gone_is_no_error(command, tmp_path, monkeypatch):
    """As `| head`: not when it is written, nor when the interpreter flushes what is left."""
    read, write_end = os.pipe()
    os.close(read)
    path = write(tmp_path, CLIPPED)
    with open(write_end, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main([command, str(path), "--epoch-length", "9"]) == 0
        pipe.write("more")


def test_no_strict_says_it_in_a_remark(tmp_path, capsys):
    path = write(tmp_path, CLIPPED | {"optim_wrapper": {"optimizer": SGD, "grad_clip": {"max_norm": 1}}})
    assert main(["convert", str(path), "--epoch-length", "9", "--no-strict"]) == 0
    assert "# Remarks:\n#   mmengine.from_config: optim_wrapper: every key" in capsys.readouterr().out


def test_the_command_in_a_process_of_its_own(tmp_path):
    path = write(tmp_path, CLIPPED)
    command = [sys.executable, "-m", "gradchain", "convert", str(path), "--epoch-length", "100"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(gch.__file__).parents[1], check=True)
    assert done.stdout == f"{convert(path, epoch_length=100)}\n"


def test_code_is_opened_where_it_is_long():
    link = gch.masked(
        gch.add_decayed_weights(0.5), gch.named(*(f"a_rather_long_name_of_a_layer_{i}" for i in range(5)))
    )
    text = program(gch.chain(link, gch.scale_by_sign()))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert eval(text, {"gch": gch}) == gch.chain(link, gch.scale_by_sign())
    assert program(gch.clip_by_value(math.inf)) == 'gch.clip_by_value(float("inf"))'
    long = [gch.schedules.per_epoch(gch.schedules.multi_step(1.0, (10_000 + i, 20_000)), 1000) for i in range(3)]
    for product in (0.1 * long[0] * long[1], 0.1 * (long[0] + long[1]), (long[0] + long[1]) * long[2]):
        text = program(gch.chain(gch.scale_by_learning_rate(product)))
        assert eval(text, {"gch": gch}) == gch.chain(gch.scale_by_learning_rate(product))
    assert "\n        * gch.schedules" in program(gch.chain(gch.scale_by_learning_rate(0.1 * long[0] * long[1])))


def test_a_norm_is_written_only_where_a_rule_is_about_norms(tmp_path):
    rules = {"custom_keys": {"norm": {"decay_mult": 0.0}}}
    wrapper = {"optimizer": SGD, "paramwise_cfg": rules}
    code = convert(write(tmp_path, CLIPPED | {"optim_wrapper": wrapper}), epoch_length=1).code
    assert 'gch.named("*norm*")' in code
    assert "norm = " not in code


def test_rules_are_written_where_they_are(tmp_path):
    """MMPretrain's LARS is made of a link of gch.rules; the program runs."""
    wrapper = {"optimizer": {"type": "LARS", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-6}}
    code = convert(write(tmp_path, CLIPPED | {"optim_wrapper": wrapper}), epoch_length=1).code
    assert "gch.rules.scale_by_trust_ratio(" in code
    scope = {"model": Small()}
    exec(code, scope)
    assert train(scope["model"], scope["make"](scope["model"]), steps=1).isfinite().all()
