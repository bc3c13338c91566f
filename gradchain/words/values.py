"""What somebody gives where torch's optimizers take it, and a link takes something else."""

from __future__ import annotations

from types import GeneratorType
from typing import Any

from gradchain.words.arguments import FORMS


def cure(value: Any, owner: str = "") -> str:
    """Where a value goes that is not what was asked for: a model, parameters, an optimizer or scheduler of torch.

    A link in place of a number is meant to be wrapped, as elsewhere: the owner's place in a chain is said.
    """
    import torch

    kind = value if isinstance(value, type) else type(value)
    if issubclass(kind, torch.optim.Optimizer):
        return f' Write from_torch("{kind.__name__}", …).'
    if issubclass(kind, torch.optim.lr_scheduler.LRScheduler):
        return " A schedule goes where the learning rate goes: adamw(cosine(…))."
    if hasattr(kind, "bind") and hasattr(kind, "update"):  # a link
        return f" {FORMS.get(owner, 'Links stand one behind the other: chain(first, second).')}"
    return " The model goes to bind: chain(…).bind(model)." if is_model(value) else ""


def is_model(value: Any) -> bool:
    """Whether a value is a module, or holds parameters as torch's optimizers take them."""
    import torch

    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (list, tuple)):
        return any(map(is_model, value))
    return isinstance(value, (torch.nn.Module, torch.nn.Parameter, GeneratorType))
