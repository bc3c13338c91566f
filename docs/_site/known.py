"""What the code knows of every link and alias: found by running it, never typed.

Each is made with its defaults, or as `SHOWN` says where it has none, run for one update on a matrix, and asked what it
says of itself. The trajectories are made here too.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any
from unittest import mock

import docstrings
import drawings
import torch

import gradchain as gch
from gradchain.core.eager import EagerTensors
from gradchain.core.transform import Transform, registry
from gradchain.engine.executors.blocks import Blocks
from gradchain.engine.executors.compiled import Compiled
from gradchain.engine.executors.foreach import Foreach
from gradchain.engine.executors.native import Native
from gradchain.engine.executors.triton import Triton
from gradchain.updater.explanation import state_sizes

STEPS = 40
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
SIDE = 256  # the matrix on which bytes are counted has as many rows and columns
Maker = Callable[[Any], Transform]


def _halved(g: torch.Tensor) -> torch.Tensor:
    return 0.5 * g


def size(updates: gch.Tensors) -> Any:
    """What `snapshot` looks at in its picture."""
    return updates.norm()


def _first_negative(w: torch.Tensor) -> torch.Tensor:
    return w.clamp(max=-0.3)


# Links that need an argument to be made: rate → the chain that the picture is of. All others are made as their class
# is by default, with a learning rate where they have none.
SHOWN: dict[str, Maker] = {
    "accumulate": lambda r: gch.chain(gch.accumulate(4), gch.sgd(r)),
    "adaptive_grad_clip": lambda r: gch.chain(gch.rules.adaptive_grad_clip(0.5), gch.sgd(r)),
    "add_decayed_weights": lambda r: gch.chain(gch.add_decayed_weights(1.0), gch.sgd(r)),
    "add_noise": lambda r: gch.chain(gch.add_noise(4.0, 0.55, 0), gch.sgd(r)),
    "average_params": lambda r: gch.chain(gch.sgd(r), gch.average_params(0.9)),
    "amp_scale": lambda r: gch.chain(gch.amp_scale(always=True), gch.sgd(r)),
    "cap_learning_rate": lambda r: gch.chain(gch.rules.cap_learning_rate(r), gch.sgd(r)),
    "cautious": lambda r: gch.chain(gch.rules.cautious(gch.trace(0.9)), gch.scale_by_learning_rate(r)),
    "chain": lambda r: gch.chain(gch.clip_by_norm(1.0), gch.trace(0.9), gch.scale_by_learning_rate(r)),
    "clip_by_block_rms": lambda r: gch.chain(gch.rules.clip_by_block_rms(1.0), gch.sgd(r)),
    "clip_by_norm": lambda r: gch.chain(gch.clip_by_norm(1.0), gch.sgd(r)),
    "clip_by_value": lambda r: gch.chain(gch.clip_by_value(1.0), gch.sgd(r)),
    "drop_radial": lambda r: gch.chain(gch.rules.drop_radial(gch.trace(0.9)), gch.scale_by_learning_rate(r)),
    "ema": lambda r: gch.chain(gch.rules.ema(0.9), gch.scale_by_learning_rate(r)),
    "freeze": lambda r: gch.chain(gch.freeze(gch.named("y"), until=20), gch.sgd(r)),
    "from_torch": lambda r: gch.chain(gch.from_torch("Adagrad", lr=r)),
    "hyperball": lambda r: gch.chain(gch.scale_by_adam(), gch.rules.hyperball(r)),
    "masked": lambda r: gch.chain(gch.masked(gch.scale(0.1), gch.named("x")), gch.sgd(r)),
    "msam": lambda r: gch.chain(gch.trace(0.9), gch.rules.msam(r)),
    "partition": lambda r: gch.chain(gch.partition((gch.named("x"), gch.lion(r)), (gch.rest, gch.sgd(r)))),
    "primal_averaging": lambda r: gch.chain(gch.scale_by_lion(), gch.rules.primal_averaging(r, mu_x=0.9)),
    "project": lambda r: gch.chain(gch.sgd(r), gch.project(_first_negative, gch.named("x"))),
    "qk_clip": lambda r: gch.chain(gch.sgd(r), gch.rules.qk_clip("logit", gch.everything, max_logit=1.0)),
    "reduce_on_plateau": lambda r: gch.chain(gch.reduce_on_plateau("loss", patience=3), gch.sgd(r)),
    "tick_on_plateau": lambda r: gch.chain(
        gch.rules.tick_on_plateau("loss", "plateau", patience=3),
        gch.sgd(gch.by("plateau", gch.schedules.exponential(1.0, 0.5)) * r),
    ),
    "scale": lambda r: gch.chain(gch.scale(0.5), gch.sgd(r)),
    "scale_by_asgd": lambda r: gch.chain(gch.rules.scale_by_asgd(r)),
    "scale_by_learning_rate": lambda r: gch.chain(gch.scale_by_learning_rate(r)),
    "scale_by_madgrad": lambda r: gch.chain(gch.rules.scale_by_madgrad(r)),
    "scale_by_rprop": lambda r: gch.chain(gch.rules.scale_by_rprop(0.01), gch.scale(-1.0)),
    "scale_by_schedule": lambda r: gch.chain(gch.scale_by_schedule(gch.linear(1.0, 0.0, STEPS)), gch.sgd(r)),
    "schedule_free": lambda r: gch.chain(gch.rules.schedule_free(r)),
    "shrink_by_learning_rate": lambda r: gch.chain(gch.rules.shrink_by_learning_rate(r)),
    "skip_large_updates": lambda r: gch.chain(gch.rules.skip_large_updates(400.0), gch.sgd(r)),
    "snapshot": lambda r: gch.chain(gch.rules.snapshot("size", size), gch.sgd(r)),
    "stateless": lambda r: gch.chain(gch.stateless(lambda g, w: g.map(_halved)), gch.sgd(r)),
    "step_proximally": lambda r: gch.chain(gch.rules.step_proximally(r, 1.0)),
    "switch": lambda r: gch.chain(gch.switch(gch.lion(0.1), gch.sgd(r), at=15)),
    "trace": lambda r: gch.chain(gch.trace(0.9), gch.scale_by_learning_rate(r)),
    "when": lambda r: gch.chain(gch.when(lambda step: step < 10, gch.clip_by_norm(1.0)), gch.sgd(r)),
    "normalize": lambda r: gch.chain(gch.rules.normalize(), gch.sgd(r)),
    "rprop": lambda r: gch.rules.rprop(),
    "monitor": lambda r: gch.chain(gch.rules.monitor({"size": size}), gch.sgd(r)),
}  # fmt: skip
# What the data does to it, where a smooth valley would not show what it is for.
DATA = {
    "guard": "nonfinite", "skip_nonfinite": "nonfinite", "nan_to_num": "nonfinite", "amp_scale": "nonfinite",
    "skip_spikes": "spikes", "skip_large_updates": "spikes", "clip_by_ema_norm": "spikes", "clip_by_zscore": "spikes",
    "accumulate": "noise", "average_params": "noise", "average_each": "noise", "lookahead": "noise",
}  # fmt: skip
SAID = {
    "nonfinite": "The gradient is not finite at updates 5 and 12.",
    "spikes": "The gradient is 40 times as large at updates 15 and 25.",
    "noise": "Gradients have noise.",
}
APART = {"freeze", "masked", "partition", "project"}  # drawn with two parameters, x and y, in place of one matrix


def links() -> list[str]:
    """Every public link, by name."""
    return sorted(n for n in gch.rules.__all__ if isinstance(getattr(gch.rules, n), type) and n in registry)


def aliases() -> list[str]:
    """Every function that returns a chain."""
    found = (n for n in gch.rules.__all__ if inspect.isfunction(getattr(gch.rules, n)))
    return sorted(n for n in found if _returns_a_link(getattr(gch.rules, n)))


def _returns_a_link(function: Any) -> bool:
    return inspect.signature(function).return_annotation in ("chain", "Transform")


@contextmanager
def by_blocks() -> Iterator[None]:
    """Steps run by an executor that compiles nothing."""
    with mock.patch.dict(os.environ, {"GRADCHAIN_EXECUTORS": "blocks"}):
        yield


@dataclass(frozen=True)
class Rule:
    """A link or an alias, by its name."""

    name: str

    @cached_property
    def thing(self) -> Any:
        """The class or function."""
        return getattr(gch.rules, self.name)

    @cached_property
    def doc(self) -> docstrings.Docstring:
        """Its docstring."""
        return docstrings.read(self.thing)

    @property
    def is_link(self) -> bool:
        """Whether it is a link, and not an alias."""
        return isinstance(self.thing, type)

    @cached_property
    def spelled(self) -> str:
        """As users write it."""
        return f"gch.{self.name}" if self.name in gch.__all__ else f"gch.rules.{self.name}"

    def chain(self, rate: Any) -> Transform:
        """A chain that moves weights at this rate, with the link in it."""
        made = SHOWN.get(self.name)
        if made is not None:
            return made(rate)
        if not self.is_link:
            given = {"learning_rate": rate, "head": None}  # no parameter of a picture is a head
            return self.thing(**{n: given[n] for n in inspect.signature(self.thing).parameters if n in given})
        link = self.thing()
        if link.role in ("weights", "average"):
            return gch.chain(gch.sgd(rate), link)
        own = link.descends and link.role != "unscale"
        return gch.chain(link) if own else gch.chain(link, gch.scale_by_learning_rate(rate))

    @cached_property
    def link(self) -> Transform:
        """The link by itself, or the alias' chain."""
        found = next((x for x in walk(self.chain(0.1)) if type(x).__name__ == self.name), None)
        return found if found is not None and self.is_link else self.chain(0.1)

    def _model(self, side: int) -> torch.nn.Module:
        """A square matrix; two, x and y, for what chooses among parameters."""
        names = "xy" if self.name in APART else "w"
        return torch.nn.ParameterDict({n: torch.nn.Parameter(torch.ones(side, side) + torch.eye(side)) for n in names})

    @cached_property
    def state_bytes(self) -> float:
        """Bytes that it remembers of each element of a square matrix in float32, before the first update."""
        model = self._model(SIDE)
        with by_blocks():
            bound = self.chain(0.1).bind(model)._bound
        own = {a: size for a, size in state_sizes(bound.chain, bound.state) if not self.is_link or self.name in a}
        return sum(own.values()) / sum(w.numel() for w in model.parameters())

    @cached_property
    def only_matrices(self) -> bool:
        """Whether it, or a link in it, is for matrices alone, and leaves others as they are."""
        return any(_leaves_vectors(link) for link in walk(self.link))

    @cached_property
    def _run(self) -> tuple[bool, bool, dict[str, str], str]:
        """One update on a matrix: whether whole tensors and the closure were asked for; who can run it, or why not."""
        model = self._model(8)
        whole, again = [], []
        real = {name: getattr(EagerTensors, name) for name in ("map", "map_where")}

        def spy(name: str) -> Any:
            def called(tensors: Any, *args: Any, **given: Any) -> Any:
                whole.append(name)
                return real[name](tensors, *args, **given)

            return called

        def loss() -> torch.Tensor:
            again.append(1)
            return sum(w.square().sum() for w in model.values())

        with by_blocks():
            updater = self.chain(0.1).bind(model)
            with mock.patch.multiple(EagerTensors, **{name: spy(name) for name in real}):
                updater.update(loss)
        engine = updater._bound.engine
        refused = {
            executor.name: next((r for p in engine.ran if (r := executor.legal(p.program, p.dtypes))), "")
            for executor in _executors()
        }
        return bool(whole) or bool(engine.ran_maps), len(again) > 1, refused, engine.reason or ""

    @property
    def whole_tensors(self) -> bool:
        """Whether it calls a function of whole tensors."""
        return self._run[0]

    @property
    def closure(self) -> bool:
        """Whether it evaluates the loss again, so that `update` needs a closure."""
        return self._run[1]

    @property
    def executors(self) -> dict[str, str]:
        """Executor → why it cannot run it, or ""; none where the reference runs it."""
        return {} if self._run[3] else self._run[2]

    @property
    def by_the_reference(self) -> str:
        """Why no kernels ran it, or ""."""
        return self._run[3]

    @property
    def in_backward(self) -> bool:
        """Whether it may update each parameter during backward."""
        return all(link.per_parameter for link in walk(self.link))

    @property
    def rows(self) -> bool:
        """Whether it takes sparse gradients."""
        return not any(link.refuses_rows for link in walk(self.link))

    @property
    def holds(self) -> bool:
        """Whether it may hold the chain, so that an update is not applied."""
        return any(link.holds for link in walk(self.link))

    @cached_property
    def year(self) -> str:
        """The year of the first paper."""
        return next((year for _, year, _ in self.doc.papers if year), "")

    @cached_property
    def family(self) -> str:
        """What it is to its neighbours, in a word or two."""
        if not self.is_link:
            return "recipe"
        if isinstance(self.link, (gch.Wraps, gch.chain)) or self.name == "partition":
            return "around links"
        if isinstance(self.link, (gch.Gate, gch.KeepsWindow)):
            return "holds the chain"
        words = {"normalise": "rule", "optimizer": "rule", "weights": "owns the weights", "learning_rate": "rate"}
        return words.get(self.link.role, self.link.role) or ("rule" if self.doc.papers else "gradient")

    @cached_property
    def drawn(self) -> tuple[str, str]:
        """Its trajectory as SVG, and what the picture shows."""
        return _drawn(self)


def _leaves_vectors(link: Transform) -> bool:
    """Whether updates of a vector come out as they went in, and those of a matrix do not."""
    if isinstance(link, (gch.Wraps, gch.chain)) or list(link.parts(None)):
        return False  # its parts are asked
    return _changes(link, 8, 8) and not _changes(link, 64)


def _changes(link: Transform, *shape: int) -> bool:
    """Whether a link does anything to one of three gradients of this shape."""
    draws = torch.Generator().manual_seed(0)
    params = gch.Tensors.of({"w": torch.randn(shape, generator=draws)})
    try:
        state = link.init(params)
        for step in range(3):
            g = gch.Tensors.of({"w": torch.randn(shape, generator=draws)})
            u, state = link.update(g, state, gch.Context(params, step=step))
            if not isinstance(u, gch.Tensors) or "w" not in u or not torch.equal(u["w"], g["w"]):
                return True
    except (LookupError, RuntimeError, ValueError):  # it asks for what an updater alone has, or for other names
        return True
    return False


@cache
def _executors() -> tuple[Any, ...]:
    cpu = torch.device("cpu")
    return Native(), Blocks(), Foreach(cpu), Compiled(cpu), Triton(torch.device("cuda"))


def walk(link: Transform) -> Iterator[Transform]:
    """A link and all that it holds."""
    yield link
    for _, inner, _ in link.parts(None):
        yield from walk(inner)


@cache
def rule(name: str) -> Rule:
    """The rule of this name; what was found of it is kept."""
    return Rule(name)


# trajectories


class Plane(torch.nn.Module):
    """Two weights, in one matrix of 1 × 2 or as parameters x and y, and the valley that they go down."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        start = torch.tensor([drawings.START], dtype=torch.float64)
        if apart:
            self.x, self.y = (torch.nn.Parameter(start[:, i : i + 1].clone()) for i in (0, 1))
        else:
            self.w = torch.nn.Parameter(start)
        turn = torch.tensor(drawings.ANGLE, dtype=torch.float64)
        axes = torch.stack([torch.stack([turn.cos(), turn.sin()]), torch.stack([-turn.sin(), turn.cos()])])
        self.curvature = axes.mT @ torch.diag(torch.tensor(drawings.CURVATURES, dtype=torch.float64)) @ axes

    def weights(self) -> torch.Tensor:
        """Both, as one row."""
        return self.w if hasattr(self, "w") else torch.cat([self.x, self.y], 1)

    def height(self) -> torch.Tensor:
        """The height of the valley."""
        w = self.weights()
        return 0.5 * (w @ self.curvature * w).sum()

    def gradients(self, factor: float, noise: torch.Tensor) -> dict[str, torch.Tensor]:
        """The valley's gradient by name, times a factor, and noise."""
        g = factor * (self.weights().detach() @ self.curvature) + noise
        return {"w": g} if hasattr(self, "w") else {"x": g[:, :1], "y": g[:, 1:]}

    def point(self) -> drawings.Point:
        """Where it is."""
        x, y = self.weights().detach().flatten().tolist()
        return x, y


@dataclass(frozen=True)
class Way:
    """The points that a chain came through, those of its average, and the height at the end."""

    points: list[drawings.Point]
    mean: list[drawings.Point]
    end: float


def walked(tx: Transform, data: str = "", apart: bool = False, closure: bool = False) -> Way:
    """The way of a chain down the valley; one that evaluates again is given the valley as a closure."""
    plane = Plane(apart)
    noise = torch.randn(STEPS, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise *= 6.0 if data == "noise" else 0.0
    updater = tx.bind(plane)
    points, mean = [plane.point()], []
    averages = _averages(updater)
    watched = {"loss": lambda: plane.height().item(), "logit": lambda: 4.0 * abs(plane.point()[0])}
    watched = {name: look for name, look in watched.items() if any(name in x.observes for x in walk(tx))}
    for step in range(STEPS):
        for name, look in watched.items():
            updater.observe(name, look())
        if closure:
            updater.update(plane.height)
        else:
            updater.step(plane.gradients(_factor(data, step), noise[step]))
        points.append(plane.point())
        if averages:
            with updater.averaged():
                mean.append(plane.point())
    return Way(points, mean, plane.height().item())


def _factor(data: str, step: int) -> float:
    """What the data multiplies this gradient by."""
    if data == "nonfinite":
        return math.nan if step in (5, 12) else 1.0
    return 40.0 if data == "spikes" and step in (15, 25) else 1.0


def _averages(updater: gch.Updater) -> bool:
    try:
        return bool(updater.averages())
    except KeyError:
        return False


@cache
def _descent(rate: float, steady: bool, data: str) -> Way:
    """The way of gradient descent."""
    return walked(gch.sgd(rate if steady else gch.cosine(rate, 0.0, STEPS)), data)


def _inside(way: Way) -> bool:
    """Whether it is a way down, and all of it in the picture."""
    return way.end < 3.0 and all(abs(x) < 3.2 and abs(y) < 1.6 for x, y in way.points)


def _drawn(found: Rule) -> tuple[str, str]:
    """The picture at the rate of RATES that ends lowest, of those whose way stays in sight."""
    data, apart = DATA.get(found.name, ""), found.name in APART
    steady = found.link.role == "weights" or data == "noise"

    plain = found.is_link and found.link.role != "normalise" and not found.link.descends

    def schedule(rate: float) -> Any:
        return rate if steady else gch.cosine(rate, 0.0, STEPS)

    best: tuple[tuple[bool, float], float, Transform, Way, Way | None] | None = None
    with by_blocks():
        for rate in RATES:
            tx = found.chain(schedule(rate))
            try:
                way = walked(tx, data, apart, found.closure)
            except FloatingPointError:  # it diverged
                continue
            beside = _descent(rate, steady, "" if data == "nonfinite" else data) if plain else None
            rank = _inside(way) and (beside is None or bool(data) or _inside(beside)), -way.end
            if best is None or rank > best[0]:
                best = rank, rate, tx, way, beside
        assert best is not None
        _, rate, tx, way, beside = best
    made = " ".join(repr(tx).split())
    shown = found.is_link or len(made) < 120  # the page of a recipe has its chain above
    says = [f"{STEPS} updates of `{made}`." if shown else f"{STEPS} updates at the rate `{schedule(rate)}`."]
    says += [SAID[data]] if data else []
    says += ["Thin: gradient descent at the same rate."] if beside else []
    says += ["Dashed: the average."] if way.mean else []
    title = f"the way of two weights down a valley by {found.name}"
    thin = beside.points if beside else []
    return drawings.trajectory(title, way.points, thin, way.mean), " ".join(says)
