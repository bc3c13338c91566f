"""from_torch(in_place=True): the class over the model's own weights, with the bits it has over copies."""

from __future__ import annotations

import copy
import functools
import pathlib
import pickle
import random
import sys

import packages
import pytest
import torch
from packages import CLOSURES, REFUSED, SWITCHED, class_of, our_step, same
from torch import nn

import gradchain as gch
from gradchain.core import _torch
from gradchain.core.state import State
from gradchain.engine.engine import Engine

TABLE = pathlib.Path(__file__).parents[2] / "docs" / "from_torch.md"
ALL = [name for name in packages.written(TABLE.read_text()) if name not in REFUSED]
RUN = [name for name in ALL if name not in CLOSURES | SWITCHED]
STEPS, LOADED = 12, 6
pytestmark = pytest.mark.filterwarnings("ignore")
TORN = r"an update was broken off inside a class that works in place \(in_place=True\): some weights may have theirs"


@functools.cache
def way_of(name):
    return packages.way_of(name, class_of(name))


def link(name, in_place):
    """The class with its learning rate on a schedule, where it has a number there."""
    made = packages.link(name, class_of(name))
    given, lr = dict(made.arguments), made.hypers.get("lr")
    if lr is not None and isinstance(lr.value, (int, float)):
        given["lr"] = gch.linear(lr.value, lr.value / 2, 9)
    return gch.from_torch(made.optimizer, in_place=in_place, **given)


def bound(name, in_place, model):
    return gch.chain(gch.accumulate(2), gch.clip_by_norm(0.05), link(name, in_place)).bind(model)


def equal(a, b):
    """Whether two plain states have the same bits."""
    if isinstance(a, torch.Tensor):
        inner = getattr(a, "__tensor_flatten__", None)  # torchao's states compare nothing themselves
        names = [] if inner is None else inner()[0]
        return all(equal(getattr(a, n), getattr(b, n)) for n in names) if names else torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b or (a != a and b != b)


def links(updater):
    return updater.state_dict()["links"]


@pytest.mark.parametrize("name", RUN)
def test_it_has_the_bits_of_the_form_that_copies_and_resumes_with_them(name, tmp_path):
    """Twelve updates with a window, a clip and a schedule; in the middle a file, taken up by both forms."""
    way = way_of(name)
    model, twin, resumed, other = (way.net() for _ in range(4))
    updater, copies = bound(name, True, model), bound(name, False, twin)
    again, across = bound(name, True, resumed), bound(name, False, other)
    batches = way.batches(2 * STEPS)
    for at, batch in enumerate(batches):
        if at == 2 * LOADED:
            updater.save(tmp_path / "run.pt")
            again.load(tmp_path / "run.pt")
            across.load(tmp_path / "run.pt")
        our_step(updater, model, batch, False)
        our_step(copies, twin, batch, False)
        assert same(model, twin), at
        if at >= 2 * LOADED:
            our_step(again, resumed, batch, False)
            our_step(across, other, batch, False)
            assert same(model, resumed) and same(model, other), at
    assert not same(model, way.net())
    assert equal(links(updater), links(copies)) and equal(links(updater), links(across))


@pytest.mark.parametrize("name", sorted(CLOSURES | SWITCHED))
def test_a_class_with_a_closure_or_two_sets_of_weights_is_refused(name):
    made, short = packages.link(name, class_of(name)), name.rpartition(".")[2]
    with pytest.raises(ValueError, match=rf"^from_torch: {short}: in_place must be False for a class .*, got True: "):
        gch.from_torch(made.optimizer, in_place=True, **dict(made.arguments)).bind(way_of(name).net())


# where in a chain


class own_average(gch.Transform):
    descends = False
    role = "average"

    def update(self, g, state, ctx):
        ctx.record("norm", ctx.new_params(g).norm())
        return g, state


class mine(gch.Transform):
    descends = False
    inner: gch.Transform

    def parts(self, index):
        return [("held", self.inner, index)]

    def update(self, g, state, ctx):
        out, inner = self.inner.update(g, state.links["held"], ctx.enter("held"))
        return out, state.holding({"held": inner})


OURS = gch.from_torch("SGD", lr=0.1, in_place=True)
PLACES = {
    "project": lambda: gch.chain(OURS, gch.project(torch.abs)),
    "mask": lambda: gch.chain(gch.masked(OURS, gch.ndim(2)), gch.freeze(gch.bias)),
    "branch": lambda: gch.partition((gch.ndim(2), OURS), (gch.rest, gch.sgd(0.1))),
    "gate": lambda: gch.chain(OURS, gch.skip_nonfinite()),
    "clip": lambda: gch.chain(OURS, gch.clip_by_norm(1.0)),
    "decay": lambda: gch.chain(OURS, gch.add_decayed_weights(0.1)),
    "twice": lambda: gch.chain(OURS, OURS),
    "own average": lambda: gch.chain(OURS, own_average()),
    "project, average": lambda: gch.chain(OURS, gch.project(torch.abs), gch.average_params(0.9)),
    "held": lambda: gch.chain(mine(OURS)),
    "scale": lambda: gch.chain(OURS, gch.scale(1.0)),
}


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def batches(n=STEPS):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 5, generator=generator) for _ in range(n)]


def loss_of(model, x):
    return model(x).square().mean() + model(x).sum()


def run(updater, model, n=STEPS, start=0):
    for x in batches(start + n)[start:]:
        updater.update(loss_of(model, x))


@pytest.mark.parametrize("place", PLACES)
def test_it_is_last_in_the_outermost_chain(place):
    with pytest.raises(ValueError, match=r"^chain: .*(from_torch|held)"):
        PLACES[place]().bind(small())


def test_in_backward_is_refused():
    with pytest.raises(ValueError, match=r"^bind: in_backward=True updates one parameter at a time, and from_torch"):
        OURS.bind(small(), in_backward=True)


def test_the_sentence_of_a_wrong_place():
    with pytest.raises(
        ValueError, match=r"must be last in the outermost chain.*project comes after it.*leave in_place"
    ):
        gch.chain(OURS, gch.project(torch.abs)).bind(small())


def test_outside_an_updater_nothing_is_written():
    params = gch.Tensors.of({"w": torch.ones(2)})
    link = gch.chain(OURS)
    out, _ = link.update(params, link.init(params), gch.Context(params, step=0))
    with pytest.raises(RuntimeError, match=r"^apply_updates: in_place=True writes the weights of a bound model"):
        gch.apply_updates(params, out)
    assert torch.equal(params["w"], torch.ones(2))


# what stands around it

AROUND = {
    "nothing": lambda link: [link],
    "clip": lambda link: [gch.clip_by_norm(0.1), link],
    "window": lambda link: [gch.accumulate(3), link],
    "momentum of what reads the weights": lambda link: [gch.add_decayed_weights(0.1), gch.trace(0.9), link],
    "scale": lambda link: [gch.scale_by_adam(), link],
    "clip of each": lambda link: [gch.clip_by_norm(0.1, per="tensor"), link],
    "average": lambda link: [link, gch.average_params(0.9)],
    "late average": lambda link: [gch.trace(0.9), link, gch.average_params("mean", start=4, every=2)],
    "two averages": lambda link: [link, ("a", gch.average_params(0.9)), ("b", gch.average_params(0.5))],
    "gate": lambda link: [gch.amp_scale(), gch.skip_nonfinite(), link],
    "sam": lambda link: [gch.sam(0.1), link],
    "freeze": lambda link: [gch.freeze(gch.named("0.*")), link],
}
CLASSES = {"SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}, "AdamW": {"lr": 0.01}, "Muon": {"lr": 0.01}}
EXECUTORS = ("native", "blocks", "reference")


@pytest.fixture
def executed(request, monkeypatch):
    if request.param == "reference":
        monkeypatch.setattr(Engine, "step", lambda self, *args, **kwargs: None)
    else:
        monkeypatch.setenv("GRADCHAIN_EXECUTORS", request.param)
    return request.param


@pytest.mark.parametrize("executed", EXECUTORS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("name", CLASSES)
def test_links_around_it_see_what_they_see_around_copies(name, around, dtype, executed):
    """Weights, averages and every state have the same bits after each update."""

    def made(in_place):
        torch.manual_seed(0)
        bias = name != "Muon"
        model = nn.Sequential(nn.Linear(5, 6, bias=bias), nn.Tanh(), nn.Linear(6, 3, bias=bias)).to(dtype)
        return model, gch.chain(*AROUND[around](gch.from_torch(name, in_place=in_place, **CLASSES[name]))).bind(model)

    (model, updater), (twin, copies) = made(True), made(False)
    if executed == "reference" and "average" in around:
        with pytest.raises(RuntimeError, match=r"computed after that has written, which only kernels can"):
            updater.update(loss_of(model, batches(1)[0].to(dtype)))
        assert same(model, twin) and updater.num_updates == 0
        return
    for x in batches():
        x = x.to(dtype)
        for m, u in ((model, updater), (twin, copies)):
            u.update(functools.partial(loss_of, m, x) if around == "sam" else loss_of(m, x))
        assert same(model, twin)
        assert equal(links(updater), links(copies))
    assert updater.num_updates == copies.num_updates > 0


# once


class Counting(torch.optim.SGD):
    calls = 0

    def step(self, closure=None):
        type(self).calls += 1
        return super().step(closure)


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setattr(Counting, "calls", 0)
    return Counting


@pytest.mark.parametrize("executed", EXECUTORS, indirect=True)
def test_the_class_steps_once_for_each_update_and_never_where_a_gate_holds(counting, executed):
    model = small()
    updater = gch.chain(gch.accumulate(2), gch.skip_nonfinite(), gch.from_torch(counting, lr=0.1, in_place=True)).bind(
        model
    )
    bad = {1, 6, 7}
    for at, x in enumerate(batches(12)):
        before = copy.deepcopy(model)
        calls = counting.calls
        info = updater.update(loss_of(model, x) * (float("inf") if at in bad else 1.0))
        assert counting.calls - calls == int(info.applied)
        assert same(model, before) is not info.applied
    assert counting.calls == updater.num_updates == 4 and updater.num_skipped == 2


def test_a_step_that_is_recorded_and_then_run_by_the_reference_steps_once(counting, monkeypatch):
    """A plan that cannot be made after the chain was recorded."""
    from gradchain.engine.executors.base import NoKernel

    model, twin = small(), small()
    updater = gch.chain(gch.trace(0.9), gch.from_torch(counting, lr=0.1, in_place=True)).bind(model)
    copies = gch.chain(gch.trace(0.9), gch.from_torch("SGD", lr=0.1)).bind(twin)
    whole = Engine._prepared
    for u, m in ((updater, model), (copies, twin)):
        every = iter(range(100))

        def failing(self, *args, every=every, **kwargs):
            done = whole(self, *args, **kwargs)
            if next(every) % 3 == 1:
                raise NoKernel("there is none")
            return done

        with monkeypatch.context() as patched:
            patched.setattr(Engine, "_prepared", failing)
            run(u, m, 9)
    assert counting.calls == 9 and same(model, twin) and equal(links(updater), links(copies))


def test_an_overflow_of_amp_holds_it(counting):
    model = small()
    tx = gch.chain(gch.amp_scale(), gch.from_torch(counting, lr=0.1, in_place=True))
    updater = tx.bind(model, autocast=torch.float16)
    before = copy.deepcopy(model)
    assert not updater.update(loss_of(model, batches(1)[0]) * float("inf"))
    assert counting.calls == 0 and same(model, before) and updater.num_skipped == 1
    assert updater.update(loss_of(model, batches(1)[0])) and counting.calls == 1


@pytest.mark.parametrize("executed", EXECUTORS, indirect=True)
def test_an_update_that_is_broken_off_after_the_class_is_finished_without_it(counting, executed, monkeypatch):
    """What is left of the update is done at once: the class has stepped, and does not again."""
    model, twin = small(), small()
    updater = gch.from_torch(counting, lr=0.1, in_place=True).bind(model)
    copies = gch.from_torch("SGD", lr=0.1).bind(twin)
    run(updater, model, 2)
    run(copies, twin, 3)
    whole, broken = _torch.increment_version, []

    def breaking(tensors):
        if not broken:
            broken.append(True)
            raise KeyboardInterrupt
        whole(tensors)

    monkeypatch.setattr(_torch, "increment_version", breaking)
    with pytest.raises(KeyboardInterrupt):
        run(updater, model, 1, start=2)
    assert broken and counting.calls == updater.num_updates == 3 and same(model, twin)
    run(updater, model, 2, start=3)
    run(copies, twin, 2, start=3)
    assert counting.calls == 5 and same(model, twin) and equal(links(updater), links(copies))


# what it is lent


class WritesGradients(torch.optim.SGD):
    """Adds the decay into the gradient, as many do."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.mul_(2.0).add_(p, alpha=0.1)
                    p.add_(p.grad, alpha=-group["lr"])


class SwapsData(torch.optim.SGD):
    """Puts new memory where its weights are."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p.data - group["lr"] * p.grad


class KeepsGradients(torch.optim.SGD):
    """Remembers the gradient itself."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad + self.state[p].get("last", 0.0), alpha=-group["lr"])
                self.state[p]["last"] = p.grad


class RaisesItsRate(torch.optim.SGD):
    """Changes a field of its groups and keeps a number on itself."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] = group["lr"] * 1.1
            group["weight_decay"] = group["weight_decay"] + 0.01
        self.seen = getattr(self, "seen", 0) + 1
        return super().step(closure)


ODD = (WritesGradients, SwapsData, KeepsGradients, RaisesItsRate)


@pytest.mark.parametrize("executed", EXECUTORS, indirect=True)
@pytest.mark.parametrize("cls", ODD)
@pytest.mark.parametrize("before", ["nothing", "trace", "momentum that is the update"])
def test_a_class_may_do_what_it_likes_with_gradients_and_its_own(cls, before, executed, tmp_path):
    def made(in_place):
        model = small()
        front = {"nothing": [], "trace": [gch.trace(0.9)], "momentum that is the update": [remembers()]}[before]
        return model, gch.chain(*front, gch.from_torch(cls, lr=0.1, in_place=in_place)).bind(model)

    (model, updater), (twin, copies), (third, again) = made(True), made(False), made(True)
    for at, x in enumerate(batches()):
        for m, u in ((model, updater), (twin, copies)):
            u.update(loss_of(m, x), keep_grads=at % 2 == 0)
        if at % 2 == 0:
            grads = [[p.grad for p in m.parameters()] for m in (model, twin)]
            assert all(map(torch.equal, *grads))
        assert same(model, twin)
        assert equal(links(updater), links(copies))
        if at == 5:
            updater.save(tmp_path / "run.pt")
            again.load(tmp_path / "run.pt")
        if at > 5:
            again.update(loss_of(third, x))
            assert same(model, third)


class LastState(State):
    last: gch.Tensors


class remembers(gch.Transform):
    """The updates of the last time; they are its state, and go on as they are."""

    descends = False

    def init(self, params):
        return LastState(params.zeros_like())

    def update(self, g, state, ctx):
        return state.last, LastState(g)


def test_gradients_that_are_given_stay_as_they_are():
    model = small()
    updater = gch.from_torch(WritesGradients, lr=0.1, in_place=True).bind(model)
    grads = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    for _ in range(3):
        updater.step(grads)
        assert all(torch.equal(g, torch.ones_like(g)) for g in grads.values())


def test_hooks_and_grad_of_the_model_are_left_alone():
    model = small()
    updater = OURS.bind(model)
    own = torch.ones_like(model[0].weight)
    model[0].weight.grad = own
    updater.step({"2.bias": torch.ones(3)}, keep_grads=True)
    assert model[0].weight.grad is own and torch.equal(own, torch.ones_like(own))


# the life of an updater


def lives(model, updater, event):
    """Something that happens to a model or an updater; what goes on after it."""
    if event == "half":
        model.double()
    elif event == "other memory":
        for p in model.parameters():
            p.data = p.data.clone()
    elif event == "reset":
        updater.reset()
    elif event == "reset some":
        updater.reset(gch.bias)
    elif event == "copy":
        return copy.deepcopy((model, updater))
    elif event == "pickle":
        return pickle.loads(pickle.dumps((model, updater)))
    elif event == "rebind":
        model = copy.deepcopy(model)
        updater.rebind(model)
    elif event == "override":
        updater.override("lr", 0.3)
    elif event == "factor":
        updater.override("lr", factor=0.5)
    elif event == "state":
        updater.load_state_dict(updater.state_dict())
    elif event == "fixed":
        updater.load_state_dict(updater.state_dict(form="fixed"))
    elif event == "thaw":
        model[0].weight.requires_grad_(True)
    return model, updater


EVENTS = (
    "half", "other memory", "reset", "reset some", "copy", "pickle", "rebind", "override", "factor", "state", "fixed",
    "thaw",
)  # fmt: skip


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("name", ["SGD", "AdamW", RaisesItsRate])
def test_it_lives_through_what_the_form_that_copies_lives_through(name, event):
    def made(in_place):
        model = small()
        model[0].weight.requires_grad_(event != "thaw")
        given = CLASSES.get(name, {"lr": 0.1})
        return model, gch.chain(gch.clip_by_norm(0.5), gch.from_torch(name, in_place=in_place, **given)).bind(model)

    (model, updater), (twin, copies) = made(True), made(False)
    for at, x in enumerate(batches(18)):
        if at in (4, 11):
            (model, updater), (twin, copies) = lives(model, updater, event), lives(twin, copies, event)
        if at == 8 and event in ("override", "factor"):
            updater.override("lr")
            copies.override("lr")
        x = x.to(model[0].weight.dtype)
        try:
            copies.update(loss_of(twin, x))
        except RuntimeError:  # its memory is of another dtype than the weights are now
            with pytest.raises(RuntimeError):
                updater.update(loss_of(model, x))
            return
        updater.update(loss_of(model, x))
        assert same(model, twin), at
        assert equal(links(updater), links(copies)), at


def test_numbers_per_parameter_and_flags_are_groups_of_their_own():
    for rate in (gch.choose((gch.bias, 0.01), rest=0.1), gch.choose((gch.bias, gch.linear(0.1, 0.2, 5)), rest=0.1)):
        model, twin = small(), small()
        updater = gch.from_torch("AdamW", lr=rate, in_place=True).bind(model)
        copies = gch.from_torch("AdamW", lr=rate).bind(twin)
        for x in batches():
            updater.update(loss_of(model, x))
            copies.update(loss_of(twin, x))
            assert same(model, twin) and equal(links(updater), links(copies))


def test_one_link_bound_to_two_models_steps_each():
    model, twin, other = small(), small(), small()
    link = gch.from_torch("AdamW", lr=0.01, in_place=True)
    first, second, copies = link.bind(model), link.bind(other), gch.from_torch("AdamW", lr=0.01).bind(twin)
    run(second, other, 3)
    run(first, model)
    run(copies, twin)
    assert same(model, twin) and not same(model, other)


def test_complex_weights():
    def made(in_place):
        torch.manual_seed(0)
        model = nn.ParameterDict({"w": nn.Parameter(torch.randn(3, 4, dtype=torch.complex64)), "v": torch.randn(5)})
        return model, gch.chain(gch.clip_by_norm(0.5), gch.from_torch("Adam", lr=0.1, in_place=in_place)).bind(model)

    (model, updater), (twin, copies) = made(True), made(False)
    for _ in range(STEPS):
        for m, u in ((model, updater), (twin, copies)):
            u.update(m["w"].abs().square().sum() + m["v"].sum() + (m["w"] * (1 + 2j)).real.sum())
        assert same(model, twin)


class Multiplies(torch.optim.SGD):
    """Uses a product of matrices, which autocast would round."""

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.add_((p.grad @ p.grad.mT @ p.grad) if p.ndim == 2 else p.grad, alpha=-0.1)


def test_autocast_around_an_update_is_not_for_the_class():
    model, twin = small(), small()
    updater, copies = (
        gch.from_torch(Multiplies, lr=0.1, in_place=w).bind(m) for w, m in ((True, model), (False, twin))
    )
    for x in batches(4):
        for m, u in ((model, updater), (twin, copies)):
            with torch.autocast("cpu", torch.bfloat16):
                u.update(loss_of(m, x))
        assert same(model, twin)


# an update that is broken off


class Stop(BaseException):
    """What nobody expects."""


def raising_at(line, error, files):
    """A trace function that raises at so many-th line of these files."""
    left = [line]

    def trace(frame, event, _):
        if not frame.f_code.co_filename.endswith(files):
            return trace if event == "call" else None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                sys.settrace(None)
                raise error
        return trace

    return trace, left


FILES = ("optim/sgd.py", "optim/adamw.py", "optim/adam.py", "optim/optimizer.py", "torch/optim/muon.py")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stop(), ValueError("no"), MemoryError()], ids=repr)
@pytest.mark.parametrize("name", CLASSES)
def test_a_step_that_is_broken_off_is_told_and_a_load_mends_it(name, error, tmp_path):
    """At any line of the class; what was saved before it goes on with the bits of a run without it."""
    drawn = random.Random(f"{name}{error!r}")
    whole = None
    for _ in range(8):
        torch.manual_seed(0)
        bias = name != "Muon"
        model = nn.Sequential(nn.Linear(5, 6, bias=bias), nn.Tanh(), nn.Linear(6, 3, bias=bias))
        updater = gch.chain(gch.trace(0.5), gch.from_torch(name, in_place=True, **CLASSES[name])).bind(model)
        run(updater, model, 3)
        updater.save(tmp_path / "run.pt")
        loss = loss_of(model, batches(4)[3])
        loss.backward()
        if whole is None:
            trace, left = raising_at(10**9, error, FILES)
            twin, again = copy.deepcopy((model, updater))
            again.step({n: p.grad for n, p in model.named_parameters()})  # the first makes the class anew
            for p, q in zip(twin.parameters(), model.parameters(), strict=True):
                p.grad = q.grad.clone()
            sys.settrace(trace)
            again.step()
            sys.settrace(None)
            whole = 10**9 - left[0]
        trace, left = raising_at(drawn.randint(1, whole), error, FILES)
        sys.settrace(trace)
        try:
            with pytest.raises((type(error), RuntimeError)):
                updater.step()
        finally:
            sys.settrace(None)
        assert left[0] == 0
        for refused in (updater.step, updater.state_dict, updater.flush, updater.reset, updater.averaged):
            with pytest.raises(RuntimeError, match=TORN):
                refused()
        updater.load(tmp_path / "run.pt")
        run(updater, model, 5, start=3)
        fresh = nn.Sequential(nn.Linear(5, 6, bias=bias), nn.Tanh(), nn.Linear(6, 3, bias=bias))
        other = gch.chain(gch.trace(0.5), gch.from_torch(name, **CLASSES[name])).bind(fresh)
        other.load(tmp_path / "run.pt")
        run(other, fresh, 5, start=3)
        assert same(model, fresh) and equal(links(updater), links(other))


class Fails(torch.optim.SGD):
    at = 0

    def step(self, closure=None):
        if self.at:
            raise ValueError("it does not like this batch")
        return super().step(closure)


def test_the_class_is_named_and_a_step_that_fails_before_it_changes_nothing(monkeypatch):
    model = small()
    updater = gch.chain(gch.skip_nonfinite(0), gch.from_torch(Fails, lr=0.1, in_place=True)).bind(model)
    run(updater, model, 2)
    before, state = copy.deepcopy(model), updater.state_dict()
    with pytest.raises(FloatingPointError):
        updater.update(loss_of(model, batches(1)[0]) * float("nan"))
    assert same(model, before) and equal(updater.state_dict(), state)
    monkeypatch.setattr(Fails, "at", 1)
    with pytest.raises(ValueError, match=r"^from_torch: Fails: it does not like this batch"):
        run(updater, model, 1)
    with pytest.raises(RuntimeError, match=rf"^update: {TORN}.*updater\.load\(path\)"):
        run(updater, model, 1)
    monkeypatch.setattr(Fails, "at", 0)
    updater.load_state_dict(state)
    model.load_state_dict(before.state_dict())
    run(updater, model, 1)


class Holds(torch.optim.SGD):
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            self.state[p]["file"] = sys.stdout


def test_memory_that_no_checkpoint_can_hold_is_told_at_the_first_step():
    model = small()
    updater = gch.from_torch(Holds, lr=0.1, in_place=True).bind(model)
    with pytest.raises(TypeError, match=r"^from_torch: Holds: state\['file'\]: it keeps a .*which no checkpoint can"):
        run(updater, model, 1)


# words


class Inside(torch.optim.SGD):
    """Has an argument that is called as gradchain's."""

    def __init__(self, params, lr=0.1, in_place=False):
        super().__init__(params, lr)
        self.param_groups[0]["in_place"] = in_place

    def step(self, closure=None):
        type(self).seen = self.param_groups[0]["in_place"]
        return super().step(closure)


def test_gradchains_word_wins_and_the_classs_goes_into_arguments(forgotten):
    gch.register(Inside)
    plain, ours = gch.from_torch(Inside), gch.from_torch(Inside, in_place=True)
    theirs = gch.from_torch(Inside, [("in_place", True)])
    both = gch.from_torch(Inside, [("in_place", True)], in_place=True)
    assert [link.in_place for link in (plain, ours, theirs, both)] == [False, True, False, True]
    assert [dict(link.arguments) for link in (plain, ours)] == [{}, {}]
    assert [dict(link.arguments) for link in (theirs, both)] == [{"in_place": True}] * 2
    for link, seen in ((plain, False), (ours, False), (theirs, True), (both, True)):
        model = small()
        updater = link.bind(model)
        run(updater, model, 2)
        assert Inside.seen == seen and not any("in_place" in name for name in updater.hyperparams())
        for made in (eval(repr(link), {"from_torch": gch.from_torch, **globals()}), pickle.loads(pickle.dumps(link))):
            assert (made.in_place, made.arguments) == (link.in_place, link.arguments)
        made = gch.from_config(gch.to_config(link))
        assert (made.in_place, dict(made.arguments)) == (link.in_place, dict(link.arguments))


@pytest.mark.parametrize("value", [1, 0, None, "yes"])
def test_it_is_true_or_false(value):
    with pytest.raises(TypeError, match=rf"^from_torch: in_place must be True or False, got {value!r}\."):
        gch.from_torch("SGD", lr=0.1, in_place=value)


def test_it_is_shown_where_it_is_given():
    assert repr(OURS) == 'from_torch("SGD", lr=0.1, in_place=True)'
    assert repr(gch.from_torch("SGD", lr=0.1)) == 'from_torch("SGD", lr=0.1)'
    assert OURS != gch.from_torch("SGD", lr=0.1) and OURS == gch.from_torch("SGD", lr=0.1, in_place=True)
