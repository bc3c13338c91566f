"""`Tensors.map` in memory: results of any shape, several of them, stacks, what may be returned, and work by turns.

The same through kernels, and run again, is in tests/engine/test_whole_tensors.py.
"""

import functools

import pytest
import torch

import gradchain as gch
from gradchain.core.maps import stack_size, stacks

SHAPES = {"a": (3, 4), "b": (), "c": (3, 4), "d": (0, 2), "e": (5,), "f": (3, 4), "g": (4, 3)}


def drawn(shapes=SHAPES, dtype=torch.float64, seed=0) -> gch.Tensors:
    generator = torch.Generator().manual_seed(seed)
    real = {n: torch.randn(shape, generator=generator, dtype=torch.float64) for n, shape in shapes.items()}
    return gch.Tensors.of(
        {n: t.to(dtype) if not dtype.is_complex else torch.complex(t, -t).to(dtype) for n, t in real.items()}
    )


def rows(t):
    return t.mean(-1, keepdim=True) if t.ndim else t


def outer(t):
    flat = t.flatten(1) if t.ndim > 1 else t.unsqueeze(1)
    return flat.unsqueeze(2) * flat.unsqueeze(1)


FUNCTIONS = {
    "the same shape": (lambda t: 2 * t, lambda t: 2 * t),
    "a row": (lambda t: t.flatten(1).sum(1) if t.ndim > 1 else t, lambda t: t.sum()),
    "an outer product": (outer, lambda t: t.reshape(-1, 1) * t.reshape(1, -1)),
    "several": (lambda t: (t + 1, outer(t), t > 0), lambda t: (t + 1, t.reshape(-1, 1) * t.reshape(1, -1), t > 0)),
    "one in a tuple": (lambda t: (t * t,), lambda t: (t * t,)),
    "a mask": (lambda t: t > 0, lambda t: t > 0),
    "in low precision": (lambda t: t.bfloat16(), lambda t: t.bfloat16()),
    "wider": (lambda t: t.double().sqrt(), lambda t: t.double().sqrt()),
    "whole numbers": (lambda t: t.sign().int(), lambda t: t.sign().int()),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_stacks_give_what_entries_give(name, dtype):
    """In the compute dtype, whatever the function computes in; a mask stays one."""
    of_stacks, of_entries = FUNCTIONS[name]
    g = drawn(dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    alone, together = g.map(of_entries), g.map(of_stacks, batched=True)
    assert isinstance(alone, tuple) == isinstance(together, tuple) == (name in ("several", "one in a tuple"))
    for one, stacked in zip(*(v if isinstance(v, tuple) else (v,) for v in (alone, together)), strict=True):
        assert list(one) == list(stacked) == list(SHAPES)
        assert one._is_mask() == stacked._is_mask()
        for n in SHAPES:
            assert one[n].dtype == stacked[n].dtype == (torch.bool if one._is_mask() else wide)
            assert one[n].shape == stacked[n].shape
            assert torch.equal(one[n].isnan(), stacked[n].isnan())
            assert torch.equal(one[n].nan_to_num(), stacked[n].nan_to_num())


@pytest.mark.parametrize("batched", [False, True])
def test_complex_entries_are_complex_tensors(batched):
    z = drawn(dtype=torch.complex128)
    twice, size, upper = z.map(lambda t: (t * 1j, t.abs(), t.real > 0), batched=batched)
    for n in z:
        assert torch.equal(twice[n], z[n] * 1j)
        assert torch.equal(size[n], z[n].abs().to(torch.complex128))
    masked = z.where(upper, 0.0)
    assert all(torch.equal(masked[n], torch.where(z[n].real > 0, z[n], 0)) for n in z)
    conj = z.map(torch.conj, batched=batched) + 0.0
    assert all(torch.equal(conj[n], z[n].conj()) for n in z)


@pytest.mark.parametrize("batched", [False, True])
def test_entries_of_one_map_may_have_several_dtypes(batched):
    parts = [
        drawn({"a": (2, 2), "b": (2, 2)}),
        drawn({"c": (2, 2)}, torch.bfloat16),
        drawn({"z": (2, 2)}, torch.complex64),
    ]
    g = gch.Tensors.of({n: t for part in parts for n, t in part.items()})
    seen = []
    out = g.map(lambda t: seen.append((t.dtype, tuple(t.shape))) or t @ t, batched=batched)
    b = (2,) if batched else ()
    assert (torch.float64, (*b, 2, 2)) in seen and len(seen) == (3 if batched else 4)
    assert {n: out[n].dtype for n in g} == {
        "a": torch.float64,
        "b": torch.float64,
        "c": torch.float32,
        "z": torch.complex64,
    }


@pytest.mark.parametrize("batched", [False, True], ids=["one by one", "batched"])
def test_a_function_sees_one_dtype(batched):
    """A slot may be wider or narrower than its gradient: in front of a function they meet as in arithmetic."""
    double, single, half, turned = (
        drawn({"a": (3, 3), "b": (3, 3)}, dtype, seed)
        for seed, dtype in enumerate([torch.float64, torch.float32, torch.bfloat16, torch.complex64])
    )
    for one, other in ((single, double), (double, single), (half, double), (half, single), (turned, double)):
        seen = []

        def product(x, y, seen=seen):
            seen.append((x.dtype, y.dtype))
            return x * y

        made = one.map(product, other, batched=batched)
        wide = torch.float64 if one is double or other is double else torch.float32
        assert set(seen) == {(wide.to_complex() if one is turned else wide, wide)}
        for n in made:
            assert torch.equal(made[n], (one[n].to(seen[0][0]) * other[n].to(wide)).to(made[n].dtype))
    assert torch.equal((double > 0).map(torch.mul, single, batched=batched)["a"], (double["a"] > 0) * single["a"])


@pytest.mark.parametrize("batched", [False, True])
def test_others_meet_by_name_and_numbers_broadcast(batched):
    """Tensors, Scalars and a Count by entry, all else as it is; what is absent from one is absent."""
    g, h = drawn(), drawn(seed=1).select(["a", "c", "f", "e", "b"])
    rates = gch.Scalars({n: 0.1 + i for i, n in enumerate(SHAPES) if n != "f"})
    count = gch.Count(g.index).tick(g.select(["a", "b"]))
    shared, shapes = torch.tensor(3.0, dtype=torch.float64), []

    def fn(a, b, rate, times, tensor, word):
        shapes.append(tuple(getattr(rate, "shape", ())))
        assert word == "w" and tensor is shared
        return a + b * rate + times * tensor

    out = g.map(fn, h, rates, count, shared, "w", batched=batched)
    assert list(out) == ["a", "b", "c", "e"]
    for n in out:
        want = g[n] + h[n] * rates[n] + count.of(n) * 3.0
        assert torch.equal(out[n], want), n
    assert not batched or sorted(shapes) == [(1,), (1, 1), (2, 1, 1)]


def test_numbers_per_parameter_may_be_tensors():
    g = drawn({"a": (2,), "b": (2,)})
    each = gch.Scalars({"a": torch.tensor(2.0), "b": 0.5})
    out = g.map(lambda t, s: t * s, each, batched=True)
    assert torch.equal(out["a"], 2 * g["a"]) and torch.equal(out["b"], g["b"] / 2)


@pytest.mark.parametrize("batched", [False, True])
def test_masks_are_mapped(batched):
    g = drawn(dtype=torch.float32)
    some = (g > 0).map(lambda t: ~t, batched=batched)
    assert some._is_mask() and all(torch.equal(some[n], g[n] <= 0) for n in g)
    numbers = (g > 0).map(lambda t: t.double(), batched=batched)
    assert all(numbers[n].dtype is torch.float32 for n in g)
    mixed = g.map(lambda t: t > 0 if t.ndim == batched else t, batched=batched)
    assert not mixed._is_mask() and torch.equal(mixed["b"], (g["b"] > 0).float()) and torch.equal(mixed["a"], g["a"])


def test_a_factor_is_in_what_a_function_sees():
    g = drawn()
    assert all(torch.equal((3.0 * g).map(lambda t: t, batched=True)[n], 3.0 * g[n]) for n in g)


def test_without_entries_the_function_is_not_called():
    none = drawn().select([])
    assert len(none.map(None)) == 0
    assert [len(t) for t in none.map(None, results=3, batched=True)] == [0, 0, 0]
    one, two = drawn().map(lambda t: (t, t), results=2)
    assert len(one) == len(two) == len(SHAPES)


def test_gradients_pass_through_stacks():
    leaf = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    g = gch.Tensors.of({"a": leaf, "b": torch.ones(2, 2, dtype=torch.float64)})
    g.map(lambda t: t @ t, batched=True)["a"].sum().backward()
    want = leaf.detach().clone().requires_grad_()
    (want @ want).sum().backward()
    assert torch.equal(leaf.grad, want.grad)


# how many are stacked


def calls_of(shapes, dtype=torch.float32) -> list[tuple[int, ...]]:
    seen: list[tuple[int, ...]] = []
    gch.Tensors.of({n: torch.zeros(shape, dtype=dtype) for n, shape in shapes.items()}).map(
        lambda t: seen.append(tuple(t.shape)) or t, batched=True
    )
    return seen


def many(count, *shape):
    return {f"w{i}": shape for i in range(count)}


def test_how_many_are_stacked_on_a_cpu():
    """48 of 64² at once, 256² by eights, and from 512² one by one; by bytes, so half as many in float64."""
    assert calls_of(many(48, 64, 64)) == [(48, 64, 64)]
    assert calls_of(many(48, 256, 256)) == [(8, 256, 256)] * 6
    assert calls_of(many(9, 256, 256)) == [(8, 256, 256), (1, 256, 256)]
    assert calls_of(many(2, 512, 512)) == [(1, 512, 512)] * 2
    assert calls_of(many(48, 64, 64), torch.float64) == [(48, 64, 64)]
    assert calls_of(many(8, 256, 256), torch.float64) == [(4, 256, 256)] * 2
    assert calls_of(many(2, 363, 363)) == [(1, 363, 363)] * 2
    assert calls_of(many(1000, 3)) == [(1000, 3)]
    assert calls_of(many(1000)) == [(1000,)]
    assert calls_of(many(3, 0, 4)) == [(3, 0, 4)]
    assert calls_of({}) == []


def test_the_largest_tensor_of_a_row_decides():
    small, large = torch.empty(2, 2), torch.empty(600, 600)
    assert stack_size([small]) > 1 and stack_size([small, large]) == 1
    assert list(stacks([[small, large], [small, small], [small, small]])) == [[0], [1, 2]]


def test_elsewhere_larger_entries_are_stacked():
    here, there = torch.empty(512, 512), torch.empty(512, 512, device="meta")
    assert stack_size([here]) == 1 and stack_size([there]) == 64


# what a function may return

TAKES = "Tensors.map: fn must return a tensor or a tuple of tensors, got "
WRONG = {
    "none": (lambda t: None, TypeError, TAKES + "NoneType for 'a'. Does it lack a return?"),
    "a list": (lambda t: [t, t], TypeError, TAKES + "list for 'a'. Several tensors are a tuple."),
    "a number": (lambda t: 3.0, TypeError, TAKES + "float for 'a'."),
    "an empty tuple": (lambda t: (), TypeError, TAKES + "an empty tuple for 'a'."),
    "a number in a tuple": (lambda t: (t, 3.0), TypeError, TAKES + "a tuple with float for 'a'."),
    "a tuple in a tuple": (lambda t: (t, (t,)), TypeError, TAKES + "a tuple with tuple for 'a'."),
    "complex": (
        lambda t: t + 1j,
        ValueError,
        "Tensors.map: fn must return real tensors where the parameter is real, got torch.complex128 for 'a'.",
    ),
    "elsewhere": (
        lambda t: t.to("meta"),
        ValueError,
        "Tensors.map: fn must return tensors on the device of the entry, cpu, got meta for 'a'.",
    ),
}
COUNTS = {
    "more": (lambda t: (t,) * (t.shape[-1] - 2), None, "a tuple of 2, as for 'a', got a tuple of 1 for 'b'"),
    "no tuple": (lambda t: (t, t) if t.shape[-1] == 4 else t, None, "a tuple of 2, as for 'a', got one tensor for 'b'"),
    "a tuple": (lambda t: t if t.shape[-1] == 4 else (t,), None, "one tensor, as for 'a', got a tuple of 1 for 'b'"),
    "fewer than said": (lambda t: (t, t), 3, "a tuple of 3, as results says, got a tuple of 2 for 'a'"),
    "none of those said": (lambda t: t, 1, "a tuple of 1, as results says, got one tensor for 'a'"),
}  # fmt: skip


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_return_is_a_sentence(name, batched):
    fn, error, sentence = WRONG[name]
    with pytest.raises(error) as caught:
        drawn({"a": (3, 4), "b": (3,)}).map(fn, batched=batched)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("name", COUNTS)
def test_a_wrong_number_of_tensors_is_a_sentence(name, batched):
    fn, results, asked = COUNTS[name]
    with pytest.raises(ValueError) as caught:
        drawn({"a": (3, 4), "b": (3,)}).map(fn, batched=batched, results=results)
    assert str(caught.value) == f"Tensors.map: fn must return {asked}."


@pytest.mark.parametrize(
    "fn", [torch.sum, lambda t: t[0], lambda t: (t, t.mean()), lambda t: t.transpose(0, 1)], ids=range(4)
)
def test_a_lost_dimension_of_the_stack_is_a_sentence(fn):
    with pytest.raises(
        ValueError, match=r"^Tensors\.map: fn must keep the first dimension, that of the stack, which is 2"
    ):
        drawn({"a": (3, 4), "b": (3, 4)}).map(fn, batched=True)


# work by turns


def test_a_count_says_when_work_is_due():
    """At the first update and at every third from there, each parameter by its own count."""
    index = drawn().index
    count, told = gch.Count(index), []
    for _ in range(7):
        count = count.tick(drawn())
        told.append(count.due(3))
    assert told == [True, False, False, True, False, False, True]
    uneven = gch.Count(["a", "b"], {"a": 4, "b": 5}).due(3)
    assert dict(uneven) == {"a": True, "b": False}
    assert dict(gch.Count(["a", "b"], 3).due(gch.Scalars({"a": 2, "b": 3}))) == {"a": True, "b": False}
    assert gch.Count(["a"], 9).due(1) is True


def test_only_what_is_due_is_computed():
    g, old, seen = drawn(), drawn(seed=1), []

    def fn(t, o):
        seen.append(tuple(t.shape))
        return t + o

    assert g.map_where(False, fn, old, old) is old and seen == []
    assert torch.equal(g.map_where(True, fn, old, old)["a"], g["a"] + old["a"]) and len(seen) == len(SHAPES)
    due = gch.Scalars({n: n in "ac" for n in SHAPES})
    out = g.map_where(due, fn, old, old)
    assert len(seen) == len(SHAPES) + 2
    for n in SHAPES:
        assert torch.equal(out[n], g[n] + old[n] if n in "ac" else old[n])
    absent = g.select(["a", "b"]).map_where(due, fn, old, old)
    assert list(absent) == list(old) and torch.equal(absent["c"], old["c"]) and torch.equal(absent["a"], out["a"])


def test_several_results_by_turns():
    g = drawn()
    pairs = (drawn(seed=1), drawn(seed=2))
    due = gch.Scalars({n: n == "a" for n in SHAPES})
    q, r = g.map_where(due, lambda t: (t, -t), pairs, batched=True)
    assert torch.equal(q["a"], g["a"]) and torch.equal(r["a"], -g["a"]) and torch.equal(q["c"], pairs[0]["c"])
    assert g.map_where(False, None, pairs) is pairs
    for wrong in (lambda t: t, lambda t: (t, t, t), lambda t: (t,)):
        with pytest.raises(
            ValueError, match=r"^Tensors\.map_where: fn must return as many tensors as old has, 2, got [13]"
        ):
            g.map_where(True, wrong, pairs)
    with pytest.raises(ValueError, match=r"as old has, 1, got 2\.$"):
        g.map_where(True, lambda t: (t, t), g)


def test_a_function_is_named_as_it_is_called():
    from gradchain.core.maps import Calls

    def scaled(t, by):
        return t * by

    assert Calls(scaled, True).name == Calls(functools.partial(functools.partial(scaled), by=2), True).name == "scaled"
    assert Calls(torch.linalg.qr, False).name == "linalg_qr"
