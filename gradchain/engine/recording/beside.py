"""What is made beside the kernels, by torch of tensors in memory."""

from __future__ import annotations

from typing import Any

import torch

from gradchain.core.eager import EagerTensors
from gradchain.core.index import Index
from gradchain.core.tensors import Tensors


def selected(index: Index, tensors: EagerTensors) -> Tensors:
    """Some of the entries."""
    return tensors.select(index)


def overlaid(under: EagerTensors, over: EagerTensors) -> Tensors:
    """Entries of which some take the place of others."""
    return under.overlay(over)


def rounded(dtype: torch.dtype, tensors: EagerTensors) -> Tensors:
    """The entries in a dtype."""
    return tensors.to(dtype)


def measured(which: str, p: float, tensors: EagerTensors) -> Any:
    """A norm that no kernel computes."""
    return getattr(tensors, which)(p=p)
