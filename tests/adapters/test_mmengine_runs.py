"""Whole runs of small models by MMEngine and by the chain that its recipe becomes: the same weights."""

from __future__ import annotations

import copy
import gzip
import importlib
import json
import logging
import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from later import later
from mmengine_stand_in import stand_in
from mmengine_training import Small, Training, batches, model
from test_mmengine_schedules import scoped
from torch import Tensor
from torch.utils.data import DataLoader

import gradchain as gch
from gradchain.adapters import mmengine

FOLDER = Path(__file__).parents[3] / "shared" / "openmmlab"
SGD = {"type": "SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2}
ADAM = {"type": "Adam", "lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 1e-2}
ADAMW = {"type": "AdamW", "lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-7, "weight_decay": 0.1}
WARM_UP = {"type": "LinearLR", "start_factor": 0.01, "by_epoch": False, "end": 30}
STAIRS = {"type": "MultiStepLR", "milestones": [4, 8], "gamma": 0.3}
PLATEAU = {"type": "ReduceOnPlateauLR", "monitor": "val", "patience": 0, "factor": 0.3}
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
        hooks=[{"type": "EMAHook", "ema_type": "ExpMomentumEMA", "momentum": 0.01, "gamma": 50,
                "update_buffers": True}],
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
    "a plateau with a floor under stairs": Training(
        {"optimizer": SGD, "paramwise_cfg": RULES},
        [STAIRS, {**PLATEAU, "min_value": 1e-3, "eps": 1e-3}], metric=lambda epoch: 1.0 if epoch < 2 else 2.0,
    ),
    "a floor for each group": Training(
        {"optimizer": SGD, "paramwise_cfg": RULES},
        [{**PLATEAU, "min_value": [0.001 * i for i in range(10)]}], metric=lambda epoch: float(epoch),
    ),
}  # fmt: skip


def check(name: str, got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Equal at 1e-12, counters too."""
    for key, value in expected.items():
        message = f"{name}: {key}: {got[key]} is not {value}"
        torch.testing.assert_close(got[key], value, rtol=1e-12, atol=1e-13, msg=message)


@pytest.mark.parametrize("name", RUNS)
def test_the_same_weights_after_200_iterations(name: str) -> None:
    """Every weight, buffer and average, in float64 at 1e-12; the weights have moved, and the chain is a config."""
    training = RUNS[name]
    expected, averages = training.theirs()
    got, updater = training.ours()
    check(name, got.state_dict(), expected.state_dict())
    assert (got.head[1].weight - model().head[1].weight).abs().max() > 1e-3
    if averages is not None:
        ours = updater.averages()
        # counters are of MMEngine's first copy, and here of the last averaging
        check(name, ours, {k: v for k, v in averages.items() if k in ours and v.is_floating_point()})
    for one in updater.values() if isinstance(updater, gch.Group) else [updater]:
        assert gch.from_config(gch.to_config(one.chain)) == one.chain


def toy() -> Any:
    """The small model as a Runner wants it."""

    class Toy(later("mmengine.model").BaseModel):  # type: ignore[misc]  # mmengine has no types
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def forward(self, x: Tensor, y: Tensor, mode: str) -> dict[str, Tensor]:
            return {"loss": (self.net(x) - y).square().mean()}

    return Toy()


@pytest.mark.filterwarnings("ignore:Detected call of")  # accumulation steps schedulers first
def test_the_runner_itself(tmp_path: Path) -> None:
    """With everything at once: accumulation with a ragged end, clip, rules, three schedulers, an average."""
    training = Training(
        {"optimizer": ADAMW, "paramwise_cfg": RULES, "accumulative_counts": 3, "clip_grad": {"max_norm": 0.2}},
        [WARM_UP, COSINE, {"type": "LinearMomentum", "start_factor": 0.5, "end": 2}],
        max_epochs=5,
        hooks=[{"type": "EMAHook", "momentum": 0.02, "begin_iter": 3}],
    )
    logging.disable(logging.CRITICAL)
    runner = later("mmengine.runner").Runner(
        toy(), str(tmp_path),
        train_dataloader=DataLoader(list(batches(training.epoch_length)), collate_fn=lambda rows: rows[0]),
        train_cfg={"by_epoch": True, "max_epochs": training.max_epochs},
        optim_wrapper=copy.deepcopy(dict(training.optim_wrapper)),
        param_scheduler=copy.deepcopy(training.param_scheduler),
        custom_hooks=copy.deepcopy(training.hooks),
        default_hooks={"checkpoint": None, "logger": None},
        experiment_name="gradchain",
    )  # fmt: skip
    runner.train()
    net = toy()
    updater = training.updater(net)
    for _ in range(training.max_epochs or 0):
        for x, y in batches(training.epoch_length):
            updater.update(net(x, y, "loss")["loss"])
    check("Runner", net.state_dict(), runner.model.state_dict())
    assert updater.num_updates == 34 and not updater.flush()


# every recipe that was found


# a part of the sentence: how many recipes it refuses, strictly and not
REFUSALS = {
    "LearningRateDecayOptimWrapperConstructor: paramwise_cfg: every key must be one that": (5, 0),
    "LayerDecayOptimWrapperConstructor: paramwise_cfg: every key must be one that": (4, 0),
    "it makes one optimizer for each resolution": (4, 4),
    "weight_decay must be inside optimizer": (3, 0),
    "it makes one optimizer for each stage": (2, 2),
    "DeepSpeed's engine makes the update": (2, 2),
    "(ReduceLR): a scheduler that reads a metric": (2, 2),
    "'fix_lr' of a parameter group must be an argument": (2, 0),
    "got '_delete'; did you mean '_delete_'?": (1, 0),
    "'_delete_' must not be left in a config": (1, 0),
    "optimizer must have weight_decay where bias_decay_mult multiplies it": (1, 1),
    "optim_wrapper: optimizer must be given.": (1, 1),
    "needs at least one optimizer: the name of a submodule": (1, 1),
    "max_epochs or max_iters must be given, one of the two, got None and None": (1, 1),
}


def updaters(recipe: Mapping[str, Any], build: Any, strict: bool) -> list[gch.Updater] | str:
    """One for each optimizer of a row, or why there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read = mmengine.from_config(
                stand_in(recipe["optim_wrapper"], build),
                recipe["optim_wrapper"],
                scoped(recipe["param_scheduler"], recipe["scope"]),
                max_epochs=recipe.get("epochs"),
                max_iters=recipe.get("iters"),
                epoch_length=97,
                custom_hooks=recipe.get("hooks"),
                strict=strict,
            )
    except (ValueError, TypeError) as error:
        return str(error)
    return list(read.values()) if isinstance(read, gch.Group) else [read]


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"needs the recipes in {FOLDER}")
@pytest.mark.parametrize("strict", [True, False])
def test_every_recipe_is_read_or_refused(strict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """490 of them, on small models with the names they speak of: each prints as code that makes it, or says why not."""
    monkeypatch.syspath_prepend(str(FOLDER))
    build = importlib.import_module("modules").build
    rules = {name: getattr(gch.rules, name) for name in ("scale_by_trust_ratio",)}
    code = {**rules, **vars(gch.schedules), **vars(gch.selectors), **vars(gch), "re": re, "torch": torch}
    refused, read = Counter[str](), 0
    with gzip.open(FOLDER / "recipes.jsonl.gz", "rt") as file:
        for recipe in map(json.loads, file):
            found = updaters(recipe, build, strict)
            if isinstance(found, str):
                refused[next((part for part in REFUSALS if part in found), found)] += 1
                continue
            read += 1
            for one in found:
                assert eval(repr(one.chain), code) == one.chain == gch.from_config(gch.to_config(one.chain))
                assert all(math.isfinite(x) and x >= 0 for x in numbers_of(one.hyperparams()))
    assert refused == {part: many[not strict] for part, many in REFUSALS.items() if many[not strict]}
    assert read == 490 - refused.total()


def numbers_of(hyperparams: Mapping[str, Any]) -> list[float]:
    return [x for value in hyperparams.values() for x in (value.values() if isinstance(value, dict) else [value])]
