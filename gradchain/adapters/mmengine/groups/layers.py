"""Constructors that know the layers of certain models: a learning rate by depth, and what does not decay."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from gradchain.adapters.mmengine.groups.constructors import NORM, decay_kinds, of_key
from gradchain.adapters.mmengine.groups.paramwise import Paramwise
from gradchain.adapters.mmengine.groups.rules import Layers, Rule, Rules, containing
from gradchain.selectors import Selector, bias, depth, named, ndim

__all__ = ["by_depth", "mmaction", "mmpose", "mmseg", "mmselfsup"]

WITHIN = "backbone."


def by_depth(paramwise: Paramwise, model: nn.Module | None) -> Rules:
    """LearningRateDecayOptimWrapperConstructor of MMPretrain: the model says how deep, rules say what decays."""
    rate = paramwise.number("layer_decay_rate", 1.0)
    if not paramwise.decays:
        paramwise.refuse("optimizer must have weight_decay.")
    if model is None:
        return Rules(paramwise)
    names = [name for name, _ in model.named_parameters()]
    ask: Any = getattr(model, "get_layer_depth", None)
    timm = of_timm(names) if ask is None else None
    if ask is None and timm is None:
        paramwise.refuse(
            f"the model must have a method get_layer_depth(name), which returns the layer of a parameter and how many "
            f"layers there are; {type(model).__name__} has none, and its backbone's does not count. Without one write "
            "gch.scale_by_learning_rate(gch.multiply(rate, gch.layer_decay(…))).",
            NotImplementedError,
        )
    deep: Callable[[str], int] = (lambda name: ask(name)[0]) if timm is None else timm
    total = timm.total if timm is not None else ask(names[0])[1] if names else 1
    custom = []
    for key, entry in paramwise.custom:
        own = {name: value for name, value in entry.items() if name != "decay_mult"}
        items = {**of_key(paramwise, key, entry, "weight_decay"), **own}
        custom.append(Rule(containing(key, paramwise.missing_ok), items, key, closes=True))
    kinds = decay_kinds(paramwise, {"norm": NORM, "bias": bias, "flat": ndim(1)})
    shown = timm if timm is not None else next((one for one in _depths(names, total) if _tells(one, deep, names)), None)
    layers = Layers(rate, deep, total, total - 1, shown)
    return Rules(paramwise, [*custom, *kinds], {"weight_decay": paramwise.base("weight_decay")}, layers)


def _merged(paramwise: Paramwise, layers: Layers, rules: Sequence[Rule]) -> Rules:
    """A group for each depth with decay, and one for each without."""
    return Rules(paramwise, rules, {"weight_decay": paramwise.base("weight_decay")}, layers, once=True, merged=True)


def _flat_free(paramwise: Paramwise, deep: depth.Depth, rate: float, *more: Selector) -> Rules:
    """No decay for what has one dimension, for biases, and for more."""
    free = [Rule(who, {"weight_decay": 0.0}) for who in (ndim(1), named("*.bias", missing_ok=True), *more)]
    return _merged(paramwise, Layers(rate, deep, deep.total, deep.total - 1, deep), free)


def _backbone(paramwise: Paramwise, model: nn.Module, attribute: str = "") -> Any:
    """The model's backbone, or what it has by that name."""
    found: Any = model
    for name in filter(None, ("backbone", attribute)):
        if not hasattr(found, name):
            paramwise.refuse(f"a {type(found).__name__} must have {name}, and has none.", AttributeError)
        found = getattr(found, name)
    return found


def mmseg(paramwise: Paramwise, model: nn.Module | None) -> Rules:
    """LearningRateDecayOptimizerConstructor and LayerDecayOptimizerConstructor of MMSegmentation and MMDetection."""
    layers, kind = paramwise.layers(), paramwise.cfg.get("decay_type", "layer_wise")
    by_name = paramwise.constructor == "LayerDecayOptimizerConstructor"
    rate = paramwise.number("layer_decay_rate" if by_name else "decay_rate")
    if model is None:
        return Rules(paramwise)
    cls = type(_backbone(paramwise, model)).__name__
    deep: depth.Depth
    if "layer_wise" in kind and "ConvNeXt" in cls:
        deep = depth.convnext((1, 1, 1, 1), WITHIN, layers, ("cls_token", "mask_token", "pos_embed"))
    elif "layer_wise" in kind and ("BEiT" in cls or "MAE" in cls):
        deep = depth.vit(layers, WITHIN)
    elif kind == "stage_wise" and "ConvNeXt" in cls:
        deep = depth.convnext_stages(layers, WITHIN)
    else:
        rule = "it must be layer_wise for a ConvNeXt, BEiT or MAE, or stage_wise for a ConvNeXt"
        paramwise.refuse(f"{rule}, got {kind!r} for a {cls}.", NotImplementedError)
    return _flat_free(paramwise, deep, rate, named("pos_embed", "cls_token", missing_ok=True))


def mmpose(paramwise: Paramwise, model: nn.Module | None) -> Rules:
    """LayerDecayOptimWrapperConstructor of MMPose, for a ViT."""
    deep, rate = depth.vit(paramwise.layers(), WITHIN), paramwise.number("layer_decay_rate")
    return _flat_free(paramwise, deep, rate, named("*pos_embed*", missing_ok=True))


def mmaction(paramwise: Paramwise, model: nn.Module | None) -> Rules:
    """LearningRateDecayOptimizerConstructor of MMAction2, for an MViT or a ViT."""
    deep, rate = depth.vit(paramwise.layers(), WITHIN, "blocks"), paramwise.number("decay_rate")
    if model is None:
        return Rules(paramwise)
    cls, kind = type(_backbone(paramwise, model)).__name__, paramwise.cfg.get("decay_type", "layer_wise")
    if "layer_wise" not in kind or not ("MViT" in cls or "VisionTransformer" in cls):
        rule = "it must be layer_wise for an MViT or VisionTransformer"
        paramwise.refuse(f"{rule}, got {kind!r} for a {cls}.", NotImplementedError)
    if any(isinstance(module, nn.modules.batchnorm._NormBase) for module in model.modules()):
        paramwise.refuse("the model must have no batch norms.", AssertionError)
    return _flat_free(paramwise, deep, rate)


def _mixmim(depths: Sequence[int]) -> Callable[[str], int]:
    """MixMIM's: patches and positions lie below the first depth, and the head with the last block."""

    def deep(name: str) -> int:
        if "patch_embed" in name or "pos_embed" in name:
            return -1
        if not name.startswith("backbone.layers"):
            return sum(depths) - 1
        stage, block = int(name.split(".")[2]), name.split(".")[4]
        outside = block in ("downsample", "reduction", "norm")
        return sum(depths[: stage + 1]) - 1 if outside else sum(depths[:stage]) + int(block)

    return deep


def mmselfsup(paramwise: Paramwise, model: nn.Module | None) -> Rules:
    """LearningRateDecayOptimWrapperConstructor of MMSelfSup: custom keys alone say what decays, the shortest wins."""
    kind = paramwise.optimizer.get("model_type")
    rate = paramwise.factor("layer_decay_rate", paramwise.optimizer.get("layer_decay_rate", 1.0))
    if kind not in ("vit", "swin", "mixmim"):
        paramwise.refuse(f"optimizer must have a model_type, 'vit', 'swin' or 'mixmim', got {kind!r}.", AssertionError)
    if model is None:
        return Rules(paramwise)
    found = _backbone(paramwise, model, "layers" if kind == "vit" else "depths")
    if kind == "mixmim":
        layers = Layers(rate, _mixmim(found), sum(found) + 1, sum(found) - 1)
    else:
        deep = (
            depth.vit(len(found), WITHIN)
            if kind == "vit"
            else depth.swin(tuple(found), WITHIN, stem=("patch_embed", "mask_token"))
        )
        layers = Layers(rate, deep, deep.total, deep.total - 1, deep)
    custom = [
        Rule(containing(key, paramwise.missing_ok), of_key(paramwise, key, entry, "weight_decay"), key, closes=True)
        for key, entry in reversed(paramwise.custom)
    ]
    return _merged(paramwise, layers, custom)


# the depths that names tell


def of_timm(names: Sequence[str]) -> depth.vit | None:
    """The depths of a plain transformer with timm's names, `blocks.0` in `model.` or nothing; None for others."""
    inside = [found for name in names if (found := re.match(r"((?:\w+\.)*?)blocks\.(\d+)\.", name))]
    if len({found[1] for found in inside}) != 1 or re.search(r"\d", inside[0][1]):
        return None
    return depth.vit(max(int(found[2]) for found in inside) + 1, prefix=inside[0][1], blocks="blocks")


def _tells(found: depth.Depth, deep: Callable[[str], int], names: Sequence[str]) -> bool:
    """Whether these depths are those; names that another kind of model has may fail."""
    try:
        return all(found(name) == deep(name) for name in names)
    except (IndexError, ValueError):
        return False


def _counts(pattern: str, names: Sequence[str]) -> tuple[int, ...]:
    """For each text of the pattern's first group, one more than the greatest number of its second."""
    counts: dict[str, int] = {}
    for found in filter(None, (re.match(pattern, name) for name in names)):
        counts[found[1]] = max(counts.get(found[1], 0), int(found[2]) + 1)
    return tuple(counts.values())


def _depths(names: Sequence[str], total: int) -> Iterator[depth.Depth]:
    """The depths of MMPretrain's models that have so many of them, as far as the names may be theirs."""
    if total <= 2:
        return
    for prefix in ("backbone.", ""):
        start = re.escape(prefix)
        for kind in ("layers", "blocks"):
            yield depth.vit(total - 2, prefix=prefix, blocks=kind)
            yield depth.vit(total - 2, prefix=prefix, blocks=kind, stem=("cls_token", "pos_embed", "patch_embed"))
        if stages := _counts(rf"{start}stages\.(\d+)\.blocks\.(\d+)\.", names):
            yield depth.swin(stages, prefix=prefix)
            yield depth.swin(stages, prefix=prefix, stem=("patch_embed", "mask_token"))
        if len(blocks := _counts(rf"{start}stages\.(\d+)\.(\d+)\.", names)) == 4:
            yield depth.convnext(blocks, prefix=prefix)
            yield depth.convnext(blocks, prefix=prefix, last=total - 2)
        if layers := _counts(rf"{start}layer(\d+)\.(\d+)\.", names):
            yield depth.resnet(layers, prefix=prefix)
        if len(layers) == 4:
            yield depth.resnet(layers, prefix=prefix, together=(3, 2, 3, 3))
