"""Links that own the weights, beside their peers in a loop as one writes it, and by hand where peers differ."""

import copy
import functools
import math
import pickle

import pytest
import torch
from later import later
from little import largest
from peers import in_float64
from torch import nn

import gradchain as gch

schedulefree = later("schedulefree")
pytorch_optimizer = later("pytorch_optimizer")
torch_optimizer = later("torch_optimizer")

DOUBLE = torch.float64


def network(seed=0, dtype=DOUBLE):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def batches(count, seed=1, dtype=DOUBLE):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randn(6, 5, generator=generator, dtype=DOUBLE).to(dtype)


def loss_of(model, x):
    return (model(x) - x[:, :3].sin()).square().mean()


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def apart(a, b, start):
    """The largest difference, in parts of the largest movement."""
    return largest(a[n] - b[n] for n in b) / (largest(b[n] - start[n] for n in b) or 1.0)


def ran_native(updater):
    """Every kernel of the last step was printed C, and no link's own code left it."""
    engine = updater._bound.engine
    return engine.reason == "" and {part.executor for part in engine.last} == {"native"}


# schedule-free

FREE = {
    "sgd": (
        lambda: gch.rules.schedule_free_sgd(0.3, warmup_steps=7, weight_decay=0.01, r=0.5),
        lambda p: schedulefree.SGDScheduleFree(p, 0.3, warmup_steps=7, weight_decay=0.01, r=0.5),
    ),
    "adamw": (
        lambda: gch.rules.schedule_free_adamw(0.02, warmup_steps=7, weight_decay=0.1),
        lambda p: schedulefree.AdamWScheduleFree(p, 0.02, warmup_steps=7, weight_decay=0.1),
    ),
    "radam": (
        lambda: gch.rules.schedule_free_radam(0.02, b2=0.99, weight_decay=0.1),
        lambda p: schedulefree.RAdamScheduleFree(p, 0.02, betas=(0.9, 0.99), weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("name", FREE)
def test_schedule_free_trains_and_evaluates_where_schedulefree_does(name):
    """In a real loop of 40 steps: y in the model, x under averaged() and in a file, in native kernels throughout."""
    make, theirs = FREE[name]
    model, twin = network(), network()
    start, updater, optimizer = weights(model), make().bind(model), theirs(twin.parameters())
    optimizer.train()
    for x in batches(40):
        updater.update(loss_of(model, x))
        assert ran_native(updater)
        optimizer.zero_grad()
        loss_of(twin, x).backward()
        optimizer.step()
        assert apart(weights(model), weights(twin), start) <= 1e-13
    y = weights(model)
    with updater.averaged():
        x = weights(model)
    assert apart(weights(model), y, start) == 0.0
    optimizer.eval()
    assert apart(x, weights(twin), start) <= 1e-13
    assert apart(x, y, start) > 1e-3


def test_a_file_has_both_points(tmp_path):
    """The weights of a file are y, its averages x, bit for bit."""
    model = network()
    updater = gch.rules.schedule_free_adamw(0.02, 3).bind(model)
    for x in batches(9):
        updater.update(loss_of(model, x))
    updater.save(tmp_path / "run.pt")
    deployed = gch.read_weights(tmp_path / "run.pt", averaged=True)
    with updater.averaged():
        assert all(torch.equal(deployed[n], w) for n, w in weights(model).items())
    assert all(torch.equal(gch.read_weights(tmp_path / "run.pt")[n], w) for n, w in weights(model).items())


def test_schedule_free_equals_optax_without_a_warm_up():
    """optax.contrib.schedule_free over SGD; the twin has other powers and rates."""
    import jax
    import optax

    grads = [torch.randn(4, dtype=DOUBLE, generator=torch.Generator().manual_seed(t)) for t in range(12)]
    w = nn.Parameter(torch.linspace(-1, 1, 4, dtype=DOUBLE))
    updater = gch.rules.schedule_free_sgd(0.3, b1=0.7, weight_lr_power=1.5).bind({"w": w})
    with in_float64():
        tx = optax.contrib.schedule_free_sgd(0.3, b1=0.7, weight_lr_power=1.5)
        params = jax.numpy.asarray(w.detach().numpy().copy())
        state, update = tx.init(params), jax.jit(tx.update)
        for g in grads:
            updater.step({"w": g})
            updates, state = update(jax.numpy.asarray(g.numpy()), state, params)
            params = optax.apply_updates(params, updates)
            torch.testing.assert_close(w.detach(), torch.tensor(jax.device_get(params)), rtol=0, atol=1e-14)
        x = torch.tensor(jax.device_get(optax.contrib.schedule_free_eval_params(state, params)))
    torch.testing.assert_close(updater.averages()["w"], x, rtol=0, atol=1e-14)


def test_schedule_free_without_interpolation_is_the_mean_of_all_points():
    """b1 = 0: where z is trained, x can only be had by keeping it. By hand: w = 1, then 0.5, 0, -0.5."""
    w = nn.Parameter(torch.ones(1, dtype=DOUBLE))
    updater = gch.rules.schedule_free_sgd(0.5, b1=0.0).bind({"w": w})
    for expected in (0.5, 0.0, -0.5):
        updater.step({"w": torch.ones(1, dtype=DOUBLE)})
        assert w.item() == expected
    assert updater.averages()["w"].item() == pytest.approx(0.0, abs=1e-15)


def test_a_warm_up_is_inside():
    """By hand, w = 0, g = -1: rates 0.5 and 1; weights of the average 0.25 and 1, so c is 1 and then 0.8."""
    w = nn.Parameter(torch.zeros(1, dtype=DOUBLE))
    updater = gch.rules.schedule_free_sgd(1.0, warmup_steps=2, b1=0.9).bind({"w": w})
    updater.step({"w": -torch.ones(1, dtype=DOUBLE)})
    assert (w.item(), updater.averages()["w"].item()) == (0.5, 0.5)
    updater.step({"w": -torch.ones(1, dtype=DOUBLE)})
    z, x = 1.5, 0.5 + 0.8 * 1.0
    assert updater.averages()["w"].item() == pytest.approx(x, rel=1e-15)
    assert w.item() == pytest.approx(0.1 * z + 0.9 * x, rel=1e-15)


def test_schedule_free_in_bfloat16_keeps_its_bits():
    """z and x are kept in float32: after 200 small steps x is the exact one's to float32.

    schedulefree keeps z in bfloat16, where such steps are nothing.
    """
    g = torch.linspace(0.5, 1.5, 64)
    low, exact = nn.Parameter(torch.ones(64).bfloat16()), nn.Parameter(torch.ones(64, dtype=DOUBLE))
    lost = nn.Parameter(torch.ones(64).bfloat16())
    optimizer = schedulefree.SGDScheduleFree([lost], 1e-4)
    optimizer.train()
    ours, theirs = (gch.rules.schedule_free_sgd(1e-4).bind({"w": w}) for w in (low, exact))
    for _ in range(200):
        ours.step({"w": g.bfloat16()})
        theirs.step({"w": g.bfloat16().double()})
        lost.grad = g.bfloat16()
        optimizer.step()
    optimizer.eval()
    assert torch.equal(lost.detach(), torch.ones(64).bfloat16())
    state = ours.state_dict()["links"]["schedule_free"]
    assert {state[name]["w"].dtype for name in ("z", "average")} == {torch.float32}
    torch.testing.assert_close(state["average"]["w"].double(), theirs.averages()["w"], rtol=1e-5, atol=0)
    assert low.dtype is torch.bfloat16 and ours.averages()["w"].dtype is torch.bfloat16


def test_a_parameter_that_joins_late_has_an_average_of_its_own():
    """One that was frozen for five updates moves as if they had not been: its first point is the whole of x."""
    model, alone = network(), network()
    late = gch.named("0.*")
    updater = gch.chain(gch.freeze(late, until=5), gch.rules.schedule_free_sgd(0.3, warmup_steps=3, r=1.0)).bind(model)
    other = gch.rules.schedule_free_sgd(0.3, warmup_steps=3, r=1.0).bind(alone)
    grads = [{n: torch.randn_like(p) for n, p in model.named_parameters()} for _ in range(9)]
    for t, g in enumerate(grads):
        updater.step(g)
        other.step({n: v for n, v in g.items() if not n.startswith("0.") or t >= 5})
    assert ran_native(updater)
    for n, w in weights(alone).items():
        torch.testing.assert_close(weights(model)[n], w, rtol=1e-13, atol=0)
        torch.testing.assert_close(updater.averages()[n], other.averages()[n], rtol=1e-13, atol=0)
    fresh = network()
    first = gch.rules.schedule_free_sgd(0.3, warmup_steps=3, r=1.0).bind(fresh)
    for g in grads[5:]:
        first.step(g)
    torch.testing.assert_close(fresh[0].weight, model[0].weight, rtol=1e-13, atol=0)


TWO_POINTS = {
    "schedule_free": lambda: gch.rules.schedule_free_adamw(0.05),
    "lookahead": lambda: gch.chain(gch.sgd(0.1), gch.rules.lookahead(2)),
}


@pytest.mark.parametrize("name", TWO_POINTS)
def test_weights_that_are_loaded_after_bind_are_those_it_starts_from(name):
    """bind, then load_state_dict, then train: as if they had been there from the start."""
    model, twin, other = network(0), network(5), network(5)
    updater = TWO_POINTS[name]().bind(model)
    model.load_state_dict(twin.state_dict())
    expected = TWO_POINTS[name]().bind(other)
    for x in batches(3):
        updater.update(loss_of(model, x))
        expected.update(loss_of(other, x))
    assert all(torch.equal(weights(model)[n], w) for n, w in weights(other).items())
    assert all(torch.equal(updater.averages()[n], w) for n, w in expected.averages().items())


ALONE = {**TWO_POINTS, "hyperball": lambda: gch.chain(gch.scale_by_adam(), gch.rules.hyperball(0.1))}


@pytest.mark.parametrize("name", ALONE)
def test_each_parameter_may_have_its_turn_in_backward(name):
    """What becomes of one depends on nothing of the others: the same bits."""
    model, twin = network(), network()
    together, apart_ = ALONE[name]().bind(model), ALONE[name]().bind(twin, in_backward=True)
    for x in batches(5):
        together.update(loss_of(model, x))
        apart_.update(loss_of(twin, x))
    assert all(torch.equal(weights(model)[n], w) for n, w in weights(twin).items())


@pytest.mark.parametrize("name", TWO_POINTS)
def test_averages_of_branches_are_one(name, tmp_path):
    """Each branch keeps those of its own parameters; averaged() and a file have them all."""
    model = network()
    branches = gch.partition((gch.bias, TWO_POINTS[name]()), (gch.rest, TWO_POINTS[name]()))
    updater = branches.bind(model)
    twin = network()
    whole = TWO_POINTS[name]().bind(twin)
    for x in batches(5):
        updater.update(loss_of(model, x))
        whole.update(loss_of(twin, x))
    with updater.averaged(), whole.averaged():
        assert apart(weights(model), weights(twin), weights(network())) <= 1e-14
        assert apart(weights(model), weights(network()), weights(network(1))) > 1e-4
    updater.save(tmp_path / "run.pt")
    deployed = gch.read_weights(tmp_path / "run.pt", averaged=True)
    assert all(torch.equal(deployed[n], w) for n, w in updater.averages().items())
    one = gch.read_weights(tmp_path / "run.pt", averaged=f"partition/branch/{name}")
    assert torch.equal(one["0.weight"], model[0].weight) and not torch.equal(one["0.bias"], model[0].bias)


def test_a_scheduler_of_torch_reaches_the_rate():
    """As an optimizer the link's learning rate is the group's."""
    model, twin = network(), network()
    optimizer = gch.rules.schedule_free_adamw(0.02).bind(model).as_optimizer()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    updater = gch.rules.schedule_free_adamw(gch.schedules.step_decay(0.02, 1, 0.5)).bind(twin)
    for x in batches(4):
        optimizer.zero_grad()
        loss_of(model, x).backward()
        optimizer.step()
        scheduler.step()
        updater.update(loss_of(twin, x))
    assert apart(weights(model), weights(twin), weights(network())) <= 1e-13


# primal averages and momentum that looks ahead


def test_one_step_by_hand_of_those_that_train_elsewhere():
    """Where gradients are taken, and what is evaluated."""
    w = nn.Parameter(torch.tensor([1.0, 2.0], dtype=DOUBLE))
    updater = gch.chain(gch.trace(0.5), gch.rules.msam(0.1, rho=0.5)).bind({"w": w})
    updater.step({"w": torch.tensor([3.0, 4.0], dtype=DOUBLE)})
    assert w.tolist() == pytest.approx([0.7 - 0.3, 1.6 - 0.4], abs=1e-12)
    updater.step({"w": torch.tensor([-1.5, 4.0], dtype=DOUBLE)})  # v = (0, 6): from the point that is evaluated
    assert w.tolist() == pytest.approx([0.7, 1.0 - 0.5], abs=1e-12)
    with updater.averaged():
        assert w.tolist() == pytest.approx([0.7, 1.0], abs=1e-12)
    w = nn.Parameter(torch.tensor([1.0], dtype=DOUBLE))
    updater = gch.rules.primal_averaging(0.1, mu_y=0.5, mu_x=0.8).bind({"w": w})
    updater.step({"w": torch.tensor([1.0], dtype=DOUBLE)})
    assert w.tolist() == pytest.approx([0.5 * 0.98 + 0.5 * 0.9])
    assert updater.averages()["w"].tolist() == pytest.approx([0.98])


def test_msam_looks_somewhere_where_the_rate_is_nothing():
    """The direction is the rule's, not its step's; and one without a gradient stays where it looks."""
    ours = {"a": nn.Parameter(torch.zeros(2, dtype=DOUBLE)), "b": nn.Parameter(torch.zeros(1, dtype=DOUBLE))}
    updater = gch.rules.msam(0.0, rho=1.0).bind(ours)
    updater.step({"a": torch.tensor([3.0, 0.0], dtype=DOUBLE), "b": torch.tensor([4.0], dtype=DOUBLE)})
    assert ours["a"].tolist() == pytest.approx([-0.6, 0.0]) and ours["b"].tolist() == pytest.approx([-0.8])
    updater.step({"a": torch.tensor([0.0, 2.0], dtype=DOUBLE)})
    assert ours["a"].tolist() == pytest.approx([0.0, -1.0]) and ours["b"].tolist() == pytest.approx([-0.8])
    assert updater.averages()["b"].tolist() == [0.0]


def test_primal_averaging_at_x_is_heavy_ball_momentum():
    """With mu_y = 1, as the paper has it: its mu_x is the momentum, and the rate is that of SGD over 1 - mu_x."""
    w, v = (nn.Parameter(torch.tensor([1.0, -2.0], dtype=DOUBLE)) for _ in range(2))
    updater, theirs = (
        gch.rules.primal_averaging(1.0, 1.0, 0.9).bind({"w": w}),
        torch.optim.SGD([v], lr=0.1, momentum=0.9),
    )
    for t in range(10):
        updater.step({"w": w.detach().sin() + t})
        v.grad = v.detach().sin() + t
        theirs.step()
    torch.testing.assert_close(w, v, rtol=1e-12, atol=1e-12)


# lookahead


def test_lookahead_by_hand():
    """The slow weights are w0 at first, so the first synchronisation goes half of the way back: 1, 0.9, then 0.9.

    timm makes them at that moment, from the fast ones: there the first synchronisation leaves 0.8.
    """
    w = nn.Parameter(torch.ones(1, dtype=DOUBLE))
    updater = gch.chain(gch.sgd(0.1), gch.rules.lookahead(2, 0.5)).bind({"w": w})
    seen = []
    for _ in range(4):
        updater.step({"w": torch.ones(1, dtype=DOUBLE)})
        seen.append((round(w.item(), 12), round(updater.averages()["w"].item(), 12)))
    assert seen == [(0.9, 1.0), (0.9, 0.9), (0.8, 0.9), (0.8, 0.8)]


def test_lookahead_beside_the_packages():
    """pytorch_optimizer's is the same; torch_optimizer's synchronises at the first step of a period, which is other."""
    ours, same, other = network(), network(), network()
    start = weights(ours)
    updater = gch.chain(gch.sgd(0.2, momentum=0.9), gch.rules.lookahead(3, 0.5)).bind(ours)
    theirs = pytorch_optimizer.Lookahead(torch.optim.SGD(same.parameters(), lr=0.2, momentum=0.9), k=3, alpha=0.5)
    third = torch_optimizer.Lookahead(torch.optim.SGD(other.parameters(), lr=0.2, momentum=0.9), k=3, alpha=0.5)
    for x in batches(7):
        updater.update(loss_of(ours, x))
        assert ran_native(updater)
        for model, optimizer in ((same, theirs), (other, third)):
            optimizer.zero_grad()
            loss_of(model, x).backward()
            optimizer.step()
    assert apart(weights(ours), weights(same), start) <= 1e-13
    assert apart(weights(ours), weights(other), start) > 1e-2


def test_lookahead_counts_what_was_applied():
    """Micro-batches of a window, and updates that a gate skips, are none."""
    w = nn.Parameter(torch.ones(1, dtype=DOUBLE))
    tx = gch.chain(gch.accumulate(2), gch.skip_nonfinite(), gch.sgd(0.1), gch.rules.lookahead(2, 0.5))
    updater = tx.bind({"w": w})
    for g in (1.0, 1.0, math.inf, 1.0, 1.0, 1.0):
        updater.step({"w": torch.full((1,), g, dtype=DOUBLE)})
    assert updater.num_updates == 2 and updater.num_skipped == 1
    assert w.item() == pytest.approx(0.9, rel=1e-15)


# projections


PROJECTIONS = {
    "non_negative": {},
    "box": {"lower": -0.5, "upper": 0.75},
    "hypercube": {"scale": 0.7},
    "linf_ball": {"scale": 0.4},
    "simplex": {"scale": 1.5},
    "l1_sphere": {"scale": 2.0},
    "l1_ball": {"scale": 2.0},
    "l2_sphere": {"scale": 1.5},
    "l2_ball": {"scale": 1.5},
    "halfspace": {"b": 0.3},
    "hyperplane": {"b": 0.3},
    "vector": {},
}
SHAPES = [(12,), (3, 4), (2, 3, 2)]
OF_TENSORS = ("halfspace", "hyperplane", "vector")
IN_ROWS = ("simplex", "l1_sphere", "l1_ball", "l2_sphere", "l2_ball", *OF_TENSORS)


def made(name, shape=(), **more):
    given = {**PROJECTIONS[name], **more}
    if name in OF_TENSORS:
        given["a"] = torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(9))
    return getattr(gch.rules, f"projection_{name}")(**given)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_projection_is_that_of_optax(name):
    """In float64, of vectors and matrices, inside and outside of the set; and it is its own projection."""
    import jax
    from optax import projections

    fns = [made(name, shape) for shape in SHAPES]
    given = dict(PROJECTIONS[name]) | ({"a": fns[0].a.numpy()} if name in OF_TENSORS else {})
    with in_float64():
        theirs = jax.jit(functools.partial(getattr(projections, f"projection_{name}"), **given))
        for seed, size in enumerate((0.03, 0.3, 1.0, 30.0)):
            x = size * torch.randn(12, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
            expected = torch.tensor(jax.device_get(theirs(jax.numpy.asarray(x.numpy()))))
            for fn, shape in zip(fns, SHAPES, strict=True):
                out = fn(x.reshape(shape))
                torch.testing.assert_close(out, expected.reshape(shape), rtol=1e-13, atol=1e-14)
                torch.testing.assert_close(fn(out), out, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_one_element_is_projected_whatever_its_shape(name):
    """A 0-d parameter is as a vector of one."""
    for value in (-3.0, 0.1, 5.0):
        x = torch.tensor([value], dtype=DOUBLE)
        assert made(name, ())(x[0]) == made(name, (1,))(x)[0]


@pytest.mark.parametrize("name", IN_ROWS)
@pytest.mark.parametrize("dim", [1, (0, 2), -1])
def test_a_projection_of_rows_is_that_of_each(name, dim):
    """Along dimensions each row is projected by itself."""
    x = torch.randn(3, 4, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    dims = [d % 3 for d in (dim if isinstance(dim, tuple) else (dim,))]
    rest = [d for d in range(3) if d not in dims]
    fn = made(name, x.shape, dim=dim)
    turned, out = (
        x.permute(*rest, *dims).flatten(0, len(rest) - 1),
        fn(x).permute(*rest, *dims).flatten(0, len(rest) - 1),
    )
    for i, row in enumerate(turned):
        whole = made(name, row.shape)
        if name in OF_TENSORS:
            whole.a = fn.a.permute(*rest, *dims).flatten(0, len(rest) - 1)[i]
        torch.testing.assert_close(out[i], whole(row), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_nothing_in_the_set_is_nearer(name):
    """Against 200 other points of the set."""
    generator = torch.Generator().manual_seed(3)
    x = 2 * torch.randn(6, dtype=DOUBLE, generator=generator)
    fn = made(name, (6,))
    nearest = (x - fn(x)).norm()
    others = [fn(3 * torch.randn(6, dtype=DOUBLE, generator=generator)) for _ in range(200)]
    assert all((x - other).norm() >= nearest - 1e-12 for other in others)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_projection_keeps_weights_in_its_set(name):
    """Behind a rule, in `project`: after every update the weights are their own projection; zeros and empties pass."""
    w = nn.Parameter(torch.zeros(2, 3, dtype=DOUBLE))
    fn = made(name, (2, 3))
    updater = gch.chain(gch.sgd(0.5), gch.project(fn)).bind({"w": w, "e": nn.Parameter(torch.zeros(0, dtype=DOUBLE))})
    for t in range(3):
        updater.step({"w": torch.randn(2, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(t))})
        torch.testing.assert_close(fn(w.detach()), w.detach(), rtol=1e-13, atol=1e-13)
    assert bool(fn(torch.zeros(2, 3)).isfinite().all())
    assert made(name, (0,))(torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize("name", [name for name in PROJECTIONS if name not in OF_TENSORS])
def test_a_projection_is_a_value(name):
    """Its repr makes it, it is equal to a copy, a pickle, and what a config makes; in low precision it is in range."""
    link = gch.project(made(name), gch.named("w"))
    names = {n: getattr(gch.rules, n) for n in gch.rules.__all__} | {"named": gch.named}
    assert eval(repr(link), names) == link == pickle.loads(pickle.dumps(link)) == copy.deepcopy(link)
    assert gch.from_config(gch.to_config(link)) == link
    assert link != gch.project(made(name, **({"dim": 1} if name in IN_ROWS else {})), gch.named("v"))


def test_complex_numbers_are_pairs_where_a_projection_is_elementwise():
    """And have their magnitudes where it is by the 2-norm."""
    z = torch.complex(torch.tensor([3.0, -0.1], dtype=DOUBLE), torch.tensor([-4.0, 0.2], dtype=DOUBLE))
    assert made("non_negative")(z).tolist() == [3 + 0j, 0.2j]
    assert made("linf_ball")(z).tolist() == [0.4 - 0.4j, -0.1 + 0.2j]
    torch.testing.assert_close(gch.rules.projection_l2_ball(2.0)(z).abs().square().sum().sqrt().item(), 2.0)


BAD = [
    (lambda: gch.rules.projection_box(1.0, 0.0), ValueError, "projection_box: lower must be at most upper, 0.0, got 1"),
    (lambda: gch.rules.projection_box("a", 0.0), TypeError, "projection_box: lower must be a number, got 'a'."),
    (lambda: gch.rules.projection_box(0.0, math.nan), ValueError, "projection_box: upper must be a finite number, got"),
    (
        lambda: gch.rules.projection_hypercube(-1),
        ValueError,
        "projection_hypercube: scale must be in [0, inf), got -1.",
    ),
    (
        lambda: gch.rules.projection_linf_ball(True),
        TypeError,
        "projection_linf_ball: scale must be a number, got True.",
    ),
    (lambda: gch.rules.projection_vector([1.0]), TypeError, "projection_vector: a must be a tensor, got [1.0]."),
    (lambda: gch.rules.projection_halfspace(torch.ones(1), "b"), TypeError, "projection_halfspace: b must be a number"),
    *(
        (lambda n=n: getattr(gch.rules, n)(0.0), ValueError, f"{n}: scale must be in (0, inf), got 0.0.")
        for n in ("projection_simplex", "projection_l1_ball", "projection_l1_sphere", "projection_l2_ball")
    ),
    (
        lambda: gch.rules.projection_l2_sphere(-1),
        ValueError,
        "projection_l2_sphere: scale must be in (0, inf), got -1.",
    ),
    (
        lambda: gch.rules.projection_l2_ball(1.0, "rows"),
        TypeError,
        "projection_l2_ball: dim must be a dimension, several",
    ),
]


@pytest.mark.parametrize(("make", "error", "sentence"), BAD)
def test_bad_arguments_of_projections(make, error, sentence):
    """Refused where they are written."""
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value).startswith(sentence)


# asam


def test_asam_is_adaptive_sam():
    """pytorch_optimizer's SAM with adaptive=True, which is davda54's, for eta=0. Its norm is a float32."""
    ours, theirs = network(), network()
    start = weights(ours)
    updater = gch.chain(gch.rules.asam(0.7, 0.0), gch.sgd(0.2, momentum=0.9)).bind(ours)
    optimizer = pytorch_optimizer.SAM(
        theirs.parameters(), torch.optim.SGD, rho=0.7, adaptive=True, lr=0.2, momentum=0.9
    )
    for x in batches(6):
        updater.update(lambda x=x: loss_of(ours, x))
        assert ran_native(updater)
        loss_of(theirs, x).backward()
        optimizer.first_step(zero_grad=True)
        loss_of(theirs, x).backward()
        optimizer.second_step(zero_grad=True)
    assert apart(weights(ours), weights(theirs), start) <= 1e-6


def test_asam_looks_at_the_same_place_however_layers_are_scaled():
    """Two layers multiplied by 8 and 1/8: the network is the same, and so is where asam looks; sam looks elsewhere."""

    def looked_at(link, factor):
        torch.manual_seed(0)
        w = {"a": torch.randn(4, 3, dtype=DOUBLE) * factor, "b": torch.randn(2, 4, dtype=DOUBLE) / factor}
        x, places = torch.randn(3, 5, dtype=DOUBLE), []

        def gradients(p):
            out = p["b"] @ p["a"] @ x
            places.append(out)
            loss = out.square().sum()
            return loss, torch.autograd.grad(loss, [p["a"], p["b"]])

        def evaluate(params):
            loss, g = gradients({n: params[n].detach().requires_grad_() for n in params})
            return loss, gch.Tensors.of(dict(zip(params, g, strict=True)))

        params = gch.Tensors.of(w)
        link.update(evaluate(params)[1], link.init(params), gch.Context(params, step=0, evaluate=evaluate))
        return places[1].detach()

    torch.testing.assert_close(looked_at(gch.rules.asam(0.5, 0.0), 8.0), looked_at(gch.rules.asam(0.5, 0.0), 1.0))
    assert (looked_at(gch.sam(0.5), 8.0) - looked_at(gch.sam(0.5), 1.0)).abs().max() > 1e-2


def test_asam_under_a_loss_scale_and_a_gate():
    """A scale changes nothing; an evaluation that is not finite is skipped."""
    models = [network(), network()]
    chains = [(), (gch.amp_scale(2.0**10, always=True),)]
    updaters = [
        gch.chain(*front, gch.rules.asam(0.5), gch.sgd(0.2)).bind(m) for front, m in zip(chains, models, strict=True)
    ]
    for x in batches(4):
        for model, updater in zip(models, updaters, strict=True):
            updater.update(lambda model=model, x=x: loss_of(model, x))
    assert apart(*map(weights, models), weights(network())) <= 1e-12
    calls = []

    def second_is_infinite():
        calls.append(1)
        return loss_of(models[1], x) * (math.inf if len(calls) == 2 else 1.0)

    before = weights(models[1])
    assert updaters[1].update(second_is_infinite).reason == "overflow"
    assert all(torch.equal(weights(models[1])[n], w) for n, w in before.items())


# norms and logits


def test_hyperball_keeps_the_norm_and_turns_by_the_rate():
    """Every tensor has the norm it began with, to rounding; over a direction across it, it turns by atan(rate)."""
    model = network()
    norms = {n: w.norm() for n, w in weights(model).items()}
    updater = gch.chain(gch.scale_by_adam(), gch.rules.hyperball(0.05)).bind(model)
    for x in batches(50):
        updater.update(loss_of(model, x))
        assert ran_native(updater)
    for n, w in weights(model).items():
        assert w.norm().item() == pytest.approx(norms[n].item(), rel=1e-14)
    w = nn.Parameter(torch.tensor([3.0, 0.0], dtype=DOUBLE))
    gch.rules.hyperball(0.1).bind({"w": w}).step({"w": torch.tensor([0.0, -7.0], dtype=DOUBLE)})
    assert math.atan2(w[1].item(), w[0].item()) == pytest.approx(math.atan(0.1), rel=1e-12)
    assert w.norm().item() == pytest.approx(3.0, rel=1e-15)


def test_hyperball_leaves_zeros():
    """Zero weights have no direction, and zero updates none either: neither makes a NaN."""
    w, v = nn.Parameter(torch.zeros(3, dtype=DOUBLE)), nn.Parameter(torch.ones(3, dtype=DOUBLE))
    updater = gch.rules.hyperball(0.1).bind({"w": w, "v": v})
    updater.step({"w": torch.ones(3, dtype=DOUBLE), "v": torch.zeros(3, dtype=DOUBLE)})
    assert w.tolist() == [0.0] * 3
    torch.testing.assert_close(v.detach(), torch.ones(3, dtype=DOUBLE), rtol=1e-15, atol=0)


def test_qk_clip_bounds_the_logits():
    """Of two layers, the one whose logits were too large has them at the bound for the same input; each news once."""
    torch.manual_seed(0)
    layers = nn.ModuleDict({n: nn.ModuleDict({m: nn.Linear(4, 4, bias=False) for m in "qkv"}) for n in "ab"}).double()
    x = torch.randn(9, 4, dtype=DOUBLE)

    def largest(name):
        return (layers[name]["q"](x) @ layers[name]["k"](x).T).abs().max()

    clips = [
        gch.rules.qk_clip(n, gch.named(f"{n}.[qk].weight"), largest(n).item() * f) for n, f in (("a", 0.5), ("b", 2))
    ]
    updater = gch.chain(gch.sgd(0.0), *clips).bind(layers)
    before, bounds = weights(layers), [largest("a").item() * 0.5, largest("b").item()]
    values = layers["a"]["v"].weight
    for rounds in range(2):
        if not rounds:
            for n in "ab":
                updater.observe(n, largest(n))
        info = updater.update(values.sum())
        for n in "ab":
            for m in "qk":
                layers[n][m].weight.grad = torch.zeros_like(layers[n][m].weight)
        updater.step()
    assert info.applied
    assert ran_native(updater)
    assert largest("b").item() == bounds[1]
    assert torch.equal(values, before["a.v.weight"])
    updater.observe("a", 4 * bounds[0])
    for m in "qk":
        layers["a"][m].weight.grad = torch.zeros_like(layers["a"][m].weight)
    old = layers["a"]["q"].weight.detach().clone()
    updater.step()
    torch.testing.assert_close(layers["a"]["q"].weight.detach(), 0.5 * old, rtol=1e-14, atol=0)


def test_qk_clip_has_no_turns_in_backward():
    """News are read once for all of its parameters."""
    layers = nn.Linear(2, 2)
    tx = gch.chain(gch.sgd(0.1), gch.rules.qk_clip("logit", gch.named("weight")))
    with pytest.raises(ValueError, match="qk_clip"):
        tx.bind(layers, in_backward=True)


# what others call it


def test_periodic_update_is_an_average_without_memory():
    """optax.periodic_update: a hard copy every so many updates."""
    import jax
    import optax

    w = nn.Parameter(torch.zeros(3, dtype=DOUBLE))
    updater = gch.chain(gch.sgd(1.0), gch.average_params(0.0, every=3)).bind({"w": w})
    with in_float64():
        target = jax.numpy.asarray(w.detach().numpy().copy())
        for t in range(8):
            updater.step({"w": torch.randn(3, dtype=DOUBLE, generator=torch.Generator().manual_seed(t))})
            new = jax.numpy.asarray(w.detach().numpy().copy())
            target = optax.periodic_update(new, target, jax.numpy.asarray(t), 3)
            assert torch.equal(updater.averages()["w"], torch.tensor(jax.device_get(target)))
