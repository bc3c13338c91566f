"""Every class of torch.optim, under every set of arguments that torch tests it with, is one of our chains."""

import ast
import importlib.util
import sys
from types import ModuleType
from unittest.mock import MagicMock, patch

import pytest
import torch
from cases_torch import in_double
from torch import nn

import gradchain as gch


def read_optim_db():
    """What torch tests its optimizers with, without the rest of its tests: that needs packages, and takes seconds."""
    spec = importlib.util.find_spec("torch.testing._internal.common_optimizers")
    with open(spec.origin) as file:
        nodes = ast.walk(ast.parse(file.read()))
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and "testing" in node.module}
    module = ModuleType(spec.name)
    with patch.dict(sys.modules, {name: MagicMock() for name in names}):
        spec.loader.exec_module(module)
    return module.optim_db


optim_db = read_optim_db()

# Of these there is no chain yet, or none at all; with the reason.
WITHOUT = {
    "LBFGS": "it searches along lines, and calls a closure as often as it likes; gch.from_torch has it",
    "Muon": "gch.rules.muon is held to a float64 twin in tests/cases_matrix.py: torch computes in bfloat16",
}
# What says how torch computes, and not what.
HOW = {"capturable", "differentiable", "foreach", "fused"}
STEPS = 12
SHAPES = {"a": (4, 3), "b": (3,), "c": (2, 3, 2), "d": ()}
ABSENT = {"b": {0, 1, 7}, "c": {3, 4}, "d": {0}}
ROWS = {
    "a": {0: (0, 2), 4: (), 5: (1, 3, 0)},
    "b": {2: (1,)},
}  # which rows a sparse gradient names, where it is not all


def ours(name, kwargs):
    """The alias of a class of torch.optim from the very arguments of that class."""
    alias = getattr(gch.rules, {"SparseAdam": "sparse_adam"}.get(name, name.lower()))
    given = {n: v.item() if isinstance(v, torch.Tensor) else v for n, v in kwargs.items() if n not in HOW}
    pairs = {"betas": ("b1", "b2"), "etas": ("eta_minus", "eta_plus"), "step_sizes": ("min_step_size", "max_step_size")}
    for word, parts in pairs.items():
        if word in given:
            given.update(zip(parts, given.pop(word), strict=True))
    renamed = {"lr": "learning_rate", **({"alpha": "decay"} if name == "RMSprop" else {})}
    given = {renamed.get(n, n): v for n, v in given.items()}
    if name in ("SGD", "Adam", "AdamW"):  # aliases without a default for it
        given.setdefault("learning_rate", 1e-3)
    return alias(**given)


def kwargs_of(info):
    """The arguments that torch tests a class with, numbers in tensors in float64."""
    return [(given.desc, given.kwargs) for given in in_double(info.optim_inputs_func, "cpu", torch.float64)]


def inputs():
    for info in optim_db:
        if info.optim_cls.__name__ not in WITHOUT:
            for i, (said, kwargs) in enumerate(kwargs_of(info)):
                yield pytest.param(info.optim_cls, kwargs, id=f"{info.optim_cls.__name__}-{i}-{said}")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for n, shape in SHAPES.items():
            setattr(self, n, nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=generator)))


def gradient(weight, name, t, sparse):
    """A gradient that changes size and sign from step to step; None where there is none."""
    if t in ABSENT.get(name, ()):
        return None
    generator = torch.Generator().manual_seed(100 * t + ord(name))
    drawn = torch.randn(weight.shape, dtype=torch.float64, generator=generator) * (3.0 if t % 3 else 0.01) + 0.2
    if not sparse:
        return drawn
    rows = torch.tensor(ROWS.get(name, {}).get(t, range(len(weight))), dtype=torch.int64)
    return torch.sparse_coo_tensor(rows[None], drawn[rows], weight.shape, check_invariants=True)


def compare(cls, kwargs, tx, groups=None, sparse=False):
    """Twelve steps beside each other, in native kernels."""
    sparse = sparse or cls is torch.optim.SparseAdam
    theirs, mine = Model(), Model()
    if sparse:
        del theirs.d, mine.d
    given = list(theirs.parameters()) if groups is None else groups(theirs)
    optimizer, updater = cls(given, **kwargs), tx.bind(mine)
    start = {n: p.detach().clone() for n, p in mine.named_parameters()}
    for t in range(STEPS):
        for model in (theirs, mine):
            for n, p in model.named_parameters():
                p.grad = gradient(p, n, t, sparse)
        optimizer.step()
        updater.step()
        for (n, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
            moved = max((b.detach() - start[n]).abs().max().item(), 1e-300)
            assert (a - b).abs().max().item() <= 1e-12 * max(moved, start[n].abs().max().item() * 1e-3), (n, t)
        assert all(not torch.equal(p, start[n]) for n, p in mine.named_parameters() if t >= 2)
    executors = [line for line in updater.explain().splitlines() if ": update " in line or ": reduction " in line]
    assert executors and all(line.split(":")[0].strip() == "native" for line in executors), updater.explain()
    return optimizer, updater, mine, theirs


@pytest.mark.parametrize(("cls", "kwargs"), list(inputs()))
def test_the_alias_of_a_class_moves_weights_as_the_class_does(cls, kwargs):
    """To 1e-12 of the movement, with gradients of changing size, some of them absent, in native kernels."""
    in_double(compare, cls, kwargs, ours(cls.__name__, kwargs))


@pytest.mark.parametrize("cls", [i.optim_cls for i in optim_db if i.optim_cls.__name__ not in WITHOUT])
def test_two_groups_are_two_branches(cls):
    """Each with arguments of its own: the first and the last set that torch tests the class with."""
    (_, first), *_, (_, last) = kwargs_of(next(i for i in optim_db if i.optim_cls is cls))
    assert not first

    def groups(model):
        named = list(model.named_parameters())
        return [{"params": [p for n, p in named if n in "ac"], **last}, {"params": [p for n, p in named if n in "bd"]}]

    both = [ours(cls.__name__, kwargs) for kwargs in (last, first)]
    behind = both[0].links[-1:] if cls is torch.optim.ASGD else ()  # averages stand in the outermost chain
    inner = [gch.chain(*tx.links[:-1]) if behind else tx for tx in both]
    tx = gch.chain(gch.partition((gch.named("a", "c"), inner[0]), (gch.rest, inner[1])), *behind)
    in_double(compare, cls, {}, tx, groups)


def test_the_mean_that_asgd_keeps_is_what_updater_averaged_shows():
    """torch's state `ax`, by each parameter's own count."""

    def run():
        optimizer, updater, mine, theirs = compare(
            torch.optim.ASGD, {"t0": 3, "lambd": 0.1}, ours("ASGD", {"t0": 3, "lambd": 0.1})
        )
        with updater.averaged():
            for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(a, optimizer.state[b]["ax"], rtol=1e-12, atol=1e-14)
                assert not torch.equal(a, b)

    in_double(run)


@pytest.mark.parametrize("cls", [torch.optim.ASGD, torch.optim.NAdam, torch.optim.Adagrad])
def test_a_scheduled_rate_is_read_as_torch_reads_that_of_a_group(cls):
    """Also where the class keeps a rate from one step to the next."""

    def run():
        theirs, mine = Model(), Model()
        rate = lambda t: 0.1 / (1 + t)  # noqa: E731
        optimizer, updater = cls(theirs.parameters(), lr=1.0), ours(cls.__name__, {"lr": rate}).bind(mine)
        for t in range(STEPS):
            for model in (theirs, mine):
                for n, p in model.named_parameters():
                    p.grad = gradient(p, n, t, False)
            optimizer.param_groups[0]["lr"] = rate(t)
            optimizer.step()
            updater.step()
            for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)

    in_double(run)


SPARSE = [row for row in inputs() if next(i for i in optim_db if i.optim_cls is row.values[0]).supports_sparse]
SPARSE = [
    row for row in SPARSE if not {"weight_decay", "momentum"} & set(row.values[1])
]  # these go on without gradients


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(("cls", "kwargs"), SPARSE)
def test_a_class_that_takes_sparse_gradients_takes_them_here(cls, kwargs):
    """It moves the rows that a gradient names, and no others, and counts as torch does."""
    in_double(compare, cls, kwargs, ours(cls.__name__, kwargs), None, True)


def test_some_class_takes_sparse_gradients():
    assert {row.values[0].__name__ for row in SPARSE} >= {"Adagrad", "SGD"}


def test_every_class_of_torch_optim_is_here_or_has_its_reason():
    """Those without a chain are named, and no name is stale."""
    classes = {n for n, c in vars(torch.optim).items() if isinstance(c, type) and n != "Optimizer"}
    tried = {info.optim_cls.__name__ for info in optim_db}
    assert classes == tried
    assert set(WITHOUT) <= classes
    assert [n for n in WITHOUT if hasattr(gch.rules, n.lower())] == ["Muon"], "the others are compared as all are"
    assert len(list(inputs())) > 60


@pytest.mark.parametrize("wrong", ["b1", "weight_decay", "maximize"])
def test_another_argument_is_seen(wrong):
    """The comparison fails where one number, or one flag, is another."""
    other = {"b1": 0.9001, "weight_decay": 1e-4, "maximize": True}[wrong]
    with pytest.raises(AssertionError):
        in_double(
            compare, torch.optim.Adam, {"weight_decay": 0.1}, gch.adam(1e-3, **{"weight_decay": 0.1, wrong: other})
        )


@pytest.mark.parametrize("alias", [gch.adam, gch.adamw])
def test_amsgrad_does_not_look_ahead(alias):
    """Nobody has both; the sentence says which argument to change."""
    with pytest.raises(ValueError, match=rf"^{alias.__name__}: nesterov must be False with amsgrad=True, got True\.$"):
        alias(1e-3, nesterov=True, amsgrad=True)
