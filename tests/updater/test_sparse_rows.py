"""Sparse gradients: those of the rows they name. Held to torch's sparse optimizers, to each row alone, to the rules."""

import copy
import math
from typing import Annotated

import pytest
import torch
from little import same
from torch import nn

import gradchain as gch

ROWS, WIDE = 12, 4
RUNS = ["native", "reference"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),  # of torch's own optimizers, and of ours none
    pytest.mark.filterwarnings("ignore:Sparse CSR"),
]


class SumState(gch.State):
    total: Annotated[gch.Tensors, "[0, inf] or NaN"]


class scale_by_squares(gch.Transform):
    """Adagrad, as a user writes it."""

    descends = False
    per_parameter = True

    eps: float = 1e-10

    def init(self, params):
        return SumState(params.slow_slot())

    def update(self, g, state, ctx):
        total = state.total + g * g
        return g / (total.sqrt() + self.eps), SumState(total)


def sparse_adam_eps(t):
    """SparseAdam adds its eps before the correction, Adam after it."""
    return 1e-8 / math.sqrt(1 - 0.999 ** (t + 1))


def words(kind="embedding", dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    if kind == "bag":
        return nn.EmbeddingBag(ROWS, WIDE, sparse=True, mode="sum", dtype=dtype)
    return nn.Embedding(ROWS, WIDE, sparse=True, dtype=dtype)


def ids_at(t, seed=0, empty=False):
    """Rows with duplicates, others at each step; none at some where `empty`."""
    generator = torch.Generator().manual_seed(1000 * seed + t)
    many = 0 if empty and t % 3 == 2 else int(torch.randint(1, 7, (), generator=generator))
    return torch.randint(0, ROWS, (many,), generator=generator)


def loss_at(model, t, **how):
    ids = ids_at(t, **how)
    out = model(ids[None]) if isinstance(model, nn.EmbeddingBag) and len(ids) else model(ids)
    if isinstance(model, nn.EmbeddingBag) and not len(ids):
        return (model.weight * 0).sum()
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
    return (out.tanh() * weights).sum()


def made_to_run(updater, run):
    if run == "reference":
        updater._bound.engine.executors = ()
    return updater


def check_ran(updater, run):
    engine = updater._bound.engine
    if run == "reference":
        assert engine.reason == "no executor may run it"
    else:
        assert not engine.reason and engine.last and {part.executor for part in engine.last} == {"native"}
        assert "native: update of" in updater.explain()


# as torch's

PEERS = {
    "SparseAdam": (lambda: gch.adam(0.05, eps=sparse_adam_eps), lambda p: torch.optim.SparseAdam(p, lr=0.05)),
    "SparseAdam, betas": (
        lambda: gch.adam(0.05, b1=0.5, b2=0.999, eps=sparse_adam_eps),
        lambda p: torch.optim.SparseAdam(p, lr=0.05, betas=(0.5, 0.999)),
    ),
    "SGD": (lambda: gch.sgd(0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    "Adagrad": (
        lambda: gch.chain(scale_by_squares(), gch.scale_by_learning_rate(0.1)),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
    ),
    "Adagrad, lr_decay": (
        lambda: gch.chain(scale_by_squares(), gch.scale_by_learning_rate(lambda t: 0.1 / (1 + t * 0.2))),
        lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.2),
    ),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("kind", ["embedding", "bag"])
@pytest.mark.parametrize("peer", PEERS)
def test_as_torch_has_it(peer, kind, run):
    """Other rows at each step, some twice: in float64 to 1e-12."""
    chain, optimizer = PEERS[peer]
    ours, theirs = words(kind), words(kind)
    updater, optimizer = made_to_run(chain().bind(ours), run), optimizer(theirs.parameters())
    for t in range(12):
        updater.update(loss_at(ours, t))
        check_ran(updater, run)
        optimizer.zero_grad()
        loss_at(theirs, t).backward()
        optimizer.step()
        assert (ours.weight - theirs.weight).abs().max() <= 1e-12
    if run == "native" and peer in ("SGD", "SparseAdam"):
        assert updater._bound.engine.num_replayed == 11


@pytest.mark.parametrize("run", RUNS)
def test_a_step_of_no_rows_counts_as_torch_has_it(run):
    """SparseAdam's count is per parameter: it goes on where a gradient names no row."""
    ours, theirs = words(), words()
    updater = made_to_run(gch.adam(0.05, eps=sparse_adam_eps).bind(ours), run)
    optimizer = torch.optim.SparseAdam(theirs.parameters(), lr=0.05)
    for t in range(9):
        updater.update(loss_at(ours, t, empty=True))
        check_ran(updater, run)
        optimizer.zero_grad()
        loss_at(theirs, t, empty=True).backward()
        optimizer.step()
    assert (ours.weight - theirs.weight).abs().max() <= 1e-12
    assert updater.state_dict()["links"]["scale_by_adam"]["count"] == 9


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_of_the_same_rows_is_torchs(nesterov, run):
    ours, theirs = words(), words()
    updater = made_to_run(gch.sgd(0.1, momentum=0.9, nesterov=nesterov).bind(ours), run)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, nesterov=nesterov)
    for _ in range(6):
        updater.update(loss_at(ours, 3))
        check_ran(updater, run)
        optimizer.zero_grad()
        loss_at(theirs, 3).backward()
        optimizer.step()
    assert (ours.weight - theirs.weight).abs().max() <= 1e-12


# each row as if it were alone: what is absent is not touched

ROW_CHAINS = {
    "sgd": lambda: gch.sgd(0.1),
    "momentum": lambda: gch.sgd(0.1, momentum=0.9),
    "nesterov": lambda: gch.sgd(0.1, momentum=0.9, nesterov=True),
    "lion": lambda: gch.lion(0.01, weight_decay=0),
    "squares": lambda: gch.chain(scale_by_squares(), gch.scale_by_learning_rate(0.1)),
    "sign": lambda: gch.chain(gch.scale_by_sign(), gch.scale_by_learning_rate(0.1)),
    "clip by value": lambda: gch.chain(gch.clip_by_value(0.3), gch.sgd(0.1)),
    "lazy decay": lambda: gch.chain(gch.trace(0.9), gch.add_decayed_weights(0.1, lazy=True), gch.scale(-0.1)),
    "lazy penalty": lambda: gch.chain(gch.add_decayed_weights(0.1, lazy=True), gch.trace(0.9), gch.scale(-0.1)),
    "schedule": lambda: gch.chain(gch.trace(0.9), gch.scale_by_learning_rate(gch.linear(0.2, 0.01, 8))),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("chain", ROW_CHAINS)
def test_each_row_is_updated_as_if_it_were_a_parameter(chain, run):
    """The twin has a parameter for each row, and those without a gradient are absent."""
    ours = words()
    rows = {str(i): nn.Parameter(row.clone()) for i, row in enumerate(ours.weight.detach())}
    updater = made_to_run(ROW_CHAINS[chain]().bind(ours), run)
    twin = ROW_CHAINS[chain]().bind(rows)
    for t in range(8):
        loss = loss_at(ours, t)
        (grad,) = torch.autograd.grad(loss, [ours.weight])
        grad = grad.coalesce()
        updater.update(loss_at(ours, t))
        check_ran(updater, run)
        named = {str(int(i)): g for i, g in zip(grad.indices()[0], grad.values(), strict=True)}
        twin.step(named)
        together = torch.stack([*rows.values()]).detach()
        assert (ours.weight - together).abs().max() <= 1e-12


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_what_is_absent_keeps_every_bit(dtype, run):
    """A NaN or an infinity in an absent row is nobody's business, nor is what is remembered of it."""
    ours = words(dtype=dtype)
    with torch.no_grad():
        ours.weight[0], ours.weight[1] = torch.nan, torch.inf
    updater = made_to_run(gch.chain(gch.clip_by_norm(1.0), gch.adam(0.1)).bind(ours), run)
    for t in range(4):
        before = ours.weight.detach().clone()
        slots = copy.deepcopy(updater.state_dict()["links"]["scale_by_adam"])
        ids = torch.tensor([3, 5, 5, 7 + t])
        updater.update((ours(ids).float() ** 2).sum())
        check_ran(updater, run)
        named = sorted({3, 5, 7 + t})
        rest = [i for i in range(ROWS) if i not in named]
        assert same(ours.weight.detach()[rest], before[rest])
        assert not torch.equal(ours.weight[named], before[named])
        after = updater.state_dict()["links"]["scale_by_adam"]
        for slot in ("mu", "nu"):
            assert same(after[slot]["weight"][rest], slots[slot]["weight"][rest])
            assert after[slot]["weight"].shape == (ROWS, WIDE)


# kernels equal the reference


def scaled_by_norm(g, w):
    return g / (g.norms() + 1.0)


CHAINS = {
    **ROW_CHAINS,
    "adam": lambda: gch.adam(0.05),
    "nadamw": lambda: gch.nadamw(0.05, weight_decay=0),
    "clip": lambda: gch.chain(gch.clip_by_norm(0.3), gch.adam(0.05)),
    "clip each": lambda: gch.chain(gch.clip_by_norm(0.3, per="tensor"), gch.adam(0.05)),
    "clip max": lambda: gch.chain(gch.clip_by_norm(0.3, p=math.inf), gch.adam(0.05)),
    "clip groups": lambda: gch.chain(
        gch.clip_by_norm(0.3, per=[gch.named("words*"), gch.named("head*")]), gch.adam(0.05)
    ),
    "amp": lambda: gch.chain(gch.amp_scale(64.0, always=True), gch.clip_by_norm(0.3), gch.adam(0.05)),
    "skip": lambda: gch.chain(gch.skip_nonfinite(), gch.adam(0.05)),
    "masked": lambda: gch.chain(
        gch.masked(gch.trace(0.9), gch.named("words*")), gch.masked(gch.clip_by_norm(0.2), gch.bias), gch.scale(-0.1)
    ),
    "decay elsewhere": lambda: gch.chain(
        gch.scale_by_adam(), gch.masked(gch.add_decayed_weights(0.1), ~gch.named("words*")), gch.scale(-0.05)
    ),
    "partition": lambda: gch.partition((gch.named("words*"), gch.adam(0.05)), (gch.rest, gch.sgd(0.1, momentum=0.9))),
    "frozen": lambda: gch.chain(gch.freeze(gch.named("words*"), until=2), gch.adam(0.05)),
    "frozen head": lambda: gch.chain(gch.freeze(gch.named("head*")), gch.adam(0.05)),
    "per parameter": lambda: gch.adam(gch.multiply(0.05, (gch.named("words*"), 0.1))),
    "users": lambda: gch.chain(gch.stateless(scaled_by_norm), gch.adam(0.05)),
    "norm of three": lambda: gch.chain(gch.clip_by_norm(0.3, p=3), gch.adam(0.05)),
}
BY_REFERENCE = {"norm of three"}  # whose norm torch computes, of whole tensors


class Tagger(nn.Module):
    """Words, weights of words, and dense layers."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(5)
        self.words = nn.Embedding(ROWS, WIDE, sparse=True)
        self.words_bias = nn.Parameter(torch.zeros(ROWS))
        self.head = nn.Linear(WIDE, 3)
        self.to(dtype)

    def forward(self, ids):
        bias = torch.gather(self.words_bias, 0, ids, sparse_grad=True)
        return self.head(self.words(ids)) + bias[:, None]


def tagged(model, t, scale=1.0):
    out = model(ids_at(t, empty=True)).double()
    return (out.tanh() * torch.linspace(-1, 2, out.numel()).reshape(out.shape)).sum() * scale + sum(
        (p.double() ** 2).sum() for p in model.head.parameters()
    )


def spread(a, b):
    """The largest relative difference between two trees of tensors."""
    if isinstance(a, torch.Tensor):
        a, b = a.double(), b.double()
        return ((a - b).abs() / (1 + b.abs())).max().item() if a.numel() else 0.0
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return max((spread(a[k], b[k]) for k in a), default=0.0)
    assert type(a) is type(b)
    return abs(a - b) if isinstance(a, float) else float(a != b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chain", CHAINS)
def test_kernels_equal_the_reference(chain, dtype):
    """Two sparse parameters, of one and two dimensions, beside dense ones; at some steps no row is named."""
    models = [Tagger(dtype), Tagger(dtype)]
    ours, law = (CHAINS[chain]().bind(model) for model in models)
    law._bound.engine.executors = ()
    bound = {torch.float64: 1e-13, torch.float32: 1e-5}.get(dtype, 2e-2)
    for t in range(7):
        for updater, model in zip((ours, law), models, strict=True):
            updater.update(tagged(model, t))
        check_ran(law, "reference")
        if chain in BY_REFERENCE:
            assert "rows only" in ours._bound.engine.reason
        else:
            check_ran(ours, "native")
        state = [{n: p.detach() for n, p in model.named_parameters()} for model in models]
        assert spread(*state) <= bound
        assert spread(ours.state_dict()["links"], law.state_dict()["links"]) <= bound


def test_the_norm_of_a_sparse_gradient_is_that_of_the_dense_one():
    sparse, dense = words(), words()
    dense.sparse = False
    norms = []
    for model in (sparse, dense):
        updater = gch.chain(gch.clip_by_norm(0.1), gch.sgd(1.0)).bind(model)
        norms.append(updater.update(loss_at(model, 1))["clip_by_norm.norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-14)
    assert (sparse.weight - dense.weight).abs().max() <= 1e-15


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("gate", ["amp", "skip"])
def test_an_overflow_in_a_named_row_holds(gate, run):
    ours = words()
    updater = made_to_run(CHAINS[gate]().bind(ours), run)
    updater.update(loss_at(ours, 0))
    before = copy.deepcopy((ours.state_dict(), updater.state_dict()["links"]["scale_by_adam"]))
    assert not updater.update(loss_at(ours, 1) * torch.inf)
    assert same(before, (ours.state_dict(), updater.state_dict()["links"]["scale_by_adam"]))
    assert updater.update(loss_at(ours, 2))
    assert updater.num_skipped == 1


# windows


def window_of(k, **how):
    return gch.chain(gch.accumulate(k, **how), gch.clip_by_norm(1.0), gch.adam(0.05))


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_a_window_sums_rows_and_is_one_update(reduce, run):
    """Each row once, the rows of all micro-batches; as one update by the summed loss."""
    ours, whole = words(), words()
    updater = made_to_run(window_of(3, reduce=reduce).bind(ours), run)
    twin = gch.chain(gch.clip_by_norm(1.0), gch.adam(0.05)).bind(whole)
    for window in range(4):
        for k in range(3):
            info = updater.update(loss_at(ours, 3 * window + k))
        assert info.applied
        check_ran(updater, run)
        loss = sum(loss_at(whole, 3 * window + k) for k in range(3))
        twin.update(loss / 3 if reduce == "mean" else loss)
        assert (ours.weight - whole.weight).abs().max() <= 1e-12
        assert ours.weight.grad is None


def test_weights_of_micro_batches_count_rows():
    ours, whole = words(), words()
    updater, twin = gch.chain(gch.accumulate(2), gch.sgd(0.1)).bind(ours), gch.sgd(0.1).bind(whole)
    for t in (0, 2):
        for k, weight in enumerate((1.0, 300.0)):
            updater.update(loss_at(ours, t + k), weight=weight)
        twin.update((loss_at(whole, t) + 300.0 * loss_at(whole, t + 1)) / 301.0)
        assert (ours.weight - whole.weight).abs().max() <= 1e-12


@pytest.mark.parametrize("close", ["flush", "last"])
def test_a_window_closes_early(close):
    ours, whole = words(), words()
    updater, twin = window_of(4).bind(ours), gch.chain(gch.clip_by_norm(1.0), gch.adam(0.05)).bind(whole)
    for t in (0, 2):
        updater.update(loss_at(ours, t))
        info = updater.update(loss_at(ours, t + 1), last=close == "last")
        if close == "flush":
            info = updater.flush()
        assert info.applied
        twin.update((loss_at(whole, t) + loss_at(whole, t + 1)) / 2)
        assert (ours.weight - whole.weight).abs().max() <= 1e-12


@pytest.mark.parametrize("how", ["files", "safetensors", "dict"])
def test_an_open_window_of_rows_is_saved(how, tmp_path):
    """Killing the run between any two lines loses nothing, and a row that was not named stays unnamed."""
    if how == "safetensors":
        pytest.importorskip("safetensors")
    one = words()
    straight = window_of(3).bind(one)
    for t in range(9):
        straight.update(loss_at(one, t))
    for at in (1, 2, 3, 4):
        first = words()
        updater = window_of(3).bind(first)
        for t in range(at):
            updater.update(loss_at(first, t))
        second = words(seed=9)
        other = window_of(3).bind(second)
        if how == "dict":
            second.load_state_dict(first.state_dict())
            other.load_state_dict(updater.state_dict())
        else:
            path = tmp_path / f"run.{'pt' if how == 'files' else 'safetensors'}"
            updater.save(path, format="safetensors" if how == "safetensors" else "torch")
            other.load(path)
        for t in range(at, 9):
            other.update(loss_at(second, t))
        assert same(second.weight, one.weight)
        assert same(other.state_dict()["links"], straight.state_dict()["links"])


BAD_WINDOWS = {
    "order": lambda rows, values: (rows.flip(0), values),
    "twice": lambda rows, values: (rows * 0 + 1, values),
    "beyond": lambda rows, values: (rows + ROWS, values),
    "below": lambda rows, values: (rows - ROWS, values),
    "int32": lambda rows, values: (rows.int(), values),
    "short": lambda rows, values: (rows, values[1:]),
    "narrow": lambda rows, values: (rows, values[:, 1:]),
    "integers": lambda rows, values: (rows, values.long()),
    "sparse": lambda rows, values: (rows, values.to_sparse()),
}


@pytest.mark.parametrize("bad", BAD_WINDOWS)
def test_a_window_of_rows_that_is_none_is_not_loaded(bad):
    ours = words()
    updater = window_of(3).bind(ours)
    updater.update((ours(torch.tensor([2, 4, 9])) ** 2).sum())
    state = updater.state_dict()
    saved = state["links"]["accumulate"]["window"]["weight"]
    rows, values = BAD_WINDOWS[bad](saved["rows"], saved["values"])
    state["links"]["accumulate"]["window"]["weight"] = {"rows": rows, "values": values}
    with pytest.raises(ValueError, match=r"accumulate\.window"):
        updater.load_state_dict(state)
    updater.update((ours(torch.tensor([1])) ** 2).sum())
    assert updater.update((ours(torch.tensor([1])) ** 2).sum()).applied


def test_a_dropped_window_of_rows_leaves_nothing():
    ours, twin = words(), words()
    updater = window_of(2).bind(ours)
    updater.update(loss_at(ours, 5))
    updater.zero_grad()
    assert ours.weight.grad is None
    other = window_of(2).bind(twin)
    for t in range(2):
        updater.update(loss_at(ours, t))
        other.update(loss_at(twin, t))
    assert same(ours.weight, twin.weight)


# ways in


@pytest.mark.parametrize("run", RUNS)
def test_gradients_given_by_name_stay_the_users(run):
    """Uncoalesced ones are summed where they name a row twice."""
    ours, whole = words(), words()
    updater, twin = made_to_run(gch.adam(0.1).bind(ours), run), made_to_run(gch.adam(0.1).bind(whole), run)
    generator = torch.Generator().manual_seed(0)
    for rows in ([3, 3, 1], [0, 4, 4, 4], [11]):
        values = torch.randn(len(rows), WIDE, generator=generator, dtype=torch.float64)
        grad = torch.sparse_coo_tensor(torch.tensor([rows]), values, (ROWS, WIDE))
        kept = grad.clone()
        updater.step({"weight": grad})
        check_ran(updater, run)
        assert torch.equal(grad.to_dense(), kept.to_dense())
        twin.step({"weight": kept.coalesce()})
        assert same(ours.weight, whole.weight)


def test_kept_gradients_are_what_the_chain_received():
    ours = words()
    updater = gch.adam(0.1).bind(ours)
    (expected,) = torch.autograd.grad(loss_at(ours, 4), [ours.weight])
    updater.update(loss_at(ours, 4), keep_grads=True)
    assert ours.weight.grad.is_sparse and torch.equal(ours.weight.grad.to_dense(), expected.to_dense())
    updater.zero_grad()
    assert ours.weight.grad is None


def test_a_window_whose_gradients_are_kept():
    ours, twin = words(), words()
    updater, other = window_of(2).bind(ours), window_of(2).bind(twin)
    for t in range(6):
        updater.update(loss_at(ours, t), keep_grads=True)
        other.update(loss_at(twin, t))
    assert (ours.weight - twin.weight).abs().max() <= 1e-15


@pytest.mark.parametrize("run", RUNS)
def test_a_closure_that_no_link_evaluates_again(run):
    ours, twin = words(), words()
    updater, other = made_to_run(gch.adam(0.1).bind(ours), run), made_to_run(gch.adam(0.1).bind(twin), run)
    for t in range(3):
        updater.update(lambda t=t: loss_at(ours, t))
        check_ran(updater, run)
        other.update(loss_at(twin, t))
    assert same(ours.weight, twin.weight)


@pytest.mark.parametrize("run", RUNS)
def test_a_link_of_a_users_that_evaluates_is_told(run):
    class looks_ahead(gch.Transform):
        descends = False

        def update(self, g, state, ctx):
            _, u = ctx.evaluate(ctx.new_params(g))
            return u, state

    model = words()
    updater = made_to_run(gch.chain(looks_ahead(), gch.sgd(0.1)).bind(model), run)
    before = model.weight.detach().clone()
    with pytest.raises(ValueError, match=r"^looks_ahead: evaluates whole weights, and a gradient is sparse"):
        updater.update(lambda: loss_at(model, 0))
    assert torch.equal(model.weight, before)


def test_losses_of_one_micro_batch_sum_their_rows():
    ours, twin = words(), words()
    updater, other = gch.adam(0.1).bind(ours), gch.adam(0.1).bind(twin)
    for t in (0, 2, 4):
        updater.backward(loss_at(ours, t))
        updater.backward(loss_at(ours, t + 1))
        updater.step()
        other.update(loss_at(twin, t) + loss_at(twin, t + 1))
    assert (ours.weight - twin.weight).abs().max() <= 1e-13


def test_an_optimizer_over_the_updater_takes_rows():
    ours, theirs = words(), words()
    optimizer = gch.adam(0.05, eps=sparse_adam_eps).bind(ours).as_optimizer()
    peer = torch.optim.SparseAdam(theirs.parameters(), lr=0.05)
    for t in range(5):
        for model, one in ((ours, optimizer), (theirs, peer)):
            one.zero_grad()
            loss_at(model, t).backward()
            one.step()
    assert (ours.weight - theirs.weight).abs().max() <= 1e-12


@pytest.mark.parametrize("executors", ["blocks", "patterns,blocks"])
def test_executors_of_whole_tensors_leave_rows_to_the_reference(executors, monkeypatch):
    monkeypatch.setenv("GRADCHAIN_EXECUTORS", executors)
    ours, theirs = words(), words()
    updater = gch.adam(0.05, eps=sparse_adam_eps).bind(ours)
    peer = torch.optim.SparseAdam(theirs.parameters(), lr=0.05)
    for t in range(5):
        updater.update(loss_at(ours, t))
        assert "it runs whole tensors, not rows" in updater._bound.engine.reason
        peer.zero_grad()
        loss_at(theirs, t).backward()
        peer.step()
    assert (ours.weight - theirs.weight).abs().max() <= 1e-12


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("chain", ["adam", "lazy decay", "per parameter", "partition"])
def test_in_backward(chain, run):
    models = [Tagger(torch.float64), Tagger(torch.float64)]
    apart, together = CHAINS[chain]().bind(models[0], in_backward=True), CHAINS[chain]().bind(models[1])
    for t in range(4):
        apart.update(tagged(models[0], t))
        together.update(tagged(models[1], t))
        for (_, p), (_, q) in zip(*(m.named_parameters() for m in models), strict=True):
            assert (p - q).abs().max() <= 1e-13
    assert spread(apart.state_dict()["links"], together.state_dict()["links"]) <= 1e-13
    engine = apart._walk.in_backward._engines["words.weight"]
    assert not engine.reason and {part.executor for part in engine.last} == {"native"}


@pytest.mark.parametrize("run", RUNS)
def test_sparse_at_one_step_and_dense_at_the_next(run):
    """A dense gradient is that of all rows: Adam moves rows that it had once."""
    ours, law = words(), words()
    updater, twin = gch.adam(0.1).bind(ours), gch.adam(0.1).bind(law)
    made_to_run(updater, run)
    twin._bound.engine.executors = ()
    for t, sparse in enumerate((True, False, False, True, True, False, True)):
        for model, one in ((ours, updater), (law, twin)):
            model.sparse = sparse
            before = model.weight.detach().clone()
            one.update(loss_at(model, t))
            moved = int((model.weight != before).any(1).sum())
            assert moved <= len(set(ids_at(t).tolist())) if sparse else True
        check_ran(updater, run)
        assert (ours.weight - law.weight).abs().max() <= 1e-14


def test_tied_with_a_dense_use_the_gradient_is_dense():
    """torch's sum of a sparse and a dense gradient is dense: bind refuses nothing, and every row moves."""

    def model():
        torch.manual_seed(3)
        net = nn.ModuleDict({"words": nn.Embedding(6, 3, sparse=True), "out": nn.Linear(3, 6, bias=False)}).double()
        net["out"].weight = net["words"].weight
        return net

    def loss(net):
        return net["out"](net["words"](torch.tensor([1, 2]))).square().sum()

    ours, theirs = model(), model()
    theirs["words"].sparse = False
    updater, twin = gch.adamw(0.1).bind(ours), gch.adamw(0.1).bind(theirs)
    for _ in range(3):
        updater.update(loss(ours))
        twin.update(loss(theirs))
    assert (ours["words"].weight - theirs["words"].weight).abs().max() <= 1e-14


@pytest.mark.parametrize("run", RUNS)
def test_other_shapes_of_rows(run):
    """Rows of one element, of matrices, of none; weights that do not lie row by row; complex ones."""
    generator = torch.Generator().manual_seed(4)
    makers = {
        "one": lambda: torch.randn(7, dtype=torch.float64, generator=generator),
        "matrices": lambda: torch.randn(7, 3, 5, dtype=torch.float64, generator=generator),
        "wide": lambda: torch.randn(5, 70_001, generator=generator),
        "none": lambda: torch.randn(7, 0, generator=generator),
        "turned": lambda: torch.randn(4, 7, dtype=torch.float64, generator=generator).t(),
        "complex": lambda: torch.randn(7, 3, dtype=torch.complex128, generator=generator),
    }
    for name, make in makers.items():
        value = make()
        weight = nn.Parameter(value.clone())
        rows = {str(i): nn.Parameter(row.clone()) for i, row in enumerate(value)}
        updater = made_to_run(gch.sgd(0.1, momentum=0.5).bind({"w": weight}), run)
        twin = gch.sgd(0.1, momentum=0.5).bind(rows)
        for which in ([0, 3], [3], [1, 2, 4]):
            values = torch.randn((len(which), *value.shape[1:]), dtype=value.dtype, generator=generator)
            updater.step({"w": torch.sparse_coo_tensor(torch.tensor([which]), values, value.shape)})
            twin.step({str(i): v for i, v in zip(which, values, strict=True)})
        assert torch.allclose(weight, torch.stack([*rows.values()]), rtol=1e-6, atol=1e-6), name


def test_threads_do_not_matter():
    """Enough rows for a second thread: the same bits, and the norm's too."""
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            model = nn.Embedding(20_000, 32, sparse=True)
            updater = gch.chain(gch.clip_by_norm(1e-3), gch.adam(0.1)).bind(model)
            for _ in range(3):
                info = updater.update((model(torch.randperm(20_000)[:12_000]) ** 2).sum())
                check_ran(updater, "native")
            found.append((model.weight.detach().clone(), info["clip_by_norm.norm"]))
    finally:
        torch.set_num_threads(before)
    assert same(found[0], found[1])


def test_the_number_of_rows_makes_no_new_plan():
    model = words()
    updater = gch.adam(0.1).bind(model)
    for t in range(30):
        updater.update(loss_at(model, t, empty=True))
    assert updater._bound.engine.num_plans == 1
    assert updater._bound.engine.num_replayed == 29


def test_plans_are_kept_for_a_few_sets_of_sparse_parameters():
    model = nn.ModuleList([words(seed=i) for i in range(5)])
    law = copy.deepcopy(model)
    updater, twin = gch.adam(0.1).bind(model), gch.adam(0.1).bind(law)
    twin._bound.engine.executors = ()
    generator = torch.Generator().manual_seed(0)
    for t in range(40):
        chosen = torch.randint(1, 32, (), generator=generator).item()
        for net, one in ((model, updater), (law, twin)):
            one.update(sum(loss_at(net[i], t, seed=i) for i in range(5) if chosen >> i & 1))
        check_ran(updater, "native")
    assert len(updater._bound.engine._of_rows) <= 8
    assert spread(model.state_dict(), law.state_dict()) <= 1e-13


@pytest.mark.parametrize("run", RUNS)
def test_resuming_goes_on_as_before(run, tmp_path):
    model = Tagger(torch.float64)
    updater = made_to_run(CHAINS["clip"]().bind(model), run)
    for t in range(4):
        updater.update(tagged(model, t))
    updater.save(tmp_path / "run.pt")
    other = Tagger(torch.float64)
    resumed = made_to_run(CHAINS["clip"]().bind(other), run)
    resumed.load(tmp_path / "run.pt")
    for t in range(4, 9):
        updater.update(tagged(model, t))
        resumed.update(tagged(other, t))
    assert same({**model.state_dict()}, {**other.state_dict()})
    assert same(updater.state_dict(), resumed.state_dict())
    twin = copy.deepcopy((model, updater))
    made_to_run(twin[1], run)
    for net, one in ((model, updater), twin):
        one.update(tagged(net, 11))
    assert same({**model.state_dict()}, {**twin[0].state_dict()})


def test_the_average_at_ticks_runs_over_every_row():
    model, average = words(), words().weight.detach().clone()
    updater = gch.chain(gch.adam(0.1), gch.average_params(0.5, on="ema")).bind(model)
    for t in range(5):
        updater.update(loss_at(model, t))
        updater.tick("ema")
        average = 0.5 * average + 0.5 * model.weight.detach()
    assert (updater.averages()["weight"] - average).abs().max() <= 1e-15
    with updater.averaged():
        assert (model.weight - average).abs().max() <= 1e-15


def test_autograd_is_told_that_rows_were_written():
    model = words()
    updater = gch.sgd(0.1).bind(model)
    updater.update(loss_at(model, 0))
    held = (model.weight**2).sum()
    updater.update(loss_at(model, 1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        held.backward()


# what cannot be meant

REFUSED = {
    "decay": (lambda: gch.adamw(0.1), "add_decayed_weights, got sparse ones, .*lazy=True"),
    "penalty": (lambda: gch.chain(gch.add_decayed_weights(0.1), gch.sgd(0.1)), "add_decayed_weights.*lazy=True"),
    "decay under a mask": (
        lambda: gch.chain(gch.masked(gch.add_decayed_weights(0.1), gch.min_ndim(2)), gch.sgd(0.1)),
        "masked/add_decayed_weights.*lazy=True",
    ),
    "average": (lambda: gch.chain(gch.sgd(0.1), gch.average_params(0.9)), 'average_params.*on="ema".*tick'),
    "mean": (lambda: gch.chain(gch.sgd(0.1), gch.average_params("mean")), 'average_params.*on="ema"'),
    "project": (lambda: gch.chain(gch.sgd(0.1), gch.project(lambda w: w.clamp(-1, 1))), "project.*masked"),
    "sam": (lambda: gch.chain(gch.sam(0.1), gch.sgd(0.1)), "sam.*sparse=False"),
    "torch's": (lambda: gch.from_torch("RMSprop", lr=0.1), "from_torch.*partition"),
}


@pytest.mark.parametrize("kind", ["embedding", "bag"])
@pytest.mark.parametrize("chain", REFUSED)
def test_what_needs_all_rows_is_told_at_bind(chain, kind):
    make, told = REFUSED[chain]
    with pytest.raises(ValueError, match=f"^bind: 'weight' must have dense gradients for .*{told}"):
        make().bind(words(kind))


@pytest.mark.parametrize("chain", [name for name in REFUSED if name != "sam"])
def test_where_bind_could_not_know_the_step_says_it(chain):
    """Nothing changes on an error."""
    make, told = REFUSED[chain]
    weight = nn.Parameter(torch.ones(4, 2))
    updater = make().bind({"words": weight})
    before = copy.deepcopy(updater.state_dict())
    with pytest.raises(ValueError, match=f"^step: 'words' must have dense gradients for .*{told}"):
        updater.update(nn.functional.embedding(torch.tensor([1]), weight, sparse=True).sum())
    assert torch.equal(weight, torch.ones(4, 2)) and same(updater.state_dict(), before)
    updater.update(nn.functional.embedding(torch.tensor([1]), weight, sparse=False).sum())


NOT_ROWS = {
    "two dimensions": (lambda: torch.eye(4, 2).to_sparse(), TypeError, "sparse in 2 of its 2 dimensions.*to_dense"),
    "csr": (lambda: torch.eye(4, 2).to_sparse_csr(), TypeError, "COO layout.*to_dense"),
    "gather": (None, TypeError, "sparse in 2 of its 2 dimensions.*sparse_grad=False"),
    "shape": (lambda: torch.ones(5, 2).to_sparse(1), ValueError, "have shape .4, 2., got shape .5, 2."),
}


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("kind", NOT_ROWS)
def test_what_is_sparse_but_not_of_rows_is_refused_with_its_cure(kind, in_backward):
    make, error, told = NOT_ROWS[kind]
    weight = nn.Parameter(torch.ones(4, 2))
    updater = gch.sgd(0.1).bind({"words": weight}, in_backward=in_backward)
    with pytest.raises(error, match=f"^step: the gradient of 'words' must .*{told}"):
        if make is None:
            updater.update(torch.gather(weight, 0, torch.tensor([[1, 1]]), sparse_grad=True).sum())
        elif not in_backward:
            updater.step({"words": make()})
        else:
            pytest.skip("gradients are not given to an updater bound in backward")
    assert torch.equal(weight, torch.ones(4, 2))


WINDOWS = {
    "a dtype": lambda: gch.chain(gch.accumulate(2, dtype=torch.float32), gch.sgd(0.1)),
    "behind a gate": lambda: gch.chain(gch.skip_nonfinite(), gch.accumulate(2), gch.sgd(0.1)),
    "in a branch": lambda: gch.partition((gch.everything, gch.chain(gch.accumulate(2), gch.sgd(0.1)))),
}


@pytest.mark.parametrize("kind", WINDOWS)
def test_windows_elsewhere_than_in_grad_are_refused(kind):
    model = words()
    updater = WINDOWS[kind]().bind(model)
    before = model.weight.detach().clone()
    with pytest.raises(ValueError, match=r"must be dense for .*accumulate.*first in the chain, without a dtype"):
        updater.update(loss_at(model, 0))
    assert torch.equal(model.weight, before)
    with pytest.raises(ValueError, match="first in the chain"):
        window_of(2).bind(model).step({"weight": torch.eye(ROWS, WIDE).double().to_sparse(1)})


def test_links_say_whether_they_take_rows():
    class whitens(gch.Transform):
        descends = False
        refuses_rows = "needs whole matrices. Give dense gradients."

        def update(self, g, state, ctx):
            return g, state

    with pytest.raises(ValueError, match=r"for whitens, got sparse ones, .* it needs whole matrices. Give dense gradi"):
        gch.chain(whitens(), gch.sgd(0.1)).bind(words())
    gch.chain(gch.masked(whitens(), gch.bias), gch.sgd(0.1)).bind(Tagger(torch.float32))


def test_lazy_is_part_of_the_link():
    link = gch.add_decayed_weights(0.1, lazy=True)
    assert repr(link) == "add_decayed_weights(0.1, lazy=True)"
    assert gch.from_config(gch.to_config(link)) == link != gch.add_decayed_weights(0.1)
    assert "lazy" not in str(gch.to_config(gch.add_decayed_weights(0.1)))
    with pytest.raises(TypeError, match=r"add_decayed_weights: lazy must be True or False, got 1\."):
        gch.add_decayed_weights(0.1, lazy=1)
