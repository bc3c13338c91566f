"""What can go wrong, what is promised then, and how it is tried: the records that docs/what_can_go_wrong.md is made of.

A kind of fault is a module `faults_….py` here with a `KIND`. It is found by its name: nothing lists it. CI tries `few`
of each fault, `python -m tests.faults` tries `many` and writes the figures into results/ and the page.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "what_can_go_wrong.md"
RESULTS = HERE / "results"

Trials = Callable[[int, Path], Iterable[str]]


@dataclass(frozen=True)
class Fault:
    """One thing that can go wrong.

    Attributes:
        name: a few words, unique in its kind.
        fault: what happens, a phrase that begins a cell of the table.
        promise: what holds all the same.
        trials: tries it about so often in an empty folder, and gives for each trial "" where the promise was kept, or
            what was lost in one sentence. What it gives is what is counted.
        few: how often CI tries it, 0 for never.
        many: how often the long form does.
        test: the file that tries it, below tests/; the module of the kind where nothing is said.
    """

    name: str
    fault: str
    promise: str
    trials: Trials = field(repr=False)
    few: int
    many: int
    test: str = ""


@dataclass(frozen=True)
class Kind:
    """Faults that belong together: a section of the page.

    Attributes:
        title: the heading.
        text: a paragraph below it: how they are tried, and what counts as lost.
        faults: one row each.
        alone: whether they are tried in a process of their own, because they fork, kill or limit it.
    """

    title: str
    text: str
    faults: tuple[Fault, ...]
    alone: bool = False


@dataclass
class Row:
    """What came of a fault.

    Attributes:
        name: the fault's.
        trials: how often it was tried.
        losses: how often the promise was not kept.
        told: of the first losses, what was lost.
        seconds: how long it took.
    """

    name: str
    trials: int = 0
    losses: int = 0
    told: list[str] = field(default_factory=list)
    seconds: float = 0.0


def kinds() -> dict[str, Kind]:
    """All kinds, by the word behind `faults_` in the name of their module."""
    words = sorted(file.stem.removeprefix("faults_") for file in HERE.glob("faults_*.py"))
    return {word: importlib.import_module(f"faults_{word}").KIND for word in words}


def tried(fault: Fault, times: int, end: float = math.inf) -> Row:
    """Try a fault in a folder of its own, so often or until this time."""
    row, begin = Row(fault.name), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="gradchain-faults-") as folder:
        for lost in fault.trials(times, Path(folder)):
            row.trials += 1
            if lost:
                row.losses += 1
                row.told = [*row.told, lost][:5]
            if time.time() >= end:
                break
    row.seconds = round(time.perf_counter() - begin, 2)
    return row


# results


def machine() -> str:
    """What they were tried on."""
    system = platform.uname()
    return (
        f"{os.cpu_count()} cores, {system.machine}, {system.system} {re.match(r'[0-9.]+', system.release)[0]}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def keep(word: str, rows: list[Row]) -> None:
    """Write the figures of a kind, with the day and the machine."""
    RESULTS.mkdir(exist_ok=True)
    figures = {"date": f"{datetime.now(timezone.utc):%Y-%m-%d}", "machine": machine(), "rows": list(map(asdict, rows))}
    (RESULTS / f"{word}.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")


def kept(word: str) -> dict:
    """The figures of a kind as they were written, with its rows as `Row`."""
    figures = json.loads((RESULTS / f"{word}.json").read_text())
    return {**figures, "rows": [Row(**row) for row in figures["rows"]]}


# page

HEAD = """# What can go wrong

Each row is a fault, what gradchain promises when it happens, and how often that was tried. `python -m tests.faults`
tries them all and writes this page; `--only` with the word behind a heading tries one kind. A smaller, fixed number of
each is tried with every change. A loss is a trial in which the promise was not kept.

{total}
"""

SECTION = """
## {title} (`{word}`)

{text}

| fault | promise | test | trials | losses |
|---|---|---|---|---|
{rows}

{date}, {machine}; {seconds} s.
"""


def page() -> str:
    """The page, of the kinds that have figures."""
    sections, trials, losses = "", 0, 0
    for word, kind in kinds().items():
        if not (RESULTS / f"{word}.json").exists():
            continue  # it was not tried yet, which a test says
        figures = kept(word)
        by_name = {row.name: row for row in figures["rows"]}
        lines = []
        for fault in kind.faults:
            row = by_name[fault.name]
            where = fault.test or f"faults/faults_{word}.py"
            test = f"[{fault.name}](../tests/{where})"
            lines.append(f"| {fault.fault} | {fault.promise} | {test} | {row.trials:,} | {row.losses:,} |")
            trials, losses = trials + row.trials, losses + row.losses
        sections += SECTION.format(
            title=kind.title,
            word=word,
            text=kind.text,
            rows="\n".join(lines),
            date=figures["date"],
            machine=figures["machine"],
            seconds=round(sum(row.seconds for row in figures["rows"])),
        )
    return HEAD.format(total=f"In all {trials:,} trials, and {losses:,} losses.") + sections


def find_modules() -> None:
    """Have the modules of tests/ and of this folder found by their names, as pytest does."""
    for folder in (HERE, HERE.parent):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
