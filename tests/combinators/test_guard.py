"""guard: what is unusual, what it does about it, and where it says to go back to."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradchain as gch

Spoil = Callable[[Tensor], Tensor]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 3).double()


def bound(**arguments: Any) -> tuple[nn.Module, gch.Updater]:
    model = net()
    tx = gch.chain(gch.guard(**{"warmup": 5, **arguments}), gch.scale_by_adam(), gch.scale_by_learning_rate(0.01))
    return model, tx.bind(model)


def trained(model: nn.Module, updater: gch.Updater, steps: range, spoil: Spoil = lambda x: x) -> list[gch.UpdateInfo]:
    """One update for each of these steps, whose batches are always the same."""
    out = []
    for step in steps:
        rows = torch.randn(64, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        out.append(updater.update(spoil(model(rows).square().mean())))
    return out


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def nan(loss: Tensor) -> Tensor:
    return loss * math.nan


def large(loss: Tensor) -> Tensor:
    return 50 * loss


def steep(loss: Tensor) -> Tensor:
    """The loss as it is, and a gradient fifty times as large."""
    return 50 * loss - 49 * loss.detach()


def test_a_run_that_goes_well_is_the_run_without_a_guard():
    """And so is one with a few bad updates that are finite."""
    model, updater = bound(norm=5.0)
    other = net()
    without = gch.chain(gch.scale_by_adam(), gch.scale_by_learning_rate(0.01)).bind(other)
    for steps, spoil in ((range(20), lambda x: x), (range(20, 23), large), (range(23, 30), lambda x: x)):
        infos = trained(model, updater, steps, spoil)
        trained(other, without, steps, spoil)
        assert all(infos) and equal(weights(model), weights(other))
        assert [bool(i.detail) for i in infos] == [spoil is large] * len(infos)


@pytest.mark.parametrize(
    ("spoil", "arguments", "why"),
    [
        (nan, {}, "the loss is nan, and the updates have inf or NaN, the first offending parameter is 'weight'"),
        (lambda x: x + math.inf, {}, "the loss is inf"),
        (large, {"skip": True}, "the loss is "),
        (steep, {"skip": True, "norm": 5.0}, "the norm is "),
    ],
    ids=["nan", "the loss alone", "loss", "norm"],
)
def test_after_too_many_in_a_row_weights_and_state_are_those_before_the_first(spoil, arguments, why):
    model, updater = bound(max_consecutive=2, **arguments)
    trained(model, updater, range(10))
    before, adam = weights(model), updater.state_dict()["links"]["scale_by_adam"]
    infos = trained(model, updater, range(10, 12), spoil)
    assert not any(infos) and all(why in i.detail for i in infos)
    assert {i.reason for i in infos} == {"unusual" if arguments else "nonfinite"}
    for again in (12, 13):  # it says so as long as nothing is done about it
        with pytest.raises(gch.Diverged, match=r"^guard: at most 2 updates in a row may be unusual, got 3; ") as caught:
            trained(model, updater, range(again, again + 1), spoil)
        assert why in str(caught.value) and caught.value.last_good is None
        assert equal(weights(model), before)
        after = updater.state_dict()["links"]["scale_by_adam"]
        assert str(after) == str(adam)
    assert all(trained(model, updater, range(14, 16)))
    assert updater.state_dict()["links"]["guard"]["consecutive"] == 0


def test_one_good_update_begins_the_count_anew():
    model, updater = bound(max_consecutive=1)
    for step in range(0, 12, 2):
        assert not trained(model, updater, range(step, step + 1), nan)[0]
        assert trained(model, updater, range(step + 1, step + 2))[0]


def test_it_names_the_parameter_and_its_norms():
    """Of the parameter that has inf or NaN, or of that whose norm has grown most."""
    model, updater = bound(norm=5.0)
    trained(model, updater, range(10))
    names = dict(model.named_parameters())
    norms = updater.state_dict()["links"]["guard"]
    lately = ", ".join(f"{norms[field]['bias']:.4g}" for field in ("norms_before", "norms"))
    names["bias"].register_hook(lambda g: g * math.nan)
    assert f"'bias'; the norms of 'bias' lately: {lately};" in trained(model, updater, range(10, 11))[0].detail
    model, updater = bound(norm=5.0)
    trained(model, updater, range(10))
    dict(model.named_parameters())["bias"].register_hook(lambda g: 1000 * g)
    assert f"the norms of 'bias' lately: {lately}, " in trained(model, updater, range(10, 11))[0].detail


def test_losses_below_zero_and_about_zero():
    """A loss of -2 is no spike beside a mean of -3, and noise about zero is none."""
    for losses in ([-3.0] * 10 + [-2.0] * 9, [0.5, -0.5] * 10):
        model, updater = bound(max_consecutive=0)
        for value in losses:
            updater.update(sum(p.sum() for p in model.parameters()) * 0 + value)
    model, updater = bound(max_consecutive=0)
    with pytest.raises(gch.Diverged, match="the loss is 30, above 3; its mean is -3"):
        for value in [-3.0] * 10 + [30.0]:
            updater.update(sum(p.sum() for p in model.parameters()) * 0 + value)


def test_last_good_is_the_one_of_before_the_first(tmp_path):
    """A checkpoint that was made after the first unusual update is not it, unless there is no other."""
    saved: list[str] = []
    model, updater = bound(max_consecutive=3, last_good=lambda: saved[-1] if saved else None)

    def save(name: str) -> None:
        saved.append(str(tmp_path / name))
        updater.save(saved[-1])

    trained(model, updater, range(10))
    save("good.pt")
    trained(model, updater, range(10, 11), large)
    save("late.pt")
    trained(model, updater, range(11, 13), large)
    with pytest.raises(gch.Diverged) as caught:
        trained(model, updater, range(13, 14), large)
    assert caught.value.last_good == saved[0] and repr(saved[0]) in str(caught.value)
    (tmp_path / "good.pt").unlink()
    with pytest.raises(gch.Diverged) as caught:
        trained(model, updater, range(13, 14), large)
    assert caught.value.last_good == saved[1]


def test_it_is_asked_only_when_something_is_unusual():
    calls: list[int] = []
    model, updater = bound(last_good=lambda: calls.append(1))
    trained(model, updater, range(10))
    assert not calls
    trained(model, updater, range(10, 11), nan)
    assert calls


def test_its_means_are_saved(tmp_path):
    """A run that goes on knows what is usual, and how many were not."""
    model, updater = bound(max_consecutive=2, last_good=tmp_path / "run.pt")
    trained(model, updater, range(10))
    trained(model, updater, range(10, 12), nan)
    updater.save(tmp_path / "run.pt")
    resumed, again = bound(max_consecutive=2, last_good=tmp_path / "run.pt")
    again.load(tmp_path / "run.pt")
    with pytest.raises(gch.Diverged) as caught:
        trained(resumed, again, range(12, 13), nan)
    assert caught.value.last_good == str(tmp_path / "run.pt")


def test_a_finite_gradient_that_would_make_a_moment_infinite():
    """It is skipped and named; where only what comes in is looked at, that parameter stands still for good."""
    for of in ("all", "updates"):
        model = net().float()
        tx = gch.chain(gch.skip_nonfinite(of=of), gch.scale_by_adam(), gch.scale_by_learning_rate(0.01))
        updater = tx.bind(model)
        rows = torch.ones(2, 4)
        updater.update(model(rows).square().mean())
        info = updater.update(1e25 * model(rows).square().mean())
        second = updater.state_dict()["links"]["scale_by_adam"]["nu"]["weight"]
        assert info.reason == ("nonfinite" if of == "all" else "applied")
        assert bool(second.isfinite().all()) == (of == "all")
        if of == "all":
            assert "scale_by_adam.nu would have inf or NaN, the first offending parameter is 'weight'" in info.detail


def test_a_result_that_is_not_finite():
    model = net()
    tx = gch.chain(gch.skip_nonfinite(of="all"), gch.stateless(lambda g, w: g / 0.0), gch.scale_by_learning_rate(0.01))
    info = tx.bind(model).update(model(torch.ones(2, 4).double()).square().mean())
    assert info.reason == "nonfinite"
    assert "what the chain made has inf or NaN, the first offending parameter is 'weight'" in info.detail


def test_what_writes_in_place_cannot_be_looked_at_before():
    tx = gch.chain(gch.skip_nonfinite(of="all"), gch.from_torch("SGD", lr=0.1, in_place=True))
    with pytest.raises(ValueError, match=r"^chain: skip_nonfinite looks at what the chain makes before it is written"):
        tx.bind(net())


def test_the_error_goes_through_pickle():
    error = pickle.loads(pickle.dumps(gch.Diverged("gone", "run/1.pt")))
    assert (type(error), str(error), error.last_good) == (gch.Diverged, "gone", "run/1.pt")


def test_a_last_good_that_is_no_path():
    model, updater = bound(last_good=lambda: 3)
    with pytest.raises(TypeError, match=r"^guard: last_good must give a path or None, got 3\."):
        trained(model, updater, range(1), nan)
