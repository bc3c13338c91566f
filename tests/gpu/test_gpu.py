"""What only a GPU shows. Skipped where there is none; no run of it is on record yet.

`python -m pytest -m gpu tests/gpu` runs all of it; it needs a CUDA device and Triton.
"""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "engine"))
import test_equal
from twins import STAND_INS, Shapes, Twins, same_state

import gradchain as gch
from gradchain.engine.executors.compiled import Compiled
from gradchain.engine.executors.devices import VARIABLE
from gradchain.engine.executors.foreach import Foreach
from gradchain.engine.executors.fused import Fused
from gradchain.engine.executors.triton import Triton
from gradchain.engine.recording.numbers import Number

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),  # that it is a prototype, said once
]
DEVICE = torch.device("cuda", 0)
CHAINS = {**test_equal.GRADIENTS, **test_equal.LOSSES}
EXECUTORS = {
    "fused": (Fused(DEVICE), Foreach(DEVICE)),  # the default
    "foreach": (Foreach(DEVICE),),
    "triton": (Triton(DEVICE),),
    "compiled": (Compiled(DEVICE),),
}
FEW = ("adamw, clipped", "lamb", "masks", "accumulate, amp")  # Inductor takes seconds for each program


def cases():
    for executor in EXECUTORS:
        for name in CHAINS:
            for kind in ("float64", "float32", "mixed"):
                if (name, kind) not in test_equal.UNFIT and (executor != "compiled" or name in FEW):
                    yield pytest.param(executor, name, kind, id=f"{executor}-{name}-{kind}")


@pytest.mark.parametrize(("executor", "name", "kind"), list(cases()))
@pytest.mark.filterwarnings("ignore:chain. scale_by_.* divides out the scale")
@pytest.mark.filterwarnings("ignore:bind. float16")
def test_equal_to_the_reference(executor, name, kind):
    allowed = STAND_INS.get(executor, (executor,))
    twins = Twins(CHAINS[name](), Shapes(test_equal.KINDS[kind]).to(DEVICE), allowed)
    twins.ours._bound.engine.executors = EXECUTORS[executor]
    test_equal.teach(twins, name)
    twins.compare(test_equal.LOOSE.get(name, 0.0))
    assert twins.used and twins.used <= set(allowed)


@pytest.mark.parametrize("name", ["adamw, clipped", "lamb", "clips", "partition"])
def test_equal_to_the_cpu(name):
    """The same chain, run natively on the CPU and by Triton on the device."""
    model = Shapes((torch.float64,))
    other = copy.deepcopy(model).to(DEVICE)
    updaters = [CHAINS[name]().bind(m) for m in (model, other)]
    updaters[1]._bound.engine.executors = EXECUTORS["triton"]
    for t in range(4):
        generator = torch.Generator().manual_seed(t)
        grads = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in model.named_parameters()}
        updaters[0].step(grads)
        updaters[1].step({n: g.to(DEVICE) for n, g in grads.items()})
        assert updaters[1]._bound.engine.reason == ""
    for (n, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q.cpu(), p, rtol=1e-11, atol=1e-11, msg=n)


def small(width: int = 32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 3)).to(DEVICE)


def bound(tx, model: nn.Module, executors=EXECUTORS["triton"]) -> gch.Updater:
    updater = tx.bind(model)
    if executors is not None:
        updater._bound.engine.executors = executors
    return updater


def recipe(*links):
    rate = gch.cosine(0.05, 0.005, 20)
    return gch.chain(*links, gch.clip_by_norm(0.5), gch.adamw(rate, mask=gch.min_ndim(2)), gch.average_params(0.9))


@pytest.mark.parametrize("executors", [EXECUTORS["triton"], None], ids=["triton", "default"])
def test_a_chain_without_a_gate_never_waits(executors):
    model = small()
    updater = bound(recipe(), model, executors)
    inputs = torch.randn(16, 8, device=DEVICE)
    for t in range(6):
        torch.cuda.set_sync_debug_mode("error" if t >= 3 else "default")
        try:
            info = updater.update(model(inputs).square().mean())
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert info.applied and info["norm"] > 0
    if updater._bound.engine.reason == "":
        assert type(updater._bound.records["clip_by_norm.norm"]) is Number


@pytest.mark.parametrize("executors", [EXECUTORS["triton"], None], ids=["triton", "default"])
@pytest.mark.parametrize("gate", [gch.skip_nonfinite(), gch.amp_scale(256.0, always=True)], ids=["skip", "amp"])
def test_a_gate_waits_once(gate, executors):
    model = small()
    updater = bound(recipe(gate), model, executors)
    inputs = torch.randn(16, 8, device=DEVICE)
    for _ in range(3):
        updater.update(model(inputs).square().mean())
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            updater.update(model(inputs).square().mean())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchroniz" in str(w.message) for w in seen) == 1


def test_a_captured_step_replayed_equals_the_eager_one():
    """Forward, backward and update in one graph, under schedules, a clip, a decay mask and an average."""
    model = small()
    other = copy.deepcopy(model)
    mine, theirs = bound(recipe(), model), bound(recipe(), other)
    data = [torch.randn(16, 8, device=DEVICE) for _ in range(12)]
    inputs = data[0].clone()

    def update(updater, m, x):
        return updater.update(m(x).square().mean())

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for t in range(3):
            inputs.copy_(data[t])
            update(mine, model, inputs)
    torch.cuda.current_stream().wait_stream(side)
    for t in range(3):
        update(theirs, other, data[t])
    graph = torch.cuda.CUDAGraph()
    with mine.capturing() as captured, torch.cuda.graph(graph):
        update(mine, model, inputs)
    assert mine.num_updates == 3
    for t in range(3, 12):
        inputs.copy_(data[t])
        info = captured.advance()
        graph.replay()
        want = update(theirs, other, data[t])
        assert info.hyperparams == want.hyperparams
        torch.testing.assert_close(info["norm"], want["norm"], rtol=1e-6, atol=0.0)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
    same_state(mine.state_dict()["links"], theirs.state_dict()["links"], 1e-5)


@pytest.mark.parametrize(
    ("executors", "most"), [(EXECUTORS["triton"], 0.1), (EXECUTORS["fused"], 4.2)], ids=["triton", "default"]
)
def test_a_step_takes_no_memory_of_the_models_size(executors, most):
    model = nn.Sequential(*(nn.Linear(1024, 1024, device=DEVICE) for _ in range(4)))
    updater = bound(recipe(), model, executors)
    grads = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    for _ in range(2):
        updater.step(grads)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    updater.step(grads)
    torch.cuda.synchronize()
    elements = sum(p.numel() for p in model.parameters())
    assert torch.cuda.max_memory_allocated() - before <= most * elements


def test_the_same_sums_have_the_same_bits():
    model = nn.Linear(2048, 2048, device=DEVICE)
    grads = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    updater = bound(gch.chain(gch.clip_by_norm(1.0), gch.sgd(0.0)), model)
    assert len({updater.step(grads)["norm"] for _ in range(20)}) == 1


def test_the_default_is_by_torch_and_a_variable_names_triton(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    model = small()
    updater = gch.adamw(0.01).bind(model)
    updater.update(model(torch.ones(2, 8, device=DEVICE)).mean())
    assert {part.executor for part in updater._bound.engine.last} == {"fused"}
    monkeypatch.setenv(VARIABLE, "triton")
    updater.update(model(torch.ones(2, 8, device=DEVICE)).mean())
    assert {part.executor for part in updater._bound.engine.last} == {"triton"}


def test_a_model_that_moves_is_followed(monkeypatch):
    monkeypatch.setenv(VARIABLE, "triton")
    model = small()
    updater = gch.sgd(0.1).bind(model)
    for device in (DEVICE, torch.device("cpu"), DEVICE):
        model.to(device)
        updater.step({n: torch.ones_like(p) for n, p in model.named_parameters()})
        want = "triton" if device.type == "cuda" else "native"
        assert {part.executor for part in updater._bound.engine.last} == {want}
