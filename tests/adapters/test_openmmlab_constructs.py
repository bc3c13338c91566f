"""docs/openmmlab.md is what `convert` makes of each construct now, and what it prints trains."""

import sys

import pytest
import torch
from openmmlab_constructs import PAGE, REFUSALS, ROWS, converted, page
from torch import nn

from gradchain.adapters import torch_names
from gradchain.adapters.mmengine.groups import params
from gradchain.core import config as links

ROOMS = ["Wrappers", "Optimizers", "Rules per parameter", "Schedulers", "Momentum schedules", "Loops", "Default hooks",
         "Custom hooks", "Visualizer", "The run"]  # fmt: skip
REFUSED = {
    "ApexOptimWrapper, O2", "DeepSpeedOptimWrapper", "a clip that is no dict", "ZeroRedundancyOptimizer of nothing",
    "ZeroRedundancyOptimizer that overlaps", "`custom_imports` of what is not there",
    "`_delete_` where nothing is inherited", "a rule for a decay that is not there",
    "one that nobody has registered", "one of no such name", "no length",
}  # fmt: skip


class DeformConv2d(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_offset = nn.Conv2d(4, 4, 1)


class Model(nn.Module):
    """Something for each rule."""

    def __init__(self, backbone=None):
        super().__init__()
        plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, groups=4), nn.ReLU())
        self.backbone = plain if backbone is None else backbone
        self.dcn = DeformConv2d()
        self.generator, self.critic = nn.Linear(4, 2), nn.Linear(2, 1)

    def forward(self, x):
        return self.critic(self.generator(self.dcn.conv_offset(self.backbone(x)).mean((2, 3)))).square().mean()


class BEiT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 4, 1)
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(12))

    def forward(self, x):
        x = self.patch_embed(x)
        for layer in self.layers:
            x = x + layer(x)
        return x


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """What modules beside a file register is taken out again."""
    monkeypatch.setattr(params, "registered", {})
    for row in ROWS:
        for known in (torch_names.registered, links.registered) if row.known else ():
            monkeypatch.setitem(known, row.known, None)
            del known[row.known]
    yield
    for row in ROWS:
        for name, _ in row.modules:
            sys.modules.pop(name, None)
        if row.known:
            from mmengine.registry import OPTIMIZERS

            OPTIMIZERS._module_dict.pop(row.known, None)


def test_the_page_is_what_the_command_writes():
    pytest.importorskip("mmengine")
    assert page() == PAGE.read_text()


def test_every_room_of_the_documents_has_rows_of_its_own():
    assert list(dict.fromkeys(row.room for row in ROWS)) == ROOMS
    texts = [(row.room, row.what) for row in ROWS]
    assert len(set(texts)) == len(texts) and REFUSED < {row.what for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.room}: {row.what}")
def test_what_is_printed_trains_or_is_refused(row, tmp_path, monkeypatch):
    """Four batches through the printed function, its blanks filled in: the weights move."""
    monkeypatch.chdir(tmp_path)
    if row.known:
        pytest.importorskip("mmengine")
    if row.what in REFUSED:
        with pytest.raises(REFUSALS) as said:
            converted(row)
        assert len(str(said.value)) > 40
        return
    found = converted(row)
    if "zero_redundancy" in found.code:
        with pytest.raises(ValueError, match="zero_redundancy=True must have a model under DistributedDataParallel"):
            exec(str(found), scope := {})
            scope["make"](Model())
        return
    if "custom_imports" in row.text:  # the program registers it itself, of a module that is beside it
        (name, text), *_ = row.modules
        sys.modules.pop(name, None)
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        for known in (torch_names.registered, links.registered):
            known.pop(row.known, None)
    trained(found, Model() if "layer_decay" not in row.text else Model(BEiT()))


def trained(found, model):
    """Run a program for four batches."""
    torch.manual_seed(0)
    exec(str(found), scope := {})
    updater = scope["make"](model)
    before = [p.detach().clone() for p in model.parameters()]

    def forward(batch):
        if "run.update(loss, name)" in found.loop:
            return {name: lambda: model(batch) for name in updater}
        return model(batch)

    def stop(run):
        if run.iter == 3:  # the fourth is behind
            run.stop()

    given = {"evaluate": lambda: {"coco/bbox_mAP": 0.5, "error": 0.1, "loss": 1.0}} if "evaluate" in found.loop else {}
    batches = [torch.randn(2, 3, 4, 4) for _ in range(4)]
    if "tensorboard" in found.loop:
        pytest.importorskip("tensorboard")
    if "on_plateau" in found.code:
        updater.observe("loss", 1.0)
    run = scope["train"](updater, batches, forward, **given, hooks=[("after_train_iter", stop)])
    assert run.iter == 4
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
