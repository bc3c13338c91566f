"""Every way a paramwise_cfg can be wrong is named, and constructors that no recording has do as their source says."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from mmengine_live import value_of
from torch import nn

import gradchain as gch
from gradchain.adapters import mmengine
from gradchain.adapters.mmengine.groups import params

SGD = {"type": "SGD", "lr": 0.1, "weight_decay": 0.01}
KNOWN = "bias_decay_mult, bias_lr_mult, bypass_duplicate, custom_keys, dcn_offset_lr_mult, dwconv_decay_mult"


def small() -> nn.Module:
    return nn.ModuleDict({"backbone": nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)), "head": nn.Linear(2, 2)})


def wrapper(optimizer: Any = SGD, constructor: str | None = None, **paramwise: Any) -> dict[str, Any]:
    made = {"optimizer": optimizer, "paramwise_cfg": paramwise}
    return made if constructor is None else made | {"constructor": constructor}


def keyed(**entry: Any) -> dict[str, Any]:
    return {"custom_keys": {"backbone": entry}}


FAULTS: list[tuple[dict[str, Any], str]] = [
    (wrapper(norm_decay=0.0), "paramwise_cfg: every key must be one that DefaultOptimWrapperConstructor reads, got "
     "'norm_decay'; did you mean 'norm_decay_mult'?"),
    (wrapper(_delete=True, bias_lr_mult=2.0), "paramwise_cfg: every key must be one that "
     "DefaultOptimWrapperConstructor reads, got '_delete'; did you mean '_delete_'?"),
    (wrapper(warmup=True), "paramwise_cfg: every key must be one that DefaultOptimWrapperConstructor reads, got "
     f"'warmup'; it reads {KNOWN}, flat_decay_mult, norm_decay_mult."),
    (wrapper(lr_mult=0.1), "paramwise_cfg: lr_mult must be in an entry of custom_keys; here nothing reads it."),
    (wrapper(decay_mult=0.1), "paramwise_cfg: decay_mult must be in an entry of custom_keys; here nothing reads it."),
    (wrapper(**keyed(decay_multi=0.0)), "custom_keys['backbone']: every key must be one that "
     "DefaultOptimWrapperConstructor reads, got 'decay_multi'; did you mean 'decay_mult'?"),
    (wrapper(SGD | {"type": "NobodysOptimizer"}, **keyed(lr_multi=0.0, own_option=3)), "custom_keys['backbone']: every "
     "key must be one that DefaultOptimWrapperConstructor reads, got 'lr_multi'; did you mean 'lr_mult'?"),
    (wrapper(**keyed(wd_mult=0.0, lars_exclude=True)), "custom_keys['backbone']: every key must be one that "
     "DefaultOptimWrapperConstructor reads, got 'wd_mult'; did you mean 'decay_mult'? custom_keys['backbone']: every "
     "key must be one that DefaultOptimWrapperConstructor reads, got 'lars_exclude'; it reads decay_mult, lr_mult, and "
     "the optimizer's own arguments."),
    (wrapper(custom_keys={"backbon3": {}, "head": {}}), "custom_keys: every key must be a part of a trained "
     "parameter's name that no longer key is in, got 'backbon3', which takes none."),
    (wrapper(custom_keys={"backbone": {}, "backbone.": {}, "neck": {}}), "custom_keys: every key must be a part of a "
     "trained parameter's name that no longer key is in, got 'backbone', 'neck', which take none."),
    (wrapper() | {"weight_decay": 0.05}, "weight_decay must be inside optimizer; beside it nothing reads it."),
    (wrapper() | {"custom_keys": {}}, "custom_keys must be inside paramwise_cfg; beside it nothing reads it."),
    (wrapper(SGD | {"paramwise_cfg": {}}), "paramwise_cfg must be beside optimizer, not inside it."),
    (wrapper({"type": "SGD", "lr": 0.1}, flat_decay_mult=0.0), "optimizer must have weight_decay where flat_decay_mult "
     "multiplies it."),
    (wrapper(constructor="SwinOptimWrapperConstructor", **keyed(decay_multi=0.0)), "custom_keys['backbone']: every key "
     "must be one that SwinOptimWrapperConstructor reads, got 'decay_multi'; did you mean 'decay_mult'?"),
    (wrapper(constructor="TSMOptimWrapperConstructor", fc_lr5=True, fc_lr_5=True), "paramwise_cfg: every key must be "
     "one that TSMOptimWrapperConstructor reads, got 'fc_lr_5'; did you mean 'fc_lr5'?"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "sentence"), FAULTS)
def test_what_cannot_act_is_named(config: dict[str, Any], sentence: str) -> None:
    """Strict refuses it in these words; otherwise it is one warning for each, from the user's own line."""
    with pytest.raises(ValueError) as refused:
        mmengine.param_settings(small(), config)
    name = config.get("constructor", "DefaultOptimWrapperConstructor")
    assert str(refused.value) == f"mmengine.param_settings: {name}: {sentence}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settings = mmengine.param_settings(small(), config, strict=False)
    assert {w.filename for w in caught} == {__file__}
    head = f"mmengine.param_settings: {name}: "
    assert " ".join(str(w.message).removeprefix(head) for w in caught) == sentence
    assert set(settings) == {name for name, _ in small().named_parameters()}


LAYERED = "LearningRateDecayOptimizerConstructor"
REFUSED: list[tuple[Any, type[Exception], str]] = [
    ([SGD], TypeError, "optim_wrapper must be a dict, got [{'type': 'SGD', 'lr': 0.1, 'weight_decay': 0.01}]."),
    ({"paramwise_cfg": {}}, ValueError, "optim_wrapper: optimizer must be given."),
    ({"optimizer": None}, TypeError, "optim_wrapper must have optimizer, a dict, got None."),
    (wrapper() | {"paramwise_cfg": [1]}, TypeError, "paramwise_cfg must be a dict or None, got [1]."),
    (wrapper(constructor="MyConstructor"), ValueError, "constructor must be one of those that docs/openmmlab.md "
     "lists, got 'MyConstructor'. One of your own is made known by gradchain.adapters.mmengine.register_constructor"),
    (wrapper(custom_keys=["head"]), TypeError, "custom_keys must be a dict, got ['head']."),
    (wrapper(custom_keys={"head": 0.1}), TypeError, "custom_keys['head'] must be a dict, got 0.1."),
    (wrapper(**keyed(lr_mult="0.1")), TypeError, "custom_keys['backbone']['lr_mult'] must be a number, got '0.1'."),
    (wrapper(norm_decay_mult="0"), TypeError, "norm_decay_mult must be a number, got '0'."),
    (wrapper({"type": "Adam"}, bias_lr_mult=2.0), TypeError,
     "optimizer must have lr, a number, where it is multiplied, got None."),
    (wrapper({"type": "SGD", "lr": 0.1}, norm_decay_mult=0.0), ValueError,
     "optimizer must have weight_decay where norm_decay_mult multiplies it."),
    (wrapper({"type": "SGD", "lr": 0.1}, **keyed(decay_mult=0.0)), ValueError,
     "optimizer must have weight_decay where custom_keys['backbone']['decay_mult'] multiplies it."),
    (wrapper(constructor="LearningRateDecayOptimWrapperConstructor", layer_decay_rate=0.5), NotImplementedError,
     "the model must have a method get_layer_depth(name), which returns the layer of a parameter and how many layers "
     "there are; ModuleDict has none, and its backbone's does not count. Without one write gch.scale_by_learning_rate("
     "gch.multiply(rate, gch.layer_decay(…)))."),
    (wrapper(constructor=f"mmseg.{LAYERED}", num_layers=3, decay_rate=0.5), NotImplementedError,
     "it must be layer_wise for a ConvNeXt, BEiT or MAE, or stage_wise for a ConvNeXt, got 'layer_wise' for a "
     "Sequential."),
    (wrapper(constructor=f"mmaction.{LAYERED}", num_layers=3, decay_rate=0.5), NotImplementedError,
     "it must be layer_wise for an MViT or VisionTransformer, got 'layer_wise' for a Sequential."),
    (wrapper(constructor=LAYERED, decay_rate=0.5), TypeError, "num_layers must be a number, got None."),
    (wrapper(constructor="LayerDecayOptimWrapperConstructor") | {"paramwise_cfg": None}, TypeError,
     "paramwise_cfg must be given."),
    (wrapper(constructor="mmselfsup.LearningRateDecayOptimWrapperConstructor"), AssertionError,
     "optimizer must have a model_type, 'vit', 'swin' or 'mixmim', got None."),
    (wrapper(SGD | {"model_type": "swin"}, "LearningRateDecayOptimWrapperConstructor"), AttributeError,
     "a Sequential must have depths, and has none."),
    ({"constructor": "PGGANOptimWrapperConstructor"}, ValueError, "'PGGANOptimWrapperConstructor' is not read"),
    (wrapper(constructor="YOLOv5OptimizerConstructor", total=64), AssertionError,
     "paramwise_cfg must have base_total_batch_size."),
    (wrapper(constructor="TSMOptimWrapperConstructor", fc_lr=True), KeyError, "paramwise_cfg must have fc_lr5."),
]  # fmt: skip


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
@pytest.mark.parametrize(("config", "kind", "sentence"), REFUSED)
def test_what_mmengine_fails_on_is_refused(config: Any, kind: type[Exception], sentence: str, strict: bool) -> None:
    """In both modes, and in a sentence."""
    with pytest.raises(kind) as caught:
        mmengine.param_settings(small(), config, strict)
    assert str(caught.value.args[0]).startswith("mmengine.param_settings: ")
    assert sentence in caught.value.args[0]


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the optimizer must get a parameter, and gets none\."):
        mmengine.param_settings(small().requires_grad_(False), wrapper(bias_lr_mult=2.0))


def settled(model: nn.Module, config: dict[str, Any], *fields: str) -> dict[str, Any]:
    found = mmengine.param_settings(model, config)
    return {
        name: items and tuple(items.get(field) for field in fields or ("lr", "weight_decay"))
        for name, items in found.items()
    }


def test_the_old_default_constructor() -> None:
    """mmcv 1.x: a norm is taken by its own rule, set or not; a depthwise bias by the depthwise rule; frozen stays."""
    model = small()
    model["head"].weight.requires_grad_(False)
    given = {"bias_decay_mult": 0.0, "dwconv_decay_mult": 0.5, "bias_lr_mult": 2.0}
    model["backbone"].append(nn.Conv2d(2, 2, 1, groups=2))
    found = settled(model, wrapper(constructor="DefaultOptimizerConstructor", **given))
    assert found == {
        "backbone.0.weight": (0.1, 0.01), "backbone.0.bias": (0.2, 0.0),
        "backbone.1.weight": (0.1, 0.01), "backbone.1.bias": (0.1, 0.01),
        "backbone.2.weight": (0.1, 0.005), "backbone.2.bias": (0.2, 0.005),
        "head.weight": (0.1, 0.01), "head.bias": (0.2, 0.0),
    }  # fmt: skip


@pytest.mark.parametrize("first_form", [False, True])
def test_swin_multiplies_by_every_key(first_form: bool) -> None:
    """Keys that are part of the name all multiply; the constructor's first form has them at the top."""
    keys = {"backbone": {"lr_mult": 0.5}, "1": {"lr_mult": 0.5, "decay_mult": 0.0}, "head": {"decay_mult": 2.0}}
    given = keys if first_form else {"custom_keys": keys}
    model = small()
    config = wrapper(constructor="SwinOptimWrapperConstructor", **given)
    assert settled(model, config) == {
        "backbone.0.weight": (0.05, 0.01), "backbone.0.bias": (0.05, 0.01),
        "backbone.1.weight": (0.025, 0.0), "backbone.1.bias": (0.025, 0.0),
        "head.weight": (0.1, 0.02), "head.bias": (0.1, 0.02),
    }  # fmt: skip
    lr = value_of(model, config, "lr")
    assert repr(lr) == 'multiply(0.1, (named("*backbone*"), 0.5), (named("*1*"), 0.5))'


def test_yolov7_has_implicit_knowledge_without_decay() -> None:
    """Its weights decay by the size of the batch: 2 windows of 40 for 64."""

    class ImplicitA(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.implicit = nn.Parameter(torch.zeros(1, 2))

    model = small()
    model["implicit"] = ImplicitA()
    config = wrapper(SGD | {"batch_size_per_gpu": 40}, "YOLOv7OptimWrapperConstructor") | {"paramwise_cfg": None}
    found = settled(model, config, "weight_decay")
    assert found == {
        "backbone.0.weight": (0.0125,), "backbone.0.bias": (0,), "backbone.1.weight": (0,), "backbone.1.bias": (0,),
        "head.weight": (0.0125,), "head.bias": (0,), "implicit.implicit": (0,),
    }  # fmt: skip
    decay = value_of(model, config, "weight_decay")
    assert repr(decay) == 'multiply(0.0125, (bias | norm | owner_named("ImplicitA", "ImplicitM"), 0.0))'
    config["constructor"] = "YOLOv5OptimizerConstructor"
    with pytest.raises(
        ValueError, match=r"every trained parameter must be in a group, got none for 'implicit\.implicit'\.$"
    ):
        mmengine.param_settings(model, config)


class Staged(nn.Module):
    """A backbone with two stages of two blocks, a downsampling after each, and a head."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.backbone, self.head = nn.Module(), nn.Linear(2, 2, bias=False)
        self.backbone.patch_embed, self.backbone.depths = nn.Linear(2, 2), [2, 2]
        stages = []
        for _ in range(2):
            stage = nn.Module()
            stage.blocks = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(2)])
            stage.downsample = nn.Module()
            stage.downsample.reduction = nn.Linear(2, 2, bias=False)
            stages.append(stage)
        setattr(self.backbone, name, nn.ModuleList(stages))


@pytest.mark.parametrize(
    ("kind", "name", "powers"),
    [("swin", "stages", (5, 5, 4, 3, 3, 2, 1, 1, 0)), ("mixmim", "layers", (5, 5, 4, 3, 3, 2, 1, 1, 1))],
)
def test_mmselfsup_knows_stages(kind: str, name: str, powers: tuple[int, ...]) -> None:
    """Depths by stage and block; decay by custom keys alone, of which the shortest wins."""
    optimizer = SGD | {"model_type": kind, "layer_decay_rate": 0.5}
    model = Staged(name)
    config = wrapper(optimizer, "mmselfsup.LearningRateDecayOptimWrapperConstructor",
                     custom_keys={"blocks": {"decay_mult": 0.5}, ".1": {"decay_mult": 0.0}})  # fmt: skip
    found = settled(model, config)
    assert [lr for lr, _ in found.values()] == [0.5**power * 0.1 for power in powers]
    decays = [decay for key, (_, decay) in found.items() if "blocks" in key]
    assert decays == [0.005, 0.0, 0.0, 0.0]


def test_layers_of_what_no_recording_has() -> None:
    """MMPose's ViT; MMAction2's has no batch norms; TSM wants layers it knows."""
    model = small()
    config = wrapper(constructor="LayerDecayOptimWrapperConstructor", num_layers=2, layer_decay_rate=0.5)
    model.backbone.layers = nn.ModuleList([nn.Linear(2, 2)])
    model.backbone.pos_embed = nn.Parameter(torch.zeros(1, 2, 2))
    found = settled(model, config)
    assert found["backbone.layers.0.weight"] == (0.5**2 * 0.1, 0.01) and found["backbone.pos_embed"] == (
        0.5**3 * 0.1,
        0.0,
    )

    class MViT(nn.Sequential): ...

    model.backbone = MViT(nn.BatchNorm2d(2))
    with pytest.raises(AssertionError, match=r"the model must have no batch norms\."):
        mmengine.param_settings(model, wrapper(constructor=LAYERED, num_layers=3, decay_rate=0.5))
    with pytest.raises(ValueError, match=r"every layer must be a convolution, Linear or normalisation, got a PReLU\."):
        mmengine.param_settings(
            nn.Sequential(nn.PReLU()), wrapper(constructor="TSMOptimWrapperConstructor", fc_lr5=True)
        )


def test_several_optimizers() -> None:
    """MMagic's constructor: by child, with its own paramwise_cfg; by regex; and one for several modules."""
    model = small()
    model["text"] = nn.ModuleDict({"a": nn.Embedding(2, 2), "b": nn.Linear(2, 2)})
    config = {
        "constructor": "MultiOptimWrapperConstructor",
        "head": wrapper(bias_lr_mult=2.0),
        "words": {"optimizer": SGD | {"lr": 0.5}, "modules": [".*text.a", "backbone"]},
    }
    found = mmengine.param_settings(model, config)
    names = [name for name, _ in model.named_parameters()]
    assert {key: [n for n in names if items[n] is not None] for key, items in found.items()} == {
        "head": ["head.weight", "head.bias"],
        "words": [n for n in names if n.startswith(("backbone", "text.a"))],
    }
    assert (
        found["head"]["head.bias"] == {"lr": 0.2, "weight_decay": 0.01} and found["words"]["text.a.weight"]["lr"] == 0.5
    )
    one = {"constructor": "MultiOptimWrapperConstructor", "modules": ["head"], "optimizer": SGD}
    assert [n for n, items in mmengine.param_settings(model, one).items() if items] == ["head.weight", "head.bias"]
    with pytest.raises(ValueError, match=r"'head' must be a dict with an optimizer as a submodule's name, got 3\."):
        mmengine.param_settings(model, config | {"head": 3})
    with pytest.raises(AssertionError, match=r"paramwise_cfg must be empty for an optimizer of several modules\."):
        mmengine.param_settings(model, config | {"text.a": wrapper(bias_lr_mult=2.0)})


def test_offsets_of_deformable_convolutions() -> None:
    """mmcv's classes are known by name; torchvision's, which are called alike, are none to MMEngine either."""
    for module, lr in (("mmcv.ops.deform_conv", 0.05), ("torchvision.ops.deform_conv", 0.2)):
        cls = type("DeformConv2dPack", (type("DeformConv2d", (nn.Module,), {"__module__": module}),), {})
        model = nn.ModuleDict({"dcn": cls(), "head": nn.Linear(2, 2)})
        model["dcn"].conv_offset = nn.Conv2d(2, 2, 1)
        found = settled(model, wrapper(bias_lr_mult=2.0, dcn_offset_lr_mult=0.5, flat_decay_mult=0.0))
        offset = module.startswith("mmcv")
        assert found["dcn.conv_offset.bias"] == (lr, 0.01 if offset else 0.0)
        assert found["dcn.conv_offset.weight"] == (0.05 if offset else 0.1, 0.01)


def test_offsets_without_a_model() -> None:
    """They are known by what mmcv calls them, and the chain is that of a model that has mmcv's class."""
    cls = type("ModulatedDeformConv2d", (nn.Module,), {"__module__": "mmcv.ops.modulated_deform_conv"})
    model = nn.ModuleDict({"dcn": cls(), "head": nn.Linear(2, 2), "body": nn.Conv2d(2, 2, 1)})
    model["dcn"].conv_offset = nn.Conv2d(2, 2, 1)
    rules = {"bias_lr_mult": 2.0, "dcn_offset_lr_mult": 0.5, "bias_decay_mult": 0.25, "flat_decay_mult": 0.0}
    config, length = wrapper(**rules), {"max_iters": 10, "epoch_length": 10}
    with pytest.warns(UserWarning, match=r"every Conv2d that is called conv_offset: whether it is in one of mmcv's"):
        [part] = mmengine.unbound(config, **length)
    without, at_hand = part.chain.bind(model).hyperparams(), mmengine.from_config(model, config, **length).hyperparams()
    address = "scale_by_learning_rate.learning_rate"
    assert without[address] == at_hand[address] and without[address]["dcn.conv_offset.bias"] == 0.05
    assert without == at_hand


def test_what_wraps_a_model_is_looked_through() -> None:
    """Names are those that bind gives: without `module.` for a wrapper, with it for what only looks like one."""
    config = wrapper(custom_keys={".head": {"lr_mult": 0.5}, "head": {"lr_mult": 0.1}})
    wrapped = nn.DataParallel(small())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = set(mmengine.param_settings(wrapped, config, strict=False))
        assert names == {name for name, _ in small().named_parameters()}
        alike = nn.ModuleDict()
        alike.module, alike.more = small(), nn.Linear(2, 2)
        found = mmengine.param_settings(alike, config, strict=False)
    assert found["module.head.weight"]["lr"] == 0.1 * 0.1 and found["more.weight"] is None


VALUES: list[tuple[dict[str, Any], str, bool, str]] = [
    (wrapper(norm_decay_mult=0.0, bias_decay_mult=0.0), "weight_decay", True, "multiply(0.01, (norm | bias, 0.0))"),
    (wrapper(norm_decay_mult=0.0), "weight_decay", False, "choose((norm, 0.0), rest=0.01)"),
    (wrapper(bias_lr_mult=2.0), "lr", True, "multiply(0.1, (bias & ~norm, 2.0))"),
    (wrapper(custom_keys={"head": {"lr": 0.007}}), "lr", True, 'choose((named("*head*"), 0.007), rest=0.1)'),
    (wrapper(SGD | {"weight_decay": 0.0}, custom_keys={"head": {"weight_decay": 0.5}}), "weight_decay", True,
     'choose((named("*head*"), 0.5), rest=0.0)'),
    (wrapper(SGD | {"momentum": 0.9}, custom_keys={"head": {"momentum": 0.45}}), "momentum", True,
     'choose((named("*head*"), 0.45), rest=0.9)'),
    (wrapper({"type": "SGD", "lr": 0.1}), "momentum", True, "0.0"),
    (wrapper(custom_keys={"bias": {"lr_mult": 0.5}, "backbone.0": {"lr_mult": 0.1}}), "lr", True,
     'multiply(0.1, first((named("*backbone.0*"), 0.1), (named("*bias*"), 0.5)))'),
    (wrapper(custom_keys={"head": {"lr_mult": 0.5}, "backbone": {"lr_mult": 0.1}}), "lr", True,
     'multiply(0.1, (named("*backbone*"), 0.1), (named("*head*"), 0.5))'),
]  # fmt: skip


@pytest.mark.parametrize(("config", "field", "proportional", "code"), VALUES)
def test_a_value_is_written_as_a_person_would(config: Any, field: str, proportional: bool, code: str) -> None:
    """One curve by the selectors that the config is about; another curve where one is not a multiple."""
    assert repr(value_of(small(), config, field, float, proportional)) == code


def test_a_value_tells_apart_what_the_config_does_not() -> None:
    """RMSNorm is no norm to MMEngine; and settings from elsewhere are told apart by module, and at last by name."""
    model = small()
    model["head"] = nn.Sequential(nn.RMSNorm(2), nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    config = wrapper(norm_decay_mult=0.0)
    decay = value_of(model, config, "weight_decay")
    assert repr(decay).startswith("multiply(0.01, (owner(torch.nn.modules.batchnorm._BatchNorm, ")


@pytest.mark.parametrize(
    ("own", "code"),
    [
        (("head.1.weight", "head.1.bias"), 'multiply(0.1, (named("head.1.*"), 2.0))'),
        (("head.1.bias", "head.2.weight"), 'multiply(0.1, (named("head.1.bias", "head.2.weight"), 2.0))'),
        (
            ("backbone.0.bias", "backbone.1.bias", "head.0.bias", "head.1.bias", "head.2.bias"),
            "multiply(0.1, (bias, 2.0))",
        ),
    ],
)
def test_groups_from_elsewhere_are_told_apart_by_kind_module_and_name(own: tuple[str, ...], code: str) -> None:
    """Those that a user's constructor makes, of which no rule is known."""
    model = small()
    model["head"] = nn.Sequential(*[nn.Linear(2, 2) for _ in range(3)])
    own = tuple(name for name, _ in model.named_parameters() if name in own)

    @mmengine.register_constructor("Twice")
    def twice(model: nn.Module, config: Any) -> Any:
        named = dict(model.named_parameters())
        fast = [named.pop(name) for name in own]
        return [{"params": list(named.values())}, {"params": fast, "lr": 2 * config["optimizer"]["lr"]}]

    try:
        assert repr(value_of(model, wrapper(constructor="Twice"), "lr")) == code
    finally:
        del params.registered["Twice"]


def resnet() -> nn.Module:
    """A ResNet-50's names, with the depths that MMPretrain gives it."""

    def names(depths: tuple[int, ...]) -> nn.Module:
        backbone = nn.Module()
        backbone.conv1 = nn.Linear(1, 1)
        for i, count in enumerate(depths):
            setattr(backbone, f"layer{i + 1}", nn.Sequential(*[nn.Linear(1, 1) for _ in range(count)]))
        return backbone

    def depth(name: str) -> tuple[int, int]:
        return gch.selectors.depth.resnet((3, 4, 6, 3), (3, 2, 3, 3), prefix="backbone.")(name), 8

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = names((3, 4, 6, 3)), nn.Linear(1, 1)
            self.get_layer_depth = depth

    return Classifier()


def test_a_value_knows_the_depths_of_models() -> None:
    """A Swin's and a ResNet's, besides those that were recorded."""
    model = resnet()
    config = wrapper(constructor="LearningRateDecayOptimWrapperConstructor", layer_decay_rate=0.5)
    lr = value_of(model, config, "lr")
    rule = 'layer_decay(0.5, depth.resnet((3, 4, 6, 3), together=(3, 2, 3, 3), prefix="backbone."))'
    assert repr(lr) == f"multiply(0.1, {rule})"
    swin = Staged("stages")
    optimizer = SGD | {"model_type": "swin", "layer_decay_rate": 0.5}
    config = wrapper(optimizer, "mmselfsup.LearningRateDecayOptimWrapperConstructor")
    lr = value_of(swin, config, "lr")
    rule = 'layer_decay(0.5, depth.swin((2, 2), prefix="backbone.", stem=("patch_embed", "mask_token")))'
    assert repr(lr) == f"multiply(0.1, {rule})"


def test_values_run_in_a_chain() -> None:
    """An update with them moves each parameter as torch's groups do."""
    model, twin = small().double(), small().double()
    twin.load_state_dict(model.state_dict())
    config = wrapper(norm_decay_mult=0.0, bias_lr_mult=2.0, custom_keys={"head": {"lr_mult": 0.1}})
    settings = mmengine.param_settings(model, config)
    lr, decay = (value_of(model, config, field) for field in ("lr", "weight_decay"))
    updater = gch.chain(gch.add_decayed_weights(decay), gch.scale_by_learning_rate(lr)).bind(model)
    groups = [{"params": [p], "lr": settings[n]["lr"], "weight_decay": settings[n]["weight_decay"]}
              for n, p in twin.named_parameters()]  # fmt: skip
    other = torch.optim.SGD(groups, lr=1.0)
    for module in (model, twin):
        for i, p in enumerate(module.parameters()):
            p.grad = torch.full_like(p, 0.1 * i)
    updater.step()
    other.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
