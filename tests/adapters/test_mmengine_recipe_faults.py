"""Every way a recipe can be wrong, by the sentence that says so."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from gradchain.adapters import mmengine

SGD = {"type": "SGD", "lr": 0.1, "momentum": 0.9}
STAIRS = {"type": "MultiStepLR", "milestones": [3]}
MULTI = "MultiOptimWrapperConstructor"


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g, self.d = nn.Linear(2, 2), nn.Linear(2, 1)


def read(wrapper: Any, model: nn.Module | None = None, **given: Any) -> Any:
    return mmengine.from_config(model or Two(), wrapper, **{"max_epochs": 5, "epoch_length": 4, **given})


W, H = "mmengine.from_config: optim_wrapper", "mmengine.from_config: custom_hooks[0] (EMAHook)"
REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    ([], {}, f"{W}: it must be a dict, got list."),
    ({"type": "OptimWraper", "optimizer": SGD}, {}, f"{W}: type must be one of AmpOptimWrapper, ApexOptimWrapper, "
     "OptimWrapper, got 'OptimWraper'."),
    ({"type": "DeepSpeedOptimWrapper", "optimizer": SGD}, {}, f"{W}: type 'DeepSpeedOptimWrapper' is not read: "
     "DeepSpeed's engine makes the update, by a config of its own. Use type='OptimWrapper'."),
    ({"clip_grad": {"max_norm": 1}}, {}, f"{W}: optimizer must be given."),
    ({"g": {"optimizer": SGD}, "d": {"optimizer": SGD}}, {}, f"{W}: optimizer must be given. For one optimizer each of "
     "d, g set constructor='MultiOptimWrapperConstructor'."),
    ({"optimizer": SGD, "grad_clip": {"max_norm": 1}}, {}, f"{W}: every key must be known, got 'grad_clip'; did you "
     "mean 'clip_grad'?"),
    ({"optimizer": SGD, "loss_scale": 512.0}, {}, f"{W}: every key must be known, got 'loss_scale'; it takes "
     "_scope_, "),
    ({"optimizer": SGD, "weight_decay": 0.1}, {}, "mmengine.param_settings: DefaultOptimWrapperConstructor: "
     "weight_decay must be inside optimizer; beside it nothing reads it."),
    ({"optimizer": SGD, "clip_grad": {}}, {}, f"{W}.clip_grad: max_norm must be given."),
    ({"optimizer": SGD, "clip_grad": 1.0}, {}, f"{W}: clip_grad must be a dict such as dict(max_norm=1.0), got 1.0."),
    ({"optimizer": SGD, "clip_grad": {"clip_value": 0.2}}, {}, f"{W}.clip_grad: clip_value must come with "
     "type='value', without which the clip is by norm."),
    ({"optimizer": SGD, "clip_grad": {"max_norm": 1, "norm_typ": 2}}, {}, f"{W}.clip_grad: every key must be known, "
     "got 'norm_typ'; did you mean 'norm_type'?"),
    ({"optimizer": SGD, "clip_grad": {"max_norm": 1, "norm_type": 0.5}}, {}, f"{W}.clip_grad: norm_type must be a "
     "number of at least 1, or 'inf', got 0.5."),
    ({"optimizer": SGD, "accumulative_counts": 0}, {}, f"{W}: accumulative_counts must be a whole number of at least "
     "1, got 0."),
    ({"type": "AmpOptimWrapper", "optimizer": SGD, "loss_scale": "static"}, {}, f"{W}: loss_scale must be 'dynamic', a "
     "number or a dict, got 'static'."),
    ({"type": "AmpOptimWrapper", "optimizer": SGD, "dtype": "fp16"}, {}, f"{W}: dtype must be one of bfloat16, "
     "float16, float32, float64, or None, got 'fp16'."),
    ({"type": "AmpOptimWrapper", "optimizer": SGD, "dtype": ["float16"]}, {}, f"{W}: dtype must be one of bfloat16, "
     "float16, float32, float64, or None, got ['float16']."),
    ({"type": "ApexOptimWrapper", "optimizer": SGD, "opt_level": "O2"}, {}, f"{W}: opt_level 'O2' casts the model "
     "itself to float16, which no link does; use 'O1', which autocast is."),
    ({"type": "ApexOptimWrapper", "optimizer": SGD, "master_weights": True}, {}, f"{W}: master_weights of apex must "
     "not be given: autocast has no such thing."),
    ({"optimizer": "SGD"}, {}, "mmengine.param_settings: DefaultOptimWrapperConstructor: optim_wrapper must have "
     "optimizer, a dict, got 'SGD'."),
    ({"optimizer": {"lr": 0.1}}, {}, f"{W}.optimizer: type must be the name of an optimizer, got None."),
    ({"optimizer": {**SGD, "type": "SDG"}}, {}, f"{W}.optimizer: there is no optimizer 'SDG' in torch, "),
    ({"optimizer": {**SGD, "momentun": 0.9}}, {}, f"{W}.optimizer: every argument must be known, got "
     "'momentun'; did you mean 'momentum'?"),
    ({"optimizer": {**SGD, "lr": "0.1"}}, {}, f"{W}.optimizer: lr must be a number, got '0.1'."),
    ({"optimizer": {"type": "LAMB", "lr": 0.1}}, {}, f"{W}.optimizer: LAMB is MMPretrain's own, and its formula is not "
     "that of the class of this name elsewhere. Register it: gch.register('LAMB')(its class)."),
    ({"optimizer": {**SGD, "_delete_": True}}, {}, f"{W}.optimizer: '_delete_' must not be left in a config: it is an "
     "order to the reader of the file."),
    ({"optimizer": SGD, "paramwise_cfg": {"custom_keys": {"g": {"fix_lr": True}}}}, {}, f"{W}.optimizer: 'fix_lr' of a "
     "parameter group must be an argument of the optimizer; put the parameters that have it in a branch of partition."),
    ({"optimizer": {"type": "Adagrad", "lr": 0.1}}, {"param_scheduler": {"type": "LinearMomentum"}},
     f"{W}.optimizer: it has no 'momentum', which a scheduler moves."),
    ({"constructor": "PGGANOptimWrapperConstructor", "g": {"optimizer": SGD}}, {}, f"{W}: constructor "
     "'PGGANOptimWrapperConstructor' is not read: it makes one optimizer for each resolution, and the model changes "
     "between them. Make a chain for each, and carry its state with updater.rebind."),
    ({"constructor": MULTI}, {}, f"{W}: MultiOptimWrapperConstructor needs at least one optimizer: the name of a "
     "submodule and its dict, got none."),
    ({"constructor": MULTI, "e": {"optimizer": SGD}}, {}, f"{W}: 'e' must name or match a module with parameters; the "
     "model has d, g."),
    ({"constructor": MULTI, "g": {"optimizer": SGD}, "lr_schedule": {"g": 1}}, {}, f"{W}: 'lr_schedule' must be a dict "
     "with an optimizer."),
    ({"constructor": MULTI, "g": {"optimizer": SGD}}, {"param_scheduler": {"h": [STAIRS]}}, f"{W}: param_scheduler "
     "must be by the optimizers g, got h."),
    ({"constructor": MULTI, "paramwise_cfg": {"a": 1}, "g": {"optimizer": SGD}}, {}, f"{W}: paramwise_cfg must stand "
     "in each optimizer's dict where there are several."),
    ({"optimizer": SGD}, {"param_scheduler": {"g": [STAIRS]}}, f"{W}: param_scheduler must be a list for one "
     "optimizer, got a dict of g."),
    ({"optimizer": SGD}, {"max_epochs": None}, "mmengine.from_config: max_epochs or max_iters must be given, one of "
     "the two, got None and None."),
    ({"optimizer": SGD}, {"auto_scale_lr": {"enable": True, "base_batch_size": 16}}, "mmengine.from_config: "
     "auto_scale_lr: batch_size must be given where it is enabled: the batch size of this run, all ranks."),
    ({"optimizer": SGD}, {"auto_scale_lr": {"enabled": True}}, "mmengine.from_config: auto_scale_lr: every key must "
     "be known, got 'enabled'; did you mean 'enable'?"),
    ({"optimizer": SGD}, {"custom_hooks": {"type": "EMAHook"}}, "mmengine.from_config: custom_hooks: it must be a list "
     "of dicts, got {'type': 'EMAHook'}."),
    ({"optimizer": SGD}, {"custom_hooks": [{"type": "EMAHook"}] * 2}, "mmengine.from_config: custom_hooks: there must "
     "be at most one EMAHook, got 2."),
    ({"optimizer": SGD}, {"custom_hooks": [{"type": "EMAHook", "momentun": 0.1}]}, f"{H}: every key must be known, got "
     "'momentun'; did you mean 'momentum'?"),
    ({"optimizer": SGD}, {"custom_hooks": [{"type": "EMAHook", "momentum": 1.0}]}, f"{H}: momentum must be a number "
     "above 0 and below 1, got 1.0."),
    ({"optimizer": SGD}, {"custom_hooks": [{"type": "EMAHook", "ema_type": "EMA"}]}, f"{H}: ema_type must be one of "
     "ExpMomentumEMA, ExponentialMovingAverage, MomentumAnnealingEMA, StochasticWeightAverage, got 'EMA'."),
    ({"optimizer": SGD}, {"custom_hooks": [{"type": "EMAHook", "begin_iter": 2, "begin_epoch": 2}]}, f"{H}: begin_iter "
     "or begin_epoch must be given, not both, got 2 and 2."),
    ({"optimizer": SGD}, {"custom_hooks": [{"type": "EMAHook", "begin_epoch": 6}]}, f"{H}: begin_epoch must be at most "
     "the 5 epochs of the run, got 6."),
    ({"optimizer": SGD}, {"custom_hooks": [{"type": "EMAHook", "begin_iter": 21}]}, f"{H}: begin_iter must be at most "
     "the 20 iterations of the run, got 21."),
    ({"optimizer": SGD, "accumulative_counts": 3}, {"custom_hooks": [{"type": "EMAHook", "interval": 2}]}, f"{H}: "
     "interval must be a multiple of the 3 iterations of a window, or divide them, got 2."),
    ({"optimizer": SGD, "accumulative_counts": 3},
     {"custom_hooks": [{"type": "EMAHook", "ema_type": "ExpMomentumEMA"}]}, f"{H}: ema_type 'ExpMomentumEMA' must come "
     "without accumulation: MMEngine averages at every iteration, whose decays differ within a window."),
    ({"optimizer": {"type": "SGD", "lr": None}}, {}, f"{W}.optimizer: lr must be a number, got None."),
    ({"optimizer": {**SGD, "weight_decay": None}}, {}, f"{W}.optimizer: weight_decay must be a "
     "number, got None."),
    ({"optimizer": {"type": "AdamW", "lr": 0.1, "eps": "1e-8"}}, {}, f"{W}.optimizer: scale_by_adam: eps must be a "
     "number or a schedule (step -> value), got '1e-8'."),
    ({"optimizer": {"type": "AdamW", "lr": 0.1, "betas": [0.9]}}, {}, f"{W}.optimizer: betas must be two numbers, got "
     "[0.9]."),
    ({"optimizer": {"type": "Lamb", "lr": 0.1, "betas": [0.9]}}, {}, f"{W}.optimizer: betas must be two numbers, got "
     "[0.9]."),
    ({"optimizer": {"type": "AdamW", "lr": 0.1, "b1": [0.9]}}, {}, f"{W}.optimizer: AdamW: AdamW.__init__() got an "
     "unexpected keyword argument 'b1'. Write betas=."),
    ({"optimizer": {"type": "AdamW", "lr": 0.1, "decoupled_weight_decay": False}}, {}, f"{W}.optimizer: every "
     "argument must be known, got 'decoupled_weight_decay'; "),
    ({"optimizer": {"g": SGD, "d": 3}, "lr_config": None}, {}, "mmengine.from_config: config.optimizer: d must be a "
     "dict with a type, got 3."),
    ({"type": "AmpOptimWrapper", "optimizer": SGD, "loss_scale": 0.0}, {}, f"{W}: loss_scale: amp_scale: init_scale "
     "must be in (0, inf), got 0.0."),
    ({"type": "AmpOptimWrapper", "optimizer": SGD, "loss_scale": {"growth_factor": "2"}}, {}, f"{W}: loss_scale: "
     "amp_scale: growth_factor must be a number"),
    ({"optimizer": SGD}, {"param_scheduler": [{"type": "ReduceOnPlateauLR", "patience": -1}]}, "mmengine.from_config: "
     "param_scheduler[0] (ReduceOnPlateauLR): patience must be a whole number of at least 0, got -1."),
    ({"optimizer": {"type": "Adagrad"}}, {"param_scheduler": [{"type": "ReduceOnPlateauMomentum"}]},
     f"{W}.optimizer: it has no 'momentum', which a scheduler moves."),
    ({"optimizer": SGD}, {"param_scheduler": [{"type": "ReduceOnPlateauParamScheduler"}]}, "mmengine.from_config: "
     "param_scheduler[0] (ReduceOnPlateauParamScheduler): param_name must be given."),
    ({"optimizer": SGD}, {"param_scheduler": [{"type": "ReduceOnPlateauMomentum", "factor": 1.0}]},
     "mmengine.from_config: param_scheduler[0] (ReduceOnPlateauMomentum): factor must be a number of at least 0 and "
     "below 1, got 1.0."),
    ({"optimizer": SGD}, {"param_scheduler": [{"type": "ReduceOnPlateauMomentum", "min_value": [0.1, 0.2, 0.3]}]},
     "mmengine.from_config: param_scheduler[0] (ReduceOnPlateauMomentum): min_value must have a number for each of the "
     "1 groups, got 3."),
    ({"optimizer": SGD}, {"param_scheduler": [{"type": "CosineAnnealingMomentum", "eta_min": 0.1},
                                              {"type": "ReduceOnPlateauMomentum"}]}, "mmengine.from_config: "
     "param_scheduler[1] (ReduceOnPlateauMomentum): the other schedulers of 'momentum' must only multiply, got "
     "CosineAnnealingMomentum, which acts on what a reduction leaves."),
    ({"optimizer": SGD}, {"param_scheduler": [{"type": "LinearMomentum"},
                                              {"type": "ReduceOnPlateauMomentum", "min_value": 0.1}]},
     "mmengine.from_config: param_scheduler[1] (ReduceOnPlateauMomentum): min_value and eps must not be given where "
     "other schedulers move 'momentum', which they bound."),
    ({"optimizer": SGD}, {"param_scheduler": [{"type": "ReduceOnPlateauLR", "end": 3}]}, "mmengine.from_config: "
     "param_scheduler[0] (ReduceOnPlateauLR): begin and end must not be given: it reads every observation."),
    ({"optimizer": SGD}, {"param_scheduler": [{"type": "ReduceOnPlateauLR"}] * 2}, "mmengine.from_config: "
     "param_scheduler[1] (ReduceOnPlateauLR): there must be at most one scheduler that reads a metric for 'lr', "
     "got two."),
    ({"optimizer": SGD}, {"param_scheduler": [{"type": "CosineAnnealingLR"}, {"type": "ReduceOnPlateauLR"}]},
     "mmengine.from_config: param_scheduler[1] (ReduceOnPlateauLR): the other schedulers of the learning rate must "
     "only multiply, got CosineAnnealingLR, which acts on what a reduction leaves."),
    ({"optimizer": SGD, "paramwise_cfg": {"bias_lr_mult": 2.0}},
     {"param_scheduler": [{"type": "ReduceOnPlateauLR", "min_value": [1e-3, 1e-2]}]}, "mmengine.from_config: "
     "param_scheduler[0] (ReduceOnPlateauLR): min_value must have a number for each of the 4 groups, got 2."),
    ({"optimizer": SGD}, {"param_scheduler": [{"type": "ReduceOnPlateauLR", "min_value": "1e-3"}]},
     "mmengine.from_config: param_scheduler[0] (ReduceOnPlateauLR): min_value must be a number, or a list with one for "
     "each group, got '1e-3'."),
    ({"optimizer": {"type": "NAdam"}},
     {"param_scheduler": [STAIRS, {"type": "ReduceOnPlateauLR", "min_value": 1e-4}]}, "mmengine.from_config: "
     "param_scheduler[1] (ReduceOnPlateauLR): min_value and eps must not be given where other schedulers move 'lr', "
     "which they bound."),
    ({"optimizer": SGD, "lr_config": {"policy": "step", "step": [3]}}, {"param_scheduler": [STAIRS]}, f"{W}: "
     "param_scheduler must not come with lr_config: one format at a time."),
    ({"optimizer": SGD, "lr_config": None, "clip_grad": None}, {}, "mmengine.from_config: config: every key must be "
     "known, got 'clip_grad'; it takes fp16, lr_config, momentum_config, optimizer, optimizer_config."),
    ({"optimizer": SGD, "optimizer_config": {"type": "SAMHook"}}, {}, "mmengine.from_config: optimizer_config "
     "(SAMHook): type must be one of DistOptimizerHook, Fp16OptimizerHook, GradAccumFp16OptimizerHook, "
     "GradientCumulativeFp16OptimizerHook, GradientCumulativeOptimizerHook, OptimizerHook, got 'SAMHook'."),
    ({"optimizer": SGD, "optimizer_config": {"grad_clp": None}}, {}, "mmengine.from_config: optimizer_config "
     "(OptimizerHook): every key must be known, got 'grad_clp'; did you mean 'grad_clip'?"),
]  # fmt: skip


@pytest.mark.parametrize("wrapper, given, sentence", REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_read_is_refused(wrapper: Any, given: dict[str, Any], sentence: str) -> None:
    """By the sentence that says where and what; the model is as it was."""
    model = Two()
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises((ValueError, TypeError, KeyError)) as caught:
        read(wrapper, model, **given)
    assert str(caught.value.args[0]).startswith(sentence)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())


SAID: list[tuple[Any, dict[str, Any], str]] = [
    ({"type": "AmpOptimWrapper", "optimizer": SGD, "loss_scale": 512}, {},
     f"{W}: loss_scale must be a float, or MMEngine raises a TypeError, got 512; read as a float."),
    ({"type": "AmpOptimWrapper", "optimizer": SGD, "dtype": "float32"}, {},
     f"{W}: dtype='float32' switches autocast off: neither autocast nor a loss scale is used."),
    ({"optimizer": SGD, "clip_grad": {"max_norm": 1, "error_if_nonfinite": True}}, {},
     f"{W}.clip_grad: error_if_nonfinite has no counterpart: put skip_nonfinite() in the chain to skip such updates."),
    ({"optimizer": SGD}, {"custom_hooks": [{"type": "PreciseBNHook"}, {"type": "mmdet.YOLOXModeSwitchHook"}]},
     "mmengine.from_config: custom_hooks: PreciseBNHook, YOLOXModeSwitchHook are not read; what they do to the update "
     "is yours to add."),
]  # fmt: skip
LENIENT: list[tuple[Any, dict[str, Any], str]] = [
    ({"optimizer": SGD, "grad_clip": {"max_norm": 1}}, {}, "did you mean 'clip_grad'?"),
    ({"optimizer": SGD, "weight_decay": 0.1}, {}, "weight_decay must be inside optimizer"),
    ({"optimizer": {"type": "LAMB", "lr": 0.1}}, {}, "LAMB is MMPretrain's own"),
    ({"optimizer": {**SGD, "_delete_": True}}, {}, "'_delete_' must not be left"),
    ({"constructor": MULTI, "g": {"optimizer": SGD}, "lr_schedule": {}}, {}, "'lr_schedule' must be a dict"),
    ({"optimizer": SGD}, {"auto_scale_lr": {"enabled": True}}, "did you mean 'enable'?"),
    ({"optimizer": SGD, "paramwise_cfg": {"custom_keys": {"g": {"decay_multi": 0.0}}}}, {}, "decay_multi"),
    ({"optimizer": SGD, "accumulative_counts": 3},
     {"custom_hooks": [{"type": "EMAHook", "ema_type": "ExpMomentumEMA"}]}, "must come without accumulation"),
]  # fmt: skip


@pytest.mark.parametrize("wrapper, given, sentence", SAID, ids=range(len(SAID)))
def test_what_is_a_slip_is_said(wrapper: Any, given: dict[str, Any], sentence: str) -> None:
    """By a warning from the caller's line, strict or not."""
    for strict in (True, False):
        with pytest.warns(UserWarning) as caught:
            mmengine.from_config(Two(), wrapper, max_epochs=5, epoch_length=4, strict=strict, **given)
        assert [str(w.message) for w in caught] == [sentence]
        assert caught[0].filename == __file__


@pytest.mark.parametrize("wrapper, given, sentence", LENIENT, ids=range(len(LENIENT)))
def test_where_there_is_a_meaning_not_strict_warns(wrapper: Any, given: dict[str, Any], sentence: str) -> None:
    """What strict refuses, said."""
    with pytest.raises(ValueError, match=re.escape(sentence)):
        read(wrapper, **given)
    with pytest.warns(UserWarning) as caught:
        read(wrapper, **given, strict=False)
    assert any(sentence in str(w.message) for w in caught)
