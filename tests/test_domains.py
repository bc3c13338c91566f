"""What each field of a state may hold is declared beside it, and nothing else is loaded: for every row of the table."""

import copy
import math
import os
import re
from typing import Annotated, Any

import pytest
import torch
from cases import CASES, Case
from harness import context, same_bits
from torch import nn

import gradchain as gch
from gradchain.core.domain import Domain
from gradchain.core.slots import Slots
from gradchain.updater.state_dict import states, to_dict

INF, NAN = math.inf, math.nan
LONG = bool(os.environ.get("GRADCHAIN_LONG"))  # else every fourth row is given numbers from outside
META = torch.empty((), device="meta")
rows = pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
NUMBERS = (NAN, INF, -INF, -1, -1.0, -0.5, 0, 0.0, 0.5, 1, 3, 2.5, 1e300, 2**63, 10**400, True, None, "x", "", [], {},
           (1,), 1j, META, torch.ones(2), torch.tensor(NAN), torch.tensor(-1), torch.tensor(0.5), torch.tensor(1j),
           torch.tensor(True))  # fmt: skip


def states_of(case: Case, how: str = "as drawn"):
    """The state after four updates, and a bound chain that has it."""
    problem = case.problem(steps=4)
    if how != "as drawn":
        factor = {"inf": INF, "nan": NAN, "huge": 1e200, "zero": 0.0}[how]
        problem = problem.map(lambda tensors: {n: t.clone() for n, t in tensors.items()})
        for grads in problem.grads[1:]:
            for gradient in grads.values():
                gradient.mul_(factor)
    params = gch.Tensors.of(problem.params)
    state = case.tx.init(params)
    for t in range(4):
        ctx = context(problem, params, t, t, scaled=case.scaled)
        grads = gch.Tensors.of(problem.gradient(t, params))
        try:
            updates, state = case.tx.update(grads, state, ctx)
        except FloatingPointError:
            break
        params = gch.apply_updates(params, updates) if updates is not None else params
    updater = bound(case.tx, {name: nn.Parameter(p.detach().clone()) for name, p in problem.params.items()})
    saved = {**updater.state_dict(), "links": to_dict(case.tx, state)}
    report = updater.load_state_dict(copy.deepcopy(saved))
    assert report.problems() == []
    assert same(updater.state_dict()["links"], saved["links"])
    return state, updater


def bound(tx: gch.Transform, weights: dict[str, nn.Parameter]) -> gch.Updater:
    """Bound, with the sign flipped where it has to be."""
    try:
        return tx.bind(weights)
    except ValueError:
        return gch.chain(*tx.links, gch.scale(-1.0)).bind(weights)


def same(a: Any, b: Any) -> bool:
    """Bit for bit, NaN too."""
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and same_bits({"x": a}, {"x": b}) == []
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def inside(text: str, number: float) -> bool:
    """Whether a number lies in an interval as it is written; read here anew, for it is what the tests go by."""
    nan = text.endswith(" or NaN") or not text
    if number != number:
        return nan
    if not text:
        return True
    whole, left, low, high, right = re.match(r"(integer )?([\[(])(\S+), (\S+)([\])])", text).groups()
    low, high = float(low), float(high)
    above = number >= low if left == "[" else number > low
    below = number <= high if right == "]" else number < high
    return above and below and (not whole or number in (INF, -INF) or number == int(number))


def right(domain: Domain, value: Any) -> bool:
    """Whether a number field that declares this may hold the value."""
    if domain.kind is bool:
        return isinstance(value, bool) or (isinstance(value, torch.Tensor) and value.dtype == torch.bool)
    if domain.kind is str:
        return isinstance(value, str)
    if isinstance(value, torch.Tensor):
        if value.ndim or value.is_meta or value.is_complex():
            return False
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return False
    return not (domain.kind is int and isinstance(value, float)) and inside(domain.text, value)


def expect(updater: gch.Updater, saved: Any, where: str) -> None:
    """It is refused by name, and nothing is other than before; not strictly, the field stays as it was."""
    before = copy.deepcopy(updater.state_dict())
    with pytest.raises(ValueError, match=rf"^load_state_dict: .*{re.escape(where)}"):
        updater.load_state_dict(saved)
    assert same(updater.state_dict(), before)
    report = updater.load_state_dict(saved, strict=False)
    assert any(where in line for line in report.problems())
    assert same(updater.state_dict(), before)


@rows
def test_every_field_says_what_it_may_hold(case: Case):
    """Tensors, counts and what other libraries name themselves may hold what they like; numbers may not."""
    state, _ = states_of(case)
    for address, inner in states(case.tx, state):
        for name, value in inner.items():
            if not isinstance(value, (gch.Tensors, gch.Count, gch.Scalars, Slots)):
                domain = inner.domains[name]
                assert domain.text or domain.kind in (bool, str), f"{address}.{name} declares no interval"


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for i, case in enumerate(CASES) if LONG or i % 4 == 0])
def test_what_lies_outside_is_refused_by_name(case: Case):
    """Each field of each state with every kind of value, one at a time; what lies inside loads."""
    state, updater = states_of(case)
    links = {address: inner for address, inner in states(case.tx, state) if tuple(inner.items())}
    for address, inner in links.items():
        for name, value in inner.items():
            for candidate, is_right in candidates(inner.domains[name], value):
                saved = copy.deepcopy(updater.state_dict())
                saved["links"][address][name] = candidate
                if not is_right:
                    expect(updater, saved, address)


def candidates(domain: Domain, value: Any):
    """Values for a field, and whether it may hold them."""
    if isinstance(value, gch.Count):
        for number in NUMBERS:
            ok = type(number) is int and 0 <= number < 2**63
            yield number, ok
            yield {n: number if i == 0 else 0 for i, n in enumerate(value.names)}, ok
        yield {"other": 1}, False
    elif isinstance(value, Slots):
        yield from ((number, False) for number in NUMBERS if not isinstance(number, dict))
        for name, slot in value.items():
            for key, held in slot.items():
                for bad in (META, "x", torch.empty(3, 7, device="meta"), [META]):
                    yield {**value, name: {**slot, key: bad}}, held is None and bad == "x"
                if key == "step":
                    for bad in (-1, NAN, INF, torch.tensor(-1.0), torch.tensor(NAN)):
                        yield {**value, name: {**slot, key: bad}}, False
    elif isinstance(value, gch.Tensors):
        yield from ((number, False) for number in NUMBERS if not isinstance(number, dict))
        for name, tensor in value.items():
            for bad in (NUMBERS[0], "x", None, tensor.to("meta"), tensor.to_sparse(), tensor.bool(), tensor[..., None],
                        tensor.to(torch.complex64), tensor.int()):  # fmt: skip
                yield {**value, name: bad}, False
            for number in (NAN, INF, -INF, -1.0, -1e-300, 0.0, 1.0):
                other = tensor.clone()
                if other.numel() and other.dtype == torch.float64:
                    other.view(-1)[-1] = number
                    yield {**value, name: other}, inside(domain.text, number)
    elif not isinstance(value, gch.Scalars):
        yield from ((number, right(domain, number)) for number in NUMBERS)


@rows
@pytest.mark.parametrize("how", ["inf", "nan", "huge", "zero"])
def test_whatever_a_run_writes_loads(case: Case, how: str):
    """Also one that diverged: `states_of` loads what it wrote."""
    states_of(case, how)


# what is declared


class Declared(gch.State):
    whole_number: Annotated[int, "integer [0, 5]"] = 0
    word: str = "a"
    told: bool = False
    number: float = 0.0
    rate: Annotated[float, "(0, 1)"] = 0.5
    anything: Any = None
    hidden: "Unknown" = 3.0  # noqa: F821  # nobody has it in sight


class More(Declared):
    rate: Annotated[float, "(0, 2)"] = 0.5
    last: Annotated[gch.Tensors, "integer (-2, inf) or NaN"] = None


def test_declarations_are_read_from_the_annotations():
    """Words of an interval, with the type; a class that derives from another has its fields too."""
    assert Declared.domains == {
        "whole_number": Domain(int, "integer [0, 5]"), "word": Domain(str), "told": Domain(bool),
        "number": Domain(float), "rate": Domain(float, "(0, 1)"), "anything": Domain(), "hidden": Domain(),
    }  # fmt: skip
    assert More.domains["rate"] == Domain(float, "(0, 2)") and More.domains["word"] == Domain(str)
    assert list(More.domains) == list(More.own)


@pytest.mark.parametrize("domain", sorted({*Declared.domains.values(), *More.domains.values()}, key=repr), ids=repr)
def test_domains_hold_what_they_say(domain: Domain):
    """Against the rule as it is read here, for numbers of every kind."""
    for number in NUMBERS:
        assert domain.holds(number) == right(domain, number), number
    if domain.text:
        for number in (NAN, INF, -INF, -2.0, -1.9, -1.0, 0.0, 0.3, 1.0, 5.0, 6.0):
            for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
                tensor = (
                    torch.tensor([[1.0, number]], dtype=dtype) if inside(domain.text, 1.0) else torch.tensor([number])
                )
                found = domain.offender(tensor)
                assert (found is None) == inside(domain.text, tensor[..., -1].item()), (number, dtype)


def test_the_parts_of_complex_tensors_are_looked_at():
    """Each part is a number, of a conjugate view too."""
    domain = Domain(None, "[0, inf] or NaN")
    assert domain.offender(torch.tensor([1 + 2j])) is None
    assert domain.offender(torch.tensor([1 + 2j]).conj()) == -2.0
    assert domain.offender(torch.ones(0)) is None


def test_an_interval_that_reads_like_none_is_an_error_where_it_stands():
    """At the class, not when a checkpoint is loaded."""
    with pytest.raises(
        ValueError, match=r"Interval: must read like '\[0, 1\)' or 'integer \[1, inf\)', got 'positive'."
    ):

        class Wrong(gch.State):
            n: Annotated[int, "positive"] = 0


@pytest.mark.parametrize("name", ["domains", "problem", "own", "held"])
def test_names_that_every_state_has_are_refused(name):
    """As a field they would hide it."""
    with pytest.raises(TypeError, match=f"a field must not be called {name!r}, which every State has already"):
        type("Taken", (gch.State,), {"__annotations__": {name: int}, name: 0, "__module__": __name__})


@pytest.mark.parametrize("huge", [10**400, -(10**400), 2**1024])
def test_integers_that_no_float_holds_are_out_of_every_interval(huge):
    """They are refused as any other number, and not by Python."""
    for make in (gch.scale, gch.accumulate, gch.scale_by_learning_rate, gch.clip_by_norm, gch.adam):
        with pytest.raises(ValueError, match=" must be "):
            make(huge)
