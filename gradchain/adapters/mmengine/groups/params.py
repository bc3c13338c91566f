"""MMEngine's parameter groups: what each parameter's learning rate, weight decay and other settings are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from gradchain.adapters.mmengine.entries import Entry, listed, scope_and_name, type_name
from gradchain.adapters.mmengine.groups import constructors, layers
from gradchain.adapters.mmengine.groups.paramwise import DEFAULT, FORCED, OLD, RULES, Group, Paramwise, check_places
from gradchain.adapters.mmengine.groups.rules import Rules
from gradchain.adapters.mmengine.groups.written import Parameters
from gradchain.updater.target import Target

__all__ = ["MULTI", "PATTERNS", "One", "optimizers", "param_settings", "register_constructor"]

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
SEVERAL = (MULTI, *BY_CHILD)
PATTERNS = f"mmselfsup.{OLD}"
"""MMSelfSup's of before MMEngine: `paramwise_options`, by patterns."""
ELSEWHERE = {
    "PGGANOptimWrapperConstructor": "it makes one optimizer for each resolution, and the model changes between them",
    "SinGANOptimWrapperConstructor": "it makes one optimizer for each stage, and the model changes between them",
}
KNOWN = "must be one of those that docs/openmmlab.md lists"
OF_ONES_OWN = (
    "One of your own is made known by gradchain.adapters.mmengine.register_constructor, as docs/coming_from.md shows."
)
NO_RULES = "paramwise_cfg must be empty for an optimizer of several modules."
NEEDS_MODEL = (
    "which modules an optimizer is over depends on the model. mmengine.from_config(model, …) reads it, where the model "
    "is at hand."
)
NEEDS_RULES = (
    "what its rules come to depends on the model. mmengine.from_config(model, …).chain is the code, where the model is "
    "at hand."
)


@dataclass(frozen=True)
class Constructor:
    """What reads paramwise_cfg.

    rules: from it and a model; without one where it does not need it; reads, in_entries: the keys there, and in an
    entry of custom_keys; items: whether other keys of an entry become items of the group; always: it does not take an
    empty paramwise_cfg for none; inherits: MMEngine's own checks run; needs_model: its rules depend on the model.
    """

    rules: Callable[[Paramwise, Any], Rules]
    reads: tuple[str, ...]
    in_entries: tuple[str, ...] = ("lr_mult", "decay_mult")
    items: bool = False
    always: bool = False
    inherits: bool = True
    needs_model: bool = False


_DECAYS = ("custom_keys", "layer_decay_rate", "norm_decay_mult", "bias_decay_mult", "flat_decay_mult")
_OF_PATTERNS = ("lr_mult", "weight_decay_mult", "momentum_mult")
_LAYERS = ("num_layers", "decay_rate", "decay_type")
_DEFAULT = (*RULES, "custom_keys", "bypass_duplicate")
_TSM = Constructor(constructors.tsm, ("fc_lr5",), needs_model=True)
_YOLO = Constructor(constructors.yolo, ("base_total_batch_size",), always=True, inherits=False)
CONSTRUCTORS: dict[str, Constructor] = {
    DEFAULT: Constructor(constructors.default, _DEFAULT, items=True),
    FORCED: Constructor(constructors.default, (*_DEFAULT, "force_default_settings"), items=True),
    PATTERNS: Constructor(constructors.by_pattern, ("custom_keys",), _OF_PATTERNS, items=True, inherits=False),
    OLD: Constructor(constructors.default, tuple(key for key in _DEFAULT if key != "flat_decay_mult")),
    BY_DEPTH: Constructor(layers.by_depth, _DECAYS, ("decay_mult",), items=True, needs_model=True),
    f"mmselfsup.{BY_DEPTH}": Constructor(
        layers.mmselfsup, ("custom_keys",), ("decay_mult",), always=True, needs_model=True
    ),
    BY_LAYER: Constructor(layers.mmseg, _LAYERS, needs_model=True),
    f"mmaction.{BY_LAYER}": Constructor(layers.mmaction, _LAYERS, needs_model=True),
    "LayerDecayOptimizerConstructor": Constructor(layers.mmseg, ("num_layers", "layer_decay_rate"), needs_model=True),
    "LayerDecayOptimWrapperConstructor": Constructor(layers.mmpose, ("num_layers", "layer_decay_rate")),
    "SwinOptimWrapperConstructor": Constructor(constructors.swin, ("custom_keys",)),
    **dict.fromkeys(("TSMOptimWrapperConstructor", "TSMOptimizerConstructor"), _TSM),
    **dict.fromkeys(constructors.YOLO, _YOLO),
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
    if not isinstance(optim_wrapper, Mapping):
        raise TypeError(f"mmengine.param_settings: optim_wrapper must be a dict, got {optim_wrapper!r}.")
    names = {id(parameter): name for name, parameter, _ in facts}
    found = optimizers(model, Entry("optim_wrapper", optim_wrapper, strict, "mmengine.param_settings"))
    settings = {}
    for one in found:
        mine = one.parameters
        here = {names[id(parameter)]: (mine.settings or {})[name] for name, parameter, _ in mine.facts}
        settings[one.key] = dict.fromkeys(names.values()) | here
    return settings if found[0].key is not None else settings[None]


@dataclass(frozen=True)
class One:
    """One optimizer of a config, and the modules that it is over.

    key: its name among several, None for the only one; config: its dict, without what says the modules; target: what a
    chain is bound to, a module or a dict of those, or where no model is at hand what names them; parameters: what they
    begin with.
    """

    key: str | None
    config: Mapping[str, Any]
    target: Any
    parameters: Parameters


def optimizers(model: nn.Module | None, entry: Entry) -> list[One]:
    """The optimizers of a wrapper's dict: one, or one for each entry of a constructor of several."""
    config, constructor = entry.items, type_name(entry.items.get("constructor"))
    if constructor in ELSEWHERE:
        entry.refuse(
            f"constructor {constructor!r} is not read: {ELSEWHERE[constructor]}. Make a chain for each, and carry its "
            "state with updater.rebind."
        )
    if constructor == MULTI and "modules" in config:
        inner = {key: value for key, value in config.items() if key not in ("modules", "constructor")}
        return [_over(model, entry, None, inner, config["modules"])]
    if constructor not in SEVERAL and "optimizer" not in config:
        each = [key for key, value in config.items() if isinstance(value, Mapping) and "optimizer" in value]
        cure = f" For one optimizer each of {listed(each)} set constructor={MULTI!r}." if each else ""
        entry.refuse(f"optimizer must be given.{cure}")
    if constructor not in SEVERAL:
        return [One(None, config, model, _parameters(model, config, entry.strict))]
    given = {key: value for key, value in config.items() if key not in ("constructor", "type", "_scope_")}
    if given.pop("paramwise_cfg", None):
        entry.refuse("paramwise_cfg must stand in each optimizer's dict where there are several.")
    found = []
    for key, one in given.items():
        if not isinstance(one, Mapping) or "optimizer" not in one:
            cure = "" if isinstance(one, Mapping) else f" as a submodule's name, got {one!r}"
            entry.object_to(f"{key!r} must be a dict with an optimizer{cure}.")
            continue
        children = {} if model is None else getattr(model, "module", model)._modules
        if model is not None and constructor != MULTI and key not in children:
            entry.refuse(f"{key!r} must name a child of the model, which has {listed(children)}.")
        inner = {k: v for k, v in one.items() if k != "modules" or constructor != MULTI}
        found.append(_over(model, entry, key, inner, one.get("modules", key) if constructor == MULTI else key))
    if not found:
        entry.refuse(f"{constructor} needs at least one optimizer: the name of a submodule and its dict, got none.")
    return found


def _over(model: nn.Module | None, entry: Entry, key: str | None, config: Mapping[str, Any], over: Any) -> One:
    """The optimizer of the modules of these names, or of those whose whole names match.

    One of several that names a child of the model is over that module by itself, with rules per parameter.
    """
    if model is None:
        if key is not None and isinstance(over, str) and over.isidentifier():
            return One(key, config, over, _parameters(None, config, entry.strict))
        for pattern in over if isinstance(over, (list, tuple)) else [over]:
            _check_pattern(entry, pattern)
        paramwise, _ = _read({**config, "constructor": DEFAULT}, entry.strict, None)
        if paramwise.cfg and not isinstance(over, str):
            paramwise.refuse(NO_RULES, AssertionError)
        paramwise.report()
        waits = f"{entry.owner}: {entry.name}: {NEEDS_MODEL}"
        return One(key, config, over, Parameters(Rules(paramwise), waits=waits))
    model = getattr(model, "module", model)
    if key is not None and isinstance(over, str) and over in model._modules:
        child = getattr(model, over)
        return One(key, config, child, _parameters(child, config, entry.strict))
    found: list[tuple[str, nn.Module]] = []
    for pattern in over if isinstance(over, (list, tuple)) else [over]:
        _check_pattern(entry, pattern)
        here = [(name, module) for name, module in model.named_modules() if re.fullmatch(pattern, name)]
        here = [(pattern, getattr(model, pattern))] if pattern in model._modules else here
        if not any(True for _, module in here for _ in module.parameters()):
            children = listed(name for name, _ in model.named_children())
            entry.refuse(f"{pattern!r} must name or match a module with parameters; the model has {children}.")
        found += here
    names = [name for name, _ in found]
    apart = {n: m for n, m in found if not any(n.startswith(f"{other}.") for other in names)}
    if inside := [name for name in names if name not in apart]:
        entry.object_to(
            f"{over!r} must not match a module and what is in it, whose parameters an optimizer would have twice, got "
            f"{inside[0]!r} in one of {listed(apart)}. Name the outer ones."
        )
    paramwise, _ = _read({**config, "constructor": DEFAULT}, entry.strict, None)
    if paramwise.cfg:
        paramwise.refuse(NO_RULES, AssertionError)
    groups: list[Group] = [([p for module in apart.values() for p in module.parameters()], {})]
    return One(key, config, target := model if "" in names else apart, _settled(Rules(paramwise), groups, target, ()))


def _check_pattern(entry: Entry, pattern: Any) -> None:
    """The name of a child, or a regular expression."""
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        entry.refuse(f"modules must be names or patterns of names, got {pattern!r}: {error}.", kind)


def _parameters(model: nn.Module | None, config: Mapping[str, Any], strict: bool) -> Parameters:
    """What the parameters of one optimizer begin with."""
    inner = getattr(model, "module", None)
    inner = inner if isinstance(inner, nn.Module) else model
    paramwise, how = _read(config, strict, inner)
    rules = Rules(paramwise, made=lambda model: [(list(model.parameters()), {})])
    rules = rules if how is None else how.rules(paramwise, inner)
    if inner is None:
        paramwise.report()
        if how is not None and how.needs_model:
            return Parameters(Rules(paramwise), waits=f"{paramwise.entry.owner}: {paramwise.entry.name}: {NEEDS_RULES}")
        _remarks_without_model(rules)
        return Parameters(rules)
    groups = rules.groups(inner)
    if how is not None and "custom_keys" in how.reads:
        paramwise.check_used()
    return _settled(rules, groups, model, [p for p in inner.parameters() if p.requires_grad])


def _remarks_without_model(rules: Rules) -> None:
    paramwise = rules.paramwise
    if paramwise.cfg.get("dcn_offset_lr_mult") is not None:
        paramwise.entry.remark(
            "dcn_offset_lr_mult is read for every Conv2d that is called conv_offset: whether it is in one of mmcv's "
            "deformable convolutions, a model tells."
        )
    if any("weight_decay" in rule.items and not rule.closes for rule in rules.rules):
        for key in [rule.key for rule in rules.rules if rule.puts_off and rule.key is not None]:
            paramwise.say_undone(key, "norms and biases in it have their whole weight decay back")


def _read(config: Mapping[str, Any], strict: bool, model: nn.Module | None) -> tuple[Paramwise, Constructor | None]:
    """The config with its faults noted, and its constructor; None where all parameters are one group."""
    optimizer, given = config.get("optimizer"), config.get("paramwise_cfg")
    scope, name = scope_and_name(config.get("constructor") or DEFAULT)
    paramwise = Paramwise(name, optimizer if isinstance(optimizer, Mapping) else {}, given or {}, strict)
    how = registered.get(name)
    if how is None and scope in ("", *PROJECTS):
        how = CONSTRUCTORS.get(_with_scope(scope, name, model, paramwise.optimizer))
    if how is None:
        close = get_close_matches(name, (*CONSTRUCTORS, *SEVERAL), 1, 0.85) if scope in ("", *PROJECTS) else []
        cure = f"Did you mean {close[0]!r}? " if close else ""
        paramwise.refuse(f"constructor {KNOWN}, got {'.'.join(filter(None, (scope, name)))!r}. {cure}{OF_ONES_OWN}")
    if not isinstance(optimizer, Mapping):
        paramwise.refuse(f"optim_wrapper must have optimizer, a dict, got {optimizer!r}.", TypeError)
    if given is not None and not isinstance(given, Mapping):
        paramwise.refuse(f"paramwise_cfg must be a dict or None, got {given!r}.", TypeError)
    check_places(config, paramwise)
    if given is None and name.startswith("LayerDecay"):
        paramwise.refuse("paramwise_cfg must be given.", TypeError)
    nested = [entry for entry in paramwise.cfg.values() if isinstance(entry, Mapping)]
    if how.rules is constructors.swin and nested and "custom_keys" not in paramwise.cfg:
        paramwise.cfg, paramwise.root = {"custom_keys": paramwise.cfg}, "base"
    if how.rules is constructors.by_pattern and paramwise.cfg:
        paramwise.cfg, paramwise.keys = {"custom_keys": paramwise.cfg}, "paramwise_options"
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
        def rules(paramwise: Paramwise, _: nn.Module | None) -> Rules:
            given = {"optimizer": dict(paramwise.optimizer), "paramwise_cfg": dict(paramwise.cfg)}

            def groups(model: nn.Module) -> list[Group]:
                return [(list(one["params"]), {k: one[k] for k in one if k != "params"}) for one in build(model, given)]

            return Rules(paramwise, made=groups)

        registered[name] = Constructor(rules, (), always=True, inherits=False, needs_model=True)
        return build

    return registering


def _with_scope(scope: str, name: str, model: nn.Module | None, optimizer: Mapping[str, Any]) -> str:
    """Two names are used by two projects each: their scope tells which, or what they are about."""
    if name == OLD and scope == "mmselfsup":
        return PATTERNS
    if name == BY_DEPTH and (scope == "mmselfsup" or (not scope and "model_type" in optimizer)):
        return f"mmselfsup.{name}"
    video = any(kind in type(getattr(model, "backbone", None)).__name__ for kind in ("MViT", "VisionTransformer"))
    return f"mmaction.{name}" if name == BY_LAYER and (scope == "mmaction" or (not scope and video)) else name


def _settled(rules: Rules, groups: Iterable[Group], target: Any, wanted: Iterable[Tensor]) -> Parameters:
    """What the optimizer makes of groups: each is completed by its defaults, and a parameter is in one.

    target: what they are of, for the names that bind gives; wanted: what must be in some group.
    """
    paramwise, facts = rules.paramwise, Target(target).index.entries
    names = {id(parameter): name for name, parameter, _ in facts}
    usual = {key: paramwise.default(key) for key in ("lr", "weight_decay")}
    defaults = {key: value for key, value in usual.items() if value is not None}
    place: dict[str, int] = {}
    settings: dict[str, dict[str, Any] | None] = dict.fromkeys(names.values())
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
    left = [name for parameter in wanted if (name := names[id(parameter)]) not in place]
    if left:
        paramwise.faults.append(
            f"every trained parameter must be in a group, got none for {', '.join(map(repr, left))}."
        )
    paramwise.report()
    return Parameters(rules, settings, facts, place)
