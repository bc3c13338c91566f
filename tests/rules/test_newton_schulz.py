"""The products that make matrices orthogonal: how many there are, what is copied for them, and what bfloat16 loses."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from gradchain.rules._newton_schulz import COEFFICIENTS, orthogonal

SHAPES = [(48, 192), (192, 48), (64, 64)]


def step_by_step(x, name, steps, dtype):
    """The formula as it stands, of one matrix whose rows are the shorter side."""
    y = (x / x.norm()).to(dtype)
    for step in range(steps):
        a, b, c = COEFFICIENTS[name][min(step, len(COEFFICIENTS[name]) - 1)]
        gram = y @ y.mT
        y = torch.addmm(y, torch.addmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return y


def drawn(kind, rows=64, columns=256):
    """A matrix of normal numbers; one whose singular values go down by so many powers of ten; one nearly of rank 4."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    if kind == "low rank":
        return (u[:, :4] @ v[:4]) * 10 + 1e-3 * x
    return x if kind == "normal" else u * torch.logspace(0, -kind, rows, dtype=torch.float64) @ v


@pytest.mark.parametrize("steps", [2, 5, 8])
@pytest.mark.parametrize("name", COEFFICIENTS)
@pytest.mark.parametrize("kind", ["normal", 2, 4, "low rank"])
def test_two_steps_at_once_are_the_steps(kind, name, steps):
    """In float64 to its rounding; in bfloat16 the error is at most two and a half times that of steps one by one."""
    x = drawn(kind)
    exact = step_by_step(x, name, steps, torch.float64)
    given = COEFFICIENTS[name], steps, 1e-7

    def far(made):
        return float((made.double() - exact).norm() / exact.norm())

    for of in (
        lambda dtype: orthogonal(x[None], *given, dtype)[0],
        lambda dtype: orthogonal(x.mT[None], *given, dtype)[0].mT,
    ):
        assert far(of(None)) < 2e-12
        assert far(of(torch.bfloat16)) < 2.5 * far(step_by_step(x, name, steps, torch.bfloat16))


@pytest.mark.parametrize("rows", [48, 192])
@pytest.mark.parametrize("steps", [1, 2, 5, 6])
def test_long_matrices_take_fewer_products(rows, steps):
    """Of r by 4 r in units of r³: 9 for a step, and 13 for two at once."""
    x = torch.randn(3, rows, 240 - rows)
    with FlopCounterMode(display=False) as counted:
        orthogonal(x, COEFFICIENTS["original"], steps, 1e-7, torch.bfloat16)
    assert counted.get_total_flops() == 3 * 2 * 48**3 * (13 * (steps // 2) + 9 * (steps % 2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stack", [1, 5])
def test_nothing_is_copied_for_the_products(stack, shape):
    """Of a stack of one torch.matmul gives bmm strides that it copies in bfloat16: a fifth of the time."""
    x, given = torch.randn(stack, *shape), (COEFFICIENTS["original"], 5, 1e-7, torch.bfloat16)
    orthogonal(x, *given)
    with profile(activities=[ProfilerActivity.CPU]) as told:
        orthogonal(x, *given)
    calls = {event.key: event.count for event in told.key_averages()}
    assert calls["aten::bmm"] + calls["aten::baddbmm"] == (15 if shape[0] == shape[1] else 17)
    assert not {"aten::clone", "aten::contiguous"} & set(calls)
