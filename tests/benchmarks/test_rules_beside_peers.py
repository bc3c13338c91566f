"""The links that `python -m benchmarks.rules` measures compute what their peers do."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from dataclasses import replace

from benchmarks import rules

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from later import later

optax = later("optax")

SHAPES = [(12, 20), (20, 12), (8, 8)]


def gradients(number):
    generator = torch.Generator().manual_seed(number)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def of_optax(model, steps):
    """The weights after steps of optax.lamb."""
    tx = optax.lamb(0.01, eps=1e-6, weight_decay=0.01)
    params = [p.detach().numpy() for p in model]
    state = tx.init(params)
    for number in range(steps):
        updates, state = tx.update([g.numpy() for g in gradients(number)], state, params)
        params = optax.apply_updates(params, updates)
    return [torch.from_numpy(np.array(p)) for p in params]


@pytest.mark.parametrize(
    ("name", "far"),
    [
        ("Adafactor, 34 M in 100 tensors", 1e-4),
        ("Adafactor of gradchain, 34 M in 100 tensors", 1e-4),
        ("LAMB, 34 M in 100 tensors", 1e-4),
        ("LAMB of gradchain, 34 M in 100 tensors", 1e-4),
        ("Muon, 48 of 256²", 5e-2),
        ("Muon of gradchain, 48 of 256²", 5e-2),
        ("Muon of gradchain, hidden matrices of (a)", 5e-2),
    ],
)
def test_the_links_are_the_rules(name, far):
    """After five steps that differ, within so much of what was moved: Muon's products are in bfloat16."""
    made = rules.sides(replace(rules.CASES[name], shapes=SHAPES))
    start = rules.weights(SHAPES)
    for number in range(5):
        for model, step in made.values():
            for parameter, grad in zip(model, gradients(number), strict=True):
                parameter.grad = grad.clone()
            step()
    theirs = made["torch"][0] if "torch" in made else of_optax(start, 5)
    for ours, peer, before in zip(made["gradchain"][0], theirs, start, strict=True):
        moved = float((peer - before).detach().abs().max())
        assert moved > 0 and float((ours - peer).detach().abs().max()) <= far * moved


def test_the_command_says_its_figures(tmp_path, monkeypatch, capsys):
    small = {name: replace(case, shapes=SHAPES) for name, case in rules.CASES.items()}
    monkeypatch.setattr(rules, "CASES", small)
    monkeypatch.setattr(rules, "pin", lambda threads, core: None)  # the process is that of other tests too
    monkeypatch.setattr(rules, "keep_memory", lambda: None)
    monkeypatch.setattr(sys, "argv", ["rules", "--rounds", "2", "--rule", "Muon", "--output", str(tmp_path / "x.json")])
    before = torch.get_num_threads()
    try:
        assert rules.main() == 0
    finally:
        torch.set_num_threads(before)
    printed = capsys.readouterr().out
    assert printed.count("Muon, 48") == 3 and printed.count("Muon of") == 2 and "Adafactor" not in printed
