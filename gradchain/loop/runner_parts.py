"""What hooks of MMEngine's kind find in their runner besides its counts: learning rates, numbers and facts by name."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import torch

from gradchain.core.address import find
from gradchain.updater.updater import Updater

if TYPE_CHECKING:
    from gradchain.loop.run import loop

MOST_VALUES = 10_000
NOTE = "initial_lr"
COUNTS = ("iter", "epoch", "max_iters", "max_epochs")


class StandIn:
    """Stands in for something of MMEngine's, and says so where it is asked for more than it has.

    Attributes:
        called: what hooks call it.
        of: the class of MMEngine's.
        lacks: name → why it is not here.
    """

    called, of = "runner", "Runner"
    lacks: Mapping[str, str] = {}

    def __getattr__(self, name: str) -> Any:
        if name in self.lacks:
            raise AttributeError(f"loop: {self.called} has no {name!r}, because {self.lacks[name]}.")
        known = [n for n in (*dir(type(self)), *vars(self)) if n[0] != "_" and n not in vars(StandIn)]
        raise AttributeError(
            f"loop: {self.called} has no {name!r}: it stands in for MMEngine's {self.of}, and has "
            f"{', '.join(sorted(known))}."
        )


class OptimWrapper(StandIn):
    """What hooks find in `runner.optim_wrapper`."""

    called, of = "runner.optim_wrapper", "OptimWrapper"

    def __init__(self, run: loop[Any]) -> None:
        self._updater, self._notes = next(iter(run._each.values())), run._standin._notes

    def get_lr(self) -> dict[str, list[float]]:
        """The learning rates of the coming update."""
        values = self._updater.hyperparams(by="value")
        return {"lr": [value for address, value in values.items() if "learning_rate" in address]}

    @property
    def optimizer(self) -> OptimWrapper:
        """This: what hooks ask of the optimizer are its groups."""
        return self

    @property
    def param_groups(self) -> list[ParamGroup]:
        """One group."""
        return [ParamGroup(self._updater, self._notes)]


class ParamGroup(MutableMapping[str, Any]):
    """What hooks find in `param_groups`: the hyperparameters of an updater by name; "lr" is the learning rate.

    Setting one is `updater.override`: it holds in place of the chain's number or schedule from now on. "initial_lr" is
    a note of the hook's own, as MMEngine's schedulers write it there.
    """

    def __init__(self, updater: Updater, notes: dict[str, Any]) -> None:
        self._updater, self._notes = updater, notes

    def __getitem__(self, name: str) -> Any:
        if name in self._notes:
            return self._notes[name]
        if name == NOTE:
            raise KeyError(f"param_groups: nobody has set {NOTE!r}.")
        values = self._updater.hyperparams()
        found = values[find("learning_rate" if name == "lr" else name, values, "param_groups")]
        if isinstance(found, Mapping):
            raise ValueError(
                f"param_groups: {name!r} must be one number for all parameters, and the chain gives them "
                f"{len({*found.values()})}. updater.override('learning_rate', factor=…) multiplies them all."
            )
        return found

    def __setitem__(self, name: str, value: Any) -> None:
        if name == NOTE:
            self._notes[name] = value
        else:
            self._updater.override("learning_rate" if name == "lr" else name, value)

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"param_groups: {name!r} cannot be taken out: it is the chain's.")

    def __iter__(self) -> Iterator[str]:
        return iter(["lr", *self._updater.hyperparams(), *self._notes])

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Values(StandIn):
    """The last values that were given under a name. Tensors are kept as they are, and read where they are asked for."""

    called, of = "runner.message_hub.get_scalar(…)", "HistoryBuffer"

    def __init__(self) -> None:
        self._values: deque[Any] = deque(maxlen=MOST_VALUES)

    def add(self, value: Any) -> None:
        """One more."""
        self._values.append(value.detach() if isinstance(value, torch.Tensor) else float(value))

    def current(self) -> float:
        """The last."""
        return float(self._values[-1])

    def mean(self, window_size: int | None = None) -> float:
        """The mean, of the last few or of all."""
        return self._over(window_size, lambda some: sum(some) / len(some))

    def min(self, window_size: int | None = None) -> float:
        """The least, of the last few or of all."""
        return self._over(window_size, min)

    def max(self, window_size: int | None = None) -> float:
        """The largest, of the last few or of all."""
        return self._over(window_size, max)

    def _over(self, window_size: int | None, of: Callable[[list[float]], float]) -> float:
        return of([*map(float, self._values)][-(window_size or len(self._values)) :])


class MessageHub(StandIn):
    """What hooks find in `runner.message_hub`: what they put there, what was logged, and where the run is."""

    called, of = "runner.message_hub", "MessageHub"

    def __init__(self, run: loop[Any]) -> None:
        self._run = run
        self.log_scalars: dict[str, Values] = {}
        self.runtime_info: dict[str, Any] = {}

    def keep(self, mode: str, values: Mapping[str, Any]) -> None:
        """What a batch or a validation logged, as MMEngine's RuntimeInfoHook does."""
        for name, value in values.items():
            self.log_scalars.setdefault(f"{mode}/{name}", Values()).add(value)

    def update_scalar(self, key: str, value: Any, count: int = 1, resumed: bool = True) -> None:
        """Log a number."""
        self.log_scalars.setdefault(key, Values()).add(value)
        self._run._meter.add({key.removeprefix("train/"): value})

    def update_scalars(self, log_dict: Mapping[str, Any], resumed: bool = True) -> None:
        """Log several."""
        for key, value in log_dict.items():
            self.update_scalar(key, value["value"] if isinstance(value, Mapping) else value)

    def get_scalar(self, key: str) -> Values:
        """What was logged so."""
        if key not in self.log_scalars:
            known = ", ".join(sorted(self.log_scalars)) or "nothing yet"
            raise KeyError(
                f"loop: message_hub has no scalar {key!r}; it has {known}. Learning rates: runner.optim_wrapper.get_lr()."
            )
        return self.log_scalars[key]

    def update_info(self, key: str, value: Any, resumed: bool = True) -> None:
        """Keep a fact."""
        self.runtime_info[key] = value

    def update_info_dict(self, info_dict: Mapping[str, Any], resumed: bool = True) -> None:
        """Keep several."""
        self.runtime_info.update(info_dict)

    def get_info(self, key: str, default: Any = None) -> Any:
        """A fact that was kept, or where the run is: "iter", "epoch", "max_iters", "max_epochs"."""
        if key in COUNTS and key not in self.runtime_info:
            return getattr(self._run._standin, key)
        return self.runtime_info.get(key, default)

    def pop_info(self, key: str, default: Any = None) -> Any:
        """The same, and keep it no more."""
        return self.runtime_info.pop(key, default)


class Visualizer(StandIn):
    """What hooks find in `runner.visualizer`: numbers only."""

    called, of = "runner.visualizer", "Visualizer"
    lacks = dict.fromkeys(
        ("add_config", "add_datasample", "add_graph", "add_image"), "it takes numbers: pictures are the hook's to write"
    )

    def __init__(self, run: loop[Any]) -> None:
        self._run = run

    def add_scalar(self, name: str, value: Any, step: int = 0, **_: Any) -> None:
        """Log a number."""
        self._run._meter.add({name: value})

    def add_scalars(self, scalar_dict: Mapping[str, Any], step: int = 0, **_: Any) -> None:
        """Log several."""
        self._run._meter.add(scalar_dict)
