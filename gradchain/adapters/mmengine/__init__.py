"""MMEngine's recipes, read without MMEngine."""

from gradchain.adapters.mmengine.schedules import schedules

__all__ = ["schedules"]
