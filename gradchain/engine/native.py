"""The native executor: a compiled program run over a table of pointers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from gradchain.engine import build
from gradchain.engine.lower import Program
from gradchain.engine.print_c import TYPES, source

CHUNK = 1 << 16  # elements to an item: partial sums do not depend on the number of threads
PARALLEL = 1 << 18  # elements below which a second thread costs more than it brings

_Int = ctypes.c_int64
_IntPointer = ctypes.POINTER(_Int)
_Double = ctypes.c_double


class Items:
    """The rows of a class cut into items, once per plan."""

    def __init__(self, sizes: Sequence[int]) -> None:
        cut = [
            (row, start, min(start + CHUNK, size))
            for row, size in enumerate(sizes)
            for start in range(0, size, CHUNK)
        ]
        self.count = len(cut)
        self.elements = sum(sizes)
        self.rows = len(sizes)
        self.row_of = [row for row, _, _ in cut]
        self.row = (_Int * self.count)(*self.row_of)
        self.begin = (_Int * self.count)(*(start for _, start, _ in cut))
        self.end = (_Int * self.count)(*(end for _, _, end in cut))

    def split(self, parts: int) -> list[tuple[int, int]]:
        """Stretches of items with about as many elements each."""
        borders, seen, wanted = [0], 0, self.elements / parts
        for k in range(self.count):
            seen += self.end[k] - self.begin[k]
            if seen >= wanted * len(borders) and len(borders) < parts:
                borders.append(k + 1)
        return [(a, b) for a, b in zip(borders, [*borders[1:], self.count], strict=True) if b > a]


def legal(program: Program, dtypes: Sequence[torch.dtype], device: torch.device) -> str | None:
    """Why this program cannot run natively, or None."""
    if device.type != "cpu":
        return f"no native kernels on {device.type}"
    unknown = [d for d in dtypes if d not in TYPES]
    return f"no native kernels for {unknown[0]}" if unknown else None


class Kernel:
    """One program, compiled."""

    def __init__(self, program: Program, dtypes: Sequence[torch.dtype]) -> None:
        self.program = program
        self.source = source(program, dtypes)
        self._run: Callable[..., None] = build.load(self.source).run
        self._run.argtypes = [  # type: ignore[attr-defined]  # a function of ctypes
            _Int, *([ctypes.c_void_p] * 7),
        ]
        self._run.restype = None  # type: ignore[attr-defined]

    def run(self, items: Items, columns: Sequence[Any], scalars: Sequence[float], entries: Sequence[float]) -> Any:
        """Run over all items. Returns the partial results, one per item, of a program that reduces.

        Args:
            items: which stretches of which rows.
            columns: for each of the program's columns an array of addresses, one per row.
            scalars: the numbers, in the order of the program.
            entries: the numbers per row, row by row.
        """
        table = (ctypes.c_void_p * len(columns))(*(ctypes.addressof(c) for c in columns))
        numbers = (_Double * len(scalars))(*scalars)
        per_row = (_Double * len(entries))(*entries)
        out = (_Double * items.count)() if self.program.reduce else None
        addresses = tuple(ctypes.addressof(a) for a in (items.row, items.begin, items.end, table, numbers, per_row))
        base = ctypes.addressof(out) if out is not None else 0

        def stretch(first: int, last: int) -> None:
            at = 8 * first
            row, begin, end, *rest = addresses
            self._run(last - first, row + at, begin + at, end + at, *rest, base + at if base else 0)

        threads = torch.get_num_threads() if items.elements >= PARALLEL else 1
        if threads == 1:
            stretch(0, items.count)
        else:
            # ctypes lets go of the interpreter: plain threads run side by side, with no second OpenMP in the process
            list(_pool(threads).map(lambda part: stretch(*part), items.split(threads)))
        return out


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def _pool(threads: int) -> ThreadPoolExecutor:
    import os

    key = (os.getpid(), threads)  # the threads of a pool do not live on in a forked child
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(threads, thread_name_prefix="gradchain")
    return _pools[key]
