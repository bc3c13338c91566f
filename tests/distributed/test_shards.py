"""Kernels over local shards equal one process with whole tensors, and ranks agree on who runs a step."""

import os

import pytest
import shards_scenarios as on_ranks
import torch
from little import largest
from little_shards import KINDS, STEPS, chains, numbers
from little_task import distance, weights

pytestmark = pytest.mark.distributed

LONG = bool(os.environ.get("GRADCHAIN_LONG"))


@pytest.fixture(scope="module", params=[2, 4] if LONG else [2])
def ran(request, tmp_path_factory):
    return on_ranks.run(request.param, tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def alone():
    return {name: on_ranks.alone(None, name) for name in chains()}


def off(found, expected):
    """The largest difference of two displacements, relative to the second."""
    assert found.keys() == expected.keys()
    moved = [(found[n] - expected[n], expected[n] - numbers(n, -1)) for n in expected]
    assert any(bool(by.abs().max() > 1e-3) for _, by in moved), "the reference did not move"
    return largest(gap.abs().max() / by.abs().max().clamp_min(1e-3) for gap, by in moved)


def same(found, expected):
    assert off(found["weights"], expected["weights"]) < 1e-12
    assert found["reasons"] == expected["reasons"]
    assert found["averages"].keys() == expected["averages"].keys()
    for name, average in expected["averages"].items():
        torch.testing.assert_close(found["averages"][name], average, rtol=1e-12, atol=1e-14)


def by_kernels(found):
    assert set(found["by_reference"]) == {""}
    assert "native: " in found["explained"] and "over this rank's shards" in found["explained"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", chains())
def test_every_chain_over_every_layout(ran, alone, kind, name):
    for rank in ran:
        found = rank["laid", kind, name]
        by_kernels(found)
        same(found, alone[name])


@pytest.mark.skipif(LONG, reason="all of it runs on four ranks")
def test_meshes_of_two_dimensions(alone, tmp_path):
    """On two ranks one of the dimensions is of one."""
    for rank in on_ranks.run(4, tmp_path, on_ranks.of_meshes):
        for (what, kind, name), found in rank.items():
            by_kernels(found)
            if what == "laid":
                same(found, alone[name])
                continue
            expected = on_ranks.model_alone(kind, name)
            assert distance(found["weights"], expected["weights"], weights(on_ranks.made(kind))) < 1e-12


@pytest.mark.parametrize("kind", on_ranks.MODELS)
@pytest.mark.parametrize("name", on_ranks.MODEL_CHAINS)
def test_models_that_torch_shards(ran, kind, name):
    expected = on_ranks.model_alone(kind, name)
    for rank in ran:
        found = rank["model", kind, name]
        by_kernels(found)
        if (kind, name) == ("layers", "gates"):
            assert found["reasons"] == ["applied"] * 3 + ["overflow"] + ["applied"] * 2
            first = ran[0]["model", kind, name]["weights"]
            assert all(torch.equal(a, b) for a, b in zip(found["weights"], first, strict=True))
            continue
        assert found["reasons"] == expected["reasons"]
        assert distance(found["weights"], expected["weights"], weights(on_ranks.made(kind))) < 1e-12


# what one rank alone refuses

MEET = {"window of gradients": (2, 5), "numbers of each": ()}  # in which steps ranks meet; else in all


@pytest.mark.parametrize(("case", "name"), on_ranks.ONE_REFUSES)
def test_what_one_rank_alone_refuses_no_rank_runs(ran, alone, case, name):
    """All of them run it by the reference as soon as they meet, or at first; in steps without talk each as it can."""
    by_reference = [[bool(reason) for reason in rank["refused", case, name]["by_reference"]] for rank in ran]
    for rank in ran:
        same(rank["refused", case, name], alone[name])
    for mine in by_reference:
        for step in (0, *MEET.get(name, range(STEPS))):
            assert mine[step] == by_reference[1][step]
    if case.startswith("gaps"):
        first, last = {"gaps later": (3, STEPS), "gaps for a while": (2, 4)}.get(case, (0, STEPS))
        assert by_reference[1] == [first <= step < last for step in range(STEPS)]
    else:
        uses = {"no executor reduces": ("clip, adamw, average", "factored"), "no executor writes": chains()}
        assert any(by_reference[1]) == (name in uses.get(case, ("factored",)))


def test_a_rank_that_cannot_go_on_says_so(ran):
    why = "update: every rank must run a step in the same way, got one that cannot run it by kernels: "
    assert [rank["late",].startswith(why) for rank in ran] == [at == 1 for at in range(len(ran))]


@pytest.mark.parametrize("name", on_ranks.OTHERS)
def test_ranks_with_other_executors(ran, alone, name):
    """Where one rank alone leaves numbers on a device, no rank runs the step by kernels."""
    for at, rank in enumerate(ran):
        found = rank["other", name]
        same(found, alone[on_ranks.OTHERS[name]])
        if name == "foreach":
            assert set(found["by_reference"]) == {
                "executors leave numbers on a device on some ranks, and with the host on others"
            }
        else:
            assert set(found["by_reference"]) == {""} and f"  {['native', name][at == 1]}: " in found["explained"]


@pytest.mark.parametrize(("kind", "name"), on_ranks.ON_DEVICE)
def test_numbers_on_the_device_meet_there(ran, alone, kind, name):
    for rank in ran:
        found = rank["device", kind, name]
        same(found, alone[name])
        assert set(found["by_reference"]) == {""}
        assert "foreach: " in found["explained"] and "native: " not in found["explained"]


@pytest.mark.parametrize("case", on_ranks.FAILS)
def test_what_fails_on_one_rank_no_rank_writes(ran, alone, case):
    """Nobody waits: the others raise in the same step, and all can go on."""
    for at, rank in enumerate(ran):
        said, unchanged, found = rank["fails", case]
        assert said.startswith("there is none" if at == 1 else "update: every rank must come to the end of a step")
        assert unchanged
        same(
            {**found, "reasons": ["applied"] * 2 + found["reasons"]},
            alone[on_ranks.REFUSED_CHAINS[on_ranks.FAILS[case][2]]],
        )
        by_kernels(found)


# functions of whole tensors


@pytest.mark.parametrize("kind", ["rows", "rows and columns"])
@pytest.mark.parametrize("name", on_ranks.maps())
def test_functions_of_whole_tensors_get_whole_ones(ran, kind, name):
    expected = on_ranks.alone(None, None, on_ranks.maps()[name])
    for rank in ran:
        found = rank["map", kind, name]
        same(found, expected)
        if name in ("as it is", "other shapes"):
            assert all("whole tensors" in reason for reason in found["by_reference"])
        else:
            by_kernels(found)
            assert "map " in found["explained"]


def test_what_torch_has_no_rule_for_says_how_it_is_gathered(ran):
    for rank in ran:
        assert rank["no rule",].startswith("Tensors.map: fn must compute with tensors that are spread over ranks")
        assert rank["no rule",].endswith("map(fn, gather=True) gives it whole ones.")


def test_a_projection_of_whole_tensors(ran):
    for rank in ran:
        why = "a link asks for whole tensors, of which each rank has a shard"
        assert set(rank["project",]["by_reference"]) == {why}


# what is kept


@pytest.mark.parametrize(("kind", "name"), on_ranks.KEPT)
def test_a_loaded_state_goes_on(ran, alone, kind, name):
    for rank in ran:
        found = rank["resumed", kind, name]
        by_kernels(found)
        assert off(found["weights"], alone[name]["weights"]) < 1e-12


def test_averaged_weights(ran):
    for rank in ran:
        inside, averages, by_reference = rank["averaged",]
        assert set(by_reference) == {""}
        assert averages and all(torch.equal(inside[name], average) for name, average in averages.items())


@pytest.mark.parametrize(("kind", "name"), on_ranks.KEPT)
def test_verified_against_the_reference_of_all_ranks(ran, alone, kind, name):
    for rank in ran:
        found = rank["verified", kind, name]
        by_kernels(found)
        same(found, alone[name])
        assert "were held against the reference, 0 of them differed" in found["explained"]


def test_one_collective_for_all_numbers_of_a_step(ran):
    """The gate and the clip read one sum; what ranks agree on they do once."""
    for rank in ran:
        assert rank["talk",] == [3, 1, 1, 1]
