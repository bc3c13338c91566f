"""Optimizer classes by name: where a name is looked up, and which classes cannot be the rule of a chain."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Iterator

from torch.optim import Optimizer

PACKAGES: dict[str, str] = {
    "torch": "torch.optim",
    "torch_optimizer": "torch_optimizer",
    "lion_pytorch": "lion_pytorch",
    "dadaptation": "dadaptation",
    "prodigyopt": "prodigyopt",
    "Sophia": "Sophia",
    "bitsandbytes": "bitsandbytes.optim",
    "transformers": "transformers",
    "schedulefree": "schedulefree",
    "pytorch_optimizer": "pytorch_optimizer",
    "timm": "timm.optim",
    "torchao": "torchao.optim",
    "heavyball": "heavyball",
}
"""Package → the module that has its classes, in the order in which a name is looked up; those not installed are not."""

registered: dict[str, type[Optimizer]] = {}
"""What `gch.register` was given: looked up first."""

_OVER_RANKS = "its ranks step parts of the weights and exchange them in its step, which a chain cannot follow."
_ONCE_MORE = (
    "it differentiates the gradient once more, and a chain's gradients have no graph. Run it outside the chain."
)
_REFUSED: dict[tuple[str, str], str] = {
    ("torch", "SparseAdam"): (
        "it takes sparse gradients only, and a class is given dense ones. Use scale_by_adam(), which updates the rows "
        "that a sparse gradient names."
    ),
    ("torch", "ZeroRedundancyOptimizer"): (
        "each rank steps its own part of the weights and sends it to the others, which a chain cannot follow. Give "
        "from_torch the class inside, or shard the model too, by fully_shard (FSDP2), under a rule of gradchain's."
    ),
    ("torch", "PostLocalSGDOptimizer"): (
        "it wraps an optimizer that already has its parameters, and averages them over ranks by itself. Give "
        "from_torch the class inside, and call the averager after updater.update."
    ),
    ("torch", "_NamedOptimizer"): (
        "it wraps an optimizer to name its parameters, as a chain does. Give from_torch the class inside."
    ),
    ("torch_optimizer", "Lookahead"): (
        "it wraps an optimizer that already has its parameters, and mixes the weights at the first step of a period in "
        "place of the last. Give from_torch the inner optimizer."
    ),
    ("heavyball", "SplitOpt"): (
        "it keeps an optimizer for each set of parameters, as partition does. Give partition a from_torch for each."
    ),
    ("pytorch_optimizer", "DeMo"): f"{_OVER_RANKS} Use a link of ours, under DDP.",
    ("pytorch_optimizer", "DistributedMuon"): (
        f"{_OVER_RANKS} Use pytorch_optimizer.Muon, or fully_shard (FSDP2) under a rule of gradchain's."
    ),
    ("torch_optimizer", "Adahessian"): _ONCE_MORE,
    ("pytorch_optimizer", "AdaHessian"): _ONCE_MORE,
    ("pytorch_optimizer", "SophiaH"): _ONCE_MORE,
    ("timm", "Adahessian"): _ONCE_MORE,
}


_UNSAID = frozenset({("pytorch_optimizer", "AliG"), ("pytorch_optimizer", "BSAM")})


def needs_closure(cls: type[Optimizer]) -> bool:
    """Whether a step of a class must be given a closure: by its signature, or by what is known of it."""
    closure = inspect.signature(cls.step).parameters.get("closure")
    said = closure is not None and closure.default is inspect.Parameter.empty
    return said or any((base.__module__.partition(".")[0], base.__name__) in _UNSAID for base in cls.__mro__)


def class_of(optimizer: str | type[Optimizer]) -> type[Optimizer]:
    """The class given, or that of a name; KeyError, TypeError or ValueError where it cannot be had."""
    if isinstance(optimizer, str):
        optimizer = _found(optimizer)
    if not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer)):
        cure = " Its arguments go to from_torch too." if isinstance(optimizer, Optimizer) else ""
        raise TypeError(
            f"from_torch: optimizer must be a torch.optim.Optimizer class or its name, got {optimizer!r}.{cure}"
        )
    reason = _reason(optimizer)
    if reason is not None:
        raise ValueError(f"from_torch: {optimizer.__name__} cannot be the rule of a chain: {reason}")
    return optimizer


def _reason(cls: type[Optimizer]) -> str | None:
    """Why a class, or one that it derives from, cannot be the rule of a chain; None where nothing is known against."""
    for base in cls.__mro__:
        reason = _REFUSED.get((base.__module__.partition(".")[0], base.__name__))
        if reason is not None:
            return reason
    parameters = inspect.signature(cls).parameters
    first = next(iter(parameters), "")
    if first.rpartition("_")[2] in ("optimizer", "optim", "opt"):
        return f"it wraps an optimizer that already has its parameters ({first}=). Give from_torch the class inside."
    inner = [n for n, p in parameters.items() if n.endswith("base_optimizer") and p.default is inspect.Parameter.empty]
    if inner:
        return (
            f"it keeps another optimizer, of the class it is given ({inner[0]}=), whose memory would be in no "
            "checkpoint. Give from_torch that class, and say the rest by links, such as sam()."
        )
    if first == "model":
        return "it takes the whole model and steps in backward or by its structure. Use bind(…, in_backward=True)."
    return None


def name_of(cls: type[Optimizer]) -> str | type[Optimizer]:
    """The shortest name that stands for this very class; the class where no name does."""
    found = next((name for name, known in registered.items() if known is cls), None)
    if found is not None:
        return found
    package = "transformers" if cls.__module__.startswith("transformers.") else cls.__module__.partition(".")[0]
    package = "torch_optimizer" if package == "pytorch_ranger" else package
    for name in (cls.__name__, f"{package}.{cls.__name__}"):
        try:
            if _found(name) is cls:
                return name
        except KeyError:
            continue
    return cls


def _classes(package: str) -> dict[str, type[Optimizer]]:
    """The optimizers of a package, by name; none if it is not installed."""
    if importlib.util.find_spec(package) is None:
        return {}
    try:
        module = importlib.import_module(PACKAGES[package])
    except (ImportError, OSError, RuntimeError):  # it is there, and cannot be had: another may have the name
        return {}
    if package == "transformers":  # it has one, and looking at all its names would import all of it
        return {"Adafactor": module.Adafactor}
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer and name[0] != "_"
    }


def _found(name: str) -> type[Optimizer]:
    if name in registered:
        return registered[name]
    path, _, short = name.rpartition(".")
    root = path.partition(".")[0]
    for package in PACKAGES:
        found = _classes(package).get(short) if root in ("", package) else None
        if found is not None:
            return found
    raise KeyError(_unknown(name))


def _unknown(name: str) -> str:
    root = name.partition(".")[0]
    if root != name and root in PACKAGES and importlib.util.find_spec(root) is None:
        return f"from_torch: there is no optimizer {name!r}: {root} is not installed here."
    near = difflib.get_close_matches(name.rpartition(".")[2], [*registered, *_all_names()], n=3, cutoff=0.6)
    same = [n for n in _all_names() if n.lower() == name.lower()]
    hint = f" Did you mean {' or '.join(map(repr, same or near))}?" if same or near else ""
    here = ", ".join(package for package in PACKAGES if importlib.util.find_spec(package) is not None)
    return f"from_torch: there is no optimizer {name!r} in {', '.join(PACKAGES)}, as far as installed: {here}.{hint}"


def _all_names() -> Iterator[str]:
    for package in PACKAGES:
        yield from _classes(package)
