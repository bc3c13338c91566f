"""What optimizers keep, as plain data and back: every kind, deep in others; what is a slip or a trap is refused."""

import io
from collections import deque
from enum import Enum, IntEnum

import numpy as np
import pytest
import torch

from gradchain.adapters.plain_memory import read, written
from gradchain.core.slots import copied, is_plain

PACKAGE = __name__.partition(".")[0]


class Projector:
    made = 0

    def __init__(self, rank):
        Projector.made += 1
        self.rank, self.basis = rank, torch.eye(rank)

    def __eq__(self, other):
        return type(other) is Projector and self.rank == other.rank and torch.equal(self.basis, other.basis)

    __hash__ = None


class Kind(IntEnum):
    ALL = 1


class Word(Enum):
    ONE = "one"


class Careful:
    def __new__(cls):
        raise AssertionError("is to be made by nobody")


VALUES = [
    set(), {1, 2}, {"a", 3}, frozenset({1}), deque(), deque([1.0, 2.0], 2), deque([{1}, deque([3])]),
    torch.Size([2, 3]), Kind.ALL, Word.ONE, Projector(2), 3, True, None, "word", 0.5, 1j, torch.float16,
    (1, 2), [1, (2, [3])],
]  # fmt: skip
AROUND = [lambda v: v, lambda v: {"a": v, 0: v}, lambda v: [v], lambda v: (v, 1), lambda v: deque([v, v], 5)]


@pytest.mark.parametrize("around", range(len(AROUND)))
@pytest.mark.parametrize("value", VALUES, ids=[f"{type(value).__name__} {i}" for i, value in enumerate(VALUES)])
def test_there_and_back_through_a_file(value, around):
    """Of the same type, in plain values on the way, as torch.load with weights_only has them."""
    value = AROUND[around](value)
    plain = written(value, PACKAGE, torch.Tensor.detach)
    assert is_plain(plain)
    file = io.BytesIO()
    torch.save(copied(plain), file)
    file.seek(0)
    back = read(torch.load(file, weights_only=True), PACKAGE)
    assert type(back) is type(value) and back == value
    assert getattr(back, "maxlen", None) == getattr(value, "maxlen", None)


def test_a_helper_is_made_without_its_constructor():
    before, plain = Projector.made, written(Projector(2), PACKAGE, torch.Tensor.detach)
    assert read(plain, PACKAGE).rank == 2 and Projector.made == before + 1


@pytest.mark.parametrize("number", [np.float64(0.5), np.float32(0.5), np.int64(3)])
def test_numbers_of_numpy_are_plain(number):
    if isinstance(number, float):
        assert type(written(number, PACKAGE, torch.Tensor.detach)) is float
    else:
        with pytest.raises(TypeError, match="which no checkpoint can hold"):
            written(number, PACKAGE, torch.Tensor.detach)


@pytest.mark.parametrize("value", [object(), Careful.__dict__, lambda: 1, io.BytesIO(), torch.Generator()], ids=type)
def test_what_has_no_plain_form_is_refused(value):
    with pytest.raises(TypeError, match=r"it keeps a \w+, which no checkpoint can hold"):
        written({"a": [value]}, PACKAGE, torch.Tensor.detach)


@pytest.mark.parametrize("mark", ["<helper>", "<member>"])
@pytest.mark.parametrize(
    "name", ["os.system", "subprocess.Popen", "builtins.eval", "torch.nn.Linear", "torch.Tensor", "no.such", "", 3,
             None, f"{__name__}.Careful", f"{__name__}.deque", f"{__name__}.PACKAGE"],
)  # fmt: skip
def test_a_file_that_names_something_else_is_refused(name, mark):
    """Nothing is imported, called or made by a name in a file but the loaded package's own plain classes."""
    with pytest.raises(TypeError, match=r"its memory has a .*, which is no class of"):
        read({mark: name, "value": 1}, PACKAGE)
