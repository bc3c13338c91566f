"""Where the tensors of a step lie: checked cheaply at every step, laid out anew only where something changed."""

from __future__ import annotations

import torch
from torch import Tensor

from gradchain.core import _torch
from gradchain.core.eager import EagerTensors
from gradchain.core.index import Index
from gradchain.core.shapes import Shapes
from gradchain.core.tensors import Tensors
from gradchain.engine.operations import TYPES, Unrecorded

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_DEVICES = ("cpu", "cuda")


class Layout:
    """The weights' dtypes, strides and sizes; gradients and state follow them."""

    def __init__(self, params: EagerTensors) -> None:
        self.index: Index = params.index
        self.tensors = params._data
        self.device = self.tensors[0].device if self.tensors else torch.device("cpu")
        for name, tensor in zip(self.index.names, self.tensors, strict=True):
            _check(name, tensor, self.device)  # before anything is read: a sharded tensor has no address
        self.pointers = [t.data_ptr() for t in self.tensors]
        self.dtypes = [t.dtype for t in self.tensors]
        self.strides = [t.stride() for t in self.tensors]
        self._metadata = list(zip(self.strides, self.dtypes, (t.shape for t in self.tensors), strict=True))
        self.sizes = [t.numel() for t in self.tensors]
        self._shapes = {name: t.shape for name, t in zip(self.index.names, self.tensors, strict=True)}
        for name, tensor in zip(self.index.names, self.tensors, strict=True):
            if not _dense(tensor):
                raise Unrecorded(f"the weight {name!r} overlaps itself or has gaps")
        self._alike, self._lie = _torch.guard(self.tensors), params.alike
        self._plain_gradients: object = None  # the guard of gradients that were found to lie as their weights

    def still(self, params: EagerTensors) -> bool:
        """Whether these are the same weights where they were."""
        if params.index is not self.index:
            return False
        if params.alike is not None and params.alike is self._lie:
            return True  # whoever lends them has looked
        return list(map(Tensor.data_ptr, params._data)) == self.pointers and (
            (self._alike is not None and self._alike(*params._data))
            or [(t.stride(), t.dtype, t.shape) for t in params._data] == self._metadata
        )

    def shapes(self, index: Index) -> Shapes:
        """The shapes of the weights of these names."""
        return tuple(self._shapes[name] for name in index.names)

    def odd(self, tensors: EagerTensors) -> Shapes | None:
        """The shapes of entries; None where each has that of its weight."""
        if tensors.odd is None or tensors.odd[0] is not self:
            shapes = tuple(tensors._shapes())
            tensors.odd = (self, None if shapes == self.shapes(tensors.index) else shapes)
        return tensors.odd[1]

    def gradients(self, grads: EagerTensors) -> EagerTensors:
        """The gradients, each laid out as its weight: a copy of one that is not."""
        if grads.alike is not None and grads.alike is self._plain_gradients:
            return grads
        data, position = grads._values(), self.index.position
        whole = grads.index is self.index
        changed: list[Tensor] | None = None
        for i, (name, grad) in enumerate(zip(grads.index.names, data, strict=True)):
            at = i if whole else position[name]
            if grad.shape != self.tensors[at].shape:
                raise Unrecorded(f"the gradient of {name!r} has another shape than the weight")
            plain = type(grad) is Tensor and grad.dtype is self.dtypes[at] and not grad.is_neg()
            there = grad.device == self.device  # elsewhere a kernel would read an address of another memory
            if not plain or not there or grad.stride() != self.strides[at]:
                _check(name, grad, self.device)
                if grad.dtype is not self.dtypes[at]:
                    raise Unrecorded(f"the gradient of {name!r} is {grad.dtype}, its weight {self.dtypes[at]}")
                changed = list(data) if changed is None else changed
                changed[i] = torch.empty_like(self.tensors[at]).copy_(grad)
        if changed is None:
            self._plain_gradients = grads.alike
        return _plainly(grads, data, changed)

    def state(self, tensors: Tensors, taken: set[int] | None = None) -> EagerTensors:
        """A field of the state, each entry laid out as its weight: the field itself, or copies.

        Args:
            tensors: the field.
            taken: where memory begins that is written for something else; that of this field is added to it.
        """
        assert isinstance(tensors, EagerTensors)
        data, position = tensors._values(), self.index.position
        changed: list[Tensor] | None = None
        for i, (name, value) in enumerate(zip(tensors.index.names, data, strict=True)):
            if name not in position:
                raise Unrecorded(f"{name!r} is no weight")
            weight = self.tensors[position[name]]
            _check(name, value, self.device)
            shared = taken is not None and value.numel() > 0 and value.data_ptr() in taken
            shared = shared or value.is_neg() or (value.is_leaf and type(value) is torch.nn.Parameter)
            if shared or not _lies_like(value, weight):
                changed = list(data) if changed is None else changed
                value = changed[i] = like(weight, value.shape, value.dtype).copy_(value)
            if taken is not None:
                taken.add(value.data_ptr())
        return _plainly(tensors, data, changed)


def _plainly(tensors: EagerTensors, data: list[Tensor], changed: list[Tensor] | None) -> EagerTensors:
    """The tensors with nothing pending: kernels read memory, and know of no factor carried beside it."""
    if changed is None and data is tensors._data:
        return tensors
    return EagerTensors(tensors.index, data if changed is None else changed)


def _check(name: str, tensor: Tensor, device: torch.device) -> None:
    known = tensor.device == device and device.type in _DEVICES
    if type(tensor) not in _PLAIN or not known or tensor.dtype not in TYPES:
        what = type(tensor).__name__ if type(tensor) not in _PLAIN else f"{tensor.dtype} on {tensor.device}"
        raise Unrecorded(f"{name!r} is a {what}")


def order_of(weight: Tensor, shape: torch.Size) -> list[int]:
    """The dimensions of an entry of this shape as they lie in memory, the outermost first: as those of its weight."""
    rank, strides = len(shape), weight.stride()
    return sorted(range(rank), key=lambda d: -strides[d]) if weight.ndim == rank else list(range(rank))


def like(weight: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Memory for an entry of this shape, laid out as its weight."""
    if shape == weight.shape:
        return torch.empty_like(weight, dtype=dtype)
    order = order_of(weight, shape)
    laid = weight.new_empty([shape[d] for d in order], dtype=dtype)
    return laid.permute([order.index(d) for d in range(len(shape))])


def _lies_like(value: Tensor, weight: Tensor) -> bool:
    """Whether an entry lies as its weight does, in one stretch; of another shape, in the same order of dimensions."""
    if value.shape == weight.shape:
        return value.stride() == weight.stride()
    expected = 1
    for d in reversed(order_of(weight, value.shape)):
        if value.shape[d] != 1 and value.stride(d) != expected:
            return value.numel() == 0
        expected *= value.shape[d]
    return True


def _dense(tensor: Tensor) -> bool:
    """Whether the elements fill one stretch of memory, each once."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True
