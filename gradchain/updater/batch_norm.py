"""Batch-norm statistics of an average, which training makes at other weights: one pass over data makes them anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn

from gradchain.core import _torch
from gradchain.core.eager import EagerTensors
from gradchain.core.index import Index
from gradchain.engine.commit import Commit
from gradchain.updater.averages import average_state
from gradchain.updater.bound import Bound
from gradchain.updater.forward import Forward
from gradchain.updater.journal import Pending
from gradchain.updater.state_dict import rebuilt, states
from gradchain.updater.target import Target


def update(
    bound: Bound,
    averaged: AbstractContextManager[None],
    batches: Iterable[Any],
    forward: Callable[[Any], object] | None,
    name: str | None,
) -> None:
    """Keep with an average the statistics that the model has of these batches inside `averaged`."""
    call = _of_model(bound.target) if forward is None else forward
    with averaged, _torch.no_grad():
        found = _statistics(bound, batches, call)
    address = average_state(bound.chain, bound.state, name)[0][0]
    before = dict(states(bound.chain, bound.state))[address]
    kept = before.replace(buffers=before["buffers"].overlay(EagerTensors.at(Index.of(found), found)))
    state = rebuilt(bound.chain, bound.state, {address: kept})

    def follow() -> None:
        bound.state = state

    bound.journal.guard(bound.journal.write, Pending(Commit(), follow))


def _of_model(target: Target) -> Callable[[Any], object]:
    """What runs the one module that is bound. ValueError where it is not one."""
    if len(target.roots) != 1:
        raise ValueError(
            f"update_batch_norm: forward must be given where {len(target.roots)} modules are bound: a function of a "
            "batch that runs them."
        )
    model = target.roots[0][1]
    return lambda batch: model(batch[0] if isinstance(batch, (list, tuple)) else batch)


def _statistics(bound: Bound, batches: Iterable[Any], call: Callable[[Any], object]) -> dict[str, Tensor]:
    """The statistics of all batches, as each counts alike. ValueError where there is none."""
    names = {id(buffer): name for name, buffer in bound.target.buffers().items()}
    with _training([root for _, root in bound.target.roots]) as norms:
        if not norms:
            return {}
        for norm in norms:
            norm.reset_running_stats()
        empty = True
        for batch in batches:
            with Forward(bound, None, None):
                call(batch)
            empty = False
        if empty:
            raise ValueError("update_batch_norm: loader must give at least one batch, got none.")
        own = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        return {names[id(buffer)]: buffer.clone() for buffer in own}


@contextmanager
def _training(roots: list[nn.Module]) -> Iterator[list[nn.modules.batchnorm._BatchNorm]]:
    """The batch norms that train where the model does, with means over all batches; each module as it was after it."""
    modes = {module: module.training for root in roots for module in root.modules()}
    momenta: dict[nn.modules.batchnorm._BatchNorm, float | None] = {}
    try:
        for root in roots:
            root.train()
        for module in modes:
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats:
                momenta[module] = module.momentum
                module.momentum = None
        yield [*momenta]
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training
