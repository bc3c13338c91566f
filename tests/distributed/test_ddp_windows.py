"""Windows under DDP equal one process with the whole batch."""

import ddp_windows as on_ranks
import pytest
import torch
from little_task import alone, close, distance, loss_of, net, rows, share, train, weights
from torch import nn
from two_ranks import run

import gradchain as gch

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    return run(on_ranks.scenario, tmp_path_factory.mktemp("ddp_windows"))


KINDS = ["plain", "bucket_view", "static_graph", "static_graph_and_bucket_view", "unused_allowed"]


@pytest.mark.parametrize("kind", KINDS)
def test_full_chain(ran, kind):
    results, model = ran(kind), net()
    updater = on_ranks.full_chain().bind(model)
    expected = train(updater, model, range(16))
    close(results, expected, weights(net()))
    for result in results:
        assert distance(result["averages"], list(updater.averages().values()), weights(net())) < 1e-10
        assert (result["names"], result["clocks"]) == (updater.names, updater.clocks)
        assert result["hyperparams"] == updater.hyperparams()


def test_full_chain_against_torch(ran):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.1)
    rates = [0.0, 0.05 / 3, 0.1 / 3, 0.05]
    for step in range(4):
        optimizer.zero_grad()
        for micro in range(4):
            (loss_of(model(share(4 * step + micro, None))) / 4).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        optimizer.param_groups[0]["lr"] = rates[step]
        optimizer.step()
    close(ran("plain"), weights(model), weights(net()))


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_reduce_once_per_window(ran, kind):
    first = 1 if kind.startswith("static_graph") else 0  # the first micro-batch of the run synchronises
    for result in ran(kind):
        assert result["reduced"] == [first + (micro + 1) // 4 for micro in range(16)]
        equal = [result["parked_equal"][i] for i in range(16) if i % 4 != 3]
        assert equal == [bool(first)] + [False] * 11


def test_without_context_every_micro_batch_is_reduced(ran):
    results = ran("without_context")
    close(results, alone(on_ranks.full_chain()), weights(net()))
    assert results[0]["reduced"] == 8


def test_static_graph_after_load(ran):
    close(ran("static_graph_after_load"), alone(on_ranks.full_chain(), 16), weights(net()))


def test_buffer(ran):
    results = ran("buffer")
    close(results, alone(gch.chain(gch.accumulate(4), gch.sgd(0.1, momentum=0.9))), weights(net()))
    assert results[0]["reduced"] == 8


def test_branch(ran):
    close(ran("branch"), alone(on_ranks.branching()), weights(net()))


def test_weights_in_a_branch_are_refused(ran):
    for result in ran("weighted_branch"):
        assert result["said"] == (
            "accumulate: weight= under DDP or FSDP2 needs accumulate in the outermost chain: in a branch the gradients "
            "are averaged over ranks before the weight is known. Move it there, or multiply the loss yourself."
        )


def by_rows(lr=0.1, clip=0.5, ranks=(0, 1), closes=(3, 7), reduce="mean"):
    """The weights after torch's SGD on the mean (or sum) over all rows of each window."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    losses, seen = [], 0
    optimizer.zero_grad()
    for micro in range(8):
        for rank in ranks:
            n = on_ranks.counts(micro, rank)
            on_ranks.summed(model(rows(micro, rank, n))).backward()
            seen += n
        if micro in closes:
            for p in model.parameters():
                p.grad /= seen if reduce == "mean" else len(ranks)  # DDP means over ranks
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            seen = 0
    return weights(model), losses


def test_weights(ran):
    close(ran("weighted"), by_rows()[0], weights(net()))


def test_weights_and_flush(ran):
    close(ran("weighted_and_flushed"), by_rows(closes=(3, 5, 7))[0], weights(net()))


def test_weights_in_a_buffer(ran):
    close(ran("weighted_buffer"), by_rows(clip=None)[0], weights(net()))


def test_weights_are_summed_over_the_group_of_the_model(ran):
    for rank, result in enumerate(ran("weighted_in_own_group")):
        assert distance(result["weights"], by_rows(ranks=(rank,))[0], weights(net())) < 1e-10


def test_summed_weights(ran):
    close(ran("summed_weighted"), by_rows(lr=0.01, clip=None, reduce="sum")[0], weights(net()))


def test_heavy_weights_on_half_weights(ran):
    for result in ran("heavy"):
        for kind, weight in on_ranks.HEAVY.items():
            means, largest, talks = result[kind]
            for i, mean in enumerate(means):
                pairs = [(weight(micro, rank), 1.0 + rank) for micro in range(3 * i, 3 * i + 3) for rank in range(2)]
                expected = sum(w * g for w, g in pairs) / sum(w for w, _ in pairs)
                assert mean == pytest.approx(expected, rel=2e-3)
            assert len(means) == 3 and largest < 8.0
            assert talks == 2 * 3  # where a window opens and where it closes


def test_flush(ran):
    results, model = ran("flushed"), net()
    updater = on_ranks.plain_chain().bind(model)
    train(updater, model, range(7))
    updater.flush()
    train(updater, model, range(7, 12))
    close(results, weights(model), weights(net()))
    assert [r["said"] for r in results] == [[False, False, "applied"]] * 2
    assert [r["micro"] for r in results] == [12, 12]


def test_flush_of_unequal_windows_is_refused_on_all_ranks(ran):
    rule = "flush: every rank must have as many micro-batches in its open window, got {} to {}."
    for result in ran("flushed_unequal"):
        first, second = result["said"]
        assert first.startswith(rule.format(1, 2))
        assert second.startswith(rule.format(0, 1))


def test_last(ran):
    results, model = ran("last"), net()
    updater = on_ranks.plain_chain(3).bind(model)
    close(results, train(updater, model, range(9)), weights(net()))
    assert [(r["reduced"], r["updates"]) for r in results] == [(3, 3)] * 2


LATE = (
    "this micro-batch would close the window, but it ran without synchronisation over ranks. Say it where the forward "
    "runs: with updater.context(last=True)."
)


def test_last_after_an_unsynchronised_forward_is_refused(ran):
    results = ran("last_too_late")
    assert [r["said"] for r in results] == [[f"update: {LATE}", f"step: {LATE}"]] * 2
    close(results, alone(on_ranks.plain_chain(), 4), weights(net()))


def test_a_window_that_closes_after_an_unsynchronised_forward_is_refused(ran):
    assert [r["said"] for r in ran("closed_by_override")] == [f"update: {LATE}"] * 2


def test_backward_by_hand_in_a_window_is_refused(ran):
    for result in ran("by_hand"):
        for said in result["said"]:
            assert said == (
                "step: under DDP a window of several micro-batches needs updater.backward(loss) or update(loss) in "
                "place of loss.backward(): the ranks must reduce the whole window."
            )


def test_backward_by_hand_without_a_window(ran):
    chain = gch.chain(gch.clip_by_norm(0.5), gch.adamw(0.05))
    close(ran("by_hand_without_window"), alone(chain, 4), weights(net()))


def test_context_is_harmless(ran):
    results = ran("harmless_context")
    close(results, alone(on_ranks.plain_chain()), weights(net()))
    assert results[0]["reduced"] == 2


def test_two_backwards_to_a_micro_batch(ran):
    model = net()
    updater = on_ranks.plain_chain().bind(model)
    for micro in range(8):
        for part in range(2):
            updater.backward(loss_of(model(share(10 * micro + part, None))))
        updater.step()
    close(ran("two_backwards"), weights(model), weights(net()))


@pytest.mark.parametrize("kind", ["gan", "gan_bucket_view"])
def test_gan(ran, kind):
    models = on_ranks.gan_nets()
    updaters = [chain.bind(model) for chain, model in zip(on_ranks.gan_chains(), models, strict=True)]
    start = [w for m in on_ranks.gan_nets() for w in weights(m)]
    # the halves of the whole batch lie in another order there, which a mean does not see
    results = ran(kind)
    close(results, on_ranks.train_gan(*models, *updaters, None), start)
    assert results[0]["reduced"][0] == 2


def test_pair_in_one_updater(ran):
    torch.manual_seed(3)
    models = {"body": nn.Linear(3, 4).double(), "head": nn.Linear(4, 2).double()}
    start = [w for m in models.values() for w in weights(m)]
    updater = on_ranks.plain_chain().bind(models)
    for micro in range(8):
        updater.update(loss_of(models["head"](models["body"](share(micro, None)).tanh())))
    results = ran("pair_in_one_updater")
    close(results, [w for m in models.values() for w in weights(m)], start)
    assert results[0]["names"] == updater.names


@pytest.mark.parametrize("kind", ["unused", "unused_bucket_view"])
def test_unused_parameters(ran, kind):
    model = on_ranks.Forked()
    expected = on_ranks.train_forked(on_ranks.plain_chain().bind(model), model, None)
    close(ran(kind), expected, weights(on_ranks.Forked()))


def test_unused_parameters_at_a_flush(ran):
    model = on_ranks.Forked()
    updater = on_ranks.plain_chain().bind(model)
    on_ranks.train_forked(updater, model, None, micros=3)
    updater.flush()
    close(ran("unused_flushed"), weights(model), weights(on_ranks.Forked()))
