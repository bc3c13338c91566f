"""Windows with weights of any size, in every dtype: the mean, and what lies in `.grad` on the way to it."""

import itertools

import pytest
import torch

import gradchain as gch

HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
DTYPES = [HALF, BRAIN, SINGLE, DOUBLE]
# how far a sum of a few terms may be rounded in each, of its largest term
ROUNDED = {HALF: 2.0**-8, BRAIN: 2.0**-5, SINGLE: 1e-6, DOUBLE: 1e-14}
WEIGHTS = {
    "equal": (100_000, 100_000, 100_000),
    "tokens": (4096.0, 13.0, 2048.0),
    "one and many": (1.0, 100_000.0, 3.0),
    "many and one": (100_000.0, 1.0, 3.0),
    "tiny": (1e-9, 3e-9, 2e-9),
    "small": (5e-324, 5e-324, 5e-324),
    "huge": (1.7e308, 1.7e308, 1.7e308),
    "far apart": (1e-30, 1e30, 1.0),
    "growing": (1.0, 1e3, 1e6),
}
GRADS = (1.0, 3.0, -2.5)


def chain(seen, **options):
    """A window, and what comes out of it."""

    def look(u, w):
        seen.append(u["w"].double().clone())
        return u

    return gch.chain(gch.accumulate(3, **options), gch.stateless(look), gch.scale(-(2.0**-6)))


def whole(weights, n, reduce):
    """The mean or sum of the first n gradients, exactly as float64 has it."""
    largest = max(weights[:n])
    shares = [w / largest for w in weights[:n]]
    total = sum(s * g for s, g in zip(shares, GRADS, strict=False))
    return total / sum(shares) if reduce == "mean" else total * largest


def fed(updater, weight, dtype, weights, size=1.0):
    """One update per weight, each of a loss with the next gradient; the largest number in `.grad` meanwhile."""
    largest = 0.0
    for g, w in zip(GRADS, weights, strict=False):
        updater.backward((torch.tensor(size * g, dtype=dtype) * weight).sum(), weight=w)
        largest = max(largest, weight.grad.abs().max().item())
        info = updater.step()
    return info, largest


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("buffer", [None, SINGLE], ids=["grad", "buffer"])
@pytest.mark.parametrize("end", ["full", "flush", "last"])
def test_the_mean_is_exact_whatever_the_weights(kind, dtype, buffer, end):
    """Σ w g / Σ w, full, flushed or closed early; what is summed is of the size of a gradient throughout."""
    seen, weights = [], WEIGHTS[kind]
    weight = torch.ones(1, dtype=dtype, requires_grad=True)
    updater = chain(seen, dtype=buffer).bind({"w": weight})
    for _ in range(2):  # the second window begins afresh
        info, largest = fed(updater, weight, dtype, weights if end == "full" else weights[:2])
        if end == "flush":
            info = updater.flush()
        elif end == "last":
            updater.zero_grad()
            fed(updater, weight, dtype, weights[:1])
            info = updater.update((torch.tensor(GRADS[1], dtype=dtype) * weight).sum(), weight=weights[1], last=True)
        assert info
        mean = torch.full((1,), whole(weights, 3 if end == "full" else 2, "mean"), dtype=DOUBLE)
        torch.testing.assert_close(seen.pop(), mean, rtol=0, atol=3 * max(ROUNDED[dtype], ROUNDED[buffer or dtype]))
        assert largest <= 8 * 3.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weights", [None, "equal", "tokens", "one and many", "tiny"])
@pytest.mark.parametrize("buffer", [None, SINGLE], ids=["grad", "buffer"])
def test_a_sum_is_exact_too(dtype, weights, buffer):
    """reduce="sum": Σ w g, which float16 has no room for; without weights Σ g of gradients near the largest float16."""
    seen, given = [], (None,) * 3 if weights is None else WEIGHTS[weights]
    size = 2.0**14 if weights is None else 1.0  # 1 + 3 of that is more than float16 has
    weight = torch.ones(1, dtype=dtype, requires_grad=True)
    updater = chain(seen, reduce="sum", dtype=buffer).bind({"w": weight})
    _, largest = fed(updater, weight, dtype, given, size)
    numbers = given if weights else (1.0,) * 3
    total = size * whole(numbers, 3, "sum")
    bound = size * max(numbers) * 9 * max(ROUNDED[dtype], ROUNDED[buffer or dtype])
    torch.testing.assert_close(seen.pop(), torch.full((1,), total, dtype=DOUBLE), rtol=0, atol=bound)
    assert largest <= 8 * 3.0 * size


@pytest.mark.parametrize("dtype", [HALF, BRAIN], ids=str)
def test_a_hundred_thousand_tokens_on_half_weights(dtype):
    """accumulate(2) with weight=100_000 twice moves by the mean, under a loss scale too."""
    for links in ([], [gch.amp_scale(256.0, always=True)]):
        weight = torch.ones(1, dtype=dtype, requires_grad=True)
        updater = gch.chain(gch.accumulate(2), *links, gch.sgd(1.0)).bind({"w": weight})
        for _ in range(2):
            info = updater.update((1.0 * weight).sum(), weight=100_000)
        assert info.applied and weight.item() == 0.0


@pytest.mark.parametrize("weights", [None, (2.0, 6.0), (1e5, 1e5), (1e-9, 2e-9)])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_the_loss_of_the_window(weights, reduce):
    """Later links see the loss reduced as the gradients are, whatever the weights are relative to."""
    seen = []

    def look(g, w, ctx):
        seen.append(float(ctx.loss))
        return g

    weight = torch.ones(1, dtype=DOUBLE, requires_grad=True)
    tx = gch.chain(gch.accumulate(2, reduce=reduce), gch.stateless(look), gch.sgd(1e-9))
    updater = tx.bind({"w": weight})
    given = weights or (None, None)
    for w, size in zip(given, (1.0, 3.0), strict=True):
        updater.update((size * weight).sum(), weight=w)
    shares = weights or (1.0, 1.0)
    total = shares[0] * 1.0 + shares[1] * 3.0
    assert seen == [pytest.approx(total / sum(shares) if reduce == "mean" else total, rel=1e-9)]


@pytest.mark.parametrize("kind", ["equal", "one and many", "tiny", "far apart"])
@pytest.mark.parametrize("dtype", [HALF, DOUBLE], ids=str)
@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("at", [1, 2])
def test_a_half_full_window_goes_on_from_a_file(kind, dtype, reduce, at, tmp_path):
    """Saved after one or two micro-batches and loaded into a fresh updater: the very bits of a run without a stop."""
    if kind == "far apart" and reduce == "sum" and dtype is HALF:
        pytest.skip("the sum is no float32")
    results = []
    for stop in (None, at):
        seen = []
        weight = torch.ones(1, dtype=dtype, requires_grad=True)
        updater = chain(seen, reduce=reduce).bind({"w": weight})
        for i, (g, w) in enumerate(zip(GRADS, WEIGHTS[kind], strict=True)):
            if i == stop:
                updater.save(tmp_path / "a.pt")
                weight = torch.zeros(1, dtype=dtype, requires_grad=True)
                updater = chain(seen, reduce=reduce).bind({"w": weight})
                updater.load(tmp_path / "a.pt")
            updater.update((torch.tensor(g, dtype=dtype) * weight).sum(), weight=w)
        results.append((seen[0], weight.detach().clone()))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_a_window_of_an_older_checkpoint_goes_on(reduce):
    """One without a reference had raw weights in its sums, which is what a reference of 1 means."""
    weight = torch.ones(1, dtype=DOUBLE, requires_grad=True)
    seen = []
    updater = chain(seen, reduce=reduce).bind({"w": weight})
    updater.update((2.0 * weight).sum(), weight=5.0)
    saved = updater.state_dict()
    window = saved["links"]["accumulate"]
    raw = window["reference"]
    window["window"]["w"] *= raw
    window["weight"] *= raw
    window["loss"] *= raw
    del window["reference"]
    other = torch.ones(1, dtype=DOUBLE, requires_grad=True)
    fresh = chain(seen, reduce=reduce).bind({"w": other})
    fresh.load_state_dict(saved)
    for _ in range(2):
        fresh.update((3.0 * other).sum(), weight=1.0)
    total = 5.0 * 2.0 + 2 * 3.0
    assert seen[0].item() == pytest.approx(total / 7.0 if reduce == "mean" else total, rel=1e-14)


def test_in_a_branch_and_behind_another_link():
    """Two windows of two lengths in branches, and one behind a loss scale: each has the reference of its own window."""
    for wrap in (lambda tx: gch.partition((gch.rest, tx)), lambda tx: gch.chain(gch.skip_nonfinite(), tx)):
        for dtype in (HALF, SINGLE):
            seen, weight = [], torch.ones(1, dtype=dtype, requires_grad=True)
            updater = wrap(chain(seen)).bind({"w": weight})
            for g, w in zip(GRADS, WEIGHTS["one and many"], strict=True):
                updater.update((torch.tensor(g, dtype=dtype) * weight).sum(), weight=w)
            mean = torch.full((1,), whole(WEIGHTS["one and many"], 3, "mean"), dtype=DOUBLE)
            torch.testing.assert_close(seen.pop(), mean, rtol=0, atol=3 * ROUNDED[dtype])


def test_raw_gradients_have_no_weight_and_are_summed_as_they_are():
    """loss.backward() and step(), or step(grads): the mean and the sum of true float16 gradients."""
    for reduce, given in itertools.product(("mean", "sum"), (False, True)):
        seen, weight = [], torch.ones(1, dtype=HALF, requires_grad=True)
        updater = chain(seen, reduce=reduce).bind({"w": weight})
        for g in GRADS:
            grad = torch.full((1,), 2.0**14 * g, dtype=HALF)
            if given:
                updater.step({"w": grad})
            else:
                weight.grad = grad
                updater.step()
        total = 2.0**14 * sum(GRADS)
        assert seen.pop().item() == pytest.approx(total / 3 if reduce == "mean" else total, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_the_size_of_weights_changes_no_bit(dtype, reduce):
    """Weights times a power of two give the same bits, and equal ones those of none."""
    results = []
    for weights in ([3.0, 5.0, 7.0], [6.0, 10.0, 14.0], [1.0, 1.0, 1.0], [1024.0] * 3, [None] * 3):
        seen, weight = [], torch.ones(1, dtype=dtype, requires_grad=True)
        updater = chain(seen, reduce=reduce).bind({"w": weight})
        fed(updater, weight, dtype, weights)
        results.append(seen.pop() / (weights[0] or 1.0 if reduce == "sum" else 1.0))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[2], results[3]) and torch.equal(results[2], results[4])
