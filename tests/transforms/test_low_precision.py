"""What rules remember of weights in float16 and bfloat16: in which dtype, and that it follows the gradients.

The twins are the same rules in float64, given the very same gradients. Weights themselves are rounded at each step by
whoever trains in halves, so what is compared is what a rule remembers and the updates that it makes.
"""

import pytest
import torch

import gradchain as gch

HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
LOW = [HALF, BRAIN]
STEP = {HALF: 2.0**-11, BRAIN: 2.0**-8}  # how far a number may be rounded, of its size
ENGINES = ["engine", "reference"]
IDS = {HALF: "float16", BRAIN: "bfloat16"}

# link or alias → the field it keeps → its dtype for weights in float16, bfloat16, float32 and float64
MOMENT, SLOW = (SINGLE, BRAIN, SINGLE, DOUBLE), (SINGLE, SINGLE, SINGLE, DOUBLE)
SLOTS = {
    "scale_by_adam": (lambda **to: gch.scale_by_adam(**to), {"mu": MOMENT, "nu": SLOW}),
    "nesterov": (lambda **to: gch.scale_by_adam(nesterov=True, **to), {"mu": MOMENT, "nu": SLOW}),
    "adam": (lambda **to: gch.adam(0.1, **to), {"mu": MOMENT, "nu": SLOW}),
    "adamw": (lambda **to: gch.adamw(0.1, **to), {"mu": MOMENT, "nu": SLOW}),
    "nadamw": (lambda **to: gch.nadamw(0.1, **to), {"mu": MOMENT, "nu": SLOW}),
    "scale_by_lion": (lambda **to: gch.scale_by_lion(**to), {"mu": MOMENT}),
    "lion": (lambda **to: gch.lion(0.1, **to), {"mu": MOMENT}),
    "trace": (lambda **to: gch.trace(0.9, **to), {"trace": MOMENT}),
    "sgd": (lambda **to: gch.sgd(0.1, momentum=0.9, **to), {"trace": MOMENT}),
    "average_params": (lambda **to: gch.average_params(0.999, **to), {"average": SLOW}),
}
ALIASES = {"adam", "adamw", "nadamw", "lion", "sgd"}
ARGUMENT = {"mu": "mu_dtype", "nu": "nu_dtype", "trace": "accumulator_dtype", "average": "dtype"}


def slots(tx, params):
    """Field → the tensors a chain keeps under it before its first update."""
    return fields(gch.chain(tx).init(params))


def fields(state):
    found = {name: dict(value) for name, value in state.items() if isinstance(value, gch.Tensors)}
    for inner in getattr(state, "links", {}).values():
        found.update(fields(inner))
    return found


def by(engine, tx, weights):
    """The chain bound to weights, run by the engine as it chooses, by some of its executors, or by the reference."""
    updater = tx.bind(weights)
    runs = updater._bound.engine
    names = {"engine": None, "reference": (), "patterns": ("patterns", "blocks")}.get(engine, (engine,))
    runs.executors = tuple(e for e in runs.executors if names is None or e.name in names)
    return updater


def seeing(seen):
    """A link that notes the updates before it."""

    def look(u, w):
        seen.append({n: u[n].double().clone() for n in u})
        return u

    return gch.stateless(look)


# in which dtype


@pytest.mark.parametrize("name", SLOTS)
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_the_dtype_of_a_slot_follows_from_that_of_each_parameter(name):
    """One chain over weights of every dtype: each slot has the rule's dtype, also of complex weights."""
    make, expected = SLOTS[name]
    kinds = (HALF, BRAIN, SINGLE, DOUBLE)
    params = gch.Tensors.of({str(d): torch.ones(2, 3, dtype=d) for d in kinds})
    found = slots(make(), params)
    for field, dtypes in expected.items():
        assert [found[field][str(d)].dtype for d in kinds] == list(dtypes)
        assert list(found[field]) == list(params)
    params = gch.Tensors.of({"c": torch.ones(2, dtype=torch.complex32), "d": torch.ones(2, dtype=torch.complex128)})
    for field in expected:
        found = {n: t.dtype for n, t in slots(make(), params)[field].items()}
        assert found == {"c": torch.complex64, "d": torch.complex128}


@pytest.mark.parametrize("name", SLOTS)
@pytest.mark.parametrize("dtype", [HALF, BRAIN, SINGLE, DOUBLE], ids=str)
def test_an_argument_overrides_it(name, dtype):
    """mu_dtype, nu_dtype, accumulator_dtype and dtype decide for all parameters, each for its own slot only."""
    make, expected = SLOTS[name]
    params = gch.Tensors.of({"a": torch.ones(2, dtype=HALF), "b": torch.ones(2), "c": torch.ones(2, dtype=DOUBLE)})
    for field in expected:
        found = slots(make(**{ARGUMENT[field]: dtype}), params)
        assert {t.dtype for t in found[field].values()} == {dtype}
        for other in expected.keys() - {field}:
            assert [t.dtype for t in found[other].values()] == [expected[other][0], SINGLE, DOUBLE]


@pytest.mark.parametrize("name", SLOTS)
@pytest.mark.parametrize("low", LOW, ids=IDS.get)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_slot_keeps_its_dtype(name, low, engine, tmp_path):
    """After updates, in a mask or a branch, saved and loaded into a fresh updater: the dtype is the one it began in."""
    make, expected = SLOTS[name]
    for wrap in (lambda tx: tx, lambda tx: gch.masked(tx, gch.rest), lambda tx: gch.partition((gch.rest, tx))):
        tail = gch.scale(1.0 if name in ALIASES else -1.0)
        tx = gch.chain(gch.sgd(0.1), make()) if name == "average_params" else gch.chain(wrap(make()), tail)
        weights = {"a": torch.ones(3, dtype=low, requires_grad=True), "b": torch.ones(3, requires_grad=True)}
        updater = by(engine, tx, weights)
        wanted = {field: [dtypes[LOW.index(low)], SINGLE] for field, dtypes in expected.items()}
        for _ in range(2):
            for _ in range(2):
                updater.step({n: torch.full_like(w, 0.5) for n, w in weights.items()})
                found = fields(updater._bound.state)
                assert {f: [found[f][n].dtype for n in "ab"] for f in wanted} == wanted
            updater.save(tmp_path / "a.pt")
            updater = by(engine, tx, {n: w.detach().clone().requires_grad_() for n, w in weights.items()})
            updater.load(tmp_path / "a.pt")
            weights = updater._bound.parameters()


# that they follow


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("low", LOW, ids=IDS.get)
@pytest.mark.parametrize("size", [1e-7, 1e-5, 1e-3, 1e3])
@pytest.mark.parametrize("alias", [gch.adam, gch.nadamw])
def test_adam_moves_by_the_learning_rate_whatever_the_size_of_gradients(engine, low, size, alias):
    """500 steps of 1e-3 under a steady gradient move by 0.5, but for the roundings of the weight."""
    g = torch.tensor([size], dtype=low)
    options = {} if alias is gch.adam else {"weight_decay": 0.0}
    weight = torch.zeros(1, dtype=low, requires_grad=True)
    updater, bound, expected = by(engine, alias(1e-3, **options), {"w": weight}), 0.0, 0.0
    for _ in range(500):
        updater.step({"w": g})
        expected -= 1e-3 * g.item() / (g.item() + 1e-8)
        bound += STEP[low] * max(weight.abs().item(), 2.0**-14)
    assert abs(weight.item() - expected) <= bound + 1e-4, (weight, expected, bound)


def drawn(steps, low):
    """Gradients whose size falls from 1 to 1e-3, so that a mean that stands still is seen."""
    generator = torch.Generator().manual_seed(0)
    for t in range(steps):
        g = 10.0 ** (-3 * t / steps) * torch.randn(64, generator=generator, dtype=DOUBLE)
        yield {"w": g.to(low)}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("low", LOW, ids=IDS.get)
@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize("name", ["scale_by_adam", "nesterov", "scale_by_lion", "trace"])
def test_what_is_remembered_follows_the_gradients(engine, low, clip, name):
    """Over 600 steps each slot, and each update, is that of float64 within the roundings of the slot."""
    make, expected = SLOTS[name]
    seen, true = [], []
    head = [gch.clip_by_norm(2.0)] if clip else []
    ours = by(engine, gch.chain(*head, make(), seeing(seen), gch.scale(-1e-3)), {"w": torch.zeros(64, dtype=low)})
    theirs = by("reference", gch.chain(*head, make(), seeing(true), gch.scale(-1e-3)), {"w": torch.zeros(64).double()})
    for t, g in enumerate(drawn(600, low)):
        ours.step(g)
        theirs.step({"w": g["w"].double()})
        if t % 20:
            continue
        found, exact = fields(ours._bound.state), fields(theirs._bound.state)
        for field, dtypes in expected.items():
            slot, twin = found[field]["w"].double(), exact[field]["w"]
            size = twin.abs().max().item()
            # a mean forgets its roundings as it forgets gradients: they add up over 1 / (1 - b) steps
            lasts = {"mu": 100 if name == "scale_by_lion" else 10, "trace": 10, "nu": 1000}[field]
            step = STEP[BRAIN] if dtypes[LOW.index(low)] is BRAIN else 2.0**-24
            torch.testing.assert_close(slot, twin, rtol=0, atol=1.2 * step * lasts * size)
        if low is HALF:
            torch.testing.assert_close(seen[-1]["w"], true[-1]["w"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_nu_does_not_stand_still(engine):
    """bfloat16 gradients of 0.5 for 1000 steps, then of 1: nu follows them to the end, as it does in float64."""
    updater = by(engine, gch.adam(1e-3), {"w": torch.zeros(1, dtype=BRAIN, requires_grad=True)})
    first = 0.25 * (1 - 0.999**1000)
    for size, expected in ((0.5, first), (1.0, 1 - (1 - first) * 0.999**1000)):
        for _ in range(1000):
            updater.step({"w": torch.full((1,), size, dtype=BRAIN)})
        nu = fields(updater._bound.state)["nu"]["w"]
        assert nu.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("low", LOW, ids=IDS.get)
@pytest.mark.parametrize("decay", [0.9999, 0.999, "mean", lambda t: (1 + t) / (10 + t)])
def test_an_average_of_half_weights_follows_them(engine, low, decay):
    """400 updates after which the weights are elsewhere: the average is that of the same weights in float64."""
    weight = torch.ones(3, dtype=low, requires_grad=True)
    model = {"w": weight}
    updater = by(engine, gch.chain(gch.sgd(2.0**-9), gch.average_params(decay)), model)
    average, start = torch.ones(3, dtype=DOUBLE), torch.tensor([1.0, -1.0, 0.0])
    for t in range(400):
        before = weight.detach().double()
        updater.step({"w": start.to(low)})
        new = before - 2.0**-9 * start.double()  # averaged before it is rounded
        keep = t / (t + 1) if decay == "mean" else decay if isinstance(decay, float) else decay(t)
        average = keep * average + (1 - keep) * new
    found = updater._bound.state.links["average_params"].average["w"]
    torch.testing.assert_close(found.double(), average, rtol=2e-5, atol=2e-5)
    with updater.averaged():
        assert torch.equal(weight, found.to(low))
    averages = updater.averages()["w"]
    assert averages.dtype == low and torch.equal(averages, found.to(low))


@pytest.mark.parametrize("low", LOW, ids=IDS.get)
def test_averages_serve_a_teacher_in_the_models_dtype(low):
    """averages() under functional_call, and copy_average_to a model in float32, which has it unrounded."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).to(low)
    updater = gch.chain(gch.sgd(0.1), gch.average_params(0.999, buffers="average")).bind(model)
    x = torch.randn(5, 3).to(low)
    for _ in range(3):
        updater.update(model(x).float().square().mean())
    out = torch.func.functional_call(model, updater.averages(), (x,))
    assert out.dtype == low
    exact = updater._bound.state.links["average_params"].average
    other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    updater.copy_average_to(other)
    assert exact["0.weight"].dtype == SINGLE and torch.equal(other[0].weight, exact["0.weight"])


@pytest.mark.parametrize("low", LOW, ids=IDS.get)
def test_averaged_buffers_follow_too(low):
    """A statistic that falls from 1 to 0 under a decay of 0.999: its average falls by e in a thousand updates."""
    model = torch.nn.BatchNorm1d(2).to(low)
    updater = gch.chain(gch.sgd(0.1), gch.average_params(0.999, buffers="average")).bind(model)
    model.running_mean.fill_(1.0)
    for _ in range(1001):
        updater.step({"weight": torch.zeros(2, dtype=low)})
        model.running_mean.fill_(0.0)
    mean = updater._bound.state.links["average_params"].buffers["running_mean"]
    torch.testing.assert_close(mean.double(), torch.full((2,), 0.999**1000).double(), rtol=1e-3, atol=0)


# numbers at the ends of float32


@pytest.mark.parametrize("engine", [*ENGINES, "patterns", "blocks"])
@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize("size", [1e-22, 1e-19, 2e19, 1e20, 1e25, 3e38])
@pytest.mark.parametrize("alias", ["adam", "adamw"])
def test_adam_is_torchs_at_the_ends_of_float32(engine, clip, size, alias):
    """Gradients whose squares are no float32, then plain ones: torch.optim's weights, finite as long as they are."""
    start = torch.tensor([1.0, -2.0, 3.0])
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    make = {"adam": (gch.adam, torch.optim.Adam), "adamw": (gch.adamw, torch.optim.AdamW)}[alias]
    head = [gch.clip_by_norm(0.75)] if clip else []
    updater = by(engine, gch.chain(*head, make[0](0.1)), {"w": ours})
    updater.override("max_norm", 0.75 * size) if clip else None
    optimizer = make[1]([theirs], 0.1, foreach=False)
    for t in range(8):
        g = (size if t < 3 else 1.0) * torch.tensor([1.0, -1.0, 0.5])
        updater.step({"w": g})
        theirs.grad = (g.double() * min(1.0, 0.75 * size / g.double().norm())).float() if clip else g
        optimizer.step()
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=0)
    assert ours.isfinite().all()


@pytest.mark.parametrize("engine", [*ENGINES, "blocks"])
@pytest.mark.parametrize("size", [1e-22, 1e15, 2e19, 1e25])
@pytest.mark.parametrize("decay_rate", [0.8, 0.3])
def test_a_mean_square_of_vectors_is_optaxs_at_the_ends_of_float32(engine, size, decay_rate):
    """What is not factored stays finite where a square is no float32, as optax's does."""
    import jax.numpy as jnp
    import numpy as np
    import optax

    weight, params = torch.tensor([1.0, -2.0, 3.0], requires_grad=True), jnp.asarray([1.0, -2.0, 3.0], "float32")
    updater = by(engine, gch.chain(gch.rules.scale_by_factored_rms(decay_rate=decay_rate), gch.sgd(0.1)), {"w": weight})
    theirs = optax.chain(optax.scale_by_factored_rms(decay_rate=decay_rate), optax.scale(-0.1))
    state = theirs.init(params)
    for t in range(6):
        g = (size if t in (0, 3) else 1.0) * np.float32([1.0, -1.0, 0.5])
        updater.step({"w": torch.from_numpy(g)})
        updates, state = theirs.update(jnp.asarray(g), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(weight.detach().numpy(), np.asarray(params), rtol=2e-5)
    assert weight.isfinite().all()


@pytest.mark.parametrize("engine", ENGINES)
def test_came_keeps_vectors_finite(engine):
    """Its mean squares of vectors are infinite then, and such elements rest."""
    weight = torch.ones(3, requires_grad=True)
    updater = by(engine, gch.rules.came(0.1), {"w": weight})
    for size in (3e38, 1.0, 1.0):
        updater.step({"w": torch.tensor([size, 1.0, -1.0])})
    assert weight.isfinite().all()
    assert (weight[1:] != 1.0).all()


@pytest.mark.parametrize("engine", [*ENGINES, "patterns", "blocks"])
@pytest.mark.parametrize("eps_root", [0.0, 1e-8])
def test_an_infinite_nu_stays_infinite(engine, eps_root):
    """One gradient too large to square leaves nu infinite: the weight then rests, and is no NaN."""
    weight = torch.ones(3, requires_grad=True)
    updater = by(engine, gch.adam(0.1, eps_root=eps_root), {"w": weight})
    for size in (3e38, 1.0, 1.0, 0.0):
        updater.step({"w": torch.tensor([size, 1.0, -size])})
    assert weight.isfinite().all()
    assert fields(updater._bound.state)["nu"]["w"].tolist()[0] == float("inf")
