"""Several native kernels that run tensor by tensor: all of them over one before the next, while it is in the cache.

A rule that divides by a norm passes over a tensor twice, and what the first pass read is gone from the cache once it
has read all the others. Here one job goes through the kernels of a step for each parameter in turn. The numbers that
lie between them are computed in it, in float64 and in the order of the host, so they have the host's bits.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from gradchain.core.operations import OPERATIONS
from gradchain.engine.commit import Commit
from gradchain.engine.executors import build
from gradchain.engine.executors.drive import JOB
from gradchain.engine.executors.native import Kernels, NativeRunner, stretches
from gradchain.engine.operations import REDUCTIONS
from gradchain.engine.planning.lower import Value

ARITHMETIC = frozenset("add sub mul div minimum maximum sqrt lt le gt ge eq where".split())
"""Operations on numbers that C computes with the host's bits, and that raise nothing where the host does not."""

_FORMS = {name: OPERATIONS[name].c for name in ARITHMETIC} | {"neg": "(-{0})", "root": "pow({0}, half)"}
_LETTERS = {"reduced": "t", "scalar": "s", "entry": "e", "number": "n"}


@dataclass
class Numbers:
    """The arithmetic between kernels, for one parameter.

    Attributes:
        reduced: (kind, which stages have it of some parameters): what is reduced.
        lines: (operation, operands). An operand is ("reduced", i), ("number", i), the result of line i, or what the
            host knows before: ("scalar", i), or ("entry", i) of each parameter.
        put: by stage, (its number per row, what that is).
    """

    reduced: list[tuple[str, list[int]]] = field(default_factory=list)
    lines: list[tuple[str, tuple[Value, ...]]] = field(default_factory=list)
    put: dict[int, list[tuple[int, Value]]] = field(default_factory=dict)


class Room(NamedTuple):
    """Memory for what a stage keeps of one parameter, for those behind it.

    Attributes:
        places: (stage, column): whose addresses these are.
        size: of one place, in bytes.
    """

    places: list[tuple[int, int]]
    size: int


def staged_source(
    stages: int, widths: Sequence[int], numbers: Numbers, scalars: int, entries: int,
    places: Sequence[tuple[int, int]],
) -> str:  # fmt: skip
    """The C of a job over parameters. Its columns are, for each stage, a job and where its items of each begin and end.

    `run` is what the check in a child calls: it goes over nothing.
    """
    helpers = [OPERATIONS[op].helper for op, _ in numbers.lines if op in OPERATIONS]
    helpers += [REDUCTIONS[kind].meet.helper for kind, _ in numbers.reduced]
    body: list[str] = []
    done: set[int] = set()
    for stage in range(stages):
        given = numbers.put.get(stage, [])
        for _, value in given:
            body += _computed(value, numbers, done)
        body += [_put(stage, widths[stage], at, value) for at, value in given]
        body += [_placed(*place, at) for at, place in enumerate(places) if place[0] == stage]
        body.append(f"part(j{stage}, i{stage});")
        for i, (kind, of) in enumerate(numbers.reduced):
            body += [f"double t{i} = 0.0;"] if stage == min(of) else []
            body += [_met(stage, i, kind)] if stage in of else []
    lines = [
        "#include <stdint.h>",
        "#include <math.h>",
        "#define C double",
        "#define F(name) name",
        JOB + "\n".join(dict.fromkeys(filter(None, helpers))),
        "static inline void part(const job* j, const int64_t* i) {",
        "  const int64_t a = i[0], n = i[1] - a;",
        "  if (n > 0) j->run(n, j->row + a, j->begin + a, j->end + a, j->columns, j->scalars, j->entries, "
        "j->out ? j->out + a : 0);",
        "}",
        "void staged(int64_t items, const int64_t* row, const int64_t* begin, const int64_t* end,",
        "            const int64_t* const* columns, const double* scalars, const double* entries, double* out) {",
        f"  const double half = scalars[{scalars}];",  # of a constant a compiler would make another root
        *(f"  const double s{i} = scalars[{i}];" for i in range(scalars)),
        *(f"  const job* const j{s} = (const job*)columns[{2 * s}];" for s in range(stages)),
        *(_TAKEN.format(2 * stages).splitlines() if places else []),
        "  for (int64_t k = 0; k < items; ++k) {",
        "    const int64_t r = row[k];",
        *(f"    const int64_t* const i{s} = columns[{2 * s + 1}] + 2 * r;" for s in range(stages)),
        *(f"    const double e{i} = entries[r * {entries} + {i}];" for i in range(entries)),
        *(f"    {line}" for line in body),
        "  }",
        *(["  __atomic_store_n(taken, 0, __ATOMIC_RELEASE);"] if places else []),
        "}",
        "void run(void) {}",
    ]
    return "\n".join([*lines, ""])


# room for one thread: where it begins, how large a place is, how many threads have some, and which of it is taken
_TAKEN = """\
  int64_t* const room = (int64_t*)columns[{}];
  int64_t mine = 0;
  while (__atomic_exchange_n(room + 4 + mine, 1, __ATOMIC_ACQUIRE)) mine = mine + 1 < room[2] ? mine + 1 : 0;
  int64_t* const taken = room + 4 + mine;
  const int64_t place = room[0] + mine * room[3];"""


def _placed(stage: int, column: int, at: int) -> str:
    """The line by which a column of a stage lies in this thread's room."""
    where = f"((int64_t*)j{stage}->columns[{column}])[j{stage}->row[i{stage}[0]]]"
    return f"if (i{stage}[0] < i{stage}[1]) {where} = place + {at} * room[1];"


def _met(stage: int, i: int, kind: str) -> str:
    """The line that meets what a stage reduced, item by item as the host would."""
    meet = REDUCTIONS[kind].meet.c.format("a", "b")
    items = f"for (int64_t m = i{stage}[0]; m < i{stage}[1]; ++m)"
    return f"{items} {{ const double a = t{i}, b = j{stage}->out[m]; t{i} = {meet}; }}"


def _computed(value: Value, numbers: Numbers, done: set[int]) -> list[str]:
    """The lines that compute a number, those that are not there yet."""
    kind, at = value
    if kind != "number" or at in done:
        return []
    done.add(at)
    op, operands = numbers.lines[at]
    before = [line for operand in operands for line in _computed(operand, numbers, done)]
    return [*before, f"const double n{at} = {_FORMS[op].format(*map(_name, operands))};"]


def _name(value: Value) -> str:
    return _LETTERS[value[0]] + str(value[1])


def _put(stage: int, width: int, at: int, value: Value) -> str:
    """The line by which a stage gets one of its numbers per row."""
    place = f"((double*)j{stage}->entries)[j{stage}->row[i{stage}[0]] * {width} + {at}]"
    return f"if (i{stage}[0] < i{stage}[1]) {place} = {_name(value)};"


class StagedRunner:
    """Native kernels as the stages of one job over parameters.

    Args:
        runners: of the stages.
        rows: for each, the row of each parameter that it runs over.
        widths: how many numbers per row each has.
        names: the parameters.
        numbers: what lies between.
        scalars, entries: how many numbers of the host that takes.
        room: for what stages keep.
    """

    scratch = None

    def __init__(
        self, runners: Sequence[NativeRunner], rows: Sequence[Mapping[str, int]], widths: Sequence[int],
        names: Sequence[str], numbers: Numbers, scalars: int, entries: int, room: Room,
    ) -> None:  # fmt: skip
        self.source = staged_source(len(runners), widths, numbers, scalars, entries, room.places)
        self._room, self._memory = room, torch.empty(0, dtype=torch.uint8, device="cpu")
        library = build.load(self.source)
        self._runners = runners
        self._stretches = array("q", stretches(elements_of(runners, rows, names)))
        self._units = array("q", range(len(names)))
        self._items = [_items_of(runner, of, names) for runner, of in zip(runners, rows, strict=True)]
        table = [cell for runner, items in zip(runners, self._items, strict=True)
                 for cell in (runner.at, items.buffer_info()[0])]  # fmt: skip
        self._table = array("q", [*table, 0])
        self._elements = sum(runner.items.elements for runner in runners)
        self._kernel: Any = (library, ctypes.cast(library.staged, ctypes.c_void_p).value or 0)

    def write(self, commit: Commit, columns: Sequence[Any], scalars: Sequence[float], entries: Sequence[float]) -> None:
        """Have a commit run all stages. `columns` are the arguments of each; see Runner for what else there is."""
        held: list[Any] = [runner.put(*given) for runner, given in zip(self._runners, columns, strict=True)]
        numbers, per_row, room = array("d", [*scalars, 0.5]), array("d", entries), self._room_for_threads()
        self._table[-1] = room.buffer_info()[0]
        units, stretches = self._units.buffer_info()[0], self._stretches.buffer_info()[0]
        cells = [column.buffer_info()[0] for column in (self._table, numbers, per_row)]
        job = array(
            "q",
            (self._kernel[1], len(self._units), units, units, units, len(self._stretches) - 1, stretches, *cells, 0),
        )
        commit.shared(Kernels).add(job.buffer_info()[0], self._elements, (self, held, numbers, per_row, room, job))

    def _room_for_threads(self) -> array[int]:
        """What the job knows of room: nobody has taken any."""
        places, size = self._room
        threads = torch.get_num_threads() if places else 0
        if self._memory.numel() < (needed := len(places) * size * threads + 64):
            self._memory = torch.empty(needed, dtype=torch.uint8, device="cpu")
        first = -(-self._memory.data_ptr() // 64) * 64
        return array("q", [first, size, threads, len(places) * size, *[0] * threads])


def elements_of(runners: Sequence[NativeRunner], rows: Sequence[Mapping[str, int]], names: Sequence[str]) -> list[int]:
    """How many elements the largest stage of each parameter has."""
    sizes = [runner.items.sizes for runner in runners]
    return [max(size[of[n]] for size, of in zip(sizes, rows, strict=True) if n in of) for n in names]


def _items_of(runner: NativeRunner, rows: Mapping[str, int], names: Sequence[str]) -> array[int]:
    """Where a stage's items of each parameter begin and end."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for k, row in enumerate(runner.items.row_of):
        first.setdefault(row, k)
        last[row] = k + 1
    found = [(first.get(row, 0), last.get(row, 0)) for row in (rows.get(name, -1) for name in names)]
    return array("q", [k for pair in found for k in pair])
