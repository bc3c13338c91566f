"""Where the rules of a recipe need the model, what `convert` prints reads them when it has one, and trains."""

import copy
import re
import sys

import pytest
import torch
from torch import nn

import gradchain as gch
from gradchain.__main__ import main
from gradchain.adapters import mmengine
from gradchain.adapters.mmengine.groups import params
from gradchain.cli.convert import convert

ADAMW = {"type": "AdamW", "lr": 0.01, "weight_decay": 0.05, "betas": (0.9, 0.98)}
SGD = {"type": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
MULTI = "MultiOptimWrapperConstructor"
EPOCH = 4
MODULE = """\
from gradchain.adapters import mmengine
@mmengine.register_constructor("SlowHead")
def slow_head(model, optim_wrapper):
    lr = optim_wrapper["optimizer"]["lr"] * optim_wrapper["paramwise_cfg"]["times"]
    head = list(model.head.parameters())
    rest = [p for name, p in model.named_parameters() if not name.startswith("head.")]
    return [{"params": rest}, {"params": head, "lr": lr}]
"""


class Trunk(nn.Module):
    """Blocks under the name that constructors look for."""

    def __init__(self, blocks="layers"):
        super().__init__()
        self.patch_embed, self.cls_token = nn.Linear(4, 4), nn.Parameter(torch.randn(4))
        setattr(self, blocks, nn.ModuleList(nn.Linear(4, 4) for _ in range(3)))
        self.blocks_of = blocks

    def forward(self, x):
        x = self.patch_embed(x) + self.cls_token
        for block in getattr(self, self.blocks_of):
            x = x + block(x).tanh()
        return x


class ConvNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        self.downsample_layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.stages = nn.ModuleList(nn.ModuleList([nn.Linear(4, 4)]) for _ in range(4))

    def forward(self, x):
        for down, [block] in zip(self.downsample_layers, self.stages, strict=True):
            x = x + block(down(x)).tanh()
        return x


class Net(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(4, 4)

    def forward(self, x):
        return self.head(self.backbone(x)).square().mean()


class Deep(Net):
    def get_layer_depth(self, name):
        """As MMPretrain's models have it."""
        if name.startswith("backbone.layers."):
            return int(name.split(".")[2]) + 1, 5
        return (0 if name.startswith("backbone") else 4), 5


def beit():
    return Net(type("BEiT", (Trunk,), {})())


def mvit():
    return Net(type("MViT", (Trunk,), {})("blocks"))


def wrapper(constructor, paramwise=None, optimizer=ADAMW, **more):
    made = {"type": "OptimWrapper", "optimizer": optimizer, "constructor": constructor, **more}
    return made if paramwise is None else made | {"paramwise_cfg": paramwise}


RATE = {"num_layers": 3, "layer_decay_rate": 0.5}
LAYERS = {"num_layers": 3, "decay_rate": 0.5, "decay_type": "layer_wise"}
FLOOR = {"type": "CosineAnnealingLR", "T_max": 3, "eta_min": 1e-3}
PLATEAU = {"type": "ReduceOnPlateauLR", "monitor": "acc", "rule": "greater", "min_value": [1e-3, 1e-2, 1e-3, 1e-2]}
OF_LISTS = {"one": {"optimizer": SGD, "modules": ["backbone.patch_embed", "head"]},
            "two": {"optimizer": ADAMW, "modules": r"backbone\.layers\.\d"}}  # fmt: skip
CASES = {
    "BEiT of MMSegmentation": (beit, wrapper("LayerDecayOptimizerConstructor", RATE, clip_grad={"max_norm": 1.0})),
    "BEiT, by its newer name": (beit, wrapper("mmseg.LearningRateDecayOptimizerConstructor", LAYERS)),
    "ConvNeXt of MMDetection": (
        lambda: Net(ConvNeXt()),
        wrapper("mmdet.LearningRateDecayOptimizerConstructor", LAYERS | {"num_layers": 6, "decay_type": "stage_wise"}),
    ),
    "get_layer_depth of MMPretrain": (
        lambda: Deep(Trunk()),
        wrapper("LearningRateDecayOptimWrapperConstructor",
                {"layer_decay_rate": 0.5, "custom_keys": {".cls_token": {"decay_mult": 0.0}}}),
    ),
    "MViT of MMAction2": (mvit, wrapper("mmaction.LearningRateDecayOptimizerConstructor", LAYERS)),
    "ViT of MMSelfSup": (
        beit,
        wrapper("mmselfsup.LearningRateDecayOptimWrapperConstructor", {"custom_keys": {"bias": {"decay_mult": 0.0}}},
                ADAMW | {"model_type": "vit", "layer_decay_rate": 0.5}),
    ),
    "TSM": (
        lambda: nn.Sequential(nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1), nn.Flatten(1), nn.Linear(4, 4)),
        wrapper("TSMOptimWrapperConstructor", {"fc_lr5": True}, SGD),
    ),
    "one's own": (beit, wrapper("SlowHead", {"times": 0.1}, SGD)),
    "patterns of modules": (
        beit,
        {"constructor": MULTI, r"backbone\.(layers\.\d|patch_embed)": {"optimizer": SGD}, "head": {"optimizer": ADAMW}},
    ),
    "lists of modules": (beit, {"constructor": MULTI, **OF_LISTS}),
    "a floor, and rates by layer": (beit, wrapper("LayerDecayOptimWrapperConstructor", RATE)),
    "a plateau with a floor for each group": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)),
        wrapper("DefaultOptimWrapperConstructor", {"bias_lr_mult": 2.0}, SGD),
    ),
}  # fmt: skip
SCHEDULERS = {"a floor, and rates by layer": FLOOR, "a plateau with a floor for each group": PLATEAU}
STEPS = {"type": "MultiStepLR", "milestones": [1, 2]}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module with a constructor; what it registers is taken out again."""
    monkeypatch.setattr(params, "registered", {})
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_constructor.py").write_text(MODULE)
    yield
    sys.modules.pop("my_constructor", None)


def config_of(wrapper, scheduler=STEPS, **more):
    config = {"optim_wrapper": wrapper, "param_scheduler": scheduler, "val_cfg": {"type": "ValLoop"}}
    config["train_cfg"] = {"by_epoch": True, "max_epochs": 3, "val_interval": 1}
    return config | {"custom_imports": {"imports": ["my_constructor"]}} | more


def written(folder, config):
    path = folder / "config.py"
    path.write_text("".join(f"{name} = {value!r}\n" for name, value in config.items()))
    return str(path)


def twins(make):
    torch.manual_seed(0)
    net = make().double()
    return net, copy.deepcopy(net)


def losses(net, updater, batch):
    """What the user's forward gives: a loss, or a function for each updater."""
    if not isinstance(updater, gch.Group):
        return loss_of(net, batch)
    return {name: lambda: loss_of(net, batch) for name in updater}


def loss_of(net, batch):
    return net(batch if isinstance(net, Net) or isinstance(net[0], nn.Linear) else batch[..., None]).square().mean()


def batches():
    torch.manual_seed(1)
    return [torch.randn(8, 4, dtype=torch.float64) for _ in range(EPOCH)]


def trained(printed, net, folder, monkeypatch):
    """Run a printed program, its training included."""
    monkeypatch.chdir(folder)
    exec(compile(printed, "printed", "exec"), scope := {})
    updater, accuracy = scope["make"](net), iter(range(9, 0, -1))
    scope["train"](updater, batches(), lambda batch: losses(net, updater, batch), lambda: {"acc": next(accuracy)})
    return updater


def beside(net, updater):
    """The same updates by hand."""
    accuracy = iter(range(9, 0, -1))
    for _ in range(3):
        for batch in batches():
            if isinstance(updater, gch.Group):
                for one in updater.values():
                    one.update(loss_of(net, batch))
            else:
                updater.update(loss_of(net, batch))
        if "on_plateau" in str(getattr(updater, "chain", "")):
            updater.observe("acc", next(accuracy))
        for one in updater.values() if isinstance(updater, gch.Group) else [updater]:
            one.tick("epoch") if "epoch" in one.clocks else None
    return updater


@pytest.mark.parametrize("name", CASES)
def test_what_is_printed_trains_as_from_config(name, own, tmp_path, monkeypatch, capsys):
    """Weight by weight; and who reads the program finds the config in it, and why it is there."""
    make, given = CASES[name]
    scheduler = SCHEDULERS.get(name, STEPS)
    path = written(tmp_path, config_of(given, scheduler))
    assert main(["convert", path, "--epoch-length", str(EPOCH), "--custom-imports"]) == 0
    printed = capsys.readouterr().out
    assert "mmengine.from_config(\n        model,\n        " in printed and "tx = " not in printed
    assert "make(model) reads it, by mmengine.from_config, and print(updater" in said(printed)
    assert max(map(len, printed.partition("\n# What each key")[0].splitlines())) <= 120
    assert ("import my_constructor\n" in printed) is True
    net, same = twins(make)
    ours = trained(printed, net, tmp_path, monkeypatch)
    theirs = beside(same, mmengine.from_config(same, given, scheduler, max_epochs=3, epoch_length=EPOCH))
    assert repr(ours) == repr(theirs)
    moved = [torch.equal(a, b) for a, b in zip(net.parameters(), twins(make)[0].parameters(), strict=True)].count(False)
    assert moved >= len([*net.parameters()]) - 1  # several optimizers leave one parameter out
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), same.parameters(), strict=True))


def said(printed):
    """Comments and sentences without their line breaks."""
    return re.sub(r"\s+", " ", re.sub(r"\n#\s+", " ", printed))


DECAYED = wrapper("LayerDecayOptimizerConstructor", RATE)
OPTIONS = {
    "an average": (config_of(DECAYED, custom_hooks=[{"type": "EMAHook"}, {"type": "MyHook", "n": 3}]), [],
                   {"custom_hooks": [{"type": "EMAHook"}]}),
    "a rate that is scaled": (config_of(DECAYED, auto_scale_lr={"enable": True, "base_batch_size": 16}),
                              ["--batch-size", "64"],
                              {"auto_scale_lr": {"enable": True, "base_batch_size": 16, "batch_size": 64}}),
    "a hook that sets the rate": (
        config_of(DECAYED, None, default_hooks={"timer": {"type": "IterTimerHook"},
                                                "param_scheduler": {"type": "PPYOLOEParamSchedulerHook"}}), [],
        {"default_hooks": {"param_scheduler": {"type": "PPYOLOEParamSchedulerHook"}}}),
    "what is not strict": (config_of(DECAYED | {"grad_clip": {}}), ["--no-strict"], {"strict": False}),
    "half precision, and a window": (
        config_of(DECAYED | {"type": "AmpOptimWrapper", "dtype": "bfloat16", "accumulative_counts": 2}), [], {}),
    "a loop of iterations": (config_of(DECAYED, {"type": "PolyLR", "by_epoch": False},
                                       train_cfg={"by_epoch": False, "max_iters": 9}), [], {}),
    "MMPose's own factor": (config_of(DECAYED, {"type": "ConstantLR", "factor": 2.5, "end": 2},
                                      default_scope="mmpose"), [], {}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:mmengine.from_config")
@pytest.mark.parametrize("name", OPTIONS)
def test_what_the_recipe_was_read_with_reaches_from_config(name, own, tmp_path, capsys):
    config, options, given = OPTIONS[name]
    assert main(["convert", written(tmp_path, config), "--epoch-length", "400", *options]) == 0
    exec(capsys.readouterr().out, scope := {})
    schedulers = config["param_scheduler"]
    if "default_scope" in config:
        schedulers = schedulers | {"_scope_": "mmpose"}
    length = {key: value for key, value in config["train_cfg"].items() if key.startswith("max_")}
    theirs = mmengine.from_config(beit(), config["optim_wrapper"], schedulers, epoch_length=400, **length, **given)
    ours = scope["make"](beit())
    assert repr(ours) == repr(theirs) and ours.hyperparams() == theirs.hyperparams()


def test_the_old_format_needs_the_model_too(own, tmp_path, monkeypatch, capsys):
    config = {
        "optimizer": SGD | {"constructor": "TSMOptimizerConstructor", "paramwise_cfg": {"fc_lr5": True}},
        "optimizer_config": {"grad_clip": {"max_norm": 0.5}}, "lr_config": {"policy": "step", "step": [1, 2]},
        "custom_hooks": [{"type": "LinearMomentumEMAHook", "momentum": 0.1}], "evaluation": {"interval": 1},
        "auto_scale_lr": {"enable": True, "base_batch_size": 16}, "total_epochs": 3,
    }  # fmt: skip
    assert main(["convert", written(tmp_path, config), "--epoch-length", str(EPOCH), "--batch-size", "8"]) == 0
    net, same = twins(CASES["TSM"][0])
    ours = trained(capsys.readouterr().out, net, tmp_path, monkeypatch)
    given = {key: config[key] for key in ("optimizer", "optimizer_config", "lr_config")}
    theirs = beside(same, mmengine.from_config(
        same, given, max_epochs=3, epoch_length=EPOCH, custom_hooks=config["custom_hooks"],
        auto_scale_lr=config["auto_scale_lr"] | {"batch_size": 8},
    ))  # fmt: skip
    assert repr(ours) == repr(theirs) and "0.05" in repr(ours)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), same.parameters(), strict=True))


CLIP = {"clip_grad": {"max_norm": -1.0}}
REFUSED = {
    "a scheduler": (config_of(DECAYED, {"type": "NoSuchLR"}), "type must be a known scheduler, got 'NoSuchLR'"),
    "a window of one": (config_of(DECAYED, {"type": "LinearLR", "begin": 3, "end": 2}), "end must be above begin"),
    "a clip": (config_of(DECAYED | CLIP), "clip_grad: max_norm must be a positive number, got -1.0"),
    "an optimizer": (config_of(DECAYED | {"optimizer": {"type": "NoSuch", "lr": 0.1}}), "there is no optimizer 'NoSu"),
    "layers": (config_of(wrapper("LayerDecayOptimizerConstructor", {"layer_decay_rate": 0.5})), "num_layers must be a"),
    "a rate": (config_of(wrapper("LayerDecayOptimizerConstructor", {"num_layers": 3})), "layer_decay_rate must be a"),
    "a key": (config_of(wrapper("LayerDecayOptimizerConstructor", RATE | {"rate": 0.5})), "every key must be one that"),
    "TSM": (config_of(wrapper("TSMOptimWrapperConstructor", {}, SGD) | {"paramwise_cfg": {"fc": 1}}), "have fc_lr5"),
    "a model's type": (config_of(wrapper("mmselfsup.LearningRateDecayOptimWrapperConstructor")), "must have a model_"),
    "a decay": (
        config_of(wrapper("LearningRateDecayOptimWrapperConstructor", {"layer_decay_rate": 0.5},
                          {"type": "SGD", "lr": 0.1})), "optimizer must have weight_decay"),
    "a pattern": (config_of({"constructor": MULTI, "a(b": {"optimizer": SGD}}), "modules must be names or patterns of"),
    "rules of a list": (
        config_of({"constructor": MULTI, "a": {"optimizer": SGD, "modules": ["b", "c"],
                                               "paramwise_cfg": {"bias_lr_mult": 2.0}}}), "paramwise_cfg must be emp"),
    "an average": (config_of(DECAYED, custom_hooks=[{"type": "EMAHook", "momentum": 2}]), "momentum must be a number"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_from_config_refuses_without_a_look_at_the_model_is_refused_now(name, tmp_path, capsys):
    config, sentence = REFUSED[name]
    assert main(["convert", written(tmp_path, config), "--epoch-length", "4"]) == 1
    printed = capsys.readouterr()
    assert sentence in printed.err and not printed.out


def test_unbound_still_says_that_there_is_no_chain_without_the_model():
    for given, scheduler in ((DECAYED, None), (CASES["lists of modules"][1], None),
                             (CASES["a plateau with a floor for each group"][1], PLATEAU)):  # fmt: skip
        with pytest.raises(NotImplementedError, match=r"depends on the model\. mmengine\.from_config\(model, …\)"):
            mmengine.unbound(given, scheduler, max_epochs=3, epoch_length=4)


def test_what_the_table_says_where_the_model_decides(tmp_path):
    config = config_of(DECAYED | {"clip_grad": {"max_norm": 1.0}}, custom_imports=None)
    rows = {key: became for key, _, became in convert(written(tmp_path, config), epoch_length=4).table}
    assert rows["optim_wrapper.paramwise_cfg.layer_decay_rate"] == "from_config reads it, where the model is"
    assert rows["optim_wrapper.clip_grad.max_norm"] == "clip_by_norm"
    assert rows["param_scheduler.milestones"] == "scale_by_learning_rate"
