"""Constructors that know the layers of certain models, and those of two kinds of models with rules of their own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradchain.adapters.mmengine.entries import is_number
from gradchain.adapters.mmengine.groups.paramwise import Group, Paramwise
from gradchain.selectors import ParameterFacts, depth, layer_decay

__all__ = ["decays", "mmaction", "mmpose", "mmseg", "mmselfsup", "of_timm", "tsm", "yolo", "yolo_decay", "yolo_free"]

YOLOV7, IMPLICIT = "YOLOv7OptimWrapperConstructor", ("ImplicitA", "ImplicitM")
WITHIN = "backbone."
Decay = Callable[[str, Tensor], Any]
"""(name, parameter) -> its weight decay."""


def _mixmim(depths: list[int]) -> Callable[[str], int]:
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


def _merged(
    paramwise: Paramwise, model: nn.Module, deep: Callable[[str], int], total: int, rate: float, decay: Decay
) -> list[Group]:
    """A group for each depth with decay, and one for each without. `total`: how many depths there are."""
    groups: dict[tuple[int, bool], Group] = {}
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    paramwise.check_layers({name: deep(name) for name in trained}, deep(""))
    for name, parameter in trained.items():
        layer, value = deep(name), decay(name, parameter)
        scale = rate ** (total - layer - 1)
        items = {"weight_decay": value, "lr_scale": scale, "lr": scale * paramwise.base("lr")}
        # which decay a group has, its first parameter says
        groups.setdefault((layer, value == 0), ([], items))[0].append(parameter)
    return list(groups.values())


def _flat_free(paramwise: Paramwise, more: Callable[[str], bool]) -> Decay:
    """No decay for what has one dimension, for biases, and for more."""
    base = paramwise.base("weight_decay")
    return lambda name, p: 0.0 if p.ndim == 1 or name.endswith(".bias") or more(name) else base


def _backbone(paramwise: Paramwise, model: nn.Module, attribute: str = "") -> Any:
    """The model's backbone, or what it has by that name."""
    found: Any = model
    for name in filter(None, ("backbone", attribute)):
        if not hasattr(found, name):
            paramwise.refuse(f"a {type(found).__name__} must have {name}, and has none.", AttributeError)
        found = getattr(found, name)
    return found


def mmseg(paramwise: Paramwise, model: nn.Module) -> list[Group]:
    """LearningRateDecayOptimizerConstructor and LayerDecayOptimizerConstructor of MMSegmentation and MMDetection."""
    layers, kind = paramwise.layers(), paramwise.cfg.get("decay_type", "layer_wise")
    named = paramwise.constructor == "LayerDecayOptimizerConstructor"
    rate = paramwise.number("layer_decay_rate" if named else "decay_rate")
    cls = type(_backbone(paramwise, model)).__name__
    deep: depth.Depth
    if "layer_wise" in kind and "ConvNeXt" in cls:
        deep = depth.convnext((1, 1, 1, 1), WITHIN, layers)
    elif "layer_wise" in kind and ("BEiT" in cls or "MAE" in cls):
        deep = depth.vit(layers, WITHIN)
    elif kind == "stage_wise" and "ConvNeXt" in cls:
        deep = depth.convnext_stages(layers, WITHIN)
    else:
        rule = "it must be layer_wise for a ConvNeXt, BEiT or MAE, or stage_wise for a ConvNeXt"
        paramwise.refuse(f"{rule}, got {kind!r} for a {cls}.", NotImplementedError)
    free = _flat_free(paramwise, lambda name: name in ("pos_embed", "cls_token"))
    return _merged(paramwise, model, deep, deep.total, rate, free)


def mmpose(paramwise: Paramwise, model: nn.Module) -> list[Group]:
    """LayerDecayOptimWrapperConstructor of MMPose, for a ViT."""
    deep, rate = depth.vit(paramwise.layers(), WITHIN), paramwise.number("layer_decay_rate")
    return _merged(paramwise, model, deep, deep.total, rate, _flat_free(paramwise, lambda name: "pos_embed" in name))


def mmaction(paramwise: Paramwise, model: nn.Module) -> list[Group]:
    """LearningRateDecayOptimizerConstructor of MMAction2, for an MViT or a ViT."""
    deep, rate = depth.vit(paramwise.layers(), WITHIN, "blocks"), paramwise.number("decay_rate")
    cls, kind = type(_backbone(paramwise, model)).__name__, paramwise.cfg.get("decay_type", "layer_wise")
    if "layer_wise" not in kind or not ("MViT" in cls or "VisionTransformer" in cls):
        rule = "it must be layer_wise for an MViT or VisionTransformer"
        paramwise.refuse(f"{rule}, got {kind!r} for a {cls}.", NotImplementedError)
    if any(isinstance(module, nn.modules.batchnorm._NormBase) for module in model.modules()):
        paramwise.refuse("the model must have no batch norms.", AssertionError)
    return _merged(paramwise, model, deep, deep.total, rate, _flat_free(paramwise, lambda name: False))


def mmselfsup(paramwise: Paramwise, model: nn.Module) -> list[Group]:
    """LearningRateDecayOptimWrapperConstructor of MMSelfSup: custom keys alone say what decays, the shortest wins."""
    kind, base = paramwise.optimizer.get("model_type"), paramwise.base("weight_decay")
    rate = paramwise.factor("layer_decay_rate", paramwise.optimizer.get("layer_decay_rate", 1.0))
    if kind not in ("vit", "swin", "mixmim"):
        paramwise.refuse(f"optimizer must have a model_type, 'vit', 'swin' or 'mixmim', got {kind!r}.", AssertionError)
    depths = [] if kind == "vit" else list(_backbone(paramwise, model, "depths"))
    deep: Any = _mixmim(depths)
    if kind == "vit":
        deep = depth.vit(len(_backbone(paramwise, model, "layers")), WITHIN)
    elif kind == "swin":
        deep = depth.swin(tuple(depths), WITHIN, stem=("patch_embed", "mask_token"))

    def decay(name: str, parameter: Tensor) -> Any:
        found = [(key, entry) for key, entry in paramwise.custom if key in name][-1:]
        paramwise.used.update(key for key, _ in found)
        factors = [paramwise.factor(f"custom_keys[{k!r}]['decay_mult']", e.get("decay_mult", 1.0)) for k, e in found]
        return base * factors[0] if factors else base

    return _merged(paramwise, model, deep, sum(depths) + 1 if kind == "mixmim" else deep.total, rate, decay)


def tsm(paramwise: Paramwise, model: nn.Module) -> list[Group]:
    """TSMOptimWrapperConstructor of MMAction2: the biases learn twice as fast, the last layer five times."""
    if "fc_lr5" not in paramwise.cfg:
        paramwise.refuse("paramwise_cfg must have fc_lr5.", KeyError)
    first: list[list[Tensor]] = []
    rest: list[list[Tensor]] = []
    norms: list[Tensor] = []
    for module in model.modules():
        own: list[Tensor] = list(module.parameters())
        if isinstance(module, nn.modules.conv._ConvNd) and not first:
            first.append(own)
        elif isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            rest.append(own)
        elif isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
            norms += [p for p in own if p.requires_grad]
        elif not module._modules and own:
            paramwise.refuse(
                f"every layer must be a convolution, Linear or normalisation, got a {type(module).__name__}."
            )
    lr, decay = paramwise.base("lr"), paramwise.base("weight_decay")
    weights, biases = [own[0] for own in rest], [own[1] for own in rest if len(own) == 2]
    if not weights or not biases:
        paramwise.refuse(
            "the model must have a layer with a weight and one with a bias after its first convolution.", IndexError
        )
    last = 5 if paramwise.cfg["fc_lr5"] else 1
    return [
        ([own[0] for own in first], {"lr": lr, "weight_decay": decay}),
        ([own[1] for own in first if len(own) == 2], {"lr": lr * 2, "weight_decay": 0}),
        (weights[:-1], {"lr": lr, "weight_decay": decay}),
        (biases[:-1], {"lr": lr * 2, "weight_decay": 0}),
        (norms, {"lr": lr, "weight_decay": 0}),
        (weights[-1:], {"lr": lr * last, "weight_decay": decay}),
        (biases[-1:], {"lr": lr * 2 * last, "weight_decay": 0}),
    ]


def yolo_decay(paramwise: Paramwise) -> Any:
    """The decay of weights, for the size of the batch that they are trained with."""
    decay = paramwise.optimizer.get("weight_decay", 0)
    if paramwise.cfg and "base_total_batch_size" not in paramwise.cfg:
        paramwise.refuse("paramwise_cfg must have base_total_batch_size.", AssertionError)
    if "batch_size_per_gpu" in paramwise.optimizer:
        base = paramwise.number("base_total_batch_size", 64)
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        total = world * paramwise.factor("batch_size_per_gpu", paramwise.optimizer["batch_size_per_gpu"])
        scale = total * max(round(base / total), 1) / base
        decay = decay * scale if scale != 1 else decay
    return decay


def yolo_free(paramwise: Paramwise) -> dict[str, Any]:
    """What norms and biases have: the decay that the optimizer's class has by itself."""
    free = paramwise.arguments.get("weight_decay")
    return {} if free is None else {"weight_decay": free.default}


def yolo(paramwise: Paramwise, model: nn.Module) -> list[Group]:
    """YOLOv5OptimizerConstructor of MMYOLO: weights decay, by the size of the batch; norms and biases do not.

    To YOLOv7OptimWrapperConstructor its implicit knowledge goes with the norms.
    """
    decay, rest = yolo_decay(paramwise), yolo_free(paramwise)
    weights: list[Tensor] = []
    norms: list[Tensor] = []
    biases: list[Tensor] = []
    for module in model.modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if paramwise.constructor == YOLOV7 and type(module).__name__ in IMPLICIT:
            norms.append(module.implicit)  # type: ignore[arg-type]  # a parameter, in MMYOLO
        elif isinstance(weight, nn.Parameter):
            (norms if isinstance(module, nn.modules.batchnorm._NormBase) else weights).append(weight)
        if isinstance(bias, nn.Parameter):
            biases.append(bias)
    return [(weights, {"weight_decay": decay}), (norms, dict(rest)), (biases, dict(rest))]


# the depths that names tell


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
