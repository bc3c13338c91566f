"""`bind(model, zero_redundancy=True)`: each rank has a part of the state, and the run is that of one process."""

import os

import pytest
import torch
import zero_updater_scenarios as on_ranks
from shards_scenarios import run

pytestmark = pytest.mark.distributed

LONG = bool(os.environ.get("GRADCHAIN_LONG"))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run(2, tmp_path_factory.mktemp("zero"), on_ranks.on_two)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return run(4, tmp_path_factory.mktemp("zero"), on_ranks.on_two if LONG else on_ranks.on_four)


def near(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-12)


def same(found, expected):
    near(found["weights"], expected["weights"])
    assert found["clocks"] == expected["clocks"]
    if "averages" in expected:
        near(found["averages"], expected["averages"])


def of_one_process(ranks, key, world):
    name = key[0]
    expected = on_ranks.alone(name, world)
    start = dict(zip(expected["weights"], on_ranks.net().parameters(), strict=True))
    assert any(float((expected["weights"][n] - p.detach()).abs().max()) > 1e-3 for n, p in start.items()), (
        "it did not move"
    )
    for rank in ranks:
        found = rank[key]
        same(found, expected)
        assert found["reasons"] == expected["reasons"]
        assert all(torch.equal(found["weights"][n], ranks[0][key]["weights"][n]) for n in expected["weights"])
        if "averages" in found:
            assert all(map(torch.equal, found["inside"], found["averages"].values()))
        by_kernels = name not in ("closure",)
        assert (found["reference"] == "") == by_kernels
        assert not by_kernels or "over this rank's shards" in found["explained"]


@pytest.mark.parametrize("key", [key for key in on_ranks.on_two() if key[0] in on_ranks.CHAINS], ids=str)
def test_on_two_ranks_it_is_the_run_of_one_process(two, key):
    of_one_process(two, key, 2)


@pytest.mark.parametrize("name", on_ranks.CHAINS if LONG else on_ranks.FEW)
def test_on_four_ranks_too(four, name):
    of_one_process(four, (name, False), 4)


def test_a_loss_scale_skips_on_every_rank(two):
    for rank in two:
        assert rank["loss scale", False]["reasons"].count("overflow") == 1
        assert rank["window, loss scale", False]["reasons"].count("overflow") == 1


@pytest.mark.parametrize("world", [2, 4])
def test_each_rank_has_its_part_of_the_state(request, world):
    """Up to a row of each tensor; and no more memory than that lies behind it."""
    ranks = request.getfixturevalue("two" if world == 2 else "four")
    for name in ranks[0]["sizes",]:
        wholes, parts, storages = zip(*(rank["sizes",][name] for rank in ranks), strict=True)
        assert len(set(wholes)) == 1 and wholes[0] > 10_000
        assert all(part == pytest.approx(wholes[0] / world, rel=0.1) for part in parts)
        assert storages == parts or name == "muon"  # whose parts are in branches


# what is kept


@pytest.mark.parametrize("name", on_ranks.KEPT)
@pytest.mark.parametrize("zero", [True, False], ids=["shared out", "whole"])
def test_a_file_goes_on_in_one_process(two, name, zero):
    saved = two[0]["saved", name, zero]
    same(on_ranks.resumed_alone(name, saved["path"], 2), saved)


@pytest.fixture(scope="module")
def again(two, four, tmp_path_factory):
    """Files of two and four ranks, with and without, on two ranks, with and without."""
    paths = {}
    for name in on_ranks.KEPT:
        for was in (True, False):
            path = two[0]["saved", name, was]["path"]
            paths |= {(2, name, was, zero): (name, path, zero) for zero in (True, False) if was or zero}
    paths[4, "averages", True, True] = ("averages", four[0]["saved", "averages", True]["path"], True)
    paths[4, "averages", True, False] = ("averages", four[0]["saved", "averages", True]["path"], False)
    return run(2, tmp_path_factory.mktemp("again"), on_ranks.Resumed(paths))


def test_a_file_goes_on_wherever_it_is_read(two, again):
    for rank in again:
        for (world, name, was, _), found in rank.items():
            if world == 2:
                same(found, two[0]["saved", name, was])


def test_a_file_of_four_ranks_goes_on_on_two_and_on_one(four, again):
    """It sees other batches from there on: both ways alike, and not those of four."""
    alone = on_ranks.resumed_alone("averages", four[0]["saved", "averages", True]["path"], 2)
    for rank in again:
        for zero in (True, False):
            same(rank[4, "averages", True, zero], alone)


@pytest.mark.parametrize("name", ["clip, adamw", "averages", "window in a buffer"])
def test_parts_are_saved_and_read_by_dcp(two, name):
    expected = on_ranks.alone(name, 2)
    for rank in two:
        same(rank["dcp", name][True], expected)
        same(rank["dcp", name][False], expected)


def test_a_state_dict_is_whole_and_plain(two):
    for rank in two:
        said, links, without = rank["state",]
        assert said.startswith("state_dict: the open window differs from rank to rank.")
        assert links.keys() == without.keys()
        for address, fields in without.items():
            for field, entries in fields.items():
                if isinstance(entries, dict) and entries and all(map(torch.is_tensor, entries.values())):
                    assert all(type(t) is torch.Tensor for t in links[address][field].values())
                    near(links[address][field], entries)


# what else happens to a run


def test_a_gradient_that_is_not_finite_stops_every_rank(two):
    assert [rank["skipped",] for rank in two] == [("nonfinite", True, 2)] * 2


def test_a_changed_model_and_a_reset(two):
    for rank in two:
        (found, *report), (expected, *without) = rank["changed",]
        near(found, expected)
        assert report == without and "body.2.weight" in report[0] + report[1]


def test_kernels_are_held_against_the_reference(two):
    for rank in two:
        for found in rank["verified",]:
            assert "were held against the reference, 0 of them differed" in found["explained"]


def test_what_cannot_be_is_refused_in_a_sentence(two):
    for rank in two:
        said = rank["refused",]
        assert said["no DDP"].endswith("got one that is not. Bind DistributedDataParallel(model).")
        assert said["beside DDP"].startswith("bind: zero_redundancy=True cannot share out 'out.weight': no Distrib")
        assert "'z': it is complex" in said["complex"]
        assert "must have dense gradients, got sparse ones of 'weight'" in said["sparse"]
        assert "in_backward=True must have each gradient reduced" in said["in backward"]
        assert said["a class"].endswith("Use a link of ours.")
        assert said["no bool"] == "bind: zero_redundancy must be True or False, got 2."
