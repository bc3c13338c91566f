"""Numbers that torch's fused kernels do not take as they are: what is divided in two steps, and who ran the others."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from twins import STAND_INS, by_executors

import gradchain as gch

SIZES = (1.0, 1e37, 1e-3, 3e37, 1.0)  # of the gradients, step by step: norms beyond float32 are among them
CHAINS = {
    "sgd": gch.chain(gch.clip_by_norm(1e-3), gch.sgd(10.0)),
    "turned": gch.chain(gch.clip_by_norm(1e-3), gch.scale(-1.0), gch.scale_by_learning_rate(10.0, flip_sign=False)),
    "momentum": gch.chain(gch.clip_by_norm(1e-3), gch.sgd(10.0, momentum=0.9)),
    "adamw": gch.chain(gch.clip_by_norm(1e-3), gch.adamw(0.01, eps=1e-4)),
    "of the host": gch.chain(gch.scale(1e-41), gch.sgd(gch.linear(1e5, 2e5, 5))),
}


def drawn(model, step, dtype):
    generator = torch.Generator().manual_seed(step)
    made = {n: torch.randn(p.shape, generator=generator) * SIZES[step] for n, p in model.named_parameters()}
    return {name: grad.to(dtype) for name, grad in made.items()}


def stepped(updater, model, grads, lent):
    if lent:
        updater.step(grads)
        return
    for name, parameter in model.named_parameters():
        parameter.grad = grads[name]
    updater.step()


@pytest.mark.parametrize("lent", [False, True], ids=["taken", "lent"])
@pytest.mark.parametrize("name", CHAINS)
def test_what_float32_cannot_hold_is_divided_by_in_two_steps(name, lent):
    """The same as by the reference in float64, in each step: one that did not move would be off by all of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 7))
    wide = copy.deepcopy(model).double()
    ours = by_executors(CHAINS[name].bind(model), *STAND_INS["fused"])
    theirs = by_executors(CHAINS[name].bind(wide))
    for step in range(len(SIZES)):
        before = [(p.detach().clone(), w.detach().clone()) for p, w in zip(*parameters(model, wide), strict=True)]
        grads = drawn(model, step, torch.float32)
        kept = {n: g.clone() for n, g in grads.items()}
        stepped(ours, model, grads, lent)
        stepped(theirs, wide, {n: g.double() for n, g in kept.items()}, False)
        assert {part.ran for part in ours._bound.engine.last if not part.program.reduce} == {"fused"}
        assert not lent or all(torch.equal(grads[n], kept[n]) for n in grads)
        for p, w, (p0, w0) in zip(*parameters(model, wide), before, strict=True):
            moved = w.detach() - w0
            assert name == "of the host" or float(moved.abs().max()) > 1e-5
            gap = float(((p.detach() - p0).double() - moved).abs().max())
            rounding = 4 * torch.finfo(torch.float32).eps * float(w0.abs().max())
            assert gap <= 1e-5 * float(moved.abs().max()) + rounding


def parameters(*models):
    return [list(model.parameters()) for model in models]


HANDED = {"fused": "foreach", "patterns": "blocks"}


@pytest.mark.parametrize("executor", HANDED)
def test_explain_names_who_ran_what_a_kernel_cannot_take(executor):
    """torch's Adam has nothing inside its root; by a schedule that is so at some steps alone."""
    inside = gch.join((0, 2, gch.schedules.constant(1e-8)), (2, 4, gch.schedules.constant(0.0)))
    chain = gch.chain(gch.scale_by_adam(eps_root=inside), gch.scale_by_learning_rate(0.01))
    model = nn.Linear(3, 2)
    updater = by_executors(chain.bind(model), executor, HANDED[executor])
    said = []
    for _ in range(4):
        model(torch.ones(2, 3)).sum().backward()
        updater.step()
        said.append(str(updater.explain()))
    for text in said[:2]:
        assert f"  {HANDED[executor]}: update of 3 columns" in text and f"  {executor}: " not in text
        assert f"    not {executor}: its kernel cannot take the numbers of this step" in text
    for text in said[2:]:
        assert f"  {executor}: update of 3 columns" in text and "cannot take" not in text
