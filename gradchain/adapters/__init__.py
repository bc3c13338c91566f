"""Adapters: other people's doors, read as gradchain's values."""

from gradchain.adapters.registry import register
from gradchain.adapters.torch_optimizers import from_torch

__all__ = ["from_torch", "register"]
