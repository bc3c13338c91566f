"""The checks of gradchain/core/checks.py: one test per rule, with its whole sentence; and chains that must pass."""

import warnings

import pytest
import torch
from little import net
from torch import nn

import gradchain as gch

LR = gch.scale_by_learning_rate(0.1)
EARLY, LATE = gch.named("0.*"), gch.named("2.*")


ANEW = "it puts a gradient evaluated anew in place of what it is given, so what"


class anew(gch.Transform):
    """A link of a user's that says what it does."""

    descends = False
    role = "gradient"

    def update(self, g, state, ctx):
        _, u = ctx.evaluate(ctx.params)
        return u, state


def bound(*links, **options):
    return gch.chain(*links).bind(net(), **options)


REFUSED = {
    "no sign": (
        [gch.scale_by_adam()],
        "chain: 4 parameters, first '0.weight', would climb: nothing on the way flips the sign. End with "
        "scale_by_learning_rate(…) for them too, or leave them alone with freeze(selector).",
    ),
    "masked optimizer": (
        [gch.masked(gch.adamw(0.1), EARLY)],
        "chain: 2 parameters, first '2.weight', would climb: nothing on the way flips the sign. End with "
        "scale_by_learning_rate(…) for them too, or leave them alone with freeze(selector).",
    ),
    "branches without a sign": (
        [gch.partition((EARLY, gch.scale_by_adam()), (gch.rest, gch.chain(gch.scale_by_lion(), gch.scale(2.0))))],
        "chain: 2 parameters, first '0.weight', would climb: nothing on the way flips the sign. End with "
        "scale_by_learning_rate(…) for them too, or leave them alone with freeze(selector).",
    ),
    "one branch without a sign": (
        [gch.partition((EARLY, gch.adam(0.1)), (gch.rest, gch.scale_by_adam()))],
        "chain: 2 parameters, first '2.weight', would climb: nothing on the way flips the sign. End with "
        "scale_by_learning_rate(…) for them too, or leave them alone with freeze(selector).",
    ),
    "frozen in a mask": (
        [gch.masked(gch.freeze(gch.everything), EARLY), gch.masked(gch.sgd(0.1), EARLY)],
        "chain: 2 parameters, first '2.weight', would climb: nothing on the way flips the sign. End with "
        "scale_by_learning_rate(…) for them too, or leave them alone with freeze(selector).",
    ),
    "one parameter": (
        [gch.masked(LR, ~gch.named("2.bias"))],
        "chain: parameter '2.bias' would climb: nothing on the way flips the sign. End with "
        "scale_by_learning_rate(…) for them too, or leave them alone with freeze(selector).",
    ),
    "two learning rates": (
        [gch.adam(0.1), LR],
        "chain: 4 parameters, first '0.weight', would pass two learning rates, scale_by_learning_rate and "
        "scale_by_learning_rate#2. Keep one; multiply and choose make it differ from "
        "parameter to parameter.",
    ),
    "two learning rates on some": (
        [gch.partition((EARLY, gch.adam(0.1)), (gch.rest, gch.scale_by_adam())), LR],
        "chain: 2 parameters, first '0.weight', would pass two learning rates, partition/branch/scale_by_learning_rate "
        "and scale_by_learning_rate. Keep one; multiply and choose make it differ from "
        "parameter to parameter.",
    ),
    "sign twice": (
        [gch.scale(-1.0), gch.scale_by_adam(), LR],
        "chain: 4 parameters, first '0.weight', would climb: the sign is flipped 2 times, by scale and "
        "scale_by_learning_rate. Keep one; to climb on purpose write scale_by_learning_rate(…, flip_sign=False).",
    ),
    "clip before unscale": (
        [gch.clip_by_norm(1.0), gch.amp_scale(always=True), LR],
        "chain: clip_by_norm comes before amp_scale, so it would clip gradients that still carry the loss scale. "
        "Put it after.",
    ),
    "decay after rate": (
        [gch.scale_by_adam(), LR, gch.add_decayed_weights(0.1)],
        "chain: add_decayed_weights comes after scale_by_learning_rate: the decay would be added to the step with the "
        "wrong sign and not be multiplied by the learning rate. Put it before.",
    ),
    "decay after a sign by hand": (
        [gch.scale_by_adam(), gch.scale_by_schedule(gch.constant(0.1)), gch.scale(-1.0), gch.add_decayed_weights(0.1)],
        "chain: add_decayed_weights comes after scale: the decay would be added to the step with the wrong sign. "
        "Put it before.",
    ),
    "decay after a negative schedule": (
        [gch.scale_by_schedule(gch.linear(-0.1, -0.01, 10)), gch.masked(gch.add_decayed_weights(0.1), EARLY)],
        "chain: masked/add_decayed_weights comes after scale_by_schedule: the decay would be added to the step with "
        "the wrong sign. Put it before.",
    ),
    "average first": (
        [gch.average_params(0.9), LR],
        "chain: average_params averages weights that are not final, but scale_by_learning_rate comes after it. "
        "Put average_params after that.",
    ),
    "average before project": (
        [LR, gch.average_params(0.9), gch.project(torch.sigmoid)],
        "chain: average_params averages weights that are not final, but project comes after it. "
        "Put average_params after that.",
    ),
    "project first": (
        [gch.project(torch.sigmoid), LR],
        "chain: project owns the weights, but scale_by_learning_rate comes after it. Put project after that.",
    ),
    "state before a holder": (
        [gch.trace(0.9), gch.accumulate(2), LR],
        "chain: trace comes before accumulate, which may hold the chain: it would advance although nothing is applied. "
        "Put accumulate before it.",
    ),
    "state before a gate": (
        [gch.scale_by_adam(), gch.skip_nonfinite(), LR],
        "chain: scale_by_adam comes before skip_nonfinite, which may hold the chain: it would advance although nothing "
        "is applied. Put skip_nonfinite before it.",
    ),
    "state before a branch that holds": (
        [gch.trace(0.9), gch.partition((EARLY, gch.accumulate(2)), (gch.rest, gch.scale(1.0))), LR],
        "chain: trace comes before partition/branch/accumulate, which may hold the chain: it would advance although "
        "nothing is applied. Put partition/branch/accumulate before it.",
    ),
    "unscale inside": (
        [gch.masked(gch.amp_scale(always=True), EARLY), LR],
        "chain: masked/amp_scale touches the loss. Put it in the outermost chain.",
    ),
    "project in a branch first": (
        [gch.partition((EARLY, gch.chain(gch.project(torch.sigmoid), LR)), (gch.rest, LR))],
        "chain: partition/branch/project owns the weights, but partition/branch/scale_by_learning_rate comes after it. "
        "Put partition/branch/project after that.",
    ),
    "project in a mask, then others": (
        [LR, gch.masked(gch.project(torch.sigmoid), EARLY), gch.masked(gch.trace(0.9), LATE)],
        "chain: masked/project owns the weights, but masked#2/trace comes after it. Put masked/project after that.",
    ),
    "average inside": (
        [gch.partition((EARLY, gch.chain(LR, gch.average_params(0.9))), (gch.rest, LR))],
        "chain: partition/branch/average_params averages the final weights. Put it in the outermost chain.",
    ),
    "holder in a mask": (
        [gch.masked(gch.accumulate(2), EARLY), LR],
        "chain: masked/accumulate may hold the chain, which only a link of the outermost chain or of a branch of "
        "partition can do. Move it there.",
    ),
    "uphill of a step": (
        [gch.sgd(0.1), gch.sam(0.05)],
        f"chain: sam comes after scale_by_learning_rate: {ANEW} scale_by_learning_rate makes would be lost and the "
        "weights would climb. Put sam before it.",
    ),
    "uphill of what a rule made": (
        [gch.scale_by_adam(), gch.rules.asam(), LR],
        f"chain: asam comes after scale_by_adam: {ANEW} scale_by_adam makes would be lost. Put asam before it.",
    ),
    "uphill of a memory": (
        [gch.trace(0.9), gch.sam(), LR], f"chain: sam comes after trace: {ANEW} trace makes would be lost. "
        "Put sam before it.",
    ),
    "uphill of a decay in a mask": (
        [gch.masked(gch.add_decayed_weights(0.1), EARLY), gch.masked(gch.sam(), EARLY), LR],
        f"chain: masked#2/sam comes after masked/add_decayed_weights: {ANEW} masked/add_decayed_weights makes would be "
        "lost. Put masked#2/sam before it.",
    ),
    "uphill twice": (
        [gch.sam(), gch.rules.asam(), LR],
        f"chain: asam comes after sam: {ANEW} sam makes would be lost. Put asam before it.",
    ),
    "uphill in a branch": (
        [gch.partition((EARLY, gch.chain(gch.scale_by_adam(), gch.sam(), LR)), (gch.rest, LR))],
        f"chain: partition/branch/sam comes after partition/branch/scale_by_adam: {ANEW} "
        "partition/branch/scale_by_adam makes would be lost. Put partition/branch/sam before it.",
    ),
    "uphill in turns": (
        [gch.switch(gch.scale_by_adam(), gch.scale_by_lion(), at=3), gch.sam(), LR],
        f"chain: sam comes after switch/first/scale_by_adam: {ANEW} switch/first/scale_by_adam makes would be lost. "
        "Put sam before it.",
    ),
    "a user's link that says what it does": (
        [gch.sgd(0.1), anew()],
        f"chain: anew comes after scale_by_learning_rate: {ANEW} scale_by_learning_rate makes would be lost and the "
        "weights would climb. Put anew before it.",
    ),
    "uphill of a window": (
        [gch.accumulate(2), gch.amp_scale(always=True), gch.sam(), LR],
        "chain: sam comes after accumulate: it would evaluate the last micro-batch alone, and its gradient would stand "
        "for the whole window. Put sam before it.",
    ),
    "nothing matches": (
        [gch.masked(gch.scale(0.1), gch.named("head.*")), LR],
        None,
    ),
    "partition leaves some": (
        [gch.partition((EARLY, LR))],
        "partition: every parameter must go down a branch, but 2 match none, first '2.weight'. "
        "Add a last branch (gch.rest, …).",
    ),
    "branch takes none": (
        [gch.partition((EARLY, LR), (gch.named("0.weight"), LR), (gch.rest, LR))],
        "partition: branch 'branch#2' takes no parameter: earlier branches took all that named(\"0.weight\") matches. "
        "The first match wins; put it first.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind):
    """Each rule, with the whole sentence."""
    links, sentence = REFUSED[kind]
    with pytest.raises(ValueError) as raised:
        bound(*links)
    if sentence is None:
        assert "'head.*'" in str(raised.value) or '"head.*"' in str(raised.value)
        assert "match" in str(raised.value)
    else:
        assert str(raised.value) == sentence


OF_THE_STEP = (
    "it bounds the step, with the learning rate in it, and not the gradient. To clip gradients put it first; to clip "
    "their direction put it right before the learning rate."
)
WARNED = {
    "scale divided out": (
        [gch.scale(0.1), gch.scale_by_adam(), LR], {},
        "chain: scale_by_adam divides out the scale of scale, which comes before it. Put the scale after it.",
    ),
    "masked scale divided out": (
        [gch.masked(gch.scale(0.1), EARLY), gch.scale_by_lion(), LR], {},
        "chain: scale_by_lion divides out the scale of masked/scale, which comes before it. Put the scale after it.",
    ),
    "half without a scale": (
        [LR], {"autocast": torch.float16},
        "bind: float16 autocast without amp_scale(): small gradients underflow to zero. Put amp_scale() in front of "
        "the chain, after accumulate.",
    ),
    "a scale without half": (
        [gch.amp_scale(), LR], {},
        "bind: amp_scale does nothing: neither the autocast nor a parameter is float16. Bind with "
        "autocast=torch.float16, or leave it out.",
    ),
    "a clip of the step": (
        [LR, gch.clip_by_norm(1.0)], {}, f"chain: clip_by_norm comes after scale_by_learning_rate: {OF_THE_STEP}",
    ),
    "a clip behind an alias": (
        [gch.sgd(0.1, momentum=0.9), gch.clip_by_value(1.0)], {},
        f"chain: clip_by_value comes after scale_by_learning_rate: {OF_THE_STEP}",
    ),
    "a clip behind a negative scale": (
        [gch.scale_by_adam(), gch.scale(-0.1), gch.clip_by_norm(1.0, per="tensor")], {},
        f"chain: clip_by_norm comes after scale: {OF_THE_STEP}",
    ),
    "a clip behind branches": (
        [gch.partition((EARLY, gch.adam(0.1)), (gch.rest, gch.sgd(0.2))), gch.clip_by_norm(1.0)], {},
        f"chain: clip_by_norm comes after partition/branch/scale_by_learning_rate: {OF_THE_STEP}",
    ),
    "a clip in a branch": (
        [gch.partition((EARLY, gch.chain(gch.adam(0.1), gch.clip_by_norm(1.0))), (gch.rest, gch.sgd(0.2)))], {},
        f"chain: partition/branch/clip_by_norm comes after partition/branch/scale_by_learning_rate: {OF_THE_STEP}",
    ),
    "a clip in a mask": (
        [LR, gch.masked(gch.clip_by_value(1.0), EARLY)], {},
        f"chain: masked/clip_by_value comes after scale_by_learning_rate: {OF_THE_STEP}",
    ),
    "a clip behind a class in a branch": (
        [gch.partition((EARLY, gch.from_torch("SGD", lr=0.1)), (gch.rest, gch.sgd(0.2))), gch.clip_by_norm(1.0)], {},
        f"chain: clip_by_norm comes after partition/branch/from_torch: {OF_THE_STEP}",
    ),
    "a scheduled clip": (
        [LR, gch.clip_by_norm(gch.linear(1.0, 2.0, 3))], {},
        f"chain: clip_by_norm comes after scale_by_learning_rate: {OF_THE_STEP}",
    ),
    "a clip behind a rate that climbs on purpose": (
        [gch.scale_by_learning_rate(0.1, flip_sign=False), gch.clip_by_norm(1.0), gch.scale(-1.0)], {},
        f"chain: clip_by_norm comes after scale_by_learning_rate: {OF_THE_STEP}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WARNED)
def test_warned(kind):
    """Each warning, once, with its whole sentence, at the line that binds."""
    links, options, sentence = WARNED[kind]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gch.chain(*links).bind(net(), **options)
    assert [str(w.message) for w in caught] == [sentence]
    assert caught[0].filename == __file__


def trusted(updates, params):
    return -0.1 * updates


class up(gch.Transform):
    """A user's link that says it flips the sign."""

    descends = True

    def update(self, g, state, ctx):
        return -0.1 * g, state


LEGITIMATE = {
    "two rates in disjoint branches": [gch.partition((EARLY, gch.adam(0.1)), (gch.rest, gch.sgd(0.2, momentum=0.9)))],
    "two rates in disjoint masks": [gch.masked(gch.sgd(0.1), EARLY), gch.masked(gch.sgd(0.2), LATE)],
    "multipliers": [gch.scale_by_adam(), gch.masked(gch.scale(0.1), EARLY), LR],
    "decay then clip then rate": [gch.add_decayed_weights(0.1), gch.clip_by_norm(1.0), LR],
    "clip of the direction": [gch.scale_by_adam(), gch.clip_by_norm(1.0), LR],
    "momentum after the rate (LARS)": [LR, gch.trace(0.9)],
    "a clip that measures the step": [LR, gch.clip_by_norm(float("inf"))],
    "a clip before a window of steps": [gch.partition((EARLY, gch.chain(gch.clip_by_norm(1.0), LR)), (gch.rest, LR))],
    "holders before holders": [gch.skip_nonfinite(), gch.accumulate(2), gch.amp_scale(always=True), LR],
    "a clip before a window": [gch.clip_by_norm(1.0), gch.accumulate(2), LR],
    "a branch that holds": [gch.partition((EARLY, gch.chain(gch.accumulate(2), gch.scale_by_adam())), (gch.rest,
                            gch.trace(0.9))), LR],
    "project in a mask and in a branch": [LR, gch.masked(gch.project(torch.sigmoid), EARLY),
                                          gch.partition((LATE, gch.project(torch.tanh)), (gch.rest, gch.chain())),
                                          gch.average_params(0.9)],
    "project and two averages": [LR, gch.project(torch.sigmoid), gch.average_params(0.9), gch.average_params("mean")],
    "a user's function": [gch.stateless(trusted)],
    "a user's function and a rate": [gch.stateless(trusted), LR],
    "a user's link": [up()],
    "frozen": [gch.freeze(EARLY), gch.scale_by_adam(), LR],
    "uphill behind gates": [gch.amp_scale(always=True), gch.skip_nonfinite(), gch.sam(), gch.accumulate(2), LR],
    "uphill behind a guard and a clip": [gch.guard(), gch.freeze(EARLY), gch.clip_by_norm(1.0), gch.sam(), LR],
    "uphill beside another branch": [gch.partition((EARLY, gch.sgd(0.1)), (gch.rest, gch.chain(gch.sam(), LR)))],
    "uphill behind a rule of others": [gch.masked(gch.scale_by_adam(), EARLY), gch.masked(gch.sam(), LATE), LR],
    "negative scale": [gch.scale_by_adam(), gch.scale(-0.1)],
    "a schedule that may flip": [gch.scale(lambda step: -0.1)],
    "up on purpose, then down": [gch.scale_by_learning_rate(0.1, flip_sign=False), gch.scale(-1.0)],
}  # fmt: skip


@pytest.mark.parametrize("kind", LEGITIMATE)
def test_legitimate(kind):
    """Chains that mean something bind without an error or a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bound(*LEGITIMATE[kind])


def test_a_frozen_parameter_is_asked_about_too():
    """A parameter frozen at bind may get a gradient later, so the checks cover it."""
    model = net()
    model[2].requires_grad_(False)
    with pytest.raises(ValueError, match=r"2 parameters, first '2.weight', would climb"):
        gch.masked(gch.sgd(0.1), EARLY).bind(model)


def test_freezing_excuses_from_the_sign():
    """The cure that the sentence names works: with freeze the others are left alone, and the chain binds."""
    model = net()
    updater = gch.chain(gch.freeze(LATE), gch.masked(gch.sgd(0.1), EARLY)).bind(model)
    kept = model[2].weight.detach().clone()
    updater.update(model(torch.ones(1, 3).double()).sum())
    assert torch.equal(model[2].weight, kept)


def test_bind_of_a_single_link():
    """A single link binds as a chain of one."""
    linear = nn.Linear(1, 1)
    assert repr(gch.scale(-0.1).bind(linear)) == "chain(scale(-0.1)).bind(<2 parameters>)"
