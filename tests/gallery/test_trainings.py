"""Every recipe trains on toy data, with its own loop and its published settings, made short where a run is long."""

import models
import pytest
import torch
from toys import NAMES, batches, pull, recipe

import gradchain as gch

FEW = batches(12)
EPOCHS = [batches(5), batches(5), batches(5)]


class Watched(dict):
    """Settings that remember which of them were read."""

    def __init__(self, given):
        super().__init__({k: Watched(v) if isinstance(v, dict) else v for k, v in given.items()})
        self.read = set()

    def __getitem__(self, key):
        self.read.add(key)
        return super().__getitem__(key)

    def unread(self):
        inner = [f"{k}.{name}" for k, v in self.items() if isinstance(v, Watched) for name in v.unread()]
        return sorted(set(self) - self.read) + inner


def plain(model, data):
    return lambda module, s: module.train(model, data, pull, s)


def of_two(model):
    """A student and the average of its weights: the loss is between what both say."""
    return lambda module, s: module.train(model, FEW, lambda a, b: (a - b + 0.1).square().mean(), s)


def pair(*sizes):
    torch.manual_seed(0)
    return [torch.nn.Linear(*size) for size in sizes]


def stylegan2_ada(module, s):
    g, d = pair((4, 4), (4, 1))
    losses = {
        "generator": lambda x: torch.nn.functional.softplus(-d(g(x))).mean(),
        "path_length": lambda x: g(x).square().mean(),
        "discriminator": lambda x: torch.nn.functional.softplus(d(g(x).detach()) - d(x)).mean(),
        "r1": lambda x: d.weight.square().sum() + 0 * d.bias.sum(),
    }
    return module.train(g, d, FEW, losses, s)


def wgan_gp(module, s):
    g, critic = pair((2, 4), (4, 1))

    def penalty(critic, real, fake):
        mixed = torch.lerp(real, fake, torch.rand(len(real), 1)).requires_grad_()
        (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
        return (slope.norm(dim=1) - 1).square().mean()

    return module.train(g, critic, FEW, lambda n: torch.randn(n, 2), penalty, s)


def sac(module, s):
    critics, actor = pair((4, 2), (4, 4))
    log_alpha = torch.zeros(1, requires_grad=True)
    losses = {
        "critic": lambda x, targets: (critics(x) - 0.9 * targets(x).detach() - 1).square().mean(),
        "actor": lambda x: -critics(actor(x)).mean(),
        "temperature": lambda x: -(log_alpha.exp() * (x.mean() - 1)).sum(),
    }
    return module.train(critics, actor, log_alpha, FEW, losses, s)


def gaussian_splatting(module, s):
    torch.manual_seed(0)
    rows = {"xyz": 3, "f_dc": 3, "f_rest": 9, "opacity": 1, "scaling": 3, "rotation": 4}
    scene = {name: torch.randn(6, n, requires_grad=True) for name, n in rows.items()}

    def choose(scene):
        return torch.arange(len(scene["xyz"])) > 0, {n: t.detach()[-2:] + 0.1 for n, t in scene.items()}

    s["densify_every"], s["densify_from"], s["opacity_every"] = 5, 4, 8
    updater = module.train(scene, FEW, pull, choose, s)
    assert {len(t) for t in scene.values()} == {8}  # one away and two more, twice
    assert scene["opacity"].max() < -3.5
    return updater


def pinn(module, s):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

    def losses(net, x):
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        return {"initial": net(x[:1]).square().mean(), "residual": (slope - x).square().mean()}

    s["weights_every"] = 4
    return module.train(net, FEW, losses, s)


def diffusion(module, s):
    s["average_every"], s["average_after"] = 2, 3
    return module.train(pair((4, 4))[0], FEW, pull, s)


def swa(module, s):
    s["epochs"], s["swa_start"] = 5, 3
    model = models.byol()
    ends = []

    def loss(m, x):
        ends.append({n: p.detach().clone() for n, p in m.named_parameters()})
        return (m(x) - x).square().mean()

    updater = module.train(model, FEW, loss, s)
    ends = [ends[3 * len(FEW)], ends[4 * len(FEW)], dict(model.named_parameters())]  # behind epochs 3, 4 and 5
    for name, average in updater.averages().items():
        if name in ends[0]:
            torch.testing.assert_close(average, sum(end[name] for end in ends) / 3)
    return updater


def schedule_free(module, s):
    seen = []
    (model,) = pair((4, 4))
    updater = module.train(model, FEW, pull, lambda m: seen.append(m.weight.detach().clone()), s)
    assert len(seen) == s["epochs"] and not torch.equal(seen[-1], model.weight)
    return updater


def sam(module, s):
    model = models.byol()
    updater = module.train(model, EPOCHS, lambda m, x: (m(x) - x).square().mean(), s)
    assert model[1].momentum == 0.1 and int(model[1].num_batches_tracked) == 2 * 15
    return updater


def textual_inversion(module, s):
    torch.manual_seed(0)
    words = torch.nn.Embedding(6, 4)
    before = words.weight.detach().clone()
    updater = module.train(words, [5], [torch.tensor([[1, 5], [2, 5]])] * 8, lambda m, x: m(x).square().mean(), s)
    assert (words.weight != before).any(1).tolist() == [False] * 5 + [True]
    return updater


ONE_LIST, BY_EPOCH = "nanogpt modded_nanogpt convnext clip lora_plus detectron2", "mae deit timm detr yolov5 simsiam"
OWN = (
    stylegan2_ada, wgan_gp, sac, gaussian_splatting, pinn, diffusion, swa, schedule_free, sam, textual_inversion,
)  # fmt: skip
TRAIN = {
    **{name: plain(getattr(models, name)(), FEW) for name in ONE_LIST.split()},
    **{name: plain(getattr(models, name)(), EPOCHS) for name in BY_EPOCH.split()},
    "ppo": plain(torch.nn.Linear(4, 4), EPOCHS),
    "dino": of_two(models.dino()),
    "byol": of_two(models.byol()),
    **{function.__name__: function for function in OWN},
}


def test_there_are_twenty_five():
    assert len(NAMES) == 25 and {*TRAIN} == {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_and_reads_all_of_its_settings(name):
    """Every update was applied or held, weights are finite, and each number of `settings` was asked for."""
    module = recipe(name)
    s = Watched(module.settings)
    trained = TRAIN[name](module, s)
    assert s.unread() == []
    parts = [trained[part] for part in trained] if isinstance(trained, gch.Group) else [trained]
    for updater in parts:
        for clock in {"epoch", "iteration"} & {*updater._bound.clocks}:
            ticks = {"swa": 5, "sam": 2}.get(name, len(EPOCHS))  # SAM's first step of an epoch ends the one before
            assert updater._bound.clocks[clock] == ticks
        bound = updater._bound
        assert bound.clocks["micro"] > 0 and updater.num_skipped == 0
        assert updater.num_updates > 0 or name == "nanogpt"  # 12 micro-batches, of 40
        assert all(p.isfinite().all() for p in bound.target.parameters())
