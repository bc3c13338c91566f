"""skip_nonfinite: what it counts, what it holds, when it raises."""

import math

import pytest
from one_link import once, tensors

import gradchain as gch
from gradchain.combinators import skip_nonfinite
from gradchain.core.step import Notes, Step

INF, NAN = math.inf, math.nan
GOOD, BAD = tensors(a=[1.0, 2.0], b=3.0), tensors(a=[1.0, 2.0], b=INF)


def test_skip_nonfinite_counts_in_a_row_and_forgets():
    link = skip_nonfinite(2)
    state, counts = link.init(GOOD), []
    for g in (BAD, BAD, GOOD, BAD, GOOD):
        step = Step(params=GOOD)
        notes = Notes(step)
        out, state = link.update(g, state, gch.Context.of(step, notes).enter("skip_nonfinite"))
        assert (out is None) == (g is BAD)
        assert notes.held == (("skip_nonfinite", "nonfinite") if g is BAD else None)
        assert ("'b'" in notes.detail) == (g is BAD)
        counts.append(state.consecutive)
    assert counts == [1, 2, 0, 1, 0]


def test_skip_nonfinite_holds_the_links_behind_it():
    tx = gch.chain(skip_nonfinite(), gch.scale_by_adam())
    state = tx.init(GOOD)
    out, after = tx.update(BAD, state, gch.Context(GOOD, step=0))
    assert out is None
    assert after.links["scale_by_adam"] is state.links["scale_by_adam"]


def test_skip_nonfinite_raises_after_too_many_in_a_row():
    link, ctx = skip_nonfinite(1), gch.Context(GOOD)
    _, state = link.update(BAD, link.init(GOOD), ctx)
    with pytest.raises(FloatingPointError) as caught:
        link.update(BAD, state, ctx)
    assert str(caught.value) == (
        "skip_nonfinite: at most 1 updates in a row may have inf or NaN, got 2; the updates have inf or NaN, the first "
        "offending parameter is 'b'. "
        "Look at the loss and the data of this step, lower the learning rate, or raise max_consecutive."
    )


def test_skip_nonfinite_raises_at_the_first_or_never():
    with pytest.raises(FloatingPointError, match="'a'"):
        once(skip_nonfinite(0), tensors(a=[NAN], b=INF))
    link = skip_nonfinite(INF)
    state = link.init(GOOD)
    for _ in range(50):
        _, state = link.update(BAD, state, gch.Context(GOOD))
    assert state.consecutive == 50


def test_skip_nonfinite_lets_a_flush_pass():
    empty = GOOD.select(())
    ctx = gch.Context.of(Step(params=GOOD, flushing=True))
    out, state = skip_nonfinite().update(empty, skip_nonfinite().init(GOOD).replace(consecutive=2), ctx)
    assert out is empty
    assert state.consecutive == 2


def test_skip_nonfinite_refuses_a_fraction():
    with pytest.raises(ValueError, match=r"skip_nonfinite: max_consecutive must be an integer in \[0, inf\], got 1.5"):
        skip_nonfinite(1.5)
