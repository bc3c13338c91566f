"""Aliases: each is a function that returns the chain one would write by hand, with torch's defaults."""

from typing import TYPE_CHECKING

from gradchain.optimizers.descent import asgd, lion, rprop, sgd
from gradchain.optimizers.moments import adam, adamax, adamw, nadam, nadamw, radam, sparse_adam
from gradchain.optimizers.squares import adadelta, adagrad, rmsprop
from gradchain.words.names import answers

__all__ = [
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "asgd",
    "lion",
    "nadam",
    "nadamw",
    "radam",
    "rmsprop",
    "rprop",
    "sgd",
    "sparse_adam",
]

if not TYPE_CHECKING:  # to a checker a name that is not here is a mistake
    __getattr__ = answers(__name__)
