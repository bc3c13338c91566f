"""Who catches Diverged and goes on has a run without what diverged, however the gradients come."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from little import data, loss_of, net, same, weights
from torch import Tensor, nn

import gradchain as gch

WAYS: dict[str, Callable[[nn.Module, gch.Updater, Tensor], Any]] = {
    "update": lambda model, updater, loss: updater.update(loss),
    "backward and step": lambda model, updater, loss: (updater.backward(loss), updater.step())[1],
    "grad and step": lambda model, updater, loss: (loss.backward(), updater.step())[1],
    "step of gradients": lambda model, updater, loss: updater.step(
        dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, [*model.parameters()]), strict=True))
    ),
}
BUFFER = gch.accumulate(2, dtype=torch.float64)
ADAM = gch.adam(0.05)
# the chain, and whether the gate looks at whole windows, or at each micro-batch
CHAINS: dict[str, tuple[list[gch.Transform], bool]] = {
    "in grad": ([gch.accumulate(2), gch.skip_nonfinite(0), ADAM], True),
    "in a buffer": ([BUFFER, gch.skip_nonfinite(0), ADAM], True),
    "in grad, guarded": ([gch.accumulate(2), gch.guard(0), ADAM], True),
    "in a buffer, guarded": ([BUFFER, gch.guard(0), ADAM], True),
    "in a branch": (
        [
            gch.partition(
                (gch.bias, gch.chain(BUFFER, ADAM)), (gch.rest, gch.chain(BUFFER, gch.skip_nonfinite(0), ADAM))
            )
        ],
        True,
    ),
    "in front of a branch": (
        [BUFFER, gch.partition((gch.bias, ADAM), (gch.rest, gch.chain(gch.skip_nonfinite(0), ADAM)))],
        True,
    ),
    "behind the gate": ([gch.skip_nonfinite(0), gch.accumulate(2), ADAM], False),
    "behind a gate that looks at all": ([gch.skip_nonfinite(0, of="all"), gch.accumulate(2), ADAM], False),
    "nowhere": ([gch.skip_nonfinite(0), ADAM], False),
}


def _run(links: list[gch.Transform], way: str, spoiled: int, without: set[int]) -> tuple[nn.Module, gch.Updater, list]:
    model = net()
    updater, reasons = gch.chain(*links).bind(model), []
    for k, rows in enumerate(data(8)):
        if k in without:
            continue
        loss = loss_of(model, rows) * (math.nan if k == spoiled else 1.0)
        try:
            reasons.append(WAYS[way](model, updater, loss).reason)
        except gch.Diverged:
            reasons.append("diverged")
    return model, updater, reasons


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("spoiled", [2, 3], ids=["first", "last"])
@pytest.mark.parametrize("place", CHAINS)
def test_what_diverged_is_dropped_and_the_rest_goes_on(place, spoiled, way):
    """To the bit the run that has never seen it: the whole window, or the micro-batch in front of one."""
    links, whole = CHAINS[place]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model, updater, reasons = _run(links, way, spoiled, set())
    assert reasons.count("diverged") == 1
    told = [str(w.message) for w in said]
    failed = "update" if way == "update" else "step"
    assert told == ([f"{failed} failed: the open window of one micro-batch was dropped."] if whole else [])
    twin, other, alike = _run(links, way, -1, {2, 3} if whole else {spoiled})
    assert same(weights(model), weights(twin))
    assert reasons[4:] == alike[2 if whole else 3 :]
    assert updater.num_updates == other.num_updates


@pytest.mark.parametrize("place", ["in grad", "in a buffer"])
def test_a_flush_drops_what_diverged(place):
    model = net()
    updater = gch.chain(*CHAINS[place][0]).bind(model)
    before = weights(model)
    WAYS["grad and step"](model, updater, loss_of(model, data(1)[0]) * math.nan)
    with pytest.raises(gch.Diverged), pytest.warns(UserWarning, match=r"flush failed: the open window of one"):
        updater.flush()
    assert same(weights(model), before) and not updater.flush()
    for rows in data(2):
        info = updater.update(loss_of(model, rows))
    assert info.applied


@pytest.mark.parametrize("place", CHAINS)
def test_it_says_whether_a_window_was_lost(place):
    links, whole = CHAINS[place]
    model = net()
    updater = gch.chain(*links).bind(model)
    with warnings.catch_warnings(), pytest.raises(gch.Diverged) as raised:
        warnings.simplefilter("ignore")
        for rows in data(2):
            updater.update(loss_of(model, rows) * math.nan)
    assert raised.value.of_window is whole
