"""One cell: candidates made, checked against each other, and run in interleaved rounds."""

from __future__ import annotations

import gc
import math
import os
import time
import warnings
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from benchmarks import jax_peer, memory, other_peers, torch_peers
from benchmarks.candidate import BACKWARD, Bare, Candidate, Took, Unable, limit
from benchmarks.floor import Floor
from benchmarks.kernels import host
from benchmarks.ours import Ours
from benchmarks.quarters import quarters
from benchmarks.recipes import Cell

PEERS = (*torch_peers.PEERS, *other_peers.PEERS, *jax_peer.PEERS)
REFERENCES = (
    "torch default",
    "torch fused",
    "torch by hand",
    "lion_pytorch",
    "lion_pytorch foreach",
    "foreach by hand",
)  # whose weights the others are compared with
WARM = 6  # rounds before the timed ones; the parity check follows them
TOLERANCE = 1e-3  # of the largest displacement of any weight
FIRST_STEP_LIMIT = 200  # seconds; Optax compiles (c) for long
DISTURBED = 0.3  # a round is, in which the live floor is off its median by more than this part of it
HOST_TURNS = 7


@BACKWARD.clock()
def run(cell: Cell, rounds: int, only: Sequence[str] = (), slow: bool = True) -> dict[str, Any]:
    """Measure one cell.

    Args:
        cell: the recipe on the workload.
        rounds: how many timed rounds.
        only: names of peers; empty for all.
        slow: whether peers that compile for long take part.
    """
    candidates, unable = ready(cell, only, slow)
    parity = compared(cell, candidates)
    times: dict[str, list[Took]] = {c.name: [] for c in candidates}
    load = os.getloadavg()[0]
    ours = next(c for c in candidates if isinstance(c, Ours))
    skipped = ours.updater.num_skipped
    gc.collect()
    gc.freeze()  # the collector runs, but not over what was there before the rounds
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(rounds):
        for candidate in _order(candidates, number):
            times[candidate.name].append(candidate.turn())
    share = (time.process_time() - cpu) / (time.perf_counter() - wall)
    gc.unfreeze()
    for candidate in candidates:
        _check_finite(candidate)
    assert ours.updater.num_skipped == skipped, "steps that overflowed were timed"
    extra = {c.name: _memory(c) for c in candidates}
    floor = [t.part for t in times[Floor.name]] if Floor.name in times else []
    return {
        "workload": cell.workload.key,
        "recipe": cell.recipe.key,
        "rounds": rounds,
        "steps_per_round": cell.workload.steps,
        "per": cell.recipe.per,
        "threads": torch.get_num_threads(),
        "max_norm": cell.max_norm if cell.recipe.clip else None,
        **_summary(times, candidates, parity),
        "disturbed_rounds": _disturbed(floor),
        "cpu_share": share,
        "load": [load, os.getloadavg()[0]],
        "reference": ours.reference,
        "executors": ours.executors,
        "host_us": None if torch.get_num_threads() > 1 else quartiles([host(ours) for _ in range(HOST_TURNS)], 1e6),
        "parity": parity,
        "extra_bytes_per_parameter": {name: value for name, value in extra.items() if value is not None},
        "not_run": unable,
    }


def _order(candidates: list[Candidate], number: int) -> list[Candidate]:
    """Who comes when: everyone begins once, and every other time the neighbours are the other way about."""
    first = number % len(candidates)
    turned = candidates[first:] + candidates[:first]
    return turned[::-1] if number % 2 else turned


def _disturbed(floor: list[float]) -> list[int]:
    """The rounds in which the same bytes took another time than in most. They stay in all figures."""
    usual = median(floor) if floor else 0.0
    return [number for number, part in enumerate(floor) if abs(part - usual) > DISTURBED * usual]


def _check_finite(candidate: Candidate) -> None:
    for name, weight in candidate.model.named_parameters():
        assert torch.isfinite(weight).all(), f"{candidate.name}: {name} is not finite after the rounds"


def ready(cell: Cell, only: Sequence[str], slow: bool) -> tuple[list[Candidate], dict[str, str]]:
    """The candidates that can, after their warm-up rounds, and why the others cannot."""
    candidates: list[Candidate] = []
    unable = {}
    for make in (Bare, Floor, Ours, *PEERS):
        if only and make in PEERS and make.name not in only:
            continue
        long = make is other_peers.HeavyBall or (make is jax_peer.Optax and cell.workload.key == "c")
        if long and not slow:
            unable[make.name] = "left out of --quick: it compiles for long"
            continue
        try:
            with limit(FIRST_STEP_LIMIT, "the first steps"), warnings.catch_warnings():
                if make is not Ours:
                    warnings.simplefilter("ignore")
                candidate = make(cell)
                for _ in range(WARM):
                    candidate.round()
                    candidate.check_clip()
        except Unable as reason:
            unable[make.name] = str(reason)
        except Exception as error:
            if make is Ours:
                raise
            unable[make.name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
        else:
            candidates.append(candidate)
    return candidates, unable


def compared(cell: Cell, candidates: list[Candidate]) -> dict[str, dict[str, float | str]]:
    """How far everyone's displacement is from the reference's. AssertionError if ours is too far or nobody moved."""
    training = {c.name: c for c in candidates if c.trains}
    reference = next((training[name] for name in REFERENCES if name in training), None)
    start = dict(cell.workload.build().named_parameters())
    if reference is None:
        raise RuntimeError("parity: none of the reference peers runs this recipe")
    out: dict[str, dict[str, float | str]] = {}
    for name, candidate in training.items():
        moved = difference(dict(candidate.model.named_parameters()), dict(reference.model.named_parameters()), start)
        mine, theirs = candidate.average(), reference.average()
        if mine is not None and theirs is not None:
            averaged = difference(mine, theirs, start)
            moved = (max(moved[0], averaged[0]), max(moved[1], averaged[1]), min(moved[2], averaged[2]))
        worst, outliers, displacement = moved
        assert displacement > 0, f"{name} did not move the weights"
        out[name] = {"worst": worst, "outliers": outliers, "reference": reference.name}
        if outliers > cell.outliers:
            sentence = f"{name} differs from {reference.name}: {outliers:.2%} of elements, worst {worst:.2g}"
            assert not candidate.ours, sentence
            out[name]["differs"] = sentence
    return out


def difference(mine: dict[str, Any], theirs: dict[str, Any], start: dict[str, Any]) -> tuple[float, float, float]:
    """(largest difference over the largest displacement, part of the elements above TOLERANCE, that displacement)."""
    with torch.no_grad():
        largest = max(float((theirs[n] - w).abs().max()) for n, w in start.items())
        worst, above = 0.0, 0
        for n in start:
            difference = (mine[n] - theirs[n]).abs()
            worst = max(worst, float(difference.max()) / largest)
            above += int((difference > TOLERANCE * largest).sum())
    return worst, above / sum(w.numel() for w in start.values()), largest


def _memory(candidate: Candidate) -> dict[str, float] | None:
    try:
        return memory.measure(candidate)
    except Exception as error:
        if candidate.ours:
            raise
        return {"failed": float("nan"), "why": str(error)[:80]}  # type: ignore[dict-item]


def _summary(times: dict[str, list[Took]], candidates: list[Candidate], parity: dict[str, Any]) -> dict[str, Any]:
    """Medians and quartiles of everyone, and per-round ratios of ours over each.

    The best peer is the one with the least median among those that train and that agree with the reference. Optax has
    no whole step to compare.
    """
    ours = next(c.name for c in candidates if c.ours)
    rivals = [c.name for c in candidates if c.trains and not c.ours and "differs" not in parity[c.name]]
    best = min(rivals, key=lambda name: median(t.part for t in times[name]))
    steppers = [name for name in rivals if not math.isnan(times[name][0].whole)]
    best_whole = min(steppers, key=lambda name: median(t.whole for t in times[name]))
    table = {}
    for name, took in times.items():
        parts, wholes = [t.part for t in took], [t.whole for t in took]
        ratios = [a.part / b.part for a, b in zip(times[ours], took, strict=True)]
        steps = [a.whole / b.whole for a, b in zip(times[ours], took, strict=True)]
        table[name] = {
            "part_us": quartiles(parts, 1e6),
            "whole_us": quartiles(wholes, 1e6),
            "ours_over_it": quartiles(ratios),
            "ours_over_it_whole": quartiles(steps),
        }
    return {"best_peer": best, "best_peer_whole": best_whole, "candidates": table}


def quartiles(values: list[float], factor: float = 1.0) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return [float(f"{v * factor:.4g}") for v in quarters(values)]
