"""`python -m gradchain convert`: an OpenMMLab config file as the code that replaces its optimization part."""

from __future__ import annotations

import ast
import copy
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradchain.adapters.mmengine import unbound
from gradchain.adapters.mmengine.groups.constructors import NORM
from gradchain.adapters.mmengine.reading.files import read_names
from gradchain.cli.code import program
from gradchain.cli.imports import imported, named_modules
from gradchain.cli.script import HOOKS as HOOK
from gradchain.cli.script import Writer, leaves
from gradchain.core.transform import walk

__all__ = ["Builder", "Conversion", "chains", "convert", "read"]

NEW = ("optim_wrapper", "param_scheduler", "auto_scale_lr", "custom_hooks", "default_hooks")
OLD = ("optimizer", "optimizer_config", "fp16", "lr_config", "momentum_config", "custom_hooks")
LENGTHS = {
    "train_cfg": ("max_epochs", "max_iters"),
    "runner": ("max_epochs", "max_iters"),
    "total_epochs": (),
    "total_iters": (),
}
READ = (*NEW, *OLD, *LENGTHS)
SCOPE, IMPORTS = "default_scope", "custom_imports"
WIDTH = 44

Path = tuple[Any, ...]


@dataclass(frozen=True)
class Conversion:
    """What a config became.

    code: the program of the chain; table: rows of a key, its value and what it became; unread: names of the file that
    have no part in it; remarks: warnings; loop: a function that trains, "" where the file says nothing of its loop.
    """

    code: str
    table: list[tuple[str, str, str]]
    unread: list[str]
    remarks: list[str]
    loop: str = ""

    def __str__(self) -> str:
        """The program, and all else as comments under it."""
        widths = [max(len(row[i]) for row in self.table) for i in (0, 1)]
        rows = [f"{key:{widths[0]}}  {value:{widths[1]}}  {became}" for key, value, became in self.table]
        notes = ["What each key became:", *(f"  {row}" for row in rows)]
        notes += ["", f"Not read: {', '.join(self.unread)}."] if self.unread else []
        notes += ["", "Remarks:", *(f"  {remark}" for remark in self.remarks)] if self.remarks else []
        loop = ["", "", self.loop] if self.loop else []
        return "\n".join([self.code, *loop, "", *(f"# {note}".rstrip() for note in notes)])


def convert(
    path: str | os.PathLike[str],
    *,
    epoch_length: int | None = None,
    batch_size: int | None = None,
    strict: bool = True,
    custom_imports: bool = False,
) -> Conversion:
    """Read a config file and write the chain that replaces its optimization part; no model is needed.

    Args:
        path: the config file, read by `mmengine.read_config`.
        epoch_length: micro-batches per epoch, where the recipe counts epochs.
        batch_size: over all ranks, where auto_scale_lr is enabled.
        strict: as for `mmengine.from_config`.
        custom_imports: imports what the config's `custom_imports` names, so that what it registers is known.

    Raises: what `read_config` and `from_config` raise; ValueError where the recipe is not in the file, or a number that
        it needs was not given. NotImplementedError: rules per parameter that depend on the model.
    """
    config, unread, builder = read(path, epoch_length, batch_size, strict)
    whole = read_names(path, only=())[0]
    lines = imported(config.get(IMPORTS)) if custom_imports else []
    parts, remarks = chains(builder, config)
    if (modules := named_modules(config.get(IMPORTS))) and not custom_imports:
        remarks.append(f"{IMPORTS} names {', '.join(modules)}: --custom-imports imports it, for what it registers.")
    if HOOK in unread:
        remarks.append(f"{HOOK} is not read: what its param_scheduler does to the update is yours to add.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = [_row(path, config, builder, parts) for path in leaves({k: config[k] for k in READ if k in config}, ())]
    unread = [*(name for name in config if name not in READ), *unread]
    found = Conversion(_code(parts, os.path.basename(path), lines), table, unread, remarks)
    return _with_loop(found, whole, builder, parts, os.path.basename(path)) if _has_loop(whole) else found


def _has_loop(config: Mapping[str, Any]) -> bool:
    """Whether a file says more of its loop than how long it is."""
    train = config.get("train_cfg", config.get("runner"))
    said = isinstance(train, Mapping) and len(train) > 1
    return said or any(config.get(key) is not None for key in (HOOK, "checkpoint_config", "evaluation", "log_config"))


def _with_loop(
    found: Conversion, config: Mapping[str, Any], builder: Builder, parts: list[Any], name: str
) -> Conversion:
    """A conversion with the loop of its file."""
    averages = any("average_params(" in repr(part.chain) for part in parts)
    hooks = " ".join(one for one in found.remarks if "custom_hooks: " in one)
    observed = {one for part in parts for _, link, _ in walk(part.chain, None) for one in link.observes}
    made = Writer(config, name, builder.length, parts[0].key is not None, averages, observed, hooks).written()
    told = {_key(path): (path, became) for path, became in made.rows.items()}
    table = [(key, value, told.pop(key)[1] if key in told else became) for key, value, became in found.table]
    table += [(key, _shown(_at(config, path)), became) for key, (path, became) in told.items()]
    unread = [key for key in found.unread if key not in made.names]
    remarks = [one for one in found.remarks if HOOK in unread or not one.startswith(f"{HOOK} is not read")]
    return Conversion(found.code, table, unread, [*remarks, *made.remarks], made.code)


def read(
    path: str | os.PathLike[str], epoch_length: int | None, batch_size: int | None, strict: bool
) -> tuple[dict[str, Any], list[str], Builder]:
    """The names of a file that have a part in the chain, what of it is not read, and what makes the chain."""
    config, unread = read_names(path, only=[name for name in READ if name != HOOK])
    hook = config.pop(HOOK, None)
    scheduling = hook.get("param_scheduler") if isinstance(hook, Mapping) else None
    if isinstance(scheduling, Mapping) and not str(scheduling.get("type")).endswith(".ParamSchedulerHook"):
        if scheduling.get("type", "ParamSchedulerHook") != "ParamSchedulerHook":
            config[HOOK] = {"param_scheduler": scheduling}
    if HOOK not in config and hook is not None:
        unread = [HOOK, *unread]
    return config, unread, Builder(config, epoch_length, batch_size, strict)


def chains(builder: Builder, config: dict[str, Any]) -> tuple[list[Any], list[str]]:
    """The chain of each optimizer of a config, and what was warned of meanwhile."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parts = builder.parts(config)
    return parts, list(dict.fromkeys(str(warning.message) for warning in caught))


class Builder:
    """From the dict of a file to the arguments of `unbound`."""

    def __init__(
        self, config: Mapping[str, Any], epoch_length: int | None, batch_size: int | None, strict: bool
    ) -> None:
        self.keys = NEW if "optim_wrapper" in config else OLD
        if "optim_wrapper" not in config and "optimizer" not in config:
            raise ValueError("convert: the config must have optim_wrapper, or optimizer of the old format.")
        self.length, self.scope = _length(config), config.get(SCOPE)
        self.batch_size, self.strict = batch_size, strict
        if epoch_length is None and (self.length[0] == "max_epochs" or _counts_epochs(config.get("param_scheduler"))):
            raise ValueError(
                "convert: --epoch-length must be given, the micro-batches of an epoch: len(train_dataloader)."
            )
        self.epoch_length = 1 if epoch_length is None else epoch_length

    def parts(self, config: Mapping[str, Any]) -> list[Any]:
        """The optimizers of a config: each with its chain."""
        parts: dict[str, Any] = {key: copy.deepcopy(config[key]) for key in self.keys if key in config}
        if self.keys is OLD:
            parts.setdefault("optimizer_config", None)
        hooks, scheduling = parts.pop("custom_hooks", None), parts.pop(HOOK, None)
        scaling: Any = parts.pop("auto_scale_lr", None)
        if isinstance(scaling, dict) and scaling.get("enable"):
            if self.batch_size is None:
                raise ValueError(
                    "convert: --batch-size must be given where auto_scale_lr is enabled: that of all ranks."
                )
            scaling["batch_size"] = self.batch_size
        schedulers = parts.pop("param_scheduler", None)
        return unbound(
            parts["optim_wrapper"] if self.keys is NEW else parts,
            _scoped(schedulers, self.scope) if isinstance(self.scope, str) else schedulers,
            **{self.length[0]: self.length[1]},
            epoch_length=self.epoch_length,
            auto_scale_lr=scaling,
            custom_hooks=hooks,
            default_hooks=scheduling,
            strict=self.strict,
        )


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


# the code


def _code(parts: list[Any], name: str, lines_of_imports: list[str]) -> str:
    """The program: its imports, the chains, and a function that binds them to a model."""
    several = parts[0].key is not None
    chains, bound = [], []
    for part in parts:
        target = f"model.{part.of}" if isinstance(part.of, str) else "model"
        if isinstance(part.of, (list, tuple)):
            target = "{" + ", ".join(f'"{name}": model.{name}' for name in part.of) + "}"
        autocast = f", autocast={part.autocast}" if part.autocast is not None else ""
        zero = ", zero_redundancy=True" if part.zero_redundancy else ""
        tx = f"tx_{part.key}" if several else "tx"
        chains.append(f"{tx} = {program(part.chain, {'norm': NORM})}")
        bound.append(
            f"{part.key}={tx}.bind({target}{autocast}{zero})" if several else f"{tx}.bind({target}{autocast}{zero})"
        )
    group = ["gch.group(", *(f"    {one}," for one in bound), ")"] if several else bound
    function = [
        "def make(model):",
        f'    """The updater of {name}."""',
        f"    return {group[0]}",
        *("    " + g for g in group[1:]),
    ]
    body = "\n".join([*chains, "", "", *function])
    if any(isinstance(node, ast.Name) and node.id == "norm" for node in ast.walk(ast.parse(body))):
        body = f"# what MMEngine takes for a norm: not RMSNorm, as gch.norm does\nnorm = {program(NORM)}\n\n{body}"
    imports = [f"import {module}\n" for module in ("re", "torch") if re.search(rf"(?<!\w){module}\.", body)]
    top = "\n".join([*imports, "import gradchain as gch\n", *(f"{line}\n" for line in _grouped(lines_of_imports))])
    return f"# The optimization part of {name}: updater = make(model).\n{top}\n{body}"


def _grouped(lines: list[str]) -> list[str]:
    """Imports of the user's modules together, and then what is done with them."""
    imports = [line for line in lines if line.startswith("import ")]
    return ["\n".join(part) for part in (imports, [line for line in lines if line not in imports]) if part]


# the table


def _key(path: Path) -> str:
    return "".join(f"[{step!r}]" if not isinstance(step, str) else f".{step}" for step in path)[1:]


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= WIDTH else shown[: WIDTH - 3] + "..."


def _row(path: Path, config: Mapping[str, Any], builder: Builder, parts: list[Any]) -> tuple[str, str, str]:
    value = _at(config, path)
    key, shown = _key(path), _shown(value)
    if path[0] in LENGTHS:
        return (
            key,
            shown,
            "the length of the run"
            if path[-1] in (builder.length[0], f"total_{builder.length[0][4:]}")
            else "not read",
        )
    if path[0] not in builder.keys:
        return key, shown, "not read: the other format is there"
    return key, shown, _became(path, config, builder, parts)


def _became(path: Path, config: Mapping[str, Any], builder: Builder, parts: list[Any]) -> str:
    """The links that are others with another value, or without the key; where that cannot be, without what it is in."""
    if path[-2:] in (("optimizer", "type"), ("optimizer", "optimizer_type")):
        sharing = any(part.zero_redundancy for part in parts) and path[-1] == "type"
        return "bind(zero_redundancy=True)" if sharing else "the rule"
    here, tried = _links(parts), False
    others = [_with(config, path, other) for other in _others(_at(config, path))]
    for other in [*others, *(_without(config, path[:depth]) for depth in range(len(path), 0, -1))]:
        try:
            there = _links(builder.parts(other))
        except Exception:  # of whatever type: that cannot be
            continue
        tried = True
        changed = [name for name in here if here[name] != there.get(name)]
        if changed:
            return ", ".join(changed)
        if other not in others:
            break
    return "nothing: the chain is the same without it" if tried else "all of it"


def _others(value: Any) -> list[Any]:
    """Other values of the same kind."""
    if isinstance(value, bool):
        return [not value]
    return [value / 2, value + 1] if isinstance(value, (int, float)) else []


def _links(parts: list[Any]) -> dict[str, str]:
    """By address what a link is, and the dtype of the forward."""
    out: dict[str, str] = {}
    for part in parts:
        before = "" if part.key is None else f"{part.key}/"
        out |= {before + name: repr(link) for name, link in part.chain.named}
        if part.autocast is not None:
            out[f"{before}autocast"] = repr(part.autocast)
    return out


def _at(value: Any, path: Path) -> Any:
    for step in path:
        value = value[step]
    return value


def _without(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    out, holder = _copied(config, path)
    del holder[path[-1]]
    return out


def _with(config: Mapping[str, Any], path: Path, value: Any) -> dict[str, Any]:
    out, holder = _copied(config, path)
    holder[path[-1]] = value
    return out


def _copied(config: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], Any]:
    """A copy, and what in it holds the value at a path."""
    out = copy.deepcopy(dict(config))
    holder: Any = out
    for step in path[:-1]:
        if isinstance(holder[step], tuple):
            holder[step] = list(holder[step])
        holder = holder[step]
    return out, holder
