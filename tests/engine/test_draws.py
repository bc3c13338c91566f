"""Random numbers in every executor: the very bits of the reference, whatever lies around them."""

from __future__ import annotations

import copy

import pytest
import torch
from random_chains import KINDS_OF_NUMBERS, Shapes, by_hand, noisy, probe, steps
from torch import nn
from twins import Twins, by_executors

import gradchain as gch
from gradchain.core.place import Place
from gradchain.core.random import KINDS
from gradchain.engine.executors.compiled import Compiled
from gradchain.engine.executors.print_c import source
from gradchain.engine.planning.lower import Drawn, Program

EXECUTORS = ("native", "blocks", "foreach")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtypes", KINDS_OF_NUMBERS)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_executor_gives_the_bits_of_the_reference(executor, dtypes, kind):
    """In all layouts: transposed, channels_last, permuted, 0-d, empty, longer than an item; pairs of reals."""
    model = Shapes(KINDS_OF_NUMBERS[dtypes])
    tx = gch.chain(probe(kind))
    wanted = by_hand(tx, model)
    updater = by_executors(tx.bind(model), executor)
    steps(updater)
    engine = updater._bound.engine
    assert engine.reason == ""
    assert {part.executor for part in engine.last} == {executor}
    assert any(part.program.draws for part in engine.last)
    for name, weight in model.named_parameters():
        assert torch.equal(weight.detach(), wanted[name]), name


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_number_of_threads_changes_no_bit(executor, threads, monkeypatch):
    monkeypatch.setattr("gradchain.engine.executors.native.PARALLEL", 1)
    before, found = torch.get_num_threads(), []
    try:
        for many in (1, threads):
            torch.set_num_threads(many)
            model = Shapes((torch.float32,), long=300_001)
            updater = by_executors(gch.chain(noisy(0)).bind(model), executor)
            steps(updater, 3)
            assert {part.executor for part in updater._bound.engine.last} == {executor}
            found.append([p.detach().clone() for p in model.parameters()])
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("turn", [True, False], ids=["layouts", "contiguous"])
def test_steps_run_again_draw_anew_and_are_recorded_no_more(executor, turn):
    model = Shapes((torch.float32, torch.float64)) if turn else nn.Linear(7, 9)
    link = gch.chain(gch.add_noise(0.1, 0.5, 1), gch.scale(-0.1))
    twins = Twins(link, model, (executor,))
    for t in range(6):
        twins.gradients(t)
    twins.compare()
    engine = twins.ours._bound.engine
    assert engine.num_replayed == (0 if executor == "foreach" else 5)  # as on CUDA, where numbers stay on the device
    assert engine.num_plans == 1


def test_a_reduction_reads_the_same_numbers_as_what_is_written():
    """Over stretches that end between two blocks of elements, and beside gradients of zero."""
    for executor in EXECUTORS:
        model = nn.ParameterDict({f"w{n}": nn.Parameter(torch.zeros(n)) for n in (1, 15, 17, 63, 64, 65, 79, 83, 150)})
        tx = gch.chain(gch.add_noise(1.0, 0.0, 2), gch.clip_by_norm(1.0, eps=0.0), gch.scale(-1.0))
        updater = by_executors(tx.bind(model), executor)
        steps(updater, 1)
        assert {part.executor for part in updater._bound.engine.last} == {executor}
        whole = torch.cat([p.detach().flatten() for p in model.parameters()]).double()
        assert float(whole.norm()) == pytest.approx(1.0, abs=1e-6)


def test_a_sum_of_nothing_but_random_numbers_is_that_of_the_reference():
    class summed(gch.Transform):
        descends = True

        def update(self, g, state, ctx):
            drawn = ctx.random(0).normal(g)
            ctx.record("norm", drawn.norm())
            ctx.record("sum", drawn.sum())
            return -drawn, state

    found = []
    for executor in (*EXECUTORS, "reference"):
        model = Shapes((torch.float32, torch.float64, torch.complex64), long=70_001)
        updater = by_executors(gch.chain(summed()).bind(model), executor)
        info = steps(updater, 1)
        assert (updater._bound.engine.reason == "") == (executor != "reference")
        found.append([float(info[f"summed.{name}"]) for name in ("norm", "sum")])
    for one in found:
        assert one == pytest.approx(found[-1], rel=1e-6)


# what numbers follow from, through a bound chain


def test_a_run_that_is_saved_and_loaded_goes_on_with_the_same_numbers(tmp_path):
    whole, first = Shapes((torch.float32,)), Shapes((torch.float32,))
    updater = gch.chain(noisy(3)).bind(whole)
    steps(updater, 6)
    half = gch.chain(noisy(3)).bind(first)
    steps(half, 3)
    saved = copy.deepcopy((first.state_dict(), half.state_dict()))
    second = Shapes((torch.float32,), seed=1)
    second.load_state_dict(saved[0])
    rest = gch.chain(noisy(3)).bind(second)
    rest.load_state_dict(saved[1])
    for t in range(3, 6):
        steps(rest, 1, t)
    for one, two in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)


def _moved(tx: gch.Transform, name: str = "weight") -> torch.Tensor:
    """The weight after one step from zero."""
    model = nn.ParameterDict({name: nn.Parameter(torch.zeros(50))})
    tx.bind(model).step({name: torch.zeros(50)})
    return model[name].detach()


NOISE = gch.add_noise(1.0, 0.0, 0)


def test_two_links_of_one_class_and_two_places_draw_for_themselves():
    down = gch.scale(-1.0)
    alone = _moved(gch.chain(NOISE, down))
    assert torch.equal(alone, _moved(gch.chain(NOISE, gch.clip_by_norm(1e9), down)))
    named = _moved(gch.chain(("another", NOISE), down))
    masked = _moved(gch.chain(gch.masked(NOISE, gch.named("w*")), down))
    branch = _moved(gch.chain(gch.partition((gch.named("w*"), NOISE)), down))
    renamed = _moved(gch.chain(NOISE, down), "kernel")
    twice = _moved(gch.chain(NOISE, NOISE, down)) - alone
    found = [alone, named, masked, branch, renamed, twice]
    for i, one in enumerate(found):
        for two in found[:i]:
            assert (one == two).double().mean() < 0.1


def test_numbers_of_a_link_in_a_mask_do_not_follow_from_who_else_is_in_it():
    def moved(*names):
        model = nn.ParameterDict({n: nn.Parameter(torch.zeros(9)) for n in ("a", "b", "c")})
        updater = gch.chain(gch.masked(NOISE, gch.named(*names)), gch.scale(-1.0)).bind(model)
        updater.step({n: torch.zeros(9) for n in ("a", "b", "c")})
        return {n: p.detach() for n, p in model.items()}

    wide, narrow = moved("a", "b"), moved("b")
    assert torch.equal(wide["b"], narrow["b"])
    assert not narrow["a"].any() and not wide["c"].any()


def test_an_update_that_was_skipped_is_tried_again_with_the_same_numbers():
    model, other = nn.Linear(5, 3), nn.Linear(5, 3)
    other.load_state_dict(model.state_dict())
    tx = gch.chain(gch.skip_nonfinite(), NOISE, gch.scale(-0.1))
    one, two = tx.bind(model), tx.bind(other)
    zero = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    bad = {n: torch.full_like(p, torch.nan) for n, p in model.named_parameters()}
    for given in (zero, bad, bad, zero):
        one.step(given)
    for given in (zero, zero):
        two.step(given)
    assert one.num_updates == two.num_updates == 2
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_a_micro_batch_that_a_window_holds_is_no_step():
    model, other = nn.Linear(5, 3), nn.Linear(5, 3)
    other.load_state_dict(model.state_dict())
    held = gch.chain(gch.accumulate(3), NOISE, gch.scale(-0.1)).bind(model)
    plain = gch.chain(NOISE, gch.scale(-0.1)).bind(other)
    zero = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for _ in range(6):
        held.step(zero)
    for _ in range(2):
        plain.step(zero)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


def test_weights_that_change_their_layout_keep_their_numbers():
    model = nn.Conv2d(3, 4, 3)
    other = copy.deepcopy(model)
    tx = gch.chain(NOISE, gch.scale(-0.1))
    one, two = tx.bind(model), tx.bind(other)
    for t in range(4):
        if t == 2:
            other.to(memory_format=torch.channels_last)
        for m, updater in ((model, one), (other, two)):
            updater.step({n: torch.zeros_like(p) for n, p in m.named_parameters()})
            assert updater._bound.engine.reason == ""
    assert not other.weight.is_contiguous()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


# parts of a whole


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [(0, 3), (3, 7), (7, 11), (1, 2)])
@pytest.mark.parametrize("across", [False, True], ids=["rows", "columns"])
def test_a_shard_moves_as_its_part_of_the_whole(executor, dtype, rows, across):
    """Rows follow each other in memory, from an element that is no multiple of four; columns have gaps."""
    whole, part = (nn.Module() for _ in range(2))
    shape, cut = (11, 13), slice(*rows)
    where = (slice(None), cut) if across else (cut, slice(None))
    whole.weight = nn.Parameter(torch.zeros(shape, dtype=dtype))
    part.weight = nn.Parameter(torch.zeros(shape, dtype=dtype)[where].clone())
    tx = gch.chain(gch.add_noise(1.0, 0.5, 4), gch.scale(-1.0))
    updaters = [by_executors(tx.bind(m), executor) for m in (whole, part)]
    for fact in updaters[1]._bound.target.index.facts:
        fact.place = Place(shape, (0, rows[0]) if across else (rows[0], 0))
    for updater in updaters:
        steps(updater, 3)
        assert {p.executor for p in updater._bound.engine.last} == {executor}
    assert whole.weight.abs().min() > 0
    assert torch.equal(part.weight, whole.weight[where])


# executors that cannot, and texts


def test_inductor_says_why_it_draws_nothing():
    drawn = Drawn("signs", 4, False, (("entry", 0), ("entry", 1), ("scalar", 0), ("scalar", 1)))
    program = Program([0], [0, 1], [0, 1], stores=[(0, ("draw", 0))], draws=[drawn])
    assert "random numbers" in Compiled("cpu").legal(program, [torch.float32])
    assert "WORDS" in source(program, [torch.float32])


def test_keys_are_kept_and_hold_no_index():
    model = nn.Linear(3, 2)
    updater = gch.chain(NOISE, gch.scale(-1.0)).bind(model)
    steps(updater, 2)
    seed, kept = updater._bound.target.index.memo["random", "add_noise"]
    assert seed == 0
    assert [(type(column), column.dtype, len(column)) for column in kept] == [(torch.Tensor, torch.float64, 2)] * 2


class reseeded(gch.Transform):
    """Draw with another seed at each step, and of parameters with a gradient that a selector names."""

    descends = True

    def update(self, g, state, ctx):
        seed = int(ctx.observed.get("seed", 0))
        some = g.select(ctx.members(gch.named("head.*")))
        return -g.overlay(ctx.random(seed).normal(some, draw=seed)), state


@pytest.mark.parametrize("executor", EXECUTORS)
def test_seeds_may_change_and_no_parameter_need_be_there(executor):
    twins = Twins(gch.chain(reseeded()), Shapes((torch.float32,)), (executor,))
    for t in range(6):
        twins.each(lambda _, updater, t=t: updater.observe("seed", t // 2))
        twins.gradients(t, absent=[n for n in twins.start if n.startswith("head")] if t in (1, 4) else ())
        index = twins.ours._bound.target.index
        kept = [
            sub.memo["random", "reseeded"]
            for sub in (index, *index._subsets.values())
            if ("random", "reseeded") in sub.memo
        ]
        assert all(len(value) == 2 for value in kept)
    for one, two in zip(*(m.parameters() for m in twins.models), strict=True):
        assert torch.equal(one, two)
