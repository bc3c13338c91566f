"""A chain inside ZeroRedundancyOptimizer: each rank has the state of its part, and the run is the unsharded one."""

import pytest
import zero_scenarios as on_ranks
from adapters.trainer_table import YES, check
from two_ranks import run

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    return run(on_ranks.scenario, tmp_path_factory.mktemp("zero"))


def test_a_sharded_run_is_the_unsharded_one_bit_for_bit(ran):
    for found in ran("trains"):
        assert [key for key, value in found.items() if not value] == []


@pytest.mark.parametrize("name", on_ranks.CHAINS)
def test_each_rank_has_a_state_for_its_part_alone(name, ran):
    counts, steps = zip(*(found[name, "part"] for found in ran("trains")), strict=True)
    assert sum(counts) == 5 and all(counts) and steps == (9, 9)


def test_a_resumed_run_is_the_uninterrupted_one(ran):
    for found in ran("resumes"):
        assert [key for key, value in found.items() if not value] == []


def test_chains_that_look_at_all_parameters_are_refused(ran):
    for said in ran("refuses"):
        for name in on_ranks.REFUSED:
            assert said[name].startswith("optimizer_class: each rank has a part of the parameters, and ")
        assert "masked/clip_by_norm does not say" in said["in a branch"]


def test_what_is_no_part_of_the_model_is_refused(ran):
    for said in ran("refuses"):
        assert said["groups"].startswith("optimizer_class: there must be one group of parameters, got 5.")
        assert said["strangers"].endswith("must be of the model that the class was made for, got others.")
        assert said["none"].endswith("got none.")
        assert said["options"] == "optimizer_class: takes no 'lr': the numbers are in the chain."


def test_another_state_changes_nothing(ran):
    for found in ran("another_state"):
        assert found["same"] and all("load_state_dict: expected the state" in said for said in found["said"])


def test_closures(ran):
    assert ran("closures") == [True, True]


def test_the_row_in_the_docs(ran):
    """The table in docs/trainers.md, beside the other consumers."""
    trained, resumed = (all(value for found in ran(name) for value in found.values()) for name in ("trains", "resumes"))
    check("ZeroRedundancyOptimizer, 2 ranks", "torch", YES[trained], YES[resumed], ran("refuses")[0]["bare"])
