"""The tables of operations: no record lacks a piece, its pieces agree, and a new one costs one place."""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import re
import shutil
import string
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import programs
import pytest
import torch

import gradchain as gch
from gradchain.core import _torch
from gradchain.core.operations import OPERATIONS, Operation
from gradchain.engine.operations import REDUCTIONS, Reduction

HERE = Path(__file__).parent
SPECIAL = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 0.5, 2.0, 7.25, -3.5]
WORDS = set(programs.OPERATIONS) | {"number"}  # which is no word of a rule's: a mask becomes 0 and 1 by itself

operations = pytest.mark.parametrize("op", OPERATIONS)
numbers = pytest.mark.parametrize("op", [name for name, o in OPERATIONS.items() if o.host is not None])


def holes(text: str) -> set[str]:
    """The places of a text that are filled in."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def lacks(operation: Operation) -> list[str]:
    """What a record lacks, in words; a record of the table lacks nothing."""
    arity = len(operation.takes)
    places = {str(i) for i in range(arity)}
    texts = {"C": operation.c, "Triton": operation.triton, "Triton in float64": operation.wide or operation.triton}
    found = [f"{operation.name}: {kind} of each operand" for kind, t in texts.items() if holes(t) - {"C"} != places]
    if not arity or set(operation.takes) - {"n", "m"}:
        found.append(f"{operation.name}: what it takes")
    if not callable(operation.truth):
        found.append(f"{operation.name}: its truth")
    of_c = re.findall(r"([A-Z]{2}\w*)\(", operation.c)
    by_width = re.findall(r"F\(([A-Z]\w*)\)", operation.c)
    made = [f"C {word}(" in operation.helper for word in of_c]
    made += [f"float {word}f(" in operation.helper and f"#define {word} " in operation.helper for word in by_width]
    if not all(made):
        found.append(f"{operation.name}: the helper of its C")
    for kinds, name in operation.lists.items():
        if len(kinds) != arity or set(kinds) - set("tsSz") or not hasattr(torch, f"_foreach_{name}"):
            found.append(f"{operation.name}: the kernel {name} over lists of kinds {kinds}")
    return found


@operations
def test_no_operation_lacks_a_piece(op):
    assert OPERATIONS[op].name == op
    assert lacks(OPERATIONS[op]) == []


@pytest.mark.parametrize(
    ("piece", "value", "told"),
    [
        ("c", "", "maximum: C of each operand"),
        ("c", "MAXIMUM({0})", "maximum: C of each operand"),
        ("triton", "", "maximum: Triton of each operand"),
        ("wide", "tl.maximum({0}, {1}, {2})", "maximum: Triton in float64 of each operand"),
        ("helper", "", "maximum: the helper of its C"),
        ("c", "F(MAXIMUM)({0}, {1})", "maximum: the helper of its C"),
        ("takes", "nx", "maximum: what it takes"),
        ("truth", None, "maximum: its truth"),
        ("lists", {"tt": "largest"}, "maximum: the kernel largest over lists of kinds tt"),
        ("lists", {"t": "maximum"}, "maximum: the kernel maximum over lists of kinds t"),
    ],
)
def test_a_missing_piece_is_named(piece, value, told):
    assert told in lacks(replace(OPERATIONS["maximum"], **{piece: value}))


def test_no_record_is_made_without_its_texts():
    with pytest.raises(TypeError, match="'c' and 'triton'"):
        Operation("cube", "n", lambda a: a * a * a)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'c', 'triton', and 'torch'"):
        Reduction(torch.sum, REDUCTIONS["sum"].meet)  # type: ignore[call-arg]


@operations
def test_a_rule_has_a_word_for_it(op):
    assert op in WORDS, f"tests/engine/programs.py calls no {op}: random programs never meet it"


def drawn(operation: Operation, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Operands with every pair of special numbers, and masks."""
    pairs = [torch.tensor(column, dtype=dtype) for column in zip(*itertools.product(SPECIAL, SPECIAL), strict=True)]
    given = itertools.cycle([*pairs, torch.linspace(-1, 2, len(SPECIAL) ** 2, dtype=dtype)])
    return [next(given) if kind == "n" else next(given) > 0 for kind in operation.takes]


@operations
def test_a_mask_is_what_gives_truth_values(op):
    operation = OPERATIONS[op]
    result = operation.truth(*drawn(operation), *([torch.float64] if operation.typed else []))
    assert (result.dtype is torch.bool) == operation.mask


@numbers
def test_a_number_of_the_host_computes_as_a_tensor_does(op):
    operation = OPERATIONS[op]
    given = drawn(operation)
    want = operation.truth(*given).tolist()
    for row, expected in zip(zip(*(v.tolist() for v in given), strict=True), want, strict=True):
        try:
            found = operation.host(*row)
        except (ZeroDivisionError, OverflowError):  # Python's power of zero
            assert op == "pow"
            continue
        if isinstance(found, complex):  # Python's power of a negative number
            continue
        assert found == pytest.approx(expected, rel=1e-15, abs=0.0, nan_ok=True), row
        assert type(found) is type(expected)


@pytest.mark.parametrize("op", [name for name, o in OPERATIONS.items() if o.column is not None])
def test_a_column_gives_the_bits_of_the_host(op):
    operation = OPERATIONS[op]
    a, b = torch.randn(2, 500, dtype=torch.float64)
    for x, y in ((a, b), (a, 0.7), (0.7, b)):
        rows = zip(*(v.tolist() if isinstance(v, torch.Tensor) else [v] * 500 for v in (x, y)), strict=True)
        assert operation.column(x, y).tolist() == [operation.host(*row) for row in rows]


LISTS = [(op, kinds) for op, operation in OPERATIONS.items() for kinds in operation.lists]


@pytest.mark.parametrize(("op", "kinds"), LISTS, ids=[f"{op}-{kinds}" for op, kinds in LISTS])
def test_a_kernel_over_lists_is_used_and_gives_the_truth(op, kinds, monkeypatch):
    operation = OPERATIONS[op]
    made = {
        "t": lambda: [torch.rand(3) + 0.1, torch.rand(4, 2) + 0.1],
        "s": lambda: 0.6,
        "S": lambda: [0.6, 1.7],
        "z": lambda: torch.tensor(0.6),
    }
    columns = [made[kind]() for kind in kinds]
    rows = zip(*(c if isinstance(c, list) else [c] * 2 for c in columns), strict=True)
    want = [operation.truth(*row) for row in rows]
    calls, kernel, name = [], _torch._FOREACH[operation.lists[kinds]], operation.lists[kinds]
    monkeypatch.setitem(_torch._FOREACH, name, lambda *args: calls.append(name) or kernel(*args))
    with torch.no_grad():
        torch.testing.assert_close(_torch.pointwise(op, columns, 2), want, rtol=1e-6, atol=1e-7)
    assert calls == [name]


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_no_reduction_lacks_a_piece(kind):
    reduction = REDUCTIONS[kind]
    assert "v" in reduction.c and "wide" in reduction.triton and "wide" in reduction.torch
    meet = reduction.meet
    assert (holes(meet.c), holes(meet.triton), holes(meet.block)) == ({"0", "1"}, {"0", "1"}, {"0"})
    assert hasattr(torch, meet.torch) and hasattr(torch.Tensor, meet.torch)
    v = torch.tensor([1.0, -3.0, 2.0, 0.5])
    parts = [reduction.truth(v[:2]).item(), reduction.truth(v[2:]).item()]
    assert reduction.truth(v).dtype is torch.float64
    assert meet.host(*parts) == meet.host(*parts[::-1]) == pytest.approx(reduction.truth(v).item())
    assert meet.host(0.0, parts[0]) == parts[0], "of nothing it is 0"
    assert math.isnan(meet.host(math.nan, 1.0)) and math.isnan(meet.host(1.0, math.nan))


# one place

AFTER = "def _of_one() -> list[Operation]:\n    return [\n"
CUBE = """\
        Operation("cube", "n", lambda a: a * a * a, "({0} * {0} * {0})", "({0} * {0} * {0})", lambda a: a * a * a),
"""
AHEAD = '''\
        Operation("ahead", "nn", lambda a, b: torch.ceil(a - b), "AHEAD({0}, {1})", "libdevice.ceil({0} - {1})",
                  helper="static inline C AHEAD(C a, C b) { return F(ceil)(a - b); }"),
'''  # fmt: skip
BETWEEN = '''\
        Operation("between", "nnn", lambda a, b, c: (a < b) & (b < c), "(({0} < {1}) & ({1} < {2}))",
                  "(({0} < {1}) & ({1} < {2}))", mask=True),
'''  # fmt: skip
EITHER = """\
        Operation("either", "mm", lambda a, b: a ^ b, "({0} ^ {1})", "({0} ^ {1})", mask=True),
"""
SUM4 = '''\
    "sum4": Reduction(lambda v: v.double().pow(4).sum(), SUM, c="(double)v * v * v * v",
                      triton="wide * wide * wide * wide", torch="(wide ** 4)"),
'''  # fmt: skip
NEW = {"cube": CUBE, "ahead": AHEAD, "between": BETWEEN, "either": EITHER}


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A copy of the library with an operation of each kind in its table, and a reduction in its own. No other line."""
    folder = tmp_path_factory.mktemp("grown")
    shutil.copytree(Path(gch.__file__).parent, folder / "gradchain", ignore=shutil.ignore_patterns("__pycache__"))
    places = {
        "core/operations.py": (AFTER, "".join(NEW.values())),
        "engine/operations.py": ("REDUCTIONS: dict[str, Reduction] = {\n", SUM4),
    }
    for path, (after, added) in places.items():
        file = folder / "gradchain" / path
        text = file.read_text()
        assert text.count(after) == 1
        file.write_text(text.replace(after, after + added))
    return folder


def by_the_tests_of(grown: Path, files: list[str], **variables: str) -> str:
    """Run the tests of the new operations in some files, over the grown library."""
    chosen = " or ".join([*NEW, "sum4"])
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", "-vk", chosen]
    environment = {**os.environ, "PYTHONPATH": str(grown), **variables}
    done = subprocess.run(
        [*command, *(str(HERE / f) for f in files)],
        cwd=grown,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    return done.stdout


def test_a_new_operation_costs_one_place(grown):
    """By the host, the reference, blocks, native C and as Inductor's text, each held to its truth."""
    told = by_the_tests_of(
        grown, ["grown_cases.py", "test_native_operations.py", "test_blocks_operations.py", "test_compiled.py"]
    )
    for op in [*NEW, "sum4"]:
        for file in ("test_native_operations", "test_blocks_operations"):
            assert f"{file}.py::" in told and any(file in line and f"[{op}" in line for line in told.splitlines()), op
    assert all(f"test_the_text_computes_every_operation[{op}" in told for op in NEW)
    assert "test_the_text_computes_every_reduction[sum4" in told


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.slow
def test_a_new_operation_costs_one_place_in_triton(grown):
    told = by_the_tests_of(grown, ["triton_cases.py"], TRITON_INTERPRET="1")
    for op in [*NEW, "sum4"]:
        assert f"[{op}" in told or f"-{op}-" in told, op
