"""State of other libraries, taken into an updater of the same recipe: torch.optim's, MMEngine's, Optax's."""

from gradchain.adapters.taking.of_mmengine import load_mmengine
from gradchain.adapters.taking.of_optax import load_optax
from gradchain.adapters.taking.of_torch import load_torch

__all__ = ["load_mmengine", "load_optax", "load_torch"]
