"""What stands around a step: what is handed out, other updaters and wrappers, autograd, processes and threads.

Each test trains on for some steps and is held to the reference, or to itself.
"""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from own_process import in_a_process_of_its_own
from torch import nn
from twins import EXECUTORS, Shapes, Twins, by_executors, distance, distance_of, drawn_like

import gradchain as gch
from gradchain.updater.state_dict import to_dict

FORKS = {name: (names, 1) for name, names in EXECUTORS.items()} | {"native, 2 threads": (("native",), 2)}
DOUBLE, SINGLE = (torch.float64,), (torch.float32,)


def recipe() -> gch.chain:
    return gch.chain(gch.clip_by_norm(2.0), gch.adamw(0.02, mask=gch.min_ndim(2)), gch.average_params(0.9))


@pytest.fixture(params=list(EXECUTORS))
def executors(request) -> tuple[str, ...]:
    return EXECUTORS[request.param]


def small(dtypes=DOUBLE) -> Shapes:
    return Shapes(dtypes, long=50)


# what the updater hands out


def test_snapshots_do_not_change(executors):
    model = small(SINGLE)
    updater = by_executors(recipe().bind(model), *executors)
    kept = []
    for t in range(4):
        info = updater.update(distance(model, t))
        state = updater.state_dict()
        kept.append((info, info["norm"], dict(info.hyperparams), info.loss.clone(), state, str(state)))
    for info, norm, hypers, loss, state, text in kept:
        assert info["norm"] == norm
        assert dict(info.hyperparams) == hypers
        assert torch.equal(info.loss, loss)
        assert str(state) == text


def test_a_loaded_state_is_not_written_to(executors):
    model = small()
    updater = by_executors(recipe().bind(model), *executors)
    updater.update(distance(model, 0))
    saved = updater.state_dict()
    text = str(saved)
    updater.load_state_dict(saved)
    for t in range(3):
        updater.update(distance(model, t))
    assert str(saved) == text


def test_averages_as_a_teacher(executors):
    """A student is drawn to the averages, which are asked for anew at each step, and sees the same on both sides."""

    def do(model, updater):
        teacher = updater.averages()
        loss = sum((p - teacher[n] - 0.1).square().sum() for n, p in model.named_parameters())
        return updater.update(loss)

    twins = Twins(recipe(), small(), executors)
    for t in range(2):
        twins.gradients(t)
    for _ in range(4):
        twins.step(do)
    twins.compare()


def test_averaged_weights_come_and_go(executors):
    seen = []

    def look(model, updater):
        own = [p.detach().clone() for p in model.parameters()]
        with updater.averaged():
            seen.append([p.detach().clone() for p in model.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(own, model.parameters(), strict=True))

    twins = Twins(recipe(), small(), executors)
    for t in range(5):
        if t == 2:
            twins.each(look)
        twins.gradients(t)
    twins.compare()
    for x, y in zip(*seen, strict=True):
        assert distance_of(x, y) <= 1e-12


def test_two_updaters_share_parameters(executors):
    twins = Twins(recipe(), small(), executors)
    others = [gch.adam(0.03).bind(model) for model in twins.models]
    by_executors(others[0], *executors)
    by_executors(others[1])
    for t in range(6):
        if t % 2:
            twins.gradients(t)
            continue
        for model, other in zip(twins.models, others, strict=True):
            other.update(distance(model, t))
        assert others[0]._bound.engine.reason == ""
    twins.compare()


def test_data_parallel_shows_in_nothing(executors):
    twins = Twins(recipe(), nn.DataParallel(small()), executors)
    assert not any("module" in name for name in twins.ours.names)
    for t in range(3):
        twins.gradients(t)
    twins.compare()


BUCKETS = """
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gradchain as gch
from twins import EXECUTORS, Twins, drawn_like


class Last(gch.State):
    whole = frozenset({"last"})
    last: gch.Tensors


class paired(gch.Transform):
    def init(self, params):
        return Last(params.select(()))

    def update(self, g, state, ctx):
        if not len(state.last):
            return None, Last(g)
        return g + 2.0 * state.last, Last(g.select(()))


torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
for executors in EXECUTORS.values():
    twins = Twins(gch.chain(paired(), gch.sgd(0.05)), nn.Linear(3, 2).double(), executors)
    wrapped = {id(m): DistributedDataParallel(m, gradient_as_bucket_view=True) for m in twins.models}
    twins.each(lambda model, updater: updater.rebind(wrapped[id(model)]))
    for t in range(6):
        inputs = drawn_like(torch.empty(5, 3, dtype=torch.float64), t)

        def do(model, updater):
            with updater.context():
                loss = wrapped[id(model)](inputs).square().mean()
            return updater.update(loss)

        twins.step(do)
    twins.compare()
print("equal", flush=True)
os._exit(0)
"""


@pytest.mark.distributed
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without torch.distributed")
def test_gradients_in_buckets_of_ddp_are_not_kept():
    """DDP reduces into the memory of the gradients: what a state keeps of them must be a copy."""
    here = Path(__file__)
    path = os.pathsep.join([str(here.parent), str(here.parents[2]), os.environ.get("PYTHONPATH", "")])
    child = subprocess.run(
        [sys.executable, "-c", "import os" + BUCKETS], env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert child.stdout.endswith("equal\n"), child.stderr


def test_a_copied_updater_plans_for_itself(executors):
    model = small()
    updater = by_executors(recipe().bind(model), *executors)
    updater.update(distance(model, 0))
    pair = copy.deepcopy((model, updater))
    for t in range(3):
        updater.update(distance(model, t))
        pair[1].update(distance(pair[0], t))
    for p, q in zip(model.parameters(), pair[0].parameters(), strict=True):
        assert p is not q
        assert distance_of(p, q) <= 1e-12


# autograd


@pytest.mark.parametrize("swap", [False, True], ids=["as bound", "swapped"])
def test_a_stale_weight_in_a_graph_is_an_error(swap, executors):
    model = nn.Linear(3, 1)
    updater = by_executors(recipe().bind(model), *executors)
    inputs = torch.ones(2, 3, requires_grad=True)
    updater.update(model(inputs).sum())
    if swap:
        parameter_over = model.weight.data  # which has versions of its own
        model.weight = nn.Parameter(parameter_over)
    stale = model(inputs).sum()
    updater.update(model(inputs).sum())
    assert updater._bound.engine.reason == ""
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()


def test_a_weight_that_was_not_updated_is_not_stale(executors):
    """Only what was written is marked: a graph over a parameter without a gradient stays good."""
    model = nn.ModuleDict({"a": nn.Linear(3, 1), "b": nn.Linear(3, 1)})
    updater = by_executors(recipe().bind(model), *executors)
    inputs = torch.ones(2, 3, requires_grad=True)
    updater.update(model["a"](inputs).sum() + model["b"](inputs).sum())
    other = model["b"](inputs).sum()
    updater.update(model["a"](inputs).sum())
    assert updater._bound.engine.reason == ""
    other.backward()
    assert model["b"].weight.grad is not None


def test_a_held_step_marks_nothing(executors):
    model = nn.Linear(3, 1)
    updater = by_executors(gch.chain(gch.accumulate(2), gch.adam(0.1)).bind(model), *executors)
    inputs = torch.ones(2, 3, requires_grad=True)
    other = model(inputs).sum()
    assert not updater.update(model(inputs).sum())
    other.backward()


# processes and threads


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(("names", "threads"), FORKS.values(), ids=list(FORKS))
@in_a_process_of_its_own
def test_a_forked_child_trains_on(names, threads, tmp_path):
    """With the threads of our own pool, too, which do not live on in the child; torch's own need not survive a fork."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = Shapes(DOUBLE, long=1 << 18)
        updater = by_executors(recipe().bind(model), *names)
        grads = [{n: drawn_like(p, t + i) for i, (n, p) in enumerate(model.named_parameters())} for t in range(4)]
        updater.step(grads[0])
        updater.step(grads[1])
        child = os.fork()
        if child == 0:
            _train_on(model, updater, grads[2:], tmp_path / "child.pt")
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        updater.step(grads[2])
        updater.step(grads[3])
    finally:
        torch.set_num_threads(before)
    for p, q in zip(model.parameters(), torch.load(tmp_path / "child.pt"), strict=True):
        assert torch.equal(p, q)


def _train_on(model, updater, grads, path):
    """What the child does; it does not return."""
    code = 1
    try:
        signal.alarm(60)
        for given in grads:
            updater.step(given)
        torch.save([p.detach() for p in model.parameters()], path)
        code = 0 if updater._bound.engine.reason == "" else 2
    finally:
        os._exit(code)


def test_two_threads_give_the_bits_of_one(executors):
    ours = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            model = Shapes((torch.float32, torch.float64), long=(1 << 18) + 77)
            updater = by_executors(recipe().bind(model), *executors)
            norms = [
                updater.step({n: drawn_like(p, t + i) for i, (n, p) in enumerate(model.named_parameters())})["norm"]
                for t in range(3)
            ]
            ours.append((norms, [p.detach() for p in model.parameters()], to_dict(updater.chain, updater._bound.state)))
    finally:
        torch.set_num_threads(before)
    assert ours[0][0] == ours[1][0]
    assert all(torch.equal(a, b) for a, b in zip(ours[0][1], ours[1][1], strict=True))
    for address, fields in ours[0][2].items():
        for field, values in fields.items():
            if isinstance(values, dict):
                assert all(torch.equal(v, ours[1][2][address][field][n]) for n, v in values.items())
