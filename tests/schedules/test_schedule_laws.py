"""What holds for every schedule, and for every way of putting them together."""

from __future__ import annotations

import copy
import dataclasses
import doctest
import importlib
import math
import pickle
import pkgutil
import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from schedule_cases import CASES, Case

from gradchain import schedules as gs

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

values = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: 0.0 if abs(x) < 1e-9 else x)
lengths = st.integers(1, 40) | st.floats(0.5, 40.0)
steps = st.integers(0, 200) | st.floats(0.0, 200.0)
ended = st.one_of(
    st.builds(gs.linear, values, values, lengths),
    st.builds(gs.cosine, values, values, lengths, st.floats(0.5, 3.0)),
    st.builds(gs.polynomial, values, values, lengths, st.floats(0.5, 3.0)),
    st.builds(
        gs.cosine_restarts, values, values, st.integers(1, 9), st.integers(1, 3), st.just(0.5), st.integers(1, 4)
    ),
)
endless = st.one_of(
    st.builds(gs.constant, values),
    st.builds(gs.step_decay, values, lengths, st.floats(0.0, 1.0)),
    st.builds(gs.exponential, values, st.floats(0.1, 1.0), lengths),
    st.builds(gs.ema_warmup, st.floats(0.0, 1.0), lengths),
    st.builds(gs.ema_exponential, st.floats(0.0, 1.0), lengths),
    st.builds(gs.multi_step, values, st.lists(st.integers(0, 60), max_size=4).map(sorted)),
)
simple = ended | endless
trees = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a * b, inner, inner | values),
        st.builds(lambda a, b: a + b, inner, inner | values),
        st.builds(lambda a, b: b - a, inner, inner | values),
        st.builds(lambda a: a / 4.0, inner),
        st.builds(lambda a, low: a.clip(low=low), inner, values),
        st.builds(lambda a, b: a.then(b), ended, inner),
        st.builds(lambda a, n: a.take(n), inner, lengths),
        st.builds(lambda a, b: gs.join((0, 7, a.take(7)), (9.5, None, b)), inner, inner),
        st.builds(gs.per_epoch, inner, st.integers(1, 9), st.booleans()),
    ),
    max_leaves=6,
)


@every_case
def test_before_zero_is_zero(case: Case) -> None:
    """Time below 0 is time 0."""
    assert case.schedule(-1) == case.schedule(-0.5) == case.schedule(-math.inf) == case.schedule(0)


@every_case
def test_holds_after_its_end(case: Case) -> None:
    """From its length on the value is the same for good; the value is a float."""
    schedule = case.schedule
    assert type(schedule(0)) is type(schedule(3)) is type(schedule(1000)) is float
    if schedule.length is not None:
        end = schedule(schedule.length)
        assert all(schedule(schedule.length + later) == end for later in (1e-9, 0.5, 1, 100, 1e12, math.inf))


@every_case
def test_fractional_time_is_continuous(case: Case) -> None:
    """A continuous schedule moves little in little time, everywhere; the others are seen to jump by the same check."""
    times = np.linspace(0.0, 70.0, 14_001)
    curve = np.array([case.schedule(float(t)) for t in times])
    spread = curve.max() - curve.min()
    jump = np.abs(np.diff(curve)).max()
    # 1/200 of an update; a square root starts with infinite slope, but even that moves by only sqrt(5e-3 / 13).
    assert (jump <= 0.02 * spread) == case.continuous


@every_case
def test_repr_is_the_code_that_makes_it(case: Case) -> None:
    """eval(repr(s)) == s, with the same hash; so do pickle, copy and dataclasses.replace."""
    schedule = case.schedule
    again = eval(repr(schedule), dict(vars(gs)))
    for twin in (again, pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule), dataclasses.replace(schedule)):
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert repr(twin) == repr(schedule)
        assert [twin(t) for t in range(50)] == [schedule(t) for t in range(50)]


def test_reprs() -> None:
    """Required arguments by position, others by name where they are not the default, operators as operators."""
    shown = {
        "linear(0.0, 0.1, 500)": gs.linear(0, np.float64(0.1), np.int64(500)),
        "cosine(1.0, 0.0, 10.5, exponent=2.0)": gs.cosine(1.0, 0.0, 10.5, exponent=2.0),
        "linear(0.0, 1.0, 5).then(cosine(1.0, 0.0, 10)).then(constant(0.0))": gs.linear(0.0, 1.0, 5).then(
            gs.cosine(1.0, 0.0, 10).then(gs.constant(0.0))
        ),
        "linear(0.0, 1.0, 5) * 2.0": gs.linear(0.0, 1.0, 5) * 2,
        "2.0 * linear(0.0, 1.0, 5)": 2 * gs.linear(0.0, 1.0, 5),
        "(linear(0.0, 1.0, 5) + 1.0) * constant(2.0) - 3.0": (gs.linear(0.0, 1.0, 5) + 1) * gs.constant(2) - 3,
        "1.0 - (linear(0.0, 1.0, 5) - 2.0)": 1 - (gs.linear(0.0, 1.0, 5) - 2),
        "constant(1.0) * (constant(2.0) * 3.0)": gs.constant(1) * (gs.constant(2) * 3),
        "-1.0 * constant(2.0) / 4.0": -gs.constant(2) / 4,
        "(linear(0.0, 1.0, 5) * 2.0).clip(low=0.1)": (gs.linear(0.0, 1.0, 5) * 2.0).clip(0.1),
        "linear(0.0, 1.0, 5).clip(low=0.1, high=0.9)": gs.linear(0.0, 1.0, 5).clip(0.1, 0.9),
        "linear(0.0, 1.0, 5).take(7)": gs.linear(0.0, 1.0, 5).take(7),
        "join((0, 5, linear(0.0, 1.0, 5)), (7.5, None, constant(1.0)))": gs.join(
            [0, 5, gs.linear(0.0, 1.0, 5)], (7.5, math.inf, gs.constant(1.0))
        ),
        "join((2, 5, constant(1.0)), absolute=True)": gs.join((2, 5, gs.constant(1.0)), absolute=True),
        "by('epoch', step_decay(0.1, 30))": gs.by("epoch", gs.step_decay(0.1, 30)),
        "per_epoch(linear(0.0, 1.0, 5), 10, fractional=True)": gs.per_epoch(gs.linear(0.0, 1.0, 5), 10, True),
        "multi_step(0.1, (30,), gamma=0.5)": gs.multi_step(0.1, [30], 0.5),
        "piecewise((0, 1.0), (30, 0.5), shape='linear')": gs.piecewise((0, 1), (30, 0.5), shape="linear"),
        "constant(1.0) * sqrt": gs.constant(1.0) * math.sqrt,
    }
    for code, schedule in shown.items():
        assert repr(schedule) == code
        assert eval(code, {**vars(gs), "sqrt": math.sqrt}) == schedule


@given(trees, steps)
def test_any_tree_round_trips(schedule: gs.Schedule, step: float) -> None:
    """However they are nested: repr, pickle and hash, and the value with them."""
    for twin in (eval(repr(schedule), dict(vars(gs))), pickle.loads(pickle.dumps(schedule))):
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert twin(step) == schedule(step)


@given(trees, steps)
def test_any_tree_holds_its_end(schedule: gs.Schedule, step: float) -> None:
    """However they are nested, the value after the length is the value at the length, and that before 0 is at 0."""
    assert schedule(-step) == schedule(0)
    if schedule.length is not None:
        assert schedule(schedule.length + step) == schedule(schedule.length)


@given(simple, simple, values, steps)
def test_arithmetic_is_pointwise(f: gs.Schedule, g: gs.Schedule, number: float, step: float) -> None:
    """Product, sum, difference, quotient, negation and clip act on the values at the same step."""
    assert (f * g)(step) == (f * g.__call__)(step) == f(step) * g(step)
    assert (f + g)(step) == f(step) + g(step)
    assert (f - g)(step) == f(step) - g(step)
    assert (f * number)(step) == (number * f)(step) == f(step) * number
    assert (f + number)(step) == (number + f)(step) == f(step) + number
    assert (number - f)(step) == number - f(step)
    assert (f / 3)(step) == f(step) / 3
    assert (-f)(step) == -f(step)
    assert f.clip(low=number)(step) == max(f(step), number)
    assert f.clip(high=number)(step) == min(f(step), number)
    both = f.length is not None and g.length is not None
    assert (f * g).length == (max(f.length, g.length) if both else None)  # type: ignore[type-var]
    assert (f * 2).length == f.clip(low=0.0).length == f.length


@given(ended, ended, simple, steps)
def test_then_is_join(f: gs.Schedule, g: gs.Schedule, h: gs.Schedule, step: float) -> None:
    """f.then(g).then(h) is the join of the three in adjoining windows, and does not depend on the brackets."""
    m, n = f.length or 0, (f.length or 0) + (g.length or 0)
    sequence = f.then(g).then(h)
    windows = gs.join((0, m, f), (m, n, g), (n, None, h))
    assert sequence(step) == pytest.approx(windows(step), rel=1e-12, abs=1e-9)
    assert sequence == f.then(g.then(h))
    assert sequence.length == (None if h.length is None else n + h.length)
    assert sequence.length == windows.length


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 12), endless), min_size=1, max_size=5),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_join_random_access_is_the_walk(
    pieces: list[tuple[int, int, gs.Schedule]], absolute: bool, random: Any
) -> None:
    """Any order of reading gives what a walk from step 0 gives, that keeps the last value in gaps and after the end."""
    windows, border = [], 0
    for gap, width, schedule in pieces:
        windows.append((border + gap, border + gap + width, schedule))
        border += gap + width
    joined = gs.join(*windows, absolute=absolute)
    walk, first = [], windows[0]
    held = first[2](first[0] if absolute else 0)
    for step in range(border + 5):
        for begin, end, schedule in windows:
            if step == end:  # the value at its end, which a window itself does not reach
                held = schedule(step if absolute else end - begin)
        for begin, end, schedule in windows:
            if begin <= step < end:
                held = schedule(step if absolute else step - begin)
        walk.append(held)
    order = list(range(border + 5))
    random.shuffle(order)
    assert [joined(step) for step in order] == [walk[step] for step in order]
    assert joined.length == border


@given(ended, st.integers(1, 20), steps)
def test_per_epoch_is_its_formula(f: gs.Schedule, n: int, step: float) -> None:
    """f(step // n) or f(step / n), to a length of n times f's."""
    assert f.length is not None
    assert gs.per_epoch(f, n)(step) == f(step // n if step < f.length * n else f.length)
    assert gs.per_epoch(f, n, fractional=True)(step) == pytest.approx(f(step / n), rel=1e-9)
    assert gs.per_epoch(f, n).length == f.length * n
    # Also with a function of the user's, which is then given whole epochs.
    assert gs.per_epoch(lambda epoch: epoch, n)(step) == step // n


@given(st.floats(0.1, 5.0), st.floats(0.1, 5.0), st.floats(0.1, 5.0))
def test_float_borders(a: float, b: float, c: float) -> None:
    """Fractional borders: the end value of a schedule that fits is held, whatever their difference rounds to."""
    joined = gs.join((a, a + b, gs.linear(0.0, 0.7, b)), (a + b + c, None, gs.linear(0.7, 0.1, c)))
    assert joined(a) == 0.0
    assert joined(a + b) == joined(a + b + c / 2) == 0.7
    assert joined(1e9) == 0.1
    chain = gs.linear(0.0, 0.7, a).then(gs.linear(0.7, 0.3, b)).then(gs.linear(0.3, 0.1, c))
    assert chain.length is not None
    assert chain(chain.length) == chain(1e9) == 0.1


@given(st.integers(1, 50) | st.floats(0.1, 50.0), st.integers(2, 4) | st.floats(1.1, 4.0), st.integers(0, 12))
def test_restarts_begin_at_their_border(period: float, multiplier: float, cycle: int) -> None:
    """At the summed periods of the cycles before, and not an update earlier or later, a new peak begins."""
    schedule = gs.cosine_restarts(1.0, 0.0, period, multiplier, height_decay=0.5)
    border = gs.cosine_restarts(1.0, 0.0, period, multiplier, cycles=cycle).length if cycle else 0
    assert border is not None
    assert border == pytest.approx(sum(period * multiplier**k for k in range(cycle)), rel=1e-9)
    assert schedule(border) == pytest.approx(0.5**cycle, rel=1e-6)
    if cycle:
        assert schedule(border * (1 - 1e-7)) < 1e-3 * 0.5**cycle


def test_clocks() -> None:
    """`by` reads its own clock, arithmetic and clip read those of their parts, all else reads the step."""
    epoch = gs.by("epoch", gs.linear(1.0, 0.0, 10))
    mixed = (gs.linear(0.0, 1.0, 100) * epoch + 0.5).clip(high=0.9)
    assert gs.clocks_of(len) == gs.constant(1.0).clocks == frozenset({"step"})
    assert (epoch.clocks, (2 * epoch).clocks) == (frozenset({"epoch"}), frozenset({"epoch"}))
    assert mixed.clocks == gs.clocks_of(mixed) == frozenset({"step", "epoch"})
    assert epoch.at({"epoch": 5}) == epoch.at({"step": 99, "epoch": 5}) == 0.5
    assert epoch.at({"epoch": -5}) == 1.0
    assert mixed.at({"step": 50, "epoch": 5}) == 0.75
    assert mixed.at({"step": 100, "epoch": 0}) == 0.9
    assert gs.evaluate(mixed, {"step": 50, "epoch": 5}) == 0.75
    assert gs.evaluate(lambda step: np.float32(step), {"step": 3}) == 3.0
    assert gs.by("samples", lambda n: n / 2).at({"samples": 7}) == 3.5
    assert gs.by("step", gs.linear(0.0, 1.0, 4)).then(gs.constant(2.0))(2) == 0.5
    assert epoch.length is None


@given(trees, steps)
def test_at_is_call_for_the_step(schedule: gs.Schedule, step: float) -> None:
    """Where only the step is read, `.at({"step": t})` is a call with t."""
    assert schedule.clocks == {"step"}
    assert schedule.at({"step": step, "epoch": -1}) == gs.evaluate(schedule, {"step": step}) == schedule(step)


def test_a_users_function_anywhere() -> None:
    """A plain function is as good as a schedule in arithmetic on either side, in join, then, per_epoch and by."""

    def root(t: float) -> float:
        return math.sqrt(t)

    assert (root * gs.constant(2.0))(4) == (gs.constant(2.0) * root)(4) == 4.0
    assert (root + gs.constant(2.0))(4) == (root - -gs.constant(2.0))(4) == 4.0
    assert gs.linear(0.0, 1.0, 5).then(root)(9) == 2.0
    assert gs.join((0, 4, root), (10, None, root))(7) == 2.0
    assert (gs.constant(3.0) * (lambda t: t < 5))(7) == 0.0
    assert isinstance(gs.constant(3.0) * root, gs.combined)


def test_numpy_numbers_keep_out() -> None:
    """numpy's scalars on the left give a schedule, not an array of objects, and leave plain numbers in it."""
    schedule = np.float64(2.0) * gs.linear(0, 1, 4)
    assert repr(schedule) == "2.0 * linear(0.0, 1.0, 4)"
    assert type(gs.linear(0, 1, np.int32(4)).steps) is int


def test_users_subclass() -> None:
    """A subclass is a frozen dataclass with every operator; a field may not hide what a Schedule has."""

    class halving(gs.Schedule):
        start: float
        floor: float = 0.0

        def curve(self, t: float) -> float:
            return max(self.start * 0.5**t, self.floor)

    schedule = halving(8.0, floor=1.0)
    assert repr(schedule) == "halving(8.0, floor=1.0)"
    assert (schedule(1), schedule(9), (schedule * 2)(-1)) == (4.0, 1.0, 16.0)
    assert schedule == halving(8.0, 1.0)
    assert len({schedule, halving(8.0, 1.0)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.start = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError) as error:
        types.new_class("longer", (gs.Schedule,), exec_body=lambda ns: ns.update(__annotations__={"length": float}))
    assert str(error.value) == "longer: a field may not be called 'length', which every Schedule has."


def test_the_room_imports_nothing_of_ours_but_words_and_numbers_and_no_torch() -> None:
    """The sources name no room but that of misspellings and the reader of numbers; no torch and no numpy is loaded."""
    code = (
        "import sys, types\n"
        "package = types.ModuleType('gradchain'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['gradchain'] = package\n"
        "import gradchain.schedules\n"
        "ours = {name for name in sys.modules if name.startswith('gradchain.')}\n"
        "allowed = ('gradchain.schedules', 'gradchain.words', 'gradchain._numbers')\n"
        "assert all(name.startswith(allowed) for name in ours), ours\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
    )
    folder = str(gs.__path__[0]).removesuffix("/schedules")
    subprocess.run([sys.executable, "-c", code, folder], check=True)


@pytest.mark.parametrize("module", [info.name for info in pkgutil.iter_modules(gs.__path__)])
def test_the_examples_run(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every example in a docstring, and every public class has one with what else a docstring owes."""
    top = types.SimpleNamespace(join=gs.join, linear=gs.linear, cosine=gs.cosine, constant=gs.constant, by=gs.by)
    top.schedules = gs
    loaded = importlib.import_module(f"gradchain.schedules.{module}")
    monkeypatch.setitem(sys.modules, "gradchain", top)  # type: ignore[arg-type]
    assert doctest.testmod(loaded).failed == 0
    for name in set(getattr(loaded, "__all__", ())) & set(gs.__all__) - {"ScheduleLike"}:
        text = getattr(loaded, name).__doc__ or ""
        assert ">>> import gradchain as gch" in text
        assert name in {"Schedule", "clocks_of"} or "Args:" in text
