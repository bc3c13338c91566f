"""Classes around other classes, with groups or tensors of their own: right, or refused in a sentence with its cure."""

import collections
import copy
import inspect

import pytest
import torch
from later import later
from test_from_torch import assert_same, batches, loss_of, net, raw_step
from torch import nn

import gradchain as gch

SGD, Optimizer = torch.optim.SGD, torch.optim.Optimizer
distributed = later("torch.distributed.optim")


def of_torch_distributed():
    """Every optimizer class of torch.distributed.optim, those with an underscore too."""
    import torch.distributed.optim as module

    return [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, Optimizer)]


class Around(Optimizer):
    """Wraps an optimizer, as Lookahead and its like do."""

    def __init__(self, base_optimizer, k=5):
        self.base, self.k, self.param_groups = base_optimizer, k, base_optimizer.param_groups

    def step(self, closure=None):
        return self.base.step(closure)


class Keeping(Optimizer):
    """Takes parameters, and makes another optimizer of them, as the SAM family does."""

    def __init__(self, params, base_optimizer=SGD, where="attribute", **given):
        super().__init__(params, given)
        inner = base_optimizer(self.param_groups, **given)
        self.held = {"attribute": inner, "list": [inner], "dict": {"a": (0, [inner])}}[where]


class Masters(Optimizer):
    """Steps copies of the weights in another dtype."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        for group in self.param_groups:
            group["params"] = [nn.Parameter(p.detach().float().clone()) for p in group["params"]]


class Half(Optimizer):
    """Leaves out what is no matrix of more rows than columns."""

    def __init__(self, params, lr=0.1):
        params = [p for g in params for p in g["params"]] if isinstance(params[0], dict) else params
        super().__init__(params[:1], {})


class Merged(SGD):
    """Makes one group of all that it is given."""

    def __init__(self, params, lr=0.1):
        params = [p for g in params for p in g["params"]] if isinstance(params[0], dict) else params
        super().__init__(params, lr=lr)


class Split(SGD):
    """Makes a group of each shape, as Muon's auxiliaries do, and has its own number in one of them."""

    def __init__(self, params, lr=0.1, momentum=0.9):
        super().__init__(params, lr=lr, momentum=momentum)
        groups = []
        for group in self.param_groups:
            shapes = collections.defaultdict(list)
            for p in group["params"]:
                shapes[p.shape].append(p)
            groups += [{**group, "params": ps, "nesterov": len(s) == 2 and s[0] > 4} for s, ps in shapes.items()]
        self.param_groups = groups


REFUSED = [
    (Around, {}, r"it wraps an optimizer that already has its parameters \(base_optimizer=\)"),
    *(
        (Keeping, {"lr": 0.1, "where": where}, r"another optimizer in its held, .* that one's class, SGD, .*sam\(\)")
        for where in ("attribute", "list", "dict")
    ),
]
LATER = [
    (Masters, "Masters cannot be .* of other tensors than it is given"),
    (Half, "Half cannot be .* or not of each once"),
]


@pytest.mark.parametrize(("cls", "given", "sentence"), REFUSED)
def test_wrappers_are_refused_where_they_are_named(cls, given, sentence):
    with pytest.raises(ValueError, match=f"^from_torch: .*{sentence}"):
        gch.from_torch(cls, **given)


def test_wrappers_of_torch_distributed_are_refused():
    """All of them, and a class made of one. torch has three; importing them takes a second."""
    classes = of_torch_distributed()
    assert len(classes) >= 3
    for cls in classes:
        with pytest.raises(ValueError, match=r"^from_torch: .*cannot be the rule of a chain: .*the class inside"):
            gch.from_torch(cls)

    class Sharded(distributed.ZeroRedundancyOptimizer):
        pass

    sentence = "^from_torch: .*Sharded cannot be .* each rank steps its own part .* fully_shard"
    with pytest.raises(ValueError, match=sentence):
        gch.from_torch(Sharded, optimizer_class=SGD)


@pytest.mark.parametrize(("cls", "sentence"), LATER)
def test_classes_that_step_other_tensors_are_refused_at_bind(cls, sentence):
    with pytest.raises(ValueError, match=f"^from_torch: {sentence}"):
        gch.from_torch(cls).bind(net())


def test_groups_that_are_merged_have_no_numbers_per_parameter():
    model = net()
    gch.from_torch(Merged, lr=0.1).bind(model)
    link = gch.from_torch(Merged, lr=lambda t: gch.Scalars({"0.weight": 0.1, "2.weight": 0.2}))
    with pytest.raises(ValueError, match="Merged cannot be the rule of a chain: it makes parameter groups"):
        link.bind(model).update(loss_of(model, batches(1)[0]))


@pytest.mark.parametrize("each", [False, True])
def test_groups_that_a_class_splits_are_as_by_itself(each, tmp_path):
    """A schedule, numbers per parameter, saved and loaded on the way: the bits of the class."""

    def shape():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()

    def lr(t):
        return {n: (0.1 if n[0] == "0" or not each else 0.05) / (t + 1) for n, _ in shape().named_parameters()}

    link = gch.from_torch(Split, lr=lambda t: gch.Scalars(lr(t)) if each else lr(t)["0.weight"])
    model, twin = shape(), shape()
    layers = [{"params": list(twin[i].parameters())} for i in (0, 2)] if each else twin.parameters()
    updater, optimizer = gch.chain(link).bind(model), Split(layers)
    named = {p: n for n, p in twin.named_parameters()}
    for t, batch in enumerate(batches()):
        if t == 9:
            updater.save(tmp_path / "run.pt")
            model = shape()
            updater = gch.chain(link).bind(model)
            updater.load(tmp_path / "run.pt")
        for group in optimizer.param_groups:
            group["lr"] = lr(t)[named[group["params"][0]]]
        updater.update(loss_of(model, batch))
        raw_step(optimizer, twin, batch)
        assert_same(model, twin)


class ByAddress(Optimizer):
    """Finds what it keeps by where a parameter lies, in a table that it fills once."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        self.known, self.at = {}, {}

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            if p not in self.known:
                self.known[p], self.at[p.data_ptr()] = p.data, p
            kept = self.state[self.at[p.data_ptr()]]
            kept["sum"] = kept.get("sum", 0) + p.grad
            self.known[p].sub_(self.param_groups[0]["lr"] * kept["sum"])


def test_what_a_class_finds_by_address_is_found_anew_at_each_step():
    """Weights lie elsewhere at every step of a chain; the table is no memory either, and in no checkpoint."""
    model, twin = net(), net()
    updater, optimizer = gch.chain(gch.from_torch(ByAddress)).bind(model), ByAddress(twin.parameters())
    held = []
    for batch in batches(6):
        updater.update(loss_of(model, batch))
        raw_step(optimizer, twin, batch)
        held += [torch.empty_like(p) for p in model.parameters()]  # so that memory is not given out again as it was
        assert_same(model, twin)
    kept = updater.state_dict()["links"]["from_torch"]
    assert kept["group"] == {"0.weight": {}, "2.weight": {}} and list(kept["state"]["0.weight"]) == ["sum"]


# what a class raises


class Raising(SGD):
    """Raises what it is told to, in its step or where it is made."""

    error, where = ValueError("enough"), "step"

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr)
        if Raising.where == "init":
            raise Raising.error

    def step(self):
        super().step()
        raise Raising.error


RAISED = [
    (AssertionError(), RuntimeError, "AssertionError$"),
    (AttributeError("no d"), RuntimeError, "AttributeError: no d$"),
    (IndexError("far"), RuntimeError, "IndexError: far$"),
    (KeyError("exp_avg"), RuntimeError, "KeyError: 'exp_avg'$"),
    (NotImplementedError("aten.clone"), RuntimeError, "NotImplementedError: aten.clone$"),
    (RuntimeError("sizes"), RuntimeError, "sizes$"),
    (TypeError("got 3"), TypeError, "got 3$"),
    (ValueError("enough"), ValueError, "enough$"),
]


@pytest.mark.parametrize(("error", "kind", "words"), RAISED, ids=lambda v: type(v).__name__)
def test_what_a_step_raises_says_of_which_class_it_is(error, kind, words, monkeypatch):
    model = net()
    masked = gch.masked(gch.from_torch(Raising), gch.named("0.*"))
    updater = gch.chain(masked, gch.masked(gch.sgd(0.1), ~gch.named("0.*"))).bind(model)
    monkeypatch.setattr(Raising, "error", error)
    before = copy.deepcopy(model)
    with pytest.raises(kind, match=f"^masked/from_torch: Raising: {words}") as caught:
        updater.update(loss_of(model, batches(1)[0]))
    assert caught.value.__cause__ is error
    assert_same(model, before)


@pytest.mark.parametrize("error", [MemoryError("full"), torch.OutOfMemoryError("full"), KeyboardInterrupt()])
def test_what_means_something_to_a_program_goes_through(error, monkeypatch):
    model = net()
    updater = gch.chain(gch.from_torch(Raising)).bind(model)
    monkeypatch.setattr(Raising, "error", error)
    with pytest.raises(type(error)) as caught:
        updater.update(loss_of(model, batches(1)[0]))
    assert caught.value is error


@pytest.mark.parametrize(("error", "kind", "words"), RAISED, ids=lambda v: type(v).__name__)
def test_what_a_constructor_raises_says_of_which_class_it_is(error, kind, words, monkeypatch):
    monkeypatch.setattr(Raising, "error", error)
    monkeypatch.setattr(Raising, "where", "init")
    with pytest.raises((TypeError, ValueError), match=rf"^from_torch: Raising: {words.rstrip('$')}\."):
        gch.from_torch(Raising)
