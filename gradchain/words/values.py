"""What somebody gives where torch's optimizers take it, and a link takes something else."""

from __future__ import annotations

from types import GeneratorType
from typing import Any


def cure(value: Any) -> str:
    """Where a value goes that is no number and no link: a model, parameters, an optimizer, a scheduler of torch."""
    import torch

    kind = value if isinstance(value, type) else type(value)
    if issubclass(kind, torch.optim.Optimizer):
        return f' Write from_torch("{kind.__name__}", …).'
    if issubclass(kind, torch.optim.lr_scheduler.LRScheduler):
        return " A schedule goes where the learning rate goes: adamw(cosine(…))."
    return " The model goes to bind: chain(…).bind(model)." if is_model(value) else ""


def is_model(value: Any) -> bool:
    """Whether a value is a module, or holds parameters as torch's optimizers take them."""
    import torch

    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (list, tuple)):
        return any(map(is_model, value))
    return isinstance(value, (torch.nn.Module, torch.nn.Parameter, GeneratorType))
