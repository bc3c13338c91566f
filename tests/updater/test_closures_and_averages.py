"""Closures (`update(closure)`) beside a hand-written SAM loop, and averages beside torch's AveragedModel."""

import contextlib

import pytest
import torch
from little import BoomError, data, distance, loss_of, net, same, untouched, weights
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import gradchain as gch

RHO = 0.3


def sam_steps(groups):
    """SAM by hand over torch.optim.SGD: the norm is over all parameters, the mean over each group of micro-batches."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for rows in groups:
        optimizer.zero_grad()
        loss_of(model, rows).backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        kept = [p.detach().clone() for p in model.parameters()]
        with torch.no_grad():
            for p in model.parameters():
                p += RHO * p.grad / (norm + 1e-12)
        optimizer.zero_grad()
        loss_of(model, rows).backward()
        with torch.no_grad():
            for p, k in zip(model.parameters(), kept, strict=True):
                p.copy_(k)
        optimizer.step()
    return model


SAM = (gch.sam(RHO), gch.sgd(0.1, momentum=0.9))
SAM_CHAINS = {
    "plain": gch.chain(*SAM),
    "scaled": gch.chain(gch.amp_scale(1024.0, always=True), *SAM),
    "window of one": gch.chain(
        gch.amp_scale(8.0, always=True), gch.sam(RHO), gch.accumulate(1), gch.sgd(0.1, momentum=0.9)
    ),
    "weighted": gch.chain(gch.sam(RHO), gch.accumulate(1), gch.sgd(0.1, momentum=0.9)),
    "before the scale": gch.chain(gch.sam(RHO), gch.accumulate(1), gch.sgd(0.1, momentum=0.9)),
}


@pytest.mark.parametrize("kind", SAM_CHAINS)
def test_sam_equals_a_loop_by_hand(kind):
    """Ten steps of sam, also under a loss scale and a window, equal SAM written by hand; `.grad` is None after each."""
    model, rows = net(), data(10)
    updater = SAM_CHAINS[kind].bind(model)
    for r in rows:
        calls = []

        def closure(r=r, calls=calls):
            calls.append(weights(model))
            return loss_of(model, r)

        info = updater.update(closure, weight=3.0 if kind == "weighted" else None)
        assert info and len(calls) == 2 and not same(calls[0], calls[1])
        assert info.loss.item() == loss_of_at(calls[0], r)
        assert all(p.grad is None for p in model.parameters())
    assert distance(model, sam_steps(rows)) < 1e-13


def loss_of_at(params, rows):
    return (torch.func.functional_call(net(), params, (rows,)) - rows[:, :2].sin()).square().mean().item()


def test_sam_in_each_micro_batch_of_a_window():
    """sam before accumulate looks uphill of each micro-batch; the window is the mean of what it found."""
    ours, theirs, rows = net(), net(), data(6)
    updater = gch.chain(gch.sam(RHO), gch.accumulate(2), gch.sgd(0.1, momentum=0.9)).bind(ours)
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
    sums = [torch.zeros_like(p) for p in theirs.parameters()]
    for i, r in enumerate(rows):
        updater.update(lambda r=r: loss_of(ours, r))
        kept = weights(theirs)
        grads = torch.autograd.grad(loss_of(theirs, r), list(theirs.parameters()))
        norm = torch.stack([g.norm() for g in grads]).norm()
        with torch.no_grad():
            for p, g in zip(theirs.parameters(), grads, strict=True):
                p += RHO * g / (norm + 1e-12)
        for s, g in zip(sums, torch.autograd.grad(loss_of(theirs, r), list(theirs.parameters())), strict=True):
            s += g / 2
        theirs.load_state_dict(kept)
        if i % 2:
            for p, s in zip(theirs.parameters(), sums, strict=True):
                p.grad = s.clone()
                s.zero_()
            optimizer.step()
    assert distance(ours, theirs) < 1e-13


@pytest.mark.parametrize("micro", [0, 1])
def test_a_closure_that_raises_in_the_second_pass(micro):
    """Weights are restored bit for bit, nothing has advanced, and the error is the closure's."""
    model = net()
    links = (gch.sam(RHO), gch.accumulate(2), gch.amp_scale(8.0, always=True), gch.sgd(0.1, momentum=0.9))
    updater = gch.chain(*links).bind(model)
    rows = data(4)
    for r in rows[: 2 + micro]:
        updater.update(lambda r=r: loss_of(model, r))
    calls = []

    def closure():
        calls.append(1)
        if len(calls) == 2:
            raise BoomError("second pass")
        return loss_of(model, rows[3])

    kept, slots = weights(model), updater.state_dict()["links"]["trace"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.raises(BoomError))
        updater.update(closure)
    assert same(weights(model), kept) and same(updater.state_dict()["links"]["trace"], slots)
    assert all(p.grad is None for p in model.parameters())
    assert (updater.num_updates, updater.num_micro) == (1, 2 + micro)


def test_the_second_pass_runs_under_the_same_autocast():
    """Both calls of the closure run under context(): in the dtype that bind was given."""
    model, dtypes = nn.Linear(3, 2), []
    updater = gch.chain(gch.sam(RHO), gch.sgd(0.1)).bind(model, autocast=torch.bfloat16)

    def closure():
        out = model(torch.ones(4, 3))
        dtypes.append(out.dtype)
        return out.float().square().mean()

    updater.update(closure)
    assert dtypes == [torch.bfloat16] * 2


def test_closures_are_asked_for_and_checked():
    """sam without a closure says how to call; a closure that returns no loss is a sentence."""
    model = net()
    updater = gch.chain(*SAM).bind(model)
    with untouched(model, updater), pytest.raises(RuntimeError, match=r"sam: needs to evaluate the loss again. Call u"):
        updater.update(loss_of(model, data(1)[0]))
    with untouched(model, updater), pytest.raises(TypeError, match="update: loss must be a scalar tensor or a closure"):
        updater.update(lambda: None)


def test_a_plain_chain_takes_a_closure_too():
    """update(closure) without sam calls it once and is update(loss)."""
    ours, theirs, calls = net(), net(), []
    a, b = gch.adam(0.1).bind(ours), gch.adam(0.1).bind(theirs)
    for r in data(3):
        a.update(lambda r=r: (calls.append(1), loss_of(ours, r))[1])
        b.update(loss_of(theirs, r))
    assert same(weights(ours), weights(theirs)) and len(calls) == 3


# averages


def normed():
    """A model with buffers: batch norm, and its counter."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()


def averaged_weights(updater, model):
    with updater.averaged():
        return {n: t.clone() for n, t in model.state_dict().items()}


KINDS = {
    "ema": (gch.average_params(0.75, start=1), {"multi_avg_fn": get_ema_multi_avg_fn(0.75)}, 0, 1),
    "mean": (gch.average_params("mean"), {}, 0, 1),
    "mean every 3 from 4": (gch.average_params("mean", start=4, every=3), {}, 4, 3),
    "ema with buffers": (
        gch.average_params(0.75, start=1, buffers="average"),
        {"multi_avg_fn": get_ema_multi_avg_fn(0.75), "use_buffers": True}, 0, 1,
    ),
    "mean with buffers": (gch.average_params("mean", buffers="average"), {"use_buffers": True}, 0, 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_equals_averaged_model(kind):
    """The average equals torch.optim.swa_utils.AveragedModel's after every update from `start` on."""
    link, options, start, every = KINDS[kind]
    model = normed()
    updater = gch.chain(gch.sgd(0.1, momentum=0.9), link).bind(model)
    theirs = AveragedModel(model, **options)
    for t, rows in enumerate(data(12)):
        updater.update(loss_of(model, rows))
        if t >= start and (t - start) % every == 0:
            theirs.update_parameters(model)
        expected = theirs.module if t >= start else model
        ours = averaged_weights(updater, model)
        for n, p in expected.named_parameters():
            torch.testing.assert_close(ours[n], p.detach(), rtol=1e-12, atol=1e-14)
        if "buffers" in kind:
            for n, b in expected.named_buffers():
                if b.is_floating_point():
                    torch.testing.assert_close(ours[n], b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("mode", ["keep", "copy", "average"])
def test_buffers(mode):
    """keep: the model's own; copy: those of the last averaging; average: averaged floats, counters copied."""
    model = normed()
    updater = gch.chain(gch.sgd(0.1), gch.average_params(0.5, every=2, buffers=mode)).bind(model)
    seen = []
    for rows in data(4):
        updater.update(loss_of(model, rows))
        seen.append({n: b.clone() for n, b in model.named_buffers()})
    found = averaged_weights(updater, model)
    means = [s["1.running_mean"] for s in seen]
    expected = {"keep": means[3], "copy": means[2], "average": (means[0] + means[2]) / 2}[mode]
    torch.testing.assert_close(found["1.running_mean"], expected, rtol=1e-14, atol=0)
    assert found["1.num_batches_tracked"] == (4 if mode == "keep" else 3)
    assert same(dict(model.named_buffers()), seen[3])


def test_before_start_the_average_is_the_live_weights():
    """Until `start` updates are applied, averaged() shows the weights as they are."""
    model = net()
    updater = gch.chain(gch.sgd(0.1), gch.average_params(0.9, start=3)).bind(model)
    for t, rows in enumerate(data(5)):
        updater.update(loss_of(model, rows))
        assert same(averaged_weights(updater, model), weights(model)) == (t < 3)


def test_a_parameter_without_gradient_goes_on_being_averaged():
    """Absent means that the weight stays, not that its average does."""
    model = net()
    updater = gch.chain(gch.sgd(0.1), gch.average_params(0.5)).bind(model)
    updater.update(loss_of(model, data(1)[0]))
    before = averaged_weights(updater, model)["0.weight"]
    updater.update(model[2](torch.ones(2, 4).double()).square().sum())
    after = averaged_weights(updater, model)["0.weight"]
    torch.testing.assert_close(after, (before + model[0].weight.detach()) / 2, rtol=1e-15, atol=0)
    assert not torch.equal(after, before)


def test_swapping_is_undone_bit_for_bit():
    """averaged() restores weights and buffers bit for bit, NaN included, also after an exception."""
    model = normed()
    updater = gch.chain(gch.sgd(0.1), gch.average_params(0.5)).bind(model)
    for rows in data(3):
        updater.update(loss_of(model, rows))
    with torch.no_grad():
        model[0].bias[0] = torch.nan
        model[0].bias[1] = -0.0
    kept = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(BoomError), updater.averaged():
        model(data(1)[0])  # moves the running statistics
        assert not same(dict(model.state_dict()), kept)
        raise BoomError("evaluation")
    assert same(dict(model.state_dict()), kept)


REFUSED_INSIDE = {
    "update": lambda u, m, p: u.update(loss_of(m, data(1)[0])),
    "backward": lambda u, m, p: u.backward(loss_of(m, data(1)[0])),
    "step": lambda u, m, p: u.step(),
    "flush": lambda u, m, p: u.flush(),
    "save": lambda u, m, p: u.save(p),
    "load": lambda u, m, p: u.load(p),
    "state_dict": lambda u, m, p: u.state_dict(),
    "load_state_dict": lambda u, m, p: u.load_state_dict({}),
    "rebind": lambda u, m, p: u.rebind(m),
    "reset": lambda u, m, p: u.reset(),
    "averaged": lambda u, m, p: u.averaged().__enter__(),
    "averages": lambda u, m, p: u.averages(),
    "copy_average_to": lambda u, m, p: u.copy_average_to(net()),
}


@pytest.mark.parametrize("call", REFUSED_INSIDE)
def test_inside_averaged_the_updater_rests(call, tmp_path):
    """Inside averaged() update, step, save, load and their kin raise; outside it all goes on."""
    model = net()
    updater = gch.chain(gch.sgd(0.1), gch.average_params(0.5)).bind(model)
    updater.save(tmp_path / "f")
    name = "averages" if call == "copy_average_to" else call
    with untouched(model, updater), updater.averaged():
        with pytest.raises(RuntimeError, match=f"{name}: not inside .with updater.averaged...: the model has its aver"):
            REFUSED_INSIDE[call](updater, model, tmp_path / "f")
    assert updater.update(loss_of(model, data(1)[0]))


def test_averages_for_a_teacher():
    """averages() has every weight and buffer by name, for functional_call; copy_average_to writes them, buffers too."""
    model, copy = normed(), normed()
    updater = gch.chain(gch.sgd(0.1), gch.average_params(0.5)).bind(model)
    for rows in data(3):
        updater.update(loss_of(model, rows))
    teacher = updater.averages()
    assert list(teacher) == [n for n, _ in model.named_parameters()] + [n for n, _ in model.named_buffers()]
    model.eval()
    out = torch.func.functional_call(model, teacher, (data(1)[0],))
    updater.copy_average_to(copy.eval())
    assert torch.equal(copy(data(1)[0]), out)
    assert torch.equal(copy[1].running_mean, model[1].running_mean)
    with updater.averaged():
        assert torch.equal(model(data(1)[0]), out)
    with pytest.raises(ValueError, match=r"copy_average_to: the module must have the structure of the bound one, but"):
        updater.copy_average_to(nn.Linear(3, 4))


def test_several_averages_are_named():
    """With two averages one is named; with none the sentence says what to write."""
    model = net()
    updater = gch.chain(gch.sgd(0.1), ("fast", gch.average_params(0.0)), ("slow", gch.average_params(1.0))).bind(model)
    start = weights(model)
    updater.update(loss_of(model, data(1)[0]))
    with pytest.raises(KeyError, match=r"averaged: there are several averages, name one of: fast, slow."):
        updater.averaged()
    with updater.averaged("slow"):
        assert same(weights(model), start)
    with pytest.raises(KeyError, match="averaged: there is no 'swift'"):
        updater.averages("swift")
    with pytest.raises(KeyError, match=r"averaged: no link averages the weights. End the chain with average_params\(0"):
        gch.sgd(0.1).bind(net()).averaged()


def test_a_graph_that_holds_old_averages_is_stale():
    """A teacher's graph kept across an update raises in backward, as one over weights would; a held one does not."""
    model = nn.Linear(3, 2).double()
    rows = torch.ones(4, 3).double()
    updater = gch.chain(gch.accumulate(2), gch.sgd(0.1), gch.average_params(0.5)).bind(model)
    teacher = updater.averages()
    inputs = rows.clone().requires_grad_()
    updater.update(model(rows).square().mean())  # held: the averages are as they were
    torch.func.functional_call(model, teacher, (inputs,)).square().sum().backward()
    kept = torch.func.functional_call(model, teacher, (inputs,)).square().sum()
    assert updater.update(model(rows).square().mean())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()


class Expanded(nn.Module):
    """A buffer of which several elements are one in memory: torch refuses to write to it."""

    def __init__(self, shape):
        super().__init__()
        self.body = nn.Linear(3, 2)
        self.register_buffer("one", torch.full((1, 1), 2.0).expand(shape))
        self.register_buffer("rows", torch.arange(3.0)[:, None].expand(3, 4))
        self.register_buffer("plain", torch.zeros(2))

    def forward(self, x):
        return self.body(x) * self.one.sum()


def stored(model):
    return {n: t.clone() for n, t in sorted(model.state_dict().items())}


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("shape", [(3, 5), (1, 4), (0, 4)], ids=str)
@pytest.mark.parametrize("buffers", ["keep", "copy", "average"])
def test_an_expanded_buffer_is_swapped_in_and_out(buffers, shape, raises):
    """By the memory it has, once; and the updater goes on."""
    model = Expanded(shape)
    updater = gch.chain(gch.sgd(0.1), gch.average_params(0.5, buffers=buffers)).bind(model)
    x = torch.ones(4, 3)
    updater.update(model(x).square().mean())
    with torch.no_grad():
        for buffer in (model.one.as_strided((1,), (1,)), model.rows.as_strided((3,), (1,)), model.plain):
            buffer += 1.0
    updater.update(model(x).square().mean())
    before = stored(model)
    expected = {n: t.clone() for n, t in sorted(updater.averages().items())}
    with contextlib.suppress(BoomError), updater.averaged():
        assert same(stored(model), expected)
        if raises:
            raise BoomError
    assert same(stored(model), before)
    updater.update(model(x).square().mean())
    assert updater.num_updates == 3
    other = Expanded(shape)
    updater.copy_average_to(other)
    assert same(stored(other), dict(sorted(updater.averages().items())))


def test_what_does_not_fit_into_an_expanded_buffer_is_refused_before_anything_is_copied():
    """Elements that are one in the module's memory, and differ in the average."""
    model, other = Expanded((3, 5)), Expanded((3, 5))
    model.rows = torch.arange(12.0).reshape(3, 4)
    updater = gch.chain(gch.sgd(0.1), gch.average_params(0.5)).bind(model)
    updater.update(model(torch.ones(4, 3)).square().mean())
    before = stored(other)
    with pytest.raises(ValueError, match=r"copy_average_to: .* but 'rows' has several elements in one place"):
        updater.copy_average_to(other)
    assert same(stored(other), before)
