"""Names of other libraries that somebody asks a room for, and near spellings of ours."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

TORCH: dict[str, str] = {
    # torch.optim; its other classes are found by name
    "ASGD": "gch.asgd",
    "Adafactor": "gch.adafactor",
    "Adadelta": "gch.adadelta",
    "Adagrad": "gch.adagrad",
    "Adam": "gch.adam",
    "AdamW": "gch.adamw",
    "Adamax": "gch.adamax",
    "Muon": "gch.rules.muon, which has AdamW for all that is no matrix of a hidden layer",
    "NAdam": "gch.nadam",
    "RAdam": "gch.radam",
    "RMSprop": "gch.rmsprop",
    "Rprop": "gch.rprop",
    "SGD": "gch.sgd",
    "SparseAdam": "gch.sparse_adam; any rule updates the rows that a sparse gradient names",
    "Optimizer": "gch.Transform for a rule of your own, gch.from_torch for a class that there is",
    "optim": "gch.chain, or the aliases gch.adamw, gch.sgd, …",
    # torch.optim.lr_scheduler
    "lr_scheduler": "gch.schedules: a schedule goes where the learning rate goes, as in gch.adamw(gch.cosine(…))",
    "LRScheduler": "gch.schedules.Schedule",
    "LambdaLR": "any function of the step, as in gch.adamw(lambda step: …)",
    "MultiplicativeLR": "any function of the step, as in gch.adamw(lambda step: …)",
    "StepLR": "gch.schedules.step_decay",
    "MultiStepLR": "gch.schedules.multi_step",
    "ConstantLR": "gch.constant",
    "LinearLR": "gch.linear",
    "ExponentialLR": "gch.schedules.exponential",
    "PolynomialLR": "gch.schedules.polynomial",
    "CosineAnnealingLR": "gch.cosine",
    "CosineAnnealingWarmRestarts": "gch.schedules.cosine_restarts",
    "CyclicLR": "gch.schedules.Schedule.repeat, as in gch.linear(…).then(gch.linear(…)).repeat()",
    "OneCycleLR": "gch.schedules.one_cycle",
    "SequentialLR": "gch.join",
    "ChainedScheduler": "the product of schedules: first * second",
    "ReduceLROnPlateau": "gch.reduce_on_plateau, and updater.observe",
    # torch.optim.swa_utils
    "AveragedModel": "gch.average_params, and updater.averaged()",
    "SWALR": "gch.schedules.Schedule.then, as in schedule.then(gch.constant(0.05))",
    "update_bn": "updater.update_batch_norm(loader), and updater.averaged()",
    # torch.nn.utils, torch.amp
    "clip_grad_norm_": "gch.clip_by_norm",
    "clip_grad_norm": "gch.clip_by_norm",
    "clip_grad_value_": "gch.clip_by_value",
    "get_total_norm": "gch.Tensors.norm",
    "GradScaler": "gch.amp_scale",
    "autocast": "gch.Updater.context, with bind(model, autocast=…)",
    # what trainers call it
    "clip_grad": "gch.clip_by_norm",
    "clip_by_global_norm_": "gch.clip_by_norm",
    "weight_decay": "gch.add_decayed_weights",
    "momentum": "gch.trace",
    "learning_rate": "gch.scale_by_learning_rate",
    "warmup": "gch.linear, as in gch.linear(0.0, 1e-3, 500).then(…)",
    "gradient_accumulation": "gch.accumulate",
    "EMA": "gch.average_params",
    "ModelEma": "gch.average_params",
    "ModelEmaV2": "gch.average_params",
    "ModelEmaV3": "gch.average_params",
    "ema_params": "gch.average_params, and updater.averaged()",
    "swa": "gch.average_params, and updater.averaged()",
    "contrib": "gch.rules, which has its rules under their names",
    "Lion": "gch.lion",
    "SAM": "gch.sam",
    "compose": "gch.chain",
    "Chain": "gch.chain",
    "bind": "gch.Transform.bind, as in gch.adamw(…).bind(model)",
    "load": "gch.Updater.load",
    "save": "gch.Updater.save",
}

OPTAX: dict[str, str] = {
    # transforms
    "clip": "gch.clip_by_value",
    "clip_by_global_norm": "gch.clip_by_norm",
    "zero_nans": "gch.nan_to_num",
    "keep_params_nonnegative": "gch.project",
    "stateless_with_tree_map": "gch.stateless",
    "identity": "gch.chain",
    "set_to_zero": "gch.freeze",
    "apply_every": "gch.accumulate",
    "measure_with_ema": "gch.rules.snapshot",
    # combinators
    "named_chain": "gch.chain",
    "multi_transform": "gch.partition",
    "selective_transform": "gch.partition",
    "MultiSteps": "gch.accumulate",
    "skip_not_finite": "gch.skip_nonfinite",
    "apply_if_finite": "gch.skip_nonfinite",
    "conditionally_mask": "gch.when",
    "conditionally_transform": "gch.when",
    "inject_hyperparams": "gch.Updater.override",
    "inject_stateful_hyperparams": "gch.Updater.override",
    # aliases
    "adamaxw": "gch.adamax",
    "amsgrad": "gch.adam",
    "optimistic_adam_v2": "gch.rules.optimistic_adam",
    # schedules
    "constant_schedule": "gch.constant",
    "linear_schedule": "gch.linear",
    "polynomial_schedule": "gch.schedules.polynomial",
    "piecewise_constant_schedule": "gch.schedules.multi_step",
    "piecewise_interpolate_schedule": "gch.join",
    "exponential_decay": "gch.schedules.exponential",
    "cosine_decay_schedule": "gch.cosine",
    "cosine_onecycle_schedule": "gch.schedules.one_cycle",
    "linear_onecycle_schedule": "gch.schedules.one_cycle",
    "warmup_constant_schedule": "gch.linear",
    "warmup_cosine_decay_schedule": "gch.schedules.warmup_cosine",
    "warmup_exponential_decay_schedule": "gch.join",
    "sgdr_schedule": "gch.schedules.cosine_restarts",
    "join_schedules": "gch.join",
    "Schedule": "gch.schedules.ScheduleLike",
    # utilities
    "GradientTransformation": "gch.Transform",
    "GradientTransformationExtraArgs": "gch.Transform",
    "global_norm": "gch.Tensors.norm",
    "incremental_update": "gch.average_params",
    "periodic_update": "gch.average_params",
    "schedule_free_eval_params": "gch.Updater.averaged",
    "init_empty_state": "gch.Transform.init",
    "update_moment": "gch.Tensors.lerp",
    "update_moment_per_elem_norm": "gch.Tensors.lerp",
    "update_infinity_moment": "gch.Tensors.maximum",
    "bias_correction": "gch.Count",
}
"""Optax's names, where we have what they do under another. tests/optax_names.py has the others, with a reason each."""

OPTAX_MODULES: dict[str, str] = {
    "tree": "gch.Tensors",
    "tree_utils": "gch.Tensors",
}

BESIDE: dict[str, str] = {
    "ema": "which averages updates; for an average of the weights gch.average_params",
}
"""What else may be meant by a name that is ours in another room."""

_ROOMS = ("gradchain", "gradchain.schedules", "gradchain.selectors", "gradchain.rules")


def answers(room: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module: AttributeError for a name that it has not, with the name that is meant.

    Args:
        room: the module's `__name__`.
    """

    def answered(name: str) -> Any:
        shown = room.replace("gradchain", "gch", 1)
        raise AttributeError(f"{shown}: there is no {name!r}.{'' if name[:1] == '_' else cure(name)}")

    return answered


def cure(name: str) -> str:
    """What to write in place of a name of another library, or of ours misspelt; nothing where that is not known."""
    meant = _elsewhere(name) or {**OPTAX_MODULES, **OPTAX, **TORCH}.get(name) or _of_torch(name)
    if meant:
        return f" Write {meant}{f', {BESIDE[name]}' if name in BESIDE else ''}."
    public = {shown.rpartition(".")[2]: shown for shown in _public_names()}
    near = difflib.get_close_matches(name, public, n=3, cutoff=0.7)
    return f" Did you mean {' or '.join(public[n] for n in near)}?" if near else ""


def _public_names() -> Iterator[str]:
    """Every public name, as one writes it; a shorter way to it comes last."""
    for room in reversed(_ROOMS):
        for name in getattr(import_module(room), "__all__", ()) if find_spec(room) else ():  # the law may stand alone
            yield f"{room.replace('gradchain', 'gch', 1)}.{name}"


def _elsewhere(name: str) -> str | None:
    """Where this very name is ours."""
    return next((shown for shown in (*_public_names(),)[::-1] if shown.rpartition(".")[2] == name), None)


def _of_torch(name: str) -> str | None:
    """How to have a class of torch.optim that has this name, whatever the case of its letters."""
    import torch

    known = {n.lower(): n for n, c in vars(torch.optim).items() if isinstance(c, type)}
    found = known.get(name.lower())
    if found is None:
        return None
    return TORCH.get(found) or f'gch.from_torch("{found}", …)'
