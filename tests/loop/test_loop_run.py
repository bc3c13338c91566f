"""Batches, updates, validation, hooks, logs: what a run does, and what it refuses in which sentence."""

from __future__ import annotations

import gc
import importlib.util
import io
import json
import sys
import types
import weakref

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

import gradchain as gch

DATA = [torch.full((2, 3), float(i)) for i in range(4)]


def bound(*links):
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5), nn.Linear(2, 1))
    return model, gch.chain(*links, gch.sgd(0.01)).bind(model)


def go(run, model, updater=None):
    """Train, and return the batches that came, by their first number."""
    order = []
    for x in run:
        order.append(x[0, 0].item())
        (updater or run).update(model(x).square().mean())
    return order


# how long


@pytest.mark.parametrize(
    ("limit", "window", "batches", "updates"),
    [
        ({"epochs": 2}, 1, 8, 8), ({"updates": 6}, 1, 6, 6), ({"iters": 6}, 1, 6, 6),
        ({"epochs": 2}, 3, 8, 3), ({"updates": 3}, 3, 9, 3), ({"iters": 7}, 3, 7, 3), ({"epochs": 1}, 9, 4, 1),
    ],
)  # fmt: skip
def test_it_ends_by_epochs_updates_or_batches(limit, window, batches, updates):
    """A window that is not full at the end is applied by the mean over what it has."""
    model, updater = bound(gch.accumulate(window))
    run = gch.loop(DATA, updater, **limit)
    order = go(run, model)
    assert order == [float(i % 4) for i in range(batches)]
    assert (run.iter, run.num_updates, updater.num_micro) == (batches, updates, batches)
    assert not updater.flush()


def test_updates_before_the_run_count():
    model, updater = bound()
    updater.update(model(DATA[0]).mean())
    assert len(go(gch.loop(DATA, updater, updates=3), model)) == 2
    assert go(gch.loop(DATA, updater, updates=3), model) == []


def test_skipped_updates_do_not_count():
    """Two of six have no number in their loss."""
    model = nn.Linear(1, 1)
    updater = gch.chain(gch.skip_nonfinite(9), gch.sgd(0.01)).bind(model)
    run = gch.loop([torch.ones(1, 1), torch.full((1, 1), float("nan")), torch.ones(1, 1)], updater, updates=4)
    for x in run:
        updater.update(model(x).sum())
    assert (run.iter, updater.num_updates, updater.num_skipped) == (6, 4, 2)


def test_a_loader_without_length():
    class Stream:
        def __iter__(self):
            return iter(DATA)

    model, updater = bound()
    run = gch.loop(Stream(), updater, epochs=2)
    assert run.total is None
    assert len(go(run, model)) == 8
    assert len(go(gch.loop(Stream(), updater, iters=10), model)) == 10


def test_stop_ends_behind_the_batch():
    """In a run over epochs in mid-epoch too; the run's last things are done."""
    for limit in ({"epochs": 3}, {"iters": 20}):
        calls = []
        model, updater = bound(gch.accumulate(4))
        run = gch.loop(DATA, updater, **limit, hooks={"after_run": lambda c=calls: c.append("end")},
                       validate=lambda c=calls: c.append("val"))  # fmt: skip
        for x in run:
            run.update(model(x).mean())
            if run.iter == 5:
                run.stop()
        assert (run.iter, run.num_updates, calls[-2:]) == (6, 2, ["val", "end"])


def test_memory_of_a_batch_is_free_when_the_next_is_loaded():
    alive = []

    class Loader:
        def __iter__(self):
            for _ in range(3):
                gc.collect()
                alive.append(sum(ref() is not None for ref in refs))
                batch = torch.ones(1, 3)
                refs.append(weakref.ref(batch))
                yield batch
                del batch

    refs: list = []
    model, updater = bound()
    for batch in gch.loop(Loader(), updater, epochs=1):
        updater.update(model(batch).mean())
        del batch
    assert alive == [0, 0, 0]


# epochs and clocks


def test_samplers_are_told_the_epoch_and_the_clock_ticks():
    for limit in ({"epochs": 3}, {"iters": 9}):
        model = nn.Linear(1, 1)
        updater = gch.sgd(gch.by("epoch", gch.linear(1.0, 0.0, 4))).bind(model)
        data = torch.arange(6.0).view(6, 1)
        order = DistributedSampler(range(6), num_replicas=1, rank=0, seed=4)
        seen = []
        for x in gch.loop(DataLoader(data, 2, sampler=order), updater, **limit):
            seen.append((x.flatten().tolist(), updater.clocks["epoch"]))
            updater.update(model(x).mean() * 0)
        expected = []
        for epoch in range(3):
            order.set_epoch(epoch)
            expected += [[float(i) for i in pair] for pair in zip(*[iter(order)] * 2, strict=True)]
        assert [batch for batch, _ in seen] == expected
        assert [clock for _, clock in seen] == [0.0] * 3 + [1.0] * 3 + [2.0] * 3
        assert updater.clocks["epoch"] == 3.0


def test_a_sampler_gives_every_rank_its_share():
    for items, ranks, drop in ((10, 3, False), (10, 3, True), (12, 4, False), (2, 5, False), (7, 1, True)):
        shares = []
        for rank in range(ranks):
            order = gch.loop.sampler(items, seed=3, drop_last=drop, rank=rank, ranks=ranks)
            order.set_epoch(2)
            shares.append(list(order))
            assert len(order) == len(shares[-1])
        every = [index for share in shares for index in share]
        assert len({len(share) for share in shares}) == 1
        assert len(every) == (items // ranks * ranks if drop else -(-items // ranks) * ranks)
        assert set(every) == set(range(items)) or (drop and len(set(every)) == len(every))
    one, other = gch.loop.sampler(50, seed=1), gch.loop.sampler(50, seed=1)
    other.set_epoch(1)
    assert list(one) == list(one) != list(other)
    assert list(gch.loop.sampler(4, shuffle=False)) == [0, 1, 2, 3]
    assert not hasattr(one, "state_dict")  # or torchdata takes it for one that keeps its own place, and skips nothing
    one.skip(48)
    assert (len(list(one)), len(list(one))) == (2, 50)


# validation


def test_validation_in_updates_and_after_the_last():
    """Windows of two batches; begins, a changing interval, never before the first begin."""
    for when, expected in (
        (2, [2, 4, 6, 7]), ([(0, None)], [7]), ([(3, 2)], [4, 6, 7]), ([(0, 3), (4, 1)], [3, 4, 5, 6, 7]),
        ([(9, 1)], []), ([(2, 2), (5, None)], [2, 4, 7]),
    ):  # fmt: skip
        model, updater = bound(gch.accumulate(2))
        at = []
        run = gch.loop(DATA, updater, updates=7, validate=(lambda r, at=at: at.append(r.num_updates), when))
        go(run, model)
        assert at == expected, when


@pytest.mark.parametrize(
    ("validate", "limit", "expected"),
    [
        (lambda f: f, {"epochs": 3}, [4, 8, 12]), (lambda f: f, {"updates": 6}, [6]),
        (lambda f: (f, 2, "epoch"), {"epochs": 3}, [8, 12]), (lambda f: (f, 1, "epoch"), {"updates": 9}, [4, 8, 9]),
        (lambda f: (f, 5), {"epochs": 3}, [5, 10, 12]), (lambda f: (f, 3, "iter"), {"updates": 4}, [3, 4]),
    ],
)  # fmt: skip
def test_validation_by_other_units(validate, limit, expected):
    model, updater = bound()
    at = []
    go(gch.loop(DATA, updater, **limit, validate=validate(lambda r: at.append(r.iter))), model)
    assert at == expected


def test_validation_leaves_modes_draws_and_gradients_alone():
    """A module that was put in eval mode by hand stays so. The training is that without validation, bit for bit."""
    weights = []
    for validated in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5), nn.Linear(2, 1))
        updater = gch.chain(gch.sgd(0.01), gch.average_params(0.5)).bind(model)
        model[2].eval()
        modes = []

        def validate(model=model, modes=modes):
            modes.append([m.training for m in model.modules()])
            assert not model.train()(torch.rand(2, 3)).requires_grad

        given = {"validate": lambda f=validate: f(), "averaged": True} if validated else {}
        go(gch.loop(DATA, updater, epochs=2, **given), model)
        weights.append([w.tolist() for w in model.parameters()])
        assert [m.training for m in model.modules()] == [True, True, True, False]
        assert modes == ([[False] * 4] * 2 if validated else [])
    assert weights[0] == weights[1]


def test_validation_sees_average_weights():
    model = nn.Sequential(nn.Linear(3, 1))
    updater = gch.chain(gch.sgd(0.01), gch.average_params(0.9)).bind(model)
    seen = []
    run = gch.loop(DATA, updater, epochs=1, averaged=True, validate=lambda: seen.append(model[0].weight.tolist()))
    go(run, model)
    assert seen == [updater.averages()["0.weight"].tolist()] != [model[0].weight.tolist()]


def test_what_validation_returns_can_be_observed():
    """reduce_on_plateau reads it: the loss never falls, and so the rate does."""
    model = nn.Linear(3, 1)
    updater = gch.chain(gch.sgd(0.1), gch.reduce_on_plateau("val_loss", factor=0.5, patience=0)).bind(model)
    run = gch.loop(DATA, updater, epochs=4, validate=lambda: {"val_loss": 1.0, "more": "text"}, observe="val_loss")
    for x in run:
        updater.update(model(x).mean())
    assert updater.metrics["reduce_on_plateau.value"] == 0.25
    assert run.metrics == {"val_loss": 1.0, "more": "text"}


def test_a_validation_goes_over_its_batches_with_moments():
    calls = []
    model, updater = bound()

    def validate(run):
        return sum(x.sum() for x in run.over(DATA[:2]))

    hooks = [(m, lambda m=m: calls.append(m)) for m in ("before_val", "before_val_iter", "after_val_iter", "after_val")]
    run = gch.loop(DATA, updater, epochs=1, validate=validate, hooks=hooks)
    go(run, model)
    assert calls == ["before_val", *["before_val_iter", "after_val_iter"] * 2, "after_val"]
    assert run.metrics == {"score": torch.tensor(6.0)}


# hooks


def test_functions_at_moments_in_their_order():
    calls = []

    def note(text):
        return lambda run: calls.append((text, run.iter))

    model, updater = bound(gch.accumulate(2))
    hooks = [
        ("after_train_iter", note("low"), "LOW"), ("after_train_iter", note("a")), ("after_train_iter", note("b"), 50),
        ("after_train_iter", note("high"), "high"), ("after_update", note("update")),
    ]  # fmt: skip
    go(gch.loop(DATA[:2], updater, epochs=1, hooks=hooks), model)
    names = ["high", "a", "b", "low"]
    assert calls == [(n, 0) for n in names] + [("update", 1)] + [(n, 1) for n in names]


def test_hooks_may_be_given_in_several_ways():
    for shape in (dict, list, tuple):
        calls = []
        f, g = (lambda calls=calls: calls.append("f")), (lambda run, calls=calls: calls.append("g"))
        given = {
            dict: {"after_run": [f, g], "before_run": f}, list: [("after_run", f), ("after_run", g), ("before_run", f)],
            tuple: (("after_run", f), ("after_run", g), ("before_run", f)),
        }[shape]  # fmt: skip
        model, updater = bound()
        go(gch.loop(DATA, updater, epochs=1, hooks=given), model)
        assert calls == ["f", "f", "g"]
    go(gch.loop(DATA, updater, epochs=1, hooks=("after_run", f)), model)
    assert calls[3:] == ["f"]


# what is closed


class Watched(gch.loop.Sink):
    def __init__(self):
        self.calls = []

    def open(self, resumed):
        self.calls.append("open")

    def __call__(self, record):
        self.calls.append(record["mode"])

    def close(self):
        self.calls.append("close")


@pytest.mark.parametrize("how", ["break", "body", "hook", "validation", "sink", "end"])
def test_whatever_ends_it_files_and_bar_are_closed(how, monkeypatch, tmp_path):
    """At once, not when the garbage is collected; and the loop can be gone through again."""
    from tqdm import tqdm

    closed = []
    before = tqdm.close
    monkeypatch.setattr(tqdm, "close", lambda self: (closed.append("bar"), before(self))[1])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    model, updater = bound()
    sink, lines = Watched(), gch.loop.json_lines(tmp_path / "run.jsonl")
    failing = {"on": True}

    def fail(where):
        def maybe(*_):
            if where == how and failing["on"]:
                raise LookupError(how)

        return maybe

    run = gch.loop(
        DATA, updater, epochs=1, validate=(lambda: fail("validation")(), 2), hooks={"after_train_iter": fail("hook")},
        log=[sink, lines, fail("sink")], interval=2, bar=True,
    )  # fmt: skip

    def train():
        for x in run:
            updater.update(model(x).mean())
            fail("body")()
            if how == "break" and failing["on"]:
                break

    gc.disable()
    try:
        if how in ("break", "end"):
            train()
        else:
            with pytest.raises(LookupError, match=how):
                train()
        assert sink.calls[-1] == "close"
        assert closed[:1] == ["bar"]
        assert lines._file is None
    finally:
        gc.enable()
    failing["on"] = False
    train()
    assert run.epoch == 1
    assert updater.num_updates == 4


def test_two_at_once_are_refused():
    model, updater = bound()
    run = gch.loop(DATA, updater, epochs=1)
    first = iter(run)
    next(first)
    with pytest.raises(RuntimeError, match=r"loop: is running: .*one `for` over it at a time"):
        next(iter(run))
    first.close()
    assert len(go(run, model)) == 4


# numbers


def test_records_have_means_rates_and_times():
    model = nn.Linear(3, 1)
    records = []
    chain = gch.chain(gch.accumulate(2), gch.clip_by_norm(1.0), gch.sgd(gch.linear(0.1, 0.0, 10)))
    updater = chain.bind(model)
    run = gch.loop(DATA, updater, epochs=3, log=[records.append], interval=2, validate=lambda: {"accuracy": 0.5})
    losses, expected = [], []
    for x in run:
        with run.timing("forward"):
            loss = model(x).square().mean()
        run.update(loss)
        run.log(twice=2 * loss)
        losses.append(loss.item())
        if len(losses) % 2 == 0:
            expected.append(sum(losses[-2:]) / 2)
    trained = [r for r in records if r["mode"] == "train"]
    assert [r["loss"] for r in trained] == pytest.approx(expected)
    assert [r["twice"] for r in trained] == pytest.approx([2 * value for value in expected])
    assert [(r["epoch"], r["iter"], r["update"]) for r in trained] == [
        (1, 2, 1), (1, 4, 2), (2, 6, 3), (2, 8, 4), (3, 10, 5), (3, 12, 6)
    ]  # fmt: skip
    rates = [r["scale_by_learning_rate.learning_rate"] for r in trained]
    assert rates == pytest.approx([0.1 - 0.01 * i for i in range(6)])  # that of the update, not of the next
    for name in ("time", "data_time", "forward_time", "update_time", "forward", "clip_by_norm.norm", "skipped", "eta"):
        assert all(r[name] >= 0 for r in trained), name
    assert [(r["epoch"], r["iter"], r["accuracy"]) for r in records if r["mode"] == "val"] == [
        (1, 4, 0.5), (2, 8, 0.5), (3, 12, 0.5)
    ]  # fmt: skip


def test_the_last_batches_are_logged_though_no_interval_ends():
    records = []
    model, updater = bound()
    go(gch.loop(DATA, updater, iters=5, log=records.append, interval=3), model)
    assert [r["iter"] for r in records] == [3, 5]


@pytest.mark.parametrize("limit", [{"iters": 5}, {"updates": 5}, {"epochs": 2}])
@pytest.mark.parametrize("stopped", [False, True])
def test_the_last_record_has_the_rates_of_the_last_batch_or_none(limit, stopped):
    """Where nobody knew that it is the last, as in a run that is stopped, they are unknown."""
    records, model, last = [], nn.Linear(3, 1), 3 if stopped else 2 * 5 if "epochs" in limit else 5
    loader = [*DATA, DATA[0]]
    updater = gch.sgd(gch.linear(0.1, 0.0, 10)).bind(model)
    run = gch.loop(loader, updater, **limit, log=records.append, interval=2)
    for x in run:
        run.update(model(x).square().mean())
        if stopped and run.iter + 1 == last:
            run.stop()
    rates = [(r["iter"], r.get("scale_by_learning_rate.learning_rate")) for r in records]
    assert rates[0] == (2, pytest.approx(0.09))
    assert rates[-1] == (last, None if stopped else pytest.approx(0.1 - 0.01 * (last - 1)))


def test_a_sum_on_a_device_is_read_only_for_a_record(monkeypatch):
    """Nothing waits for it in between."""
    model, updater = bound()
    run = gch.loop(DATA, updater, epochs=1, log=lambda r: None, interval=4)
    reads = []
    before = torch.Tensor.__float__
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: (reads.append(run.iter), before(self))[1])
    for x in run:
        run.update(model(x).mean())
        run.log(norm=x.norm())
    assert set(reads) == {3}


def test_json_lines_are_json_and_cut_where_a_run_is_resumed(tmp_path):
    """Numbers that are none are null; a line that is torn goes; what an earlier run wrote stays."""
    path = tmp_path / "logs" / "run.jsonl"
    model = nn.Linear(3, 1)

    def train(iters):
        run = gch.loop(DATA, gch.sgd(0.0).bind(model), iters=iters, log=path, interval=1, checkpoint=saving)
        for _ in run:
            run.log(loss=float("inf") if run.iter == 1 else 1.0)

    saving = None
    train(2)
    saving = gch.loop.checkpoints(tmp_path / "files", 3, "iter", last=False)
    train(5)
    with path.open("a") as file:
        file.write('{"mode": "train", "it')
    train(4)
    records = [
        json.loads(line, parse_constant=lambda word: pytest.fail(word)) for line in path.read_text().splitlines()
    ]
    assert [r["iter"] for r in records] == [1, 2, 1, 2, 3, 4]
    assert [r["loss"] for r in records] == [1.0, None, 1.0, None, 1.0, 1.0]


def test_the_console_has_a_line_to_read():
    stream = io.StringIO()
    model, updater = bound(gch.clip_by_norm(1.0))
    go(
        gch.loop(DATA, updater, epochs=1, log=gch.loop.console(stream), interval=4, validate=lambda: {"acc": 0.25}),
        model,
    )
    train, val = stream.getvalue().splitlines()
    assert train.startswith("train epoch 1 iter 4 update 4  loss: ")
    assert "learning_rate: 0.01" in train
    assert "eta: 0:00:00" in train
    assert val == "val epoch 1 iter 4 update 4  acc: 0.25"


def test_tensorboard_gets_scalars(monkeypatch, tmp_path):
    """By a stand-in, for the package is an extra: what is written, where, and what is purged by a resume."""
    calls = []

    class SummaryWriter:
        def __init__(self, folder, purge_step=None):
            calls.append(("open", folder, purge_step))

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def close(self):
            calls.append("close")

    stand_in = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    model, updater = bound()
    run = gch.loop(DATA, updater, epochs=1, log=gch.loop.tensorboard("runs"), interval=4, validate=lambda: {"acc": 0.5})
    go(run, model)
    assert calls[0] == ("open", "runs", None)
    assert ("val/acc", 0.5, 4) in calls
    assert [step for name, _, step in calls[1:-1] if name == "train/loss"] == [4]
    assert calls[-1] == "close"
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r"tensorboard, which is not installed. .*gradchain\[tensorboard\]"):
        go(run := gch.loop(DATA, updater, epochs=1, log=gch.loop.tensorboard("runs")), model)


def test_tensorboard_reads_what_was_written(tmp_path):
    """With the package itself, where it is."""
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model, updater = bound()
    go(gch.loop(DATA, updater, epochs=2, log=gch.loop.tensorboard(tmp_path), interval=4), model)
    read = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in read.Scalars("train/loss")] == [4, 8]


def test_the_bar_counts_and_shows(monkeypatch):
    """None where nobody watches; with the user's own numbers where somebody does."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    for bar, terminal, shown in ((None, False, False), (None, True, True), (False, True, False), (True, False, True)):
        stream.truncate(0)
        stream.isatty = lambda terminal=terminal: terminal
        model, updater = bound(gch.accumulate(2))
        go(gch.loop(DATA, updater, updates=2, bar=bar, interval=1), model)
        assert ("2/2" in stream.getvalue()) == shown == ("loss" in stream.getvalue())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"bar=True needs the package tqdm, .*gradchain\[loop\]"):
        go(gch.loop(DATA, updater, updates=9, bar=True), model)


# what is refused


@pytest.mark.parametrize(
    ("given", "kind", "sentence"),
    [
        ({}, ValueError, "one of epochs, updates and iters must be given, got none of them"),
        ({"epochs": 1, "iters": 2}, ValueError, r"must be given, got \{'epochs': 1, 'iters': 2\}"),
        ({"epochs": 0}, ValueError, "epochs must be a whole number of at least 1, got 0"),
        ({"updates": 2.0}, ValueError, r"updates must be a whole number of at least 1, got 2\.0"),
        ({"epochs": 1, "interval": 0}, ValueError, "interval must be a whole number of at least 1, got 0"),
        ({"epochs": 1, "updater": nn.Linear(1, 1)}, TypeError, r"updater must be an Updater, .*got Linear\. Bind"),
        ({"epochs": 1, "updater": {}}, ValueError, "at least one updater"),
        ({"epochs": 1, "loader": 3}, TypeError, "loader must be iterable, got int"),
        ({"epochs": 1, "validate": 3}, TypeError, "validate must be a function of the run or of nothing, got 3"),
        ({"epochs": 1, "validate": (lambda a, b: 1, 2)}, TypeError, "validate must be a function of the run"),
        ({"epochs": 1, "validate": (len,)}, ValueError, r"validate must be a function, \(function, when\)"),
        ({"epochs": 1, "validate": (len, 0)}, ValueError, "validate must be every so many updates, .*got 0"),
        ({"epochs": 1, "validate": (len, [(3, 1), (2, 1)])}, ValueError, r"begins of validate must rise, got \[3, 2\]"),
        ({"epochs": 1, "validate": (len, [(3, 1, 2)])}, ValueError, "validate must be every so many updates"),
        (
            {"epochs": 1, "validate": (len, 1, "day")},
            ValueError,
            "unit of validate must be 'update', 'iter' or",
        ),
        ({"epochs": 1, "averaged": 3}, TypeError, "averaged must be True, False or the name of an average, got 3"),
        ({"epochs": 1, "checkpoint": 3}, TypeError, "checkpoint must be a folder or loop.checkpoints"),
        (
            {"epochs": 1, "hooks": {"after_lunch": len}},
            ValueError,
            "moment of a hook must be one of before_.*lunch",
        ),
        ({"epochs": 1, "hooks": [("before_run", 3)]}, TypeError, "hook at before_run must be a function .*got 3"),
        ({"epochs": 1, "hooks": [("before_run", len, "SOON")]}, ValueError, "priority of a hook must be .*got 'SOON'"),
        ({"epochs": 1, "hooks": [("before_run", len, 101)]}, ValueError, "from 0 to 100 or one of HIGHEST, .*got 101"),
        ({"epochs": 1, "hooks": [{"type": "EMAHook"}]}, TypeError, r"hooks must be .*got \{'type': 'EMAHook'\}"),
        ({"epochs": 1, "log": "run.txt"}, TypeError, r"log must be a path that ends in \.jsonl, .*got 'run\.txt'"),
    ],
    ids=range(23),
)
def test_an_argument_that_cannot_be_meant_is_refused(given, kind, sentence):
    arguments = {"loader": DATA, "updater": bound()[1], **given}
    with pytest.raises(kind, match=sentence):
        gch.loop(arguments.pop("loader"), arguments.pop("updater"), **arguments)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: gch.loop.sampler(0), "data must have at least one item, got 0"),
        (lambda: gch.loop.sampler(4, seed=-1), "seed must be a whole number of at least 0, got -1"),
        (lambda: gch.loop.sampler(4, rank=2, ranks=2), "rank must be below ranks, got 2 and 2"),
        (lambda: gch.loop.sampler(2, drop_last=True, rank=0, ranks=3), "an item for each of 3 ranks"),
        (lambda: gch.loop.checkpoints("a", keep=0), "keep must be a whole number of at least 1 or None, got 0"),
        (lambda: gch.loop.checkpoints("a", best=("loss", "low")), r'best must be \(metric, "min" or "max"\)'),
        (lambda: gch.loop.checkpoints("a", every=-1), "checkpoints must be every so many updates"),
        (lambda: gch.loop.tensorboard("a", by="day"), "by must be 'update', 'iter' or 'epoch', got 'day'"),
    ],
)
def test_a_part_that_cannot_be_meant_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize("limit", [{"epochs": 2}, {"updates": 2}, {"iters": 2}])
def test_an_empty_loader_is_refused(limit):
    with pytest.raises(ValueError, match="loader must give at least one batch, got none in epoch 1"):
        next(iter(gch.loop([], bound()[1], **limit)))


def test_a_generator_is_gone_through_once():
    model, updater = bound()
    with pytest.raises(ValueError, match=r"got none in epoch 2\. A generator can be gone through once: give a list"):
        go(gch.loop((x for x in DATA), updater, epochs=2), model)


def test_a_body_without_an_update_does_not_run_for_ever():
    with pytest.raises(RuntimeError, match=r"updates=2 must be counted, got 4 batches, .* Call updater.update\(loss\)"):
        for _ in gch.loop(DATA, bound()[1], updates=2):
            pass


def test_what_is_asked_of_a_validation_that_does_not_return_it(tmp_path):
    model, updater = bound()
    best = gch.loop.checkpoints(tmp_path, best=("acc", "max"))
    for given, sentence in (
        ({"observe": "acc"}, "observe must be names that"),
        ({"checkpoint": best}, "best must be a"),
    ):
        run = gch.loop(DATA, updater, iters=1, resume=False, validate=lambda: {"loss": 1.0}, **given)
        with pytest.raises(KeyError, match=f"{sentence}.*'acc'; it has .*loss"):
            go(run, model)
    with pytest.raises(TypeError, match="validate must return numbers by name, one number or None, got str"):
        go(gch.loop(DATA, updater, iters=1, validate=lambda: "good"), model)
    with pytest.raises(KeyError, match=r"name must be one of .*got 'g'"):
        run.update(model(DATA[0]).mean(), "g")
    with pytest.raises(TypeError, match=r"log\(loss=…\) must be a number or a tensor of one, got Tensor"):
        run.log(loss=torch.ones(2))


def test_the_room_is_called_as_its_class():
    """Whichever was first asked for: after `import gradchain.loop`, Python has the module under that name."""
    room = importlib.import_module("gradchain.loop")
    assert isinstance(room, types.ModuleType)
    model, updater = bound()
    assert len(go(room(DATA, updater, epochs=1), model)) == 4
    names = [name for name in vars(room.loop) if name[0] != "_"]
    assert {"sampler", "checkpoints", "console", "json_lines", "tensorboard", "intervals"} <= set(names)
    assert [name for name in names if getattr(room, name) is not getattr(room.loop, name)] == []
    assert not hasattr(room, "nonsense")
