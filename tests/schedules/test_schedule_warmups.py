"""The eight warm-up conventions in `linear`'s docstring, each against the formula of the script that uses it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from gradchain import schedules as gs

W, LR, A = 7, 0.3, 0.02
MAIN = gs.cosine(LR, 0.01, 40)


def after(ramp: Callable[[int], float]) -> Callable[[int], float]:
    """The ramp for W updates, then main in its own time from 0."""
    return lambda t: ramp(t) if t < W else MAIN(t - W)


RECIPES = {
    "t/W": (gs.linear(0.0, LR, W).then(MAIN), after(lambda t: LR * t / W)),
    "(t+1)/W": (gs.linear(LR / W, LR, W - 1).take(W).then(MAIN), after(lambda t: LR * (t + 1) / W)),
    "(t+1)/(W+1)": (gs.linear(LR / (W + 1), LR, W).then(MAIN), after(lambda t: LR * (t + 1) / (W + 1))),
    "t/(W-1)": (gs.linear(0.0, LR, W - 1).take(W).then(MAIN), after(lambda t: LR * t / (W - 1))),
    "a+t(lr-a)/W": (gs.linear(A, LR, W).then(MAIN), after(lambda t: A + t * (LR - A) / W)),
    "chord": (
        gs.join((0, W, gs.linear(A, MAIN(W), W)), (W, None, MAIN), absolute=True),
        lambda t: A * (1 - t / W) + MAIN(W) * t / W if t < W else MAIN(t),
    ),
    "moving-target": (
        gs.linear(A, 0.0, W) + gs.linear(0.0, 1.0, W) * MAIN,
        lambda t: A + (MAIN(t) - A) * t / W if t < W else MAIN(t),
    ),
    "sine": (
        MAIN * (lambda t: math.sin(math.pi / 2 * min(t / W, 1.0))),
        lambda t: math.sin(0.5 * math.pi * t / W) * MAIN(t) if t < W else MAIN(t),
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_is_the_formula(name: str) -> None:
    """At every update of the warm-up, at its border, and beyond the end of the main schedule."""
    schedule, formula = RECIPES[name]
    got = [schedule(step) for step in range(60)]
    assert got == pytest.approx([formula(step) for step in range(60)], rel=1e-14, abs=0.0)


@pytest.mark.parametrize("name", RECIPES)
def test_the_conventions_differ(name: str) -> None:
    """No two of the eight are the same schedule, so none of the formulas could stand in for another."""
    formula = [RECIPES[name][1](step) for step in range(W)]
    for other in set(RECIPES) - {name}:
        assert formula != pytest.approx([RECIPES[other][1](step) for step in range(W)], rel=1e-6, abs=0.0)


def test_the_docstring_names_them() -> None:
    """`linear` says how to get each: the code in its table is the code above."""
    text = gs.linear.__doc__ or ""
    for code in (
        "`linear(0.0, lr, W).then(main)`",
        "`linear(lr / W, lr, W - 1).take(W).then(main)`",
        "`linear(lr / (W + 1), lr, W).then(main)`",
        "`linear(0.0, lr, W - 1).take(W).then(main)`",
        "`linear(a, lr, W).then(main)`",
        "`join((0, W, linear(a, main(W), W)), (W, None, main), absolute=True)`",
        "`linear(a, 0.0, W) + linear(0.0, 1.0, W) * main`",
        "`main * (lambda t: math.sin(math.pi / 2 * min(t / W, 1.0)))`",
    ):
        assert code in text
        names = {"W": W, "lr": LR, "a": A, "main": MAIN, "math": math, **vars(gs)}
        schedule = eval(code.strip("`"), names)
        assert any(
            [schedule(step) for step in range(60)] == [recipe(step) for step in range(60)]
            for recipe, _ in RECIPES.values()
        )
