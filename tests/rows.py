"""What the rows of the table of cases cost: CI prints it, so that a row that makes all of them slow is seen.

Every generic test runs for every row, so a rule more costs what a row costs. Seconds are printed and never asserted;
what is held, in test_rows.py, is how many tests a row has and what collecting them imports.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterable

SHOWN = 10


def row_of(item) -> str | None:
    """The row that a test is of, by the case among its parameters."""
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    table = sys.modules.get("cases")  # not imported: then no test is of a row
    return next((value.id for value in values if table and isinstance(value, table.Case)), None)


def pytest_collection_modifyitems(items) -> None:
    """Each test says of which row it is, also to the process that gathers reports."""
    for item in items:
        if (row := row_of(item)) is not None:
            item.user_properties.append(("row", row))


def seconds(reports: Iterable) -> Counter[str]:
    """The seconds of each row, of set-up, call and what comes after it."""
    spent: Counter[str] = Counter()
    for report in reports:
        if not hasattr(report, "duration"):
            continue  # among what is told of are tests that were deselected
        for name, row in report.user_properties:
            if name == "row":
                spent[row] += report.duration
    return spent


def pytest_terminal_summary(terminalreporter) -> None:
    """The slowest rows, in CI and where `--durations` is asked for."""
    if "CI" not in os.environ and terminalreporter.config.getoption("durations") is None:
        return
    spent = seconds(report for reports in terminalreporter.stats.values() for report in reports)
    if spent:
        terminalreporter.write_sep("=", f"slowest of {len(spent)} rows")
        for row, duration in spent.most_common(SHOWN):
            terminalreporter.write_line(f"{duration:.2f}s {row}")
        mean = sum(spent.values()) / len(spent)
        terminalreporter.write_line(f"{mean:.2f}s the mean row: sixty more are {mean:.0f} minutes on one core")
