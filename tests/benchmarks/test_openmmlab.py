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
}  # fmt: skip
KINDS = {
    openmmlab.READ: 1, openmmlab.REMARKED: 1, openmmlab.NONE: 1, openmmlab.WEAKLY: 1,
    "its rules need the model: from_config reads them": 1, "an optimizer that is not known here": 1,
    "a statement or a base that is not read": 1,
}  # fmt: skip


def test_files_are_counted_by_kind(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    [(name, counts)] = openmmlab.counted([tmp_path], 1)
    assert (name, counts) == (tmp_path.name, KINDS)
    [(_, fewer)] = openmmlab.counted([tmp_path], 3)
    assert sum(fewer.values()) == 3


def test_the_page_has_before_and_now() -> None:
    page = openmmlab.table({"a": {openmmlab.NONE: 9}}, {"a": KINDS})
    assert "| a | 6 | 0 | 2 | 1 |" in page and f"| {openmmlab.NONE} | 9 | 1 |" in page
    assert openmmlab.PAGE.read_text().startswith(openmmlab.TOP)
