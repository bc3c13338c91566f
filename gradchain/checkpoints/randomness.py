"""The random numbers of a process: torch's, Python's, numpy's and those of its devices, as plain data."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def state() -> dict[str, Any]:
    """Where they all stand. numpy's are asked for only where somebody has imported it."""
    found: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found["cuda"] = torch.cuda.get_rng_state_all()
    if "numpy" in sys.modules:
        kind, keys, *rest = sys.modules["numpy"].random.get_state()
        found["numpy"] = [kind, torch.tensor(keys.tolist()), *rest]
    return found


def is_state(found: Any) -> bool:
    """Whether `put` can put it: tried on generators that nobody draws from."""
    try:
        torch.Generator().set_state(found["torch"])
        version, numbers, following = found["python"]
        random.Random().setstate((version, tuple(numbers), following))
        if "numpy" in found:
            import numpy

            kind, keys, *rest = found["numpy"]
            numpy.random.RandomState().set_state((kind, numpy.array(keys.tolist(), dtype=numpy.uint32), *rest))
        devices = [torch.is_tensor(numbers) for numbers in found.get("cuda", ())]
    except Exception:
        return False
    return (following is None or isinstance(following, float)) and all(devices)


def put(state: dict[str, Any]) -> None:
    """Have them stand there again. What was not asked for then stays."""
    torch.set_rng_state(state["torch"])
    version, numbers, following = state["python"]
    random.setstate((version, tuple(numbers), following))
    if "cuda" in state and torch.cuda.is_available() and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
    if "numpy" in state:
        import numpy

        kind, keys, *rest = state["numpy"]
        numpy.random.set_state((kind, numpy.array(keys.tolist(), dtype=numpy.uint32), *rest))


@contextmanager
def undisturbed() -> Iterator[None]:
    """What draws inside leaves them as they were."""
    before = state()
    try:
        yield
    finally:
        put(before)
