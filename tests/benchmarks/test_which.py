"""The page that tells implementations apart: a row for every rule, numbers that come out again, and words."""

import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import gradchain as gch
from benchmarks import which
from benchmarks.which import ROWS
from benchmarks.which_peers import Peer, Rule

LINES = [line for line in which.PAGE.read_text().splitlines() if line.startswith("| `")]
RULES = {row.name: row for row in ROWS}


def cells(line):
    """A row's: rule, peer, distance at defaults, pinned arguments, distance there, what differs."""
    return [cell.strip() for cell in line.strip("|").split(" |")]


def test_every_name_of_rules_has_a_row():
    """Once in the table, in the order of the alphabet, with all of its peers on the page."""
    assert sorted({row.name for row in ROWS} ^ {*gch.rules.__all__}) == [], "CONTRIBUTING.md, step 5, says how"
    assert [row.name for row in ROWS] == sorted(gch.rules.__all__)
    wanted = [(row.name, peer.code) for row in ROWS for peer in row.peers or (Peer("none"),)]
    assert [tuple(cell.strip("`") for cell in cells(line)[:2]) for line in LINES] == wanted


def explained(line):
    """Equal at the arguments that are shown; or there are words, and words where there is no peer."""
    _, peer, defaults, pinned, last, why = cells(line)
    return bool(pinned) == bool(last) and bool(why or (peer != "none" and {defaults, last} <= {"equal", ""}))


def test_every_distance_is_explained():
    """And a row that has a distance and no word is seen."""
    assert [line for line in LINES if not explained(line)] == []
    assert not explained("| `adam` | `torch.optim.Adam(params)` | 1.0e-03 |  |  |  |")
    assert not explained("| `adam` | none | | | | |")


def test_a_row_without_a_peer_says_who_checks_it():
    assert all(row.note and (row.peers or not row.code) for row in ROWS)


RUN = {
    "adamw": "heavyball.AdamW(params, lr=lr)",
    "adan": "optax.adan(lr)",
    "adopt": "pytorch_optimizer.ADOPT(params, lr=lr)",
    "lookahead": "fast_of(optax.lookahead(optax.sgd(lr), 5, 0.5))",
    "projection_simplex": "projected(lr, optax.projections.projection_simplex, 1.5)",
    "radam": "pytorch_optimizer.RAdam(params, lr=lr)",
    "schedule_free_sgd": "schedulefree.SGDScheduleFree(params, lr=lr, warmup_steps=7)",
    "sam": "pytorch_optimizer.SAM(params, torch.optim.SGD, rho=0.05, lr=lr)",
}


@pytest.mark.parametrize("name", RUN)
def test_a_row_comes_out_as_it_stands(name):
    """The same words, and numbers to a part in ten: those of float32 are not the same everywhere."""
    (peer,) = (peer for peer in RULES[name].peers if peer.code == RUN[name])
    (line,) = (line for line in LINES if cells(line)[:2] == [f"`{name}`", f"`{peer.code}`"])
    found = which.line(RULES[name], peer, which.measured(RULES[name], peer))
    for now, then in zip(cells(found), cells(line), strict=True):
        if re.fullmatch(r"\d\.\de[+-]\d\d", now) and re.fullmatch(r"\d\.\de[+-]\d\d", then):
            assert float(now) == pytest.approx(float(then), rel=10.0 if float(then) < 1e-6 else 0.1)
        else:
            assert now == then


def test_a_rate_that_is_a_thousandth_higher_is_seen():
    """And one that does nothing, and one that is a step late."""
    peer = "torch.optim.SGD(params, lr=lr)"
    assert which.said(which.distance("gch.sgd(lr)", peer)) == "equal"
    assert which.said(which.distance("gch.sgd(1.001 * lr)", peer)) == "1.0e-03"
    assert which.said(which.distance("gch.sgd(0 * lr)", peer)) == "1.0e+00"
    assert which.said(which.distance("gch.sgd(lr)", "torch.optim.SGD(params, lr=0 * lr)")) == "not at all"
    assert which.said(which.distance("gch.sgd(gch.linear(0.0, lr, 1))", peer)) not in ("equal", "not at all")


def test_a_package_that_is_missing_keeps_its_row(monkeypatch, capsys):
    """As it stands on the page; and is told."""
    monkeypatch.setattr(which, "PACKAGES", ("no_such_package",))
    rule = Rule("sgd", "gch.sgd(lr)", (Peer("no_such_package.SGD(params, lr=lr)"),))
    assert which.lines(rule, {}) == []
    stands = "| `sgd` | `no_such_package.SGD(params, lr=lr)` | 1.0e-03 |  |  | words |"
    assert which.lines(rule, which.standing(f"head\n{stands}\n")) == [stands]
    told = [line.rpartition(": ")[2] for line in capsys.readouterr().err.splitlines()]
    assert told == ["its row is left out", "its row stays"]


def test_one_rule_is_run_and_the_others_stay(monkeypatch, tmp_path):
    """The page with a row that is wrong is the page again."""
    page = which.PAGE.read_text()
    (old,) = (line for line in LINES if line.startswith("| `maximize` |"))
    monkeypatch.setattr(which, "PAGE", tmp_path / "which.md")
    which.PAGE.write_text(page.replace(old, old.replace("equal", "1.0e-01")))
    monkeypatch.setattr(sys, "argv", ["which", "--rule", "maximize"])
    before = torch.get_num_threads()
    try:
        assert which.main() == 0
    finally:
        torch.set_num_threads(before)
    ran, wanted = (text.splitlines() for text in (which.PAGE.read_text(), page))
    versions = "Versions: "
    assert [r for r in ran if versions not in r] == [w for w in wanted if versions not in w]
    assert all(sum(f"{name} " in row for row in ran) for name in which.PACKAGES)


def test_the_page_says_how_it_was_made():
    page = which.PAGE.read_text()
    assert "python -m benchmarks.which" in page
    assert all(f"{name} " in page for name in which.PACKAGES)
