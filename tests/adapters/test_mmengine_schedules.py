"""MMEngine's schedulers as functions of the step: its recipes, its recorded values, and itself on random lists."""

from __future__ import annotations

import copy
import doctest
import gzip
import importlib
import json
import math
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine_live import FIELDS, Run, optimizer_of, trajectory, values

import gradchain as gch
from gradchain.adapters import mmengine

FOLDER = Path(__file__).parents[3] / "shared" / "openmmlab"
recorded = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"needs the recorded values in {FOLDER}")


def rows(name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(FOLDER / name, "rt") as file:
        yield from map(json.loads, file)


def quiet(*args: Any, **kwargs: Any) -> Any:
    """The schedules, without the warnings that real recipes deserve."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mmengine.schedules(*args, **kwargs)


def run_length(row: dict[str, Any]) -> dict[str, int]:
    length = "max_epochs" if row["loop"] == "epochs" else "max_iters"
    return {length: row["n"], "epoch_length": row["epoch_length"]}


def miss(got: Sequence[float], wanted: Sequence[float], floor: float = 0.0) -> int | None:
    """The first place where they differ by more than 1e-9 of the value."""
    for place, (a, b) in enumerate(zip(got, wanted, strict=True)):
        if not math.isclose(a, b, rel_tol=1e-9, abs_tol=floor):
            return place
    return None


def compare(row: dict[str, Any], fields: dict[str, Any], shuffled: bool = False) -> None:
    steps = row["steps"]
    order = list(range(len(steps)))
    if shuffled:
        random.Random(row["id"]).shuffle(order)
    for i, group in enumerate(row["groups"]):
        for field in FIELDS:
            told = row[field][i]
            wanted = [told["const"]] * len(steps) if isinstance(told, dict) else told
            schedule = fields[field](group["betas"][0] if field not in group else group[field])
            got = {k: schedule(steps[k]) for k in order}
            place = miss([got[k] for k in range(len(steps))], wanted)
            assert place is None, f"{row['id']} {field}[{i}] at {steps[place]}: {got[place]}, not {wanted[place]}"


def scoped(config: Any, scope: str) -> Any:
    """A list whose types are those of a project, as its files say once in `default_scope`."""
    if isinstance(config, dict) and "type" not in config:
        return {name: scoped(one, scope) for name, one in config.items()}
    if isinstance(config, list):
        return [scoped(one, scope) for one in config]
    return config if config is None else {"_scope_": scope, **config}


@recorded
def test_every_recorded_trajectory() -> None:
    """811 runs of real recipes, three groups each, strictly read: at each recorded step what MMEngine had there."""
    recipes = {recipe["id"]: recipe for recipe in rows("recipes.jsonl.gz")}
    count = 0
    for row in rows("trajectories.jsonl.gz"):
        identity, _, optimizer = row["id"].partition("/")
        fields = quiet(scoped(recipes[identity]["param_scheduler"], recipes[identity]["scope"]), **run_length(row))
        compare(row, fields.get(optimizer, fields), shuffled=bool(count % 2))
        count += 1
    assert count == 811


def against_mmengine(run: Any, kind: str) -> bool:
    """Every value of every group at every iteration; where MMEngine fails, so do we. Whether there was a run."""
    optimizer = optimizer_of(kind, 0.1, 0.9, 0.05)
    bases = values(optimizer)
    try:
        theirs = trajectory(optimizer, run.schedulers, run.epoch_length, **run.length)
    except (ValueError, TypeError, AssertionError, ZeroDivisionError):
        with pytest.raises((ValueError, TypeError)):
            quiet(run.schedulers, epoch_length=run.epoch_length, **run.length)
        return False
    fields = quiet(run.schedulers, epoch_length=run.epoch_length, **run.length)
    for group, base in enumerate(bases):
        for field in FIELDS:
            schedule = fields[field](base[field])
            wanted = [row[group][field] for row in theirs]
            order = list(range(run.iters))
            random.Random(run.iters).shuffle(order)
            got = {step: schedule(step) for step in order}
            # What should be 0 after a subtraction is there some 1e-14 of what was subtracted.
            place = miss([got[i] for i in range(run.iters)], wanted, floor=1e-13 * max(map(abs, wanted)))
            assert place is None, (
                f"{field}[{group}] at {place}: {got[place]}, not {wanted[place]}\n{run.schedulers}\n{run.length} of "
                f"{run.epoch_length}\n{schedule}"
            )
    return True


@pytest.mark.parametrize("block", range(10))
def test_random_lists_against_mmengine(block: int) -> None:
    """300 lists of one to five schedulers of every type, in windows that overlap, leave gaps or outlast the run."""
    seeds = range(30 * block, 30 * block + 30)
    assert sum(against_mmengine(Run(seed), "SGD" if seed % 2 else "AdamW") for seed in seeds) >= 29


@pytest.mark.slow
@pytest.mark.fuzz
def test_many_random_lists_against_mmengine() -> None:
    """Two thousand; with GRADCHAIN_LONG=1 ten thousand."""
    count = 10_000 if os.environ.get("GRADCHAIN_LONG") else 2_000
    seeds = range(300, 300 + count)
    assert sum(against_mmengine(Run(seed), "SGD" if seed % 2 else "AdamW") for seed in seeds) > 0.99 * count


class Mutant:
    """A recipe of which numbers and the order were changed, on a short run."""

    def __init__(self, schedulers: list[dict[str, Any]], seed: int) -> None:
        draw = random.Random(seed)
        self.epoch_length = draw.choice([2, 3, 7])
        self.epochs = draw.randint(3, 12)
        self.length = {"max_epochs": self.epochs}
        self.iters = self.epochs * self.epoch_length
        largest = max([1.0, *(s.get("end") or s.get("begin") or 1 for s in schedulers)])
        self.schedulers = [self.change(s, draw, largest) for s in copy.deepcopy(schedulers)]
        draw.shuffle(self.schedulers)

    def change(self, scheduler: dict[str, Any], draw: random.Random, largest: float) -> dict[str, Any]:
        """Times shrunk to the run, each a little differently; factors and floors moved."""
        unit = self.epochs if scheduler.get("by_epoch", True) else self.iters

        def time(x: float) -> int:
            return max(0, round(x / largest * unit) + draw.randint(-1, 2))

        for key in ("begin", "end"):
            if key in scheduler:
                scheduler[key] = time(scheduler[key])
        if "end" in scheduler:
            scheduler["end"] = max(scheduler["end"], scheduler.get("begin", 0) + 1)
        if scheduler.get("begin", 0) >= unit and "end" not in scheduler:
            scheduler["end"] = scheduler["begin"] + 3
        for key in ("T_max", "step_size", "total_steps"):
            if key in scheduler:
                scheduler[key] = max(1, time(scheduler[key]))
        for key in ("milestones", "periods"):
            if key in scheduler:
                scheduler[key] = [max(1, time(x)) for x in scheduler[key]]
        for key in ("start_factor", "factor", "gamma"):
            if key in scheduler:
                scheduler[key] = min(1.0, scheduler[key] * draw.choice([0.5, 1.0, 2.0]))
        if "eta_min" in scheduler:
            scheduler["eta_min"] *= draw.choice([0.0, 1.0, 3.0])
        return scheduler


def mutable(recipe: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The schedulers of a recipe for one optimizer, where MMEngine itself has all of them."""
    config = recipe["param_scheduler"]
    schedulers = [config] if isinstance(config, dict) and "type" in config else config
    theirs = ("LR", "Momentum", "ParamScheduler")
    extra = ("Quadratic", "Reduce", "OneCycle", "mm")
    if not isinstance(schedulers, list) or not schedulers:
        return None
    if not all(s["type"].endswith(theirs) and not s["type"].startswith(extra) for s in schedulers):
        return None
    return schedulers


@recorded
def test_a_hundred_mutated_recipes_against_mmengine() -> None:
    pool = [found for recipe in rows("recipes.jsonl.gz") if (found := mutable(recipe))]
    draw = random.Random(4)
    mutants = [Mutant(draw.choice(pool), seed) for seed in range(100)]
    assert sum(against_mmengine(mutant, "SGD" if mutant.iters % 2 else "AdamW") for mutant in mutants) >= 90


# what it becomes

WARM = {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "end": 6}
DROP = {"type": "MultiStepLR", "milestones": [2, 3]}
FALL = {"type": "CosineAnnealingLR", "eta_min": 0.001, "begin": 2, "end": 5}


@pytest.mark.parametrize(
    ("config", "code"),
    [
        (None, "constant(0.5)"),
        ([], "constant(0.5)"),
        (WARM, "0.5 * linear(0.1, 1.0, 5)"),
        ([WARM, DROP], "0.5 * linear(0.1, 1.0, 5) * per_epoch(multi_step(1.0, (2, 3)), 4)"),
        ([WARM, FALL],
         "join((0, 6, (0.5 * linear(0.1, 1.0, 5)).take(6)), "
         "(8, None, per_epoch(cosine_wave(0.5, 0.001, 3).take(2), 4)))"),
        ([DROP, FALL],
         "overlay(0.5, (0, 20, per_epoch(multi_step(1.0, (2, 3)), 4)), "
         "(8, 20, per_epoch(cosine_wave(1.0, 0.0, 3), 4), per_epoch(cosine_wave(0.0, 0.001, 3), 4)))"),
    ],
)  # fmt: skip
def test_the_code_that_replaces_it(config: Any, code: str) -> None:
    """Products where schedulers only multiply, join where they follow one another, overlay for the rest."""
    schedule = mmengine.schedules(config, max_epochs=5, epoch_length=4)["lr"](0.5)
    assert repr(schedule) == code
    names = vars(gch.schedules)
    assert eval(code, dict(names)) == schedule
    assert gch.from_config(gch.to_config(gch.scale_by_learning_rate(schedule))) == gch.scale_by_learning_rate(schedule)


def test_a_dict_by_optimizer() -> None:
    """Fields by optimizer; and a single scheduler's dict is not one."""
    both = mmengine.schedules({"generator": [WARM], "critic": DROP}, max_epochs=5, epoch_length=4)
    assert set(both) == {"generator", "critic"}
    assert both["generator"]["lr"](1.0)(0) == 0.1
    assert both["critic"]["lr"](1.0)(8) == 0.1
    assert set(both["critic"]) == {"lr", "momentum", "weight_decay"}


def test_other_fields() -> None:
    """A param_name may be any field of a group."""
    config = {"type": "ConstantParamScheduler", "param_name": "eps", "factor": 0.5, "by_epoch": False, "end": 3}
    fields = mmengine.schedules(config, max_epochs=5, epoch_length=4)
    assert [fields["eps"](1.0)(i) for i in range(4)] == [0.5, 0.5, 1.0, 1.0]
    assert repr(fields["lr"](0.1)) == "constant(0.1)"


def test_in_a_chain_it_reads_micro_batches() -> None:
    """As in MMEngine the schedule advances with each micro-batch, while updates are held."""
    lr = mmengine.schedules(WARM, max_epochs=5, epoch_length=4)["lr"](0.5)
    link = gch.scale_by_learning_rate(gch.by("micro", lr))
    model = torch.nn.Linear(1, 1)
    updater = gch.chain(gch.accumulate(2), link).bind(model)
    used = []
    for _ in range(3):
        for _ in range(2):
            info = updater.update(model(torch.ones(1, 1)).sum())
        used.append(info.hyperparams["scale_by_learning_rate.learning_rate"])
    assert used == [lr(1), lr(3), lr(5)]


# types that other packages of OpenMMLab add


def test_quadratic_warm_up_and_interval() -> None:
    """MMDetection's b * ((j + 1) / n)**2, also under a factor that overlaps; MMagic's stairs, a step late."""
    quadratic = {"type": "mmdet.QuadraticWarmupLR", "by_epoch": False, "end": 4}
    alone = mmengine.schedules(quadratic, max_epochs=2, epoch_length=4)["lr"](0.8)
    assert [alone(i) for i in range(6)] == pytest.approx([0.05, 0.2, 0.45, 0.8, 0.8, 0.8], rel=1e-12)
    halves = {"type": "ExponentialLR", "gamma": 0.5, "by_epoch": False}
    both = mmengine.schedules([quadratic, halves], max_epochs=2, epoch_length=4)["lr"](0.8)
    walked, value = [], 0.0
    for i in range(8):
        value = 0.05 if i == 0 else value + 0.8 * (2 * i + 1) / 16 if i < 4 else value
        value *= 0.5 if i else 1.0
        walked.append(value)
    assert [both(i) for i in range(8)] == pytest.approx(walked, rel=1e-12)
    stairs = {"type": "LinearLrInterval", "interval": 2, "start_factor": 0.0, "end_factor": 1.0, "by_epoch": False}
    late = mmengine.schedules(stairs, max_epochs=2, epoch_length=4)["lr"](0.8)
    assert [late(i) for i in range(8)] == [0.0, 0.0, 0.0, 0.25, 0.25, 0.5, 0.5, 0.75]


def test_poly_ratio_and_weight_decay() -> None:
    """MMSegmentation's floor is a part of the base; MMPretrain's weight decay of 0 stays 0."""
    poly = {"type": "PolyLRRatio", "eta_min_ratio": 0.1, "by_epoch": False}
    lr = mmengine.schedules(poly, max_iters=5, epoch_length=4)["lr"](0.8)
    assert [lr(i) for i in range(6)] == pytest.approx([0.8, 0.62, 0.44, 0.26, 0.08, 0.08], rel=1e-12)
    decay = {"type": "CosineAnnealingWeightDecay", "eta_min": 0.2, "by_epoch": False, "T_max": 4}
    weight_decay = mmengine.schedules(decay, max_iters=5, epoch_length=4)["weight_decay"]
    assert [weight_decay(0.0)(i) for i in range(6)] == [0.0] * 6
    assert (weight_decay(0.05)(0), weight_decay(0.05)(4)) == (0.05, 0.2)


def test_the_examples_run() -> None:
    module = importlib.import_module("gradchain.adapters.mmengine.curves.schedules")
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 3
