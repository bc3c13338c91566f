"""A little task in float64: models, micro-batches that two ranks share, and the distance between two runs."""

import torch
from torch import nn

ROWS = 4  # of a micro-batch on one rank


def net():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def rows(micro, rank, count=ROWS):
    made = torch.Generator().manual_seed(1000 * micro + rank)
    return torch.randn(count, 3, generator=made, dtype=torch.float64)


def share(micro, rank):
    """What a rank sees of a micro-batch; the whole of it with rank=None."""
    return rows(micro, rank) if rank is not None else torch.cat([rows(micro, 0), rows(micro, 1)])


def loss_of(out):
    return (out - 0.3).square().mean() + out.sin().mean()


def train(updater, model, micros, rank=None, **update):
    for micro in micros:
        with updater.context():
            loss = loss_of(model(share(micro, rank)))
        updater.update(loss, **update)
    return weights(model)


def weights(model):
    """Copies, whole, in order."""
    return [whole(p).detach().clone() for p in model.parameters()]


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def distance(found, expected, start):
    """The difference of two displacements, relative to the second."""
    flat = [torch.cat([w.flatten() for w in ws]) for ws in (found, expected, start)]
    moved = (flat[1] - flat[2]).norm()
    assert moved > 1e-3, "the reference did not move"
    return float((flat[0] - flat[1]).norm() / moved)


def alone(chain, micros=8):
    """The weights after the same micro-batches in one process."""
    model = net()
    return train(chain.bind(model), model, range(micros))


def close(results, expected, start):
    """Assert that every rank has the expected weights, and all the same bits."""
    for result in results:
        assert distance(result["weights"], expected, start) < 1e-10
    assert all(torch.equal(a, b) for a, b in zip(results[0]["weights"], results[1]["weights"], strict=True))
