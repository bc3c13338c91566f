"""Layer-wise decay of a config as `layer_decay`: the depths that its model may have, read from names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from gradchain.adapters.mmengine.entries import is_number
from gradchain.selectors import ParameterFacts, depth, layer_decay

__all__ = ["decays", "of_timm"]


def of_timm(names: Sequence[str]) -> depth.vit | None:
    """The depths of a plain transformer with timm's names, `blocks.0` in `model.` or nothing; None for others."""
    inside = [found for name in names if (found := re.match(r"((?:\w+\.)*?)blocks\.(\d+)\.", name))]
    if len({found[1] for found in inside}) != 1 or re.search(r"\d", inside[0][1]):
        return None
    return depth.vit(max(int(found[2]) for found in inside) + 1, prefix=inside[0][1], blocks="blocks")


def decays(model: nn.Module, config: Mapping[str, Any], facts: Sequence[ParameterFacts]) -> Iterator[layer_decay]:
    """The rules that a config with a rate may mean, none where it has no rate; which one is right, numbers tell."""
    given = config.get("paramwise_cfg") or {}
    rate = given.get("layer_decay_rate", given.get("decay_rate", config["optimizer"].get("layer_decay_rate")))
    if not is_number(rate) or not rate > 0:
        return
    names = [name for name, _, _ in facts]
    if (timm := of_timm(names)) is not None:
        yield layer_decay(rate, timm)
    for prefix in dict.fromkeys(("backbone.", "")):
        for deep in _depths(prefix, names, _totals(model, given, prefix, names)):
            rule = layer_decay(rate, deep)
            try:
                rule.factors(facts)
            except (IndexError, ValueError):  # names that another kind of model has
                continue
            yield rule


def _totals(model: nn.Module, given: Mapping[str, Any], prefix: str, names: Sequence[str]) -> list[int]:
    """How many depths there may be: as the config, the model or the list of blocks says."""
    ask: Any = getattr(getattr(model, "module", model), "get_layer_depth", None)
    totals = [given["num_layers"] + 2] if type(given.get("num_layers")) is int else []
    totals += [ask(names[0])[1]] if ask is not None else []
    totals += [len(_counts(rf"{re.escape(prefix)}{blocks}\.(\d+)\.", names)) + 2 for blocks in ("layers", "blocks")]
    return [total for total in dict.fromkeys(totals) if total > 2]


def _counts(pattern: str, names: Sequence[str]) -> dict[str, int]:
    """For each text of the pattern's first group, one more than the greatest number of its second."""
    counts: dict[str, int] = {}
    for found in filter(None, (re.match(pattern, name) for name in names)):
        counts[found[1]] = max(counts.get(found[1], 0), int(found[found.re.groups]) + 1)
    return counts


def _depths(prefix: str, names: Sequence[str], totals: Sequence[int]) -> Iterator[depth.Depth]:
    start = re.escape(prefix)
    stages = tuple(_counts(rf"{start}stages\.(\d+)\.blocks\.(\d+)\.", names).values())
    if stages:
        yield depth.swin(stages, prefix=prefix)
        yield depth.swin(stages, prefix=prefix, stem=("patch_embed", "mask_token"))
    blocks = tuple(_counts(rf"{start}stages\.(\d+)\.(\d+)\.", names).values())
    for total in totals:
        for kind in ("layers", "blocks"):
            yield depth.vit(total - 2, prefix=prefix, blocks=kind)
            yield depth.vit(total - 2, prefix=prefix, blocks=kind, stem=("cls_token", "pos_embed", "patch_embed"))
        if len(blocks) == 4:
            yield depth.convnext(blocks, prefix=prefix)
            yield depth.convnext(blocks, prefix=prefix, last=total - 2)
        yield depth.convnext_stages(total - 2, prefix=prefix)
    layers = tuple(_counts(rf"{start}layer(\d+)\.(\d+)\.", names).values())
    if layers:
        yield depth.resnet(layers, prefix=prefix)
    if len(layers) == 4:
        yield depth.resnet(layers, prefix=prefix, together=(3, 2, 3, 3))
