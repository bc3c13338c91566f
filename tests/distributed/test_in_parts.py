"""A Checkpointer of a run in parts: each rank writes its own, and any number of them goes on, to the bit."""

import in_parts_scenarios as on_ranks
import pytest
import torch

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    found = on_ranks.run(tmp_path_factory.mktemp("in_parts"))

    def of(name):
        failed = [one for one in found[name] if isinstance(one, str)]
        assert not failed, failed[0]
        return found[name]

    return of


def same(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            same(found[key], value)
    elif isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected)
    else:
        assert found == expected


def alike(found, expected, *, buffers=True):
    for key in ("weights", "links", "counts", *(("buffers",) if buffers else ())):
        same(found[key], expected[key])


@pytest.mark.parametrize("name", ["fsdp on two", "zero on two", "ddp on two", "one process", "fsdp on four"])
def test_what_four_ranks_saved_is_loaded_on_any_number(name, ran):
    """Weights, moments, the average and counts, to the bit; buffers of its own or the first rank's."""
    expected = ran("saved on four")
    assert expected[0]["counts"] == (3, 6)
    for number, found in enumerate(ran(name)):
        alike(found, expected[number if name == "fsdp on four" else 0])
        assert found["found"]["at"] == "seven" and found["found"]["more"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["tensors in one process", "tensors under fsdp on four"])
def test_what_lies_in_tensors_over_ranks_is_loaded_elsewhere(name, ran):
    for found in ran(name):
        alike(found, ran("saved in tensors")[0])


def test_one_process_goes_on_and_four_go_on_from_that(ran):
    (alone,) = ran("back from one process")
    same(alone["loaded"], ran("saved on four")[0]["links"])
    same(dict(alone["read"]), {**ran("saved on four")[0]["weights"], **ran("saved on four")[0]["buffers"]})
    assert alone["parts"] == ["update_00000003"], "parts go with their index"
    for name in ("and on four again", "zero on four again"):
        for found in ran(name):
            alike(found, alone)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("name", ["fsdp broken off", "zero broken off"])
def test_it_goes_on_bit_for_bit(name, background, ran):
    """Each rank with its random numbers, its place in the loader and its running statistics."""
    first, second = ran(name)
    for result in (first, second):
        alike(result[background], result["straight"])
        assert torch.equal(result[background]["draws"], result["straight"]["draws"])
        assert result[background]["found"]["micro"] in (14, 15)
        names = result[background]["files"]
        indexes = [name.partition(".")[0] for name in names if name.endswith(".pt")]
        assert [name.partition(".")[0] for name in names if name.endswith(".dcp")] == indexes
        assert indexes == ["best_score", "update_00000009", "update_00000010", "update_00000011"]
    assert not torch.equal(first["straight"]["draws"], second["straight"]["draws"])


@pytest.mark.parametrize("name", ["fsdp in a loop", "zero in a loop"])
def test_a_loop_goes_on_bit_for_bit(name, ran):
    """Left in the middle of an epoch and of a window; of its files the newest two and the best are there, in parts."""
    first, second = ran(name)
    for result in (first, second):
        assert result["killed"]["counts"] == (3, 7) and result["killed"]["at"] == 7
        alike(result["rest"], result["straight"])
        assert torch.equal(result["rest"]["draws"], result["straight"]["draws"])
        assert result["rest"]["at"] == result["straight"]["at"] == 22
        names = result["rest"]["files"]
        indexes = [name.partition(".")[0] for name in names if name.endswith(".pt")]
        assert indexes == ["best_drawn", "iter_00000021", "iter_00000022"]
        assert [name.partition(".")[0] for name in names if name.endswith(".dcp")] == indexes
    assert not torch.equal(first["straight"]["draws"], second["straight"]["draws"])


def test_what_a_loop_of_ranks_wrote_is_read_by_one_process(ran):
    assert ran("fsdp in a loop to one process")[0] > 0


def test_fewer_ranks_share_out_what_is_left_of_an_epoch(ran):
    begun, ended = ran("an epoch begun on four"), ran("and ended on two")
    said = [said for said, _ in ended]
    assert all("ranks must be the 4 that the checkpoint was saved with" in one for one in said), said
    seen = sorted(item for part in (*begun, *(items for _, items in ended)) for item in part)
    assert seen == [*range(on_ranks.SEEN)], "each once"


def test_a_rank_that_fails_is_heard_by_all(ran):
    first, second = ran("a rank that fails")
    for which, (own, other) in enumerate(((first, second), (second, first))):
        assert "cannot be written: No space left on device" in own[f"disk of {which}"]
        assert other[f"disk of {which}"].startswith(f"Checkpointer: rank {which} failed, and with it all. OSError: ")
        assert own[f"left by {which}"]
    assert second["entry"].startswith("save: at must be made of dict, list")
    assert first["entry"].startswith("Checkpointer: rank 1 failed, and with it all. TypeError: save: at must be made")
    assert first["last"] == second["last"] == "update_00000001.pt"


def test_a_failure_in_the_background_is_heard_at_the_next_save(ran):
    (first, *of_first), (second, *of_second) = ran("a rank that fails in the background")
    assert first.startswith("Checkpointer: rank 1 failed, and with it all.")
    assert "No space left on device" in second
    assert of_first == of_second == ["update_00000001.pt", False]


def test_damaged_parts_are_passed_over_by_all_alike(ran):
    first, second = ran("damaged parts")
    assert first == second
    assert first["found"] == {"at": 2} and first["last"] == "update_00000001.pt"
    (told,) = first["told"]
    assert "__1_0.distcp' is damaged or missing (its checksum is not that of its contents)" in told
    assert "The one before is used" in told and "No other in" in first["said"]


def test_parts_without_an_index_are_removed_and_nothing_else(ran):
    for names in ran("what was left"):
        assert [name for name in names if name.endswith(".dcp") and "0123abcd" not in name] != []
        assert {"mine.0123abcd.dcp", "update_00000009.dcp"} <= set(names)
        assert not {"update_00000009.0123abcd.dcp", "best_x.0123abcd.dcp"} & set(names)
        assert len([name for name in names if name.startswith("update_00000001")]) == 2
