"""The table of docs/coming_from.md: a class of torch.optim, the alias that it is, and the chain that this is."""

import re
from pathlib import Path

import pytest
import torch
from cases_torch import in_double
from test_optim_db import WITHOUT, compare, optim_db

import gradchain as gch


def rows_of_the_guide():
    page = (Path(__file__).parents[2] / "docs" / "coming_from.md").read_text()
    return re.findall(r"^\| `(\w+)\(params(?:, )?(.*)\)` \| `(gch\..*)` \| `(.*)` \|$", page, flags=re.M)


@pytest.mark.parametrize(("name", "given", "alias", "chain"), rows_of_the_guide())
def test_the_guide_says_which_chain_a_class_is(name, given, alias, chain):
    """The class as it stands there moves weights as the alias beside it, which is the chain beside that."""
    tx = eval(alias, {"gch": gch})
    assert re.sub(r"\s+", " ", repr(tx)) == chain
    in_double(compare, getattr(torch.optim, name), eval(f"dict({given})"), tx)


def test_the_guide_has_every_class_that_is_a_chain():
    assert {name for name, *_ in rows_of_the_guide()} == {i.optim_cls.__name__ for i in optim_db} - set(WITHOUT)


PAGE = (Path(__file__).parents[2] / "docs" / "coming_from.md").read_text()
SCHEDULERS = re.findall(r"^\| `(\w+\((?:optimizer|\[).*?\))` \| `(.*?)`(?:;.*)? \|$", PAGE, flags=re.M)
OF_TORCH = {n: v for m in (torch.optim.lr_scheduler, torch.optim.swa_utils) for n, v in vars(m).items()}


@pytest.mark.parametrize(("theirs", "ours"), SCHEDULERS)
def test_a_scheduler_of_the_guide_has_these_values(theirs, ours):
    """At 130 steps, to the digits that torch keeps where it multiplies the rate again and again."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = eval(theirs, {**OF_TORCH, "optimizer": optimizer})
    schedule = eval(ours, {"gch": gch})
    seen = []
    for _ in range(99 if "OneCycle" in theirs else 130):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [schedule(step) for step in range(len(seen))] == pytest.approx(seen, rel=1e-9, abs=1e-13)
    assert seen != pytest.approx([0.1] * len(seen))


def test_the_guide_has_every_class_and_every_scheduler():
    """Each by its name in code, those that are run and those of which it is said what they are."""
    classes = [n for n, v in vars(torch.optim).items() if isinstance(v, type)]
    ends = ("LR", "Scheduler", "Restarts", "Plateau")
    schedulers = [n for n, v in OF_TORCH.items() if isinstance(v, type) and n.endswith(ends) and n[0] != "_"]
    assert len(classes) > 14 and len(schedulers) > 16
    shown = {word for code in re.findall(r"`([^`]+)`", PAGE) for word in re.findall(r"[A-Za-z]\w+", code)}
    assert sorted({*classes, *schedulers} - shown) == []
    assert len(SCHEDULERS) == 15
