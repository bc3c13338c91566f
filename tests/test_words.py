"""The words of torch and Optax: whoever types one is told ours. Every name and every argument of theirs is tried."""

import importlib
import inspect
import re
import warnings

import pytest
import torch
from torch import optim

import gradchain as gch
from gradchain.core.transform import registry
from gradchain.words import arguments, names

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


@pytest.mark.parametrize("name", [n.swapcase() for n in ("rmsprop", "Adagrad", "asgd", "rprop")] + ["Radam", "Lbfgs"])
def test_an_optimizer_of_torch_is_found_whatever_its_case(name):
    known = name.lower() if name != "Lbfgs" else r'from_torch\("LBFGS", …\)'
    assert re.search(rf"Write gch\.{known}\.$", refused(gch, name))


@pytest.mark.parametrize("room", ROOMS)
def test_a_rule_that_is_not_on_top_is_found_in_its_room(room, monkeypatch):
    """Also one whose name Optax or torch has too; a name that is on top is given as it is there."""
    added = ["scale_by_of_a_family", "sign_sgd", "Lion"]
    monkeypatch.setattr(gch.rules, "__all__", [*gch.rules.__all__, *added])
    below = sorted({*gch.rules.__all__} - {*gch.__all__, *dir(ROOMS[room])})
    assert {*added} <= {*below}
    for name in below:
        beside = f", {names.BESIDE[name]}" if name in names.BESIDE else ""
        assert refused(ROOMS[room], name).endswith(f": there is no {name!r}. Write gch.rules.{name}{beside}.")
    assert " Did you mean gch.rules.scale_by_of_a_family" in refused(ROOMS[room], "scale_by_of_family")
    if room == "selectors":
        assert refused(gch.selectors, "adamw").endswith(" Write gch.adamw.")


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


@pytest.mark.parametrize("name", ["ema", "ema_params", "swa", "AveragedModel", "ModelEmaV2"])
def test_every_word_for_an_average_of_the_weights_names_ours(name):
    assert "gch.average_params" in refused(gch, name)


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
    ours.update({name: getattr(gch.rules, name) for name in [*gch.optimizers.__all__, *registry]})
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


CALLS = re.compile(r"(?<![\w.])(?:gch\.)?([A-Za-z_][\w.]*)\(|\)\.(\w+)\(")
ANSWERED = {
    **arguments.INSTEAD,
    **arguments.FORMS,
    **TABLE,
    **names.BESIDE,
    **{f"of OPTAX: {n}": a for n, a in names.OPTAX.items()},
}


def called(sentence):
    """What each call in a sentence is, as one would write it behind `gch.`, or of an updater, or of what is made."""
    for path, method in CALLS.findall(sentence):
        if method:
            yield f").{method}", any(hasattr(kind, method) for kind in (gch.schedules.Schedule, gch.Transform))
        elif path.startswith(("updater.", "schedule.")):
            owner, _, method = path.partition(".")
            yield path, hasattr(gch.Updater if owner == "updater" else gch.schedules.Schedule, method)
        elif path in ("update", "bind"):
            yield path, hasattr(gch.Transform, path)
        elif path.startswith("adapters."):
            module, _, name = path.rpartition(".")
            yield path, hasattr(importlib.import_module(f"gradchain.{module}"), name)
        else:
            value = gch
            for part in path.split("."):
                value = getattr(value, part, None)
            yield path, value is not None
    for name in re.findall(r"(?<![\w.])\w+_\w+(?![\w(=])", sentence):  # without a call
        if name in gch.rules.__all__:
            yield name, hasattr(gch, name)


@pytest.mark.parametrize("word", sorted(ANSWERED))
def test_every_call_that_an_answer_names_is_there(word):
    """As it stands: what is in a room is given with its room."""
    assert [call for call, there in called(ANSWERED[word]) if not there] == []


def test_a_call_that_is_not_there_is_seen():
    for sentence in ("write maximize()", "linear(…).next(…)", "updater.nothing(…)", "gch.scale_by_amsgrad(…)"):
        assert not all(there for _, there in called(sentence))
    assert len([*called("write constant(1).take(3).then(schedules.exponential(…)), updater.observe(…)")]) == 5


# links that are not bound yet

UNBOUND = {
    "chain": gch.chain(gch.clip_by_norm(1.0), gch.sgd(0.1)),
    "alias": gch.adamw(1e-3),
    "link": gch.scale(-0.1),
    "empty": gch.chain(),
    "mask": gch.masked(gch.scale(0.1), gch.everything),
    "class": gch.from_torch("SGD", lr=0.1),
}
OF_THE_UPDATER = sorted(n for n in dir(gch.Updater) if n[:1] != "_" and not hasattr(gch.chain, n))


@pytest.mark.parametrize("kind", UNBOUND)
@pytest.mark.parametrize("name", OF_THE_UPDATER)
def test_what_an_updater_has_names_bind_on_a_link(name, kind):
    """Whatever is public on the Updater, asked of a link."""
    link = UNBOUND[kind]
    with pytest.raises(AttributeError) as raised:
        getattr(link, name)
    assert str(raised.value).startswith(f"{type(link).__name__}: has no {name!r} before it is bound. Write ")
    assert f".bind(model); updater.{name}" in str(raised.value)


LOSS = torch.ones(())
UPDATES = {
    "loss": ((LOSS,), {}), "closure": ((lambda: LOSS,), {}), "nothing": ((), {}), "two": ((1, 2), {}),
    "weight": ((LOSS,), {"weight": 2}), "keyword": ((), {"loss": LOSS}), "last": ((LOSS,), {"last": True}),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNBOUND)
@pytest.mark.parametrize("call", UPDATES)
def test_an_update_with_a_loss_names_bind_on_a_link(call, kind):
    link = UNBOUND[kind]
    with pytest.raises(TypeError) as raised:
        link.update(*UPDATES[call][0], **UPDATES[call][1])
    owner = type(link).__name__
    assert str(raised.value).startswith(f"{owner}: update must be given (updates, state, ctx)")
    assert str(raised.value).endswith(f"updater = {owner}(…).bind(model); updater.update(loss).")


def test_a_link_of_a_users_own_answers_too():
    class mine(gch.Transform):
        def update(self, g, state, ctx):
            return g, state

    with pytest.raises(AttributeError, match=r"^mine: has no 'step' before it is bound\."):
        mine().step()
    with pytest.raises(TypeError, match=r"^mine: does not take 'lr': .* It takes no argument\.$"):
        mine(lr=1)
    with pytest.raises(AttributeError, match=r"^mine: has no 'nothing'\.$"):
        _ = mine().nothing


MODEL = torch.nn.Linear(2, 1)
MODELS = {
    "module": MODEL, "parameters": MODEL.parameters(), "list": list(MODEL.parameters()), "one": MODEL.weight,
    "named": MODEL.named_parameters(), "groups": [{"params": MODEL.parameters()}],
    "dict": dict(MODEL.named_parameters()),
}  # fmt: skip


@pytest.mark.parametrize("make", [gch.adamw, gch.sgd, gch.lion, gch.scale, gch.clip_by_norm, gch.chain, gch.sam])
@pytest.mark.parametrize("kind", MODELS)
def test_a_model_in_place_of_a_number_or_a_link_goes_to_bind(make, kind):
    """As torch's optimizers take it: whatever holds parameters."""
    with pytest.raises((TypeError, ValueError), match=r"The model goes to bind: chain\(…\)\.bind\(model\)\.$"):
        make(MODELS[kind])


@pytest.mark.parametrize("given", [torch.optim.Adam, torch.optim.SGD(MODEL.parameters(), lr=0.1)], ids=["class", "one"])
@pytest.mark.parametrize(
    "make",
    [gch.chain, lambda x: gch.masked(x, gch.everything), lambda x: gch.chain(("a", x))],
    ids=["chain", "masked", "named"],
)
def test_an_optimizer_in_place_of_a_link_goes_to_from_torch(make, given):
    name = getattr(given, "__name__", type(given).__name__)
    with pytest.raises(TypeError, match=rf'Write from_torch\("{name}", …\)\.$'):
        make(given)


BY_NUMBER = [n for n, kind in sorted(registry.items()) if (given := [*inspect.signature(kind).parameters][:1])
             and given[0] in kind.hypers and hasattr(gch.rules, n)]  # fmt: skip


@pytest.mark.parametrize("name", sorted({*BY_NUMBER, "lookahead", "sam"}))
def test_a_link_where_none_is_wrapped_is_told_that_links_stand_in_a_chain(name):
    """As Optax's combinators take it, first: of every link that begins with a number; with its place where known."""
    make = getattr(gch.rules, name)
    for call in (lambda: make(gch.adam(1e-3)), lambda: make(gch.adam(1e-3), 5, 0.5)):
        with pytest.raises(TypeError) as raised:
            call()
        sentence = str(raised.value)
        if not re.match(r"\w+: (too many|missing)", sentence) or name in arguments.FORMS:
            assert arguments.FORMS.get(name, "Links stand one behind the other: chain(first, second).") in sentence


def test_labels_of_branches_are_told_to_be_selectors():
    with pytest.raises(TypeError, match=r"^partition: .*partition\(\(selector, link\).*in the place of labels\.$"):
        gch.partition({"a": gch.adam(1e-3)}, lambda p: "a")
