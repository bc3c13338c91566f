"""bind(in_backward=True) on two ranks equals one process with the whole batch, or says in a sentence why it cannot."""

import gc

import in_backward_scenarios as on_ranks
import pytest
import torch
from little_task import alone, close, distance, loss_of, net, share, train, weights
from torch.nn.modules import module as registrations
from two_ranks import run

import gradchain as gch

pytestmark = pytest.mark.distributed

LATE = (
    "{}: in_backward=True must have each gradient reduced over ranks before its parameter's turn, got a model under "
    "DistributedDataParallel, which reduces them after it. Bind without in_backward: DDP keeps room for all gradients "
    "anyway. fully_shard (FSDP2) reduces in time."
)
TWICE = "must have its whole gradient when its turn comes, got more of it later in the same backward"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    return run(on_ranks.scenario, tmp_path_factory.mktemp("in_backward"))


def start():
    return weights(net())


def test_ddp_is_refused_at_bind(ran):
    for said in ran("refused_at_bind"):
        assert len(said) == 2 * len(on_ranks.WRAPS) + 3
        assert set(said.values()) == {LATE.format("bind")}


def test_ddp_after_bind_is_refused_before_anything_changes(ran):
    for said in ran("wrapped_later"):
        assert len(said) == len(on_ranks.WRAPS) + 2
        assert set(said.values()) == {LATE.format("update")}


@pytest.mark.parametrize("kind", ["put_into_the_model_later", "copied"])
def test_ddp_that_comes_otherwise(ran, kind):
    assert ran(kind) == [LATE.format("update")] * 2


def test_rebind(ran):
    model = net()
    expected = train(gch.sgd(0.1, momentum=0.9).bind(model), model, range(3))
    results = ran("rebound")
    assert [r["said"] for r in results] == [LATE.format("rebind")] * 2
    close(results, expected, start())


def test_ddp_of_other_models(ran):
    close(ran("ddp_of_others"), alone(on_ranks.CHAINS["adamw"], 5), start())


@pytest.mark.parametrize("name", on_ranks.CHAINS)
def test_fsdp2(ran, name):
    results = [r[name] for r in ran("sharded")]
    close(results, alone(on_ranks.CHAINS[name]), start())
    assert all(r["free"] and r["clocks"] == {"step": 8, "micro": 8} for r in results)


@pytest.mark.parametrize("way", ["whole", "kept", "replicated", "hybrid"])
def test_fsdp2_otherwise(ran, way):
    close([r[way] for r in ran("sharded_otherwise")], alone(on_ranks.CHAINS["adamw"]), start())


def test_what_runs_twice_under_fsdp2(ran):
    model = on_ranks.twice()
    expected = train(on_ranks.CHAINS["momentum"].bind(model), model, range(4))
    close(ran("sharded_twice"), expected, weights(on_ranks.twice()))


def test_reductions_of_the_users_come_first(ran):
    expected = alone(on_ranks.CHAINS["adamw"])
    for result in ran("hooks_of_the_user"):
        assert len(result) == 6
        for found in result.values():
            assert distance(found, expected, start()) < 1e-10


def test_data_parallel(ran):
    close(ran("data_parallel"), alone(on_ranks.CHAINS["adamw"]), start())


@pytest.mark.parametrize("name", ["plain", "bucket_view"])
def test_a_reduction_that_was_not_seen_is_no_second_update(ran, name):
    for result in ran("unseen"):
        said, torn = result[name]
        assert TWICE in said
        assert "was broken off: some parameters had theirs" in torn


def test_a_parameter_that_a_reentrant_checkpoint_reaches_twice():
    layer = torch.nn.Linear(3, 3).double()
    updater = gch.sgd(0.1).bind(layer, in_backward=True)
    x = share(0, 0).requires_grad_()
    for _ in range(2):
        x = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=True)
    with pytest.raises(RuntimeError, match=TWICE):
        updater.update(loss_of(x))


def test_what_listens_goes_with_the_updater():
    gc.collect()
    before = dict(registrations._global_module_registration_hooks)
    updater = gch.sgd(0.1).bind(net(), in_backward=True)
    assert len(registrations._global_module_registration_hooks) == len(before) + 1
    updater.rebind(net())
    gc.collect()
    assert len(registrations._global_module_registration_hooks) == len(before) + 1
    del updater
    gc.collect()
    assert dict(registrations._global_module_registration_hooks) == before
