"""Links under torch.func and autograd: no hidden float(), no if on a device value, exact derivatives."""

import pytest
import torch
from cases import CASES, Case
from harness import problem, stored, weights_after

import gradchain as gch

rows = pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
STEPS = 4
MEMBERS = 3


def stacked(case: Case):
    """The problems of some members, and their weights and gradients stacked."""
    members = [case.problem(seed, steps=STEPS) for seed in range(MEMBERS)]
    params = {n: torch.stack([m.params[n] for m in members]) for n in members[0].params}
    grads = tuple({n: torch.stack([m.grads[t][n] for m in members]) for n in params} for t in range(STEPS))
    return members, params, grads


@rows
def test_an_ensemble_under_vmap_is_a_loop_over_its_members(case: Case):
    """torch.func.vmap over whole updates gives what each member gives alone. A row with a gate says why not."""
    members, params, grads = stacked(case)

    def train(params, grads):
        return weights_after(case.tx, type(members[0])(params, grads, members[0].lr, members[0].bend))

    if case.gate or case.in_place:
        with pytest.raises(RuntimeError, match="torch.func" if case.in_place else "vmap"):
            torch.func.vmap(train)(params, grads)
        return
    together = torch.func.vmap(train)(params, grads)
    # a sum of two products is one call over lists and several under vmap, which differ in the last bit: a mean square
    # that is stored in float32 may then round the other way
    slots = stored(case.tx.init(gch.Tensors.of(members[0].params))).items()
    narrow = any(".nu[" in address or address.startswith("nu[") for address, t in slots if t.dtype is torch.float32)
    rtol, atol = (4 * torch.finfo(torch.float32).eps, 1e-7) if narrow else (1e-12, 1e-14)
    for i, member in enumerate(members):
        for n, w in weights_after(case.tx, member).items():
            torch.testing.assert_close(together[n][i], w, rtol=rtol, atol=atol, equal_nan=False)


@rows
def test_a_link_differentiates(case: Case):
    """With weights and gradients that require grad, so that norms are 0-d tensors, the numbers stay the same.

    A float() of such a norm would warn, and warnings are errors. What comes back is the derivative, finite everywhere.
    """
    plain = case.problem(steps=STEPS)
    tracked = plain.map(lambda tensors: {n: t.clone().requires_grad_() for n, t in tensors.items()})
    if case.gate:  # gates look at finite numbers too; those of this problem are
        tracked = tracked.map(lambda tensors: {n: t.nan_to_num(1.0, 1.0, 1.0) for n, t in tensors.items()})
        plain = plain.map(lambda tensors: {n: t.nan_to_num(1.0, 1.0, 1.0) for n, t in tensors.items()})
    expected = weights_after(case.tx, plain)
    if case.in_place:
        with pytest.raises(RuntimeError, match="no derivative"):
            weights_after(case.tx, tracked)
        return
    out = weights_after(case.tx, tracked)
    for n, w in expected.items():
        torch.testing.assert_close(out[n].detach(), w, rtol=1e-12, atol=1e-14)
    leaves = [t for tensors in (tracked.params, *tracked.grads) for t in tensors.values()]
    total = torch.stack([w.sum() for w in out.values()]).sum()
    derivatives = torch.autograd.grad(total, leaves, allow_unused=True)
    assert all(bool(torch.isfinite(d).all()) for d in derivatives if d is not None)
    assert any(d is not None for d in derivatives)


@rows
def test_a_link_never_reads_the_device(case: Case):
    """On a device whose values cannot be read, updates come out with the shapes and the device of the weights."""
    meta = case.problem(steps=2).map(lambda tensors: {n: t.to("meta") for n, t in tensors.items()})
    if case.gate:
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            weights_after(case.tx, meta)
        return
    for n, w in weights_after(case.tx, meta).items():
        assert w.device.type == "meta"
        assert w.shape == meta.params[n].shape
        assert w.dtype == meta.params[n].dtype


# three inner steps


def unrolled(weights, bias, learning_rate, decay, nesterov):
    """A loss after three steps of a chain on a small problem: what meta-learning differentiates."""
    tx = gch.chain(
        gch.clip_by_norm(0.5),
        gch.scale_by_adam(eps_root=1e-4, nesterov=nesterov),
        gch.masked(gch.add_decayed_weights(decay), gch.min_ndim(2)),
        gch.scale_by_learning_rate(learning_rate),
    )
    params = gch.Tensors.of({"weight": weights, "bias": bias})
    state = tx.init(params)
    inputs = torch.linspace(-1, 1, 8, dtype=torch.float64).view(4, 2)

    def loss(params):
        return (torch.tanh(inputs @ params["weight"].T + params["bias"]) - 0.3).square().mean()

    for t in range(3):
        grads = torch.autograd.grad(loss(params), list(params.values()), create_graph=True)
        updates, state = tx.update(
            gch.Tensors.of(dict(zip(params, grads, strict=True))), state, gch.Context(params, step=t)
        )
        params = gch.apply_updates(params, updates)
    return loss(params)


@pytest.mark.parametrize("nesterov", [False, True])
def test_three_inner_steps_agree_with_finite_differences(nesterov):
    """The derivative of an unrolled chain by weights, learning rate and decay is that of finite differences."""
    generator = torch.Generator().manual_seed(3)

    def leaf(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    decay = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    inputs = (leaf(3, 2), leaf(3), rate, decay)
    assert torch.autograd.gradcheck(lambda *x: unrolled(*x, nesterov), inputs)


def test_per_member_hyperparameters_under_vmap():
    """One vmap over learning rates and decays is one run for each."""
    rates = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    start = problem(steps=3, lr=1.0)

    def train(rate):
        tx = gch.chain(gch.scale_by_adam(), gch.add_decayed_weights(0.1 * rate), gch.scale_by_learning_rate(rate))
        return weights_after(tx, start)

    together = torch.func.vmap(train)(rates)
    for i, rate in enumerate(rates.tolist()):
        for n, w in train(rate).items():
            torch.testing.assert_close(together[n][i], w, rtol=1e-12, atol=1e-14)


def test_state_passes_through_vmap():
    """A state is a pytree: it may enter and leave a transformed function."""
    tx, members = gch.adamw(0.1), [problem(s, steps=3) for s in range(MEMBERS)]
    params = {n: torch.stack([m.params[n] for m in members]) for n in members[0].params}
    state = torch.func.vmap(lambda p: tx.init(gch.Tensors.of(p)))(params)
    for t in range(3):
        grads = {n: torch.stack([m.grads[t][n] for m in members]) for n in params}

        def step(params, state, grads, t=t):
            weights = gch.Tensors.of(params)
            updates, state = tx.update(gch.Tensors.of(grads), state, gch.Context(weights, step=t))
            return dict(gch.apply_updates(weights, updates)), state

        params, state = torch.func.vmap(step)(params, state, grads)
    for i, member in enumerate(members):
        for n, w in weights_after(tx, member).items():
            torch.testing.assert_close(params[n][i], w, rtol=1e-12, atol=1e-14)
