"""GRADCHAIN_VERIFY=1: a kernel that is wrong is found and named, and one that is right never is."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "engine"))
import test_equal
from programs import random_rule
from twins import EXECUTORS, Shapes, Twins, by_executors

import gradchain as gch
from gradchain.engine.engine import Engine
from gradchain.engine.executors import native
from gradchain.engine.planning.rows import Column
from gradchain.updater.journal import Journal
from gradchain.updater.verify import VARIABLE


@pytest.fixture(autouse=True)
def verifying(monkeypatch):
    monkeypatch.setenv(VARIABLE, "1")


def reported(updater: gch.Updater):
    return updater._bound.engine.report


# what is right


def cases():
    """Every second chain in one kind in turn; with GRADCHAIN_LONG=1 every one in all."""
    for i, name in enumerate((*test_equal.GRADIENTS, *test_equal.LOSSES)):
        fit = [kind for kind in test_equal.KINDS if (name, kind) not in test_equal.UNFIT]
        for k, kind in enumerate(fit):
            if test_equal.LONG or (i % 2 == 0 and k == i // 2 % len(fit)):
                yield pytest.param(name, kind, id=f"{name}-{kind}")


@pytest.mark.parametrize(("name", "kind"), list(cases()))
@pytest.mark.filterwarnings("ignore:chain. scale_by_.* divides out the scale")
@pytest.mark.filterwarnings("ignore:bind. float16")
def test_a_right_chain_is_never_accused(name, kind):
    """Eight steps each: replays, windows, gates, closures, masks, averages, absent and infinite gradients."""
    for executor in EXECUTORS if kind != "complex" else ("native",):
        tx = {**test_equal.GRADIENTS, **test_equal.LOSSES}[name]()
        twins = Twins(tx, Shapes(test_equal.KINDS[kind], long=3000), EXECUTORS[executor])
        test_equal.teach(twins, name)
        report, engine = reported(twins.ours), twins.ours._bound.engine
        counted = report.num_verified + sum(report.unverified.values()) + engine.num_counted
        assert counted == test_equal.STEPS and not report.num_different
        assert all("of yours" in why for why in report.unverified), report.unverified
        assert report.num_verified or report.unverified


@pytest.mark.parametrize("seed", range(300, 350))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_grown_chain_is_never_accused(seed, dtype):
    model = Shapes((dtype,), seed, long=300)
    updater = by_executors(gch.chain(random_rule(seed)).bind(model), "native")
    for t in range(3):
        generator = torch.Generator().manual_seed(1000 * seed + t)
        grads = {
            n: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
            for n, p in model.named_parameters()
        }
        updater.step(grads)
        assert {part.executor for part in updater._bound.engine.last} == {"native"}
    assert reported(updater).num_verified == 3


# what is wrong


class Wrong:
    """A runner that does one thing wrong, from its third write on."""

    def __init__(self, runner, program, how: str) -> None:
        self._runner, self._program, self._how = runner, program, how
        self._writes, self._before = 0, None
        self.source, self.scratch = runner.source, runner.scratch

    def run(self, columns, scalars, entries):
        return self._runner.run(columns, scalars, entries)

    def launch(self, columns, scalars, entries):
        return self._runner.launch(columns, scalars, entries)

    def write(self, commit, columns, scalars, entries):
        self._writes += 1
        stale, self._before = self._before, list(scalars)
        if self._writes < 3:
            return self._runner.write(commit, columns, scalars, entries)
        if self._how == "last step's scalars":
            scalars = stale
        columns, stored = [*columns], [column for column, _ in self._program.stores]
        weights = columns[stored[-1]].tensors  # a state comes before them
        if self._how.startswith("drops"):
            at = stored[0 if self._how == "drops a slot" else -1]
            columns[at] = Column([t.clone() for t in columns[at].tensors])
        if self._how == "reads the wrong row":
            read = next(c for c in range(len(columns)) if c not in stored)
            rows = [*columns[read].tensors]
            rows[0], rows[1] = rows[1], rows[0]  # of one size
            columns[read] = Column(rows)
        self._runner.write(commit, columns, scalars, entries)
        if self._how == "1000 ulp":
            commit.add(Nudge(weights[0]))
        if self._how == "one element":
            commit.add(Nudge(weights[0].flatten()[-1:]))


class Nudge:
    """1000 units in the last place, once."""

    def __init__(self, tensor) -> None:
        self._tensor, self.begun = tensor, False

    def __call__(self) -> None:
        if not self.begun:
            self.begun = True
            with torch.no_grad():
                self._tensor.mul_(1 + 1000 * torch.finfo(self._tensor.dtype).eps)


HOWS = ["1000 ulp", "one element", "drops a slot", "drops the weights", "reads the wrong row", "last step's scalars"]


class Net(nn.Module):
    def __init__(self, dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        for name, shape in {"a": (4, 3), "b": (3, 4), "c": (5,), "d": (5,)}.items():
            value = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            self.register_parameter(name, nn.Parameter(value))


RATE = gch.cosine(0.05, 0.005, 9)
BROKEN = {
    "adamw": lambda: gch.chain(gch.clip_by_norm(0.5), gch.adamw(RATE)),
    "sgd": lambda: gch.sgd(RATE, momentum=0.9, weight_decay=0.1),
    "average": lambda: gch.chain(gch.scale_by_adam(), gch.scale_by_learning_rate(RATE), gch.average_params(0.9)),
    "partition": lambda: gch.partition((gch.named("[ab]"), gch.adamw(RATE)), (gch.rest, gch.sgd(RATE, momentum=0.9))),
    "window": lambda: gch.chain(gch.accumulate(2), gch.adamw(RATE)),
}


def step(updater, model, t):
    generator = torch.Generator().manual_seed(t)
    grads = {n: torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in model.named_parameters()}
    return updater.step({n: g.to(p.dtype) for (n, p), g in zip(model.named_parameters(), grads.values(), strict=True)})


def broken(monkeypatch, executor, how):
    ready = type(executor).ready

    def wrong(self, program, dtypes, sizes):
        runner = ready(self, program, dtypes, sizes)
        return runner if program.reduce else Wrong(runner, program, how)

    monkeypatch.setattr(type(executor), "ready", wrong)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("executor", ["native", "blocks"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_wrong_kernel_is_found_and_named(executor, name, how, dtype, monkeypatch):
    model = Net(dtype)
    updater = by_executors(BROKEN[name]().bind(model), executor)
    broken(monkeypatch, updater._bound.engine.executors[0], how)
    with pytest.raises(RuntimeError, match=rf"^{VARIABLE}: step \d+ must be that of the reference") as told:
        for t in range(12):
            before = updater.num_updates, updater.num_micro
            step(updater, model, t)
    assert f" by {executor} is " in str(told.value) and " of '" in str(told.value)
    if how in ("1000 ulp", "one element", "drops the weights"):
        assert any(f"{what} of" in str(told.value) for what in ("the weight", "average", "window"))
    assert updater.num_micro == before[1] + 1 and updater.num_updates - before[0] in (0, 1)  # it is whole
    updater._bound.journal.enter("a look")
    assert "1 of them differed" in updater.explain()


OVER_LISTS = {
    "noise": lambda: gch.chain(gch.add_noise(0.1, 0.5, 3), gch.rules.centralize(), gch.sgd(RATE)),
    "rows": lambda: gch.chain(gch.rules.adaptive_grad_clip(0.3), gch.sgd(RATE, momentum=0.9)),
    "factored": lambda: gch.adafactor(RATE),
}


@pytest.mark.parametrize("name", OVER_LISTS)
def test_draws_and_rows_by_calls_over_lists_are_verified(name, monkeypatch):
    """As on CUDA: a right step is never accused, and a wrong one is found."""
    twins = Twins(OVER_LISTS[name](), Shapes((torch.float64,), long=300), ("foreach",))
    test_equal.teach(twins, name)
    assert reported(twins.ours).num_verified == test_equal.STEPS and not reported(twins.ours).num_different
    assert any(part.program.draws or part.program.grid for part in twins.ours._bound.engine.ran)
    broken(monkeypatch, twins.ours._bound.engine.executors[0], "1000 ulp")
    model = Net(torch.float64)
    updater = by_executors(OVER_LISTS[name]().bind(model), "foreach")
    with pytest.raises(RuntimeError, match=rf"^{VARIABLE}: step \d+ must be that of the reference.* by foreach is"):
        for t in range(6):
            step(updater, model, t)


@pytest.mark.parametrize("old_new", [(" + ", " - "), (" * ", " / "), ("F(sqrt)", "F(fabs)")])
def test_a_wrongly_printed_kernel_is_found(old_new, monkeypatch):
    printed = native.source
    monkeypatch.setattr(native, "source", lambda *args: _body_changed(printed(*args), *old_new))
    model = Net(torch.float32)
    updater = by_executors(gch.adamw(0.01).bind(model), "native")
    with pytest.raises(RuntimeError, match="by native is"):
        for t in range(3):
            step(updater, model, t)


def _body_changed(text: str, old: str, new: str) -> str:
    head, loop, body = text.partition("for (int64_t i = j; i < m; ++i) {")
    return (
        head
        + loop
        + "\n".join(
            line.replace(old, new) if line.strip().startswith("const C v") else line for line in body.splitlines()
        )
        + "\n"
    )


@pytest.mark.parametrize("replayed", [True, False])
def test_a_wrong_reduction_is_found(replayed, monkeypatch):
    model = Net(torch.float64)
    updater = by_executors(gch.chain(gch.clip_by_norm(0.5), gch.sgd(0.1)).bind(model), "native")
    if not replayed:
        updater._bound.engine._why_without_numbers = lambda request: "to be recorded"
    run = native.NativeRunner.run
    step(updater, model, 0)
    step(updater, model, 1)
    assert updater._bound.engine.num_replayed == replayed
    monkeypatch.setattr(native.NativeRunner, "run", lambda self, *a: [1.001 * v for v in run(self, *a)])
    with pytest.raises(RuntimeError, match="the weight of"):
        step(updater, model, 2)
    monkeypatch.undo()


def test_each_parameter_in_backward(monkeypatch):
    """What differs is told when the update is whole, not in the middle of backward."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    updater = gch.adamw(0.01).bind(model, in_backward=True)
    broken(monkeypatch, updater._bound.engine.executors[0], "1000 ulp")
    for _ in range(2):
        updater.update(model(torch.ones(5, 4)).square().sum())
    assert reported(updater).num_verified == 8
    with pytest.raises(RuntimeError, match="step 2 must be that of the reference"):
        updater.update(model(torch.ones(5, 4)).square().sum())
    assert updater.num_updates == 3 and not updater._bound.journal.torn


def test_a_link_of_yours_may_draw():
    class noisy(gch.Transform):
        descends = False

        def update(self, g, state, ctx):
            return g.map(lambda t: t + torch.randn_like(t)), state

    model = Net(torch.float32)
    updater, plain = (gch.chain(noisy(), gch.sgd(0.1)).bind(m) for m in (model, copy.deepcopy(model)))
    torch.manual_seed(0)
    for t in range(3):
        step(updater, model, t)
    drawn = torch.rand(())
    assert reported(updater).num_verified == 3
    torch.manual_seed(0)
    plain._bound.engine, plain._bound.journal = Engine(), Journal(lambda: None)
    for t in range(3):
        step(plain, model, t)
    assert torch.equal(drawn, torch.rand(())), "the second computation draws nothing of the program's"


def test_what_is_not_verified_is_said():
    model = Net(torch.float32)
    updater = gch.chain(gch.stateless(lambda u, p: u), gch.sgd(0.1)).bind(model)
    step(updater, model, 0)
    assert "1 step was not: stateless calls code of yours, which is not called twice" in updater.explain()
    updater = gch.chain(gch.sam(0.05), gch.sgd(0.1)).bind(model)
    updater.update(lambda: sum(p.square().sum() for p in model.parameters()))
    assert "a closure of yours is evaluated in it" in updater.explain()


def test_a_copy_verifies_too():
    model = Net(torch.float32)
    updater = gch.adamw(0.1).bind(model)
    step(updater, model, 0)
    other, again = copy.deepcopy((model, updater))
    step(again, other, 1)
    assert (reported(updater).num_verified, reported(again).num_verified) == (1, 2)
    assert again._bound.journal._report is reported(again)


@pytest.mark.parametrize("value", ["", "0"])
def test_without_it_nothing_is_there(value, monkeypatch):
    monkeypatch.setenv(VARIABLE, value)
    updater = gch.sgd(0.1).bind(Net(torch.float32))
    assert type(updater._bound.engine) is Engine and type(updater._bound.journal) is Journal
    assert VARIABLE not in updater.explain()


def test_a_wrong_value_is_refused(monkeypatch):
    monkeypatch.setenv(VARIABLE, "yes")
    with pytest.raises(ValueError, match=rf"^{VARIABLE}: must be 1 or 0, got 'yes'\."):
        gch.sgd(0.1).bind(Net(torch.float32))


def test_an_update_of_rows_is_said_to_be_unverified(monkeypatch):
    monkeypatch.setenv("GRADCHAIN_VERIFY", "1")
    model = nn.Embedding(5, 3, sparse=True)
    updater = gch.sgd(0.1).bind(model)
    updater.update(model(torch.tensor([1, 2])).sum())
    assert "a gradient is sparse" in updater.explain()
