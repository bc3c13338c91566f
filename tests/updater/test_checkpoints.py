"""Checkpoints: saved at any line and loaded into a fresh run, training continues bit for bit."""

import copy
import io
import os
import re

import pytest
import torch
from little import data, full_chain, loss_of, net, same, snapshot, untouched, weights
from torch import nn

import gradchain as gch
from gradchain.updater.state_dict import fingerprint


def rich():
    """The full chain with an own clock and something observed, on a model with buffers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    lr = gch.by("samples", gch.linear(0.05, 0.0, 200))
    tx = gch.chain(
        gch.accumulate(3),
        gch.amp_scale(2.0**20, growth_interval=2, always=True),
        gch.clip_by_norm(0.5),
        gch.scale_by_adam(b2=0.95),
        gch.stateless(observing),
        gch.masked(gch.add_decayed_weights(0.1), gch.min_ndim(2)),
        gch.scale_by_learning_rate(lr),
        gch.average_params(lambda t: (1 + t) / (10 + t), buffers="average"),
    )
    return model, tx.bind(model)


def observing(updates, params, ctx):
    return updates * (1 + ctx.observed.get("val_loss", 0.0))


def train(model, updater, first, last):
    """Micro-batches `first` to `last`, with everything that a run may do between them."""
    rows = data(20)
    for i in range(first, last):
        loss = loss_of(model, rows[i])
        if i == 4:
            loss = loss * torch.inf  # the second window overflows
        if i == 7:
            updater.override("learning_rate", factor=0.5)
        if i == 10:
            updater.override("b1", gch.linear(0.9, 0.5, 10))
        if i == 12:
            updater.override("max_norm", gch.by("epoch", gch.linear(0.5, 1.5, 2)))
            updater.tick("epoch")
        if i % 3 == 1:
            updater.observe("val_loss", loss.item() if i != 4 else 0.25)
        updater.update(loss)
        updater.tick("samples", 5)


@pytest.mark.parametrize("k", range(16))
@pytest.mark.parametrize("how", ["file", "dict"])
def test_continue_is_bitwise(k, how, tmp_path):
    """Saved after micro-batch k, in every position of a window, and loaded into fresh: all is equal to the bit."""
    through, kept = rich()
    train(through, kept, 0, 16)
    model, updater = rich()
    train(model, updater, 0, k)
    fresh, other = rich()
    with torch.no_grad():
        fresh[0].weight.add_(1.0)
    if how == "file":
        updater.save(tmp_path / "run.pt", epoch=k, notes=["a", {"b": torch.ones(2)}, (1, 2.5, None, True)])
        extra = other.load(tmp_path / "run.pt")
        assert same(extra, {"epoch": k, "notes": ["a", {"b": torch.ones(2)}, (1, 2.5, None, True)]})
    else:
        buffer = io.BytesIO()
        torch.save({"model": model.state_dict(), "updater": updater.state_dict()}, buffer)
        buffer.seek(0)
        saved = torch.load(buffer, weights_only=True)
        fresh.load_state_dict(saved["model"])
        other.load_state_dict(saved["updater"])
    assert same(snapshot(fresh, other), snapshot(model, updater))
    assert other.hyperparams() == updater.hyperparams()
    train(fresh, other, k, 16)
    assert same(snapshot(fresh, other), snapshot(through, kept))
    assert other.num_updates == 4 and other.num_skipped == 1


def test_overrides_come_back_with_their_clocks():
    """An override by a schedule of its own clock is restored with that clock; one by a user's function is reported."""
    model, updater = net(), None
    updater = gch.adam(0.1).bind(model)
    updater.override("learning_rate", gch.by("epoch", gch.linear(0.1, 0.0, 10)))
    updater.tick("epoch", 3)
    updater.override("b1", lambda step: 0.5)
    fresh = gch.adam(0.1).bind(net())
    with pytest.warns(UserWarning, match="load_state_dict: override of scale_by_adam.b1 was not restored: from_config"):
        report = fresh.load_state_dict(updater.state_dict())
    assert fresh.clocks == {"step": 0, "micro": 0, "epoch": 3}
    assert fresh.hyperparams()["scale_by_learning_rate.learning_rate"] == pytest.approx(0.07)
    assert [line[:50] for line in report.overrides] == [
        "override of scale_by_learning_rate.learning_rate i", "override of scale_by_adam.b1 was not restored: fro"
    ]  # fmt: skip
    plain = gch.adam(0.1).bind(net()).state_dict()
    fresh.load_state_dict(plain)  # and an override that the checkpoint does not have ends
    assert same(fresh.state_dict(), plain)


def test_state_dict_is_plain_and_aliases_nothing():
    """Only dict, list, str, int, float, bool, None and Tensor; further training does not change what was taken."""

    def check(value):
        if isinstance(value, dict):
            assert type(value) is dict and all(type(k) is str for k in value)
            [check(v) for v in value.values()]
        elif isinstance(value, list):
            [check(v) for v in value]
        else:
            assert value is None or type(value) in (str, int, float, bool, torch.Tensor), value

    model, updater = rich()
    train(model, updater, 0, 8)
    state = updater.state_dict()
    check(state)
    kept, now = copy.deepcopy(state), snapshot(model, updater)
    train(model, updater, 8, 12)
    assert same(state, kept)
    for fields in kept["links"].values():  # and writing into it changes no run
        for value in fields.values():
            [t.fill_(7.0) for t in value.values() if isinstance(t, torch.Tensor)] if isinstance(value, dict) else None
    train(model, updater, 12, 12)
    fresh, other = rich()
    fresh.load_state_dict(now[0])
    other.load_state_dict(state)
    loaded = copy.deepcopy(other.state_dict())
    for fields in state["links"].values():
        for value in fields.values():
            [t.zero_() for t in value.values() if isinstance(t, torch.Tensor)] if isinstance(value, dict) else None
    assert same(other.state_dict(), loaded)


def test_save_between_backward_and_step():
    """state_dict and save while a backward waits for its step() are refused: half a micro-batch cannot be saved."""
    model, updater = net(), None
    updater = full_chain(3).bind(model)
    updater.update(loss_of(model, data(1)[0]))
    updater.backward(loss_of(model, data(1)[0]))
    with pytest.raises(RuntimeError, match=r"state_dict: a backward is waiting for its step\(\), and its gradient wou"):
        updater.state_dict()
    updater.step()
    updater.state_dict()


def test_fingerprint():
    """The first update after loading a state whose weights are others warns, once; equal weights, or load, do not."""
    model = net()
    updater = gch.adam(0.1).bind(model)
    updater.update(loss_of(model, data(1)[0]))
    other = net(5)
    late = gch.adam(0.1).bind(other)
    late.load_state_dict(updater.state_dict())
    with torch.no_grad():
        other[0].bias.copy_(model[0].bias)
    sentence = "update: the state was saved with other weights: 3 of 4 parameters differ, first '0.weight'. Load the we"
    with pytest.warns(UserWarning, match=sentence) as caught:
        late.update(loss_of(other, data(1)[0]))
    assert len(caught) == 1
    late.update(loss_of(other, data(1)[0]))
    third = net(6)
    silent = gch.adam(0.1).bind(third)
    silent.load_state_dict(updater.state_dict())
    third.load_state_dict(model.state_dict())  # after the state is right too
    silent.update(loss_of(third, data(1)[0]))


def test_hyperparameters_are_the_codes():
    """Differing hyperparameters are reported, and the code's are used."""
    updater = gch.chain(gch.clip_by_norm(1.0), gch.sgd(0.1, momentum=0.9)).bind(net())
    new = gch.chain(gch.clip_by_norm(2.0), gch.sgd(0.1, momentum=0.8)).bind(net())
    report = new.load_state_dict(updater.state_dict())
    assert report.differences == [
        "clip_by_norm.max_norm: 1.0 was saved, 2.0 is in the code", "trace.decay: 0.9 was saved, 0.8 is in the code"
    ]  # fmt: skip
    assert report.problems() == [] and new.hyperparams()["clip_by_norm.max_norm"] == 2.0


# what does not fit


def adam(model):
    return gch.adam(0.1).bind(model)


def state_of(tx, model):
    updater = tx.bind(model)
    updater.update(loss_of(model, data(1, dtype=next(model.parameters()).dtype)[0]))
    return updater.state_dict()


def edited(change):
    def make():
        state = state_of(gch.chain(gch.accumulate(2), gch.adam(0.1)), net())
        change(state)
        return state

    return make


HEAD = "load_state_dict: the state is not one of this chain and model: "
WRONG = {
    "another chain": (
        lambda: state_of(gch.sgd(0.1, momentum=0.9), net()),
        HEAD + r"accumulate is missing; scale_by_adam is missing; trace is unexpected. strict=False loads what matches",
    ),
    "another model": (
        lambda: state_of(gch.chain(gch.accumulate(2), gch.adam(0.1)), nn.Sequential(nn.Linear(3, 2)).double()),
        HEAD + r"scale_by_adam.mu\[2.weight\] is missing.*"
        r"accumulate.window: expected shape \(4, 3\) in float64 for '0.weight', found shape \(2, 3\)",
    ),
    "another dtype": (
        lambda: state_of(gch.chain(gch.accumulate(2), gch.adam(0.1)), net(dtype=torch.float32)),
        r"scale_by_adam.mu: expected shape \(4, 3\) in float64 for '0.weight', found shape \(4, 3\) in float32",
    ),
    "window of another dtype": (
        edited(lambda s: s["links"]["accumulate"].update(
            window={n: t.float() for n, t in s["links"]["accumulate"]["window"].items()})),
        HEAD + "accumulate.window: expected float64 for '0.weight', found float32; ",
    ),
    "a slot for a slotless parameter": (
        edited(lambda s: s["links"]["scale_by_adam"]["nu"].update(extra=torch.ones(1))),
        HEAD + r"scale_by_adam.nu\[extra\] is unexpected. strict",
    ),
    "a field missing": (
        edited(lambda s: s["links"]["scale_by_adam"].pop("mu")), HEAD + "scale_by_adam.mu is missing. strict",
    ),
    "a count that is none": (
        edited(lambda s: s["links"]["scale_by_adam"].update(count="3")),
        HEAD + r"scale_by_adam.count: expected an integer in \[0, inf\), or one per parameter, found '3'. strict",
    ),
    "counts of others": (
        edited(lambda s: s["links"]["scale_by_adam"].update(count={"a": 1})),
        HEAD + r"scale_by_adam.count: expected an integer in \[0, inf\), or one per parameter, found {'a': 1}. strict",
    ),
    "a number that is none": (
        edited(lambda s: s["links"]["accumulate"].update(micro="x")),
        HEAD + r"accumulate.micro: expected an integer in \[0, inf\), found 'x'. strict",
    ),
    "a window of no size": (
        edited(lambda s: s["links"]["accumulate"].update(size=0)),
        HEAD + "accumulate: size must be above micro, 1, got 0. strict",
    ),
    "a window that is full": (
        edited(lambda s: s["links"]["accumulate"].update(micro=2)),
        HEAD + "accumulate: size must be above micro, 2, got 2. strict",
    ),
    "a window that is not open": (
        edited(lambda s: s["links"]["accumulate"].update(micro=0)),
        HEAD + "accumulate: where micro is 0 no window is open, got size 2, weight 1.0 and a window of 0.weight, 0.bia",
    ),
    "a window of others": (
        edited(lambda s: s["links"]["accumulate"]["window"].update(zz=torch.ones(2))),
        HEAD + "accumulate.window: expected no tensor for 'zz', found shape .2,. in float32. strict",
    ),
    "a weight that is none": (
        edited(lambda s: s["links"]["accumulate"].update(weight=-1.0)),
        HEAD + r"accumulate.weight: expected a number in \[0, inf\], found -1.0. strict",
    ),
    "a clock below zero": (
        edited(lambda s: s["clocks"].update(step=-5)),
        "load_state_dict: clocks must be a dict of finite numbers of at least 0, whole ones for 'step' and 'micro', ",
    ),
    "a step between two": (edited(lambda s: s["clocks"].update(step=1.5)), "load_state_dict: clocks must be a dict of"),
    "a clock of NaN": (
        edited(lambda s: s["clocks"].update(micro=float("nan"))), "load_state_dict: clocks must be a dict",
    ),
    "skips below zero": (
        edited(lambda s: s.update(num_skipped=-1)),
        r"load_state_dict: num_skipped must be an integer in \[0, inf\), got -1.",
    ),
    "an override out of range": (
        edited(lambda s: s["overrides"].update({"scale_by_adam.b1": {"value": 1.5, "factor": None}})),
        HEAD + r"override of scale_by_adam.b1 cannot be: ValueError: scale_by_adam: b1 must be in \[0, 1\), got 1.5. ",
    ),
    "a factor out of range": (
        edited(lambda s: s["overrides"].update({"scale_by_adam.b1": {"value": None, "factor": 2.0}})),
        HEAD + r"override of scale_by_adam.b1 cannot be: ValueError: scale_by_adam: b1 must be in \[0, 1\), got 1.8",
    ),
    "an override of two": (
        edited(lambda s: s["overrides"].update({"scale_by_adam.b1": {"value": 0.5, "factor": 2.0}})),
        "load_state_dict: overrides must be either a value or a factor, as data, got .* for 'scale_by_adam.b1'.",
    ),
    "news that are too many": (
        edited(lambda s: s["news"].update(val=[1, 0.5, 0.25])),
        "load_state_dict: news must be a count of at least 2, and as many numbers at most, got .* for 'val'.",
    ),
    "a field more": (edited(lambda s: s.update(epoch=3)), HEAD + "the field 'epoch' is unexpected. strict"),
    "a tensor without values": (
        edited(lambda s: s["links"]["scale_by_adam"]["mu"].update({"2.weight": torch.empty(2, 4, device="meta")})),
        HEAD + r"scale_by_adam.mu: expected shape \(2, 4\) in float64 for '2.weight', found a tensor without val",
    ),
    "a state that holds itself": (
        edited(lambda s: s["chain"].update(links=[s["chain"]])),
        "load_state_dict: the state is nested deeper than any is, or holds itself.",
    ),
    "fields that are none": (
        edited(lambda s: s["links"].update(scale_by_adam=[1])), HEAD + "scale_by_adam: expected its fields, found list",
    ),
    "slots that are none": (
        edited(lambda s: s["links"]["scale_by_adam"].update(mu=3)),
        HEAD + "scale_by_adam.mu: expected a tensor per parameter, found int. strict",
    ),
    "a clock nobody reads": (edited(lambda s: s["clocks"].update(epoch=3)), HEAD + "the clock 'epoch' is unexpected."),
    "no step": (edited(lambda s: s["clocks"].pop("step")), HEAD + "the clock 'step' is missing. strict"),
    "a clock that is none": (edited(lambda s: s["clocks"].update(step="x")), "load_state_dict: clocks must be a dict"),
    "clocks that are none": (edited(lambda s: s.update(clocks=[])), "load_state_dict: clocks must be a dict, got list"),
    "links that are none": (edited(lambda s: s.update(links=None)), "load_state_dict: links must be a dict, got NoneT"),
    "inactive others": (
        edited(lambda s: s.update(inactive=["zz"])), "load_state_dict: expected the bound model's parameters, found 'z",
    ),
    "format": (edited(lambda s: s.update(format=2)), "load_state_dict: format must be 1, got 2."),
    "key missing": (edited(lambda s: s.pop("observed")), r"load_state_dict: expected what state_dict\(\) gives, found"),
    "empty": (dict, r"load_state_dict: expected what state_dict\(\) gives, found \[\]."),
    "none": (lambda: None, r"load_state_dict: expected what state_dict\(\) gives, found NoneType."),
    "torch's": (
        lambda: torch.optim.Adam(net().parameters()).state_dict(),
        r"load_state_dict: expected what state_dict\(\) gives, found \['param_groups', 'state'\].",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_states_are_refused_whole(kind):
    """Each mismatch names address and parameter, expected and found; weights, state and window stay."""
    make, sentence = WRONG[kind]
    model = net()
    updater = gch.chain(gch.accumulate(2), gch.adam(0.1)).bind(model)
    updater.update(loss_of(model, data(1)[0]))
    state = make()
    with untouched(model, updater), pytest.raises(ValueError, match=sentence):
        updater.load_state_dict(state)
    assert updater.update(loss_of(model, data(1)[0]))  # the window went on


def test_many_problems_are_counted():
    """A sentence with more than five problems says how many more there are."""
    with pytest.raises(ValueError, match=r" \(and 3 more\). strict=False"):
        adam(net()).load_state_dict(state_of(gch.adam(0.1), net(dtype=torch.float32)))


def test_not_strict_loads_what_matches():
    """strict=False loads what matches, leaves the rest as it was, and reports both."""
    bigger = nn.Sequential(*net(), nn.Linear(2, 2).double())
    saved = state_of(gch.chain(gch.clip_by_norm(1.0), gch.adam(0.1), gch.average_params(0.9)), bigger)
    model = net()
    updater = adam(model)
    report = updater.load_state_dict(saved, strict=False)
    assert report.unexpected[0] == "average_params" and "scale_by_adam.mu[3.weight]" in report.unexpected
    assert "average_params is unexpected" in str(report)
    now = updater.state_dict()["links"]["scale_by_adam"]
    assert same(now["mu"]["0.weight"], saved["links"]["scale_by_adam"]["mu"]["0.weight"])
    assert updater.num_updates == 1
    report = updater.load_state_dict(state_of(gch.sgd(0.1), net()), strict=False)
    assert report.missing == ["scale_by_adam"]
    assert same(updater.state_dict()["links"]["scale_by_adam"], now)


# files


def good_file(path):
    model = net()
    updater = adam(model)
    updater.update(loss_of(model, data(1)[0]))
    updater.save(path, epoch=1)
    return model, updater


def damaged(path, size):
    good_file(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * size)])


FILES = {
    "truncated": (lambda p: damaged(p, 0.6), "load: '.*run.pt' cannot be read: it is cut short, or no checkpoint of g"),
    "empty": (lambda p: p.write_bytes(b""), "load: '.*run.pt' cannot be read: it is cut short, or no checkpoint"),
    "text": (lambda p: p.write_text("hello"), "load: '.*run.pt' cannot be read: it is cut short, or no checkpoint"),
    "pickle": (lambda p: torch.save(nn.Linear(1, 1), p), "load: '.*run.pt' cannot be read: it is cut short, or no che"),
    "weights": (lambda p: torch.save(net().state_dict(), p), "load: '.*run.pt' must be a checkpoint that updater.save"),
    "list": (lambda p: torch.save([1], p), "load: '.*run.pt' must be a checkpoint that updater.save wrote, and is ano"),
    "format": (
        lambda p: torch.save({"format": 9, "parts": {}, "extra": {}}, p),
        "load: '.*run.pt' has format 9, and this version reads 1.",
    ),
    "no parts": (
        lambda p: torch.save({"format": 1, "parts": {"updater": {}}, "extra": {}}, p),
        "load: expected weights, buffers and state of an updater, found .*",
    ),
    "another model": (
        lambda p: adam(net(dtype=torch.float32)).save(p),
        r"load: the file is of another model: weight '0.weight': expected shape \(4, 3\) in float64, found shape \(4"
        r".*\(and 1 more\).",
    ),
    "another chain": (
        lambda p: gch.sgd(0.1, momentum=0.9).bind(net(3)).save(p),
        "load_state_dict: the state is not one of this chain and model: scale_by_adam is missing; trace is unexpected.",
    ),
    "a group": (
        lambda p: gch.group(a=adam(net())).save(p), "load: expected the updaters .'updater'., found .'a'..",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_wrong_files_are_refused_whole(kind, tmp_path):
    """Truncated, empty, foreign and misfitting files are sentences; weights and state stay."""
    make, sentence = FILES[kind]
    make(tmp_path / "run.pt")
    model = net()
    updater = adam(model)
    updater.update(loss_of(model, data(1)[0]))
    with untouched(model, updater), pytest.raises(ValueError, match=sentence):
        updater.load(tmp_path / "run.pt")


def test_no_file(tmp_path):
    """A missing file or folder is a sentence."""
    with pytest.raises(FileNotFoundError, match=r"load: there is no file '.*none.pt'."):
        adam(net()).load(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match=r"save: there is no folder '.*none'. Create it first."):
        adam(net()).save(tmp_path / "none" / "run.pt")


@pytest.mark.parametrize("where", ["write", "replace", "fsync"])
def test_save_is_atomic(where, tmp_path, monkeypatch):
    """A write that fails at any point leaves the file before it whole, and no temporary one."""
    path = tmp_path / "run.pt"
    _model, updater = good_file(path)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        if where == "write":
            args[1].write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(*{"write": (torch, "save"), "replace": (os, "replace"), "fsync": (os, "fsync")}[where], fail)
    with pytest.raises(OSError, match="disk full"):
        updater.save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["run.pt"]
    updater.save(str(path))
    assert os.listdir(tmp_path) == ["run.pt"]


NOT_PLAIN = {
    "object": object(), "module": nn.Linear(1, 1), "function": len, "nested": {"a": [1, {2: {3}}]},
    "namedtuple": torch.nn.modules.module._IncompatibleKeys([], []), "bytes": b"x", "complex": 1j,
    "key": {(1, object()): 2},
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_extra_that_is_not_plain_is_refused_before_writing(kind, tmp_path):
    """Only what loads without running code is written; the sentence says where the other thing is."""
    path = tmp_path / "run.pt"
    updater = adam(net())
    with pytest.raises(TypeError, match=r"save: mine.* must be made of dict, list, tuple, str, int, float, bool, None"):
        updater.save(path, mine=NOT_PLAIN[kind])
    assert os.listdir(tmp_path) == []


def test_plain_extra_comes_back(tmp_path):
    """Everything that is accepted loads, equal, with its types."""
    extra = {
        "a": {1: [True, None, (2, "x", 0.5)]}, "b": torch.arange(3), "c": nn.Parameter(torch.ones(2)),
        "d": torch.get_rng_state(),
        "e": float("inf"), "f": {}, "g": net().state_dict(),
    }  # fmt: skip
    updater = adam(net())
    updater.save(tmp_path / "run.pt", **extra)
    found = updater.load(tmp_path / "run.pt")
    assert same({k: found[k] for k in "abdef"}, {k: extra[k] for k in "abdef"})
    assert torch.equal(found["c"], extra["c"]) and same(dict(found["g"]), dict(extra["g"]))
    assert weights(net()).keys() == found["g"].keys()


def test_load_says_which_hyperparameters_differ(tmp_path):
    """The code's hyperparameters are used, and a warning names those that were others when the file was saved."""
    model = torch.nn.Linear(2, 1)
    gch.adamw(1e-3).bind(model).save(tmp_path / "run.pt")
    other = gch.adamw(1.0).bind(model)
    told = "scale_by_learning_rate.learning_rate: 0.001 was saved, 1.0 is in the code"
    with pytest.warns(UserWarning, match=re.escape(told)):
        other.load(tmp_path / "run.pt")
    assert other.hyperparams()["scale_by_learning_rate.learning_rate"] == 1.0


def test_a_complex_slot_in_bfloat16_is_saved_as_pairs_and_comes_back(tmp_path):
    """torch has no complex bfloat16: such a slot is written as its pairs of reals, and loads into a fresh updater."""
    links = []
    for _ in range(2):
        torch.manual_seed(0)
        weight = torch.randn(3, dtype=torch.complex64, requires_grad=True)
        updater = gch.adam(0.1, mu_dtype=torch.bfloat16).bind({"w": weight})
        if links:
            updater.load(tmp_path / "run.pt")
        else:
            updater.step({"w": torch.ones(3, dtype=torch.complex64)})
            updater.save(tmp_path / "run.pt")
        links.append(updater.state_dict()["links"]["scale_by_adam"])
    first, second = (link["mu"]["w"] for link in links)
    assert first.shape == (3, 2) and first.dtype == torch.bfloat16
    assert torch.equal(first, second)
    assert torch.equal(links[0]["nu"]["w"], links[1]["nu"]["w"])


def test_a_clock_does_not_tick_to_where_no_checkpoint_has_it():
    """Infinite, or an integer beyond 64 bits; what it ticks to can always be saved and loaded."""
    model = net()
    updater = gch.adam(gch.by("epoch", gch.linear(0.1, 0.0, 10))).bind(model)
    updater.tick("epoch", 1e308)
    with untouched(model, updater), pytest.raises(ValueError, match=r"'epoch' must stay finite, got 1e.308 more"):
        updater.tick("epoch", 1e308)
    for amount in (10**400, 2**63, float("inf"), float("nan"), -1, True, "x"):
        with untouched(model, updater), pytest.raises(ValueError, match="tick: amount must be a finite number of at l"):
            updater.tick("epoch", amount)
    assert updater.load_state_dict(updater.state_dict()).problems() == []


def test_buffers_of_one_element_many_times(tmp_path):
    """As `expand` makes them: they are saved and loaded. What differs along the way has no place there."""

    def made(number):
        model = net()
        model.register_buffer("wide", torch.full((3, 1), number).expand(3, 5))
        return model, adam(model)

    made(2.0)[1].save(tmp_path / "run.pt")
    model, updater = made(1.0)
    updater.load(tmp_path / "run.pt")
    assert model.wide.stride() == (1, 0) and model.wide.tolist() == [[2.0] * 5] * 3
    contents = copy.deepcopy(updater.contents())
    contents["buffers"]["wide"] = torch.arange(15.0).reshape(3, 5)
    before = snapshot(model, updater)
    with pytest.raises(ValueError, match="load: the file is of another model: buffer 'wide': expected shape"):
        updater.stage_contents(contents)
    assert same(snapshot(model, updater), before)


def test_requires_grad_is_the_models(tmp_path):
    """A file says nothing of it, and loading changes none."""
    model, updater = net(), None
    updater = adam(model)
    updater.save(tmp_path / "run.pt")
    other = net(3)
    late = adam(other)
    other[0].weight.requires_grad_(False)
    late.load(tmp_path / "run.pt")
    assert [p.requires_grad for p in other.parameters()] == [False, True, True, True]
    assert torch.equal(other[0].weight, model[0].weight)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_weights_and_buffers_that_are_no_tensors_of_the_model():
    """Each is refused before the first is written: without values, sparse, of another dtype, no tensors at all."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    updater = adam(model)
    emptied = torch.ones(4, dtype=torch.float64)
    emptied.untyped_storage().resize_(0)
    wrong = {
        "meta": torch.empty(4, device="meta", dtype=torch.float64), "sparse": torch.ones(4).double().to_sparse(),
        "float": torch.ones(4), "none": None, "list": [1.0] * 4, "emptied": emptied, "shape": torch.ones(5).double(),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(2)]),
    }  # fmt: skip
    for value in wrong.values():
        for part, name in (("weights", "1.bias"), ("weights", "0.bias"), ("buffers", "1.running_mean")):
            contents = {**updater.contents()}
            contents[part] = {**contents[part], name: value}
            with untouched(model, updater), pytest.raises(ValueError, match=r"^load: "):
                updater.stage_contents(contents)
    for contents in (None, [], {"weights": None, "buffers": {}, "state": {}}, {"weights": {}, "buffers": {}}):
        with untouched(model, updater), pytest.raises(ValueError, match=r"^load: "):
            updater.stage_contents(contents)


def test_a_group_refuses_what_is_none():
    """Of any kind, and nothing changes."""
    one, other = net(), net(1)
    group = gch.group(a=adam(one), b=adam(other))
    good = group.state_dict()
    for bad in (None, 3, [], {}, {"a": good["a"]}, {**good, 3: good["a"]}, {**good, "b": None}, {"a": 1, "b": 2}):
        with (
            untouched(one, group["a"]),
            untouched(other, group["b"]),
            pytest.raises(ValueError, match=r"^(group|load)"),
        ):
            group.load_state_dict(bad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("size", [0, 1, 7, 1000])
def test_a_fingerprint_is_the_same_in_pieces(dtype, size, monkeypatch):
    """Large weights are summed in pieces, for memory; a file of before has the number that they have together."""
    weight = torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype)
    whole = fingerprint({"w": weight})
    monkeypatch.setattr("gradchain.updater.state_dict._PIECE", 4)
    assert fingerprint({"w": weight}) == whole
    if size > 1:
        assert fingerprint({"w": weight * 2}) != whole
