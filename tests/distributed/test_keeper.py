"""A Checkpointer on two ranks: the words are the same, the first rank writes and all go on alike."""

import keeper_scenarios as on_ranks
import pytest
import torch
from two_ranks import run

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    return run(on_ranks.scenario, tmp_path_factory.mktemp("keeper"))


@pytest.mark.parametrize("background", [False, True])
def test_it_goes_on_bit_for_bit(background, ran):
    for result in ran("resumed"):
        whole, resumed = result["whole"], result[background]
        assert resumed["found"]["micro"] in (6, 7) and resumed["micro"] == whole["micro"]
        for mine, other in zip(resumed["weights"], whole["weights"], strict=True):
            assert torch.equal(mine, other)
        assert torch.equal(resumed["draws"], whole["draws"])
        assert len([name for name in resumed["files"] if name.startswith("update_")]) == 3
    first, second = ran("resumed")
    assert not torch.equal(first["whole"]["draws"], second["whole"]["draws"])


def test_a_signal_on_one_rank_saves_on_all(ran):
    for result in ran("a_signal_on_one_rank"):
        assert result == {"saved": [False, False, True, False], "called": [15]}


def test_a_failure_of_the_first_rank_is_heard_by_all(ran):
    first, second = ran("a_failure_of_the_first_rank")
    assert "No space left on device" in first["said"]
    assert second["said"].startswith("Checkpointer: the first rank failed, and with it all. OSError: ")
    assert first["there"] and second["there"]


def test_ranks_of_which_one_diverges_raise_together(ran):
    first, second = ran("a_run_that_diverges_on_one_rank")
    assert first["micro"] == second["micro"] == 8
    assert first["back"] == second["back"] and first["back"].endswith("update_00000006.pt")
    assert all(torch.equal(*pair) for pair in zip(first["weights"], second["weights"], strict=True))
