"""Numbers that fall on a plateau of a metric: MMEngine's schedulers of any field, live, and the chain they become."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from mmengine_training import Training, model

import gradchain as gch

RUN: dict[str, Any] = {"max_epochs": 20, "epoch_length": 2}
LOOPS = {"by epoch": {}, "by iteration": {"max_epochs": None, "max_iters": 40}}
WALK = (2e9, 1.0, 0.8, 0.81, 0.9, 0.7, 0.9, 0.9, 0.6, 0.61, 0.62, 0.63, -0.1, -0.1, 0.0, 0.1, -0.2, 0.0, 0.1, 0.2)
SGD = {"type": "SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2}
ADAM = {"type": "AdamW", "lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.1}
RULES = {
    "norm_decay_mult": 0.0, "bias_lr_mult": 2.0, "dwconv_decay_mult": 0.5,
    "custom_keys": {"head": {"lr_mult": 0.1, "decay_mult": 3.0}},
}  # fmt: skip
OWN = {"custom_keys": {"head": {"momentum": 0.6}, "body": {"momentum": 0.8}}}
MOMENTUM = {"type": "ReduceOnPlateauMomentum", "monitor": "val", "patience": 1, "factor": 0.7}
DECAY = {"type": "ReduceOnPlateauParamScheduler", "param_name": "weight_decay", "monitor": "val", "patience": 0,
         "factor": 0.5}  # fmt: skip
RATE = {"type": "ReduceOnPlateauLR", "monitor": "val", "patience": 2, "factor": 0.5}
WARM_UP = {"type": "LinearLR", "start_factor": 0.01, "by_epoch": False, "end": 7}
RUNS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "momentum": ({"optimizer": SGD}, [MOMENTUM, WARM_UP]),
    "b1": ({"optimizer": ADAM}, [MOMENTUM]),
    "all three": ({"optimizer": SGD}, [RATE, MOMENTUM, DECAY]),
    "greater, by an absolute margin, with a cooldown": (
        {"optimizer": SGD},
        [{**MOMENTUM, "rule": "greater", "threshold_rule": "abs", "threshold": 0.05, "cooldown": 2, "patience": 0}]),
    "a floor": ({"optimizer": SGD}, [{**MOMENTUM, "min_value": 0.5}]),
    "to nothing": ({"optimizer": SGD}, [{**MOMENTUM, "factor": 0.0, "min_value": 0.2}]),
    "no reduction is large enough": ({"optimizer": SGD}, [{**MOMENTUM, "eps": 0.2}]),
    "a decay of groups": ({"optimizer": ADAM, "paramwise_cfg": RULES}, [{**DECAY, "min_value": 1e-3}]),
    "floors of groups": ({"optimizer": SGD, "paramwise_cfg": RULES},
                         [{**MOMENTUM, "min_value": [0.08 * i for i in range(10)]}]),
    "floors of decays": ({"optimizer": ADAM, "paramwise_cfg": RULES},
                         [{**DECAY, "min_value": [0.01 * i for i in range(10)]}]),
    "momenta of groups": ({"optimizer": SGD, "paramwise_cfg": OWN},
                          [{**MOMENTUM, "min_value": [0.05 * i for i in range(10)]}]),
    "under another": ({"optimizer": SGD}, [{"type": "LinearMomentum", "start_factor": 0.5, "by_epoch": False, "end": 9},
                                           MOMENTUM]),
    "of torch's class": ({"optimizer": {**SGD, "dampening": 0.4}},
                         [{**DECAY, "param_name": "dampening"}]),
    "a rate that is no factor": ({"optimizer": {"type": "NAdam", "lr": 0.01}}, [RATE, WARM_UP]),
    "rates of groups in torch's class": (
        {"optimizer": {"type": "NAdam", "lr": 0.01, "weight_decay": 0.1}, "paramwise_cfg": RULES},
        [{**RATE, "min_value": [0.0003 * i for i in range(10)]}],
    ),
    "windows": ({"optimizer": SGD, "accumulative_counts": 2}, [MOMENTUM, WARM_UP]),
}  # fmt: skip


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", RUNS)
def test_the_same_weights_after_40_iterations(name: str, loop: str) -> None:
    """Every weight in float64 at 1e-12; the number has really fallen, and what has been seen is in the state."""
    wrapper, schedulers = RUNS[name]
    run = {**RUN, **LOOPS[loop]}
    training = Training(wrapper, schedulers, metric=lambda i: WALK[i], **run)
    expected, _ = training.theirs()
    got, updater = training.ours()
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(got.state_dict()[key], value, rtol=1e-12, atol=1e-13)
    assert (got.head[1].weight - model().head[1].weight).abs().max() > 1e-3
    assert gch.from_config(gch.to_config(updater.chain)) == updater.chain
    fallen = {clock: n for clock, n in updater.state_dict()["clocks"].items() if clock.endswith("_plateau")}
    assert fallen and min(fallen.values()) > 1, fallen
    still, _ = replace(training, param_scheduler=[WARM_UP] if WARM_UP in schedulers else None).ours()
    assert not torch.equal(still.head[1].weight, got.head[1].weight)
