"""The loop of an OpenMMLab config as code: what its Runner and its default hooks do, around a forward of the user's."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from gradchain.adapters.mmengine.recipe.hooks import is_of_chain
from gradchain.cli.code import argument
from gradchain.cli.recipe import HOOKS, mapping
from gradchain.cli.table import Path, leaves
from gradchain.cli.text import documented
from gradchain.loop.runner import NOT_HERE

__all__ = ["Script", "Writer"]

NAMES = (HOOKS, "evaluation", "checkpoint_config", "log_config", "load_from", "resume", "val_cfg", "vis_backends",
         "visualizer", "work_dir")  # fmt: skip
LOOPS = ("EpochBasedTrainLoop", "IterBasedTrainLoop")
GREATER = ("acc", "top", "AR@", "auc", "precision", "mAP", "mDice", "mIoU", "mAcc", "aAcc")  # MMEngine's, in its order
LESS = ("loss",)
OF_BEST = ("save_best", "rule", "greater_keys", "less_keys")
DOES = {  # default hooks that the loop is itself
    "IterTimerHook": "gch.loop times batches", "DistSamplerSeedHook": "gch.loop tells samplers the epoch",
    "ParamSchedulerHook": "the schedules of the chain", "RuntimeInfoHook": "gch.loop logs rates and losses",
}  # fmt: skip
LONG = 48  # letters of an argument of a hook that a remark shows
NO_PART = "not here: its part of the loop needs MMEngine's models or data"


@dataclass
class Script:
    """The loop of a file.

    code: a function of the loader and the user's own functions; rows: what each place became; names: those of the file
    that have a part in it; remarks: what is the user's to add.
    """

    code: str
    rows: dict[Path, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


class Writer:
    """What `gch.loop(…)` is to be given, for the loop of a config.

    Args:
        config: the names of the file.
        name: of the file: its work_dir is called so where it says none.
        length: the length of the run, "max_epochs" or "max_iters" and how many.
        several: whether there are several optimizers.
        averages: whether the chain averages the weights, as EMAHook does.
        observed: what the chain's links wait for, of what is validated.
        unread: the custom hooks that have no part in the chain.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        name: str,
        length: tuple[str, int],
        several: bool,
        averages: bool,
        observed: Collection[str],
        unread: Sequence[Any],
    ) -> None:
        self._config, self._name, self._length = config, name, length
        self._several, self._averages, self._observed = several, averages, sorted(observed)
        self._unit = "epoch" if length[0] == "max_epochs" else "iter"
        self._out, self._unread = Script(""), unread
        folder = config.get("work_dir")
        self._folder = folder if isinstance(folder, str) else f"work_dirs/{PurePath(name).stem}"

    def written(self) -> Script:
        """The code, and what became of each place of the config."""
        out, config = self._out, self._config
        arguments = ["loader", "updater", f"{'epochs' if self._unit == 'epoch' else 'iters'}={self._length[1]}"]
        old = "optim_wrapper" not in config
        validate = self._validation_of_old() if old else self._validation()
        arguments += [*validate, *self._checkpoints(old), "resume=resume", "hooks=hooks", *self._log(old)]
        self._custom_hooks()
        out.names = [key for key in NAMES if key in config]
        if isinstance(config.get("load_from"), str):
            out.remarks.append(f"load_from={config['load_from']!r} is yours to load before the loop.")
        asked = ["updater", "loader", "forward", *(["evaluate"] if validate else []), "hooks=()"]
        asked.append(f"resume={bool(config.get('resume'))}")
        body = (
            ["for name, loss in forward(batch).items():", "    run.update(loss, name)"]
            if self._several
            else ["with updater.context():", "    loss = forward(batch)", "run.update(loss)"]
        )
        lines = [
            f"def train({', '.join(asked)}):",
            *documented(self._said(bool(validate)), 4),
            "    run = gch.loop(",
            *(line for one in arguments for line in argument(one, 8)),
            "    )",
            "    for batch in run:",
            *(f"        {line}" for line in body),
            "    return run",
        ]
        out.code = "\n".join(lines)
        return out

    def _said(self, validates: bool) -> str:
        """The docstring of the function."""
        gives = (
            "for each updater, by its name, a function that returns its loss, called in its turn under the updater's "
            "context"
            if self._several
            else "its loss"
        )
        evaluates = ", and evaluate() numbers by name" if validates else ""
        return f"The loop of {self._name}: forward(batch) gives {gives}{evaluates}."

    # validation

    def _validation(self) -> list[str]:
        train = mapping(self._config.get("train_cfg"))
        kind = _kind(train)
        self._note(("train_cfg", "type"), "the loop")
        self._note(("train_cfg", "by_epoch"), "the loop")
        if kind and kind not in LOOPS:
            self._out.remarks.append(f"train_cfg: {kind} is read as a loop of this length: what else it does is yours.")
        has = any(self._config.get(key) is not None for key in ("val_cfg", "val_evaluator", "val_dataloader"))
        began, every = train.get("val_begin", 1), train.get("val_interval", 1 if self._unit == "epoch" else 1000)
        dynamic = train.get("dynamic_intervals", train.get("dynamic_interval"))
        for key in ("val_begin", "val_interval", "dynamic_intervals"):
            self._note(("train_cfg", key), "validate" if has else "nothing: the file has no val_cfg")
        return self._validated(began, every, dynamic) if has else []

    def _validation_of_old(self) -> list[str]:
        given = self._config.get("evaluation")
        self._note(("runner", "type"), "the loop")
        if not isinstance(given, Mapping):
            return []
        known = dict.fromkeys(("interval", "start", "dynamic_intervals"), "validate; and after the last")
        known |= {"by_epoch": "validate: what the runner counts", **dict.fromkeys(OF_BEST, "checkpoint: best")}
        self._all("evaluation", given, known, "yours: evaluate()")
        every, start, dynamic = given.get("interval", 1), given.get("start"), given.get("dynamic_intervals")
        if dynamic:  # MMDetection's, which hold from the milestone itself
            return self._validated(start or 1, every, [(begin + 1, one) for begin, one in dynamic])
        if start and every > 1 and start % every:
            return self._validating(self._from(start, every))
        return self._validated(start or 1, every, None)

    def _from(self, begin: int, every: int) -> str:
        """Counts that go on in equal steps from one which the step does not divide."""
        return f"range({begin}, {self._length[1] + 1}, {every})"

    def _validated(self, begin: Any, every: Any, dynamic: Any) -> list[str]:
        when = f"{every}" if begin == 1 and not dynamic else f"gch.loop.intervals({begin}, {every}"
        if when.startswith("gch"):
            when += f", {[tuple(pair) for pair in dynamic]})" if dynamic else ")"
        return self._validating(when)

    def _validating(self, when: str) -> list[str]:
        out = [f'validate=(evaluate, {when}, "{self._unit}")']
        if self._observed:
            out.append(f"observe=[{', '.join(map(_quoted, self._observed))}]")
        return [*out, "averaged=True"] if self._averages else out

    # checkpoints

    def _checkpoints(self, old: bool) -> list[str]:
        given, place = self._hook("checkpoint", old, "checkpoint_config", {"interval": 1})
        if given is None:
            return []
        known = {
            **dict.fromkeys(("interval", "by_epoch", "max_keep_ckpts", "save_last", "save_begin"), "checkpoint"),
            **dict.fromkeys(("file_client_args", "backend_args"), "not here: files lie in a folder"),
            **dict.fromkeys(OF_BEST, "checkpoint: best"),
            "type": "checkpoint",
            "out_dir": "checkpoint: the folder",
            "save_optimizer": "all is saved: a run goes on from it",
            "save_param_scheduler": "schedules need no state",
            "published_keys": "not here: gch.read_weights(path) has the weights of a file alone",
            "filename_tmpl": "not here: the loop names its files itself",
        }
        self._all(place, given, known, "not here")
        by_epoch = given.get("by_epoch", self._unit == "epoch" or not old)  # mmcv's runner of iterations sets it
        every, unit = given.get("interval", -1), "epoch" if by_epoch else "iter"
        begin = given.get("save_begin", 0)
        folder = given.get("out_dir")  # in which the last part of work_dir is a folder
        folder = self._folder if folder in (None, self._folder) else PurePath(folder, PurePath(self._folder).name)
        keep, last = given.get("max_keep_ckpts", -1), given.get("save_last", True)
        told: Any = every if not begin else [(begin, every)]
        if not isinstance(every, int) or every < 1 or (unit == "epoch" and self._unit == "iter"):
            # All of a run over iterations is one epoch.
            last, told, unit = last or (every == 1 and begin <= 1), None, self._unit
        elif begin % every:
            told = self._from(begin, every)
        arguments = [_quoted(str(folder)), f"every={told}", f'unit="{unit}"']
        arguments += [f"keep={keep}"] if isinstance(keep, int) and keep > 0 else []
        arguments += self._best(given, old)
        arguments += [] if last else ["last=False"]
        return [f"checkpoint=gch.loop.checkpoints({', '.join(arguments)})"]

    def _best(self, given: Mapping[str, Any], old: bool) -> list[str]:
        place = mapping(self._config.get("evaluation")) if old else given
        wanted, rules = place.get("save_best"), place.get("rule")
        if wanted is None:
            return []
        pairs = []
        names = [wanted] if isinstance(wanted, str) else list(wanted)
        for i, name in enumerate(names):
            rule = rules[i % len(rules)] if isinstance(rules, (list, tuple)) else rules
            rule = {"greater": "max", "less": "min"}.get(str(rule)) or _rule_of(str(name), place)
            if name == "auto" or rule is None:
                self._out.remarks.append(
                    f"save_best={name!r}: name the number that evaluate() returns, and whether it is to be large: "
                    'best=("accuracy", "max").'
                )
                continue
            pairs.append((name, rule))
        if not pairs:
            return []
        texts = [f'({_quoted(name)}, "{rule}")' for name, rule in pairs]
        return [f"best={texts[0]}" if len(texts) == 1 else f"best=[{', '.join(texts)}]"]

    # logs

    def _log(self, old: bool) -> list[str]:
        given, place = self._hook("logger", old, "log_config", {})
        if given is None:
            return []
        known = {"interval": "interval", "ignore_last": "the last batches of an epoch are in the next record"}
        self._all(place, given, known, "log")
        sinks = ["gch.loop.console()"]
        for kind in self._backends(old):
            if kind in ("LocalVisBackend", "TextLoggerHook"):
                sinks.append(_quoted(f"{self._folder}/log.jsonl"))
            elif kind in ("TensorboardVisBackend", "TensorboardLoggerHook"):
                sinks.append(f"gch.loop.tensorboard({_quoted(f'{self._folder}/tensorboard')})")
            else:
                self._out.remarks.append(f"{kind}: log=[…] takes any function of a record, a dict of numbers.")
        return [f"log=[{', '.join(dict.fromkeys(sinks))}]", f"interval={given.get('interval', 10)}"]

    def _backends(self, old: bool) -> list[str]:
        if old:
            return [_kind(hook) for hook in _listed(mapping(self._config.get("log_config")).get("hooks"))] or [
                "TextLoggerHook"
            ]
        given = mapping(self._config.get("visualizer")).get("vis_backends", self._config.get("vis_backends"))
        named = given == self._config.get("vis_backends")  # a name of the file, in both places
        for key in ("visualizer", "vis_backends"):
            for path in leaves(self._config.get(key), (key,)):
                if not (named and path[:2] == ("visualizer", "vis_backends")):
                    self._note(
                        path, "log" if path[-1] == "type" and "vis_backends" in path else "log, but for pictures"
                    )
        return [_kind(one) for one in _listed(given)] or ["LocalVisBackend"]

    # hooks

    def _hook(
        self, key: str, old: bool, of_old: str, default: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any] | None, Any]:
        """The dict of a default hook, its place in the file; None where it is switched off."""
        holder, name = (self._config, of_old) if old else (mapping(self._config.get(HOOKS)), key)
        found = holder.get(name, default)
        return (None if found is None else mapping(found)), ((of_old,) if old else (HOOKS, key))

    def _custom_hooks(self) -> None:
        for key, hook in mapping(self._config.get(HOOKS)).items():
            kind = _kind(hook)
            if key in ("checkpoint", "logger") or is_of_chain(key, hook):
                continue
            became = DOES.get(
                kind, NO_PART if "Visualization" in kind or kind in NOT_HERE else "yours to give to the loop"
            )
            for path in leaves(hook, (HOOKS, key)):
                self._note(path, became if hook is not None else "nothing: it is switched off")
            if hook is not None and became is NO_PART:
                self._out.remarks.append(f"{HOOKS}.{key}: {kind} is {NO_PART}.")
            elif hook is not None and kind not in DOES:
                self._give(hook, kind)
        for i, hook in enumerate(_listed(self._config.get("custom_hooks"))):
            if hook in self._unread:
                kind = _kind(hook)
                self._give(hook, kind)
                self._note(("custom_hooks", i), "not here" if kind in NOT_HERE else "yours to give to the loop")

    def _give(self, hook: Any, kind: str) -> None:
        """A hook that is none of the loop's own: it runs with it, or why it does not."""
        remark = f"{kind} is yours to give to the loop: train(…, hooks=[{_made(mapping(hook), kind)}])."
        self._out.remarks.append(f"{kind} is not here, because {NOT_HERE[kind]}." if kind in NOT_HERE else remark)

    # the table

    def _note(self, path: Path, became: str) -> None:
        value: Any = self._config
        for step in path:
            if not isinstance(value, (Mapping, list, tuple)) or (isinstance(value, Mapping) and step not in value):
                return
            value = value[step]
        self._out.rows[path] = became

    def _all(self, place: Any, given: Mapping[str, Any], known: Mapping[str, str], otherwise: str) -> None:
        start = place if isinstance(place, tuple) else (place,)
        for path in leaves(given, start):
            self._note(path, known.get(str(path[len(start)]) if len(path) > len(start) else "", otherwise))


def _made(hook: Mapping[str, Any], kind: str) -> str:
    """The code of a hook, with its priority."""
    shown = {key: repr(value) for key, value in hook.items() if key not in ("type", "priority")}
    given = ", ".join(f"{key}={text if len(text) <= LONG else '…'}" for key, text in shown.items())
    made, priority = f"{kind}({given})", hook.get("priority")
    if priority is None:
        return made
    return f'({made}, "{priority}")' if isinstance(priority, str) else f"({made}, {priority!r})"


def _rule_of(name: str, given: Mapping[str, Any]) -> str | None:
    """Whether a number is to be large, as MMEngine guesses by its name, or by keys that are given."""
    pairs = ((given.get("greater_keys") or GREATER, "max"), (given.get("less_keys") or LESS, "min"))
    keys = [(key.lower(), rule) for some, rule in pairs for key in ([some] if isinstance(some, str) else some)]
    exact = next((rule for key, rule in keys if key == name.lower()), None)
    return exact or next((rule for key, rule in keys if key in name.lower()), None)


def _quoted(text: str) -> str:
    """A string as code writes it."""
    return json.dumps(text, ensure_ascii=False)


def _listed(value: Any) -> list[Any]:
    return [value] if isinstance(value, Mapping) else list(value) if isinstance(value, (list, tuple)) else []


def _kind(value: Any) -> str:
    """The type of a dict, without its project."""
    return str(mapping(value).get("type") or "").rpartition(".")[2]
