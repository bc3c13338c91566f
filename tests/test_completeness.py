"""Nothing is forgotten: every link has a row, every public name a door and an example, every Optax name an answer."""

import inspect
import types
import warnings

import pytest
from cases import CASES
from optax_names import LOOKED_INTO, MODULES, OPTAX

import gradchain as gch
from gradchain import optimizers, selectors
from gradchain.core.transform import registry

PUBLIC = [name for name in gch.__all__ if not name.startswith("_")]
# functions that return chains: those of torch.optim's rules, and those of the families
ALIASES = {
    name: value
    for name in gch.rules.__all__
    if inspect.isfunction(value := getattr(gch.rules, name))
    and value.__module__.startswith(("gradchain.optimizers", "gradchain.rules."))
}
ROOMS = {"rules", "schedules", "see", "selectors"}


# the table


def test_every_registered_link_has_a_row():
    """A link without a row in tests/cases.py is tested by nothing."""
    assert sorted(set(registry) - {case.subject for case in CASES}) == []


def test_every_alias_has_a_row():
    """And so is an alias."""
    assert set(ALIASES) >= set(optimizers.__all__)
    assert sorted(set(ALIASES) - {case.subject for case in CASES}) == []


def test_every_row_covers_something_that_exists():
    """A row whose link went away goes too; and ids are unique."""
    assert sorted({case.subject for case in CASES} - set(registry) - set(ALIASES)) == []
    assert len({case.id for case in CASES}) == len(CASES)


def test_aliases_are_rows_of_chains():
    """An alias is a function that returns a chain: nothing of its own."""
    for name in optimizers.__all__:
        assert inspect.isfunction(getattr(optimizers, name))
    for name in ALIASES:
        assert all(type(case.link) is gch.chain for case in CASES if case.subject == name)


# the front door


# links of torch.optim's other rules, whose aliases are on top, and one for numbers that is not of every day
DIRECTIONS = {
    "average_each", "cap_learning_rate", "maximize", "scale_by_adadelta", "scale_by_adamax", "scale_by_amsgrad",
    "scale_by_asgd", "scale_by_factored_rms", "scale_by_nadam", "scale_by_radam", "scale_by_rprop", "scale_by_rss",
    "scale_by_stddev", "tick_on_plateau",
}  # fmt: skip


def test_the_front_door_lists_every_link_alias_and_selector():
    """What is of every day, what is an alias and what selects is in gch.__all__; all rules are in gch.rules."""
    shorts = {"join", "linear", "cosine", "constant", "by"}
    public_selectors = set(selectors.__all__) - {"ParameterFacts", "Predicate", "SelectorLike", "resolve"}
    links = {name for name, link in registry.items() if not link.__module__.startswith("gradchain.rules.")}
    wanted = (links - DIRECTIONS) | set(optimizers.__all__) | public_selectors | shorts
    assert sorted(wanted - set(gch.__all__)) == []
    assert sorted((set(registry) | set(ALIASES)) - set(gch.rules.__all__)) == []
    assert DIRECTIONS <= set(registry) - set(gch.__all__)


def test_all_is_sorted_and_whole():
    """Every listed name is there, once, and every name that is there is listed."""
    assert sorted(set(gch.__all__)) == gch.__all__
    assert [name for name in gch.__all__ if not hasattr(gch, name)] == []
    there = {name for name in dir(gch) if not name.startswith("_")}
    modules = {name for name in there if isinstance(getattr(gch, name), types.ModuleType)} - {"loop"}  # called like it
    assert sorted(there - modules - set(gch.__all__)) == []
    assert modules & set(gch.__all__) == ROOMS
    rooms = {"checkpoints", "combinators", "core", "transforms", "updater", "optimizers", "adapters", "engine"}
    assert modules - ROOMS == rooms


ROOMS_WITH_ALL = [gch.rules, gch.schedules, gch.selectors, gch.transforms, gch.combinators, gch.optimizers]


@pytest.mark.parametrize("room", ROOMS_WITH_ALL, ids=lambda room: room.__name__)
def test_each_room_lists_what_it_gives(room):
    """A room's __all__ is sorted and names what is there."""
    assert [name for name in room.__all__ if not hasattr(room, name)] == []
    assert sorted(set(room.__all__)) == sorted(room.__all__)


def text_of(name: str) -> str:
    """The docstring of a public name: its own, or that of its class for a ready-made value."""
    value = getattr(gch, name)
    own = inspect.getdoc(value) if isinstance(value, type) or inspect.isroutine(value) else None
    return own or inspect.getdoc(type(value)) or ""


# What is not called by users, or is a part of something whose example shows it.
SHOWN_ELSEWHERE = {
    "Context": "Transform and apply_updates show it",
    "Count": "scale_by_adam's code is the example",
    "Hyper": "its docstring's first line is one",
    "LoadReport": "Updater.load returns it",
    "PerParameter": "multiply and choose make it",
    "Scalars": "Tensors.norms returns it",
    "State": "AdamState is the example",
    "Transform": "CONTRIBUTING.md shows one",
    "UpdateInfo": "Updater.update returns it",
    "Group": "group() makes it",
    "Weights": "project returns it",
    "from_config": "its first line is the equation that it obeys",
    "bias": "a ready-made selector",
    "depthwise": "a ready-made selector",
    "embedding": "a ready-made selector",
    "everything": "a ready-made selector",
    "norm": "a ready-made selector",
    "rest": "partition shows it",
    **dict.fromkeys(("maximum", "minimum", "sqrt", "where"), "one line"),
    **dict.fromkeys(("exp", "expm1", "log", "log1p", "tanh", "erf", "atan2"), "one line"),
    **dict.fromkeys(("round", "floor", "remainder"), "one line"),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_documented(name):
    """Each has a docstring, and an example in it; or what shows it is named here."""
    text = text_of(name)
    assert len(text) > 20
    if name in ROOMS or name in SHOWN_ELSEWHERE:
        return
    assert ">>> " in text, f"{name}: no example"


def test_the_list_of_those_shown_elsewhere_is_not_stale():
    """Only public names are excused."""
    assert sorted(set(SHOWN_ELSEWHERE) - set(PUBLIC)) == []


@pytest.mark.parametrize("name", sorted(registry))
def test_every_link_says_what_it_equals(name):
    """Its docstring has its sections in their order, and links imply the public `gch` in their examples."""
    text = inspect.getdoc(registry[name])
    order = ["Args:", "Shapes:", "State:", "Units:", "Raises:", "Equals:", "Paper:", ">>> "]
    found = [text.index(f"\n{section}") for section in order if f"\n{section}" in text]
    assert found == sorted(found)
    assert "Equals:" in text
    assert "gradchain as gch" in text


# Optax


def optax_names() -> set[str]:
    """Every public name of Optax, the modules that are looked into included."""
    import optax

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        spaces = [optax, *(getattr(optax, module) for module in LOOKED_INTO)]
        return {
            name
            for space in spaces
            for name in dir(space)
            if not name.startswith("_") and not isinstance(getattr(space, name), types.ModuleType)
        }


def _here(name: str) -> bool:
    return hasattr(gch, name) or name in gch.rules.__all__


def test_every_name_of_optax_is_here_or_has_an_answer():
    """A user of Optax finds each of its names: the same, another, or a sentence why not."""
    assert sorted(n for n in optax_names() if not _here(n) and n not in OPTAX) == []


def test_every_module_of_optax_has_an_answer():
    """Modules that are not looked into have a reason."""
    import optax

    modules = {n for n in dir(optax) if not n.startswith("_") and isinstance(getattr(optax, n), types.ModuleType)}
    assert sorted(modules - set(LOOKED_INTO) - set(MODULES)) == []


def test_the_answers_are_not_stale():
    """No answer is given for a name that Optax has not, or that gradchain now has under the same spelling."""
    assert sorted(set(OPTAX) - optax_names()) == []
    assert sorted(filter(_here, OPTAX)) == []


ANSWERS = {**OPTAX, **MODULES}


@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_an_answer_is_true(name):
    """`gch.…` resolves; anything else is a reason or a plan."""
    answer = ANSWERS[name]
    if not answer.startswith("gch."):
        assert answer.startswith(("not here, because ", "comes with "))
        return
    value = gch
    for part in answer.split(".")[1:]:
        value = getattr(value, part)
