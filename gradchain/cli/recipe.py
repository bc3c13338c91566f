"""The recipe in a config file: the names that have a part in it, and what reads them without a model."""

from __future__ import annotations

import copy
import os
import re
import warnings
from collections.abc import Mapping
from typing import Any

from gradchain.adapters.mmengine.entries import type_name
from gradchain.adapters.mmengine.groups.constructors import YOLO
from gradchain.adapters.mmengine.reading.files import read_names
from gradchain.adapters.mmengine.recipe.hooks import is_average, is_of_chain
from gradchain.adapters.mmengine.recipe.whole import Unbound, read_recipe

__all__ = ["HOOKS", "LENGTHS", "READ", "Builder", "chains", "mapping", "read"]

NEW = ("optim_wrapper", "param_scheduler", "auto_scale_lr", "custom_hooks", "default_hooks")
OLD = ("optimizer", "optimizer_config", "fp16", "lr_config", "momentum_config", "auto_scale_lr", "custom_hooks")
LENGTHS = {
    "train_cfg": ("max_epochs", "max_iters"),
    "runner": ("max_epochs", "max_iters"),
    "total_epochs": (),
    "total_iters": (),
}
READ = (*dict.fromkeys((*NEW, *OLD)), *LENGTHS)
HOOKS, SCOPE = "default_hooks", "default_scope"
OURS = re.compile(r"(mmengine\.)?[a-z_]+: ")


def read(
    path: str | os.PathLike[str],
    epoch_length: int | None,
    batch_size: int | None,
    strict: bool,
    ranks: int | None = None,
) -> tuple[dict[str, Any], list[str], Builder]:
    """The names of a file that have a part in the chain, what of it is not read, and what makes the chain."""
    config, unread = read_names(path, only=[name for name in READ if name != HOOKS])
    hooks = config.pop(HOOKS, None)
    if mine := {key: hook for key, hook in mapping(hooks).items() if is_of_chain(key, hook)}:
        config[HOOKS] = mine
    elif hooks is not None:
        unread = [HOOKS, *unread]
    return config, unread, Builder(config, epoch_length, batch_size, strict, ranks)


def chains(builder: Builder, config: Mapping[str, Any], waiting: bool = False) -> tuple[list[Unbound], list[str]]:
    """The chain of each optimizer of a config, and what was warned of meanwhile.

    NotImplementedError: rules that need the model, unless `waiting`: then the chain is without them.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parts = builder.parts(config)
    if not waiting and (reasons := [part.waits for part in parts if part.waits]):
        raise NotImplementedError(reasons[0])
    # others' are not about the file: packages that are looked through for a class say what they will
    return parts, list(dict.fromkeys(str(one.message) for one in caught if _is_ours(one)))


def mapping(value: Any) -> Mapping[str, Any]:
    """What a name of a file holds, where that is a dict; else an empty one."""
    return value if isinstance(value, Mapping) else {}


def _is_ours(warning: warnings.WarningMessage) -> bool:
    """Whether a warning is a sentence of gradchain's: `owner: what must hold`."""
    return warning.category is UserWarning and OURS.match(str(warning.message)) is not None


class Builder:
    """From the dict of a file to the arguments of `from_config`."""

    def __init__(
        self,
        config: Mapping[str, Any],
        epoch_length: int | None,
        batch_size: int | None,
        strict: bool,
        ranks: int | None = None,
    ) -> None:
        self.is_old = "optim_wrapper" not in config
        self.keys = OLD if self.is_old else NEW
        if self.is_old and "optimizer" not in config:
            raise ValueError("convert: the config must have optim_wrapper, or optimizer of the old format.")
        self.length, self.scope = _length(config), config.get(SCOPE)
        self.batch_size, self.strict, self.ranks = batch_size, strict, ranks
        if epoch_length is None and (self.length[0] == "max_epochs" or _counts_epochs(config.get("param_scheduler"))):
            raise ValueError(
                "convert: --epoch-length must be given, the micro-batches of an epoch: len(train_dataloader)."
            )
        self.epoch_length = 1 if epoch_length is None else epoch_length

    def parts(self, config: Mapping[str, Any]) -> list[Unbound]:
        """The optimizers of a config: each with its chain."""
        wrapper, schedulers, given = self.arguments(config)
        if self.ranks is not None:
            for holder in _of_yolo(wrapper):  # its constructor multiplies this by the ranks that there are
                holder["batch_size_per_gpu"] = holder["batch_size_per_gpu"] * self.ranks
        return read_recipe(
            None,
            wrapper,
            _scoped(schedulers, self.scope) if isinstance(self.scope, str) else schedulers,
            {"max_epochs": None, "max_iters": None, self.length[0]: self.length[1], "epoch_length": self.epoch_length},
            given.get("auto_scale_lr"),
            (given.get("custom_hooks"), given.get(HOOKS)),
            self.strict,
        )

    def arguments(self, config: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
        """The wrapper or what the old format has of one, the schedulers, and what else is given by name."""
        parts: dict[str, Any] = {key: copy.deepcopy(config[key]) for key in self.keys if key in config}
        if self.is_old:
            parts.setdefault("optimizer_config", None)
        given = {key: parts.pop(key) for key in ("custom_hooks", HOOKS, "auto_scale_lr") if key in parts}
        scaling: Any = given.get("auto_scale_lr")
        if isinstance(scaling, dict) and scaling.get("enable"):
            if self.batch_size is None:
                raise ValueError(
                    "convert: --batch-size must be given where auto_scale_lr is enabled: that of all ranks."
                )
            scaling["batch_size"] = self.batch_size
        schedulers = parts.pop("param_scheduler", None)
        return (parts if self.is_old else parts["optim_wrapper"]), schedulers, given

    def written(self, config: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
        """The arguments of `from_config` as a person gives them: those that say something."""
        wrapper, schedulers, given = self.arguments(config)
        hooks, scaling = given.pop("custom_hooks", None), given.pop("auto_scale_lr", None)
        out: dict[str, Any] = {self.length[0]: self.length[1], "epoch_length": self.epoch_length}
        out |= {"auto_scale_lr": scaling} if scaling and scaling.get("enable") else {}
        out |= {"custom_hooks": kept} if (kept := [one for one in hooks or () if self.reads(one)]) else {}
        if self.scope == "mmpose":  # whose ConstantLR is another
            schedulers = _scoped(schedulers, self.scope)
        return wrapper, schedulers, out | given | ({} if self.strict else {"strict": False})

    def reads(self, hook: Any) -> bool:
        """Whether a custom hook has a part in the chain."""
        return is_average(hook, self.is_old)

    def is_for_one_rank(self, config: Mapping[str, Any]) -> bool:
        """Whether numbers depend on the ranks, and nobody said how many there are."""
        return self.ranks is None and bool(_of_yolo(self.arguments(config)[0]))


def _of_yolo(config: Any) -> list[dict[str, Any]]:
    """The dicts of optimizers whose constructor scales the decay by the ranks."""
    optimizer = config.get("optimizer") if isinstance(config, Mapping) else None
    constructor = type_name(config.get("constructor")) if isinstance(config, Mapping) else None
    if isinstance(optimizer, dict) and "batch_size_per_gpu" in optimizer and constructor in YOLO:
        return [optimizer]
    return []


def _length(config: Mapping[str, Any]) -> tuple[str, int]:
    """How long the run is, by epochs or by iterations."""
    for place, names in LENGTHS.items():
        held: Any = config.get(place)
        if not names and held is not None:
            return place.replace("total", "max"), held
        for name in names if isinstance(held, Mapping) else ():
            if held.get(name) is not None:
                return name, held[name]
    raise ValueError("convert: the config must say how long the run is: train_cfg=dict(max_epochs=...) or max_iters.")


def _scoped(schedulers: Any, scope: str) -> Any:
    """Schedulers of the project that the file is of."""
    if isinstance(schedulers, (list, tuple)):
        return [_scoped(one, scope) for one in schedulers]
    if not isinstance(schedulers, Mapping):
        return schedulers
    if "type" not in schedulers:
        return {name: _scoped(one, scope) for name, one in schedulers.items()}
    return {"_scope_": scope, **schedulers}


def _counts_epochs(schedulers: Any) -> bool:
    """Whether a scheduler in a loop of iterations turns epochs into them."""
    if isinstance(schedulers, Mapping):
        return bool(schedulers.get("convert_to_iter_based")) or any(map(_counts_epochs, schedulers.values()))
    return isinstance(schedulers, (list, tuple)) and any(map(_counts_epochs, schedulers))
