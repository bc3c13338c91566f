"""Which executors a device has, and how a user names others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradchain as gch
from gradchain.engine.executors.devices import VARIABLE, adapted, chosen, numbers_on
from gradchain.engine.executors.triton import Triton
from gradchain.engine.operations import Unrecorded

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def names(device: torch.device) -> list[str]:
    return [e.name for e in chosen(device)]


def test_the_default(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert names(CPU) == ["native", "patterns", "blocks"]
    assert names(CUDA) == ["fused", "foreach"], "Triton stays opt-in until a run on a GPU is on record"
    assert names(torch.device("mps")) == []


@pytest.mark.parametrize(
    ("value", "cpu", "cuda"),
    [
        ("triton", ["native", "patterns", "blocks"], ["triton"]),
        (" compiled , blocks", ["compiled", "blocks"], ["compiled"]),
        ("triton,compiled", ["compiled"], ["triton", "compiled"]),
        ("blocks", ["blocks"], ["fused", "foreach"]),
        ("fused,foreach", ["fused", "foreach"], ["fused", "foreach"]),
        ("foreach", ["foreach"], ["foreach"]),
    ],
)
def test_the_variable_names_them(monkeypatch, value, cpu, cuda):
    monkeypatch.setenv(VARIABLE, value)
    assert (names(CPU), names(CUDA)) == (cpu, cuda)


def test_a_name_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv(VARIABLE, "fast")
    known = "blocks, compiled, foreach, fused, native, patterns, triton"
    with pytest.raises(ValueError, match=f"must name executors among {known}, got"):
        chosen(CPU)


def test_the_reference_is_asked_for_alone(monkeypatch):
    """It is no executor among others; a step that asks for it runs no kernel, and the next one may again."""
    monkeypatch.setenv(VARIABLE, "native,reference")
    with pytest.raises(
        ValueError, match=r"got 'reference'\. reference stands alone: GRADCHAIN_EXECUTORS=reference runs"
    ):
        chosen(CPU)
    monkeypatch.delenv(VARIABLE)
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(model.state_dict())
    updater, plain = gch.adamw(0.1).bind(model), gch.adamw(0.1).bind(other)
    for wanted in ("", "", "reference", " reference", "blocks", "reference", ""):
        monkeypatch.setenv(VARIABLE, wanted)
        updater.update(model(torch.ones(2, 3)).sum())
        alone = wanted.strip() == "reference"
        assert (updater._bound.engine.reason == "GRADCHAIN_EXECUTORS=reference asks for it") is alone
        assert bool(updater._bound.engine.last) is not alone
        monkeypatch.setenv(VARIABLE, "native")
        plain.update(other(torch.ones(2, 3)).sum())
    for mine, its in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)


def test_the_executors_follow_the_weights_unless_someone_set_them(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    mine = (Triton("cuda"),)
    assert adapted(mine, CPU) is mine
    assert adapted(chosen(CPU), CPU) is chosen(CPU)
    assert [e.name for e in adapted(chosen(CPU), CUDA)] == ["fused", "foreach"]
    with pytest.raises(Unrecorded, match=r"on mps the reference, by torch._foreach, is the default"):
        adapted(chosen(CPU), torch.device("mps"))
    monkeypatch.setenv(VARIABLE, "triton")
    assert [e.name for e in adapted(chosen(CPU), CUDA)] == ["triton"]
    assert [e.name for e in adapted(chosen(CUDA), CPU)] == ["native", "patterns", "blocks"]


def test_where_reductions_leave_their_numbers(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert numbers_on(chosen(CPU)) is None
    assert numbers_on(chosen(CUDA)) == numbers_on((Triton("cuda:0"),)) == CUDA
    assert numbers_on(()) is None
    monkeypatch.setenv(VARIABLE, "triton,compiled")
    assert numbers_on(chosen(CUDA)) == CUDA
    monkeypatch.setenv(VARIABLE, "compiled,blocks")
    assert numbers_on(chosen(CPU)) is None


def test_a_step_uses_what_the_variable_names(monkeypatch):
    monkeypatch.setenv(VARIABLE, "blocks")
    model = nn.Linear(3, 2)
    updater = gch.adamw(0.1).bind(model)
    updater.update(model(torch.ones(2, 3)).sum())
    assert {part.executor for part in updater._bound.engine.last} == {"blocks"}


def test_the_variable_may_change_between_steps(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    model = nn.Linear(3, 2)
    updater = gch.adamw(0.1).bind(model)
    for wanted in ("native", "native", "native", "blocks", "blocks", "native"):
        monkeypatch.setenv(VARIABLE, wanted)
        updater.update(model(torch.ones(2, 3)).sum())
        assert {part.executor for part in updater._bound.engine.last} == {wanted}


def test_no_executors_are_no_default():
    """None is what MPS has by default, and what someone may set: those two are not confused."""
    assert chosen(torch.device("mps")) == ()
    model = nn.Linear(3, 2)
    updater = gch.sgd(0.1).bind(model)
    updater._bound.engine.executors = ()
    updater.update(model(torch.ones(2, 3)).sum())
    assert updater._bound.engine.reason == "no executor may run it"


def test_a_gradient_on_another_device_is_not_read():
    model = nn.Linear(3, 2)
    updater = gch.sgd(0.1).bind(model)
    updater.step({n: torch.ones_like(p) for n, p in model.named_parameters()})
    with pytest.raises(ValueError, match="step: the gradient of 'weight' must be on cpu, got meta"):
        updater.step({n: torch.ones_like(p, device="meta") for n, p in model.named_parameters()})
    assert updater.num_updates == 1


def test_weights_on_no_device_run_by_the_reference():
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    updater = gch.sgd(0.1).bind(model)
    updater.step({n: torch.ones_like(p) for n, p in model.named_parameters()})
    assert updater._bound.engine.reason == "on meta the reference, by torch._foreach, is the default."
    assert "on meta the reference, by torch._foreach, is the default" in updater.explain()
