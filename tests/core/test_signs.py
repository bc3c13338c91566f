"""Which way a chain goes: what flips the sign by a schedule, or leaves it by request, binds and is right."""

import numpy as np
import pytest
import torch
from little import data, distance, loss_of, net

import gradchain as gch


def table(step):
    return [-0.1, -0.2, -0.05][step]


def not_yet(step):
    raise AttributeError("the trainer has no rate yet")


# each is below 0 where it is not 0, however it is written
NEGATIVE = {
    "Optax's own form": lambda step: -1e-3,
    "by step": lambda step: -0.1 / (1 + step),
    "minus a schedule": -gch.cosine(0.1, 0.0, 100),
    "a schedule of negatives": gch.linear(-0.1, -0.01, 5),
    "a warmup from 0": gch.linear(0.0, -0.1, 3),
    "a late start": gch.join((0, 2, gch.constant(0.0)), (2, None, gch.constant(-0.1))),
    "times a number": -1.0 * gch.cosine(0.1, 0.01, 5),
    "in epochs": gch.schedules.per_epoch(gch.linear(-0.1, -0.01, 5), 2),
    "by a clock": gch.by("epoch", gch.linear(-0.1, -0.01, 5)),
    "a table that ends": table,
    "numpy's": lambda step: np.float32(-0.1),
    "a 0-d array": lambda step: np.array(-0.1),
    "a tensor's": lambda step: torch.tensor(-0.1),
    "a tensor of one": lambda step: torch.tensor([-0.1]),
    "an int": lambda step: -1,
    "a number": -0.1,
    "numpy's number": np.float64(-0.1),
}
POSITIVE = {name: (lambda step, f=f: -f(step)) if not isinstance(f, gch.schedules.Schedule) else -f
            for name, f in NEGATIVE.items() if callable(f)} | {"a number": 0.1}  # fmt: skip
# of these nobody knows at bind which way they go
UNKNOWN = {
    "not there yet": not_yet,
    "of both signs": lambda step: (-1) ** step * 0.1,
    "nothing": gch.constant(0.0),
    "a tensor": torch.tensor(-0.1),
    "numbers per parameter": gch.multiply(-0.1, (gch.named("0.*"), -1.0)),
    "curves per parameter": gch.choose((gch.named("0.*"), gch.linear(0.1, 0.0, 5)), rest=-0.1),
}
LINKS = {"scale_by_schedule": gch.scale_by_schedule, "scale": gch.scale}


def trained(tx, updates=3):
    model = net()
    updater = tx.bind(model)
    for rows in data(updates):
        updater.update(loss_of(model, rows))
    return model


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("kind", NEGATIVE)
def test_a_negative_schedule_descends_as_a_rate_of_its_size_does(link, kind):
    given = NEGATIVE[kind]
    rate = -given if isinstance(given, (gch.schedules.Schedule, float)) else lambda step: -float(given(step))
    mine = trained(gch.chain(gch.scale_by_adam(), LINKS[link](given)))
    assert distance(mine, trained(gch.adam(rate))) < 1e-15


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("kind", POSITIVE)
def test_a_positive_schedule_is_still_no_descent(link, kind):
    with pytest.raises(ValueError, match="would climb: nothing on the way flips the sign"):
        gch.chain(gch.scale_by_adam(), LINKS[link](POSITIVE[kind])).bind(net())
    gch.chain(gch.scale_by_adam(), LINKS[link](POSITIVE[kind]), gch.scale_by_learning_rate(0.1)).bind(net())


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_schedule_of_unknown_sign_is_trusted(link, kind):
    gch.chain(gch.scale_by_adam(), LINKS[link](UNKNOWN[kind])).bind(net())
    gch.chain(LINKS[link](UNKNOWN[kind]), gch.sgd(0.1)).bind(net())


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("kind", NEGATIVE)
def test_two_signs_are_refused_with_the_way_to_climb_on_purpose(link, kind):
    with pytest.raises(ValueError, match=r"flipped 2 times.*flip_sign=False"):
        gch.chain(LINKS[link](NEGATIVE[kind]), gch.sgd(0.1)).bind(net())


WAYS = {
    "alone": lambda up: up,
    "behind moments": lambda up: gch.chain(gch.scale_by_adam(), up),
    "in a branch": lambda up: gch.partition((gch.named("0.*"), up), (gch.rest, up)),
    "in masks": lambda up: gch.chain(gch.masked(up, gch.named("0.*")), gch.masked(up, gch.named("2.*"))),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rate", [0.1, gch.linear(0.1, 0.0, 5), torch.tensor(0.1), gch.multiply(0.1, (gch.bias, 0.5))])
def test_a_rate_that_keeps_the_sign_climbs(way, rate):
    """`flip_sign=False` alone is what the same chain is down, on minus the loss."""
    up, down = net(), net()
    climbs = WAYS[way](gch.scale_by_learning_rate(rate, flip_sign=False)).bind(up)
    falls = WAYS[way](gch.scale_by_learning_rate(rate)).bind(down)
    for rows in data(3):
        climbs.update(loss_of(up, rows))
        falls.update(-loss_of(down, rows))
    assert distance(up, down) == 0.0
    assert distance(up, net()) > 1e-3


def test_one_player_climbs_and_one_descends():
    """A saddle point, with Lagrange multipliers as parameters that climb."""
    w, m = torch.tensor([3.0], requires_grad=True), torch.tensor([0.0], requires_grad=True)
    up = gch.scale_by_learning_rate(0.1, flip_sign=False)
    updater = gch.partition((gch.named("w"), gch.sgd(0.1)), (gch.rest, up)).bind({"w": w, "m": m})
    for _ in range(500):
        updater.update((w**2 + m * (1 - w)).sum())  # the least w² with w = 1
    torch.testing.assert_close([w.detach(), m.detach()], [torch.tensor([1.0]), torch.tensor([2.0])])
