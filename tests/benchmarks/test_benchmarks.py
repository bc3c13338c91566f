"""The benchmarks run, all candidates of a recipe compute the same weights, the file has its form. No time counts."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import in_place
from benchmarks.recipes import RECIPES

ROOT = Path(__file__).parents[2]
TOLERANCE, OUTLIERS = 1e-3, 1e-3  # of the largest displacement, for all but so many of the elements

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks pin themselves to a core")

TORCH = {"torch fused", "torch foreach", "torch default"}
LIBRARIES = {
    "torchopt": {"torchopt", "torchopt accelerated"},
    "torchzero": {"torchzero"},
    "optax": {"optax (jit)"},
    "lion_pytorch": {"lion_pytorch", "lion_pytorch foreach"},
    "pytorch_optimizer": {"pytorch_optimizer"},
}
# who takes part; HeavyBall, which compiles for long, is left to `--quick`-less runs
EXPECTED = {
    "R0": {*TORCH, "torch by hand", "torchzero", "optax (jit)"},
    "R1": {*TORCH, "torchopt", "torchopt accelerated", "torchzero", "optax (jit)"},
    "R2": {*TORCH, "torchopt", "torchopt accelerated", "torchzero", "optax (jit)"},
    "R3": {*TORCH, "torchzero", "optax (jit)"},
    "R4": {*TORCH, "torchopt", "torchzero", "optax (jit)"},
    "R5": {"lion_pytorch", "lion_pytorch foreach", "pytorch_optimizer", "torchzero", "optax (jit)"},
    "R6": {*TORCH, "torchopt", "torchopt accelerated", "torchzero", "optax (jit)"},
    "R7": {"foreach by hand", "optax (jit)"},
    "R8-14": {*TORCH, "torchzero", "optax (jit)"},
    "R8-each": {*TORCH, "torchzero", "optax (jit)"},
}


def run(path: Path, *words: str, **env: str):
    """The command with these words: its result and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words, "--output", str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(path.read_text()), done.stdout


if importlib.util.find_spec("lion_pytorch") is None:  # then the rule by hand is what the others are held against
    EXPECTED["R5"].add("foreach by hand")


def installed(peers: set[str]) -> set[str]:
    """Those of the peers whose library is here."""
    missing = [names for library, names in LIBRARIES.items() if importlib.util.find_spec(library) is None]
    return peers.difference(*missing)


@pytest.fixture(scope="module")
def all_recipes(tmp_path_factory):
    """One round of every recipe on the small model, with every peer that compiles quickly."""
    folder = tmp_path_factory.mktemp("benchmarks")
    return run(folder / "result.json", "--workload", "d", "--rounds", "1", "--quick", "--no-facts")


@pytest.mark.parametrize("recipe", RECIPES)
def test_all_candidates_compute_the_same_weights(recipe, all_recipes):
    result, _ = all_recipes
    (cell,) = (cell for cell in result["cells"] if cell["recipe"] == recipe)
    if not installed(EXPECTED[recipe]):
        pytest.skip("no library with this rule is here")
    assert set(cell["parity"]) == {"gradchain", *installed(EXPECTED[recipe])}, cell["not_run"]
    for name, parity in cell["parity"].items():
        assert "differs" not in parity, parity
        assert parity["worst"] <= TOLERANCE or parity["outliers"] <= OUTLIERS, name
    assert cell["extra_bytes_per_parameter"]["gradchain"]["gradients_kept"] == 0
    assert cell["reference"] == ""
    assert set(cell["executors"]) == {"native"}


def test_the_best_peer_is_the_fastest_of_all(all_recipes):
    for cell in all_recipes[0]["cells"]:
        medians = {name: cell["candidates"][name]["part_us"][1] for name in cell["parity"] if name != "gradchain"}
        assert cell["best_peer"] == min(medians, key=medians.__getitem__)


QUARTILES = [float, float, float]
FIGURES = {"part_us": QUARTILES, "whole_us": list, "ours_over_it": QUARTILES, "ours_over_it_whole": list}
CELL = {
    "workload": str, "recipe": str, "rounds": int, "steps_per_round": int, "per": int, "threads": int,
    "max_norm": (float, type(None)), "best_peer": str, "best_peer_whole": str, "candidates": dict,
    "disturbed_rounds": list, "cpu_share": float, "load": [float, float], "reference": str, "executors": dict,
    "host_us": QUARTILES, "parity": dict, "extra_bytes_per_parameter": dict, "not_run": dict,
}  # fmt: skip
RESULT = {
    "date": str, "machine": {"cpu": str, "cores_used": int, "cores": int, "load": [float, float, float]},
    "system": str, "python": str, "commit": str, "threads": int, "native": bool, "rounds": int, "cells": list,
    "versions": {"torch": str, "optax": str, "gradchain": str, "compiler": str}, "failed": list, "others": list,
}  # fmt: skip


def check(value, form, where="result"):
    """Fails where a value has not the form: a type, a list of forms, or a dict of forms that are there."""
    if isinstance(form, dict):
        assert isinstance(value, dict), where
        for key, inner in form.items():
            assert key in value, f"{where} lacks {key}"
            check(value[key], inner, f"{where}.{key}")
    elif isinstance(form, list):
        assert isinstance(value, list) and len(value) == len(form), where
        for inner, one in zip(form, value, strict=True):
            check(one, inner, where)
    else:
        assert isinstance(value, form) or (form is float and isinstance(value, int)), f"{where}: {value!r}"


def test_the_file_has_its_form(all_recipes):
    result, _ = all_recipes
    check(result, RESULT)
    assert [cell["recipe"] for cell in result["cells"]] == list(RECIPES)
    for cell in result["cells"]:
        check(cell, CELL)
        assert {"gradchain", "bare"} <= set(cell["candidates"])
        for name, figures in cell["candidates"].items():
            check(figures, FIGURES, name)
            assert all(math.isfinite(x) and x > 0 for x in figures["part_us"])
            assert (figures["whole_us"] == [None, None, None]) == (name == "optax (jit)")


def test_the_table_says_how_optax_is_measured_and_what_ran(all_recipes):
    pytest.importorskip("optax")
    result, printed = all_recipes
    assert printed.count("optax (jit): its jitted update on torch's gradients") == len(result["cells"])
    assert printed.count("ours ran: ") == len(result["cells"])


def test_targets_are_judged_and_what_is_not_measured_is_said(tmp_path):
    result, printed = run(
        tmp_path / "targets.json", "--targets", "--workload", "d", "--rounds", "2", "--quick", "--peer", "torch fused"
    )
    rows = {row["what"]: row for row in result["targets"]}
    for what in ("R2 (d)", "R3 (d)"):
        assert rows[what]["against"] == "torch fused"
        assert rows[what]["by"] == "native"
        assert rows[what]["met"] == (rows[what]["upper"] <= rows[what]["target"])
    assert rows["R1 (a)"]["met"] is None
    assert rows["peak extra memory, worst cell"]["met"]
    assert set(result["facts"]["bind_1000_s"]) == {"0", "1", "10", "100"}
    assert all(took["kernels"] > 0 for took in result["facts"]["first_step"].values())
    assert "import gradchain over torch" in printed
    measured = {"first step, cold, (d) R2", "first step, warm, (d) R3", "bind to 1000 tensors, 100 masked links"}
    assert measured | {"recording, (d) R2", "import over torch"} <= set(rows)
    assert "not measured" in printed
    assert f"{len([r for r in rows.values() if r['met'] is not None])} measured targets met" in printed


def test_two_threads(tmp_path):
    words = ("--threads", "2", "--workload", "d", "--recipe", "R3", "--rounds", "1", "--no-facts")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    result, _ = run(tmp_path / "two.json", *words, "--peer", "torch fused")
    assert (result["threads"], result["machine"]["cores_used"], result["cells"][0]["threads"]) == (2, 2, 2)
    assert result["cells"][0]["host_us"] is None
    assert "live floor" in result["cells"][0]["candidates"]


def test_without_a_compiler_the_measure_is_foreach_by_hand(tmp_path):
    words = ("--workload", "d", "--recipe", "R2", "--recipe", "R5", "--recipe", "R7", "--rounds", "1", "--no-facts")
    peers = (
        "--peer",
        "foreach by hand",
        "--peer",
        "torch foreach",
        "--peer",
        "torch default",
        "--peer",
        "lion_pytorch",
    )
    result, _ = run(tmp_path / "plain.json", *words, *peers, GRADCHAIN_NATIVE="0")
    assert result["native"] is False
    adamw, lion, own = result["cells"]
    assert set(adamw["executors"]) == {"patterns", "blocks"}
    assert set(lion["executors"]) == set(own["executors"]) == {"blocks"}
    assert "foreach by hand" in lion["parity"] and "foreach by hand" in own["parity"]
    assert all("differs" not in parity for cell in result["cells"] for parity in cell["parity"].values())
    assert all("live floor" in cell["candidates"] for cell in result["cells"])


@pytest.mark.slow
def test_quick_runs_everything(tmp_path):
    result, _ = run(tmp_path / "quick.json", "--quick", "--rounds", "1", "--no-facts")
    assert len(result["cells"]) == 5


def test_from_torch_beside_its_class(tmp_path):
    """The command runs and says its figures, and the steps it times come to the same weights in every form."""
    path = tmp_path / "in_place.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.in_place", "--workload", "20 x 64", "--rounds", "2", "--output", str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(path.read_text())
    assert found["cells"] == [] and [cell["class"] for cell in found["in_place"]] == list(in_place.CLASSES)
    for name in in_place.CLASSES:
        made = in_place.steps(in_place.SMALL, name)
        start = [p.detach().clone() for p in made["bare"][0].parameters()]
        for _, step in made.values():
            for _ in range(3):
                step()
        bare = list(made["bare"][0].parameters())
        assert not any(map(torch.equal, bare, start))
        for form in in_place.FORMS:
            assert all(map(torch.equal, made[form][0].parameters(), bare)), (name, form)
