"""What torch is set to around a call: an updater makes and does the same whatever that is, or says why it cannot."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

from gradchain.core import _torch

F = TypeVar("F", bound="Callable[..., Any]")


def whatever_mode(method: F) -> F:
    """A method that makes tensors which outlive it: it runs outside of inference mode, whose tensors none may write to.

    Inside, gradients are on, as torch has it there; what must not record says so itself.
    """

    @functools.wraps(method)
    def called(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_inference_mode_enabled():
            return method(*args, **kwargs)
        with torch.inference_mode(False):
            return method(*args, **kwargs)

    return cast("F", called)


def refuse_transforms(owner: str) -> None:
    """RuntimeError under a transform of `torch.func`, which cannot follow what is written to a model."""
    if _torch.under_functorch():
        raise RuntimeError(
            f"{owner}: an updater writes to its model, which must not happen under torch.func.grad, vmap and their "
            "kin. There use the chain itself, which is pure: updates, state = tx.update(grads, state, ctx)."
        )


def refuse_inference(owner: str) -> None:
    """RuntimeError in inference mode, where nothing has a gradient."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{owner}: there is no backward under torch.inference_mode(). Call it outside; step(grads=…) takes "
            "gradients that are known."
        )
