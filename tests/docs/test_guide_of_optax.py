"""docs/optax.md is what its command writes, its code runs, and its schedules are Optax's."""

import re

import pytest
import torch
from cases import CASES
from doc_blocks import tables
from optax_guide import NOTES, PAGE, SCHEDULES, WRITTEN, answer, difference, page, shown, written
from optax_names import OPTAX
from test_completeness import optax_names

import gradchain as gch
from benchmarks.which import distance

TEXT = PAGE.read_text()
ROWS = tables(TEXT)["Optax"]


def test_the_page_is_what_the_command_writes():
    assert page() == TEXT


def test_every_name_of_optax_is_on_the_page_once():
    """In the table where gradchain has it, in the list where it has not."""
    listed = re.findall(r"`(\w+)`(?=[,:])", TEXT.partition("## Not here")[2])
    found = [*(row[0].strip("`") for row in ROWS), *listed]
    assert sorted(found) == sorted(optax_names())


def test_every_row_says_what_differs():
    """Also one whose note is taken away: it is the same only where a row of the tests runs both."""
    assert [row[0] for row in ROWS if not row[2]] == []
    compared = " ".join(peer.name for case in CASES for peer in case.peers)
    assert difference("adam", compared) == "the same" and difference("adam", "") == ""
    assert difference("unitwise_norm", compared) and not difference("join_schedules_of_none", compared)


def test_no_note_is_stale():
    public = optax_names()
    assert sorted({*NOTES, *WRITTEN, *SCHEDULES} - public) == []
    assert sorted(name for name in NOTES if not answer(name).startswith("gch.")) == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_code_of_a_row_is_there(row):
    """Code that makes something makes it; a name resolves, and is what error sentences answer."""
    name, code = row[0].strip("`"), row[1].strip("`")
    assert eval(code, {"gch": gch}) is not None
    assert name in WRITTEN or code in (shown(name), OPTAX.get(name))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_that_of_optax(name):
    """Beside the call of Optax whose arguments it has, in float32, through its end."""
    import optax

    ours, theirs = eval(WRITTEN[name], {"gch": gch}), eval(SCHEDULES[name], {"optax": optax})
    steps = [0, 1, 5, 9, 10, 11, 29, 30, 31, 49, 50, 51, 60, 61, 85, 86, 99, 100, 101, 120]
    expected = torch.tensor([float(theirs(step)) for step in steps])
    torch.testing.assert_close(torch.tensor([ours(step) for step in steps]), expected, rtol=1e-4, atol=1e-7)


def test_a_name_that_is_new_changes_the_page():
    """Of a sentence in the tables, and of a version."""
    assert written(["adamw", "adam"], "", "9.9").count("\n| `adam") == 2


# what a note claims of numbers, by Optax itself

TURNED = "lambda params: {n: optax.contrib.MuonDimensionNumbers(1, 0) for n in params}"
SCALE_BY_MUON = f"optax.contrib.scale_by_muon(weight_dimension_numbers={TURNED}, nesterov=False)"
MUON = f"optax.contrib.muon(lr, nesterov=False, muon_weight_dimension_numbers={TURNED})"


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (WRITTEN["scale_by_muon"], SCALE_BY_MUON, 0, 3e-8),
        (WRITTEN["scale_by_muon"].replace("False", "True"), SCALE_BY_MUON.replace("False", "True"), 1e-3, 0.1),
        (WRITTEN["scale_by_muon"].replace("None", '"original"', 1), SCALE_BY_MUON, 0.1, 9),
        ("gch.rules.muon(lr, nesterov=False, weight_decay=0.0, dtype=None, matrices=gch.min_ndim(2))", MUON, 0, 3e-8),
    ],
    ids=["as written", "nesterov", "factor", "whole rule"],
)
def test_muon_is_optaxs_at_the_arguments_that_are_told(ours, theirs, low, high):
    """And no nearer than it is said to be at others."""
    assert low <= distance(ours, theirs, ("matrix", "tall")) <= high


def test_the_warm_up_that_is_told_is_the_nearest_to_optaxs():
    theirs = "optax.contrib.schedule_free_adamw(lr, warmup_steps=10)"
    near = distance("gch.rules.schedule_free_adamw(gch.linear(0.0, lr, 10))", theirs)
    assert 0.01 < near < 0.06 < distance("gch.rules.schedule_free_adamw(lr, warmup_steps=10)", theirs)


def in_float64():
    import jax
    from jax import experimental

    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else experimental.enable_x64(True)


def test_optax_sums_and_warms_up_in_float32_also_under_x64():
    import jax
    import optax

    with in_float64():
        params = {"w": jax.numpy.ones(2, "float64")}
        state = optax.MultiSteps(optax.sgd(0.1), 2).init(params)
        assert state.acc_grads["w"].dtype == "float32"
        schedule = optax.warmup_cosine_decay_schedule(0.0, 0.1, 10, 100)
        assert schedule(jax.numpy.asarray(5, "int32")).dtype == "float32"
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    updater = gch.chain(gch.accumulate(2), gch.sgd(0.1)).bind({"w": weight})
    updater.update((weight / 3).sum())
    updater.update((weight / 3).sum())
    assert weight[0].item() == 1 - 0.1 * (1 / 3)


GRADIENTS = (1.0, 1.0, float("nan"), 1.0, 1.0, 1.0, 1.0, 1.0)


def moved_by_optax(outer):
    """The weight after each of these gradients, under both wrappers."""
    import jax
    import optax

    if outer == "MultiSteps":
        tx = optax.MultiSteps(optax.apply_if_finite(optax.sgd(1.0), 5), 2).gradient_transformation()
    else:
        tx = optax.apply_if_finite(optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation(), 5)
    w = jax.numpy.zeros(())
    state, found = tx.init(w), []
    for g in GRADIENTS:
        updates, state = tx.update(jax.numpy.asarray(g), state, w)
        w = optax.apply_updates(w, updates)
        found.append(float(w))
    return found


def moved_by_ours(*links):
    w = torch.nn.Parameter(torch.zeros(()))
    updater, found = gch.chain(*links, gch.sgd(1.0)).bind({"w": w}), []
    for g in GRADIENTS:
        updater.update(g * w)
        found.append(w.item())
    return found


def test_an_outer_wrapper_is_an_earlier_link():
    """Where MultiSteps is the outer one, Optax's weights never move again; ours drop that window."""
    gate, window = gch.skip_nonfinite(5), gch.accumulate(2)
    assert moved_by_ours(gate, window) == moved_by_optax("apply_if_finite") == [0, -1, -1, -1, -2, -2, -3, -3]
    assert moved_by_optax("MultiSteps") == [0, -1, -1, -1, -1, -1, -1, -1]
    assert moved_by_ours(window, gate) == [0, -1, -1, -1, -1, -2, -2, -3]
