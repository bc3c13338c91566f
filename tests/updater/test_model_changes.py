"""The model changes under the updater: followed where that is right, else a sentence whose cure cures."""

import contextlib
import copy
import gc
import pickle
import weakref

import pytest
import torch
from little import net, same
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, parametrize, prune

import gradchain as gch
from gradchain.updater.memory import overlap
from gradchain.updater.structure import Structure

REBIND = "Carry the state over with updater.rebind(model)."


def adam():
    return gch.chain(gch.clip_by_norm(10.0), gch.adam(0.05), gch.average_params(0.9))


def square(width: int = 2) -> nn.Module:
    return nn.Linear(width, width, dtype=torch.float64)


class Net(nn.Module):
    """Containers of each kind, something tied, something frozen, a buffer and a weight of one element."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(square(), nn.Tanh(), square())
        self.rows = nn.ModuleList([square(), square()])
        self.parts = nn.ModuleDict({"a": square(), "b": square()})
        self.more = nn.ParameterList([nn.Parameter(torch.randn(2, dtype=torch.float64)) for _ in range(2)])
        self.tied = square()
        self.tied.weight = self.body[0].weight
        self.frozen = square().requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(2, dtype=torch.float64))

    def forward(self, x):
        for layer in (self.body, *self.rows, *self.parts.values(), self.tied, self.frozen):
            x = x + layer(x) if layer is not None else x
        return self.scale * sum((p for p in self.more), x)


ROWS = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64).reshape(4, 2)


def loss_of(model: nn.Module) -> torch.Tensor:
    return (model(ROWS) - 0.5).square().mean()


def trained(model: nn.Module, tx=None, steps: int = 2):
    updater = (tx or adam()).bind(model)
    for _ in range(steps):
        updater.update(loss_of(model))
    return updater


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, dtype=torch.float64))


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
    "attribute": (lambda m: put(m, "tied", square()), "tied.weight"),
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


def memory(updater, model):
    """What an error must leave: weights, state, clocks and the parameters the updater knows."""
    bound = updater._bound
    return copy.deepcopy([
        [p.detach().clone() for p in bound.target.known], model.state_dict(), bound.state, bound.clocks, updater.names,
    ])  # fmt: skip


def unchanged(before, after) -> bool:
    tensors = [list(b) if isinstance(b, list) else dict(b) for b in before[:2]]
    return same(tensors, after[:2]) and repr(before[2]) == repr(after[2]) and before[3:] == after[3:]


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_followed_is_refused_everywhere_and_rebind_cures_it(kind, tmp_path):
    """Found at the next call of each kind, with nothing changed; after the sentence's cure all of it trains."""
    do, name = REFUSED[kind]
    model = Net()
    updater = trained(model)
    updater.save(tmp_path / "old.pt")
    torch.save(updater.state_dict(), tmp_path / "state.pt")
    do(model)
    before = memory(updater, model)
    for moment in MOMENTS.values():
        with pytest.raises(RuntimeError) as refusal:
            moment(updater, model, tmp_path)
        assert repr(name) in str(refusal.value) and REBIND in str(refusal.value)
        assert unchanged(before, memory(updater, model))
        assert not (tmp_path / "new.pt").exists()
    remap = {n: lambda slot: torch.zeros_like(model.get_parameter(n)) for n in ("body.2.weight", "scale") if "shape" in kind}
    updater.rebind(model, remap=remap if kind != "complex" else {"scale": lambda slot: slot.to(torch.complex128)})
    model.zero_grad()
    assert set(updater.names) == {n for n, _ in model.named_parameters()}
    if kind in ("another shape", "raw parameters of another shape", "complex"):
        return  # the forward has no use for it
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    loss = loss_of(model)
    reached = {n for (n, p), g in zip(model.named_parameters(), _gradients(model, loss), strict=True) if g is not None}
    updater.update(loss)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, weights[n])}
    assert moved and moved <= reached


def _gradients(model, loss):
    wanted = [p for p in model.parameters() if p.requires_grad]
    found = dict(zip(map(id, wanted), torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True), strict=True))
    return [found.get(id(p)) for p in model.parameters()]
