"""Whole runs of small models by MMEngine and by the chain that its recipe becomes: the same weights."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("mmengine")

from mmengine_training import Small, Training  # noqa: E402

import gradchain as gch  # noqa: E402

SGD = {"type": "SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2}
ADAM = {"type": "Adam", "lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 1e-2}
ADAMW = {"type": "AdamW", "lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-7, "weight_decay": 0.1}
WARM_UP = {"type": "LinearLR", "start_factor": 0.01, "by_epoch": False, "end": 30}
STAIRS = {"type": "MultiStepLR", "milestones": [4, 8], "gamma": 0.3}
COSINE = {"type": "CosineAnnealingLR", "eta_min": 1e-3, "convert_to_iter_based": True}
RULES = {
    "norm_decay_mult": 0.0, "bias_lr_mult": 2.0, "dwconv_decay_mult": 0.5, "flat_decay_mult": 0.25,
    "custom_keys": {"head": {"lr_mult": 0.1, "decay_mult": 3.0}},
}  # fmt: skip
MULTI = "MultiOptimWrapperConstructor"


def frozen(model: Small) -> None:
    model.body[0].requires_grad_(False)


RUNS = {
    "sgd": Training({"optimizer": SGD}, [WARM_UP, STAIRS]),
    "adamw, clip": Training({"optimizer": ADAMW, "clip_grad": {"max_norm": 0.3, "norm_type": 2}}, [WARM_UP, COSINE]),
    "adam with L2, poly": Training({"optimizer": ADAM}, {"type": "PolyLR", "eta_min": 1e-4, "power": 0.9}),
    "nesterov, clip by value": Training(
        {"optimizer": {**SGD, "nesterov": True}, "clip_grad": {"type": "value", "clip_value": 0.05}},
        [{"type": "StepLR", "step_size": 3}],
    ),
    "clip by the largest": Training({"optimizer": SGD, "clip_grad": {"max_norm": 0.1, "norm_type": "inf"}}),
    "accumulation, a ragged end": Training(
        {"optimizer": ADAMW, "accumulative_counts": 3, "clip_grad": {"max_norm": 0.2}}, [WARM_UP, COSINE]
    ),
    "accumulation over epochs": Training(
        {"optimizer": SGD, "accumulative_counts": 7}, [WARM_UP, {"type": "ExponentialLR", "gamma": 0.8}]
    ),
    "accumulation in a loop of iterations": Training(
        {"optimizer": ADAM, "accumulative_counts": 16}, {**COSINE, "by_epoch": False, "convert_to_iter_based": False},
        max_epochs=None, max_iters=200,
    ),
    "one window longer than the run": Training({"optimizer": SGD, "accumulative_counts": 300}),
    "rules per parameter": Training({"optimizer": SGD, "paramwise_cfg": RULES}, [WARM_UP, STAIRS]),
    "rules, an absolute floor": Training({"optimizer": ADAMW, "paramwise_cfg": RULES}, [WARM_UP, COSINE]),
    "rules, accumulation, clip": Training(
        {"optimizer": ADAM, "paramwise_cfg": RULES, "accumulative_counts": 6, "clip_grad": {"max_norm": 0.5}}, [COSINE]
    ),
    "momentum of SGD": Training(
        {"optimizer": SGD}, [STAIRS, {"type": "CosineAnnealingMomentum", "eta_min": 0.5, "by_epoch": False}]
    ),
    "b1 of AdamW": Training(
        {"optimizer": ADAMW, "paramwise_cfg": RULES}, [WARM_UP, {"type": "LinearMomentum", "start_factor": 0.5}]
    ),
    "a momentum from 0": Training(
        {"optimizer": {"type": "SGD", "lr": 0.05}},
        {"type": "CosineAnnealingMomentum", "eta_min": 0.9, "by_epoch": False, "T_max": 100, "begin": 5},
    ),
    "weight decay": Training(
        {"optimizer": ADAMW, "paramwise_cfg": RULES},
        [{"type": "CosineAnnealingParamScheduler", "param_name": "weight_decay", "eta_min": 0.02, "by_epoch": False}],
    ),
    "one cycle": Training(
        {"optimizer": SGD}, {"type": "OneCycleLR", "eta_max": 0.1, "total_steps": 200, "by_epoch": False}
    ),
    "two optimizers": Training(
        {"constructor": MULTI, "body": {"optimizer": ADAM}, "head": {"optimizer": SGD, "clip_grad": {"max_norm": 0.1}}},
        {"body": [COSINE], "head": [WARM_UP, STAIRS]},
    ),
    "two optimizers, one list, rules": Training(
        {"constructor": MULTI, "body": {"optimizer": ADAM, "paramwise_cfg": {"norm_decay_mult": 0.0}},
         "head": {"optimizer": ADAMW}},
        [WARM_UP, STAIRS],
    ),
    "exponential average": Training(
        {"optimizer": SGD}, [STAIRS], hooks=[{"type": "EMAHook", "momentum": 0.03, "begin_iter": 9}]
    ),
    "average of mmdet, buffers": Training(
        {"optimizer": ADAMW}, [COSINE],
        hooks=[{"type": "EMAHook", "ema_type": "ExpMomentumEMA", "momentum": 0.01, "gamma": 50, "update_buffers": True}],
    ),
    "average of mmdet, later, at intervals": Training(
        {"optimizer": ADAMW},
        hooks=[{"type": "EMAHook", "ema_type": "ExpMomentumEMA", "gamma": 50, "interval": 4, "begin_epoch": 3}],
    ),
    "annealing average": Training(
        {"optimizer": SGD},
        hooks=[{"type": "EMAHook", "ema_type": "MomentumAnnealingEMA", "gamma": 20, "begin_epoch": 2, "interval": 3}],
    ),
    "mean": Training(
        {"optimizer": SGD}, hooks=[{"type": "EMAHook", "ema_type": "StochasticWeightAverage", "interval": 5}]
    ),
    "exponential average at intervals": Training(
        {"optimizer": SGD}, hooks=[{"type": "EMAHook", "momentum": 0.1, "interval": 5, "begin_iter": 50}]
    ),
    "a class of torch's": Training(
        {"optimizer": {"type": "RMSprop", "lr": 0.01, "alpha": 0.9, "eps": 1e-3, "momentum": 0.9},
         "paramwise_cfg": {"bias_lr_mult": 2.0}, "clip_grad": {"max_norm": 0.3}, "accumulative_counts": 3},
        [WARM_UP, COSINE],
    ),
    "an average after it": Training(
        {"optimizer": {"type": "NAdam", "lr": 0.01}}, [WARM_UP],
        hooks=[{"type": "EMAHook", "ema_type": "StochasticWeightAverage", "begin_iter": 4}],
    ),
    "an average over windows": Training(
        {"optimizer": SGD, "accumulative_counts": 3}, hooks=[{"type": "EMAHook", "momentum": 0.02, "begin_iter": 3}],
        max_epochs=None, max_iters=201, left=1,  # MMEngine's has then seen the last weights as often as the others
    ),
    "dampening, frozen parameters": Training(
        {"optimizer": {**SGD, "dampening": 0.1}, "paramwise_cfg": {"bias_decay_mult": 0.0}}, [STAIRS], prepare=frozen
    ),
    "a larger batch": Training(
        {"optimizer": {**SGD, "lr": 0.005}, "paramwise_cfg": RULES},
        [WARM_UP, {"type": "CosineRestartLR", "periods": [60, 140], "restart_weights": [1.0, 0.5], "eta_min": 1e-3,
                   "by_epoch": False}],
        batch_size=24, base_batch_size=16,
    ),
    "a plateau": Training(
        {"optimizer": SGD}, [WARM_UP, {"type": "ReduceOnPlateauLR", "monitor": "val", "patience": 1, "factor": 0.5}],
        metric=lambda epoch: 1.0 if epoch < 2 else 2.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_the_same_weights_after_200_iterations(name: str) -> None:
    """Every weight, buffer and average, in float64 at 1e-12; the weights have moved."""
    training = RUNS[name]
    expected, averages = training.theirs()
    got, updater = training.ours()
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(got.state_dict()[key], value, rtol=1e-12, atol=1e-13, msg=lambda m: f"{name}: {key}: {m}")
    fresh = Training({}).steps and type(got)().double()
    assert not torch.equal(fresh.head[1].weight, got.head[1].weight)
    if averages is not None:
        ours = updater.averages()
        for key, value in averages.items():
            # counters are of MMEngine's first copy, and here of the last averaging
            if key in ours and value.is_floating_point():
                torch.testing.assert_close(ours[key], value, rtol=1e-12, atol=1e-13, msg=lambda m: f"{name}: {key}: {m}")
    for one in updater.values() if isinstance(updater, gch.Group) else [updater]:
        assert gch.from_config(gch.to_config(one.chain)) == one.chain
