"""Every row rejects impostors: proof that its test of parity can fail. And its flags say what is so."""

import os
from functools import lru_cache

import pytest
import torch
from cases import CASES, Case
from harness import context, gap, leaves, trajectory

import gradchain as gch


@lru_cache
def theirs(case: Case):
    """What the strictest peer of a row computes."""
    return min(case.peers, key=lambda peer: peer.rtol).run(case.problem())


def rejected(case: Case, impostor) -> bool:
    """Whether an impostor's trajectory is not that of the row's strictest peer."""
    return not gap(impostor, theirs(case)) <= min(peer.rtol for peer in case.peers)


def ours(case: Case, problem=None, **options):
    problem = problem or case.problem()
    return trajectory(case.tx, problem, scaled=case.scaled, watch=case.watch, **options)


def counted(case: Case) -> bool:
    """Whether the row's state has a Count."""
    state = case.tx.init(gch.Tensors.of(case.problem().params))
    return any(isinstance(value, gch.Count) for _, value in leaves(state))


def times(updates, factor: float):
    return gch.Weights(factor * updates.tensors) if isinstance(updates, gch.Weights) else factor * updates


TRIED = CASES if os.environ.get("GRADCHAIN_LONG") else CASES[::2]  # every second row proves what its tests can see
rows = pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in TRIED])
every_row = pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])


@every_row
def test_row_is_held_to_1e_12_by_some_peer(case: Case):
    """Every row has a peer that computes in float64."""
    assert min(peer.rtol for peer in case.peers) <= 1e-12


@rows
def test_row_rejects_a_rule_that_does_nothing(case: Case):
    """The displacements are not zero."""
    assert rejected(case, [{n: 0.0 * torch.as_tensor(v) for n, v in row.items()} for row in ours(case)])


@rows
def test_row_rejects_a_rule_that_moves_a_thousandth_too_far(case: Case):
    """Updates times 1.001 are seen."""
    assert rejected(case, ours(case, post=lambda updates: times(updates, 1.001)))


@pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in TRIED if c.uses_step or callable(c.lr)])
@pytest.mark.parametrize("late", [-1, 1])
def test_row_rejects_a_clock_that_is_off_by_one(case: Case, late: int):
    """A schedule that is read one update late, or early, is seen."""
    try:
        found = ours(case, clock=late)
    except ZeroDivisionError:
        assert late < 0 and case.subject in ("add_noise", "noisy_sgd")  # 1 + t is nothing before the first update
        return
    assert rejected(case, found)


@pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in TRIED if counted(c)])
def test_row_rejects_a_count_that_is_off_by_one(case: Case):
    """A bias correction with another count is seen, but by a row that says it makes nothing of its count."""
    assert rejected(case, ours(case, count=1)) == case.counted


@rows
def test_row_rejects_float32_inside(case: Case):
    """A rule that computes in float32 is seen."""
    narrow = ours(case, case.problem().to(torch.float32))
    assert rejected(case, [{n: torch.as_tensor(v).double() for n, v in row.items()} for row in narrow])


# the flags


def lacking(case: Case, **without) -> bool:
    """Whether the link's first update raises where the context lacks something."""
    problem = case.problem()
    params = gch.Tensors.of(problem.params)
    step = context(problem, params, 0, 0)._step
    ctx = gch.Context.of(step._replace(**without))
    try:
        case.link.update(gch.Tensors.of(problem.gradient(0, params)), case.link.init(params), ctx)
    except RuntimeError:
        return True
    return False


@rows
def test_flags_say_what_the_link_asks_of_its_context(case: Case):
    """It raises without a step, weights or a closure if and only if its row says that it needs them."""
    assert lacking(case, clocks={}) == case.uses_step
    assert lacking(case, params=None) == case.uses_params
    assert lacking(case, evaluate=None) == case.needs_closure


@rows
def test_flags_say_whether_the_link_holds(case: Case):
    """It returns None for the updates in some step if and only if its row says that it may."""
    held = []
    ours(case, seen=lambda t, g, before, out, after: held.append(out is None))
    assert any(held) == case.may_hold == bool(case.link.holds)
