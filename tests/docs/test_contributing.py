"""CONTRIBUTING.md, followed literally in a copy of the tree from which `scale_by_sign` was removed."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from doc_blocks import ROOT, Block, blocks

NAME = "scale_by_sign"
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
PIECES = {block.title: block for block in blocks(PAGE) if block.title}
RULE, ROOM, DOOR, TABLE = (
    "gradchain/transforms/sign.py",
    "gradchain/transforms/__init__.py",
    "gradchain/__init__.py",
    "tests/cases.py",
)


def test_the_page_shows_the_file_as_it_is():
    assert PIECES[RULE].text == (ROOT / RULE).read_text()


@pytest.mark.parametrize("path", [ROOM, DOOR, TABLE, "docs/catalogue.md"])
def test_the_page_shows_the_lines_as_they_are(path):
    """So that what is followed below is what stands in the repository."""
    there = (ROOT / path).read_text()
    for part in [PIECES[path].text] if path == TABLE else PIECES[path].text.splitlines():
        assert part in there, part


# following it


def row(source: str, name: str) -> tuple[int, int]:
    """The lines of a row of the table: the first, and the one after the last."""
    (table,) = (
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "CASES"
    )
    assert isinstance(table, ast.Tuple)
    (found,) = (
        call
        for call in table.elts
        if isinstance(call, ast.Call) and isinstance(call.args[0], ast.Constant) and call.args[0].value == name
    )
    assert found.end_lineno is not None
    return found.lineno - 1, found.end_lineno


def remove(tree: Path) -> None:
    """Take the rule out of the tree: its file, its exports, its row."""
    (tree / RULE).unlink()
    for path in (ROOM, DOOR):
        kept = [line for line in (tree / path).read_text().splitlines() if not re.search(rf"\b{NAME}\b", line)]
        (tree / path).write_text("\n".join(kept) + "\n")
    source = (tree / TABLE).read_text()
    begin, end = row(source, NAME)
    lines = source.splitlines()
    (tree / TABLE).write_text("\n".join(lines[:begin] + lines[end:]) + "\n")


def inserted(lines: list[str], line: str) -> list[str]:
    """`line` at its place in the alphabet among the lines that look like it: imports, or names in a list."""
    kinds = r"from gradchain", r"    from gradchain", r'    "\w+",$', r'    "\w+": '
    like = next(kind for kind in kinds if re.match(kind, line))
    places = [i for i, other in enumerate(lines) if re.match(like, other) and other < line]
    return [*lines[: places[-1] + 1], line, *lines[places[-1] + 1 :]]


def follow(tree: Path, pieces: dict[str, Block]) -> None:
    """Apply the titled blocks of the page that concern code."""
    (tree / RULE).write_text(pieces[RULE].text)
    for path in (ROOM, DOOR):
        lines = (tree / path).read_text().splitlines()
        for line in pieces[path].text.splitlines():
            lines = inserted(lines, line)
        (tree / path).write_text("\n".join(lines) + "\n")
    source = (tree / TABLE).read_text()
    assert source.rstrip().endswith("\n)"), "the table is the last thing in its file"
    (tree / TABLE).write_text(source.rstrip()[:-1] + pieces[TABLE].text + ")\n")


@pytest.fixture
def tree(tmp_path) -> Iterator[Path]:
    """A copy of package and tests without the rule."""
    for folder in ("gradchain", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / file, tmp_path)
    remove(tmp_path)
    return tmp_path


def run(tree: Path, *selection: str) -> tuple[int, int, str]:
    """The generic tests in the copy: how many passed, how many failed or did not start, and what was printed."""
    generic = sorted(str(path.relative_to(tree)) for path in (tree / "tests").glob("test_*.py"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *generic, *selection],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error)", done.stdout)}
    return counts.get("passed", 0), counts.get("failed", 0) + counts.get("error", 0), done.stdout + done.stderr


def test_without_the_steps_the_rule_is_gone(tree):
    """Else following them would prove nothing; with them the exports are those of the repository."""
    for path in (ROOM, DOOR, TABLE):
        assert NAME not in (tree / path).read_text()
    follow(tree, PIECES)
    for path in (RULE, ROOM, DOOR):
        assert (tree / path).read_text() == (ROOT / path).read_text()


@pytest.mark.slow
def test_following_the_page_adds_the_rule(tree):
    """The command of step 4, in the copy: generic tests were found for the new row, and all pass."""
    follow(tree, PIECES)
    passed, failed, report = run(tree, "-k", NAME)
    assert failed == 0, report
    assert passed >= 8, report


@pytest.mark.slow
def test_a_wrong_rule_does_not_pass(tree):
    """The negative control: the same steps with the sign of the sign wrong."""
    rule = PIECES[RULE]
    wrong = rule.text.replace("return g.sign(), state", "return -g.sign(), state")
    assert wrong != rule.text
    follow(tree, {**PIECES, RULE: Block(rule.language, rule.title, wrong, rule.line)})
    _, failed, report = run(tree, "-k", NAME, "--maxfail=1")
    assert failed, report
