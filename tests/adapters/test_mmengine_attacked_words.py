"""What a recipe cannot be, in a sentence with its place, the rule, the value and where there is one the cure."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from gradchain.adapters import mmengine

SGD = {"type": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
EPOCHS = {"max_epochs": 3, "epoch_length": 4}
ITERS = {"max_iters": 40, "epoch_length": 4}


class Gan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.discriminator = nn.Linear(2, 2), nn.Linear(2, 2)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))


def wrapper(**more: Any) -> dict[str, Any]:
    return {"optimizer": SGD, **more}


def old(**more: Any) -> dict[str, Any]:
    return {"optimizer": SGD, "optimizer_config": None, "lr_config": {"policy": "fixed"}, **more}


def amp(**more: Any) -> dict[str, Any]:
    return wrapper(type="AmpOptimWrapper", **more)


# (the wrapper, the rest of the call, the place and sentence)
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "clip as a list": (old(optimizer_config={"grad_clip": [35, 2]}), {}, "optimizer_config (OptimizerHook): grad_clip "
        "must be a dict such as dict(max_norm=35), or None, got [35, 2]."),
    "clip as a text": (wrapper(clip_grad="35"), {}, "optim_wrapper: clip_grad must be a dict such as "
        "dict(max_norm=1.0), got '35'."),
    "a norm below 1": (wrapper(clip_grad={"max_norm": 1, "norm_type": 0.5}), {}, "optim_wrapper.clip_grad: norm_type "
        "must be a number of at least 1, or 'inf', got 0.5."),
    "no floor, restarts": (wrapper(), {"param_scheduler": [{"type": "CosineRestartLR", "periods": [3]}]},
        "param_scheduler[0] (CosineRestartLR): eta_min or eta_min_ratio must be given, got neither."),
    "no floor, old": (old(lr_config={"policy": "CosineAnnealing"}), {},
        "lr_config (CosineAnnealing): min_lr or min_lr_ratio must be given, got neither."),
    "two floors, old": (old(lr_config={"policy": "FlatCosineAnnealing", "min_lr": 0, "min_lr_ratio": 0.1}), {},
        "lr_config (FlatCosineAnnealing): min_lr or min_lr_ratio must be given, not both, got 0 and 0.1."),
    "a version of a constructor": (wrapper(constructor="LearningRateDecayOptimWrapperConstructorV2"), {},
        "got 'LearningRateDecayOptimWrapperConstructorV2'. Did you mean"),
    "another's of that name": (wrapper(constructor="mylab.TSMOptimWrapperConstructor"), {},
        "got 'mylab.TSMOptimWrapperConstructor'. One of your own is made known"),
    "a hook of one's own": (wrapper(), {"default_hooks": {"param_scheduler": {"type": "mylab.WarmupHook"}}},
        "default_hooks.param_scheduler (WarmupHook): type must be one of PPYOLOEParamSchedulerHook, "
        "ParamSchedulerHook, YOLOv5ParamSchedulerHook; what another does"),
    "a hook in other letters": (wrapper(), {"default_hooks": {"param_scheduler": {"type": "YOLOV5ParamSchedulerHook"}}},
        "default_hooks.param_scheduler (YOLOV5ParamSchedulerHook): type must be one of"),
    "a plateau by iterations": (wrapper(), {"param_scheduler": {"type": "ReduceOnPlateauMomentum", "by_epoch": False}},
        "(ReduceOnPlateauMomentum): by_epoch must be True, as in MMEngine, got False"),
    "a plateau resumed": (wrapper(), {"param_scheduler": [{"type": "StepLR", "step_size": 1},
        {"type": "ReduceOnPlateauLR", "last_step": 4}]},
        "param_scheduler[1] (ReduceOnPlateauLR): last_step must be -1, got 4; what it has seen is in"),
    "a factor just above 1": (wrapper(), {"param_scheduler": {"type": "ConstantLR", "factor": 1.0001}},
        "param_scheduler (ConstantLR): factor must be a number from 0 to 1, got 1.0001; only MMPose"),
    "a negative factor": (wrapper(), {"param_scheduler": [{"type": "ConstantMomentum", "factor": -0.5}]},
        "param_scheduler[0] (ConstantMomentum): factor must be a number of at least 0, got -0.5."),
    "a start above 1": (wrapper(), {"param_scheduler": {"type": "LinearLR", "start_factor": 1.5}},
        "param_scheduler (LinearLR): start_factor must be a number from 0 to 1, got 1.5."),
    "apex O3": (wrapper(type="ApexOptimWrapper", opt_level="O3"), {}, "optim_wrapper: opt_level 'O3' casts the model "
        "itself to float16, which no link does; use 'O1', which autocast is."),
    "a scale as a text": (amp(loss_scale="512"), {}, "optim_wrapper: loss_scale must be 'dynamic', a number or a dict, "
        "got '512'."),
    "an engine of its own": (wrapper(type="ColossalAIOptimWrapper"), {}, "optim_wrapper: type 'ColossalAIOptimWrapper' "
        "is not read: ColossalAI's engine makes the update. Use type='OptimWrapper'."),
    "half a window": (wrapper(accumulative_counts=2.5), {}, "optim_wrapper: accumulative_counts must be a whole number "
        "of at least 1, got 2.5."),
    "a typo of a type": (wrapper(), {"param_scheduler": {"type": "CosineAnealingLR"}},
        "type must be a known scheduler, "
        "got 'CosineAnealingLR'; did you mean 'CosineAnnealingLR'?"),
    "milestones as a text": (wrapper(), {"param_scheduler": [{"type": "MultiStepLR", "milestones": "8,11"}]},
        "param_scheduler[0] (MultiStepLR): milestones must be a list of numbers, got '8,11'."),
    "a list in a list": (wrapper(), {"param_scheduler": [[{"type": "StepLR", "step_size": 1}]]},
        "param_scheduler[0]: a scheduler must be a dict with a type, got [{"),
    "two averages": (wrapper(), {"custom_hooks": [{"type": "EMAHook"}, {"type": "EMAHook"}]},
        "custom_hooks: there must be at most one EMAHook, got 2."),
    "an average's typo": (wrapper(), {"custom_hooks": [{"type": "EMAHook", "momentun": 0.1}]},
        "custom_hooks[0] (EMAHook): every key must be known, got 'momentun'; did you mean 'momentum'?"),
    "a child that is not there": ({"constructor": "GenOptimWrapperConstructor", "generatr": wrapper()},
        {"model": Gan()},
        "optim_wrapper: 'generatr' must name a child of the model, which has discriminator, "
        "generator."),
    "schedulers of nobody": ({"constructor": "MultiOptimWrapperConstructor", "generator": wrapper()},
        {"model": Gan(), "param_scheduler": {"gen": []}},
        "param_scheduler must be by the optimizers generator, got gen."),
    "Lamb with trust_clip": ({"optimizer": {"type": "Lamb", "lr": 1e-3, "trust_clip": True}}, {},
        "optim_wrapper.optimizer: trust_clip must be False, got True; for another register its"),
    "SophiaG": ({"optimizer": {"type": "SophiaG", "lr": 1e-5}}, {}, "optim_wrapper.optimizer: 'SophiaG' is not read "
        "where its class is not installed: it divides by an estimate of the Hessian's diagonal"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_has_place_rule_value_and_cure(name: str) -> None:
    """Nothing of the config is changed, and the model is as it was."""
    config, more, sentence = REFUSED[name]
    given = {"model": net(), **more}
    before = copy.deepcopy((config, {key: value for key, value in given.items() if key != "model"}))
    weights = copy.deepcopy(given["model"].state_dict())
    with pytest.raises((ValueError, TypeError, KeyError)) as caught:
        mmengine.from_config(optim_wrapper=config, **given, **EPOCHS)
    text = str(caught.value.args[0])
    assert text.startswith("mmengine.") and sentence in text, text
    assert (config, {key: value for key, value in given.items() if key != "model"}) == before
    for key, value in given["model"].state_dict().items():
        assert torch.equal(value, weights[key]) and not getattr(value, "_backward_hooks", None)


ZERO = {"custom_keys": {"0": {"lr_mult": 0, "decay_mult": 0}}}
WARNED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "restarts outlast the run": (wrapper(), {"param_scheduler": {"type": "CosineRestartLR", "periods": [2, 9],
        "restart_weights": [1, 1], "eta_min": 0, "end": 11}, **EPOCHS},
        "(CosineRestartLR): its window ends after the run: 3 of 11 epochs are in it."),
    "a momentum outlasts it": (wrapper(), {"param_scheduler": [{"type": "LinearMomentum", "start_factor": 0.5,
        "end": 11}], **EPOCHS}, "[0] (LinearMomentum): its window ends after the run: 3 of 11"),
    "epochs in a loop of iterations": (wrapper(), {"param_scheduler": {"type": "PolyLR", "eta_min": 1e-3}, **ITERS},
        "(PolyLR): a loop of iterations counts no epochs: it acts once, at the start"),
    "one epoch of it": (wrapper(), {"param_scheduler": {"type": "CosineAnnealingLR", "convert_to_iter_based": True},
        **ITERS}, "end must be given in a loop of iterations, which is one epoch to it: it stops after 4"),
    "it begins after the run": (wrapper(), {"param_scheduler": [{"type": "PolyLR", "begin": 5, "end": 9}], **EPOCHS},
        "(PolyLR): it never acts: it begins at iteration 20, and the run ends at 12."),
    "a frozen part that moves": (wrapper(paramwise_cfg=ZERO), {"param_scheduler": {"type": "PolyLR", "eta_min": 1e-3},
        **EPOCHS}, "lr of 0 does not stay: its schedule has an absolute value, such as eta_min"),
    "one cycle moves it too": (wrapper(paramwise_cfg=ZERO), {"param_scheduler": {"type": "OneCycleLR", "eta_max": 0.1,
        "by_epoch": False, "total_steps": 12}, **EPOCHS}, "lr of 0 does not stay"),
    "a rate alone, norms": (wrapper(paramwise_cfg={"norm_decay_mult": 0, "custom_keys": {"1": {"lr_mult": 0.1}}}),
        EPOCHS, "custom_keys['1'] says no decay_mult, and no other rule counts where it does: "
        "'1.weight' has its whole weight decay back."),
    "a rate alone, flat": (wrapper(paramwise_cfg={"flat_decay_mult": 0, "custom_keys": {"2.b": {"lr": 0.1}}}), EPOCHS,
        "custom_keys['2.b'] says no decay_mult, and no other rule counts where it does: '2.bias' has"),
    "a warm-up longer than the run": (old(lr_config={"policy": "exp", "gamma": 0.9, "warmup": "exp",
        "warmup_iters": 2000}), EPOCHS, "lr_config (Exp): the warm-up of 2000 iterations is "
        "longer than the run, which has 12."),
    "and of momentum": (old(momentum_config={"policy": "cyclic", "warmup": "linear", "warmup_iters": 99,
        "warmup_ratio": 0.95}), EPOCHS,
        "momentum_config (Cyclic): the warm-up of 99 iterations is longer than the run, which has 12."),
    "steps after the run": (old(lr_config={"policy": "step", "step": [2, 11]}), EPOCHS,
        "lr_config (Step): steps [11] are never reached: the run has 3 epochs."),
    "a whole loss scale": (amp(loss_scale=512), EPOCHS,
        "loss_scale must be a float, or MMEngine raises a TypeError, got "
        "512; read as a float."),
}  # fmt: skip


@pytest.mark.parametrize("name", WARNED)
def test_a_slip_is_said(name: str) -> None:
    """Legal, and most likely not meant: one warning with the place, from the user's line, and a chain all the same."""
    config, more, sentence = WARNED[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        updater = mmengine.from_config(net(), config, **more)
    said = [warning for warning in caught if sentence in str(warning.message)]
    assert len(said) == 1 and said[0].filename == __file__, [str(warning.message) for warning in caught]
    assert len(updater.chain.links) >= 2


SILENT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a warm-up and what follows it": (wrapper(), {"param_scheduler": [
        {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "end": 4},
        {"type": "CosineAnnealingLR", "begin": 1, "T_max": 2, "end": 3}]}),
    "a rule and a key with both": (wrapper(paramwise_cfg={"norm_decay_mult": 0, "custom_keys": {
        "1": {"lr_mult": 0.1, "decay_mult": 0}}}), {}),
    "a frozen part, a ratio": (wrapper(paramwise_cfg=ZERO), {"param_scheduler": {
        "type": "CosineAnnealingLR", "eta_min_ratio": 0.01}}),
    "MMPose's own factor": (wrapper(),
        {"param_scheduler": [{"type": "ConstantLR", "_scope_": "mmpose", "factor": 10}]}),
    "bfloat16": (amp(dtype="bfloat16"), {}),
    "no optimizer's hook but the plain one": ({"optimizer": SGD,
        "optimizer_config": {"type": "mmcv.OptimizerHook"}}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", SILENT)
def test_what_is_meant_says_nothing(name: str) -> None:
    """pytest makes errors of warnings: a usual recipe gives none."""
    config, more = SILENT[name]
    assert mmengine.from_config(net(), config, **more, **EPOCHS)
