"""The rates of the table are of rules that there are, and a network learns by one of them and not at rate 0."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks import trained
from benchmarks.trained_rates import RATES
from gradchain.core.chain import chain


@pytest.mark.parametrize("name", RATES)
def test_a_row_is_a_chain(name):
    make, rate = RATES[name]
    assert rate > 0 and type(make(trained.curve(rate, 10), rate)) is chain


def test_it_is_the_rate_by_which_a_network_learns():
    make, rate = RATES["adamw"]
    assert trained.share(make, rate, epochs=2) > 0.8 > 0.3 > trained.share(make, 0.0, epochs=2)


def test_the_page_and_the_picture_have_a_row_for_each_rule():
    found = [trained.Trained("one", 0.1, 0.98, 0.1), trained.Trained("two", 0.2, 0.96, 0.1)]
    assert [t.trains for t in found] == [True, False]
    assert trained.written(found).count("| 10.0% |") == 2 and trained.drawn(found).count("<circle") == 2
