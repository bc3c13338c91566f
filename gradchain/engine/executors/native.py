"""The native executor: a compiled program run over a table of pointers."""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from gradchain.engine.executors import build
from gradchain.engine.executors.base import CHUNK, folded
from gradchain.engine.executors.print_c import source
from gradchain.engine.operations import TYPES
from gradchain.engine.planning.lower import Program
from gradchain.engine.planning.rows import Column, Rows

PARALLEL = 1 << 18  # elements below which a second thread costs more than it brings

_Int = ctypes.c_int64
_IntPointer = ctypes.POINTER(_Int)
_Double = ctypes.c_double


class Items:
    """The rows of a class cut into items, once per plan."""

    def __init__(self, sizes: Sequence[int]) -> None:
        cut = [
            (row, start, min(start + CHUNK, size)) for row, size in enumerate(sizes) for start in range(0, size, CHUNK)
        ]
        self.count = len(cut)
        self.elements = sum(sizes)
        self.rows = len(sizes)
        self.row_of = [row for row, _, _ in cut]
        self.row = (_Int * self.count)(*self.row_of)
        self.begin = (_Int * self.count)(*(start for _, start, _ in cut))
        self.end = (_Int * self.count)(*(end for _, _, end in cut))
        self.row_at, self.begin_at, self.end_at = map(ctypes.addressof, (self.row, self.begin, self.end))
        self.whole = self.row_of == list(range(self.rows))  # each row is one item

    def split(self, parts: int) -> list[tuple[int, int]]:
        """Stretches of items with about as many elements each."""
        borders, seen, wanted = [0], 0, self.elements / parts
        for k in range(self.count):
            seen += self.end[k] - self.begin[k]
            if seen >= wanted * len(borders) and len(borders) < parts:
                borders.append(k + 1)
        return [(a, b) for a, b in zip(borders, [*borders[1:], self.count], strict=True) if b > a]


class Native:
    """Programs printed as C and compiled: the default on the CPU where there is a compiler."""

    name = "native"
    numbers_on = None

    def __init__(self) -> None:
        self._kernels: dict[str, Callable[..., None]] = {}

    def legal(self, program: Program, dtypes: Sequence[torch.dtype]) -> str | None:
        """Why this program cannot run natively, or None."""
        unknown = [d for d in dtypes if d not in TYPES]
        return f"no native kernels for {unknown[0]}" if unknown else None

    def ready(self, program: Program, dtypes: Sequence[torch.dtype], sizes: Sequence[int]) -> NativeRunner:
        """The compiled program, with the rows cut into items."""
        text = source(program, dtypes)
        kernel = self._kernels.get(text)
        if kernel is None:
            kernel = build.load(text).run
            kernel.argtypes = [_Int, *([ctypes.c_void_p] * 7)]
            kernel.restype = None
            self._kernels[text] = kernel
        return NativeRunner(kernel, text, program, Items(sizes))


class NativeRunner:
    """One compiled program over rows of fixed sizes."""

    scratch = 0

    def __init__(self, kernel: Callable[..., None], text: str, program: Program, items: Items) -> None:
        self._kernel = kernel
        self.source = text
        self._reduces = program.reduce[0] if program.reduce else ""
        self._items = items

    def run(self, columns: Sequence[Column], scalars: Sequence[float], entries: Sequence[float]) -> list[float] | None:
        """Run over all items; see Runner."""
        items, kernel = self._items, self._kernel
        table = array("q", [column.table for column in columns])
        numbers = array("d", scalars)
        per_row: Any = entries.column if type(entries) is Rows else array("d", entries)
        out = array("d", bytes(8 * items.count)) if self._reduces else None
        rest = (_address(table), _address(numbers), _address(per_row))
        base = 0 if out is None else _address(out)
        threads = torch.get_num_threads() if items.elements >= PARALLEL and not _forked else 1
        if threads == 1:
            kernel(items.count, items.row_at, items.begin_at, items.end_at, *rest, base)
        else:

            def stretch(part: tuple[int, int]) -> None:
                first, last = part
                at = 8 * first
                cut = (items.row_at + at, items.begin_at + at, items.end_at + at)
                kernel(last - first, *cut, *rest, base + at if base else 0)

            # ctypes lets go of the interpreter: plain threads run side by side, with no second OpenMP in the process
            list(_pool(threads).map(stretch, items.split(threads)))
        if out is None:
            return None
        partial = out.tolist()
        return partial if items.whole else folded(self._reduces, items.row_of, partial, items.rows)


def _address(numbers: Any) -> int:
    """Where an array, or a tensor, lies."""
    address: int = numbers.buffer_info()[0] if type(numbers) is array else numbers.data_ptr()
    return address


_pools: dict[int, ThreadPoolExecutor] = {}
_forked: list[int] = []  # the process, where it is a forked child


def _pool(threads: int) -> ThreadPoolExecutor:
    if threads not in _pools:
        _pools[threads] = ThreadPoolExecutor(threads, thread_name_prefix="gradchain")
    return _pools[threads]


def _after_fork() -> None:
    # the threads of a pool do not live on in a child, which may hold locks that nobody will let go: it starts none
    _forked[:] = [os.getpid()]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
