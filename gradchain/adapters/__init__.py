"""Adapters: other people's doors, one file each."""

from gradchain.adapters.registry import register
from gradchain.adapters.torch_optimizers import from_torch

__all__ = ["from_torch", "register"]
