"""A selector is asked over all parameters, wherever the link that holds it stands: it may take all of its branch."""

import functools

import pytest
import torch
from torch import nn

import gradchain as gch


class Net(nn.Module):
    """Owners, depths, names and shapes for every kind of selector."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 3), nn.Conv1d(3, 3, 1, groups=3, bias=False), nn.Linear(3, 3))
        self.head = nn.Linear(3, 2)

    def forward(self, rows):
        body = self.backbone
        return self.head(body[2](body[1](body[0](rows)[..., None])[..., 0]))


def net():
    torch.manual_seed(0)
    return Net().double()


BACKBONE = gch.named("backbone.*")
# each takes all of the backbone and nothing else, or more than it, or a part of it, or nothing of it
SELECTORS = {
    "the same": BACKBONE,
    "by what it is not": ~gch.named("head.*"),
    "everything": gch.everything,
    "rest": gch.rest,
    "both": BACKBONE & gch.everything,
    "either": gch.named("backbone.0.*", "backbone.2.*") | gch.depthwise,
    "a function": lambda name, parameter, owner: name.startswith("backbone"),
    "owner": gch.owner(nn.Linear, nn.Conv1d),
    "shape": gch.min_ndim(1),
    "part by shape": gch.ndim(3),
    "part by kind": gch.bias,
    "part by owner": gch.depthwise,
    "part by name": gch.named("backbone.0.*"),
    "none of it": gch.named("head.*"),
}
# a link that takes a selector -> the link with it; each is followed by plain descent
LINKS = {
    "masked": lambda s: gch.masked(gch.scale(0.5), s),
    "masked twice": lambda s: gch.masked(gch.masked(gch.trace(0.9), s), s),
    "freeze": lambda s: gch.freeze(s),
    "freeze for a while": lambda s: gch.freeze(s, until=1),
    "clip": lambda s: gch.clip_by_norm(0.01, per=[s]),
    "multiply": lambda s: gch.scale(gch.multiply(0.5, (s, 0.1))),
    "multiply a schedule": lambda s: gch.scale(gch.multiply(gch.linear(0.5, 0.1, 2), (s, 0.1))),
    "choose": lambda s: gch.scale(gch.choose((s, 0.1), rest=0.5)),
    "first": lambda s: gch.scale(gch.multiply(0.5, gch.first((s, 0.1)))),
    "decay": lambda s: gch.add_decayed_weights(gch.multiply(0.1, (s, 0.0))),
    "partition": lambda s: gch.partition((s, gch.scale(0.5)), (gch.rest, gch.scale(0.1))),
    "mask of an alias": lambda s: gch.chain(*gch.adamw(0.1, weight_decay=0.1, mask=s).links[:-1]),
}
# how deep: what is put around the link so that it stands in the backbone's branch
NESTS = {
    "branch": lambda link, rest: gch.partition((BACKBONE, link), (gch.rest, rest)),
    "last branch": lambda link, rest: gch.partition((gch.named("head.*"), rest), (gch.rest, link)),
    "mask": lambda link, rest: gch.chain(gch.masked(link, BACKBONE), gch.masked(rest, ~BACKBONE)),
    "branch in a branch": lambda link, rest: gch.partition(
        (BACKBONE, gch.partition((~gch.named("head.*"), link), (gch.rest, rest))), (gch.rest, rest)
    ),
    "mask in a branch": lambda link, rest: gch.partition((BACKBONE, gch.masked(link, BACKBONE)), (gch.rest, rest)),
    "branch in a mask": lambda link, rest: gch.chain(
        gch.masked(gch.partition((BACKBONE, link), (gch.rest, rest)), BACKBONE), gch.masked(rest, ~BACKBONE)
    ),
    "three masks": lambda link, rest: gch.chain(
        gch.masked(gch.masked(gch.masked(link, BACKBONE), BACKBONE), BACKBONE), gch.masked(rest, ~BACKBONE)
    ),
}


def trained(tx):
    model = net()
    updater = gch.chain(tx, gch.scale_by_learning_rate(0.1)).bind(model)
    rows = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)
    for _ in range(2):
        updater.update(model(rows).square().mean())
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@functools.cache
def in_one_mask(link, selector):
    return trained(gch.masked(LINKS[link](SELECTORS[selector]), BACKBONE))


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("nest", NESTS)
def test_however_deep_a_link_stands_it_is_the_link_in_one_mask(link, nest):
    for name, selector in SELECTORS.items():
        inside = trained(NESTS[nest](LINKS[link](selector), gch.trace(0.0)))  # the head: the identity, with a state
        for parameter, weight in in_one_mask(link, name).items():
            assert torch.equal(inside[parameter], weight), (name, parameter)


@pytest.mark.parametrize("link", ["masked", "masked twice", "freeze", "freeze for a while", "clip"])
@pytest.mark.parametrize("selector", SELECTORS)
def test_a_selector_in_a_mask_is_that_selector_and_the_masks_outside(link, selector):
    """These pass what they do not select: nothing but names decides, so they need no mask."""
    both = gch.everything & SELECTORS[selector] & BACKBONE
    if selector == "none of it":
        expected = trained(gch.trace(0.0))
    else:
        expected = trained(LINKS[link](both))
    for parameter, weight in in_one_mask(link, selector).items():
        assert torch.equal(weight, expected[parameter]), parameter


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("nest", NESTS)
def test_what_matches_nothing_of_the_model_is_refused_however_deep(link, nest):
    for nothing in (gch.named("neck.*"), ~gch.everything, lambda name, parameter, owner: False):
        with pytest.raises(ValueError, match="matches none of the"):
            gch.chain(NESTS[nest](LINKS[link](nothing), gch.trace(0.0)), gch.sgd(0.1)).bind(net())
