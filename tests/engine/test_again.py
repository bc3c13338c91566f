"""Every argument of every link and alias, however it is given, over steps that differ: a step that is run again from
its numbers is the step that its links would have made.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import CASES
from pairs import Pair
from test_equal import GRADIENTS
from torch import nn
from twins import Shapes, distance

import gradchain as gch
from gradchain import optimizers
from gradchain.core.hyper import Hyper
from gradchain.core.transform import registry, walk
from gradchain.engine import replay

pytestmark = [
    pytest.mark.filterwarnings("ignore:chain. scale_by_.* divides out the scale"),
    pytest.mark.filterwarnings("ignore:bind. "),
    pytest.mark.filterwarnings("ignore:update failed. the open window"),
]
HEAD, BODY = gch.named("head.*"), gch.named("body.*")
INF = math.inf
LINKS = {name: cls for name, cls in registry.items() if cls.__module__.partition(".")[0] == "gradchain"}
ALIASES: dict[str, Callable[..., gch.Transform]] = {name: getattr(optimizers, name) for name in optimizers.__all__}

# run by a closure, or run code of the user's: these are recorded at each step
RECORDED = {"sam", "asam", "stateless", "project", "from_torch", "snapshot", "monitor"}


def doubled(g: gch.Tensors, params: gch.Tensors) -> gch.Tensors:
    return 2.0 * g


def norm_of(updates: gch.Tensors) -> float:
    return updates.norm()


def now_and_then(step: float) -> bool:
    return step % 4 != 1


def halved(w: torch.Tensor) -> torch.Tensor:
    return 0.5 * w


# What an argument that is no number, no bool and no dtype may be. Numbers, bools and dtypes are found by their types.
VALUES: dict[tuple[str, str], tuple[Any, ...]] = {
    ("add_noise", "seed"): (0, 2**65),
    ("accumulate", "reduce"): ("mean", "sum"),
    ("add_decayed_weights", "by"): ("learning_rate", "cautious"),
    ("add_decayed_weights", "peak"): (None, 0.5),
    ("average_params", "start"): (0, 1, 5),
    ("average_params", "every"): (1, 2, 5),
    ("average_params", "buffers"): ("keep", "copy", "average"),
    ("average_params", "decay"): ("mean",),
    ("average_params", "on"): (None, "ema"),
    ("cautious", "inner"): (gch.scale_by_adam(b2=0.9), gch.trace(0.9)),
    ("chain", "links"): ((("front", gch.clip_by_norm(2.0)), gch.scale(0.5)), (gch.trace(0.9), gch.clip_by_norm(0.5))),
    ("clip_by_norm", "p"): (0.5, 1, 1.5, 2.0, 3, INF),
    ("clip_by_norm", "per"): ("all", "tensor", [HEAD, BODY], [gch.named("body.bias"), gch.min_ndim(2)]),
    ("freeze", "selector"): (HEAD,),
    ("clip_by_zscore", "to"): ("reciprocal", "bound", "mean"),
    ("freeze", "until"): (None, 0, 4),
    ("freeze", "start"): (0, 2, 5),
    ("skip_spikes", "of"): ("norm", "loss"),
    ("skip_nonfinite", "of"): ("updates", "all"),
    ("guard", "skip"): (False, True),
    ("guard", "last_good"): (None, "run.pt"),
    ("snapshot", "name"): ("size", "a norm"),
    ("snapshot", "measure"): (norm_of,),
    ("switch", "first"): (gch.trace(0.9), gch.chain(gch.clip_by_norm(0.5), gch.scale_by_adam(b2=0.9))),
    ("switch", "second"): (gch.scale_by_adam(b2=0.9), gch.scale_by_lion()),
    ("switch", "begins"): (0, 1, 8, 100),
    ("when", "predicate"): (True, now_and_then),
    ("when", "inner"): (gch.scale_by_adam(b2=0.9), gch.clip_by_norm(0.5)),
    ("when", "otherwise"): ("pass", "zero"),
    ("from_torch", "optimizer"): ("SGD", "Adam"),
    ("from_torch", "arguments"): ({"lr": 0.1},),
    ("masked", "inner"): (gch.trace(0.9), gch.clip_by_norm(0.5), gch.clip_by_norm(0.5, per="tensor")),
    ("masked", "selector"): (HEAD,),
    ("nan_to_num", "posinf"): (None, 2.0),
    ("nan_to_num", "neginf"): (None, -2.0),
    ("partition", "branches"): (
        ((HEAD, gch.chain(gch.accumulate(2), gch.scale_by_adam())), (gch.rest, gch.trace(0.9))),
        ((HEAD, gch.clip_by_norm(0.5)), (gch.rest, gch.clip_by_norm(0.1, per="tensor"))),
        ((HEAD, gch.accumulate(3)), (gch.rest, gch.accumulate(2))),
    ),
    ("project", "fn"): (halved,),
    ("project", "selector"): (HEAD,),
    ("reduce_on_plateau", "observed"): ("val_loss", "another"),
    ("reduce_on_plateau", "threshold_mode"): ("rel", "abs", "magnitude"),
    ("reduce_on_plateau", "mode"): ("min", "max"),
    ("tick_on_plateau", "observed"): ("val_loss", "another"),
    ("tick_on_plateau", "clock"): ("plateau",),
    ("tick_on_plateau", "threshold_mode"): ("rel", "abs", "magnitude"),
    ("tick_on_plateau", "mode"): ("min", "max"),
    ("scale_by_lion", "mode"): ("hard", "smooth", "refined"),
    ("stateless", "fn"): (doubled,),
}
VALUES |= {
    ("adaptive_grad_clip", "axis"): (None,),
    ("asgd", "t0"): (1, 3),
    ("drop_radial", "inner"): (gch.trace(0.9),),
    ("grokfast_ma", "window_size"): (1, 3),
    ("hyperball", "radius"): (None, 2.0),
    ("qk_clip", "observed"): ("logits",),
    ("qk_clip", "selector"): (HEAD,),
    ("scale_by_adam_mini", "blocks"): ((), [(HEAD, "row")]),
    ("scale_by_adam_mini", "rest"): ("tensor", "row"),
    ("scale_by_aggmo", "betas"): ((0.5,), (0.0, 0.9)),
    ("scale_by_amsgrad", "max_of"): ("nu", "nu_hat"),
    ("scale_by_factored_rms", "dims"): ("largest", "last"),
    ("scale_by_factored_rms", "min_dim_size_to_factor"): (0, 128),
    ("scale_by_factored_rms", "step_offset"): (0, 2),
    ("scale_by_lmo", "norm"): ("spectral", "sign", "rows"),
    ("scale_by_soap", "every"): (1, 3),
    ("scale_by_soap", "max_precondition_dim"): (2, 10_000),
    ("schedule_free", "rectify"): (None, 0.9),
}
for _name in ("scale_by_muon", "scale_by_normuon", "scale_by_adamuon", "scale_by_lmo"):
    VALUES |= {
        (_name, "ns_coefficients"): ("original", "quintic", (2.0, -1.5, 0.5)),
        (_name, "ns_eps"): (1e-7, 1e-3),
        (_name, "ns_steps"): (1, 5),
        (_name, "split"): ((), [(gch.named("body.weight"), 2)]),
    }
for _name in ("scale_by_muon", "scale_by_normuon", "scale_by_adamuon"):
    VALUES |= {(_name, "conv"): ("flatten", "batch"), (_name, "shape_factor"): (None, "original", "spectral")}
for _name, _alias in ALIASES.items():
    if "mask" in inspect.signature(_alias).parameters:
        VALUES[_name, "mask"] = (None, HEAD)


# which arguments there are


def base_of(subject: str) -> gch.Transform:
    """The first row for a subject in the table of cases."""
    return next(case.link for case in CASES if case.subject == subject)


def arguments(subject: str) -> Iterator[tuple[str, Any, Hyper | None]]:
    """Name, annotation, and the interval of a number."""
    if subject in LINKS:
        cls = LINKS[subject]
        hypers = {**cls.hypers, **base_of(subject).hypers}
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            yield field.name, field.type, hypers.get(field.name)
        for name in sorted(hypers.keys() - {f.name for f in dataclasses.fields(cls)}):  # type: ignore[arg-type]
            yield name, float, hypers[name]
        return
    for name, parameter in inspect.signature(ALIASES[subject]).parameters.items():
        yield name, parameter.annotation, hyper_in(subject, name)


def hyper_in(subject: str, argument: str) -> Hyper | None:
    """The hyperparameter that an alias hands an argument to."""
    found, link = link_of(subject, argument)
    return None if link is None else link.hypers[found]


def link_of(subject: str, argument: str) -> tuple[str, gch.Transform | None]:
    """What an alias calls an argument of one of its links, and that link."""
    found = {"momentum": "decay"}.get(argument, argument)
    tx = ALIASES[subject](0.1, **({} if argument in ("learning_rate", "mask") else given_to(subject, argument)))
    return found, next((link for _, link, _ in walk(tx, None) if found in link.hypers), None)


def read_once(subject: str, argument: str) -> bool:
    """Whether an argument is a number that `init` alone reads."""
    if subject in LINKS:
        return argument in base_of(subject).read_once
    found, link = link_of(subject, argument)
    return link is not None and found in link.read_once


def given_to(subject: str, argument: str) -> dict[str, Any]:
    numbers = {"momentum": {"momentum": 0.5}, "weight_decay": {"weight_decay": 0.1}}
    numbers["dampening"] = {"momentum": 0.5, "dampening": 0.1}
    return numbers.get(argument, {})


def numbers(hyper: Hyper, now: Any) -> tuple[float, float]:
    """Two numbers inside the interval, near what it is by default."""
    if hyper.interval.text.startswith("integer"):
        return 2, 3
    start = now if isinstance(now, (int, float)) and math.isfinite(now) and now else 0.5
    near = [v for v in (start, 0.8 * start, 1.25 * start, 0.3, 1.5, 5.0, 7.0) if hyper.interval.holds(v)]
    return near[0], near[1]


def ways(subject: str) -> Iterator[tuple[str, str, Any]]:
    """Argument, how it is given, and the value: for everything that an argument may be."""
    link = base_of(subject) if subject in LINKS else None
    uniform = link.uniform if link is not None else frozenset()
    for name, annotation, hyper in arguments(subject):
        for i, value in enumerate(VALUES.get((subject, name), ())):
            yield name, f"value {i}", value
        if hyper is not None:
            now = None if link is None else link.__dict__.get(name, hyper.default)
            now = hyper.default if callable(now) or isinstance(now, str) else now
            a, b = numbers(hyper, now)
            yield name, "constant", b
            if read_once(subject, name):
                continue
            yield name, "schedule", Alternating(a, b)
            yield name, "tensor", (a, b)
            if name not in uniform:
                whole = hyper.interval.text.startswith("integer")
                yield name, "per parameter", gch.choose((HEAD, a), rest=b) if whole else gch.multiply(b, (HEAD, 0.9))
                yield name, "schedule per parameter", gch.choose((HEAD, Alternating(a, b)), rest=a)
        elif "torch.dtype" in str(annotation):
            yield name, "float32", torch.float32
            yield name, "bfloat16", torch.bfloat16
        elif "bool" in str(annotation):
            yield name, "true", True
            yield name, "false", False


@dataclasses.dataclass(frozen=True)
class Alternating:
    """A schedule that comes back to what it was."""

    a: float
    b: float

    def __call__(self, step: float) -> float:
        return self.b if step % 3 == 1 else self.a


def made(subject: str, argument: str, value: Any) -> gch.Transform:
    """The chain: a link behind what moves weights, or before it."""
    if subject in ALIASES:
        first = {} if argument == "learning_rate" else {"learning_rate": 0.05}
        return gch.chain(ALIASES[subject](**first, **{argument: value}))
    link = base_of(subject)
    if subject == "from_torch":
        given = {"betas[0]": {"betas": (value, 0.9)}, "betas[1]": {"betas": (0.5, value)}, "arguments": value}
        given["optimizer"] = {}
        name = value if argument == "optimizer" else "AdamW"
        return gch.chain(gch.from_torch(name, **{"lr": 0.1, **given.get(argument, {argument: value})}))
    if subject == "chain":
        return gch.chain(*value, gch.scale_by_learning_rate(0.05))
    changes = {argument: value}
    if subject == "average_params" and argument in ("every", "start", "buffers"):
        changes.setdefault("start", 0)
    link = dataclasses.replace(link, **changes)  # type: ignore[type-var]
    if link.role == "learning_rate" or link.descends:  # it moves weights by itself
        return gch.chain(link) if link.descends else gch.chain(link, gch.scale(-1.0))
    rate = gch.scale_by_learning_rate(0.05)
    return gch.chain(rate, link) if link.role in ("weights", "average") else gch.chain(link, rate)


class Small(nn.Module):
    """Parameters of a few shapes, two of them under other names than the rest, and a buffer that moves."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.body, self.head = nn.Module(), nn.Module()
        for i, (owner, name, shape) in enumerate(
            [(self.body, "weight", (4, 3)), (self.body, "bias", (5,)), (self.head, "weight", (2, 3)),
             (self.head, "scale", ())]
        ):  # fmt: skip
            drawn = torch.randn(shape, generator=torch.Generator().manual_seed(i), dtype=dtype)
            owner.register_parameter(name, nn.Parameter(drawn))
        self.register_buffer("seen", torch.arange(3, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(0))


SIZES = (1.0, 3.0, 0.02, 1.0, 5.0, 0.1, 1.0, 1.0, 2.0, 0.01, 1.0, 0.5, 4.0, 1.0, 1.0, 0.3, 1.0, 2.0)


def taught(pair: Pair, between: Callable[[int], None] = lambda t: None, closure: bool = False) -> list[str]:
    """Steps that differ: gradients of all sizes, some missing, one that overflows; numbers observed now and then."""
    gated = any(link.holds in ("overflow", "nonfinite") for _, link, _ in walk(pair.again.chain, None))
    said = []
    for t, size in enumerate(SIZES):
        between(t)
        for model in pair.models:
            with torch.no_grad():
                if hasattr(model, "seen"):
                    model.seen += 1.0
        if t in (2, 3, 4, 9):
            pair.each(lambda _, u, t=t: u.observe("val_loss", 1.0 + 0.1 * t))
        size = INF if gated and t in (7, 8) else size
        absent = ("head.weight",) if t in (5, 11) else ()
        said.append(pair.step(t, size=size, absent=absent, loss=True, closure=closure))
    return said


ALL = [(subject, *way) for subject in sorted({**LINKS, **ALIASES}) for way in ways(subject)]


def in_turn(i: int, subject: str, how: str) -> bool:
    """Numbers are given in every second way in turn, and of rules of families every tenth is tried; all if LONG."""
    ours = subject in ALIASES or not LINKS[subject].__module__.startswith("gradchain.rules.")
    return LONG or i % 10 == 0 or (ours and (i % 2 == 0 or how not in OF_NUMBERS))


LONG = bool(os.environ.get("GRADCHAIN_LONG"))
OF_NUMBERS = ("constant", "schedule", "tensor", "per parameter", "schedule per parameter")
TRIED = [row for i, row in enumerate(ALL) if in_turn(i, row[0], row[2])]


@pytest.mark.parametrize(("subject", "argument", "how", "value"), TRIED, ids=[" ".join(row[:3]) for row in TRIED])
def test_every_argument_of_every_link(subject, argument, how, value):
    between: Callable[[int], None] = lambda t: None  # noqa: E731
    if how == "tensor":
        a, b = value
        value = torch.tensor(a, dtype=torch.float64)
        number, between = value, lambda t: number.fill_(b if t % 4 == 3 else a)
    pair = Pair(made(subject, argument, value), Small(), ("blocks",))
    said = taught(pair, between, closure=subject in ("sam", "asam"))
    assert "applied" in said
    if subject in RECORDED:
        assert pair.replayed == 0
    else:
        assert pair.replayed >= 3, pair.again.explain()


def test_no_argument_is_left_out():
    """A new link, or a new argument of one, has values in the table, or a type that says what it may be."""
    tried = {(subject, argument) for subject, argument, _, _ in ALL}
    there = {(subject, name) for subject in {**LINKS, **ALIASES} for name, _, _ in arguments(subject)}
    assert sorted(there - tried) == []
    assert sorted(set(VALUES) - there) == [], "no such argument"


# what the updater does between steps


def recipe(every=3, **given) -> gch.Transform:
    return gch.chain(gch.accumulate(every, **given), gch.clip_by_norm(0.5), gch.adamw(0.05), gch.average_params(0.9))


def scaling() -> gch.Transform:
    return gch.amp_scale(8.0, growth_interval=3, always=True)


class Coming:
    """An `every` that changes from window to window."""

    def __call__(self, step: float) -> int:
        return 1 + int(step) % 3


WINDOWS = {
    "constant": lambda: recipe(),
    "one": lambda: recipe(1),
    "scheduled": lambda: recipe(Coming()),
    "sum": lambda: recipe(2, reduce="sum"),
    "wide": lambda: recipe(2, dtype=torch.float32),
    "amp inside": lambda: gch.chain(gch.accumulate(2), scaling(), gch.adam(0.1)),
    "amp before": lambda: gch.chain(scaling(), gch.accumulate(2), gch.adam(0.1)),
    "gate inside": lambda: gch.chain(gch.accumulate(2), gch.skip_nonfinite(), gch.sgd(0.1)),
    "in branches": lambda: gch.partition(
        (HEAD, gch.chain(gch.accumulate(3), gch.adam(0.1))), (gch.rest, gch.chain(gch.accumulate(2), gch.sgd(0.1)))
    ),
    "beside": lambda: gch.partition((HEAD, gch.chain(gch.accumulate(2), gch.lion(0.01))), (gch.rest, gch.adam(0.1))),
}  # fmt: skip


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("executor", ["native", "blocks"])
def test_windows_run_again(name, executor):
    """Held micro-batches and updates are a few ways, whatever size the gradients have."""
    tx = WINDOWS[name]()
    pair = Pair(tx, Small(), (executor,))
    said = taught(pair)
    said += taught(pair)
    assert {"applied"} < set(said) or name in ("one", "beside")
    assert pair.replayed + pair.counted >= 3 * len(said) // 4, pair.again.explain()


@pytest.mark.parametrize("name", WINDOWS)
def test_what_happens_to_windows_between_steps(name, tmp_path):
    """Weights, an early end, a flush, a drop, a half-full window saved and loaded: the same as recorded each time."""
    if name == "scheduled":
        tx = recipe(gch.schedules.constant(3) if hasattr(gch.schedules, "constant") else 3)
    else:
        tx = WINDOWS[name]()
    pair = Pair(tx, Small(), ("blocks",))
    weighted = name in ("constant", "sum", "wide", "one")
    saved = {}
    for t, size in enumerate((*SIZES, *SIZES)):
        given = {"weight": 1.0 + t % 4} if weighted and t % 12 >= 6 else {}
        if t % 12 in (0, 6):
            pair.each(lambda _, u: bool(u.flush()))
        if t == 13:
            pair.each(lambda _, u: u.zero_grad())
        if t == 16:
            pair.each(lambda _, u: saved.update({id(u): u.state_dict()}))
        if t == 20:
            pair.each(lambda _, u: bool(u.load_state_dict(saved[id(u)])))
        pair.step(t, size=size, loss=True, last=t in (4, 9), **given)
    assert pair.replayed >= 4, pair.again.explain()


def test_dropping_a_window_that_is_not_open_forgets_nothing():
    pair = Pair(recipe(2), Small(), ("blocks",))
    for t in range(20):
        pair.step(t, loss=True)
        if t % 2:
            pair.each(lambda _, u: u.zero_grad())
    assert (pair.replayed, pair.counted) == (9, 10), pair.again.explain()


@pytest.mark.parametrize("dtype", [None, torch.float64])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_flushes_and_windows_of_any_weights_run_again(reduce, dtype):
    """A flush is a step of its own kind, and so is making room for a weight that is much larger than those before."""
    pair = Pair(recipe(3, reduce=reduce, dtype=dtype), Small(), ("blocks",))
    for t in range(24):
        pair.step(t, loss=True, weight=(1.0, 9.0, 2.0, 0.5)[t % 4])
        if t % 4 == 3:
            assert pair.each(lambda _, u: u.flush().reason) == ["applied"] * 2
    engine = pair.again._bound.engine
    assert engine.reason == "" and set(engine.not_replayed) == {"the first of their kind"}, engine.not_replayed
    if dtype is None:
        assert (pair.replayed, pair.counted) == (10, 18)  # a full window and a flush in each of six rounds
    else:
        assert pair.replayed == 30 - 4, engine.not_replayed  # opens, makes room, closes, is flushed


def test_overrides_run_again():
    """A changed set of overrides is another way; each way back is known."""
    pair = Pair(gch.chain(gch.clip_by_norm(1.0), gch.adamw(gch.linear(0.1, 0.01, 30))), Small(), ("blocks",))
    given = [
        ("learning_rate", {"value": 0.02}), ("learning_rate", {"factor": 0.5}), ("max_norm", {"value": 0.3}),
        ("b1", {"value": Alternating(0.5, 0.8)}), ("weight_decay", {"value": gch.multiply(0.1, (HEAD, 0.5))}),
    ]  # fmt: skip
    for i, (name, how) in enumerate(given):
        for t in range(6):
            pair.step(10 * i + t, size=SIZES[t])
        pair.each(lambda _, u, name=name, how=how: u.override(name, **how))
        for t in range(6):
            pair.step(10 * i + t, size=SIZES[t])
        if i % 2:
            pair.each(lambda _, u, name=name: u.override(name))
    assert pair.replayed >= 40, pair.again.explain()


@pytest.mark.parametrize("mode", ["rel", "abs", "magnitude"])
@pytest.mark.parametrize("every", [1, 5])
def test_plateaus_run_again(mode, every):
    """What is observed is a number like another; only what comes of it is another way."""
    link = gch.reduce_on_plateau("val_loss", factor=0.5, patience=1, cooldown=1, threshold_mode=mode, base=0.5)
    pair = Pair(gch.chain(gch.sgd(0.1, momentum=0.9), link), Small(), ("blocks",))
    for t in range(40):
        if t % every == 0:
            pair.each(lambda _, u, t=t: u.observe("val_loss", [3.0, 2.0, 2.5, 1.0, 1.5, 1.2, 1.1, 5.0][t // every % 8]))
        if t == 21:
            pair.each(lambda _, u: (u.observe("val_loss", 0.1), u.observe("val_loss", 0.05)))
        pair.step(t)
    assert pair.replayed >= 20, pair.again.explain()


def test_ticks_of_a_plateau_run_again():
    """What an observation changed between two updates stays, though the link's own code does not run."""
    momentum = gch.by("plateau", gch.schedules.exponential(0.9, 0.5))
    tx = gch.chain(gch.rules.tick_on_plateau("val_loss", "plateau", patience=1), gch.sgd(0.1, momentum=momentum))
    pair = Pair(tx, Small(), ("blocks",))
    for t in range(40):
        pair.each(lambda _, u, t=t: u.observe("val_loss", [3.0, 2.0, 2.5, 1.0, 1.5, 1.2, 1.1, 5.0][t % 8]))
        pair.step(t)
    assert pair.replayed >= 30, pair.again.explain()


def test_unequal_counts_run_again():
    tx = gch.chain(gch.freeze(HEAD, until=3), gch.adam(0.05), gch.average_params(0.9, start=5))
    pair = Pair(tx, Small(), ("blocks",))
    for t in range(16):
        pair.step(t, absent=("body.bias",) if t in (7, 12) else (), size=SIZES[t])
    assert pair.replayed >= 7, pair.again.explain()


def test_per_parameter_momentum_with_unequal_counts():
    tx = gch.chain(gch.freeze(HEAD, until=3), gch.adam(0.05, b1=gch.multiply(Alternating(0.5, 0.9), (HEAD, 0.5))))
    pair = Pair(tx, Small(), ("blocks",))
    for t in range(16):
        pair.step(t, size=SIZES[t])
    assert pair.replayed >= 8, pair.again.explain()


@pytest.mark.parametrize("p", [0.3, 0.5, 1, 1.5, 2, 3, 7.5, INF])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("place", ["first", "late"])
def test_norms_are_measured_each_time(p, dtype, place):
    """k·g for k = 1, 10, 100 has k times the norm, which torch's clip measures too; behind other links likewise."""
    clip = gch.clip_by_norm(1.0, p=p, eps=1e-6)
    links = [clip, gch.sgd(0.01)] if place == "first" else [gch.trace(0.5), clip, gch.sgd(0.01)]
    pair = Pair(gch.chain(*links), Small(dtype), ("blocks",))
    norms = []
    for k in (1.0, 10.0, 100.0, 1e-3, 1.0, 30.0):

        def do(model, updater, k=k):
            for i, q in enumerate(model.parameters()):
                q.grad = k * torch.randn(q.shape, generator=torch.Generator().manual_seed(i), dtype=q.dtype)
            grads = [q.grad.clone() for q in model.parameters()]
            info = updater.step()
            norms.append((info["norm"], torch.nn.utils.get_total_norm(grads, p).item()))
            return info

        pair.told(do)
    assert pair.replayed == 5, pair.again.explain()
    if place == "first":
        assert all(math.isclose(ours, torchs, rel_tol=1e-5) for ours, torchs in norms)
    assert len({ours for ours, _ in norms}) >= 5


def test_averages_run_again():
    tx = gch.chain(gch.adam(0.05), gch.average_params("mean", start=3, every=2, buffers="average"))
    pair = Pair(tx, Small(), ("blocks",))
    taught(pair)
    assert pair.replayed >= 10, pair.again.explain()


# links of any kind, as long as they are pure: what a rule of tomorrow may do with numbers


class reader(gch.Transform):
    """Numbers asked for all that Python may ask."""

    limit: gch.Hyper = gch.Hyper(1.0)

    def update(self, u, state, ctx):
        phase = int(ctx.step % 3)
        factor = {0: 1.0, 1: 0.5, 2: 0.25}[phase] * [1.0, 2.0, 3.0][ctx.step % 3]
        label = f"{ctx.step % 2}"
        ctx.record("label", float(label))
        norm = u.norm()
        small = max(min(norm, self.limit), 1e-3)
        steps = sum(1.0 for _ in range(ctx.step % 4))
        return (factor / small + 1e-3 * steps) * u, state


class counted(gch.Transform):
    """Numbers per parameter, iterated, looked up, put together, ordered."""

    def update(self, u, state, ctx):
        norms, sizes = u.norms(), u.numels()
        largest = max(norms, key=lambda name: norms[name] / max(sizes[name], 1))
        rates = gch.Scalars({name: 1.0 / (1.0 + norm) for name, norm in norms.items()})
        total = sum(norms[name] for name in norms)
        ctx.record("total", total)
        ctx.record("largest", norms[largest])
        kept = norms.select(list(norms)[:2])
        return rates * u * (2.0 if total > 3.0 else 1.0) + 0.01 * u.select(kept) * kept, state


class SeenState(gch.State):
    best: float = math.inf
    mean: object = None
    told: bool = False
    word: str = "none"


class rememberer(gch.Transform):
    """State of every kind: numbers, truths, words, numbers per parameter."""

    def init(self, params):
        return SeenState(mean=gch.Scalars(dict.fromkeys(params, 0.0)))

    def update(self, u, state, ctx):
        norm = u.norm()
        best = gch.minimum(norm, state.best)
        told = bool(norm > 5.0)
        mean = 0.5 * state.mean + 0.5 * u.norms(p=1)
        word = "large" if told else "small"
        return u * (0.5 if state.told else 1.0) / (1.0 + mean), SeenState(best, mean, told, word)


class whole_matrices(gch.Transform):
    """Whole tensors, and norms of what was computed that no kernel measures."""

    def update(self, u, state, ctx):
        turned = u.map(torch.tanh)
        both = (u * turned).norm(3) + (ctx.params + u).norm(1.5)
        return turned / (1.0 + both) + 0.01 * turned.map(lambda a, b: a - a.mean() * b, u), state


class mover(gch.Transform):
    """One tensor by its name, of which nobody knows what is made."""

    def update(self, u, state, ctx):
        return u * (1.0 + float(ctx.params["body.scale"])), state


class pinned(gch.Transform):
    """A number that is another one at each step, and leaves."""

    def update(self, u, state, ctx):
        return u / (1 + int(ctx.step)), state


PURE = {
    "reader": lambda: gch.chain(reader(), gch.sgd(0.05)),
    "reader, scheduled": lambda: gch.chain(reader(limit=Alternating(0.5, 2.0)), gch.sgd(0.05)),
    "counted": lambda: gch.chain(counted(), gch.sgd(0.05, momentum=0.9)),
    "rememberer": lambda: gch.chain(rememberer(), gch.adam(0.05)),
    "whole matrices": lambda: gch.chain(whole_matrices(), gch.sgd(0.05)),
    "mover": lambda: gch.chain(mover(), gch.sgd(0.05)),
    "pinned": lambda: gch.chain(pinned(), gch.sgd(0.05)),
    **{name: make for name, make in GRADIENTS.items() if name not in ("from torch", "from torch, in branches")},
}


@pytest.mark.parametrize("name", PURE)
def test_any_pure_link(name, monkeypatch):
    """Whatever a pure link does with numbers, a step run again is the step recorded."""
    monkeypatch.setattr(replay, "users_code", lambda tx: "")
    pair = Pair(PURE[name](), Shapes(long=100), ("blocks",))
    for t, size in enumerate((*SIZES, *SIZES)):
        pair.step(t, size=size, absent=("head.weight",) if t in (5, 11) else ())
    text = pair.again.explain()
    if name in ("mover", "per name"):
        assert pair.replayed == 0 and "a link reads whole tensors" in text
    elif name == "pinned":
        assert pair.replayed == 0 and "steps of kinds that did not come back" in text
    else:
        assert pair.replayed >= 8, text


# what is said


class mine(gch.Transform):
    def update(self, u, state, ctx):
        return 1.0 * u, state


SAID = {
    "mine is a link of yours, which always is asked; what it records runs in kernels": lambda: gch.chain(
        mine(), gch.sgd(0.1)
    ),
    "stateless calls code of yours, which runs at every step": lambda: gch.chain(gch.stateless(doubled), gch.sgd(0.1)),
    "a closure was evaluated": lambda: gch.chain(gch.sam(0.1), gch.sgd(0.1)),
    "the first of their kind": lambda: gch.sgd(0.1),
}


@pytest.mark.parametrize("why", SAID)
def test_explain_says_why_steps_did_not_run_again(why):
    updater = gch.chain(SAID[why]()).bind(model := Small())
    for t in range(4):
        updater.update((lambda t=t: distance(model, t)) if "closure" in why else distance(model, t))
    lines = updater.explain().splitlines()
    if "first" in why:
        assert "3 steps needed nothing but their numbers: the links' own code did not run" in lines
        assert f"1 step ran the links' own code: {why}" in lines
    else:
        assert f"4 steps ran the links' own code: {why}" in lines


def test_a_trace_that_fails_is_said(monkeypatch):
    class stubborn(gch.Transform):
        def update(self, u, state, ctx):
            return (u.norm() / 1.0).hex() and u, state  # a float has it, a number that is traced has not

    monkeypatch.setattr(replay, "users_code", lambda tx: "")
    pair = Pair(gch.chain(stubborn(), gch.sgd(0.1)), Small(), ("blocks",))
    for t in range(6):
        pair.step(t)
    text = pair.again.explain()
    assert "recording its numbers failed: AttributeError: 'Number' object has no attribute 'hex'" in text
    assert pair.replayed == 0


def test_explain_after_a_micro_batch_that_was_held():
    """It tells of that step, and of the last one that ran kernels."""
    updater = gch.chain(gch.accumulate(2), gch.clip_by_norm(1.0), gch.adamw(0.1)).bind(model := Small())
    for t in range(5):
        updater.update(distance(model, t))
    lines = updater.explain().splitlines()
    assert any(line.endswith("the last step ran none, the last that did ran 2 kernels:") for line in lines)
    assert sum("update of 3 columns" in line for line in lines) == 1
