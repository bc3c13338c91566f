"""Every way a list of schedulers can be wrong is named, and what differs from MMEngine differs as written."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from mmengine_live import optimizer_of, trajectory

import gradchain as gch
from gradchain.adapters import mmengine

STEP = {"type": "MultiStepLR", "milestones": [2]}
COSINE = {"type": "CosineAnnealingLR", "by_epoch": False}


def read(config: Any, **kwargs: Any) -> Any:
    return mmengine.schedules(config, **{"max_epochs": 5, "epoch_length": 4, **kwargs})


REFUSED: list[tuple[Any, str]] = [
    ({"type": "MultiStpLR"},
     "param_scheduler (MultiStpLR): type must be a known scheduler, got 'MultiStpLR'; did you mean 'MultiStepLR'?"),
    ([STEP, {"milestones": [2]}],
     "param_scheduler[1]: type must be the name of a scheduler, got None."),
    ([STEP, "LinearLR"], "param_scheduler[1]: a scheduler must be a dict with a type, got 'LinearLR'."),
    ([{"type": 3}], "param_scheduler[0] (3): type must be the name of a scheduler, got 3."),
    ({"critic": [STEP | {"gama": 0.5}]},
     "param_scheduler['critic'][0] (MultiStepLR): every key must be known, got 'gama'; did you mean 'gamma'?"),
    ({"type": "StepLR"}, "param_scheduler (StepLR): step_size must be given."),
    ({"type": "LinearParamScheduler"}, "param_scheduler (LinearParamScheduler): param_name must be given."),
    ({"type": "mmengine.LinearLR", "param_name": "lr"},
     "param_scheduler (mmengine.LinearLR): every key must be known, got 'param_name'; it takes "
     "_scope_, begin, by_epoch, convert_to_iter_based, end, end_factor, last_step, start_factor, type, verbose."),
    ({"type": "ReduceOnPlateauLR"},
     "param_scheduler (ReduceOnPlateauLR): a scheduler that reads a metric is no function of the step; leave it out of "
     "this list, and put a link that reads `updater.observe` into the chain."),
    (STEP | {"begin": 3, "end": 3},
     "param_scheduler (MultiStepLR): end must be above begin, got begin=3 and end=3 epochs."),
    (COSINE | {"begin": 20}, "param_scheduler (CosineAnnealingLR): end must be above begin, got begin=20 and end=20 "
     "iterations."),
    (STEP | {"begin": -1}, "param_scheduler (MultiStepLR): begin must be a number of at least 0, got -1."),
    (STEP | {"begin": 0.5}, "param_scheduler (MultiStepLR): begin and end must be whole, or convert_to_iter_based=True "
     "make them so, got begin=0.5 and end=5."),
    (COSINE | {"convert_to_iter_based": True},
     "param_scheduler (CosineAnnealingLR): convert_to_iter_based must come with by_epoch=True, got by_epoch=False."),
    (STEP | {"by_epoch": 1}, "param_scheduler (MultiStepLR): by_epoch must be True or False, got 1."),
    (STEP | {"milestones": 2}, "param_scheduler (MultiStepLR): milestones must be a list of numbers, got 2."),
    (STEP | {"last_step": 4}, "param_scheduler (MultiStepLR): last_step must be -1, since a schedule is a function of "
     "the step, got 4."),
    (COSINE | {"eta_min": "1e-5"},
     "param_scheduler (CosineAnnealingLR): eta_min must be a finite number or None, got '1e-5'."),
    (COSINE | {"eta_min": 0.1, "eta_min_ratio": 0.1},
     "param_scheduler (CosineAnnealingLR): eta_min or eta_min_ratio must be given, not both, got 0.1 and 0.1."),
    (COSINE | {"T_max": -3}, "param_scheduler (CosineAnnealingLR): T_max must be a positive number or None, got -3."),
    ({"type": "StepLR", "step_size": 0.3, "convert_to_iter_based": True},
     "param_scheduler (StepLR): step_size must be a positive number of whole steps of the scheduler, got 0.3."),
    ({"type": "CosineRestartLR", "periods": [2, 3], "eta_min": 0.0},
     "param_scheduler (CosineRestartLR): periods and restart_weights must be as many, got 2 and 1."),
    ({"type": "CosineRestartLR", "periods": [2.5], "eta_min": 0.0},
     "param_scheduler (CosineRestartLR): periods must be whole and positive in steps of the scheduler, got [2.5]."),
    ({"type": "LinearLR", "start_factor": 2.0},
     "param_scheduler (LinearLR): start_factor must be a number from 0 to 1, got 2.0."),
    ({"type": "LinearLR", "start_factor": 0},
     "param_scheduler (LinearLR): start_factor must be above 0, since MMEngine divides by it, got 0; 1e-8 is nearly "
     "the same."),
    ({"type": "ConstantLR", "factor": 0.0},
     "param_scheduler (ConstantLR): factor must be above 0, since MMEngine divides by it, got 0; 1e-8 is nearly the "
     "same."),
    ({"type": "OneCycleLR", "eta_max": 0.1, "by_epoch": False, "total_steps": 15},
     "param_scheduler (OneCycleLR): total_steps must be whole in steps of the scheduler, and at least the 20 of its "
     "window, got 15."),
    ({"type": "OneCycleLR", "eta_max": 0.1, "by_epoch": False, "pct_start": 0.02},
     "param_scheduler (OneCycleLR): pct_start must be a number above 1 / total_steps = 0.05 and below 1.0, got 0.02."),
    ({"type": "OneCycleParamScheduler", "param_name": "momentum"},
     "param_scheduler (OneCycleParamScheduler): param_name must be 'lr' for one cycle, as in MMEngine, got "
     "'momentum'."),
    ({"type": "LinearLrInterval", "interval": 30, "by_epoch": False},
     "param_scheduler (LinearLrInterval): interval must be a number above 0 and up to the 20 steps of its window, got "
     "30."),
]  # fmt: skip


@pytest.mark.parametrize(("config", "sentence"), REFUSED, ids=[f"row{row}" for row in range(len(REFUSED))])
def test_what_is_wrong_is_named(config: Any, sentence: str) -> None:
    """The whole sentence, with the place of the scheduler and its type, when the list is read."""
    with pytest.raises((ValueError, TypeError)) as error:
        read(config)
    assert str(error.value) == f"mmengine.schedules: {sentence}"


REMARKED: list[tuple[Any, dict[str, Any], str]] = [
    (STEP | {"milestones": [2, 5, 2.5]}, {},
     "param_scheduler (MultiStepLR): milestones [5, 2.5] are never reached: they count from begin, and 5 epochs of "
     "its window are in the run."),
    (STEP | {"begin": 2, "end": 6, "milestones": [1, 3]}, {},
     "param_scheduler (MultiStepLR): milestones [3] are never reached: they count from begin, and 3 epochs of its "
     "window are in the run."),
    (STEP | {"begin": 9, "end": 12}, {},
     "param_scheduler (MultiStepLR): it never acts: it begins at iteration 36, and the run ends at 20."),
    ({"type": "StepLR", "step_size": 5}, {}, "param_scheduler (StepLR): it does nothing in its window."),
    ({"type": "LinearLR", "by_epoch": False, "end": 21}, {},
     "param_scheduler (LinearLR): its window ends after the run: 20 of 21 iterations are in it."),
    ({"type": "LinearLR", "end": 1}, {},
     "param_scheduler (LinearLR): its window has one step, in which it multiplies by start_factor, for good."),
    ({"type": "CosineRestartLR", "periods": [2, 2], "restart_weights": [1, 1], "eta_min": 0.0}, {},
     "param_scheduler (CosineRestartLR): periods end after 4 of 5 epochs; the last value stays."),
    (STEP | {"end": 3, "milestones": [0]}, {"max_epochs": None, "max_iters": 20},
     "param_scheduler (MultiStepLR): a loop of iterations counts no epochs: it acts once, at the start; did you mean "
     "by_epoch=False?"),
    (STEP | {"begin": 1, "end": 3}, {"max_epochs": None, "max_iters": 20},
     "param_scheduler (MultiStepLR): it never acts: it begins at epoch 1, and a loop of iterations counts no epochs."),
]  # fmt: skip


@pytest.mark.parametrize(("config", "length", "sentence"), REMARKED, ids=[f"row{row}" for row in range(len(REMARKED))])
@pytest.mark.parametrize("strict", [True, False])
def test_what_is_dubious_is_said(config: Any, length: dict[str, Any], sentence: str, strict: bool) -> None:
    """Real recipes have all of it: a warning, from the line that called."""
    with pytest.warns(UserWarning) as told:
        read(config, strict=strict, **length)
    assert [str(warning.message) for warning in told] == [f"mmengine.schedules: {sentence}"]
    assert told[0].filename == __file__


def test_a_warning_is_from_the_line_that_called() -> None:
    """Also where the schedulers are by optimizer."""
    with pytest.warns(UserWarning) as told:
        mmengine.schedules({"critic": STEP | {"milestones": [9]}}, max_epochs=5, epoch_length=4)
    assert [warning.filename for warning in told] == [__file__]


@pytest.mark.parametrize("config", [[STEP], [STEP, COSINE], COSINE, {"type": "LinearLR", "end": 3}, None])
def test_what_is_right_is_silent(config: Any) -> None:
    """pytest makes an error of any warning; a second try says the same."""
    assert repr(read(config)["lr"](0.1)) == repr(read(config, strict=False)["lr"](0.1))


@pytest.mark.parametrize(
    "length", [{}, {"max_epochs": 3, "max_iters": 3}, {"max_epochs": 0}, {"max_iters": 2.5}, {"max_epochs": True}]
)
def test_the_length_of_the_run(length: dict[str, Any]) -> None:
    """In epochs or in iterations, one of the two."""
    with pytest.raises(ValueError, match=r"^mmengine.schedules: max_(epochs|iters) "):
        mmengine.schedules(STEP, **length, epoch_length=4)
    with pytest.raises(ValueError, match="epoch_length must be a whole number of at least 1, got 0"):
        mmengine.schedules(STEP, max_epochs=3, epoch_length=0)


# what differs on purpose, in the order of the table in the package's docstring


def test_a_resumed_run_has_the_config_of_the_day() -> None:
    """MMEngine's schedulers carry the milestones they were saved with into a run whose config says others."""
    from mmengine.optim import MultiStepLR

    def run(milestones: list[int], saved: dict[str, Any] | None = None) -> tuple[list[float], Any]:
        optimizer = optimizer_of("SGD", 0.1, 0.9, 0.0)
        scheduler = MultiStepLR(optimizer, milestones=milestones, by_epoch=False)
        if saved is not None:
            scheduler.load_state_dict(saved)
        seen = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(6):
                seen.append(optimizer.param_groups[0]["lr"])
                scheduler.step()
        return seen, scheduler

    _, old = run([50])
    old._global_step = old.last_step = 0
    resumed, _ = run([3], old.state_dict())
    assert resumed == [0.1] * 6
    ours = mmengine.schedules(STEP | {"by_epoch": False, "milestones": [3]}, max_iters=9, epoch_length=4)["lr"](0.1)
    assert [ours(step) for step in range(6)] == pytest.approx([0.1] * 3 + [0.01] * 3)


def test_a_start_of_zero() -> None:
    """MMEngine divides by zero in the run. strict=False has the ramp."""
    ramp = {"type": "LinearLR", "start_factor": 0.0, "by_epoch": False, "end": 5}
    with pytest.raises(ZeroDivisionError):
        trajectory(optimizer_of("SGD", 0.1, 0.9, 0.0), [ramp], 4, max_epochs=5)
    with pytest.warns(UserWarning, match="start_factor must be above 0"):
        lr = read(ramp, strict=False)["lr"](0.1)
    assert [lr(i) for i in range(6)] == pytest.approx([0.0, 0.025, 0.05, 0.075, 0.1, 0.1])


def test_any_step_in_any_order_and_after_the_run() -> None:
    """Reading changes nothing, and beyond its last step the last value stays."""
    exponential = {"type": "ExponentialLR", "gamma": 0.5, "by_epoch": False}
    lr = read([exponential, COSINE | {"eta_min": 0.01}])["lr"](0.1)
    late = lr(19)
    assert (lr(3), lr(19), lr(3)) == (lr(3), late, lr(3))
    assert lr(500) == lr(20) == late


def test_one_cycle_longer_than_its_steps() -> None:
    """MMEngine raises in the run, where the window is longer; here it is read before the run (see REFUSED)."""
    cycle = {"type": "OneCycleLR", "eta_max": 0.1, "by_epoch": False, "total_steps": 15}
    with pytest.raises(ValueError, match="Tried to step"):
        trajectory(optimizer_of("SGD", 0.1, 0.9, 0.0), [cycle], 4, max_epochs=5)


def test_begin_between_two_epochs() -> None:
    """MMEngine begins at the next whole epoch; so do we, if told not to mind."""
    late = STEP | {"begin": 0.5, "end": 4.5, "milestones": [1]}
    seen = trajectory(optimizer_of("SGD", 0.1, 0.9, 0.0), [late], 4, max_epochs=5)
    with pytest.warns(UserWarning, match="begin and end must be whole"):
        lr = read(late, strict=False)["lr"](0.1)
    assert [lr(i) for i in range(20)] == pytest.approx([row[0]["lr"] for row in seen])


def test_an_absolute_floor_is_every_groups() -> None:
    """A group with a tenth of the rate ends where the others do, with a ratio at a tenth."""
    absolute, ratio = ({**COSINE, key: 0.01, "T_max": 19} for key in ("eta_min", "eta_min_ratio"))
    assert [read(absolute)["lr"](base)(19) for base in (1.0, 0.1)] == [0.01, 0.01]
    assert [read(ratio)["lr"](base)(19) for base in (1.0, 0.1)] == pytest.approx([0.01, 0.001])


def test_a_type_may_be_a_class_or_have_a_scope() -> None:
    """As in configs written as Python, and across packages."""

    class ExponentialLR:
        pass

    for kind in (ExponentialLR, "mmdet.ExponentialLR"):
        lr = read({"type": kind, "gamma": 0.5, "_scope_": "mmdet", "verbose": True})["lr"]
        assert lr(1.0) == gch.schedules.combined(
            "*", 1.0, gch.schedules.per_epoch(gch.schedules.exponential(1.0, 0.5).take(4), 4)
        )
