"""FSDP2 on two ranks equals one process with the whole batch, or says in a sentence why it cannot."""

import math

import fsdp2_scenarios as on_ranks
import pytest
import torch
from ddp_windows import full_chain, gan_chains, gan_nets, plain_chain, train_gan
from later import later
from little_task import alone, close, distance, loss_of, net, share, train, weights
from test_ddp_state import CURES, closures_alone
from test_ddp_windows import by_rows
from two_ranks import run

import gradchain as gch

pytestmark = pytest.mark.distributed

checkpoint = later("torch.distributed.checkpoint")

SHARDED = (
    "state_dict: the open window differs from rank to rank. Save where a window closes, or have every micro-batch "
    "reduced into a buffer: accumulate(…, dtype=…)."
)
HELD = (
    "{}: FSDP2 holds the window's gradients where they cannot be reduced now. Close the window with its last "
    "micro-batch: updater.context(last=True)."
)
WHOLE = (
    "save: the weights are sharded, and one file holds whole ones. Save them in parts by gch.Checkpointer, or with "
    'torch.distributed.checkpoint and updater.state_dict(form="fixed").'
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    return run(on_ranks.scenario, tmp_path_factory.mktemp("fsdp2"))


FULL = ["full", "norms_on_the_device", "only_the_whole", "whole_weights_stay_after_forward", "without_context"]


@pytest.mark.parametrize("kind", FULL)
def test_full_chain(ran, kind):
    results, model = ran(kind), net()
    updater = full_chain(2).bind(model)
    close(results, train(updater, model, range(8)), weights(net()))
    for result in results:
        assert (result["names"], result["updates"]) == (updater.names, updater.num_updates)
        assert result["norm"] == pytest.approx(updater.metrics["clip_by_norm.norm"], rel=1e-12)  # over all shards
        assert result["sharded"]


@pytest.mark.parametrize(
    ("kind", "chain"),
    [
        ("without_window", gch.chain(gch.clip_by_norm(0.2), gch.adamw(0.05))),
        ("buffer", gch.chain(gch.accumulate(2), gch.clip_by_norm(0.2), gch.adamw(0.05))),
        ("many", on_ranks.many_links()),
        ("lion", gch.chain(gch.accumulate(2), gch.lion(0.01))),
        ("noisy", on_ranks.noisy_chain()),
    ],
)
def test_other_chains(ran, kind, chain):
    close(ran(kind), alone(chain), weights(net()))


def test_shards_get_the_random_numbers_of_their_part(ran):
    for result in ran("drawn"):
        assert len(result) == 32
        for sharded, whole, placed in result:
            assert placed and torch.equal(sharded, whole)


def test_reductions(ran):
    for result in ran("reductions"):
        for name, (sharded, plain) in result["pairs"].items():
            assert sharded == pytest.approx(plain, rel=1e-13), name
        assert result["talk"] == 2  # one for the norm, one for all_finite


def test_sam(ran):
    close(ran("sam"), closures_alone(gch.chain(gch.sam(rho=0.1), gch.clip_by_norm(0.5), gch.adamw(0.05)))[0], start())


def start():
    return weights(net())


def test_weights(ran):
    close(ran("weighted"), by_rows()[0], start())


def test_gan(ran):
    models = gan_nets()
    updaters = [chain.bind(model) for chain, model in zip(gan_chains(), models, strict=True)]
    close(ran("gan"), train_gan(*models, *updaters, None), [w for m in gan_nets() for w in weights(m)])


def test_backward_by_hand(ran):
    close(ran("by_hand"), alone(plain_chain(2)), start())


def test_a_dropped_window_is_forgotten(ran):
    model = net()
    updater = plain_chain(2).bind(model)
    train(updater, model, range(2))
    close(ran("dropped"), train(updater, model, range(4, 8)), start())


def test_an_overflow_on_one_rank_skips_on_both(ran):
    results, model = ran("overflow"), net()
    chain = gch.chain(gch.accumulate(2), gch.amp_scale(init_scale=64.0, always=True), gch.adamw(0.05))
    updater = chain.bind(model)
    reasons = []
    for micro in range(8):
        factor = math.inf if micro == 3 else 1.0
        reasons.append(updater.update(loss_of(model(share(micro, None))) * factor).reason)
    close(results, weights(model), start())
    assert [(r["reasons"], r["scale"]) for r in results] == [(reasons, 32.0)] * 2
    assert "overflow" in reasons


def test_what_is_refused_in_a_window(ran):
    results = ran("refused")
    for result in results:
        said = result["said"]
        assert said["state_dict"] == SHARDED
        assert (said["sync"], said["flush"]) == (HELD.format("state_dict"), HELD.format("flush"))
        assert said["save"] == WHOLE
        assert said["step"].startswith("step: this micro-batch would close the window, but it ran without synchron")
    close(results, alone(plain_chain(), 4), start())


def test_what_is_refused_in_a_window_without_context(ran):
    assert [r["said"] for r in ran("without_context_refused")] == [[SHARDED, HELD.format("flush")]] * 2


def test_last(ran):
    close(ran("last"), alone(plain_chain(3), 9), start())


def test_state(ran):
    expected = alone(full_chain(2))
    for result in ran("state"):
        assert distance(result["own"], expected, start()) < 1e-10
        assert distance(result["whole"], expected, start()) < 1e-10
        assert result["shapes"] == {n: tuple(p.shape) for n, p in net().named_parameters()}


def test_torch_distributed_checkpoint(ran):
    results = ran("distributed_checkpoint")
    close(results, alone(full_chain(2)), start())
    assert all(result["shards"] and len(result["overrides"]) == 1 for result in results)


def on_one(name, feed, micros):
    """A model, and its updater, after some micro-batches in one process."""
    model = net()
    updater = on_ranks.WINDOWS[name](3).bind(model)
    on_ranks.fed(updater, model, micros, None, feed)
    return model, updater


@pytest.mark.parametrize("each", [True, False], ids=["layers", "whole"])
@pytest.mark.parametrize(("name", "feed"), on_ranks.kinds())
def test_an_open_window_in_a_checkpoint(ran, name, feed, each):
    """To the bit as if nothing had been saved, on two ranks; or refused, and then nothing is lost."""
    results = [result[name, feed, each] for result in ran("windows_in_checkpoints")]
    expected = weights(on_one(name, feed, range(on_ranks.DONE))[0])
    close([{"weights": result["through"]} for result in results], expected, start())
    for result in results:
        if on_ranks.withheld(name, feed):
            assert result["said"] == SHARDED
            continue
        assert result["said"] == (CURES if feed == "by weight" else "")  # where ranks would lose their weights
        assert result["report"] == "everything matched"
        assert all(torch.equal(*pair) for pair in zip(result["through"], result["continued"], strict=True))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize(("name", "feed"), [kind for kind in on_ranks.kinds() if not on_ranks.withheld(*kind)])
def test_an_open_window_of_two_ranks_goes_on_in_one_process(ran, name, feed, tmp_path):
    """What is saved is shards of the mean over the ranks."""
    for file, contents in ran("windows_in_checkpoints")[0][name, feed, True]["files"].items():
        (tmp_path / file).write_bytes(contents)
    model, updater = on_one(name, feed, range(30, 32))
    found = {"model": model.state_dict(), "updater": updater.state_dict(form="fixed")}
    checkpoint.load(found, checkpoint_id=tmp_path, no_dist=True)
    model.load_state_dict(found["model"])
    assert str(updater.load_state_dict(found["updater"])) == "everything matched"
    done = on_ranks.fed(updater, model, range(on_ranks.BEGUN, on_ranks.DONE), None, feed)
    assert distance(done, weights(on_one(name, feed, range(on_ranks.DONE))[0]), start()) < 1e-10


def test_gathered_weights_are_not_used_after_a_write(ran):
    model = net()
    updater = full_chain(2).bind(model)
    train(updater, model, range(6))
    with torch.no_grad():
        live = model(share(20, None))
        with updater.averaged():
            averaged = model(share(20, None))
    train(updater, model, range(6, 8))
    stepped = model(share(20, None))
    assert (live - averaged).abs().max() > 1e-4
    for seen in ran("averages"):
        for name, expected in {"before": live, "averaged": averaged, "after": live, "stepped": stepped}.items():
            torch.testing.assert_close(seen[name], expected.detach(), rtol=1e-10, atol=1e-12, msg=name)


def test_bound_after_a_forward(ran):
    results = ran("bound_after_a_forward")
    close(results, alone(full_chain(2)), start())
    assert results[0]["names"] == full_chain(2).bind(net()).names


def test_part_of_a_model(ran):
    chain = gch.chain(gch.accumulate(2), gch.clip_by_norm(0.2), gch.adamw(0.05))
    close(ran("part_of_a_model"), alone(chain, 4), start())


def test_compiled(ran):
    results = ran("compiled")
    close(results, alone(full_chain(2)), start())
    assert results[0]["names"] == full_chain(2).bind(net()).names


def test_another_loss_stays_out_of_the_window(ran):
    for result in ran("low_precision"):
        assert all(torch.equal(a, b) for a, b in zip(result["alone"], result["disturbed"], strict=True))
