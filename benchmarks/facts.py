"""Figures that are no step's time: first step, bind, import, and how long a chain takes to record.

First steps run in a process of their own, with an empty and then a filled kernel cache. It is this file:
`python -m benchmarks.facts d R2` prints the seconds of the first and of the second optimizer part as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_IMPORT = "import time, torch; t = time.perf_counter(); import gradchain; print(time.perf_counter() - t)"

_FIRST_USE = """
import gc, time, torch
model = torch.nn.Linear(3, 1)
gc.collect()
gc.freeze()
t = time.perf_counter()
import gradchain as gch
gch.chain(gch.clip_by_norm(1.0), gch.adamw(1e-3)).bind(model)
print(time.perf_counter() - t)
"""


def import_seconds(times: int) -> list[float]:
    """Importing gradchain where torch is imported already: some processes, with compiled files from one before them."""
    return _fresh(_IMPORT, times)


def first_use_seconds(times: int) -> list[float]:
    """Importing gradchain, a first chain and its bind, over torch and a model: some processes, as `import_seconds`.

    A full collection of all that torch made falls into some allocation of every program, here or elsewhere: it is kept
    out.
    """
    return _fresh(_FIRST_USE, times)


def _fresh(code: str, times: int) -> list[float]:
    """What a code prints, in so many new processes, with compiled files from one before them."""
    with tempfile.TemporaryDirectory() as compiled:
        files = {"PYTHONPYCACHEPREFIX": compiled, "PYTHONDONTWRITEBYTECODE": ""}
        _child([sys.executable, "-c", code], files)
        return [float(_child([sys.executable, "-c", code], files)) for _ in range(times)]


def first_step(workload: str, recipe: str, times: int) -> dict[str, Any]:
    """Seconds of the first optimizer part with an empty kernel cache and with a filled one, and of the second.

    Each is measured in `times` processes of its own, the cold ones with a cache of their own. The cache is made in the
    home folder: one below /tmp, where others may write, the engine refuses, and nothing would ever be warm. `kernels`
    is how many files a cold process left there.
    """
    out: dict[str, Any] = {"cold_s": [], "warm_s": [], "second_s": [], "bind_s": []}
    command = [sys.executable, "-m", "benchmarks.facts", workload, recipe]
    for _ in range(times):
        with tempfile.TemporaryDirectory(prefix=".gradchain-cold-", dir=Path.home()) as cache:
            cold = json.loads(_child(command, {"XDG_CACHE_HOME": cache}))
            out["kernels"] = len(list(Path(cache).rglob("*.so")))
            warm = json.loads(_child(command, {"XDG_CACHE_HOME": cache}))
        for key, value in (
            ("cold_s", cold["first"]),
            ("warm_s", warm["first"]),
            ("second_s", warm["second"]),
            ("bind_s", warm["bind"]),
        ):
            out[key].append(value)
    return out


def _child(command: Sequence[str], env: dict[str, str]) -> str:
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


def bind_seconds(masked: int, times: int) -> list[float]:
    """Binding R2 to the 1000 tensors of (c), with so many masked links in it."""
    import gradchain as gch
    from benchmarks.ours import chain
    from benchmarks.recipes import RECIPES
    from benchmarks.workloads import WORKLOADS

    took = []
    for _ in range(times):
        model = WORKLOADS["c"].build()
        *links, rate = chain(RECIPES["R2"], 1.0, model).links
        more = [gch.masked(gch.scale(1 + k / 1000), gch.min_ndim(2)) for k in range(masked)]
        tx = gch.chain(*links, *more, rate)
        start = time.perf_counter()
        tx.bind(model)
        took.append(time.perf_counter() - start)
    return took


def recording(workload: str, recipe: str, rounds: int = 25) -> dict[str, Any]:
    """Microseconds in `chain.update` of a real step that is recorded, whatever the engine runs then.

    A chain of gradchain's own links is recorded a few times and then run again from its numbers: that is kept from it
    here, for a chain with a link of the user's is recorded at each step.

    A reduction runs while the chain is recorded; its time is taken off where the engine has a `_reduce` to time, and
    left in, and said so, where not.
    """
    from benchmarks.ours import Ours
    from benchmarks.recipes import RECIPES, Cell
    from benchmarks.workloads import WORKLOADS
    from gradchain.core.chain import chain
    from gradchain.engine.engine import Engine

    candidate = Ours(Cell.of(WORKLOADS[workload], RECIPES[recipe]))
    candidate.updater._bound.engine._why_untraced = lambda asked: "links are timed"  # type: ignore[method-assign]
    for _ in range(6):
        candidate.round()
    spent = {"links": 0.0, "reductions": 0.0}
    depth = {"links": 0, "reductions": 0}
    undo = [_timed(chain, "update", spent, depth, "links")]
    told = hasattr(Engine, "_reduce")
    if told:
        undo.append(_timed(Engine, "_reduce", spent, depth, "reductions"))
    took = []
    for _ in range(rounds):
        spent.update(links=0.0, reductions=0.0)
        candidate.round()
        took.append(spent["links"] - spent["reductions"])
    for back in undo:
        back()
    return {"us": [t * 1e6 for t in took], "holds": "links only" if told else "links and reductions"}


def _timed(owner: Any, name: str, spent: dict[str, float], depth: dict[str, int], key: str) -> Any:
    """Time the outermost calls of a method. Returns what undoes it."""
    real = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        depth[key] += 1
        start = time.perf_counter()
        try:
            return real(*args, **kwargs)
        finally:
            depth[key] -= 1
            if not depth[key]:
                spent[key] += time.perf_counter() - start

    setattr(owner, name, timed)
    return lambda: setattr(owner, name, real)


def measure(cells: Sequence[tuple[str, str]], times: int) -> dict[str, Any]:
    """All of them, as lists of what was measured.

    Args:
        cells: (workload, recipe) of the first steps and of the recording.
        times: how many processes a first step or an import gets.
    """
    from benchmarks.candidate import BACKWARD

    out: dict[str, Any] = {
        "import_over_torch_s": import_seconds(times),
        "first_use_over_torch_s": first_use_seconds(times),
        "bind_1000_s": {str(n): bind_seconds(n, times) for n in (0, 1, 10, 100)},
        "first_step": {f"({w}) {r}": first_step(w, r, times) for w, r in cells},
    }
    with BACKWARD.clock():
        out["recording"] = {f"({w}) {r}": recording(w, r) for w, r in cells}
    return out


def _main(workload: str, recipe: str) -> None:
    import torch

    torch.set_num_threads(1)
    from benchmarks.candidate import BACKWARD
    from benchmarks.ours import Ours
    from benchmarks.recipes import RECIPES, Cell
    from benchmarks.workloads import WORKLOADS

    cell = Cell.of(WORKLOADS[workload], RECIPES[recipe])
    start = time.perf_counter()
    candidate = Ours(cell)
    bind = time.perf_counter() - start
    with BACKWARD.clock():
        first, second = candidate.round().part, candidate.round().part
    print(json.dumps({"first": first, "second": second, "bind": bind}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
