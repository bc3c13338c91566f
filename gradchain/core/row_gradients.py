"""Gradients of rows: a sparse gradient is that of the rows it names, and the other rows have none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradchain.core.eager import EagerTensors
from gradchain.core.index import Index
from gradchain.core.readable import is_readable
from gradchain.core.tensors import Tensors


class RowGradients(EagerTensors):
    """Gradients in memory of which some are sparse: coalesced, and sparse in the first dimension alone.

    It is what is gathered and what a window keeps. Links see what `values` gives: the rows that are there.
    """

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return RowGradients, (self.index, self._data)

    @property
    def sparse(self) -> dict[str, Tensor]:
        """The sparse ones, by name."""
        return sparse_in(self)

    def values_of_rows(self) -> EagerTensors:
        """What links see: of a sparse gradient the rows that it names, one after the other."""
        return values_of_rows(self)

    def select(self, members: Iterable[str]) -> Tensors:
        index = self.index.subset(members)
        if index is self.index:
            return self
        return RowGradients(index, [self._data[self.index.position[name]] for name in index.names])

    def clone(self) -> Tensors:
        return RowGradients(self.index, [v.detach().clone() for v in self._data])


def sparse_in(tensors: EagerTensors) -> dict[str, Tensor]:
    """The sparse entries, by name, with each row once."""
    named = zip(tensors.index.names, tensors._data, strict=True)
    return {name: tensor.coalesce() for name, tensor in named if tensor.layout is torch.sparse_coo}


def values_of_rows(tensors: EagerTensors) -> EagerTensors:
    """The entries, of sparse ones the rows that they name."""
    return EagerTensors(tensors.index, [_values(t) for t in tensors._data])


def _values(tensor: Tensor) -> Tensor:
    if tensor.layout is not torch.sparse_coo:
        return tensor
    values: Tensor = tensor.coalesce().values()  # itself, unless autograd added to it
    return torch.view_as_real(values) if values.is_complex() else values


def places(tensor: Tensor) -> Tensor:
    """Which rows a coalesced sparse tensor names."""
    indices: Tensor = tensor.indices()
    return indices[0]


def as_rows(name: str, grad: Tensor) -> Tensor:
    """A sparse gradient with each row once. TypeError where what it names are no rows."""
    if grad.layout is not torch.sparse_coo:
        raise TypeError(
            f"step: the gradient of {name!r} must be dense, or sparse in COO layout as torch's embeddings make it, got "
            f"{grad.layout}. Make it dense, grad.to_dense(), or grad.to_sparse(1)."
        )
    if grad.sparse_dim() != 1:
        raise TypeError(
            f"step: the gradient of {name!r} must be dense or a gradient of rows, got a tensor that is sparse in "
            f"{grad.sparse_dim()} of its {grad.ndim} dimensions. Make it dense, grad.to_dense(), sparse_grad=False in "
            "torch.gather; or sparse in the first alone, grad.to_dense().to_sparse(1)."
        )
    return grad if grad.is_coalesced() else grad.coalesce()


def as_gradients(index: Index, found: dict[str, Tensor]) -> EagerTensors:
    """Gradients by name, as updates; those that are sparse hold each row once."""
    if not any(t.layout is torch.sparse_coo for t in found.values()):
        return EagerTensors.at(index, found)
    held = index.subset(found)
    seen = [found[n] for n in held.names]
    real = [torch.view_as_real(t) if t.is_complex() and t.layout is torch.strided else t for t in seen]
    return RowGradients(held, real)


def as_plain(grad: Tensor) -> dict[str, Tensor]:
    """A sparse gradient as a checkpoint has it, in dense tensors: which rows, and what they are."""
    grad = grad.detach().coalesce()
    return {"rows": places(grad).clone(), "values": grad.values().clone()}


def from_plain(saved: Any, place: Tensor) -> Tensor | None:
    """A sparse gradient of a weight from what `as_plain` made; None where it cannot be one."""
    if not isinstance(saved, Mapping) or set(saved) != {"rows", "values"}:
        return None
    rows, values = saved["rows"], saved["values"]
    if not all(isinstance(t, Tensor) and is_readable(t) for t in (rows, values)) or place.ndim == 0:
        return None
    wanted = (rows.numel(), *place.shape[1:])
    if rows.dtype is not torch.int64 or rows.ndim != 1 or tuple(values.shape) != wanted:
        return None
    bounded = not len(rows) or (rows[0] >= 0 and rows[-1] < len(place))
    if not bounded or not bool((rows[1:] > rows[:-1]).all()) or values.is_complex() != place.is_complex():
        return None
    if not (values.is_floating_point() or values.is_complex()):
        return None
    rows, values = rows.to(place.device)[None], values.detach().to(place.device, copy=True)
    return torch.sparse_coo_tensor(rows, values, place.shape, is_coalesced=True, check_invariants=True)
