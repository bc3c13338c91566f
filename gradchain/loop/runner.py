"""A stand-in for MMEngine's Runner, for hook classes that were written for it. MMEngine need not be there."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gradchain.checkpoints import ranks
from gradchain.loop.moments import MOMENTS, Hook, priority_of
from gradchain.loop.runner_parts import MessageHub, OptimWrapper, StandIn, Visualizer

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

BY_FUNCTION = "validation is a function of the user's: gch.loop(validate=…)"
BY_SAVING = "the loop saves, and goes on from what it saved: gch.loop(checkpoint=…)"
LACKS = {
    "cfg": "there is no config: give the hook what it needs when it is made",
    "log_processor": "the loop logs: gch.loop(log=…, interval=…)",
    "param_schedulers": "learning rates are schedules in the chain; runner.optim_wrapper.param_groups sets them",
    **dict.fromkeys(
        ("test_dataloader", "test_evaluator", "test_loop", "val_evaluator", "val_loop", "_val_loop"), BY_FUNCTION
    ),
    **dict.fromkeys(("load_checkpoint", "load_or_resume", "resume", "save_checkpoint"), BY_SAVING),
}
"""What MMEngine's Runner has that is not here, and why."""


class Runner(StandIn):
    """What hooks of MMEngine's kind find in their `runner`, of a loop.

    Attributes:
        message_hub: numbers and facts by name, and what is logged by `update_scalar`.
        visualizer: `add_scalar` and `add_scalars`, which log.
        logger: Python's, "gradchain.loop".
        timestamp: when the run was made.
    """

    lacks = LACKS

    def __init__(self, run: loop[Any]) -> None:
        self._run = run
        self._used, self._notes = False, dict[str, Any]()  # by any hook; what they write into groups for themselves
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
    def max_iters(self) -> int:
        """How many batches there are. ValueError where nobody knows."""
        return self.train_loop.max_iters

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
    def log_dir(self) -> str:
        """The same."""
        return self.work_dir

    @property
    def rank(self) -> int:
        """Which process this is."""
        return self._run.rank

    @property
    def world_size(self) -> int:
        """How many processes there are."""
        return ranks.many()

    @property
    def distributed(self) -> bool:
        """Whether there are others."""
        return self.world_size > 1

    @property
    def _resume(self) -> bool:
        """Whether batches are behind from before, as hooks ask when a run begins."""
        return self.iter > 0

    def call_hook(self, fn_name: str, **given: Any) -> None:
        """Call the hooks of a moment."""
        self._run.call(fn_name, **given)

    def register_hook(self, hook: Any, priority: Any = None) -> None:
        """One more hook, from the next moment on."""
        self._run.add_hooks([hook if priority is None else (hook, priority)])

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.lacks:
            getattr(self, name)
        super().__setattr__(name, value)

    def hook(self, given: Any, priority: int | None) -> Hook:
        """What an object with methods called as moments is to the loop."""
        for kind in type(given).__mro__:
            if kind.__name__ in NOT_HERE and kind.__module__.startswith("mmengine.hooks"):
                raise TypeError(f"loop: {kind.__name__} is not here, because {NOT_HERE[kind.__name__]}.")
        self._used = True
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


class TrainLoop(StandIn):
    """What hooks find in `runner.train_loop`."""

    called, of = "runner.train_loop", "loops"

    def __init__(self, run: loop[Any]) -> None:
        self._run = run

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("_run", "dataloader", "stop_training"):
            raise AttributeError(
                f"loop: runner.train_loop.{name} cannot be set: of it dataloader and stop_training can, and gch.loop(…) "
                "has the rest."
            )
        super().__setattr__(name, value)

    @property
    def dataloader(self) -> Any:
        """The loader of the loop. Another one may be put in its place before an epoch begins."""
        return self._run._feed.loader

    @dataloader.setter
    def dataloader(self, loader: Any) -> None:
        if self._run._reading:
            raise ValueError(
                "loop: runner.train_loop.dataloader must be set before an epoch begins, as at before_train_epoch, got "
                "another in the middle of one."
            )
        self._run._feed.exchange(loader)

    @property
    def iter(self) -> int:
        """The index of the batch in the run."""
        return self._run.iter

    @property
    def max_iters(self) -> int:
        """How many batches there are. ValueError where nobody knows."""
        if self._run.total is None:
            raise ValueError(
                "loop: runner.max_iters must be known to be read, and updates are counted or the loader has no length. "
                "Give gch.loop iters=, or take the hook out."
            )
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
        self._run._stopping = "as MMEngine" if wanted else ""
