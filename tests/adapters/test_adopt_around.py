"""Around an adopted training: wrappers, links in front, averages with buffers, skipped updates, later groups."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from little import largest
from torch import nn
from torch.optim import lr_scheduler as s
from torch.optim import swa_utils
from trainings import (
    AVERAGES,
    CLASSES,
    FIRST,
    SCHEDULERS,
    THEN,
    Net,
    Torch,
    a_part,
    adopted,
    check,
    distance,
    go_on,
    grouped,
)

import gradchain as gch

o = torch.optim


# how the model is wrapped


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


def as_a_part(model: nn.Module) -> nn.Module:
    """Under a name of its own, which the optimizer and the average may know nothing of."""
    return nn.ModuleDict({"inner": compiled(model)})


def test_a_compiled_model_keeps_what_is_remembered_of_it():
    loop = Torch(grouped, SCHEDULERS["cosine"], AVERAGES["ema"])
    for _ in range(FIRST):
        loop.step()
    start, twin = copy.deepcopy(loop.model), copy.deepcopy(loop)
    updater = gch.adopt(twin.optimizer, twin.scheduler, None, twin.average, model=compiled(twin.model))
    go_on(loop, twin.model, updater)
    assert distance(twin.model, loop.model, start) < 1e-12
    averages = updater.averages()
    for n, parameter in loop.average.module.named_parameters():
        torch.testing.assert_close(averages[n], parameter.detach(), rtol=1e-12, atol=1e-14)


def test_a_model_under_ddp_keeps_what_is_remembered_of_it(one_rank):
    loop = Torch(grouped, SCHEDULERS["cosine"], lambda model: swa_utils.AveragedModel(model))
    for _ in range(FIRST):
        loop.step()
    start, twin = copy.deepcopy(loop.model), copy.deepcopy(loop)
    replicated = nn.parallel.DistributedDataParallel(twin.model, find_unused_parameters=True)
    updater = gch.adopt(twin.optimizer, twin.scheduler, None, twin.average, model=replicated)
    go_on(loop, replicated, updater)
    assert distance(twin.model, loop.model, start) < 1e-12


@pytest.fixture
def one_rank(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_names_of_a_state_are_those_of_the_model_in_its_wrapper():
    loop = Torch(lambda m: o.AdamW(m.named_parameters(), lr=0.01))
    for _ in range(FIRST):
        loop.step()
    start, model = copy.deepcopy(loop.model), copy.deepcopy(loop.model)
    updater = gch.adopt(loop.optimizer.state_dict(), model=compiled(model), kind="AdamW")
    go_on(loop, model, updater)
    assert distance(model, loop.model, start) < 1e-12


def test_an_average_of_another_module_is_refused():
    loop = Torch(CLASSES["adamw"], None, AVERAGES["mean"])
    loop.step()
    with pytest.raises(ValueError, match="adopt: average must be of the model's parameters, got one that has no 'inne"):
        gch.adopt(loop.optimizer, None, None, loop.average, model=as_a_part(loop.model))


# what is beside the rule


OWN = {"grokfast": "scale_by_adam", "ema": "scale_by_adam", "trace": "trace#2"}


@pytest.mark.parametrize("link", OWN)
def test_a_link_in_front_has_a_memory_of_its_own(link):
    """Not the rule's, though its slots may have the same names."""
    make = {"grokfast": gch.rules.grokfast, "ema": lambda: gch.rules.ema(0.9), "trace": lambda: gch.trace(0.5)}[link]
    loop = Torch(CLASSES["momentum" if link == "trace" else "adam"])
    for _ in range(FIRST):
        loop.step()
    _, updater = adopted(loop, front=[make()])
    fresh = gch.chain(make(), gch.sgd(1.0)).bind(Net().double()).state_dict()["links"]
    address = next(iter(fresh))
    assert str(updater.state_dict()["links"][address]) == str(fresh[address])
    (own,) = (
        state for name, state in updater.state_dict()["links"].items() if name.endswith(OWN[link]) and name != address
    )
    first = own["trace" if link == "trace" else "mu"]
    assert largest(slot.abs().max() for slot in first.values()) > 0


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def forward(self, step: int) -> torch.Tensor:
        x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        return (self.net(x) - x.sum(1, keepdim=True)).square().mean()


@pytest.mark.parametrize("decay", [None, 0.9])
def test_an_average_of_buffers_goes_on(decay):
    torch.manual_seed(0)
    model = Normed().double()
    optimizer = o.SGD(model.parameters(), lr=0.05, momentum=0.9)
    function = None if decay is None else swa_utils.get_ema_multi_avg_fn(decay)
    average = swa_utils.AveragedModel(model, multi_avg_fn=function, use_buffers=True)

    def step(model: nn.Module, optimizer: Any, average: Any, i: int) -> None:
        optimizer.zero_grad()
        model(i).backward()
        optimizer.step()
        average.update_parameters(model)

    for i in range(5):
        step(model, optimizer, average, i)
    twin, of_twin, its_average = copy.deepcopy((model, optimizer, average))
    updater = gch.adopt(of_twin, None, None, its_average, model=twin)
    for i in range(5, 25):
        step(model, optimizer, average, i)
        updater.update(twin(i))
    with updater.averaged():
        for (name, live), wanted in zip(twin.named_buffers(), average.module.buffers(), strict=True):
            if live.is_floating_point():
                torch.testing.assert_close(live, wanted, rtol=1e-12, atol=1e-14, msg=name)


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 3, sparse=True)

    def forward(self, step: int) -> torch.Tensor:
        return (self.table(torch.tensor([step % 6, (2 * step + 1) % 6])) - 0.3).square().sum()


def test_sparse_adam():
    torch.manual_seed(0)
    model = Table().double()
    optimizer = o.SparseAdam(model.parameters(), lr=0.02, betas=(0.8, 0.95), eps=1e-4)

    def step(i: int) -> None:
        optimizer.zero_grad()
        model(i).backward()
        optimizer.step()

    for i in range(FIRST):
        step(i)
    twin, of_twin = copy.deepcopy((model, optimizer))
    start, updater = copy.deepcopy(model), gch.adopt(of_twin, model=twin)
    for i in range(FIRST, FIRST + THEN):
        step(i)
        updater.update(twin(i))
    assert distance(twin, model, start) < 1e-12


@pytest.mark.parametrize("overflows", [{5}, {40}, {5, 40}, set()], ids=["before", "behind", "both", "never"])
def test_a_scheduler_goes_on_at_skipped_updates_as_torchs_does(overflows):
    loop = Torch(CLASSES["adamw"], SCHEDULERS["exponential"], scaler=lambda: torch.amp.GradScaler("cpu", 64.0))

    def loss(model: nn.Module, step: int) -> torch.Tensor:
        return model(step) * (float("inf") if step in overflows else 1.0)

    def step() -> None:
        loop.optimizer.zero_grad()
        loop.scaler.scale(loss(loop.model, loop.done)).backward()
        loop.scaler.step(loop.optimizer)
        loop.scaler.update()
        loop.scheduler.step()
        loop.done += 1

    for _ in range(FIRST):
        step()
    start = copy.deepcopy(loop.model)
    model, updater = adopted(loop)
    for _ in range(THEN):
        updater.update(loss(model, loop.done))
        step()
    assert distance(model, loop.model, start) < 1e-12
    assert updater.clocks["micro"] == loop.scheduler.last_epoch


# groups and windows


def grown(make: Callable[[Any], Any] | None) -> Torch:
    """A part at first, and the others when it has run for a while."""
    loop = Torch(a_part, make)
    for _ in range(5):
        loop.step()
    held = {id(p) for group in loop.optimizer.param_groups for p in group["params"]}
    others = [p for p in loop.model.parameters() if id(p) not in held]
    loop.optimizer.add_param_group({"params": others, "lr": 0.003})
    return loop


GROWN = {
    "nothing": None,
    "step": lambda opt: s.StepLR(opt, 60, 0.5),
    "multi step": lambda opt: s.MultiStepLR(opt, [50], 0.5),
}


@pytest.mark.parametrize("name", GROWN)
def test_groups_that_came_later(name):
    check(grown(GROWN[name]), clock="step" if GROWN[name] else None)


@pytest.mark.parametrize("name", ["lambda", "cyclic", "one cycle"])
def test_a_scheduler_that_does_not_know_the_later_groups_is_refused(name):
    loop = grown(SCHEDULERS[name])
    with pytest.raises(ValueError, match=r"adopt: scheduler must know all 2 groups of the optimizer, got a .* of 1"):
        gch.adopt(loop.optimizer, loop.scheduler, model=loop.model)


def test_a_plateau_over_groups_that_came_later():
    loop = grown(None)
    del loop.optimizer.param_groups[1]
    plateau = s.ReduceLROnPlateau(loop.optimizer, factor=0.5, min_lr=1e-4)
    loop.optimizer.add_param_group({"params": [loop.model.head.weight], "lr": 0.003})
    updater = gch.adopt(loop.optimizer, plateau, model=loop.model)
    assert str(updater.chain).count("min_value=0.0001") == 2
    listed = s.ReduceLROnPlateau(loop.optimizer, min_lr=[0.1, 0.2])
    loop.optimizer.add_param_group({"params": [*loop.model.rare.parameters()]})
    with pytest.raises(ValueError, match="must know all 3 groups of the optimizer, got a ReduceLROnPlateau of 2"):
        gch.adopt(loop.optimizer, listed, model=loop.model)


PARTS = {
    "shorter": lambda opt: [s.LinearLR(opt, 0.1, 1.0, 5), s.CosineAnnealingLR(opt, 90)],
    "longer": lambda opt: [s.LinearLR(opt, 0.1, 1.0, 50), s.CosineAnnealingLR(opt, 90)],
    "a constant": lambda opt: [s.ConstantLR(opt, 0.5, 5), s.ExponentialLR(opt, 0.97)],
    "polynomial": lambda opt: [s.PolynomialLR(opt, 5), s.CosineAnnealingLR(opt, 90)],
    "a cycle": lambda opt: [s.OneCycleLR(opt, 0.05, 130, cycle_momentum=False), s.ConstantLR(opt, 0.5, 10)],
    "nested, none of it level": lambda opt: [
        s.SequentialLR(opt, [s.LinearLR(opt, 0.1, 0.6, 4), s.ExponentialLR(opt, 0.95), s.StepLR(opt, 3)], [3, 15]),
        s.StepLR(opt, 30),
    ],
    "nested twice": lambda opt: [
        s.SequentialLR(
            opt,
            [
                s.SequentialLR(opt, [s.ConstantLR(opt, 0.3, 4), s.LinearLR(opt, 0.5, 1.0, 9)], [3]),
                s.ExponentialLR(opt, 0.97),
            ],
            [14],
        ),
        s.StepLR(opt, 30),
    ],
    "nested": lambda opt: [
        s.SequentialLR(opt, [s.LinearLR(opt, 0.1, 1.0, 5), s.ConstantLR(opt, 0.5, 4)], [5]), s.StepLR(opt, 30)
    ],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # torch's own, of parts within parts
@pytest.mark.parametrize(
    ("name", "first"), [*((n, FIRST) for n in PARTS), *((n, k) for n in PARTS if "nested" in n for k in (0, 2, 25))]
)
def test_parts_of_other_lengths_than_their_windows(name, first):
    loop = Torch(CLASSES["adamw"], lambda opt: s.SequentialLR(opt, PARTS[name](opt), [20]))
    check(loop, clock="step", first=first)


def test_groups_without_momentum_have_nothing_to_damp():
    def make(model: nn.Module) -> Any:
        body = {"params": model.body.parameters(), "momentum": 0.9, "dampening": 0.3}
        others = [p for n, p in model.named_parameters() if not n.startswith("body.")]
        return o.SGD([body, {"params": others, "momentum": 0.0, "dampening": 0.7}], lr=0.02)

    check(Torch(make))
