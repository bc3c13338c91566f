"""Every optimizer class of the packages from_torch knows: what it is made with, how it runs by itself, and why not.

What is refused is listed with the words of the refusal, so that a class that becomes right, or wrong, is seen.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import gradchain as gch
from gradchain.adapters.torch_names import PACKAGES

FLAGS = {"use_muon": gch.choose((gch.ndim(2), 1), rest=0)}
FLAGGED = ("AdaGO", "AdaMuon", "Muon", "MuonClip", "NorMuon")
NEEDS: dict[str, dict[str, Any]] = {
    **{f"pytorch_optimizer.{name}": FLAGS for name in FLAGGED},
    **{
        f"bitsandbytes.{n}{bits}": {"lr": 1e-2, "momentum": 0.9}
        for n in ("SGD", "LARS")
        for bits in ("", "8bit", "32bit")
    },
    "bitsandbytes.PytorchLARS": {"lr": 1e-2, "momentum": 0.9},
    "pytorch_optimizer.BSAM": {"num_data": 8},
    "pytorch_optimizer.Ranger21": {"num_iterations": 20},
    "pytorch_optimizer.SaRA": {"lr": 1e-2, "threshold": 0.2},
    "timm.SGDP": {"lr": 1e-2},
    "torch.LBFGS": {"max_iter": 4},
    "torch_optimizer.LARS": {"lr": 1e-2},
    "torch_optimizer.SGDW": {"lr": 1e-2},
}
"""What a class cannot be made without."""

_OTHER = "keeps another optimizer"
_WRAPS = "wraps an optimizer that already has its parameters"
_MODEL = "takes the whole model"
_GRAPH = "differentiates the gradient once more"
_RANKS = "its ranks step parts of the weights"
_ABSTRACT = "missing 1 required positional argument: 'defaults'"
_SHAPES = "doesn't match the broadcast shape"
REFUSED: dict[str, str] = {
    "bitsandbytes.AdEMAMix32bit": _SHAPES,
    "bitsandbytes.PagedAdEMAMix32bit": _SHAPES,
    "heavyball.PSGDBase": _ABSTRACT,
    "heavyball.SAMWrapper": _OTHER,
    "heavyball.SOAPBase": _ABSTRACT,
    "heavyball.SplitOpt": "keeps an optimizer for each set of parameters",
    **{f"pytorch_optimizer.{name}": _GRAPH for name in ("AdaHessian", "SophiaH")},
    **{f"pytorch_optimizer.{name}": _MODEL for name in ("AdaLOMO", "AdamMini", "LOMO")},
    **{f"pytorch_optimizer.{name}": _OTHER for name in ("FriendlySAM", "GSAM", "LookSAM", "SAM", "WSAM")},
    **{f"pytorch_optimizer.{name}": _RANKS for name in ("DeMo", "DistributedMuon")},
    **{f"pytorch_optimizer.{name}": _WRAPS for name in (
        "Lookahead", "Magma", "OrthoGrad", "PCGrad", "SafeFP16Optimizer", "ScheduleFreeWrapper", "TRAC",
    )},
    "timm.Adahessian": _GRAPH,
    "timm.Lookahead": _WRAPS,
    "torch.SparseAdam": "takes sparse gradients only",
    "torch_optimizer.Adahessian": _GRAPH,
    "torch_optimizer.Lookahead": _WRAPS,
    "torchao.CPUOffloadOptimizer": "only supports CUDA & XPU",
}  # fmt: skip
"""Classes that cannot be the rule of a chain, with the words in which that is said."""

CLOSURES = frozenset({
    "pytorch_optimizer.AliG", "pytorch_optimizer.BSAM", "pytorch_optimizer.LBFGS", "torch.LBFGS",
    *(f"schedulefree.{name}ScheduleFreeClosure" for name in ("AdamW", "RAdam", "SGD")),
})  # fmt: skip
"""Classes whose step needs a closure."""

SWITCHED = frozenset({
    "heavyball.MSAMLaProp", "heavyball.SFAdamW", "pytorch_optimizer.SPlus",
    *(f"pytorch_optimizer.ScheduleFree{name}" for name in ("AdamW", "RAdam", "SGD")),
    *(f"schedulefree.{n}" for n in ("RAdamScheduleFree", "SGDScheduleFree", "SGDScheduleFreeReference")),
    *(f"schedulefree.AdamWScheduleFree{kind}" for kind in ("", "Paper", "Reference")),
})  # fmt: skip
"""Classes with a `train()` and an `eval()` that swap the weights."""


@functools.cache
def classes(package: str) -> dict[str, type[Optimizer]]:
    """Every public optimizer class of a package that is installed, by name; none where it cannot be imported."""
    if importlib.util.find_spec(package) is None:
        return {}
    if package == "heavyball":
        importlib.import_module("heavyball.utils").compile_mode = None  # it would compile for seconds, per class
    try:
        module = importlib.import_module(PACKAGES[package])
    except (ImportError, RuntimeError):
        return {}
    if package == "transformers":
        return {"Adafactor": module.Adafactor}
    public = {n: c for n, c in vars(module).items() if isinstance(c, type) and n[0] != "_"}
    return {n: c for n, c in sorted(public.items()) if issubclass(c, Optimizer) and c is not Optimizer}


def written(table: str) -> list[str]:
    """Those of installed packages that the table in the docs has, "package.Class": to know them imports no package."""
    sections = {s.partition("\n")[0]: re.findall(r"(?m)^\| `(\w+)` \|", s) for s in re.split(r"(?m)^## ", table)[1:]}
    installed = [package for package in PACKAGES if importlib.util.find_spec(package) is not None]
    return [f"{package}.{n}" for package in installed for n in sections.get(package, [])]


def class_of(name: str) -> type[Optimizer]:
    """The class; a test of one whose package cannot be imported here is skipped."""
    package, _, short = name.partition(".")
    if not classes(package):
        pytest.skip(f"{package} cannot be imported here")
    return classes(package)[short]


@dataclass(frozen=True)
class Way:
    """How a class is run: weights of what dtype, with a bias or of matrices only, by a closure or without.

    Those that keep low bits do so from some thousand elements on: they are run with so many.
    """

    dtype: torch.dtype = torch.float64
    bias: bool = True
    closure: bool = False
    wide: bool = False

    def net(self) -> nn.Module:
        torch.manual_seed(0)
        a, b, c = (64, 128, 64) if self.wide else (5, 6, 3)
        return nn.Sequential(nn.Linear(a, b, bias=self.bias), nn.Tanh(), nn.Linear(b, c, bias=False)).to(self.dtype)

    def batches(self, n: int) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(1)
        a, c = (64, 64) if self.wide else (5, 3)
        drawn = [(torch.randn(8, a, generator=generator), torch.randn(8, c, generator=generator)) for _ in range(n)]
        return [(x.to(self.dtype), y.to(self.dtype)) for x, y in drawn]


WAYS = [
    Way(dtype, bias, closure)
    for closure in (False, True)
    for bias in (True, False)
    for dtype in (torch.float64, torch.float32)
]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def bare(name: str, cls: type[Optimizer], model: nn.Module) -> Optimizer:
    """The class by itself, as its documentation has it: flags written into groups by hand."""
    given = {n: v for n, v in NEEDS.get(name, {}).items() if n not in FLAGS}
    if "use_muon" not in NEEDS.get(name, {}):
        made = cls(list(model.parameters()), **given)
    else:
        sides = {flag: [p for p in model.parameters() if (p.ndim == 2) is flag] for flag in (True, False)}
        made = cls([{"params": ps, "use_muon": flag} for flag, ps in sides.items() if ps], **given)
    if callable(getattr(made, "train", None)) and callable(getattr(made, "eval", None)):
        made.train()
    return made


def seed() -> None:
    """Every generator that a class may draw from."""
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # some draw from this one


def bare_step(
    optimizer: Optimizer, model: nn.Module, batch: tuple[Tensor, Tensor], closure: bool,
    clip: Callable[[nn.Module], None] | None = None,
) -> None:  # fmt: skip
    @torch.enable_grad()
    def evaluated() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        return loss.detach()

    evaluated()  # before a class asks too, as in a chain: some look at the gradients first
    seed()
    if closure:
        optimizer.step(evaluated)
        return
    if clip is not None:
        clip(model)
    optimizer.step()


def our_step(updater: gch.Updater, model: nn.Module, batch: tuple[Tensor, Tensor], closure: bool) -> None:
    seed()
    updater.update((lambda: loss_of(model, batch)) if closure else loss_of(model, batch))


def way_of(name: str, cls: type[Optimizer]) -> Way | None:
    """The first way in which the class runs by itself, for two steps; None where it runs in none."""
    wide = name.endswith(("8bit", "4bit", "Fp8"))
    ways = (replace(way, wide=wide) for way in WAYS)
    return next((way for way in ways if runs(name, cls, way)), None)


def runs(name: str, cls: type[Optimizer], way: Way, steps: int = 3) -> bool:
    """Whether the class by itself takes so many steps, and its weights are finite then."""
    with contextlib.suppress(Exception):
        model = way.net()
        optimizer = bare(name, cls, model)
        for batch in way.batches(steps):
            bare_step(optimizer, model, batch, way.closure)
        return all(bool(torch.isfinite(w).all()) for w in weights(model))
    return False


def link(name: str, cls: type[Optimizer]) -> gch.from_torch:
    return gch.from_torch(cls, **NEEDS.get(name, {}))


def weights(model: nn.Module) -> Iterator[Tensor]:
    return (p.detach() for p in model.parameters())


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two models have the same bits."""
    return all(torch.equal(p, q) for p, q in zip(weights(a), weights(b), strict=True))
