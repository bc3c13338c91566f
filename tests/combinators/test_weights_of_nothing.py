"""Micro-batches of weight 0, as those without labels, and weights given as tensors and numbers of numpy."""

import math
import warnings

import numpy as np
import pytest
import torch
from little import data, distance, loss_of, net, same, snapshot, untouched
from torch.nn.functional import cross_entropy

import gradchain as gch

FORMS = {
    "int": lambda n: n, "float": float, "int64": np.int64, "int32": np.int32, "float64": np.float64,
    "float32": np.float32, "float16": np.float16, "an array": np.array, "an array of one": lambda n: np.array([n]),
    "a tensor": torch.tensor, "a float tensor": lambda n: torch.tensor(float(n)),
    "a tensor of one": lambda n: torch.tensor([n]), "a sum": lambda n: (torch.arange(9) < n).sum(),
    "a graph": lambda n: torch.tensor(float(n), requires_grad=True) * 1,
}  # fmt: skip
BAD = {
    "negative": -1, "NaN": math.nan, "inf": math.inf, "a negative tensor": torch.tensor(-1), "True": True,
    "a NaN tensor": torch.tensor(math.nan), "an inf of numpy": np.float32(np.inf), "two": torch.tensor([1, 2]),
    "none": torch.tensor([]), "a mask": torch.tensor([True, False]), "a bool": torch.tensor(True), "a string": "3",
    "complex": 1j, "too large": 10**400, "a list": [1],
}  # fmt: skip


def nan_of(model, rows):
    """What a mean over no labels is: NaN, with NaN for gradients."""
    loss = loss_of(model, rows)
    return loss * 0 / torch.zeros((), dtype=rows.dtype)


CHAINS = {
    "a window": lambda: gch.chain(gch.accumulate(3), gch.adamw(0.05, weight_decay=0.1)),
    "a sum": lambda: gch.chain(gch.accumulate(3, reduce="sum"), gch.sgd(0.05, momentum=0.9)),
    "a buffer": lambda: gch.chain(gch.accumulate(3, dtype=torch.float64), gch.adamw(0.05)),
    "a window and a scale": lambda: gch.chain(gch.accumulate(3), gch.amp_scale(8.0, always=True), gch.adamw(0.05)),
    "a scale and a window": lambda: gch.chain(gch.amp_scale(8.0, always=True), gch.accumulate(3), gch.adamw(0.05)),
    "a gate and a window": lambda: gch.chain(gch.skip_nonfinite(0), gch.accumulate(3), gch.adamw(0.05)),
    "a window and an average": lambda: gch.chain(gch.accumulate(3), gch.sgd(0.1), gch.average_params(0.9)),
    "in branches": lambda: gch.partition(
        (gch.named("0.*"), gch.chain(gch.accumulate(3), gch.adamw(0.05))),
        (gch.rest, gch.chain(gch.accumulate(3), gch.sgd(0.1))),
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["a window", "a sum", "in branches"])
def test_a_weight_is_any_number(kind, form):
    plain, given = net(), net()
    first, second = CHAINS[kind]().bind(plain), CHAINS[kind]().bind(given)
    for weight, rows in zip([3, 1, 5, 0, 2, 7], data(6), strict=True):
        first.update(loss_of(plain, rows), weight=weight)
        second.update(loss_of(given, rows), weight=FORMS[form](weight))
    assert distance(given, plain) == 0.0
    assert distance(given, net()) > 1e-3


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("tx", [gch.chain(gch.accumulate(2), gch.sgd(0.1)), gch.sgd(0.1)], ids=["window", "alone"])
def test_what_is_no_weight_is_refused_and_nothing_is_changed(tx, bad):
    model = net()
    updater = tx.bind(model)
    with untouched(model, updater), pytest.raises(ValueError, match="weight must be a finite number of at least 0"):
        updater.update(loss_of(model, data(1)[0]), weight=BAD[bad])


EMPTY = {"a plain loss": loss_of, "a loss of NaN": nan_of}
WHERE = {
    "first": (0, 3, 1),
    "in the middle": (3, 0, 1),
    "last": (3, 1, 0),
    "two": (0, 0, 2),
    "but the first": (2, 0, 0),
}


@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("kind", CHAINS)
def test_a_micro_batch_of_weight_0_adds_nothing(kind, where, empty):
    """The window is that of the others, closed early: to rounding, and whatever the loss of the empty one is."""
    mine, other = net(), net()
    first, second = CHAINS[kind]().bind(mine), CHAINS[kind]().bind(other)
    for window in range(2):
        rows = data(3, seed=window)
        counted = [i for i in range(3) if WHERE[where][i]]
        for i, weight in enumerate(WHERE[where]):
            info = first.update((loss_of if weight else EMPTY[empty])(mine, rows[i]), weight=weight)
        for i in counted:
            done = second.update(loss_of(other, rows[i]), weight=WHERE[where][i], last=i == counted[-1])
        assert info.reason == done.reason == "applied"
        assert distance(mine, other) < 1e-12
    assert (first.num_updates, first.num_micro, first.num_skipped) == (2, 6, 0)
    assert distance(mine, net()) > 1e-3


@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("end", ["full", "last", "flush"])
@pytest.mark.parametrize("kind", CHAINS)
def test_a_window_of_nothing_else_applies_nothing(kind, end, empty):
    """Weights, moments, averages and schedules are as before; the next window begins afresh."""
    model = net()
    updater = CHAINS[kind]().bind(model)
    for rows in data(3):
        updater.update(loss_of(model, rows), weight=2)
    before = snapshot(model, updater)
    rows = data(3, seed=5)
    for i in range(3 if end == "full" else 2):
        info = updater.update(EMPTY[empty](model, rows[i]), weight=0, last=end == "last" and i == 1)
    if end == "flush":
        info = updater.flush()
    assert (bool(info), info.reason) == (False, "empty"), info.reason
    assert "weight 0" in info.detail
    after = snapshot(model, updater)
    assert same(before[0], after[0])
    before[1]["clocks"]["micro"] = after[1]["clocks"]["micro"]
    if kind != "a scale and a window":  # a scale in front counts micro-batches that did not overflow
        assert same(before[1], after[1])
    assert updater.num_skipped == 0 and updater.num_updates == 1
    other = net()
    whole = CHAINS[kind]().bind(other)
    for rows in (*data(3), *data(3, seed=7)):
        whole.update(loss_of(other, rows), weight=2)
    for rows in data(3, seed=7):
        updater.update(loss_of(model, rows), weight=2)
    assert distance(model, other) == 0.0


ALONE = {
    "sgd": (lambda: gch.sgd(0.1, momentum=0.9), {}),
    "adamw": (lambda: gch.adamw(0.1), {}),
    "an average": (lambda: gch.chain(gch.adamw(0.1), gch.average_params(0.9)), {}),
    "a gate": (lambda: gch.chain(gch.skip_nonfinite(0), gch.adamw(0.1)), {}),
    "a scale": (lambda: gch.chain(gch.amp_scale(8.0, always=True), gch.adamw(0.1)), {}),
    "branches": (lambda: gch.partition((gch.named("0.*"), gch.adamw(0.1)), (gch.rest, gch.sgd(0.1))), {}),
    "in backward": (lambda: gch.adamw(0.1), {"in_backward": True}),
}


@pytest.mark.parametrize("halves", [False, True], ids=["update", "backward and step"])
@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("kind", ALONE)
def test_alone_it_applies_nothing(kind, empty, halves):
    make, options = ALONE[kind]
    model, other = net(), net()
    updater, whole = make().bind(model, **options), make().bind(other, **options)
    for i, rows in enumerate(data(4)):
        before = snapshot(model, updater)
        loss = EMPTY[empty](model, rows)
        if halves:
            updater.backward(loss, weight=0)
            info = updater.step()
        else:
            info = updater.update(loss, weight=0)
        assert (bool(info), info.reason, updater.num_micro) == (False, "empty", 2 * i + 1)
        after = snapshot(model, updater)
        before[1]["clocks"]["micro"] += 1
        assert same(before[:2], after[:2]) and all(p.grad is None for p in model.parameters())
        updater.update(loss_of(model, rows), weight=3)
        whole.update(loss_of(other, rows))
    assert distance(model, other) == 0.0
    assert updater.num_skipped == 0


def test_a_batch_without_labels():
    """The usual loop: labels that are all padding, their number as a tensor, and a mean over none of them."""
    torch.manual_seed(0)
    words, labels = torch.randn(6, 8, 3).double(), torch.randint(0, 2, (6, 8))
    labels[0], labels[3], labels[4, 2:] = -100, -100, -100
    mine, other = net(), net()
    updater = gch.chain(gch.accumulate(3), gch.sgd(0.1)).bind(mine)
    for x, y in zip(words, labels, strict=True):
        updater.update(cross_entropy(mine(x), y), weight=(y != -100).sum())
    whole = gch.sgd(0.1).bind(other)
    for i in (0, 3):
        whole.update(cross_entropy(other(words[i : i + 3].flatten(0, 1)), labels[i : i + 3].flatten()))
    assert distance(mine, other) < 1e-14


def test_hooks_of_the_users_stay_and_ours_go():
    model, seen = net(), []
    model[0].weight.register_hook(lambda grad: seen.append(grad.abs().sum().item()))
    updater = gch.chain(gch.accumulate(2), gch.sgd(0.1)).bind(model)
    for weight in (0, 1, 1, 0):
        updater.update(loss_of(model, data(1)[0]), weight=weight)
    assert len(seen) == 4
    assert len(model[0].weight._backward_hooks) == 1 and not model[2].weight._backward_hooks


def test_a_weight_of_another_backward_of_the_same_micro_batch_must_be_its_own():
    model = net()
    updater = gch.chain(gch.accumulate(2), gch.sgd(0.1)).bind(model)
    first, second = data(2)
    updater.backward(loss_of(model, first), weight=torch.tensor(0))
    updater.backward(loss_of(model, second), weight=0.0)
    with pytest.raises(ValueError, match="that of the micro-batch's first backward, 0, got 2"):
        updater.backward(loss_of(model, second), weight=2)


@pytest.mark.parametrize("weights", [(0, 1e-9, 3e-9), (0, 1e30, 1.0), (0, 5e-324, 5e-324), (0, 1.7e308, 1.0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_what_comes_after_an_empty_one_may_be_of_any_size(weights, dtype):
    """The empty one says nothing of how large the weights are: no gradient under- or overflows."""
    parameter = torch.ones(1, dtype=dtype, requires_grad=True)
    seen = []
    look = gch.stateless(lambda u, w: seen.append(u["w"].double().clone()) or u)
    updater = gch.chain(gch.accumulate(3), look, gch.scale(-1.0)).bind({"w": parameter})
    for g, weight in zip((9.0, 1.0, 3.0), weights, strict=True):
        updater.update((torch.tensor(g, dtype=dtype) * parameter).sum(), weight=weight)
    largest = max(weights)
    shares = [w / largest for w in weights]
    expected = (shares[1] + 3.0 * shares[2]) / sum(shares)
    torch.testing.assert_close(seen[0], torch.full((1,), expected, dtype=torch.float64), rtol=2e-3, atol=0)


def test_no_warning_and_no_wait():
    """A loop over many windows, some of them empty, is run again as any other."""
    model = net()
    updater = gch.chain(gch.accumulate(2), gch.adamw(0.01)).bind(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i, rows in enumerate(data(24)):
            updater.update(loss_of(model, rows), weight=(0, 3, 0, 0, 2, 2)[i % 6])
    assert updater.num_updates == 8
    assert updater._bound.engine.num_replayed > 0
