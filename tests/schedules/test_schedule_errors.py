"""Bad arguments are answered at construction, in one sentence: owner, rule, value, and the cure if there is one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from gradchain import schedules as gs

NAN, INF = math.nan, math.inf
EPOCH = gs.by("epoch", gs.constant(0.1))
LINE = gs.linear(0.0, 1.0, 5)


def my_rate(step: float) -> float:
    return 0.1


ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: gs.constant(NAN), ValueError, "constant: value must be a finite number, got nan."),
    (lambda: gs.constant(True), TypeError, "constant: value must be a finite number, got True."),
    (lambda: gs.constant(10**400), ValueError, f"constant: value must be a finite number, got {10**400}."),
    (lambda: gs.linear("0", 1.0, 5), TypeError, "linear: start must be a finite number, got '0'."),
    (lambda: gs.linear(0.0, INF, 5), ValueError, "linear: end must be a finite number, got inf."),
    (lambda: gs.linear(0.0, 1.0, -3), ValueError, "linear: steps must be a non-negative number, got -3."),
    (lambda: gs.linear(0.0, 1.0, INF), ValueError, "linear: steps must be a non-negative number, got inf."),
    (lambda: gs.linear(0.0, 1.0, None), TypeError, "linear: steps must be a non-negative number, got None."),
    (lambda: gs.cosine(0.0, 1.0, NAN), ValueError, "cosine: steps must be a non-negative number, got nan."),
    (lambda: gs.cosine(0.0, 1.0, 5, 0), ValueError, "cosine: exponent must be a positive number, got 0."),
    (lambda: gs.polynomial(1.0, 0.0, 5, -1.0), ValueError, "polynomial: power must be a positive number, got -1.0."),
    (lambda: gs.cosine_restarts(1.0, 0.0, 0), ValueError, "cosine_restarts: period must be a positive number, got 0."),
    (lambda: gs.cosine_restarts(1.0, 0.0, 5, 0.5), ValueError,
     "cosine_restarts: period_multiplier must be a number of at least 1, got 0.5."),
    (lambda: gs.cosine_restarts(1.0, 0.0, 5, height_decay=0.0), ValueError,
     "cosine_restarts: height_decay must be a positive number, got 0.0."),
    (lambda: gs.cosine_restarts(1.0, 0.0, 5, cycles=1.5), ValueError,
     "cosine_restarts: cycles must be a whole number of at least 1, got 1.5."),
    (lambda: gs.cosine_restarts(1.0, 0.0, 5, 2, cycles=5000), ValueError,
     "cosine_restarts: cycles must be few enough that their sum is a finite number, got 5000."),
    (lambda: gs.warmup_cosine(0.0, 1.0, 10, 10), ValueError,
     "warmup_cosine: steps must be above warmup_steps=10, got 10; steps counts the warm-up too."),
    (lambda: gs.warmup_cosine(0.0, 1.0, -1, 10), ValueError,
     "warmup_cosine: warmup_steps must be a non-negative number, got -1."),
    (lambda: gs.exponential(1.0, 0.0), ValueError, "exponential: gamma must be a positive number, got 0.0."),
    (lambda: gs.exponential(1.0, 0.5, 0), ValueError, "exponential: step_size must be a positive number, got 0."),
    (lambda: gs.exponential(1.0, 0.5, end=2), ValueError,
     "exponential: end must be a value that 1.0 * 0.5**t reaches, got 2.0; for a floor at 0 or a bound on the other "
     "side use .clip."),
    (lambda: gs.exponential(1.0, 0.5, end=0.0), ValueError,
     "exponential: end must be a value that 1.0 * 0.5**t reaches, got 0.0; for a floor at 0 or a bound on the other "
     "side use .clip."),
    (lambda: gs.exponential(1.0, 1.0, end=0.5), ValueError,
     "exponential: end must be a value that 1.0 * 1.0**t reaches, got 0.5; for a floor at 0 or a bound on the other "
     "side use .clip."),
    (lambda: gs.exponential(1.0, 2.0)(5000), OverflowError,
     "exponential: the value must stay in the range of floats, got 1.0 * 2.0**5000.0; stop it with end= or "
     ".take(steps)."),
    (lambda: gs.ema_warmup(1.5), ValueError, "ema_warmup: decay must be a number in [0, 1], got 1.5."),
    (lambda: gs.ema_exponential(0.9, 0), ValueError, "ema_exponential: gamma must be a positive number, got 0."),
    (lambda: gs.inverse_sqrt(0.0, 1.0, 0), ValueError,
     "inverse_sqrt: timescale must be given where warmup_steps is 0, got None; 10_000 is a common choice."),
    (lambda: gs.inverse_sqrt(0.0, 1.0, 5, -1), ValueError,
     "inverse_sqrt: timescale must be a positive number, got -1."),
    (lambda: gs.step_decay(1.0, 0), ValueError, "step_decay: step_size must be a positive number, got 0."),
    (lambda: gs.step_decay(1.0, 5, -0.1), ValueError, "step_decay: gamma must be a non-negative number, got -0.1."),
    (lambda: gs.multi_step(1.0, 30), TypeError,
     "multi_step: milestones must be a tuple of steps such as (60, 80), got 30."),
    (lambda: gs.multi_step(1.0, (60, 30)), ValueError, "multi_step: milestones must be in order, got (60, 30)."),
    (lambda: gs.multi_step(1.0, (-1,)), ValueError, "multi_step: a milestone must be a non-negative number, got -1."),
    (lambda: gs.piecewise(), ValueError, "piecewise: points must be at least one (step, value), got ()."),
    (lambda: gs.piecewise(1.0), TypeError, "piecewise: a point must be (step, value), got 1.0."),
    (lambda: gs.piecewise((0, 1.0), (0, 2.0)), ValueError,
     "piecewise: a step must be above the one before, 0, got 0."),
    (lambda: gs.piecewise((0, NAN)), ValueError, "piecewise: a value must be a finite number, got nan."),
    (lambda: gs.piecewise((0, 1.0), shape="sqrt"), ValueError,
     "piecewise: shape must be 'constant', 'linear' or 'cosine', got 'sqrt'."),
    (lambda: gs.one_cycle(0.0, 1.0, 10, 5), ValueError,
     "one_cycle: steps must be above warmup_steps=10, got 5; steps counts the warm-up too."),
    (lambda: gs.one_cycle(0.0, 1.0, 3, 10, shape="cos"), ValueError,
     "one_cycle: shape must be 'cosine' or 'linear', got 'cos'."),
    (lambda: gs.one_cycle(0.0, 1.0, 3, 10, return_steps=3), ValueError,
     "one_cycle: return_steps must be a number above warmup_steps=3 and below steps=10, or None, got 3."),
    (lambda: gs.warmup_stable_decay(0.0, 1.0, 6, 10, 5), ValueError,
     "warmup_stable_decay: steps must be at least warmup_steps + decay_steps = 11, got 10; steps counts both."),
    (lambda: gs.warmup_stable_decay(0.0, 1.0, 1, 10, 5, shape="exp"), ValueError,
     "warmup_stable_decay: shape must be 'linear', 'cosine' or 'sqrt', got 'exp'."),
    (lambda: gs.constant(0.1).then(LINE), ValueError,
     "then: the schedule before must have a known length, got constant(0.1); give it one with .take(steps), or use "
     "join((0, steps, f), ...)."),
    (lambda: LINE.then(0.1), TypeError,
     "then: a part must be a schedule or a function step -> value, got 0.1; for a number use constant(0.1)."),
    (lambda: LINE.then(gs.linear), TypeError,
     "then: a part must be a schedule or a function step -> value, got <class 'gradchain.schedules.ramps.linear'>."),
    (lambda: LINE.then(EPOCH), ValueError,
     "then: a part must read the step alone, got by('epoch', constant(0.1)), which reads the clock 'epoch'; put "
     "by('epoch', ...) around the whole instead."),
    (lambda: gs.chained((LINE,)), ValueError,
     "then: parts must be at least two schedules, got (linear(0.0, 1.0, 5),)."),
    (lambda: LINE.take(-1), ValueError, "take: steps must be a non-negative number, got -1."),
    (lambda: EPOCH.take(5), ValueError,
     "take: schedule must read the step alone, got by('epoch', constant(0.1)), which reads the clock 'epoch'; put "
     "by('epoch', ...) around the whole instead."),
    (lambda: LINE.clip(), ValueError, "clip: low or high must be given, got None."),
    (lambda: LINE.clip(2, 1), ValueError, "clip: high must be at least low=2.0, got 1.0."),
    (lambda: LINE.clip(low="a"), TypeError, "clip: low must be a finite number or None, got 'a'."),
    (lambda: LINE * "a", TypeError,
     "combined: right must be a schedule, a function step -> value or a finite number, got 'a'."),
    (lambda: NAN + LINE, ValueError,
     "combined: left must be a schedule, a function step -> value or a finite number, got nan."),
    (lambda: LINE / 0, ValueError, "combined: the divisor must be a number other than 0, got 0.0."),
    (lambda: (2.0 / LINE)(0), ZeroDivisionError,
     "combined: a divisor must not be 0 at any step, got 2.0 / 0.0."),
    (lambda: gs.inverse_time(1.0, -0.1), ValueError, "inverse_time: gamma must be a non-negative number, got -0.1."),
    (lambda: gs.inverse_time(1.0, 0.1, 0), ValueError, "inverse_time: power must be a positive number, got 0."),
    (lambda: gs.cosine_wave(1.0, 0.0, 0), ValueError, "cosine_wave: steps must be a positive number, got 0."),
    (lambda: gs.constant(0.1).repeat(), ValueError,
     "repeat: the schedule must have a known length above 0, got constant(0.1); give it one with .take(steps)."),
    (lambda: gs.linear(0.0, 1.0, 0).repeat(), ValueError,
     "repeat: the schedule must have a known length above 0, got linear(0.0, 1.0, 0); give it one with .take(steps)."),
    (lambda: LINE.repeat(0), ValueError, "repeat: times must be a whole number of at least 1, or None, got 0."),
    (lambda: LINE.repeat(1.5), ValueError, "repeat: times must be a whole number of at least 1, or None, got 1.5."),
    (lambda: EPOCH.repeat(), ValueError,
     "repeat: schedule must read the step alone, got by('epoch', constant(0.1)), which reads the clock 'epoch'; put "
     "by('epoch', ...) around the whole instead."),
    (lambda: gs.overlay(0.1), ValueError, "overlay: windows must be at least one (begin, end, scale), got ()."),
    (lambda: gs.overlay(NAN, (0, 5, LINE)), ValueError, "overlay: start must be a finite number, got nan."),
    (lambda: gs.overlay(0.1, (0, 5)), TypeError,
     "overlay: a window must be (begin, end, scale) or (begin, end, scale, shift), got (0, 5)."),
    (lambda: gs.overlay(0.1, (0.5, 5, LINE)), ValueError,
     "overlay: begin must be a whole non-negative number, got 0.5."),
    (lambda: gs.overlay(0.1, (5, 5, LINE)), ValueError,
     "overlay: end must be a whole number above begin=5, or None, got 5."),
    (lambda: gs.overlay(0.1, (2, 5, LINE, 0.0, 3)), ValueError,
     "overlay: origin must be a whole number up to begin=2, got 3."),
    (lambda: gs.overlay(0.1, (2, 5, EPOCH)), ValueError,
     "overlay: scale must read the step alone, got by('epoch', constant(0.1)), which reads the clock 'epoch'; put "
     "by('epoch', ...) around the whole instead."),
    (lambda: gs.overlay(0.1, (0, 5, "1")), TypeError,
     "overlay: scale must be a schedule or a function step -> value, got '1'."),
    (lambda: gs.overlay(0.1, (0, 5, 1.0, INF)), ValueError,
     "overlay: shift must be a schedule or a finite number, got inf."),
    (lambda: gs.overlay(0.1, (0, 9, LINE), (2, 9, 1.0, 0.5), (0, 1, 0.5, 0.1))(1), ValueError,
     "overlay: a scale must not rise from 0 where its window meets another, got linear(0.0, 1.0, 5) from 0.0 to 0.2 "
     "at step 1; end one window where the other begins."),
    (lambda: gs.combined("%", LINE, 1.0), ValueError, "combined: operator must be '*', '+', '-' or '/', got '%'."),
    (lambda: (LINE * (lambda step: "fast"))(3), TypeError,
     "<lambda>: the value at step 3 must be a number, got 'fast'."),
    (lambda: gs.join(), ValueError, "join: windows must be at least one (begin, end, schedule), got ()."),
    (lambda: gs.join((0, 5)), TypeError, "join: a window must be (begin, end, schedule), got (0, 5)."),
    (lambda: gs.join((-1, 5, my_rate)), ValueError, "join: begin must be a non-negative number, got -1."),
    (lambda: gs.join((5, 5, my_rate)), ValueError, "join: end must be a number above begin=5, or None, got 5."),
    (lambda: gs.join((5, "6", my_rate)), TypeError, "join: end must be a number above begin=5, or None, got '6'."),
    (lambda: gs.join((0, 5, 0.1)), TypeError,
     "join: the schedule from 0 must be a schedule or a function step -> value, got 0.1; for a number use "
     "constant(0.1)."),
    (lambda: gs.join((0, 5, my_rate), (4, None, my_rate)), ValueError,
     "join: windows must be in order and without overlap, got (4, None) after (0, 5); an overlap is a product or a "
     "sum: f * g."),
    (lambda: gs.join((5, 9, my_rate), (0, 5, my_rate)), ValueError,
     "join: windows must be in order and without overlap, got (0, 5) after (5, 9); an overlap is a product or a "
     "sum: f * g."),
    (lambda: gs.join((0, None, my_rate), (5, 9, my_rate)), ValueError,
     "join: only the last window may have no end, got (0, None); give it an end."),
    (lambda: gs.join((2, 9, LINE)), ValueError,
     "join: a schedule must be as long as its window, 7 from 2 to 9, got linear(0.0, 1.0, 5) of length 5; cut or "
     "hold it with .take(7)."),
    (lambda: gs.join((0, 5, my_rate), absolute=1), TypeError, "join: absolute must be True or False, got 1."),
    (lambda: gs.join((0, 5, 2 * EPOCH)), ValueError,
     "join: the schedule from 0 must read the step alone, got 2.0 * by('epoch', constant(0.1)), which reads the clock "
     "'epoch'; put by('epoch', ...) around the whole instead."),
    (lambda: gs.by("", LINE), ValueError, "by: clock must be a name such as 'epoch', got ''."),
    (lambda: gs.by(3, LINE), ValueError, "by: clock must be a name such as 'epoch', got 3."),
    (lambda: gs.by("epoch", 0.1), TypeError,
     "by: schedule must be a schedule or a function step -> value, got 0.1; for a number use constant(0.1)."),
    (lambda: gs.by("samples", EPOCH), ValueError,
     "by: schedule must read the step alone, got by('epoch', constant(0.1)), which reads the clock 'epoch'; leave "
     "out one of the two."),
    (lambda: EPOCH(3), TypeError,
     "by: a schedule of the clock 'epoch' cannot be called with a step, got 3; use .at({'epoch': ...})."),
    (lambda: (LINE * EPOCH)(3), TypeError,
     "by: a schedule of the clock 'epoch' cannot be called with a step, got 3; use .at({'epoch': ...})."),
    (lambda: EPOCH.at({"step": 3, "micro": 12}), LookupError,
     "by: the clock 'epoch' must be among those given, got 'step', 'micro'."),
    (lambda: LINE.at({}), LookupError, "linear: the clock 'step' must be among those given, got no clock."),
    (lambda: gs.per_epoch(LINE, 0), ValueError, "per_epoch: n must be a positive number, got 0."),
    (lambda: gs.per_epoch(LINE, 5, "yes"), TypeError, "per_epoch: fractional must be True or False, got 'yes'."),
    (lambda: gs.per_epoch(EPOCH, 5), ValueError,
     "per_epoch: schedule must read the step alone, got by('epoch', constant(0.1)), which reads the clock 'epoch'; "
     "put by('epoch', ...) around the whole instead."),
    (lambda: gs.evaluate(0.1, {"step": 3}), TypeError,
     "evaluate: schedule must be a schedule or a function step -> value, got 0.1; for a number use constant(0.1)."),
    (lambda: gs.evaluate(my_rate, {"epoch": 3}), LookupError,
     "evaluate: the clock 'step' must be among those given, got 'epoch'."),
    (lambda: gs.clocks_of("step"), TypeError,
     "clocks_of: schedule must be a schedule or a function step -> value, got 'step'."),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "kind", "sentence"), ERRORS, ids=[f"row{row}" for row in range(len(ERRORS))])
def test_the_sentence(bad: Callable[[], Any], kind: type[Exception], sentence: str) -> None:
    """The whole of it: a wrong type is a TypeError, a wrong value a ValueError."""
    with pytest.raises(kind) as error:
        bad()
    assert str(error.value) == sentence
