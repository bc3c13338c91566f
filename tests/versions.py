"""Which Pythons and torches the tests run on: an environment for each pair, a run in it, a row in docs/versions.md.

    python tests/versions.py 3.10:2.9 3.13:2.13          # these pairs, one case of each test of the law
    python tests/versions.py --all 3.12:2.12             # every test that is not slow, with every case

An environment is made by uv, and is removed after its run. What uv has downloaded stays under --folder until that is
removed by hand, but for torch itself, of which each pair has its own. Given to pytest as a plugin, this file is also
what chooses the cases.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "versions.md"
ONE = "GRADCHAIN_ONE_CASE"  # set where one case of each test is run
HEAD = ("Python", "torch", "cases", "passed", "failed", "skipped", "what failed, or why nothing was run")

# What the short form runs: the law, and its files to and from the disk.
ROOMS = ("core", "schedules", "selectors", "transforms", "combinators", "engine", "updater")
LONG = ("engine/test_build.py", "engine/test_replay.py", "engine/test_surroundings.py", "updater/test_atomic.py")


class Row(NamedTuple):
    """One line of the page: what was run, and what came out."""

    python: str
    torch: str
    cases: str
    passed: str
    failed: str
    skipped: str
    why: str

    def pair(self) -> tuple[tuple[int, ...], ...]:
        """The minor versions, as numbers: one row is kept for each such pair, in this order."""
        return tuple(tuple(map(int, v.split("+")[0].split(".")[:2])) for v in (self.python, self.torch))


def rows(page: str) -> list[Row]:
    """The rows of the page's table."""
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in page.splitlines() if line[:1] == "|"]
    return [Row(*[*cells, ""][: len(HEAD)]) for cells in lines if cells[0][:1].isdigit()]


def written(page: str, new: Iterable[Row]) -> str:
    """The page with these rows in place of those of the same pairs."""
    kept = {row.pair(): row for row in rows(page)} | {row.pair(): row for row in new}
    table = [HEAD, ("---",) * len(HEAD), *(kept[pair] for pair in sorted(kept))]
    before = page[: page.index("| Python")]
    return before + "".join(f"| {' | '.join(row)} |\n" for row in table)


def chosen(names: Iterable[str]) -> Iterator[bool]:
    """Which of these cases are run: of each test one, the first, and none of a test that takes long."""
    seen = {f"tests/{file}" for file in LONG}
    for name in names:
        file, test = name.partition("::")[0], name.partition("[")[0]
        yield not {file, test} & seen
        seen.add(test)


def pytest_collection_modifyitems(config, items):
    """As a plugin of pytest: leave out the cases that are not chosen."""
    if ONE in os.environ:
        marks = list(zip(items, chosen([item.nodeid for item in items]), strict=True))
        config.hook.pytest_deselected(items=[item for item, runs in marks if not runs])
        items[:] = [item for item, runs in marks if runs]


def interpreter(version: str) -> str | None:
    """A Python of this minor version that starts, on the path or among those of pyenv."""
    versions = pathlib.Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    found = [shutil.which(f"python{version}"), *map(str, versions.glob(f"{version}.*/bin/python"))]
    return next((path for path in found if path and not called(path, "-c", "").returncode), None)


def called(*command: str | os.PathLike[str], **kwargs) -> subprocess.CompletedProcess[str]:
    """A command's end, with all that it said."""
    return subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **kwargs)


def constraints(folder: pathlib.Path) -> pathlib.Path:
    """CI's versions of everything but torch, and triton, which each torch has its own of."""
    text = (ROOT / "constraints.txt").read_text()
    path = folder / "constraints.txt"
    path.write_text(re.sub(r"(?m)^(torch|triton)==.*\n", "", text))
    return path


def outcome(report: pathlib.Path) -> tuple[str, str, str, str]:
    """Of a run, from pytest's report: how many passed, failed, were skipped, and which tests failed."""
    of_kind: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for test in ElementTree.parse(report).iter("testcase"):
        tags = {child.tag for child in test}
        kind = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        of_kind[kind].append(f"{test.get('classname', '').removeprefix('tests.')}.{test.get('name')}")
    failed = dict.fromkeys(name.partition("[")[0] for name in of_kind["failed"])
    return (*(str(len(names)) for names in of_kind.values()), ", ".join(f"`{name}`" for name in failed))


def install(tool: str, python: str, torch: str, home: pathlib.Path, folder: pathlib.Path) -> str:
    """Make an environment; what was said, where that could not be done."""
    env = os.environ | {"UV_CACHE_DIR": str(folder / "cache")}
    called(tool, "venv", "--python", python, home, env=env)
    wanted = (f"torch=={torch}.*", "-e", f"{ROOT}[test]", "-c", constraints(home))
    ended = called(tool, "pip", "install", "--python", home / "bin" / "python", *wanted, env=env)
    called(tool, "cache", "clean", "torch", env=env)
    return ended.stdout if ended.returncode else ""


def tested(home: pathlib.Path, every: bool, log: pathlib.Path) -> Row:
    """Run the tests in an environment."""
    python, report = home / "bin" / "python", home / "report.xml"
    names = called(python, "-c", "import platform, torch; print(platform.python_version(), torch.__version__)")
    if names.returncode:
        return Row("", "", "", "", "", "", f"torch does not start: {names.stdout.splitlines()[-1]}")
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "CI": "true"}
    env |= {} if every else {ONE: "1"}
    where = ["tests"] if every else [f"tests/{room}" for room in ROOMS]
    options = ("-q", "-m", "not slow", "-p", "versions", "-p", "no:cacheprovider", f"--junit-xml={report}")
    ended = called(python, "-m", "pytest", *options, *where, cwd=ROOT, env=env)
    log.write_text(ended.stdout)
    versions = names.stdout.split()[-2:]
    if ended.returncode not in (0, 1):  # all passed, some failed
        return Row(*versions, "", "", "", "", f"pytest ended with {ended.returncode}")
    return Row(*versions, "all" if every else "one of each test", *outcome(report))


def run(python: str, torch: str, every: bool, keep: bool, folder: pathlib.Path) -> Row:
    """Make the environment of a pair, unless an earlier run has kept it; run its tests, and remove it."""
    home, log = folder / f"{python}-{torch}", folder / f"{python}-{torch}.log"
    if not home.exists():
        found = interpreter(python)
        if found is None:
            return Row(python, torch, "", "", "", "", f"no Python {python} on this machine")
        import uv

        said = install(uv.find_uv_bin(), found, torch, home, folder)
        if said:
            log.write_text(said)
            shutil.rmtree(home, ignore_errors=True)
            return Row(python, torch, "", "", "", "", f"not installed: {said.splitlines()[-1].strip()}")
    try:
        row = tested(home, every, log)
        return row if row.python else row._replace(python=python, torch=torch)
    finally:
        if not keep:
            shutil.rmtree(home)


def main() -> None:
    """Read the arguments, and write the page after each pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="PYTHON:TORCH", help="minor versions, as 3.12:2.11")
    parser.add_argument("--all", action="store_true", help="every test, with every case: as long as CI takes")
    parser.add_argument("--keep", action="store_true", help="leave the environment, for another run of the same pair")
    folder = pathlib.Path(tempfile.gettempdir(), "gradchain-versions")
    parser.add_argument("--folder", type=pathlib.Path, default=folder, help="where environments and logs are")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for pair in given.pairs:
        row = run(*pair.split(":"), given.all, given.keep, given.folder)
        row = Row(*(cell.replace("|", "/") for cell in row))
        PAGE.write_text(written(PAGE.read_text(), [row]))
        print(*row, sep=" | ", flush=True)


if __name__ == "__main__":
    main()
