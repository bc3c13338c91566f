"""Pictures: every hyperparameter over a run, a run as it went, the numbers of each layer."""

from gradchain.see.curves import curves
from gradchain.see.settings import settings
from gradchain.see.training import training

__all__ = ["curves", "settings", "training"]
