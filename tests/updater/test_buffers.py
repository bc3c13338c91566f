"""Buffers of the model: links write those they say they do, with the step; averages have batch-norm statistics."""

import copy
import warnings

import pytest
import torch
from little import data, loss_of, same
from torch import nn
from torch.optim.swa_utils import update_bn

import gradchain as gch

MEAN = "1.running_mean"


def normed(seed=0, **given):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, **given), nn.Tanh(), nn.Linear(4, 2)).double()


class Picture(nn.Module):
    """Several norms, one without weights, a drop-out, and one that keeps no statistics."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.first = nn.Conv1d(1, 3, 2), nn.BatchNorm1d(3, affine=False, momentum=None)
        self.drop, self.second = nn.Dropout(0.3), nn.BatchNorm1d(6, momentum=0.5)
        self.none, self.head = nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 2)
        self.double()

    def forward(self, rows):
        x = self.first(self.conv(rows[:, None])).flatten(1)
        return self.head(self.none(self.second(self.drop(x))))


def shown(model, updater):
    """All that a pass must leave alone: weights, buffers, modes and momenta; and the state."""
    kept = [(m.training, getattr(m, "momentum", 0)) for m in model.modules()]
    return {n: t.clone() for n, t in model.state_dict().items()}, kept, updater.state_dict()


def trained(model, tx, steps=6):
    updater = tx.bind(model)
    for i, rows in enumerate(data(steps)):
        updater.update(loss_of(model, rows))
        if "ema" in updater.clocks and i % 2:
            updater.tick("ema")
    return updater


# batch-norm statistics of an average

AVERAGES = {
    "ema": gch.average_params(0.7),
    "mean": gch.average_params("mean", start=2, every=2),
    "copied buffers": gch.average_params(0.7, buffers="copy"),
    "averaged buffers": gch.average_params(0.7, buffers="average"),
    "at ticks": gch.average_params(0.7, on="ema"),
    "lookahead": gch.rules.lookahead(4),
    "average_each": gch.rules.average_each(1),
}


def chains():
    return {
        **{name: gch.chain(gch.sgd(0.1, momentum=0.9), link) for name, link in AVERAGES.items()},
        "schedule-free": gch.rules.schedule_free_sgd(0.1, 2),
        "branches": gch.partition(
            (gch.min_ndim(2), gch.chain(gch.sgd(0.1), gch.rules.lookahead(2))),
            ("average", gch.rest, gch.rules.schedule_free_sgd(0.1)),
        ),
        "in a window": gch.chain(gch.accumulate(4), gch.adam(0.1), gch.average_params(0.7)),
    }


def theirs(model, updater, batches):
    """A copy of the model at the average, with the statistics that torch makes of it."""
    other = copy.deepcopy(model)
    updater.copy_average_to(other)
    torch.manual_seed(5)
    update_bn(batches, other)
    return other


def equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", chains())
def test_statistics_are_those_that_torch_makes(kind):
    """In averaged(), averages(), copy_average_to and what is saved; and nothing else is changed."""
    model = normed()
    updater = trained(model, chains()[kind])
    batches, before = data(3, seed=9), shown(model, updater)
    expected = theirs(model, updater, batches).state_dict()
    updater.update_batch_norm(batches)
    now = shown(model, updater)
    assert same(before[:2], now[:2])
    links = {**before[2]["links"]}
    assert {a for a in links if not same(links[a], now[2]["links"][a])} == {
        next(a for a in links if "average" in links[a])
    }
    equal({n: t for n, t in updater.averages().items() if n in expected}, expected)
    with updater.averaged():
        equal(dict(model.state_dict()), expected)
    assert same(shown(model, updater)[0], before[0])
    other = normed(3)
    updater.copy_average_to(other)
    equal(dict(other.state_dict()), expected)


BATCHES = {"tensor": lambda rows: rows, "tuple": lambda rows: (rows, "label"), "list": lambda rows: [rows]}


@pytest.mark.parametrize("kind", BATCHES)
def test_of_several_norms_and_of_batches_of_several_things(kind):
    model = Picture()
    updater = trained(model, gch.chain(gch.adam(0.1), gch.average_params(0.7)))
    model.eval()
    model.drop.train()
    batches, before = [BATCHES[kind](rows) for rows in data(3, seed=9)], shown(model, updater)
    expected = dict(theirs(model, updater, batches).named_buffers())
    torch.manual_seed(5)
    updater.update_batch_norm(iter(batches))
    assert same(before[:2], shown(model, updater)[:2])
    equal({n: b for n, b in updater.averages().items() if n in expected}, expected)
    assert expected["second.num_batches_tracked"] == 3
    torch.manual_seed(5)
    updater.update_batch_norm(batches, lambda given: model(given if isinstance(given, torch.Tensor) else given[0]))
    equal({n: b for n, b in updater.averages().items() if n in expected}, expected)


class Kept(nn.BatchNorm1d):
    def train(self, mode=True):
        return super().train(False)


def test_norms_that_stay_in_evaluation_mode_keep_their_statistics():
    """torch's update_bn forgets those, and makes no others."""
    model = normed()
    model.insert(2, Kept(4).double())
    model[2].eval()
    model[2].running_mean.fill_(3.0)
    updater = trained(model, gch.chain(gch.adam(0.1), gch.average_params(0.7)))
    updater.update_batch_norm(data(2))
    with updater.averaged():
        assert model[2].running_mean.tolist() == [3.0] * 4
        assert model[1].num_batches_tracked == 2


def test_without_norms_nothing_is_asked():
    model = nn.Linear(3, 2).double()
    updater = gch.chain(gch.sgd(0.1), gch.average_params(0.7)).bind(model)
    before = shown(model, updater)
    updater.update_batch_norm(1 / 0 for _ in range(1))
    assert same(before, shown(model, updater))


def _raise(rows):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("loader", "forward", "error"),
    [
        ([], None, ValueError),
        ((1 / (2 - i) * torch.ones(4, 3).double() for i in range(4)), None, ZeroDivisionError),
        ([torch.ones(4, 7).double()], None, RuntimeError),
        (data(2), _raise, KeyboardInterrupt),
    ],
    ids=["no batch", "a loader that raises", "batches of another shape", "an interrupt"],
)
def test_a_pass_that_fails_changes_nothing(loader, forward, error):
    model = normed()
    updater = trained(model, gch.chain(gch.adam(0.1), gch.average_params(0.7)))
    updater.update_batch_norm(data(1, seed=8))
    before = shown(model, updater)
    with pytest.raises(error):
        updater.update_batch_norm(loader, forward)
    assert same(before, shown(model, updater))
    updater.update(loss_of(model, data(1)[0]))


def test_where_it_is_refused():
    model, plain = normed(), normed()
    updater = trained(
        model, gch.chain(gch.adam(0.1), ("a", gch.average_params(0.7)), ("b", gch.average_params("mean")))
    )
    with pytest.raises(KeyError, match="several averages"):
        updater.update_batch_norm(data(2))
    with updater.averaged("a"), pytest.raises(RuntimeError, match="not inside"):
        updater.update_batch_norm(data(2), name="a")
    with pytest.raises(KeyError, match="no link averages"):
        gch.sgd(0.1).bind(plain).update_batch_norm(data(2))
    pair = gch.chain(gch.sgd(0.1), gch.average_params(0.9)).bind({"a": plain, "b": normed(1)})
    with pytest.raises(ValueError, match="forward must be given where 2 modules are bound"):
        pair.update_batch_norm(data(2))
    twice = gch.chain(gch.sam(), gch.sgd(0.1), gch.average_params(0.9)).bind(plain)
    calls = []

    def closure():
        calls.append(1)
        if len(calls) == 2:
            twice.update_batch_norm(data(1))
        return loss_of(plain, data(1)[0])

    before = [p.detach().clone() for p in plain.parameters()]
    with pytest.raises(RuntimeError, match="update_batch_norm: must not be called while update of"):
        twice.update(closure)
    assert all(torch.equal(p, q) for p, q in zip(before, plain.parameters(), strict=True))


def test_of_two_averages_each_has_its_own():
    model = normed()
    updater = trained(
        model, gch.chain(gch.adam(0.1), ("a", gch.average_params(0.7)), ("b", gch.average_params("mean")))
    )
    batches = data(3, seed=9)
    for name in "ab":
        updater.update_batch_norm(batches, name=name)
    means = []
    for name in "ab":
        with updater.averaged(name):
            means.append(model[1].running_mean.clone())
            other = copy.deepcopy(model)
        update_bn(batches, other)
        torch.testing.assert_close(means[-1], other[1].running_mean, rtol=1e-12, atol=1e-14)
    assert not torch.equal(*means)


def test_of_two_modules_by_a_function():
    pair = {"a": normed(0), "b": normed(1)}
    updater = gch.chain(gch.sgd(0.1), gch.average_params(0.9)).bind(pair)
    updater.update_batch_norm(data(3), lambda rows: (pair["a"](rows), pair["b"](2 * rows)))
    found, other = updater.averages(), normed(1)
    update_bn([2 * rows for rows in data(3)], other)
    torch.testing.assert_close(found[f"b.{MEAN}"], other[1].running_mean, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", chains())
def test_they_are_forgotten_where_the_average_moves(kind):
    """Those of a model that averages none are its own again; steps run again as before, to the same bits."""
    model, twin = normed(), normed()
    updater, other = trained(model, chains()[kind], 8), trained(twin, chains()[kind], 8)
    updater.update_batch_norm(data(3, seed=9))
    for u, m in ((updater, model), (other, twin)):
        for rows in data(8, seed=4):
            u.update(loss_of(m, rows))
        if "ema" in u.clocks:
            u.tick("ema")
    assert updater._bound.engine.reason == ""
    if kind != "averaged buffers":
        assert same(updater.state_dict(), other.state_dict())
        assert same(updater.averages(), other.averages())
    else:
        assert not torch.equal(updater.averages()[MEAN], other.averages()[MEAN])
        del (now := updater.state_dict())["links"]["average_params"]["buffers"]
        del (then := other.state_dict())["links"]["average_params"]["buffers"]
        assert same(now, then)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("kind", chains())
def test_they_are_saved(kind, suffix, tmp_path):
    """The resumed run is the one that was not interrupted, and what is deployed has them."""
    model, path = normed(), tmp_path / f"run.{suffix}"
    updater = trained(model, chains()[kind])
    updater.update_batch_norm(data(3, seed=9))
    updater.save(path)
    again = normed(3)
    resumed = chains()[kind].bind(again)
    resumed.load(path)
    assert same(updater.state_dict(), resumed.state_dict())
    found = gch.read_weights(path, averaged=True)
    assert same(found[MEAN], updater.averages()[MEAN])
    assert not torch.equal(found[MEAN], model[1].running_mean)
    for rows in data(3, seed=4):
        updater.update(loss_of(model, rows))
        resumed.update(loss_of(again, rows))
    assert same(updater.state_dict(), resumed.state_dict())
    assert same(dict(model.state_dict()), dict(again.state_dict()))


def test_under_autocast_the_pass_runs_as_the_forward_of_training_does():
    seen = []
    model = normed().float()
    updater = gch.chain(gch.sgd(0.1), gch.average_params(0.9)).bind(model, autocast=torch.bfloat16)
    updater.update_batch_norm(data(2, dtype=torch.float32), lambda rows: seen.append(model(rows).dtype))
    assert seen == [torch.bfloat16] * 2
    assert not torch.is_autocast_enabled("cpu")


# links that write buffers


class follow(gch.WritesBuffers):
    """The norm's mean follows its bias by a part, and counts its own updates."""

    descends = False

    part: gch.Hyper = gch.Hyper(0.5, "[0, 1]")

    def update(self, g, state, ctx):
        mean = ctx.buffers[MEAN]
        ctx.write_buffers({MEAN: mean.lerp(ctx.params["1.bias"].detach(), float(self.part))})
        return g, state


class silent(gch.Transform):
    """The same, and does not say so."""

    descends = False

    def update(self, g, state, ctx):
        ctx.write_buffers({MEAN: ctx.buffers[MEAN] + 1})
        return g, state


def added_to(buffers, tensors):
    """Adds to the mean where it lies, and gives the tensors back."""
    buffers[MEAN].add_(1.0)
    return tensors


def write_in_place(ctx, word):
    """The same, through what a link is shown under this word."""
    if word == "buffers":
        ctx.buffers[MEAN].add_(1.0)
    else:
        ctx.of_buffers(added_to, ctx.params)


class in_place(gch.Transform):
    """Writes in place at each update."""

    descends = False
    word: str

    def update(self, g, state, ctx):
        write_in_place(ctx, self.word)
        return g, state


class in_place_at_ticks(gch.AtTicks):
    """The same at each tick."""

    descends = False
    clock = "double"
    word: str

    def update(self, g, state, ctx):
        return g, state

    def ticked(self, state, ctx):
        write_in_place(ctx, self.word)
        return state


class at_ticks(gch.AtTicks, gch.WritesBuffers):
    """Doubles the mean at each tick."""

    descends = False
    clock = "double"

    def update(self, g, state, ctx):
        return g, state

    def ticked(self, state, ctx):
        ctx.write_buffers({MEAN: 2 * ctx.buffers[MEAN]})
        return state


class breaks(gch.Transform):
    """Raises from the third update on."""

    descends = False

    def update(self, g, state, ctx):
        if ctx.step > 1:
            raise OverflowError
        return g, state


def mean_after(model, rows):
    """Where the mean is behind a forward and the link, by hand."""
    other, bias = copy.deepcopy(model), model[1].bias.detach().clone()
    other(rows)
    return other[1].running_mean.lerp(bias, 0.5)


PLACES = {
    "first": lambda: gch.chain(follow(), gch.sgd(0.1)),
    "last": lambda: gch.chain(gch.adam(0.1), follow()),
    "masked": lambda: gch.chain(gch.masked(follow(), gch.named("1.*")), gch.sgd(0.1)),
    "behind a window": lambda: gch.chain(gch.accumulate(1), follow(), gch.sgd(0.1)),
    "in a branch": lambda: gch.partition(
        (gch.named("1.*"), gch.chain(follow(), gch.sgd(0.1))), (gch.rest, gch.sgd(0.1))
    ),
    "scheduled": lambda: gch.chain(follow(gch.linear(0.5, 0.5, 3)), gch.sgd(0.1)),
    "by the reference": lambda: gch.chain(follow(), gch.stateless(lambda g, p: g), gch.sgd(0.1)),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_link_writes_with_the_step(place):
    """And weights move as without it, by the same executor."""
    model, twin = normed(), normed()
    updater = PLACES[place]().bind(model)
    plain = (gch.adam(0.1) if place == "last" else gch.sgd(0.1)).bind(twin)
    for rows in data(5):
        expected = mean_after(model, rows)
        assert updater.update(loss_of(model, rows))
        assert torch.equal(model[1].running_mean, expected)
        plain.update(loss_of(twin, rows))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    assert updater._bound.engine.reason == "" and updater._bound.engine.last[0].executor == "native"


def state_of(model, updater):
    return {n: t.clone() for n, t in model.state_dict().items()}, updater.state_dict()


def test_of_an_update_that_is_held_or_fails_nothing_is_written():
    model = normed()
    updater = gch.chain(follow(), gch.skip_nonfinite(), breaks(), gch.sgd(0.1)).bind(model)
    rows = data(1)[0]
    for factor in (1.0, float("nan"), 1.0):
        loss = loss_of(model, rows) * factor
        before = model[1].running_mean.clone()
        info = updater.update(loss)
        assert torch.equal(model[1].running_mean, before) == (not info.applied)
    assert updater.num_skipped == 1
    loss = loss_of(model, rows)
    before = state_of(model, updater)
    with pytest.raises(OverflowError):
        updater.update(loss)
    assert same(before, state_of(model, updater))


def test_in_a_window_it_writes_when_that_closes():
    model = normed()
    updater = gch.chain(follow(), gch.accumulate(3), gch.sgd(0.1)).bind(model)
    for i, rows in enumerate(data(6)):
        loss = loss_of(model, rows)
        before = model[1].running_mean.clone()
        updater.update(loss)
        assert torch.equal(model[1].running_mean, before) == (i % 3 != 2)


def writes(values):
    """A link that gives these."""

    class writes(gch.WritesBuffers):
        descends = False

        def update(self, g, state, ctx):
            ctx.write_buffers(values)
            return g, state

    return writes()


WRONG = {
    "none of the model's": (
        {"1.mean": torch.ones(4)},
        "writes: write_buffers must be given buffers of the model, got '1.mean'",
    ),
    "a weight": ({"1.weight": torch.ones(4)}, "got '1.weight', which is none"),
    "another shape": ({MEAN: torch.ones(3)}, f"'{MEAN}' must have shape .4,. in torch.float64 to be written, got .3,."),
    "another kind": ({MEAN: torch.ones(4, dtype=torch.complex128)}, "got .4,. in torch.complex128"),
    "a fraction in a counter": ({"1.num_batches_tracked": torch.tensor(0.5)}, "must have shape .. in torch.int64"),
    "no tensor": ({MEAN: 3.0}, "must be a tensor to be written, got float"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_written_is_refused_by_name(wrong):
    values, sentence = WRONG[wrong]
    model = normed()
    updater = gch.chain(writes({"1.running_var": torch.ones(4), **values}), gch.sgd(0.1)).bind(model)
    loss = loss_of(model, data(1)[0])
    before = state_of(model, updater)
    with pytest.raises((ValueError, TypeError), match=sentence):
        updater.update(loss)
    assert same(before, state_of(model, updater))


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize(
    "place", [lambda link: link, lambda link: gch.masked(link, gch.bias)], ids=["outside", "masked"]
)
def test_a_write_that_was_not_declared_is_refused_by_name(place, held):
    model = normed()
    updater = gch.chain(place(silent()), gch.skip_nonfinite(), gch.sgd(0.1)).bind(model)
    loss = loss_of(model, data(1)[0]) * (float("nan") if held else 1.0)
    before = state_of(model, updater)
    with pytest.raises(RuntimeError, match=f"silent: writes the buffer '{MEAN}', and does not say that it writes any"):
        updater.update(loss)
    assert same(before, state_of(model, updater))


@pytest.mark.parametrize("executors", [None, ()], ids=["kernels", "reference"])
@pytest.mark.parametrize("word", ["buffers", "of_buffers"])
def test_a_write_into_a_buffer_in_place_is_refused_and_changes_nothing(word, executors):
    model = normed()
    updater = gch.chain(gch.trace(0.9), in_place(word), gch.sgd(0.1)).bind(model)
    if executors is not None:
        updater._bound.engine.executors = executors
    loss = loss_of(model, data(1)[0])
    before = state_of(model, updater)
    said = f"^in_place: ctx.{word} must only be read, got a write into '{MEAN}' in place"
    with pytest.raises(RuntimeError, match=said):
        updater.update(loss)
    assert same(before, state_of(model, updater))


@pytest.mark.parametrize("word", ["buffers", "of_buffers"])
def test_nor_is_one_written_in_place_at_a_tick(word):
    model = normed()
    updater = gch.chain(in_place_at_ticks(word), gch.sgd(0.1)).bind(model)
    before = state_of(model, updater)
    with pytest.raises(RuntimeError, match=f"^in_place_at_ticks: ctx.{word} must only be read"):
        updater.tick("double")
    assert same(before, state_of(model, updater))


def test_two_links_do_not_write_one_buffer():
    model = normed()
    updater = gch.chain(follow(), follow(), gch.sgd(0.1)).bind(model)
    with pytest.raises(ValueError, match=f"follow#2: the buffer '{MEAN}' must be written by one link"):
        updater.update(loss_of(model, data(1)[0]))
    both = gch.chain(follow(), writes({"1.num_batches_tracked": torch.tensor(7)}), gch.sgd(0.1)).bind(model)
    both.update(loss_of(model, data(1)[0]))
    assert model[1].num_batches_tracked == 7


def test_at_ticks_it_writes_with_its_state():
    model = normed()
    updater = gch.chain(at_ticks(), gch.sgd(0.1)).bind(model)
    updater.update(loss_of(model, data(1)[0]))
    before = model[1].running_mean.clone()
    updater.tick("double", 3)
    assert torch.equal(model[1].running_mean, 8 * before)
    updater.update(loss_of(model, data(1)[0]))
    twice = gch.chain(at_ticks(), at_ticks(), gch.sgd(0.1)).bind(model)
    before = state_of(model, twice)
    with pytest.raises(ValueError, match="at_ticks#2: the buffer"):
        twice.tick("double")
    assert same(before, state_of(model, twice)) and twice.clocks["double"] == 0


def test_a_link_may_swap_buffers_and_write_what_it_keeps():
    """What is written is what it was when the link gave it, whatever is written before it."""
    model = normed()
    mean, var = model[1].running_mean, model[1].running_var
    updater = gch.chain(writes({MEAN: var, "1.running_var": mean}), gch.sgd(0.1)).bind(model)
    loss = loss_of(model, data(1)[0])
    before = mean.clone(), var.clone()
    updater.update(loss)
    assert torch.equal(mean, before[1]) and torch.equal(var, before[0])


def test_an_interrupt_while_buffers_are_written_is_finished(monkeypatch):
    """Once anything is written all is: the next call of the updater sees to it."""
    from gradchain.engine.commit import Copies

    model, twin = normed(), normed()
    updater, whole = (gch.chain(follow(), gch.sgd(0.1)).bind(m) for m in (model, twin))
    whole.update(loss_of(twin, data(1)[0]))
    loss, plain, times = loss_of(model, data(1)[0]), Copies.__call__, []

    def once(self):
        times.append(1)
        if len(times) == 1:
            raise KeyboardInterrupt
        plain(self)

    monkeypatch.setattr(Copies, "__call__", once)
    with pytest.raises(KeyboardInterrupt):
        updater.update(loss)
    assert same(state_of(model, updater), state_of(twin, whole))


class each(gch.WritesBuffers):
    """One parameter at a time."""

    descends = False
    per_parameter = True

    def update(self, g, state, ctx):
        if "1.bias" in g:
            ctx.write_buffers({MEAN: ctx.buffers[MEAN] + 1})
        return g, state


def test_in_backward_and_while_steps_are_verified(monkeypatch):
    for variable, in_backward in (("0", True), ("1", False)):
        monkeypatch.setenv("GRADCHAIN_VERIFY", variable)
        model = normed()
        updater = gch.chain(each(), gch.sgd(0.1)).bind(model, in_backward=in_backward)
        loss = loss_of(model, data(1)[0])
        before = model[1].running_mean.clone()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            updater.update(loss)
        assert torch.equal(model[1].running_mean, before + 1)


def test_by_itself_a_context_says_what_is_to_be_written():
    model = normed()
    updater = gch.chain(follow(), gch.sgd(0.1)).bind(model)
    ctx = updater._bound.now()
    g = gch.Tensors.of({n: p.detach() for n, p in model.named_parameters()})
    follow().update(g, gch.chain().init(g), ctx.enter("here"))
    assert list(ctx.buffers_to_be["here"]) == [MEAN]
