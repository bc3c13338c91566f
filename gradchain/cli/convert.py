"""`python -m gradchain convert`: an OpenMMLab config file as the code that replaces its optimization part."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import gradchain as gch
from gradchain.adapters.mmengine.reading.files import read_names
from gradchain.adapters.mmengine.recipe.whole import Unbound
from gradchain.cli import module
from gradchain.cli.imports import imported, named_modules
from gradchain.cli.recipe import HOOKS, READ, Builder, chains, mapping, read
from gradchain.cli.script import Writer
from gradchain.cli.table import at, key_of, rows, shown
from gradchain.cli.text import commented
from gradchain.core.transform import walk

__all__ = ["Conversion", "convert"]

IMPORTS = "custom_imports"


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
        lines = [f"{key:{widths[0]}}  {value:{widths[1]}}  {became}" for key, value, became in self.table]
        notes = ["# What each key became:", *(f"#   {line}" for line in lines)]
        notes += ["#", *commented([f"Not read: {', '.join(self.unread)}."])] if self.unread else []
        notes += ["#", "# Remarks:", *commented(self.remarks, "  ")] if self.remarks else []
        loop = ["", "", self.loop] if self.loop else []
        return "\n".join([self.code, *loop, "", *notes])


def convert(
    path: str | os.PathLike[str],
    *,
    epoch_length: int | None = None,
    batch_size: int | None = None,
    strict: bool = True,
    custom_imports: bool = False,
    ranks: int | None = None,
) -> Conversion:
    """Read a config file and write the chain that replaces its optimization part; no model is needed.

    Where rules per parameter depend on the model, `make(model)` of the program reads them, by `mmengine.from_config`.

    Args:
        path: the config file, read by `mmengine.read_config`.
        epoch_length: micro-batches per epoch, where the recipe counts epochs.
        batch_size: over all ranks, where auto_scale_lr is enabled.
        strict: as for `mmengine.from_config`.
        custom_imports: imports what the config's `custom_imports` names, so that what it registers is known.
        ranks: how many processes the run has, where a constructor asks for it (YOLOv5's); None: one.

    Raises: what `read_config` and `from_config` raise; ValueError where the recipe is not in the file, or a number that
        it needs was not given.
    """
    config, unread, builder = read(path, epoch_length, batch_size, strict, ranks)
    whole, name = read_names(path, only=())[0], os.path.basename(path)
    lines = imported(config.get(IMPORTS)) if custom_imports else []
    parts, remarks = chains(builder, config, waiting=True)
    has_loop = _has_loop(whole)
    if waits := list(dict.fromkeys(part.waits for part in parts if part.waits)):
        printed = "updater.chain" if parts[0].key is None else "updater[name].chain"
        code = module.of_config(*builder.written(config), printed, name, lines, has_loop)
        read_there = f"make(model) reads it, by mmengine.from_config, and print({printed}) then is the chain."
        remarks += [f"{reason.partition('. ')[0]}. {read_there}" for reason in waits]
    else:
        code = module.of_chains(parts, name, lines, list(_notes(config, builder, parts)))
    remarks += _remarks(whole, builder, config, custom_imports)
    if HOOKS in unread:
        remarks.append(f"{HOOKS} is not read: what its param_scheduler does to the update is yours to add.")
    table = rows({key: config[key] for key in READ if key in config}, builder, parts)
    unread = [*(name for name in config if name not in READ), *unread]
    found = Conversion(code, table, unread, remarks)
    return _with_loop(found, whole, builder, parts, name) if has_loop else found


def _remarks(whole: Mapping[str, Any], builder: Builder, config: Mapping[str, Any], imports: bool) -> Iterator[str]:
    """What the command itself has to say of a file."""
    if (modules := named_modules(whole.get(IMPORTS))) and not imports:
        yield f"{IMPORTS} names {', '.join(modules)}: --custom-imports imports it, for what it registers."
    if builder.is_for_one_rank(config):
        yield (
            "weight_decay is that of one rank: the constructor scales it by the batch of all ranks. --ranks N says how "
            "many there are."
        )
    model = whole.get("model")
    own = [key for key in ("ema_config", "discriminator_steps", "generator_steps") if key in mapping(model)]
    if own:
        yield (
            f"model: {', '.join(own)} {'is' if len(own) == 1 else 'are'} read by the model's own train_step, which is "
            "yours: an average is average_params(…) at the end of a chain, and several steps of one updater are calls "
            "of run.update."
        )


def _notes(config: Mapping[str, Any], builder: Builder, parts: list[Unbound]) -> Iterator[str]:
    """Comments above the chains, of numbers that are not those of the file."""
    links = [link for part in parts for _, link, _ in walk(part.chain, None)]
    moving = [link for part in parts for _, link in part.chain.named if not isinstance(link, gch.accumulate)]
    if any("by('micro'" in repr(link) for link in moving):
        held = ["in a window"] if any(isinstance(link, gch.accumulate) for link in links) else []
        scaled = any(isinstance(link, gch.amp_scale) for link in links)
        held += ["after an overflow of the loss scale"] if scaled else []
        yield f'by("micro", …): MMEngine\'s schedulers move at each iteration, {" and ".join(held)} too'
    for link in links:
        if not isinstance(link, gch.average_params) or not isinstance(link.decay, float) or not 0 < link.decay < 1:
            continue
        for hook in config.get("custom_hooks") or ():
            momentum = hook.get("momentum", 0.0002) if builder.reads(hook) else 1.0
            times = round(math.log(link.decay) / math.log1p(-momentum)) if momentum < 1.0 else 1
            if times > 1 and (1.0 - momentum) ** times == link.decay:
                yield (
                    f"average_params({link.decay!r}, …) is {1.0 - momentum!r} ** {times}: MMEngine averages at each "
                    f"of {times} iterations, here it is once per update"
                )


def _has_loop(config: Mapping[str, Any]) -> bool:
    """Whether a file says more of its loop than how long it is."""
    train = config.get("train_cfg", config.get("runner"))
    said = isinstance(train, Mapping) and len(train) > 1
    return said or any(config.get(key) is not None for key in (HOOKS, "checkpoint_config", "evaluation", "log_config"))


def _with_loop(
    found: Conversion, config: Mapping[str, Any], builder: Builder, parts: list[Unbound], name: str
) -> Conversion:
    """A conversion with the loop of its file."""
    averages = any("average_params(" in repr(part.chain) for part in parts)
    observed = {one for part in parts for _, link, _ in walk(part.chain, None) for one in link.observes}
    hooks = [hook for hook in config.get("custom_hooks") or () if not builder.reads(hook)]
    made = Writer(config, name, builder.length, parts[0].key is not None, averages, observed, hooks).written()
    told = {key_of(path): (path, became) for path, became in made.rows.items()}
    table = [(key, value, told.pop(key)[1] if key in told else became) for key, value, became in found.table]
    table += [(key, shown(at(config, path)), became) for key, (path, became) in told.items()]
    unread = [key for key in found.unread if key not in made.names]
    remarks = [one for one in found.remarks if HOOKS in unread or not one.startswith(f"{HOOKS} is not read")]
    # the loop has a remark for each hook
    remarks = [one for one in remarks if not one.startswith("mmengine.from_config: custom_hooks: ")]
    return replace(found, table=table, unread=unread, remarks=[*remarks, *made.remarks], loop=made.code)
