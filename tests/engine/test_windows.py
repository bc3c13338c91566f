"""Windows that the chain sums itself: one buffer, made in the first window and written over from then on."""

from __future__ import annotations

import pytest
import torch
from test_gates import Watch, plain
from twins import EXECUTORS, Shapes, Twins, by_executors, drawn_like

import gradchain as gch

WINDOWS = {
    "mean": gch.accumulate(3),
    "sum": gch.accumulate(3, reduce="sum"),
    "float32": gch.accumulate(3, dtype=torch.float32),
    "branch": gch.partition((gch.bias, gch.accumulate(3)), (gch.rest, gch.accumulate(3))),
}


def window_of(updater: gch.Updater) -> dict[str, int]:
    """Where each entry of the open windows lies."""
    found: dict[str, int] = {}
    todo = [updater._bound.state]
    while todo:
        state = todo.pop()
        found |= {n: t.data_ptr() for n, t in getattr(state, "window", {}).items()}
        todo += getattr(state, "links", {}).values()
    return found


@pytest.mark.parametrize(
    ("executor", "given"), [("native", False), ("native", True), ("blocks", False)], ids=["native", "by name", "blocks"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", WINDOWS)
def test_nothing_is_allocated_after_the_first_window(window, dtype, executor, given):
    model = plain().to(dtype)
    updater = by_executors(gch.chain(WINDOWS[window], gch.adamw(0.01)).bind(model), executor)
    places = []
    for t in range(9):
        grads = {n: drawn_like(p, t) for n, p in model.named_parameters()}
        for n, p in model.named_parameters():
            p.grad = None if given else grads[n]
        kept = {n: g.clone() for n, g in grads.items()}
        with Watch() as watch:
            info = updater.step(grads) if given else updater.step()
        assert updater._bound.engine.reason == ""
        assert bool(info) == (t % 3 == 2)
        if executor == "native" and t > 2:
            assert watch.bytes == 0, watch.operations
            assert set(watch.operations) <= {"aten.detach.default"}  # gradients that are given by name
        if not info:
            places.append(window_of(updater))
            assert set(places[-1]) == set(kept)
        assert all(torch.equal(grads[n], kept[n]) for n in kept), "a gradient was written"
    if (
        window != "float32" or dtype is torch.bfloat16
    ):  # else the first is the gradient, in the dtype that was asked for
        assert all(place == places[0] for place in places)


@pytest.mark.parametrize("executor", ["native", "blocks"])
@pytest.mark.parametrize("dtypes", [[torch.float64], [torch.bfloat16, torch.float32, torch.complex64]], ids=str)
def test_windows_equal_the_reference_whatever_comes_between(executor, dtypes):
    unequal = gch.partition((gch.min_ndim(2), gch.accumulate(2)), (gch.rest, gch.accumulate(3, dtype=torch.float64)))
    for link in (gch.accumulate(3), gch.accumulate(3, reduce="sum", dtype=torch.float64), unequal):
        twins = Twins(gch.chain(link, gch.trace(0.9), gch.scale(-0.01)), Shapes(dtypes), [executor])
        absent = {4: ["body.bias"], 5: ["body.bias", "head.long"], 8: ["body.turned"]}
        for t in range(16):
            twins.gradients(t, absent.get(t, ()), turned=t == 6)
            if t == 9:
                twins.each(lambda m, u: u.load_state_dict(u.state_dict()))
            if t == 12:
                twins.each(lambda m, u: u.zero_grad())
        twins.compare()


def test_a_gradient_that_is_looked_at_between_is_not_the_buffer_of_the_next_window():
    model = plain()
    updater = by_executors(gch.chain(gch.accumulate(2), gch.sgd(0.1)).bind(model), "native")
    shown = []
    for t in range(6):
        for p in model.parameters():
            p.grad = drawn_like(p, t)
        updater.step(keep_grads=True)
        shown += [(p.grad, p.grad.clone()) for p in model.parameters() if p.grad is not None]
    assert shown
    assert all(torch.equal(now, then) for now, then in shown)


def test_a_failed_step_leaves_the_window():
    class late(gch.Transform):
        def update(self, g, state, ctx):
            if ctx.step == 1 and not failed:
                failed.append(1)
                raise ValueError("once")
            return g, state

    failed: list[int] = []
    model = plain()
    updater = by_executors(gch.chain(gch.accumulate(2), late(), gch.sgd(0.1)).bind(model), "native")
    for t in range(6):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        before = [p.detach().clone() for p in model.parameters()]
        try:
            info = updater.step()
        except ValueError:
            assert t == 3
            info = updater.step()
        if info:
            for p, was in zip(model.parameters(), before, strict=True):
                assert torch.allclose(p, was - 0.1)
    assert failed


@pytest.mark.parametrize("executor", list(EXECUTORS))
def test_parameters_that_join_an_open_window(executor):
    """A window has its parameters in the order in which they came; they are no less in their own memory."""
    tx = gch.chain(gch.accumulate(3, reduce="sum", dtype=torch.float64), gch.clip_by_norm(0.5), gch.adamw(0.01))
    twins = Twins(tx, Shapes(), EXECUTORS[executor])
    for t in range(9):
        absent = {0: ("body.weight", "head.weight"), 1: ("body.conv",), 3: ("body.bias",), 6: ("head.column",)}
        twins.gradients(t, absent.get(t, ()))
    twins.compare()


@pytest.mark.parametrize("executor", list(EXECUTORS))
def test_a_window_that_waits_for_another_is_open_all_the_same(executor):
    """Two windows over the same parameters: where the first holds, the second is not reached, and keeps its memory."""

    def window() -> gch.Transform:
        return gch.partition((gch.named("head.*"), gch.scale_by_adam()), (gch.rest, gch.accumulate(3)))

    twins = Twins(gch.chain(window(), window(), gch.sgd(0.05)), Shapes(), EXECUTORS[executor])
    one, two = ("body.bias",), ("body.weight", "body.bias")
    absent = {2: one, 4: two, 6: one, 8: two, 23: one}  # which makes buffers wait in another order
    for t in range(24):
        twins.gradients(t, absent.get(t, ()))
    twins.compare()
