"""Programs by torch.compile: equal to the reference, and what happens where Inductor cannot."""

from __future__ import annotations

import pytest
import test_equal
import torch
from against_reference import Model
from twins import Shapes, Twins
from whole_program import everything

import gradchain as gch
from gradchain.engine import compiled
from gradchain.engine.blocks import Blocks
from gradchain.engine.compiled import Compiled
from gradchain.engine.executor import Column, NoKernel
from gradchain.engine.lower import Program

A = ("load", 0)


def test_what_it_refuses_says_why():
    executor = Compiled("cpu")
    assert executor.legal(Program([0], stores=[(0, A)]), [torch.float32]) is None
    assert "splits a sum by the number of threads" in executor.legal(Program([0], reduce=("sum", A)), [torch.float32])
    assert Compiled("cuda").legal(Program([0], reduce=("sum", A)), [torch.float32]) is None
    assert executor.legal(Program(), []) == "there is no tensor to compute over"


def test_a_failing_inductor_falls_back_once_and_says_so(monkeypatch):
    calls = []

    def broken(fn, **options):
        calls.append(fn)

        def run(*args):
            raise RuntimeError("no compiler here\nand more")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    compiled.compiled.cache_clear()
    twins = Twins(gch.adamw(0.01), Shapes(), ("blocks",))
    twins.ours._bound.engine.executors = (Compiled("cpu"), Blocks())
    for t in range(3):
        twins.gradients(t)
    twins.compare()
    assert len(calls) == 1, "every step tried again"
    assert "not compiled: torch.compile failed: RuntimeError: no compiler here" in twins.ours.explain()
    compiled.compiled.cache_clear()


def test_nothing_is_written_where_compiling_fails(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda fn, **options: lambda *args: 1 / 0)
    compiled.compiled.cache_clear()
    with pytest.raises(NoKernel, match="ZeroDivisionError"):
        Compiled("cpu").ready(Program([0], stores=[(0, ("zero",))]), [torch.float32], [3])
    compiled.compiled.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_text_computes_every_operation(dtype):
    """The printed torch, run as it is: by blocks it is the same."""
    program = everything()
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(40, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]
    mine, theirs = ([r.clone() for r in rows] for _ in range(2))
    space = {"torch": torch, "do": compiled._torch.POINTWISE}
    exec(compiled.source(program, [dtype, dtype]), space)
    space["run"](*mine, *(torch.tensor(v, dtype=torch.float64) for v in (0.3, 0.7, 0.2)))
    columns = [Column([row]) for row in theirs]
    Blocks().ready(program, [dtype, dtype], [40]).run(columns, [0.3, 0.7], [0.2])
    assert torch.equal(mine[0], theirs[0])
    torch.testing.assert_close(mine[1], theirs[1], equal_nan=True)
    assert not torch.equal(mine[1], rows[1])


def test_two_columns_may_change_places():
    space = {"torch": torch, "do": compiled._torch.POINTWISE}
    exec(compiled.source(Program([0, 1], stores=[(0, ("load", 1)), (1, A)]), [torch.float32] * 2), space)
    a, b = torch.tensor([1.0]), torch.tensor([2.0])
    space["run"](a, b)
    assert (a.item(), b.item()) == (2.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw, clipped", "float64"), ("sgd, nesterov", "mixed"), ("lamb", "float64"), ("masked", "float32"),
     ("accumulate, amp", "mixed"), ("masks", "float32")],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:chain. scale_by_.* divides out the scale")
@pytest.mark.filterwarnings("ignore:bind. float16")
def test_equal_to_the_reference(name, kind):
    tx = {**test_equal.GRADIENTS, **test_equal.LOSSES}[name]()
    twins = Twins(tx, Shapes(test_equal.KINDS[kind]), ("compiled", "blocks"))
    twins.ours._bound.engine.executors = (Compiled("cpu"), Blocks())
    test_equal.teach(twins, name)
    twins.compare(test_equal.LOOSE.get(name, 0.0))
    parts = [part for plan in twins.ours._bound.engine._plans.values() for part in plan.parts]
    assert all(part.executor == ("blocks" if part.program.reduce else "compiled") for part in parts)


@pytest.mark.slow
def test_new_numbers_compile_nothing_anew():
    model = Model([torch.float32], 0)
    updater = gch.sgd(gch.linear(0.1, 0.01, 20), momentum=0.9).bind(model)
    updater._bound.engine.executors = (Compiled("cpu"),)
    made = torch._dynamo.utils.counters["stats"]
    for step in range(12):
        updater.step({n: torch.ones_like(p) for n, p in model.named_parameters()})
        if step == 0:
            after_first = made["unique_graphs"]
    assert after_first and made["unique_graphs"] == after_first
    assert updater._bound.engine.num_plans == 1
