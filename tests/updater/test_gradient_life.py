"""The life of a gradient: `update(loss)` uses the gradient of this loss and its window, nothing else."""

import pytest
import torch
from little import data, distance, loss_of, net, same, untouched, weights
from torch import nn

import gradchain as gch


def sgd(k=0, **options):
    """Momentum SGD, with a window of `k` in front where k is given."""
    return gch.chain(*([gch.accumulate(k, **options)] if k else []), gch.sgd(0.1, momentum=0.9))


class Pair:
    """A generator and a discriminator whose losses run through each other."""

    def __init__(self):
        torch.manual_seed(3)
        self.g = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        self.d = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def g_loss(self, noise):
        return -self.d(self.g(noise[:, :2])).mean()

    def d_loss(self, rows, noise):
        return self.d(self.g(noise[:, :2])).mean() - self.d(rows).mean() + self.d(rows).square().mean()


@pytest.mark.parametrize(("kg", "kd"), [(0, 0), (3, 2), (2, 0)])
def test_gan_equals_a_loop_that_zeroes_before_each_window(kg, kd):
    """Two updaters whose losses reach each other's weights: each uses only its own loss, also inside windows."""
    ours, theirs = Pair(), Pair()
    ug, ud = sgd(kg).bind(ours.g), sgd(kd).bind(ours.d)
    real, noise = data(12, 5), data(12, 6)
    for rows, z in zip(real, noise, strict=True):
        ud.update(ours.d_loss(rows, z))
        ug.update(ours.g_loss(z))

    og, od = (torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (theirs.g, theirs.d))
    sums = {og: None, od: None}
    for i, (rows, z) in enumerate(zip(real, noise, strict=True)):
        for optimizer, model, k, loss_at in (
            (od, theirs.d, kd or 1, lambda rows=rows, z=z: theirs.d_loss(rows, z)),
            (og, theirs.g, kg or 1, lambda z=z: theirs.g_loss(z)),
        ):
            grads = torch.autograd.grad(loss_at(), list(model.parameters()))
            held = sums[optimizer] or [torch.zeros_like(g) for g in grads]
            sums[optimizer] = [s + g / k for s, g in zip(held, grads, strict=True)]
            if (i + 1) % k == 0:
                for p, g in zip(model.parameters(), sums[optimizer], strict=True):
                    p.grad = g
                optimizer.step()
                sums[optimizer] = None
    assert distance(ours.g, theirs.g) < 1e-14
    assert distance(ours.d, theirs.d) < 1e-14


@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("stray", ["zero_grad", "zeros", "leak", "ones"])
def test_strays_before_an_update_change_nothing(k, stray):
    """`model.zero_grad()`, another loss's gradients or any other in `.grad` before update: same bits."""
    plain, disturbed = net(), net()
    a, b = sgd(k).bind(plain), sgd(k).bind(disturbed)
    for rows in data(7):
        a.update(loss_of(plain, rows))
        loss = loss_of(disturbed, rows)
        if stray == "zero_grad":
            disturbed.zero_grad()
        elif stray == "zeros":
            disturbed.zero_grad(set_to_none=False)
        elif stray == "leak":
            disturbed(rows).sum().backward()
        else:
            for p in disturbed.parameters():
                p.grad = torch.ones_like(p)
        b.update(loss)
    assert same(weights(plain), weights(disturbed))


CHAINS = {
    "plain": lambda: sgd(),
    "window": lambda: sgd(2),
    "scaled": lambda: gch.chain(gch.amp_scale(1024.0, always=True), sgd()),
    "window-scaled": lambda: gch.chain(gch.accumulate(2), gch.amp_scale(1024.0, always=True), sgd()),
    "scaled-window": lambda: gch.chain(gch.amp_scale(1024.0, always=True), gch.accumulate(2), sgd()),
}


@pytest.mark.parametrize("kind", CHAINS)
def test_several_backwards_are_one_of_the_sum(kind):
    """Three `updater.backward` before one `step()` equal one of the summed losses; they are one micro-batch."""
    apart, summed = net(), net()
    a, b = CHAINS[kind]().bind(apart), CHAINS[kind]().bind(summed)
    rows = data(12)
    for i in range(4):
        losses = [loss_of(apart, r) * (j + 1) for j, r in enumerate(rows[3 * i : 3 * i + 3])]
        for loss in losses:
            a.backward(loss)
        info = a.step()
        other = b.update(sum(loss_of(summed, r) * (j + 1) for j, r in enumerate(rows[3 * i : 3 * i + 3])))
        assert info.reason == other.reason
        assert info.loss.item() == pytest.approx(sum(x.item() for x in losses), rel=1e-14)
    assert distance(apart, summed) < 1e-14
    assert (a.num_micro, a.num_updates) == (b.num_micro, b.num_updates)


def test_gradient_penalty():
    """A loss with a gradient in it (create_graph in the user's autograd.grad) trains as torch's loop does."""

    def loss_at(model, rows):
        rows = rows.clone().requires_grad_()
        out = model(rows)
        (slope,) = torch.autograd.grad(out.sum(), rows, create_graph=True)
        return out.mean() + (slope.norm(dim=1) - 1).square().mean()

    ours, theirs = net(), net()
    updater, optimizer = sgd().bind(ours), torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
    for rows in data(5):
        updater.update(loss_at(ours, rows))
        optimizer.zero_grad()
        loss_at(theirs, rows).backward()
        optimizer.step()
    assert distance(ours, theirs) < 1e-14


def test_create_graph_and_retain_graph_reach_backward():
    """`update(loss, retain_graph=True)` keeps the graph; `create_graph=True` makes gradients that have one."""
    model = net()
    updater = sgd().bind(model)
    loss = loss_of(model, data(1)[0])
    updater.backward(loss, retain_graph=True)
    updater.backward(loss)
    first = [p.grad.clone() for p in model.parameters()]
    updater.zero_grad()
    with pytest.warns(UserWarning, match="create_graph"):
        updater.backward(loss_of(model, data(1)[0]), create_graph=True)
    assert all(p.grad.requires_grad for p in model.parameters())
    for f, p in zip(first, model.parameters(), strict=True):
        torch.testing.assert_close(f, 2 * p.grad.detach(), rtol=1e-14, atol=0)
    assert updater.step()
    assert not any(p.requires_grad for p in updater.state_dict()["links"]["trace"]["trace"].values())


def test_inputs_names_who_gets_a_gradient():
    """`update(loss, inputs=)` is torch's: the others have none, and stay."""
    model = net()
    updater = sgd().bind(model)
    before = weights(model)
    updater.update(loss_of(model, data(1)[0]), inputs=[model[0].weight])
    changed = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert changed == ["0.weight"]


def clamp_grad(parameter):
    parameter.grad.clamp_(-0.05, 0.05)


@pytest.mark.parametrize("k", [0, 2])
def test_hooks_on_parameters_work(k):
    """A tensor hook that halves the gradient, and a post-accumulate hook that clips `.grad`, act as under torch."""
    ours, theirs = net(), net()
    for model in (ours, theirs):
        model[0].weight.register_hook(lambda grad: grad / 2)
        model[2].weight.register_post_accumulate_grad_hook(clamp_grad)
    updater, optimizer = sgd(k).bind(ours), torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
    for i, rows in enumerate(data(6)):
        updater.update(loss_of(ours, rows))
        (loss_of(theirs, rows) / (k or 1)).backward()
        if not k or i % k == k - 1:
            optimizer.step()
            optimizer.zero_grad()
    assert distance(ours, theirs) < 1e-14


def test_grad_is_there_to_edit_between_backward_and_step():
    """Between `backward` and `step()` `.grad` may be read and edited; it is scaled, as under GradScaler."""
    model, twin = net(), net()
    updater = gch.chain(gch.amp_scale(8.0, always=True), gch.sgd(0.1)).bind(model)
    rows = data(1)[0]
    updater.backward(loss_of(model, rows))
    loss_of(twin, rows).backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, 8 * q.grad)
    model[0].weight.grad.zero_()
    model[0].bias.grad = None
    updater.step()
    assert torch.equal(model[0].weight, twin[0].weight)
    assert torch.equal(model[0].bias, twin[0].bias)
    assert torch.allclose(model[2].bias, twin[2].bias - 0.1 * twin[2].bias.grad, rtol=1e-14)


def test_parameters_without_gradient_rest():
    """A phase in which half the parameters have no gradient leaves their weights, slots and counts bit for bit."""
    model = net()
    updater = gch.chain(gch.clip_by_norm(1.0), gch.adamw(0.01)).bind(model)
    for rows in data(3):
        updater.update(loss_of(model, rows))
    before, kept = updater.state_dict()["links"]["scale_by_adam"], weights(model)
    for rows in data(3):
        updater.update(model[2](rows.new_ones(5, 4)).square().mean())
    after = updater.state_dict()["links"]["scale_by_adam"]
    for name in ("0.weight", "0.bias"):
        assert torch.equal(dict(model.named_parameters())[name], kept[name])
        assert torch.equal(after["mu"][name], before["mu"][name])
        assert torch.equal(after["nu"][name], before["nu"][name])
    assert after["count"] == {"0.weight": 3, "0.bias": 3, "2.weight": 6, "2.bias": 6}


def test_gradients_from_torch_func():
    """`step(grads=)` takes torch.func's gradients; a parameter not named, or None, has none."""
    ours, theirs = net(), net()
    updater, optimizer = sgd().bind(ours), torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)

    def at(params, rows):
        return (torch.func.functional_call(ours, params, (rows,)) - rows[:, :2].sin()).square().mean()

    for i, rows in enumerate(data(6)):
        grads = torch.func.grad(at)({n: p.detach() for n, p in ours.named_parameters()}, rows)
        optimizer.zero_grad()
        loss_of(theirs, rows).backward()
        if i == 2:
            grads["0.weight"] = theirs[0].weight.grad = None
        if i == 4:
            del grads["2.bias"]
            theirs[2].bias.grad = None
        kept = {n: g.clone() for n, g in grads.items() if g is not None}
        assert updater.step(grads)
        assert all(torch.equal(grads[n], g) for n, g in kept.items())  # they stay the user's
        optimizer.step()
    assert distance(ours, theirs) < 1e-14


def test_given_gradients_are_not_kept_alive():
    """What `step(grads=)` was given may be overwritten afterwards, also inside a window."""
    model, twin = net(), net()
    a, b = sgd(2).bind(model), sgd(2).bind(twin)
    for rows in data(4):
        grads = {n: torch.full_like(p, rows.sum().item()) for n, p in model.named_parameters()}
        b.step({n: g.clone() for n, g in grads.items()})
        a.step(grads)
        for g in grads.values():
            g.fill_(1e9)
    assert same(weights(model), weights(twin))


BAD_GRADS = {
    "unknown": ({"nope": torch.ones(1)}, KeyError, "step: there is no parameter 'nope' to give a gradient to. "),
    "shape": ({"0.bias": torch.ones(3)}, ValueError, r"step: the gradient of '0.bias' must have shape \(4,\), got sha"),
    "number": ({"0.bias": 1.0}, ValueError, r"step: the gradient of '0.bias' must have shape \(4,\), got float\."),
    "closure": (lambda: 1, TypeError, "step: grads must map names to gradients, got function. A closure goes to upda"),
    "list": ([torch.ones(1)], TypeError, "step: grads must map names to gradients, got list"),
    "none": ({"0.bias": None}, RuntimeError, r"step: no bound parameter has a gradient. Call updater.update\(loss\), "),
    "sparse": (
        {"0.weight": torch.ones(4, 3).to_sparse()},
        TypeError,
        "step: the gradient of '0.weight' must be dense or",
    ),
    "integer": ({"0.bias": torch.ones(4, dtype=torch.int64)}, TypeError, "step: the gradient of '0.bias' must be floa"),
    "complex": ({"0.bias": torch.ones(4, dtype=torch.cfloat)}, TypeError, "step: the gradient of '0.bias' must be flo"),
}


@pytest.mark.parametrize("kind", BAD_GRADS)
def test_bad_gradients_are_refused(kind):
    """Wrong `grads` are a sentence that names the parameter; nothing changes, and `last=True` is forgotten."""
    grads, error, sentence = BAD_GRADS[kind]
    model = net()
    updater = sgd(2).bind(model)
    with untouched(model, updater), pytest.raises(error, match=sentence):
        updater.step(grads, last=True)
    assert updater.update(loss_of(model, data(1)[0])).reason == "window"


@pytest.mark.parametrize("first", ["scaled", "true"])
def test_true_gradients_are_not_unscaled(first):
    """`loss.backward(); updater.step()` gives true gradients: amp_scale leaves them, and its scale, alone."""
    ours, theirs = net(), net()
    updater = gch.chain(gch.amp_scale(1024.0, growth_interval=2, always=True), gch.sgd(0.1)).bind(ours)
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1)
    scales = []
    for i, rows in enumerate(data(6)):
        if (i % 2 == 0) == (first == "scaled"):
            updater.update(loss_of(ours, rows))
        else:
            loss_of(ours, rows).backward()
            updater.step()
        scales.append(updater.metrics["scale"])
        optimizer.zero_grad()
        loss_of(theirs, rows).backward()
        optimizer.step()
    assert distance(ours, theirs) < 1e-14
    assert updater.state_dict()["links"]["amp_scale"] == {"scale": 2048.0, "growth_tracker": 1}


def test_accumulate_divides_true_gradients_itself():
    """`loss.backward(); updater.step()` under accumulate(3) is the mean of the three, as with `update`."""
    raw, usual = net(), net()
    a, b = sgd(3).bind(raw), sgd(3).bind(usual)
    for rows in data(7):
        loss_of(raw, rows).backward()
        a.step()
        b.update(loss_of(usual, rows))
    assert distance(raw, usual) < 1e-14
    assert a.flush() and b.flush()
    assert distance(raw, usual) < 1e-14


def test_scaled_and_true_gradients_do_not_mix_in_a_window():
    """A window of both kinds is refused in a sentence, whichever comes first."""
    model = net()
    updater = sgd(3).bind(model)
    sentence = "accumulate: the losses of one window must all go through updater.backward or update, or none. "
    updater.update(loss_of(model, data(1)[0]))
    loss_of(model, data(1)[0]).backward()
    with untouched(model, updater), pytest.raises(RuntimeError, match=sentence):
        updater.step()
    updater.zero_grad()
    loss_of(model, data(1)[0]).backward()
    updater.step()
    with untouched(model, updater), pytest.raises(RuntimeError, match=sentence):
        updater.update(loss_of(model, data(1)[0]))


def test_keep_grads():
    """After the step `.grad` is None; with keep_grads what the chain received, which no slot shares memory with."""
    model, twin = net(), net()
    updater = gch.chain(gch.accumulate(2), gch.amp_scale(4.0, always=True), gch.sgd(0.1, momentum=0.9)).bind(model)
    rows = data(4)
    updater.update(loss_of(model, rows[0]), keep_grads=True)
    assert all(p.grad is None for p in model.parameters())  # parked
    updater.update(loss_of(model, rows[1]), keep_grads=True)
    ((loss_of(twin, rows[0]) + loss_of(twin, rows[1])) / 2).backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, 4 * q.grad, rtol=1e-13, atol=0)
    slots = updater.state_dict()["links"]["trace"]
    for p in model.parameters():
        p.grad.fill_(7.0)
    assert same(updater.state_dict()["links"]["trace"], slots)
    updater.update(loss_of(model, rows[2]))
    updater.update(loss_of(model, rows[3]))
    assert all(p.grad is None for p in model.parameters())


class takes_gradients_as_state(gch.Transform):
    """Keeps the tensors it was given, at some steps, and elsewhere the state it has."""

    descends = False

    every: int = 1

    def init(self, params):
        return Taken(params.zeros_like(), 0)

    def update(self, g, state, ctx):
        return g, Taken(g if state.count % self.every == 0 else state.taken, state.count + 1)


class Taken(gch.State):
    taken: gch.Tensors
    count: int


@pytest.mark.parametrize("every", [1, 2, 3, 100])
@pytest.mark.parametrize("gaps", [False, True], ids=["engine", "reference"])
@pytest.mark.parametrize("k", [0, 2])
def test_a_state_shares_no_memory_with_gradients_that_stay_the_users(every, gaps, k):
    """Whichever steps take one: what the user writes into them afterwards reaches no state."""
    w = nn.Parameter(torch.ones(6, dtype=torch.float64)[:: 2 if gaps else 1])
    link = takes_gradients_as_state(every)
    updater = gch.chain(*([gch.accumulate(k)] if k else []), link, gch.sgd(0.1)).bind({"w": w})
    for number in range(8):
        w.grad = None
        (w * (number + 1)).sum().backward()
        grad = w.grad
        updater.step(keep_grads=True)
        before = updater.state_dict()["links"]
        grad.fill_(7.0)
        after = updater.state_dict()["links"]
        for address, field in (("takes_gradients_as_state", "taken"), *([("accumulate", "window")] if k else [])):
            assert same(before[address][field], after[address][field])
    assert (updater._bound.engine.reason != "") is gaps
