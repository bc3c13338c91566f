"""mmcv 1.x's lr_config and momentum_config, against values recorded from mmcv 1.7.2."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from test_mmengine_schedules import FOLDER, compare, quiet, rows, run_length

from gradchain.adapters import mmengine
from gradchain.adapters.mmengine.curves.legacy import POLICIES

# One group of a run under SGD with lr 0.1 * 2.5 and momentum 0.9, its hooks called as mmcv's runners call them; a
# number where the value never changes, 12 digits. CosineAnnealingCooldown is MMClassification's hook.
RECORDED = [json.loads(line) for line in (Path(__file__).parent / "mmcv_values.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("row", RECORDED, ids=[f"row{i}" for i in range(len(RECORDED))])
def test_recorded_values(row: dict[str, Any]) -> None:
    """Every policy, each warm-up, by epoch and by iteration: lr and momentum at every iteration, from the last back."""
    kept = ("lr_config", "momentum_config", "max_epochs", "max_iters", "epoch_length")
    fields = quiet(**{key: value for key, value in row.items() if key in kept})
    total = row.get("max_iters") or row["max_epochs"] * row["epoch_length"]
    for field, base in (("lr", 0.25), ("momentum", 0.9)):
        schedule = fields[field](base)
        wanted = row[field] if isinstance(row[field], list) else [row[field]] * total
        for step in reversed(range(total)):
            assert math.isclose(schedule(step), wanted[step], rel_tol=1e-9, abs_tol=1e-17), (field, step, schedule)


def test_every_policy_is_recorded() -> None:
    """Those of mmcv; MMDetection's is beside its formula in test_mmengine_old_format.py."""
    for field, policies in POLICIES.items():
        told = {row[f"{field}_config"]["policy"] for row in RECORDED if f"{field}_config" in row}
        assert {policy.title() if policy.islower() else policy for policy in told} == set(policies) - {"YOLOX"}


@pytest.mark.skipif(
    not (FOLDER / "legacy_trajectories.jsonl.gz").exists(), reason=f"no legacy_trajectories.jsonl.gz in {FOLDER}"
)
def test_every_recorded_legacy_trajectory() -> None:
    """The old-format runs of the reference data."""
    for row in rows("legacy_trajectories.jsonl.gz"):
        configs = {key: row.get(key) for key in ("lr_config", "momentum_config")}
        compare(row, quiet(**configs, **run_length(row)))


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"lr_config": {"policy": "step", "steps": [3]}},
     "lr_config (Step): every key must be known, got 'steps'; did you mean 'step'?"),
    ({"lr_config": {"policy": "cosine"}},
     "lr_config: policy must be one of CosineAnnealing, CosineAnnealingCooldown, CosineRestart, Cyclic, Exp, Fixed, "
     "FlatCosineAnnealing, Inv, LinearAnnealing, OneCycle, Poly, Step, YOLOX, got 'cosine'."),
    ({"momentum_config": {"policy": ["step"]}},
     "momentum_config: policy must be one of CosineAnnealing, Cyclic, LinearAnnealing, OneCycle, Step, got ['step']."),
    ({"momentum_config": {"policy": "poly"}},
     "momentum_config: policy must be one of CosineAnnealing, Cyclic, LinearAnnealing, OneCycle, Step, got 'poly'."),
    ({"lr_config": ["step"]}, "lr_config: it must be a dict with a policy, got ['step']."),
    ({"lr_config": {"policy": "step", "step": [4, 2]}},
     "lr_config (Step): step must be a positive whole number or a list of them in order, got [4, 2]."),
    ({"lr_config": {"policy": "CosineAnnealing"}},
     "lr_config (CosineAnnealing): min_lr or min_lr_ratio must be given, got neither."),
    ({"lr_config": {"policy": "CosineRestart", "periods": [2, 2], "restart_weights": [1, 1], "min_lr": 0}},
     "lr_config (CosineRestart): periods must be positive and reach the end of the run at 5, got [2, 2]."),
    ({"lr_config": {"policy": "cyclic", "by_epoch": True}},
     "lr_config (Cyclic): by_epoch must be False for this policy, which counts iterations, got True."),
    ({"lr_config": {"policy": "fixed", "warmup": "lin"}},
     "lr_config (Fixed): warmup must be 'constant', 'linear' or 'exp', got 'lin'."),
    ({"lr_config": {"policy": "fixed", "warmup": "linear"}},
     "lr_config (Fixed): warmup_iters must be a positive number, got 0."),
    ({"lr_config": {"policy": "fixed", "warmup": "exp", "warmup_iters": 3, "warmup_ratio": 0}},
     "lr_config (Fixed): warmup_ratio must be a number above 0 and up to 1, got 0."),
    ({"lr_config": {"policy": "fixed"}, "param_scheduler": []},
     "lr_config: it must come without param_scheduler: one format at a time."),
]  # fmt: skip


@pytest.mark.parametrize(("config", "sentence"), FAULTS)
def test_what_is_wrong_is_named(config: dict[str, Any], sentence: str) -> None:
    """When it is read, before any run; mmcv finds most of it in the run."""
    with pytest.raises((ValueError, TypeError)) as error:
        mmengine.schedules(**config, max_epochs=5, epoch_length=4)
    assert str(error.value) == f"mmengine.schedules: {sentence}"


def test_what_is_dubious_is_said() -> None:
    """Steps out of reach, and epochs in a loop of iterations, which never come."""
    with pytest.warns(
        UserWarning, match=r"lr_config \(Step\): steps \[8\] are never reached: the run has 5 epochs"
    ) as told:
        mmengine.schedules(lr_config={"policy": "step", "step": [3, 8]}, max_epochs=5, epoch_length=4)
    assert [warning.filename for warning in told] == [__file__]
    with pytest.warns(UserWarning, match=r"lr_config \(Exp\): a loop of iterations counts no epochs"):
        fields = mmengine.schedules(
            lr_config={"policy": "exp", "gamma": 0.5, "by_epoch": True}, max_iters=9, epoch_length=4
        )
    assert fields["lr"](0.1)(8) == 0.1
