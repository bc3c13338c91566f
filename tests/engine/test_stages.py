"""Passes that run tensor by tensor: which do, and that nothing but the time is another by it.

Each step that is staged is held, bit for bit,
against the same kernels run one after the other over all tensors; the reference is behind both.
"""

import operator
import random
import re

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_flatten
from twins import Twins, drawn_like

import gradchain as gch
from gradchain.core.transform import Transform
from gradchain.engine import keeping, replay
from gradchain.engine.executors.native import NativeRunner

SHAPES = [(40, 30), (), (7,), (3, 5, 2, 4), (0, 4), (1, 1), (300, 500), (17, 1)]
OURS = "gradchain.transforms.of_a_test"


class Several(nn.Module):
    """Parameters of many shapes; those of odd number in another dtype where two are given."""

    def __init__(self, *dtypes, how="plain", shapes=SHAPES):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        for i, shape in enumerate(shapes):
            value = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtypes[i % len(dtypes)])
            value = value.mT.contiguous().mT if how == "transposed" and value.ndim > 1 else value
            self.register_parameter(f"w{i}", nn.Parameter(value))


class trust(Transform):
    """The update times ‖w‖ / ‖u‖, where neither is zero."""

    descends = False

    def update(self, u, state, ctx):
        weights, norms = ctx.params.norms(), u.norms()
        return u * gch.where((weights > 0) * (norms > 0), weights / gch.maximum(norms, 1e-38), 1.0), state


class normalised(Transform):
    """u / ‖u‖ₚ."""

    descends = False
    p: float

    def update(self, u, state, ctx):
        return u / (u.norms(p=self.p) + 1e-8), state


class FactoredState(gch.State):
    rows: gch.Tensors
    columns: gch.Tensors


class factored(Transform):
    """Adafactor's second moment, and the clip of its root mean square."""

    descends = False
    applies = gch.min_ndim(2)

    def init(self, params):
        return FactoredState(params.mean(-1).zeros_like(), params.mean(-2).zeros_like())

    def update(self, g, state, ctx):
        square = g * g + 1e-30
        rows, columns = state.rows.lerp(square.mean(-1), 0.1), state.columns.lerp(square.mean(-2), 0.1)
        u = g * (rows / rows.mean(-2)).rsqrt() * columns.rsqrt()
        return u / gch.maximum(1.0, u.norms() / u.numels() ** 0.5), FactoredState(rows, columns)


class measuring(Transform):
    """Scales by norms that it records too."""

    descends = False

    def update(self, u, state, ctx):
        norms = u.norms()
        for name, norm in norms.items():
            ctx.record(f"norm/{name}", norm)
        return u / (norms + 1.0), state


class deciding(Transform):
    """A choice of the host by the norm of one tensor."""

    descends = False

    def update(self, u, state, ctx):
        norms = u.norms()
        return (u / (norms + 1.0) if norms["w0"] > 0 else u), state


@pytest.fixture(autouse=True)
def ours(monkeypatch):
    """The links of this file are gradchain's own while a test of it runs: code of a user's is run at every step."""
    for link in (trust, normalised, factored, measuring, deciding, crossed, drawn):
        monkeypatch.setattr(link, "__module__", OURS)


def lamb():
    return gch.chain(gch.scale_by_adam(eps=1e-6), gch.add_decayed_weights(0.01), trust(), gch.scale(-0.01))


def taught(tx, model, steps=5, absent=(), off=False):
    """The updater after some steps, and the model's parameters by name; with `off` no passes are stages."""
    with pytest.MonkeyPatch.context() as patch:
        if off:
            patch.setattr(replay, "in_stages", lambda ledger, wanted, calls, parts: (ledger.ops, calls, parts))
        updater = tx.bind(model)
        for t in range(steps):
            for i, (name, p) in enumerate(model.named_parameters()):
                p.grad = None if name in absent else drawn_like(p, 100 * t + i)
            updater.step()
            assert updater._bound.engine.reason == ""
    return updater, dict(model.named_parameters())


def staged(updater):
    """What runs tensor by tensor, in the order it runs, and what does not."""
    parts = updater._bound.engine.last
    names = [("along" if p.program.along else p.program.reduce[0] if p.program.reduce else "write") for p in parts]
    marks = [part.staged for part in parts]
    told = re.search(r"(\d+) of these run tensor by tensor", updater.explain())
    assert (int(told[1]) if told else 0) == sum(marks)
    return [n for n, s in zip(names, marks, strict=True) if s], [n for n, s in zip(names, marks, strict=True) if not s]


def assert_same_bits(tx, *dtypes, steps=5, absent=(), **model):
    """Weights and state are those of the same passes one after the other; the updater that stages."""
    mine, found = taught(tx(), Several(*dtypes, **model), steps, absent)
    plain, want = taught(tx(), Several(*dtypes, **model), steps, absent, off=True)
    assert not staged(plain)[0]
    ours, theirs = mine.state_dict(), plain.state_dict()
    flat = [tree_flatten(d)[0] for d in (ours, theirs)]
    for a, b in zip(*flat, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    for name, p in found.items():
        assert torch.equal(p, want[name]) and p.isfinite().all(), name
    return mine


KEPT = ["sum2", "write", "sum2", "write"]
"""The first pass over the update writes it into kept memory, and moments where they belong."""

CHAINS = {
    "LAMB": (lamb, KEPT, []),
    "LARS": (
        lambda: gch.chain(trust(), gch.trace(0.9), gch.scale(-0.01)),
        ["sum2", "sum2", "write"],
        [],
    ),
    "normalised": (lambda: gch.chain(normalised(1.0), gch.scale(-0.1)), ["sum1", "write"], []),
    "by the largest": (lambda: gch.chain(normalised(float("inf")), gch.scale(-0.1)), ["max", "write"], []),
    "twice": (
        lambda: gch.chain(normalised(2.0), gch.add_decayed_weights(0.1), normalised(1.0), gch.scale(-0.1)),
        ["sum2", "write", "sum1", "write"],
        [],
    ),
    "behind a clip of all": (
        lambda: gch.chain(gch.clip_by_norm(1.0), lamb()),
        KEPT,
        ["sum2"],
    ),
    "behind a gate": (lambda: gch.chain(gch.skip_nonfinite(), lamb()), KEPT, ["sum2"]),
    "norms of what the gate saw": (
        lambda: gch.chain(gch.skip_nonfinite(), normalised(2.0), gch.scale(-0.1)),
        [],
        ["sum2", "write"],
    ),
    "of a moment": (  # which is kept where it is stored
        lambda: gch.chain(gch.trace(0.9), normalised(2.0), gch.scale(-0.1)),
        ["write", "sum2", "write"],
        [],
    ),
    "of what takes no time": (
        lambda: gch.chain(gch.scale(0.5), normalised(2.0), gch.scale(-0.1)),
        ["sum2", "write"],
        [],
    ),
    "recorded": (lambda: gch.chain(measuring(), gch.scale(-0.1)), [], ["sum2", "write"]),
    "decided by the host": (lambda: gch.chain(deciding(), gch.scale(-0.1)), [], ["sum2", "write"]),
    "no number": (lambda: gch.adam(0.1), [], ["write"]),
}


@pytest.mark.parametrize("name", CHAINS)
def test_which_passes_are_stages(name):
    tx, inside, outside = CHAINS[name]
    updater = assert_same_bits(tx, torch.float32)
    assert staged(updater) == (inside, outside)
    assert updater._bound.engine.num_replayed == 4


def test_a_factored_rule_is_all_stages():
    """Reductions along dimensions, what is made of rows, a norm, and three kernels that write."""
    shapes = [(40, 30), (300, 500), (3, 5, 2, 4), (70, 1100)]
    updater = assert_same_bits(lambda: gch.chain(factored(), gch.scale(-0.1)), torch.float32, shapes=shapes)
    inside, outside = staged(updater)
    assert not outside and inside.count("along") >= 2 and "sum2" in inside and inside[-1] == "write"


class CrossedState(gch.State):
    nu: gch.Tensors


class crossed(Transform):
    """A norm, then means of rows, and a state that is made of these."""

    descends = False
    applies = gch.min_ndim(2)

    def init(self, params):
        return CrossedState(params.slot())

    def update(self, g, state, ctx):
        u = g / (1.0 + g * g)
        size = 1.0 / (u.norms() + 1.0)
        nu = state.nu.lerp(g * (g * g).mean(-1), 0.1)
        return u * size, CrossedState(nu)


def test_nothing_is_written_before_what_it_is_made_of():
    updater = assert_same_bits(lambda: gch.chain(crossed(), gch.scale(-0.1)), torch.float32, shapes=[(40, 30), (7, 9)])
    assert staged(updater) == (["sum2", "along", "write"], [])


def test_room_is_made_for_what_a_cache_may_hold(monkeypatch):
    """Of larger parameters all is computed twice; a moment needs no room, so it is kept of any."""
    monkeypatch.setattr(keeping, "MOST", 1000)
    updater = assert_same_bits(lamb, torch.float32)
    assert staged(updater) == (["sum2", "write", "sum2", "sum2", "write", "write"], [])
    parts = updater._bound.engine.last
    assert [part.names for part in parts[1:]] == [
        parts[1].names,
        parts[1].names,
        ("w0", "w6"),
        parts[1].names,
        ("w0", "w6"),
    ]
    assert {*parts[1].names, "w0", "w6"} == {f"w{i}" for i in range(len(SHAPES))}
    assert parts[1].runner.scratch == 512 * torch.get_num_threads()  # of the largest, 120 numbers, in whole lines
    monkeypatch.setattr(keeping, "MOST", 0)
    assert staged(assert_same_bits(CHAINS["of a moment"][0], torch.float32))[0] == ["write", "sum2", "write"]


@pytest.mark.parametrize("how", ["plain", "transposed"])
@pytest.mark.parametrize(
    "dtypes",
    [(torch.float64,), (torch.bfloat16,), (torch.float16, torch.float32), (torch.float32, torch.float64)],
    ids=lambda dtypes: "-".join(str(d)[6:] for d in dtypes),
)
def test_every_dtype_and_layout(dtypes, how):
    """Classes of other dtypes are stages of one job, each over its own parameters."""
    updater = assert_same_bits(lamb, *dtypes, how=how)
    inside, outside = staged(updater)
    assert not outside and inside.count("write") == 2 * len(dtypes)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_bits_do_not_depend_on_threads(threads):
    before, shapes = torch.get_num_threads(), [(600, 700), (1100, 300), *[(200, 300)] * 60]
    _, want = taught(lamb(), Several(torch.float32, shapes=shapes), 2, off=True)
    try:
        torch.set_num_threads(threads)
        updater, found = taught(lamb(), Several(torch.float32, shapes=shapes), 2)
    finally:
        torch.set_num_threads(before)
    assert staged(updater) == (KEPT, [])
    assert all(torch.equal(found[n], want[n]) for n in want)


def test_one_parameter_that_is_most_of_all_is_shared_by_threads():
    """A parameter is one thread's: where others would wait for it, passes go over all of them."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        updater, _ = taught(lamb(), Several(torch.float32, shapes=[(700, 700), (10, 10)]), 2)
        assert staged(updater) == ([], ["sum2", "sum2", "write"])
        torch.set_num_threads(1)
        updater, _ = taught(lamb(), Several(torch.float32, shapes=[(700, 700), (10, 10)]), 2)
        assert staged(updater) == (KEPT, [])
    finally:
        torch.set_num_threads(before)


def test_no_pass_runs_before_the_step_is_written(monkeypatch):
    """What is staged is within the one call that writes: the host runs no kernel beside it."""
    (updater, parameters), ran = taught(lamb(), Several(torch.float32), 2), []
    run = NativeRunner.run
    monkeypatch.setattr(NativeRunner, "run", lambda self, *given: ran.append(self) or run(self, *given))
    for i, p in enumerate(parameters.values()):
        p.grad = drawn_like(p, i)
    updater.step()
    assert staged(updater) == (KEPT, []) and not ran


def test_without_some_gradients():
    assert staged(assert_same_bits(lamb, torch.float32, absent=("w0", "w6")))[0] == KEPT


def test_a_gate_holds_what_is_staged():
    """Nothing is written where a gate finds what is not finite; the step after is staged again."""
    tx = gch.chain(gch.skip_nonfinite(), lamb())
    pair = Twins(tx, Several(torch.float64))
    for t in range(7):
        pair.gradients(t, size=float("inf") if t in (2, 4) else 1.0)
    pair.compare()
    assert staged(pair.ours) == (KEPT, ["sum2"])
    assert pair.ours._bound.engine.num_replayed >= 4


def test_other_executors_have_no_stages():
    pair = Twins(lamb(), Several(torch.float64), executors=("blocks",))
    for t in range(3):
        pair.gradients(t)
    pair.compare()
    assert staged(pair.ours) == ([], ["sum2", "sum2", "write"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_what_is_not_finite_stays_in_its_tensor(bad):
    found = []
    for off in (False, True):
        updater, named = taught(lamb(), Several(torch.float32), 2, off=off)
        for i, p in enumerate(named.values()):
            p.grad = drawn_like(p, i)
        named["w0"].grad[3] = bad
        named["w6"].grad.mul_(bad)
        updater.step()
        found.append([p.detach().view(torch.int32) for p in named.values()])
        assert named["w3"].isfinite().all()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


BINARY = (operator.add, operator.sub, operator.mul, operator.truediv, gch.maximum, gch.minimum)


def grown(rng, numbers):
    """A number per tensor, made of the first of these at least."""
    made = numbers[0]
    for _ in range(rng.randrange(4)):
        other = rng.choice([rng.choice(numbers), rng.uniform(0.1, 2.0), 2])
        a, b = (made, other) if rng.random() < 0.5 else (other, made)
        kind = rng.randrange(8)
        if kind < 6:
            made = BINARY[kind](a, b)
        elif kind == 6:
            made = gch.where(made > other, other, 0.5 * made)
        else:
            made = gch.sqrt(gch.maximum(made, -made)) - (-made)
    size = gch.maximum(made, -made)
    return size / (1.0 + size)  # neither large nor negative


class MomentState(gch.State):
    mu: gch.Tensors
    count: gch.Count


class drawn(Transform):
    """Norms of several things, numbers made of them, and updates made of those."""

    descends = False
    seed: int

    def init(self, params):
        return MomentState(params.slot(), gch.Count(params.index))

    def update(self, g, state, ctx):
        rng, count = random.Random(self.seed), state.count.tick(g)
        mu, u = state.mu, g
        for _ in range(rng.randrange(1, 4)):
            of = rng.choice([u, mu, ctx.params, 2.0 * u + ctx.params])
            numbers = [of.norms(p=rng.choice([1.0, 2.0, float("inf")])), u.numels() * 1e-3]
            numbers += [u.norms() * (1.0 / (1 + count))] * rng.randrange(2)
            made = grown(rng, numbers)
            kind = rng.randrange(3)
            if kind == 0:
                u = u * made
            elif kind == 1:
                mu = mu.lerp(u, made)
            else:
                u = gch.where(u > made, u * 0.5, mu + u)
        return u + 0.1 * mu, MomentState(mu, count)


@pytest.mark.parametrize("seed", range(24))
def test_generated_chains(seed):
    dtypes = [(torch.float32,), (torch.float64,), (torch.bfloat16, torch.float32)][seed % 3]
    shapes = [(40, 30), (7,), (3, 5, 2, 4), (0, 4), (300, 500)]
    tx = gch.chain(drawn(seed), gch.scale(-0.1))
    updater = assert_same_bits(lambda: tx, *dtypes, steps=3, shapes=shapes)
    assert staged(updater)[0][-1] == "write"
