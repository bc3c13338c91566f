"""MMEngine's parameter groups: what each parameter's learning rate, weight decay and other settings are."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from gradchain.adapters.mmengine.entries import Entry, listed, scope_and_name, type_name
from gradchain.adapters.mmengine.groups import constructors, layers
from gradchain.adapters.mmengine.groups.constructors import DEFAULT, FORCED, OLD
from gradchain.adapters.mmengine.groups.paramwise import RULES, Group, Paramwise, check_places
from gradchain.selectors import ParameterFacts
from gradchain.updater.target import Target

__all__ = ["group_numbers", "modules_and_settings", "param_settings", "register_constructor"]

# OpenMMLab's own scopes; another project's constructor may have any of these names, and is another
PROJECTS = (
    "mmengine", "mmcv", "mmaction", "mmagic", "mmcls", "mmdet", "mmdet3d", "mmedit", "mmflow", "mmgen", "mmocr",
    "mmpose", "mmpretrain", "mmrazor", "mmrotate", "mmseg", "mmselfsup", "mmtrack", "mmyolo", "opencompass", "xtuner",
)  # fmt: skip
BY_DEPTH = "LearningRateDecayOptimWrapperConstructor"
BY_LAYER = "LearningRateDecayOptimizerConstructor"
MULTI = "MultiOptimWrapperConstructor"
BY_CHILD = ("GenOptimWrapperConstructor", "SeparateOptimWrapperConstructor")
"""Of MMGeneration and MMRazor: one optimizer for each child of the model, by its name."""
PATTERNS = f"mmselfsup.{OLD}"
"""MMSelfSup's of before MMEngine: `paramwise_options`, by patterns."""

Settings = dict[str, "dict[str, Any] | None"]
Facts = Sequence[ParameterFacts]


@dataclass(frozen=True)
class Constructor:
    """What reads paramwise_cfg.

    reads, in_entries: the keys there, and in an entry of custom_keys; items: whether other keys of an entry become
    items of the group; always: it does not take an empty paramwise_cfg for none; inherits: MMEngine's own checks run.
    """

    build: Callable[[Paramwise, nn.Module], list[Group]]
    reads: tuple[str, ...]
    in_entries: tuple[str, ...] = ("lr_mult", "decay_mult")
    items: bool = False
    always: bool = False
    inherits: bool = True


_DECAYS = ("custom_keys", "layer_decay_rate", "norm_decay_mult", "bias_decay_mult", "flat_decay_mult")
_OF_PATTERNS = ("lr_mult", "weight_decay_mult", "momentum_mult")
_LAYERS = ("num_layers", "decay_rate", "decay_type")
_DEFAULT = (*RULES, "custom_keys", "bypass_duplicate")
CONSTRUCTORS: dict[str, Constructor] = {
    DEFAULT: Constructor(constructors.default, _DEFAULT, items=True),
    FORCED: Constructor(constructors.default, (*_DEFAULT, "force_default_settings"), items=True),
    PATTERNS: Constructor(constructors.by_pattern, ("custom_keys",), _OF_PATTERNS, items=True, inherits=False),
    OLD: Constructor(constructors.default, tuple(key for key in _DEFAULT if key != "flat_decay_mult")),
    BY_DEPTH: Constructor(constructors.by_depth, _DECAYS, ("decay_mult",), items=True),
    f"mmselfsup.{BY_DEPTH}": Constructor(layers.mmselfsup, ("custom_keys",), ("decay_mult",), always=True),
    BY_LAYER: Constructor(layers.mmseg, _LAYERS),
    f"mmaction.{BY_LAYER}": Constructor(layers.mmaction, _LAYERS),
    "LayerDecayOptimizerConstructor": Constructor(layers.mmseg, ("num_layers", "layer_decay_rate")),
    "LayerDecayOptimWrapperConstructor": Constructor(layers.mmpose, ("num_layers", "layer_decay_rate")),
    "SwinOptimWrapperConstructor": Constructor(constructors.swin, ("custom_keys",)),
    **dict.fromkeys(("TSMOptimWrapperConstructor", "TSMOptimizerConstructor"), Constructor(layers.tsm, ("fc_lr5",))),
    "YOLOv5OptimizerConstructor": Constructor(layers.yolo, ("base_total_batch_size",), always=True, inherits=False),
    layers.YOLOV7: Constructor(layers.yolo, ("base_total_batch_size",), always=True, inherits=False),
}


Build = Callable[[nn.Module, "dict[str, Any]"], "list[dict[str, Any]]"]
"""(the model, its dict) -> groups, as torch's optimizers take them."""
registered: dict[str, Constructor] = {}
"""What `register_constructor` was given, by name."""


def param_settings(model: nn.Module, optim_wrapper: Mapping[str, Any], strict: bool = True) -> Any:
    """Read what MMEngine's optimizer wrapper constructors make of `paramwise_cfg`, parameter by parameter.

        lr_i = lr · lr_mult,  weight_decay_i = weight_decay · decay_mult,  of the one rule that takes parameter i

    MMEngine's default constructor looks for the longest custom key that is part of a name, and where there is none for
    norm > bias > depthwise > one-dimensional. All rules are skipped where a custom key takes a parameter: a key that
    sets only lr_mult gives norms and biases their decay back.

    Args:
        model: the module; what wraps it as `.module` is looked through, as MMEngine does.
        optim_wrapper: the dict with `optimizer`, `paramwise_cfg` and `constructor`; nothing of it is changed.
            Constructors: Default, that of mmcv 1.x too; ForceDefault; LearningRateDecay and LayerDecay of MMPretrain,
            MMSegmentation, MMDetection, MMPose, MMAction2, MMSelfSup; Swin and TSM of MMAction2; YOLOv5 and YOLOv7 of
            MMYOLO; Multi of MMagic, Gen and Separate of MMGeneration and MMRazor. Where two projects have one name, a
            scope (`mmselfsup.`) or the model tells.
        strict: True, what cannot act is an error that names all of it; False, a warning each.

    Returns:
        By the name that bind gives a parameter, None where it is not optimised, else its lr and weight_decay (absent
        where neither the config nor the optimizer's class has them) and what else its group has, unless the optimizer
        has that anyway. Where several optimizers share the model, a dict of those by optimizer.

    Raises: ValueError or TypeError, as MMEngine: multipliers of what the optimizer has not, a parameter that comes up
        twice without bypass_duplicate. ValueError where strict: keys that nobody reads or that take no parameter,
        weight decay outside the optimizer, lr_mult at the top. NotImplementedError: a model whose layers the
        constructor does not know.

    Equals: MMEngine 0.10.7, number for number.

    >>> import torch
    >>> from gradchain.adapters import mmengine
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    >>> adamw = {"type": "AdamW", "lr": 0.1, "weight_decay": 0.05}
    >>> wrapper = {"optimizer": adamw, "paramwise_cfg": {"norm_decay_mult": 0.0, "bias_lr_mult": 2.0}}
    >>> settings = mmengine.param_settings(model, wrapper)
    >>> settings["0.bias"], settings["1.bias"]
    ({'lr': 0.2, 'weight_decay': 0.05}, {'lr': 0.1, 'weight_decay': 0.0})
    """
    facts = Target(model).index.entries
    wrapped = getattr(model, "module", None)
    inner = wrapped if isinstance(wrapped, nn.Module) else model
    if not isinstance(optim_wrapper, Mapping):
        raise TypeError(f"mmengine.param_settings: optim_wrapper must be a dict, got {optim_wrapper!r}.")
    if type_name(optim_wrapper.get("constructor")) not in (MULTI, *BY_CHILD):
        return _of_one(inner, optim_wrapper, strict, facts)
    paramwise = Paramwise(MULTI, {}, {}, strict)
    if "modules" in optim_wrapper:
        return _of_modules(_matched(inner, optim_wrapper["modules"]), optim_wrapper, strict, facts)
    settings = {}
    for name, config in optim_wrapper.items():
        if name in ("constructor", "type"):
            continue
        if not isinstance(config, Mapping):
            paramwise.refuse(f"{name} must be the dict of an optimizer wrapper, got {config!r}.", TypeError)
        modules = config.get("modules", name)
        if isinstance(modules, str) and modules in inner._modules:
            settings[name] = _of_one(getattr(inner, modules), {**config, "constructor": DEFAULT}, strict, facts)
        else:
            settings[name] = _of_modules(_matched(inner, modules), config, strict, facts)
    return settings


def group_numbers(model: nn.Module, config: Mapping[str, Any]) -> dict[str, int]:
    """By name, which of the groups of one optimizer's config a parameter is in; its faults were said before."""
    names = {id(parameter): name for name, parameter, _ in Target(model).index.entries}
    inner = getattr(model, "module", model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        groups = _groups(*read(inner, config, False), inner)
    return {names[id(parameter)]: i for i, (parameters, _) in enumerate(groups) for parameter in parameters}


def _groups(paramwise: Paramwise, how: Constructor | None, model: nn.Module) -> list[Group]:
    return how.build(paramwise, model) if how is not None else [(list(model.parameters()), {})]


def _of_one(model: nn.Module, config: Mapping[str, Any], strict: bool, facts: Facts) -> Settings:
    paramwise, how = read(model, config, strict)
    groups = _groups(paramwise, how, model)
    if how is not None and "custom_keys" in how.reads:
        paramwise.check_used()
    return _settings_of(paramwise, groups, facts, {id(p) for p in model.parameters() if p.requires_grad})


def _of_modules(
    modules: Iterable[tuple[str, nn.Module]], config: Mapping[str, Any], strict: bool, facts: Facts
) -> Settings:
    """One optimizer for what `_matched` has found."""
    paramwise, _ = read(nn.Module(), {**config, "constructor": DEFAULT}, strict)
    if paramwise.cfg:
        paramwise.refuse("paramwise_cfg must be empty for an optimizer of several modules.", AssertionError)
    return _settings_of(paramwise, [([p for _, module in modules for p in module.parameters()], {})], facts, set())


def _matched(model: nn.Module, given: Any) -> list[tuple[str, nn.Module]]:
    """For a pattern, or each of a list: the child of this name, or else all modules whose whole name it matches."""
    out: list[tuple[str, nn.Module]] = []
    for pattern in given if isinstance(given, (list, tuple)) else [given]:
        if pattern in model._modules:
            out.append((pattern, getattr(model, pattern)))
        else:
            out += [(name, module) for name, module in model.named_modules() if re.fullmatch(pattern, name)]
    return out


def modules_and_settings(
    model: nn.Module, given: Any, config: Mapping[str, Any], entry: Entry, by_child: bool = False
) -> tuple[Any, Any]:
    """The modules of these names, or those whose whole names match, and what each of their parameters begins with.

    by_child: one that names a child of the model is that module by itself, with rules per parameter.
    """
    model = getattr(model, "module", model)
    if by_child and given in model._modules:
        child = getattr(model, given)
        return child, param_settings(child, config, entry.strict)
    found: list[tuple[str, nn.Module]] = []
    for pattern in given if isinstance(given, (list, tuple)) else [given]:
        here = _matched(model, pattern)
        if pattern not in model._modules and not any(True for _, m in here for _ in m.parameters()):
            children = listed(name for name, _ in model.named_children())
            entry.refuse(f"{pattern!r} must name or match a module with parameters; the model has {children}.")
        found += here
    names = [name for name, _ in found]
    # one inside another is there already
    apart = {n: m for n, m in found if not any(n.startswith(f"{other}.") for other in names)}
    target = model if "" in names else apart
    return target, _of_modules(found, config, entry.strict, Target(target).index.entries)


def read(model: nn.Module, config: Mapping[str, Any], strict: bool) -> tuple[Paramwise, Constructor | None]:
    """The config with its faults noted, and its constructor; None where all parameters are one group."""
    optimizer, given = config.get("optimizer"), config.get("paramwise_cfg")
    scope, name = scope_and_name(config.get("constructor") or DEFAULT)
    paramwise = Paramwise(name, optimizer if isinstance(optimizer, Mapping) else {}, given or {}, strict)
    how = registered.get(name)
    if how is None and scope in ("", *PROJECTS):
        how = CONSTRUCTORS.get(_with_scope(scope, name, model, paramwise.optimizer))
    if how is None:
        known = ", ".join(sorted((*CONSTRUCTORS, MULTI, *BY_CHILD)))
        cure = "A constructor of your own is made known by mmengine.register_constructor."
        paramwise.refuse(f"constructor must be one of {known}, got {'.'.join(filter(None, (scope, name)))!r}. {cure}")
    if not isinstance(optimizer, Mapping):
        paramwise.refuse(f"optim_wrapper must have optimizer, a dict, got {optimizer!r}.", TypeError)
    if given is not None and not isinstance(given, Mapping):
        paramwise.refuse(f"paramwise_cfg must be a dict or None, got {given!r}.", TypeError)
    check_places(config, paramwise)
    if given is None and name.startswith("LayerDecay"):
        paramwise.refuse("paramwise_cfg must be given.", TypeError)
    nested = [entry for entry in paramwise.cfg.values() if isinstance(entry, Mapping)]
    if how.build is constructors.swin and nested and "custom_keys" not in paramwise.cfg:
        paramwise.cfg, paramwise.root = {"custom_keys": paramwise.cfg}, "base"
    if how.build is constructors.by_pattern and paramwise.cfg:
        paramwise.cfg = {"custom_keys": paramwise.cfg}
    if how.inherits:
        paramwise.check_decays()
    if not (paramwise.cfg or how.always):
        return paramwise, None
    if name not in registered:
        paramwise.check_keys(how.reads, how.in_entries, items=how.items)
    return paramwise, how


def register_constructor(name: str) -> Callable[[Build], Build]:
    """Make a constructor of one's own known by its name, to all that reads recipes here.

    Args:
        name: what `constructor=` says, without a scope. It comes before OpenMMLab's of the same name.

    Returns:
        A decorator for a function of the model and the dict with `optimizer` and `paramwise_cfg`, which returns groups
        as torch's optimizers take them: dicts with "params", a list of parameters, and what is not the optimizer's.

    Equals: MMEngine's OPTIM_WRAPPER_CONSTRUCTORS.register_module, for the groups that a constructor makes.

    >>> import torch
    >>> from gradchain.adapters import mmengine
    >>> @mmengine.register_constructor("SlowHead")
    ... def slow_head(model, optim_wrapper):
    ...     lr = optim_wrapper["optimizer"]["lr"]
    ...     head = list(model[-1].parameters())
    ...     rest = [p for layer in model[:-1] for p in layer.parameters()]
    ...     return [{"params": rest}, {"params": head, "lr": 0.1 * lr}]
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    >>> wrapper = {"constructor": "SlowHead", "optimizer": {"type": "SGD", "lr": 0.5}}
    >>> mmengine.param_settings(model, wrapper)["1.weight"]["lr"]
    0.05
    """
    if not isinstance(name, str) or "." in name or not name:
        raise TypeError(f"mmengine.register_constructor: name must be a name without a scope, got {name!r}.")

    def registering(build: Build) -> Build:
        def groups(paramwise: Paramwise, model: nn.Module) -> list[Group]:
            made = build(model, {"optimizer": dict(paramwise.optimizer), "paramwise_cfg": dict(paramwise.cfg)})
            return [(list(one["params"]), {k: v for k, v in one.items() if k != "params"}) for one in made]

        registered[name] = Constructor(groups, (), always=True, inherits=False)
        return build

    return registering


def _with_scope(scope: str, name: str, model: nn.Module, optimizer: Mapping[str, Any]) -> str:
    """Two names are used by two projects each: their scope tells which, or what they are about."""
    if name == OLD and scope == "mmselfsup":
        return PATTERNS
    if name == BY_DEPTH and (scope == "mmselfsup" or (not scope and "model_type" in optimizer)):
        return f"mmselfsup.{name}"
    video = any(kind in type(getattr(model, "backbone", None)).__name__ for kind in ("MViT", "VisionTransformer"))
    return f"mmaction.{name}" if name == BY_LAYER and (scope == "mmaction" or (not scope and video)) else name


def _settings_of(paramwise: Paramwise, groups: Iterable[Group], facts: Facts, wanted: Collection[int]) -> Settings:
    """By name, what the optimizer makes of groups: each is completed by its defaults, and a parameter is in one."""
    names = {id(parameter): name for name, parameter, _ in facts}
    usual = {key: paramwise.default(key) for key in ("lr", "weight_decay")}
    defaults = {key: value for key, value in usual.items() if value is not None}
    place: dict[str, int] = {}
    settings: Settings = dict.fromkeys(names.values())
    for number, (parameters, items) in enumerate(groups):
        for parameter in parameters:
            name = names[id(parameter)]
            if place.get(name, number) != number:
                paramwise.refuse(
                    f"a parameter must be in one group, {name!r} is in two, by a shared module or a tied weight. Where "
                    "the constructor reads it, bypass_duplicate=True takes it once."
                )
            if name in place:
                paramwise.faults.append(f"{name!r} is twice in one group, and would move twice at each step.")
            place[name] = number
            settings[name] = defaults | {key: value for key, value in items.items() if not paramwise.usual(key, value)}
    if not place:
        paramwise.refuse("the optimizer must get a parameter, and gets none.")
    left = [name for number, name in names.items() if number in wanted and name not in place]
    if left:
        paramwise.faults.append(
            f"every trained parameter must be in a group, got none for {', '.join(map(repr, left))}."
        )
    paramwise.report()
    return settings
