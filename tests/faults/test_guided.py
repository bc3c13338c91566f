"""The guide of the fuzzer: what takes a new way is gone on from, and an input that is bad is named by its seeds."""

import os
import signal

import guided
import pytest
import reached_in_steps

pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # of JAX, where another test has imported it


def found(n, guide):
    """After how many inputs the end is reached; n where it is not."""
    for i in range(n):
        seeds = guide.seeds(i)
        said, new = guide.watched(lambda seeds=seeds: reached_in_steps.at(seeds))
        guide.learn((seeds, new) if new else None)
        if said:
            return i
    return n


class Blind(guided.Guide):
    """One that learns nothing."""

    def learn(self, note):
        """Nothing."""


def test_the_end_of_a_path_is_found_by_steps():
    """Six changes in a row are needed, each one of eight: without what it learns there is no end."""
    of = reached_in_steps.__file__
    assert found(4000, guided.Guide(of)) < 4000
    assert found(4000, Blind(of)) == 4000


def test_a_second_run_is_the_same():
    of = reached_in_steps.__file__
    first, second = guided.Guide(of), guided.Guide(of)
    assert found(1500, first) == found(1500, second)
    assert first.kept == second.kept and len(first.kept) > 3


@pytest.mark.parametrize("how", ["kill", "loop"])
def test_one_that_ends_the_process_or_takes_too_long_is_named(how, monkeypatch):
    """The others are tried, and what its seeds are is said."""
    monkeypatch.setattr("bounded.SECONDS", 2.0)  # a fork of a large process takes a while
    bad = guided.Guide().seeds(5)

    def attempt(seeds):
        while seeds == bad:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        return ""

    said = list(guided.tried(9, attempt))
    expected = f"input {list(bad)}: " + ("ended the process: -9" if how == "kill" else "took too long")
    assert said == [*[""] * 5, expected, *[""] * 3]
