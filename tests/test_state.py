"""Links are values: printed as their code, compared, pickled, written as data; and states continue bit for bit."""

import copy
import dataclasses
import io
import json
import pickle

import cases
import pytest
import rules
import torch
from cases import CASES, Case
from harness import Problem, context, numbers, same_bits, stored

import gradchain as gch
from gradchain.core.index import Index
from gradchain.updater.state_dict import LoadReport, from_dict, to_dict

rows = pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
NAMES = {name: value for name, value in vars(rules).items() if callable(value)}
RULES = {name: getattr(gch.rules, name) for name in gch.rules.__all__}
KNOWN = {**RULES, **vars(gch.schedules), **vars(gch.selectors), **NAMES, **vars(gch)}
KNOWN.update(torch=torch, inf=float("inf"))


# links as values


@rows
def test_repr_is_the_code_that_makes_the_link(case: Case):
    """eval(repr(link)) == link, where the user's functions are in sight by name."""
    made = eval(repr(case.link), dict(KNOWN))
    assert made == case.link
    assert repr(made) == repr(case.link)


@rows
def test_equal_links_are_equal_everywhere(case: Case):
    """Equality, hash, copy and pickle agree, and no link equals another kind."""
    for same in (copy.copy(case.link), copy.deepcopy(case.link), pickle.loads(pickle.dumps(case.link))):
        assert same == case.link
        assert hash(same) == hash(case.link)
    assert case.link != gch.chain(gch.scale(0.123))
    assert sum(other.link == case.link for other in CASES) == 1


@rows
def test_links_are_frozen(case: Case):
    """No field of a link can be written."""
    for field in dataclasses.fields(case.link):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(case.link, field.name, 1)


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.id) for c in CASES if not isinstance(c.link, (gch.chain, gch.partition))]
)
def test_dataclasses_replace(case: Case):
    """replace() makes an equal link of no change, and checks what it changes. chain and partition take *args."""
    assert dataclasses.replace(case.link) == case.link
    for name, hyper in type(case.link).hypers.items():
        value = 3.0 if name in case.link.read_once else gch.constant(1.0)
        changed = dataclasses.replace(case.link, **{name: value})
        assert changed != case.link
        assert getattr(changed, name) == value
        if hyper.interval.text != "(-inf, inf)":
            with pytest.raises(ValueError, match=name):
                dataclasses.replace(case.link, **{name: -1e9})


@rows
def test_config_goes_through_json(case: Case):
    """from_config(json of to_config(link)) == link. A user's function is found in names=, never imported."""
    config = json.loads(json.dumps(gch.to_config(case.link), allow_nan=False))
    assert gch.from_config(config, names=NAMES) == case.link
    assert gch.to_config(gch.from_config(config, names=NAMES)) == gch.to_config(case.link)


def test_config_of_a_users_function_needs_its_meaning():
    """Without names= a user's function is not found, and the sentence says how to give it."""
    config = gch.to_config(gch.stateless(rules.centred))
    with pytest.raises(KeyError, match=r"from_config: 'rules:centred' is not gradchain's\. .*names=\{'centred': …\}"):
        gch.from_config(config)
    other = gch.from_config(config, names={"centred": rules.with_weights})
    assert other == gch.stateless(rules.with_weights)


def test_config_of_a_users_link():
    """A class of the user's is written by name, and found in names= too."""

    class halve(gch.Transform):
        by: gch.Hyper = gch.Hyper(2.0)

        def update(self, g, state, ctx):
            return g / self.by, state

    tx = gch.chain(halve(3.0), gch.scale(-1.0))
    config = json.loads(json.dumps(gch.to_config(tx)))
    assert gch.from_config(config, names={"halve": halve}) == tx
    with pytest.raises(KeyError, match="halve"):
        gch.from_config(config)


# states through data and back


def advanced(case: Case, problem: Problem, params, state, steps: range):
    """Weights and state after some steps."""
    for t in steps:
        ctx = context(problem, params, t, t, scaled=case.scaled)
        grads = gch.Tensors.of(problem.gradient(t, params))
        if case.scaled:
            grads = case.tx.scale_loss(1.0, state, ctx) * grads
        updates, state = case.tx.update(grads, state, ctx)
        if updates is not None:
            params = gch.apply_updates(params, updates)
    return params, state


def roundtrip(case: Case, params, state):
    """A fresh state that was given what another one wrote, through a file that is loaded with weights_only."""
    file = io.BytesIO()
    torch.save(to_dict(case.tx, state), file)
    file.seek(0)
    report = LoadReport()
    fresh = case.tx.init(params)
    loaded = from_dict(case.tx, fresh, torch.load(file, weights_only=True), params.index, report)
    assert report.problems() == []
    return loaded


@rows
@pytest.mark.parametrize("absent", [{}, {"scale": {1, 2}, "body.bias": {0}}], ids=["all", "some-absent"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def test_save_load_continue_is_bitwise_equal(case: Case, absent, dtype):
    """Saved after 4 updates, loaded into a fresh chain and continued for 4 is 8 in a row, in every bit."""
    problem = case.problem(steps=8).to(dtype).without(absent)
    start = gch.Tensors.of(problem.params)
    whole = advanced(case, problem, start, case.tx.init(start), range(8))
    params, state = advanced(case, problem, start, case.tx.init(start), range(4))
    halves = advanced(case, problem, params, roundtrip(case, params, state), range(4, 8))
    assert same_bits(dict(whole[0]), dict(halves[0])) == []
    assert same_bits(stored(whole[1]), stored(halves[1])) == []
    assert numbers(whole[1]) == numbers(halves[1])


@rows
def test_a_saved_state_aliases_nothing(case: Case):
    """What was written does not move with the state, nor the state with it."""
    problem = case.problem(steps=4)
    start = gch.Tensors.of(problem.params)
    _, state = advanced(case, problem, start, case.tx.init(start), range(3))
    live = {t.untyped_storage().data_ptr() for t in stored(state).values() if t.numel()}
    written = [t for fields in to_dict(case.tx, state).values() for t in tensors_in(fields)]
    assert not [t for t in written if t.numel() and t.untyped_storage().data_ptr() in live]


def tensors_in(data):
    if isinstance(data, torch.Tensor):
        return [data]
    return [t for value in data.values() for t in tensors_in(value)] if isinstance(data, dict) else []


@rows
def test_a_state_knows_its_own_index_after_a_load(case: Case):
    """Entries of a loaded state are those of the parameters, in their order."""
    problem = case.problem(steps=4)
    start = gch.Tensors.of(problem.params)
    params, state = advanced(case, problem, start, case.tx.init(start), range(3))
    loaded = roundtrip(case, params, state)
    assert list(stored(loaded)) == list(stored(state))
    assert isinstance(params.index, Index)


def test_the_table_is_importable_without_its_peers():
    """Optax and jax are imported when a peer runs, so that a test of one link starts quickly."""
    assert "optax" not in vars(cases)
