"""Every construct of MMEngine's documents on training, drawn in docs/openmmlab.md.

`python tests/adapters/openmmlab_constructs.py` writes that page.

A row is one config, as its text stands behind `BASE` in a file. What comes out of `python -m gradchain convert` is the
page: the lines of the program that the text changes, what its table says where there are none, its remarks; or the
sentence that refuses it. A test holds the page to it, and runs every program.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from gradchain.adapters.mmengine.groups.params import CONSTRUCTORS, SEVERAL
from gradchain.cli.convert import Conversion, convert

PAGE = Path(__file__).parents[2] / "docs" / "openmmlab.md"
BASE = """\
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.0001))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
val_cfg = dict(type='ValLoop')
"""
ADAMW = "optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05)"


class Row(NamedTuple):
    """A construct and its text.

    modules: files beside it, by name; known: a name that is registered meanwhile.
    """

    room: str
    what: str
    text: str
    modules: tuple[tuple[str, str], ...] = ()
    known: str = ""


def wrapper(extra: str = "", kind: str = "OptimWrapper", optimizer: str = ADAMW) -> str:
    return f"optim_wrapper = dict(type='{kind}', {optimizer}{', ' if extra else ''}{extra})"


def schedule(kind: str, given: str) -> str:
    return f"param_scheduler = dict(type='{kind}', {given})"


def hooks(given: str) -> str:
    return f"default_hooks = dict({given})"


def saves(given: str) -> str:
    return hooks(f"checkpoint=dict(type='CheckpointHook', {given})")


def logs(given: str) -> str:
    return hooks(f"logger=dict(type='LoggerHook', {given})")


def only(optimizer: str, more: str = "") -> str:
    return f"optim_wrapper = dict(optimizer=dict({optimizer}){more})"


def sees(backend: str, kind: str = "Visualizer", more: str = "") -> str:
    return f"visualizer = dict(type='{kind}', vis_backends=[dict(type='{backend}')]{more})"


MODULE = """\
import torch
from mmengine.registry import OPTIMIZERS
@OPTIMIZERS.register_module()
class MyOptimizer(torch.optim.SGD):
    pass
"""
CONSTRUCTOR = """\
from gradchain.adapters import mmengine
@mmengine.register_constructor("SlowHead")
def slow_head(model, optim_wrapper):
    lr = optim_wrapper["optimizer"]["lr"] * optim_wrapper["paramwise_cfg"]["times"]
    head = list(model.critic.parameters())
    rest = [p for name, p in model.named_parameters() if not name.startswith("critic.")]
    return [{"params": rest}, {"params": head, "lr": lr}]
"""
MOMENTA = (
    ("Constant", "factor=0.5, end=3"),
    ("CosineAnnealing", "T_max=12, eta_min=0.5"),
    ("CosineRestart", "periods=[12], eta_min=0.5"),
    ("Exponential", "gamma=0.9"),
    ("Linear", "start_factor=0.5, end=3"),
    ("MultiStep", "milestones=[8]"),
    ("Poly", "eta_min=0.5"),
    ("Step", "step_size=4"),
    ("ReduceOnPlateau", "monitor='loss'"),
)
MINE = "type='MyOptimizer', lr=0.1"
FAILED = "allow_failed_imports=False"
ZERO = "type='ZeroRedundancyOptimizer'"
DELETED = only("_delete_=True, type='Lion', lr=1e-4")
ROWS = [
    Row("Wrappers", "OptimWrapper", wrapper()),
    Row("Wrappers", "AmpOptimWrapper", wrapper(kind="AmpOptimWrapper")),
    Row("Wrappers", "AmpOptimWrapper in bfloat16", wrapper("dtype='bfloat16'", "AmpOptimWrapper")),
    Row("Wrappers", "a fixed loss scale", wrapper("loss_scale=512.0", "AmpOptimWrapper")),
    Row(
        "Wrappers",
        "the scaler's numbers",
        wrapper("loss_scale=dict(init_scale=1024.0, growth_interval=100)", "AmpOptimWrapper"),
    ),
    Row("Wrappers", "ApexOptimWrapper, O1", wrapper("opt_level='O1'", "ApexOptimWrapper")),
    Row("Wrappers", "ApexOptimWrapper, O2", wrapper("opt_level='O2'", "ApexOptimWrapper")),
    Row(
        "Wrappers",
        "several optimizers",
        "optim_wrapper = dict(constructor='MultiOptimWrapperConstructor', "
        "generator=dict(optimizer=dict(type='Adam', lr=1e-4)), critic=dict(optimizer=dict(type='Adam', lr=4e-4)))",
    ),
    Row("Wrappers", "DeepSpeedOptimWrapper", wrapper(kind="DeepSpeedOptimWrapper")),
    Row("Wrappers", "clip by norm", wrapper("clip_grad=dict(max_norm=35, norm_type=2)")),
    Row("Wrappers", "clip by value", wrapper("clip_grad=dict(type='value', clip_value=0.5)")),
    Row("Wrappers", "a clip that is no dict", wrapper("clip_grad=2.0")),
    Row("Wrappers", "accumulation", wrapper("accumulative_counts=4")),
    Row("Optimizers", "one of torch.optim", only("type='Adam', lr=1e-3, weight_decay=1e-4")),
    Row("Optimizers", "ZeroRedundancyOptimizer", only(f"{ZERO}, optimizer_type='AdamW', lr=1e-3, weight_decay=0.05")),
    Row("Optimizers", "ZeroRedundancyOptimizer of nothing", only(f"{ZERO}, lr=1e-3")),
    Row(
        "Optimizers",
        "ZeroRedundancyOptimizer that overlaps",
        only(f"{ZERO}, optimizer_type='SGD', lr=1e-3, overlap_with_ddp=True"),
    ),
    Row(
        "Optimizers",
        "one of your own, registered",
        f"custom_imports = dict(imports=['my_optimizer'], {FAILED})\n{only(MINE)}",
        (("my_optimizer", MODULE),),
        "MyOptimizer",
    ),
    Row(
        "Optimizers",
        "`custom_imports` of what is not there",
        f"custom_imports = dict(imports=['no_such_module_anywhere'], {FAILED})",
    ),
    Row("Optimizers", "`_delete_`", f"_base_ = './parent.py'\n{DELETED}", (("parent", BASE),)),
    Row("Optimizers", "`_delete_` where nothing is inherited", DELETED),
    Row("Optimizers", "auto_scale_lr", "auto_scale_lr = dict(enable=True, base_batch_size=256)"),
    Row("Rules per parameter", "norm_decay_mult", wrapper("paramwise_cfg=dict(norm_decay_mult=0.0)")),
    Row(
        "Rules per parameter",
        "bias_lr_mult, bias_decay_mult",
        wrapper("paramwise_cfg=dict(bias_lr_mult=2.0, bias_decay_mult=0.0)"),
    ),
    Row("Rules per parameter", "dwconv_decay_mult", wrapper("paramwise_cfg=dict(dwconv_decay_mult=0.0)")),
    Row("Rules per parameter", "flat_decay_mult", wrapper("paramwise_cfg=dict(flat_decay_mult=0.0)")),
    Row("Rules per parameter", "dcn_offset_lr_mult", wrapper("paramwise_cfg=dict(dcn_offset_lr_mult=0.1)")),
    Row("Rules per parameter", "bypass_duplicate", wrapper("paramwise_cfg=dict(bypass_duplicate=True)")),
    Row(
        "Rules per parameter",
        "custom_keys",
        wrapper("paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.1, decay_mult=0.9)})"),
    ),
    Row(
        "Rules per parameter",
        "a rule for a decay that is not there",
        only("type='SGD', lr=0.1", ", paramwise_cfg=dict(bias_decay_mult=0.0)"),
    ),
    Row(
        "Rules per parameter",
        "a constructor that looks at the model",
        wrapper(
            "constructor='LayerDecayOptimizerConstructor', paramwise_cfg=dict(num_layers=12, layer_decay_rate=0.9)"
        ),
    ),
    Row(
        "Rules per parameter",
        "a constructor of your own",
        f"custom_imports = dict(imports=['my_constructor'], {FAILED})\n"
        + wrapper("constructor='SlowHead', paramwise_cfg=dict(times=0.1)"),
        (("my_constructor", CONSTRUCTOR),),
    ),
    Row("Rules per parameter", "one that nobody has registered", wrapper("constructor='MyConstructor'")),
    Row(
        "Rules per parameter",
        "modules by a pattern",
        "optim_wrapper = dict(constructor='MultiOptimWrapperConstructor', critic=dict(optimizer=dict(type='Adam', "
        "lr=4e-4)), **{'gen.*': dict(optimizer=dict(type='Adam', lr=1e-4))})",
    ),
    Row("Schedulers", "ConstantLR", schedule("ConstantLR", "factor=0.5, end=3")),
    Row("Schedulers", "CosineAnnealingLR", schedule("CosineAnnealingLR", "T_max=12, eta_min=1e-5")),
    Row(
        "Schedulers",
        "CosineRestartLR",
        schedule("CosineRestartLR", "periods=[4, 8], restart_weights=[1, 0.5], eta_min=0.0"),
    ),
    Row("Schedulers", "ExponentialLR", schedule("ExponentialLR", "gamma=0.9")),
    Row("Schedulers", "LinearLR", schedule("LinearLR", "start_factor=0.001, by_epoch=False, end=500")),
    Row("Schedulers", "MultiStepLR", schedule("MultiStepLR", "milestones=[8, 11]")),
    Row("Schedulers", "OneCycleLR", schedule("OneCycleLR", "eta_max=0.5, total_steps=1200, by_epoch=False")),
    Row("Schedulers", "PolyLR", schedule("PolyLR", "power=0.9, eta_min=1e-4")),
    Row("Schedulers", "ReduceOnPlateauLR", schedule("ReduceOnPlateauLR", "monitor='loss'")),
    Row("Schedulers", "StepLR", schedule("StepLR", "step_size=4")),
    Row(
        "Schedulers",
        "a warm-up and then",
        "param_scheduler = [dict(type='LinearLR', start_factor=0.001, by_epoch=False, end=500), "
        "dict(type='CosineAnnealingLR', T_max=9, begin=3, end=12)]",
    ),
    Row("Schedulers", "convert_to_iter_based", schedule("CosineAnnealingLR", "T_max=12, convert_to_iter_based=True")),
    Row("Schedulers", "one of no such name", schedule("NoSuchLR", "gamma=0.9")),
    *(Row("Momentum schedules", f"{kind}Momentum", schedule(f"{kind}Momentum", given)) for kind, given in MOMENTA),
    Row("Loops", "EpochBasedTrainLoop", "train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3)"),
    Row("Loops", "IterBasedTrainLoop", "train_cfg = dict(type='IterBasedTrainLoop', max_iters=5000, val_interval=500)"),
    Row("Loops", "`by_epoch` in place of a type", "train_cfg = dict(by_epoch=True, max_epochs=3)"),
    Row("Loops", "val_begin", "train_cfg = dict(by_epoch=True, max_epochs=12, val_begin=4, val_interval=2)"),
    Row(
        "Loops",
        "dynamic_intervals",
        "train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=10, dynamic_intervals=[(280, 1)])",
    ),
    Row("Loops", "no validation", "val_cfg = None"),
    Row("Loops", "a loop of your own", "train_cfg = dict(type='MyLoop', max_epochs=3)"),
    Row("Loops", "no length", "train_cfg = dict(type='EpochBasedTrainLoop')"),
    Row("Default hooks", "IterTimerHook", hooks("timer=dict(type='IterTimerHook')")),
    Row("Default hooks", "DistSamplerSeedHook", hooks("sampler_seed=dict(type='DistSamplerSeedHook')")),
    Row("Default hooks", "ParamSchedulerHook", hooks("param_scheduler=dict(type='ParamSchedulerHook')")),
    Row("Default hooks", "RuntimeInfoHook", hooks("runtime_info=dict(type='RuntimeInfoHook')")),
    Row("Default hooks", "LoggerHook: interval", logs("interval=50")),
    Row("Default hooks", "LoggerHook: what else it takes", logs("interval=50, ignore_last=False")),
    Row("Default hooks", "CheckpointHook: interval, max_keep_ckpts", saves("interval=2, max_keep_ckpts=3")),
    Row("Default hooks", "CheckpointHook: by iterations", saves("by_epoch=False, interval=500")),
    Row("Default hooks", "CheckpointHook: save_begin", saves("interval=2, save_begin=5")),
    Row("Default hooks", "CheckpointHook: save_last", saves("interval=2, save_last=False")),
    Row("Default hooks", "CheckpointHook: save_best", saves("interval=1, save_best='coco/bbox_mAP'")),
    Row("Default hooks", "CheckpointHook: save_best, rule", saves("interval=1, save_best='error', rule='less'")),
    Row("Default hooks", "CheckpointHook: save_best='auto'", saves("interval=1, save_best='auto'")),
    Row("Default hooks", "CheckpointHook: save_optimizer", saves("interval=1, save_optimizer=False")),
    Row("Default hooks", "CheckpointHook: out_dir", saves("interval=1, out_dir='elsewhere'")),
    Row("Default hooks", "CheckpointHook: filename_tmpl", saves("interval=1, filename_tmpl='e{}.pth'")),
    Row("Default hooks", "CheckpointHook, switched off", hooks("checkpoint=None")),
    Row(
        "Default hooks",
        "a hook for pictures of MMEngine's data",
        hooks("visualization=dict(type='DetVisualizationHook')"),
    ),
    Row("Custom hooks", "EMAHook", "custom_hooks = [dict(type='EMAHook')]"),
    Row(
        "Custom hooks",
        "EMAHook of another average",
        "custom_hooks = [dict(type='EMAHook', ema_type='StochasticWeightAverage')]",
    ),
    Row("Custom hooks", "EarlyStoppingHook", "custom_hooks = [dict(type='EarlyStoppingHook', monitor='acc')]"),
    Row("Custom hooks", "EmptyCacheHook", "custom_hooks = [dict(type='EmptyCacheHook')]"),
    Row("Custom hooks", "SyncBuffersHook", "custom_hooks = [dict(type='SyncBuffersHook')]"),
    Row("Custom hooks", "one of your own", "custom_hooks = [dict(type='MyHook', interval=10)]"),
    Row("Custom hooks", "a priority by name", "custom_hooks = [dict(type='MyHook', priority='VERY_HIGH')]"),
    Row("Custom hooks", "a priority by number", "custom_hooks = [dict(type='MyHook', priority=40)]"),
    Row(
        "Visualizer",
        "LocalVisBackend",
        "vis_backends = [dict(type='LocalVisBackend')]\n"
        "visualizer = dict(type='Visualizer', vis_backends=vis_backends)",
    ),
    Row("Visualizer", "TensorboardVisBackend", sees("TensorboardVisBackend")),
    Row("Visualizer", "WandbVisBackend", sees("WandbVisBackend")),
    Row("Visualizer", "a visualizer of pictures", sees("LocalVisBackend", "DetLocalVisualizer", ", name='visualizer'")),
    Row("The run", "work_dir", "work_dir = 'runs/first'"),
    Row("The run", "resume", "resume = True"),
    Row("The run", "load_from", "load_from = 'detector.pth'"),
]

HEAD = """# OpenMMLab's constructs

`python tests/adapters/openmmlab_constructs.py` writes this page: what `python -m gradchain convert` makes of every
construct of MMEngine's documents on training. A test converts each row again, holds the page to it, and runs the
programs. A text stands behind these lines, or overwrites them, with 100 batches an epoch:

```py
{base}```

"here" are the lines of the printed program that it changes, or what the table under the program says of it; *italics*
are its remarks. What MMEngine does otherwise is in the docstring of `gradchain.adapters.mmengine`, its hooks and loops
in [loop.md](loop.md#from-mmengine). Registries need no counterpart: classes are used by name after
`gch.register()`, or from MMEngine's own registry with `--custom-imports`.

Constructors are known by these names, with or without their project before it: {known}. Where what one does depends
on the model, `make(model)` in the printed program reads the recipe by `mmengine.from_config`, the rest is the same, and
`print(updater.chain)` is the chain then. So it is with {needy}, with one of your own, and with several optimizers whose
modules are not named but found by patterns.
"""
MOST = 150  # letters of a sentence that refuses, where it goes on with a list


@cache
def converted(row: Row) -> Conversion:
    """What the command makes of a row, in a file in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, folder)
        try:
            return _converted(row, Path(folder))
        finally:
            sys.path.remove(folder)


def _converted(row: Row, folder: Path) -> Conversion:
    for name, text in row.modules:
        (folder / f"{name}.py").write_text(text)
    inherits = row.text.startswith("_base_")
    path = folder / "config.py"
    path.write_text(f"{'' if inherits else BASE}{row.text}\n")
    imports = "custom_imports" in row.text
    return convert(path, epoch_length=100, batch_size=512, custom_imports=imports)


REFUSALS = (ValueError, TypeError, KeyError, NotImplementedError)


def outcome(row: Row, bases: list[Conversion]) -> str:
    """The last cell of a row."""
    try:
        found = converted(row)
    except REFUSALS as error:
        said = str(error.args[0])
        return f"refused: {said if len(said) <= MOST else said[:MOST].rsplit(' ', 1)[0] + ' …'}"
    base = min(bases, key=lambda one: len(changes(found, one)))
    cells = [" … ".join(f"`{piece}`" for piece in changes(found, base))] if changes(found, base) else []
    if not cells and changes(base, found):
        cells = [" … ".join(f"without `{piece}`" for piece in changes(base, found))]
    if not cells:
        known = {entry[:2] for entry in base.table}
        cells = [*dict.fromkeys(entry[2] for entry in found.table if entry[:2] not in known)]
    remarks = [f"*{remark}*" for remark in found.remarks if remark not in base.remarks]
    return "; ".join(cells or ["the same"]) + (f"<br>{'<br>'.join(remarks)}" if remarks else "")


def changes(found: Conversion, base: Conversion) -> list[str]:
    """The pieces of a program that another lacks, each of lines that follow each other."""
    mine, other = ((one.code + "\n" + one.loop).splitlines() for one in (found, base))
    pieces: list[list[str]] = [[]]
    for line in mine:
        if line in other or line.startswith(("import ", "#")):
            pieces.append([])
        else:
            pieces[-1].append(line.strip())
    return [code(piece) for piece in pieces if piece]


def code(lines: list[str]) -> str:
    """Lines of a program as one."""
    return " ".join(lines).replace("( ", "(").replace(", )", ")").rstrip(",")


def outcomes() -> Iterator[tuple[Row, str]]:
    """Each row with its last cell."""
    bases = [converted(Row("", "", text)) for text in ("", wrapper())]
    for row in ROWS:
        yield row, outcome(row, bases)


def listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def page() -> str:
    """The whole page."""
    known = [*CONSTRUCTORS, *SEVERAL]
    needy = [name for name, how in CONSTRUCTORS.items() if how.needs_model]
    lines, room = [HEAD.format(base=BASE, known=listed(known), needy=listed(needy))], ""
    for row, said in outcomes():
        if row.room != room:
            room = row.room
            lines.append(f"\n## {room}\n\n| construct | in the config | here |\n|---|---|---|")
        text = "<br>".join(f"`{line}`" for line in row.text.splitlines())
        lines.append(f"| {row.what} | {text} | {said} |".replace("\\|", "|"))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
