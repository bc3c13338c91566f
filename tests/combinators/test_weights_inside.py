"""Links that own weights inside a branch of partition or a mask: the others become what they would anyway."""

import pytest
import torch
from little import data, distance, loss_of, net, weights

import gradchain as gch

EARLY, LATE = gch.named("0.*"), gch.named("2.*")


class clamped(gch.Transform):
    """A link of a user's that owns its weights, and says nothing of itself."""

    bound: float = 0.2

    def update(self, g, state, ctx):
        new = ctx.new_params(g).select(g.index)
        return gch.Weights(new.clamp(-self.bound, self.bound)), state


class pulled(gch.Transform):
    """One that says what it is."""

    role = "weights"
    descends = False
    per_parameter = True

    def update(self, g, state, ctx):
        new = ctx.new_params(g).select(g.index)
        return gch.Weights(new.clamp(-0.2, 0.2)), state


def clamp(w):
    return w.clamp(-0.2, 0.2)


OWNERS = {
    "project": lambda: gch.project(clamp),
    "a user's": clamped,
    "a user's with a role": pulled,
    "two": lambda: gch.chain(gch.project(clamp), gch.project(lambda w: w * 1.0)),
}
RULES = {
    "sgd": lambda: gch.sgd(0.1, momentum=0.9),
    "adamw": lambda: gch.adamw(0.05, weight_decay=0.1),
}
# (rule for all, what owns the early ones) -> the chain
NESTS = {
    "a branch": lambda rule, own: gch.partition((EARLY, gch.chain(rule(), own())), (gch.rest, rule())),
    "the last branch": lambda rule, own: gch.partition((LATE, rule()), (gch.rest, gch.chain(rule(), own()))),
    "a mask at the end": lambda rule, own: gch.chain(rule(), gch.masked(own(), EARLY)),
    "a branch at the end": lambda rule, own: gch.chain(rule(), gch.partition((EARLY, own()), (gch.rest, gch.chain()))),
    "a branch in a branch": lambda rule, own: gch.partition(
        (gch.everything & EARLY, gch.partition((EARLY, gch.chain(rule(), own())), (gch.rest, rule()))),
        (gch.rest, rule()),
    ),
    "a mask in a branch": lambda rule, own: gch.partition(
        (EARLY, gch.chain(rule(), gch.masked(own(), EARLY))), (gch.rest, rule())
    ),
    "a branch in a mask": lambda rule, own: gch.chain(
        gch.masked(gch.partition((EARLY, gch.chain(rule(), own())), (gch.rest, rule())), gch.everything)
    ),
    "named": lambda rule, own: gch.partition(("first", EARLY, gch.chain(rule(), own())), (gch.rest, rule())),
    "with an average": lambda rule, own: gch.chain(
        gch.partition((EARLY, gch.chain(rule(), own())), (gch.rest, rule())), gch.average_params(0.5)
    ),
    "behind a window": lambda rule, own: gch.chain(
        gch.accumulate(1), gch.partition((EARLY, gch.chain(rule(), own())), (gch.rest, rule()))
    ),
}


def trained(tx, dtype=torch.float64, **options):
    model = net(dtype=dtype)
    updater = tx.bind(model, **options)
    for rows in data(4, dtype=dtype):
        updater.update(loss_of(model, rows))
    return model, updater


def by_hand(rule, dtype=torch.float64):
    """The rule on all, and the clamp written by hand after each update."""
    model = net(dtype=dtype)
    updater = rule().bind(model)
    for rows in data(4, dtype=dtype):
        updater.update(loss_of(model, rows))
        with torch.no_grad():
            for parameter in model[0].parameters():
                parameter.clamp_(-0.2, 0.2)
    return model


CASES = [(nest, rule, torch.float64) for nest in NESTS for rule in RULES]
CASES += [("a branch", "adamw", torch.float32), ("a mask at the end", "adamw", torch.bfloat16)]


@pytest.mark.parametrize(("nest", "rule", "dtype"), CASES)
def test_it_is_the_clamp_by_hand_to_the_bit(nest, rule, dtype):
    expected = by_hand(RULES[rule], dtype)
    assert max(p.abs().max().item() for p in expected[0].parameters()) > 0.19, "the clamp must be at work"
    for own in OWNERS:
        model, _ = trained(NESTS[nest](RULES[rule], OWNERS[own]), dtype)
        assert distance(model, expected) == 0.0, own


@pytest.mark.parametrize("nest", NESTS)
def test_the_engine_runs_it(nest):
    """No reference is needed for links that can be recorded."""
    _, updater = trained(NESTS[nest](RULES["adamw"], clamped))
    assert updater._bound.engine.reason == ""


def test_averages_are_of_the_weights_that_were_written():
    model, updater = trained(gch.chain(NESTS["a branch"](RULES["sgd"], clamped), gch.average_params(0.0)))
    assert all(torch.equal(average, weights(model)[name]) for name, average in updater.averages().items())


def test_a_branch_that_holds_beside_one_that_owns():
    """The held one keeps its weights, to the bit; the owner's are written."""
    model, before = net(), weights(net())
    slow = gch.chain(gch.accumulate(2), gch.sgd(0.1))
    updater = gch.partition((EARLY, gch.chain(gch.sgd(0.1), clamped())), (gch.rest, slow)).bind(model)
    first, second = data(2)
    updater.update(loss_of(model, first))
    after = weights(model)
    assert torch.equal(after["2.weight"], before["2.weight"])
    assert not torch.equal(after["0.weight"], before["0.weight"])
    updater.update(loss_of(model, second))
    assert not torch.equal(weights(model)["2.weight"], before["2.weight"])


def test_a_frozen_parameter_beside_one_that_owns_keeps_its_bits():
    model, before = net(), weights(net())
    updater = gch.partition(
        (EARLY, gch.chain(gch.sgd(0.1), clamped())),
        (gch.rest, gch.chain(gch.freeze(gch.named("2.bias")), gch.sgd(0.1))),
    ).bind(model)
    updater.update(loss_of(model, data(1)[0]))
    assert torch.equal(weights(model)["2.bias"], before["2.bias"])
    assert not torch.equal(weights(model)["2.weight"], before["2.weight"])


def test_in_backward():
    expected, _ = trained(NESTS["a branch"](RULES["adamw"], OWNERS["project"]))
    model, _ = trained(NESTS["a branch"](RULES["adamw"], OWNERS["project"]), in_backward=True)
    assert distance(model, expected) == 0.0


def test_a_pure_run_gives_weights():
    params = gch.Tensors.of({"a": torch.ones(2), "b": torch.ones(2)})
    tx = gch.partition((gch.named("a"), gch.chain(gch.scale(-1.0), clamped())), (gch.rest, gch.scale(-0.5)))
    out, _ = tx.update(params, tx.init(params), gch.Context(params, step=0))
    new = gch.apply_updates(params, out)
    assert new["a"].tolist() == [0.0, 0.0] and new["b"].tolist() == [0.5, 0.5]
