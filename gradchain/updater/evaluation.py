"""The loss and its gradients at other weights, and the weights back again bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradchain.core.tensors import Tensors
from gradchain.core.weights import Weights
from gradchain.engine.commit import Commit
from gradchain.updater.autograd import raise_explained
from gradchain.updater.bound import Bound
from gradchain.updater.gradients import Gradients
from gradchain.updater.ranks import over_ranks


class Evaluation:
    """Calls a closure again for a link that asks for the gradient elsewhere."""

    def __init__(self, bound: Bound, closure: Callable[[], Tensor]) -> None:
        self._bound = bound
        self._closure = closure

    def at(self, weights: Tensors, address: str) -> tuple[Any, Tensors]:
        """The unscaled loss at `weights`, and its gradients as the link at `address` would have received them."""
        gradients, journal = self._bound.gradients, self._bound.journal
        own = gradients.params().select(weights.index).clone()  # whole: to put them back takes no other rank
        gathered = gradients.gather(another_comes=True)

        def back() -> None:
            _write(gradients, own)
            gradients.put_back(gathered)

        journal.away = back
        try:
            _write_at(self._bound, weights)
            gradients.clear()
            with torch.enable_grad():
                loss = self._closure()
                scaled = self._bound.scaled(loss, self._bound.micro.weight)
                try:
                    scaled.backward()
                except RuntimeError as error:
                    raise_explained(error)
                    raise
            found = gradients.gather(another_comes=True)
        finally:
            journal.home()
        # links before this one have undone their part of the scale; those after it have still to undo theirs
        one = torch.ones((), dtype=torch.float64, device="cpu")
        factor = float(self._bound.scaled(one, self._bound.micro.weight, address.partition("/")[0]))
        if self._bound.target.distributed and self._bound.micro.weight is not None:
            factor = over_ranks(self._bound.target, factor)  # ranks weigh their losses differently
        shares = self._bound.shares
        return loss.detach(), (found if shares is None else shares.of(found)) / factor


def _write_at(bound: Bound, weights: Tensors) -> None:
    if bound.shares is None:
        _write(bound.gradients, weights)
        return
    commit = Commit()
    bound.shares.write(commit, Weights(weights), weights)
    commit.fire()


def _write(gradients: Gradients, weights: Tensors) -> None:
    commit = Commit()
    gradients.write(commit, Weights(weights))
    commit.fire()
