"""Memory in tensor subclasses that know few operations, as the low-bit classes of torchao keep it."""

import copy

import pytest
import torch
from torch import nn

import gradchain as gch

KNOWN = {}


class Coded(torch.Tensor):
    """Numbers as int8 codes of one scale: it may be detached, copied into and moved, and is not cloned or compared."""

    @staticmethod
    def __new__(cls, codes, scale):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes, scale):
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self):
        return ["codes", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, how, size, stride):
        return cls(**inner)

    def decoded(self):
        return self.codes * self.scale

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func not in KNOWN:
            raise NotImplementedError(f"{cls.__name__} dispatch: {func}")
        return KNOWN[func](*args, **(kwargs or {}))


def _copied_into(to, source):
    scale = source.abs().max() / 127 + 1e-12
    to.codes.copy_((source / scale).round())
    to.scale.copy_(scale)
    return to


KNOWN[torch.ops.aten.detach.default] = lambda t: type(t)(t.codes.detach(), t.scale.detach())
KNOWN[torch.ops.aten.copy_.default] = _copied_into


class Nested(Coded):
    """The same around another: what it is made of is made of others."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=torch.float32)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    def decoded(self):
        return self.inner.decoded()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func == torch.ops.aten.detach.default:
            return cls(args[0].inner.detach())
        if func == torch.ops.aten.copy_.default:
            args[0].inner.copy_(args[1])
            return args[0]
        raise NotImplementedError(f"{cls.__name__} dispatch: {func}")


torch.serialization.add_safe_globals([Coded, Nested])


class LowBit(torch.optim.Optimizer):
    """Momentum that is coded where a parameter has many elements, and plain where it has few."""

    def __init__(self, params, lr=0.1, least=30, nested=False):
        super().__init__(params, {"lr": lr})
        self.least, self.nested = least, nested

    def _new(self, p):
        if p.numel() < self.least:
            return torch.zeros_like(p)
        coded = Coded(torch.zeros(p.shape, dtype=torch.int8), torch.ones(()))
        return Nested(coded) if self.nested else coded

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    mu = self.state[p].setdefault("mu", self._new(p)) if not self.state[p] else self.state[p]["mu"]
                    new = 0.9 * (mu.decoded() if isinstance(mu, Coded) else mu) + p.grad
                    mu.copy_(new)
                    p.sub_(group["lr"] * new)


def net(width=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3))


def batch(t):
    made = torch.Generator().manual_seed(t)
    return torch.randn(8, 5, generator=made), torch.randn(8, 3, generator=made)


def loss_of(model, data):
    return (model(data[0]) - data[1]).square().mean()


def saved(updater, link, model, path):
    updater.save(path / "run.pt")
    again = net(model[0].out_features)
    other = link.bind(again)
    other.load(path / "run.pt")
    return other, again


def stated(updater, link, model, path):
    again = copy.deepcopy(model)
    other = link.bind(again)
    other.load_state_dict(updater.state_dict())
    return other, again


def copied(updater, link, model, path):
    again, other = copy.deepcopy((model, updater))
    return other, again


def rebound(updater, link, model, path):
    again = copy.deepcopy(model)
    updater.rebind(again)
    return updater, again


@pytest.mark.parametrize("taken_up", [saved, stated, copied, rebound])
@pytest.mark.parametrize(("width", "nested"), [(5, False), (6, False), (6, True), (40, False)])
def test_coded_memory_is_as_by_itself_and_goes_along(width, nested, taken_up, tmp_path):
    """Small parameters keep plain tensors, larger ones coded ones: the bits of the class, however it is taken up."""
    model, twin = net(width), net(width)
    link = gch.chain(gch.clip_by_norm(1e9), gch.from_torch(LowBit, nested=nested))
    updater, optimizer = link.bind(model), LowBit(twin.parameters(), nested=nested)
    for t in range(10):
        if t == 4:
            updater, model = taken_up(updater, link, model, tmp_path)
        updater.update(loss_of(model, batch(t)))
        optimizer.zero_grad()
        loss_of(twin, batch(t)).backward()
        optimizer.step()
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True)), t
    kept = updater._bound.state.links["from_torch"].state
    assert [isinstance(slot["mu"], Coded) for slot in kept.values()] == [p.numel() >= 30 for p in model.parameters()]


def test_a_step_that_fails_leaves_coded_memory_as_it_was():
    class Failing(LowBit):
        def step(self, closure=None):
            super().step()
            if self.param_groups[0]["params"][0].grad.abs().max() > 1e6:
                raise ValueError("enough")

    model = net()
    updater = gch.from_torch(Failing).bind(model)
    updater.update(loss_of(model, batch(0)))
    before = updater._bound.state.links["from_torch"].state["0.weight"]["mu"].decoded().clone()
    with pytest.raises(ValueError, match="Failing: enough"):
        updater.update(loss_of(model, batch(1)) * 1e9)
    assert torch.equal(updater._bound.state.links["from_torch"].state["0.weight"]["mu"].decoded(), before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["AdamW8bit", "AdamW4bit", "AdamWFp8", "Adam8bit"])
def test_torchao(name, tmp_path):
    """The classes themselves, where installed, at a size at which they quantise: they compile a kernel per shape."""
    cls = getattr(pytest.importorskip("torchao.optim"), name)
    model, twin = nn.Linear(64, 64), nn.Linear(64, 64)
    twin.load_state_dict(model.state_dict())
    link = gch.chain(gch.from_torch(cls, lr=0.01))
    updater, optimizer = link.bind(model), cls(twin.parameters(), lr=0.01)
    for t in range(6):
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(t))
        if t == 3:
            updater.save(tmp_path / "run.pt")
            model = nn.Linear(64, 64)
            updater = link.bind(model)
            updater.load(tmp_path / "run.pt")
        updater.update(model(x).square().mean())
        optimizer.zero_grad()
        twin(x).square().mean().backward()
        optimizer.step()
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
