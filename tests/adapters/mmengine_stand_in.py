"""Small models whose modules and parameters have the names that a recipe speaks of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

# constructors that know the layers of a model → a module of the shared folder that has such
LAYERED = {
    "LearningRateDecayOptimWrapperConstructor": "vit_beit",
    "mmselfsup.LearningRateDecayOptimWrapperConstructor": "vit_beit",
    "LayerDecayOptimWrapperConstructor": "vit_beit",
    "LearningRateDecayOptimizerConstructor": "vit_blocks",
    "TSMOptimWrapperConstructor": "tsm",
}


def stand_in(wrapper: Mapping[str, Any], build: Callable[[str], nn.Module]) -> nn.Module:
    """A model for one `optim_wrapper` of recipes.jsonl.gz; `build` makes a module of the shared folder by its name."""
    layered = LAYERED.get(str(wrapper.get("constructor")))
    kind = (wrapper.get("optimizer") or {}).get("model_type", "vit")
    model = nn.Module() if layered is None else build(layered if kind == "vit" else "swin")
    if layered is None:
        model.backbone, model.head = block(), block()
    elif kind != "vit":
        model.backbone.depths = [2, 2]
        if kind == "mixmim":
            model.backbone.layers = model.backbone.stages
            del model.backbone.stages
    each = {key: one for key, one in wrapper.items() if isinstance(one, Mapping) and "optimizer" in one}
    for key, one in {**each, "": wrapper}.items():
        target = model
        if key.isidentifier():
            target = block()
            setattr(model, key, target)
        elif key:
            inside(model, f"net.{literal(key)}")
        if isinstance(one.get("modules"), str):
            inside(model, f"net.{literal(one['modules'])}")
        rules = one.get("paramwise_cfg") or {}
        for i, custom in enumerate(rules.get("custom_keys", [k for k, v in rules.items() if isinstance(v, Mapping)])):
            if not any(custom in name for name, _ in target.named_parameters()):
                inside(target, f"part{i}.{custom.strip('.')}")
    return model


def literal(pattern: str) -> str:
    """What a pattern of the recipes matches behind its wildcards."""
    return pattern.replace(".*", "").strip(".")


def block() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))


def inside(model: nn.Module, path: str) -> None:
    """A block at the end of a dotted path."""
    *parents, last = path.split(".")
    for name in parents:
        if not hasattr(model, name):
            setattr(model, name, nn.Module())
        model = getattr(model, name)
    if not hasattr(model, last):
        setattr(
            model, last, nn.Linear(2, 2) if last not in ("weight", "bias") else nn.Parameter(nn.Linear(2, 2).weight)
        )
