"""Kernels over local shards, on two ranks, equal one process with whole tensors."""

import pytest
import shards_scenarios as on_ranks
import torch
from little_task import distance, weights

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module", params=[2])
def ran(request, tmp_path_factory):
    return on_ranks.run(request.param, tmp_path_factory.mktemp("shards"))


@pytest.mark.parametrize("kind", on_ranks.KINDS)
@pytest.mark.parametrize("name", on_ranks.chains())
def test_every_chain_over_every_kind_of_shards(ran, kind, name):
    expected = on_ranks.alone(kind, name)
    for found in (rank[kind, name] for rank in ran):
        assert found["ran"] == [""] * 8  # no step by the reference
        assert "native: " in found["explained"] and "over this rank's shards" in found["explained"]
        if (kind, name) == ("fsdp", "gates"):
            assert found["reasons"] == ["applied"] * 3 + ["overflow"] + ["applied"] * 4
            assert all(torch.equal(a, b) for a, b in zip(found["weights"], ran[0][kind, name]["weights"], strict=True))
            continue
        assert found["reasons"] == expected["reasons"]
        assert distance(found["weights"], expected["weights"], weights(on_ranks.made(kind))) < 1e-12
        if expected["average"] is not None:
            for a, b in zip(found["average"], expected["average"], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_function_of_whole_tensors_gets_whole_ones(ran):
    for rank in ran:
        assert set(rank["whole"]["ran"]) == {"a link asks for whole tensors, of which each rank has a shard"}
