"""Tensors of other shapes than the weights: reductions along dimensions, state of rows and columns, what broadcasts.

Every executor that takes grids is held against the reference over random programs and rules of the papers' kind, in
every layout; that a kernel ran, and how many, is asserted too.
"""

import os
import random
from functools import partial

import pytest
import torch
from torch import nn

import gradchain as gch
from gradchain.core.eager import EagerTensors
from gradchain.core.scalars import Count
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.engine.executors.blocks import Blocks
from gradchain.engine.executors.foreach import Foreach
from gradchain.engine.executors.native import Native

LONG = bool(os.environ.get("GRADCHAIN_LONG"))
EXECUTORS = {"native": Native, "blocks": Blocks, "foreach": partial(Foreach, "cpu")}
BOUND = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
SHAPES = [(40, 30), (3, 5, 2, 4), (1, 17), (17, 1), (6, 1, 4), (2, 3), (130, 7), (0, 4), (4, 0), (1, 1), (70, 1100)]
WORDS = ("mean", "sum", "amax", "norms")


def laid(shape, how, dtype, generator):
    """A weight in one of the ways that memory is laid out."""
    value = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    if how == "transposed":
        return value.mT.contiguous().mT
    if how == "channels last" and len(shape) == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value


class Matrices(nn.Module):
    """Matrices, convolutions and thin ones, none of fewer than two dimensions."""

    def __init__(self, dtype, how="plain", shapes=SHAPES):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        for i, shape in enumerate(shapes):
            self.register_parameter(f"w{i}", nn.Parameter(laid(shape, how, dtype, generator)))


def gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    return {
        n: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        for n, p in model.named_parameters()
    }


def after(tx, model, executors, steps=4):
    """The weights after some steps, and the engine."""
    updater = tx.bind(model)
    engine = updater._bound.engine
    if executors is not None:
        engine.executors = executors
    for step in range(steps):
        updater.step(gradients(model, step))
        assert (engine.reason == "") == (executors != ()), engine.reason
    return {n: p.detach().double() for n, p in model.named_parameters()}, engine


def assert_equal(tx, dtype, how, name, shapes=SHAPES):
    """The executor's weights are the reference's; nothing else ran."""
    want, _ = after(tx, Matrices(dtype, how, shapes), ())
    found, engine = after(tx, Matrices(dtype, how, shapes), (EXECUTORS[name](),))
    ran = [part.executor for plan in engine._plans.values() for part in plan.parts]
    assert ran and {*ran} == {name}
    for n, value in want.items():
        assert torch.equal(value.isfinite(), found[n].isfinite()), n
        fits = value.isfinite()
        torch.testing.assert_close(
            found[n][fits], value[fits], rtol=BOUND[dtype], atol=BOUND[dtype], msg=lambda m, n=n: f"{n}: {m}"
        )
    return engine


ONE_DTYPE = [("native", torch.float32), ("blocks", torch.float64), ("foreach", torch.float32)]


class FactoredState(gch.State):
    count: Count
    rows: Tensors
    columns: Tensors


class factored(Transform):
    """Adafactor's second moment: R ← mean of g² over rows, C over columns; g / √(R C / mean R), clipped by its rms."""

    descends = False
    b2: gch.Hyper = gch.Hyper(0.9)

    def init(self, params):
        return FactoredState(Count(params), params.mean(-1).zeros_like(), params.mean(-2).zeros_like())

    def update(self, g, state, ctx):
        count = state.count.tick(g)
        square = g * g + 1e-30
        rows = state.rows.lerp(square.mean(-1), 1 - self.b2)
        columns = state.columns.lerp(square.mean(-2), 1 - self.b2)
        u = g * (rows / rows.mean(-2)).rsqrt() * columns.rsqrt() * (1 - self.b2**count) ** 0.5
        return u / gch.maximum(1.0, u.norms() / u.numels() ** 0.5), FactoredState(count, rows, columns)


class NormState(gch.State):
    nu: Tensors


class by_rows(Transform):
    """Rows divided by what their norms were, before this step's are taken in: the state that is read is written too."""

    descends = False

    def init(self, params):
        return NormState(params.norms(-1) * 0.0 + 1.0)

    def update(self, g, state, ctx):
        return g / (state.nu + 0.1), NormState(state.nu.lerp(g.norms(-1), 0.5))


class small_chains(Transform):
    """Reductions of reductions, masks of rows, a choice by row, a column times a row."""

    descends = False

    def update(self, g, state, ctx):
        top = g.abs().amax(-1)
        large = top > top.mean(-2)
        outer = g.mean(-1) * g.sum((-2,))
        return gch.where(large, g - g.mean((-2, -1)), outer) + 0.1 * ctx.params.norms(-2, p=1.0), state


RULES = {"factored": factored(), "by rows": by_rows(), "small": small_chains()}
FULL = [s for s in SHAPES if 0 not in s]


HOWS = ("plain", "transposed", "channels last")
# one layout of each in turn; with GRADCHAIN_LONG=1 all
IN_TURN = [
    pytest.param(name, rule, dtype, how, id=f"{name}-{rule}-{dtype}-{how}")
    for e, name in enumerate(EXECUTORS)
    for r, rule in enumerate(RULES)
    for d, dtype in enumerate(BOUND)
    for h, how in enumerate(HOWS)
    if LONG or (e + r + d + h) % len(HOWS) == 0
]


@pytest.mark.parametrize(("name", "rule", "dtype", "how"), IN_TURN)
def test_rules_with_state_of_rows(name, rule, dtype, how):
    tx = gch.chain(gch.clip_by_norm(1.0), RULES[rule], gch.scale_by_learning_rate(lambda t: 0.1 / (1 + t)))
    assert_equal(tx, dtype, how, name, FULL)


@pytest.mark.parametrize("dim", [-1, -2, (-2, -1), 0, 1, (0, -1)])
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(("name", "dtype"), ONE_DTYPE, ids=str)
def test_each_reduction_along_each_dimension(name, dtype, word, dim):
    """Also of entries without elements: a sum of nothing is 0, a mean NaN, the largest -inf."""

    class reduced(Transform):
        descends = False

        def update(self, g, state, ctx):
            return g + getattr(g * 2.0, word)(dim), state

    for how in ("plain", "transposed", "channels last"):
        assert_equal(gch.chain(reduced(), gch.scale(-0.1)), dtype, how, name)


def all_but_the_first(n):
    return tuple(range(1, n))


def all_there_are(n):
    return tuple(range(n))


def all_but_the_last_of_many(n):
    return tuple(range(n - 1)) if n != 2 else ()


@pytest.mark.parametrize("dim", [all_but_the_first, all_there_are, all_but_the_last_of_many])
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(("name", "dtype"), ONE_DTYPE, ids=str)
def test_each_reduction_along_dimensions_that_a_function_says(name, dtype, word, dim):
    """Entries of several numbers of dimensions; along none, each element is on its own."""

    class reduced(Transform):
        descends = False

        def update(self, g, state, ctx):
            return g + getattr(g * 2.0, word)(dim), state

    assert_equal(gch.chain(reduced(), gch.scale(-0.1)), dtype, "plain", name, [*FULL, (5,), (1,), ()])


@pytest.mark.parametrize("word", WORDS)
def test_along_no_dimension_each_element_is_on_its_own(word):
    values = {"w": torch.tensor([[-3.0, 2.0]]), "b": torch.tensor([-1.0, 4.0]), "s": torch.tensor(-2.0)}
    made = getattr(Tensors.of(values), word)(all_but_the_first)
    assert made["b"].tolist() == ([1.0, 4.0] if word == "norms" else [-1.0, 4.0])
    assert made["s"].item() == (2.0 if word == "norms" else -2.0)
    assert made["w"].shape == (1, 1)
    complex_ = Tensors.of({"z": torch.tensor([3 + 4j, 0j])})
    if word == "norms":
        assert complex_.norms(all_but_the_first)["z"].flatten().tolist() == [5.0, 0.0]


@pytest.mark.parametrize("rule", ["factored", "small"])
@pytest.mark.parametrize("small", [1 << 16, 40], ids=["at once", "in pieces"])
def test_parameters_of_one_shape_lie_apart(small, rule, monkeypatch):
    """Calls over lists compute those of one shape together, some at a time: numbers and results keep their rows."""
    from gradchain.engine.executors import chunks

    monkeypatch.setattr(chunks, "SMALL", small)
    shapes = [(4, 6), (5, 3), (4, 6), (7, 9), (5, 3), (4, 6)]
    rates = gch.multiply(0.1, *((gch.named(f"w{i}"), 1.0 + i) for i in range(len(shapes))))
    tx = gch.chain(gch.add_noise(0.1, 0.5, 1), RULES[rule], gch.scale_by_learning_rate(rates))
    assert_equal(tx, torch.float64, "plain", "foreach", shapes)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("name", EXECUTORS)
def test_what_is_not_finite_stays_in_its_row(name, bad, word):
    weight = torch.ones(5, 37)
    weight[2, 20] = bad
    model = nn.Module()
    model.w = nn.Parameter(torch.zeros(5, 37))

    class reduced(Transform):
        descends = False

        def update(self, g, state, ctx):
            return g * 0.0 + getattr(g, word)(-1), state

    updater = gch.chain(reduced(), gch.scale(-1.0)).bind(model)
    updater._bound.engine.executors = (EXECUTORS[name](),)
    updater.step({"w": weight})
    assert updater._bound.engine.reason == ""
    exact = {"mean": weight.double().mean(-1), "sum": weight.double().sum(-1), "amax": weight.double().amax(-1),
             "norms": weight.double().norm(dim=-1)}[word]  # fmt: skip
    want = -exact.float()[:, None].expand(5, 37) - 0.0 * weight
    torch.testing.assert_close(model.w.detach(), want, equal_nan=True)


def test_rows_and_columns_of_one_tensor_are_one_pass():
    """What is reduced of the same elements is reduced together; what stands on it comes after."""
    _, engine = after(
        gch.chain(factored(), gch.scale(-0.1)), Matrices(torch.float32, shapes=[(40, 30), (50, 20)]), None
    )
    along = [part for part in engine.last if part.program.along]
    assert [len(part.program.along) for part in along] == [2, 1]
    assert {part.executor for part in engine.last} == {"native"}
    spans = [part.program.grid.spans for part in engine.last if part.program.stores and part.program.grid is not None]
    # the weights are written by one kernel; R / mean R is another, over rows
    assert [any(all(column) and len(column) == 2 for column in columns) for columns in spans] == [False, True]


def test_only_the_entries_concerned_have_axes():
    """A rule of rows beside Adam: the other entries' kernels are what they were."""

    model = Matrices(torch.float32, shapes=[(40, 30), (50, 20)])
    model.bias = nn.Parameter(torch.zeros(33))
    tx = gch.chain(
        gch.partition((gch.min_ndim(2), gch.chain(factored())), (gch.rest, gch.chain(gch.scale_by_adam()))),
        gch.scale(-1.0),
    )
    updater = tx.bind(model)
    updater.step(gradients(model, 0))
    engine = updater._bound.engine
    assert engine.reason == ""
    plain = [part for part in engine.last if part.names == ("bias",)]
    assert [part.program.grid for part in plain] == [None] and plain[0].executor == "native"


def test_steps_run_again_with_state_of_rows(monkeypatch):
    """A link of gradchain's own would: its class says where it is from."""
    monkeypatch.setattr(factored, "__module__", "gradchain.transforms.of_a_test")
    model, twin = (Matrices(torch.float64, shapes=FULL) for _ in range(2))
    tx = gch.chain(gch.clip_by_norm(1.0), factored(b2=lambda t: 1 - (t + 1.0) ** -0.8), gch.scale(-0.1))
    found, engine = after(tx, model, None, steps=8)
    want, _ = after(tx, twin, (), steps=8)
    assert engine.num_replayed == 7, engine.not_replayed
    assert engine.num_plans < 8
    for n, value in want.items():
        torch.testing.assert_close(found[n], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_bits_do_not_depend_on_threads(threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        model = Matrices(torch.float32, shapes=[(600, 700), (1100, 300)])
        found, _ = after(gch.chain(factored(), gch.scale(-0.1)), model, (Native(),))
    finally:
        torch.set_num_threads(before)
    alone, _ = after(
        gch.chain(factored(), gch.scale(-0.1)), Matrices(torch.float32, shapes=[(600, 700), (1100, 300)]), (Native(),)
    )
    assert all(torch.equal(found[n], alone[n]) for n in found)


@pytest.mark.parametrize("form", ["plain", "fixed"])
def test_a_state_of_rows_is_saved_and_goes_on(form):
    tx = gch.chain(factored(), gch.scale(-0.1))
    whole, _ = after(tx, Matrices(torch.float32, shapes=FULL), None, steps=6)
    model = Matrices(torch.float32, shapes=FULL)
    first = tx.bind(model)
    for step in range(3):
        first.step(gradients(model, step))
    saved = first.state_dict(form=form) if form == "fixed" else first.state_dict()
    second = tx.bind(model)
    second.load_state_dict(saved)
    for step in range(3, 6):
        second.step(gradients(model, step))
        assert second._bound.engine.reason == ""
    assert all(torch.equal(whole[n], p.detach().double()) for n, p in model.named_parameters())


def test_a_state_of_rows_of_another_shape_is_not_loaded():
    tx = gch.chain(factored(), gch.scale(-0.1))
    saved = tx.bind(Matrices(torch.float32, shapes=[(4, 6)])).state_dict()
    updater = tx.bind(Matrices(torch.float32, shapes=[(5, 6)]))
    with pytest.raises(ValueError, match="rows"):
        updater.load_state_dict(saved)


# expressions drawn at random

LEAVES = ("g", "p", "nu", "row")


def _turned(x):
    """A function of whole tensors, or of a stack of them."""
    return x.flip(-1) - x.mean((-2, -1), keepdim=True)


def grown(seed):
    """A random expression of full and reduced values, as a function of g, p, a full and a row-shaped state.

    Maps of whole tensors and random numbers are among its steps. What is zero but for rounding, as the mean of what
    was centred, decides nothing: its sign is anybody's.
    """
    rng = random.Random(seed)
    steps = []
    for _ in range(rng.randint(4, 14)):
        kind = rng.choice(["binary", "binary", "binary", "reduce", "unary", "where", "number", "map", "noise"])
        steps.append(
            (kind, rng.random(), rng.random(), rng.choice(WORDS), rng.choice([-1, -2, (-2, -1), 0]), rng.random())
        )

    def run(values, ctx):
        values = list(values)
        for number, (kind, i, j, word, dim, x) in enumerate(steps):
            a, b = values[int(i * len(values))], values[int(j * len(values))]
            if kind == "binary":
                values.append([a + b, a - b, a * b, a.maximum(b), a.lerp(b, 0.3)][int(x * 5)])
            elif kind == "reduce":
                values.append(getattr(a, word)(dim))
            elif kind == "unary":
                values.append([a.abs(), a.tanh(), (a + 0.01).sign(), (a * a + 1.0).rsqrt(), 0.5 * a][int(x * 5)])
            elif kind == "where":
                values.append(gch.where(a > b + 0.01, a, 0.5 * b))
            elif kind == "map":
                values.append(a.map(_turned, batched=x < 0.5))
            elif kind == "noise":
                values.append(a + getattr(ctx.random(seed), ["normal", "uniform", "signs"][int(x * 3)])(a, draw=number))
            else:
                values.append(a / (1.0 + a.norms()))
            values[-1] = values[-1].tanh()  # nothing grows
        return values

    return run


class DrawnState(gch.State):
    nu: Tensors
    row: Tensors


class drawn(Transform):
    """The full-shaped sum of what a drawn expression gave; one state is full, one is of rows."""

    descends = False
    seed: int = 0

    def init(self, params):
        return DrawnState(params.slot(torch.float64), params.mean(-1).zeros_like(torch.float64))

    def update(self, g, state, ctx):
        values = grown(self.seed)([g, ctx.params, state.nu, state.row], ctx)
        total = 0.1 * g
        for value in values[4:]:
            total = total + 0.1 * value
        return total, DrawnState(state.nu.lerp(total, 0.5), state.row.lerp(values[-1].mean(-1), 0.5))


DRAWN = dict.fromkeys(EXECUTORS, 200) if LONG else {"native": 12, "blocks": 6, "foreach": 12}


@pytest.mark.parametrize(("name", "seed"), [(name, seed) for name, many in DRAWN.items() for seed in range(many)])
def test_drawn_expressions(name, seed):
    """With GRADCHAIN_LONG=1 two hundred for each executor."""
    how = ["plain", "transposed", "channels last"][seed % 3]
    assert_equal(gch.chain(drawn(seed), gch.scale(-0.1)), torch.float64, how, name, FULL[:8])


# what is refused


def test_a_dimension_that_an_entry_has_not():
    tensors = Tensors.of({"w": torch.zeros(3, 4), "bias": torch.zeros(4)})
    for dim in (-2, 1, (0, 1)):
        with pytest.raises(
            ValueError, match=r"Tensors.mean: dim must be .*'bias' of shape \(4,\).*applies = min_ndim\(2\)"
        ):
            tensors.mean(dim)
    with pytest.raises(ValueError, match="each dimension once"):
        tensors.select(["w"]).sum((0, -2))
    for dim in (1.0, "0", (), [0], True):
        with pytest.raises(TypeError, match=r"Tensors\.amax: dim must be an int or a tuple of ints"):
            tensors.amax(dim)
    with pytest.raises(TypeError, match=r"Tensors\.amax: dim must be an int or a tuple of ints, got \(2\.0,\)"):
        tensors.amax(lambda n: (n / 1,))
    with pytest.raises(TypeError, match=r"Tensors\.amax: dim must be an int or a tuple of ints, got 1"):
        tensors.amax(lambda n: n - 1)
    with pytest.raises(ValueError, match=r"Tensors\.mean: dim must be .*'bias' of shape \(4,\)"):
        tensors.mean(lambda n: (1,))


@pytest.mark.parametrize("executors", [None, ()])
def test_shapes_that_do_not_meet_name_the_entry(executors):
    class wrong(Transform):
        descends = False

        def update(self, g, state, ctx):
            return g.mean(-1) + Tensors.of({n: torch.zeros(7, 2) for n in g}), state

    model = Matrices(torch.float32, shapes=[(5, 3)])
    updater = gch.chain(wrong(), gch.scale(-0.1)).bind(model)
    if executors is not None:
        updater._bound.engine.executors = executors
    before = model.w0.detach().clone()
    with pytest.raises(
        ValueError, match=r"must broadcast against each other, got the shapes \(5, 1\) and \(7, 2\) for 'w0'"
    ):
        updater.step(gradients(model, 0))
    assert torch.equal(model.w0, before) and updater.num_updates == 0


@pytest.mark.parametrize("executors", [None, ()])
def test_a_state_keeps_its_shape(executors):
    class grows(Transform):
        descends = False

        def init(self, params):
            return NormState(params.mean(-1).zeros_like())

        def update(self, g, state, ctx):
            return g, NormState(state.nu + g)

    model = Matrices(torch.float32, shapes=[(5, 3)])
    updater = gch.chain(grows(), gch.scale(-0.1)).bind(model)
    if executors is not None:
        updater._bound.engine.executors = executors
    with pytest.raises(
        ValueError,
        match=r"grows: in field 'nu', an entry must keep its shape, got \(5, 3\) for 'w0', which was \(5, 1\)",
    ):
        updater.step(gradients(model, 0))


@pytest.mark.parametrize("executors", [None, ()])
def test_updates_have_the_shape_of_the_weights(executors):
    class thin(Transform):
        descends = False

        def update(self, g, state, ctx):
            return g.mean(-1), state

    model = Matrices(torch.float32, shapes=[(5, 3)])
    updater = gch.chain(thin(), gch.scale(-0.1)).bind(model)
    if executors is not None:
        updater._bound.engine.executors = executors
    before = model.w0.detach().clone()
    with pytest.raises(ValueError, match="w0"):
        updater.step(gradients(model, 0))
    assert torch.equal(model.w0, before)


# which parameters a rule is for


class of_matrices(Transform):
    """A rule that reads columns: it is for matrices."""

    descends = False
    applies = gch.min_ndim(2)

    def init(self, params):
        return NormState(params.norms(-2).zeros_like())

    def update(self, g, state, ctx):
        nu = state.nu.lerp(g.norms(-2), 0.5)
        return g / (nu + 1.0), NormState(nu)


@pytest.mark.parametrize("executors", [None, ()])
def test_a_rule_that_applies_to_some_leaves_the_others_as_they_are(executors):
    """As `masked` around the same rule would."""

    class anywhere(Transform):
        descends = False
        init, update = of_matrices.__dict__["init"].__wrapped__, of_matrices.__dict__["update"].__wrapped__.__wrapped__

    results = []
    for link in (of_matrices(), gch.masked(anywhere(), gch.min_ndim(2))):
        model = Matrices(torch.float64, shapes=[(5, 3), (4,), (), (6, 2)])
        results.append(after(gch.chain(link, gch.scale(-0.1)), model, executors)[0])
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])
    state = gch.chain(of_matrices()).init(Tensors.of(model))
    assert set(state.links["of_matrices"].nu) == {"w0", "w3"}


def test_complex_entries():
    """Dimensions are the complex tensor's; norms along them are real."""
    value = torch.randn(4, 3, dtype=torch.complex128)
    tensors = Tensors.of({"z": value})
    torch.testing.assert_close(tensors.mean(-1)["z"], value.mean(-1, keepdim=True))
    torch.testing.assert_close(tensors.norms(-1)["z"].squeeze(-1), value.abs().square().sum(-1, keepdim=True).sqrt())
    torch.testing.assert_close(
        (tensors / tensors.norms(-2))["z"], value / value.abs().square().sum(0, keepdim=True).sqrt()
    )
    assert isinstance(tensors, EagerTensors)


def test_it_differentiates_and_runs_under_vmap():
    w = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def loss(v):
        t = Tensors.of({"w": v})
        return ((t - t.mean(-1)) * t.norms(0)).sum()

    assert torch.autograd.gradcheck(loss, (w,))
    many = torch.randn(5, 4, 3, dtype=torch.float64)
    together = torch.func.vmap(loss)(many)
    torch.testing.assert_close(together, torch.stack([torch.as_tensor(loss(v), dtype=torch.float64) for v in many]))


class SidesState(gch.State):
    left: Tensors
    right: Tensors


def sides(p):
    """Zeros of both sides of a matrix."""
    return p.new_zeros(p.shape[-2], p.shape[-2]), p.new_zeros(p.shape[-1], p.shape[-1])


def whitened(g, left, right):
    """The matrix between both inverse roots."""
    roots = [torch.linalg.inv(side + torch.eye(len(side), dtype=side.dtype)) for side in (left, right)]
    return roots[0] @ g @ roots[1]


class between_sides(Transform):
    """Shampoo's kind: L ← mean of g gᵀ, R ← mean of gᵀ g, then L⁻¹ g R⁻¹."""

    descends = False

    def init(self, params):
        return SidesState(*params.map(sides))

    def update(self, g, state, ctx):
        left, right = g.map(lambda m: (m @ m.mT, m.mT @ m))
        left, right = state.left.lerp(left, 0.3), state.right.lerp(right, 0.3)
        return g.map(whitened, left, right), SidesState(left, right)


@pytest.mark.parametrize("how", ["plain", "transposed"])
@pytest.mark.parametrize("name", EXECUTORS)
def test_state_of_sides_is_updated_by_kernels(name, how):
    """Between two maps, in front of them and behind them: no shape sends a chain to the reference."""
    shapes = [(7, 5), (5, 7), (3, 3), (1, 4)]
    tx = gch.chain(gch.clip_by_norm(1.0), gch.trace(0.9), between_sides(), gch.scale_by_learning_rate(0.1))
    assert_equal(tx, torch.float64, how, name, shapes)


class bare(Transform):
    """State and constants of bare tensors, of which no parameter is known: some of the weights' shapes, some not."""

    descends = False

    def init(self, params):
        gram = Tensors.of({n: torch.zeros(p.shape[-2], p.shape[-2], dtype=p.dtype) for n, p in params.items()})
        return SidesState(gram, Tensors.of({n: torch.zeros_like(p) for n, p in params.items()}))

    def update(self, g, state, ctx):
        left = state.left.lerp(g.map(lambda m: m @ m.mT), 0.3)
        row = Tensors.of({n: torch.full((1, p.shape[-1]), 0.5, dtype=p.dtype) for n, p in ctx.params.items()})
        right = row * g + state.right
        return right + left.mean(-1), SidesState(left, right)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", EXECUTORS)
def test_bare_tensors_of_any_shape(name, dtype):
    """Whether an entry has its weight's shape is asked of the weight, not of the tensor it was made from."""
    assert_equal(gch.chain(bare(), gch.scale(-0.01)), dtype, "plain", name, [(7, 5), (5, 7), (3, 3), (130, 4)])


class noisy_rows(Transform):
    """Noise over a weight and over its rows, beside state of rows."""

    descends = False

    def init(self, params):
        return NormState(params.mean(-1).zeros_like())

    def update(self, g, state, ctx):
        random = ctx.random(3)
        rows = state.nu.lerp(random.normal(state.nu), 0.5)
        return g + 0.1 * random.uniform(g, draw=1) * rows, NormState(rows)


@pytest.mark.parametrize("how", ["plain", "transposed", "channels last"])
def test_random_numbers_over_rows(how):
    assert_equal(gch.chain(noisy_rows(), gch.scale(-0.1)), torch.float64, how, "native", FULL)


class noise_in_rows(Transform):
    """Noise that is drawn before there is anything of rows, and after it; reduced along each axis, and over all."""

    descends = False

    def update(self, g, state, ctx):
        random = ctx.random(3)
        noisy = g + 0.1 * random.normal(g)
        ctx.record("norm", (noisy - noisy.mean(-1)).norm())
        noisy = noisy - noisy.mean(-1) + 0.1 * random.uniform(g, draw=1)
        return noisy / (1.0 + noisy.norms()) + 0.1 * noisy.amax(0), state


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for n, name in enumerate(EXECUTORS) for d, dtype in enumerate(BOUND) if LONG or (n + d) % 2 == 0],
    ids=str,
)
def test_kernels_that_reduce_rows_draw_too(name, dtype):
    shapes = [(40, 30), (3, 5, 2, 4), (70, 1100)]
    engine = assert_equal(gch.chain(noise_in_rows(), gch.scale(-0.1)), dtype, "plain", name, shapes)
    over_axes = [part.program for part in engine.last if part.program.grid is not None]
    assert any(p.draws and p.along for p in over_axes)
    assert any(p.draws and p.reduce for p in over_axes)
    assert any(p.draws and p.stores for p in over_axes)
