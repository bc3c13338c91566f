"""An updater as a `torch.optim.Optimizer`, for trainers that call the step themselves: `updater.as_optimizer()`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradchain.core import _torch
from gradchain.core.hyper import Override, varies
from gradchain.core.scalars import as_number
from gradchain.core.transform import Transform, walk
from gradchain.updater import Updater
from gradchain.updater.in_trainers import Slots, joined, split
from gradchain.updater.info import UpdateInfo
from gradchain.updater.modes import outside_inference


@dataclass(frozen=True)
class _Dial(Override):
    """What a trainer turned a learning rate to. One object for the whole run: a compiled step knows overrides by it."""

    under: Override | None = None  # the user's
    at: list[float] = field(default_factory=lambda: [1.0])  # what the number is multiplied by
    rate: list[float | None] = field(default_factory=lambda: [None])  # or what it is, where the rate is a constant

    def source(self, given: Any) -> Any:
        return given if self.under is None else self.under.source(given)

    def applied(self, number: Any) -> Any:
        rate = self.rate[0]
        if rate is not None:
            return rate
        return (number if self.under is None else self.under.applied(number)) * self.at[0]


class ChainOptimizer(Optimizer):
    """An Updater as trainers, schedulers and scalers of others want it. Made by `updater.as_optimizer()`.

    There is one group, with all parameters. Its "lr" is the learning rate where the chain has one constant number for
    it, and else a factor, 1.0, of whatever rates the chain has: then a scheduler on top multiplies. An override of the
    user's stays in force and is multiplied likewise.

    `step` takes true gradients from `.grad`, as the trainer has unscaled, clipped and reduced them, and leaves them
    there until the trainer's `zero_grad`; a step that `accumulate` holds takes them into its window, which `zero_grad`
    keeps.

    Attributes:
        updater: the Updater, whose state this is.
        info: what the last step came to, or None.
    """

    updater: Updater
    info: UpdateInfo | None

    def __init__(self, updater: Updater) -> None:
        if updater._walk.in_backward is not None:
            raise ValueError(
                "as_optimizer: an updater bound with in_backward=True updates in backward hooks, and a trainer steps "
                "after backward. Bind without in_backward."
            )
        self.updater, self.info = updater, None
        self._learn()
        super().__init__(self._members(), {"lr": self._neutral})

    def _members(self) -> list[Tensor]:
        """The parameters of the group, in the order in which a state dict numbers them."""
        return list(self.updater._bound.target.parameters())

    def _names(self) -> tuple[str, ...]:
        """Their names."""
        return self.updater.names

    def _gradients(self) -> Mapping[str, Tensor | None] | None:
        """What a step takes them from; None is `.grad`."""
        return None

    def _learn(self) -> None:
        """Look at the chain: its learning rates, and where a group's "lr" leaves them as they are."""
        links = list(walk(self.updater.chain, None))
        rates = {f"{address}.{name}": link for address, link, _ in links for name in _rates(link)}
        given = [link.__dict__[full.rpartition(".")[2]] for full, link in rates.items()]
        constant = bool(given) and not any(map(varies, given)) and len(set(given)) == 1 and given[0] > 0
        self._rates, self._neutral = tuple(rates), float(given[0]) if constant else 1.0
        self._constant = constant
        self._scales = any(link.role == "unscale" for _, link, _ in links)
        self._dials: dict[str, tuple[Override | None, _Dial]] = {}
        self._index = self.updater._bound.target.index

    # what trainers call

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """The chain and the new weights from `.grad`. A closure is called first, for its loss and its backward."""
        if self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks or _torch.watches_optimizers():
            return _watched(self) if closure is None else _watched(self, closure)
        return self._step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # or torch wraps it, which costs a quarter of a small step

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.updater._bound.target.index is not self._index:
            self._follow()
        lr = self.param_groups[0]["lr"]
        if lr == self._neutral:
            self.info = self._stepped()
        else:
            with self._turned(float(lr)):
                self.info = self._stepped()
        return loss

    def _stepped(self) -> UpdateInfo:
        """The updater's own step, but that it is no question whether a trainer holds this micro-batch back."""
        updater = self.updater
        updater._check("step")
        with outside_inference():
            return updater._bound.journal.guard(updater._walk.step, self._gradients(), False, True)

    def flush(self) -> UpdateInfo:
        """Apply the open window although it is not full, as at the end of an epoch. Falsy if none is open."""
        with self._turned(float(self.param_groups[0]["lr"])):
            return self.updater.flush()

    def rates(self) -> dict[str, float]:
        """The chain's learning rates of the coming update as the group has them: as `hyperparams(by="value")`.

        >>> import torch, gradchain as gch
        >>> optimizer = gch.sgd(gch.linear(0.1, 0.0, 100)).bind(torch.nn.Linear(2, 1)).as_optimizer()
        >>> scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 0.5)
        >>> optimizer.rates()
        {'scale_by_learning_rate.learning_rate': 0.05}
        """
        if not self._rates:
            return {}
        with self._turned(float(self.param_groups[0]["lr"])):
            values = self.updater.hyperparams(by="value")
        starts = tuple(f"{full}/" for full in self._rates)
        return {name: value for name, value in values.items() if f"{name}/".startswith(starts)}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused but for the one group there is."""
        if self.param_groups:
            raise ValueError(
                "as_optimizer: its parameters are those that the chain is bound to. Bind the whole model, or "
                "updater.rebind(model)."
            )
        super().add_param_group(param_group)

    @contextmanager
    def _turned(self, lr: float) -> Iterator[None]:
        """The chain's learning rates as the group has them."""
        hypers = self.updater._bound.hypers
        mine = hypers.overrides
        if lr != self._neutral and not self._rates:
            raise ValueError(
                f"as_optimizer: the group's lr must be {self._neutral}, got {lr!r}: the chain has no learning rate "
                "for a scheduler to turn. Put scale_by_learning_rate(…) in it."
            )
        try:
            if lr != self._neutral:
                hypers.overrides = {**mine, **{full: self._dial(full, mine.get(full), lr) for full in self._rates}}
            yield
        finally:
            hypers.overrides = mine

    def _dial(self, full: str, under: Override | None, lr: float) -> Override:
        known, dial = self._dials.get(full, (None, None))
        if dial is None or known is not under:
            dial = _Dial(under=under)
            self._dials[full] = under, dial
        dial.at[0] = lr / self._neutral
        dial.rate[0] = lr if self._constant and under is None else None
        return dial

    def _follow(self) -> None:
        """The updater was bound to another model since."""
        self._index = self.updater._bound.target.index
        self.param_groups[0]["params"] = self._members()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """A GradScaler asks this first. One scale is enough."""
        if self._scales:
            raise RuntimeError(
                "as_optimizer: the chain has amp_scale, and a GradScaler scales the loss too. Leave amp_scale out of "
                "the chain; skip_nonfinite() stays, or the scaler does."
            )
        return False

    # state

    @property
    def state(self) -> Any:
        """Parameter → its slots. A copy: what is written into it reaches nothing; `load_state_dict` does."""
        updater = self.__dict__.get("updater")
        if updater is None:  # in a class that a trainer derives from this one, around another instance
            raise AttributeError("state")
        slots = _split(updater)
        found = zip(updater._bound.target.parameters(), updater.names, strict=True)
        return defaultdict(dict, {p: slots[name] for p, name in found if name in slots})

    @state.setter
    def state(self, value: Any) -> None:
        """Torch's constructor sets an empty one; the updater has the state."""

    def state_dict(self) -> dict[str, Any]:
        """As torch has it. RuntimeError inside `averaged()`: beside it a trainer saves the weights of the model."""
        self.updater._check("state_dict")
        return super().state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up what `state_dict()` gave, bit for bit. Nothing changes where it is of another chain or model."""
        given = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, given)
            given = given if changed is None else changed
        names = self._names()
        group, slots = _checked(given, len(names))
        found = {name: slots[key] for name, key in zip(names, group["params"], strict=True) if key in slots}
        try:
            self.updater.load_state_dict(joined(found))
        except ValueError as error:
            raise ValueError(
                "load_state_dict: expected the state that as_optimizer()'s state_dict() gave, found another or a part "
                f"of one. {error}"
            ) from error
        self.param_groups[0] = {**group, "params": self.param_groups[0]["params"]}
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"updater": self.updater, "defaults": self.defaults, "param_groups": self.param_groups}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.info = None
        self._learn()


_watched = Optimizer.profile_hook_step(ChainOptimizer._step)
"""A step that hooks and profilers are told of."""


def _checked(given: Mapping[str, Any], count: int) -> tuple[dict[str, Any], Mapping[Any, Any]]:
    """The group and the slots of what `state_dict()` gave. ValueError where they cannot be."""
    groups, slots = given.get("param_groups"), given.get("state")
    if not isinstance(groups, (list, tuple)) or not isinstance(slots, Mapping):
        raise ValueError(
            "load_state_dict: expected a dict with the list 'param_groups' and the dict 'state', found "
            f"{type(groups).__name__} and {type(slots).__name__}."
        )
    many = [len(g["params"]) if isinstance(g, Mapping) and isinstance(g.get("params"), list) else g for g in groups]
    if many != [count] or len(set(groups[0]["params"])) != count:
        raise ValueError(
            f"load_state_dict: expected one group with {count} parameters, found {len(groups)} with {many}."
        )
    lr = as_number(groups[0].get("lr"))
    if lr is None or not math.isfinite(lr):
        raise ValueError(f"load_state_dict: expected a group whose lr is a number, found {groups[0].get('lr')!r}.")
    return dict(groups[0]), slots


def _rates(link: Transform) -> list[str]:
    """The names of a link's learning rates."""
    wanted = {"learning_rate": link.hypers, "optimizer": ("lr",), "weights": ("learning_rate",)}.get(link.role, ())
    return [name for name in wanted if name in link.hypers and name not in link.read_once]


def _split(updater: Updater) -> Slots:
    """The state by parameter. Inside `averaged()` too: it is no part of what is swapped there."""
    bound = updater._bound
    with outside_inference():
        fixed = updater._walk.checkpoint.write("fixed") if bound.journal.averaged else updater.state_dict(form="fixed")
    return split(fixed, bound.active.names or updater.names)
