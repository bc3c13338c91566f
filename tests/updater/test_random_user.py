"""A user who does random things to a model and its updater, beside a naive plain-torch twin."""

import os

import pytest
import random_user
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from random_user import User, driven

EXECUTORS = ["native", "blocks", "reference"]
KINDS = [(1, False), (3, False), (1, True), (3, True), (2, True)]


@pytest.mark.parametrize(("k", "amp"), KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_a_random_user(k, amp, seed):
    """After each of 60 random actions weights, counters, scale and window equal the twin's."""
    user = driven(k, amp, seed, 60)
    assert user.twin.step > 2
    assert user.ran == {"native"}


@pytest.mark.parametrize("executor", EXECUTORS[1:])
@pytest.mark.parametrize(("k", "amp"), [(1, True), (3, False)])
def test_a_random_user_of_another_executor(k, amp, executor):
    user = driven(k, amp, 1, 60, executor)
    assert user.twin.step > 2
    assert user.ran == {executor} - {"reference"}


@pytest.mark.parametrize("seed", [2, 3])
def test_a_random_user_of_torchs_fused_kernels(seed):
    """Without clip, scale and average; blocks take over where counts are unequal."""
    user = driven(1, False, seed, 80, "patterns")
    assert user.twin.step > 2
    assert user.ran == {"patterns", "blocks"}


class Session(RuleBasedStateMachine):
    """The same actions, chosen and shrunk by hypothesis."""

    @initialize(kind=st.sampled_from(KINDS), executor=st.sampled_from([*EXECUTORS, "patterns"]))
    def start(self, kind, executor):
        self.user = User(*kind, executor)

    @rule(action=st.sampled_from(sorted(set(User.ACTIONS))), seed=st.integers(0, 10**6))
    def act(self, action, seed):
        self.user.do(action, seed)


def test_a_session():
    """A few short sessions that shrink to the least actions that go wrong."""
    run_state_machine_as_test(Session, settings=settings(max_examples=10, stateful_step_count=25, deadline=None))


@pytest.mark.fuzz
@pytest.mark.slow
def test_many_users():
    """The long run: as many seeds as GRADCHAIN_FUZZ says (5 by default), 200 actions each."""
    for seed in range(int(os.environ.get("GRADCHAIN_FUZZ", "5"))):
        driven(*KINDS[seed % len(KINDS)], 1000 + seed, 200, EXECUTORS[seed % len(EXECUTORS)])


BREAKS = {
    "B1": 0.9001, "CLIP": 0.3003, "DECAY": 0.0501, "EPS": 1.01e-8,
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_a_twin_that_is_off_is_told_apart(name, monkeypatch):
    """Negative controls: a twin with a constant off by a little fails within one session."""
    chain = random_user.chain

    constants = {n: getattr(random_user, n) for n in BREAKS}

    def made(k, amp, fused):
        with pytest.MonkeyPatch.context() as patch:
            for n, value in constants.items():
                patch.setattr(random_user, n, value)
            return chain(k, amp, fused)

    monkeypatch.setattr(random_user, "chain", made)
    monkeypatch.setattr(random_user, name, BREAKS[name])
    with pytest.raises(AssertionError):
        driven(3, False, 0, 60)


def test_actions_are_those_of_the_table():
    """Every method of the user that takes randomness is in ACTIONS, and each runs in the sessions above."""
    methods = {n for n, f in vars(User).items() if callable(f) and "draw" in getattr(f, "__code__", f).co_varnames[:2]}
    assert methods - {"_kind"} == set(User.ACTIONS)
    logs = [driven(k, amp, 5, 60).log for k, amp in KINDS]
    done = {line.partition("(")[0] for log in logs for line in log}
    assert done == set(User.ACTIONS)
