"""State carried to a changed model, started afresh, and several updaters as one thing to save."""

import pytest
import torch
from little import DOUBLE, data, distance, full_chain, loss_of, net, same, untouched, weights
from torch import nn

import gradchain as gch


def trained(tx=None, k=2, n=5):
    model = net()
    updater = (tx or full_chain(k)).bind(model)
    for rows in data(n):
        updater.update(loss_of(model, rows))
    return model, updater


def copied(model):
    """Another model with the same weights."""
    new = net(9)
    new.load_state_dict(model.state_dict())
    return new


def test_rebind_to_the_same_names():
    """Bound to another object with the same names, all state goes along, the open window too."""
    model, updater = trained()
    other, twin = trained()
    new = copied(model)
    before = updater.state_dict()
    report = updater.rebind(new)
    assert (report.carried, report.fresh, report.left) == (list(updater.names), [], [])
    assert same(updater.state_dict(), before)
    for rows in data(6, seed=3):
        updater.update(loss_of(new, rows))
        twin.update(loss_of(other, rows))
    assert same(weights(new), weights(other)) and distance(new, model) > 0


def test_rebind_with_new_and_vanished_names():
    """New names start afresh, vanished ones leave, the others keep slots and counts; a report says which."""
    model, updater = trained(gch.adam(0.05), n=3)
    new = nn.Sequential(model[0], nn.Tanh(), nn.Linear(4, 2, bias=False).double(), nn.Linear(2, 2).double())
    slots = updater.state_dict()["links"]["scale_by_adam"]
    report = updater.rebind(new)
    assert report.carried == ["0.weight", "0.bias", "2.weight"]
    assert report.fresh == ["3.weight", "3.bias"] and report.left == ["2.bias"]
    now = updater.state_dict()["links"]["scale_by_adam"]
    assert now["count"] == {"0.weight": 3, "0.bias": 3, "2.weight": 3, "3.weight": 0, "3.bias": 0}
    assert torch.equal(now["mu"]["0.weight"], slots["mu"]["0.weight"]) and not now["mu"]["3.weight"].any()
    assert updater.update(loss_of(new, data(1)[0]))


def test_rebind_with_another_shape():
    """A grown weight needs a remap, which says what becomes of its slots; without one nothing changes."""
    model, updater = trained(gch.adam(0.05), n=3)
    grown = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    sentence = (
        r"rebind: scale_by_adam.mu\['0.weight'\] has shape \(4, 3\), and the parameter now wants \(6, 3\). "
        r"Say how it changes: remap=\{'0.weight': lambda slot: …\}."
    )
    with untouched(model, updater), pytest.raises(ValueError, match=sentence):
        updater.rebind(grown)
    assert updater.update(loss_of(model, data(1)[0]))
    slots = updater.state_dict()["links"]["scale_by_adam"]["mu"]

    def rows(slot):
        return torch.cat([slot, slot.new_zeros(2, *slot.shape[1:])])

    def columns(slot):
        return torch.cat([slot, slot.new_zeros(2, 2)], 1)

    with pytest.raises(KeyError, match=r"rebind: remap names 'nope', which is no parameter. There are: 0.weight, 0.bi"):
        updater.rebind(grown, {"nope": rows})
    updater.rebind(grown, {"0.weight": rows, "0.bias": rows, "2.weight": columns})
    assert torch.equal(updater.state_dict()["links"]["scale_by_adam"]["mu"]["0.weight"], rows(slots["0.weight"]))
    assert updater.update(loss_of(grown, data(1)[0]))


def test_rebind_keeps_averages_of_buffers():
    """The average of the buffers goes along with that of the weights."""

    def normed():
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()

    model, new = normed(), normed()
    updater = gch.chain(gch.sgd(0.1), gch.average_params(0.5, buffers="average")).bind(model)
    for rows in data(3):
        updater.update(loss_of(model, rows))
    new.load_state_dict(model.state_dict())
    before = {n: t.clone() for n, t in updater.averages().items()}
    updater.rebind(new)
    assert same(updater.averages(), before)


def test_rebind_checks_the_chain_again():
    """A selector that matches nothing in the new model is refused, and the old binding stays."""
    model = net()
    updater = gch.chain(gch.masked(gch.scale(0.1), gch.named("2.*")), gch.sgd(0.1)).bind(model)
    with untouched(model, updater), pytest.raises(ValueError, match="match"):
        updater.rebind(nn.Linear(3, 2).double())
    assert updater.update(loss_of(model, data(1)[0]))


def test_reset():
    """reset() starts all state afresh, reset(selector) that of the matches; clocks and weights stay."""
    model, updater = trained(gch.adam(0.05), n=3)
    kept, before = weights(model), updater.state_dict()["links"]["scale_by_adam"]
    updater.reset(gch.named("2.*"))
    after = updater.state_dict()["links"]["scale_by_adam"]
    assert after["count"] == {"0.weight": 3, "0.bias": 3, "2.weight": 0, "2.bias": 0}
    assert torch.equal(after["nu"]["0.bias"], before["nu"]["0.bias"]) and not after["nu"]["2.bias"].any()
    updater.reset()
    fresh = gch.adam(0.05).bind(net()).state_dict()
    assert same(updater.state_dict()["links"], fresh["links"])
    assert updater.clocks == {"step": 3, "micro": 3} and same(weights(model), kept)
    with untouched(model, updater), pytest.raises(ValueError, match="match"):
        updater.reset(gch.named("nope"))


def test_reset_is_as_if_trained_from_there():
    """After reset() the run goes on as a fresh updater from these weights would."""
    model, updater = trained(gch.chain(gch.accumulate(2), gch.adam(0.05)), n=3)
    updater.reset()
    new = copied(model)
    fresh = gch.chain(gch.accumulate(2), gch.adam(0.05)).bind(new)
    for rows in data(4, seed=4):
        assert updater.update(loss_of(model, rows)).reason == fresh.update(loss_of(new, rows)).reason
    assert same(weights(model), weights(new))


# groups


def pair():
    a, b = net(1), net(2)
    return a, b, gch.group(generator=full_chain(2).bind(a), discriminator=gch.adam(0.01).bind(b))


def test_group_is_a_mapping_with_one_save(tmp_path):
    """One file holds both, with the extra; hyperparams carries names; training goes on bit for bit after load."""
    a, b, both = pair()
    for rows in data(3):
        both.generator.update(loss_of(a, rows))
        both["discriminator"].update(loss_of(b, rows))
    assert list(both) == ["generator", "discriminator"] and len(both) == 2
    assert both.hyperparams()["discriminator/scale_by_adam.b1"] == 0.9
    both.save(tmp_path / "run.pt", epoch=3)
    c, d, other = pair()
    assert other.load(tmp_path / "run.pt") == {"epoch": 3}
    assert same(other.state_dict(), both.state_dict())
    for rows in data(3, seed=5):
        for group, g, h in ((both, a, b), (other, c, d)):
            group.generator.update(loss_of(g, rows))
            group.discriminator.update(loss_of(h, rows))
    assert same(weights(a), weights(c)) and same(weights(b), weights(d))


def test_group_has_no_update():
    """It says where update is, and what it holds; it takes only updaters, and at least one."""
    _, _, both = pair()
    for name in ("update", "step", "backward", "context"):
        with pytest.raises(AttributeError, match=f"group: has no {name}. Each updater has its own: group.'generator'."):
            getattr(both, name)
    with pytest.raises(AttributeError, match=r"group: has no 'nope'. Its updaters: generator, discriminator."):
        _ = both.nope
    with pytest.raises(TypeError, match=r"group: g must be an Updater, got chain. Bind the chain first."):
        gch.group(g=gch.sgd(0.1))
    with pytest.raises(ValueError, match=r"group: needs at least one updater, got none."):
        gch.group()


def test_group_load_is_all_or_nothing(tmp_path):
    """If one part does not fit, no updater changes; files of one updater and of a group do not load as each other."""
    a, _b, both = pair()
    both.save(tmp_path / "run.pt")
    model = nn.Linear(2, 2).to(DOUBLE)
    wrong = gch.group(generator=full_chain(2).bind(a), discriminator=gch.adam(0.01).bind(model))
    a_now = weights(a)
    with torch.no_grad():
        a[0].weight.add_(1.0)
    changed = weights(a)
    with untouched(a, wrong.generator), pytest.raises(ValueError, match="load: the file is of another model: weight '"):
        wrong.load(tmp_path / "run.pt")
    assert same(weights(a), changed) and not same(a_now, changed)
    with pytest.raises(ValueError, match=r"load: expected the updaters .'updater'., found .'discriminator', 'generato"):
        both.generator.load(tmp_path / "run.pt")
    states = both.state_dict()
    states["discriminator"] = states["generator"]
    with untouched(a, both.generator), pytest.raises(ValueError, match="load_state_dict: the state is not one of this"):
        both.load_state_dict(states)
    with pytest.raises(ValueError, match="group: expected the updaters"):
        both.load_state_dict({"generator": states["generator"]})
