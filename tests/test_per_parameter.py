"""A hyperparameter given per parameter: in every link, in the engine beside torch's param_groups, and as it is read."""

import copy
import dataclasses
import math
import pickle
import re

import pytest
import torch
from cases import CASES
from torch import nn

import gradchain as gch
from gradchain.core.index import Index
from gradchain.core.scalars import Scalars
from gradchain.core.tensors import Tensors
from gradchain.core.transform import registry

SHAPES = {"a.weight": (3, 2), "a.bias": (3,), "b.weight": (2, 3), "scale": ()}
INSIDE = {"[0, 1)": (0.3, 0.8), "[0, 1]": (0.3, 1.0), "(0, inf]": (0.05, 0.7), "(0, 1)": (0.3, 0.8)}
INSIDE |= {"(0, 1]": (0.3, 0.9), "(1, inf)": (1.5, 4.0), "(4, inf)": (5.0, 12.0)}
INSIDE |= {f"integer [{least}, inf)": (3.0, 2.0) for least in (0, 1)}


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}


def rows():
    """Every link of the table with each of its hyperparameters that may differ per parameter, once."""
    seen = set()
    for case in CASES:
        link = case.link
        elsewhere = isinstance(link, gch.from_torch)  # it has tests of its own, with parameter groups
        if isinstance(link, gch.chain) or elsewhere or case.needs_closure or case.may_hold or case.scope == "joint":
            continue
        for name in sorted(set(link.hypers) - link.uniform):
            if (type(link), name) not in seen and not isinstance(link.__dict__[name], str):
                seen.add((type(link), name))
                yield pytest.param(link, name, id=f"{type(link).__name__}.{name}")


def ran(link, names):
    """Updates and state of the link after four steps of these parameters; one of them sits out the second."""
    params = Tensors.of({n: w for n, w in drawn(0).items() if n in names})
    state, out = link.init(params), []
    for step in range(4):
        grads = {n: g for n, g in drawn(step + 1).items() if n in names and (n, step) != ("a.bias", 1)}
        if grads:
            g = Tensors.of(params).select(grads) * 0.0 + Tensors.of(grads)
            updates, state = link.update(g, state, gch.Context(params, step=step))
            out.append(dict(updates.tensors if isinstance(updates, gch.Weights) else updates))
    return out, {n: dict(v) for n, v in state.items() if isinstance(v, Tensors)}


@pytest.mark.parametrize(("link", "name"), list(rows()))
def test_a_link_takes_numbers_per_parameter(link, name):
    """It does to each parameter what it does to that one alone with the number of its own."""
    few, rest = INSIDE.get(link.hypers[name].interval.text, (0.2, 1.3))
    given = gch.choose((gch.named("*.weight"), few), rest=gch.multiply(rest, (gch.named("scale"), 0.5)))
    updates, state = ran(dataclasses.replace(link, **{name: given}), SHAPES)
    for parameter in SHAPES:
        number = few if parameter.endswith("weight") else rest * 0.5 if parameter == "scale" else rest
        alone, own = ran(dataclasses.replace(link, **{name: number}), [parameter])
        mine = [u[parameter] for u in updates if parameter in u]
        torch.testing.assert_close(mine, [u[parameter] for u in alone if parameter in u], rtol=1e-13, atol=1e-15)
        for field, tensors in own.items():
            if parameter in tensors:
                torch.testing.assert_close(state[field][parameter], tensors[parameter], rtol=1e-13, atol=1e-15)


def test_the_rows_above_are_every_link_that_has_a_number():
    """Those left out are joint, hold the chain, or call a closure: by name, so that none goes missing."""
    tried = {row.values[0].__class__.__name__ for row in rows()}
    others = {name for name, link in registry.items() if link.hypers} - tried
    beside = {"clip_by_ema_norm", "clip_by_zscore", "skip_large_updates", "skip_spikes", "snapshot", "when"}
    joint = {
        "accumulate",
        "amp_scale",
        "asam",
        "msam",
        "normalize_by_update_norm",
        "qk_clip",
        "reduce_on_plateau",
        "sam",
        "tick_on_plateau",
    }
    assert others == joint | beside | {"guard", "skip_nonfinite"}


@pytest.mark.parametrize(
    ("make", "link", "name"),
    [
        (lambda v: gch.clip_by_norm(v), "clip_by_norm", "max_norm"),
        (lambda v: gch.clip_by_norm(1.0, per=[gch.bias], eps=v), "clip_by_norm", "eps"),
        (lambda v: gch.accumulate(v), "accumulate", "every"),
        (lambda v: gch.amp_scale(v), "amp_scale", "init_scale"),
        (lambda v: gch.skip_nonfinite(v), "skip_nonfinite", "max_consecutive"),
        (lambda v: gch.average_params(v, buffers="average"), "average_params", "decay"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_one_number_for_all_is_refused(make, link, name):
    """In a sentence, where it is written and where it is overridden."""
    value = gch.multiply(2.0, (gch.bias, 0.5))
    text = f"{link}: {name} must be one number for all parameters, got multiply(2.0, (bias, 0.5)). partition gives"
    with pytest.raises(TypeError, match=f"^{re.escape(text)}"):
        make(value)


# beside torch


class Layers(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5, dtype=torch.float64) for _ in range(n))

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def multipliers(names, groups):
    return {name: 0.5 + i * groups // len(names) / groups for i, name in enumerate(names)}


@pytest.mark.parametrize("groups", [14, 56])
@pytest.mark.parametrize(
    "peer",
    [
        pytest.param((gch.adamw, torch.optim.AdamW, {}), id="adamw"),
        pytest.param((gch.sgd, torch.optim.SGD, {"momentum": 0.9}), id="sgd"),
    ],
)
def test_equals_param_groups_in_one_kernel(peer, groups):
    """14 multipliers, and one per parameter, of learning rate and decay: one native kernel, torch to 1e-12."""
    alias, theirs, options = peer
    torch.manual_seed(1)
    model, twin = Layers(28), Layers(28)
    twin.load_state_dict(model.state_dict())
    factors = multipliers([n for n, _ in model.named_parameters()], groups)
    assert len(set(factors.values())) == groups
    curve = gch.cosine(1e-2, 1e-3, 20)
    decay = gch.multiply(0.1, (gch.bias, 0.0), (gch.named("layers.1*"), 0.5))
    updater = alias(gch.multiply(curve, factors), weight_decay=decay, **options).bind(model)
    optimizer = theirs(
        [
            {"params": [p], "weight_decay": 0.0 if n.endswith("bias") else 0.05 if n.startswith("layers.1") else 0.1}
            for n, p in twin.named_parameters()
        ],
        lr=1.0,
        **options,
    )
    start = copy.deepcopy(model.state_dict())
    for step in range(20):
        x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        for group, factor in zip(optimizer.param_groups, factors.values(), strict=True):
            group["lr"] = curve(step) * factor
        optimizer.zero_grad()
        twin(x).square().sum().backward()
        optimizer.step()
        updater.update(model(x).square().sum())
    assert [part.executor for part in updater._bound.engine.last] == ["native"] and not updater._bound.engine.reason
    assert updater._bound.engine.num_plans == 1
    for name, p in twin.named_parameters():
        moved = (p - start[name]).abs().max()
        assert (model.get_parameter(name) - p).abs().max() <= 1e-12 * moved, name


@pytest.mark.parametrize("native", [True, False], ids=["native", "blocks"])
def test_engine_equals_reference(native):
    """Numbers per parameter of every kind at once, in a mask, with a parameter that sits out."""
    from gradchain.engine.executors.blocks import Blocks

    per = gch.choose((gch.bias, 0.5), rest=gch.multiply(gch.linear(0.9, 0.6, 5), (gch.named("layers.2*"), 0.9)))
    tx = gch.chain(
        gch.clip_by_value(gch.multiply(0.3, (gch.bias, 0.5))),
        gch.scale_by_adam(b1=per, eps=gch.multiply(1e-3, (gch.bias, 2.0))),
        gch.masked(gch.add_decayed_weights(gch.multiply(0.1, (gch.named("layers.0*"), 3.0))), gch.min_ndim(2)),
        gch.clip_by_norm(gch.multiply(1.0, (gch.bias, 0.5)), per="tensor"),
        gch.scale_by_learning_rate(gch.multiply(gch.cosine(0.1, 0.0, 10), {"layers.1.bias": 0.1})),
        gch.average_params(gch.multiply(0.9, (gch.bias, 0.5))),
    )
    torch.manual_seed(2)
    model = Layers(3)
    params = Tensors.of(model).clone()
    state = tx.init(params)
    updater = tx.bind(model)
    if not native:
        updater._bound.engine.executors = (Blocks(),)
    for step in range(5):
        grads = {n: torch.randn_like(p) for n, p in model.named_parameters() if (n, step) != ("layers.2.weight", 1)}
        g = (params * 0.0).select(grads) + Tensors.of(grads)
        updates, state = tx.update(g, state, gch.Context(params, step=step))
        params = gch.apply_updates(params, updates)
        updater.step(grads=grads)
        assert {part.executor for part in updater._bound.engine.last} == {"native" if native else "blocks"}
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), params[name], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(
            updater.averages()[name], state.links["average_params"].average[name], rtol=1e-12, atol=1e-14
        )


def test_a_schedule_is_evaluated_once_per_update():
    """However many parameters and rules there are, and equal values are one."""
    calls = []

    def curve(step):
        calls.append(step)
        return 0.1

    model = Layers(10)
    lr = gch.choose((gch.named("layers.3*"), gch.multiply(curve, (gch.bias, 2.0))), (gch.bias, 0.5), rest=curve)
    updater = gch.sgd(lr).bind(model)
    assert calls == []
    for _ in range(3):
        updater.update(model(torch.ones(2, 5, dtype=torch.float64)).sum())
    assert calls == [0, 1, 2]


def test_in_backward():
    """Each parameter's turn finds its own number."""
    torch.manual_seed(0)
    model, twin = Layers(3), Layers(3)
    twin.load_state_dict(model.state_dict())
    tx = gch.adamw(gch.multiply(gch.cosine(0.1, 0.0, 10), (gch.bias, 3.0), (gch.named("layers.1*"), 0.5)))
    together, apart = tx.bind(twin), tx.bind(model, in_backward=True)
    for _ in range(3):
        x = torch.randn(4, 5, dtype=torch.float64)
        together.update(twin(x).sum())
        apart.update(model(x).sum())
    torch.testing.assert_close(dict(model.named_parameters()), dict(twin.named_parameters()), rtol=1e-12, atol=1e-14)


def test_a_0d_tensor_under_autograd():
    """A learning rate that is a tensor keeps its derivative through the factors."""
    rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    g = Tensors.of(drawn(1))
    updates, _ = gch.scale_by_learning_rate(gch.multiply(rate, (gch.bias, 3.0))).update(g, gch.State(), gch.Context(g))
    torch.autograd.grad(updates["a.bias"].sum(), rate, retain_graph=True)
    (slope,) = torch.autograd.grad(updates["a.bias"].sum(), rate)
    torch.testing.assert_close(slope, -3.0 * g["a.bias"].sum())


# what the user reads and sets


def test_hyperparams_info_and_settings():
    """A dict by parameter, of the members only; what matched; and few groups."""
    model = Layers(2)
    updater = gch.chain(
        gch.masked(gch.add_decayed_weights(gch.multiply(0.1, (gch.named("layers.0*"), 0.0))), gch.min_ndim(2)),
        gch.scale_by_learning_rate(gch.multiply(gch.linear(0.1, 0.0, 10), (gch.bias, 2.0))),
    ).bind(model)
    lr, decay = "scale_by_learning_rate.learning_rate", "masked/add_decayed_weights.weight_decay"
    before = {"layers.0.weight": 0.1, "layers.0.bias": 0.2, "layers.1.weight": 0.1, "layers.1.bias": 0.2}
    assert updater.hyperparams() == {lr: before, decay: {"layers.0.weight": 0.0, "layers.1.weight": 0.1}}
    assert type(updater.hyperparams()[lr]) is dict
    info = updater.update(model(torch.ones(2, 5, dtype=torch.float64)).sum())
    assert info.hyperparams[lr] == before and type(info.hyperparams[lr]) is dict
    assert updater.hyperparams()[lr]["layers.1.bias"] == 2.0 * gch.linear(0.1, 0.0, 10)(1)
    settings = updater.settings()
    assert settings["layers.0.bias"] == {lr: 0.18} and set(settings["layers.1.weight"]) == {lr, decay}
    assert settings.rules["layers.0.weight"] == {decay: ('named("layers.0*") x0',), lr: ()}
    assert settings.groups() == {decay: {0.0: 1, 0.1: 1}, lr: {0.09: 2, 0.18: 2}}
    rows = [re.split(r" {2,}", line) for line in str(settings).splitlines()]
    assert rows == [
        ["parameter", "add_decayed_weights.weight_decay", "by", lr, "by"],
        ["layers.0.weight", "0", 'named("layers.0*") x0', "0.09"],
        ["layers.0.bias", "0.18", "bias x2"],
        ["layers.1.weight", "0.1", "0.09"],
        ["layers.1.bias", "0.18", "bias x2"],
        [""],
        ["masked/add_decayed_weights.weight_decay: 0 for 1, 0.1 for 1"],
        ["scale_by_learning_rate.learning_rate: 0.09 for 2, 0.18 for 2"],
        [""],
        [
            "masked/add_decayed_weights: 2 parameters have it: layers.0.weight, layers.1.weight; 2 have not: "
            "layers.0.bias, layers.1.bias"
        ],
    ]
    lines = str(settings).splitlines()[:5]
    assert {line.index("0.09") for line in lines if "0.09" in line} == {lines[0].index("scale_by_learning_rate")}
    assert "ends at update 10: linear(0.1, 0.0, 10)" in updater.explain()
    plain = gch.sgd(0.1).bind(Layers(1)).settings()
    assert str(plain) == "Settings: every hyperparameter is one number for all parameters." and plain.groups() == {}


def test_overrides():
    """By a per-parameter value, by a factor on one, and back; saved and loaded; refused before anything changes."""
    model = Layers(2)
    tx = gch.sgd(gch.multiply(0.1, (gch.bias, 2.0)), momentum=0.9)
    updater = tx.bind(model)
    lr, names = "scale_by_learning_rate.learning_rate", updater.names
    updater.override("learning_rate", factor=0.5)
    assert updater.hyperparams()[lr] == dict(zip(names, (0.05, 0.1) * 2, strict=True))
    assert updater.settings().rules["layers.0.bias"][lr] == ("bias x2", "override x0.5")
    updater.override("learning_rate", 0.3)
    assert updater.hyperparams()[lr] == 0.3
    updater.override("decay", gch.choose((gch.bias, gch.linear(0.5, 0.6, 10)), rest=0.7))
    assert updater.hyperparams()["trace.decay"] == dict(zip(names, (0.7, 0.5) * 2, strict=True))
    again = tx.bind(copy.deepcopy(model))
    again.load_state_dict(updater.state_dict())
    assert again.hyperparams() == updater.hyperparams()
    assert again.update(model(torch.ones(2, 5, dtype=torch.float64)).sum() * 0 + again_loss(again)).applied
    before = updater.hyperparams()
    for bad, kind, text in [
        (gch.multiply(0.1, (gch.named("heads.*"), 2.0)), ValueError, 'the pattern "heads.*" matches none'),
        (gch.multiply(0.6, (gch.bias, 2.0)), ValueError, "trace: decay must be in [0, 1), got 1.2. It is that of"),
    ]:
        with pytest.raises(kind, match=re.escape(text)):
            updater.override("decay", bad)
        assert updater.hyperparams() == before
    updater.override("decay")
    assert updater.hyperparams()["trace.decay"] == 0.9
    clipped = gch.chain(gch.clip_by_norm(1.0), gch.sgd(0.1)).bind(model)
    with pytest.raises(TypeError, match="clip_by_norm: max_norm must be one number for all parameters"):
        clipped.override("max_norm", gch.multiply(1.0, (gch.bias, 2.0)))


def again_loss(updater):
    return sum(p.sum() for p in updater._bound.target.parameters())


def test_a_saved_override_that_fits_no_more_is_reported():
    """One whose selector matches nothing in this model is lost, and said to be."""
    updater = gch.sgd(0.1).bind({"a": nn.Linear(2, 2)})
    updater.override("learning_rate", gch.multiply(0.1, (gch.named("a.weight"), 2.0)))
    saved = updater.state_dict()
    other = gch.sgd(0.1).bind(nn.Linear(2, 2))
    with pytest.warns(
        UserWarning, match=r"override of scale_by_learning_rate\.learning_rate was not restored: named: the"
    ):
        other.load_state_dict(saved, strict=False)
    assert other.hyperparams()["scale_by_learning_rate.learning_rate"] == 0.1


@pytest.mark.parametrize(
    ("lr", "text"),
    [
        (
            gch.multiply(0.1, (gch.named("heads.*"), 2.0)),
            'named: the pattern "heads.*" matches none of the 4 parameters.',
        ),
        (
            gch.multiply(0.1, {"layers.0.weights": 2.0}),
            'multiply: there is no parameter "layers.0.weights" among the 4.',
        ),
        (
            gch.multiply(0.1, (gch.bias, -1.0)),
            "scale_by_learning_rate: learning_rate must be in [0, inf), got -0.1. It is that of parameter "
            "'layers.0.bias'.",
        ),
        (
            gch.choose((gch.bias, -0.5), rest=gch.linear(0.1, 0.0, 5)),
            "scale_by_learning_rate: learning_rate must be in [0, inf), got -0.5. It is that of",
        ),
    ],
    ids=["selector", "name", "range", "range beside a schedule"],
)
def test_refused_at_bind(lr, text):
    """What selects nothing, or is out of range for one parameter, before the first update."""
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        gch.sgd(lr).bind(Layers(2))


@pytest.mark.parametrize("bad", [math.nan, -0.1, "fast"])
def test_a_schedule_that_leaves_the_range(bad):
    """Is refused when it does, with the parameter, and nothing is changed."""
    model = Layers(1)
    updater = gch.sgd(gch.multiply(lambda step: bad if step else 0.1, (gch.bias, 2.0))).bind(model)
    updater.update(model(torch.ones(2, 5, dtype=torch.float64)).sum())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((ValueError, TypeError), match=r"learning_rate must be .* It is that of parameter 'layers.0"):
        updater.update(model(torch.ones(2, 5, dtype=torch.float64)).sum())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_rule_that_asks_for_the_truth_of_its_number():
    """A user's `if` on a number that may differ is told what to write."""

    class own(gch.Transform):
        rate: gch.Hyper = gch.Hyper(0.1)

        def update(self, g, state, ctx):
            return (g if self.rate > 0 else -1 * g), state

    g = Tensors.of(drawn(0))
    with pytest.raises(TypeError, match=r"In place of if use gch\.where"):
        own(gch.multiply(0.1, (gch.bias, 2.0))).update(g, gch.State(), gch.Context(g))


# the numbers themselves


def column(*numbers):
    index = Index.of({n: torch.zeros(1) for n in "abc"})
    return Scalars.over(index, torch.tensor(numbers, dtype=torch.float64))


@pytest.mark.parametrize("op", ["+", "-", "*", "/", "**", "<", ">="])
def test_a_column_computes_as_its_entries_do(op):
    """Every operator, with a number on either side and with another column: the bits of the entries' own arithmetic."""
    x, y = column(0.1, 0.7, 1.3), None
    y = Scalars.over(x.column[0], torch.tensor([3.0, 0.3, 7.0], dtype=torch.float64))
    for a, b in [(x, 3), (3, x), (x, 0.3), (0.3, x), (x, y), (x, dict_of(y)), (dict_of(x), y)]:
        found = eval(f"a {op} b", {"a": a, "b": b})
        rows = [{n: v[n] if isinstance(v, Scalars) else v for n in "abc"} for v in (a, b)]
        expected = {n: eval(f"a {op} b", {"a": rows[0][n], "b": rows[1][n]}) for n in "abc"}
        assert dict(found) == expected
    assert dict(-x) == {n: -v for n, v in x.items()}


def dict_of(scalars):
    return Scalars(dict(scalars))


def test_a_column_divides_by_zero_as_the_host_does():
    """inf and nan, and no exception."""
    found = column(1.0, -1.0, 0.0) / column(0.0, 0.0, 0.0).select("abc")
    assert (found["a"], found["b"]) == (math.inf, -math.inf) and math.isnan(found["c"])
    zero = column(1.0, -1.0, 0.0) / 0.0
    assert (zero["a"], zero["b"]) == (math.inf, -math.inf) and math.isnan(zero["c"])


def test_columns_over_other_parameters_meet_by_name():
    """Entries that one side lacks are absent; a copy and a pickle hold the same numbers."""
    x = column(1.0, 2.0, 3.0)
    part = Scalars.over(x.column[0].subset("ac"), torch.tensor([10.0, 30.0], dtype=torch.float64))
    assert dict(x + part) == {"a": 11.0, "c": 33.0} == dict(part + x)
    assert dict(pickle.loads(pickle.dumps(x))) == dict(copy.deepcopy(x)) == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert len(x) == 3 and "b" in x and "d" not in x and dict(x.select("b")) == {"b": 2.0}


def test_a_bound_per_parameter_clips_each_by_its_own_norm():
    """Also where the bound of some is infinite: those pass bit for bit."""
    params, grads = Tensors.of(drawn(0)), Tensors.of(drawn(1))
    bound = gch.choose((gch.named("a.*"), math.inf), (gch.named("scale"), 100.0), rest=gch.linear(0.5, 0.1, 8))
    clip = gch.clip_by_norm(bound, per="tensor", eps=0)
    out, _ = clip.update(grads, clip.init(params), gch.Context(params, step=4))
    for name in ("a.weight", "a.bias", "scale"):
        assert torch.equal(out[name], grads[name]), name
    assert out["b.weight"].norm().item() == pytest.approx(0.3, rel=1e-12)
