"""Laws that hold for every link whose row says so, on random gradients."""

import pytest
import torch
from cases import CASES, Case
from harness import SHAPES, Problem, context, gap, plain, same_bits, stored, trajectory, weights_after
from hypothesis import given, settings
from hypothesis import strategies as st

import gradchain as gch

STEPS = 3
rows = pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
seeds = st.integers(0, 2**31)
few = settings(max_examples=4)


def having(predicate):
    """The rows of which a predicate holds."""
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES if predicate(case)])


def moved(case: Case, problem: Problem, **options):
    return trajectory(case.tx, problem, scaled=case.scaled, **options)


# which parameters, in which order, cut how


@rows
@few
@given(seed=seeds, order=st.permutations(list(SHAPES)))
def test_the_order_of_parameters_does_not_matter(case: Case, seed, order):
    """Permuting parameters permutes updates; a norm over all may change by the rounding of its sum."""
    problem = case.problem(seed, steps=STEPS)
    permuted = problem.map(lambda tensors: {n: tensors[n] for n in order})
    assert gap(moved(case, permuted), moved(case, problem)) <= (1e-13 if case.scope == "joint" else 0)


@having(lambda case: case.scope == "element")
@few
@given(seed=seeds, cut=st.integers(0, 12))
def test_elementwise_rules_do_not_see_where_a_tensor_is_cut(case: Case, seed, cut):
    """Two halves of a parameter move as the whole does."""
    problem = case.problem(seed, steps=STEPS)

    def split(tensors):
        flat = tensors["body.weight"].flatten()
        others = {n: t for n, t in tensors.items() if n != "body.weight"}
        return {"body.first": flat[:cut], "body.second": flat[cut:], **others}

    whole = moved(case, problem)
    parts = moved(case, problem.map(split))
    joined = [{"w": torch.cat([row["body.first"], row["body.second"]])} for row in parts]
    assert gap(joined, [{"w": row["body.weight"].flatten()} for row in whole]) <= 1e-14


@having(lambda case: case.scope != "joint" and case.alone)
@few
@given(seed=seeds)
def test_a_list_of_parameters_is_one_by_one(case: Case, seed):
    """A rule that is not joint moves each parameter as if it were the only one."""
    problem = case.problem(seed, steps=STEPS)
    together = moved(case, problem)
    for n in SHAPES:
        alone = moved(case, problem.map(lambda tensors, n=n: {n: tensors[n]}))
        assert gap(alone, [{n: row[n]} for row in together]) <= 1e-14


@having(lambda case: case.scope == "element" and not case.gate)
@few
@given(seed=seeds)
def test_elementwise_rules_see_complex_parameters_as_pairs_of_reals(case: Case, seed):
    """A complex parameter moves as its real view does."""
    shapes = {"body.weight": (3, 2), "body.bias": (1, 2), "head.weight": (0, 2), "scale": (2,)}
    real = case.problem(seed, steps=STEPS, shapes=shapes, draw=plain)
    paired = real.map(lambda tensors: {n: torch.view_as_complex(t) for n, t in tensors.items()})
    viewed = [{n: torch.view_as_real(v) for n, v in row.items()} for row in moved(case, paired)]
    assert gap(viewed, moved(case, real)) <= 1e-14


# size


@having(lambda case: case.degree is not None)
@few
@given(seed=seeds, factor=st.floats(0.01, 100))
def test_homogeneity(case: Case, seed, factor):
    """Gradients times c give updates times c to the power of the degree."""
    problem = case.problem(seed, steps=STEPS)
    scaled = Problem(
        problem.params, tuple({n: factor * g for n, g in gs.items()} for gs in problem.grads), problem.lr, problem.bend
    )
    expected = [{n: factor**case.degree * v for n, v in row.items()} for row in moved(case, problem)]
    assert gap(moved(case, scaled), expected) <= 1e-12


@having(lambda case: case.clip)
@few
@given(seed=seeds, size=st.floats(1e-3, 1e3))
def test_clips(case: Case, seed, size):
    """Outside its bound a clip makes what is at the bound; inside it changes no bit; and the direction stays."""
    problem = case.problem(seed, steps=1, draw=plain)
    grads = gch.Tensors.of({n: size * g for n, g in problem.grads[0].items()})
    ctx = context(problem, gch.Tensors.of(problem.params), 0, 0)
    out, _ = case.link.update(grads, case.link.init(grads), ctx)
    before, after = case.clip.size(grads), case.clip.size(out)
    assert after <= case.clip.bound * (1 + 1e-12)
    if before <= case.clip.bound * (1 - 1e-5):  # torch's eps of 1e-6 begins to clip just inside
        assert same_bits(dict(grads), dict(out)) == []
    elif before > case.clip.bound:
        assert after >= case.clip.bound * (1 - 1e-5)
        ratios = torch.cat([(out[n] / grads[n]).flatten() for n in grads])
        assert bool(((ratios > 0) & (ratios <= 1)).all())
        if case.clip.keeps_direction:
            torch.testing.assert_close(ratios, ratios[0].expand_as(ratios), rtol=1e-12, atol=0)


@rows
def test_zero_gradients_give_finite_updates(case: Case):
    """A gradient of zeros, which dead units have, makes neither NaN nor inf; but where the row says so."""
    problem = case.problem(steps=STEPS)
    problem = Problem(
        problem.params, tuple({n: 0 * g.nan_to_num(0, 0, 0) for n, g in gs.items()} for gs in problem.grads), problem.lr
    )
    after = weights_after(case.tx, problem, scaled=case.scaled)
    assert all(bool(torch.isfinite(w).all()) for w in after.values()) == case.zero


# kinds of tensors

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@rows
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_dtypes_are_kept(case: Case, dtype):
    """Updates are in float32 or wider, or as they came; slots keep the dtypes they were made with, weights theirs."""
    problem = case.problem(steps=STEPS).to(dtype)
    params = gch.Tensors.of(problem.params)
    state = case.tx.init(params)
    kinds = {address: t.dtype for address, t in stored(state).items()}
    for t in range(STEPS):
        grads = gch.Tensors.of(problem.gradient(t, params))
        out, state = case.tx.update(grads, state, context(problem, params, t, t))
        assert {a: t.dtype for a, t in stored(state).items() if a in kinds} == kinds
        if out is None:
            continue
        tensors = out.tensors if isinstance(out, gch.Weights) else out
        for n in tensors:
            kept = case.link.role == "optimizer" and tensors[n].dtype == dtype  # torch's, which are final
            assert kept or torch.finfo(tensors[n].dtype).bits >= 32 or same_bits({n: grads[n]}, {n: tensors[n]}) == []
        params = gch.apply_updates(params, out)
        assert {params[n].dtype for n in params} == {dtype}


@having(lambda case: not case.low)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("size", ["huge", "tiny"])
def test_low_precision_neither_overflows_nor_underflows_inside(case: Case, dtype, size):
    """Gradients as large, or as small, as the dtype has them give what the same numbers give in float64."""
    info = torch.finfo(dtype)
    value = info.max / 2 if size == "huge" and dtype == torch.float16 else 1e18 if size == "huge" else info.tiny * 4
    problem = case.problem(steps=1, draw=lambda n, g, t: g.sign() * value).to(dtype)
    problem = problem.map(lambda tensors: {n: t.to(dtype) for n, t in tensors.items()})
    low, wide = (
        case.link.update(
            gch.Tensors.of(p.gradient(0, p.params)),
            case.link.init(gch.Tensors.of(p.params)),
            context(p, gch.Tensors.of(p.params), 0, 0),
        )[0]
        for p in (problem, problem.to(torch.float64))
    )
    low, wide = (x.tensors if isinstance(x, gch.Weights) else x for x in (low, wide))
    if wide is None:
        assert low is None
        return
    assert all(bool(torch.isfinite(low[n]).all()) for n in low)
    assert gap([{n: low[n].double() for n in low}], [dict(wide)]) <= 1e-6


def transposed(tensor):
    """The same numbers, in the other order in memory."""
    return tensor.T.contiguous().T if tensor.ndim == 2 else tensor


def strided(tensor):
    """The same numbers, each second in memory."""
    if not tensor.ndim or not tensor.numel():
        return tensor
    wide = torch.stack([tensor, torch.full_like(tensor, torch.nan)], dim=-1)
    return wide[..., 0]


@rows
@pytest.mark.parametrize("layout", [transposed, strided])
def test_layout_in_memory_does_not_matter(case: Case, layout):
    """Weights and gradients that are not contiguous move as contiguous ones do, whichever of the two it is."""
    problem = case.problem(steps=STEPS)
    bent = Problem(
        {n: layout(p) for n, p in problem.params.items()},
        tuple({n: layout(g) if t != 1 else g for n, g in gs.items()} for t, gs in enumerate(problem.grads)),
        problem.lr,
        problem.bend,
    )
    assert gap(moved(case, bent), moved(case, problem)) <= 1e-14


@rows
def test_channels_last_does_not_matter(case: Case):
    """Images' weights in channels_last move as others do, and slots of their shapes have their strides."""
    shapes = {"body.weight": (2, 3, 2, 2), "body.bias": (2,), "head.weight": (2, 2)}
    problem = case.problem(steps=STEPS, shapes=shapes)

    def last(tensors):
        return {n: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for n, t in tensors.items()}

    bent = problem.map(last)
    assert gap(moved(case, bent), moved(case, problem)) <= 1e-14
    for address, slot in stored(case.tx.init(gch.Tensors.of(bent.params))).items():
        if "[body.weight]" in address and slot.shape == bent.params["body.weight"].shape:
            assert slot.stride() == bent.params["body.weight"].stride()


@rows
def test_every_kind_of_shape_keeps_it(case: Case):
    """0-d, empty and one-element parameters come out with their shapes."""
    problem = case.problem(steps=STEPS, shapes={"body.a": (), "body.b": (0,), "c": (1,), "d": (2, 0, 3), "e": (1, 1)})
    for n, w in weights_after(case.tx, problem, scaled=case.scaled).items():
        assert w.shape == problem.params[n].shape


@rows
def test_an_update_without_any_gradient_moves_nothing(case: Case):
    """Where no parameter has a gradient, no weight moves and nothing breaks."""
    problem = case.problem(steps=1)
    none = Problem(problem.params, ({},), problem.lr, problem.bend)
    for w in moved(case, none)[-1].values():
        assert not torch.count_nonzero(w)
