"""What is trained and how: scikit-learn's digits, a small network, its loss, and the chain."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradchain as gch

MICRO_BATCH = 16  # images
WINDOW = 4  # micro-batches to one update
TEST_IMAGES = 357  # of 1797: 1440 are left, 90 micro-batches, so that windows go on into the next epoch
MAX_NORM, BETAS, DECAY, AVERAGE = 0.5, (0.9, 0.95), 0.05, 0.98
PEAK, FLOOR = 5e-3, 5e-5  # of the learning rate


def recipe(updates: int) -> gch.chain:
    """Everything between a loss and the new weights, for a run of so many updates."""
    warmup = warmup_of(updates)
    lr = gch.linear(0.0, PEAK, warmup).then(gch.cosine(PEAK, FLOOR, updates - warmup))
    return gch.chain(
        gch.accumulate(WINDOW),  # 4 micro-batches to one step
        gch.clip_by_norm(MAX_NORM),  # of the mean gradient of the window
        gch.scale_by_adam(*BETAS),
        gch.masked(gch.add_decayed_weights(DECAY), gch.min_ndim(2)),  # AdamW, and no decay of biases
        gch.scale_by_learning_rate(lr),
        gch.average_params(AVERAGE, start=1),  # with updater.averaged(): evaluate
    )


def warmup_of(updates: int) -> int:
    """The first tenth of the updates, and at least one."""
    return max(1, updates // 10)


@dataclass(frozen=True)
class Settings:
    """What a run is a function of.

    Attributes:
        seed: of the first weights, the order of the images and dropout.
        epochs: passes over the training images.
    """

    seed: int = 0
    epochs: int = 20


@dataclass(frozen=True, eq=False)
class Digits:
    """The digits: 8 × 8 pixels, ten classes. The split is the same in every run."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @property
    def micro_batches(self) -> int:
        """How many micro-batches an epoch has."""
        return len(self.images) // MICRO_BATCH

    def micro_batch(self, seed: int, index: int) -> tuple[Tensor, Tensor]:
        """The images and labels of a run's micro-batch: a function of the seed and its number, and nothing else."""
        epoch, position = divmod(index, self.micro_batches)
        order = _order(len(self.images), seed, epoch)
        chosen = order[position * MICRO_BATCH : (position + 1) * MICRO_BATCH]
        return self.images[chosen], self.labels[chosen]


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(count))


@lru_cache(maxsize=2)
def digits(dtype: torch.dtype = torch.float32) -> Digits:
    """Read the data, which lies inside scikit-learn, and split it."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, classes = load_digits(return_X_y=True)
    parts = train_test_split(pixels, classes, test_size=TEST_IMAGES, random_state=0, stratify=classes)
    images, test_images = (torch.tensor(part / 16 - 0.3, dtype=dtype).reshape(-1, 1, 8, 8) for part in parts[:2])
    labels, test_labels = (torch.tensor(part) for part in parts[2:])
    return Digits(images, labels, test_images, test_labels)


def network(seed: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Two convolutions and a linear layer, 10 000 weights. Seeds torch's generator, which dropout goes on with."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(512, 10),
    ).to(dtype)


def criterion(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy with smoothed labels: its least value is 0.50, not 0."""
    return F.cross_entropy(outputs, labels, label_smoothing=0.1)


@torch.no_grad()
def evaluate(model: nn.Module, data: Digits) -> tuple[float, float]:
    """The loss on the test images and the share of them that is read right."""
    model.eval()
    outputs = model(data.test_images)
    model.train()
    right = (outputs.argmax(1) == data.test_labels).double().mean()
    return criterion(outputs, data.test_labels).item(), right.item()
