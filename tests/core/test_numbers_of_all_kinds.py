"""A number is a number: of Python, of numpy, in a tensor or an array of one; wherever one is taken."""

import operator
from fractions import Fraction

import numpy as np
import pytest
import torch
from little import data, distance, loss_of, net
from torch import nn

import gradchain as gch

# how a number may be given; those for whole numbers give one that is none no other value
WHOLE = {
    "int64": np.int64, "int32": np.int32, "uint8": np.uint8, "an array of int": np.array,
    "an array of one": lambda n: np.array([n]), "a tensor": torch.tensor,
    "a tensor of one": lambda n: torch.tensor([n]),
    "an int32 tensor": lambda n: torch.tensor(n, dtype=torch.int32), "a sum": lambda n: (torch.arange(n + 3) > 2).sum(),
    "a parameter": lambda n: nn.Parameter(torch.tensor(n), requires_grad=False),
}  # fmt: skip
REAL = {
    "float64": np.float64, "float32": np.float32, "float16": np.float16, "longdouble": np.longdouble,
    "a fraction": Fraction, "an array": np.array, "an array of float32": lambda x: np.array([[x]], np.float32),
    "a tensor": torch.tensor, "a tensor of one": lambda x: torch.tensor([x]),
    "a tensor of ones": lambda x: torch.tensor([[x]]), "float64's tensor": lambda x: torch.tensor(x).double(),
    "bfloat16's": lambda x: torch.tensor(x, dtype=torch.bfloat16),
}  # fmt: skip
NONE = {
    "True": True, "a bool of numpy": np.True_, "a bool tensor": torch.tensor(True), "a string": "0.5", "None": object(),
    "complex": 1j, "numpy's complex": np.complex64(1), "a complex tensor": torch.tensor(1j), "a list": [0.5],
    "two": torch.tensor([0.5, 0.5]), "two of numpy": np.array([0.5, 0.5]), "no number": torch.tensor([]),
    "numpy's string": np.str_("0.5"), "numpy's clongdouble": np.clongdouble(1),
}  # fmt: skip

LR = 0.125  # exact in every dtype
# where a number is read once: what is made of it
REALS_READ_ONCE = {
    "clip_by_norm.p": lambda x: gch.clip_by_norm(1.0, p=x),
    "nan_to_num.posinf": lambda x: gch.nan_to_num(posinf=x),
    "nan_to_num.neginf": lambda x: gch.nan_to_num(neginf=x),
    "multiply's factor": lambda x: gch.multiply(1.0, (gch.bias, x)),
    "first's factor": lambda x: gch.multiply(1.0, gch.first((gch.bias, x))),
    "a mapping's factor": lambda x: gch.multiply(1.0, {"w": x}),
    "layer_decay.rate": lambda x: gch.layer_decay(x, gch.selectors.depth.vit(2)),
    "constant": gch.constant,
    "linear": lambda x: gch.linear(x, x, 10),
    "cosine": lambda x: gch.cosine(1.0, x, 10),
    "piecewise": lambda x: gch.schedules.piecewise((0, x), (5, x)),
    "times a schedule": lambda x: gch.schedules.combined("*", x, gch.constant(2.0)),
    "clip of a schedule": lambda x: gch.constant(1.0).clip(x, None),
    "ema_warmup": lambda x: gch.schedules.ema_warmup(x),
}
WHOLES_READ_ONCE = {
    "freeze.until": lambda n: gch.freeze(gch.bias, until=n),
    "average_params.start": lambda n: gch.average_params(0.9, start=n),
    "average_params.every": lambda n: gch.average_params(0.9, every=n),
    "ndim": gch.ndim,
    "min_ndim": gch.min_ndim,
    "vit": gch.selectors.depth.vit,
    "layer_decay.total": lambda n: gch.layer_decay(0.5, len, n),
    "linear's steps": lambda n: gch.linear(0.0, 1.0, n),
    "repeat": lambda n: gch.linear(0.0, 1.0, 5).repeat(n),
    "take": lambda n: gch.linear(0.0, 1.0, 5).take(n),
    "per_epoch": lambda n: gch.schedules.per_epoch(gch.linear(0.0, 1.0, 5), n),
}


@pytest.mark.parametrize("form", REAL)
@pytest.mark.parametrize("taker", REALS_READ_ONCE)
def test_what_is_read_once_is_kept_as_python_has_it(taker, form):
    assert repr(REALS_READ_ONCE[taker](REAL[form](0.5))) == repr(REALS_READ_ONCE[taker](0.5))


@pytest.mark.parametrize("form", WHOLE)
@pytest.mark.parametrize("taker", WHOLES_READ_ONCE)
def test_whole_numbers_are_too(taker, form):
    assert repr(WHOLES_READ_ONCE[taker](WHOLE[form](3))) == repr(WHOLES_READ_ONCE[taker](3))


@pytest.mark.parametrize("bad", NONE)
@pytest.mark.parametrize("taker", [*REALS_READ_ONCE, *WHOLES_READ_ONCE])
def test_what_is_no_number_is_refused_in_a_sentence(taker, bad):
    with pytest.raises((TypeError, ValueError), match=r"^[\w.]+: .* (must be|got|takes) "):
        (REALS_READ_ONCE | WHOLES_READ_ONCE)[taker](NONE[bad])


# where a hyperparameter takes it, which may be read anew at every update
PLACES = {
    "the rate": lambda x: gch.sgd(x),
    "a schedule's value": lambda x: gch.sgd(lambda step: x),
    "multiply": lambda x: gch.sgd(gch.multiply(x, (gch.bias, 0.5))),
    "choose": lambda x: gch.sgd(gch.choose((gch.bias, x), rest=LR)),
    "a schedule per parameter": lambda x: gch.sgd(gch.multiply(lambda step: x, (gch.bias, 0.5))),
    "decay": lambda x: gch.chain(gch.add_decayed_weights(x), gch.sgd(0.1)),
    "moments": lambda x: gch.adam(0.1, b1=x),
    "momentum": lambda x: gch.sgd(0.1, momentum=x),
    "a clip": lambda x: gch.chain(gch.clip_by_norm(x), gch.sgd(0.1)),
    "a clip by value": lambda x: gch.chain(gch.clip_by_value(x), gch.sgd(0.1)),
    "an average": lambda x: gch.chain(gch.sgd(0.1), gch.average_params(x)),
    "sam": lambda x: gch.chain(gch.scale_by_sign(), gch.scale(x), gch.scale(-0.5)),
}


def trained(tx, updates=2, after=lambda updater: None, **options):
    model = net()
    updater = tx.bind(model)
    after(updater)
    for rows in data(updates):
        updater.update(loss_of(model, rows), **options)
    return model


@pytest.mark.parametrize("form", REAL)
@pytest.mark.parametrize("place", PLACES)
def test_a_hyperparameter_takes_it_and_means_the_same(place, form):
    assert distance(trained(PLACES[place](REAL[form](LR))), trained(PLACES[place](LR))) == 0.0


@pytest.mark.parametrize("bad", NONE)
@pytest.mark.parametrize("place", PLACES)
def test_a_hyperparameter_refuses_what_is_none(place, bad):
    with pytest.raises((TypeError, ValueError), match=r"^[\w/#]+: .* must be "):
        trained(PLACES[place](NONE[bad]))


@pytest.mark.parametrize("form", WHOLE)
def test_a_window_takes_its_length(form):
    assert distance(trained(gch.chain(gch.accumulate(WHOLE[form](2)), gch.sgd(0.1)), 4),
                    trained(gch.chain(gch.accumulate(2), gch.sgd(0.1)), 4)) == 0.0  # fmt: skip


def test_a_tensor_of_one_is_read_anew_at_every_update():
    """As a 0-d one is: filled between updates it is the new number, and a loop over param_groups may hold it."""
    for shape in ((), (1,), (1, 1)):
        rate, model, plain = torch.full(shape, 0.1), net(), net()
        updater, other = gch.sgd(rate).bind(model), gch.sgd(lambda step: [0.1, 0.05, 0.2][step]).bind(plain)
        for rows, now in zip(data(3), [0.1, 0.05, 0.2], strict=True):
            rate.fill_(now)
            updater.update(loss_of(model, rows))
            other.update(loss_of(plain, rows))
        assert distance(model, plain) < 1e-8
        assert updater.hyperparams()["scale_by_learning_rate.learning_rate"] == pytest.approx(0.2)


@pytest.mark.parametrize("form", [form for form in REAL if "tensor of" not in form])
@pytest.mark.parametrize("of", ["tensors", "scalars"])
def test_a_rule_computes_with_it(of, form):
    """On either side of every operator: a link of a user's may hold a number of numpy's."""
    made = {"a": torch.tensor([2.0, -3.0]), "b": torch.tensor([0.25])}
    thing = gch.Tensors.of(made) if of == "tensors" else gch.Scalars({"a": 2.0, "b": 0.25})
    for op in (operator.add, operator.sub, operator.mul, operator.truediv, operator.lt, operator.ge):
        for mine, other in [(op(thing, REAL[form](0.5)), op(thing, 0.5)), (op(REAL[form](0.5), thing), op(0.5, thing))]:
            assert type(mine) is type(other)
            for name in made:
                assert torch.equal(torch.as_tensor(mine[name]), torch.as_tensor(other[name])), (op, name)


CONTROLS = {
    "override": lambda updater, x: updater.override("learning_rate", x),
    "override by factor": lambda updater, x: updater.override("learning_rate", factor=x),
    "tick": lambda updater, x: updater.tick("epoch", x),
}


@pytest.mark.parametrize("form", REAL)
@pytest.mark.parametrize("control", CONTROLS)
def test_controls_take_it(control, form):
    tx = gch.sgd(gch.by("epoch", gch.linear(0.1, 0.0, 2)))
    mine = trained(tx, after=lambda updater: CONTROLS[control](updater, REAL[form](LR)))
    assert distance(mine, trained(tx, after=lambda updater: CONTROLS[control](updater, LR))) == 0.0


@pytest.mark.parametrize("bad", NONE)
@pytest.mark.parametrize("control", [*CONTROLS, "observe"])
def test_controls_refuse_what_is_none(control, bad):
    updater = gch.sgd(gch.by("epoch", gch.linear(0.1, 0.0, 2))).bind(net())
    told = dict(CONTROLS, observe=lambda updater, x: updater.observe("loss", x))[control]
    with pytest.raises((TypeError, ValueError), match=r"^[\w/#]+: "):
        told(updater, NONE[bad])
    assert updater.clocks["epoch"] == 0
    assert updater.hyperparams()["scale_by_learning_rate.learning_rate"] == 0.1


@pytest.mark.parametrize("form", REAL)
def test_what_is_observed_may_be_any(form):
    updater = gch.sgd(0.1).bind(net())
    updater.observe("loss", REAL[form](0.5))
    assert repr(updater._bound.observed) == "{'loss': 0.5}"


def test_a_number_in_a_config_is_plain():
    """So that what is saved loads anywhere, and two chains of one number are equal."""
    for form in REAL:
        if "tensor" not in form and form != "bfloat16's":
            assert gch.from_config(gch.to_config(gch.sgd(REAL[form](LR)))) == gch.sgd(LR)
