"""The rules of paramwise_cfg stand once: groups, code for a model and code for any model say the same numbers."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from mmengine_live import value_of
from torch import nn

from gradchain.adapters import mmengine
from gradchain.selectors.rules import settings_of
from gradchain.updater.target import Target

SGD = {"type": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
ADAMW = {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.05}
RUN: dict[str, Any] = {"max_iters": 40, "epoch_length": 10}
WARM = {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "end": 8}
FLOOR = {"type": "CosineAnnealingLR", "eta_min": 1e-3, "by_epoch": False}


class ConvNeXt(nn.Module):
    """A backbone with the names of a transformer and of a ConvNeXt, and what lies outside of both."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed, self.mask_token = (nn.Parameter(torch.zeros(1, 4, 4)) for _ in range(2))
        self.patch_embed = nn.Conv2d(4, 4, 1)
        self.layers = nn.ModuleList([nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)) for _ in range(3)])
        self.downsample_layers = nn.ModuleList([nn.Conv2d(4, 4, 1) for _ in range(4)])
        self.stages = nn.ModuleList([nn.Sequential(nn.Conv2d(4, 4, 1, groups=4), nn.RMSNorm(4)) for _ in range(4)])


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token, self.bias = nn.Parameter(torch.zeros(1, 1, 4)), nn.Parameter(torch.zeros(4))
        self.backbone, self.head = ConvNeXt(), nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4))


def config(constructor: str | None, paramwise: dict[str, Any], optimizer: dict[str, Any] = SGD) -> dict[str, Any]:
    return {"constructor": constructor, "optimizer": optimizer, "paramwise_cfg": paramwise}


KEYS = {"backbone": {"lr_mult": 0.1}, "backbone.layers.1": {"decay_mult": 0.5}, ".bias": {"lr_mult": 3.0}, ".0": {}}
KINDS = {"norm_decay_mult": 0.0, "bias_lr_mult": 2.0, "bias_decay_mult": 0.5, "dwconv_decay_mult": 0.25}
OLD = "DefaultOptimizerConstructor"
ANY_MODEL: dict[str, dict[str, Any]] = {
    "default": config(None, {**KINDS, "flat_decay_mult": 0.1}),
    "default with keys": config(None, {**KINDS, "flat_decay_mult": 0.1, "custom_keys": KEYS}),
    "numbers of its own": config(
        None, {"custom_keys": {"head": {"lr": 0.3, "momentum": 0.5, "weight_decay": 0.2}, "head.0": {"lr_mult": 2.0}}}
    ),
    "forced": config(
        "mmpose.ForceDefaultOptimWrapperConstructor", {**KINDS, "custom_keys": KEYS, "force_default_settings": True}
    ),
    "mmcv 1.x": config(OLD, {**KINDS, "custom_keys": KEYS}),
    "mmcv 1.x, no rule for norms": config(OLD, {"bias_decay_mult": 0.0, "dwconv_decay_mult": 0.5}),
    "mmcv 1.x, no rule for depthwise": config(OLD, {"bias_decay_mult": 0.0, "norm_decay_mult": 0.5}),
    "patterns": config(f"mmselfsup.{OLD}", {"(bn|norm)": {"weight_decay": 0.0}, r"head\.1": {"lr_mult": 10.0}}),
    "every key": config("SwinOptimWrapperConstructor", {"custom_keys": {**KEYS, "layers": {"decay_mult": 0.0}}}),
    "every key, first form": config("SwinOptimWrapperConstructor", {"base.backbone": {"lr_mult": 0.1}, "e.b": {}}),
    "layers": config("mmpose.LayerDecayOptimWrapperConstructor", {"num_layers": 3, "layer_decay_rate": 0.6}, ADAMW),
    "weights": config("mmyolo.YOLOv5OptimizerConstructor", {"base_total_batch_size": 64}),
}
OF_A_MODEL: dict[str, dict[str, Any]] = {
    "layers of a ConvNeXt": config("mmseg.LearningRateDecayOptimizerConstructor",
        {"num_layers": 6, "decay_rate": 0.7, "decay_type": "layer_wise"}, ADAMW),
    "its stages": config("mmdet.LearningRateDecayOptimizerConstructor",
        {"num_layers": 4, "decay_rate": 0.7, "decay_type": "stage_wise"}, ADAMW),
    "a first parameter that says for its layer": config("mmselfsup.LearningRateDecayOptimWrapperConstructor",
        {"custom_keys": {"bias": {"decay_mult": 0.5}, "layers.1": {"decay_mult": 0.1}}},
        ADAMW | {"model_type": "vit", "layer_decay_rate": 0.5}),
}  # fmt: skip


@pytest.mark.parametrize("name", [*ANY_MODEL, *OF_A_MODEL])
@pytest.mark.parametrize("proportional", [True, False])
def test_code_comes_to_the_groups(name: str, proportional: bool) -> None:
    """With the model, and where they need none without it: every number of every trained parameter, both ways."""
    model, given = Model(), {**ANY_MODEL, **OF_A_MODEL}[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = mmengine.param_settings(model, given, strict=False)
        facts = Target(model).index.entries
        for at_hand in (model, None) if name in ANY_MODEL else (model,):
            for field in ("lr", "weight_decay", "momentum"):
                usual = given["optimizer"].get(field)
                if usual is None or (at_hand is None and not proportional and name.startswith(("every", "layers"))):
                    continue
                found = settings_of(value_of(at_hand, given, field, float, proportional), facts)
                for (key, _, _), one in zip(facts, found, strict=True):
                    if settings[key] is not None:
                        got = math.prod(one.factors, start=one.value)
                        wanted = settings[key].get(field, usual)
                        assert math.isclose(got, wanted, rel_tol=1e-15), (key, field, at_hand is None)


@pytest.mark.parametrize("name", ANY_MODEL)
@pytest.mark.parametrize("scheduler", [WARM, FLOOR])
def test_a_chain_for_any_model_is_that_of_the_model(name: str, scheduler: dict[str, Any]) -> None:
    """The same numbers under a scheduler that scales and one with an absolute floor, or a refusal that says why."""
    model = Model()
    model.backbone.mask_token = model.bias = None  # what YOLOv5's constructor would leave out
    model.cls_token = model.backbone.pos_embed = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        at_hand = mmengine.from_config(model, ANY_MODEL[name], scheduler, **RUN, strict=False).hyperparams()
        if scheduler is FLOOR and name.startswith(("every", "layers")):
            with pytest.raises(NotImplementedError, match=r"'lr' has factors by layer or by several keys, and a sched"):
                mmengine.unbound(ANY_MODEL[name], scheduler, **RUN, strict=False)
            return
        [part] = mmengine.unbound(ANY_MODEL[name], scheduler, **RUN, strict=False)
        free = part.chain.bind(model).hyperparams()
    assert free.keys() == at_hand.keys()
    for address, one in free.items():
        for key, _ in model.named_parameters():
            a, b = (v[key] if isinstance(v, dict) else v for v in (one, at_hand[address]))
            assert math.isclose(a, b, rel_tol=1e-12), (address, key)


@pytest.mark.parametrize(
    ("scheduler", "sentence"),
    [
        ({"type": "MultiStepMomentum", "milestones": [1, 2], "gamma": 1.2, "by_epoch": False},
         r"decay of trace must stay in \[0, 1\) over the run; param_scheduler makes it 1\.08 at iteration 1\. Change"),
        ([WARM | {"start_factor": 0.5, "end": 40}, {"type": "PolyLR", "eta_min": -0.01, "by_epoch": False}],
         r"learning_rate of scale_by_learning_rate must stay in \[0, inf\) over the run; param_scheduler makes it -"),
    ],
)  # fmt: skip
def test_a_number_that_leaves_its_range_is_refused_before_the_run(scheduler: Any, sentence: str) -> None:
    """Not in the update that it happens in, hours later; with the place in the config."""
    with pytest.raises(ValueError, match=rf"^mmengine\.from_config: optim_wrapper\.optimizer: {sentence}"):
        mmengine.unbound({"optimizer": SGD}, scheduler, **RUN)


def test_a_floor_that_only_a_groups_number_reaches() -> None:
    """mmcv's min_lr bounds each group by itself, though no number of 1 or above comes down to it."""
    given = {"optimizer": {**SGD, "paramwise_cfg": {"custom_keys": {"head": {"lr_mult": 0.3}}}},
             "optimizer_config": {}, "lr_config": {"policy": "step", "step": [2], "min_lr": 0.005}}  # fmt: skip
    updater = mmengine.from_config(Model(), given, max_epochs=4, epoch_length=2)
    for _ in range(7):
        updater.step({name: torch.zeros_like(p) for name, p in Model().named_parameters()})
    lr = updater.hyperparams()["scale_by_learning_rate.learning_rate"]
    assert [lr[name] for name in ("head.1.weight", "cls_token")] == pytest.approx([0.005, 0.01], rel=1e-12)


def test_a_momentum_that_no_optimizer_reads_is_none() -> None:
    """In a group of one with betas it counts where a scheduler brings it there, as in MMEngine."""
    given = config(None, {"custom_keys": {"head": {"momentum": 0.5}}}, ADAMW)
    still = {"type": "ConstantMomentum", "factor": 0.5, "end": 2, "by_epoch": False}
    for scheduler, wanted in ((None, 0.9), (still, 0.25)):
        with pytest.warns(UserWarning, match="got 'momentum'"):
            updater = mmengine.from_config(Model(), given, scheduler, **RUN, strict=False)
        b1 = updater.hyperparams()["scale_by_adam.b1"]
        assert (b1["head.1.weight"] if isinstance(b1, dict) else b1) == wanted
