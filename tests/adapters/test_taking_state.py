"""State of other libraries in an updater of the same recipe: the next updates are theirs."""

import os
import pickle

import numpy
import pytest
import torch
from later import later
from torch import nn

import gradchain as gch

jax, optax = later("jax"), later("optax")
LAYERS = ("body.weight", "body.bias", "head.weight", "head.bias")


def net(seed=0):
    torch.manual_seed(seed)
    return nn.ModuleDict({"body": nn.Linear(3, 4), "head": nn.Linear(4, 2)}).double()


def loss_of(model, k=0):
    x = torch.linspace(-1, 1, 6).double().reshape(2, 3) + k
    return model["head"](model["body"](x).tanh()).square().mean()


def near(a, b, atol=1e-12):
    """The same weights, to rounding."""
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=atol)


# torch


@pytest.mark.parametrize(
    ("kind", "given", "chain"),
    [
        ("AdamW", {"lr": 0.01}, lambda lr: gch.adamw(lr)),
        ("Adam", {"lr": 0.01, "amsgrad": True}, lambda lr: gch.adam(lr, amsgrad=True)),
        ("SGD", {"lr": 0.01, "momentum": 0.9}, lambda lr: gch.sgd(lr, momentum=0.9)),
        ("RMSprop", {"lr": 0.01}, lambda lr: gch.rmsprop(lr)),
        ("NAdam", {"lr": 0.01}, lambda lr: gch.nadam(lr)),
    ],
)
def test_torch_goes_on_here(kind, given, chain):
    """Two groups in another order than the model's, a scheduler, and weights: the next three updates are the same."""
    theirs, mine = net(), net(1)
    groups = [{"params": list(theirs["head"].parameters())}, {"params": list(theirs["body"].parameters())}]
    optimizer = getattr(torch.optim, kind)(groups, **given)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def step(k):
        optimizer.zero_grad()
        loss_of(theirs, k).backward()
        optimizer.step()
        scheduler.step()

    for k in range(3):
        step(k)
    updater = chain(gch.schedules.exponential(0.01, 0.9)).bind(mine)
    with pytest.raises(ValueError, match="load_torch: "):
        gch.load_torch(updater, optimizer.state_dict(), order=LAYERS[:3])
    if kind != "RMSprop":  # another rule: what it remembers has no place
        with pytest.raises(ValueError, match=r"load_torch: .*(Give the chain the rule|no rule that remembers)"):
            gch.load_torch(gch.rules.adan(0.1).bind(mine), optimizer.state_dict(), order=(*LAYERS[2:], *LAYERS[:2]))
    mine.load_state_dict(theirs.state_dict())
    gch.load_torch(updater, optimizer.state_dict(), scheduler.state_dict(), order=(*LAYERS[2:], *LAYERS[:2]))
    for k in range(3):
        step(k)
        updater.update(loss_of(mine, k))
        near(theirs, mine, 1e-10 if kind == "NAdam" else 1e-12)  # torch keeps NAdam's product in float32


def test_the_scale_of_a_scaler_comes_along():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    updater = gch.chain(gch.amp_scale(always=True), gch.sgd(0.1)).bind(model)
    gch.load_torch(updater, optimizer.state_dict(), scaler={"scale": 128.0, "_growth_tracker": 7})
    assert updater.state_dict()["links"]["amp_scale"] == {"scale": 128.0, "growth_tracker": 7}
    with pytest.raises(ValueError, match="load_torch: the chain has no amp_scale"):
        gch.load_torch(gch.sgd(0.1).bind(model), optimizer.state_dict(), scaler={"scale": 1.0, "_growth_tracker": 0})


# Optax


def falling(t):
    """A schedule in float64: of an integer JAX makes float32."""
    return 0.01 * 0.9 ** jax.numpy.asarray(t, jax.numpy.float64)


OPTAX = {
    "adam": (lambda: optax.adam(falling), lambda r: gch.adam(r)),
    "adamw": (lambda: optax.adamw(falling, weight_decay=0.01), lambda r: gch.adamw(r)),
    "sgd": (lambda: optax.sgd(falling, momentum=0.9), lambda r: gch.sgd(r, momentum=0.9)),
    "lion": (lambda: optax.lion(falling, weight_decay=0.0), lambda r: gch.lion(r, weight_decay=0.0)),
    "clip": (
        lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(falling, weight_decay=0.01)),
        lambda r: gch.chain(gch.clip_by_norm(0.5, eps=0.0), gch.adamw(r)),
    ),
}


@pytest.mark.parametrize("recipe", OPTAX)
def test_optax_goes_on_here(recipe):
    """Three updates there, the state as arrays, three more on both sides; and an average of the weights."""
    theirs, ours = OPTAX[recipe]
    model = net()
    with jax.enable_x64(True):
        tx = theirs()
        params = {n: jax.numpy.asarray(p.detach().numpy().copy()) for n, p in model.named_parameters()}
        state = tx.init(params)
        average = params
        updater = gch.chain(ours(gch.schedules.exponential(0.01, 0.9)), gch.average_params(0.9)).bind(model)

        def grads(k):
            found = torch.autograd.grad(loss_of(model, k), list(model.parameters()))
            return {n: jax.numpy.asarray(g.numpy()) for n, g in zip(LAYERS, found, strict=True)}

        def step(k):
            nonlocal params, state, average
            updates, state = tx.update(grads(k), state, params)
            params = optax.apply_updates(params, updates)
            average = {n: 0.9 * average[n] + 0.1 * params[n] for n in params}

        def write():
            with torch.no_grad():
                for n, p in model.named_parameters():
                    p.copy_(torch.as_tensor(numpy.array(params[n])))

        for k in range(3):
            step(k)
            write()
        arrays = jax.tree.map(numpy.asarray, state)
        gch.load_optax(updater, arrays, average=jax.tree.map(numpy.asarray, average))
        assert updater.num_updates == 3
        for k in range(3):
            step(k)
            updater.update(loss_of(model, k))
            for n, p in model.named_parameters():
                numpy.testing.assert_allclose(p.detach().numpy(), numpy.asarray(params[n]), rtol=0, atol=1e-12)
                numpy.testing.assert_allclose(
                    updater.averages()[n].numpy(), numpy.asarray(average[n]), rtol=0, atol=1e-12
                )


@pytest.mark.parametrize(
    ("state", "given", "sentence"),
    [
        (({"trace": {}},), {}, "got none that remembers trace"),
        (((),), {}, "the state must have a rule for each link, got none for scale_by_adam"),
        (({"mini_step": 1, "inner_opt_state": ()},), {}, "at the start of a window, got 1 micro-batches"),
        (({"count": 1, "mu": {"w": 1}, "nu": {}},), {}, "has no parameter 'w', which is 'w' there"),
        (({"count": 1, "mu": {"weight": numpy.ones((2, 1))}, "nu": {}},), {}, r"must have shape \(1, 2\) for 'weight'"),
        (({"count": 1, "mu": {}, "nu": {}},), {}, "must have every parameter, got none for 'weight'"),
    ],
)
def test_a_state_of_another_chain_of_optax_is_refused(state, given, sentence):
    updater = gch.adam(0.1).bind(nn.Linear(2, 1, bias=False))
    before = str(updater.state_dict())
    with pytest.raises(ValueError, match=sentence):
        gch.load_optax(updater, state, **given)
    assert str(updater.state_dict()) == before


# MMEngine


class Bomb:
    """What runs a command where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def runner_file(folder, ema):
    """A file that MMEngine's own Runner wrote after three iterations, and the Runner that goes on from it."""
    hooks, engine = later("mmengine.hooks"), later("mmengine.runner")
    base = later("mmengine.model")

    class Model(base.BaseModel):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, k, mode="loss"):
            return {"loss": loss_of(self.net, float(k))}

    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, i):
            return {"k": torch.tensor(i / 6, dtype=torch.float64)}

    def collate(items):
        return {"k": items[0]["k"]}

    model = Model()
    runner = engine.Runner(
        model=model,
        work_dir=str(folder),
        train_dataloader=torch.utils.data.DataLoader(Data(), collate_fn=collate),
        train_cfg={"by_epoch": False, "max_iters": 6},
        optim_wrapper={"optimizer": {"type": "AdamW", "lr": 0.01, "weight_decay": 0.01}},
        param_scheduler={"type": "ExponentialLR", "gamma": 0.9, "by_epoch": False},
        default_hooks={"checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": 3}},
        custom_hooks=[{"type": "EMAHook", "momentum": 0.1}] if ema else [],
        experiment_name=f"moves{folder.name}{ema}",
        log_level="ERROR",
    )
    del hooks
    return runner, model


@pytest.mark.parametrize("ema", [False, True])
def test_a_runner_goes_on_here(ema, tmp_path):
    """A Runner's own file: weights, moments, the schedule, the average. The three updates after it are MMEngine's."""
    runner, theirs = runner_file(tmp_path, ema)
    runner.train()
    path = tmp_path / "iter_3.pth"
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)  # the message hub: what plain torch would refuse
    mine = nn.ModuleDict({"net": net(1)})
    links = [gch.adamw(gch.schedules.exponential(0.01, 0.9))]
    links += [gch.average_params(gch.join((0, 1, gch.constant(0.0)), (1, None, gch.constant(0.9))))] if ema else []
    updater = gch.chain(*links).bind(mine)
    gch.load_mmengine(updater, path)
    assert (updater.num_updates, updater.num_micro) == (3, 3)
    for k in range(3, 6):
        updater.update(loss_of(mine["net"], k / 6))
    near(theirs, mine)
    if ema:
        last = torch.load(tmp_path / "iter_6.pth", weights_only=False)["state_dict"]
        for name, average in updater.averages().items():
            torch.testing.assert_close(average, last[name], rtol=0, atol=1e-12)


def test_a_hostile_file_runs_nothing(tmp_path):
    """Neither in its hub nor in place of a tensor; what cannot be read is refused, and the model stays."""
    model = net()
    updater = gch.sgd(0.1).bind(model)
    weights = model.state_dict()
    good = {"meta": {"iter": 0}, "state_dict": weights, "optimizer": torch.optim.SGD(model.parameters()).state_dict()}
    for where, is_read in (("message_hub", True), ("state_dict", False), ("optimizer", False), ("meta", False)):
        bomb = str(tmp_path / f"bomb {where}")
        torch.save({**good, where: Bomb(bomb)}, tmp_path / "hostile.pth")
        if is_read:
            gch.load_mmengine(updater, tmp_path / "hostile.pth")
        else:
            with pytest.raises(ValueError, match=f"load_mmengine: .*must have '{where}'"):
                gch.load_mmengine(updater, tmp_path / "hostile.pth")
        assert not os.path.exists(bomb)
        torch.load(tmp_path / "hostile.pth", weights_only=False)
        assert os.path.exists(bomb)  # where it is unpickled it goes off
    (tmp_path / "old.pth").write_bytes(pickle.dumps(good["meta"]))
    with pytest.raises(ValueError, match="cannot be read: it is damaged, or not what torch"):
        gch.load_mmengine(updater, tmp_path / "old.pth")
