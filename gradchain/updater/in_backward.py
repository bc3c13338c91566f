"""Updating each parameter as soon as backward has its gradient, and freeing the gradient at once."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gradchain.core.eager import EagerTensors
from gradchain.core.state import Links, narrowed, overlaid
from gradchain.core.transform import walk
from gradchain.engine.engine import Engine
from gradchain.updater.bound import Bound
from gradchain.updater.info import UpdateInfo
from gradchain.updater.window import MicroBatch


class InBackward:
    """Hooks on the parameters that run the chain for one parameter at a time.

    No gradient outlives its parameter's turn, so the peak of memory is lower by nearly all gradients. Only chains in
    which each parameter's update depends on that parameter alone can do so. An exception in backward leaves the
    parameters that had their turn updated.
    """

    def __init__(self, bound: Bound) -> None:
        check(bound)
        self._bound = bound
        self._engines: dict[str, Engine] = {}
        self._states: dict[str, Links] | None = None  # the new states of this backward; None outside one
        self._info: UpdateInfo | None = None
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._hook(name))  # type: ignore[no-untyped-call]
            for name, parameter in bound.parameters().items()
        ]

    def _hook(self, name: str) -> Any:
        def hook(parameter: Tensor) -> None:
            if self._states is not None and parameter.grad is not None:
                self._update(name, parameter)

        return hook

    def _update(self, name: str, parameter: Tensor) -> None:
        bound = self._bound
        grad, parameter.grad = parameter.grad, None
        assert grad is not None and self._states is not None
        received = EagerTensors.at(bound.target.index, {name: grad.detach()})
        bound.active, bound.state = bound.activated(received)
        engine = self._engines.setdefault(name, Engine())
        params = EagerTensors.at(received.index, {name: parameter})
        state: Any = narrowed(bound.state, received.index)
        outcome = bound.computed(received, state, params, bound.facts(params, scaled=True), engine, False)
        outcome.commit.fire()
        self._states[name] = outcome.state
        bound.records.update(outcome.notes.records)
        self._info = bound.info(outcome)

    def check_micro_batch(self, backwards: int) -> None:
        """RuntimeError for a second backward before a step: each is an update."""
        if backwards:
            raise RuntimeError(
                "backward: with in_backward=True each backward is an update, so there is one to a step. Sum the "
                "losses, or call update(loss) for each."
            )

    def open(self) -> None:
        """Backward begins: gradients are taken as they come."""
        self._states, self._info = {}, None

    def close(self) -> bool:
        """Backward is over, or failed: the new states become the chain's. Whether any parameter had its turn."""
        states, self._states = list((self._states or {}).values()), None
        if states:
            self._bound.state = overlaid(self._bound.state, states)
        return bool(states)

    def finish(self) -> UpdateInfo:
        """What the backward before it did, as an update."""
        info, self._info = self._info, None
        if info is None:
            raise RuntimeError(
                "step: an updater bound with in_backward=True updates in updater.backward(loss), which has not run. "
                "Call updater.update(loss)."
            )
        bound = self._bound
        bound.clocks["micro"] += 1
        bound.clocks["step"] += 1
        bound.micro = MicroBatch()
        return info

    def remove(self) -> None:
        """Take the hooks off the parameters."""
        for handle in self._handles:
            handle.remove()


def check(bound: Bound) -> None:
    """ValueError for a chain that needs several gradients at once."""
    for address, link, _ in walk(bound.chain, None):
        if not link.per_parameter:
            raise ValueError(
                f"bind: in_backward=True updates one parameter at a time, and {address} does not say that it can: its "
                "class needs per_parameter = True. Leave it out, or bind without in_backward."
            )
