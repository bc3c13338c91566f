"""bind: what a chain can be bound to, under which names, and what is refused."""

import contextlib

import pytest
import torch
from little import data, distance, loss_of, net
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DataParallel

import gradchain as gch


def adam():
    return gch.chain(gch.clip_by_norm(10.0), gch.adam(0.05))


NAMES = ("0.weight", "0.bias", "2.weight", "2.bias")
TARGETS = {
    "module": (lambda m: m, NAMES),
    "named": (lambda m: m.named_parameters(), NAMES),
    "list of modules": (lambda m: [m], NAMES),
    "pairs": (lambda m: [("a", m[0].weight), ("b", m[0].bias), ("c", m[2].weight), ("d", m[2].bias)], tuple("abcd")),
    "modules by name": (lambda m: {"x": m[0], "y": m[2]}, ("x.weight", "x.bias", "y.weight", "y.bias")),
    "modules and tensors": (
        lambda m: {"x": m[0], "w": m[2].weight, "b": m[2].bias},
        ("x.weight", "x.bias", "w", "b"),
    ),
    "mixed list": (lambda m: [m[0], ("w", m[2].weight), ("b", m[2].bias)], ("weight", "bias", "w", "b")),
    "generator of pairs": (lambda m: (pair for pair in m.named_parameters()), NAMES),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_targets(kind):
    """A module, a dict, a list of modules or pairs: the same weights as torch.optim, under the names to be expected."""
    make, names = TARGETS[kind]
    ours, theirs = net(), net()
    updater, optimizer = gch.adam(0.05).bind(make(ours)), torch.optim.Adam(theirs.parameters(), 0.05)
    assert updater.names == names
    for rows in data(3):
        assert updater.update(loss_of(ours, rows))
        optimizer.zero_grad()
        loss_of(theirs, rows).backward()
        optimizer.step()
    assert distance(ours, theirs) < 1e-14


def test_a_bare_tensor():
    """bind(tensor) names it "parameter"."""
    w = torch.ones(2, requires_grad=True)
    updater = gch.sgd(0.5).bind(w)
    updater.update((w * w).sum())
    assert updater.names == ("parameter",) and torch.equal(w, torch.zeros(2))


@contextlib.contextmanager
def one_rank(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def compiled(module):
    return torch.compile(module, backend="eager")


WRAPPERS = {
    "DataParallel": DataParallel,
    "compile": compiled,
    "checkpoint": checkpoint_wrapper,
    "inside": lambda m: nn.Sequential(compiled(m[0]), m[1], checkpoint_wrapper(m[2])),
    "both": lambda m: compiled(DataParallel(m)),
    "DDP": lambda m: nn.parallel.DistributedDataParallel(m),
    "DDP of compiled": lambda m: nn.parallel.DistributedDataParallel(compiled(m)),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrappers_do_not_show(kind, tmp_path):
    """Names, states and weights are the same with and without a wrapper; a checkpoint goes from one to the other."""
    with one_rank(tmp_path) if kind.startswith("DDP") else contextlib.nullcontext():
        plain, inner = net(), net()
        wrapped = WRAPPERS[kind](inner)
        a, b = adam().bind(plain), adam().bind(wrapped)
        assert b.names == a.names == NAMES
        for rows in data(3):
            with a.context():
                loss = loss_of(plain, rows)
            a.update(loss)
            with b.context():
                loss = loss_of(wrapped, rows)
            b.update(loss)
        assert distance(plain, inner) < 1e-14
        assert str(b.load_state_dict(a.state_dict())) == "everything matched"


def test_a_name_that_looks_like_a_wrapper_stays():
    """Wrappers are recognised by type: a submodule that is called `module` or `_orig_mod` keeps its name."""
    model = nn.ModuleDict({"module": nn.Linear(1, 1), "_orig_mod": nn.Linear(1, 1)})
    assert gch.sgd(0.1).bind(model).names[::2] == ("module.weight", "_orig_mod.weight")


def test_tied_weights_are_one_parameter():
    """A weight under two names is updated once, under the first; also after load_state_dict and save."""
    ours, theirs = net(), net()
    for model in (ours, theirs):
        model.extend([nn.Tanh(), nn.Linear(2, 3).double(), nn.Tanh(), nn.Linear(3, 4).double()])
        model[6].weight = model[0].weight  # 4 x 3 both
    updater, optimizer = gch.adam(0.05).bind(ours), torch.optim.Adam(theirs.parameters(), 0.05)
    assert "0.weight" in updater.names and "6.weight" not in updater.names
    theirs.load_state_dict(ours.state_dict())
    for rows in data(3):
        updater.update(ours(rows).square().mean())
        optimizer.zero_grad()
        theirs(rows).square().mean().backward()
        optimizer.step()
    assert distance(ours, theirs) < 1e-14


@pytest.mark.parametrize("how", ["assign", "attribute"])
def test_a_replaced_parameter_is_followed(how):
    """After load_state_dict(assign=True) or `module.w = Parameter(…)` the updater goes on with the new tensor."""
    ours, theirs = net(), net()
    updater, optimizer = gch.adam(0.05).bind(ours), torch.optim.Adam(theirs.parameters(), 0.05)
    for i, rows in enumerate(data(4)):
        if i == 2 and how == "assign":
            ours.load_state_dict({n: t.clone() for n, t in ours.state_dict().items()}, assign=True)
        elif i == 2:
            ours[0].weight = nn.Parameter(ours[0].weight.detach().clone())
        updater.update(loss_of(ours, rows))
        optimizer.zero_grad()
        loss_of(theirs, rows).backward()
        optimizer.step()
    assert distance(ours, theirs) < 1e-14


@pytest.mark.parametrize("new", [nn.Parameter(torch.ones(7, 3).double()), None])
def test_a_replacement_of_another_shape_is_refused(new):
    """A parameter that became one of another shape, or none, is a sentence with the cure."""
    model = net()
    updater = gch.adam(0.05).bind(model)
    model[0].weight = new
    got = "a tensor of shape .7, 3." if new is not None else "nothing"
    with pytest.raises(RuntimeError, match=f"'0.weight' was a parameter of shape .4, 3. and now is {got}. Carry the s"):
        updater.update(model[2](torch.ones(1, 4).double()).sum())


def test_requires_grad_may_be_toggled():
    """Parameters frozen at bind have no state until their first gradient; then all is as in torch.optim."""
    ours, theirs = net(), net()
    for model in (ours, theirs):
        model[0].requires_grad_(False)
    updater, optimizer = gch.adam(0.05).bind(ours), torch.optim.Adam(theirs.parameters(), 0.05)
    assert updater.names == NAMES
    assert list(updater.state_dict()["links"]["scale_by_adam"]["mu"]) == ["2.weight", "2.bias"]
    assert updater.state_dict()["inactive"] == ["0.weight", "0.bias"]
    for i, rows in enumerate(data(8)):
        for model in (ours, theirs):
            model[0].requires_grad_(i >= 2 and i != 5)
            model[2].requires_grad_(i not in (3, 4))
        updater.update(loss_of(ours, rows))
        optimizer.zero_grad()
        loss_of(theirs, rows).backward()
        optimizer.step()
        assert distance(ours, theirs) < 1e-13
    assert updater.state_dict()["links"]["scale_by_adam"]["count"] == {
        "0.weight": 5, "0.bias": 5, "2.weight": 6, "2.bias": 6
    }  # fmt: skip
    assert updater.state_dict()["inactive"] == []


def test_mixed_dtypes():
    """float64, float32 and bfloat16 parameters side by side: each as torch.optim has it in its dtype."""

    def make():
        torch.manual_seed(1)
        dtypes = {"d": torch.float64, "f": torch.float32, "b": torch.bfloat16}
        return nn.ParameterDict({n: nn.Parameter(torch.randn(6, dtype=t)) for n, t in dtypes.items()})

    ours, theirs = make(), make()
    updater = gch.sgd(0.25, momentum=0.5).bind(ours)
    optimizer = torch.optim.SGD(theirs.parameters(), 0.25, momentum=0.5)
    for _ in range(4):
        for model in (ours, theirs):
            loss = sum(p.double().square().sum() for p in model.values())
            if model is ours:
                updater.update(loss)
            else:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    assert {n: p.dtype for n, p in ours.items()} == {n: p.dtype for n, p in theirs.items()}
    for n, tolerance in (("d", 1e-15), ("f", 1e-6), ("b", 2e-2)):
        torch.testing.assert_close(ours[n], theirs[n], rtol=tolerance, atol=tolerance)
    slots = updater.state_dict()["links"]["trace"]["trace"]
    assert {n: s.dtype for n, s in slots.items()} == {"d": torch.float64, "f": torch.float32, "b": torch.bfloat16}


@pytest.mark.parametrize("kind", ["adam", "sgd", "window"])
def test_complex_parameters(kind):
    """Complex parameters are pairs of reals, as in torch.optim."""

    def make():
        torch.manual_seed(2)
        return nn.ParameterDict({
            "c": nn.Parameter(torch.randn(3, 2, dtype=torch.complex128)),
            "r": nn.Parameter(torch.randn(4, dtype=torch.float64)),
        })  # fmt: skip

    def loss_at(model, i):
        return (model["c"] * (1 + 2j) - i).abs().square().sum() + (model["r"] - i).square().sum()

    ours, theirs = make(), make()
    k = 2 if kind == "window" else 1
    tx = gch.adam(0.05) if kind == "adam" else gch.sgd(0.01, momentum=0.9)
    updater = gch.chain(gch.accumulate(k), tx).bind(ours)
    adam, sgd = torch.optim.Adam, torch.optim.SGD
    optimizer = adam(theirs.parameters(), 0.05) if kind == "adam" else sgd(theirs.parameters(), 0.01, momentum=0.9)
    for i in range(6):
        updater.update(loss_at(ours, i))
        (loss_at(theirs, i) / k).backward()
        if i % k == k - 1:
            optimizer.step()
            optimizer.zero_grad()
    for n in ours:
        torch.testing.assert_close(ours[n], theirs[n], rtol=1e-13, atol=0)
    assert updater.load_state_dict(updater.state_dict()).problems() == []


def test_layouts():
    """channels_last weights, transposed and expanded gradients, 0-d and empty parameters: as torch.optim."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(4)
            self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
            self.t = nn.Parameter(torch.randn(5, 4).t())
            self.scalar = nn.Parameter(torch.randn(()))
            self.empty = nn.Parameter(torch.randn(0, 3))
            self.double()

        def forward(self, x):
            out = self.conv(x).square().mean() * self.scalar
            return out + (self.t.t() * 2).sum() + self.t.square().sum() + self.empty.sum() + self.scalar.expand(4).sum()

    ours, theirs = Odd(), Odd()
    updater, optimizer = gch.adam(0.05).bind(ours), torch.optim.Adam(theirs.parameters(), 0.05)
    strides = {n: p.stride() for n, p in ours.named_parameters()}
    assert strides["conv.weight"] != torch.empty(4, 3, 3, 3).stride()
    for i in range(4):
        x = torch.randn(2, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
        if i == 2:  # gradients of other strides than the weights
            grads = dict(zip(updater.names, torch.autograd.grad(ours(x), list(ours.parameters())), strict=True))
            updater.step({n: g.mT.contiguous().mT if g.ndim > 1 else g for n, g in grads.items()})
        else:
            updater.update(ours(x))
        optimizer.zero_grad()
        theirs(x).backward()
        optimizer.step()
    assert distance(ours, theirs) < 1e-14
    assert {n: p.stride() for n, p in ours.named_parameters()} == strides


class Words(nn.Embedding):
    """A subclass, as libraries have them."""


SPARSE = {
    "embedding": lambda: nn.Embedding(4, 2, sparse=True),
    "bag": lambda: nn.EmbeddingBag(4, 2, sparse=True),
    "subclass": lambda: Words(4, 2, sparse=True),
    "inside": lambda: nn.Sequential(nn.Embedding(4, 2, sparse=True), nn.Linear(2, 1)),
    "dict": lambda: {"words": nn.Embedding(4, 2, sparse=True), "head": nn.Linear(2, 1)},
    "given": lambda: nn.Embedding.from_pretrained(torch.ones(4, 2), freeze=False, sparse=True),
    "tied": lambda: [nn.Linear(2, 1), tied()],
}


def tied():
    """The second name of its weight is that of a sparse embedding."""
    module = nn.ModuleDict({"head": nn.Linear(2, 4), "words": nn.Embedding(4, 2, sparse=True)})
    module["words"].weight = module["head"].weight
    return module


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("kind", SPARSE)
def test_gradients_that_will_be_sparse_are_told_at_bind(kind, in_backward):
    """Where a link cannot take them. A weight with another, dense use has dense gradients."""
    if kind == "tied":
        gch.adamw(0.1).bind(SPARSE[kind](), in_backward=in_backward)
        return
    told = r"^bind: '.*weight' must have dense gradients for add_decayed_weights, .*lazy=True"
    with pytest.raises(ValueError, match=told):
        gch.adamw(0.1).bind(SPARSE[kind](), in_backward=in_backward)
    gch.sgd(0.1).bind(SPARSE[kind](), in_backward=in_backward)


def test_a_sparse_embedding_that_gets_no_gradient_or_is_not_bound_is_right():
    model = nn.Sequential(nn.Embedding(4, 2, sparse=True), nn.Linear(2, 1))
    gch.adamw(0.1).bind(model[1]).update(model(torch.tensor([1])).sum())
    model[0].weight.requires_grad_(False)
    gch.adamw(0.1).bind(model).update(model(torch.tensor([1])).sum())
    model[0].weight.requires_grad_(True)
    model[0].sparse = False
    gch.adamw(0.1).bind(model).update(model(torch.tensor([1])).sum())


def _lazy():
    return nn.LazyLinear(2)


BAD = {
    "parameters": (lambda: net().parameters(), TypeError, "bind: a list must hold modules or .name, tensor. pairs, go"),
    "number": (lambda: 3, TypeError, "bind: takes a module, a dict of modules and tensors, or a list of modules or .n"),
    "string": (lambda: "model", TypeError, "bind: takes a module, a dict .* got str."),
    "class": (lambda: nn.Linear, TypeError, "bind: takes a module, a dict .* got type."),
    "integer": (lambda: {"i": torch.ones(2, dtype=torch.int64)}, TypeError, "bind: 'i' must be floating point or comp"),
    "not a tensor": (lambda: {"i": 3.0}, TypeError, "bind: 'i' must be a tensor, got float."),
    "non-leaf": (
        lambda: {"w": torch.ones(2, requires_grad=True) * 2}, ValueError,
        "bind: 'w' must be a leaf tensor, got the result of MulBackward0. Use .detach.. on it."),
    "sparse": (lambda: {"w": torch.ones(2).to_sparse()}, TypeError, "bind: 'w' must be a dense tensor, got layout tor"),
    "collision": (lambda: [nn.Linear(1, 1), nn.Linear(1, 1)], ValueError, "bind: two parameters are called 'weight'."),
    "pairs collide": (lambda: [("w", torch.ones(1)), ("w", torch.ones(1))], ValueError, "bind: two parameters are cal"),
    "empty": (dict, ValueError, "bind: found no parameter to update. Bind a module, a dict, or .name, tensor. pa"),
    "no parameters": (lambda: nn.ReLU(), ValueError, "bind: found no parameter to update."),
    "lazy": (_lazy, ValueError, "bind: 'weight' has no shape yet. Run the lazy module once before bind."),
    "optimizer": (lambda: torch.optim.SGD(net().parameters(), 0.1), TypeError, "bind: takes a module, .* got SGD."),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_bound(kind):
    """Each wrong target is one sentence."""
    make, error, sentence = BAD[kind]
    with pytest.raises(error, match=sentence):
        gch.sgd(0.1).bind(make())


# names of other libraries

OPTIMIZER = ("param_groups", "state", "add_param_group", "defaults")
SCHEDULER = ("get_lr", "get_last_lr")
SCALER = ("scale", "unscale_", "get_scale", "is_enabled", "get_growth_factor", "set_growth_interval")
WRAPPER = ("optim_context", "update_params", "get_momentum", "should_update", "should_sync", "optimizer", "inner_count")


@pytest.mark.parametrize("name", [*OPTIMIZER, *SCHEDULER, *SCALER, *WRAPPER, "lr", "clip_grad", "learning_rate"])
def test_names_of_torch_and_openmmlab_are_answered(name):
    """Asking an updater for a name of torch.optim, GradScaler or OptimWrapper tells ours."""
    updater = gch.sgd(0.1).bind(net())
    with pytest.raises(AttributeError, match=f"Updater: has no {name!r}; use "):
        getattr(updater, name)
    assert not hasattr(updater, "nonsense")


@pytest.mark.parametrize(
    "option",
    ["lr", "learning_rate", "weight_decay", "betas", "eps", "momentum", "fused", "foreach", "accumulative_counts",
     "clip_grad", "loss_scale", "init_scale", "growth_interval", "params", "dtype", "enabled"],
)  # fmt: skip
def test_options_of_torch_and_openmmlab_are_answered(option):
    """bind with an option of torch.optim, GradScaler or OptimWrapper tells where it belongs."""
    with pytest.raises(TypeError, match=f"bind: does not take {option!r}: "):
        gch.sgd(0.1).bind(net(), **{option: 1})


def test_unknown_options_are_refused():
    """bind(nonsense=1) is a sentence too."""
    with pytest.raises(TypeError, match=r"bind: does not take 'nonsense'. It takes autocast=."):
        gch.sgd(0.1).bind(net(), nonsense=1)
