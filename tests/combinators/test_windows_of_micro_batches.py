"""Windows: what accumulate sums, when it lets the chain go on, and what closes it early."""

import pytest
import torch
from little import data, distance, loss_of, net, same, untouched, weights
from torch import nn

import gradchain as gch


def sgd(k, **options):
    return gch.chain(gch.accumulate(k, **options), gch.sgd(0.1, momentum=0.9))


def mean_steps(groups, weigh=None):
    """torch.optim.SGD with one step for each group of micro-batches, of their (weighted) mean."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for group in groups:
        share = [1.0] * len(group) if weigh is None else weigh(group)
        optimizer.zero_grad()
        (sum(s * loss_of(model, r) for s, r in zip(share, group, strict=True)) / sum(share)).backward()
        optimizer.step()
    return model


def tokens(rows):
    """A weight that differs from micro-batch to micro-batch."""
    return 1.0 + rows.abs().sum().item()


@pytest.mark.parametrize("tx", [sgd(4), sgd(4, dtype=torch.float64), gch.chain(gch.skip_nonfinite(), sgd(4))])
def test_mean_over_full_windows(tx):
    """Micro-batches hold the chain until the window is full; then it is one step of the mean."""
    model, rows = net(), data(8)
    updater = tx.bind(model)
    reasons = [updater.update(loss_of(model, r)).reason for r in rows]
    assert reasons == (["window"] * 3 + ["applied"]) * 2
    assert distance(model, mean_steps([rows[:4], rows[4:]])) < 1e-14
    assert (updater.num_updates, updater.num_micro, updater.num_skipped) == (2, 8, 0)


@pytest.mark.parametrize("how", ["flush", "last", "context", "step", "closure"])
@pytest.mark.parametrize("options", [{}, {"dtype": torch.float64}])
def test_a_part_filled_window_is_the_mean_of_what_it_has(how, options):
    """3 of 4 micro-batches, closed by flush(), last=True or context(last=True): the mean of 3; the next is full."""
    model, rows = net(), data(7)
    updater = sgd(4, **options).bind(model)
    for r in rows[:2]:
        assert not updater.update(loss_of(model, r))
    if how == "flush":
        updater.update(loss_of(model, rows[2]))
        info = updater.flush()
    elif how == "last":
        info = updater.update(loss_of(model, rows[2]), last=True)
    elif how == "context":
        with updater.context(last=True):
            loss = loss_of(model, rows[2])
        info = updater.update(loss)
    elif how == "step":
        updater.backward(loss_of(model, rows[2]))
        info = updater.step(last=True)
    else:
        info = updater.update(lambda: loss_of(model, rows[2]), last=True)
    assert info and info.reason == "applied"
    assert distance(model, mean_steps([rows[:3]])) < 1e-14
    reasons = [updater.update(loss_of(model, r)).reason for r in rows[3:]]
    assert reasons == ["window"] * 3 + ["applied"]
    assert distance(model, mean_steps([rows[:3], rows[3:]])) < 1e-14


def test_flush_when_nothing_is_open():
    """flush() with no open window is falsy and changes nothing; before any update, after one, and without windows."""
    model = net()
    updater = sgd(2).bind(model)
    with untouched(model, updater):
        assert not updater.flush()
    for r in data(2):
        updater.update(loss_of(model, r))
    with untouched(model, updater):
        info = updater.flush()
        assert not info and info.detail == "no window is open"
    plain = gch.sgd(0.1).bind(net())
    assert not plain.flush()


def test_flush_refuses_while_a_backward_waits():
    """flush() between backward and step() would lose that micro-batch: a sentence."""
    model = net()
    updater = sgd(3).bind(model)
    updater.backward(loss_of(model, data(1)[0]))
    with pytest.raises(RuntimeError, match=r"flush: a backward is waiting for its step.*step\(last=True\)"):
        updater.flush()


def test_a_failing_flush_leaves_the_window_open():
    """flush() that raises in a link: weights, state and window stay, and the window is not marked as its last."""
    lit = [False]

    def fuse(g, w):
        if lit[0]:
            raise ArithmeticError("link")
        return g

    model, rows = net(), data(3)
    updater = gch.chain(gch.accumulate(3), gch.stateless(fuse), gch.sgd(0.1, momentum=0.9)).bind(model)
    updater.update(loss_of(model, rows[0]))
    lit[0] = True
    with untouched(model, updater), pytest.raises(ArithmeticError):
        updater.flush()
    lit[0] = False
    assert [updater.update(loss_of(model, r)).reason for r in rows[1:]] == ["window", "applied"]
    assert distance(model, mean_steps([rows])) < 1e-14


@pytest.mark.parametrize("options", [{}, {"dtype": torch.float64}])
@pytest.mark.parametrize("before", [[], [gch.skip_nonfinite()]])
def test_weights_make_a_weighted_mean(options, before):
    """update(loss, weight=n): Σ n g / Σ n over the window, full or flushed; info.loss stays that micro-batch's."""
    model, rows = net(), data(5)
    updater = gch.chain(*before, sgd(3, **options)).bind(model)
    for r in rows:
        loss = loss_of(model, r)
        info = updater.update(loss, weight=tokens(r))
        assert info.loss.item() == loss.item()
    updater.flush()

    def weigh(group):
        return [tokens(r) for r in group]

    assert distance(model, mean_steps([rows[:3], rows[3:]], weigh)) < 1e-13


def test_weights_and_none_do_not_mix():
    """A window in which only some micro-batches have a weight is refused before backward; it stays open."""
    sentence = "accumulate: in one window all micro-batches must have a weight, or none. Pass it to each."
    for first, second in ((None, 2.0), (2.0, None)):
        model, rows = net(), data(2)
        updater = sgd(2).bind(model)
        updater.update(loss_of(model, rows[0]), weight=first)
        with untouched(model, updater), pytest.raises(ValueError, match=sentence):
            updater.update(loss_of(model, rows[1]), weight=second)
        assert updater.update(loss_of(model, rows[1]), weight=first)
        assert distance(model, mean_steps([rows])) < 1e-14


@pytest.mark.parametrize("weight", [-1e-300, -1.0, float("nan"), float("inf"), True, "3"])
def test_bad_weights_are_refused(weight):
    """A weight is a finite number of at least 0."""
    model = net()
    updater = sgd(2).bind(model)
    sentence = "update: weight must be a finite number of at least 0, "
    with untouched(model, updater), pytest.raises(ValueError, match=sentence):
        updater.update(loss_of(model, data(1)[0]), weight=weight)


def test_one_weight_for_the_backwards_of_a_micro_batch():
    """Several backwards before one step are one micro-batch, with one weight."""
    model, rows = net(), data(2)
    updater = sgd(2).bind(model)
    updater.backward(loss_of(model, rows[0]), weight=2.0)
    with pytest.raises(ValueError, match=r"weight must be that of the micro-batch's first backward, 2.0, got None"):
        updater.backward(loss_of(model, rows[1]))


@pytest.mark.parametrize("how", ["full", "flushed", "true"])
def test_sum(how):
    """reduce="sum" adds the micro-batches, also where the window is flushed and where gradients are true ones."""
    ours, theirs, rows = net(), net(), data(4)
    updater, optimizer = sgd(4, reduce="sum").bind(ours), torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
    for r in rows[: 3 if how == "flushed" else 4]:
        if how == "true":
            loss_of(ours, r).backward()
            updater.step()
        else:
            updater.update(loss_of(ours, r))
        loss_of(theirs, r).backward()
    updater.flush()
    optimizer.step()
    assert distance(ours, theirs) < 1e-14


def test_loss_of_the_window():
    """Links after the window see the loss reduced as the gradients are: mean, sum, weighted mean, and flushed."""
    seen = []

    def look(g, w, ctx):
        seen.append(float(ctx.loss))
        return g

    for options, weigh, count in (({}, None, 3), ({"reduce": "sum"}, None, 3), ({}, tokens, 3), ({}, None, 2)):
        model, rows = net(), data(count)
        updater = gch.chain(gch.accumulate(3, **options), gch.stateless(look), gch.sgd(0.1)).bind(model)
        losses = [loss_of(model, r).item() for r in rows]
        for r in rows:
            updater.update(loss_of(model, r), weight=None if weigh is None else weigh(r))
        updater.flush()
        share = [1.0 if weigh is None else weigh(r) for r in rows]
        total = sum(s * x for s, x in zip(share, losses, strict=True))
        expected = total if options else total / sum(share)
        assert seen.pop() == pytest.approx(expected, rel=1e-13)


def test_float32_buffer_for_bfloat16_gradients():
    """dtype=float32 sums bfloat16 gradients in float32: nearer to the exact sum than `.grad` is, and saved so."""
    start = net(dtype=torch.bfloat16)
    rows = data(64, dtype=torch.bfloat16)
    exact = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in start.named_parameters()}
    for r in rows:
        start.zero_grad()
        (loss_of(start, r) / 64).backward()
        for n, p in start.named_parameters():
            exact[n] += p.grad.double()
    errors = {}
    for dtype in (None, torch.float32):
        model, seen = net(dtype=torch.bfloat16), {}

        def look(g, w, seen=seen):
            seen.update({n: g[n].double() for n in g})
            return g

        updater = gch.chain(gch.accumulate(64, dtype=dtype), gch.stateless(look), gch.sgd(0.1)).bind(model)
        for i, r in enumerate(rows):
            updater.update(loss_of(model, r))
            if i == 3:
                window = updater.state_dict()["links"]["accumulate"]["window"]
                assert {w.dtype for w in window.values()} == {dtype or torch.bfloat16}
        errors[dtype] = max((seen[n] - exact[n]).abs().max().item() for n in exact)
    assert errors[torch.float32] < 1e-6 < 1e-4 < errors[None]


def test_length_is_fixed_when_the_window_opens():
    """A schedule of `every`, or an override of it, acts on the next window; each is the mean over its own length."""
    model, rows = net(), data(9)
    updater = sgd(lambda step: [2, 3, 1][min(step, 2)]).bind(model)
    reasons = []
    for i, r in enumerate(rows):
        if i == 6:  # update 3 opened with 1; the override comes before a window
            updater.override("every", 3)
        reasons.append(updater.update(loss_of(model, r)).reason == "applied")
        if i == 6:
            updater.override("every", 1)
    assert reasons == [False, True, False, False, True, True, False, False, True]
    expected = mean_steps([rows[:2], rows[2:5], rows[5:6], rows[6:9]])
    assert distance(model, expected) < 1e-14


def test_a_schedule_of_the_length_that_is_no_integer():
    """every=2.5 from a schedule is a sentence; nothing changes."""
    model = net()
    updater = sgd(lambda step: 2.5).bind(model)
    sentence = "accumulate: every must be an integer in .1, inf., got 2.5. It came from"
    with untouched(model, updater), pytest.raises(ValueError, match=sentence):
        updater.update(loss_of(model, data(1)[0]))


class Spiked(nn.Module):
    """A model whose gradients are infinite in chosen micro-batches."""

    def __init__(self):
        super().__init__()
        self.inner = net()
        self.spike = False

    def loss(self, rows):
        loss = loss_of(self.inner, rows)
        return loss * torch.inf if self.spike else loss


def scaled(*order):
    return gch.chain(*order, gch.sgd(0.1, momentum=0.9))


def test_overflow_before_and_after_the_window():
    """amp_scale before accumulate drops the micro-batch that overflowed; after it the whole window."""
    rows = data(8)
    amp = gch.amp_scale(64.0, growth_interval=3, always=True)
    expected = {
        "after": (["window", "window", "overflow", "window", "window", "applied"], [rows[3:6]], 32.0),
        "before": (["window", "overflow", "window", "applied", "window", "window"], [[rows[0], *rows[2:4]]], 32.0),
    }
    for order, (reasons, groups, scale) in expected.items():
        model = Spiked()
        links = (gch.accumulate(3), amp) if order == "after" else (amp, gch.accumulate(3))
        updater = scaled(*links).bind(model)
        found = []
        for i, r in enumerate(rows[:6]):
            model.spike = i == 1
            found.append(updater.update(model.loss(r)).reason)
        assert found == reasons
        assert distance(model.inner, mean_steps(groups)) < 1e-13
        state = updater.state_dict()["links"]["amp_scale"]
        assert state["scale"] == (scale if order == "after" else 64.0)  # halved; before: grown again
        assert updater.num_skipped == 1


def test_window_in_one_branch():
    """Adam under accumulate(2) in one branch of a partition, plain SGD in the other: each as if it were alone."""
    ours, theirs, rows = net(), net(), data(7)
    updater = gch.partition(
        ("adam", gch.named("0.*"), gch.chain(gch.accumulate(2), gch.adam(0.1))),
        (gch.rest, gch.sgd(0.1, momentum=0.9)),
    ).bind(ours)
    adam = torch.optim.Adam(theirs[0].parameters(), 0.1)
    sgd = torch.optim.SGD(theirs[2].parameters(), 0.1, momentum=0.9)
    for i, r in enumerate(rows):
        info = updater.update(loss_of(ours, r))
        assert info.applied
        for p in theirs[2].parameters():
            p.grad = None
        kept = [None if p.grad is None else p.grad.clone() for p in theirs[0].parameters()]
        for p in theirs[0].parameters():
            p.grad = None
        loss_of(theirs, r).backward()
        for p, k in zip(theirs[0].parameters(), kept, strict=True):
            p.grad = p.grad / 2 if k is None else p.grad / 2 + k
        if i % 2:
            adam.step()
            adam.zero_grad()
        sgd.step()
        assert distance(ours, theirs) < 1e-13
    assert updater.flush()  # the seventh micro-batch of the branch
    for p in theirs[0].parameters():
        p.grad *= 2
    adam.step()
    assert distance(ours, theirs) < 1e-13
    assert not updater.flush()


def test_a_window_of_micro_batches_that_reach_different_parameters():
    """A parameter that only one micro-batch reaches has the mean over the window all the same."""
    ours, theirs, rows = net(), net(), data(2)
    updater, optimizer = sgd(2).bind(ours), torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
    for model in (ours, theirs):
        losses = [loss_of(model, rows[0]), model[2](torch.ones(5, 4).double()).square().mean()]
        if model is ours:
            for loss in losses:
                updater.update(loss)
        else:
            (sum(losses) / 2).backward()
            optimizer.step()
    assert distance(ours, theirs) < 1e-15


# context


def test_context_changes_nothing():
    """Nesting context, leaving it by an exception, entering twice, and evaluating in it are harmless."""
    plain, disturbed = net(), net()
    a, b = sgd(3).bind(plain), sgd(3).bind(disturbed)
    for r in data(7):
        with a.context():
            loss = loss_of(plain, r)
        a.update(loss)
        with untouched(disturbed, b):
            with pytest.raises(ArithmeticError), b.context(last=True):
                loss_of(disturbed, r)
                raise ArithmeticError("in the forward")
            with b.context(), b.context():
                loss = loss_of(disturbed, r)
            with b.context(), torch.no_grad():
                loss_of(disturbed, r)
        b.update(loss)
    assert same(weights(plain), weights(disturbed))
    assert (a.num_updates, a.num_micro) == (b.num_updates, b.num_micro) == (2, 7)


def test_a_closure_that_raises_does_not_close_the_window():
    """update(closure, last=True) that fails in the closure has not marked the window as closing."""
    model, rows = net(), data(2)
    updater = sgd(3).bind(model)

    def closure():
        raise ArithmeticError("forward")

    with untouched(model, updater), pytest.raises(ArithmeticError):
        updater.update(closure, last=True)
    assert updater.update(loss_of(model, rows[0])).reason == "window"


def test_autocast_of_the_context():
    """bind(autocast=) is what context() computes in; context(autocast=) overrides it once; None leaves all."""
    model = nn.Linear(3, 2)
    x = torch.ones(1, 3)
    bound = gch.sgd(0.1).bind(model, autocast=torch.bfloat16)
    with bound.context():
        assert model(x).dtype == torch.bfloat16
        with bound.context(autocast=False):
            assert model(x).dtype == torch.float32
        assert model(x).dtype == torch.bfloat16
    assert model(x).dtype == torch.float32
    plain = gch.sgd(0.1).bind(model)
    with plain.context():
        assert model(x).dtype == torch.float32
    with plain.context(autocast=torch.bfloat16), plain.context():
        assert model(x).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16), plain.context():
        assert model(x).dtype == torch.bfloat16  # the user's own
    with pytest.raises(TypeError, match=r"context: autocast must be a torch.dtype, False or None, got 'bf16'."):
        with plain.context(autocast="bf16"):
            pass


def test_bind_autocast_is_a_dtype():
    """bind(autocast="float16") is a sentence."""
    with pytest.raises(TypeError, match=r"bind: autocast must be a torch.dtype or None, got 'float16'."):
        gch.sgd(0.1).bind(net(), autocast="float16")


@pytest.mark.parametrize("every", [4, lambda step: 3 + step % 2], ids=["4", "a schedule"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_a_micro_batch_that_is_only_added_leaves_what_the_links_leave(reduce, weighted, every):
    """In an open window no kernel and no other link is asked: state and infos are those of a run in which all are."""
    models = net(), net()
    tx = gch.chain(gch.accumulate(every, reduce=reduce), gch.clip_by_norm(0.5), gch.adam(0.1))
    short, whole = (tx.bind(model) for model in models)
    for i, row in enumerate(data(13)):
        weight = 0.5 + i % 3 if weighted else None
        one = short.update(loss_of(models[0], row), weight=weight)
        other = whole.update(loss_of(models[1], row), weight=weight, keep_grads=True)
        for parameter in models[1].parameters():
            parameter.grad = None
        assert (one.reason, one.step, one.loss, one.detail) == (other.reason, other.step, other.loss, other.detail)
        assert same(short.state_dict()["links"], whole.state_dict()["links"])
        assert short.clocks == whole.clocks
    assert same(weights(models[0]), weights(models[1]))
    passed = short._bound.engine.num_counted
    assert passed >= 5 and whole._bound.engine.num_counted == 0
    assert f"{passed} micro-batches were only added to their window: no kernel ran" in short.explain()


class penalty(gch.Transform):
    """A link that adds to the loss, which no factor does."""

    def scale_loss(self, loss, state, ctx):
        assert isinstance(loss, torch.Tensor)
        return 3.0 * loss + 1.0

    def update(self, g, state, ctx):
        return g / 3.0, state


@pytest.mark.parametrize("links", [(), (gch.accumulate(2),), (gch.amp_scale(always=True),)])
def test_a_link_of_the_users_gets_the_loss_itself(links):
    """Links that only multiply it are one product; one that does more is called with the tensor."""
    models = net(), net()
    mine = gch.chain(*links, penalty(), gch.sgd(0.1)).bind(models[0])
    plain = gch.chain(*links, gch.sgd(0.1)).bind(models[1])
    for row in data(4):
        mine.update(loss_of(models[0], row))
        plain.update(loss_of(models[1], row))
    assert distance(*models) < 1e-12
