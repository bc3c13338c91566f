"""The growth of a step is measured over chains that do what they say."""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks import growth


def test_groups_have_rates_of_their_own_and_steps_run_again():
    model = growth.Model(20)
    updater = growth.chain(20, 10).bind(model)
    for _ in range(6):
        for parameter in model.rows:
            parameter.grad = torch.ones_like(parameter)
        updater.step()
    rates = {line.split()[1] for line in str(updater.settings()).splitlines() if line.startswith("rows.")}
    assert len(rates) == 10
    assert "needed nothing but their numbers" in updater.explain()


def test_the_command_prints_its_rows(monkeypatch, capsys):
    monkeypatch.setattr(growth, "pin", lambda threads, core: None)  # the process is that of other tests too
    monkeypatch.setattr(sys, "argv", ["growth", "--quick", "--steps", "3"])
    before = torch.get_num_threads()
    try:
        growth.main()
    finally:
        torch.set_num_threads(before)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["parameters"], row["masks"]) for row in rows] == [(10, 1), (100, 1)]
    assert all(row["step_us"] > 0 and abs(row["each_us"] * row["parameters"] - row["step_us"]) < 1e-6 for row in rows)
    page = growth.written(rows, 3, {"machine": {"cpu": "one", "load": [1.5]}, "date": "2026-01-01"})
    assert page.count("\n| 10 |") == 1 and growth.drawn(rows).count('<rect class="part"') == 2
