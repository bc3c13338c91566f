"""Numbers of the host on a device, which nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def sent(values: Sequence[Any], device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """Numbers of the host as a tensor of a device; the host goes on before they are there."""
    made = torch.tensor(values, dtype=dtype, device="cpu")
    on_cuda = torch.device(device).type == "cuda"
    return made.pin_memory().to(device, non_blocking=True) if on_cuda else made.to(device)
