"""Steps over ranks run again: the same as recorded each time and as in one process, whichever rank does which."""

import again_scenarios as on_ranks
import again_windows
import pytest
import shards_scenarios
import torch
from little import largest

pytestmark = pytest.mark.distributed

FIRST = "the first of their kind"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    return shards_scenarios.run(2, tmp_path_factory.mktemp("again"), again_windows.scenarios)


@pytest.fixture(scope="module")
def alone():
    return {name: on_ranks.alone(name) for name in on_ranks.chains()}


def off(found, expected):
    return largest((found[name] - expected[name]).abs().max() for name in expected)


@pytest.mark.parametrize(("kind", "name", "way"), on_ranks.TRIED)
def test_a_step_run_again_is_the_step(ran, alone, kind, name, way):
    """Ranks that run a step again and ranks that record it come to the same meetings."""
    for at, rank in enumerate(ran):
        found, expected = rank["ran", kind, name, way], alone[name]
        assert off(found["weights"], expected["weights"]) < 1e-12
        assert found["reasons"] == expected["reasons"]
        assert set(found["by_reference"]) == {""}
        if at in on_ranks.WAYS[way]:
            assert (found["again"], found["why"]) == (0, {on_ranks.TOLD: on_ranks.STEPS})
            continue
        assert (found["again"], found["why"]) == (expected["again"], expected["why"])
        assert f"{found['again']} steps needed nothing but their numbers" in found["said"]


def test_what_is_recorded_is_little(alone):
    """A step of each kind: without that the tests above would run nothing again."""
    for name, found in alone.items():
        assert found["why"] == {FIRST: 2 if name in ("gates", "window", "window of gradients", "unread") else 1}
    assert alone["gates"]["reasons"].count("overflow") == alone["unread"]["reasons"].count("nonfinite") == 1


def test_shards_that_lie_elsewhere_are_recorded_anew(ran, alone):
    """Where that is so on one rank alone, the other runs on."""
    for at, rank in enumerate(ran):
        found = rank["moved",]
        assert off(found["weights"], alone["clip, adamw, average"]["weights"]) < 1e-12
        assert set(found["by_reference"]) == {""}
        assert found["why"] == {FIRST: 2 + at} and found["again"] == on_ranks.STEPS - 2 - at


@pytest.mark.parametrize("name", on_ranks.RESHARDED)
def test_weights_that_are_shared_out_otherwise_are_recorded_anew(ran, name):
    expected = on_ranks.resharded_alone(name)
    for rank in ran:
        found = rank["resharded", name]
        assert off(found["weights"], expected["weights"]) < 1e-12
        assert set(found["by_reference"]) == {""}
        assert found["counts"] == [0, 1, 2, 3, 3, 4, 5, 6]


def test_a_rank_that_fails_once_goes_through_the_links(ran, alone):
    """What has met is not met again, and the other rank notices nothing."""
    for at, rank in enumerate(ran):
        said, unchanged, found = rank["failing", 1]
        assert (said, unchanged) == ("", False)
        assert off(found["weights"], alone["gates"]["weights"]) < 1e-12
        assert found["why"] == {FIRST: 2 + at}


def test_what_fails_on_one_rank_no_rank_writes(ran, alone):
    """The other one, which would run the step again, hears of it in the meeting of that step, and all go on."""
    for at, rank in enumerate(ran):
        said, unchanged, found = rank["failing", 99]
        assert said.startswith("there is none" if at == 1 else "update: every rank must come to the end of a step")
        assert unchanged
        assert off(found["weights"], alone["gates"]["weights"]) < 1e-12
        assert found["again"] > 2


@pytest.mark.parametrize("way", on_ranks.WAYS)
@pytest.mark.parametrize("kind", on_ranks.GATES)
def test_a_mean_over_ranks_is_a_number_of_the_step(ran, kind, way):
    """A gate that looks at the losses of all ranks, which are others on each."""
    expected = on_ranks.of_losses(kind, None, "again")
    assert expected["again"] > 2 and len(set(expected["reasons"])) > 1
    for at, rank in enumerate(ran):
        found = rank["losses", kind, way]
        assert found["reasons"] == expected["reasons"]
        assert found["value"] == pytest.approx(expected["value"], rel=1e-12)
        for mine, theirs in zip(found["weights"], expected["weights"], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
        assert found["again"] == (0 if at in on_ranks.WAYS[way] else expected["again"])


# windows


def assert_weights(found, expected):
    for mine, theirs in zip(found["weights"], expected["weights"], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "name", "flushes", "way"), again_windows.TRIED)
def test_a_window_of_weighted_micro_batches_runs_again(ran, kind, name, flushes, way):
    """Each rank weighs its own, and a flush closes what is open, in one step of its own kind."""
    expected = again_windows.of_windows(None, name, flushes, "again", None)
    steps, kinds = expected["steps"], 3 + flushes  # one opens a window, one is added to it, one closes it
    assert steps == again_windows.MICROS + 2 * flushes and expected["reasons"].count("applied") > 6
    for at, rank in enumerate(ran):
        found = rank["windows", kind, name, flushes, way]
        assert_weights(found, expected)
        assert (found["reasons"], found["by_reference"]) == (expected["reasons"], "")
        if at in on_ranks.WAYS[way]:
            assert (found["again"], found["why"]) == (0, {on_ranks.TOLD: steps})
            continue
        assert (found["again"], found["why"]) == (steps - kinds, {FIRST: kinds})
        assert f"{found['again']} steps needed nothing but their numbers" in found["said"]


@pytest.mark.parametrize(("kind", "name", "flushes"), again_windows.MIXED)
def test_ranks_talk_of_windows_as_often_as_where_steps_are_recorded(ran, kind, name, flushes):
    for rank in ran:
        talks = [rank["windows", kind, name, flushes, way]["talks"] for way in on_ranks.WAYS]
        assert len({*talks}) == 1 and talks[0] > 0


# other process groups


def test_where_only_the_process_groups_are_others_steps_are_recorded_anew(ran, alone):
    """A mesh finds its groups by name, and the weights are the same objects: nothing else tells of it."""
    for rank in ran:
        found = rank["anew",]
        assert off(found["weights"], alone["clip, adamw, average"]["weights"]) < 1e-12
        assert set(found["by_reference"]) == {""}
        assert found["now"], "they have met over groups that have ended"
        first, anew = found["asked"]
        assert first == anew > 1, "who is there now was not asked whether it can run the chain"
        assert (found["again"], found["why"]) == (on_ranks.STEPS - 2, {FIRST: 2})


@pytest.mark.parametrize("kind", ["replicas", "shards"])
def test_a_rebound_updater_meets_over_the_groups_of_its_model(ran, kind):
    expected = again_windows.of_rebound(None, None)
    for rank in ran:
        found = rank["rebound", kind]
        assert_weights(found, expected)
        assert found["before"] == {FIRST: 5} and found["why"] == {FIRST: 7}
        assert found["again"] == 18 - 7
