"""What goes wrong in an update leaves weights, slots and clocks as they were, and says what it drops."""

from contextlib import nullcontext

import pytest
import torch
from little import BoomError, Fuse, boom, data, loss_of, net, same, untouched, weights
from torch import nn

import gradchain as gch


def sgd(k=0):
    """Momentum SGD, with a window of `k` in front where k is given."""
    return gch.chain(*([gch.accumulate(k)] if k else []), gch.sgd(0.1, momentum=0.9))


# losses that are refused


def nan_loss(model, rows):
    return loss_of(model, rows) * torch.nan


BAD_LOSSES = {
    "nan": (nan_loss, FloatingPointError, "update: loss is nan; weights and state are untouched. To skip such updates"),
    "shape": (lambda m, r: m(r), ValueError, r"update: loss must be a scalar, got shape \(5, 2\). Reduce it: loss.mea"),
    "graph": (lambda m, r: loss_of(m, r).detach(), ValueError, "update: loss has no graph: it was computed under tor"),
    "number": (lambda m, r: 1.0, TypeError, "update: loss must be a scalar tensor or a closure that returns one, got"),
    "none": (lambda m, r: None, TypeError, "update: loss must be a scalar tensor or a closure that returns one, got N"),
    "complex": (lambda m, r: loss_of(m, r) * 1j, TypeError, "update: loss must be real, got torch.complex128. "),
}


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("kind", BAD_LOSSES)
def test_bad_losses_are_refused_before_anything_happens(kind, closure):
    """A NaN, non-scalar, graphless or wrong loss is a sentence; the open window stays, and goes on."""
    make, error, sentence = BAD_LOSSES[kind]
    ours, theirs = net(), net()
    a, b = sgd(3).bind(ours), sgd(3).bind(theirs)
    rows = data(3)
    for i in range(3):
        if i == 1:
            loss = make(ours, rows[1])
            with untouched(ours, a), pytest.raises(error, match=sentence):
                a.update((lambda loss=loss: loss) if closure else loss)
        a.update(loss_of(ours, rows[i]))
        b.update(loss_of(theirs, rows[i]))
    assert same(weights(ours), weights(theirs))


def test_a_loss_that_reaches_no_parameter():
    """A loss of another model is an error that says so, and drops the open window with a warning."""
    model, other = net(), net(1)
    updater = sgd(3).bind(model)
    rows = data(2)
    sentence = "update: the loss reaches none of the bound parameters. Was it computed from another model, or under "
    with untouched(model, updater), pytest.raises(RuntimeError, match=sentence):
        updater.update(loss_of(other, rows[0]))
    updater.update(loss_of(model, rows[0]))
    kept = weights(model)
    with (
        pytest.warns(UserWarning, match="backward failed: the open window of one micro-batch was dropped."),
        pytest.raises(RuntimeError, match=sentence),
    ):
        updater.update(loss_of(other, rows[0]))
    assert same(weights(model), kept)
    assert not updater.flush()


@pytest.mark.parametrize("micro", [0, 1, 2])
def test_a_backward_that_raises_halfway(micro):
    """Weights, slots and clocks stay; the open window is dropped and that is said; training goes on as afresh."""
    model, twin = net(), net()
    updater, other = gch.chain(gch.accumulate(3), gch.adam(0.1)).bind(model), None
    rows = data(9)
    for r in rows[:3]:
        updater.update(loss_of(model, r))
    other = gch.chain(gch.accumulate(3), gch.adam(0.1)).bind(twin)
    for r in rows[:3]:
        other.update(loss_of(twin, r))
    for r in rows[3 : 3 + micro]:
        updater.update(loss_of(model, r))
    kept, slots = weights(model), updater.state_dict()["links"]["scale_by_adam"]
    bad = loss_of(nn.Sequential(model[0], model[1], Booming(), model[2]), rows[0]) + loss_of(model, rows[0])
    expected = {0: None, 1: "one micro-batch was", 2: "2 micro-batches was"}[micro]
    with _warns(expected and f"backward failed: the open window of {expected} dropped."), pytest.raises(BoomError):
        updater.update(bad)
    assert same(weights(model), kept)
    assert same(updater.state_dict()["links"]["scale_by_adam"], slots)
    assert (updater.num_updates, updater.num_micro) == (1, 3 + micro)
    assert all(p.grad is None for p in model.parameters())
    for r in rows[6:]:
        updater.update(loss_of(model, r))
        other.update(loss_of(twin, r))
    assert same(weights(model), weights(twin))


class Booming(nn.Module):
    """A layer whose backward raises."""

    def forward(self, x):
        return boom.apply(x)


def _warns(text):
    return pytest.warns(UserWarning, match=text) if text else nullcontext()


def test_zero_grad_drops_the_window():
    """`updater.zero_grad()` drops gradients and the open window; the next micro-batch opens one."""
    model, twin = net(), net()
    updater, other = sgd(2).bind(model), sgd(2).bind(twin)
    rows = data(5)
    updater.update(loss_of(model, rows[0]))
    updater.backward(loss_of(model, rows[1]))
    updater.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    assert not updater.flush()
    for r in rows[2:4]:
        updater.update(loss_of(model, r))
        other.update(loss_of(twin, r))
    assert same(weights(model), weights(twin))
    assert (updater.num_updates, updater.num_micro) == (1, 3)


@pytest.mark.parametrize("k", [0, 2])
@pytest.mark.parametrize("where", ["front", "end"])
@pytest.mark.parametrize("by", ["update", "step"])
def test_a_link_that_raises_leaves_everything(k, where, by):
    """A user's link that raises: weights, every slot, counts, clocks and the loss scale are as they were."""
    fuse = Fuse()
    link = gch.stateless(fuse)
    links = [gch.amp_scale(8.0, growth_interval=1, always=True), gch.adam(0.1), gch.average_params(0.9)]
    links.insert(1 if where == "front" else 2, link)
    model = net()
    for p in model[2].parameters():
        p.requires_grad_(False)
    updater = gch.chain(*([gch.accumulate(k)] if k else []), *links).bind(model)
    rows = data(k or 1)
    for _ in range(2):
        for r in rows:
            updater.update(loss_of(model, r))
    model.requires_grad_(True)  # the state of these would begin with this update
    for r in rows[:-1]:
        updater.update(loss_of(model, r))
    before = updater.state_dict()
    kept = weights(model)
    fuse.lit = True
    with _warns("update failed: the open window of one micro-batch was dropped." if k and by == "update" else None):
        with pytest.raises(BoomError):
            if by == "update":
                updater.update(loss_of(model, rows[-1]))
            else:
                updater.backward(loss_of(model, rows[-1]))
                updater.step()
    updater.zero_grad()
    after = updater.state_dict()
    assert same(weights(model), kept)
    for state in (before, after):  # the window was dropped
        state["links"].pop("accumulate", None)
        state["inventory"] = [path for path in state["inventory"] if path[:2] != ["links", "accumulate"]]
    assert same(before, after)
    fuse.lit = False
    for r in rows:
        assert updater.update(loss_of(model, r)).reason in ("window", "applied")
    assert updater.num_updates == 3


BAD_UPDATES = {
    "shape": lambda g, w: g.map(lambda t: t) * 1.0 + gch.Tensors.of({n: t.new_ones(2, *t.shape) for n, t in g.items()}),
    "names": lambda g, w: gch.Tensors.of({"x." + n: t for n, t in g.items()}),
}


@pytest.mark.parametrize("kind", BAD_UPDATES)
def test_updates_that_do_not_fit_the_weights(kind):
    """Updates of another shape or name are refused before any weight is written."""
    model = net()
    updater = gch.chain(gch.stateless(BAD_UPDATES[kind]), gch.scale_by_learning_rate(0.1)).bind(model)
    with untouched(model, updater), pytest.raises(ValueError, match="update: the chain returned an update for "):
        updater.update(loss_of(model, data(1)[0]))
