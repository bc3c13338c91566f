"""Updating each parameter as soon as backward has its gradient, and freeing the gradient at once."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gradchain.core.context import Run
from gradchain.core.eager import EagerTensors
from gradchain.core.state import Links, merged, narrowed
from gradchain.core.transform import walk
from gradchain.engine.engine import Engine
from gradchain.updater.bound import Bound
from gradchain.updater.info import UpdateInfo


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
            parameter.register_post_accumulate_grad_hook(self._hook(name))
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
        bound.activate(received)
        engine = self._engines.setdefault(name, Engine())
        state: Any = self._states.get(name) or narrowed(bound.state, received.index)
        run = Run(scaled=True)
        params = bound.gradients.params().select(received.index)
        applied, self._states[name] = bound.computed(received, state, params, run, engine, False)
        bound.records.update(run.records)
        self._info = bound.info(run, applied)

    def open(self) -> None:
        """Backward begins: gradients are taken as they come."""
        self._states, self._info = {}, None

    def close(self) -> UpdateInfo | None:
        """Backward is over: the states of all parameters become the chain's."""
        states, self._states = self._states, None
        for state in (states or {}).values():
            self._bound.state = merged(state, self._bound.state)  # type: ignore[assignment]  # Links, as it was
        return self._info

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
