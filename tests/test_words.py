"""The words of torch and Optax: whoever types one is told ours. Every name and every argument of theirs is tried."""

import inspect
import re
import warnings

import pytest
import torch
from torch import optim

import gradchain as gch
from gradchain.core.transform import registry
from gradchain.words import names

SCHEDULERS = [n for n, v in vars(optim.lr_scheduler).items() if isinstance(v, type) and n.endswith(("LR", "Plateau"))]
CLASSES = [n for n, v in vars(optim).items() if isinstance(v, type)]
TABLE = {**names.TORCH, **names.OPTAX, **names.OPTAX_MODULES}
ROOMS = {"gradchain": gch, "schedules": gch.schedules, "selectors": gch.selectors, "optimizers": gch.optimizers}


def resolved(code):
    """What the first `gch.…` of an answer is."""
    value = gch
    for part in re.match(r"gch\.([\w.]+)", code)[1].rstrip(".").split("."):
        value = getattr(value, part)
    return value


def refused(room, name):
    with pytest.raises(AttributeError) as raised:
        getattr(room, name)
    return str(raised.value)


# names


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("name", sorted({*SCHEDULERS, *CLASSES, *TABLE, "update_bn", "AveragedModel", "SWALR"}))
def test_every_name_of_torch_and_optax_is_answered_with_ours(name, room):
    """In each room: the sentence names the room and the name, and says what to write."""
    if hasattr(ROOMS[room], name):
        return
    sentence = refused(ROOMS[room], name)
    assert sentence.startswith(f"gch{'' if room == 'gradchain' else f'.{room}'}: there is no {name!r}. Write ")
    for code in re.findall(r"gch\.\w[\w.]*", sentence.partition("Write ")[2]):
        resolved(code.rstrip("."))


@pytest.mark.parametrize("name", [n.swapcase() for n in ("rmsprop", "Adagrad", "asgd", "rprop")] + ["rmsprop", "Radam"])
def test_an_optimizer_of_torch_is_found_whatever_its_case(name):
    assert re.search(r'Write gch\.from_torch\("(RMSprop|Adagrad|ASGD|Rprop|RAdam)", …\)\.$', refused(gch, name))


@pytest.mark.parametrize("name", sorted({*gch.__all__, *gch.schedules.__all__, *gch.selectors.__all__} - {"by"}))
def test_a_misspelling_of_ours_is_mended(name):
    """One letter too many, in every public name of six letters or more."""
    if len(name) < 6 or name.startswith("_"):
        return
    sentence = refused(gch, f"{name[:3]}x{name[3:]}")
    assert "Did you mean " in sentence
    assert name in sentence


@pytest.mark.parametrize("name", sorted({*gch.schedules.__all__, *gch.selectors.__all__} - {*gch.__all__}))
def test_what_lies_in_a_room_is_found_there(name):
    room = "schedules" if name in gch.schedules.__all__ else "selectors"
    assert refused(gch, name) == f"gch: there is no {name!r}. Write gch.{room}.{name}."


def test_what_nobody_knows_is_said_to_be_missing():
    assert refused(gch, "quux_frobnicate") == "gch: there is no 'quux_frobnicate'."
    assert refused(gch, "__wrapped__") == "gch: there is no '__wrapped__'."
    assert not hasattr(gch, "AdamW")
    assert getattr(gch, "AdamW", None) is None


def test_no_answer_is_for_a_name_that_is_there():
    assert [name for name in TABLE if name in gch.__all__] == []


# arguments


def answer(make, word):
    """What is said of an argument that `make` does not take."""
    with pytest.raises(TypeError) as raised:
        make(**{word: 1})
    return str(raised.value)


def counterparts():
    """Every callable of torch and Optax that has a callable of ours: by its name, or by the tables."""
    import optax

    modules = [optim, optim.lr_scheduler, optim.swa_utils, torch.nn.utils, torch.amp, optax, optax.contrib]
    ours = {name: getattr(gch.schedules, name) for name in gch.schedules.__all__}
    ours.update({name: getattr(gch, name) for name in [*gch.optimizers.__all__, *registry]})
    ours = {n: v for n, v in ours.items() if inspect.isfunction(v) or (inspect.isclass(v) and "__init__" in vars(v))}
    for name in ("chain", "from_torch", "partition", "evaluate", "clocks_of", "Schedule"):  # called with anything
        ours.pop(name)
    named = {name: resolved(code) for name, code in TABLE.items() if code.startswith("gch.")}
    for name, make in {**{n: v for n, v in named.items() if v in ours.values()}, **ours}.items():
        for theirs in (vars(module).get(name) for module in modules):
            if callable(theirs):
                yield name, theirs, make


# What has no counterpart in a call: what something is made for, and what Optax's functions are given at every step.
NOT_ASKED = {"self", "args", "kwargs", "optimizer", "params", "parameters", "model", "updates", "new_tensors"}


def foreign_arguments():
    """Each of ours, with each argument of its counterpart that it has not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            (make, word): name
            for name, theirs, make in counterparts()
            for word in inspect.signature(theirs).parameters
            if word not in NOT_ASKED and word not in inspect.signature(make).parameters
        }


def test_every_argument_of_a_counterpart_is_answered():
    """Owner, word, cure and what is taken; what is to be written instead is taken."""
    tried = foreign_arguments()
    assert len(tried) > 100
    unanswered = []
    for (make, word), name in tried.items():
        sentence = answer(make, word)
        assert sentence.startswith(f"{make.__name__}: does not take {word!r}")
        assert sentence.endswith(f". It takes {', '.join(inspect.signature(make).parameters) or 'no argument'}.")
        for written in re.findall(r": write (\w+)=\.", sentence):
            assert written in inspect.signature(make).parameters
        if f"{word!r}: " not in sentence:
            unanswered.append(f"{name} -> {make.__name__}: {word}")
    assert unanswered == []
