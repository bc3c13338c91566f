"""ZeRO where shares are uneven or empty, where parameters and optimizers change, and in recipes of MMEngine's."""

import pytest
import torch
import zero_recipe_scenarios as recipes
import zero_uneven_scenarios as on_ranks
from shards_scenarios import run

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return run(4, tmp_path_factory.mktemp("uneven"), on_ranks.on_four)


@pytest.fixture(scope="module")
def two(four, tmp_path_factory):
    """Files of four ranks on two, runs that change, and recipes: all in one pair of processes."""
    paths = {key: four[0][("saved", *key)] for key in on_ranks.KEPT}
    return run(2, tmp_path_factory.mktemp("changes"), on_ranks.OnTwo(paths))


def near(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-12)


def same(ranks, key, expected):
    for rank in ranks:
        found = rank[key]
        near(found["weights"], expected["weights"])
        near(found.get("averages", {}), expected.get("averages", {}))
        assert all(torch.equal(t, ranks[0][key]["weights"][n]) for n, t in found["weights"].items())
        assert found["clocks"] == expected["clocks"]
        assert found.get("reasons") == expected.get("reasons")


@pytest.mark.parametrize("key", on_ranks.RUNS, ids=", ".join)
def test_four_ranks_with_little_or_much_to_share(four, key):
    same(four, key, on_ranks.alone(*key, 4))


@pytest.mark.parametrize("key", on_ranks.KEPT, ids=", ".join)
@pytest.mark.parametrize("zero", [True, False], ids=["shared out", "whole"])
def test_a_file_of_four_ranks_on_two_and_on_one(four, two, key, zero):
    same(two, (*key, zero), on_ranks.resumed(*key, four[0][("saved", *key)], False, 2))


@pytest.mark.parametrize("name", on_ranks.CHANGES)
def test_a_run_that_changes(two, name):
    same(two, (name,), on_ranks.CHANGES[name](2))


@pytest.mark.parametrize("zero", [True, False], ids=["shared out", "whole"])
def test_what_ddp_does_not_reduce_is_refused_until_it_is_made_anew(two, zero):
    """Else each rank would train the weight, or its part of it, by its own gradient."""
    for rank in two:
        in_step, bound, rebound = rank["unreduced", zero]["said"]
        assert rank["unreduced", zero]["same"]
        assert in_step.startswith("update: the gradient of 'body.0.weight' must be reduced over ranks: it was frozen")
        assert "bind: every gradient must be reduced over ranks, got 5 of 7: one was " in bound
        assert rebound.startswith("rebind: every gradient must be reduced over ranks, got 5 of 7: one was ")
    same(two, ("unreduced", zero), on_ranks.unfrozen_alone(2))


@pytest.mark.skipif(not recipes.FOLDER.is_dir(), reason=f"needs the recipes in {recipes.FOLDER}")
@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_trains_as_with_torchs_own_in_the_wrapper_of_mmengine(two, name):
    """Weight by weight, and on both ranks the same bits. MMEngine's ranks have a state for some of the tensors."""
    for rank in two:
        found = rank["recipe", name]
        start, theirs, ours = found["weights"]
        assert any(float((theirs[n] - start[n]).abs().max()) > 1e-5 for n in start), "it did not move"
        near(ours, theirs)
        assert all(torch.equal(ours[n], two[0]["recipe", name]["weights"][2][n]) for n in ours)
        assert "of them on this rank" in found["explained"]
    counts = [rank["recipe", name]["tensors"] for rank in two]
    assert sum(counts) == len(start) and all(counts)
