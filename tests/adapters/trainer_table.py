"""The table in docs/trainers.md: consumers, versions and results, a row from each test that has one."""

import os
import pathlib
import re
from importlib.metadata import version

TABLE = pathlib.Path(__file__).parents[2] / "docs" / "trainers.md"
YES = {True: "bit for bit", False: "**no**"}


def check(consumer: str, package: str, trains: str, resumes: str, bare: str) -> None:
    """Compare a row with what the docs say; GRADCHAIN_WRITE=1 writes it. Other versions must come to the same."""
    row = [consumer, f"{package} {version(package).partition('+')[0]}", trains, resumes, bare]
    before, title, rows = TABLE.read_text().partition("## What the tests found\n")
    found = re.search(rf"(?m)^\| {re.escape(consumer)} \|.*\n", rows)
    if os.environ.get("GRADCHAIN_WRITE"):
        line = f"| {' | '.join(row)} |\n"
        rows = rows.rstrip("\n") + "\n" + line if found is None else rows.replace(found[0], line)
        TABLE.write_text(before + title + rows)
        return
    assert found is not None, f"docs/trainers.md has no row of {consumer!r}"
    written = [cell.strip() for cell in found[0].strip().strip("|").split(" | ")]
    assert written[2:] == row[2:]


def answers(calls: dict[str, object]) -> str:
    """What is said where each of these is given an Updater as it is: our sentence, or the package's own."""
    said: dict[str, list[str]] = {}
    for name, call in calls.items():
        said.setdefault(_answer(call), []).append(name)
    told = [words if len(said) == 1 else f"{words}: {', '.join(names)}" for words, names in sorted(said.items())]
    return "; ".join(told)


def _answer(call) -> str:
    try:
        call()
    except Exception as error:
        words = [str(error), str(error.__cause__)]
        if any("as_optimizer()" in each for each in words):
            return "names the door"
        if any("Updater: has no" in each for each in words):
            return "says what to use"
        first = re.split(r"\n|(?<=\.) ", str(error))[0].rstrip(".")
        return f"says “{first}”"
    return "works"
