"""What becomes of a folder of recipes is counted by kind, and the page is drawn from the counts."""

from __future__ import annotations

from pathlib import Path

from benchmarks import openmmlab

RUN = "train_cfg = dict(max_iters=100)\n"
FILES = {
    "plain.py": "optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))\n" + RUN,
    "remark.py": "optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))\n" + RUN
    + "param_scheduler = dict(type='LinearLR', start_factor=0.1, end=200, by_epoch=False)\n",
    "part.py": "optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))\n",
    "weak.py": "optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1), grad_clip=None)\n" + RUN,
    "model.py": "optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, weight_decay=0.1), "
    "constructor='LearningRateDecayOptimWrapperConstructor', paramwise_cfg=dict(layer_decay_rate=0.5))\n" + RUN,
    "strange.py": "optim_wrapper = dict(optimizer=dict(type='NoSuchRule', lr=0.1))\n" + RUN,
    "call.py": "optim_wrapper = made_by_a_function()\n" + RUN,
    "engine.py": "optim_wrapper = dict(type='DeepSpeedOptimWrapper', optimizer=dict(type='SGD', lr=0.1))\n" + RUN,
    "inference.py": "optim_wrapper = dict(constructor='MultiOptimWrapperConstructor')\n" + RUN,
    "clip.py": "optim_wrapper = dict(clip_grad=dict(max_norm=5.0))\n" + RUN,
    "ipu.py": "optimizer = dict(type='SGD', lr=0.1)\nfp16 = dict(loss_scale=256.0, accum_type='half')\n"
    "lr_config = dict(policy='fixed')\nrunner = dict(max_iters=100)\n",
}  # fmt: skip
KINDS = {
    openmmlab.READ: 1, openmmlab.REMARKED: 1, openmmlab.NONE: 1, openmmlab.WEAKLY: 1,
    "its rules need the model: from_config reads them": 1, "an optimizer that is not known here": 1,
    "a statement or a base that is not read": 1, "an engine of its own makes the update: DeepSpeed, ColossalAI": 1,
    "no optimizer in it": 2, "half precision of IPUs": 1,
}  # fmt: skip


def test_files_are_counted_by_kind(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    [(name, counts)] = openmmlab.counted([tmp_path], 1)
    assert (name, counts) == (tmp_path.name, KINDS)
    [(_, fewer)] = openmmlab.counted([tmp_path], 3)
    assert sum(fewer.values()) == 4


def test_a_row_without_the_length_of_its_run_is_a_kind() -> None:
    row = {"optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.1}}, "param_scheduler": None}
    assert openmmlab.outcome(openmmlab.of_recipe(row)) == "the length of the run is not in it"


def test_the_page_has_before_and_now() -> None:
    page = openmmlab.table({"a": {openmmlab.NONE: 9}}, {"a": KINDS})
    assert "| a | 10 | 0 | 2 | 1 |" in page and f"| {openmmlab.NONE} | 9 | 1 |" in page
    assert openmmlab.PAGE.read_text().startswith(openmmlab.TOP)
