"""The chains whose steps are broken off, and what their updaters show before, after and later."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from injected import Tally, Target, Tracer, targets, watched
from little import data, loss_of, net, same
from torch import nn

import gradchain as gch

# where a step is decided and written: every line of these, in several turns
WHOLE = (
    "commit.py", "walk.py", "bound.py", "journal.py", "in_backward.py", "evaluation.py", "averages.py", "native.py",
    "blocks.py", "patterns.py", "ticks.py", "foreach.py", "fused.py", "sparse.py", "native_rows.py",
)  # fmt: skip
MORE = 3  # micro-batches that go on afterwards


def _masked() -> gch.Transform:
    return gch.chain(
        gch.clip_by_norm(0.5),
        gch.scale_by_adam(b2=0.95),
        gch.masked(gch.add_decayed_weights(0.1), gch.min_ndim(2)),
        gch.scale_by_learning_rate(gch.linear(0.05, 0.01, 9)),
    )


def _partition() -> gch.Transform:
    return gch.partition((gch.bias, gch.lion(1e-2)), (gch.rest, gch.adamw(1e-2)))


def _averaged() -> gch.Transform:
    return gch.chain(gch.adam(0.1), gch.project(lambda w: w.clamp(-0.4, 0.4), gch.min_ndim(2)), gch.average_params(0.9))


def _model() -> nn.Module:
    return net(dtype=torch.float32)


def _lookup() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 4, sparse=True), nn.Tanh(), nn.Linear(4, 2))


@dataclass(frozen=True)
class Scene:
    """A chain and the step of it that is broken off.

    Attributes:
        name: the scene's.
        chain: makes the chain.
        warm: how many micro-batches come before it.
        how: "update", "closure" or "step": by whom the micro-batch is walked.
        overflow: whether its loss is infinite.
        lent: whether the user keeps the gradients.
        in_backward: how the chain is bound.
        sparse: whether the model looks rows up, whose gradient is sparse.
    """

    name: str
    chain: Callable[[], gch.Transform] = field(repr=False)
    warm: int = 3
    how: str = "update"
    overflow: bool = False
    lent: bool = False
    in_backward: bool = False
    sparse: bool = False

    def made(self, executors: str) -> tuple[nn.Module, gch.Updater]:
        """Model and updater, before the first step."""
        model = _lookup() if self.sparse else _model()
        updater = self.chain().bind(model, in_backward=self.in_backward)
        if executors == "reference":
            updater._bound.engine.executors = ()
        return model, updater

    def walk(self, model: nn.Module, updater: gch.Updater, i: int) -> None:
        """The i-th micro-batch."""
        rows = data(self.warm + 1 + MORE, dtype=torch.float32)[i]
        factor = torch.inf if self.overflow and i == self.warm else 1.0
        if self.how == "closure":
            updater.update(lambda: self._loss(model, rows) * factor)
        elif self.how == "step":
            updater.backward(self._loss(model, rows) * factor)
            updater.step()
        else:
            updater.update(self._loss(model, rows) * factor, keep_grads=self.lent)

    def _loss(self, model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
        ids = (rows[:, 0].abs() * 5).long().clamp(max=6)
        return (model(ids) - rows[:, :2].sin()).square().mean() if self.sparse else loss_of(model, rows)

    def at(self, executors: str, i: int) -> tuple[nn.Module, gch.Updater]:
        """Model and updater before the i-th micro-batch."""
        model, updater = self.made(executors)
        for k in range(i):
            self.walk(model, updater, k)
        return model, updater


SCENES = [
    Scene("masked", _masked),
    Scene("masked, first step", _masked, warm=0),
    Scene("masked, gradients kept", _masked, lent=True),
    Scene("masked, by step", _masked, how="step"),
    Scene("partition", _partition),
    Scene("window in .grad opens", lambda: gch.chain(gch.accumulate(2), gch.adam(0.1)), warm=4),
    Scene("window in .grad closes", lambda: gch.chain(gch.accumulate(2), gch.adam(0.1)), warm=5),
    Scene("window in a buffer opens", lambda: gch.chain(gch.accumulate(2, dtype=torch.float64), gch.adam(0.1)), warm=4),
    Scene("window in a buffer", lambda: gch.chain(gch.accumulate(3, dtype=torch.float64), gch.adam(0.1)), warm=7),
    Scene("window in a buffer closes", lambda: gch.chain(gch.accumulate(2, dtype=torch.float64), gch.sgd(0.1)), warm=5),
    Scene(
        "amp held",
        lambda: gch.chain(gch.amp_scale(1024.0, growth_interval=3, always=True), gch.adam(0.1)),
        overflow=True,
    ),
    Scene("amp applied", lambda: gch.chain(gch.amp_scale(1024.0, growth_interval=3, always=True), gch.adam(0.1))),
    Scene("sam", lambda: gch.chain(gch.sam(0.05), gch.sgd(0.1, momentum=0.9)), how="closure"),
    Scene("from_torch", lambda: gch.chain(gch.from_torch("torch.optim.RMSprop", lr=0.01))),
    Scene("average and project", _averaged),
    Scene("rows", lambda: gch.chain(gch.clip_by_norm(0.5), gch.adam(0.1)), sparse=True),
    Scene("rows, first step", lambda: gch.adam(0.1), warm=0, sparse=True),
    Scene("rows, a window closes", lambda: gch.chain(gch.accumulate(2), gch.adam(0.1)), warm=5, sparse=True),
]
BY_NAME = {scene.name: scene for scene in SCENES}


def shown(model: nn.Module, updater: gch.Updater) -> Any:
    """All that the updater shows; it is asked first, so that what waits is finished."""
    state = updater.state_dict()
    counts = (updater.num_updates, updater.num_micro, updater.num_skipped)
    return copy.deepcopy([state, counts, dict(updater.metrics), dict(model.state_dict())])


@dataclass
class Twins:
    """What a scene shows at each side of its step, and where it comes to from there, without an exception."""

    before: Any
    dropped: Any  # before it, without the open window
    after: Any
    end: Any
    end_dropped: Any

    @classmethod
    def of(cls, scene: Scene, executors: str) -> Twins:
        """By walking it twice."""
        model, updater = scene.at(executors, scene.warm)
        before = shown(model, updater)
        scene.walk(model, updater, scene.warm)
        after = shown(model, updater)
        end = _went_on(scene, model, updater, scene.warm + 1)
        model, updater = scene.at(executors, scene.warm)
        updater.zero_grad()
        dropped = shown(model, updater)
        return cls(before, dropped, after, end, _went_on(scene, model, updater, scene.warm))

    def side(self, found: Any) -> str:
        """Which of them this is: before, dropped, after or mixed."""
        known = (("after", self.after), ("before", self.before), ("dropped", self.dropped))
        return next((name for name, one in known if same(found, one)), "mixed")


def _went_on(scene: Scene, model: nn.Module, updater: gch.Updater, start: int) -> Any:
    for i in range(start, scene.warm + 1 + MORE):
        scene.walk(model, updater, i)
    return shown(model, updater)


@contextmanager
def run_by(executors: str) -> Iterator[None]:
    """Updaters made inside run by these executors; "reference" is for `Scene.made`."""
    before = os.environ.pop("GRADCHAIN_EXECUTORS", None)
    if executors not in ("native", "reference"):
        os.environ["GRADCHAIN_EXECUTORS"] = executors
    try:
        yield
    finally:
        os.environ.pop("GRADCHAIN_EXECUTORS", None)
        if before is not None:
            os.environ["GRADCHAIN_EXECUTORS"] = before


def in_turn(i: int, target: Target, every: int, whole: int) -> bool:
    """Whether the i-th target is tried: one in `whole` of the files in WHOLE, one in `every` of the others."""
    return i % (whole if target.place[0].rpartition("/")[2] in WHOLE else every) == 0


def injections(
    scene: Scene,
    executors: str,
    every: int = 1,
    offset: int = 0,
    error: type[BaseException] = KeyboardInterrupt,
    whole: int = 1,
) -> Tally:
    """Break the scene's step off at one line in `whole` of the files in WHOLE, and at one in `every` of the others."""
    tally = Tally()
    with run_by(executors):
        twins = Twins.of(scene, executors)
        walked: list[Any] = []
        for _ in range(2):  # what is made but once per process is made by now
            model, updater = scene.at(executors, scene.warm)
            walked = watched(lambda m=model, u=updater: scene.walk(m, u, scene.warm))
        tally.saw(walked)
        for i, target in enumerate(targets(walked, WHOLE)):
            if in_turn(i + offset, target, every, whole):
                _inject(scene, executors, twins, target, error, tally)
    return tally


def _inject(
    scene: Scene, executors: str, twins: Twins, target: Target, error: type[BaseException], tally: Tally
) -> None:
    """One exception: the side it leaves, the modes, the warning, and how training goes on."""
    model, updater = scene.at(executors, scene.warm)
    where = f"{scene.name} by {executors}, {target.place[0]}:{target.place[1]} (turn {target.turn})"
    raised = False
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with Tracer(target, error) as tracer:
            try:
                scene.walk(model, updater, scene.warm)
            except BaseException as caught:
                raised = True
                if type(caught) is not error:
                    tally.faults.append(f"{where}: {type(caught).__name__} came out: {caught}")
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            tally.faults.append(f"{where}: the gradient mode is another")
            torch.set_grad_enabled(True)
        side = _side(scene, model, updater, twins)
    if tracer.hit:
        tally.took(target)
    tally.sides[side] += 1
    if side == "mixed" or (not raised and side != "after"):
        tally.faults.append(f"{where}: {side}, the exception {'came out' if raised else 'was swallowed'}")
        return
    if side == "dropped" and not any("open window" in str(w.message) for w in told):
        tally.faults.append(f"{where}: the window was dropped without a word")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        end = _went_on(scene, model, updater, scene.warm + (side == "after"))
    if not same(end, twins.end_dropped if side == "dropped" else twins.end):
        tally.faults.append(f"{where}: {side}, and it went on otherwise")


def _side(scene: Scene, model: nn.Module, updater: gch.Updater, twins: Twins) -> str:
    """The side; for a step apart from its backward that is before its step, once its gradient is dropped."""
    try:
        return twins.side(shown(model, updater))
    except RuntimeError as waiting:
        if scene.how != "step" or "a backward is waiting" not in str(waiting):
            return "mixed"
    updater.zero_grad()
    return twins.side(shown(model, updater))
