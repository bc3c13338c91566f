"""Runs scenarios on two ranks (gloo) of this machine, all of a file in one pair of processes.

A scenario is a function of the rank that returns plain data; each has a process group of its own, so that one that
fails leaves nothing behind for the next.
"""

import datetime
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.pinning import leave

WORLD = 2
SECONDS = 20  # what a rank waits for the other one before it says so


class Scenarios:
    """The scenarios of a file, by name."""

    def __init__(self):
        self.functions = {}

    def __call__(self, function):
        self.functions[function.__name__] = function
        return function


class Ran:
    """What the scenarios returned: `ran(name)` is one result per rank."""

    def __init__(self, folder):
        self.outcomes = [torch.load(folder / f"rank{r}.pt", weights_only=False) for r in range(WORLD)]

    def __call__(self, name):
        failed = [f"rank {r}:\n{o[name][1]}" for r, o in enumerate(self.outcomes) if o[name][0] == "failed"]
        assert not failed, "\n".join(failed)
        return [outcome[name][1] for outcome in self.outcomes]


def run(scenarios, folder):
    """All scenarios of the registry, in one pair of processes."""
    mp.spawn(_rank, (scenarios, str(folder)), nprocs=WORLD)
    return Ran(Path(folder))


def _rank(rank, scenarios, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    outcomes = {name: _outcome(rank, name, scenario, folder) for name, scenario in scenarios.functions.items()}
    torch.save(outcomes, Path(folder) / f"rank{rank}.pt")
    leave()


def _outcome(rank, name, scenario, folder):
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/{name}.meeting",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=SECONDS),
    )
    torch.manual_seed(0)
    try:
        return "done", scenario(rank)
    except Exception:
        return "failed", traceback.format_exc()
    finally:
        dist.destroy_process_group()


def same_on_both(value):
    """Whether a tensor has the same bits on both ranks."""
    own = value.full_tensor() if hasattr(value, "full_tensor") else value
    seen = [torch.empty_like(own) for _ in range(WORLD)]
    dist.all_gather(seen, own.detach().contiguous())
    return bool((seen[0] == seen[1]).all())


def sentence(kind, function, *args, **kwargs):
    """The message of the exception of this kind that a call raises."""
    try:
        function(*args, **kwargs)
    except kind as error:
        return str(error)
    raise AssertionError(f"{function} did not raise {kind.__name__}")
