"""The model of many ranks: its bytes are those of real processes, and the page is what the command writes."""

import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from scale_job import BUCKET, LAYOUT, NAMES, on_a_rank  # noqa: E402

from benchmarks import scale, scale_model, scale_ranks  # noqa: E402
from benchmarks.scale_model import MACHINES, WAYS, cost, of_size, part, transformer  # noqa: E402
from gradchain.updater import zero  # noqa: E402

WORLDS = (2, 4) if os.environ.get("GRADCHAIN_LONG") else (2,)
H100 = MACHINES["h100"]


def rows_of(text, head):
    """The cells of the tables with this first heading."""
    found, inside = [], False
    for line in text.splitlines():
        inside = line.startswith("|") and (inside or line.startswith(f"| {head} |"))
        if inside and not line.startswith((f"| {head} |", "|---")):
            found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


@pytest.fixture(scope="module")
def prints():
    return {name: scale_ranks.footprint(made()) for name, made in scale_ranks.CHAINS.items()}


@pytest.fixture(scope="module", params=WORLDS)
def ranks(request):
    return request.param, scale_ranks.on_ranks(request.param, on_a_rank)


def joined(talk):
    """Collectives, with those of DDP's buckets as one: how it cuts them is its own affair."""
    numbers = 8 * (len(LAYOUT.shapes) + 1)
    reduced = sum(given * times for (kind, given), times in talk.items() if kind == "all_reduce" and given != numbers)
    others = {key: times for key, times in talk.items() if key[0] != "all_reduce" or key[1] == numbers}
    return {**others, ("all_reduce", reduced): 1} if reduced else others


@pytest.mark.distributed
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_collectives_memory_and_kernels_have_the_bytes_of_the_model(ranks, prints, name, way):
    world, found = ranks
    model = scale.predicted(LAYOUT, prints[name], way, world, BUCKET)
    for rank in found:
        assert joined(rank[name, way]["talk"]) == model["talk"]
        assert rank[name, way]["kernels"] == ["native"]
    for what in ("weights", "gradients", "state", "moved"):
        assert max(rank[name, way][what] for rank in found) == model[what], what
    assert way != "ZeRO" or sum(n for (kind, _), n in model["talk"].items() if kind == "all_gather") > 3
    other = scale.predicted(LAYOUT, prints[name], way, world + 1, BUCKET)
    assert way == "DDP" or other["talk"] != model["talk"]


def test_a_footprint_is_counted(prints):
    """As the notes on torch's recipes have it: AdamW reads weight, gradient and moments, and writes all but one."""
    assert prints["AdamW"] == scale_model.Footprint(4, 8.0, 28.0, 0)
    assert prints["clip, AdamW"] == scale_model.Footprint(4, 8.0, 32.0, 1)
    assert prints["clip, AdamW, average"] == scale_model.Footprint(4, 12.0, 40.0, 1)
    assert prints["SGD with momentum"] == scale_model.Footprint(4, 4.0, 20.0, 0)


def test_a_chain_whose_bytes_depend_on_the_shape_is_refused():
    import gradchain as gch

    with pytest.raises(ValueError, match="scale: a chain must have so many bytes for each element, got chain"):
        scale_ranks.footprint(gch.adafactor(1e-2))


def test_sizes_are_those_of_gpt_3_and_its_kin():
    """Brown et al., 2020, Table 2.1: 96 blocks, 12288 wide; 175 B with its embeddings."""
    large = of_size(175e9)
    assert (large.blocks, large.block[0]) == (96, (12288,))
    assert large.elements == pytest.approx(174e9, rel=0.005)
    for size in scale.SIZES:
        assert of_size(size).elements == pytest.approx(size, rel=0.1)


def test_a_part_is_whole_rows():
    assert [part((10, 3), ranks) for ranks in (1, 2, 4, 10, 64)] == [30, 15, 9, 3, 3]


def test_what_rings_send_and_where_it_takes_time(prints):
    chain, layout = prints["clip, AdamW"], transformer(1, 64)
    whole = 4 * layout.elements
    costs = {way: cost(layout, chain, way, 8, H100, zero.BUCKET) for way in WAYS}
    numbers = 8 * (len(layout.shapes) + 1) * 2 * 7 / 8
    assert costs["DDP"].sent == whole * 2 * 7 / 8 and costs["DDP"].late == 0
    assert costs["ZeRO"].sent == whole * 3 * 7 / 8 + numbers and costs["ZeRO"].late == whole * 7 / 8 + numbers
    assert costs["FSDP2"].late == numbers
    assert costs["DDP"].part == 32 * layout.elements / H100.memory
    slower = cost(layout, chain, "ZeRO", 8, replace(H100, network=H100.network / 2), zero.BUCKET)
    assert slower.part - costs["ZeRO"].part == pytest.approx(costs["ZeRO"].late / H100.network)


def test_the_page_is_what_the_command_writes(prints):
    """Its table of costs, and what is said of it, from the chain's bytes as they are counted today."""
    text = scale.PAGE.read_text()
    chain = prints[scale.CHAIN]
    for line in scale.table_of(chain, H100, zero.BUCKET) + scale.chains_of(prints):
        assert f"\n{line}\n" in text
    assert scale.reading_of(chain, H100, zero.BUCKET) in text
    assert scale.drawn(chain, H100, zero.BUCKET) == scale.PAGE.with_suffix(".svg").read_text()
    found = rows_of(text, "processes")
    counted = [row for row in found if len(row) == 10]
    assert len(counted) == 6 and all(row[-1] == "the same" for row in counted)
    assert "not those of the model" not in text


def test_a_row_that_differs_is_told(prints):
    chain = prints[scale.CHAIN]
    made = {way: scale.predicted(scale.CHECKED, chain, way, 2, zero.BUCKET) for way in WAYS}
    rows, unequal = scale.counts_of({2: [{"counted": made}]}, chain, zero.BUCKET)
    assert unequal == 0 and all("the same" in row for row in rows[2:])
    made["ZeRO"]["state"] += 4
    rows, unequal = scale.counts_of({2: [{"counted": made}]}, chain, zero.BUCKET)
    assert unequal == 1 and "1 differ" in rows[3]


def test_another_machine_is_printed_and_not_written(monkeypatch, capsys):
    before = scale.PAGE.read_text()
    arguments = ["scale", "--chain", "Lion", "--machine", "a100", "--network", "50"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert scale.main() == 0
    rows = rows_of(capsys.readouterr().out, "parameters")
    assert [row[:2] for row in rows] == [[f"{s / 1e9:g} B", str(r)] for s in scale.SIZES for r in scale.RANKS]
    assert all(math.isfinite(float(x)) for row in rows for x in row[-1].split(" / "))
    assert scale.PAGE.read_text() == before
