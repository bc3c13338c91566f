"""Reading documentation: the fenced blocks and the tables of a Markdown file, and running the blocks that are Python.

The Python blocks of a file run in order and in one namespace, as a reader would type them one after the other. A block
whose fence has a title, ```` ```python title="path" ````, is a piece of that file: it is not run here.
"""

from __future__ import annotations

import re
import sys
import types
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the path in its title or "", its text and the line of its first character."""

    language: str
    title: str
    text: str
    line: int


def blocks(markdown: str) -> list[Block]:
    """Every fenced block, in order. ValueError for a fence that is not closed."""
    found, opened, begin, lines = [], None, 0, []
    for number, line in enumerate(markdown.splitlines(), start=1):
        if opened is None and line.startswith("```"):
            opened, begin, lines = line[3:], number + 1, []
        elif opened is not None and line.rstrip() == "```":
            title = re.search(r'title="([^"]+)"', opened)
            language = opened.split()[0] if opened.split() else ""
            found.append(Block(language, title[1] if title else "", "\n".join(lines) + "\n", begin))
            opened = None
        elif opened is not None:
            lines.append(line)
    if opened is not None:
        raise ValueError(f"the fence above line {begin} is not closed")
    return found


def run_python(markdown: str, name: str, **given: Any) -> list[Block]:
    """Run the untitled Python blocks in one new module, and return them. A traceback has the file's own lines.

    Args:
        markdown: the page.
        name: what tracebacks call it.
        **given: names that the module has from the start.
    """
    ran = [b for b in blocks(markdown) if b.language == "python" and not b.title]
    module = types.ModuleType(re.sub(r"\W", "_", name))
    vars(module).update(given)
    sys.modules[module.__name__] = module  # where a link's annotations are looked up
    try:
        for block in ran:
            code = compile("\n" * (block.line - 1) + block.text, name, "exec", dont_inherit=True)
            exec(code, vars(module))
    finally:
        del sys.modules[module.__name__]
    return ran


def prints(markdown: str, name: str) -> list[tuple[str, str]]:
    """Run the page; for each print with a comment behind it, or on the line below: the comment, and what it printed."""
    lines, found = markdown.splitlines(), []

    def recorded(*values: object) -> None:
        here = sys._getframe(1).f_lineno - 1
        behind, below = lines[here].rpartition("  # "), lines[here + 1]
        comment = behind[2] if behind[1] else below[2:] if below.startswith("# ") else ""
        if comment:
            found.append((comment, " ".join(map(str, values))))

    run_python(markdown, name, print=recorded)
    return found


def outputs(markdown: str, name: str) -> list[tuple[str, str]]:
    """Run the page; for each block of text right behind one of Python: what it says, and what that one printed."""
    printed: list[tuple[int, str]] = []

    def recorded(*values: object) -> None:
        printed.append((sys._getframe(1).f_lineno, " ".join(map(str, values)) + "\n"))

    run_python(markdown, name, print=recorded)
    found, every = [], blocks(markdown)
    for block, after in pairwise(every):
        if (block.language, after.language) == ("python", "text"):
            said = (text for line, text in printed if block.line <= line < after.line)
            found.append((after.text, "".join(said)))
    return found


def tables(markdown: str) -> dict[str, list[list[str]]]:
    """Every table by the text of its first heading cell: its rows, each a list of cells."""
    found: dict[str, list[list[str]]] = {}
    rows: list[list[str]] | None = None
    for line in markdown.splitlines():
        if not line.startswith("|"):
            rows = None
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if rows is None:
            rows = found[cells[0]] = []
        elif not set("".join(cells)) <= set("-: "):
            rows.append(cells)
    return found
