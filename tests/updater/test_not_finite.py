"""The table of docs/not_finite.md: what becomes of each number that is not finite, under each gate."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import gradchain as gch

PAGE = Path(__file__).parents[2] / "docs" / "not_finite.md"
ROWS = [
    [cell.strip() for cell in row.strip("| ").split("|")] for row in PAGE.read_text().splitlines() if row[:1] == "|"
]
GATES = {
    "no gate": [],
    "`skip_nonfinite()`": [gch.skip_nonfinite()],
    '`skip_nonfinite(of="all")`': [gch.skip_nonfinite(of="all")],
    "`guard()`": [gch.guard()],
}
HUGE = 1e25  # its square is infinite in float32
KINDS = {
    "the loss, and so the gradient": {"loss": lambda loss: loss * math.nan},
    "the loss alone": {"loss": lambda loss: loss + math.inf},
    "the gradient alone": {"hook": lambda g: g * math.nan},
    "the update that the chain makes of them": {"link": gch.stateless(lambda g, w: g / 0.0)},
    "the new state of a link, as a square that overflows": {"hook": lambda g: g * 0 + HUGE},
    "a schedule": {"rate": lambda step: math.nan if step == 2 else 0.1},
}


def test_the_table_has_every_kind_and_every_gate():
    assert ROWS[0][1:] == list(GATES)
    assert [row[0] for row in ROWS[2:]] == list(KINDS)


@pytest.mark.parametrize("executor", ["native", "reference"])
@pytest.mark.parametrize("column", range(len(GATES)), ids=["none", "skip", "all", "guard"])
@pytest.mark.parametrize("row", ROWS[2:], ids=lambda row: row[0])
def test_it_is_as_the_table_says(row, column, executor):
    kind, gates = KINDS[row[0]], list(GATES.values())[column]
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    spoiled: list[bool] = []  # filled while a step is to be the bad one

    def late(g: gch.Tensors, w: gch.Tensors) -> gch.Tensors:
        return kind["link"].fn(g, w) if spoiled else g

    model.bias.register_hook(lambda g: kind["hook"](g) if spoiled and "hook" in kind else g)
    links = [*gates, gch.scale_by_adam(), *([gch.stateless(late)] if "link" in kind else [])]
    updater = gch.chain(*links, gch.scale_by_learning_rate(kind.get("rate", 0.1))).bind(model)
    if executor == "reference":
        updater._bound.engine.executors = ()

    def step() -> gch.UpdateInfo:
        loss = model(torch.ones(2, 4)).square().mean()
        return updater.update(kind["loss"](loss) if spoiled and "loss" in kind else loss)

    assert step() and step()
    before, adam = str([*model.parameters()]), str(updater.state_dict()["links"]["scale_by_adam"])
    spoiled.append(True)
    try:
        found = "written" if (info := step()) else "skipped"
        assert info.reason == ("applied" if found == "written" else "nonfinite")
        assert ("'bias'" in info.detail or "'weight'" in info.detail or "the loss is inf" in info.detail) == (not info)
    except (FloatingPointError, ValueError):
        found = "error"
    assert found == row[column + 1]
    same = (before, adam) == (str([*model.parameters()]), str(updater.state_dict()["links"]["scale_by_adam"]))
    assert same == (found != "written")
    assert updater.num_updates == 2 + (found == "written")
