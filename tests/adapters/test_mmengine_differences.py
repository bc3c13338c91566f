"""What differs from MMEngine on purpose: one test for each line of the table in the adapter's docstring."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from later import later
from mmengine_live import optim
from torch import nn

from gradchain.adapters import mmengine

ema = later("mmengine.model")
SGD = {"type": "SGD", "lr": 0.1, "momentum": 0.9}
FALLING = {"type": "LinearLR", "start_factor": 1.0, "end_factor": 0.0, "by_epoch": False}
MULTI = "MultiOptimWrapperConstructor"


def net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).to(dtype)


def read(model: nn.Module, wrapper: Any, schedulers: Any = None, **given: Any) -> Any:
    return mmengine.from_config(model, wrapper, schedulers, max_epochs=2, epoch_length=5, **given)


def loss_of(model: nn.Module, i: int = 0) -> torch.Tensor:
    dtype = next(model.parameters()).dtype
    return model(torch.ones(4, 2, dtype=dtype) * (i + 1)).square().mean()  # type: ignore[no-any-return]


def test_an_open_window_is_in_the_checkpoint() -> None:
    """MMEngine's optimizer wrapper saves neither its count nor the gradients so far."""
    wrapper = {"optimizer": SGD, "accumulative_counts": 4}
    assert not {"_inner_count", "window"} & set(optim.build_optim_wrapper(net(), wrapper).state_dict())
    whole, first = net(), net()
    updater, broken = read(whole, wrapper, FALLING), read(first, wrapper, FALLING)
    for i in range(10):
        updater.update(loss_of(whole, i))
        if i == 6:  # in the middle of a window
            second = copy.deepcopy(first)
            resumed = read(second, wrapper, FALLING)
            resumed.load_state_dict(broken.state_dict())
            first, broken = second, resumed
        broken.update(loss_of(first, i))
    assert updater.num_updates == broken.num_updates == 3
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), first.parameters(), strict=True))


def test_the_last_window_of_several_optimizers_can_be_flushed() -> None:
    """MMEngine loses it, since its dict of wrappers does not count; here it stays open, and is there to apply."""
    model = nn.ModuleDict({"g": net(), "d": net()})
    both = read(model, {"constructor": MULTI, "g": {"optimizer": SGD, "accumulative_counts": 3}})
    for i in range(10):
        both["g"].update(loss_of(model["g"], i))
    assert both["g"].num_updates == 3
    assert both["g"].flush() and both["g"].num_updates == 4


def test_an_average_is_taken_once_per_update() -> None:
    """With the decay of as many iterations; the run over windows in test_mmengine_runs.py is equal."""
    chain = read(net(), {"optimizer": SGD, "accumulative_counts": 3}, custom_hooks=[{"type": "EMAHook"}]).chain
    assert repr(chain.links[-1]) == f"average_params({0.9998**3!r}, start=1)"


def test_bfloat16_has_no_loss_scale() -> None:
    """MMEngine scales there too, until the scale itself overflows now and then and costs an update."""
    model = net(torch.float32)
    wrapper = {"type": "AmpOptimWrapper", "optimizer": SGD, "dtype": "bfloat16"}
    updater = read(model, wrapper)
    with updater.context():
        assert model(torch.ones(1, 2)).dtype == torch.bfloat16
        loss = loss_of(model)
    assert updater.update(loss) and "amp_scale.scale" not in updater.metrics


def test_float16_runs_on_any_device() -> None:
    """MMEngine asserts that there is an accelerator."""
    model = net(torch.float32)
    if not torch.cuda.is_available():
        with pytest.raises(AssertionError, match="only available training"):
            optim.AmpOptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    updater = read(model, {"type": "AmpOptimWrapper", "optimizer": SGD})
    with updater.context():
        out = model(torch.ones(1, 2))
    assert out.dtype == torch.float16
    loss = out.float().square().mean()
    assert updater.update(loss) and updater.metrics["amp_scale.scale"] == 65536.0


def test_a_skipped_update_leaves_the_average() -> None:
    """MMEngine averages after it. The schedule goes on in both: it counts iterations."""
    model = net(torch.float32)
    updater = read(model, {"type": "AmpOptimWrapper", "optimizer": SGD}, FALLING, custom_hooks=[{"type": "EMAHook"}])
    updater.update(loss_of(model))
    before = {name: value.clone() for name, value in updater.averages().items()}
    assert updater.update(loss_of(model) * torch.inf).reason == "overflow"
    assert all(torch.equal(value, before[name]) for name, value in updater.averages().items())
    assert updater.num_updates == 1
    assert updater.hyperparams()["scale_by_learning_rate.learning_rate"] == pytest.approx(0.1 * (1 - 2 / 9))


def test_a_loss_that_is_not_finite_is_refused() -> None:
    """On the CPU; MMEngine's clip makes NaN of every weight."""
    wrapper = {"optimizer": SGD, "clip_grad": {"max_norm": 1.0}}
    theirs, ours = net(), net()
    optim.build_optim_wrapper(theirs, copy.deepcopy(wrapper)).update_params(loss_of(theirs) * torch.inf)
    assert theirs[0].weight.isnan().all()
    with pytest.raises(FloatingPointError, match="weights and state are untouched"):
        read(ours, wrapper).update(loss_of(ours) * torch.inf)
    assert torch.equal(ours[0].weight, net()[0].weight)


def test_each_of_several_optimizers_reads_its_own_iterations() -> None:
    """MMEngine's schedulers all move with the Runner's, whichever optimizer steps."""
    model = nn.ModuleDict({"g": net(), "d": net()})
    both = read(model, {"constructor": MULTI, "g": {"optimizer": SGD}, "d": {"optimizer": SGD}}, FALLING)
    for i in range(6):
        both["d"].update(loss_of(model["d"]))
        if i % 3 == 0:
            both["g"].update(loss_of(model["g"]))
    rates = [one.hyperparams()["scale_by_learning_rate.learning_rate"] for one in both.values()]
    assert rates == pytest.approx([0.1 * (1 - 2 / 9), 0.1 * (1 - 6 / 9)])


def test_another_loss_leaves_nothing_in_a_window() -> None:
    """MMEngine adds what a generator's loss left in the discriminator, unless somebody zeroes it."""
    model = nn.ModuleDict({"g": net(), "d": net()})
    twin = copy.deepcopy(model)
    wrapper = {"constructor": MULTI, "d": {"optimizer": SGD, "accumulative_counts": 2}}
    ours, alone = read(model, wrapper)["d"], read(twin, wrapper)["d"]
    for i in range(4):
        ours.update(loss_of(model["d"], i))
        loss_of(model["d"], 7).backward()  # of another optimizer
        alone.update(loss_of(twin["d"], i))
    assert ours.num_updates == 2
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_parameter_that_thaws_is_trained() -> None:
    """With paramwise_cfg MMEngine leaves a frozen parameter out of the optimizer for good."""
    wrapper = {"optimizer": SGD, "paramwise_cfg": {"bias_lr_mult": 2.0}}
    model = net()
    model[0].requires_grad_(False)
    theirs = optim.build_optim_wrapper(model, copy.deepcopy(wrapper))
    assert not any(p is model[0].weight for group in theirs.optimizer.param_groups for p in group["params"])
    updater, before = read(model, wrapper), model[0].weight.clone()
    updater.update(loss_of(model))
    assert torch.equal(model[0].weight, before)
    model[0].requires_grad_(True)
    updater.update(loss_of(model))
    assert not torch.equal(model[0].weight, before)


def test_a_tied_weight_is_averaged_once() -> None:
    """MMEngine goes through the state dict, where it stands under both names, and so twice as fast."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).double()
    model[1].weight = model[0].weight
    theirs = ema.ExponentialMovingAverage(copy.deepcopy(model), momentum=0.25, update_buffers=True)
    updater = read(
        model, {"optimizer": SGD}, custom_hooks=[{"type": "EMAHook", "momentum": 0.25, "update_buffers": True}]
    )
    start = model[0].weight.clone()
    for _ in range(2):
        updater.step({name: torch.ones_like(p) for name, p in model.named_parameters()})
        theirs.update_parameters(model)
    first, second = start - 0.1, start - 0.29  # a momentum of 0.9
    averaged, twice = 0.75 * first + 0.25 * second, 0.75**2 * first + (1 - 0.75**2) * second  # the first is a copy
    torch.testing.assert_close(theirs.state_dict()["module.0.weight"], twice, rtol=1e-12, atol=1e-14)
    with updater.averaged():
        torch.testing.assert_close(model[0].weight.detach(), averaged, rtol=1e-12, atol=1e-14)


def test_a_warm_up_in_fractions_is_a_ramp() -> None:
    """mmcv 1.7 asserts in the first iteration that it is whole; there is nothing else that it could mean."""
    warmed = {"policy": "fixed", "warmup": "linear", "warmup_by_epoch": True, "warmup_iters": 0.5}
    old = {"optimizer": SGD, "optimizer_config": None, "lr_config": warmed}
    updater = read(net(), old)
    rates = []
    for _ in range(4):
        updater.step({name: torch.zeros_like(p) for name, p in net().named_parameters()})
        rates.append(updater.hyperparams()["scale_by_learning_rate.learning_rate"])
    assert rates == pytest.approx([0.1 * min(1.0, 0.1 + 0.9 * (i + 1) / 2.5) for i in range(4)], rel=1e-12)
