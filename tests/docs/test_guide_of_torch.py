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
