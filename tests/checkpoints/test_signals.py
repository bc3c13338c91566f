"""SIGTERM saves at the next step, and then does what it would have done; a second one does not wait."""

from __future__ import annotations

import signal
import threading

import pytest
import torch
from processes import forked
from test_folder import names, numbered

import gradchain as gch

BEGIN = """
import os, signal, torch, gradchain as gch
model = torch.nn.Linear(2, 2)
updater = gch.sgd(0.1).bind(model)
def once():
    updater.step({n: torch.ones_like(p) for n, p in model.named_parameters()})
    return keeper.step()
def made(**given):
    return gch.Checkpointer(folder, updater=updater, every=100, background=background, **given)
def hit(number=signal.SIGTERM):
    os.kill(os.getpid(), number)
def mine(number, frame):
    print("mine", flush=True)
"""


def alone(folder, code, background=False):
    return forked(BEGIN + code, folder=str(folder), background=background)


@pytest.mark.parametrize("background", [False, True])
def test_the_run_is_saved_and_ends_as_it_would_have(background, tmp_path):
    code, _ = alone(tmp_path, "keeper = made()\nonce(); hit(); print(once()); once()", background)
    assert code == -signal.SIGTERM
    assert names(tmp_path) == numbered(2)
    assert not (tmp_path / ".lock").exists()


def test_other_signals_and_a_second_one(tmp_path):
    usr = "keeper = made(signals=(signal.SIGTERM, signal.SIGUSR1))\nonce(); hit(signal.SIGUSR1); once()"
    assert alone(tmp_path / "a", usr)[0] == -signal.SIGUSR1
    assert names(tmp_path / "a") == numbered(2)
    assert alone(tmp_path / "b", "keeper = made()\nonce(); hit(); hit(); once()")[0] == -signal.SIGTERM
    assert not (tmp_path / "b").exists()
    assert alone(tmp_path / "c", "keeper = made(signals=())\nonce(); hit(); once()")[0] == -signal.SIGTERM
    assert not (tmp_path / "c").exists()


def test_a_handler_of_the_users_is_called_and_comes_back(tmp_path):
    code = """
signal.signal(signal.SIGTERM, mine)
keeper = made()
once(); hit(); print("saved", once() is not None, os.listdir(folder) != []); once()
print(signal.getsignal(signal.SIGTERM) is mine)
keeper.close()
print(signal.getsignal(signal.SIGTERM) is mine)
hit()
"""
    assert alone(tmp_path, code) == (0, "mine\nsaved True True\nFalse\nTrue\nmine")


def test_who_is_gone_hears_nothing_and_who_listens_later_is_left(tmp_path):
    code = """
keeper = made()
signal.signal(signal.SIGTERM, mine)
keeper.close()
hit()
signal.signal(signal.SIGTERM, signal.SIG_DFL)
keeper = made()
del keeper
hit()
"""
    assert alone(tmp_path, code) == (-signal.SIGTERM, "mine")


def test_two_checkpointers_both_save(tmp_path):
    code = """
keeper = made()
other = gch.Checkpointer(folder + "/b", updater=updater, every=100)
once(); hit(); once()
other.step()
keeper.step()
"""
    assert alone(tmp_path, code)[0] == -signal.SIGTERM
    assert names(tmp_path) == numbered(2) and names(tmp_path / "b") == numbered(2)


def test_outside_the_main_thread_it_is_said(tmp_path):
    said = []

    def make():
        with pytest.warns(UserWarning, match=r"outside the main thread.*SIGTERM ends the run without a file") as told:
            gch.Checkpointer(tmp_path, updater=gch.sgd(0.1).bind(torch.nn.Linear(1, 1))).close()
        said.extend(told)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert len(said) == 1 and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("wrong", [9999, signal.SIGKILL])
def test_signals_that_cannot_be_caught(wrong, tmp_path):
    with pytest.raises(ValueError, match="signals must be signals that a process can catch"):
        gch.Checkpointer(tmp_path, updater=gch.sgd(0.1).bind(torch.nn.Linear(1, 1)), signals=(wrong,))
