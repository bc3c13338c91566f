"""A bad argument is refused at once, in a sentence that names the owner, the argument and the value."""

import dataclasses
import re
import types

import pytest
import torch
from bad_arguments import ROWS, UNCHECKED, Bad
from cases import CASES

import gradchain as gch
from gradchain.core.transform import registry

rows = pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in ROWS])


@rows
def test_a_bad_argument_is_refused_in_a_full_sentence(row: Bad):
    """The type of the error and every letter of its message."""
    with pytest.raises(row.error) as caught:
        row.make(*row.args, **row.kwargs)
    assert str(caught.value) == row.sentence
    assert type(caught.value) is row.error


@rows
def test_sentences_name_owner_argument_and_value(row: Bad):
    """`<owner>: … <argument> … got <value>.`; an alias is spoken for by the link that refuses."""
    owner, _, rest = row.sentence.partition(": ")
    assert owner in registry
    assert owner == row.make.__name__ or isinstance(row.make, types.FunctionType)
    assert row.argument in rest
    assert f"got {row.value}" in rest or row.value in ("[]", "'head.*'")
    assert rest.endswith((".", "?"))


COVERED = {f"{row.make.__name__}.{row.argument}" for row in ROWS}
ARGUMENTS = {
    name: {f"{name}.{field.name}" for field in dataclasses.fields(link)}
    for name, link in registry.items()
    if link not in (gch.chain, gch.partition)  # they take *args; rows above go through their kinds
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_argument_of_a_link_has_a_row(name):
    """Each field is refused something, or a reason says why nothing can be refused."""
    missing = sorted(ARGUMENTS[name] - COVERED - UNCHECKED.keys())
    assert not missing, f"give these a row, or a reason in UNCHECKED, in tests/bad_arguments.py: {missing}"


def test_what_is_unchecked_is_an_argument_that_has_no_row():
    assert sorted(UNCHECKED.keys() - set().union(*ARGUMENTS.values())) == []
    assert sorted(UNCHECKED.keys() & COVERED) == []


HYPERS = [
    pytest.param(case, name, id=f"{case.id}-{name}")
    for case in CASES
    for name in type(case.link).hypers
    if name not in case.link.read_once
]
ONCE = [
    pytest.param(case.link, name, value, id=f"{case.id}-{name}-{value!r:.20}")
    for case in CASES
    for name in sorted(case.link.read_once)
    for value in (
        gch.linear(0.5, 1.0, 10),
        abs,
        gch.multiply(0.5, (gch.named("head.*"), 2.0)),
        gch.choose((gch.named("head.*"), gch.constant(0.5)), rest=0.5),
    )
]


@pytest.mark.parametrize(("case", "name"), HYPERS)
def test_a_schedule_is_held_to_the_same_interval(case, name):
    """What a schedule gives is checked as the constructor checks, and the sentence says where it came from."""
    link = dataclasses.replace(case.link, **{name: bad_schedule})
    params = gch.Tensors.of(case.problem().params)
    ctx = gch.Context(params, step=3, loss=0.0, evaluate=lambda weights: (0.0, weights))
    with pytest.raises(ValueError, match=rf"{name} must be .*, got nan\. It came from .*bad_schedule.* at step 3\.$"):
        link.update(params, link.init(params), ctx)


@pytest.mark.parametrize(("link", "name", "value"), ONCE)
def test_what_is_read_once_has_no_later(link, name, value):
    """A schedule and numbers per parameter are refused where the link is made, by every link alike."""
    rule = "one number for all parameters|a number: it is read before the first update only"
    with pytest.raises(
        TypeError, match=rf"^{type(link).__name__}: {name} must be ({rule}), got {re.escape(repr(value))}\."
    ):
        dataclasses.replace(link, **{name: value})


def test_what_init_reads_in_a_link_of_ones_own_has_no_later():
    """Also where the author did not say that it is one number for all parameters."""

    class started(gch.Transform):
        descends = False
        read_once = frozenset({"start"})

        start: gch.Hyper = gch.Hyper(0.5)

    for value in (gch.linear(0.5, 1.0, 10), gch.choose((gch.named("w"), 0.5), rest=1.0)):
        with pytest.raises(TypeError, match=r"^started: start must be a number: it is read before the first update"):
            started(value)
    assert started(torch.tensor(0.25)).start == 0.25


def bad_schedule(step):
    return float("nan")


def test_a_tensor_hyperparameter_must_be_0_d():
    """A number may be a 0-d tensor; a longer one is refused."""
    with pytest.raises(ValueError, match=r"^scale: step_size must be a number or a 0-d tensor, got shape \(2,\)\.$"):
        gch.scale(torch.ones(2))


def test_a_concrete_link_is_final():
    """Nobody subclasses one."""
    with pytest.raises(TypeError, match=r"^mine: scale is final\. To tweak a link, wrap it in your own\.$"):
        type("mine", (gch.scale,), {})


def test_what_the_context_was_not_given_raises_with_the_address():
    """Reading it says which link needs what, and how to give it."""
    tx = gch.chain(gch.masked(gch.add_decayed_weights(0.1), gch.everything))
    params = gch.Tensors.of({"w": torch.ones(2)})
    with pytest.raises(RuntimeError, match=r"^masked: Context\.params was not given\. Pass it: gch\.Context"):
        tx.update(params, tx.init(params), gch.Context())
