"""Which executors run on which device, and how a user names others."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gradchain.engine.executors.base import Executor
from gradchain.engine.executors.blocks import Blocks
from gradchain.engine.executors.compiled import Compiled
from gradchain.engine.executors.foreach import Foreach
from gradchain.engine.executors.fused import Fused
from gradchain.engine.executors.native import Native
from gradchain.engine.executors.patterns import Patterns
from gradchain.engine.executors.triton import Triton
from gradchain.engine.operations import Unrecorded

VARIABLE = "GRADCHAIN_EXECUTORS"
REFERENCE = "reference"  # what runs where no executor may: the links over plain tensors

# The order of trying where the user names none. It depends on the plan and the device alone, never on a stopwatch. On
# CUDA: torch's fused kernels and its calls over lists, until a run on a GPU is on record that shows something better;
# both run on the CPU too, where they stand in for CUDA in tests. `compiled` is in neither: Inductor needs what the
# printers need (a C++ compiler, Triton), takes seconds where they take tenths, and no program is known that it alone
# can run.
_BY_NAME: dict[str, dict[str, Callable[[torch.device], Executor]]] = {
    "cpu": {
        "native": lambda _: Native(),
        "patterns": lambda _: Patterns(),
        "blocks": lambda _: Blocks(),
        "compiled": Compiled,
        "fused": Fused,
        "foreach": Foreach,
    },
    "cuda": {"fused": Fused, "foreach": Foreach, "triton": Triton, "compiled": Compiled},
}
_DEFAULT: dict[str, Sequence[str]] = {"cpu": ("native", "patterns", "blocks"), "cuda": ("fused", "foreach")}

# what os.environ keeps, where it can be had: to ask os.environ itself, at every step, takes twenty times as long
_environment: Any = vars(os.environ).get("_data", os.environ)
_KEY: Any = os.environ.encodekey(VARIABLE) if _environment is not os.environ else VARIABLE

_chosen: dict[tuple[str, str], tuple[Executor, ...]] = {}


def chosen(device: torch.device) -> tuple[Executor, ...]:
    """The executors for a device, best first: those that GRADCHAIN_EXECUTORS names, or the default.

    The variable is a list of names with commas, such as `GRADCHAIN_EXECUTORS=triton`. One that does not exist on the
    device is passed over; where none is left, the default holds: for `reference` too, which `adapted` refuses to run.

    Raises:
        ValueError: for a name that is no executor on any device.
    """
    named = os.environ.get(VARIABLE, "")
    key = (str(device), named)
    if key not in _chosen:
        wanted = [] if _asks_for_reference() else [n.strip() for n in named.split(",") if n.strip()]
        known = sorted({n for names in _BY_NAME.values() for n in names})
        for name in wanted:
            if name not in known:
                alone = f" {REFERENCE} stands alone: {VARIABLE}={REFERENCE} runs no kernel."
                raise ValueError(f"{VARIABLE}: must name executors among {', '.join(known)}, got {name!r}.{alone}")
        here = _BY_NAME.get(device.type, {})
        names = [n for n in wanted if n in here] or _DEFAULT.get(device.type, ())
        _chosen[key] = tuple(here[name](device) for name in names)
    return _chosen[key]


def variable() -> object:
    """What the variable is now, in no form but that it is equal where it is the same."""
    return _environment.get(_KEY)


def _asks_for_reference() -> bool:
    return os.environ.get(VARIABLE, "").strip() == REFERENCE


def adapted(executors: tuple[Executor, ...], device: torch.device) -> tuple[Executor, ...]:
    """The executors for weights on this device: those in use where someone set them, else the chosen ones.

    Unrecorded where there is none, or the variable asks for none.
    """
    if _asks_for_reference():
        raise Unrecorded(f"{VARIABLE}={REFERENCE} asks for it")
    if not executors:  # as someone set it: that none is the default on a device is never kept
        raise Unrecorded("no executor may run it")
    if any(executors is choice for choice in _chosen.values()):
        executors = chosen(device)
    if not executors:
        raise Unrecorded(f"on {device.type} the reference, by torch._foreach, is the default.")
    return executors


def numbers_on(executors: Sequence[Executor]) -> torch.device | None:
    """Where reductions leave their numbers: on the executors' device, or (None) with the host."""
    devices = {executor.numbers_on for executor in executors}
    return devices.pop() if len(devices) == 1 else None
