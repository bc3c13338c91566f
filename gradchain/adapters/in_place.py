"""An optimizer over the model's own weights: it steps where they lie, and keeps its memory from step to step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gradchain.adapters.stand_ins import StandIns
from gradchain.core import _torch
from gradchain.core.eager import EagerTensors
from gradchain.core.index import Index
from gradchain.core.slots import LiveSlots, Slots, copied


class InPlace(StandIns):
    """One optimizer whose stand-ins lie in the memory of the weights, and are given the gradients as they are.

    A step that is broken off leaves what it has done so far: whoever calls it must know that it cannot be done again.

    Args:
        make, groups, weights, flags: as StandIns has them.

    Attributes:
        memory: what the optimizer remembers of each parameter, as it is when it is read.
        changed: the same of what it changed in its groups, and of what it keeps beside both.

    Raises:
        ValueError: as StandIns; and for an optimizer with two sets of weights.
    """

    def __init__(
        self,
        make: Callable[[Any], Optimizer],
        groups: Sequence[Sequence[str]],
        weights: Mapping[str, Tensor],
        flags: Sequence[Mapping[str, Any]],
    ) -> None:
        super().__init__(make, groups, weights, flags)
        if self.has_two_sets:
            raise ValueError(
                f"from_torch: {type(self._optimizer).__name__}: in_place must be False for a class with two sets of "
                "weights, got True: its eval() would write over those that are trained. Leave in_place out."
            )
        self.first = self.first[0].copied(), self.first[1].copied()  # the optimizer writes to its own
        self.memory = LiveSlots(weights, self._memory_of)
        self.changed = LiveSlots(weights, self._changed_of)
        self._order = [self._standing[name] for name in weights]
        self._pointers: list[int] = []
        self._views: tuple[Index, EagerTensors] | None = None
        self._numbered: list[set[str]] = []  # the numbers that each group was given at the last step
        self._before, self._since = copied(self._fields), self.first[1]

    def lies_in(self, weights: Sequence[Tensor]) -> bool:
        """Whether the stand-ins lie where these weights do."""
        return list(map(Tensor.data_ptr, weights)) == self._pointers

    def views(self, index: Index, of: Index, weights: Sequence[Tensor]) -> EagerTensors:
        """The weights of some parameters, in the memory where they lie: the step writes there.

        Args:
            index: the parameters.
            of: those that `weights` are of.
            weights: of every parameter.
        """
        if self._views is None or self._views[0] is not index or not self.lies_in(weights):
            self._lie(weights)
            views = {n: w.detach() for n, w in zip(of.names, weights, strict=True) if n in index}
            self._views = index, EagerTensors.at(of, views)
        return EagerTensors(self._views[1].index, self._views[1]._data)

    def _lie(self, weights: Sequence[Tensor]) -> None:
        self._pointers = list(map(Tensor.data_ptr, weights))
        for parameter, weight in zip(self._order, weights, strict=True):
            parameter.data = weight.detach()

    def step_in_place(
        self,
        weights: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        state: Slots,
        group: Slots,
        fields: Sequence[Mapping[str, Any]],
    ) -> None:
        """One step, of the weights and of what is remembered.

        Args:
            weights: of every parameter, in order; they are written.
            grads: the same, None for one that has none; the optimizer may write to those, and keep them.
            state: what is remembered of each: `memory`, or other values, which are copied.
            group: what the optimizer itself changed in its parameter groups: `changed`, or the like.
            fields: for each parameter group the numbers of this update.
        """
        fresh = state is not self.memory or group is not self.changed
        if fresh or [set(numbers) for numbers in fields] != self._numbered:
            self._take_up(state, group, fields)
        else:
            self._renumber(fields)
        if not self.lies_in(weights):
            self._lie(weights)
        try:
            for parameter, grad in zip(self._order, grads, strict=True):
                parameter.grad = grad
            with _torch.on_host():
                self._optimizer.step()
        finally:
            for parameter in self._order:
                parameter.grad = None
        if not self.lies_in(self._order):
            self._bring_back(weights)
        if fresh:
            self._remembered(), self._changed(self._before, self._since)  # TypeError for what no checkpoint can hold

    def _take_up(self, state: Slots, group: Slots, fields: Sequence[Mapping[str, Any]]) -> None:
        """Remember what came from elsewhere, in memory of its own; or the same as so far, under other numbers."""
        self._since = group.copied()
        self._before = self._restored(state, self._since, fields)
        self._numbered = [set(numbers) for numbers in fields]

    def _renumber(self, fields: Sequence[Mapping[str, Any]]) -> None:
        for numbers, live, before in zip(fields, self._optimizer.param_groups, self._before, strict=True):
            live.update(numbers)
            before.update(numbers)

    def _bring_back(self, weights: Sequence[Tensor]) -> None:
        """Write what the optimizer has put into memory of its own, in place of the weights', to where those lie."""
        for parameter, weight in zip(self._order, weights, strict=True):
            if parameter.data_ptr() != weight.data_ptr():
                weight.detach().copy_(parameter.detach())
        self._lie(weights)

    def _memory_of(self, name: str) -> dict[str, Any]:
        slot = self._optimizer.state.get(self._standing[name], {})
        return {key: self._plain(f"state[{key!r}]", value) for key, value in slot.items()}

    def _changed_of(self, name: str) -> dict[str, Any]:
        at = next(i for i, names in enumerate(self.groups) if name in names)
        return self._changed_in(at, self._before[at], self._since) | self._beside()


def own(grads: Sequence[Tensor | None], weights: Sequence[Tensor], spared: set[int] | None) -> list[Tensor | None]:
    """Gradients in the dtypes of their weights that an optimizer may write to: copies of those that are others' too.

    Args:
        grads: one for each weight, or None.
        weights: the weights.
        spared: the ids of the tensors that are others' too; None for all.
    """
    return [
        g
        if g is None or (spared is not None and id(g) not in spared and g.dtype is w.dtype)
        else g.detach().to(w.dtype, copy=True)
        for g, w in zip(grads, weights, strict=True)
    ]
