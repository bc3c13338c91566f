"""A run that may be killed at any moment: its steps, its checkpoint, the hash of what came out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gradchain as gch
from gradchain.demo.recipe import WINDOW, Settings, criterion, digits, evaluate, network, recipe


class RefusedError(Exception):
    """What was asked for cannot be done; the message is a sentence."""


class Training:
    """The model, its updater, and what was seen on the way.

    Args:
        settings: what the run is a function of.
        tx: a chain in place of the recipe's.

    Attributes:
        history: "loss" of each micro-batch; "learning_rate" and "norm" of each update; "test_loss" and "accuracy" of
            the averaged weights after each epoch.
    """

    def __init__(self, settings: Settings, tx: gch.chain | None = None) -> None:
        self.settings = settings
        self.data = digits()
        self.total = settings.epochs * self.data.micro_batches  # micro-batches
        self.updates = -(-self.total // WINDOW)
        self.model = network(settings.seed)
        self.updater = (tx or recipe(self.updates)).bind(self.model)
        names = ("loss", "learning_rate", "norm", "test_loss", "accuracy")
        self.history: dict[str, list[float]] = {name: [] for name in names}

    @property
    def done(self) -> int:
        """How many micro-batches are behind. It is the updater's clock, so a checkpoint has it."""
        return self.updater.num_micro

    @property
    def accuracy(self) -> float:
        """The share of test images that the averaged weights read right, after the last whole epoch."""
        return self.history["accuracy"][-1] if self.history["accuracy"] else float("nan")

    def steps(self) -> Iterator[None]:
        """Train from where the run is to its end. At each stop the run may be saved."""
        while self.done < self.total:
            images, labels = self.data.micro_batch(self.settings.seed, self.done)
            with self.updater.context():
                loss = criterion(self.model(images), labels)
            info = self.updater.update(loss)
            self.history["loss"].append(loss.item())
            if self.done == self.total and not info:
                info = self.updater.flush()  # the last window may have fewer micro-batches
            if info:
                self.history["learning_rate"].append(info.hyperparams.get(RATE, float("nan")))
                self.history["norm"].append(info["clip_by_norm.norm"])
            if self.done % self.data.micro_batches == 0:
                self._evaluate()
            yield

    def _evaluate(self) -> None:
        with self.updater.averaged():
            loss, accuracy = evaluate(self.model, self.data)
        self.history["test_loss"].append(loss)
        self.history["accuracy"].append(accuracy)

    def save(self, path: Path) -> None:
        """Write all that the rest of the run depends on into one file, or leave the one before."""
        generator = torch.get_rng_state()  # dropout's
        self.updater.save(path, settings=asdict(self.settings), generator=generator, history=self.history)

    def load(self, path: Path) -> None:
        """Go back to where a run was saved.

        Raises:
            RefusedError: the file is damaged, or of a run with other settings.
        """
        try:
            extra = self.updater.load(path)
        except ValueError as error:
            raise RefusedError(str(error)) from error
        if extra["settings"] != asdict(self.settings):
            options = " ".join(f"--{name} {value}" for name, value in extra["settings"].items())
            raise RefusedError(f"{path.parent} has a run with {options}: give these to go on with it.")
        self.history = extra["history"]
        torch.set_rng_state(extra["generator"])

    def digest(self) -> str:
        """A hash of the weights, the buffers and the state: equal for runs that are equal bit for bit."""
        return digest(self.updater.contents())


RATE = "scale_by_learning_rate.learning_rate"


def digest(value: object) -> str:
    """A hash of plain data: dict, list, tuple, str, numbers, None and tensors."""
    sha = hashlib.sha256()
    _feed(sha, value)
    return sha.hexdigest()


def _feed(sha: Any, value: object) -> None:
    """Plain data, so that its parts cannot be taken for one another."""
    if isinstance(value, Mapping):
        sha.update(f"dict {len(value)};".encode())
        for key, item in value.items():
            _feed(sha, key)
            _feed(sha, item)
    elif isinstance(value, (list, tuple)):
        sha.update(f"list {len(value)};".encode())
        for item in value:
            _feed(sha, item)
    elif isinstance(value, Tensor):
        sha.update(f"{value.dtype} {tuple(value.shape)};".encode())
        sha.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    else:
        sha.update(f"{type(value).__name__} {value!r};".encode())
