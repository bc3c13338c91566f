"""bind(in_backward=True): the same weights as without it, no gradient alive after its turn, and what is refused."""

import copy

import pytest
import torch

import gradchain as gch


def model() -> torch.nn.Module:
    """A small float64 model with a parameter that is used twice."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4), torch.nn.Linear(4, 4))
    net[3].weight = net[2].weight if net[2].weight.shape == net[3].weight.shape else net[3].weight
    return net.double()


CHAINS = {
    "adamw": gch.adamw(gch.linear(1e-1, 1e-2, 6), mask=gch.min_ndim(2)),
    "clipped per tensor": gch.chain(gch.clip_by_norm(0.1, per="tensor"), gch.sgd(0.1, momentum=0.9)),
    "partition": gch.partition((gch.bias, gch.lion(1e-2)), (gch.rest, gch.nadamw(1e-2))),
    "project": gch.chain(gch.adam(1e-1), gch.project(lambda p: p.clamp(-0.3, 0.3))),
}


@pytest.mark.parametrize("executors", ["engine", "reference"])
@pytest.mark.parametrize("name", CHAINS)
def test_it_gives_the_weights_and_state_of_an_ordinary_update(name: str, executors: str) -> None:
    """Weights, state and clocks equal those of the same chain bound without it."""
    a = model()
    b = copy.deepcopy(a)
    x = torch.randn(8, 4, dtype=torch.float64)
    ordinary, inside = CHAINS[name].bind(a), CHAINS[name].bind(b, in_backward=True)
    if executors == "reference":
        ordinary._bound.engine.executors = ()
    for _ in range(6):
        ordinary.update(a(x).square().mean())
        info = inside.update(b(x).square().mean())
        assert info.applied
        assert all(p.grad is None for p in b.parameters())
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
    first, second = ordinary.state_dict(), inside.state_dict()
    assert first["clocks"] == second["clocks"]
    flat, tree = torch.utils._pytree.tree_flatten(first["links"])
    other, same = torch.utils._pytree.tree_flatten(second["links"])
    assert tree == same
    for p, q in zip(flat, other, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-14)


def test_gradients_are_gone_before_backward_ends() -> None:
    """When the last gradient of a deep model arrives, those before it have been freed."""
    net = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(6)))
    updater = gch.sgd(0.1).bind(net, in_backward=True)
    alive: list[int] = []
    net[0].weight.register_hook(lambda g: alive.append(sum(p.grad is not None for p in net.parameters())))
    updater.update(net(torch.randn(3, 8)).sum())
    assert alive == [0]


def test_a_chain_that_needs_all_gradients_is_refused() -> None:
    """A norm over all parameters cannot be known while gradients still come."""
    with pytest.raises(ValueError, match="one parameter at a time, and clip_by_norm does not say that it can"):
        gch.chain(gch.clip_by_norm(1.0), gch.sgd(0.1)).bind(model(), in_backward=True)
    with pytest.raises(ValueError, match="accumulate does not say"):
        gch.chain(gch.accumulate(2), gch.sgd(0.1)).bind(model(), in_backward=True)


def test_a_second_backward_and_a_bare_step_are_refused() -> None:
    """One backward is one update."""
    net = model()
    updater = gch.sgd(0.1).bind(net, in_backward=True)
    x = torch.randn(2, 4, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="has not run"):
        updater.step()
    updater.backward(net(x).sum())
    with pytest.raises(RuntimeError, match=r"Call updater\.step\(\) first\. Losses of one update are summed"):
        updater.backward(net(x).sum())


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    """Its slots and its count stay, as in an ordinary update."""
    net = model()
    updater = gch.adam(0.1).bind(net, in_backward=True)
    before = net[3].bias.detach().clone()
    updater.update(net[0](torch.randn(2, 4, dtype=torch.float64)).sum())
    count = updater.state_dict()["links"]["scale_by_adam"]["count"]
    assert count["0.weight"] == 1
    assert count["3.bias"] == 0
    assert torch.equal(net[3].bias, before)


class counting(gch.Transform):
    """Descends, and keeps one number per parameter: how often it moved."""

    descends = True
    per_parameter = True

    def init(self, params):
        return Moved(gch.Scalars(dict.fromkeys(params, 0.0)))

    def update(self, g, state, ctx):
        return -0.1 * g, Moved(state.moved.select(g) + 1.0)


class Moved(gch.State):
    """One number per parameter."""

    moved: gch.Scalars


def test_numbers_per_parameter_are_kept() -> None:
    """Scalars in a state advance as Counts and Tensors do."""
    net = model()
    updater = counting().bind(net, in_backward=True)
    for _ in range(3):
        updater.update(net[0](torch.randn(2, 4, dtype=torch.float64)).sum())
    moved = updater.state_dict()["links"]["counting"]["moved"]
    assert moved["0.weight"] == 3.0
    assert moved["3.bias"] == 0.0


def test_a_backward_that_fails_leaves_each_parameter_whole() -> None:
    """Those that had their turn have new weight, slots and count; the others none of them; no hook stays armed.

    The updater is torn, and refuses everything until it is loaded.
    """
    net = model()
    updater = gch.adam(0.1).bind(net, in_backward=True)
    saved = updater.state_dict()
    x = torch.randn(2, 4, dtype=torch.float64)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}

    def fail(grad: torch.Tensor) -> None:
        raise ArithmeticError("here")

    handle = net[0].weight.register_hook(fail)
    with pytest.raises(ArithmeticError, match="here"):
        updater.update(net(x).square().sum())
    handle.remove()
    counts = updater._bound.state.links["scale_by_adam"].count
    moved = {n: not torch.equal(p, before[n]) for n, p in net.named_parameters()}
    assert moved["3.bias"] and not moved["0.weight"]
    assert moved == {n: counts.of(n) == 1 for n in moved}
    after = net[3].bias.detach().clone()
    net(x).sum().backward()
    assert torch.equal(net[3].bias, after)
    for ask in (updater.state_dict, updater.step, updater.flush, lambda: updater.update(net(x).sum())):
        with pytest.raises(RuntimeError, match=r"was broken off: some parameters had theirs, .* Load what was saved"):
            ask()
    updater.load_state_dict(saved)
    net.load_state_dict(before)
    assert updater.update(net(x).square().sum()).applied


def test_keeping_gradients_is_refused_before_anything_happens() -> None:
    """They are freed one by one, so there is nothing to keep."""
    net = model()
    updater = gch.sgd(0.1).bind(net, in_backward=True)
    before = net[3].bias.detach().clone()
    with pytest.raises(ValueError, match="frees each gradient"):
        updater.update(net(torch.randn(2, 4, dtype=torch.float64)).sum(), keep_grads=True)
    assert torch.equal(net[3].bias, before) and updater.num_micro == 0


BETWEEN = {
    "backward": lambda u, m, loss: u.backward(loss()),
    "update": lambda u, m, loss: u.update(loss()),
    "closure": lambda u, m, loss: u.update(loss),
    "grads": lambda u, m, loss: u.step({"0.weight": torch.ones(5, 4, dtype=torch.float64)}),
    "zero_grad": lambda u, m, loss: u.zero_grad(),
    "flush": lambda u, m, loss: u.flush(),
    "state_dict": lambda u, m, loss: u.state_dict(),
    "save": lambda u, m, loss: u.save("never.pt"),
    "deepcopy": lambda u, m, loss: copy.deepcopy((m, u)),
    "rebind": lambda u, m, loss: u.rebind(m),
}


@pytest.mark.parametrize("between", BETWEEN)
def test_what_waits_for_its_step_is_said_to_be_an_update(between: str) -> None:
    """Whatever would lose or mix up the count names step(); nothing changes, and that step counts the update."""
    net, other = model(), model()
    x = torch.randn(2, 4, dtype=torch.float64)
    updater, expected = gch.adam(0.1).bind(net, in_backward=True), gch.adam(0.1).bind(other, in_backward=True)
    for _ in range(2):
        expected.update(other(x).square().sum())
    updater.update(net(x).square().sum())
    updater.backward(net(x).square().sum())
    with pytest.raises(RuntimeError, match=r"^\w+: a backward has updated the weights.*Call updater\.step\(\) first"):
        BETWEEN[between](updater, net, lambda: net(x).square().sum())
    assert updater.step().applied
    assert updater.clocks == expected.clocks
    assert updater.state_dict()["links"]["scale_by_adam"]["count"] == 2
    assert all(map(torch.equal, net.parameters(), other.parameters()))
    assert updater.update(net(x).square().sum()).step == 2


def test_a_load_forgets_the_update_that_waits_for_its_step() -> None:
    """The state loaded is not that of the backward: a step after it has nothing to count."""
    net = model()
    x = torch.randn(2, 4, dtype=torch.float64)
    updater = gch.adam(0.1).bind(net, in_backward=True)
    saved, weights = updater.state_dict(), copy.deepcopy(net.state_dict())
    updater.backward(net(x).sum())
    updater.load_state_dict(saved)
    net.load_state_dict(weights)
    with pytest.raises(RuntimeError, match="has not run"):
        updater.step()
    assert updater.num_updates == 0
    assert updater.update(net(x).sum()).step == 0
