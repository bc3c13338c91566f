"""Parameters without a gradient: their slots and counts rest, the others go on, and both are as in torch.optim."""

import pytest
import torch
from cases import CASES, Case
from harness import ABSENT, gap, leaves, numbers, same_bits, stored, trajectory
from peers import Peer

import gradchain as gch

rows = pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
PAIRS = [pytest.param(case, peer, id=f"{case.id}-{peer.name}") for case in CASES for peer in case.peers if peer.absent]


@pytest.mark.parametrize(("case", "peer"), PAIRS)
def test_absent_parameters_are_to_us_what_grad_none_is_to_torch(case: Case, peer: Peer):
    """In 20 steps in which some parameters have no gradient, all move as the peer's do, with counts of their own."""
    problem = case.problem().without(ABSENT)
    ours = trajectory(case.tx, problem, scaled=case.scaled, watch=case.watch)
    assert gap(ours, peer.run(problem)) <= peer.rtol


@pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in CASES if c.scope != "joint" and c.own_time])
def test_a_step_in_which_it_is_absent_is_no_step_to_a_parameter(case: Case):
    """A parameter moves as if the steps without its gradient had not been, but that schedules went on."""
    if not case.alone:
        return
    problem = case.problem().without(ABSENT)
    together = trajectory(case.tx, problem)
    for n in problem.params:
        alone = problem.map(lambda tensors, n=n: {m: t for m, t in tensors.items() if m == n})
        assert gap(trajectory(case.tx, alone, own_time=True), [{n: row[n]} for row in together]) <= 1e-13


@pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in CASES if c.link.role != "average"])
def test_slots_and_counts_of_absent_parameters_stay_bit_equal(case: Case):
    """What a link keeps for a parameter is the same object, or has the same bits, after a step without it."""

    def seen(t, grads, before, out, after):
        gone = [n for n, steps in ABSENT.items() if t in steps]
        assert set(gone).isdisjoint(grads)
        old, new = (
            {a: x for a, x in stored(s).items() if a.endswith(tuple(f"[{n}]" for n in gone))} for s in (before, after)
        )
        windows = {a for a in old.keys() | new.keys() if ".window[" in a}
        assert same_bits({a: old[a] for a in old.keys() - windows}, {a: new[a] for a in new.keys() - windows}) == []
        counts = [{a: x for a, x in numbers(s).items() if isinstance(x, dict)} for s in (before, after)]
        for address in counts[0]:
            for n, count in counts[0][address].items():
                now = counts[1][address][n]
                assert now == count + (n not in gone) if isinstance(count, int) else now == count or n not in gone
        if out is not None and not case.may_hold:
            assert set(gone).isdisjoint(out.tensors if isinstance(out, gch.Weights) else out)

    trajectory(case.tx, case.problem().without(ABSENT), scaled=case.scaled, seen=seen)


def test_averages_run_over_absent_parameters():
    """A parameter without a gradient keeps its weight; its average moves on towards it."""
    case = next(case for case in CASES if case.id == "average_params")
    seen = []
    trajectory(
        case.tx, case.problem().without({"scale": set(range(10, 20))}), watch=case.watch, seen=lambda *x: seen.append(x)
    )
    before, after = (stored(state)["/average_params.average[scale]"] for state in (seen[15][2], seen[15][4]))
    assert before != after


def test_some_row_has_a_count():
    """The tests above see links whose state has a Count."""
    counted = {
        case.subject
        for case in CASES
        for _, value in leaves(case.tx.init(gch.Tensors.of(case.problem().params)))
        if isinstance(value, gch.Count)
    }
    assert "scale_by_adam" in counted


# truth and arithmetic of counts


def unequal() -> gch.Count:
    return gch.Count(["a", "b"]).tick({"a": 1})


@pytest.mark.parametrize("value", [unequal(), unequal().value, unequal() > 0, 0.9 ** unequal()])
def test_the_truth_of_many_numbers_raises_and_names_where(value):
    """`if count > 3` would be one answer for all parameters."""
    with pytest.raises(TypeError, match=r"In place of if use gch\.where\(condition, a, b\)\.$"):
        bool(value)


def test_an_unequal_count_is_no_int():
    """int() of it raises, and names where."""
    with pytest.raises(TypeError, match=r"gch\.where"):
        int(unequal())


def test_a_count_is_an_int_while_all_agree():
    """It has the truth, the arithmetic and the comparisons of one, and becomes one again when all agree again."""
    count = gch.Count(["a", "b"])
    assert not count
    count = count.tick({"a": 1, "b": 1}).tick({"a": 1, "b": 1})
    assert (int(count), count + 1, 1 - count, 0.5**count, count > 1, count == 2) == (2, 3, -1, 0.25, True, True)
    assert int(unequal().tick({"b": 1})) == 1


def test_where_takes_each_parameter_by_its_own_count():
    """where(count > …, a, b) chooses for each parameter, among numbers and among Tensors."""
    assert dict(gch.where(unequal() > 0, 1.0, 2.0)) == {"a": 1.0, "b": 2.0}
    x = gch.Tensors.of({"a": torch.ones(2), "b": torch.ones(2)})
    mixed = gch.where(unequal() > 0, 1.0, 0.0) * x
    assert [mixed[n].sum().item() for n in "ab"] == [2.0, 0.0]
