"""freeze: what it takes out, for how long, and how that differs from a rate or a gradient of zero."""

import pytest
import torch
from one_link import draw, once

import gradchain as gch
from gradchain import optimizers
from gradchain.combinators import freeze
from gradchain.transforms import add_decayed_weights


def test_freeze_takes_members_out_until():
    g, head = draw(0), gch.named("head.*")
    for step, names in ((0, 3), (1, 3), (2, 4), (3, 4)):
        out, _ = once(freeze(head, until=2), g, step=step)
        assert len(out) == names
        assert ("head.weight" in out) == (step >= 2)
    assert "head.weight" not in once(freeze(head), g, step=10**9)[0]


def test_frozen_parameters_keep_weight_moments_and_count():
    params = draw(0)
    tx = gch.chain(freeze(gch.named("head.*"), until=2), optimizers.adamw(0.1))
    state, weights = tx.init(params), params
    for step in range(3):
        updates, state = tx.update(draw(step), state, gch.Context(weights, step=step))
        weights = gch.apply_updates(weights, updates)
        adam = state.links["scale_by_adam"]
        assert adam.count.of("head.weight") == max(0, step - 1)
        assert adam.count.of("scale") == step + 1
        assert torch.equal(weights["head.weight"], params["head.weight"]) == (step < 2)
        assert bool(adam.mu["head.weight"].any()) == (step == 2)


def test_the_three_meanings_of_frozen_differ_as_documented():
    until, head = 3, gch.named("head.*")

    def steps(*links):
        weights = draw(0)
        tx = gch.chain(*links)
        state = tx.init(weights)
        for step in range(6):
            updates, state = tx.update(draw(step), state, gch.Context(weights, step=step))
            weights = gch.apply_updates(weights, updates)
        return weights["head.weight"]

    def twin(kind):
        weight = torch.nn.Parameter(draw(0)["head.weight"].clone())
        optimizer = torch.optim.AdamW([weight], lr=0.1)
        for step in range(6):
            frozen = step < until
            optimizer.param_groups[0]["lr"] = 0.0 if frozen and kind == "rate" else 0.1
            weight.grad = draw(step)["head.weight"].clone()
            if frozen and kind == "zero":
                weight.grad.zero_()
            if frozen and kind == "absent":
                weight.grad = None
            optimizer.step()
        return weight.detach()

    off = gch.masked(gch.scale(lambda step: float(step >= until)), head)
    rule = gch.scale_by_adam(), add_decayed_weights(0.01)
    lr = gch.scale_by_learning_rate(0.1)
    found = {
        "absent": steps(freeze(head, until=until), *rule, lr),
        "rate": steps(*rule, off, lr),
        "zero": steps(off, *rule, lr),
    }
    for kind, weight in found.items():
        torch.testing.assert_close(weight, twin(kind), rtol=1e-12, atol=0)
    assert not torch.allclose(found["absent"], found["rate"])
    assert not torch.allclose(found["absent"], found["zero"])


@pytest.mark.parametrize(
    ("until", "kind", "sentence"),
    [
        (-1, ValueError, "freeze: until must be at least 0, got -1."),
        (1.5, TypeError, "freeze: until must be a number of applied updates or None, got 1.5."),
        (True, TypeError, "freeze: until must be a number of applied updates or None, got True."),
    ],
)
def test_freeze_refuses(until, kind, sentence):
    with pytest.raises(kind) as caught:
        freeze(gch.bias, until=until)
    assert str(caught.value) == sentence
