"""Elementwise rules are measured beside peers that compute the same; the page says who ran them and what that moved."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks import rules_b, workloads
from benchmarks.rules_b import Bout
from benchmarks.which_rules import ELEMENTWISE, OF_TORCH

BOUTS = {bout.name: bout for bout in rules_b.bouts()}


@pytest.fixture
def small(monkeypatch):
    """Workload (b) of two small tensors."""
    make = lambda: workloads.Shapes([(8, 6), (5,)])  # noqa: E731
    monkeypatch.setattr(workloads, "_directions", {})
    monkeypatch.setattr(rules_b, "WORKLOAD", workloads.Workload("b", "small", make, rules_b.WORKLOAD.forward))


def test_every_elementwise_rule_with_a_peer_of_pypi_is_measured():
    """That of Optax is no optimizer of torch's kind; Adafactor has a benchmark of its own."""
    with_peers = {r.name for r in (*OF_TORCH, *ELEMENTWISE) if any("optax." not in p.code for p in r.peers)}
    assert {bout.rule for bout in BOUTS.values()} == with_peers - {"adafactor"}
    assert len(with_peers) > 25
    assert BOUTS["adamw(lr)"].peers[:3] == tuple(
        f"torch.optim.AdamW(params, lr=lr{word})" for word in ("", ", foreach=True", ", fused=True")
    )


MOVED = {"adamw(lr)": 7, "lion(lr, weight_decay=0.0)": 5, "schedule_free_sgd(lr)": 6, "adagrad(lr)": 5}


@pytest.mark.parametrize("name", MOVED)
def test_a_side_computes_what_ours_does(name, small):
    """And the step of ours ran as printed C: so many float32 are read and written for a parameter."""
    found = rules_b.measure(BOUTS[name], 2)
    assert found["best"] in BOUTS[name].peers and found["apart"][found["best"]] == 0.0
    assert found["executors"] == ["native"] and found["kernels"] == 1
    assert found["bytes"] == 4 * MOVED[name]
    assert len(found["over"]) == 3 and min(found["over"]) > 0
    row = rules_b.line(BOUTS[name], found)
    assert row.startswith(f"| `{name}` | ") and row.endswith(f"| native | 1 | {found['bytes']:.0f} |")


def test_a_peer_that_is_another_rule_is_nobodys_best(small):
    """One of twice the rate, one that does nothing, and one that takes no such argument."""
    codes = [f"torch.optim.SGD(params, lr={lr})" for lr in ("2 * lr", "0 * lr")]
    found = rules_b.measure(Bout("sgd", "gch.sgd(lr)", (*codes, "torch.optim.SGD(params, lr=lr, foe=True)")), 2)
    assert found["best"] is None and found["over"] is None
    assert [found["apart"][code] for code in codes] == [1.0, 1.0]
    assert "unexpected keyword argument 'foe'" in found["not_run"]["torch.optim.SGD(params, lr=lr, foe=True)"]
    assert "none that computes the same" in rules_b.line(BOUTS["sgd(lr)"], found)


def test_everyone_begins_once():
    names = ["a", "b", "c"]
    assert {rules_b.turns(names, 2 * number)[0] for number in range(3)} == set(names)
    assert rules_b.turns(names, 3) == names[::-1]


def test_the_command_says_and_writes_its_figures(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rules_b, "pin", lambda threads, core: None)  # the process is that of other tests too
    monkeypatch.setattr(rules_b, "keep_memory", lambda: None)
    monkeypatch.setattr(rules_b, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(rules_b, "bouts", lambda: [BOUTS["asgd(lr)"], BOUTS["sgd(lr)"]])
    monkeypatch.setattr(sys, "argv", ["rules_b", "--rounds", "2", "--output", str(tmp_path / "x.json")])
    before = torch.get_num_threads()
    try:
        assert rules_b.main() == 0
    finally:
        torch.set_num_threads(before)
    printed = capsys.readouterr().out
    assert re.search(r"another rule: pytorch_optimizer.ASGD\(params, lr=lr\): \d+\.\d% of weights are", printed), (
        printed
    )
    assert "slower than the fastest peer: " in printed
    assert [*json.loads((tmp_path / "x.json").read_text())["rules_b"]] == ["asgd(lr)", "sgd(lr)"]
    page = (tmp_path / "page.md").read_text()
    assert page.count("\n| `") == 2 and "small" in page and "2 rounds" in page


def test_some_rows_of_the_page_are_measured_anew():
    told = {"rounds": 7, "commit": "abc", "machine": {"load": [0.25]}}
    page = "# Rules\n\n| rule | ms |\n|---|---|\n| `sgd(lr)` | 2.0 |\n| `sgd(lr, momentum=0.9)` | 3.0 |\n"
    found = rules_b.renewed(page, ["| `sgd(lr)` | 1.5 |"], told)
    assert found.startswith(page.replace("2.0", "1.5"))
    assert found.endswith("\n\nMeasured since, 7 rounds, time of the processor, commit abc, load 0.2: `sgd(lr)`.\n")
