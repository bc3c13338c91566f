"""What is refused, in words, and that nothing is there after it."""

import warnings

import pytest
import torch
from torch import nn

import gradchain as gch

UPDATER = gch.sgd(0.1).bind(nn.Linear(1, 1))

WRONG = {
    "updater": ({"updater": 3}, TypeError, "updater must be an Updater, or several by name, got int"),
    "every": ({"every": 0}, ValueError, "every must be a whole number of at least 1 or None, got 0"),
    "seconds": ({"seconds": -1}, ValueError, "seconds must be a number above 0 or None, got -1"),
    "endless": ({"seconds": float("inf")}, ValueError, "seconds must be a number above 0 or None, got inf"),
    "keep": ({"keep": 0}, ValueError, "keep must be a whole number of at least 1 or None, got 0"),
    "best": ({"best": ("loss", "least")}, ValueError, r'best must be \(metric, "min" or "max"\)'),
    "word": ({"best": "loss"}, ValueError, r"best must be \(metric, .* got 'loss'"),
    "no name": ({"best": [("loss", "min"), (3, "min")]}, ValueError, "best must name a metric by a str, got 3"),
    "one file": (
        {"best": [("val/loss", "min"), ("val_loss", "min")]},
        ValueError,
        "best must have a file for each metric, got 'val/loss' and 'val_loss', which would both .* 'best_val_loss.pt'",
    ),
    "twice": ({"best": [("loss", "min"), ("loss", "max")]}, ValueError, "best must have a file for each metric"),
    "weights": ({"weights": "some"}, ValueError, "weights must be 'all', 'trainable' or 'none', got 'some'"),
    "loader": ({"loader": 3}, TypeError, "loader must be iterable, got int"),
    "also": ({"also": {"x": 3}}, TypeError, r"also\['x'\] must have state_dict and load_state_dict, .* got int"),
    "list": ({"also": [3]}, TypeError, "also must be a dict of objects by name, got list"),
    "folder": ({"folder": 3}, TypeError, "path must be a str or an os.PathLike"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_arguments(kind, tmp_path):
    given, error, sentence = WRONG[kind]
    folder = given.get("folder", tmp_path / "a")
    with pytest.raises(error, match=f"^Checkpointer: {sentence}"):
        gch.Checkpointer(folder, **{"updater": UPDATER, **{k: v for k, v in given.items() if k != "folder"}})
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("extra", "error", "sentence"),
    [
        ({"x": object()}, TypeError, "save: x must be made of dict"),
        ({"val": 10**400}, TypeError, "val must be a number, for best goes by it, got int"),
        ({"val": torch.ones(2)}, TypeError, "val must be a number, for best goes by it, got Tensor"),
        ({"val": 1j}, TypeError, "val must be a number, for best goes by it, got complex"),
        ({"checkpointer": 1}, ValueError, "an entry must not be called 'checkpointer'"),
    ],
)
def test_entries(extra, error, sentence, tmp_path):
    with gch.Checkpointer(tmp_path / "a", updater=UPDATER, best=("val", "min")) as keeper:
        with pytest.raises(error, match=sentence):
            keeper.save(**extra)
        assert not (tmp_path / "a").exists()
        keeper.save(x=torch.ones(2))


def test_batches_without_a_loader_and_two_at_a_time(tmp_path):
    keeper = gch.Checkpointer(tmp_path, updater=UPDATER)
    with pytest.raises(ValueError, match=r"loader must be given for batches\(\), got None"):
        next(keeper.batches())
    keeper = gch.Checkpointer(tmp_path, updater=UPDATER, loader=[1, 2])
    going = keeper.batches()
    next(going)
    with pytest.raises(RuntimeError, match="there must be one `for` at a time"):
        next(keeper.batches())


class Strict:
    """Refuses a state."""

    def __init__(self, refuses=False):
        self.at, self.refuses = 1, refuses

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        if self.refuses and state["at"] == 5:
            raise KeyError("no")
        self.at = state["at"]


def test_resume_within_the_batches_is_refused(tmp_path):
    """Else the loop goes on where it is, and counts from where the file is."""
    updater = gch.sgd(0.1).bind(nn.Linear(1, 1))
    with gch.Checkpointer(tmp_path, updater=updater, every=1, loader=[torch.ones(1, 1)] * 4) as keeper:
        for _ in keeper.batches(1):
            updater.step({n: torch.ones_like(p) for n, p in updater._bound.parameters().items()})
            keeper.step()
            if updater.num_updates == 2:
                with pytest.raises(
                    RuntimeError, match=r"^Checkpointer: resume\(\) must be called outside of the `for`"
                ):
                    keeper.resume()
                break
        assert keeper.resume() == {} and len(list(keeper.batches(1))) == 2


def test_an_object_that_refuses_leaves_all_as_it_was(tmp_path):
    def made(second):
        updater = gch.sgd(0.1).bind(nn.Linear(1, 1))
        return updater, gch.Checkpointer(tmp_path, updater=updater, also={"a": Strict(), "b": second})

    updater, keeper = made(Strict())
    updater.step({n: torch.ones_like(p) for n, p in updater._bound.parameters().items()})
    keeper._also["a"].at = keeper._also["b"].at = 5
    with keeper:
        keeper.save()
    updater, keeper = made(Strict(refuses=True))
    with keeper, pytest.raises(KeyError):
        keeper.resume()
    assert (updater.num_updates, keeper._also["a"].at, keeper._also["b"].at) == (0, 1, 1)
    with gch.Checkpointer(tmp_path, updater=updater, also={"c": Strict()}) as other:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            other.resume()
        said = " ".join(str(warning.message) for warning in told)
        assert "also: the file alone has 'a', 'b'" in said and "the program alone has 'c'" in said
    assert updater.num_updates == 1
