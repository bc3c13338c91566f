"""State of what wraps a rule elsewhere: loss scalers and several optimizers of MMEngine, masks and windows of Optax."""

import functools
import importlib

import numpy
import pytest
import torch
from later import later
from test_taking_state import LAYERS, loss_of, near, net

import gradchain as gch

jax, optax = later("jax"), later("optax")
optim = later("mmengine.optim")

# MMEngine


@pytest.fixture
def scaled(monkeypatch):
    """MMEngine asserts that there is an accelerator, and takes CUDA's scaler; torch has one for the CPU."""
    module = importlib.import_module("mmengine.optim.optimizer.amp_optimizer_wrapper")
    monkeypatch.setattr(module, "is_cuda_available", lambda: True)
    monkeypatch.setattr(module, "GradScaler", functools.partial(torch.amp.GradScaler, "cpu"))


def runner_file(path, model, wrapper, iteration):
    """What a Runner saves of them."""
    torch.save({"meta": {"iter": iteration}, "state_dict": model.state_dict(), "optimizer": wrapper.state_dict()}, path)
    return path


@pytest.mark.parametrize("bad", [(), (4,), (1, 4)])
def test_a_loss_scaler_goes_on_here(bad, tmp_path, scaled):
    """The scale and how long it has stood: it grows, falls at an overflow and skips when MMEngine's does."""
    theirs, mine = net(), net(1)
    wrapper = optim.AmpOptimWrapper(
        optimizer=torch.optim.AdamW(theirs.parameters(), lr=0.01),
        loss_scale={"init_scale": 256.0, "growth_interval": 2},
    )

    def loss(model, k):
        return loss_of(model, k) * (torch.inf if k in bad else 1.0)

    for k in range(3):
        wrapper.update_params(loss(theirs, k))
    scale = wrapper.loss_scaler.get_scale()
    assert scale != 256.0
    updater = gch.chain(gch.amp_scale(256.0, growth_interval=2, always=True), gch.adamw(0.01)).bind(mine)
    gch.load_mmengine(updater, runner_file(tmp_path / "iter_3.pth", theirs, wrapper, 3))
    assert updater.state_dict()["links"]["amp_scale"]["scale"] == scale
    assert (updater.num_updates, updater.num_micro) == (2 if 1 in bad else 3, 3)
    for k in range(3, 8):
        wrapper.update_params(loss(theirs, k))
        info = updater.update(loss(mine, k))
        assert info.reason == ("overflow" if k in bad else "applied")
        near(theirs, mine)
        assert updater.state_dict()["links"]["amp_scale"]["scale"] == wrapper.loss_scaler.get_scale()


def test_a_scale_without_a_link_for_it_is_refused(tmp_path, scaled):
    model = net()
    wrapper = optim.AmpOptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    updater = gch.sgd(0.1).bind(model)
    before = str(updater.state_dict())
    with pytest.raises(ValueError, match=r"load_mmengine: the chain has no amp_scale\(\) for the scaler's scale"):
        gch.load_mmengine(updater, runner_file(tmp_path / "iter_0.pth", model, wrapper, 0))
    assert str(updater.state_dict()) == before


def test_several_optimizers_go_on_here(tmp_path):
    """Each updater of a group takes its own, by its name; the next three updates are MMEngine's."""
    theirs, mine = net(), net(1)
    wrappers = optim.OptimWrapperDict(
        body=optim.OptimWrapper(torch.optim.AdamW(theirs["body"].parameters(), lr=0.01)),
        head=optim.OptimWrapper(torch.optim.SGD(theirs["head"].parameters(), lr=0.1, momentum=0.9)),
    )

    def step(k):
        for name, wrapper in wrappers.items():
            theirs.zero_grad()
            wrapper.update_params(loss_of(theirs, k + (name == "head")))

    for k in range(3):
        step(k)
    path = runner_file(tmp_path / "iter_3.pth", theirs, wrappers, 3)
    both = gch.group(
        body=gch.adamw(0.01).bind({"body": mine["body"]}), head=gch.sgd(0.1, momentum=0.9).bind({"head": mine["head"]})
    )
    for wrong in (None, "tail"):
        with pytest.raises(ValueError, match=rf"optimizer must be one of \['body', 'head'\], got {wrong!r}"):
            gch.load_mmengine(both.body, path, optimizer=wrong)
    with pytest.raises(ValueError, match=r"load_mmengine: .*Give the chain the rule that the state is of"):
        gch.load_mmengine(both.body, path, optimizer="head")
    for name, updater in both.items():
        gch.load_mmengine(updater, path, optimizer=name)
        assert updater.num_updates == 3
    near(theirs, mine)
    for k in range(3, 6):
        step(k)
        for name, updater in both.items():
            updater.update(loss_of(mine, k + (name == "head")))
        near(theirs, mine)


# Optax


def falling(t):
    """A schedule in float64: of an integer JAX makes float32."""
    return 0.01 * 0.9 ** jax.numpy.asarray(t, jax.numpy.float64)


RATE = gch.schedules.exponential(0.01, 0.9)
HEAD = {name: name.startswith("head") for name in LAYERS}
LABELS = {name: "a" if name.startswith("head") else "b" for name in LAYERS}
WRAPPED = {
    "masked": (
        lambda: optax.chain(optax.masked(optax.scale_by_adam(), HEAD), optax.scale_by_learning_rate(falling)),
        lambda: gch.chain(
            gch.masked(gch.scale_by_adam(), gch.named("head.*")), gch.scale_by_learning_rate(RATE)
        ),
    ),
    "multi_transform": (
        lambda: optax.multi_transform({"b": optax.adam(falling), "a": optax.sgd(falling, momentum=0.9)}, LABELS),
        lambda: gch.partition(
            (gch.named("body.*"), gch.adam(RATE)), (gch.rest, gch.sgd(RATE, momentum=0.9))
        ),
    ),
    "two of one rule": (
        lambda: optax.multi_transform({"b": optax.adam(falling), "a": optax.adam(falling, b1=0.5)}, LABELS),
        lambda: gch.partition(
            ("b", gch.named("body.*"), gch.adam(RATE)), ("a", gch.rest, gch.adam(RATE, b1=0.5))
        ),
    ),
    "inject_hyperparams": (
        lambda: optax.inject_hyperparams(optax.adamw)(learning_rate=falling, weight_decay=0.01),
        lambda: gch.adamw(RATE),
    ),
    "MultiSteps": (
        lambda: optax.MultiSteps(optax.adam(falling), 2, accumulator_dtype=jax.numpy.float64),
        lambda: gch.chain(gch.accumulate(2), gch.adam(RATE)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("recipe", WRAPPED)
def test_what_wraps_a_rule_of_optax_goes_on_here(recipe):
    """Four micro-batches there, the state as arrays, four more on both sides, in float64."""
    theirs, ours = WRAPPED[recipe]
    model = net()
    with jax.enable_x64(True):
        tx = theirs()
        params = {n: jax.numpy.asarray(p.detach().numpy().copy()) for n, p in model.named_parameters()}
        state = tx.init(params)

        def step(k):
            nonlocal params, state
            shadow = net()
            write(shadow)
            found = torch.autograd.grad(loss_of(shadow, k), list(shadow.parameters()))
            grads = {n: jax.numpy.asarray(g.numpy()) for n, g in zip(LAYERS, found, strict=True)}
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)

        def write(into):
            with torch.no_grad():
                for n, p in into.named_parameters():
                    p.copy_(torch.as_tensor(numpy.array(params[n])))

        for k in range(4):
            step(k)
        write(model)
        updater = ours().bind(model)
        gch.load_optax(updater, jax.tree.map(numpy.asarray, state))
        assert updater.num_updates == (2 if recipe == "MultiSteps" else 4)
        for k in range(4, 8):
            step(k)
            updater.update(loss_of(model, k))
            for n, p in model.named_parameters():
                numpy.testing.assert_allclose(p.detach().numpy(), numpy.asarray(params[n]), rtol=0, atol=1e-12)


def test_an_open_window_of_optax_is_refused():
    """Its micro-batches would be lost."""
    tx = optax.MultiSteps(optax.adam(0.1), 2)
    params = {n: p.detach().numpy() for n, p in net().named_parameters()}
    state = tx.update(params, tx.init(params), params)[1]
    updater = gch.chain(gch.accumulate(2), gch.adam(0.1)).bind(net())
    with pytest.raises(ValueError, match="a MultiSteps must stand at the start of a window, got 1 micro-batches"):
        gch.load_optax(updater, jax.tree.map(numpy.asarray, state))
