"""Loops that autograd refuses: the updater's sentence says what to change, and torch's error is its cause."""

import pytest
import torch
from little import data, loss_of, net, untouched

import gradchain as gch

CHAINS = {
    "sgd": lambda: gch.sgd(0.1),
    "adamw": lambda: gch.adamw(0.01),
    "window": lambda: gch.chain(gch.accumulate(2), gch.sgd(0.1)),
    "scaled": lambda: gch.chain(gch.amp_scale(always=True), gch.sgd(0.1)),
    "sam": lambda: gch.chain(gch.sam(), gch.sgd(0.1)),
    "class": lambda: gch.from_torch("SGD", lr=0.1),
}
ROWS = data(3)


def parameters(model):
    return list(model.parameters())


def with_loss(spend):
    """A loop that spends the graph of its loss before `update(loss)`."""

    def loop(model, updater):
        loss = loss_of(model, ROWS[0])
        spend(loss, model)
        updater.update(loss)

    return loop


def with_closure(spend):
    """A loop whose closure spends the graph of the loss that it returns."""

    def loop(model, updater):
        def closure():
            for parameter in model.parameters():
                parameter.grad = None
            loss = loss_of(model, ROWS[0])
            spend(loss, model)
            return loss

        updater.update(closure)

    return loop


def with_halves(spend):
    def loop(model, updater):
        loss = loss_of(model, ROWS[0])
        spend(loss, model)
        updater.backward(loss)
        updater.step()

    return loop


SPENT = {
    "backward": lambda loss, model: loss.backward(),
    "autograd.backward": lambda loss, model: torch.autograd.backward([loss]),
    "autograd.grad": lambda loss, model: torch.autograd.grad(loss, parameters(model)),
    "of a part": lambda loss, model: (3.0 * loss).backward(),
    "inputs": lambda loss, model: loss.backward(inputs=parameters(model)[:1]),
    "create_graph": lambda loss, model: (
        torch.autograd.grad(loss, parameters(model), create_graph=True)[0].sum().backward()
    ),
}
LOOPS = {"loss": with_loss, "closure": with_closure, "halves": with_halves}


def refused(loop, model, updater, torchs, *words):
    with untouched(model, updater), pytest.raises(RuntimeError) as raised:
        loop(model, updater)
    assert str(raised.value).startswith("update: ")
    assert not [word for word in words if word not in str(raised.value)]
    assert torchs not in str(raised.value)
    assert type(raised.value.__cause__) is RuntimeError
    assert torchs in str(raised.value.__cause__)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("spent", SPENT)
def test_a_graph_that_a_backward_has_freed_names_the_backward_to_leave_out(spent, loop, chain):
    """Whoever ran it, and however; nothing changes, and the right loop goes on."""
    if chain == "sam" and loop != "closure":
        return
    model = net()
    updater = CHAINS[chain]().bind(model)
    refused(LOOPS[loop](SPENT[spent]), model, updater, "second time", "leave out loss.backward(), in a closure too")
    updater.update(lambda: loss_of(model, ROWS[0]))
    assert updater.num_micro == 1


def test_a_retained_graph_is_no_error_and_counts_once():
    """A leftover backward that keeps its graph changes nothing: the updater takes its own gradient only."""
    weights = []
    for leftover in (False, True):
        model = net()
        updater = gch.sgd(0.1).bind(model)
        for rows in ROWS:
            loss = loss_of(model, rows)
            if leftover:
                loss.backward(retain_graph=True)
            updater.update(loss)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def twice_by_us(model, updater):
    loss = loss_of(model, ROWS[0])
    updater.backward(loss)
    updater.backward(loss)


def test_the_same_loss_twice_through_the_updater_is_the_same_mistake():
    model = net()
    updater = gch.sgd(0.1).bind(model)
    with pytest.raises(RuntimeError, match=r"^update: the graph of the loss was freed .* retain_graph=True\.$"):
        twice_by_us(model, updater)


def test_in_backward_says_it_too():
    model = net()
    updater = gch.adam(0.1).bind(model, in_backward=True)
    refused(with_loss(SPENT["backward"]), model, updater, "second time", "leave out loss.backward()")


def second_update(model, updater):
    loss = loss_of(model, ROWS[0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.0)
    updater.update(loss)


def in_place_activation(model, updater):
    hidden = model[1](model[0](ROWS[0]))
    loss = model[2](hidden).square().mean()
    hidden.data = hidden.data
    with torch.no_grad():
        hidden.add_(0.0)
    updater.update(loss)


def closure_that_writes(model, updater):
    def closure():
        loss = loss_of(model, ROWS[0])
        with torch.no_grad():
            model[2].weight.add_(0.0)
        return loss

    updater.update(closure)


@pytest.mark.parametrize("chain", [chain for chain in CHAINS if chain != "sam"])
@pytest.mark.parametrize("loop", [second_update, in_place_activation, closure_that_writes])
def test_a_graph_whose_tensors_were_written_over_names_the_forward(loop, chain):
    model = net()
    updater = CHAINS[chain]().bind(model)
    refused(loop, model, updater, "inplace operation", "Compute the loss anew after each update")


def test_a_loss_that_two_updates_share_names_the_forward():
    """The weights that its graph holds are those before the first of them."""
    model = net()
    updater = gch.sgd(0.1).bind(model)
    loss = loss_of(model, ROWS[0])
    updater.update(loss, retain_graph=True)
    refused(lambda m, u: u.update(loss), model, updater, "inplace operation", "Compute the loss anew")


class OwnError(RuntimeError):
    pass


@pytest.mark.parametrize("sentence", ["backward through the graph a second time", "something else"])
@pytest.mark.parametrize("kind", [OwnError, ValueError, KeyError])
def test_an_error_of_a_users_own_passes_as_it_is(kind, sentence):
    """What a hook raises is his, whatever it says."""
    model = net()
    updater = gch.sgd(0.1).bind(model)
    error = kind(sentence)

    def hook(grad):
        raise error

    loss = loss_of(model, ROWS[0])
    loss.register_hook(hook)
    with pytest.raises(kind) as raised:
        updater.update(loss)
    assert raised.value is error


@pytest.mark.parametrize(
    ("returned", "error", "cure"),
    [(lambda loss: None, TypeError, "Return the loss"), (lambda loss: loss.item(), TypeError, r"leave out \.item\(\)"),
     (lambda loss: loss.detach(), ValueError, "no graph"), (lambda loss: loss.tolist(), TypeError, r"\.item\(\)"),
     (lambda loss: torch.stack([loss, loss]), ValueError, "loss.mean")],
    ids=["None", "item", "detached", "tolist", "two"],
)  # fmt: skip
def test_what_a_closure_returns_in_place_of_the_loss(returned, error, cure):
    model = net()
    updater = gch.sgd(0.1).bind(model)
    with untouched(model, updater), pytest.raises(error, match=rf"^update: loss .*{cure}"):
        updater.update(lambda: returned(loss_of(model, ROWS[0])))
