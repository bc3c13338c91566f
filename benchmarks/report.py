"""The table, and the file of figures."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.recipes import RECIPES
from benchmarks.workloads import WORKLOADS

RESULTS = Path(__file__).parent / "results"
_SHOWN = ("torch", "pytorch_optimizer", "lion-pytorch", "torchopt", "torchzero", "heavyball", "optax", "jax")


def circumstances(rounds: int) -> dict[str, Any]:
    """What a figure depends on: machine, versions, date, threads."""
    versions = {}
    for name in _SHOWN:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed as a package"
    from gradchain import __version__

    versions["gradchain"] = __version__
    compiler = shutil.which("gcc") or shutil.which("clang")
    versions["compiler"] = _first_line(compiler, "--version") if compiler else "none"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": {"cpu": _cpu(), "cores_used": cores, "cores": os.cpu_count(), "load": list(os.getloadavg())},
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
        "threads": torch.get_num_threads(),
        "native": os.environ.get("GRADCHAIN_NATIVE", "1") != "0",
        "rounds": rounds,
    }


def _commit() -> str:
    """The commit that was measured, and whether the files were others."""
    here = ("git", "-C", str(Path(__file__).parent))
    commit = _first_line(*here, "rev-parse", "HEAD")
    changed = commit and _first_line(*here, "status", "--porcelain", "--", "../gradchain", "../benchmarks/*.py")
    return f"{commit}, changed" if changed else commit or "not in a repository"


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except OSError:
        return ""
    return done.stdout.partition("\n")[0]


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            line = next(line for line in file if line.startswith("model name"))
        return line.partition(":")[2].strip()
    except (OSError, StopIteration):
        return platform.processor()


def lines(cell: dict[str, Any]) -> list[str]:
    """One cell as text: everyone by time, with the ratio of ours to it."""
    recipe, workload = RECIPES[cell["recipe"]], WORKLOADS[cell["workload"]]
    best = cell["candidates"][cell["best_peer"]]
    step = cell["candidates"][cell["best_peer_whole"]]
    out = [
        "",
        f"({workload.key}) {workload.title}  |  {recipe.key}: {recipe.title}",
        f"  ours / best peer ({cell['best_peer']}): optimizer part {_ratio(best['ours_over_it'])}",
        f"  ours / best peer ({cell['best_peer_whole']}): whole step {_ratio(step['ours_over_it_whole'])}",
        f"  {'':22} {'part':>10} {'step':>10} {'ours/it':>9} {'upper':>7} {'extra B/p':>10} {'parity':>9}",
    ]
    if cell["per"] > 1:
        out.insert(2, f"  figures are of one micro-batch: a window's, divided by {cell['per']}")
    extra, parity = cell["extra_bytes_per_parameter"], cell["parity"]
    for name, figures in sorted(cell["candidates"].items(), key=lambda item: item[1]["part_us"][1]):
        _, ratio, upper = figures["ours_over_it"]
        scratch = f"{extra[name]['peak']:.2f}" if "peak" in extra.get(name, {}) else "-"
        times = "".join(f" {duration(figures[key][1]):>10}" for key in ("part_us", "whole_us"))
        out.append(f"  {name:22}{times} {ratio:9.2f} {upper:7.2f} {scratch:>10} {_agrees(parity.get(name)):>9}")
    executors = ", ".join(f"{n} {name}" for name, n in cell["executors"].items())
    host = "" if cell["host_us"] is None else f"; {duration(cell['host_us'][1])} of ours pass outside kernels"
    out.append(f"  ours ran: {executors or 'none'}{host}")
    if "optax (jit)" in cell["candidates"]:
        out.append("  optax (jit): its jitted update on torch's gradients, and their release; it has no whole step")
    if cell["disturbed_rounds"]:
        count = len(cell["disturbed_rounds"])
        out.append(f"  {count} of {cell['rounds']} rounds were disturbed: the live floor was over 30% off its median")
    if cell["cpu_share"] < 0.9:
        out.append(f"  other processes were on this core: it was ours {cell['cpu_share']:.0%} of the time")
    if cell["reference"]:
        out.append(f"  OURS RAN BY THE REFERENCE, NOT THE ENGINE: {cell['reference']}")
    out += [f"  not run: {name}: {why}" for name, why in cell["not_run"].items()]
    out += [f"  {p['differs']}" for p in parity.values() if "differs" in p]
    return out


def _agrees(parity: dict[str, Any] | None) -> str:
    if parity is None:
        return "-"
    return "DIFFERS" if "differs" in parity else f"{parity['worst']:.0e}"


def _ratio(quartiles: list[float]) -> str:
    return f"{quartiles[1]:.2f} (upper quartile {quartiles[2]:.2f})"


def duration(microseconds: float) -> str:
    if math.isnan(microseconds):
        return "-"
    return f"{microseconds / 1e3:.2f} ms" if microseconds >= 1e3 else f"{microseconds:.0f} us"


def summary(cells: list[dict[str, Any]]) -> list[str]:
    """One line per cell: the headline ratios."""
    out = ["", "ours / best peer: optimizer part (upper quartile), whole step; ours / live floor"]
    for cell in cells:
        figures = cell["candidates"]
        part, whole = figures[cell["best_peer"]], figures[cell["best_peer_whole"]]
        floor = figures.get("live floor", {}).get("ours_over_it", [math.nan] * 3)[1]
        out.append(
            f"  ({cell['workload']}) {cell['recipe']:8} {part['ours_over_it'][1]:5.2f} ({part['ours_over_it'][2]:.2f})"
            f"  {whole['ours_over_it_whole'][1]:5.2f}  {floor:6.2f}   best peer: {cell['best_peer']}"
        )
    return out


def facts_lines(facts: dict[str, Any]) -> list[str]:
    """What is no step's time, as medians."""
    milli = {name: 1e3 * median(took) for name, took in facts["bind_1000_s"].items()}
    out = ["", f"import gradchain over torch: {1e3 * median(facts['import_over_torch_s']):.0f} ms"]
    if "first_use_over_torch_s" in facts:  # older results have none
        took = 1e3 * median(facts["first_use_over_torch_s"])
        out.append(f"import, first chain and first bind over torch: {took:.0f} ms")
    out += [f"bind to 1000 tensors, R2 and {name} masked links: {took:.1f} ms" for name, took in milli.items()]
    for cell, took in facts["first_step"].items():
        times = f"cold {median(took['cold_s']):.3f} s, warm {median(took['warm_s']):.3f} s"
        out.append(f"first optimizer part, {cell}: {times}, {took['kernels']} kernels")
    for cell, took in facts["recording"].items():
        out.append(f"recording in a real step, {cell}: {median(took['us']):.0f} us ({took['holds']})")
    return out


def write(result: dict[str, Any], path: Path | None) -> Path:
    """The figures as JSON."""
    if path is None:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{result['date'].replace(':', '').partition('+')[0]}.json"
    text = json.dumps(_no_nan(result), indent=1)
    path.write_text(_folded(text) + "\n", encoding="utf-8")
    return path


def _no_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _no_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_no_nan(v) for v in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.4g}")
    return value


def _folded(text: str) -> str:
    """Lists of numbers on one line."""
    import re

    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: "[" + re.sub(r"\s*\n\s*", " ", m[1]) + "]", text)
