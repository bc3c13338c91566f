"""What the demo trains reads digits, and a chain that does not train fails the same test."""

import pytest
import torch

import gradchain as gch
from gradchain.demo.recipe import Settings, digits, recipe
from gradchain.demo.training import Training, digest

UPDATES = 450  # of a usual run


def trained(settings, tx=None):
    run = Training(settings, tx)
    for _ in run.steps():
        pass
    return run


def check_reads_digits(run):
    assert run.updates == run.updater.num_updates == UPDATES
    assert run.accuracy >= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_at_least_97_percent_of_the_test_images_are_read_right(seed):
    check_reads_digits(trained(Settings(seed=seed)))


def without_learning_rate(*instead):
    links = [link for _, link in recipe(UPDATES).named]
    place = [isinstance(link, gch.scale_by_learning_rate) for link in links].index(True)
    return gch.chain(*links[:place], *instead, *links[place + 1 :])


def test_the_chain_without_its_learning_rate_is_refused():
    """It would climb."""
    with pytest.raises(ValueError, match="scale_by_learning_rate"):
        Training(Settings(), without_learning_rate())


@pytest.mark.slow
@pytest.mark.parametrize("link", [gch.scale(-1.0), gch.scale_by_learning_rate(0.0)], ids=["sign only", "zero"])
def test_the_chain_with_only_a_sign_or_a_zero_in_its_place_fails_the_test(link):
    """Control: accuracy comes from the learning rate, not from the data or the network."""
    with pytest.raises(AssertionError, match=r"0\.97"):
        check_reads_digits(trained(Settings(), without_learning_rate(link)))


def test_the_order_of_images_is_a_function_of_seed_and_epoch():
    """An epoch sees each image once; another epoch, or seed, in another order; asking twice changes nothing."""
    data = digits()

    def epoch(seed, number):
        first = number * data.micro_batches
        return [data.micro_batch(seed, first + i) for i in range(data.micro_batches)]

    def images(batches):
        return torch.cat([batch for batch, _ in batches])

    once, twice = images(epoch(1, 0)), images(epoch(1, 0))
    assert torch.equal(once, twice)
    assert torch.equal(once.flatten(1).unique(dim=0), data.images.flatten(1).unique(dim=0))
    assert not torch.equal(once, images(epoch(1, 1)))
    assert not torch.equal(once, images(epoch(2, 0)))
    assert sorted(torch.cat([labels for _, labels in epoch(1, 0)]).tolist()) == sorted(data.labels.tolist())


def test_no_test_image_is_trained_on():
    data = digits()
    assert len(data.images) + len(data.test_images) == 1797
    both = torch.cat([data.images, data.test_images]).flatten(1)
    assert len(both.unique(dim=0)) == 1797


def test_an_odd_number_of_epochs_ends_with_a_shorter_window():
    """90 micro-batches are 22 windows of four, and one of two that is flushed."""
    run = trained(Settings(epochs=1))
    assert (run.updater.num_micro, run.updater.num_updates) == (90, 23)
    assert {name: len(values) for name, values in run.history.items()} == {
        "loss": 90,
        "learning_rate": 23,
        "norm": 23,
        "test_loss": 1,
        "accuracy": 1,
    }
    assert run.history["learning_rate"][0] == 0.0
    assert max(run.history["learning_rate"]) == 5e-3


def test_the_hash_sees_weights_and_state():
    """Equal runs have the same; a step changes it."""
    first, second = Training(Settings(epochs=1)), Training(Settings(epochs=1))
    before = first.digest()
    assert second.digest() == before
    next(second.steps())
    assert second.digest() != before


@pytest.mark.parametrize(
    "other",
    [
        {"w": torch.tensor([1.0, 2.0 + 2**-22]), "n": [1, 2.0, None]},
        {"w": torch.tensor([1.0, 2.0], dtype=torch.float64), "n": [1, 2.0, None]},
        {"w": torch.tensor([[1.0, 2.0]]), "n": [1, 2.0, None]},
        {"v": torch.tensor([1.0, 2.0]), "n": [1, 2.0, None]},
        {"w": torch.tensor([1.0, 2.0]), "n": [1, 2.0 + 2**-51, None]},
        {"w": torch.tensor([1.0, 2.0]), "n": [1, 2, None]},
        {"w": torch.tensor([1.0, 2.0]), "n": [1, 2.0], "m": None},
    ],
)
def test_the_hash_sees_each_part(other):
    """One bit in a tensor or a number, a dtype, a shape, a name."""
    assert digest({"w": torch.tensor([1.0, 2.0]), "n": [1, 2.0, None]}) != digest(other)
    assert digest(other) == digest(other)
