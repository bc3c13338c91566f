"""An optimizer over stand-ins for the parameters: given copies of weights, gradients and memory, it takes one step."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gradchain.adapters.plain_memory import read, written
from gradchain.core import _torch
from gradchain.core.slots import Slots, copied, is_plain, same

_OWN = "self."  # in front of what an optimizer keeps on itself, beside what it keeps in a parameter group
_SHARED = "state."  # and in front of what it keeps in its state under no parameter
_NOT_KEPT = frozenset({"state", "param_groups", "defaults"})


class StandIns:
    """One optimizer, constructed once, and the parameters it was given in place of the model's.

    Args:
        make: parameter groups → optimizer.
        groups: the names in each parameter group.
        weights: name → weight, as the constructor sees it.
        flags: for each group what is said of it beside its parameters; none where nothing is.

    Attributes:
        first: what the optimizer remembers, and has changed, before its first step.
        groups: the names in each parameter group that the optimizer made of those it was given.
        has_two_sets: whether the optimizer has weights to train and, by its eval(), others to evaluate.

    Raises:
        ValueError: it works on other tensors than it was given, or in groups that those are not parts of.
    """

    def __init__(
        self,
        make: Callable[[Any], Optimizer],
        groups: Sequence[Sequence[str]],
        weights: Mapping[str, Tensor],
        flags: Sequence[Mapping[str, Any]],
    ) -> None:
        self._standing = {n: nn.Parameter(weights[n].detach()) for names in groups for n in names}
        self._name = {p: n for n, p in self._standing.items()}
        given = [{"params": [self._standing[n] for n in names], **f} for names, f in zip(groups, flags, strict=True)]
        plain = len(given) == 1 and not flags[0]  # some classes take no groups
        self._optimizer = make(given[0]["params"] if plain else given)
        train, evaluate = getattr(self._optimizer, "train", None), getattr(self._optimizer, "eval", None)
        self._evaluate = evaluate if callable(train) and callable(evaluate) else None
        if self._evaluate is not None and train is not None:
            train()
        self.has_two_sets = self._evaluate is not None
        self._package = type(self._optimizer).__module__.partition(".")[0]
        self.groups = self._regrouped(groups)
        self._fields = [
            {k: copied(v) for k, v in group.items() if k != "params" and is_plain(v)}
            for group in self._optimizer.param_groups
        ]
        self._own = self._attributes()
        nothing = Slots({name: {} for name in self._standing})
        self.first = self._remembered(), self._changed(self._fields, nothing)
        self._forget()

    def _regrouped(self, given: Sequence[Sequence[str]]) -> list[list[str]]:
        """The names in each group as it now is: a class may split those it was given."""
        live = [group["params"] for group in self._optimizer.param_groups]
        groups = [[self._name[p] for p in params if p in self._name] for params in live]
        whole = sorted(n for names in groups for n in names) == sorted(self._standing)
        parts = all(any(set(names) <= set(g) for g in given) for names in groups)
        if not whole or not parts or list(map(len, groups)) != list(map(len, live)):
            raise ValueError(
                f"from_torch: {type(self._optimizer).__name__} cannot be the rule of a chain: it makes parameter "
                "groups of other tensors than it is given, or not of each once. Run it outside the chain."
            )
        return groups

    def _forget(self) -> None:
        """Hold no memory between steps. The shapes stay: a class may have taken them down."""
        for parameter in self._standing.values():
            parameter.data, parameter.grad = parameter.data.new_zeros(()).expand(parameter.shape), None
        self._optimizer.state = defaultdict(dict)

    def _attributes(self) -> dict[str, Any]:
        """The plain values an optimizer keeps on itself; those that hold its parameters are not among them."""
        return {
            name: copied(value)
            for name, value in vars(self._optimizer).items()
            if name not in _NOT_KEPT and not isinstance(value, OrderedDict)  # the latter are hooks
            if is_plain(value) and not self._holds_parameters(value)
        }

    def _holds_parameters(self, value: Any) -> bool:
        if isinstance(value, dict):
            return any(map(self._holds_parameters, (*value, *value.values())))
        if isinstance(value, (list, tuple)):
            return any(map(self._holds_parameters, value))
        return isinstance(value, nn.Parameter)

    def step(
        self,
        weights: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: Slots,
        group: Slots,
        fields: Sequence[Mapping[str, Any]],
        closure: Callable[[StandIns], Any] | None,
    ) -> tuple[dict[str, Tensor], Slots, Slots, dict[str, Tensor]]:
        """One step: the new weights, what the optimizer remembers now, and the weights that its eval() makes of those.

        Nothing that is given is changed.

        Args:
            weights: of every parameter.
            grads: of those that have one.
            state: what is remembered of each.
            group: what the optimizer itself changed in its parameter groups.
            fields: for each parameter group the numbers of this update.
            closure: evaluates the loss at the stand-ins, for a class that asks for it.
        """
        try:
            for name, parameter in self._standing.items():
                parameter.data = weights[name].detach().clone()
                self.put_grad(name, grads.get(name))
            before = self._restored(state, group, fields)
            with _torch.on_host():
                self._optimizer.step(**({} if closure is None else {"closure": lambda: closure(self)}))
            weights, memory, changed = self.weights(), self._remembered(), self._changed(before, group)
            if self._evaluate is None:
                return weights, memory, changed, {}
            weights, memory = {n: w.clone() for n, w in weights.items()}, memory.copied()  # eval() may write to both
            self._evaluate()
            return weights, memory, changed, self.weights()
        finally:
            self._forget()

    def weights(self) -> dict[str, Tensor]:
        """The weights as they are now."""
        return {name: parameter.detach() for name, parameter in self._standing.items()}

    def put_grad(self, name: str, grad: Tensor | None) -> None:
        """Give one stand-in a gradient of its own: some optimizers write to it."""
        parameter = self._standing[name]
        parameter.grad = None if grad is None else grad.detach().to(parameter.dtype, copy=True)

    def _restored(self, state: Slots, group: Slots, fields: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Make the optimizer remember; the fields of its groups as they then are."""
        slots = state.copied()
        memory: dict[Tensor, Any] = {self._standing[n]: read(slots[n], self._package) for n in slots if slots[n]}
        self._optimizer.state = defaultdict(dict, memory)
        own, shared = copied(self._own), {}
        for names, initial, numbers, live in zip(
            self.groups, self._fields, fields, self._optimizer.param_groups, strict=True
        ):
            kept = copied(next((group[n] for n in names if group[n]), {}))
            own.update({k.removeprefix(_OWN): v for k, v in kept.items() if k.startswith(_OWN)})
            shared.update({k.removeprefix(_SHARED): v for k, v in kept.items() if k.startswith(_SHARED)})
            for later in [k for k, v in live.items() if k != "params" and k not in initial and is_plain(v)]:
                del live[later]
            live.update(copied(initial))
            live.update({k: v for k, v in kept.items() if not k.startswith((_OWN, _SHARED))})
            live.update(numbers)
        vars(self._optimizer).update(own)
        self._optimizer.state.update({k: read(v, self._package) for k, v in shared.items()})
        return [copied({k: v for k, v in g.items() if k in f}) for g, f in self._now()]

    def _now(self) -> list[tuple[dict[str, Any], set[str]]]:
        """Each live group, with the names of its plain fields."""
        return [(g, {k for k, v in g.items() if k != "params" and is_plain(v)}) for g in self._optimizer.param_groups]

    def _remembered(self) -> Slots:
        found: dict[str, Any] = {name: {} for name in self._standing}
        for key, slot in self._optimizer.state.items():
            if isinstance(key, nn.Parameter):
                found[self._name[key]] = {k: self._plain(f"state[{k!r}]", v) for k, v in slot.items()}
        return Slots(found)

    def _changed(self, before: Sequence[Mapping[str, Any]], group: Slots) -> Slots:
        """What the optimizer changed, now or earlier, in its groups and on itself: one dict for all of a group."""
        beside, found = self._beside(), {}
        for i, (names, was) in enumerate(zip(self.groups, before, strict=True)):
            found.update(dict.fromkeys(names, self._changed_in(i, was, group) | beside))
        return Slots(found)

    def _changed_in(self, at: int, was: Mapping[str, Any], group: Slots) -> dict[str, Any]:
        """What it changed, now or earlier, in one of its groups."""
        live, plain = self._now()[at]
        earlier = {k for n in self.groups[at] for k in group[n]}
        return {k: copied(live[k]) for k in plain if k in earlier or k not in was or not same(live[k], was[k])}

    def _beside(self) -> dict[str, Any]:
        """What it keeps on itself, and in its state under no parameter."""
        beside = {_OWN + k: v for k, v in self._attributes().items() if k not in self._own or not same(v, self._own[k])}
        for key, value in self._optimizer.state.items():
            if not isinstance(key, nn.Parameter):
                beside[f"{_SHARED}{key}"] = copied(self._plain(f"state[{key!r}]", value))
        return beside

    def _plain(self, place: str, value: Any) -> Any:
        """What the optimizer remembers, as a checkpoint can hold it."""
        try:
            return written(value, self._package, Tensor.detach)
        except TypeError as error:
            raise TypeError(f"{place}: {error}") from None
