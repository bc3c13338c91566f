"""A loss or gradient that a link evaluates and that is not finite passes the gates as the first gradient does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from little import DOUBLE, data, loss_of, net, same, untouched, weights
from torch import Tensor, nn

import gradchain as gch

STEP = gch.sgd(0.1, momentum=0.9)
AMP = gch.amp_scale(1024.0, growth_interval=3, always=True)
SKIP = gch.skip_nonfinite()


class looks(gch.Transform):
    """Evaluates at several points on its way, and gives the mean of what it found."""

    descends = False
    many: int = 3

    def init(self, params):
        return Looked(gch.Count(params))

    def update(self, g, state, ctx):
        total = 0.0 * g
        for k in range(self.many):
            _, found = ctx.evaluate(ctx.new_params(-0.01 * k * g))
            total = total + found
        return total / self.many, Looked(state.count.tick(g))


class Looked(gch.State):
    """How often it looked."""

    count: gch.Count


class uphill(gch.Transform):
    """A link of a user's that takes the gradient uphill, wherever it is put: behind a window too."""

    descends = False

    def update(self, g, state, ctx):
        _, u = ctx.evaluate(ctx.new_params(0.3 / (g.norm() + 1e-12) * g))
        return u, state


class halves(gch.Transform):
    """A line search that takes half the way until the loss is finite, and gives up after a few."""

    descends = True

    def update(self, g, state, ctx):
        for k in range(4):
            way = -(0.5**k) * g
            loss, _ = ctx.evaluate(ctx.new_params(way), gated=False)
            if math.isfinite(loss.item()):
                return way, state
        ctx.refuse("no point on the way has a finite loss")


class spoils(torch.autograd.Function):
    """The identity, whose derivative is what it is told."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


BAD: dict[str, Callable[[Tensor], Tensor]] = {
    "loss nan": lambda loss: loss * math.nan,
    "loss inf": lambda loss: loss + math.inf,
    "gradient nan": lambda loss: spoils.apply(loss, math.nan),
    "gradient inf": lambda loss: spoils.apply(loss, math.inf),
}


class Evaluated:
    """A closure that counts its calls, and is spoiled at some of them."""

    def __init__(self, model: nn.Module, rows: Tensor, spoil: Callable[[Tensor], Tensor], at: Iterable[int]) -> None:
        self.model, self.rows, self.spoil, self.at = model, rows, spoil, set(at)
        self.calls = 0

    def __call__(self) -> Tensor:
        self.calls += 1
        loss = loss_of(self.model, self.rows)
        return self.spoil(loss) if self.calls in self.at else loss


def branches(*links: gch.Transform) -> gch.Transform:
    """The links as a branch for weights, beside one for biases."""
    return gch.partition(("all", gch.min_ndim(2), gch.chain(*links)), ("bias", gch.bias, STEP))


ASKERS = {"sam": gch.sam(0.3), "several": looks()}
GATES = {"overflow": AMP, "nonfinite": SKIP}


def _chains(asker: gch.Transform, gate: gch.Transform) -> dict[str, gch.Transform]:
    return {
        "before": gch.chain(gate, asker, STEP),
        "after": gch.chain(asker, gate, STEP),
        "behind a window": gch.chain(gch.accumulate(1), gate, uphill() if isinstance(asker, gch.sam) else asker, STEP),
        "clipped": gch.chain(gate, gch.clip_by_norm(0.1), asker, STEP),
        "outside a branch": gch.chain(gate, branches(asker, STEP)),
        "outside a mask": gch.chain(gate, gch.masked(asker, gch.min_ndim(2)), STEP),
    }


PLACES = tuple(_chains(ASKERS["sam"], SKIP))


def _begin(tx: gch.Transform, executor: str) -> tuple[nn.Module, gch.Updater]:
    model = net()
    updater = tx.bind(model)
    if executor == "reference":
        updater._bound.engine.executors = ()
    return model, updater


def _without(state: dict[str, Any], *names: str) -> dict[str, Any]:
    """The states of links, but for some."""
    return {name: inner for name, inner in state["links"].items() if name not in names}


@pytest.mark.parametrize("executor", ["native", "reference"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    ("asker", "place"), [(a, p) for a in ASKERS for p in PLACES if (a, p) != ("several", "after")]
)  # what remembers each parameter must not stand before a gate
@pytest.mark.parametrize("reason", GATES)
def test_a_gate_holds_for_an_evaluation(asker: str, reason: str, place: str, bad: str, executor: str) -> None:
    """Whichever evaluation it is: nothing is applied, the gate is as for a bad gradient, the rest stays."""
    tx = _chains(ASKERS[asker], GATES[reason])[place]
    calls = {"sam": 2, "several": 4}[asker]
    for spoiled in range(2, calls + 1):
        model, updater = _begin(tx, executor)
        for rows in data(2):
            assert updater.update(Evaluated(model, rows, BAD[bad], ()))
        before, state = weights(model), updater.state_dict()
        info = updater.update(Evaluated(model, data(3)[2], BAD[bad], (spoiled,)))
        assert not info and info.reason == reason
        kind = bad.partition(" ")[0]
        assert f"the {kind} that" in info.detail and "evaluated" in info.detail
        if kind == "gradient":
            assert "0.weight" in info.detail
        assert same(weights(model), before)
        assert (updater.num_updates, updater.num_micro, updater.num_skipped) == (2, 3, 1)
        gate = "amp_scale" if reason == "overflow" else "skip_nonfinite"
        assert same(_without(updater.state_dict(), gate), _without(state, gate))
        now, was = updater.state_dict()["links"][gate], state["links"][gate]
        if reason == "overflow":
            assert now == {"scale": was["scale"] / 2, "growth_tracker": 0} and was["growth_tracker"] == 2
            assert info["amp_scale.scale"] == was["scale"]
        else:
            assert now == {"consecutive": 1} and info.detail.endswith("skipped in a row: 1")
        assert all(p.grad is None for p in model.parameters())
        assert updater.update(Evaluated(model, data(3)[2], BAD[bad], ()))
        assert updater.state_dict()["links"]["skip_nonfinite" if reason == "nonfinite" else gate] != now


@pytest.mark.parametrize("reason", GATES)
def test_after_it_a_run_goes_on_as_if_it_had_not_been(reason: str) -> None:
    """Apart from the gate's own numbers: the same weights and moments as without the skipped update."""
    results = []
    for spoiled in (True, False):
        model, updater = _begin(gch.chain(GATES[reason], gch.sam(0.3), gch.adam(0.05)), "native")
        for k, rows in enumerate(data(5)):
            if spoiled and k % 2:
                assert not updater.update(Evaluated(model, rows, BAD["loss nan"], (2,)))
            updater.update(Evaluated(model, rows, BAD["loss nan"], ()))
        results.append(weights(model))
    if reason == "nonfinite":
        assert same(*results)
    else:  # under other scales, which are powers of two
        assert all(torch.allclose(results[0][n], results[1][n], rtol=1e-12, atol=0) for n in results[0])


def test_the_first_active_gate_counts() -> None:
    """With both in the chain it is the one that would have seen the gradient first; an idle one is passed over."""
    for tx, reason in (
        (gch.chain(AMP, SKIP, gch.sam(0.3), STEP), "overflow"),
        (gch.chain(SKIP, AMP, gch.sam(0.3), STEP), "nonfinite"),
        (gch.chain(SKIP, gch.sam(0.3), AMP, STEP), "nonfinite"),
        (gch.chain(gch.sam(0.3), AMP, SKIP, STEP), "overflow"),
    ):
        model, updater = _begin(tx, "native")
        assert updater.update(Evaluated(model, data(1)[0], BAD["gradient inf"], (2,))).reason == reason
    with pytest.warns(UserWarning, match="amp_scale does nothing"):
        model, updater = _begin(gch.chain(gch.amp_scale(), SKIP, gch.sam(0.3), STEP), "native")
    assert updater.update(Evaluated(model, data(1)[0], BAD["gradient inf"], (2,))).reason == "nonfinite"


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("executor", ["native", "reference"])
def test_a_gate_in_a_branch_holds_its_branch(executor: str, bad: str) -> None:
    """What is not under it goes on."""
    model, updater = _begin(branches(SKIP, gch.sam(0.3), STEP), executor)
    updater.update(Evaluated(model, data(1)[0], BAD[bad], ()))
    before = weights(model)
    info = updater.update(Evaluated(model, data(1)[0], BAD[bad], (2,)))
    after = weights(model)
    assert info.applied and updater.num_skipped == 0
    for name in before:
        assert same(before[name], after[name]) == name.endswith("weight")
    assert updater.state_dict()["links"]["partition/all/skip_nonfinite"]["consecutive"] == 1
    assert updater.update(Evaluated(model, data(1)[0], BAD[bad], ())) and not same(
        weights(model)["0.weight"], before["0.weight"]
    )


def test_both_gates_of_a_branch_and_around_it() -> None:
    """The inner one holds, and the outer sees nothing amiss."""
    model, updater = _begin(gch.chain(AMP, branches(SKIP, gch.sam(0.3), STEP)), "native")
    assert updater.update(Evaluated(model, data(1)[0], BAD["loss nan"], (2,))).applied
    links = updater.state_dict()["links"]
    assert links["partition/all/skip_nonfinite"]["consecutive"] == 1
    assert links["amp_scale"] == {"scale": 1024.0, "growth_tracker": 1}


@pytest.mark.parametrize("executor", ["native", "reference"])
@pytest.mark.parametrize("bad", ["loss nan", "loss inf"])
@pytest.mark.parametrize("asker", ASKERS)
def test_without_a_gate_it_is_an_error_and_nothing_changes(asker: str, bad: str, executor: str) -> None:
    """As for the first loss."""
    model, updater = _begin(gch.chain(ASKERS[asker], STEP), executor)
    updater.update(Evaluated(model, data(1)[0], BAD[bad], ()))
    with (
        untouched(model, updater),
        pytest.raises(FloatingPointError, match=rf"update: the loss that {type(ASKERS[asker]).__name__} evaluated is"),
    ):
        updater.update(Evaluated(model, data(1)[0], BAD[bad], (2,)))
    assert updater.update(Evaluated(model, data(1)[0], BAD[bad], ()))


def test_too_many_in_a_row_raise() -> None:
    """Bad gradients and bad evaluations count together, and the error says what the last one was."""
    model, updater = _begin(gch.chain(gch.skip_nonfinite(2), gch.sam(0.3), STEP), "native")
    assert not updater.update(Evaluated(model, data(1)[0], BAD["gradient nan"], (1,)))
    assert not updater.update(Evaluated(model, data(1)[0], BAD["loss inf"], (2,)))
    with (
        untouched(model, updater),
        pytest.raises(
            FloatingPointError, match=r"at most 2 updates in a row .* got 3; the gradient that sam evaluated"
        ),
    ):
        updater.update(Evaluated(model, data(1)[0], BAD["gradient inf"], (2,)))


@pytest.mark.parametrize("executor", ["native", "reference"])
@pytest.mark.parametrize("spoiled", [1, 2])
def test_a_window_is_dropped_behind_its_gate_and_kept_before(spoiled: int, executor: str) -> None:
    """As an overflow of the first gradient has it: after `accumulate` all of it, before it only the micro-batch."""
    for tx, left in (
        (gch.chain(gch.accumulate(2), AMP, uphill(), STEP), 0),
        (gch.chain(AMP, gch.accumulate(2), uphill(), STEP), 1),
    ):
        model, updater = _begin(tx, executor)
        first, second = data(2)
        updater.update(Evaluated(model, first, BAD["gradient inf"], ()))
        before = weights(model)
        info = updater.update(Evaluated(model, second, BAD["gradient inf"], (spoiled,)))
        assert info.reason == "overflow" and same(weights(model), before)
        assert updater.state_dict()["links"]["accumulate"]["micro"] == left
        for rows in data(4)[2 : 4 - left]:
            info = updater.update(Evaluated(model, rows, BAD["gradient inf"], ()))
        assert info.applied


def _by_hand(spoiled: set[tuple[int, int]], steps: int) -> tuple[nn.Module, list[float]]:
    """SAM under torch's GradScaler: one unscaling by hand for the first gradient, its own for the second."""
    model = net(dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    scales = []
    for k, rows in enumerate(data(steps, dtype=torch.float32)):
        scales.append(scaler.get_scale())
        optimizer.zero_grad()
        scaler.scale(_blown(loss_of(model, rows), (k, 1) in spoiled)).backward()
        grads = [p.grad / scaler.get_scale() for p in model.parameters()]
        if all(bool(g.isfinite().all()) for g in grads):
            norm = torch.stack([g.norm() for g in grads]).norm()
            kept = [p.detach().clone() for p in model.parameters()]
            with torch.no_grad():
                for p, g in zip(model.parameters(), grads, strict=True):
                    p += 0.3 * g / (norm + 1e-12)
            optimizer.zero_grad()
            scaler.scale(_blown(loss_of(model, rows), (k, 2) in spoiled)).backward()
            with torch.no_grad():
                for p, w in zip(model.parameters(), kept, strict=True):
                    p.copy_(w)
        scaler.step(optimizer)
        scaler.update()
    return model, scales


def _blown(loss: Tensor, much: bool) -> Tensor:
    """A loss whose gradients are finite, and overflow once they are scaled."""
    return loss * 1e37 if much else loss


@pytest.mark.parametrize("order", ["amp_scale, sam", "sam, amp_scale"])
@pytest.mark.parametrize("executor", ["native", "reference"])
def test_amp_and_sam_equal_gradscaler_and_sam_by_hand(executor: str, order: str) -> None:
    """Twelve steps with overflows in first and second gradients: the same scales, the same weights."""
    spoiled = {(2, 1), (3, 2), (6, 2), (7, 2), (8, 1)}
    hand, scales = _by_hand(spoiled, 12)
    links = {"amp_scale": gch.amp_scale(1024.0, growth_interval=3, always=True), "sam": gch.sam(0.3)}
    model = net(dtype=torch.float32)
    updater = gch.chain(*(links[name] for name in order.split(", ")), STEP).bind(model)
    if executor == "reference":
        updater._bound.engine.executors = ()
    found = []
    for k, rows in enumerate(data(12, dtype=torch.float32)):
        evaluated = Evaluated(model, rows, lambda loss: _blown(loss, True), [c for c in (1, 2) if (k, c) in spoiled])
        found.append(updater.state_dict()["links"]["amp_scale"]["scale"])
        info = updater.update(evaluated)
        assert info.applied != any((k, c) in spoiled for c in (1, 2))
    assert found == scales
    assert updater.num_skipped == 5
    for p, q in zip(model.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("order", ["before", "after"])
def test_float16_whose_second_gradient_overflows(order: str) -> None:
    """The scale is backed off until both gradients fit, and the step is then that of the loss."""
    gate = gch.amp_scale(init_scale=32768.0)
    tx = (
        gch.chain(gate, gch.sam(1.0), gch.sgd(1e-3))
        if order == "before"
        else gch.chain(gch.sam(1.0), gate, gch.sgd(1e-3))
    )
    weight = nn.Parameter(torch.ones((), dtype=torch.float16))
    updater = tx.bind([("w", weight)])
    assert updater.update(lambda: weight * weight / 2).reason == "overflow"
    assert weight.item() == 1.0 and updater.state_dict()["links"]["amp_scale"]["scale"] == 16384.0
    assert updater.update(lambda: weight * weight / 2).applied
    assert weight.item() == pytest.approx(1.0 - 2e-3, abs=5e-4)


def test_a_line_search_may_meet_what_is_not_finite() -> None:
    """With `gated=False` the link gets it; where it gives up it refuses, and a gate holds or an error says so."""

    def closure_of(model: nn.Module, limit: float) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            loss = loss_of(model, data(1)[0])
            moved = sum(float((p - w).detach().abs().sum()) for p, w in zip(model.parameters(), start, strict=True))
            return loss + math.inf if moved > limit else loss

        start = [p.detach().clone() for p in model.parameters()]
        return closure

    for gate in ((), (SKIP,)):
        model, updater = _begin(gch.chain(*gate, halves()), "native")
        loss_of(model, data(1)[0]).backward()
        way = sum(float(p.grad.abs().sum()) for p in model.parameters())
        before = weights(model)
        assert updater.update(closure_of(model, 0.3 * way)).applied
        moved = sum(float((weights(model)[n] - before[n]).abs().sum()) for n in before)
        assert moved == pytest.approx(0.25 * way, rel=1e-9)
    model, updater = _begin(gch.chain(SKIP, halves()), "native")
    info = updater.update(closure_of(model, 0.0))
    assert info.reason == "nonfinite" and "no point on the way has a finite loss" in info.detail
    model, updater = _begin(gch.chain(halves()), "native")
    with untouched(model, updater), pytest.raises(FloatingPointError, match="no point on the way has a finite loss"):
        updater.update(closure_of(model, 0.0))


class Backtracking(torch.optim.Optimizer):
    """A class of a user's that takes half the way where the loss is not finite, eight times at most."""

    def __init__(self, params: Any, lr: float = 1.0) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        with torch.enable_grad():
            loss = closure()
        (weight,) = self.param_groups[0]["params"]
        start, way = weight.detach().clone(), weight.grad.clone()
        for k in range(8):
            with torch.no_grad():
                weight.copy_(start - self.param_groups[0]["lr"] * 0.5**k * way)
            with torch.enable_grad():
                if math.isfinite(closure().item()):
                    return loss
        with torch.no_grad():
            weight.fill_(math.nan)
        return loss


@pytest.mark.parametrize("executor", ["native", "reference"])
@pytest.mark.parametrize("gate", [(), (SKIP,), (AMP,)], ids=["no gate", "skip_nonfinite", "amp_scale"])
def test_a_class_from_elsewhere_knows_itself_what_to_do(gate: tuple[gch.Transform, ...], executor: str) -> None:
    """It evaluates where the loss is infinite and turns back, under a gate too, as without gradchain. Where what it
    comes to is not finite the gate holds."""

    def loss_at(weight: Tensor, least: float = 1.0) -> Tensor:
        return torch.where(weight > least, weight.square(), math.inf).sum()

    mine = nn.Parameter(torch.tensor([1.5], dtype=DOUBLE))
    theirs = nn.Parameter(mine.detach().clone())
    updater = gch.chain(*gate, gch.from_torch(Backtracking, lr=1.0)).bind([("w", mine)])
    if executor == "reference":
        updater._bound.engine.executors = ()
    optimizer = Backtracking([theirs], lr=1.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_at(theirs)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
        assert updater.update(lambda: loss_at(mine))
    assert torch.equal(mine, theirs) and mine.item() < 1.2
    calls: list[int] = []

    def lost() -> Tensor:
        calls.append(1)
        return loss_at(mine, 1.0 if len(calls) == 1 else 9.0)

    before = mine.detach().clone()
    info = updater.update(lost)
    assert len(calls) == 9
    if gate:
        assert torch.equal(mine, before) and info.reason == gate[0].holds and "Backtracking" in info.detail
    else:
        assert mine.isnan().all() and info.applied


def test_a_chain_without_an_updater_has_the_same_gates() -> None:
    """`Context(evaluate=…)` passes them too, and without one a loss that is not finite is an error."""
    params = gch.Tensors.of({"w": torch.tensor([1.0, 2.0])})
    bad = gch.Tensors.of({"w": torch.tensor([math.inf, 0.0])})

    def evaluate(weights: gch.Tensors) -> tuple[Any, gch.Tensors]:
        return 1.0, bad

    tx = gch.chain(SKIP, gch.sam(0.1))
    out, state = tx.update(params, tx.init(params), gch.Context(params, step=0, evaluate=evaluate))
    assert out is None and state.links["skip_nonfinite"].consecutive == 1
    tx = gch.chain(gch.sam(0.1))
    out, _ = tx.update(params, tx.init(params), gch.Context(params, step=0, evaluate=evaluate))
    assert out is not None and out["w"][0] == math.inf
    with pytest.raises(FloatingPointError, match="the loss that sam evaluated is nan"):
        tx.update(params, tx.init(params), gch.Context(params, step=0, evaluate=lambda w: (math.nan, bad)))
