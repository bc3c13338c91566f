"""Where nothing counts updates, as SGD does not: what `adopt` takes for them is said, and can be given."""

import warnings

import pytest
import torch
from trainings import CLASSES, FIRST, SCHEDULERS, Torch, check, distance, go_on

import gradchain as gch
from gradchain.__main__ import main

UNCOUNTED = ["sgd", "momentum"]


@pytest.mark.parametrize("name", UNCOUNTED)
@pytest.mark.parametrize("scaler", [None, lambda: torch.amp.GradScaler("cpu", enabled=False)], ids=["none", "off"])
def test_a_scheduler_is_taken_to_be_stepped_at_every_update_and_it_is_said(name, scaler):
    with pytest.warns(UserWarning, match=r"adopt: clock is taken to be 'step', .* scheduler's 12 steps. Write clock="):
        updater = check(Torch(CLASSES[name], SCHEDULERS["cosine"], scaler=scaler))
    assert updater.clocks["step"] > FIRST


@pytest.mark.parametrize("name", UNCOUNTED)
def test_a_state_from_a_file_says_that_clocks_start_at_0_and_how_not_to(name):
    loop = Torch(CLASSES[name])
    for _ in range(FIRST):
        loop.step()
    saved = loop.optimizer.state_dict()
    with pytest.warns(UserWarning, match="adopt: step is taken to be 0, .* Write step=50 to go on from update 50"):
        updater = gch.adopt(saved, model=loop.model, kind="SGD")
    assert updater.clocks["step"] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        updater = gch.adopt(saved, model=loop.model, kind="SGD", step=FIRST)
        live = gch.adopt(loop.optimizer, model=loop.model, step=FIRST)
        counted = Torch(CLASSES["adamw"])
        counted.step()
        assert gch.adopt(counted.optimizer.state_dict(), model=counted.model, kind="AdamW").clocks["step"] == 1
    assert updater.clocks["step"] == updater.clocks["micro"] == live.clocks["step"] == FIRST
    updater.override("learning_rate", gch.linear(0.0, 1.0, 100))
    assert updater.hyperparams()["scale_by_learning_rate.learning_rate"] == pytest.approx(0.12)


def test_torchs_objects_made_again_from_a_file_are_adopted():
    loop, again = (Torch(CLASSES["momentum"], SCHEDULERS["cosine"]) for _ in "ab")
    for _ in range(FIRST):
        loop.step()
    for mine, theirs in (
        (again.model, loop.model),
        (again.optimizer, loop.optimizer),
        (again.scheduler, loop.scheduler),
    ):
        mine.load_state_dict(theirs.state_dict())
    start = Torch(CLASSES["momentum"]).model
    updater = gch.adopt(again.optimizer, again.scheduler, model=again.model, clock="step")
    go_on(loop, again.model, updater)
    assert distance(again.model, loop.model, start) < 1e-12


@pytest.mark.parametrize("name", ["one cycle, momentum", "cosine", "sequential", "chained"])
def test_the_chain_of_a_saved_one_is_shown_as_code_that_runs(name, tmp_path, capsys):
    loop = Torch(CLASSES["momentum"], SCHEDULERS[name])
    for _ in range(FIRST):
        loop.step()
    updater = gch.adopt(loop.optimizer, loop.scheduler, model=loop.model, clock="step")
    updater.save(tmp_path / "run.pt")
    assert main(["show", str(tmp_path / "run.pt")]) == 0
    code = capsys.readouterr().out.partition("\nat ")[0]
    assert eval(code, {"gch": gch}) == updater.chain
