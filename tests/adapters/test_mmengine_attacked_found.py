"""What an attack on the reader found: each of these was seen to fail, and says what the peer does instead."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from mmengine_live import optim, registry
from torch import nn

import gradchain as gch
from gradchain.adapters import mmengine

SGD = {"type": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
ADAM = {"type": "Adam", "lr": 0.1}
EPOCHS = {"max_epochs": 3, "epoch_length": 4}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2)).double()


def chains(config: dict[str, Any], schedulers: Any = None, **more: Any) -> list[Any]:
    """The recipe bound to a model with which it was read, and to one after it was read without; each with its model."""
    given = {**EPOCHS, **more}
    if "max_iters" in more:
        del given["max_epochs"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, other = net(), net()
        [part] = mmengine.unbound(config, schedulers, **given)
        return [(mmengine.from_config(one, config, schedulers, **given), one), (part.chain.bind(other), other)]


def moved(updater: Any, model: nn.Module, steps: int, name: str) -> list[float]:
    """How far each update moves a weight of 0 by a gradient of 1: its learning rate, where nothing has momentum."""
    found = []
    for _ in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        updater.step(grads={key: torch.ones_like(p) for key, p in model.named_parameters()})
        found.append(-dict(model.named_parameters())[name].detach().flatten()[0].item())
    return found


# wrong


@pytest.mark.parametrize("factor", [0.1, 0.0])
def test_an_old_floor_is_that_of_every_group(factor: float) -> None:
    """mmcv's StepLrUpdaterHook: max(base · gamma^k, min_lr) for each group by itself, whatever its multiplier."""
    plain = {"type": "SGD", "lr": 0.1, "paramwise_cfg": {"custom_keys": {"0.weight": {"lr_mult": factor}}}}
    lr_config = {"policy": "step", "step": [2], "min_lr": 0.005}
    for updater, model in chains({"optimizer": plain, "optimizer_config": None, "lr_config": lr_config}):
        by_epoch = [max(0.1 * factor * 0.1 ** (epoch >= 2), 0.005) for epoch in range(3) for _ in range(4)]
        assert moved(updater, model, 12, "0.weight") == pytest.approx(by_epoch, rel=1e-12)


def test_an_old_momentum_counts_epochs_unless_it_says() -> None:
    """mmcv's IterBasedRunner sets by_epoch=False for lr_config only: by_epoch of momentum_config stays True, no epoch
    begins there, and the momentum never moves."""
    config = {
        "optimizer": SGD, "optimizer_config": None, "lr_config": {"policy": "fixed"},
        "momentum_config": {"policy": "step", "step": [2], "gamma": 0.1},
    }  # fmt: skip
    with pytest.warns(UserWarning, match="momentum_config .Step.: a loop of iterations counts no epochs"):
        updater = mmengine.from_config(net(), config, max_iters=8, epoch_length=4)
    assert "trace(0.9)" in repr(updater.chain)


def test_without_its_hook_no_scheduler_moves() -> None:
    """MMEngine: default_hooks=dict(param_scheduler=None) takes the hook away; constructors step once."""
    schedulers = [{"type": "LinearLR", "start_factor": 0.01, "by_epoch": False, "end": 8}]
    wrapper = optim.build_optim_wrapper(net(), {"optimizer": {"type": "SGD", "lr": 0.1}})
    registry.PARAM_SCHEDULERS.build(copy.deepcopy(schedulers[0]), default_args={"optimizer": wrapper})
    stays = wrapper.optimizer.param_groups[0]["lr"]
    config = {"optimizer": {"type": "SGD", "lr": 0.1}}
    try:
        read = chains(config, schedulers, default_hooks={"param_scheduler": None})
    except ValueError as error:
        assert "default_hooks" in str(error)  # or a refusal that says so
        return
    for updater, model in read:
        assert moved(updater, model, 8, "0.weight") == pytest.approx([stays] * 8)


def test_an_item_that_nobody_reads_changes_nothing() -> None:
    """torch's Adam has betas and reads no `momentum` of a group; with strict=False the warning says so, too."""
    config = {"optimizer": ADAM, "paramwise_cfg": {"custom_keys": {"0": {"momentum": 0.5}}}}
    for updater, _ in chains(config, strict=False):
        assert "b1=" not in repr(updater.chain)


@pytest.mark.parametrize("name", ["cls_token", "mask_token", "pos_embed"])
def test_tokens_of_a_convnext_are_in_its_stem(name: str) -> None:
    """get_layer_id_for_convnext of MMSegmentation and MMDetection: these three names have the id 0."""

    class ConvNeXt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(4))
            self.register_parameter(name, nn.Parameter(torch.zeros(1, 2)))

    model = nn.ModuleDict({"backbone": ConvNeXt(), "head": nn.Linear(2, 2)})
    wrapper = {
        "optimizer": SGD, "constructor": "LearningRateDecayOptimizerConstructor",
        "paramwise_cfg": {"num_layers": 6, "decay_rate": 0.5, "decay_type": "layer_wise"},
    }  # fmt: skip
    found = mmengine.param_settings(model, wrapper)
    assert found[f"backbone.{name}"]["lr"] == 0.1 * 0.5**7 and found["head.weight"]["lr"] == 0.1


# lost in silence


def test_an_average_among_the_default_hooks() -> None:
    """MMEngine registers every hook of default_hooks, whatever its key."""
    default = {"ema": {"type": "EMAHook", "momentum": 0.1}}
    try:
        for updater, _ in chains({"optimizer": SGD}, default_hooks=default):
            assert "average_params" in repr(updater.chain)
    except (ValueError, TypeError) as error:
        assert "default_hooks" in str(error)


@pytest.mark.parametrize("key", ["param_schedule", "warmup"])
def test_a_default_hook_of_another_name_is_said(key: str) -> None:
    """As custom_hooks says what it does not read."""
    with pytest.warns(UserWarning, match="YOLOv5ParamSchedulerHook"):
        mmengine.from_config(
            net(), {"optimizer": SGD}, **EPOCHS, default_hooks={key: {"type": "YOLOv5ParamSchedulerHook"}}
        )


def test_a_loss_scale_of_bfloat16_is_said() -> None:
    """MMEngine scales by it, and leaves out steps that overflow."""
    wrapper = {"type": "AmpOptimWrapper", "dtype": "bfloat16", "loss_scale": 512.0, "optimizer": SGD}
    with pytest.warns(UserWarning, match="loss_scale"):
        mmengine.from_config(net(), wrapper, **EPOCHS)


def test_a_momentum_of_one_minus_decay_is_said() -> None:
    """MMEngine warns: the momentum of an average is the weight of the new value, a small number."""
    with pytest.warns(UserWarning, match=r"custom_hooks\[0\] .EMAHook.: momentum"):
        mmengine.from_config(
            net(), {"optimizer": SGD}, **EPOCHS, custom_hooks=[{"type": "EMAHook", "momentum": 0.9999}]
        )


# too late


LATE: dict[str, tuple[dict[str, Any], Any]] = {
    "an old warm-up of momentum": (
        {"optimizer": SGD, "optimizer_config": None, "momentum_config": {
            "policy": "step", "step": [2], "warmup": "linear", "warmup_iters": 5}}, None),
    "a momentum that grows": ({"optimizer": SGD}, {"type": "MultiStepMomentum", "milestones": [1, 2], "gamma": 1.2}),
    "a rate below 0": ({"optimizer": SGD}, [
        {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "end": 8},
        {"type": "PolyLR", "eta_min": -0.05, "by_epoch": False, "end": 12}]),
}  # fmt: skip


@pytest.mark.parametrize("name", LATE)
def test_a_number_out_of_range_is_refused_when_it_is_read(name: str) -> None:
    """All of the curve is known then; in the run it is an error after hours, without the place in the config."""
    config, schedulers = LATE[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"mmengine.*(momentum_config|param_scheduler|optim_wrapper)"):
            mmengine.from_config(net(), config, schedulers, **EPOCHS)


NEVER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "eps of Adamax": ({"type": "Adamax", "lr": 0.1}, {"type": "ReduceOnPlateauParamScheduler", "param_name": "eps"}),
    "no momentum": ({"type": "RMSprop", "lr": 0.1}, {"type": "ReduceOnPlateauMomentum"}),
    "a least number above": (
        {"type": "RMSprop", "lr": 0.1, "momentum": 0.9},
        {"type": "ReduceOnPlateauMomentum", "min_value": 0.95},
    ),
}


@pytest.mark.parametrize("name", NEVER)
def test_a_plateau_that_never_reduces_beside_one_that_does(name: str) -> None:
    """MMEngine leaves the number alone; at the least the place in the config must be said."""
    optimizer, scheduler = NEVER[name]
    schedulers = [{"type": "ReduceOnPlateauLR", "monitor": "val"}, {**scheduler, "monitor": "val"}]
    try:
        for updater, model in chains({"optimizer": optimizer}, schedulers):
            updater.step(grads={key: torch.ones_like(p) for key, p in model.named_parameters()})
    except ValueError as error:
        assert "param_scheduler[1]" in str(error)


def test_a_key_that_nothing_has_and_a_bounded_plateau() -> None:
    """strict=False: with the model such a key is a warning; without, what is bounded by groups cannot be written."""
    config = {"optimizer": {"type": "SGD", "lr": 0.1}, "paramwise_cfg": {"custom_keys": {"layers": {"lr_mult": 0.1}}}}
    scheduler = {"type": "ReduceOnPlateauLR", "monitor": "val", "min_value": 0.01}
    with pytest.warns(UserWarning, match="'layers', which takes none"):
        mmengine.from_config(net(), config, [scheduler], **EPOCHS, strict=False)
    with pytest.raises(NotImplementedError, match=r"min_value and eps of groups, of which by strict=False some may"):
        mmengine.unbound(config, [scheduler], **EPOCHS, strict=False)


# said poorly


def refusal(*given: Any, **more: Any) -> str:
    with warnings.catch_warnings(), pytest.raises((ValueError, TypeError, KeyError)) as caught:
        warnings.simplefilter("ignore")
        mmengine.from_config(*given, **{**EPOCHS, **more})
    return str(caught.value.args[0])


@pytest.mark.parametrize("value", [True, 16, [16]])
def test_the_scaling_of_rates_must_be_a_dict(value: object) -> None:
    text = refusal(net(), {"optimizer": SGD}, auto_scale_lr=value)
    assert text.startswith("mmengine.from_config: auto_scale_lr") and repr(value) in text


def test_an_old_file_has_no_optim_wrapper() -> None:
    text = refusal(net(), {"optimizer": {**SGD, "lr": "1e-3"}, "optimizer_config": None})
    assert "optimizer: lr must be a number, got '1e-3'" in text and "optim_wrapper" not in text


def test_a_pattern_is_no_custom_key() -> None:
    """MMSelfSup's paramwise_options: regular expressions, whose length plays no part."""
    options = {r"(bn|gn)(\d+)?.(weight|bias)": {"weight_decay": 0.0}}
    text = refusal(net(), {"optimizer": {**SGD, "paramwise_options": options}, "optimizer_config": None})
    assert "paramwise_options" in text and "custom_keys" not in text and "longer" not in text


def test_a_pattern_that_goes_into_children_is_named() -> None:
    model = nn.ModuleDict({"generator": net(), "discriminator": net()})
    config = {
        "constructor": "MultiOptimWrapperConstructor", "gen.*": {"optimizer": SGD}, "discriminator": {"optimizer": SGD},
    }  # fmt: skip
    text = refusal(model, config)
    assert "gen.*" in text and "DefaultOptimWrapperConstructor" not in text


def test_half_precision_and_a_plain_hook_of_windows() -> None:
    config = {
        "optimizer": SGD, "fp16": {"loss_scale": 4.0},
        "optimizer_config": {"type": "GradientCumulativeOptimizerHook", "cumulative_iters": 2},
    }  # fmt: skip
    text = refusal(net(), config)
    assert "fp16" in text and "GradientCumulativeFp16OptimizerHook" in text


def test_an_argument_has_the_name_it_has_in_the_config() -> None:
    text = refusal(net(), {"optimizer": {"type": "AdamW", "lr": None}})
    assert "optimizer: lr must be" in text and "learning_rate" not in text


def test_a_misspelt_argument_is_guessed() -> None:
    text = refusal(net(), {"optimizer": {"type": "SGD", "lr": 0.1, "momemtum": 0.9}})
    assert "did you mean 'momentum'?" in text


def test_a_function_that_is_not_called_is_said_to_be_one(tmp_path: Any) -> None:
    (path := tmp_path / "c.py").write_text("a = sorted(['bb', 'a'], key=len)")
    with pytest.raises(ValueError, match="line 1") as caught:
        mmengine.read_config(path)
    assert "the name has no value here" not in str(caught.value)


def test_what_unbound_cannot_know_of_is_written() -> None:
    """A tied weight under rules is an error of from_config and of MMEngine; the chain of `unbound` takes it once."""
    doc = " ".join((mmengine.unbound.__doc__ or "").split())
    assert "tied" in doc or "shared" in doc
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    config = {"optimizer": {"type": "SGD", "lr": 0.5}, "paramwise_cfg": {"bias_lr_mult": 2.0}}
    assert "must be in one group" in refusal(model, config)
    [part] = mmengine.unbound(config, **EPOCHS)
    assert isinstance(part.chain.bind(model), gch.Updater)
