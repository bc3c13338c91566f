"""Peak extra memory: bytes of storages that torch operators make while the optimizer part runs.

Counted by a dispatch mode, so exact and repeatable; scratch inside one kernel, in native code, in JAX or in compiled
graphs is not seen (gradchain's kernels make none: they own no memory).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.candidate import Candidate


class LiveBytes(TorchDispatchMode):
    """The live bytes of storages made under it, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self._live:
                self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, self.now())
        return out

    def now(self) -> int:
        """Bytes that live now."""
        self._live = {key: kept for key, kept in self._live.items() if not kept[0].expired()}
        return sum(size for _, size in self._live.values())


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor) and t.layout == torch.strided]


def measure(candidate: Candidate) -> dict[str, float] | None:
    """Bytes per parameter: the peak during a step, and what is left after it of new storages and of gradients."""
    if not candidate.traced:
        return None
    model, micro = candidate.model, candidate.cell.recipe.micro
    for k in range(micro):
        candidate.backward(candidate.forward()[0])
        if k < micro - 1:
            candidate.step(False)
    grads = [StorageWeakRef(p.grad.untyped_storage()) for p in model.parameters() if p.grad is not None]
    sizes = [p.numel() * p.element_size() for p in model.parameters() if p.grad is not None]
    with LiveBytes() as live:
        candidate.step(True)
        left = live.now()
    kept = sum(size for grad, size in zip(grads, sizes, strict=True) if not grad.expired())
    count = sum(p.numel() for p in model.parameters())
    return {"peak": live.peak / count, "left": left / count, "gradients_kept": kept / count}
