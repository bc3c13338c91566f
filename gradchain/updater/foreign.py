"""Names of other libraries, answered with ours."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from gradchain.words.arguments import cure, not_taken

NAMES = {
    "param_groups": "as_optimizer() in a trainer or under a scheduler. hyperparams() reads the numbers, "
    "override(name, value) sets them, masked and partition group",
    "state": "state_dict(); in a trainer as_optimizer()",
    "get_lr": "hyperparams()",
    "get_last_lr": "hyperparams()",
    "get_momentum": "hyperparams()",
    "lr": "hyperparams() reads it, override('learning_rate', value) sets it",
    "learning_rate": "hyperparams() reads it, override('learning_rate', value) sets it",
    "defaults": "hyperparams(); in a trainer as_optimizer()",
    "add_param_group": "rebind(model)",
    "optimizer": "chain, which holds the links",
    "optim_context": "context()",
    "update_params": "update(loss)",
    "autocast": "context()",
    "scale": "backward(loss), which scales it",
    "unscale_": "the place in the chain: links after amp_scale() see unscaled gradients",
    "get_scale": "metrics['amp_scale.scale']",
    "get_growth_factor": "hyperparams()",
    "get_backoff_factor": "hyperparams()",
    "get_growth_interval": "hyperparams()",
    "set_growth_factor": "override('growth_factor', value)",
    "set_backoff_factor": "override('backoff_factor', value)",
    "set_growth_interval": "override('growth_interval', value)",
    "is_enabled": "amp_scale() in the chain",
    "should_update": "the info that update returns, truthy if weights changed",
    "should_sync": "context(), which withholds synchronisation inside a window",
    "scale_loss": "backward(loss), which scales it",
    "inner_count": "num_micro",
    "initialize_count_status": "flush() or update(loss, last=True) for a window that is not full",
    "clip_grad": "clip_by_norm(…) in the chain",
    "minimize": "update(loss)",
    "train": "averaged(), which has the average weights inside `with` only",
    "eval": "averaged(), which has the average weights inside `with` only",
    "module": "averages(), or averaged()",
    "update_parameters": "average_params(…) in the chain, which every update moves",
    "store": "averaged(), which puts the weights back after `with`",
    "restore": "averaged(), which puts the weights back after `with`",
    "copy_to": "copy_average_to(module)",
    "ema": "averages()",
    "no_sync": "context(), which withholds synchronisation inside a window",
    "last_epoch": "num_updates, or clocks",
    "clip_grad_norm_": "clip_by_norm(…) in the chain",
    "parameters": "names; it is the model that you bound which has them",
    "named_parameters": "names; it is the model that you bound which has them",
    "modules": "names; it is the model that you bound which has them",
    "model": "names; it is the model that you bound",
    "grad_norm": "metrics['clip_by_norm.norm']",
    "load_checkpoint": "load(path)",
    "save_checkpoint": "save(path)",
    "init": "state_dict(): bind made the state",
    "accumulate": "accumulate(…) in the chain",
    "apply_gradients": "step(grads=…)",
}

BIND = ("autocast", "in_backward", "zero_redundancy")
"""What `bind` takes besides the target."""

_OPTIONS = {
    "lr": "the learning rate is in the chain: scale_by_learning_rate(…)",
    "learning_rate": "the learning rate is in the chain: scale_by_learning_rate(…)",
    "betas": "they are in the chain: scale_by_adam(b1=…, b2=…)",
    "eps": "it is in the chain: scale_by_adam(eps=…)",
    "weight_decay": "decay is in the chain: add_decayed_weights(…)",
    "momentum": "momentum is in the chain: trace(…)",
    "accumulative_counts": "write accumulate(…) in the chain",
    "clip_grad": "write clip_by_norm(…) in the chain",
    "max_grad_norm": "write clip_by_norm(…) in the chain",
    "loss_scale": "write amp_scale(…) in the chain, and bind(model, autocast=torch.float16)",
    "init_scale": "write amp_scale(init_scale=…) in the chain",
    "growth_factor": "write amp_scale(growth_factor=…) in the chain",
    "backoff_factor": "write amp_scale(backoff_factor=…) in the chain",
    "growth_interval": "write amp_scale(growth_interval=…) in the chain",
    "enabled": "leave amp_scale() out of the chain, or write accumulate(1)",
    "dtype": "write autocast=torch.float16",
    "fused": "the chain runs fused where it can",
    "foreach": "the chain runs fused where it can",
    "params": "the model is the first argument",
}


_DOOR = "as_optimizer() is one, over this updater: give that to a trainer, a scheduler or a checkpoint"


class Stranger:
    """What an Updater answers to those who take it for something else, such as an optimizer of torch's."""

    if not TYPE_CHECKING:  # to a checker an attribute that is not here is a mistake

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(answer(name, (n for n in dir(type(self)) if n[:1] != "_")))

        def __iter__(self) -> Iterator[Any]:
            raise TypeError(f"Updater: is no optimizer of torch's, nor a list of them. {_DOOR}.")

    def __copy__(self) -> NoReturn:
        raise TypeError(
            "copy.copy: two updaters must not share one state: each would count half of the steps. Copy the model too: "
            "copy.deepcopy((model, updater))."
        )


def refuse_held_back() -> None:
    """RuntimeError for a step of a micro-batch that Accelerate holds back: of an optimizer it would leave it out."""
    if not sys.modules["accelerate.state"].GradientState().sync_gradients:
        raise RuntimeError(
            "step: Accelerate holds this micro-batch back (accelerator.sync_gradients is False), and an Updater that "
            "prepare() was given is not wrapped: it would apply each. Prepare updater.as_optimizer(), or let "
            "accumulate(…) in the chain count, without accelerator.accumulate."
        )


def answer(name: str, names: Iterable[str]) -> str:
    """The sentence for an attribute that an Updater does not have."""
    if name in NAMES:
        return f"Updater: has no {name!r}; use {NAMES[name]}."
    near = [] if name[:1] == "_" else difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"Updater: has no {name!r}.{f' Did you mean {near[0]!r}?' if near else ''}"


def refuse_arguments(owner: str, options: Mapping[str, object], takes: Iterable[str] = ()) -> None:
    """TypeError for an argument that a method of the Updater does not take."""
    names = list(takes)
    for name in options:
        if name not in names:
            raise TypeError(not_taken(owner, name, names))


def refuse_options(options: Mapping[str, object]) -> None:
    """TypeError for an argument that `bind` does not take."""
    for name in options:
        if name in _OPTIONS:
            raise TypeError(f"bind: does not take {name!r}: {_OPTIONS[name]}.")
        raise TypeError(
            f"bind: does not take {name!r}{cure(name, BIND)}. It takes autocast=, in_backward= and zero_redundancy=."
        )
