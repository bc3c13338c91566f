"""Every schedule gives its peer's values, at every step."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
import pytest
from schedule_cases import CASES, Case, optax, optax_values, torch_values
from torch.optim import lr_scheduler

from gradchain import schedules as gs


def agrees(schedule: Callable[[float], float], expected: Sequence[float], rtol: float) -> bool:
    """Whether the schedule gives these values at steps 0, 1, ...; the floor is for values that should be 0."""
    got = [schedule(step) for step in range(len(expected))]
    return np.allclose(got, expected, rtol=rtol, atol=1e-16)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values_are_the_peers(case: Case) -> None:
    """To 1e-12, in float64, at every step from 0 to beyond the end."""
    expected = case.peer()
    got = [case.schedule(step) for step in range(len(expected))]
    np.testing.assert_allclose(got, expected, rtol=case.rtol, atol=1e-16)


@pytest.mark.parametrize("case", [c for c in CASES if c.name != "optax-constant"], ids=lambda case: case.name)
def test_the_parity_check_can_fail(case: Case) -> None:
    """It rejects the schedule times 1.001, a step late, a step early, and its own first value throughout."""
    expected = case.peer()
    schedule = case.schedule
    assert agrees(schedule, expected, case.rtol)
    assert not agrees(schedule * 1.001, expected, case.rtol)
    assert not agrees(lambda step: schedule(step - 1), expected, case.rtol)
    assert not agrees(lambda step: schedule(step + 1), expected, case.rtol)
    assert not agrees(lambda step: schedule(0), expected, case.rtol)


def test_every_public_schedule_is_in_the_table() -> None:
    """A schedule without a row would have no parity and no laws; the test names what was forgotten."""

    def used(value: object) -> set[str]:
        if isinstance(value, (tuple, list)):
            return set().union(*map(used, value))
        if not isinstance(value, gs.Schedule):
            return set()
        parts = (getattr(value, field.name) for field in dataclasses.fields(value))
        return {type(value).__name__}.union(*map(used, parts))

    public = {name for name in gs.__all__ if inspect.isclass(getattr(gs, name))}
    classes = {name for name in public if issubclass(getattr(gs, name), gs.Schedule)} - {"Schedule"}
    assert classes - set().union(*(used(case.schedule) for case in CASES)) == set()


def test_all_lists_every_public_name() -> None:
    """`__all__` is the room's front door: what is imported there and not a module or private is in it."""
    names = {name for name, value in vars(gs).items() if not name.startswith("_") and not isinstance(value, ModuleType)}
    assert names == set(gs.__all__)


def test_cosine_holds_where_torch_climbs_back() -> None:
    """After T_max CosineAnnealingLR rises again; ours stays at its end value."""
    theirs = torch_values(lambda opt: lr_scheduler.CosineAnnealingLR(opt, 10, 0.1), 0.4, 16)
    assert theirs[15] > 0.2
    assert [gs.cosine(0.4, 0.1, 10)(step) for step in range(10, 16)] == [0.1] * 6


def test_no_warmup_starts_at_the_peak_where_optax_is_stuck() -> None:
    """Optax's linear_schedule over 0 steps stays at its first value for good; ours is at its last at once."""
    assert optax_values(lambda: optax.warmup_constant_schedule(0.0, 0.3, 0), 3) == [0.0, 0.0, 0.0]
    assert [gs.linear(0.0, 0.3, 0)(step) for step in range(3)] == [0.3, 0.3, 0.3]
    starts = [
        gs.linear(0.0, 0.3, 0).then(gs.cosine(0.3, 0.0, 10)),
        gs.cosine(0.0, 0.3, 0).then(gs.cosine(0.3, 0.0, 10)),
        gs.polynomial(0.0, 0.3, 0).then(gs.constant(0.3)),
        gs.warmup_cosine(0.0, 0.3, 0, 10),
        gs.warmup_stable_decay(0.0, 0.3, 0, 10, 5),
        gs.one_cycle(0.0, 0.3, 0, 10),
        gs.inverse_sqrt(0.0, 0.3, 0, timescale=10),
    ]
    assert [start(0) for start in starts] == [0.3] * 7
    assert starts[0] != starts[1]
    assert starts[0](5) == starts[3](5) == pytest.approx(0.15)


def test_one_cycle_peaks_where_each_peer_does() -> None:
    """torch: the peak at p * T - 1 and the end at T - 1; Optax: at int(p * T) and T. They differ by up to 3 percent."""
    like_torch = gs.one_cycle(0.04, 1.0, 0.3 * 100 - 1, 99)
    like_optax = gs.one_cycle(0.04, 1.0, 30, 100)
    assert (like_torch(29), like_torch(99), like_optax(30), like_optax(100)) == (1.0, 0.0, 1.0, 0.0)
    gap = max(abs(like_torch(step) - like_optax(step)) for step in range(100))
    assert 0.02 < gap < 0.06


@pytest.mark.parametrize("steps", [3, 7, 10, 49, 333, 1_000_003, 0.1, 1 / 3])
@pytest.mark.parametrize(("start", "end"), [(0.0, 0.1), (0.1, 0.3), (1e-3, 1e-10), (0.3, -0.7), (1e30, 1e-30)])
def test_both_ends_are_hit_exactly(start: float, end: float, steps: float) -> None:
    """The first value at step 0 and the end value at step == length are the given floats, bit for bit."""
    for schedule in (
        gs.linear(start, end, steps),
        gs.cosine(start, end, steps),
        gs.cosine(start, end, steps, exponent=0.5),
        gs.polynomial(start, end, steps, 3.0),
        gs.warmup_cosine(start, start, 0, steps, end),
        gs.one_cycle(start, 1.0, steps / 3, steps, end),
        gs.warmup_stable_decay(start, 1.0, steps / 3, steps, steps / 3, end),
        gs.piecewise((0, start), (steps, end), shape="cosine"),
    ):
        assert (schedule(0), schedule(steps), schedule(steps * 1.5), schedule.length) == (start, end, end, steps)


def test_accuracy_near_a_tiny_end() -> None:
    """One step before an end of 0 the cosine is sin(pi / 2T)**2 to a few ulps; 1 + cos would have lost six digits."""
    steps = 100_000
    exact = math.sin(math.pi / (2 * steps)) ** 2
    assert gs.cosine(1.0, 0.0, steps)(steps - 1) == pytest.approx(exact, rel=1e-14, abs=0.0)
    assert 0.5 * (1 + math.cos(math.pi * (steps - 1) / steps)) != pytest.approx(exact, rel=1e-9, abs=0.0)
    assert gs.linear(1.0, 1e-12, steps)(steps - 1) == pytest.approx(1e-5 + (1 - 1e-5) * 1e-12, rel=1e-14, abs=0.0)
