"""The range of versions that pyproject.toml states is the range that was run: docs/versions.md has the runs."""

from __future__ import annotations

import re

import pytest
import versions
from doc_blocks import ROOT
from versions import Row

PAGE = versions.PAGE.read_text()
PROJECT = (ROOT / "pyproject.toml").read_text()


def ran(rows: list[Row]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The minor versions, of Python and of torch, that every test passed on in some row."""
    pairs = [row.pair() for row in rows if row.failed == "0" and int(row.passed) > 0]
    return sorted({python for python, _ in pairs}), sorted({torch for _, torch in pairs})


def check(page: str, project: str) -> None:
    """Raise where a range begins or ends at what was not run, or a classifier names a Python that was not."""
    pythons, torches = ran(versions.rows(page))
    said = [(3, int(minor)) for minor in re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', project)]
    assert said == pythons, "the classifiers"
    for line, found in ((r'requires-python = ">=(.*),<(.*)"', pythons), (r'"torch>=(.*),<(.*)"', torches)):
        low, high = (tuple(map(int, v.split("."))) for v in re.search(line, project).groups())
        assert (low, high) == (found[0], (found[-1][0], found[-1][1] + 1)), line


def test_the_stated_ranges_are_those_that_were_run():
    check(PAGE, PROJECT)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"torch>=2.9,', '"torch>=2.8,'),
        (",<2.14", ",<2.16"),
        ('python = ">=3.10,', 'python = ">=3.9,'),
        (",<3.14", ",<3.15"),
        ('  "Programming Language :: Python :: 3.12",\n', ""),
    ],
)
def test_a_range_that_was_not_run_is_refused(old, new):
    assert old in PROJECT
    with pytest.raises(AssertionError):
        check(PAGE, PROJECT.replace(old, new))


def test_a_row_that_failed_counts_for_nothing():
    """Where no other row has its Python or its torch, the ranges are then wider than what was run."""
    rows = versions.rows(PAGE)
    for row in rows:
        page = versions.written(PAGE, [row._replace(failed="1")])
        assert ran(versions.rows(page)) == ran([other for other in rows if other != row])
    page = versions.written(PAGE, [row._replace(failed="1") for row in rows if row.pair()[1] == (2, 9)])
    with pytest.raises(AssertionError):
        check(page, PROJECT)


# what the page is written by


def test_a_row_takes_the_place_of_that_of_its_pair_and_the_others_stay():
    one = Row("3.10.1", "2.9.1+cu128", "all", "5", "1", "0", "`a.test_b`")
    page = versions.written("# V\n\n| Python | torch |\n", [one, Row("3.9.2", "2.10.0", "all", "1", "0", "0", "")])
    assert [row.pair() for row in versions.rows(page)] == [((3, 9), (2, 10)), ((3, 10), (2, 9))]
    again = versions.written(page, [Row("3.10.4", "2.9.2", "all", "6", "0", "0", "")])
    assert versions.rows(again) == [
        Row("3.9.2", "2.10.0", "all", "1", "0", "0", ""),
        Row("3.10.4", "2.9.2", "all", "6", "0", "0", ""),
    ]
    absent = Row("3.9", "2.12", "", "", "", "", "no Python 3.9 on this machine")
    assert versions.rows(versions.written(page, [absent]))[1] == absent


def test_of_each_test_one_case_and_none_of_what_is_long():
    names = [
        "tests/core/a.py::b[1]",
        "tests/core/a.py::b[2]",
        "tests/core/a.py::c",
        "tests/updater/test_atomic.py::d",
        "tests/x.py::b",
    ]
    assert list(versions.chosen(names)) == [True, False, True, False, True]


def test_what_the_short_form_names_is_there():
    for name in (*versions.ROOMS, *versions.LONG):
        assert (ROOT / "tests" / name).exists(), name


def test_a_report_of_pytest_is_counted_by_its_ends(tmp_path):
    cases = "".join(
        f'<testcase classname="tests.core.t" name="{name}">{inner}</testcase>'
        for name, inner in [
            ("a[1]", ""),
            ("b[1]", "<failure/>"),
            ("b[2]", "<error/>"),
            ("c", "<skipped/>"),
            ("d", "<system-out/>"),
        ]
    )
    report = tmp_path / "report.xml"
    report.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    assert versions.outcome(report) == ("2", "2", "1", "`core.t.b`")
