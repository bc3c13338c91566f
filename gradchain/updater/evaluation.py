"""The loss and its gradients at other weights, and the weights back again bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradchain.core.chain import chain
from gradchain.core.context import Run
from gradchain.core.tensors import Tensors
from gradchain.core.weights import Weights
from gradchain.updater.gradients import Gradients

if TYPE_CHECKING:
    from gradchain.updater.updater import Updater


class Evaluation:
    """Calls a closure again for a link that asks for the gradient elsewhere."""

    def __init__(self, updater: Updater, tx: chain, gradients: Gradients, closure: Callable[[], Tensor]) -> None:
        self._updater = updater
        self._chain = tx
        self._gradients = gradients
        self._closure = closure

    def at(self, weights: Tensors, address: str) -> tuple[Any, Tensors]:
        """The unscaled loss at `weights`, and its gradients as the link at `address` would have received them."""
        own = self._gradients.params().select(weights.index).clone()
        kept = self._gradients.gather()
        try:
            self._gradients.apply(Weights(weights))
            self._gradients.clear()
            with torch.enable_grad():
                loss = self._closure()
                self._scaled(loss, None).backward()
            found = self._gradients.gather()
        finally:
            self._gradients.apply(Weights(own))
            self._gradients.put_back(kept)
        # links before this one have undone their part of the scale; those after it have still to undo theirs
        return loss.detach(), found / float(self._scaled(torch.ones(()), address.partition("/")[0]))

    def _scaled(self, loss: Tensor, before: str | None) -> Any:
        """The loss through the scaling of all links, or of those in front of the one named."""
        ctx = self._updater._context(Run(weight=self._updater._weight))
        for name, link in self._chain.named:
            if name == before:
                break
            inner = ctx.enter(name)
            loss = link.at(inner).scale_loss(loss, self._updater._state.links[name], inner)
        return loss
