"""Programs by torch.compile: equal to the reference, and what happens where Inductor cannot."""

from __future__ import annotations

import pytest
import test_equal
import torch
from against_reference import Model
from operation_cases import program_of
from twins import Shapes, Twins

import gradchain as gch
from gradchain.core.operations import OPERATIONS
from gradchain.engine.executors import compiled
from gradchain.engine.executors.base import NoKernel
from gradchain.engine.executors.blocks import Blocks
from gradchain.engine.executors.compiled import Compiled
from gradchain.engine.operations import REDUCTIONS
from gradchain.engine.planning.lower import Program
from gradchain.engine.planning.rows import Column

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
@pytest.mark.parametrize("op", OPERATIONS)
def test_the_text_computes_every_operation(op, dtype):
    """The printed torch, run as it is: by blocks it is the same."""
    numbers = (A, ("load", 1), ("scalar", 0), ("entry", 0))
    program = program_of(op, numbers[: len(OPERATIONS[op].takes)])
    if op == "mul":  # with numbers of both kinds
        program = Program([0, 1, 2], [0], [0], [(op, (A, ("scalar", 0))), (op, (("value", 0), ("entry", 0)))])
        program.stores = [(2, ("value", 1))]
    mine = [torch.linspace(0.2, 3.0, 40, dtype=torch.float64).add(k / 7).to(dtype) for k in range(3)]
    theirs = [r.clone() for r in mine]
    space = {"torch": torch, "do": compiled.truths()}
    exec(compiled.source(program, [dtype] * 3), space)
    scalars, entries = [1 / 3][: len(program.scalars)], [0.7][: len(program.entries)]
    space["run"](*mine, *(torch.tensor(v, dtype=torch.float64) for v in (*scalars, *entries)))
    Blocks().ready(program, [dtype] * 3, [40]).run([Column([row]) for row in theirs], scalars, entries)
    # of a weight in a tensor, and of a number; and of another formula
    ulp = torch.finfo(dtype).eps if op == "lerp" or OPERATIONS[op].traced else 0.0
    torch.testing.assert_close(mine, theirs, rtol=ulp, atol=0.0)
    assert mine[2].isfinite().all()


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_the_text_computes_every_reduction(kind):
    space = {"torch": torch, "do": compiled.truths()}
    exec(compiled.source(Program([0], reduce=(kind, A)), [torch.float32]), space)
    row = torch.tensor([0.5, -3.0, 2.0, 1e-3])
    for value in (row, torch.cat([row, torch.tensor([torch.inf])])):
        found, want = space["run"](value), REDUCTIONS[kind].truth(value)
        assert found.dtype is torch.float64
        torch.testing.assert_close(found, want, rtol=1e-12, atol=0.0)


def test_a_mask_made_a_number_has_the_compute_dtype():
    program = Program([0, 1], [0], [], [("gt", (A, ("load", 1))), ("number", (("value", 0),))])
    program.instructions.append(("div", (("value", 1), ("scalar", 0))))
    program.stores = [(0, ("value", 2))]
    a, b = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([0.5, 3.0], dtype=torch.float64)
    space = {"torch": torch, "do": compiled.truths()}
    exec(compiled.source(program, [torch.float64] * 2), space)
    space["run"](a, b, torch.tensor(3.0, dtype=torch.float64))
    assert a.tolist() == [1 / 3, 0.0]


def test_two_columns_may_change_places():
    space = {"torch": torch, "do": compiled.truths()}
    exec(compiled.source(Program([0, 1], stores=[(0, ("load", 1)), (1, A)]), [torch.float32] * 2), space)
    a, b = torch.tensor([1.0]), torch.tensor([2.0])
    space["run"](a, b)
    assert (a.item(), b.item()) == (2.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw, clipped", "float64"), ("sgd, nesterov", "mixed"), ("lamb", "float64"), ("masked", "float32"),
     ("accumulate, amp", "mixed"), ("masks", "float32"), ("curves", "mixed")],
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
