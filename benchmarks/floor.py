"""The live floor: the bytes that a recipe must move, with no arithmetic, in the same rounds as everyone.

A few lines of C, compiled by gradchain.engine.build, over tables of pointers. One pass reads the gradients where the
recipe needs their norm; one pass reads gradients and columns of the parameters' size (weights, moments, average) and
writes the columns. The only operations are an exclusive or and moves. Weights are not the model's: the model would be
ruined. What remains above it is arithmetic and, where there are many tensors, Python.
"""

from __future__ import annotations

import ctypes

import torch

from benchmarks.candidate import Candidate, Unable
from benchmarks.recipes import Cell
from gradchain.engine import build

SOURCE = """\
#include <stdint.h>
int32_t look(int64_t rows, const int64_t* size, const int64_t* grads) {
  int32_t all = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t* g = (const int32_t*)grads[r];
    for (int64_t i = 0; i < size[r]; ++i) all ^= g[i];
  }
  return all;
}
#define AT(k) int32_t* restrict c##k = (int32_t*)columns[k * rows + r];
void move2(int64_t rows, const int64_t* size, const int64_t* grads, const int64_t* columns) {
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t* restrict g = (const int32_t*)grads[r]; AT(0) AT(1)
    for (int64_t i = 0; i < size[r]; ++i) { int32_t t = c0[i]; c0[i] = c1[i]; c1[i] = t ^ g[i]; }
  }
}
void move3(int64_t rows, const int64_t* size, const int64_t* grads, const int64_t* columns) {
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t* restrict g = (const int32_t*)grads[r]; AT(0) AT(1) AT(2)
    for (int64_t i = 0; i < size[r]; ++i) { int32_t t = c0[i]; c0[i] = c1[i]; c1[i] = c2[i]; c2[i] = t ^ g[i]; }
  }
}
void move4(int64_t rows, const int64_t* size, const int64_t* grads, const int64_t* columns) {
  for (int64_t r = 0; r < rows; ++r) {
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
            library = build.load(SOURCE)
        except build.NoKernel as reason:
            raise Unable(str(reason)) from reason
        self.params = list(self.model.parameters())
        self.count = len(self.params)
        self.columns = [torch.ones_like(p, requires_grad=False) for _ in range(cell.recipe.floor) for p in self.params]
        self.sizes = _table([p.numel() for p in self.params])
        self.table = _table([c.data_ptr() for c in self.columns])
        self.look, self.move = library.look, getattr(library, f"move{cell.recipe.floor}")

    def step(self, last: bool) -> None:
        if not last:
            return
        grads = _table([p.grad.data_ptr() for p in self.params])  # type: ignore[union-attr]
        rows = ctypes.c_int64(self.count)
        if self.cell.recipe.clip:
            self.look(rows, self.sizes, grads)
        self.move(rows, self.sizes, grads, self.table)
        for p in self.params:
            p.grad = None


def _table(values: list[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)
