"""The rules that see a parameter as a matrix, beside the packages that have them; and what Muon makes of a model."""

import copy
import importlib
import math
from functools import partial

import pytest
import torch
from later import later
from torch import nn

import gradchain as gch
from gradchain.rules._newton_schulz import COEFFICIENTS, FACTORS, orthogonal

po = later("pytorch_optimizer")
RATE, PRODUCTS = 0.02, "zero_power_via_newton_schulz_5"


def model(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8), nn.Conv2d(4, 6, 3)).to(dtype)


def trained(net, step, steps=12):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def distance(tx, peer, dtype=torch.float64):
    """The largest difference of weights over the largest movement, and what ran ours."""
    start = torch.cat([p.detach().flatten() for p in model(dtype).parameters()])
    theirs, net = model(dtype), model(dtype)
    there = trained(theirs, peer(theirs))
    updater = tx.bind(net)
    here = trained(net, updater.step)
    assert updater._bound.engine.reason == ""
    assert all(part.executor == "native" for part in updater._bound.engine.last)
    return ((here - there).abs().max() / (there - start).abs().max()).item()


def parted(net):
    matrices = [p for p in net.parameters() if p.ndim > 1]
    return [
        {"params": matrices, "use_muon": True},
        {"params": [p for p in net.parameters() if p.ndim < 2], "use_muon": False},
    ]


def _scion(net, kind, **given):
    """pytorch_optimizer's, of a norm for the second layer and its own choice for the others."""
    norm = importlib.import_module("pytorch_optimizer.optimizer.scion").LMONorm[kind]
    others = [p for p in net.parameters() if p is not net[1].weight]
    groups = [{"params": others, "scale": 2.0}, {"params": [net[1].weight], "norm_type": norm, "scale": 3.0}]
    return po.SCION(groups, lr=RATE, momentum=0.1, **given).step


AUX = gch.adamw(3e-4, b2=0.95, eps=1e-10, weight_decay=0.0)
ADAMUON = gch.rules.scale_by_adamuon(
    0.9, sign=False, nesterov=False, shape_factor="match_rms_adamw", dtype=None, eps=1e-10
)
OF_PYTORCH_OPTIMIZER = {
    "CAME": (gch.rules.came(RATE), lambda net: po.CAME(net.parameters(), lr=RATE).step, 1e-12),
    "Muon": (
        gch.rules.muon(RATE, head=None, weight_decay=0.0, aux=AUX, dtype=None),
        lambda net: po.Muon(parted(net), lr=RATE, weight_decay=0.0, adamw_lr=3e-4).step,
        1e-12,
    ),
    "NorMuon": (
        gch.rules.normuon(RATE, head=None, aux=AUX, dtype=None),
        lambda net: po.NorMuon(parted(net), lr=RATE).step,
        1e-9,  # its factor comes after the epsilon of the norm
    ),
    "AdaMuon": (
        gch.chain(
            gch.partition(
                (gch.min_ndim(2), gch.chain(ADAMUON, gch.scale_by_learning_rate(RATE))),
                (gch.rest, gch.adamw(3e-4, eps=1e-10, weight_decay=0.0)),
            )
        ),
        lambda net: po.AdaMuon(parted(net), lr=RATE, adamw_lr=3e-4).step,
        1e-6,  # its epsilon stands beside the corrected root
    ),
    **{
        f"SCION{', constrained' if constrained else ''}": (
            gch.rules.scion(RATE, 0.9, 2.0, 3.0, constrained=constrained, dtype=None, ends=gch.named("1.*")),
            partial(_scion, kind="SIGN", constraint=constrained),
            1e-12,
        )
        for constrained in (False, True)
    },
    "SCION, rows": (
        gch.chain(
            gch.rules.ema(0.9, False),
            gch.partition(
                (gch.named("1.weight"), gch.rules.scale_by_lmo("rows", 3.0)),
                (gch.rest, gch.rules.scale_by_lmo(radius=2.0, dtype=None)),
            ),
            gch.scale_by_learning_rate(RATE),
        ),
        partial(_scion, kind="ROW"),
        1e-12,
    ),
    "SOAP": (  # it decomposes in float32
        gch.rules.soap(RATE, weight_decay=0.0, every=5),
        lambda net: po.SOAP(net.parameters(), lr=RATE, weight_decay=0.0, precondition_frequency=5).step,
        1e-5,
    ),
    "SOAP, of small dimensions": (
        gch.rules.soap(RATE, weight_decay=0.0, max_precondition_dim=10),
        lambda net: po.SOAP(net.parameters(), lr=RATE, weight_decay=0.0, max_precondition_dim=10).step,
        1e-5,
    ),
}


@pytest.fixture
def in_float64(monkeypatch):
    """The products of pytorch_optimizer in float64, which it would take in bfloat16."""
    for name in ("muon.base", "muon.muon", "muon.normuon", "muon.adamuon", "scion"):
        module = importlib.import_module(f"pytorch_optimizer.optimizer.{name}")
        if hasattr(module, PRODUCTS):
            monkeypatch.setattr(module, PRODUCTS, partial(getattr(module, PRODUCTS), dtype=torch.float64))


@pytest.mark.parametrize("name", OF_PYTORCH_OPTIMIZER)
def test_beside_pytorch_optimizer(name, in_float64):
    tx, peer, bound = OF_PYTORCH_OPTIMIZER[name]
    assert distance(tx, peer) <= bound


def test_muon_beside_torch():
    """In bfloat16, which torch computes in, and with the products of the shorter side in both."""

    def peer(net):
        matrices = [p for p in net.parameters() if p.ndim == 2]
        return torch.optim.Muon(matrices, lr=RATE).step

    def only_matrices(net):
        net[2].requires_grad_(False)
        net[0].bias.requires_grad_(False)
        net[1].bias.requires_grad_(False)
        return net

    theirs, net, start = (only_matrices(model()) for _ in range(3))
    trained(theirs, peer(theirs))
    rule = gch.chain(gch.rules.scale_by_muon(), gch.add_decayed_weights(0.1), gch.scale_by_learning_rate(RATE))
    updater = rule.bind(net)
    trained(net, updater.step)
    for i in (0, 1):
        moved = (theirs[i].weight - start[i].weight).abs().max()
        assert (net[i].weight - theirs[i].weight).abs().max() <= 2e-2 * moved


@pytest.mark.parametrize(
    ("name", "low", "high"), [("original", 0.65, 1.15), ("quintic", 0.97, 1.04), ("polar_express", 0.86, 1.13)]
)
def test_singular_values_after_five_steps(name, low, high):
    torch.manual_seed(0)
    x = torch.randn(2, 256, 64, dtype=torch.float64)
    values = torch.linalg.svdvals(orthogonal(x, COEFFICIENTS[name], 5, 1e-7, None))
    assert low < values.min()
    assert values.max() < high
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    assert torch.linalg.matrix_norm(orthogonal(x, COEFFICIENTS["polar_express"], 12, 1e-7, None) - u @ v).max() < 1e-6


def updates_of(link, tensors):
    params = gch.Tensors.of(tensors)
    return link.update(params, link.init(params), gch.Context(params))[0]


def single(x, **given):
    """The rule's update of one matrix."""
    return updates_of(gch.rules.scale_by_muon(dtype=None, **given), {"x": x})["x"]


def test_kinds_of_parameters_are_the_matrices_that_they_are_made_of():
    torch.manual_seed(0)
    image, experts, fused = torch.randn(4, 3, 2, 2).double(), torch.randn(5, 4, 3).double(), torch.randn(12, 4).double()
    near = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(single(image).flatten(1), single(image.flatten(1)), **near)
    torch.testing.assert_close(single(image, conv="batch")[:, :, 1, 0], single(image[:, :, 1, 0]), **near)
    torch.testing.assert_close(single(experts)[3], single(experts[3]), **near)
    torch.testing.assert_close(single(fused, split=[(gch.named("x"), 3)])[4:8], single(fused[4:8]), **near)
    unequal = single(fused, split=[(gch.named("x"), (6, 4, 2))])
    for part in (slice(0, 6), slice(6, 10), slice(10, 12)):
        torch.testing.assert_close(unequal[part], single(fused[part]), **near)
    with pytest.raises(ValueError, match=r"scale_by_muon: split must cut all rows, got 5 for 'x', whose matrix has 12"):
        single(fused, split=[(gch.named("x"), 5)])
    wave = nn.Conv1d(4, 3, 2).double()
    u = gch.chain(gch.rules.scale_by_muon(dtype=None), gch.scale(-1.0)).bind(wave)
    before, gradient = wave.weight.detach().clone(), torch.randn(3, 4, 2).double()
    u.step({"weight": gradient, "bias": torch.zeros(3).double()})
    torch.testing.assert_close((before - wave.weight.detach()).flatten(1), single(gradient.flatten(1)), **near)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.norm = nn.Embedding(10, 8), nn.LayerNorm(8)
        self.body, self.lm_head = nn.Linear(8, 32), nn.Linear(32, 10)


def test_muon_of_a_model_knows_its_parts_and_tells_its_factors():
    for factor, of in FACTORS.items():
        updater = gch.rules.muon(0.1, shape_factor=factor).bind(Words())
        settings = updater.settings()
        address = "partition/matrices/scale_by_muon.shape_factor"
        assert {n: row[address] for n, row in settings.items() if row} == {"body.weight": pytest.approx(of(32, 8))}
        assert settings.rules["body.weight"][address] == (f"{factor} of 32 × 8",)
        assert "32 × 8" in repr(settings)
    with pytest.raises(ValueError, match="head"):
        gch.rules.muon(0.1).bind(model())
    bound = gch.rules.muon(0.1, head=gch.named("1.*")).bind(model()).settings()
    assert {n for n, row in bound.items() if row} == {"0.weight", "2.weight"}


def test_scion_knows_the_parts_of_a_model_by_their_size_of_step():
    """Signs of embeddings and head, √(r / c) of the matrix, the root mean square of vectors; of any gradient's size."""
    net = Words().double()
    updater = gch.rules.scion(
        0.1, radius=2.0, head_radius=4.0, dtype=None, ns_steps=30, ns_coefficients=(1.5, -0.5, 0.0)
    )
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    torch.manual_seed(0)
    updater = updater.bind(net)
    updater.step({n: 1e-3 * torch.randn_like(p) for n, p in net.named_parameters()})
    moved = {n: (before[n] - p.detach()) / 0.1 for n, p in net.named_parameters()}
    near = {"rtol": 1e-4, "atol": 1e-4}
    for name, c in (("words.weight", 8), ("lm_head.weight", 32)):
        torch.testing.assert_close(moved[name].abs(), torch.full_like(moved[name], 4.0 / c), **near)
    values = torch.linalg.svdvals(moved["body.weight"])
    torch.testing.assert_close(values, torch.full_like(values, 2.0 * (32 / 8) ** 0.5), **near)
    for name in ("body.bias", "lm_head.bias", "norm.weight"):
        assert moved[name].square().mean().sqrt().item() == pytest.approx(2.0, rel=1e-3)  # of its epsilon
    with pytest.raises(ValueError, match="head"):
        gch.rules.scion(0.1).bind(model())
    gch.rules.scion(0.1, head=None).bind(model())


def test_scion_constrained_keeps_weights_in_their_balls():
    """From inside: signs within radius / c, singular values within about radius √(r / c)."""
    net = Words().double()
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    updater = gch.rules.scion(0.3, 0.5, 2.0, 4.0, constrained=True, dtype=None).bind(net)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        updater.step({n: torch.randn(p.shape, generator=generator).double() for n, p in net.named_parameters()})
        assert net.words.weight.abs().max() <= 4.0 / 8 + 1e-12
        assert net.lm_head.weight.abs().max() <= 4.0 / 32 + 1e-12
        assert torch.linalg.matrix_norm(net.body.weight, 2) <= 1.2 * 2.0 * 2.0
    assert net.words.weight.abs().max() > 0.2


def test_balls_of_kernels_experts_and_parts():
    torch.manual_seed(0)
    near = {"rtol": 1e-12, "atol": 1e-12}
    lmo = lambda x, *given, **named: updates_of(gch.rules.scale_by_lmo(*given, dtype=None, **named), {"x": x})["x"]  # noqa: E731
    image, experts, fused = torch.randn(4, 3, 2, 2).double(), torch.randn(5, 4, 3).double(), torch.randn(12, 4).double()
    polar = single(image.flatten(1), shape_factor=None)
    torch.testing.assert_close(lmo(image).flatten(1), (4 / 3) ** 0.5 / 4 * polar, **near)
    torch.testing.assert_close(lmo(image, "sign"), image.sign() / 12, **near)
    torch.testing.assert_close(
        lmo(image, "rows").flatten(1).norm(dim=1), torch.full((4,), 12**-0.5).double(), rtol=1e-7, atol=0
    )
    torch.testing.assert_close(lmo(experts)[3], lmo(experts[3]), **near)
    torch.testing.assert_close(lmo(experts, "rows")[3], lmo(experts[3], "rows"), **near)
    torch.testing.assert_close(lmo(experts, "sign"), experts.sign() / 3, **near)
    torch.testing.assert_close(lmo(fused, split=[(gch.named("x"), 3)])[4:8], lmo(fused[4:8]), **near)
    for norm in ("spectral", "sign", "rows"):
        torch.testing.assert_close(lmo(fused[0], norm, 3.0).square().mean().sqrt().item(), 3.0, rtol=1e-7, atol=0)
        assert lmo(torch.zeros(3, 2).double(), norm).tolist() == [[0.0, 0.0]] * 3


def test_zeros_and_constant_rows_stay_finite():
    zeros = single(torch.zeros(4, 3).double())
    assert torch.equal(zeros, torch.zeros(4, 3).double())
    assert math.isfinite(single(torch.ones(4, 3).double()).sum())


def test_the_first_update_of_soap_only_looks():
    """No step, no decay, and the count of Adam starts at the second: by hand on one matrix of one row."""
    weight = nn.Parameter(torch.tensor([[2.0, 1.0]], dtype=torch.float64))
    updater = gch.rules.soap(0.1, weight_decay=0.5).bind({"w": weight})
    updater.step({"w": torch.tensor([[3.0, 4.0]], dtype=torch.float64)})
    assert weight.tolist() == [[2.0, 1.0]]
    updater.step({"w": torch.tensor([[3.0, 4.0]], dtype=torch.float64)})
    # in its eigenbasis the gradient is (±5, 0): the first step of Adam is its sign, turned back
    expected = torch.tensor([[2.0 - 0.1 * (0.6 + 1.0), 1.0 - 0.1 * (0.8 + 0.5)]], dtype=torch.float64)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=1e-6)


MOVED = {
    "soap": lambda: gch.rules.soap(RATE, every=2),
    "muon": lambda: gch.rules.muon(RATE, aux=gch.adam(RATE)),
    "normuon": lambda: gch.rules.normuon(RATE, aux=gch.adam(RATE)),
    "adamuon": lambda: gch.rules.adamuon(RATE, aux=gch.adam(RATE)),
    "scion": lambda: gch.rules.scion(RATE),
}


@pytest.mark.parametrize("name", MOVED)
def test_a_model_moves_to_another_dtype_in_the_middle(name):
    """Slots of the dtype before meet gradients of the new one; the run is that in float64, to what float32 has."""
    nets = [nn.ModuleDict({"body": model(), "head": nn.Linear(8, 4).double()})]
    nets.append(copy.deepcopy(nets[0]))
    updaters = [MOVED[name]().bind(net) for net in nets]
    start = torch.cat([p.detach().flatten() for p in nets[0].parameters()])
    for to in (torch.float64, torch.float32, torch.float64):
        nets[0].to(to)
        here, there = (trained(net, updater.step, 3) for net, updater in zip(nets, updaters, strict=True))
        assert ((here - there).abs().max() / (there - start).abs().max()).item() < 2e-3


@pytest.mark.parametrize("rule", ["muon", "normuon", "adamuon", "scion"])
def test_a_model_without_a_head_is_told_what_to_say(rule):
    """The default looks for a name with "head" in it: where there is none, the arguments that say more are named."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"head=gch\.named\(.*head=None.*matrices="):
        getattr(gch.rules, rule)(0.02).bind(model)
    getattr(gch.rules, rule)(0.02, head=gch.named("1.*")).bind(model)
