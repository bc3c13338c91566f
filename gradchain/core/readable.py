"""Whether the elements of a tensor can be read one by one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def is_readable(tensor: Tensor) -> bool:
    """Whether every element can be read: it lies in memory, and the memory is there."""
    strided = not tensor.is_nested and tensor.layout is torch.strided and not tensor.is_quantized
    return strided and not tensor.is_meta and _has_memory(tensor)


def _has_memory(tensor: Tensor) -> bool:
    """Whether the storage holds all elements: torch reads on behind the end of one that was resized."""
    if type(tensor) not in (Tensor, nn.Parameter) or not tensor.numel():
        return True  # of a subclass one cannot know
    needed = (tensor.storage_offset() + reach(tensor)) * tensor.element_size()
    return tensor.untyped_storage().nbytes() >= needed


def reach(tensor: Tensor) -> int:
    """How many elements of memory lie from the first to the last of a tensor that has any."""
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def shown(value: object) -> str:
    """A value that may be anything as a sentence has it, short, and without reading what cannot be read."""
    if isinstance(value, Tensor):
        if value.ndim == 0 and is_readable(value):
            return f"a tensor of {value.item()!r}"
        return f"a tensor of shape {tuple(value.shape)}" if is_readable(value) else "a tensor without values"
    return repr(value)[:60] if _prints(value) else type(value).__name__


def as_name(key: object) -> str:
    """A key of something that was read, which should be a name and may be anything, as a list of names has it."""
    return key if isinstance(key, str) else shown(key)


def _prints(value: object) -> bool:
    """Whether a value can be printed whatever lies in it; Python refuses integers of thousands of digits."""
    if isinstance(value, Mapping):
        return all(_prints(key) and _prints(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_prints, value))
    if isinstance(value, int):
        return value.bit_length() <= 64
    return value is None or isinstance(value, (str, float, complex, bytes, torch.dtype))
