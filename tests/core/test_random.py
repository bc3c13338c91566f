"""Random numbers without state: what they are, what they follow from, and that they look random."""

from __future__ import annotations

import itertools
import math

import noise
import numpy as np
import pytest
import torch

import gradchain as gch
from gradchain.core import random
from gradchain.core.eager import EagerTensors
from gradchain.core.index import Fact, Index
from gradchain.core.place import Place
from gradchain.core.random import KINDS, drawn, drawn_rows, philox

DTYPES = {torch.float32: np.float32, torch.float64: np.float64}
LOW = (torch.bfloat16, torch.float16)


def context(step: int = 0, *path: str) -> gch.Context:
    ctx = gch.Context(gch.Tensors.of({}), step=step)
    for name in path:
        ctx = ctx.enter(name)
    return ctx


def draw(kind: str, like: gch.Tensors, seed: int = 0, step: int = 0, path: tuple[str, ...] = (), **given: int):
    return getattr(context(step, *path).random(seed), kind)(like, **given)


def zeros(*shape: int, dtype: torch.dtype = torch.float32, name: str = "w") -> gch.Tensors:
    return gch.Tensors.of({name: torch.zeros(shape, dtype=dtype)})


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0,) * 4, (0,) * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_the_published_answers_of_philox(counter, key, words):
    known = [int(word, 16) for word in words.split()]
    assert list(philox(counter, key)) == known
    as_tensors = philox([torch.tensor([c]) for c in counter], [torch.tensor([k]) for k in key])
    assert [int(word) for word in as_tensors] == known
    assert noise.philox(np.array([counter], dtype=np.uint64), key).tolist() == [known]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("seed", "step", "size", "given"),
    [(0, 0, 1, 0), (1, 3, 10_001, 0), (2**70, 2**31 + 5, 64, 7), (5, 2**32 - 1, 130, 2**28 - 1)],
)
def test_a_twin_in_numpy_gives_the_same_bits(kind, dtype, seed, step, size, given):
    found = draw(kind, zeros(size, dtype=dtype, name="a.b"), seed, step, ("chain", "link"), draw=given)["a.b"]
    twin = noise.drawn(kind, seed, "chain/link", "a.b", step, size, DTYPES[dtype], given)
    assert found.dtype is dtype
    assert torch.equal(found, torch.from_numpy(twin))


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_in_the_compute_dtype_and_those_of_narrow_weights_are_those_of_float32(kind):
    wanted = draw(kind, zeros(5, 7))["w"]
    for dtype in LOW:
        found = draw(kind, zeros(5, 7, dtype=dtype))["w"]
        assert found.dtype is torch.float32
        assert torch.equal(found, wanted)


def test_bits_and_signs_are_the_same_in_all_dtypes_and_uniforms_but_cut():
    narrow, wide = zeros(1001), zeros(1001, dtype=torch.float64)
    for kind in ("bits", "signs"):
        assert torch.equal(draw(kind, narrow)["w"].double(), draw(kind, wide)["w"])
    cut = draw("uniform", narrow)["w"].double(), draw("uniform", wide)["w"]
    assert torch.equal(cut[0], (cut[1] * 2**24).floor() / 2**24)
    assert torch.equal(cut[0] * 2**24, draw("bits", narrow)["w"].double()) is False  # streams of their own
    assert (draw("normal", narrow)["w"].double() - draw("normal", wide)["w"]).abs().max() < 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_complex_parameter_is_pairs_of_reals(kind, dtype):
    found = draw(kind, zeros(3, 5, dtype=dtype))["w"]
    real = draw(kind, zeros(3, 5, 2, dtype=dtype.to_real()))["w"]
    assert torch.equal(torch.view_as_real(found), real)


@pytest.mark.parametrize("kind", KINDS)
def test_an_element_has_its_number_however_it_lies_in_memory(kind):
    plain = torch.zeros(2, 3, 4, 5)
    wanted = draw(kind, gch.Tensors.of({"w": plain}))["w"]
    for turned in (
        plain.to(memory_format=torch.channels_last),
        torch.zeros(5, 4, 3, 2).permute(3, 2, 1, 0),
        torch.zeros(4, 3, 4, 5)[::2],
        torch.zeros(1, 1, 1, 1).expand(2, 3, 4, 5),
    ):
        assert torch.equal(draw(kind, gch.Tensors.of({"w": turned}))["w"], wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_step_address_name_or_draw_gives_other_numbers_and_nothing_else_does(kind):
    like = zeros(400)
    base = {"seed": 1, "step": 2, "path": ("a", "b"), "draw": 3}
    found = [draw(kind, like, **base)["w"]]
    assert torch.equal(found[0], draw(kind, 5 * like + 2, **base)["w"])
    both = gch.Tensors.of({"v": torch.zeros(9), "w": torch.zeros(400)})
    assert torch.equal(found[0], draw(kind, both, **base)["w"])
    assert torch.equal(found[0], draw(kind, like < 1.0, **base)["w"])
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for other in ({"seed": 2}, {"step": 3}, {"path": ("a", "c")}, {"path": ("ab",)}, {"draw": 4}):
        found.append(draw(kind, like, **{**base, **other})["w"])
    found.append(draw(kind, zeros(400, name="v"), **base)["v"])
    assert torch.equal(state, torch.get_rng_state())
    for one, two in itertools.combinations(found, 2):
        assert (one == two).double().mean() < 0.7


def test_kinds_are_independent_of_one_another():
    like = zeros(20_000)
    each = [draw(kind, like)["w"].double() for kind in KINDS]
    for one, two in itertools.combinations(each, 2):
        assert abs(_correlation(one, two)) < 0.03


# parts of a whole

PARTS = [
    ((10, 6), (slice(2, 7), slice(None))),
    ((10, 6), (slice(3, 4), slice(1, 4))),
    ((10, 6), (slice(None), slice(2, 5))),
    ((4, 5, 6), (slice(1, 3), slice(0, 2), slice(3, 6))),
    ((4, 5, 6), (slice(1, 3), slice(None), slice(None))),
    ((7,), (slice(5, 7),)),
    ((7,), (slice(7, 7),)),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "part"), PARTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_a_part_of_a_tensor_gets_the_numbers_of_that_part(kind, shape, part, dtype):
    whole = draw(kind, zeros(*shape, dtype=dtype))["w"]
    shard = torch.zeros(shape, dtype=dtype)[part].clone()
    place = Place(shape, tuple(s.indices(n)[0] for s, n in zip(part, shape, strict=True)))
    facts = [Fact("w", shard, None, place)]
    assert torch.equal(draw(kind, EagerTensors.about(facts))["w"], whole[part])


def test_a_run_is_told_from_a_part_with_gaps():
    assert Place((10, 6), (2, 0)).run((5, 6)) == 12
    assert Place((10, 6), (3, 1)).run((1, 3)) == 19
    assert Place((10, 6), (0, 2)).run((10, 3)) is None
    assert Place((10, 6), (0, 0)).run((0, 3)) == 0
    assert Place((), ()).run(()) == 0


# torch's functions over links


def test_a_link_that_draws_runs_under_vmap_and_has_derivatives():
    link = gch.add_noise(0.5, 0.1, 3)
    g = torch.randn(4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def update(g):
        out, _ = link.update(EagerTensors(index, [g]), link.init(like), gch.Context(like, step=2))
        return out["w"]

    like = zeros(3, 5, dtype=torch.float64)
    index = Index([Fact("w", torch.zeros(3, 5, dtype=torch.float64))])

    def drawn(g):  # each member of an ensemble gets the same
        return g * 0.0 + draw("normal", EagerTensors(index, [g]))["w"]

    assert torch.equal(torch.func.vmap(drawn)(g), draw("normal", like)["w"].expand(4, 3, 5))
    torch.testing.assert_close(torch.func.vmap(update)(g), torch.stack([update(one) for one in g]), rtol=1e-14, atol=0)
    assert torch.equal(torch.func.grad(lambda g: update(g).sum())(g[0]), torch.ones(3, 5, dtype=torch.float64))


# refusals


@pytest.mark.parametrize("seed", [-1, 1.0, True, None, "0"])
def test_a_seed_that_is_none_is_refused(seed):
    error = ValueError if seed == -1 else TypeError
    with pytest.raises(error, match=r"random: seed must be a whole number, at least 0, got"):
        context().random(seed)


@pytest.mark.parametrize("given", [-1, 1.0, True, 2**28])
def test_a_draw_that_is_none_is_refused(given):
    with pytest.raises(ValueError, match=r"random.normal: draw must be a whole number in \[0, 2\^28\), got"):
        context().random(0).normal(zeros(2), draw=given)


def test_what_is_no_tensors_is_refused():
    with pytest.raises(TypeError, match=r"random.signs: takes Tensors"):
        context().random(0).signs(torch.zeros(2))


def test_a_step_that_was_not_given_is_asked_for():
    with pytest.raises(RuntimeError, match=r"Context.step was not given"):
        gch.Context(zeros(2)).random(0)


# statistics: with fixed seeds, so they hold or do not; bounds are five standard deviations

MANY = 1 << 18
FAR = 5.0


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


MOMENTS = {  # mean, variance, and the fourth central moment over the squared variance
    "normal": (0.0, 1.0, 3.0),
    "uniform": (0.5, 1 / 12, 1.8),
    "signs": (0.0, 1.0, 1.0),
    "bits": ((2**24 - 1) / 2, 2**48 / 12, 1.8),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_moments(kind, dtype, seed):
    x = draw(kind, zeros(MANY, dtype=dtype), seed)["w"].double()
    mean, variance, kurtosis = MOMENTS[kind]
    assert abs(x.mean() - mean) < FAR * math.sqrt(variance / MANY)
    centred = x - mean
    assert abs(centred.square().mean() / variance - 1) <= FAR * math.sqrt(max(kurtosis - 1, 0) / MANY) + 1e-12
    assert abs((centred**4).mean() / variance**2 - kurtosis) < FAR * math.sqrt(96 / MANY)
    assert abs((centred**3).mean() / variance**1.5) < FAR * math.sqrt(15 / MANY)


@pytest.mark.parametrize("dtype", DTYPES)
def test_normals_are_distributed_as_normals(dtype):
    x = draw("normal", zeros(MANY, dtype=dtype), 11)["w"].double().sort().values
    below = torch.special.ndtr(x)
    steps = (torch.arange(MANY, dtype=torch.float64) + 0.5) / MANY
    assert (below - steps).abs().max() < 1.95 / math.sqrt(MANY)  # Kolmogorov and Smirnov: one in a thousand
    assert ((x.abs() > 3).double().mean() - 0.0026998).abs() < FAR * math.sqrt(0.0027 / MANY)


@pytest.mark.parametrize("byte", range(3))
def test_bytes_occur_as_often_as_each_other(byte):
    x = draw("bits", zeros(MANY), 4)["w"].long()
    counts = torch.bincount((x >> (8 * byte)) & 255, minlength=256).double()
    chi = ((counts - MANY / 256).square() / (MANY / 256)).sum().item()
    assert abs(chi - 255) < FAR * math.sqrt(2 * 255)


OTHERS = {
    "steps": ({"step": 1}, "w"),
    "far steps": ({"step": 2**20}, "w"),
    "seeds": ({"seed": 1}, "w"),
    "draws": ({"draw": 1}, "w"),
    "addresses": ({"path": ("another",)}, "w"),
    "names": ({}, "v"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", OTHERS)
def test_numbers_of_two_are_not_correlated(kind, other):
    given, name = OTHERS[other]
    one, two = draw(kind, zeros(MANY))["w"].double(), draw(kind, zeros(MANY, name=name), **given)[name].double()
    assert abs(_correlation(one, two)) < FAR / math.sqrt(MANY)
    assert abs(_correlation(one.square(), two.square())) < FAR / math.sqrt(MANY) or kind == "signs"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("apart", [1, 2, 3, 4, 7, 64, 1024])
def test_neighbours_are_not_correlated(kind, apart):
    x = draw(kind, zeros(MANY), 9)["w"].double()
    one, two = x[:-apart], x[apart:]
    assert abs(_correlation(one, two)) < FAR / math.sqrt(MANY)
    if kind != "signs":
        assert abs(_correlation(one.square(), two.square())) < FAR / math.sqrt(MANY)


# the size of add_noise


@pytest.mark.parametrize(("eta", "gamma"), [(0.01, 0.55), (0.3, 0.0), (2.0, 1.5)])
@pytest.mark.parametrize("step", [0, 1, 9, 1000])
def test_the_variance_of_add_noise_falls_as_its_formula_says(eta, gamma, step):
    g = zeros(MANY, dtype=torch.float64)
    link = gch.add_noise(eta, gamma, 6)
    out = link.update(g, link.init(g), gch.Context(g, step=step))[0]["w"]
    variance = eta / (1 + step) ** gamma
    assert abs(out.var().item() / variance - 1) < FAR * math.sqrt(2 / MANY)
    assert abs(out.mean().item()) < FAR * math.sqrt(variance / MANY)


@pytest.mark.parametrize("gamma", [0.0, 0.55])
def test_add_noise_has_the_size_of_optax_at_each_update(gamma):
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    theirs = optax.add_noise(0.2, gamma, key=0)
    params = jax.numpy.zeros(MANY // 4)
    state = theirs.init(params)
    g = zeros(MANY // 4)
    ours = gch.add_noise(0.2, gamma, seed=0)
    for step in range(5):
        drawn, state = theirs.update(params, state)
        mine = ours.update(g, ours.init(g), gch.Context(g, step=step))[0]["w"]
        assert mine.std().item() / float(drawn.std()) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_several_runs_at_once_are_the_same_numbers(kind, dtype):
    """From any element on, and of any length; none of an empty one."""
    keys, runs = [(7, 8), (9, 0xFFFFFFFF), (1, 2), (7, 8)], [(0, 16), (3, 9), (5, 0), (1 << 40, 6)]
    for some in ([0, 3], [0, 1, 2, 3], [2], [2, 2]):
        given = [keys[i] for i in some], 5, 4, [runs[i] for i in some]
        found = drawn_rows(kind, *given, dtype, "cpu")
        each = [drawn(kind, keys[i], 5, 4, *runs[i], dtype, "cpu") for i in some]
        assert torch.equal(found, torch.cat(each))


def test_long_entries_are_drawn_in_pieces(monkeypatch):
    like = gch.Tensors.of({name: torch.zeros(n) for name, n in (("a", 50), ("b", 3), ("c", 17))})
    whole = draw("normal", like)
    monkeypatch.setattr(random, "AT_ONCE", 16)
    assert all(torch.equal(t, whole[name]) for name, t in draw("normal", like).items())
