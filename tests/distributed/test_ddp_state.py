"""State, skipped updates, closures and names under DDP."""

import math

import ddp_state as on_ranks
import pytest
import torch
from ddp_windows import full_chain, plain_chain
from little_task import alone, close, distance, loss_of, net, share, train, weights
from test_ddp_windows import by_rows
from two_ranks import run

import gradchain as gch

pytestmark = pytest.mark.distributed

CURES = (
    "state_dict: the open window differs from rank to rank. Save where a window closes, or call state_dict(sync=True) "
    "on every rank."
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    return run(on_ranks.scenario, tmp_path_factory.mktemp("ddp_state"))


def test_state_in_a_window(ran):
    results = ran("state_in_a_window")
    close(results, alone(full_chain(), 16), weights(net()))
    for result in results:
        assert result["said"] == [CURES, CURES]
        assert result["same"]
    windows = [r["window"] for r in results]
    assert all(torch.equal(windows[0][n], windows[1][n]) for n in windows[0])


@pytest.mark.parametrize("kind", on_ranks.WEIGHED)
def test_weights_of_a_saved_window(ran, kind):
    """Those of all ranks, and where each has its own they are asked for."""
    results = [result[kind] for result in ran("weighted_state_in_a_window")]
    close(results, by_rows()[0], weights(net()))
    assert [result["said"] for result in results] == [CURES] * 2


def test_save_in_a_window(ran):
    results = ran("saved_in_a_window")
    close(results, alone(full_chain(), 16), weights(net()))
    assert [r["extra"] for r in results] == [{"epoch": 3}] * 2


def test_state_in_a_synchronised_window(ran):
    assert [r["micro"] for r in ran("state_in_a_synchronised_window")] == [1, 1]


def test_windows_of_unequal_length_are_refused(ran):
    for result in ran("unequal_windows"):
        assert result["said"] == (
            "state_dict: every rank must have as many micro-batches in its open window, got 1 to 2. Give each rank as "
            "many, or drop the window with updater.zero_grad() on every rank."
        )


@pytest.mark.parametrize(
    ("kind", "chain", "skips"),
    [
        ("amp", on_ranks.amp_chain(), "overflow"),
        ("amp_after_accumulate", on_ranks.amp_chain(4), "overflow"),
        ("amp_before_accumulate", on_ranks.amp_first_chain(), "overflow"),
        ("skip", on_ranks.skip_chain(), "nonfinite"),
        ("skip_before_accumulate", on_ranks.skip_first_chain(), "nonfinite"),
    ],
)
def test_an_overflow_on_one_rank_skips_on_both(ran, kind, chain, skips):
    results, model = ran(kind), net()
    updater = chain.bind(model)
    reasons = poisoned_alone(updater, model, 5)
    close(results, weights(model), weights(net()))
    for result in results:
        assert result["reasons"] == reasons
        assert reasons.count(skips) == result["skipped"] == 1
        assert result["scale"] == updater.state_dict()["links"].get("amp_scale", {}).get("scale")
    if "before" in kind:
        assert reasons[5] == skips and reasons[8] == "applied"


def poisoned_alone(updater, model, bad):
    reasons = []
    for micro in range(16):
        loss = loss_of(model(share(micro, None))) * (math.inf if micro == bad else 1.0)
        reasons.append(updater.update(loss).reason)
    return reasons


def closures_alone(chain, micros=6):
    model = net()
    updater = chain.bind(model)
    for micro in range(micros):
        updater.update(lambda micro=micro: loss_of(model(share(micro, None))), keep_grads=True)
    return weights(model), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", ["sam", "sam_bucket_view", "sam_static_graph"])
def test_sam(ran, kind):
    expected, grads = closures_alone(on_ranks.sam_chain())
    results = ran(kind)
    close(results, expected, weights(net()))
    for result in results:  # keep_grads: what the chain received
        assert distance(result["grads"], grads, [torch.zeros_like(g) for g in grads]) < 1e-10


@pytest.mark.parametrize("name", ["lbfgs", "ahead"])
def test_classes_that_call_a_closure(ran, name):
    """from_torch: at weights that the class moved, the loss and the gradient are those of all ranks."""
    expected, _ = closures_alone(on_ranks.classes_with_closures()[name])
    close([r[name] for r in ran("closures_of_classes")], expected, weights(net()))


def test_sam_in_weighted_windows(ran):
    model = net()
    updater = on_ranks.sam_in_windows().bind(model)
    for micro in range(6):
        n = [on_ranks.counts(micro, r) for r in range(2)]
        both = [on_ranks.rows(micro, r, n[r]) for r in range(2)]
        updater.update(lambda both=both, n=n: on_ranks.summed(model(torch.cat(both))) / sum(n), weight=sum(n))
    close(ran("sam_weighted"), weights(model), weights(net()))


def test_sam_after_accumulate(ran):
    close(ran("sam_after_accumulate"), closures_alone(on_ranks.sam_in_windows())[0], weights(net()))


@pytest.mark.parametrize("kind", ["reading_both", "reading_both_bucket_view"])
def test_gradients_survive_an_evaluation(ran, kind):
    close(ran(kind), closures_alone(on_ranks.reading_chain())[0], weights(net()))


def test_state_is_no_bucket(ran):
    close(ran("kept_state_bucket_view"), alone(gch.sgd(0.1, momentum=0.9), 6), weights(net()))


def test_names(ran):
    for result in ran("names"):
        wrapped = result["wrapped"]
        assert wrapped.pop("inside") == tuple(f"net.{name}" for name in result["bare"])
        assert set(wrapped.values()) == {result["bare"]}


def test_checkpoint_of_compiled_ddp_loads_into_the_bare_model(ran, tmp_path):
    results = ran("compiled")
    close(results, alone(full_chain(), 16), weights(net()))
    assert [r["said"] for r in results] == [CURES] * 2
    (tmp_path / "run.pt").write_bytes(results[0]["file"])
    model = net()
    updater = full_chain().bind(model)
    updater.load(tmp_path / "run.pt")
    assert distance(train(updater, model, range(6, 16)), alone(full_chain(), 16), weights(net())) < 1e-10


@pytest.mark.parametrize("kind", ["compiled_outside", "ddp_inside"])
def test_ddp_is_found_inside(ran, kind):
    results = ran(kind)
    close(results, alone(full_chain(), 8), weights(net()))
    assert [r["said"] for r in results] == [CURES] * 2


def test_group(ran):
    models = [net(), net()]
    expected = []
    for k, model in zip((3, 4), models, strict=True):
        expected += train(plain_chain(k).bind(model), model, range(12))
    close(ran("group"), expected, weights(net()) * 2)


@pytest.mark.parametrize("of", ["norm", "loss"])
def test_ranks_share_what_a_spike_is(ran, of):
    """Statistics and decisions are alike although one rank alone had the bad batch, and are those of one process."""
    results = [result[of] for result in ran("spikes_of_one_rank")]
    expected = ["spike" if micro in (6, 9) else "applied" for micro in range(12)]
    assert [r["reasons"] for r in results] == [expected] * 2
    assert all(r["alike"] for r in results)
    model = net()
    updater = gch.chain(gch.rules.skip_spikes(8.0, warmup=4, of=of), gch.sgd(1e-3, momentum=0.9)).bind(model)
    for micro in (m for m in range(12) if m not in (6, 9)):
        updater.update(loss_of(model(share(micro, None))) + 1.0)
    close(results, weights(model), weights(net()))
    kept = updater.state_dict()["links"]["skip_spikes"]
    assert [kept[n] for n in ("count", "mean", "var")] == pytest.approx(results[0]["numbers"][:3].tolist())


def test_a_loop_that_is_resumed(ran):
    """Bit for bit on both ranks, whose shares are the whole data set; one wrote, and removed what was too old."""
    results = ran("a_loop_that_is_resumed")
    for result in results:
        whole, rest = result["whole"], result["rest"]
        assert whole["updates"] == rest["updates"] == 6
        assert torch.equal(whole["draws"], rest["draws"])
        for name in ("weights", "seen"):
            found = result["seen"] if name == "seen" else rest[name]
            assert all(torch.equal(a, b) for a, b in zip(whole[name], found, strict=True))
        assert result["files"] == [
            "best_drawn.pt", "iter_00000011.pt", "iter_00000012.pt", "manifest_iter.json",
        ]  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(*(r["rest"]["weights"] for r in results), strict=True))
    first = torch.cat([batch for result in results for batch in result["seen"][:6]])
    assert len(first.unique(dim=0)) == 22
    assert not torch.equal(results[0]["whole"]["draws"], results[1]["whole"]["draws"])


@pytest.mark.parametrize("order", ["critic first", "generator first, of its own"])
def test_a_critic_that_another_loss_goes_through(ran, order):
    """As docs/ranks.md has it."""
    results = [{"weights": result[order]} for result in ran("two_models")]
    torch.manual_seed(3)
    pair = net(), on_ranks.critic_net()
    start = [*weights(pair[0]), *weights(pair[1])]
    close(results, on_ranks.gan(*pair, order, range(6)), start)


def test_a_reduction_that_another_loss_has_used_up(ran):
    """DDP reduces once for each forward, and the generator's loss has taken the critic's: torch's own loop so, too."""
    ours = [result["generator first"] for result in ran("two_models")]
    assert not all(torch.equal(a, b) for a, b in zip(*ours, strict=True))
