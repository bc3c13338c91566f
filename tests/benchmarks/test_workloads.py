"""What the benchmarks train: losses with a least value, gradients that do not die, and clips that clip."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import gradchain as gch
from benchmarks import candidate as candidates
from benchmarks import measure, recipes, targets
from benchmarks.candidate import BACKWARD, Bare, Took
from benchmarks.floor import Floor
from benchmarks.kernels import Kernels, host
from benchmarks.ours import Ours
from benchmarks.recipes import RECIPES, Cell
from benchmarks.workloads import WORKLOADS
from gradchain.engine.commit import Commit
from gradchain.engine.executors import native
from gradchain.engine.executors.blocks import Blocks
from gradchain.engine.executors.patterns import Patterns

ROUNDS = 21  # of the command
TURNS = {"c": measure.WARM + ROUNDS + measure.HOST_TURNS + 1, "d": 11 * (ROUNDS + measure.HOST_TURNS)}  # in steps


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("workload", TURNS)
def test_weights_stay_finite_and_every_step_clips(workload, recipe):
    cell = Cell.of(WORKLOADS[workload], RECIPES[recipe])
    candidate = Ours(cell)
    start = {name: p.detach().clone() for name, p in candidate.model.named_parameters()}
    with BACKWARD.clock():
        for _ in range(TURNS[workload]):
            candidate.round()
            candidate.check_clip()
    for name, p in candidate.model.named_parameters():
        assert torch.isfinite(p).all(), name
        assert p.abs().max() < 2, name
        assert (p != start[name]).any(), f"{name} was not trained"


@pytest.mark.parametrize("workload", ["c", "d"])
def test_no_weights_bring_the_loss_below_0_and_gradients_are_there_at_the_best_ones(workload):
    chosen = WORKLOADS[workload]
    model = chosen.build()
    parameters = list(model.parameters())
    first = torch.stack([g.norm() for g in torch.autograd.grad(chosen.loss(model, 0), parameters)]).norm()
    optimizer = torch.optim.Adam(parameters, lr=2e-2)
    for _ in range(25):
        optimizer.zero_grad()
        sum(chosen.forward(model, number) for number in range(8)).backward()
        optimizer.step()
    losses = [chosen.forward(model, number) for number in range(8)]
    assert min(float(loss.detach()) for loss in losses) > 0
    grads = torch.autograd.grad(chosen.loss(model, 0), parameters)
    assert torch.stack([g.norm() for g in grads]).norm() > 0.2 * first


def test_a_step_is_timed_only_with_the_clock_in_backward():
    real = torch.Tensor.backward
    candidate = Ours(Cell.of(WORKLOADS["d"], RECIPES["R1"]))
    with pytest.raises(AssertionError, match="clock in backward"):
        candidate.round()
    with BACKWARD.clock():
        took = candidate.round()
    assert torch.Tensor.backward is real
    assert 0 < took.part < took.whole


@pytest.mark.parametrize(
    "executors", [(native.Native(),), (Patterns(), Blocks()), (Blocks(),)], ids=["native", "patterns", "blocks"]
)
@pytest.mark.parametrize("recipe", ["R1", "R2"])  # R2 reduces
def test_what_passes_in_kernels_is_not_the_hosts(recipe, executors):
    candidate = Ours(Cell.of(WORKLOADS["d"], RECIPES[recipe]))
    candidate.engine.executors = executors
    fire, driver = Commit.fire, native.driver
    with BACKWARD.clock():
        candidate.round()
        runners = [part.runner for part in candidate.engine.last]
        before = [dict(vars(runner)) for runner in runners]
        with Kernels(candidate.engine) as kernels:
            part = candidate.round().part
        assert 0 < kernels.seconds < part
        assert host(candidate) > 0
        assert {part.runner for part in candidate.engine.last} == set(runners)  # those that were under the clock
    assert (Commit.fire, native.driver) == (fire, driver)
    assert [dict(vars(runner)) for runner in runners] == before


def test_a_turn_is_the_mean_of_the_timed_steps_after_those_that_settle(monkeypatch):
    candidate = Ours(Cell.of(WORKLOADS["d"], RECIPES["R1"]))
    numbers = iter(range(100))
    monkeypatch.setattr(candidate, "round", lambda: Took(next(numbers), 1.0))
    workload = WORKLOADS["d"]
    assert candidate.turn().whole == workload.settle + (workload.steps - 1) / 2
    assert next(numbers) == workload.settle + workload.steps


def test_r0_is_the_first_recipe_of_the_readme():
    """But for numbers: bound of the clip, decay, betas and rate are the other recipes', the loss scale is lower."""
    blocks = re.findall(
        r"```python\n(.*?)```", (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8"), re.S
    )
    written = {}
    data, _, recipe = blocks[:3]
    exec(data + recipe.partition("\nfor ")[0], written)
    ours = Ours(Cell.of(WORKLOADS["d"], RECIPES["R0"])).updater
    mine, theirs = ours.chain.links, written["updater"].chain.links
    assert [type(link) for link in mine] == [type(link) for link in theirs]
    accumulate, amp, _, _, masked, rate, average = mine
    assert (accumulate, amp, average) == (theirs[0], gch.amp_scale(recipes.FIRST_SCALE), theirs[6])
    assert theirs[1] == gch.amp_scale()
    assert (type(masked.inner), masked.selector) == (type(theirs[4].inner), theirs[4].selector)
    factor = theirs[5].learning_rate(8) / rate.learning_rate(8)
    for step in range(100):
        assert factor * rate.learning_rate(step) == pytest.approx(theirs[5].learning_rate(step), rel=1e-12)
    assert ours._bound.autocast == written["updater"]._bound.autocast == torch.float16


def test_figures_of_r0_are_of_one_micro_batch(monkeypatch):
    candidate = Bare(Cell.of(WORKLOADS["d"], RECIPES["R0"]))
    monkeypatch.setattr(candidate, "round", lambda: Took(8.0, 4.0))
    assert candidate.turn() == Took(2.0, 1.0)
    candidate = Bare(Cell.of(WORKLOADS["d"], RECIPES["R6"]))
    monkeypatch.setattr(candidate, "round", lambda: Took(8.0, 4.0))
    assert candidate.turn() == Took(8.0, 4.0)


def test_the_context_around_a_forward_is_part_of_the_recipe(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(candidates, "now", lambda: next(ticks))
    candidate = Bare(Cell.of(WORKLOADS["d"], RECIPES["R0"]))
    assert candidate.forward()[1] == 2  # into it, and out of it
    assert candidate.number == 1
    assert Bare(Cell.of(WORKLOADS["d"], RECIPES["R6"])).forward()[1] == 0


def test_the_floor_of_r0_moves_every_byte_once_per_window():
    """Gradients are read for the norm; then they and weights, two moments and the average are, and the four written."""
    floor = Floor(Cell.of(WORKLOADS["d"], RECIPES["R0"]))
    count = len(floor.params)
    before = [column.clone() for column in floor.columns]
    assert len(before) == 4 * count
    with BACKWARD.clock():
        for k in range(4):
            loss, _ = floor.forward()
            floor.update(loss, k == 3)
            moved = sum(not torch.equal(a, b) for a, b in zip(before, floor.columns, strict=True))
            assert moved == (count if k == 3 else 0)  # the columns change places, and one takes the gradients in
            assert all((p.grad is None) == (k == 3) for p in floor.params)


def test_everyone_begins_once_and_has_two_neighbours():
    candidates = list("abcd")
    orders = [measure._order(candidates, number) for number in range(4)]
    assert {order[0] for order in orders[::2]} | {order[-1] for order in orders[1::2]} == set(candidates)
    assert orders[0] == list("abcd") and orders[1] == list("adcb")
    assert all(sorted(order) == candidates for order in orders)


def test_disturbed_rounds_are_told():
    assert measure._disturbed([1.0, 1.1, 1.4, 0.9, 0.6]) == [2, 4]
    assert measure._disturbed([]) == []


def _result(threads: int, native: bool, ratio: list[float]) -> dict:
    cell = {
        "workload": "a",
        "recipe": "R2",
        "best_peer": "torch fused",
        "candidates": {"torch fused": {"ours_over_it": ratio}},
        "executors": {"native": 2},
        "extra_bytes_per_parameter": {"gradchain": {"peak": 0.0}},
    }
    return {"threads": threads, "native": native, "cells": [cell]}


def test_a_target_is_met_when_the_upper_quartile_meets_it():
    results = [_result(1, True, [0.6, 0.7, 0.76]), _result(2, True, [0.6, 0.7, 0.75]), _result(1, False, [0.1] * 3)]
    rows = {row["what"]: row for row in targets.judged(results)}
    assert rows["R2 (a)"]["met"] is False
    assert rows["R2 (a), 2 threads"]["met"] is True
    assert rows["R2 (a), no compiler"]["met"] is True
    assert rows["R1 (a)"]["met"] is None
    assert rows["R3 (a), no compiler"]["met"] is None
    text = "\n".join(targets.lines(list(rows.values())))
    assert "MISSED" in text and "3 of 4 measured targets met" in text


def test_a_recipe_narrows_the_targets(monkeypatch):
    calls = []
    monkeypatch.setattr(targets.subprocess, "run", lambda command, env, check: calls.append(command))
    assert targets.here("acd", ["R0"]) == [("a", "R0"), ("c", "R0"), ("d", "R0")]
    assert not list(targets.elsewhere("acd", 15, False, ["R0"])) and not calls


def test_targets_of_the_first_recipe_are_its_floor_and_torch_by_hand():
    aimed = {t.workload: (t.bound, t.against) for t in targets.TARGETS if t.recipe == "R0"}
    assert aimed == {"a": (1.1, "live floor"), "c": (0.45, "torch by hand"), "d": (0.45, "torch by hand")}
    cell = {
        "workload": "a",
        "recipe": "R0",
        "best_peer": "torch fused",
        "candidates": {"torch fused": {"ours_over_it": [0.5] * 3}, "live floor": {"ours_over_it": [1.0, 1.05, 1.11]}},
        "executors": {"native": 3},
        "extra_bytes_per_parameter": {"gradchain": {"peak": 0.0}},
    }
    rows = {row["what"]: row for row in targets.judged([{"threads": 1, "native": True, "cells": [cell]}])}
    assert (rows["R0 (a)"]["against"], rows["R0 (a)"]["upper"], rows["R0 (a)"]["met"]) == ("live floor", 1.11, False)


@pytest.mark.parametrize(
    ("workload", "recipe", "allowed"),
    [("a", "R0", 0.1), ("a", "R3", 1e-3), ("b", "R0", 1e-3), ("c", "R0", 1e-3), ("d", "R0", 1e-3)],
)
def test_only_what_computes_in_float16_may_differ_in_more_elements(workload, recipe, allowed):
    assert Cell(WORKLOADS[workload], RECIPES[recipe], 1.0).outliers == allowed


def test_each_target_is_measured_by_one_of_the_processes(monkeypatch):
    calls = []
    monkeypatch.setattr(targets.subprocess, "run", lambda command, env, check: calls.append((command, env)))
    assert not list(targets.elsewhere("abcd", 15, quick=False))
    cells = [(w, r, 1, True) for w, r in targets.here("abcd")]
    for command, env in calls:
        words = list(pairwise(command))
        recipes = [value for key, value in words if key == "--recipe"]
        threads = int(dict(words)["--threads"])
        assert ("--rounds", "15") in words
        cells += [("a", r, threads, env.get("GRADCHAIN_NATIVE") != "0") for r in recipes]
    assert sorted(cells) == sorted({(t.workload, t.recipe, t.threads, t.native) for t in targets.TARGETS})
