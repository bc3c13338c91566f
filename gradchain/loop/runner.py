"""A stand-in for MMEngine's Runner, for hook classes that were written for it. MMEngine need not be there."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gradchain.core.address import find
from gradchain.loop.moments import MOMENTS, Hook, priority_of
from gradchain.updater.updater import Updater

if TYPE_CHECKING:
    from gradchain.loop.run import loop

NOT_HERE = {
    "CheckpointHook": "the loop saves: gch.loop(checkpoint=gch.loop.checkpoints(folder, every=…, keep=…, best=…))",
    "EMAHook": "the chain averages: average_params(…), and gch.loop(averaged=True) validates the average",
    "LoggerHook": "the loop logs: gch.loop(log=…, interval=…)",
    "NaiveVisualizationHook": "it draws what MMEngine's models return for data of MMEngine's data sets, in a test loop",
    "NPUProfilerHook": "it needs Ascend's devices and their package",
    "ParamSchedulerHook": "learning rates are schedules in the chain, and the loop ticks the clock 'epoch'",
    "PrepareTTAHook": "it builds a model of MMEngine's around the model, for a test loop",
    "ProfilerHook": "it writes by MMEngine's backends: put the loop in `with torch.profiler.profile(…)`",
    "RuntimeInfoHook": "it describes MMEngine's config and data set; rates and losses are logged by the loop",
}
"""MMEngine's own hooks that do not run here, and why; its others do."""


class Runner:
    """What hooks of MMEngine's kind find in their `runner`, of a loop.

    Attributes:
        message_hub: numbers and facts by name, and what is logged by `update_scalar`.
        visualizer: `add_scalar` and `add_scalars`, which log.
        logger: Python's, "gradchain.loop".
        timestamp: when the run was made.
    """

    def __init__(self, run: loop[Any]) -> None:
        self._run = run
        self.message_hub = MessageHub(run)
        self.visualizer = Visualizer(run)
        self.logger = logging.getLogger("gradchain.loop")
        self.train_loop = self._train_loop = TrainLoop(run)
        self.timestamp = time.strftime("%Y%m%d_%H%M%S")

    @property
    def iter(self) -> int:
        """The index of the batch in the run."""
        return self._run.iter

    @property
    def epoch(self) -> int:
        """The index of the epoch; 0 in a run over updates or batches, which MMEngine takes for one epoch."""
        return self.train_loop.epoch

    @property
    def max_epochs(self) -> int:
        """How many epochs there are."""
        return self.train_loop.max_epochs

    @property
    def max_iters(self) -> int | None:
        """How many batches there are, as far as that is known."""
        return self._run.total

    @property
    def train_dataloader(self) -> Any:
        """The loader of the loop."""
        return self._run._feed.loader

    @property
    def val_dataloader(self) -> Any:
        """What the validation goes through by `run.over`."""
        return self._run._validation.batches

    @property
    def model(self) -> Any:
        """The module that is bound, the first of several."""
        return next(module for u in self._run._each.values() for _, module in u._bound.target.roots)

    @property
    def optim_wrapper(self) -> OptimWrapper:
        """`get_lr()` and `param_groups`, of the first updater."""
        return OptimWrapper(self._run)

    @property
    def work_dir(self) -> str:
        """Where checkpoints lie, or the current folder."""
        keeper = self._run._keeper
        return "." if keeper is None else str(keeper.folder.path)

    @property
    def rank(self) -> int:
        """Which process this is."""
        return self._run.rank

    def call_hook(self, fn_name: str, **given: Any) -> None:
        """Call the hooks of a moment."""
        self._run.call(fn_name, **given)

    def __getattr__(self, name: str) -> Any:
        known = [n for n in (*dir(type(self)), *vars(self)) if n[0] != "_"]
        raise AttributeError(
            f"loop: runner has no {name!r}: it stands in for MMEngine's Runner, and has {', '.join(sorted(known))}."
        )

    def hook(self, given: Any, priority: int | None) -> Hook:
        """What an object with methods called as moments is to the loop."""
        for kind in type(given).__mro__:
            if kind.__name__ in NOT_HERE and kind.__module__.startswith("mmengine.hooks"):
                raise TypeError(f"loop: {kind.__name__} is not here, because {NOT_HERE[kind.__name__]}.")
        chosen = priority_of(getattr(given, "priority", "NORMAL")) if priority is None else priority
        methods = {moment: getattr(given, moment, None) for moment in MOMENTS}
        return Hook(
            type(given).__name__, chosen, {name: self._calling(m) for name, m in methods.items() if callable(m)}
        )

    def _calling(self, method: Any) -> Callable[[Mapping[str, Any]], object]:
        """A method of a hook, given what it takes."""
        parameters = inspect.signature(method).parameters
        everything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        return lambda given: method(self, **{n: v for n, v in given.items() if everything or n in parameters})


class TrainLoop:
    """What hooks find in `runner.train_loop`."""

    def __init__(self, run: loop[Any]) -> None:
        self._run = run

    @property
    def dataloader(self) -> Any:
        """The loader of the loop."""
        return self._run._feed.loader

    @property
    def iter(self) -> int:
        """The index of the batch in the run."""
        return self._run.iter

    @property
    def max_iters(self) -> int | None:
        """How many batches there are, as far as that is known."""
        return self._run.total

    @property
    def epoch(self) -> int:
        """The index of the epoch, 0 in a run over updates or batches."""
        return self._run.epoch if self._run._by_epoch else 0

    @property
    def max_epochs(self) -> int:
        """How many epochs there are."""
        return self._run._limit if self._run._by_epoch else 1

    @property
    def stop_training(self) -> bool:
        """Whether the run is to end: behind this batch, or behind this epoch in a run over epochs."""
        return bool(self._run._stopping)

    @stop_training.setter
    def stop_training(self, wanted: bool) -> None:
        self._run._stopping = ("epoch" if self._run._by_epoch else "now") if wanted else ""


class OptimWrapper:
    """What hooks find in `runner.optim_wrapper`."""

    def __init__(self, run: loop[Any]) -> None:
        self._updater = next(iter(run._each.values()))

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
        return [ParamGroup(self._updater)]


class ParamGroup:
    """What hooks find in `param_groups`: the hyperparameters of an updater by name; "lr" is the learning rate.

    Setting one is `updater.override`: it holds in place of the chain's number or schedule from now on.
    """

    def __init__(self, updater: Updater) -> None:
        self._updater = updater

    def __getitem__(self, name: str) -> Any:
        values = self._updater.hyperparams()
        return values[find("learning_rate" if name == "lr" else name, values, "param_groups")]

    def __setitem__(self, name: str, value: Any) -> None:
        self._updater.override("learning_rate" if name == "lr" else name, value)


class Values:
    """The values that were given under a name."""

    def __init__(self) -> None:
        self._values: list[float] = []

    def add(self, value: Any) -> None:
        """One more."""
        self._values.append(float(value))

    def current(self) -> float:
        """The last."""
        return self._values[-1]

    def mean(self, window_size: int | None = None) -> float:
        """The mean, of the last few or of all."""
        chosen = self._values[-(window_size or len(self._values)) :]
        return sum(chosen) / len(chosen)


class MessageHub:
    """What hooks find in `runner.message_hub`."""

    def __init__(self, run: loop[Any]) -> None:
        self._run = run
        self.log_scalars: dict[str, Values] = {}
        self.runtime_info: dict[str, Any] = {}

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
        return self.log_scalars[key]

    def update_info(self, key: str, value: Any, resumed: bool = True) -> None:
        """Keep a fact."""
        self.runtime_info[key] = value

    def update_info_dict(self, info_dict: Mapping[str, Any], resumed: bool = True) -> None:
        """Keep several."""
        self.runtime_info.update(info_dict)

    def get_info(self, key: str, default: Any = None) -> Any:
        """A fact that was kept."""
        return self.runtime_info.get(key, default)

    def pop_info(self, key: str, default: Any = None) -> Any:
        """The same, and keep it no more."""
        return self.runtime_info.pop(key, default)


class Visualizer:
    """What hooks find in `runner.visualizer`: numbers only."""

    def __init__(self, run: loop[Any]) -> None:
        self._run = run

    def add_scalar(self, name: str, value: Any, step: int = 0, **_: Any) -> None:
        """Log a number."""
        self._run._meter.add({name: value})

    def add_scalars(self, scalar_dict: Mapping[str, Any], step: int = 0, **_: Any) -> None:
        """Log several."""
        self._run._meter.add(scalar_dict)
