"""The gallery's files, loaded by their paths; models from names; toy losses and data; a chain's numbers at any step."""

import importlib.util
from pathlib import Path

import torch

GALLERY = Path(__file__).parents[2] / "docs" / "gallery"
NAMES = sorted(path.stem for path in GALLERY.glob("*.py"))


def recipe(name):
    """The module of a file of the gallery. `timm` and `clip` are packages too, so none goes into sys.modules."""
    spec = importlib.util.spec_from_file_location(f"gallery_{name}", GALLERY / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model_of(**entries):
    """A tree of modules: dots are written `__`; an entry is a shape, for a parameter, or a module."""
    torch.manual_seed(0)
    root = torch.nn.Module()
    for name, entry in entries.items():
        *path, last = name.split("__")
        at = root
        for part in path:
            if not hasattr(at, part):
                at.add_module(part, torch.nn.Module())
            at = getattr(at, part)
        setattr(at, last, torch.nn.Parameter(0.1 * torch.randn(entry)) if isinstance(entry, tuple) else entry)
    return root


def pull(model, batch):
    """A loss that moves every parameter: each is drawn to the batch's mean."""
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else model.values()
    return sum((p - batch.mean()).square().mean() for p in parameters)


def batches(n, size=4, width=4):
    """The same numbers at every call."""
    return list(torch.randn(n, size, width, generator=torch.Generator().manual_seed(1)))


def numbers(updater, name, **clocks):
    """A hyperparameter at these clocks, which are 0 where they are not named: one number, or parameter → number."""
    read = updater._bound.hypers
    found = read.values({**dict.fromkeys(updater._bound.clocks, 0), **clocks})
    (value,) = (v for address, v in found.items() if address == name or address.endswith(f"/{name}"))
    return value


def bound(name, models, **options):
    """A recipe's chain on the small model that has its names; in float16, where it scales the loss."""
    chain, model = recipe(name).chain(), getattr(models, name, lambda: torch.nn.Linear(4, 4))()
    half = {"autocast": torch.float16} if "amp_scale" in repr(chain) else {}
    return chain.bind(model, **half, **options)


RATE, DECAY = "scale_by_learning_rate.learning_rate", "add_decayed_weights.weight_decay"


def of(value, parameter):
    """The number of one parameter."""
    return value[parameter] if isinstance(value, dict) else value
