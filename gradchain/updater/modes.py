"""What torch is set to around a call: an updater makes and does the same whatever that is, or says why it cannot."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from gradchain.core import _torch


def outside_inference() -> AbstractContextManager[Any]:
    """Where tensors are made that outlive a call: outside of inference mode, whose tensors nothing may write to.

    Inside, gradients are on, as torch has it there; what must not record says so itself.
    """
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else _PLAINLY


_PLAINLY = nullcontext()


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
