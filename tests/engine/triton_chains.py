"""Whole chains by printed Triton, in its interpreter on the CPU: by test_triton.py, in a child where it is set.

The path is that of CUDA: reductions leave their numbers where they are, kernels read them by address, and the host
learns of none that it does not ask for.
"""

from __future__ import annotations

import copy
import os

import numpy
import pytest
import test_equal
import torch
from torch import nn
from twins import Shapes, Twins, same_state

import gradchain as gch
from gradchain.engine.executors import triton as triton_executor
from gradchain.engine.executors.triton import Triton
from gradchain.engine.recording.numbers import Each, Number


@pytest.fixture(autouse=True)
def _in_the_interpreter():
    with numpy.errstate(all="ignore"):
        yield


def twins_of(tx, kind: str = "float64") -> Twins:
    twins = Twins(tx, Shapes(test_equal.KINDS[kind], long=1500), ("triton",))
    twins.ours._bound.engine.executors = (Triton("cpu"),)
    return twins


CHAINS = {**test_equal.GRADIENTS, **test_equal.LOSSES}


LONG = bool(os.environ.get("GRADCHAIN_LONG"))
KINDS = ("float64", "float32", "mixed")
MOST = 10  # of the chains of all rules, and every one with a loss, in one kind in turn; with GRADCHAIN_LONG=1 all
EVERY = -(-len(CHAINS) // MOST)
TRIED = [
    (name, kind)
    for i, name in enumerate(CHAINS)
    for k, kind in enumerate(KINDS)
    if LONG or ((name in test_equal.LOSSES or i % EVERY == 0) and (i // EVERY + k) % 3 == 0)
]


@pytest.mark.parametrize(("name", "kind"), TRIED)
@pytest.mark.filterwarnings("ignore:chain. scale_by_.* divides out the scale")
@pytest.mark.filterwarnings("ignore:bind. float16")
def test_equal_to_the_reference(name, kind):
    if (name, kind) in test_equal.UNFIT:
        pytest.skip("the rule asks for something that the dtypes do not have")
    twins = twins_of(CHAINS[name](), kind)
    test_equal.teach(twins, name)
    twins.compare(test_equal.LOOSE.get(name, 0.0))
    assert twins.used == {"triton"}


# numbers on the device


class careful(gch.Transform):
    """A rule that asks a norm for its value, keeps numbers in its state, and gives one to torch."""

    def init(self, params):
        return CarefulState(0.0, gch.Scalars(dict.fromkeys(params, 1.0)))

    def update(self, u, state, ctx):
        norm, each = u.norm(), u.norms()
        size = gch.where(norm > 3.0, norm, 3.0)
        ctx.record("norm", norm)
        share = 1.0 / float(size) if ctx.step % 2 else 1.0 / size
        kept = 0.5 * state.kept + 0.5 * each
        pulled = u.map(lambda t: t * torch.tanh(torch.as_tensor(float(norm))))
        return (pulled * share + u) / (1.0 + kept) * gch.minimum(1.0, state.mean + 1.0), CarefulState(
            0.9 * state.mean + 0.1 * norm, kept
        )


class CarefulState(gch.State):
    mean: float
    kept: gch.Scalars


def test_numbers_leave_the_kernels_where_a_rule_asks_for_them():
    twins = twins_of(gch.chain(careful(), gch.sgd(0.05)))
    for t in range(4):
        twins.gradients(t)
    mine, theirs = (u.metrics["norm"] for u in (twins.ours, twins.theirs))
    assert abs(mine - theirs) <= 1e-12 * theirs
    state = twins.ours._bound.state.links["careful"]
    assert isinstance(state.mean, torch.Tensor) and not isinstance(state.kept, Each)
    for p, q in zip(*(m.parameters() for m in twins.models), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def layers():
    """A rate per parameter: one column of numbers of the host."""
    return gch.multiply(gch.cosine(0.1, 0.01, 9), (gch.bias, 2.0), (gch.min_ndim(2), 0.3))


@pytest.mark.parametrize("per", ["all", "tensor"])
def test_numbers_per_parameter_meet_numbers_of_the_device(per):
    bound = gch.multiply(gch.linear(0.5, 0.1, 8), (gch.bias, 2.0)) if per == "tensor" else 0.5
    twins = twins_of(
        gch.chain(gch.clip_by_norm(bound, per=per), gch.scale_by_adam(), gch.scale_by_learning_rate(layers()))
    )
    for t in range(4):
        twins.gradients(t, absent=[next(iter(twins.start))] if t == 2 else [])
    twins.compare()
    assert twins.used == {"triton"}


class Watched:
    """Counts what the host reads of tensors; a device would be waited for."""

    def __init__(self, monkeypatch) -> None:
        self.reads: list[str] = []
        for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
            real = getattr(torch.Tensor, name)

            def seen(tensor, *args, _real=real, _name=name, **kwargs):
                self.reads.append(_name)
                return _real(tensor, *args, **kwargs)

            monkeypatch.setattr(torch.Tensor, name, seen)
        self.spare(monkeypatch, triton_executor.Launch, "__call__")  # the interpreter reads what a device would
        self.spare(monkeypatch, gch.Scalars, "extremes")  # of a column, which is the host's

    def spare(self, monkeypatch, owner: type, name: str) -> None:
        """Leave out what this method reads."""
        real = getattr(owner, name)

        def spared(of):
            before = len(self.reads)
            out = real(of)
            del self.reads[before:]
            return out

        monkeypatch.setattr(owner, name, spared)


def rounds(tx, steps: int = 3):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    updater = tx.bind(model)
    updater._bound.engine.executors = (Triton("cpu"),)
    for t in range(steps):
        updater.step({n: torch.full_like(p, 1.0 + t) for n, p in model.named_parameters()})
        yield updater


PLAIN = {
    "clip": lambda: gch.chain(gch.clip_by_norm(1.0), gch.adamw(0.01), gch.average_params(0.9)),
    "clip per tensor": lambda: gch.chain(gch.clip_by_norm(1.0, per="tensor"), gch.sgd(0.1, momentum=0.9)),
    "clip groups": lambda: gch.chain(gch.clip_by_norm(1.0, per=[gch.named("0.*"), gch.named("1.*")]), gch.sgd(0.1)),
    "other norms": lambda: gch.chain(gch.clip_by_norm(1.0, p=1), gch.clip_by_norm(9.0, p=float("inf")), gch.sgd(0.1)),
    "lamb": lambda: gch.chain(gch.scale_by_adam(), test_equal.lamb(), gch.scale(-0.1)),
    "per parameter": lambda: gch.chain(gch.clip_by_norm(1.0), gch.sgd(layers())),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_chain_without_a_gate_waits_for_nothing(name, monkeypatch):
    steps = rounds(PLAIN[name]())
    next(steps)
    watched = Watched(monkeypatch)
    for updater in steps:
        assert updater._bound.engine.reason == "" and not updater._bound.engine.num_replayed
    assert watched.reads == []


def test_a_gate_waits_once(monkeypatch):
    steps = rounds(gch.chain(gch.skip_nonfinite(), gch.clip_by_norm(1.0), gch.sgd(0.1)))
    next(steps)
    watched = Watched(monkeypatch)
    next(steps)
    assert watched.reads == ["__bool__"]


def test_a_norm_is_a_number_of_the_kernel():
    (updater,) = rounds(PLAIN["clip"](), 1)
    assert type(updater._bound.records["clip_by_norm.norm"]) is Number
    part = updater._bound.engine.last[-1]
    assert [op for op, _ in part.program.numbers] == ["sqrt", "mul", "add", "maximum", "div"]


class alternating(gch.Transform):
    descends = False

    def update(self, u, state, ctx):
        norm = u.norm()
        return u * (norm + 0.5 if ctx.step % 2 else norm * 0.5), state


def test_what_is_done_to_numbers_tells_plans_apart():
    twins = twins_of(gch.chain(alternating(), gch.sgd(0.05)))
    for t in range(4):
        twins.gradients(t)
    twins.compare()


# a step that a graph replays


class Captured:
    """The same chain twice: one captured after two steps, one eager."""

    def __init__(self, tx) -> None:
        self.model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)).double()
        self.other = copy.deepcopy(self.model)
        self.updater, self.eager = tx.bind(self.model), tx.bind(self.other)
        for updater in (self.updater, self.eager):
            updater._bound.engine.executors = (Triton("cpu"),)
        for t in range(2):
            self.updater.step(self.gradients(t))
            self.eager.step(self.gradients(t))

    def gradients(self, t: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(t)
        return {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in self.model.named_parameters()}

    def capture(self):
        self.static = self.gradients(2)
        with self.updater.capturing() as captured:
            self.updater.step(self.static)
        return captured

    def replay(self, captured, t: int):
        for name, grad in self.gradients(t).items():
            self.static[name].copy_(grad)
        info = captured.advance()
        for launch in captured._captured.queued:
            launch()
        return info

    def same(self) -> None:
        for p, q in zip(self.model.parameters(), self.other.parameters(), strict=True):
            assert torch.equal(p, q)
        mine, theirs = self.updater.state_dict(), self.eager.state_dict()
        assert mine["clocks"] == theirs["clocks"]
        same_state(mine["links"], theirs["links"])


RATE = gch.cosine(0.1, 0.01, 9)

REPLAYED = {
    "schedules": lambda: gch.chain(
        gch.clip_by_norm(gch.linear(0.5, 0.1, 8)), gch.scale_by_adam(),
        gch.masked(gch.add_decayed_weights(0.1), gch.min_ndim(2)), gch.scale_by_learning_rate(RATE),
        gch.average_params(0.9),
    ),
    "no reduction": lambda: gch.adamw(RATE),
    "momentum": lambda: gch.chain(gch.clip_by_value(1.0), gch.sgd(RATE, momentum=gch.linear(0.0, 0.9, 6))),
    "lamb": lambda: gch.chain(gch.scale_by_adam(), test_equal.lamb(), gch.scale(-0.1)),
    "per parameter": lambda: gch.chain(gch.clip_by_norm(0.5), gch.sgd(layers(), momentum=0.9)),
}  # fmt: skip


@pytest.mark.parametrize("name", REPLAYED)
def test_a_replay_equals_the_eager_step(name):
    pair = Captured(REPLAYED[name]())
    before = {n: p.detach().clone() for n, p in pair.model.named_parameters()}
    captured = pair.capture()
    assert (pair.updater.num_updates, pair.updater.num_micro) == (2, 2)
    assert all(torch.equal(p, before[n]) for n, p in pair.model.named_parameters())
    for t in range(2, 7):
        mine, theirs = pair.replay(captured, t), pair.eager.step(pair.gradients(t))
        assert (mine.reason, mine.step, mine.hyperparams) == (theirs.reason, theirs.step, theirs.hyperparams)
        assert list(mine) == list(theirs) and all(mine[name] == theirs[name] for name in theirs)
    pair.same()


def test_eager_steps_may_come_between():
    pair = Captured(REPLAYED["schedules"]())
    captured = pair.capture()
    for t in range(2, 8):
        if t % 3:
            pair.replay(captured, t)
        else:
            pair.updater.step(pair.gradients(t))
        pair.eager.step(pair.gradients(t))
    pair.same()


def test_what_was_observed_before_the_capture_is_not_lost():
    rate = gch.scale_by_learning_rate(0.1)
    pair = Captured(gch.chain(gch.scale_by_adam(), rate, gch.reduce_on_plateau("val", factor=0.5, patience=0)))
    for updater in (pair.updater, pair.eager):
        updater.observe("val", 1.0)
        updater.observe("val", 2.0)
    captured = pair.capture()
    pair.replay(captured, 2)
    pair.eager.step(pair.gradients(2))
    pair.same()


def test_an_override_reaches_the_replay():
    pair = Captured(REPLAYED["no reduction"]())
    captured = pair.capture()
    for updater in (pair.updater, pair.eager):
        updater.override("learning_rate", factor=0.5)
    pair.replay(captured, 2)
    pair.eager.step(pair.gradients(2))
    pair.same()


class turning(gch.Transform):
    descends = False

    def update(self, u, state, ctx):
        return (u if ctx.step < 3 else u.sign()), state


class asking(gch.Transform):
    descends = False

    def update(self, u, state, ctx):
        return u / float(u.norm()), state


class whole(gch.Transform):
    descends = False

    def update(self, u, state, ctx):
        return u.map(torch.tanh), state


def test_another_step_than_the_captured_one_is_refused_and_changes_nothing():
    pair = Captured(gch.chain(gch.clip_by_norm(1.0), turning(), gch.sgd(0.1, momentum=0.9)))
    captured = pair.capture()
    pair.replay(captured, 2)
    pair.eager.step(pair.gradients(2))
    with pytest.raises(RuntimeError, match=r"this one has another kernel\. Capture it anew"):
        captured.advance()
    pair.same()
    pair.updater.step(pair.gradients(3))
    pair.eager.step(pair.gradients(3))
    pair.same()


def test_a_parameter_that_was_swapped_is_refused():
    pair = Captured(REPLAYED["no reduction"]())
    captured = pair.capture()
    pair.model[0].weight = nn.Parameter(pair.model[0].weight.detach().clone())
    with pytest.raises(RuntimeError, match=r"this one has another kernel\. Capture it anew"):
        captured.advance()
    assert pair.updater.num_updates == 2


def test_a_state_that_moved_is_refused():
    pair = Captured(REPLAYED["no reduction"]())
    captured = pair.capture()
    pair.updater.load_state_dict(pair.updater.state_dict())
    with pytest.raises(RuntimeError, match=r"weights, state or gradients moved. Capture it anew"):
        captured.advance()
    assert pair.updater.num_updates == 2


@pytest.mark.parametrize(
    ("link", "why"),
    [
        (asking(), "waits for the value of a number on the device"),
        (gch.skip_nonfinite(), None),
        (gch.clip_by_norm(1.0, per="tensor"), "waits for the value"),  # of the largest of the norms, to record it
        (gch.clip_by_norm(1.0, per=[gch.min_ndim(2), gch.bias]), "waits for the value"),
        (whole(), "asks for whole tensors"),
    ],
)
def test_what_needs_the_host_is_refused(link, why):
    pair = Captured(gch.chain(link, gch.sgd(0.1)))
    if why is None:
        with pytest.raises(ValueError, match="every update must be applied, but skip_nonfinite may hold the chain"):
            pair.capture()
    else:
        with pytest.raises(RuntimeError, match=f"{why}.*Run it without a graph"):
            pair.capture()
    pair.updater.step(pair.gradients(2))
    pair.eager.step(pair.gradients(2))
    pair.same()


def test_buffers_are_refused():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    updater = gch.chain(gch.sgd(0.1), gch.average_params(0.9, buffers="average")).bind(model)
    updater._bound.engine.executors = (Triton("cpu"),)
    grads = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    updater.step(grads)
    with pytest.raises(RuntimeError, match="reads the model's buffers"), updater.capturing():
        updater.step(grads)
    assert updater.step(grads).applied


def test_what_was_not_run_by_triton_is_refused():
    model = nn.Linear(3, 2)
    updater = gch.sgd(0.1).bind(model)
    with pytest.raises(RuntimeError, match=r"by Triton's kernels\. Set GRADCHAIN_EXECUTORS=triton and run one"):
        updater.capturing().__enter__()
    updater.step({n: torch.ones_like(p) for n, p in model.named_parameters()})
    with pytest.raises(RuntimeError, match="no update has run by Triton's kernels"):
        updater.capturing().__enter__()
    one = gch.sgd(0.1).bind(nn.Linear(3, 2), in_backward=True)
    with pytest.raises(ValueError, match="in_backward=True updates in backward hooks"):
        one.capturing()


def test_one_update_to_a_capture():
    pair = Captured(gch.sgd(0.1))
    with pytest.raises(RuntimeError, match="no update ran inside"), pair.updater.capturing():
        pass
    with pytest.raises(RuntimeError, match="a second update came"), pair.updater.capturing():
        pair.updater.step(pair.gradients(0))
        pair.updater.step(pair.gradients(1))
    pair.same()


# what fails, fails before anything is written


def test_a_kernel_that_does_not_compile_leaves_nothing_half_written(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2).double())  # two classes
    other = copy.deepcopy(model)
    updater, plain = (gch.adamw(0.1).bind(m) for m in (model, other))
    updater._bound.engine.executors, plain._bound.engine.executors = (Triton("cpu"),), ()
    made, seen = triton_executor.compiled, []

    def failing(text, name):
        seen.append(text)
        if len(set(seen)) > 1:
            raise ValueError("no such layout")
        return made(text, name)

    monkeypatch.setattr(triton_executor, "compiled", failing)
    for t in range(2):
        grads = {n: torch.full_like(p, 1.0 + t) for n, p in model.named_parameters()}
        for one in (updater, plain):
            assert one.step(grads).applied
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    assert updater.num_updates == 2 and len(set(seen)) > 1
    assert "Triton cannot compile it: ValueError: no such layout" in updater.explain()


def test_a_capture_without_a_graph_is_refused(monkeypatch):
    from gradchain.engine import captured

    pair = Captured(REPLAYED["no reduction"]())
    before = [p.detach().clone() for p in pair.model.parameters()]
    monkeypatch.setattr(captured, "captures", lambda device: False)
    with pytest.raises(RuntimeError, match="must run while a graph is captured on cpu, got none"):
        pair.capture()
    assert pair.updater.num_updates == 2
    assert all(torch.equal(p, q) for p, q in zip(pair.model.parameters(), before, strict=True))
    pair.updater.step(pair.gradients(2))
    pair.eager.step(pair.gradients(2))
    pair.same()


@pytest.mark.filterwarnings("ignore:.*deterministic")
def test_a_table_is_not_filled_under_deterministic_algorithms():
    launch = triton_executor.Launch(
        "", triton_executor.Items([3], torch.device("cpu")), "", torch.device("cpu"), bytes(1 << 16), []
    )
    torch.use_deterministic_algorithms(True)
    try:
        launch.reserve()
    finally:
        torch.use_deterministic_algorithms(False)
    assert launch.table.shape == (1 << 13,)
    assert not (launch.table == torch.iinfo(torch.int64).max).all()


def test_an_old_triton_is_refused(monkeypatch):
    program = triton_executor.Program([0], [], [], [], [])
    assert Triton("cpu").legal(program, [torch.float32]) is None
    monkeypatch.setattr(triton_executor, "_version", lambda: (3, 5, 1))
    assert "Triton 3.5.1 flushes denormals" in Triton("cpu").legal(program, [torch.float32])


def test_programs_of_one_plan_share_their_items():
    (updater,) = rounds(PLAIN["clip"](), 1)
    runners = [part.runner for part in updater._bound.engine.last]
    assert len(runners) > 1 and len({id(runner._items) for runner in runners}) == 1
