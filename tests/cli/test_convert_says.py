"""What `convert` prints is read by people: what is said once, what has a reason, and what fits on a line."""

import ast
import re
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import gradchain as gch
from gradchain.__main__ import main
from gradchain.adapters import mmengine
from gradchain.cli.convert import convert
from gradchain.cli.recipe import chains, read

SGD = {"type": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
BASE = {"optim_wrapper": {"optimizer": SGD}, "train_cfg": {"by_epoch": True, "max_epochs": 12}}
OLD = {"optimizer": SGD, "optimizer_config": {}, "lr_config": {"policy": "step", "step": [8]}, "total_epochs": 12}
YOLO = {"type": "OptimWrapper", "constructor": "YOLOv5OptimizerConstructor",
        "optimizer": SGD | {"nesterov": True, "batch_size_per_gpu": 16}}  # fmt: skip
MULTI = {"constructor": "MultiOptimWrapperConstructor",
         "critic": {"type": "AmpOptimWrapper", "dtype": "bfloat16", "optimizer": SGD, "accumulative_counts": 2},
         "generator": {"optimizer": {"type": "Adam", "lr": 0.01}}}  # fmt: skip


def converted(folder, config, **given):
    path = folder / given.pop("name", "config.py")
    path.write_text("".join(f"{name} = {value!r}\n" for name, value in config.items()))
    return convert(path, **({"epoch_length": 100} | given))


def row(found, key):
    return [became for name, _, became in found.table if name == key]


def test_a_rate_of_the_old_format_is_scaled_too(tmp_path):
    """MMDetection from 2.25 on: by the batch over what the rate is for, before the schedule and the rules."""
    for enable, batch, rate in ((True, 16, 0.0025), (True, 64, 0.01), (False, 16, 0.01)):
        config = OLD | {"auto_scale_lr": {"enable": enable, "base_batch_size": 64}}
        found = converted(tmp_path, config, batch_size=batch)
        assert f"gch.schedules.multi_step({rate}, (8,))" in found.code
        assert row(found, "auto_scale_lr.base_batch_size") != ["not read: the other format is there"]
    with pytest.raises(ValueError, match="--batch-size must be given where auto_scale_lr is enabled"):
        converted(tmp_path, OLD | {"auto_scale_lr": {"enable": True, "base_batch_size": 64}})


def test_only_what_gradchain_says_is_a_remark(tmp_path, monkeypatch):
    """Packages that are looked through for a class say what they will."""
    path = tmp_path / "config.py"
    path.write_text(f"optim_wrapper = {BASE['optim_wrapper']}\ntrain_cfg = dict(max_epochs=3)\n"
                    "param_scheduler = dict(type='MultiStepLR', milestones=[9])\n")  # fmt: skip
    config, _, builder = read(path, 4, None, True)
    made = builder.parts

    def parts(config):
        warnings.warn("`torch.jit.script_method` is deprecated.", DeprecationWarning, stacklevel=1)
        warnings.warn("An import is slow. Use another.", UserWarning, stacklevel=1)
        return made(config)

    monkeypatch.setattr(builder, "parts", parts)
    [remark] = chains(builder, config)[1]
    assert "milestones [9] are never reached" in remark


def test_a_class_that_torch_has_is_looked_for_in_torch_alone(tmp_path):
    """In a process of its own: no package of optimizers is imported on the way."""
    path = tmp_path / "config.py"
    path.write_text(
        "optim_wrapper = dict(optimizer=dict(type='ZeroRedundancyOptimizer', optimizer_type='AdamW', lr=0.1,\n"
        "weight_decay=0.05), paramwise_cfg=dict(bias_decay_mult=0., custom_keys={'a': dict(lr_mult=2.)}))\n"
        "train_cfg = dict(max_epochs=3)\n"
    )
    program = (
        "import sys\nfrom gradchain.cli.convert import convert\n"
        f"convert({str(path)!r}, epoch_length=3)\n"
        "print([one for one in ('torch_optimizer', 'transformers', 'timm', 'torchao', 'heavyball', 'bitsandbytes',"
        " 'pytorch_optimizer') if one in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_decay_that_ranks_scale_is_that_of_the_ranks(tmp_path, capsys):
    """YOLOv5's: 16 on each of 8 is twice the batch of 64 that the decay is for; by the group where there is one."""
    config = BASE | {"optim_wrapper": YOLO}
    for ranks, decay in ((None, "0.0005"), (1, "0.0005"), (8, "0.001"), (16, "0.002")):
        found = converted(tmp_path, config, ranks=ranks)
        assert f"gch.multiply({decay}, (gch.bias |" in found.code
        told = [one for one in found.remarks if "is that of one rank" in one and "--ranks N" in one]
        assert len(told) == (ranks is None)
    assert main(["convert", str(tmp_path / "config.py"), "--epoch-length", "9", "--ranks", "8"]) == 0
    assert "gch.multiply(0.001, " in capsys.readouterr().out
    assert not any("rank" in one for one in converted(tmp_path, BASE).remarks)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator, self.critic = nn.Linear(2, 2), nn.Linear(2, 1)


def test_several_optimizers_train_in_the_order_of_a_gan(tmp_path, monkeypatch):
    """The critic first, whose update writes over what the generator's loss needs; each under its own context."""
    found = converted(tmp_path, BASE | {"optim_wrapper": MULTI})
    assert "a function that returns its loss" in said(found.loop)
    monkeypatch.chdir(tmp_path)
    exec(str(found), scope := {})
    updater, net, dtypes = scope["make"](net := Pair()), net, []
    before = [p.detach().clone() for p in net.parameters()]

    def forward(batch):
        def loss(name):
            out = net.critic(net.generator(batch))
            dtypes.append((name, out.dtype))
            return out.float().square().mean()

        return {name: lambda name=name: loss(name) for name in ("critic", "generator")}

    scope["train"](updater, [torch.randn(4, 2) for _ in range(4)], forward)
    assert dtypes[:2] == [("critic", torch.bfloat16), ("generator", torch.float32)]
    assert updater["critic"].clocks["step"] * 2 == updater["generator"].clocks["step"] == 48
    assert not any(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_to_go_on_is_an_argument_of_the_printed_function(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(str(converted(tmp_path, BASE | {"default_hooks": {"logger": None}})), scope := {})
    updates = []
    for more in ({}, {"resume": True}, {"resume": False}):
        net = nn.Linear(2, 1)
        given = [torch.ones(3, 2)] * 2, lambda batch, net=net: updates.append(1) or net(batch).mean()
        scope["train"](scope["make"](net), *given, **more)
        updates.append("|")
    assert "".join(map(str, updates)) == f"{'1' * 24}||{'1' * 24}|"  # the second had nothing left to do
    assert "hooks=(), resume=True):" in converted(tmp_path, BASE | {"resume": True, "val_cfg": None}).loop


def said(text):
    return re.sub(r"\s+", " ", text)


def test_a_constructor_that_is_not_known_is_one_short_sentence(tmp_path):
    config = BASE | {"optim_wrapper": {"optimizer": SGD, "constructor": "MyConstructor"}}
    with pytest.raises(ValueError, match="constructor must be one of") as refused:
        converted(tmp_path, config)
    sentence = str(refused.value)
    assert len(sentence) < 300
    assert "gradchain.adapters.mmengine.register_constructor" in sentence and "docs/openmmlab.md" in sentence
    config["optim_wrapper"]["constructor"] = "DefaultOptimWraperConstructor"
    with pytest.raises(ValueError, match="Did you mean 'DefaultOptimWrapperConstructor'"):
        converted(tmp_path, config)


def test_a_model_that_does_not_say_its_layers_is_told_how():
    given = {"optimizer": SGD, "constructor": "LearningRateDecayOptimWrapperConstructor",
             "paramwise_cfg": {"layer_decay_rate": 0.5}}  # fmt: skip
    with pytest.raises(NotImplementedError, match=r"get_layer_depth\(name\), which returns the layer of a parameter"):
        mmengine.param_settings(Pair(), given)


def test_modules_that_are_not_there_need_not_be_imported(tmp_path):
    config = BASE | {"custom_imports": {"imports": ["my_project_on_mmcv"]}}
    with pytest.raises(ValueError, match="Without --custom-imports it is not needed"):
        converted(tmp_path, config, custom_imports=True)
    assert converted(tmp_path, config).code


PIPELINE = [{"type": "LoadImageFromFile", "to_float32": True}, {"type": "RandomResize", "scale": (1280, 1280)}]
SWITCH = {"type": "PipelineSwitchHook", "switch_epoch": 10, "switch_pipeline": PIPELINE}


def test_a_hook_that_is_given_to_the_loop_is_one_remark_and_one_row(tmp_path):
    for config in (BASE, OLD | {"evaluation": {"interval": 1}}):
        found = converted(tmp_path, config | {"custom_hooks": [SWITCH, {"type": "EMAHook", "momentum": 0.1}]})
        remarks = [one for one in found.remarks if "PipelineSwitchHook" in one]
        assert remarks == [
            "PipelineSwitchHook is yours to give to the loop: train(…, hooks=[PipelineSwitchHook(switch_epoch=10, "
            "switch_pipeline=…)])."
        ]
        assert [name for name, *_ in found.table if name.startswith("custom_hooks")] == [
            "custom_hooks[0]", "custom_hooks[1].type", "custom_hooks[1].momentum",
        ]  # fmt: skip
        assert row(found, "custom_hooks[0]") == ["yours to give to the loop"]
    without = converted(tmp_path, {**BASE, "train_cfg": {"max_epochs": 3}, "custom_hooks": [SWITCH]})
    assert [one for one in without.remarks if "PipelineSwitchHook is not read; what it does to the update is" in one]


def test_what_decides_the_loop_is_said_to(tmp_path):
    runner = {"type": "IterBasedRunner", "max_iters": 90}
    config = {k: v for k, v in OLD.items() if k != "total_epochs"} | {"runner": runner, "evaluation": {"interval": 9}}
    assert row(converted(tmp_path, config), "runner.type") == ["the loop"]
    backends = [{"type": "LocalVisBackend"}]
    for more in ({"vis_backends": backends}, {}):
        found = converted(tmp_path, BASE | more | {"visualizer": {"type": "Visualizer", "vis_backends": backends}})
        rows = [name for name, *_ in found.table if name.endswith("vis_backends[0].type")]
        assert rows == (["vis_backends[0].type"] if more else ["visualizer.vis_backends[0].type"])


LONG = "stylegan2_c2-PL-R1_8xb4-apex-fp16-no-scaler-800kiters_ffhq-256x256-more.py"
KEYS = {f"a_long_name_of_a_module_{i}.with.another": {"decay_mult": 0.0} for i in range(9)}
MODULES = {"constructor": MULTI["constructor"], "a\\.\"b": {"optimizer": SGD}}  # fmt: skip


@pytest.mark.parametrize("wrapper", [
    {"optimizer": SGD}, YOLO, MULTI, MODULES, {"optimizer": SGD, "paramwise_cfg": {"custom_keys": KEYS}},
    {"optimizer": SGD, "constructor": "TSMOptimWrapperConstructor", "paramwise_cfg": {"fc_lr5": True}},
], ids=range(6))  # fmt: skip
def test_no_line_of_a_program_is_longer_than_a_linter_takes(wrapper, tmp_path):
    config = BASE | {
        "optim_wrapper": wrapper, "val_cfg": {}, "custom_hooks": [{"type": "EMAHook"}, SWITCH],
        "default_hooks": {"checkpoint": {"interval": 1, "max_keep_ckpts": 3, "save_best": ["coco/bbox_mAP", "PQ/acc"]}},
        **{f"a_name_that_is_not_read_{i}": i for i in range(30)},
    }  # fmt: skip
    config["param_scheduler"] = [
        {"type": "LinearLR", "start_factor": 1e-3, "by_epoch": False, "end": 500},
        {"type": "CosineAnnealingLR", "T_max": 7, "begin": 5, "end": 12, "convert_to_iter_based": True},
    ]
    printed = str(converted(tmp_path, config, name=LONG))
    table = printed.partition("# What each key became:")[2].partition("\n#\n")[0].splitlines()
    assert max(len(line) for line in printed.splitlines() if line not in table) <= 120
    compile(printed, "printed", "exec")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as an escape that Python does not know is one
        ast.parse(printed)
    if "tx = " in printed:
        exec(printed, scope := {})
        assert scope["tx"] == chains(*reversed(read(tmp_path / LONG, 100, None, True)[::2]))[0][0].chain


def test_a_file_may_have_any_name(tmp_path):
    config = BASE | {"val_cfg": {}}
    printed = str(converted(tmp_path, config, name='a "quoted" \\d.py'))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as an escape that Python does not know is one
        exec(printed, scope := {})
    assert scope["make"].__doc__ == 'The updater of a "quoted" \\d.py.'


def test_a_curve_that_two_groups_have_is_written_once(tmp_path):
    """YOLOv5's biases warm up from above, and else have the curve of the rest."""
    config = BASE | {"optim_wrapper": YOLO}
    config["default_hooks"] = {"param_scheduler": {"type": "YOLOv5ParamSchedulerHook", "max_epochs": 12}}
    found = converted(tmp_path, config, ranks=1)
    assert found.code.count("gch.linear(1.0, 0.01, 12)") == 2 and "\ncurve = " in found.code
    assert found.code.count("curve2") == 3
    exec(found.code, scope := {})
    [part] = chains(*reversed(read(tmp_path / "config.py", 100, None, True, 1)[::2]))[0]
    assert scope["tx"] == part.chain


def test_what_is_excluded_twice_has_a_name(tmp_path):
    keys = {key: {"decay_mult": 0.0, "lars_exclude": True} for key in ("bn", "bias", "downsample.1")}
    lars = {"optimizer": {"type": "LARS", "lr": 4.8, "momentum": 0.9, "weight_decay": 1e-6}}
    code = converted(tmp_path, BASE | {"optim_wrapper": lars | {"paramwise_cfg": {"custom_keys": keys}}}).code
    assert code.count("gch.named(") == 1 and code.count("where") == 5
    exec(code, {})


EMA = {"custom_hooks": [{"type": "EMAHook", "momentum": 0.001}]}


def test_numbers_that_are_not_those_of_the_file_have_their_reason_beside_them(tmp_path):
    steps = {"param_scheduler": {"type": "MultiStepLR", "milestones": [8]}}
    for wrapper, expected in (
        ({"accumulative_counts": 2}, ["in a window too", "0.998001, …) is 0.999 ** 2: MMEngine averages at each of 2"]),
        ({"type": "AmpOptimWrapper"}, ["after an overflow of the loss scale too"]),
        (
            {"type": "AmpOptimWrapper", "accumulative_counts": 2},
            ["in a window and after an overflow of the loss scale"],
        ),
        ({}, []),
        ({"accumulative_counts": 7}, ["in a window too"]),
    ):
        code = converted(tmp_path, {**BASE, **EMA, **steps, "optim_wrapper": {"optimizer": SGD, **wrapper}}).code
        notes = said(" ".join(line[1:] for line in code.splitlines()[2:] if line.startswith("#")))
        assert all(one in notes for one in expected) and bool(notes) == bool(expected)


def test_a_window_that_is_short_at_the_end_moves_no_schedule(tmp_path):
    code = converted(tmp_path, BASE | {"optim_wrapper": {"optimizer": SGD, "accumulative_counts": 7}}).code
    assert 'gch.by("micro", ' in code and "move at each iteration" not in code


def test_a_method_is_never_opened_around_a_short_number(tmp_path):
    scheduler = {"type": "LinearLrInterval", "interval": 2, "by_epoch": False, "start_factor": 1.0, "end_factor": 0.0,
                 "begin": 40, "end": 80}  # fmt: skip
    config = BASE | {"param_scheduler": scheduler, "train_cfg": {"by_epoch": False, "max_iters": 99}}
    assert not re.search(r"\(\n\s*\d+,\n\s*\)", converted(tmp_path, config).code)


def test_a_model_that_averages_by_itself_is_remarked_on(tmp_path):
    model = {"type": "StyleGAN2", "ema_config": {"type": "ExponentialMovingAverage"}, "discriminator_steps": 5}
    remarks = converted(tmp_path, BASE | {"model": model}).remarks
    assert any("ema_config, discriminator_steps are read by the model's own train_step" in one for one in remarks)
    assert not any("train_step" in one for one in converted(tmp_path, BASE | {"model": {"type": "A"}}).remarks)


def test_a_program_as_it_is_read():
    from gradchain.cli.code import literal, program

    given = {"type": "A", "keys": {"a.b": {"lr_mult": 1e-5}, "class": [1, (2,), None, float("inf"), 'a"b']}}
    written = program_of(literal(given))
    assert (
        written
        == """dict(type="A", keys={"a.b": dict(lr_mult=1e-05), "class": [1, (2,), None, float("inf"), 'a"b']})"""
    )
    assert eval(written) == given
    curve = (
        gch.constant(0.25).take(1).then(gch.linear(1.0, 0.5, 12_345)).then(gch.cosine(1.0, 0.0, 123_456)).take(99_999)
    )
    text = program(gch.chain(gch.scale_by_learning_rate(curve + 2.0 * (1.0 - curve) * curve)))
    assert max(map(len, text.splitlines())) <= 110
    assert eval(text, {"gch": gch}) == gch.chain(gch.scale_by_learning_rate(curve + 2.0 * (1.0 - curve) * curve))


def program_of(node):
    return ast.unparse(node)


def test_what_averages_or_moves_numbers_among_the_default_hooks_is_in_the_chain(tmp_path):
    """MMEngine registers every hook there, whatever its key; without a ParamSchedulerHook schedulers never move."""
    ema = {"type": "EMAHook", "momentum": 0.001}
    loop = {"type": "EpochBasedTrainLoop", "max_epochs": 12, "val_interval": 1}
    config = BASE | {"param_scheduler": [{"type": "PolyLR"}], "train_cfg": loop, "val_cfg": {"type": "ValLoop"}}
    for default, custom in (({"ema": ema, "logger": {"type": "LoggerHook"}}, []), ({"timer": None}, [ema])):
        found = converted(tmp_path, config | {"default_hooks": default, "custom_hooks": custom})
        assert "gch.average_params(0.999, start=1)" in found.code and "averaged=True" in found.loop
        assert not any("EMAHook" in remark for remark in found.remarks)
    found = converted(tmp_path, config | {"default_hooks": {"ema": ema}})
    assert row(found, "default_hooks.ema.momentum") == ["average_params"]
    with pytest.raises(ValueError, match=r"default_hooks\.param_scheduler: it must not be None, without which sched"):
        converted(tmp_path, config | {"default_hooks": {"param_scheduler": None}})


def test_what_stands_in_the_wrong_place_is_refused_before_the_model_is_there(tmp_path):
    """Of modules by a pattern too, which only the model names."""
    wrapper = {"constructor": "MultiOptimWrapperConstructor", "gen.*": {"optimizer": SGD, "weight_decay": 0.1}}
    with pytest.raises(ValueError, match=r"weight_decay must be inside optimizer; beside it nothing reads it\."):
        converted(tmp_path, BASE | {"optim_wrapper": wrapper})
