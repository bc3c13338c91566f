"""What a user does to model, gradients and updater between steps: noticed, and never silently wrong.

Each test trains on for some steps after it and is held to the reference, to which the same was done.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from twins import BOUND, EXECUTORS, Shapes, Twins, by_executors, distance, drawn_like

import gradchain as gch

DOUBLE, SINGLE = (torch.float64,), (torch.float32,)
HEAD = gch.named("head.*")


def recipe() -> gch.chain:
    return gch.chain(gch.clip_by_norm(2.0), gch.adamw(0.02, mask=gch.min_ndim(2)), gch.average_params(0.9))


def fused() -> gch.chain:
    """One that torch has kernels for."""
    return gch.chain(gch.clip_by_norm(2.0), gch.adamw(0.02, mask=gch.min_ndim(2)))


def momentum() -> gch.chain:
    return gch.chain(gch.clip_by_norm(2.0), gch.sgd(0.05, momentum=0.9))


@pytest.fixture(params=list(EXECUTORS))
def executors(request) -> tuple[str, ...]:
    return EXECUTORS[request.param]


def small(dtypes=DOUBLE) -> Shapes:
    return Shapes(dtypes, long=50)


def around(twins: Twins, do, steps: int = 3) -> None:
    """Some steps, something done to both, some more steps, and the comparison."""
    for t in range(2):
        twins.gradients(t)
    twins.each(do)
    for t in range(2, 2 + steps):
        twins.gradients(t)
    twins.compare()


# what is done to a model


def to_channels_last(model, updater):
    model.to(memory_format=torch.channels_last)


def to_contiguous(model, updater):
    for p in model.parameters():
        p.data = p.data.contiguous()


def to_double(model, updater):
    model.double()


def to_float(model, updater):
    model.float()


def assigned(model, updater):
    model.load_state_dict({n: 0.5 * p.detach().clone() for n, p in model.state_dict().items()}, assign=True)
    model.tied.weight = model.body.weight  # which it unties


def new_parameter(model, updater):
    model.head.weight = nn.Parameter(model.head.weight.detach() + 1.0)


def parameter_over_the_same_memory(model, updater):
    model.head.weight = nn.Parameter(model.head.weight.detach())


def new_storage(model, updater):
    model.body.weight.data = 2.0 * model.body.weight.data
    model.body.bias.data = model.body.bias.data.clone()


def edited(model, updater):
    with torch.no_grad():
        model.body.weight.mul_(0.5)
        model.head.cube[0].zero_()


def frozen(model, updater):
    model.body.requires_grad_(False)


def tied(model, updater):
    """Another tie to a weight that is bound."""
    model.tied.bias = model.body.bias


def reset(model, updater):
    updater.reset(HEAD)


def reset_all(model, updater):
    updater.reset()


def reloaded(model, updater):
    updater.load_state_dict(updater.state_dict())


def rebound(model, updater):
    updater.rebind(model)


def zeroed(model, updater):
    model.zero_grad(set_to_none=False)
    updater.zero_grad()


DONE = [
    to_channels_last, to_contiguous, assigned, new_parameter, parameter_over_the_same_memory, new_storage, edited,
    frozen, tied, reset, reset_all, reloaded, rebound, zeroed,
]  # fmt: skip


@pytest.mark.parametrize("do", DONE, ids=lambda do: do.__name__)
def test_done_between_steps(do, executors):
    around(Twins(recipe(), small(), executors), do)


@pytest.mark.parametrize(("kind", "do"), [(SINGLE, to_double), (DOUBLE, to_float)], ids=["double", "float"])
def test_the_dtype_of_the_model_changes(kind, do, executors):
    twins = Twins(recipe(), small(kind), executors)
    for t in range(2):
        twins.gradients(t)
    twins.each(do)
    for t in range(2, 5):
        twins.gradients(t)
    twins.compare(BOUND[torch.float32])


def test_rebound_to_a_model_with_more_and_fewer_parameters(executors):
    def changed(model, updater):
        del model.head.column
        model.head.fresh = nn.Parameter(torch.ones(3, dtype=torch.float64))
        updater.rebind(model)

    twins = Twins(recipe(), small(), executors)
    twins.start["head.fresh"] = torch.ones(3, dtype=torch.float64)
    around(twins, changed)


def test_requires_grad_comes_and_goes(executors):
    twins = Twins(recipe(), small(), executors)
    twins.each(lambda model, _: model.body.requires_grad_(False))
    body = [n for n, _ in twins.models[0].named_parameters() if n.startswith("body")]
    for t in range(7):
        if t in (2, 5):
            twins.each(lambda model, _, on=t == 2: model.body.requires_grad_(on))
        twins.loss(t, absent=() if 2 <= t < 5 else body)
    twins.compare()


def test_a_parameter_that_gets_its_first_gradient_late(executors):
    twins = Twins(recipe(), small(), executors)
    twins.each(lambda model, _: model.head.requires_grad_(False))
    for t in range(2):
        twins.gradients(t, absent=[n for n, _ in twins.models[0].named_parameters() if n.startswith("head")])
    twins.each(lambda model, _: model.head.requires_grad_(True))
    for t in range(2, 5):
        twins.gradients(t)
    twins.compare()


def test_gradients_absent_in_changing_patterns(executors):
    twins = Twins(recipe(), small(), executors)
    names = list(twins.start)
    for t in range(8):
        twins.gradients(t, absent=[n for i, n in enumerate(names) if (i + t) % 3 == 0], turned=t % 2 == 1)
    twins.compare()


def test_weights_that_shrink_are_not_read_beyond_their_end(executors):
    """The updater cannot know what the moments of a cut weight are: an error, as by the reference, and no crash."""
    for do in ((lambda t: t[:3]), (lambda t: torch.cat([t, t]))):
        twins = Twins(momentum(), small(), executors)
        twins.gradients(0)
        for model, updater in zip(twins.models, (twins.ours, twins.theirs), strict=True):
            model.body.bias.data = do(model.body.bias.data)
            for i, p in enumerate(model.parameters()):
                p.grad = drawn_like(p, i)
            with pytest.raises((RuntimeError, ValueError), match=r"size|shape"):
                updater.step()


def test_a_stale_gradient_of_a_grown_weight_is_not_read_beyond_its_end(executors):
    model = small()
    updater = by_executors(gch.sgd(0.1).bind(model), *executors)
    for i, p in enumerate(model.parameters()):
        p.grad = drawn_like(p, i)
    model.body.bias.data = torch.zeros(1000, dtype=torch.float64)
    with pytest.raises((RuntimeError, ValueError), match=r"size|shape"):
        updater.step()


# gradients


def test_given_gradients_are_not_changed(executors):
    model = small(SINGLE)
    updater = by_executors(fused().bind(model), *executors)
    for t in range(3):
        grads = {n: 10.0 * drawn_like(p, t + i) for i, (n, p) in enumerate(model.named_parameters())}
        kept = {n: g.clone() for n, g in grads.items()}
        assert updater.step(grads)
        assert updater._bound.engine.reason == ""
        assert all(torch.equal(g, kept[n]) for n, g in grads.items())
    assert any(part.executor == executors[0] for part in updater._bound.engine.last)


def test_given_gradients_may_be_expanded_negated_or_conjugated(executors):
    def do(model, updater):
        made = {n: drawn_like(p, i) for i, (n, p) in enumerate(model.named_parameters())}
        made["body.weight"] = torch.tensor(0.5, dtype=torch.float64).expand(5, 6)
        made["body.turned"] = torch.complex(made["body.turned"], made["body.turned"]).conj().imag
        assert made["body.turned"].is_neg()
        made["head.cube"] = made["head.cube"].flip(0)
        return updater.step(made)

    twins = Twins(recipe(), small(), executors)
    for _ in range(3):
        twins.step(do)
    twins.compare()


def test_dot_grad_may_be_negated(executors):
    def do(model, updater):
        for i, p in enumerate(model.parameters()):
            drawn = drawn_like(p, i)
            p.grad = torch.complex(drawn, drawn).conj().imag
        return updater.step()

    twins = Twins(recipe(), small(), executors)
    for _ in range(3):
        twins.step(do)
    twins.compare()


def test_conjugated_complex_gradients(executors):
    def do(model, updater):
        for i, p in enumerate(model.parameters()):
            p.grad = drawn_like(p, i).conj()
        return updater.step()

    twins = Twins(recipe(), small((torch.complex128,)), executors)
    for _ in range(3):
        twins.step(do)
    twins.compare()


@pytest.mark.parametrize("kind", [DOUBLE, SINGLE], ids=["float64", "float32"])
def test_kept_gradients_are_what_the_chain_received(kind, executors):
    model = small(kind)
    updater = by_executors(fused().bind(model), *executors)
    for t in range(3):
        loss = distance(model, t)
        expected = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        assert updater.update(loss, keep_grads=True)
        assert updater._bound.engine.reason == ""
        for p, grad in zip(model.parameters(), expected, strict=True):
            assert torch.equal(p.grad, grad)
    if kind is SINGLE:
        assert any(part.executor == executors[0] for part in updater._bound.engine.last)


def test_a_gradient_of_another_dtype_goes_by_the_reference():
    model = nn.Linear(3, 2)
    updater = gch.sgd(0.1).bind(model)
    model.weight.grad = torch.ones(2, 3)
    updater.step()
    assert updater._bound.engine.reason == ""
    model.half()
    model.weight.grad = torch.ones(2, 3, dtype=torch.float16)
    model.weight.data = model.weight.data.float()
    updater.step()
    assert "gradient of 'weight' is torch.float16" in updater._bound.engine.reason


def test_weights_with_gaps_go_by_the_reference():
    weights = torch.zeros(6, 4)[:, :2].detach().requires_grad_(True)
    updater = gch.adam(0.1).bind({"w": weights})
    for _ in range(3):
        assert updater.step({"w": torch.ones(6, 2)})
        assert "overlaps itself or has gaps" in updater._bound.engine.reason
    assert float(weights.detach().max()) == pytest.approx(-0.3, rel=1e-5)


class Last(gch.State):
    whole = frozenset({"last"})
    last: gch.Tensors


class remembered(gch.Transform):
    """Keeps the gradients themselves, in a field that comes and goes."""

    def init(self, params):
        return Last(params.select(()))

    def update(self, g, state, ctx):
        return g, Last(g)


def test_state_that_holds_the_gradients_is_not_overwritten_by_a_kernel(executors):
    twins = Twins(gch.chain(remembered(), gch.clip_by_norm(0.1), gch.adamw(0.01)), small(SINGLE), executors)
    for t in range(3):
        twins.gradients(t)
        twins.compare()
    assert executors[0] in twins.used


def test_lazily_conjugated_weights_are_refused():
    """Whatever writes to them would write into a copy."""
    weights = torch.complex(torch.ones(3), torch.ones(3)).conj().requires_grad_(True)
    with pytest.raises(ValueError, match="'w' is another tensor, conjugated or negated as it is read"):
        gch.sgd(1.0).bind({"w": weights})
