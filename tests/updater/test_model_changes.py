"""The model changes under the updater: followed where that is right, else a sentence whose cure cures."""

import contextlib
import copy
import gc
import itertools
import pickle
import random
import weakref

import pytest
import torch
from little import same
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, prune

import gradchain as gch
from gradchain.updater.memory import overlap
from gradchain.updater.state_dict import to_dict
from gradchain.updater.structure import Structure

REBIND = "Carry the state over with updater.rebind(model)."


def adam():
    return gch.chain(gch.clip_by_norm(10.0), gch.adam(0.05), gch.average_params(0.9))


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, dtype=torch.float64))


def square() -> nn.Linear:
    return nn.Linear(2, 2, dtype=torch.float64)


class Net(nn.Module):
    """Containers of each kind, something tied, something frozen, a buffer and a weight of one element."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(square(), nn.Tanh(), square())
        self.rows = nn.ModuleList([square(), square()])
        self.parts = nn.ModuleDict({"a": square(), "b": square()})
        self.more = nn.ParameterList([parameter(2), parameter(2)])
        self.tied = square()
        self.tied.weight = self.body[0].weight
        self.frozen = square().requires_grad_(False)
        self.scale = parameter(1)
        self.register_buffer("seen", torch.zeros(2, dtype=torch.float64))


def loss_of(model: nn.Module) -> torch.Tensor:
    """One that reaches every parameter, whatever there is."""
    return sum((p - 0.1 * i).abs().square().mean() for i, p in enumerate(model.parameters()) if p.requires_grad)


def trained(model: nn.Module, tx=None, steps: int = 2, **bind):
    updater = (tx or adam()).bind(model, **bind)
    for _ in range(steps):
        updater.update(loss_of(model))
    return updater


# what a user does to a model that no update can follow: what is done, and of which name the sentence tells


def put(holder, name, value):
    setattr(holder, name, value)


def overwritten(model):
    for holder, name in ((model.body[2], "weight"), (model.tied, "bias")):
        holder._parameters[name] = parameter(3, 2)


def shuffled(model):
    model.rows[0], model.rows[1] = model.rows[1], model.rows[0]


def swapped_parameters(model):
    a, b = model.rows
    a.weight, b.weight = b.weight, a.weight


def reassigned(model):
    model.load_state_dict({n: t.clone() for n, t in model.state_dict().items()}, assign=True)


def reassigned_as_it_is(model):
    model.load_state_dict(model.state_dict(), assign=True)


def moved_inside(model):
    model.body[2] = nn.Sequential(model.body[2])


REFUSED = {
    "item": (lambda m: m.body.__setitem__(2, square()), "body.2.weight"),
    "attribute": (lambda m: put(m, "tied", square()), "tied.bias"),
    "append": (lambda m: m.body.append(square()), "body.3.weight"),
    "extend": (lambda m: m.rows.extend([square()]), "rows.2.weight"),
    "add_module": (lambda m: m.add_module("extra", square()), "extra.weight"),
    "insert in a Sequential": (lambda m: m.body.insert(0, square()), "body.0.weight"),
    "insert in a ModuleList": (lambda m: m.rows.insert(1, square()), "rows.1.weight"),
    "delete an item": (lambda m: m.body.__delitem__(2), "body.2.weight"),
    "delete an attribute": (lambda m: delattr(m, "parts"), "parts.a.weight"),
    "pop": (lambda m: m.parts.pop("a"), "parts.a.weight"),
    "clear": (lambda m: m.parts.clear(), "parts.a.weight"),
    "update": (lambda m: m.parts.update({"c": square()}), "parts.c.weight"),
    "raw modules, another": (lambda m: m.parts._modules.update(a=square()), "parts.a.weight"),
    "raw modules, a new one": (lambda m: m._modules.update(extra=square()), "extra.weight"),
    "raw modules in a leaf": (lambda m: m.rows[1]._modules.update(extra=square()), "rows.1.extra.weight"),
    "raw parameters": (lambda m: m.body[1]._parameters.update(w=parameter(2)), "body.1.w"),
    "raw parameters of another shape": (overwritten, "body.2.weight"),
    "a child set to None": (lambda m: put(m, "frozen", None), "frozen.weight"),
    "a bias set to None": (lambda m: put(m.body[2], "bias", None), "body.2.bias"),
    "a parameter deleted": (lambda m: delattr(m.body[2], "bias"), "body.2.bias"),
    "a parameter registered": (lambda m: m.register_parameter("fresh", parameter(2)), "fresh"),
    "a frozen parameter registered": (
        lambda m: put(m.body[1], "fresh", nn.Parameter(torch.ones(2), requires_grad=False)), "body.1.fresh"),
    "a parameter appended": (lambda m: m.more.append(parameter(2)), "more.2"),
    "another shape": (lambda m: put(m.body[2], "weight", parameter(3, 2)), "body.2.weight"),
    "complex": (lambda m: put(m, "scale", nn.Parameter(torch.ones(1, dtype=torch.complex128))), "scale"),
    "parametrized": (lambda m: parametrizations.orthogonal(m.body[2]), "body.2.weight"),
    "spectral_norm": (lambda m: parametrizations.spectral_norm(m.rows[0]), "rows.0.weight"),
    "weight_norm": (lambda m: parametrizations.weight_norm(m.body[2]), "body.2.weight"),
    "pruned": (lambda m: prune.l1_unstructured(m.body[2], "weight", amount=1), "body.2.weight"),
    "shuffled": (shuffled, "rows.0.weight"),
    "swapped parameters": (swapped_parameters, "rows.0.weight"),
    "wrapped in another module": (moved_inside, "body.2.weight"),
    "untied by an attribute": (lambda m: put(m.tied, "weight", parameter(2, 2)), "tied.weight"),
    "untied at its first name": (lambda m: put(m.body[0], "weight", parameter(2, 2)), "tied.weight"),
    "untied by assign": (reassigned, "tied.weight"),
    "tied": (lambda m: put(m.rows[1], "weight", m.rows[0].weight), "rows.1.weight"),
    "tied to what is tied": (lambda m: put(m.rows[1], "weight", m.tied.weight), "rows.1.weight"),
    "a module in two places": (lambda m: put(m.rows, "1", m.rows[0]), "rows.1.weight"),
}  # fmt: skip


REMAPS = {
    "another shape": {"body.2.weight": lambda slot: torch.zeros(3, 2, dtype=slot.dtype)},
    "raw parameters of another shape": {
        n: lambda slot: torch.zeros(3, 2, dtype=slot.dtype) for n in ("body.2.weight", "tied.bias")},
    "complex": {"scale": lambda slot: torch.view_as_complex(torch.zeros(1, 2, dtype=slot.dtype))},
}  # fmt: skip


def at_update(updater, model, path):
    updater.update(loss_of(model))


def at_step(updater, model, path):
    updater.step({n: torch.ones_like(p) for n, p in updater._bound.parameters().items()})


def at_backward(updater, model, path):
    updater.backward(loss_of(model))


def at_averaged(updater, model, path):
    with updater.averaged():
        raise AssertionError("the model has its average weights")


MOMENTS = {
    "update": at_update,
    "backward": at_backward,
    "step": at_step,
    "save": lambda updater, model, path: updater.save(path / "new.pt"),
    "load": lambda updater, model, path: updater.load(path / "old.pt"),
    "state_dict": lambda updater, model, path: updater.state_dict(),
    "load_state_dict": lambda updater, model, path: updater.load_state_dict(torch.load(path / "state.pt")),
    "averaged": at_averaged,
    "averages": lambda updater, model, path: updater.averages(),
    "copy_average_to": lambda updater, model, path: updater.copy_average_to(Net()),
    "settings": lambda updater, model, path: updater.settings(),
    "reset": lambda updater, model, path: updater.reset(),
}


def kept(updater, model):
    """What an error must leave as it is: weights, buffers, state, clocks and the parameters the updater knows."""
    bound = updater._bound
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    return [
        [p.detach().clone() for p in bound.target.last_seen],
        weights,
        to_dict(bound.chain, bound.state),
        bound.clocks,
    ]


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_followed_is_refused_everywhere_and_rebind_cures_it(kind, tmp_path):
    """Found at the next call of each kind, with nothing changed; after the sentence's cure all of it trains."""
    do, name = REFUSED[kind]
    model = Net()
    updater = trained(model)
    updater.save(tmp_path / "old.pt")
    torch.save(updater.state_dict(), tmp_path / "state.pt")
    do(model)
    before = kept(updater, model)
    for moment in MOMENTS.values():
        with pytest.raises(RuntimeError) as refusal:
            moment(updater, model, tmp_path)
        assert repr(name) in str(refusal.value) and REBIND in str(refusal.value)
        assert same(before, kept(updater, model))
        assert not (tmp_path / "new.pt").exists()
    updater.rebind(model, remap=REMAPS.get(kind))
    model.zero_grad()
    assert set(updater.names) == {n for n, _ in model.named_parameters()}
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    updater.update(loss_of(model))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if not torch.equal(p, weights[n])
    }
    updater.save(tmp_path / "new.pt")


# what an update follows


def new_weight(model):
    model.rows[0].weight = nn.Parameter(model.rows[0].weight.detach() + 1.0)


def assigned_and_tied(model):
    reassigned(model)
    model.tied.weight = model.body[0].weight


def converted_by_overwriting(model):
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model.float().double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    model.tied.weight = model.body[0].weight


def converted_by_swapping(model):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.float().double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def with_storage_back(model):
    storage = model.body[2].weight.untyped_storage()
    kept, size = model.body[2].weight.detach().clone(), storage.nbytes()
    storage.resize_(0)
    storage.resize_(size)
    model.body[2].weight.data.copy_(kept)


def same_parameters_in_another_module(model):
    """As nn.SyncBatchNorm.convert_sync_batchnorm makes it."""
    new = square()
    new.weight, new.bias = model.body[2].weight, model.body[2].bias
    model.body[2] = new


def from_meta_and_back(model):
    weights = copy.deepcopy(model.state_dict())
    model.to("meta").to_empty(device="cpu")
    model.tied.weight = model.body[0].weight
    model.load_state_dict(weights)


def swapped_tensors(model):
    torch.utils.swap_tensors(model.rows[0].weight, nn.Parameter(model.rows[0].weight.detach() + 1.0))


def emptied(model):
    weights = copy.deepcopy(model.state_dict())
    model.to_empty(device="cpu")
    model.load_state_dict(weights)


FOLLOWED = {
    "another parameter": new_weight,
    "an equal one of one element": lambda m: put(m, "scale", nn.Parameter(m.scale.detach().clone())),
    "assigned and tied again": assigned_and_tied,
    "data": lambda m: put(m.body[2].weight, "data", m.body[2].weight.data + 1.0),
    "swap_tensors": swapped_tensors,
    "float and double": lambda m: m.float().double(),
    "overwriting conversion": converted_by_overwriting,
    "swapping conversion": converted_by_swapping,
    "to_empty": emptied,
    "meta and back": from_meta_and_back,
    "storage resized back": with_storage_back,
    "another module, the same parameters": same_parameters_in_another_module,
    "another module without parameters": lambda m: m.body.__setitem__(1, nn.GELU()),
    "a module without parameters more": lambda m: m.body.append(nn.GELU()),
    "another name of a parameter": lambda m: put(m.frozen, "more", m.scale),
    "another name of a module": lambda m: put(m, "again", m.rows[0]),
    "a second name gone": lambda m: delattr(m.tied, "weight"),
    "wrapped in a checkpoint": lambda m: m.body.__setitem__(2, checkpoint_wrapper(m.body[2])),
    "compiled": lambda m: put(m, "body", torch.compile(m.body, backend="eager")),
    "a buffer registered again": lambda m: m.register_buffer("seen", torch.ones(3)),
    "channels_last": lambda m: put(m.body[2].weight, "data", m.body[2].weight.data.t().clone().t()),
}


@pytest.mark.parametrize("in_backward", [False, True], ids=["at once", "in backward"])
@pytest.mark.parametrize("kind", FOLLOWED)
def test_what_is_followed_trains_as_if_bound_anew(kind, in_backward, tmp_path):
    """The state goes on with the new tensor, as after the rebind that a user need not call."""
    tx = gch.adam(0.05) if in_backward else adam()
    models = Net(), Net()
    updaters = [trained(model, tx, in_backward=in_backward) for model in models]
    for model in models:
        torch.manual_seed(1)
        FOLLOWED[kind](model)
    updaters[1].rebind(models[1])
    for updater, model in zip(updaters, models, strict=True):
        for _ in range(3):
            assert updater.update(loss_of(model))
        updater.settings()
        updater.save(tmp_path / "new.pt")
        updater.load(tmp_path / "new.pt")
    assert same(*(dict(m.state_dict()) for m in models))
    assert updaters[0].names == updaters[1].names


@pytest.mark.parametrize("to", ["half", "bfloat16", "float"])
def test_another_dtype_is_followed(to):
    """The model goes on in its new dtype, all of it or a part."""
    for part in (lambda m: m, lambda m: m.rows):
        model = Net()
        updater = trained(model)
        getattr(part(model), to)()
        before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        assert updater.update(loss_of(model))
        assert not any(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)


# what is no change at all


@pytest.fixture
def walks(monkeypatch):
    """How often a model was walked over."""
    counted, init = [], Structure.__init__

    def counting(self, roots):
        counted.append(1)
        init(self, roots)

    monkeypatch.setattr(Structure, "__init__", counting)
    return counted


def parametrized(model):
    parametrizations.orthogonal(model.body[2])
    parametrizations.weight_norm(model.rows[0])
    return model


BOUND_AS = {
    "as it is": lambda m: m,
    "parametrized": parametrized,
    "pruned": lambda m: [prune.l1_unstructured(m.body[2], "weight", amount=1), m][1],
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "checkpointed": checkpoint_wrapper,
    "dict": lambda m: {"model": m},
    "list": lambda m: [m.body, ("scale", m.scale)],
}


@pytest.mark.parametrize("kind", BOUND_AS)
def test_training_walks_over_no_model(kind, walks):
    """Updates, frozen parameters, averages, functional calls and other models in between cost no walk."""
    model = Net()
    bound = BOUND_AS[kind](model)
    updater = adam().bind(bound)
    del walks[:]
    for i in range(4):
        updater.update(loss_of(model))
        if i == 0:
            model.rows.requires_grad_(False)
            Net().body.append(square())
            model.register_buffer("seen", torch.ones(1))
        if i == 1:
            model.rows.requires_grad_(True)
            torch.func.functional_call(model.body[0], {"weight": torch.zeros(2, 2).double()}, torch.ones(1, 2).double())
    assert walks == []
    with updater.averaged():
        average = model.scale.detach().clone()
    assert len(walks) == 1
    updater.update(loss_of(model))
    assert len(walks) == 1 and not torch.equal(model.scale, average)


def test_a_look_costs_the_same_few_calls_for_any_model():
    """No call of Python's per parameter or per module: what grows with the model runs in C."""
    import sys

    def calls(count: int) -> int:
        model = nn.Sequential(*[square() for _ in range(count)])
        target = gch.sgd(0.1).bind(model)._bound.target
        target.lie()
        made = []
        sys.setprofile(lambda frame, event, arg: made.append(event) if event == "call" else None)
        try:
            target.parameters()
            target.lie()
        finally:
            sys.setprofile(None)
        return len(made)

    assert calls(1) == calls(40) <= 8


def test_models_that_share_modules_are_followed_by_each_updater():
    """Two updaters over a shared body: each finds what was done to its own, and none what was done to the other's."""
    body, heads = square(), (square(), square())
    models = [nn.Sequential(body, head) for head in heads]
    updaters = [trained(model) for model in models]
    models[0].append(square())
    with pytest.raises(RuntimeError, match=r"'2.weight' was nothing when the updater was bound"):
        updaters[0].update(loss_of(models[0]))
    assert updaters[1].update(loss_of(models[1]))
    body.extra = parameter(2)
    for updater, model in zip(updaters, models, strict=True):
        with pytest.raises(RuntimeError, match=r"'0.extra' was nothing"):
            updater.update(loss_of(model))


def test_nothing_of_a_look_outlives_its_updater_or_is_left_with_torch():
    """No hooks are registered, and a model is let go when its updater is."""
    from torch.nn.modules import module as hooks

    model = Net()
    updater = trained(model)
    assert not hooks._global_parameter_registration_hooks and not hooks._global_module_registration_hooks
    gone = weakref.ref(model)
    del model, updater
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"])
def test_a_copy_looks_at_its_own_model(how):
    """Of model and updater copied together, each updater sees its model's changes and no other's."""
    model = Net()
    target = trained(model, steps=0)._bound.target
    other, copied = how((model, target))
    model.body.append(square())
    assert [p.shape for p in copied.parameters()] == [p.shape for p in copied.last_seen]
    copied.check()
    with pytest.raises(RuntimeError, match=r"'body.3.weight' was nothing"):
        target.parameters()
    other.rows.insert(0, square())
    with pytest.raises(RuntimeError, match=r"'rows.0.weight' was a parameter .* and now is"):
        copied.parameters()


# memory


def resized(tensor, size: int = 0):
    tensor.untyped_storage().resize_(size)


NO_MEMORY = {
    "storage gone": (lambda m: resized(m.body[2].weight), r"'body.2.weight' must have memory .* a storage of 0 bytes"),
    "storage cut": (lambda m: resized(m.rows[0].bias, 8), r"'rows.0.bias' must have memory .* of 8 bytes .* needs 16"),
    "a tied one's": (lambda m: resized(m.tied.weight), r"'body.0.weight' must have memory"),
    "one element's": (lambda m: resized(m.scale), r"'scale' must have memory"),
    "meta": (lambda m: m.to("meta"), r"was on cpu and now is on meta.* model.to_empty\(device='cpu'\)"),
    "meta in part": (lambda m: m.rows.to("meta"), r"'rows.0.weight' was on cpu and now is on meta"),
    "another shape": (
        lambda m: put(m.rows[0].bias, "data", torch.ones(3).double()),
        r"'rows.0.bias' was a parameter of shape \(2,\) and now is a tensor of shape \(3,\). Carry the state over"),
    "a swapped shape": (
        lambda m: torch.utils.swap_tensors(m.rows[0].bias, parameter(3)),
        r"'rows.0.bias' was a parameter of shape \(2,\) and now is a tensor of shape \(3,\). Carry the state over"),
    "expanded": (
        lambda m: put(m.rows[0].bias, "data", torch.ones(1).double().expand(2)),
        r"'rows.0.bias' must have memory for each of its elements, got shape \(2,\) with strides \(0,\)."),
    "overlapping": (
        lambda m: put(m.rows[0].bias, "data", m.rows[1].bias.data), r"'rows.1.bias' must have memory of its own, got"),
    "overlapping in part": (
        lambda m: put(m.rows[0].bias, "data", m.rows[1].weight.data.view(4)[1:3]), r"'rows.1.weight' must have memory"),
    "overlapping a new one": (
        lambda m: put(m.rows[0], "bias", nn.Parameter(m.rows[1].bias.detach())), r"'rows.1.bias' must have memory of"),
}  # fmt: skip


@pytest.mark.parametrize("in_backward", [False, True], ids=["at once", "in backward"])
@pytest.mark.parametrize("kind", NO_MEMORY)
def test_memory_that_no_update_can_use_is_a_sentence_everywhere(kind, in_backward, tmp_path):
    """No kernel reads or writes where nothing is, or where two parameters are; nothing has changed then."""
    do, sentence = NO_MEMORY[kind]
    model = Net()
    updater = trained(model, gch.adam(0.05) if in_backward else None, in_backward=in_backward)
    updater.save(tmp_path / "old.pt")
    torch.save(updater.state_dict(), tmp_path / "state.pt")
    state, clocks = copy.deepcopy(to_dict(updater.chain, updater._bound.state)), updater.clocks
    reads = "storage" in kind or "'s" in kind  # a forward would, where nothing is
    do(model)
    for name, moment in MOMENTS.items():
        if name == "backward" or (name == "update" and reads) or (in_backward and ("averag" in name or name == "step")):
            continue
        with pytest.raises(RuntimeError, match=sentence):
            moment(updater, model, tmp_path)
    assert same([state, clocks], [to_dict(updater.chain, updater._bound.state), updater.clocks])


@pytest.mark.parametrize("when", ["before step", "in the window"])
def test_memory_that_goes_between_backward_and_step(when):
    """The gradients are there and the weights are not: a sentence; with the memory back the same gradients apply."""
    model = Net()
    updater = trained(model, gch.chain(gch.accumulate(1 if when == "before step" else 2), gch.sgd(0.5)))
    storage = model.rows[0].weight.untyped_storage()
    kept, size = model.rows[0].weight.detach().clone(), storage.nbytes()
    updater.backward(loss_of(model))
    if when == "in the window":
        updater.step()
        updater.backward(loss_of(model))
    storage.resize_(0)
    with pytest.raises(RuntimeError, match=r"'rows.0.weight' must have memory for its elements, got a storage of 0 b"):
        updater.step()
    storage.resize_(size)
    model.rows[0].weight.data.copy_(kept)
    assert updater.step(last=True)
    assert bool(model.rows[0].weight.isfinite().all()) and not torch.equal(model.rows[0].weight, kept)


def test_a_parameter_that_changes_shape_in_an_open_window():
    """The window's gradient fits no more: the sentence is of the parameter."""
    model = Net()
    updater = trained(model, gch.chain(gch.accumulate(2), gch.sgd(0.5)), steps=1)
    model.rows[0].bias.data = torch.ones(3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"'rows.0.bias' was a parameter of shape \(2,\) and now is a tensor of"):
        updater.update(loss_of(model))


def test_weights_from_meta_are_carried_over_by_rebind():
    """Bound before it had memory: the first use after to_empty names rebind, which starts its state."""
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    updater = gch.adam(0.1).bind(model)
    model.to_empty(device="cpu")
    nn.init.ones_(model.weight), nn.init.zeros_(model.bias)
    for use in (lambda: updater.update(loss_of(model)), updater.state_dict, updater.settings):
        with pytest.raises(
            RuntimeError, match=r"'weight' was on meta and now is on cpu. Carry the state over with updat"
        ):
            use()
    updater.rebind(model)
    assert updater.update(loss_of(model))
    torch.testing.assert_close(model.weight.detach(), torch.full((2, 2), 0.9))


def test_expanded_and_overlapping_parameters_are_refused_at_bind():
    """Each with what is wrong, before any state is made."""
    w = torch.ones(1).expand(3).clone()
    flat = torch.zeros(6)
    bad = {
        r"bind: 'w' must have memory for each of its elements, got shape \(3,\) with strides \(0,\). Give it some":
            {"w": torch.ones(1).expand(3)},
        r"bind: 'w' must have memory for each of its elements, got shape \(3, 3\) with strides \(1, 1\)":
            {"w": flat.as_strided((3, 3), (1, 1))},
        r"bind: 'b' must have memory of its own, got elements that are 'a' too: a step would write them twice. Make":
            {"a": nn.Parameter(w), "b": nn.Parameter(w)},
        r"bind: 'c' must have memory of its own, got elements that are 'a' too":
            {"a": flat[:4], "b": torch.ones(2), "c": flat[3:]},
        r"bind: 'b' must have memory of its own, got elements that are 'a' too.":
            {"a": flat[::2], "b": flat[1:5]},
    }  # fmt: skip
    for sentence, target in bad.items():
        with pytest.raises(ValueError, match=sentence):
            gch.sgd(0.1).bind(target)


def test_interleaved_and_adjacent_views_of_one_storage_are_legal():
    """What shares storage but no element trains as what shares nothing."""
    flat, pairs = torch.arange(12.0).double(), torch.arange(8.0).double().reshape(4, 2)
    views = {"even": flat[:6:2], "odd": flat[1:6:2], "rest": flat[6:], "left": pairs[:, 0], "right": pairs[:, 1]}
    apart = {n: v.clone() for n, v in views.items()}
    for target in (views, apart):
        for tensor in target.values():
            tensor.requires_grad_(True)
        updater = adam().bind(target)
        for _ in range(3):
            updater.update(sum((i + 1) * t.square().sum() for i, t in enumerate(target.values())))
        updater.state_dict(), updater.averages(), updater.settings()
    for name, view in views.items():
        torch.testing.assert_close(view, apart[name], rtol=1e-12, atol=1e-14)


def bytes_of(tensor) -> list[int]:
    """Every byte a tensor's elements lie on, one by one."""
    begins = [tensor.data_ptr()]
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        begins = [b + i * stride * tensor.element_size() for b in begins for i in range(size)]
    return [b + i for b in begins for i in range(tensor.element_size())] if tensor.numel() else []


def test_overlap_is_of_elements():
    """By drawn views of several dtypes: two share an element where their bytes do, counted one by one."""
    draw, storage, found = random.Random(0), torch.zeros(128), 0
    for _ in range(1500):
        views = []
        for _ in range(draw.randint(2, 4)):
            dims = draw.randint(0, 3)
            shape = [draw.choice([1, 2, 3, 3, 0] if draw.random() < 0.1 else [1, 2, 3]) for _ in range(dims)]
            base = draw.choice([storage, storage, storage.view(torch.float64), storage.view(torch.float16)])
            step = draw.choice([1, 2])
            strides = [step * draw.choice([1, 2, 3]) for _ in range(dims)]
            view = base.as_strided(shape, strides, draw.randint(0, 7))
            if len(set(bytes_of(view))) == len(bytes_of(view)):
                views.append(view)
        expected = any(set(bytes_of(a)) & set(bytes_of(b)) for a, b in itertools.combinations(views, 2))
        pair = overlap(views)
        assert (pair is not None) == expected
        if pair is not None:
            found += 1
            assert set(bytes_of(views[pair[0]])) & set(bytes_of(views[pair[1]]))
    assert 200 < found < 1400


def test_zero_grad_drops_what_is_known_of_a_changed_model():
    """It asks nothing of the model; the next update says what became of it."""
    model = Net()
    updater = trained(model, gch.chain(gch.accumulate(2), gch.sgd(0.1)), steps=1)
    model.body.append(square())
    updater.zero_grad()
    assert all(p.grad is None for p in updater._bound.target.last_seen)
    with pytest.raises(RuntimeError, match=r"'body.3.weight' was nothing"):
        updater.update(loss_of(model))


# gradients


def test_a_gradient_that_no_longer_fits_its_parameter_is_a_sentence():
    """torch looks when `.grad` is set, and not when its data is."""
    model = Net()
    updater = trained(model)
    for make in (lambda: torch.ones(5).double(), lambda: torch.ones(2, 2).double()):
        loss_of(model).backward()
        model.rows[0].bias.grad.data = make()
        with pytest.raises(
            ValueError, match=r"step: the gradient of 'rows.0.bias' must have shape \(2,\), got shape \("
        ):
            updater.step()
        model.zero_grad()
    assert updater.update(loss_of(model))


@pytest.mark.parametrize("steps", [0, 3])
def test_a_gradient_without_memory_is_a_sentence(steps):
    """Also where the gradients look as they did at the steps before; the next ones apply."""
    model = Net()
    updater = trained(model, steps=steps)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    loss_of(model).backward()
    resized(model.rows[0].weight.grad)
    with pytest.raises((ValueError, RuntimeError), match=r"step: .*gradient.* must have memory for its elements, got"):
        updater.step()
    assert same(before, {n: p.detach() for n, p in model.named_parameters()})
    model.zero_grad()
    assert updater.update(loss_of(model))


# what may be bound


@contextlib.contextmanager
def one_rank(path):
    torch.distributed.init_process_group("gloo", f"file://{path}/rendezvous", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


HOLDERS = {
    "dict": (lambda m: {"x": m, "w": parameter(2)}, "x."),
    "list": (lambda m: [("w", parameter(2)), m], ""),
    "DDP": (nn.parallel.DistributedDataParallel, ""),
    "DataParallel": (nn.DataParallel, ""),
    "compile": (lambda m: torch.compile(m, backend="eager"), ""),
    "checkpoint": (checkpoint_wrapper, ""),
}


@pytest.mark.parametrize("kind", HOLDERS)
def test_changes_are_seen_through_what_holds_the_model(kind, tmp_path):
    """In a dict, in a list and under wrappers."""
    with one_rank(tmp_path) if kind == "DDP" else contextlib.nullcontext():
        make, prefix = HOLDERS[kind]
        model = nn.Sequential(square(), square())
        held = make(model)
        updater = gch.sgd(0.1).bind(held)
        assert updater.update(loss_of(model))
        model.insert(0, square())
        with pytest.raises(RuntimeError, match=f"'{prefix}0.weight' was a parameter .* and now is"):
            updater.update(loss_of(model))
        updater.rebind(held)
        assert updater.update(loss_of(model))


def test_modules_of_a_list_may_have_names_in_common_where_they_are_tied():
    """As before, a parameter goes by its first name, wherever else it is."""
    first, second = nn.Module(), nn.Module()
    first.weight, first.other = parameter(2), parameter(2)
    second.weight = first.other
    updater = gch.sgd(0.1).bind([first, second])
    assert updater.names == ("weight", "other") and updater.update(loss_of(first))
    second.weight = parameter(2)
    with pytest.raises(RuntimeError, match=r"'weight' was tied to 'other' and now is a tensor of its own."):
        updater.update(loss_of(first))
