"""A link changes nothing that it was given, and gives nothing that a later write could change behind one's back."""

import pytest
import torch
from cases import CASES, Case
from harness import context, leaves, numbers, same_bits, stored

import gradchain as gch

rows = pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
STEPS = 4


def gradient(problem, params, t: int) -> gch.Tensors:
    """The gradients of step t; by turns plain, and with a factor that the first reader applies."""
    grads = gch.Tensors.of(problem.gradient(t, params))
    return 3.0 * grads if t % 2 else grads


def walked(case: Case):
    """Updates in, state before, context, updates out, state after, of each of some updates; nothing is applied."""
    problem = case.problem(steps=STEPS)
    params = gch.Tensors.of(problem.params)
    state = case.link.init(params)
    for t in range(STEPS):
        ctx = context(problem, params, t, t)
        grads = gradient(problem, params, t)
        before = state
        out, state = case.link.update(grads, before, ctx)
        yield grads, before, ctx, out, state


def bits(tensors) -> dict[str, torch.Tensor]:
    return {n: tensors[n].clone() for n in tensors}


def returned(out) -> dict[str, torch.Tensor]:
    tensors = out.tensors if isinstance(out, gch.Weights) else out
    return {} if tensors is None else {n: tensors[n] for n in tensors}


@rows
def test_update_changes_none_of_its_arguments(case: Case):
    """Updates, weights, state and clocks are bit-equal before and after every update."""
    problem = case.problem(steps=STEPS)
    params = gch.Tensors.of(problem.params)
    state = case.link.init(params)
    for t in range(STEPS):
        ctx = context(problem, params, t, t)
        grads = gch.Tensors.of(problem.gradient(t, params))
        before = [bits(grads), bits(params), bits(stored(state)), numbers(state), dict(ctx.clocks), dict(ctx.observed)]
        old = state
        _, state = case.link.update(grads, state, ctx)
        after = [bits(grads), bits(params), bits(stored(old)), numbers(old), dict(ctx.clocks), dict(ctx.observed)]
        assert [same_bits(a, b) for a, b in zip(before[:3], after[:3], strict=True)] == [[], [], []]
        assert before[3:] == after[3:]
        assert ctx.params is params


@rows
def test_init_shares_no_memory_with_the_weights(case: Case):
    """A state that was made from weights does not move with them."""
    params = gch.Tensors.of(case.problem().params)
    state = case.link.init(params)
    kept = bits(stored(state))
    for n in params:
        params[n].add_(1.0)
    assert same_bits(kept, stored(state)) == []


@rows
def test_outputs_share_memory_only_with_what_they_equal(case: Case):
    """What an update returns, and the state it leaves, are new tensors, or equal to the argument they share with."""
    for grads, before, ctx, out, after in walked(case):
        given = [*bits_of(grads), *bits_of(ctx.params), *stored(before).values()]
        for made in [*returned(out).values(), *stored(after).values()]:
            for argument in given:
                shared = made.numel() and made.untyped_storage().data_ptr() == argument.untyped_storage().data_ptr()
                assert not shared or (made.shape == argument.shape and same_bits({"": made}, {"": argument}) == [])


def bits_of(tensors) -> list[torch.Tensor]:
    return [tensors[n] for n in tensors]


@rows
def test_the_same_update_twice_gives_the_same(case: Case):
    """From one state an update can be taken again: the result and the next state are bit-equal."""
    problem = case.problem(steps=STEPS)
    params = gch.Tensors.of(problem.params)
    for t, (_, before, ctx, out, after) in enumerate(walked(case)):
        again, then = case.link.update(gradient(problem, params, t), before, ctx)
        assert (out is None) == (again is None)
        assert same_bits(returned(out), returned(again)) == []
        assert same_bits(stored(after), stored(then)) == []
        assert numbers(after) == numbers(then)


def test_reading_an_entry_changes_no_bits():
    """Whoever looks at the updates before a link does not change what the link makes of them."""
    link, generator = gch.scale_by_adam(), torch.Generator().manual_seed(0)
    weights = gch.Tensors.of({"w": torch.randn(1000, dtype=torch.float64, generator=generator)})
    unread, read = 3.0 * weights, 3.0 * weights
    assert torch.is_tensor(read["w"])
    outs = [link.update(g, link.init(weights), gch.Context(weights, step=0))[0] for g in (unread, read)]
    assert same_bits(dict(outs[0]), dict(outs[1])) == []


@rows
def test_the_same_fields_at_every_step(case: Case):
    """A state keeps its class and its fields, so that a checkpoint of any step has the same names."""
    for _, before, _, _, after in walked(case):
        assert type(before) is type(after)
        assert [address for address, _ in leaves(before)] == [address for address, _ in leaves(after)]
