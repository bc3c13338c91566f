"""State that moves: other names, other links, other rules, other shapes."""

import pytest
import torch
from torch import nn

import gradchain as gch


def net(first="body", out=2, seed=0, more=()):
    torch.manual_seed(seed)
    layers = {first: nn.Linear(3, 4), "head": nn.Linear(4, out), **dict(more)}
    return nn.ModuleDict(layers).double()


def loss_of(model, k=0):
    x = torch.linspace(-1, 1, 6).double().reshape(2, 3) + k
    return sum(layer(x).square().mean() if layer.in_features == 3 else 0.0 for layer in model.values()) + sum(
        layer.weight.sin().sum() + layer.bias.cos().sum() for layer in model.values()
    )


def train(updater, model, steps=3):
    for k in range(steps):
        updater.update(loss_of(model, k))
    return updater


def recipe():
    return gch.chain(gch.accumulate(2), gch.adamw(gch.linear(1e-2, 0.0, 50)), gch.average_params(0.9))


@pytest.fixture
def file(tmp_path):
    """A file of a run that stands inside a window, with the run."""
    model = net()
    updater = train(recipe().bind(model), model, 5)
    updater.override("b1", 0.8)
    updater.save(tmp_path / "run.pt", epoch=1)
    return tmp_path / "run.pt", model, updater


def bits(updater, model):
    return [t.clone() for t in model.parameters()], str(updater.state_dict())


@pytest.mark.parametrize("door", ["file", "state"])
def test_renamed_parameters_go_on_bit_for_bit(file, door):
    """Weights, moments, counts, averages, the open window: under the new names the run is the one that was saved."""
    path, model, updater = file
    other = net("trunk", seed=1)
    again = recipe().bind(other)
    if door == "file":
        assert again.load(path, rename={"body.*": "trunk.*"}) == {"epoch": 1}
    else:
        with torch.no_grad():
            for p, q in zip(other.parameters(), model.parameters(), strict=True):
                p.copy_(q)
        again.load_state_dict(updater.state_dict(), rename={"body.*": "trunk.*"})
    assert again.loaded.moved == ["body.weight became trunk.weight", "body.bias became trunk.bias"]
    assert not again.loaded.problems()
    train(updater, model), train(again, other)
    if door == "file":  # a state alone has no window that lay in `.grad`
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_two_stars_and_the_first_pattern_that_matches():
    """Each * is carried over, in order; what an earlier pattern took a later one leaves."""
    from gradchain.updater.moving import Moves

    moves = Moves.of("load", True, {"rename": {"a.*.b.*": "*.x.*", "a.*": "z.*"}})
    assert moves.table("load", ["a.1.b.2", "a.3"], ["1.x.2", "z.3"]) == {"a.1.b.2": "1.x.2", "a.3": "z.3"}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"rename": {"bdy.*": "trunk.*"}}, "load: rename 'bdy.*' matches nothing that was saved. There are: 'body"),
        ({"rename": {"body.*": "trnk.*"}}, "rename 'body.*' makes 'trnk.weight' of 'body.weight', which the model has"),
        ({"rename": {"body.weight": "head.weight"}}, "rename must keep names apart, got 'head.weight' for"),
        ({"rename": {"body.*": "trunk"}}, "rename must have as many * on both sides, got 'body.*' and 'trunk'"),
        ({"links": {"scale_by_lion": "scale_by_adam"}}, "links 'scale_by_lion' is no link that was saved. There are"),
        ({"links": {"scale_by_adam": "adam"}}, "links 'adam' is no link of this chain. There are: "),
        ({"resize": {"hed.*": "anew"}}, "resize 'hed.*' matches nothing in the model. There are: 'head"),
        ({"resize": {"head.*": "crop"}}, "resize must be 'overlap', 'anew' or a function of a tensor, got 'crop'"),
        ({}, "load: the file is of another model: weight 'trunk.weight' is missing"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_changes_nothing(file, changed, sentence):
    path, _, _ = file
    model = net("body" if "links" in changed or "resize" in changed else "trunk", seed=1)
    updater = train(recipe().bind(model), model)
    before = bits(updater, model)
    with pytest.raises(ValueError) as caught:
        updater.load(path, **changed)
    assert sentence in str(caught.value)
    after = bits(updater, model)
    assert all(map(torch.equal, before[0], after[0])) and before[1] == after[1]


def test_words_that_are_none_of_load():
    updater = recipe().bind(net())
    with pytest.raises(TypeError, match="load: does not take 'renames'"):
        updater.load("run.pt", renames={})
    with pytest.raises(TypeError, match="load: rename must be a dict of names to names, got 3"):
        updater.load("run.pt", rename=3)


# between rules


def adam_by_hand(w, g, m, v, t, lr=1e-2, b1=0.9, b2=0.999, eps=1e-8):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    return w - lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps), m, v


def test_adam_to_lion_to_adam(tmp_path):
    """The first moment stays one. Adam begins again as after one update with it: by hand, the same numbers."""
    model = net()
    adam = train(gch.adam(1e-2).bind(model), model)
    adam.save(tmp_path / "adam.pt")
    lion = gch.chain(gch.scale_by_lion(0.9, 0.99), gch.scale(-1e-3)).bind(model)
    with pytest.warns(UserWarning, match="is in the code"):
        lion.load(tmp_path / "adam.pt", strict=False)
    assert lion.loaded.moved == [
        "scale_by_adam became scale_by_lion: mu", "scale_by_adam has no place here for its count, nu",
    ]  # fmt: skip
    assert lion.num_updates == 3
    mu = {n: t.clone() for n, t in adam.state_dict()["links"]["scale_by_adam"]["mu"].items()}
    w = {n: p.detach().clone() for n, p in model.named_parameters()}
    for k in range(2):
        g = dict(zip(w, torch.autograd.grad(loss_of(model, k), list(model.parameters())), strict=True))
        lion.update(loss_of(model, k))
        for n in w:
            w[n] = w[n] - 1e-3 * (0.9 * mu[n] + 0.1 * g[n]).sign()
            mu[n] = 0.99 * mu[n] + 0.01 * g[n]
            assert torch.allclose(dict(model.named_parameters())[n], w[n], rtol=0, atol=1e-12)
    lion.save(tmp_path / "lion.pt")

    again = gch.adam(1e-2).bind(model)
    with pytest.warns(UserWarning, match="is in the code"):
        again.load(tmp_path / "lion.pt", strict=False)
    assert again.loaded.moved[1].startswith("scale_by_adam begins with the mean gradient as its first, for body.weight")
    m, v = {n: 0.1 * mu[n] for n in mu}, {n: 0.001 * mu[n] ** 2 for n in mu}
    for k, t in ((0, 2), (1, 3), (2, 4)):
        g = dict(zip(w, torch.autograd.grad(loss_of(model, k), list(model.parameters())), strict=True))
        again.update(loss_of(model, k))
        for n in w:
            w[n], m[n], v[n] = adam_by_hand(w[n], g[n], m[n], v[n], t)
            assert torch.allclose(dict(model.named_parameters())[n], w[n], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        (gch.adam(0.1), gch.nadam(0.1), ("mu", "nu", "count")),
        (gch.adam(0.1), gch.adam(0.1, amsgrad=True), ("mu", "nu", "count")),
        (gch.adam(0.1), gch.rules.adam_atan2(0.1), ("mu", "nu", "count")),
        (gch.rmsprop(0.1), gch.adam(0.1), ("nu",)),
    ],
)
def test_slots_of_one_kind_go_on(before, after, kept):
    """Both moments and the count, where the next rule has them."""
    model = net()
    saved = train(before.bind(model), model).state_dict()
    updater = after.bind(model)
    report = updater.load_state_dict(saved, strict=False)
    assert " became " in report.moved[0]
    was = next(iter(saved["links"].values()))
    now = next(iter(updater.state_dict()["links"].values()))
    for name in kept:
        assert str(now[name]) == str(was[name])
    if "count" in now:
        assert now["count"] == 3  # a mean of squares of three updates is corrected as one
    train(updater, model)


def test_a_sum_is_no_mean():
    """The trace of SGD starts anew in Adam, and the report says so."""
    model = net()
    saved = train(gch.sgd(0.1, momentum=0.9).bind(model), model).state_dict()
    updater = gch.adam(0.1).bind(model)
    report = updater.load_state_dict(saved, strict=False)
    assert report.unexpected == ["trace"] and report.missing == ["scale_by_adam"] and not report.moved
    assert updater.state_dict()["links"]["scale_by_adam"]["count"] == 0


# links


def test_a_link_that_is_wrapped_keeps_its_state(tmp_path):
    """By its class, without strictness; or by its address, with it."""
    model = net()
    train(gch.adam(1e-2).bind(model), model).save(tmp_path / "a.pt")
    wrapped = gch.chain(gch.clip_by_norm(1.0), gch.masked(gch.scale_by_adam(), gch.everything), gch.scale(-0.1))
    for changed in ({"strict": False}, {"links": {"scale_by_adam": "masked/scale_by_adam"}}):
        updater = wrapped.bind(net(seed=1))
        with pytest.warns(UserWarning, match="is in the code"):
            updater.load(tmp_path / "a.pt", **changed)
        assert updater.loaded.moved == ["scale_by_adam became masked/scale_by_adam: count, mu, nu"]
        now, was = updater.state_dict()["links"], torch.load(tmp_path / "a.pt")["parts"]["updater"]["state"]["links"]
        assert str(now["masked/scale_by_adam"]) == str(was["scale_by_adam"])
    with pytest.raises(ValueError, match="masked/scale_by_adam is missing; scale_by_adam is unexpected"):
        wrapped.bind(net(seed=1)).load(tmp_path / "a.pt")


def test_one_link_becomes_two_and_two_become_one():
    """Each branch has its parameters; together they are what was."""
    model = net()
    saved = train(gch.adam(1e-2).bind(model), model).state_dict()
    apart = gch.partition((gch.min_ndim(2), gch.adam(1e-2)), (gch.rest, gch.adam(1e-3))).bind(model)
    apart.load_state_dict(saved, strict=False)
    links = apart.state_dict()["links"]
    assert sorted(links["partition/branch/scale_by_adam"]["mu"]) == ["body.weight", "head.weight"]
    back = gch.adam(1e-2).bind(model)
    report = back.load_state_dict(apart.state_dict(), strict=False)
    assert len(report.moved) == 2 and not report.problems()
    assert str(back.state_dict()["links"]) == str(saved["links"])


def test_a_link_that_could_come_from_two_starts_anew_and_says_so():
    model = net()
    two = gch.chain(("a", gch.scale_by_lion()), ("b", gch.scale_by_lion()), gch.scale(-0.1))
    saved = train(two.bind(model), model).state_dict()
    updater = gch.lion(0.1).bind(model)
    report = updater.load_state_dict(saved, strict=False)
    assert "starts anew, for both a and b could give to it" in report.moved[0] and report.missing == ["scale_by_lion"]
    report = updater.load_state_dict(saved, strict=False, links={"b": "scale_by_lion"})
    assert str(updater.state_dict()["links"]["scale_by_lion"]) == str(saved["links"]["b"])


def test_an_average_that_is_added_starts_from_the_loaded_weights(tmp_path):
    model = net()
    train(gch.adam(1e-2).bind(model), model).save(tmp_path / "a.pt")
    updater = gch.chain(gch.adam(1e-2), gch.average_params(0.9)).bind(net(seed=5))
    with pytest.warns(UserWarning) as told:
        updater.load(tmp_path / "a.pt", strict=False)
    assert "load: average_params is missing. What was not saved starts anew." in [str(w.message) for w in told]
    average = updater.averages()
    assert all(torch.equal(average[n], p) for n, p in model.named_parameters())


# grown and shrunk models


def test_a_model_that_grew(tmp_path):
    """Rows that were appended start anew in a slot, and stay the model's in the weight; a new layer counts from 0."""
    old = net()
    train(gch.adam(1e-2).bind(old), old).save(tmp_path / "a.pt")
    model = net(out=5, seed=1, more={"new": nn.Linear(2, 1)}.items())
    fresh = model["head"].weight.detach().clone()
    updater = gch.adam(1e-2).bind(model)
    with pytest.warns(UserWarning, match=r"scale_by_adam.mu\[new.weight\] is missing"):
        updater.load(tmp_path / "a.pt", strict=False, resize={"head.*": "overlap"})
    assert "head.weight was of shape (2, 4), now (5, 4), and was resized" in updater.loaded.moved
    assert "new.bias is new, and stays as the model has it" in updater.loaded.moved
    assert torch.equal(model["head"].weight[:2], old["head"].weight)
    assert torch.equal(model["head"].weight[2:], fresh[2:])
    adam = updater.state_dict()["links"]["scale_by_adam"]
    assert adam["mu"]["head.weight"][:2].any() and not adam["mu"]["head.weight"][2:].any()
    assert adam["count"]["new.weight"] == 0 and adam["count"]["head.weight"] == 3
    train(updater, model)
    small = gch.adam(1e-2).bind(net())
    updater.save(tmp_path / "b.pt")
    with pytest.warns(UserWarning, match=r"scale_by_adam.mu\[new.weight\] is unexpected"):
        small.load(tmp_path / "b.pt", strict=False, resize={"head.*": "overlap"})
    assert "new.weight is not in the model, and was dropped" in small.loaded.moved


def test_a_head_that_is_replaced(tmp_path):
    """Strict but for the head: its weights are the model's and its count is 0."""
    old = net()
    train(gch.adam(1e-2).bind(old), old).save(tmp_path / "a.pt")
    model = net(out=7, seed=1)
    head = model["head"].weight.detach().clone()
    updater = gch.adam(1e-2).bind(model)
    updater.load(tmp_path / "a.pt", resize={"head.*": "anew"})
    assert torch.equal(model["head"].weight, head) and torch.equal(model["body"].weight, old["body"].weight)
    adam = updater.state_dict()["links"]["scale_by_adam"]
    assert adam["count"] == {"body.weight": 3, "body.bias": 3, "head.weight": 0, "head.bias": 0}
    assert not adam["nu"]["head.weight"].any() and adam["nu"]["body.weight"].any()
    train(updater, model)


def test_a_function_resizes_weights_and_slots(tmp_path):
    old = net()
    train(gch.adam(1e-2).bind(old), old).save(tmp_path / "a.pt")
    updater = gch.adam(1e-2).bind(net(out=4))
    updater.load(tmp_path / "a.pt", resize={"head.*": lambda t: torch.cat([t, t])})
    mu = updater.state_dict()["links"]["scale_by_adam"]["mu"]["head.bias"]
    assert torch.equal(mu[:2], mu[2:]) and mu.any()
    with pytest.raises(ValueError, match=r"resize must make shape \(4, 4\) of 'head.weight', got shape \(2, 4\)"):
        updater.load(tmp_path / "a.pt", resize={"head.*": lambda t: t})


# several updaters


def pair(first="body", seed=0):
    models = {"g": net(first, seed=seed), "d": net(seed=seed + 1)}
    return models, gch.group(g=recipe().bind(models["g"]), d=gch.sgd(0.1, momentum=0.9).bind(models["d"]))


@pytest.mark.parametrize("door", ["file", "state"])
def test_a_group_is_renamed_by_updater(door, tmp_path):
    """What changed is said of each updater by its name; both go on bit for bit, and the reports are of each."""
    models, both = pair()
    for name, updater in both.items():
        train(updater, models[name], 4)
    both.save(tmp_path / "both.pt", epoch=2)
    others, again = pair("trunk", 5)
    rename = {"g": {"body.*": "trunk.*"}}
    if door == "file":
        assert again.load(tmp_path / "both.pt", rename=rename) == {"epoch": 2}
    else:
        with torch.no_grad():
            for name in models:
                for p, q in zip(others[name].parameters(), models[name].parameters(), strict=True):
                    p.copy_(q)
        reports = again.load_state_dict(both.state_dict(), rename=rename)
        assert reports == {"g": again.g.loaded, "d": again.d.loaded}
    assert again.g.loaded.moved == ["body.weight became trunk.weight", "body.bias became trunk.bias"]
    assert again.d.loaded.moved == []
    for name in both:
        train(both[name], models[name]), train(again[name], others[name])
        assert all(map(torch.equal, models[name].parameters(), others[name].parameters()))


@pytest.mark.parametrize(
    ("changed", "error", "sentence"),
    [
        ({"rename": {"body.*": "trunk.*"}}, ValueError, "load: rename must be a dict by updater, got 'body.*'. There "
         "are: 'g', 'd'. Write rename={'g': {…}}."),
        ({"rename": {"g": {"bdy.*": "trunk.*"}}}, ValueError, "load: rename 'bdy.*' matches nothing that was saved."),
        ({"rename": {"g": {"body.*": "trunk.*"}}, "links": {"d": {"adam": "trace"}}}, ValueError,
         "load: links 'adam' is no link that was saved."),
        ({"resize": "overlap"}, ValueError, "load: resize must be a dict by updater, got 'overlap'."),
        ({"renames": {}}, TypeError, "load: does not take 'renames'"),
    ],
)  # fmt: skip
def test_what_a_group_is_told_wrongly_changes_none(changed, error, sentence, tmp_path):
    pair()[1].save(tmp_path / "both.pt")
    models, again = pair("trunk", 5)
    before = [bits(again[name], models[name]) for name in again]
    with pytest.raises(error) as caught:
        again.load(tmp_path / "both.pt", **changed)
    assert str(caught.value).startswith(sentence)
    for (weights, state), name in zip(before, again, strict=True):
        now = bits(again[name], models[name])
        assert all(map(torch.equal, weights, now[0])) and state == now[1]


def test_a_group_that_is_not_strict(tmp_path):
    models, both = pair()
    train(both.g, models["g"])
    both.save(tmp_path / "both.pt")
    others, again = pair("trunk", 5)
    with pytest.warns(UserWarning, match="starts anew"):
        again.load(tmp_path / "both.pt", strict=False)
    assert "body.weight is not in the model, and was dropped" in again.g.loaded.moved
    assert torch.equal(others["g"]["head"].weight, models["g"]["head"].weight)


# what is said of another chain


@pytest.mark.parametrize(
    ("saved", "code", "lines"),
    [
        (gch.adam(0.1), gch.chain(gch.clip_by_value(1.0), gch.adam(0.2)), [
            "clip_by_value(max_value=1.0) is in the code, and was not saved",
            "scale_by_learning_rate.learning_rate: 0.1 was saved, 0.2 is in the code"]),
        (gch.chain(gch.clip_by_value(1.0), gch.clip_by_value(2.0), gch.sgd(0.1)),
         gch.chain(gch.clip_by_value(1.0), gch.sgd(0.1)),
         ["clip_by_value(max_value=2.0) was saved, and is not in the code"]),
        (gch.chain(gch.trace(0.9), gch.sgd(0.1)), gch.chain(gch.scale_by_lion(), gch.sgd(0.1)), [
            "trace(decay=0.9, nesterov=False, accumulator_dtype=None) was saved, and is not in the code",
            "scale_by_lion(b1=0.9, b2=0.99, mu_dtype=None) is in the code, and was not saved"]),
        (gch.chain(gch.trace(0.9), gch.clip_by_norm(1.0), gch.scale(-1.0)),
         gch.chain(gch.clip_by_norm(1.0), gch.trace(0.9), gch.scale(-1.0)),
         ["chain: trace, clip_by_norm, scale was the order, clip_by_norm, trace, scale is in the code"]),
        (gch.sgd(gch.linear(0.1, 0.0, 10)), gch.sgd(gch.cosine(0.1, 0.0, 10)), [
            "scale_by_learning_rate.learning_rate: linear(start=0.1, end=0.0, steps=10) was saved, cosine(start=0.1, "
            "end=0.0, steps=10, exponent=1.0) is in the code"]),
        (gch.masked(gch.sgd(0.1), gch.everything), gch.masked(gch.chain(gch.scale_by_sign(), gch.sgd(0.2)),
         gch.everything), ["masked.inner/scale_by_sign() is in the code, and was not saved",
                           "masked.inner/scale_by_learning_rate.learning_rate: 0.1 was saved, 0.2 is in the code"]),
    ],
)  # fmt: skip
def test_the_difference_of_two_chains_and_no_more(saved, code, lines):
    from gradchain.core.config import differences

    assert differences(gch.to_config(saved), gch.to_config(code)) == lines


def test_a_value_is_cut_where_it_is_long():
    from gradchain.core.config import differences

    (line,) = differences({"link": "x", "a": list(range(500))}, {"link": "x", "a": 3})
    assert line.startswith("x.a: [0, 1, 2") and len(line) < 160


@pytest.mark.parametrize(
    "odd", [3, None, [[]], [["a", 3]], [{"link": 3}], {"links": {}}, {"link": {}}, {"link": "chain"}]
)
def test_any_data_has_a_difference(odd):
    """A config of a file may be anything that JSON has."""
    from gradchain.core.config import differences

    config = gch.to_config(gch.adam(0.1))
    assert differences({"link": "chain", "links": odd}, config) and differences(odd, config)
