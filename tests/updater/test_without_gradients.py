"""Chains that only average the weights: something else moves them, and `step({})` follows."""

import pytest
import torch
from little import data, distance, loss_of, net, untouched, weights

import gradchain as gch

EARLY = gch.named("0.*")


CHAINS = {
    "an average": lambda: gch.average_params(0.9),
    "an average from the first": lambda: gch.average_params(0.9, start=1),
    "a mean of some": lambda: gch.average_params("mean", start=2, every=2),
    "a schedule": lambda: gch.average_params(gch.schedules.ema_warmup(0.9)),
    "with buffers": lambda: gch.average_params(0.9, buffers="average"),
    "in float32": lambda: gch.average_params(0.9, dtype=torch.float32),
    "two averages": lambda: gch.chain(("fast", gch.average_params(0.5)), ("slow", gch.average_params(0.99))),
}


def behind_an_optimizer(tx, updates=5, stray=False, step=lambda updater: updater.step({})):
    """Another updater moves the weights, as any optimizer does, and the one that averages follows."""
    model = net()
    updater, optimizer = gch.chain(tx).bind(model), gch.sgd(0.1).bind(model)
    for rows in data(updates):
        optimizer.update(loss_of(model, rows), keep_grads=stray)
        kept = [p.grad for p in model.parameters()]
        assert (kept[0] is not None) == stray
        assert step(updater)
        assert all(a is b.grad for a, b in zip(kept, model.parameters(), strict=True))
    return model, updater


STEPS = {
    "nothing": lambda u: u.step({}),
    "no argument": lambda u: u.step(),
    "all absent": lambda u: u.step({"0.weight": None}),
    "the last": lambda u: u.step({}, last=True),
}


@pytest.mark.parametrize("stray", [False, True], ids=["no gradients", "another's gradients"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", CHAINS)
def test_it_averages_as_behind_our_own_optimizer(kind, step, stray):
    """To the bit; and gradients that lie there for somebody else stay."""
    model, updater = behind_an_optimizer(CHAINS[kind](), stray=stray, step=STEPS[step])
    other = net()
    whole = gch.chain(gch.sgd(0.1), CHAINS[kind]()).bind(other)
    for rows in data(5):
        whole.update(loss_of(other, rows))
    assert distance(model, other) == 0.0
    assert updater.num_updates == whole.num_updates == 5
    for name, _ in updater.chain.named:
        mine, theirs = updater.averages(name), whole.averages(name)
        assert all(torch.equal(mine[n], theirs[n]) for n in theirs)
        assert any(not torch.equal(mine[n], w) for n, w in weights(model).items())


def test_it_goes_on_from_a_file(tmp_path):
    model, updater = behind_an_optimizer(gch.average_params(0.9))
    updater.save(tmp_path / "ema.pt")
    again = net()
    second = gch.average_params(0.9).bind(again)
    second.load(tmp_path / "ema.pt")
    second.step({})
    updater.step({})
    assert all(torch.equal(a, second.averages()[n]) for n, a in updater.averages().items())
    assert distance(model, again) == 0.0


def test_frozen_weights_are_averaged_too():
    model = net()
    model[0].requires_grad_(False)
    updater = gch.average_params(0.5).bind(model)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    updater.step({})
    torch.testing.assert_close(updater.averages()["0.weight"], net()[0].weight.detach() + 0.5)


@pytest.mark.parametrize("kind", ["an average", "two averages"])
def test_gradients_are_refused_and_nothing_is_changed(kind):
    model = net()
    updater = gch.chain(CHAINS[kind]()).bind(model)
    loss = loss_of(model, data(1)[0])
    calls = [
        lambda: updater.update(loss), lambda: updater.backward(loss), lambda: updater.update(lambda: loss),
        lambda: updater.step({"0.bias": torch.ones(4).double()}),
    ]  # fmt: skip
    for call in calls:
        with untouched(model, updater), pytest.raises(RuntimeError, match=r"takes no gradients.*updater.step\(\{\}\)"):
            call()


@pytest.mark.parametrize(
    "links",
    [
        [gch.masked(gch.sgd(0.1), EARLY), gch.average_params(0.9)],
        [gch.clip_by_norm(1.0), gch.average_params(0.9)],
        [gch.trace(0.9)],
        [gch.project(torch.sigmoid)],
        [],
    ],
)
def test_a_chain_with_anything_else_must_still_descend(links):
    with pytest.raises(ValueError, match="would climb"):
        gch.chain(*links).bind(net())


@pytest.mark.parametrize("tx", [gch.sgd(0.1), gch.chain(gch.adamw(0.1), gch.average_params(0.9))])
def test_a_chain_that_takes_gradients_still_needs_some(tx):
    with pytest.raises(RuntimeError, match="no bound parameter has a gradient"):
        tx.bind(net()).step({})
