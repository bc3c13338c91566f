"""overlay: the walk that defines it, in any order of reading."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradchain import schedules as gs

parts = st.one_of(
    st.builds(gs.linear, st.floats(0.1, 1.0), st.floats(0.1, 1.0), st.integers(1, 30)),
    st.builds(gs.cosine, st.floats(0.1, 1.0), st.floats(0.1, 1.0), st.integers(1, 30)),
    st.builds(gs.step_decay, st.floats(0.1, 1.0), st.integers(1, 9), st.just(0.5)),
    st.floats(0.1, 1.5),
)
shifts = st.just(0.0) | parts
scales = parts | st.just(0.0)
windows = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 30) | st.none(), scales, shifts), min_size=1, max_size=4
).map(lambda raw: [(begin, begin + width if width else None, *rest) for begin, width, *rest in raw])


def at(part: Any, t: int) -> float:
    return part(t) if callable(part) else part


def walk(start: float, acting: list[Any], steps: int) -> list[float]:
    """The definition, step by step: each window that moves has its turn, in order."""
    values, value = [], start
    for i in range(steps):
        for begin, end, scale, shift, *cut in acting:
            if begin <= i and (end is None or i < end):
                t = i - (cut[0] if cut else begin)
                before = (at(scale, t - 1), at(shift, t - 1)) if t else (1.0, 0.0)
                now = (at(scale, t), at(shift, t))
                if t and now == before:
                    continue
                a = now[0] / before[0] if before[0] else 0.0
                value = a * value + now[1] - a * before[1]
        values.append(value)
    return values


@given(st.floats(-2.0, 2.0), windows, st.randoms(use_true_random=False))
def test_random_access_is_the_walk(start: float, acting: list[Any], random: Any) -> None:
    """Windows that overlap, or leave gaps, that multiply, add or set, read in any order."""
    schedule = gs.overlay(start, *acting)
    wanted = walk(start, acting, 60)
    order = list(range(60))
    random.shuffle(order)
    got = {step: schedule(step) for step in order}
    assert [got[step] for step in range(60)] == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert pickle.loads(pickle.dumps(schedule)) == eval(repr(schedule), dict(vars(gs))) == schedule


def test_far_into_an_overlap() -> None:
    """Kept values: the first reading walks once, the others begin at most 256 steps before; the same in any order."""
    acting = [
        (0, 5000, gs.linear(0.1, 1.0, 4999), 0.0),
        (3, 4000, gs.cosine(1.0, 0.0, 5000), gs.cosine(0.0, 0.2, 5000)),
    ]
    wanted = walk(1.0, acting, 5001)
    steps = (4500, 17, 256, 255, 3998, 3999, 4000, 5000, 257, 258, 259, 260)
    schedule = gs.overlay(1.0, *acting)
    assert [schedule(step) for step in steps] == pytest.approx([wanted[step] for step in steps], rel=1e-11)
    asked: list[float] = []

    def asking(step: float) -> float:
        asked.append(step)
        return 1.0 / (step + 1)

    once = gs.overlay(1.0, (0, None, asking), (0, None, 1.0, gs.linear(0.0, 1.0, 9000)))
    once(8000)
    assert len(asked) > 8000
    asked.clear()
    once(7990), once(3000), once(8001)
    assert len(asked) < 3 * 2 * 257


def test_a_window_cut_in_two() -> None:
    """With its origin the second piece goes on where the first stopped, also when another acts between the two."""
    fall, floor = gs.cosine(1.0, 0.0, 20), gs.cosine(0.0, 0.1, 20)
    whole = gs.overlay(0.5, (0, 20, fall, floor))
    cut = gs.overlay(0.5, (0, 7, fall, floor), (7, 20, fall, floor, 0))
    assert [cut(step) for step in range(30)] == pytest.approx([whole(step) for step in range(30)], rel=1e-12)
    between = gs.overlay(0.5, (0, 7, fall, floor), (7, 8, 0.5, 0.0), (7, 20, fall, floor, 0))
    assert [between(step) for step in range(7)] == [cut(step) for step in range(7)]
    pieces = [(0, 7, fall, floor), (7, 8, 0.5, 0.0), (7, 20, fall, floor, 0)]
    assert [between(step) for step in range(30)] == pytest.approx(walk(0.5, pieces, 30), rel=1e-12)


def test_a_window_that_stands_leaves_the_value_alone() -> None:
    """A value set once stays set only until another window moves it."""
    schedule = gs.overlay(1.0, (0, None, 0.0, gs.step_decay(1.0, 4, 0.5)), (2, 3, 0.1))
    assert [schedule(step) for step in range(6)] == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.5, 0.5])


def test_between_steps_and_before() -> None:
    """The value of the last whole step; before the first window the start."""
    schedule = gs.overlay(2.0, (3, 6, gs.linear(0.5, 1.0, 2)))
    assert [schedule(t) for t in (-1, 0, 2.9, 3, 3.9, 4.2, 7.5)] == [2.0, 2.0, 2.0, 1.0, 1.0, 1.5, 2.0]
    assert (schedule.length, gs.overlay(2.0, (3, None, 0.5)).length) == (6, None)


def test_wave_and_repeat_are_told_apart() -> None:
    """A wave in one schedule and of two halves; and a fractional half."""
    halves = gs.cosine(0.4, 0.1, 7.5).then(gs.cosine(0.1, 0.4, 7.5)).repeat()
    wave = gs.cosine_wave(0.4, 0.1, 7.5)
    assert [wave(t / 4) for t in range(200)] == pytest.approx([halves(t / 4) for t in range(200)], rel=1e-12)
    twice = gs.linear(0.0, 1.0, 4).repeat(2)
    assert (twice.length, twice(7), twice(8), twice(99)) == (8, 0.75, 1.0, 1.0)
    assert repr(twice) == "linear(0.0, 1.0, 4).repeat(2)"
