"""Rules with a number per tensor, row or dimension: other packages, one step by hand, and kernels that run them."""

from __future__ import annotations

import math

import pytest
import torch
from cases_pertensor import by_blocks
from harness import gap, trajectory
from later import later
from peers import of_torch, twin
from torch import nn

import gradchain as gch
from gradchain.rules.radial import drop_radial

FILLED = {"body.weight": (4, 3), "body.bias": (3,), "head.weight": (2, 3, 2), "conv": (3, 2, 2, 2), "scale": ()}
other = later("pytorch_optimizer")
older = later("torch_optimizer")
MATRICES = gch.min_ndim(2)


def weights(w):
    return list(w.values())


# other packages, at pinned arguments: the rule, who else has it, and how far off they are in parts of the movement

PACKAGES = {
    "AdamP, torch_optimizer": (
        lambda: gch.rules.adamp(0.1, weight_decay=0.2, delta=0.5, wd_ratio=0.3),
        lambda w, lr: older.AdamP(weights(w), lr=lr, weight_decay=0.2, delta=0.5, wd_ratio=0.3),
        1e-12,
    ),
    "AdamP, pytorch_optimizer": (  # its eps is divided by the correction of v
        lambda: gch.rules.adamp(0.1, weight_decay=0.2, delta=0.5, wd_ratio=0.3),
        lambda w, lr: other.AdamP(weights(w), lr=lr, weight_decay=0.2, delta=0.5, wd_ratio=0.3),
        1e-5,
    ),
    "SGDP, torch_optimizer": (
        lambda: gch.rules.sgdp(0.1, 0.9, nesterov=True, weight_decay=0.02, delta=0.5),
        lambda w, lr: older.SGDP(weights(w), lr=lr, momentum=0.9, nesterov=True, weight_decay=0.02, delta=0.5),
        1e-12,
    ),
    "StableAdamW, pytorch_optimizer": (
        lambda: gch.rules.stable_adamw(0.1, weight_decay=0.2),
        lambda w, lr: other.StableAdamW(weights(w), lr=lr, weight_decay=0.2, eps=1e-6),
        1e-12,
    ),
    "LARS, pytorch_optimizer": (
        lambda: gch.rules.lars(
            0.1, 0.3, trust_coefficient=0.5, trust_ratio_mask=MATRICES, nesterov=True, norms_apart=True, rate_last=True
        ),
        lambda w, lr: other.LARS(weights(w), lr=lr, weight_decay=0.3, trust_coefficient=0.5, nesterov=True),
        1e-12,
    ),
    "Fromage, pytorch_optimizer": (
        lambda: gch.rules.fromage(0.1),
        lambda w, lr: other.Fromage(weights(w), lr=lr),
        1e-12,
    ),
    "NovoGrad, pytorch_optimizer": (
        lambda: gch.rules.novograd(0.1, 0.95, 0.98, 1e-8, weight_decay=0.2),
        lambda w, lr: other.NovoGrad(weights(w), lr=lr, betas=(0.95, 0.98), weight_decay=0.2),
        1e-12,
    ),
    "SM3, pytorch_optimizer": (  # its beta=0 is a sum
        lambda: gch.rules.scale_by_sm3(0.5, 1.0, 1e-8),
        lambda w, lr: other.SM3(weights(w), lr=lr, momentum=0.5, beta=0.0, eps=1e-8),
        1e-12,
    ),
}


@pytest.mark.parametrize("name", PACKAGES)
def test_as_another_package_has_it(name):
    """Twenty steps in float64 from the same gradients."""
    chain, make, distance = PACKAGES[name]
    link = chain() if isinstance(chain(), gch.chain) else gch.chain(chain(), gch.scale_by_learning_rate(0.1))
    problem = problem_of(FILLED)
    away = gap(trajectory(link, problem), of_torch(name, make).run(problem))
    assert away <= distance
    late = gap(trajectory(link, problem, post=lambda u: 1.001 * u), of_torch(name, make).run(problem))
    assert late > 1e-5


def problem_of(shapes, **how):
    from harness import problem

    return problem(3, shapes=shapes, lr=0.1, **how)


def test_lamb_of_other_packages_is_another_rule():
    """torch_optimizer has the correction of moments outside the ratio, where it is another learning rate."""
    problem = problem_of(FILLED)
    peer = of_torch("Lamb", lambda w, lr: older.Lamb(weights(w), lr=lr, clamp_value=1e9, debias=True)).run(problem)
    assert gap(trajectory(gch.rules.lamb(0.1), problem), peer) > 0.1


def test_functions_of_pytorch_optimizer_on_gradients():
    """agc, and centralize_gradient."""
    from pytorch_optimizer.optimizer.agc import agc
    from pytorch_optimizer.optimizer.gradient_centralization import centralize_gradient

    problem = problem_of({n: s for n, s in FILLED.items() if n != "head.weight"})  # of which it has other units
    w, g = gch.Tensors.of(problem.params), gch.Tensors.of(problem.grads[0])
    clip = gch.rules.adaptive_grad_clip(0.5)
    clipped, _ = clip.update(g, clip.init(w), gch.Context(w))
    mean = gch.rules.centralize()
    centred, _ = mean.update(g, mean.init(w), gch.Context(w))
    for n in g:
        torch.testing.assert_close(clipped[n], agc(w[n], g[n], 1e-3, 0.5), rtol=1e-13, atol=0)
        copy = g[n].clone()
        centralize_gradient(copy)
        torch.testing.assert_close(centred[n], copy, rtol=0, atol=1e-15)
    assert not torch.equal(clipped["body.weight"], g["body.weight"])


def test_heads_as_pytorch_optimizer_has_them():
    """Of a matrix with the name of its queries; an embedding is per element there, per row in the paper's code."""
    made = [nn.ModuleDict({"q_proj": nn.Linear(8, 8, bias=False), "mlp": nn.Linear(8, 6)}).float() for _ in range(2)]
    made[1].load_state_dict(made[0].state_dict())
    blocks = [(gch.named("q_proj.weight"), 4)]
    updater = gch.rules.adam_mini(0.1, weight_decay=0.1, blocks=blocks).bind(made[0])
    peer = other.AdamMini(made[1], lr=0.1, num_embeds=8, num_heads=4)
    start = made[0]["q_proj"].weight.detach().clone()
    torch.manual_seed(0)
    for _ in range(5):
        for p, q in zip(made[0].parameters(), made[1].parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        updater.step()
        peer.step()
    moved = (made[0]["q_proj"].weight - start).abs().max()
    assert (made[0]["q_proj"].weight - made[1]["q_proj"].weight).abs().max() <= 1e-5 * moved


# one step by hand: what is easily written otherwise


def stepped(link, w, g, steps=1):
    """What a link returns in the last of some steps of one parameter, whose weights and gradient stay."""
    params = gch.Tensors.of({"w": torch.tensor(w, dtype=torch.float64)})
    grads, state = gch.Tensors.of({"w": torch.tensor(g, dtype=torch.float64)}), link.init(params)
    for step in range(steps):
        out, state = link.update(grads, state, gch.Context(params, step=step))
    return out["w"].tolist(), state


def near(values):
    return pytest.approx(values, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize(
    ("link", "w", "g", "expected"),
    [
        # ‖w‖ = 5, ‖g‖ = 10; g + λw has the norm 7.5
        (gch.rules.scale_by_trust_ratio(), [3.0, 4.0], [-6.0, -8.0], [-3.0, -4.0]),
        (gch.rules.scale_by_trust_ratio(weight_decay=0.5), [3.0, 4.0], [-6.0, -8.0], [-4.5 * 0.4, -6.0 * 0.4]),
        # either norm 0: the updates as they are
        (gch.rules.scale_by_trust_ratio(trust_coefficient=0.1), [0.0, 0.0], [6.0, 8.0], [6.0, 8.0]),
        (gch.rules.scale_by_trust_ratio(), [3.0, 4.0], [0.0, 0.0], [0.0, 0.0]),
        # v begins at ‖g‖², and not at a part of it
        (gch.rules.scale_by_novograd(eps=0.0), [3.0, 4.0], [6.0, 8.0], [0.6, 0.8]),
        # rms = 5 / √2, the bound 1
        (gch.rules.clip_by_block_rms(1.0), [0.0, 0.0], [3.0, 4.0], [3 * 2**0.5 / 5, 4 * 2**0.5 / 5]),
        # a vector is one unit, of norm 5, beside weights of norm 1e-3 at least
        (gch.rules.adaptive_grad_clip(0.1), [0.0, 0.0], [3.0, 4.0], [0.6e-4, 0.8e-4]),
        # a matrix has one unit for each row
        (gch.rules.adaptive_grad_clip(0.1), [[3.0, 4.0], [30.0, 40.0]], [[6.0, 8.0], [0.3, 0.4]],
         [[0.3, 0.4], [0.3, 0.4]]),
        (gch.rules.adaptive_grad_clip(0.1, axis=0), [[3.0], [4.0]], [[6.0], [8.0]], [[0.3], [0.4]]),
        # filters, not pixels
        (gch.rules.centralize(), [[[1.0, 1.0]], [[1.0, 1.0]]], [[[1.0, 3.0]], [[5.0, 9.0]]],
         [[[-1.0, 1.0]], [[-2.0, 2.0]]]),
        (gch.rules.centralize(), [1.0, 1.0], [1.0, 3.0], [1.0, 3.0]),
        # of the first step m̂ = g and v̂ = g²: r = 1
        (gch.rules.scale_by_stable_adam(), [1.0, 1.0], [1.0, -1.0], [1 / (1 + 1e-6), -1 / (1 + 1e-6)]),
        # rows (1, 2) and (3, 4), of which the largest of each row and column is kept
        (gch.rules.scale_by_sm3(0.0, eps=0.0), [[0.0, 0.0]], [[3.0, -4.0]], [[1.0, -1.0]]),
    ],
)  # fmt: skip
def test_the_first_step_by_hand(link, w, g, expected):
    out, _ = stepped(link, w, g)
    assert torch.tensor(out, dtype=torch.float64).flatten().tolist() == near(
        torch.tensor(expected, dtype=torch.float64).flatten().tolist()
    )


def test_the_second_step_of_sm3_by_hand():
    """Rows keep 9 and 16, columns 9 and 16; the second step adds g² to the least of them."""
    link = gch.rules.scale_by_sm3(0.0, eps=0.0)
    out, state = stepped(link, [[0.0, 0.0], [0.0, 0.0]], [[3.0, 1.0], [2.0, 4.0]])
    assert state.nu_0["w"].tolist() == [[9.0], [16.0]] and state.nu_1["w"].tolist() == [[9.0, 16.0]]
    out, state = stepped(link, [[0.0, 0.0], [0.0, 0.0]], [[3.0, 1.0], [2.0, 4.0]], steps=2)
    assert out[0][0] == near(3 / 18**0.5) and out[0][1] == near(1 / 10**0.5)
    assert out[1][0] == near(2 / 13**0.5) and out[1][1] == near(4 / 32**0.5)
    assert state.nu_0["w"].tolist() == [[18.0], [32.0]]


def test_a_spike_is_held_back_in_its_own_step():
    """After 50 gradients of 1 one of 100: m̂ has a tenth of it, so its own size says little; that of g does."""
    link = gch.rules.scale_by_stable_adam(b2=0.99, eps=1e-12)
    params = gch.Tensors.of({"w": torch.zeros(2, dtype=torch.float64)})
    state, ones = link.init(params), gch.Tensors.of({"w": torch.ones(2, dtype=torch.float64)})
    for _ in range(50):
        _, state = link.update(ones, state, gch.Context(params))
    out, _ = link.update(100.0 * ones, state, gch.Context(params))
    c1, c2 = 1 - 0.9**51, 1 - 0.99**51
    m, v = (0.9 * (1 - 0.9**50) + 10) / c1, (0.99 * (1 - 0.99**50) + 100) / c2
    assert out["w"].tolist() == near([m / v**0.5 / (100 / v**0.5)] * 2)


def test_fromage_keeps_the_norm_of_weights():
    """A step at a right angle to them."""
    model = {"w": torch.tensor([3.0, 0.0], dtype=torch.float64, requires_grad=True)}
    updater = gch.rules.fromage(0.5).bind(model)
    for _ in range(4):
        w = model["w"].detach()
        updater.step({"w": torch.stack([-w[1], w[0]]) * 7.0})
    assert model["w"].norm().item() == near(3.0)


@pytest.mark.parametrize(
    ("g", "u", "expected"),
    [
        # each row of g at a right angle to its row of w: row by row
        ([[0.0, 1.0], [1.0, 0.0]], [[5.0, 1.0], [1.0, 7.0]], [[0.0, 1.0], [1.0, 0.0]]),
        # rows along their weights, the whole at a right angle: as one
        ([[1.0, 0.0], [0.0, -1.0]], [[5.0, 1.0], [1.0, 7.0]], [[-1.0, 1.0], [1.0, 1.0]]),
        # neither: nothing
        ([[1.0, 0.0], [0.0, 1.0]], [[5.0, 1.0], [1.0, 7.0]], [[5.0, 1.0], [1.0, 7.0]]),
    ],
)
def test_what_adamp_takes_out_by_hand(g, u, expected):
    class given(gch.Transform):
        def update(self, g, state, ctx):
            return gch.Tensors.of({"w": torch.tensor(u, dtype=torch.float64)}), state

    out, _ = stepped(drop_radial(given(), eps=1e-300, weight_decay=0.1), [[1.0, 0.0], [0.0, 1.0]], g)
    decay = 0.1 if expected == u else 0.01
    assert out == [near([expected[0][0] + decay, expected[0][1]]), near([expected[1][0], expected[1][1] + decay])]


# blocks


@pytest.mark.parametrize("heads", [1, 2, 3, 6])
def test_heads_are_blocks_of_consecutive_rows(heads):
    problem = problem_of({"query": (6, 4), "key": (12, 2, 2)})
    chain = gch.rules.adam_mini(0.1, blocks=[(gch.everything, heads)])
    assert gap(trajectory(chain, problem), twin(by_blocks(lambda g: heads)).run(problem)) <= 1e-12


def test_the_first_selector_that_matches_counts():
    link = gch.rules.scale_by_adam_mini(blocks=[(gch.named("q"), 2), (MATRICES, "row"), (gch.bias, "tensor")], rest=1)
    shapes = {"q": (4, 3), "m": (4, 3), "n.bias": (4,), "v": (5,)}
    state = link.init(gch.Tensors.of({n: torch.zeros(s) for n, s in shapes.items()}))
    assert {n: tuple(state.nu[n].shape) for n in shapes} == {"q": (4, 1), "m": (4, 1), "n.bias": (1,), "v": (5,)}


def test_rows_that_cannot_be_divided_are_refused():
    model = nn.Linear(3, 5)
    with pytest.raises(ValueError, match=r"divisible by the number of its blocks, got 5 rows of 'weight' for 2 blocks"):
        gch.rules.adam_mini(0.1, blocks=[(gch.named("weight"), 2)]).bind(model)
    with pytest.raises(ValueError, match="a block of blocks must be 'tensor', 'row' or a number of blocks above 0"):
        gch.rules.adam_mini(0.1, blocks=[(gch.named("weight"), 0)])


def test_sm3_refuses_more_dimensions_than_it_remembers():
    with pytest.raises(ValueError, match=r"at most 5 dimensions, got 6 of 'w'"):
        gch.rules.sm3(0.1).bind({"w": torch.zeros(1, 1, 1, 1, 1, 2, requires_grad=True)})


# sparse gradients


@pytest.mark.parametrize("name", ["lamb", "novograd", "sm3", "adam_mini", "adamp", "stable_adamw", "fromage", "lars"])
def test_a_sparse_gradient_is_refused(name):
    """A rule that needs whole weights does not see some rows for them."""
    words = nn.Embedding(5, 2, sparse=True)
    with pytest.raises(ValueError, match="needs numbers of whole weights. Give dense gradients"):
        getattr(gch.rules, name)(0.1).bind(words)


# kernels

CHAINS = {
    "lamb": lambda: gch.rules.lamb(0.1, weight_decay=0.1, trust_ratio_mask=MATRICES),
    "lars": lambda: gch.rules.lars(0.1, 0.1, norms_apart=True),
    "fromage": lambda: gch.rules.fromage(0.1),
    "novograd": lambda: gch.rules.novograd(0.1),
    "block sizes": lambda: gch.chain(
        gch.rules.centralize(),
        gch.rules.adaptive_grad_clip(0.1),
        gch.rules.clip_by_block_rms(0.5),
        gch.rules.normalize(),
        gch.rules.scale_by_param_block_norm(),
        gch.rules.scale_by_param_block_rms(),
        gch.scale_by_learning_rate(0.1),
    ),
    "stable_adamw": lambda: gch.rules.stable_adamw(0.1),
    "sm3": lambda: gch.rules.sm3(0.1),
    "adam_mini": lambda: gch.rules.adam_mini(0.1, rest="row"),
    "adamp": lambda: gch.rules.adamp(0.1, weight_decay=0.1),
    "sgdp": lambda: gch.rules.sgdp(0.1, 0.9),
}


@pytest.mark.parametrize("name", CHAINS)
def test_kernels_run_it_and_run_it_again(name):
    """Convolutions, matrices, vectors: all by native, and from the second step or third on without the links."""
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(12, 2))
    updater = CHAINS[name]().bind(model)
    torch.manual_seed(1)
    for _ in range(5):
        updater.update(model(torch.randn(4, 2, 3, 3)).square().mean())
        engine = updater._bound.engine
        assert not engine.reason
        assert {part.executor for part in engine.last} == {"native"}
    assert engine.num_replayed >= 2
    assert "native" in updater.explain() and "reference" not in updater.explain()


def test_what_is_remembered_is_small():
    """One number per row, column or tensor, and one tensor of momentum: half of Adam's memory."""
    told = {}
    for name in ("novograd", "sm3", "adam_mini"):
        updater = CHAINS[name]().bind(nn.Linear(100, 50, bias=False))
        told[name] = next(line for line in updater.explain().splitlines() if "state of" in line).split(": ")[-1]
    numbers = {"novograd": 1, "sm3": 150, "adam_mini": 50}
    assert told == {name: f"{4 * (5000 + n):,} bytes".replace(",", told[name][2]) for name, n in numbers.items()}


def test_infinite_things_are_not_made_of_finite_ones():
    """The largest gradients of float32 that still have a square."""
    w = gch.Tensors.of({"w": torch.ones(4, 4)})
    g = gch.Tensors.of({"w": torch.full((4, 4), 1e18)})
    for link in (gch.rules.scale_by_novograd(), gch.rules.scale_by_sm3(), gch.rules.scale_by_stable_adam(),
                 gch.rules.scale_by_adam_mini(rest="row"), gch.rules.adaptive_grad_clip(0.1)):  # fmt: skip
        out, _ = link.update(g, link.init(w), gch.Context(w))
        assert math.isfinite(out["w"].sum().item())
