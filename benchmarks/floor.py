"""The live floor: the bytes that a recipe must move, with no arithmetic, in the same rounds as everyone.

A few lines of C, compiled by gradchain.engine.executors.build, over tables of pointers. One pass reads the gradients
where the recipe needs their norm; one pass reads gradients and columns of the parameters' size (weights, moments,
average) and writes the columns. The only operations are an exclusive or and moves. Weights are not the model's: the
model would be ruined. What remains above it is arithmetic and, where there are many tensors, Python. With several
threads each takes a stretch of tensors. It is compiled also where GRADCHAIN_NATIVE=0 keeps gradchain
from compiling.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, pairwise
from typing import Any

import torch

from benchmarks.candidate import Candidate, Unable
from benchmarks.recipes import Cell
from gradchain.engine.executors import build

SOURCE = """\
#include <stdint.h>
int32_t look(int64_t begin, int64_t end, const int64_t* size, const int64_t* grads) {
  int32_t all = 0;
  for (int64_t r = begin; r < end; ++r) {
    const int32_t* g = (const int32_t*)grads[r];
    for (int64_t i = 0; i < size[r]; ++i) all ^= g[i];
  }
  return all;
}
#define TABLE(name) void name(int64_t rows, int64_t begin, int64_t end, const int64_t* size, const int64_t* grads, \\
  const int64_t* columns)
#define AT(k) int32_t* restrict c##k = (int32_t*)columns[k * rows + r];
TABLE(move2) {
  for (int64_t r = begin; r < end; ++r) {
    const int32_t* restrict g = (const int32_t*)grads[r]; AT(0) AT(1)
    for (int64_t i = 0; i < size[r]; ++i) { int32_t t = c0[i]; c0[i] = c1[i]; c1[i] = t ^ g[i]; }
  }
}
TABLE(move3) {
  for (int64_t r = begin; r < end; ++r) {
    const int32_t* restrict g = (const int32_t*)grads[r]; AT(0) AT(1) AT(2)
    for (int64_t i = 0; i < size[r]; ++i) { int32_t t = c0[i]; c0[i] = c1[i]; c1[i] = c2[i]; c2[i] = t ^ g[i]; }
  }
}
TABLE(move4) {
  for (int64_t r = begin; r < end; ++r) {
    const int32_t* restrict g = (const int32_t*)grads[r]; AT(0) AT(1) AT(2) AT(3)
    for (int64_t i = 0; i < size[r]; ++i) {
      int32_t t = c0[i]; c0[i] = c1[i]; c1[i] = c2[i]; c2[i] = c3[i]; c3[i] = t ^ g[i];
    }
  }
}
void run(void) {}
"""


class Floor(Candidate):
    """Nothing but the traffic."""

    name = "live floor"
    trains = False

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        try:
            with _compiling():
                library = build.load(SOURCE)
        except build.NoKernel as reason:
            raise Unable(str(reason)) from reason
        self.params = list(self.model.parameters())
        self.count = len(self.params)
        self.columns = [torch.ones_like(p, requires_grad=False) for _ in range(cell.recipe.floor) for p in self.params]
        self.sizes = _table([p.numel() for p in self.params])
        self.table = _table([c.data_ptr() for c in self.columns])
        self.look, self.move = library.look, getattr(library, f"move{cell.recipe.floor}")
        self.stretches = _stretches([p.numel() for p in self.params], torch.get_num_threads())
        self.pool = ThreadPoolExecutor(len(self.stretches)) if len(self.stretches) > 1 else None

    def step(self, last: bool) -> None:
        if not last:
            return
        grads = _table([p.grad.data_ptr() for p in self.params])  # type: ignore[union-attr]
        if self.cell.recipe.clip:
            self._over_all(lambda begin, end: self.look(begin, end, self.sizes, grads))
        rows = ctypes.c_int64(self.count)
        self._over_all(lambda begin, end: self.move(rows, begin, end, self.sizes, grads, self.table))
        for p in self.params:
            p.grad = None

    def _over_all(self, run: Callable[..., Any]) -> None:
        if self.pool is None:
            run(*self.stretches[0])
        else:
            list(self.pool.map(lambda ends: run(*ends), self.stretches))


def _stretches(sizes: list[int], parts: int) -> list[tuple[ctypes.c_int64, ctypes.c_int64]]:
    """The tensors cut into stretches of about the same number of elements."""
    total, borders = sum(sizes), [0]
    for row, seen in enumerate(accumulate(sizes), 1):
        if seen * parts >= total * len(borders):
            borders.append(row)
    return [(ctypes.c_int64(a), ctypes.c_int64(b)) for a, b in pairwise(borders)]


@contextlib.contextmanager
def _compiling() -> Iterator[None]:
    before = os.environ.pop("GRADCHAIN_NATIVE", None)
    try:
        yield
    finally:
        if before is not None:
            os.environ["GRADCHAIN_NATIVE"] = before


def _table(values: list[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)
