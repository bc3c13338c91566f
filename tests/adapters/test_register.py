"""gch.register: rules by name in configs, and what makes them from a recipe's numbers."""

import json
from typing import Annotated

import pytest
import torch
from torch import nn

import gradchain as gch
from gradchain.adapters import registry

pytestmark = pytest.mark.usefixtures("forgotten")


class Plain(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1, momentum=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * (1 + group["momentum"]) * p.grad)


def one_step(link):
    """What is left of a weight of 1 after a step along a gradient of 1."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    gch.chain(link).bind(model).step({"weight": torch.ones(1, 1).double()})
    return model.weight.item()


def test_an_optimizer_class_by_its_name():
    """In from_torch, in a config there and back, and with schedules on its numbers."""
    assert gch.register("plain")(Plain) is Plain
    link = gch.from_torch(Plain, lr=gch.linear(0.5, 0.0, 2))
    assert link == gch.from_torch("plain", lr=gch.linear(0.5, 0.0, 2))
    assert gch.from_config(json.loads(json.dumps(gch.to_config(link)))) == link
    assert gch.from_config({"link": "plain", "lr": 0.25}) == gch.from_torch(Plain, lr=0.25)
    assert one_step(link) == 0.5


def test_a_transform_class_by_its_name():
    """A config then has the name in place of the module."""

    @gch.register("mine.halve")
    class halve(gch.Transform):
        rate: Annotated[gch.Hyper, "[0, 1]"]

        def update(self, g, state, ctx):
            return -self.rate * g, state

    written = gch.to_config(gch.chain(halve(0.5)))
    assert written["links"] == [{"link": "mine.halve", "rate": 0.5}]
    assert gch.from_config(written) == gch.chain(halve(0.5))


def test_an_alias_by_its_name():
    """With and without parentheses; what it returns must be a link."""

    @gch.register
    def quick(learning_rate, momentum=0.9):
        return gch.sgd(learning_rate, momentum=momentum)

    assert gch.from_config({"link": "quick", "learning_rate": 0.1}) == gch.sgd(0.1, momentum=0.9)
    gch.register("nothing")(lambda: 3)
    with pytest.raises(TypeError, match="'nothing' must make a Transform, got 3"):
        gch.from_config({"link": "nothing"})


def test_a_taken_name():
    """The same object again is no error; another is, and a name of ours is."""

    def quick(learning_rate):
        return gch.sgd(learning_rate)

    gch.register()(quick)
    gch.register()(quick)
    with pytest.raises(ValueError, match=r"^register: 'quick' is taken by .* another name: register\('quick2'\)\.$"):
        gch.register("quick")(Plain)
    with pytest.raises(ValueError, match="'scale' is taken"):
        gch.register("scale")(quick)
    for stray in (3, nn.Linear):
        with pytest.raises(TypeError, match="takes a function, a Transform class or an Optimizer class"):
            gch.register("stray")(stray)
    assert gch.from_config({"link": "quick", "learning_rate": 0.1}) == gch.sgd(0.1)


def test_a_builder_takes_what_recipes_call_the_numbers():
    """lr, momentum and weight_decay go to the arguments that they are."""

    @gch.register
    def quick(learning_rate, b1=0.9, weight_decay=0.0):
        return gch.adamw(learning_rate, b1=b1, weight_decay=weight_decay)

    made = registry.builder("quick")(lr=gch.constant(0.1), momentum=0.8, weight_decay=0.3)
    assert made == gch.adamw(gch.constant(0.1), b1=0.8, weight_decay=0.3)
    gch.register("plain")(Plain)
    assert one_step(registry.builder("plain")(lr=lambda t: 0.25, momentum=1.0)) == 0.5
    falling = gch.linear(0.9, 0.1, 5)
    adamw = gch.from_torch("AdamW", lr=0.1, betas=(falling, 0.999))
    assert registry.builder("AdamW")(lr=0.1, momentum=falling) == adamw
    assert registry.builder("SGD")(lr=0.1, momentum=0.5) == gch.from_torch("SGD", lr=0.1, momentum=0.5)
    with pytest.raises(TypeError, match=r"^Adadelta: takes no momentum\. It takes: lr, rho"):
        registry.builder("Adadelta")(lr=0.1, momentum=0.5)
    with pytest.raises(KeyError, match="no optimizer 'Nobody'"):
        registry.builder("Nobody")
