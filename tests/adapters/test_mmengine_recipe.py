"""What an MMEngine recipe becomes: its code, several optimizers, registered ones, averages."""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import gradchain as gch
from gradchain.adapters import mmengine

SGD = {"type": "SGD", "lr": 0.1, "momentum": 0.9}
ADAMW = {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.05}
STAIRS = {"type": "MultiStepLR", "milestones": [3]}
MULTI = "MultiOptimWrapperConstructor"
CODE = {**vars(gch.schedules), **vars(gch.selectors), **vars(gch), "re": re, "torch": torch}


def in_a_line(chain: gch.chain) -> str:
    """The code of a chain, however long it is."""
    return f"chain({', '.join(map(repr, chain.links))})"


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g, self.d = nn.Linear(2, 2), nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.d(self.g(x))  # type: ignore[no-any-return]


def read(wrapper: Any, schedulers: Any = None, model: nn.Module | None = None, **given: Any) -> Any:
    length = {} if "max_iters" in given else {"max_epochs": 5}
    return mmengine.from_config(model or Two(), wrapper, schedulers, **{**length, "epoch_length": 4, **given})


def quiet(*args: Any, **given: Any) -> Any:
    """Without the warnings that a recipe deserves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read(*args, **given)


def test_without_strict_a_custom_key_that_matches_nothing_is_a_warning_at_bind() -> None:
    """The chain that is made without a model then trains as the one that is made for it."""
    rules = {"bias_decay_mult": 0.0, "custom_keys": {"neck": {"lr_mult": 10.0, "decay_mult": 0.5}}}
    wrapper = {"optimizer": {**SGD, "weight_decay": 0.1}, "paramwise_cfg": rules}
    start, weights = Two(), []
    for at_hand in (True, False):
        model = copy.deepcopy(start)
        if at_hand:
            updater = quiet(wrapper, [STAIRS], model, strict=False)
        else:
            [part] = mmengine.unbound(wrapper, [STAIRS], max_epochs=5, epoch_length=4, strict=False)
            with pytest.warns(UserWarning, match=r'named\("\*neck\*", missing_ok=True\) matches none of the 4'):
                updater = part.chain.bind(model)
        for x in torch.linspace(-1.0, 1.0, 12).view(6, 1, 2):
            updater.update((model(x) ** 2).sum())
        weights.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    [strictly] = mmengine.unbound(wrapper, max_epochs=5, epoch_length=4)
    with pytest.raises(ValueError, match=r'the pattern "\*neck\*" matches none of the 4 parameters'):
        strictly.chain.bind(Two())


# the code


WRITTEN: list[tuple[dict[str, Any], Any, str]] = [
    ({"optimizer": SGD}, [STAIRS],
     "chain(trace(0.9), scale_by_learning_rate(0.1 * per_epoch(multi_step(1.0, (3,)), 4)))"),
    ({"optimizer": {**SGD, "nesterov": True, "weight_decay": 1e-4, "foreach": False}}, None,
     "chain(add_decayed_weights(0.0001), trace(0.9, nesterov=True), scale_by_learning_rate(0.1))"),
    ({"optimizer": {"type": "Adam", "lr": 1e-3, "weight_decay": 0.1, "betas": [0.5, 0.9]}}, None,
     "chain(add_decayed_weights(0.1), scale_by_adam(b1=0.5, b2=0.9), scale_by_learning_rate(0.001))"),
    ({"optimizer": ADAMW, "clip_grad": {"max_norm": 35, "norm_type": 2}}, None,
     "chain(clip_by_norm(35), scale_by_adam(), add_decayed_weights(0.05), scale_by_learning_rate(0.001))"),
    ({"optimizer": {"type": "Lion", "lr": 1e-4}, "clip_grad": {"type": "value", "clip_value": 1}}, None,
     "chain(clip_by_value(1), scale_by_lion(), scale_by_learning_rate(0.0001))"),
    ({"optimizer": {**SGD, "dampening": 0.5}}, None,
     'chain(from_torch("SGD", lr=0.1, momentum=0.9, dampening=0.5))'),
    ({"optimizer": {"type": "Adam", "lr": 1e-3, "amsgrad": True}}, [STAIRS],
     'chain(from_torch("Adam", lr=0.001 * per_epoch(multi_step(1.0, (3,)), 4), amsgrad=True))'),
    # MMEngine's Adafactor is that of transformers
    ({"optimizer": {"type": "Adafactor", "lr": 0.1, "relative_step": False}}, None,
     'chain(from_torch("transformers.Adafactor", lr=0.1, relative_step=False))'),
    ({"optimizer": {"type": "ASGD", "lr": 0.1}}, None, 'chain(from_torch("ASGD", lr=0.1))'),
    ({"optimizer": {**SGD, "type": torch.optim.SGD}}, None, "chain(trace(0.9), scale_by_learning_rate(0.1))"),
    ({"optimizer": {"type": "mmagic.Yogi", "lr": 0.1}}, None, 'chain(from_torch("Yogi", lr=0.1))'),
    ({"optimizer": SGD, "accumulative_counts": 3}, [STAIRS],
     "chain(accumulate(by('micro', join((0, 18, constant(3.0)), (18, None, constant(2.0))))), trace(0.9), "
     "scale_by_learning_rate(by('micro', 0.1 * per_epoch(multi_step(1.0, (3,)), 4))))"),
    ({"optimizer": SGD, "accumulative_counts": 5}, None,
     "chain(accumulate(5), trace(0.9), scale_by_learning_rate(0.1))"),
    ({"optimizer": SGD, "paramwise_cfg": {"bias_lr_mult": 2.0}}, [STAIRS],
     "chain(trace(0.9), scale_by_learning_rate(multiply(0.1 * per_epoch(multi_step(1.0, (3,)), 4), (bias, 2.0))))"),
    ({"type": "AmpOptimWrapper", "optimizer": SGD}, None,
     "chain(amp_scale(), trace(0.9), scale_by_learning_rate(0.1))"),
    ({"type": "mmengine.AmpOptimWrapper", "loss_scale": 512.0, "optimizer": SGD, "dtype": "float16"}, [STAIRS],
     "chain(amp_scale(init_scale=512.0, dynamic=False), trace(0.9), "
     "scale_by_learning_rate(by('micro', 0.1 * per_epoch(multi_step(1.0, (3,)), 4))))"),
    ({"type": "AmpOptimWrapper", "loss_scale": {"growth_interval": 7}, "optimizer": SGD, "use_fsdp": False}, None,
     "chain(amp_scale(growth_interval=7), trace(0.9), scale_by_learning_rate(0.1))"),
    ({"type": "AmpOptimWrapper", "loss_scale": {"enabled": False}, "optimizer": SGD}, None,
     "chain(trace(0.9), scale_by_learning_rate(0.1))"),
    ({"type": "ApexOptimWrapper", "opt_level": "O1", "loss_scale": 128.0, "optimizer": SGD}, None,
     "chain(amp_scale(init_scale=128.0, dynamic=False), trace(0.9), scale_by_learning_rate(0.1))"),
    ({"type": "ApexOptimWrapper", "opt_level": "O0", "optimizer": SGD}, None,
     "chain(trace(0.9), scale_by_learning_rate(0.1))"),
    ({"constructor": MULTI, "modules": ["d"], "optimizer": SGD, "accumulative_counts": 3}, None,
     "chain(accumulate(by('micro', join((0, 18, constant(3.0)), (18, None, constant(2.0))))), trace(0.9), "
     "scale_by_learning_rate(0.1))"),
    ({"optimizer": SGD},
     [STAIRS, {"type": "ReduceOnPlateauLR", "monitor": "acc", "rule": "greater", "min_value": 1e-3}],
     'chain(trace(0.9), scale_by_learning_rate(0.1 * per_epoch(multi_step(1.0, (3,)), 4)), reduce_on_plateau("acc", '
     'min_value=0.001 / (1.0 * per_epoch(multi_step(1.0, (3,)), 4)).clip(low=1e-30), mode="max", base=0.1, '
     'worst=1000000000.0))'),
    # the format of mmcv 1.x
    ({"optimizer": {**SGD, "paramwise_cfg": {"norm_decay_mult": 0.0}, "weight_decay": 0.1},
      "optimizer_config": {"grad_clip": {"max_norm": 35, "norm_type": 2}},
      "lr_config": {"policy": "step", "step": [3], "warmup": "linear", "warmup_iters": 2, "warmup_ratio": 0.1},
      "momentum_config": None}, None,
     "chain(clip_by_norm(35), add_decayed_weights(0.1), trace(0.9), "
     "scale_by_learning_rate(per_epoch(multi_step(0.1, (3,)), 4) * linear(0.1, 1.0, 2)))"),
    ({"optimizer": SGD, "optimizer_config": {"type": "GradientCumulativeOptimizerHook", "cumulative_iters": 3}}, None,
     "chain(accumulate(by('micro', join((0, 18, constant(3.0)), (18, None, constant(2.0))))), trace(0.9), "
     "scale_by_learning_rate(0.1))"),
    ({"optimizer": SGD, "optimizer_config": {"type": "Fp16OptimizerHook", "loss_scale": "dynamic",
                                             "distributed": False}}, None,
     "chain(amp_scale(), trace(0.9), scale_by_learning_rate(0.1))"),
    ({"optimizer": SGD, "optimizer_config": {"grad_clip": None}, "fp16": {"loss_scale": 512.0}}, None,
     "chain(amp_scale(init_scale=512.0, dynamic=False), trace(0.9), scale_by_learning_rate(0.1))"),
]  # fmt: skip


@pytest.mark.parametrize("wrapper, schedulers, code", WRITTEN, ids=range(len(WRITTEN)))
def test_the_chain_is_printed_as_its_code(wrapper: Any, schedulers: Any, code: str) -> None:
    """The code makes the chain; so does its config; the caller's dicts stay as they were."""
    before = copy.deepcopy((wrapper, schedulers))
    chain = quiet(wrapper, schedulers).chain
    assert in_a_line(chain) == code
    assert eval(code, CODE) == chain == gch.from_config(gch.to_config(chain))
    assert (wrapper, schedulers) == before


AVERAGES: list[tuple[dict[str, Any], str]] = [
    ({}, "average_params(0.9998, start=1)"),
    ({"momentum": 0.1, "begin_iter": 5, "update_buffers": True}, "average_params(0.9, start=5, buffers=\"average\")"),
    ({"momentum": 0.1, "begin_epoch": 3, "interval": 2},
     "average_params(join((0, 9, constant(0.0)), (9, None, constant(0.9))), start=8, every=2)"),
    ({"ema_type": "MomentumAnnealingEMA", "momentum": 0.1, "priority": 49, "strict_load": False},
     "average_params(ema_warmup(0.9))"),
    ({"ema_type": "mmdet.ExpMomentumEMA", "momentum": 0.1, "begin_iter": 4},
     "average_params(join((0, 3, constant(0.0)), (3, None, ema_exponential(0.9))), start=4)"),
    ({"ema_type": "StochasticWeightAverage", "interval": 3}, 'average_params("mean", every=3)'),
]  # fmt: skip


@pytest.mark.parametrize("hook, code", AVERAGES, ids=range(len(AVERAGES)))
def test_the_average_of_an_ema_hook(hook: dict[str, Any], code: str) -> None:
    """It comes last; the runs against MMEngine are in test_mmengine_runs.py."""
    chain = read({"optimizer": SGD}, custom_hooks=[{"type": "EMAHook", **hook}]).chain
    assert in_a_line(chain) == f"chain(trace(0.9), scale_by_learning_rate(0.1), {code})"
    assert eval(repr(chain), CODE) == chain


def test_several_optimizers_are_a_group() -> None:
    """Each with its module and its schedulers; a pattern takes every module that it matches in full."""
    wrapper = {"constructor": MULTI, "g": {"optimizer": ADAMW}, "first": {"optimizer": SGD, "modules": ["d"]}}
    model = Two()
    both = read(wrapper, {"first": [STAIRS]}, model)
    assert isinstance(both, gch.Group) and list(both) == ["g", "first"]
    assert both["g"].names == ("weight", "bias") and both["first"].names == ("d.weight", "d.bias")
    assert "multi_step" in repr(both["first"].chain) and "multi_step" not in repr(both["g"].chain)
    one = read({"constructor": MULTI, "modules": ".*d", "optimizer": SGD}, [STAIRS], nn.DataParallel(model))
    assert one.names == ("d.weight", "d.bias")
    old = read({"optimizer": {"g": ADAMW, "d": SGD}, "lr_config": {"policy": "step", "step": [3]}})
    assert list(old) == ["g", "d"] and all("multi_step" in repr(u.chain) for u in old.values())


def test_a_hook_is_named_once_and_each_part_is_averaged() -> None:
    """Of several optimizers each has an average of its own module."""
    wrapper = {"constructor": MULTI, "g": {"optimizer": SGD}, "d": {"optimizer": SGD, "accumulative_counts": 2}}
    with pytest.warns(UserWarning) as caught:
        both = read(wrapper, custom_hooks=[{"type": "EMAHook"}, {"type": "SyncNormHook"}])
    assert len(caught) == 1 and "SyncNormHook" in str(caught[0].message)
    assert repr(both["g"].chain.links[-1]) == "average_params(0.9998, start=1)"
    assert repr(both["d"].chain.links[-1]) == f"average_params({0.9998**2!r}, start=1)"


@pytest.mark.usefixtures("forgotten")
def test_a_registered_optimizer() -> None:
    """A class or an alias of one's own, by its name in the config; its numbers are what rules and schedulers drive."""

    class Twice(torch.optim.SGD):
        pass

    def gentle(learning_rate: Any, b1: Any = 0.5) -> Any:
        return gch.adam(learning_rate, b1=b1)

    gch.register("LAMB")(Twice)
    gch.register("gentle")(gentle)
    rules = {"custom_keys": {"g": {"lr_mult": 0.1}}}
    first = read({"optimizer": {"type": "LAMB", "lr": 0.1}, "paramwise_cfg": rules}).chain
    assert repr(first) == 'chain(from_torch("LAMB", lr=multiply(0.1, (named("*g*"), 0.1))))'
    falling = {"type": "LinearMomentum", "start_factor": 0.5, "by_epoch": False}

    def heavy(learning_rate: Any, decay: Any = 0.8) -> Any:
        return gch.sgd(learning_rate, momentum=decay)

    gch.register("heavy")(heavy)
    third = read({"optimizer": {"type": "heavy", "lr": 0.1}}, falling).chain
    assert repr(third) == "chain(trace(0.8 * linear(0.5, 1.0, 19)), scale_by_learning_rate(0.1))"
    second = read({"optimizer": {"type": "mmdet.gentle", "lr": 0.1}}, falling).chain
    assert repr(second) == "chain(scale_by_adam(b1=0.5 * linear(0.5, 1.0, 19)), scale_by_learning_rate(0.1))"


def test_what_no_group_takes_is_frozen() -> None:
    """A constructor may leave out parameters that have gradients: strict refuses, and else they stay as they are."""
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_parameter("scale", nn.Parameter(torch.ones(1)))
    wrapper = {"constructor": "YOLOv5OptimizerConstructor", "optimizer": {**SGD, "weight_decay": 0.1}}
    with pytest.raises(ValueError, match="every trained parameter must be in a group, got none for 'scale'"):
        read(wrapper, model=model)
    updater = quiet(wrapper, model=model, strict=False)
    assert repr(updater.chain.links[0]) == 'freeze(named("scale"))'
    updater.update((model(torch.ones(1, 2)) * model.scale).sum())
    assert model.scale == 1.0 and updater.num_updates == 1


@pytest.mark.parametrize("modules", ["head", ["head"], "he.*"])
def test_one_optimizer_over_modules_trains_them(modules: Any) -> None:
    """By the name of a child as by a list or a pattern: that child is optimised, and nothing else."""
    wrapper = {"constructor": "MultiOptimWrapperConstructor", "modules": modules, "optimizer": SGD}
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    updater = mmengine.from_config(model, wrapper, max_iters=4, epoch_length=2)
    before = {name: p.clone() for name, p in model.named_parameters()}
    updater.update(model["head"](model["body"](torch.ones(3, 2))).sum())
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"head.weight", "head.bias"}
