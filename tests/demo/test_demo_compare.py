"""--compare: the chain and the recipe by hand have the same losses, and a recipe that differs is seen."""

import pytest
import torch

from gradchain.demo import compare as module
from gradchain.demo.__main__ import main
from gradchain.demo.compare import ByHand, Chained, Clock, compare, share_of_peak, table
from gradchain.demo.recipe import Settings, recipe

SETTINGS = Settings(seed=3, epochs=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_losses_agree(dtype):
    """The last window of an epoch has two micro-batches in place of four."""
    found = compare(SETTINGS, dtype)
    assert found.agrees, found.difference
    assert len(found.losses) == 90
    assert found.losses[-1][0] < found.losses[0][0] - 0.2
    assert found.accuracies[0] == found.accuracies[1]


class LateSchedule(ByHand):
    """Its schedule is one update late."""

    def __init__(self, seed, updates, dtype):
        super().__init__(seed, updates, dtype)
        share = share_of_peak(updates)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: share(max(0, step - 1)))


class DecaysAll(ByHand):
    """It decays biases as well."""

    def __init__(self, seed, updates, dtype):
        super().__init__(seed, updates, dtype)
        for group in self.optimizer.param_groups:
            group["weight_decay"] = 0.05


class NoClip(ByHand):
    """It does not clip."""

    def micro_step(self, images, labels, size, closes):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, bound: None)
            return super().micro_step(images, labels, size, closes)


@pytest.mark.parametrize(
    ("by_hand", "dtype"),
    [
        (LateSchedule, torch.float64),
        (NoClip, torch.float64),
        (DecaysAll, torch.float64),  # biases are small: in float32 an epoch of their decay is within the tolerance
        (LateSchedule, torch.float32),
        (NoClip, torch.float32),
    ],
)
def test_a_recipe_that_differs_does_not_agree(by_hand, dtype):
    assert not compare(SETTINGS, dtype, (Chained, by_hand)).agrees


def test_the_schedule_by_hand_is_that_of_the_chain():
    for updates in (2, 23, 450):
        (rate,) = (link.learning_rate for _, link in recipe(updates).named if hasattr(link, "learning_rate"))
        share = share_of_peak(updates)
        for step in range(updates + 3):
            assert 5e-3 * share(step) == pytest.approx(rate(step), rel=1e-12)


def test_compare_prints_what_it_measured(capsys):
    assert main(["--compare", "--epochs", "1"]) == 0
    printed = capsys.readouterr().out
    for part in (
        "float64: the losses of 90 micro-batches differ by at most",
        "float32: ",
        "AdamW(fused=True)",
        "1 thread",
    ):
        assert part in printed


def test_compare_ends_with_1_where_losses_differ(capsys, monkeypatch):
    monkeypatch.setattr(module, "TOLERANCES", dict.fromkeys(module.TOLERANCES, -1.0))
    assert main(["--compare", "--epochs", "1", "--quiet"]) == 1
    assert "MORE THAN" in capsys.readouterr().out


def test_a_clock_takes_medians_over_updates():
    """In milliseconds, without the first tenth; the optimizer is the median of the sum, not the sum of medians."""
    clock = Clock()
    clock.updates = [{"a": 9.0}] + [{"forward": 1.0, "a": i / 1000, "b": (9 - i) / 1000} for i in range(1, 10)] + [{}]
    assert clock.medians() == pytest.approx({"forward": 1000.0, "a": 5.0, "b": 4.0, "optimizer": 9.0})
    clock.updates = [{}]
    clock.start()
    clock.lap("a")
    clock.lap("a")
    assert list(clock.updates[0]) == ["a"]


def test_the_table_has_a_row_for_each_part():
    found = module.Comparison(
        torch.float32,
        [(1.0, 1.0)],
        (0.5, 0.5),
        (
            {"forward": 1.0, "backward": 2.0, "optimizer": 3.0},
            {"forward": 1.5, "backward": 2.5, "x": 3.5, "y": 4.0, "optimizer": 7.5},
        ),
    )
    rows = [line.split() for line in table(found).splitlines()]
    assert ["forward", "1.000", "1.500"] in rows
    assert ["optimizer", "3.000", "7.500"] in rows
    assert ["x", "3.500"] in rows
