"""What a step costs by CUDA's default, counted on the CPU, where the same calls are made: calls, bytes, memory, waits.

A call here is one that torch dispatches and that is no view: on CUDA it is a launch, or as many as a list of this
length takes. Bytes are those of the tensors that it reads and writes.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import pytest
import torch
from test_equal import radam
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from twins import STAND_INS, by_executors

import gradchain as gch
from benchmarks.memory import LiveBytes
from gradchain.engine.recording.numbers import Number

ELEMENTS = 1_500_000


class Counted(TorchDispatchMode):
    """Calls by name, and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        schema = func._schema
        if any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns):
            return out  # a view
        self.calls[func.overloadpacket.__name__] += 1
        told = (kwargs or {}).get("found_inf")
        if told is not None and told.item() == 1.0:
            return out  # a fused kernel that is told to leave everything as it is reads that number alone
        known: set[int] = set()
        given = (*args, *((kwargs or {}).get(a.name) for a in schema.arguments[len(args) :]))
        for argument, value in zip(schema.arguments, given, strict=True):
            written = argument.alias_info is not None and argument.alias_info.is_write
            both = written and "copy_" not in func.overloadpacket.__name__ and argument.name != "out"
            for tensor in tensors(value):
                known.add(id(tensor))
                self.bytes += tensor.nbytes * (2 if both else 1)
        self.bytes += sum(t.nbytes for t in tensors(out) if id(t) not in known)
        return out


def tensors(tree):
    return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]


@dataclasses.dataclass
class Cost:
    """Of one step: calls, and per parameter the bytes moved and those that are there at once beside the model."""

    calls: Counter[str]
    bytes: float
    peak: float
    updater: gch.Updater

    @property
    def number(self) -> int:
        return sum(self.calls.values())


def cost(tx, count: int = 100, executors: str = "fused", dtype=torch.float32, lent: bool = False) -> Cost:
    """What the third step of a chain costs; its peak is that of the first, in which kept memory is made as well."""
    sizes = itertools.islice(itertools.cycle([ELEMENTS // count]), count)
    shapes = [(n,) if i % 2 else (n // 10, 10) for i, n in enumerate(sizes)]
    model = nn.ParameterList([nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes])
    updater = by_executors(tx.bind(model), *STAND_INS[executors])
    total = sum(p.numel() for p in model)
    peak, counted = 0, Counted()
    for t in range(3):
        mode = LiveBytes() if t < 2 else counted
        grads = {n: torch.randn_like(p) for n, p in model.named_parameters()}
        if not lent:
            for (_, p), g in zip(model.named_parameters(), grads.values(), strict=True):
                p.grad = g
        with mode:
            updater.step(grads) if lent else updater.step()
        peak = max(peak, mode.peak) if isinstance(mode, LiveBytes) else peak
        assert updater._bound.engine.reason == ""
        assert {part.executor for part in updater._bound.engine.last} <= set(STAND_INS[executors])
    return Cost(counted.calls, counted.bytes / total, peak / total, updater)


def recipe(**decay):
    return gch.chain(gch.clip_by_norm(1.0), gch.adamw(gch.cosine(1e-2, 1e-3, 9), **decay), gch.average_params(0.9))


@pytest.mark.parametrize("lent", [False, True], ids=["taken", "lent"])
@pytest.mark.parametrize("decay", [{}, {"mask": gch.min_ndim(2)}], ids=["plain", "masked"])
def test_clip_adamw_average(decay, lent):
    """At most 40 calls and 60 bytes per parameter, at any number of parameters, and 4 bytes beside them."""
    found = [cost(recipe(**decay), count, lent=lent) for count in (10, 100, 1000)]
    for one in found:
        assert one.number <= 40, one.calls
        assert one.bytes <= 60
        assert one.peak <= 4
        assert "fused" in {part.executor for part in one.updater._bound.engine.last}
    assert found[0].calls == found[1].calls == found[2].calls
    assert found[1].calls["_fused_adamw_"] == (2 if lent else 1) * (2 if decay else 1)


def rated():
    rate = gch.multiply(0.1, (gch.min_ndim(2), 2.0))
    return gch.chain(gch.clip_by_norm(1.0), gch.sgd(rate, momentum=0.9))


CHAINS = {
    "lists": (recipe, "foreach", 80, 150),
    "each clipped": (lambda: gch.chain(gch.clip_by_norm(1.0, per="tensor"), gch.adamw(0.01)), "fused", 130, 190),
    "lion": (lambda: gch.lion(0.01), "fused", 15, 70),
    "momentum": (lambda: gch.sgd(0.05, momentum=0.9, nesterov=True), "fused", 5, 30),
    "nadamw": (lambda: gch.nadamw(0.01), "fused", 60, 150),
    "rates": (rated, "fused", 30, 61),
    "gate": (lambda: gch.chain(gch.skip_nonfinite(), recipe()), "fused", 40, 60),
    "amp": (lambda: gch.chain(gch.amp_scale(1.0, always=True), recipe()), "fused", 40, 60),
    "masks": (lambda: gch.chain(gch.nan_to_num(), gch.sgd(0.1)), "fused", 140, 250),
    "branches": (lambda: gch.chain(radam(), gch.scale(-0.1)), "fused", 40, 120),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_the_number_of_calls_is_that_of_the_program(name):
    """Whatever the chain, with ten or a thousand parameters, and within 4 bytes per parameter beside them."""
    make, executors, calls, most = CHAINS[name]
    few, many = cost(make(), 10, executors), cost(make(), 1000, executors)
    assert few.calls == many.calls
    assert few.number <= calls, few.calls
    assert few.bytes <= most
    assert max(few.peak, many.peak) <= 4.2  # and what numbers and small rows' gaps take


NO_LAUNCH = {"empty", "empty_like", "new_empty", "promote_types"}
ROWS = {
    "centred": lambda: gch.chain(gch.rules.centralize(), gch.sgd(0.1)),
    "of rows": lambda: gch.chain(gch.add_noise(0.1, 0.5, 1), gch.rules.adaptive_grad_clip(0.3), gch.sgd(0.1)),
    "factored": lambda: gch.adafactor(0.1),
}


@pytest.mark.parametrize("name", ROWS)
def test_reductions_of_rows_are_calls_for_each_shape(name):
    """Not for each parameter: those of one shape are computed on together. What is no matrix has no axes."""
    found = []
    for count in (4, 40):
        model = nn.ParameterList([nn.Parameter(torch.randn(s)) for s in [(6, 5), (9, 4), (7,)] * count])
        updater = by_executors(ROWS[name]().bind(model), *STAND_INS["fused"])
        for t in range(3):
            counted = Counted()
            grads = {n: torch.full_like(p, 1.0 + t) for n, p in model.named_parameters()}
            with counted:
                updater.step(grads)
        assert updater._bound.engine.reason == ""
        assert {part.executor for part in updater._bound.engine.last} <= {"fused", "foreach"}
        over_axes = {n for part in updater._bound.engine.last if part.program.grid is not None for n in part.names}
        assert over_axes >= {n for n, p in model.named_parameters() if p.ndim == 2}
        assert name != "centred" or len(over_axes) == 2 * count
        found.append({n: many for n, many in counted.calls.items() if n not in NO_LAUNCH})
    assert found[0] == found[1]


def test_random_numbers_are_drawn_for_many_parameters_at_once():
    few, many = (cost(gch.chain(gch.add_noise(0.1, 0.5, 1), gch.sgd(0.1)), count) for count in (100, 1000))
    assert few.calls == many.calls
    assert many.number <= 5000  # in some 16 chunks, of what is made of words of 64 bits
    assert max(few.peak, many.peak) <= 4.2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=lambda d: str(d)[6:])
def test_other_dtypes(dtype):
    few, many = cost(recipe(), 10, dtype=dtype), cost(recipe(), 1000, dtype=dtype)
    assert few.number <= 130, few.calls
    assert few.number == many.number
    assert "to" not in few.calls
    assert few.bytes <= (200 if dtype is not torch.float64 else 120)
    assert max(few.peak, many.peak) <= 4.2


def test_numbers_of_the_device_are_read_by_nobody(monkeypatch):
    """A chain without a gate waits for nothing; one with a gate waits once."""
    reads: list[str] = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        real = getattr(torch.Tensor, name)

        def seen(tensor, *args, _real=real, _name=name, **kwargs):
            reads.append(_name)
            return _real(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, seen)
    chains = [
        recipe(),
        gch.chain(gch.clip_by_norm(1.0, per="tensor"), gch.adamw(0.01)),
        gch.chain(gch.skip_nonfinite(), recipe()),
    ]
    waits = []
    for tx in chains:
        model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        updater = by_executors(tx.bind(model), *STAND_INS["fused"])
        for _ in range(3):
            reads.clear()
            updater.step({n: torch.ones_like(p) for n, p in model.named_parameters()})
        waits.append(list(reads))
    assert waits == [[], [], ["__bool__"]]
    assert type(updater._bound.records["clip_by_norm.norm"]) is Number


def test_a_number_chosen_on_the_device_has_the_hosts_digits():
    class choosing(gch.Transform):
        def update(self, u, state, ctx):
            ctx.record("share", gch.where(u.norm() > 0.0, 0.1, 1.0))
            return u, state

    updater = by_executors(gch.chain(choosing(), gch.sgd(0.1)).bind(nn.Linear(3, 2)), *STAND_INS["foreach"])
    updater.step({"weight": torch.ones(2, 3), "bias": torch.ones(2)})
    assert float(updater.metrics["share"]) == 0.1


def test_gradients_that_stay_the_users_are_not_written():
    for lent, kept in ((True, True), (False, False)):
        model = nn.Linear(300, 300)
        updater = by_executors(recipe().bind(model), *STAND_INS["fused"])
        grads = {n: torch.randn_like(p) for n, p in model.named_parameters()}
        before = {n: g.clone() for n, g in grads.items()}
        if lent:
            updater.step(grads)
        else:
            for n, p in model.named_parameters():
                p.grad = grads[n]
            updater.step()
        assert all(torch.equal(grads[n], before[n]) for n in grads) == kept


def test_what_somebody_holds_is_not_written():
    """A tensor that a link brought, in the place of a gradient, stays as it is: the fused kernel gets a copy."""
    held: dict[str, torch.Tensor] = {}

    class bringing(gch.Transform):
        def update(self, u, state, ctx):
            if not held:
                held.update({n: torch.full_like(t, 3.0) for n, t in ctx.params.items()})
            return u.overlay(gch.Tensors.of(held)), state

    model = nn.Linear(3, 2)
    tx = gch.chain(bringing(), gch.scale(0.5), gch.sgd(0.1, momentum=0.9))
    updater = by_executors(tx.bind(model), *STAND_INS["fused"])
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        updater.step()
    assert "fused" in {part.executor for part in updater._bound.engine.last}
    assert all(bool((t == 3.0).all()) for t in held.values())


def entries(count: int, dtype: torch.dtype) -> gch.Tensors:
    generator = torch.Generator().manual_seed(0)
    return gch.Tensors.of({f"w{i}": torch.randn(7, 3, generator=generator).to(dtype) for i in range(count)})


FACTOR = torch.tensor(0.37, dtype=torch.float64)
REFERENCE = {
    "norm": (lambda g: g.norm(), lambda g: sum(t.double().square().sum() for t in g.values()).sqrt()),
    "norms": (lambda g: g.norms(p=1)["w3"], lambda g: torch.linalg.vector_norm(g["w3"], 1, dtype=torch.float64)),
    "finite": (lambda g: g.all_finite(), lambda g: all(bool(t.isfinite().all()) for t in g.values())),
    "factor": (lambda g: (FACTOR * g).abs()["w3"], lambda g: (g["w3"].to(torch.float32) * FACTOR).abs()),
    "sum": (lambda g: (g + FACTOR * g)["w3"], lambda g: g["w3"].float() + FACTOR * g["w3"].float()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", REFERENCE)
def test_the_reference_makes_few_calls_too(name, dtype):
    """As many kernels for a hundred tensors as for ten, and what they give tensor by tensor, to the bit."""
    rule, each = REFERENCE[name]
    counts = []
    with torch.no_grad():
        for count in (10, 100):
            g = entries(count, dtype)
            with Counted() as counted:
                found = rule(g)
            counts.append({n: c for n, c in counted.calls.items() if n not in ("empty_like", "_local_scalar_dense")})
            want = each(g)
            if not isinstance(want, bool):
                found = torch.as_tensor(found, dtype=want.dtype)
                assert torch.equal(found, want) or (name == "norm" and torch.allclose(found, want, rtol=1e-14))
            else:
                assert found is want
    assert counts[0] == counts[1], counts


def test_the_largest_of_many_numbers_is_one_launch():
    numbers = gch.Scalars({f"w{i}": torch.tensor(float(i), device="meta") for i in range(50)})
    with Counted() as counted:
        numbers.largest()
    assert counted.calls == {"stack": 1, "amax": 1}
    assert gch.Scalars({"a": 1.0, "b": float("nan"), "c": 3.0}).largest() != 3.0
    assert gch.Scalars({"a": 1.0, "c": 3.0}).largest() == 3.0
    assert gch.Scalars({}).largest() == 0.0


class Fails(TorchDispatchMode):
    """One call finds no memory, before it does anything."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.left -= 1
        if not self.left:
            raise MemoryError("there is none")
        return func(*args, **(kwargs or {}))


def kept_memory(updater):
    runners = [part.runner for plan in updater._bound.engine._plans.values() for part in plan.parts]
    plans = [plan for runner in runners for plan in runner._plans.values()]
    assert any(plan.kept is not None for plan in plans)
    return sum(plan.kept.memory.untyped_storage().nbytes() for plan in plans if plan.kept is not None)


def test_kept_memory_is_given_back_whatever_fails():
    """At each call of a step: nothing is held for a step that may never come, and the step can be made again."""

    def begun():
        torch.manual_seed(0)
        model = nn.ParameterList([nn.Parameter(torch.randn(n).to(torch.bfloat16)) for n in (3, 4)])
        tx = gch.chain(gch.clip_by_norm(0.1), gch.rules.lamb(0.1), gch.average_params(0.9))
        return model, by_executors(tx.bind(model), *STAND_INS["foreach"])

    def step(model, updater, t):
        for p in model:
            p.grad = torch.ones_like(p) * (t + 1)
        updater.step()

    expected, updater = begun()
    for t in range(3):
        step(expected, updater, t)
    assert kept_memory(updater) == 0
    failed = 0
    for at in itertools.count(1):
        model, updater = begun()
        step(model, updater, 0)
        mode = Fails(at)
        try:
            with mode:
                step(model, updater, 1)
        except MemoryError:
            failed += 1
        assert kept_memory(updater) == 0
        if mode.left > 0:
            break
        if updater.num_updates < 2:
            step(model, updater, 1)
        step(model, updater, 2)
        assert all(torch.equal(a, b) for a, b in zip(model, expected, strict=True)), at
    assert failed > 20
