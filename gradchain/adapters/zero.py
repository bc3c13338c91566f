"""A chain as a class of optimizers: ZeroRedundancyOptimizer makes one on each rank, of a part of the parameters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from gradchain.adapters.optimizer import ChainOptimizer
from gradchain.core.chain import chain
from gradchain.core.roles import KeepsWindow
from gradchain.core.transform import Transform, walk
from gradchain.updater import Updater
from gradchain.updater.bound import Bound
from gradchain.updater.info import UpdateInfo
from gradchain.updater.modes import outside_inference
from gradchain.updater.structure import unwrapped
from gradchain.updater.target import Target
from gradchain.updater.walk import Walk


def optimizer_class(tx: Transform, model: nn.Module) -> type[PartOptimizer]:
    """A class of optimizers that run the chain over a part of a model's parameters, and have a state for that part.

    `ZeroRedundancyOptimizer(model.parameters(), optimizer_class=optimizer_class(tx, model))` makes one of them on each
    rank. For chains in which what becomes of a parameter depends on nothing of the others: then a step is that of
    `as_optimizer()` over all of them, bit for bit. Selectors and rules see the whole model.

    Args:
        tx: the chain. Every link is `per_parameter`, keeps a window, or averages the weights.
        model: where the parameters have their names from. What is inside DDP; what is around it does not matter.

    Raises:
        ValueError: the chain has a link that looks at several parameters at once, as for a global norm.
    """
    whole = tx if isinstance(tx, chain) else chain(tx)
    for address, link, _ in walk(whole, None):
        if not (link.per_parameter or isinstance(link, KeepsWindow) or link.role == "average"):
            raise ValueError(
                f"optimizer_class: each rank has a part of the parameters, and {address} does not say that it looks at "
                "one at a time: its class needs per_parameter = True. Do on every rank what it does, before the step "
                "(clip_grad_norm_, a GradScaler), or use as_optimizer() without sharding; a class of from_torch goes "
                "to ZeroRedundancyOptimizer itself."
            )

    class OfPart(PartOptimizer):
        _chain, _model = whole, unwrapped(model)

    return OfPart


class PartOptimizer(ChainOptimizer):
    """A chain over some parameters of a model. Made by the classes that `optimizer_class` makes.

    Slots may be written into `state`, one parameter at a time, as ZeroRedundancyOptimizer does when it loads. They are
    taken up when those of all parameters have come, or at the next step.
    """

    _chain: ClassVar[chain]
    _model: ClassVar[nn.Module]

    def __init__(self, params: Iterable[Any], **options: Any) -> None:
        if options:
            raise TypeError(f"optimizer_class: takes no {next(iter(options))!r}: the numbers are in the chain.")
        target = Target(self._model)
        names = {id(p): name for name, p in zip(target.index.names, target.parameters(), strict=True)}
        self._part = {names.get(id(p), ""): p for p in _flat(params)}
        if not self._part or "" in self._part:
            raise ValueError(
                "optimizer_class: the parameters must be of the model that the class was made for, got "
                f"{'others' if self._part else 'none'}."
            )
        self._coming: _Coming | None = None
        super().__init__(_UpdaterOfPart(self._chain, target, self._part))

    def _members(self) -> list[Tensor]:
        return list(self._part.values())

    def _names(self) -> tuple[str, ...]:
        return tuple(self._part)

    def _gradients(self) -> Mapping[str, Tensor | None]:
        return {name: p.grad for name, p in self._part.items()}

    def _stepped(self) -> UpdateInfo:
        self._arrived()
        return super()._stepped()

    @property
    def state(self) -> Any:
        """Parameter → its slots, which may be written: see the class."""
        if self._coming is not None:
            return self._coming
        return _Coming(self, super().state)

    @state.setter
    def state(self, value: Any) -> None:
        """Torch's constructor sets an empty one; the updater has the state."""

    def _arrived(self) -> None:
        """Take up the slots that were written."""
        coming, self._coming = self._coming, None
        if coming is not None:
            slots = {number: coming[p] for number, p in enumerate(self._part.values()) if p in coming.written}
            group = {**self.param_groups[0], "params": list(range(len(self._part)))}
            self.load_state_dict({"state": slots, "param_groups": [group]})

    def __getstate__(self) -> dict[str, Any]:
        self._arrived()
        return {**super().__getstate__(), "_part": self._part, "_coming": None}


class _Coming(defaultdict[Tensor, Any]):
    """Slots by parameter, some of them written."""

    def __init__(self, owner: PartOptimizer, slots: Mapping[Tensor, Any]) -> None:
        super().__init__(dict, slots)
        self._owner = owner
        self.written: set[Tensor] = set()

    def __setitem__(self, parameter: Tensor, slots: Any) -> None:
        super().__setitem__(parameter, slots)
        self._owner._coming = self
        self.written.add(parameter)
        if len(self.written) == len(self._owner._part):
            self._owner._arrived()


class _UpdaterOfPart(Updater):
    """An updater of a whole model that has a state for some of its parameters, and is given gradients of those."""

    def __init__(self, tx: chain, target: Target, names: Iterable[str]) -> None:
        with outside_inference():
            self._bound = Bound(tx, target, only=frozenset(names))
            self._walk = Walk(self._bound, False)


def _flat(params: Iterable[Any]) -> list[Tensor]:
    """The parameters of an optimizer's first argument. ValueError where groups differ."""
    found = list(params)
    if not any(isinstance(entry, Mapping) for entry in found):
        return found
    if len(found) != 1 or not isinstance(found[0], Mapping):
        raise ValueError(
            f"optimizer_class: there must be one group of parameters, got {len(found)}. What differs between them is "
            "said in the chain: masked(link, selector), partition((selector, link), …), a rule per parameter."
        )
    return list(found[0]["params"])
