"""Classes that call a closure: whatever they have done to the weights before, they are told the loss there."""

import itertools
from contextlib import nullcontext

import pytest
import torch
from test_from_torch import assert_same, batches, loss_of, net

import gradchain as gch

STEPS = 4


class Asking(torch.optim.Optimizer):
    """Asks `before` times, moves the weights, asks `after` times there, and steps by all that it was told.

    Args:
        data: whether it moves them where no version counts it.
        zero: whether it drops the gradients before it asks.
        enabled: whether it asks with gradients on.
        back: whether it moves them back before the step.
    """

    def __init__(self, params, lr=0.05, before=1, after=0, data=False, zero=False, enabled=True, back=True):
        super().__init__(params, {"lr": lr})
        self.before, self.after, self.data, self.zero = before, after, data, zero
        self.enabled, self.back = enabled, back

    @torch.no_grad()
    def step(self, closure):
        params = [p for group in self.param_groups for p in group["params"]]
        total, losses = [torch.zeros_like(p) for p in params], 0.0

        def ask():
            nonlocal losses
            if self.zero:
                self.zero_grad()
            with torch.enable_grad() if self.enabled else nullcontext():
                losses += float(closure())
            for sum_, p in zip(total, params, strict=True):
                sum_.add_(p.grad)

        def move(how):
            for p in params:
                (p.data if self.data else p).add_(how * torch.ones_like(p))

        for _ in range(self.before):
            ask()
        move(0.25)
        for _ in range(self.after):
            ask()
        if self.back:
            move(-0.25)
        for sum_, p in zip(total, params, strict=True):
            p.sub_(self.param_groups[0]["lr"] * (sum_ + 0.1 * losses))


class MayAsk(Asking):
    """The same, where a closure is optional, as in most classes of the SAM family."""

    def step(self, closure=None):
        assert closure is not None
        return super().step(closure)


def against_the_class(cls, steps=STEPS, **given):
    """Steps of the class by itself and of the class in a chain: the same bits."""
    model, twin = net(), net()
    updater, optimizer = gch.chain(gch.from_torch(cls, **given)).bind(model), cls(twin.parameters(), **given)
    for batch in batches(steps):

        @torch.enable_grad()
        def closure(batch=batch):
            optimizer.zero_grad()
            loss = loss_of(twin, batch)
            loss.backward()
            return loss.detach()

        optimizer.step(closure)
        updater.update(lambda batch=batch: loss_of(model, batch))
        assert_same(model, twin)


WAYS = [
    dict(zip(("data", "zero", "enabled", "back"), ways, strict=True)) for ways in itertools.product((0, 1), repeat=4)
]


@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize("before", range(4))
def test_a_class_is_told_what_is_so_where_it_has_moved_the_weights(before, after):
    for cls, ways in itertools.product((Asking, MayAsk), WAYS):
        against_the_class(cls, before=before, after=after, **ways)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("max_iter", [1, 2, 4, 20])
def test_lbfgs(search, max_iter):
    for history in (1, 100):
        against_the_class(torch.optim.LBFGS, 6, lr=0.5, max_iter=max_iter, history_size=history, line_search_fn=search)


def test_the_known_loss_is_not_told_of_other_weights():
    """w = 1 has the loss 1; the class moves it to 2, where it is 4."""
    told = []

    class Mover(torch.optim.Optimizer):
        def __init__(self, params, lr=0.1):
            super().__init__(params, {"lr": lr})

        @torch.no_grad()
        def step(self, closure):
            for p in self.param_groups[0]["params"]:
                p.mul_(2)
            told.append(float(closure()))

    w = torch.ones(1, requires_grad=True)
    gch.from_torch(Mover).bind({"w": w}).update(lambda: w.square().sum())
    assert told == [4.0]


def test_it_asks_no_more_often_than_the_class_does():
    """What backward has found already is not computed twice."""
    for cls, before, after, wanted in (
        (Asking, 1, 0, 1),
        (Asking, 0, 1, 2),
        (Asking, 2, 1, 3),
        (torch.optim.SGD, 0, 0, 1),
    ):
        model, calls = net(), []
        given = {} if cls is torch.optim.SGD else {"before": before, "after": after}
        updater = gch.chain(gch.from_torch(cls, lr=0.1, **given)).bind(model)

        def closure(model=model, calls=calls):
            calls.append(1)
            return loss_of(model, batches(1)[0])

        updater.update(closure)
        assert len(calls) == wanted


def test_what_a_closure_raises_is_not_put_into_the_words_of_the_class():
    model, calls = net(), []
    updater = gch.chain(gch.from_torch(Asking, before=0, after=1)).bind(model)

    def closure():
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("mine")
        return loss_of(model, batches(1)[0])

    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=r"^mine$"):
        updater.update(closure)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_a_class_that_wants_a_closure_it_calls_optional_names_the_cure():
    model = net()
    updater = gch.chain(gch.from_torch(MayAsk)).bind(model)
    with pytest.raises(RuntimeError, match=r"^from_torch: MayAsk: AssertionError.*call updater\.update\(closure\)"):
        updater.update(loss_of(model, batches(1)[0]))


def test_a_link_before_the_class_changes_what_it_is_first_told():
    """The first gradient has passed the clip; one elsewhere is the loss's own."""
    model, twin = net(), net()
    updater = gch.chain(gch.clip_by_norm(0.01), gch.from_torch(Asking, before=1, after=0)).bind(model)
    updater.update(lambda: loss_of(model, batches(1)[0]))
    loss = loss_of(twin, batches(1)[0])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.01)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(0.25).sub_(0.25).sub_(0.05 * (p.grad + 0.1 * loss))
    assert_same(model, twin, 1e-12)


ASKING = [c for c in vars(torch.optim).values() if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)]
ASKING = [c for c in ASKING if c not in (torch.optim.Optimizer, torch.optim.SparseAdam)]


@pytest.mark.parametrize("cls", ASKING, ids=lambda c: c.__name__)
def test_torchs_own_ask_before_they_move(cls):
    """So what backward has found is right for their first call, and nothing has to be compared."""
    assert f"{cls.__module__}.".startswith("torch.optim.")  # by which from_torch knows them
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer, seen = cls([parameter], lr=0.1), []

    def closure():
        optimizer.zero_grad()
        seen.append(parameter.detach().clone())
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    for _ in range(2):
        before, calls = parameter.detach().clone(), len(seen)
        optimizer.step(closure)
        assert torch.equal(seen[calls], before) and not torch.equal(parameter, before)
