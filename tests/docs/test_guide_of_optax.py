"""docs/optax.md is what its command writes, its code runs, and its schedules are Optax's."""

import re

import pytest
import torch
from cases import CASES
from doc_blocks import tables
from optax_guide import NOTES, PAGE, SCHEDULES, WRITTEN, answer, difference, page, shown, written
from optax_names import OPTAX
from test_completeness import optax_names

import gradchain as gch

TEXT = PAGE.read_text()
ROWS = tables(TEXT)["Optax"]


def test_the_page_is_what_the_command_writes():
    assert page() == TEXT


def test_every_name_of_optax_is_on_the_page_once():
    """In the table where gradchain has it, in the list where it has not."""
    listed = re.findall(r"`(\w+)`(?=[,:])", TEXT.partition("## Not here")[2])
    found = [*(row[0].strip("`") for row in ROWS), *listed]
    assert sorted(found) == sorted(optax_names())


def test_every_row_says_what_differs():
    """Also one whose note is taken away: it is the same only where a row of the tests runs both."""
    assert [row[0] for row in ROWS if not row[2]] == []
    compared = " ".join(peer.name for case in CASES for peer in case.peers)
    assert difference("adam", compared) == "the same" and difference("adam", "") == ""
    assert difference("unitwise_norm", compared) and not difference("join_schedules_of_none", compared)


def test_no_note_is_stale():
    public = optax_names()
    assert sorted({*NOTES, *WRITTEN, *SCHEDULES} - public) == []
    assert sorted(name for name in NOTES if not answer(name).startswith("gch.")) == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_code_of_a_row_is_there(row):
    """Code that makes something makes it; a name resolves, and is what error sentences answer."""
    name, code = row[0].strip("`"), row[1].strip("`")
    assert eval(code, {"gch": gch}) is not None
    assert name in WRITTEN or code in (shown(name), OPTAX.get(name))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_that_of_optax(name):
    """Beside the call of Optax whose arguments it has, in float32, through its end."""
    import optax

    ours, theirs = eval(WRITTEN[name], {"gch": gch}), eval(SCHEDULES[name], {"optax": optax})
    steps = [0, 1, 5, 9, 10, 11, 29, 30, 31, 49, 50, 51, 60, 61, 85, 86, 99, 100, 101, 120]
    expected = torch.tensor([float(theirs(step)) for step in steps])
    torch.testing.assert_close(torch.tensor([ours(step) for step in steps]), expected, rtol=1e-4, atol=1e-7)


def test_a_name_that_is_new_changes_the_page():
    """Of a sentence in the tables, and of a version."""
    assert written(["adamw", "adam"], "", "9.9").count("\n| `adam") == 2
