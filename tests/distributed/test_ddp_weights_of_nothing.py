"""Micro-batches of weight 0 on two ranks equal one process and the rows that count."""

import ddp_weights_of_nothing as on_ranks
import pytest
import torch
from ddp_windows import summed
from little_task import close, net, rows, weights
from torch import nn
from two_ranks import run

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    return run(on_ranks.scenario, tmp_path_factory.mktemp("ddp_weights_of_nothing"))


def by_rows(count):
    """torch's SGD on the mean over all rows of a window that count; and which windows have any."""
    model, seen, applied = net(), 0, []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for micro in range(8):
        for rank in range(2):
            n = count(micro, rank)
            if n:
                summed(model(rows(micro, rank, n))).backward()
            seen += n
        if micro % 4 == 3:
            applied.append(seen > 0)
            if seen:
                for p in model.parameters():
                    p.grad /= seen
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
            optimizer.zero_grad()
            seen = 0
    return weights(model), applied


@pytest.mark.parametrize("kind", ["plain", "static_graph", "bucket_view", "unused_allowed", "buffer", "fsdp2"])
@pytest.mark.parametrize("count", on_ranks.COUNTS)
def test_what_counts_nothing_adds_nothing_and_hangs_nobody(ran, kind, count):
    expected, applied = by_rows(on_ranks.COUNTS[count])
    results = [result[count] for result in ran(kind)]
    close(results, expected, weights(net()))
    for result in results:
        closed = [result["reasons"][3], result["reasons"][7]]
        assert closed == ["applied" if any_row else "empty" for any_row in applied]


def test_flush(ran):
    model = net()
    for micro in range(2):
        (summed(model(rows(micro, 1, 3))) / 6).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    close(ran("flushed"), weights(model), weights(net()))
    assert [result["reasons"] for result in ran("flushed")] == [["empty", "applied"]] * 2


def test_without_a_window_the_rank_has_gradients_of_0(ran):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for micro in range(4):
        optimizer.zero_grad()
        (summed(model(rows(micro, 1, 3))) / 3 / 2).backward()
        optimizer.step()
    close(ran("alone"), weights(model), weights(net()))
