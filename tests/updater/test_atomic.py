"""A step is all or nothing: after an exception at any line, or a signal at any time, all of it is new or nothing."""

import itertools
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import atomic_calls
import pytest
import torch
from atomic_chains import BY_NAME, SCENES, WHOLE, Twins, injections, run_by, shown
from injected import Twice, targets, watched
from little import data, loss_of, net, same

import gradchain as gch
from gradchain.core import _torch

HERE = Path(__file__).parent
MAIN = ("masked", "partition", "window in a buffer closes", "average and project", "rows")
OTHERS = ("blocks", "patterns,blocks", "foreach", "fused,foreach", "reference")
# each executor with every fifth chain; with GRADCHAIN_LONG=1 with all
LONG = bool(os.environ.get("GRADCHAIN_LONG"))
SPARSE = 11 if LONG else 23  # one line in so many
DENSE = 1 if LONG else 3  # the same in the files that decide and write; one chain has them all
PAIRS = [(name, by) for i, name in enumerate(MAIN) for k, by in enumerate(OTHERS) if LONG or (i + k) % 5 == 0]

_offsets = itertools.count(random.Random(0).randrange(SPARSE))  # each test takes other lines


def clean(tally):
    """No state was mixed, no mode left, no window lost without a word, and all went on as its twin."""
    assert not tally.faults, "\n".join([f"{len(tally.faults)} of {sum(tally.sides.values())}", *tally.faults[:20]])
    assert tally.injected


@pytest.mark.parametrize("name", BY_NAME)
def test_an_interrupt_at_any_line(name):
    """Weights, state, clocks and records are those before or after, and training goes on from there."""
    whole = 1 if name == "masked" else DENSE
    tally = injections(BY_NAME[name], "native", SPARSE, next(_offsets), whole=whole)
    clean(tally)
    assert tally.sides["after"] and tally.sides["before"] + tally.sides["dropped"]


@pytest.mark.parametrize(("name", "executors"), PAIRS)
def test_an_interrupt_where_torch_writes_in_several_calls(name, executors):
    """The same without the native executor."""
    tally = injections(BY_NAME[name], executors, SPARSE, next(_offsets), whole=DENSE)
    clean(tally)
    assert tally.sides["after"]


@pytest.mark.parametrize("error", [MemoryError, ArithmeticError])
@pytest.mark.parametrize("executors", ["native", "blocks", "foreach"])
def test_other_exceptions(error, executors):
    """An exception of any kind is like an interrupt, but for what a trace that fails is forgiven."""
    clean(injections(BY_NAME["masked"], executors, SPARSE, next(_offsets), error, DENSE))


@pytest.mark.parametrize("executors", ["native", "blocks", "fused,foreach", "reference"])
@pytest.mark.parametrize("name", ["masked", "window in .grad closes", "sam"])
def test_a_second_interrupt_in_a_row(name, executors):
    """What the first left is finished or dropped at the next entry, if the second kept that from the handler."""
    scene = BY_NAME[name]
    with run_by(executors), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twins = Twins.of(scene, executors)
        model, updater = scene.at(executors, scene.warm)
        walked = watched(lambda: scene.walk(model, updater, scene.warm))
        chosen = targets(walked, WHOLE)[next(_offsets) % 3 :: 7]
        mixed = []
        for target, lines in zip(chosen, itertools.cycle((1, 2, 4, 7, 12, 20, 33)), strict=False):
            model, updater = scene.at(executors, scene.warm)
            try:
                with Twice(target, lines):
                    scene.walk(model, updater, scene.warm)
            except KeyboardInterrupt:
                pass
            torch.set_grad_enabled(True)
            if updater._bound.micro.backwards:
                updater.zero_grad()
            if twins.side(shown(model, updater)) == "mixed":
                mixed.append((target, lines))
    assert not mixed, mixed[:10]


@pytest.mark.parametrize(
    "name",
    [
        "load",
        "load_state_dict",
        "averaged",
        "flush",
        "copy_average_to",
        "reset",
        "zero_grad",
        "tick",
        "update_batch_norm",
        "a tick that writes buffers",
    ],
)
def test_an_interrupt_in_another_call(name, tmp_path):
    """Loading, flushing and resetting are all or nothing; weights are the model's own after `averaged`."""
    clean(atomic_calls.injections(atomic_calls.calls(tmp_path)[name], 5, whole=DENSE))


def test_an_interrupt_during_an_update_in_backward():
    """Each parameter is whole; an updater that is torn refuses everything but a load, which mends it."""
    tally = atomic_calls.injections_in_backward(5, DENSE)
    clean(tally)
    assert {"before", "torn", "after"} <= set(tally.sides)


def test_what_cannot_be_finished_says_so(monkeypatch, tmp_path):
    """Weights are half written and no more can be: a sentence names `load`, each call tries again, and one succeeds."""
    scene = BY_NAME["masked"]
    with run_by("blocks"):
        twins = Twins.of(scene, "blocks")
        model, updater = scene.at("blocks", scene.warm)
        saved = tmp_path / "saved.pt"
        updater.save(saved)
        left = itertools.count(-2)
        write = _torch.copy_

        def fails(places, values):
            if next(left) >= 0:
                raise MemoryError("none left")
            write(places, values)

        monkeypatch.setattr(_torch, "copy_", fails)
        sentence = (
            r"broken off while weights were written, and cannot be finished now \(none left\).* updater.load\(path"
        )
        with pytest.raises(RuntimeError, match=sentence):
            scene.walk(model, updater, scene.warm)
        for ask in (updater.state_dict, lambda: updater.num_updates, updater.flush):
            with pytest.raises(RuntimeError, match=sentence):
                ask()
        monkeypatch.setattr(_torch, "copy_", write)
        assert twins.side(shown(model, updater)) == "after"
        left = itertools.count(-2)
        monkeypatch.setattr(_torch, "copy_", fails)
        with pytest.raises(RuntimeError, match=sentence):
            scene.walk(model, updater, scene.warm + 1)
        left = itertools.count(-1000)
        updater.load(saved)
        now = shown(model, updater)
        assert same([now[0], now[3]], [twins.before[0], twins.before[3]])


def test_those_that_a_step_calls_may_ask():
    """A closure, a hook and a link see the updater as it is before the step, and are no entry that puts it in order."""
    model, asked = net(), []
    held = {}

    def look(*_):
        updater = held["updater"]
        asked.append((updater.num_updates, dict(updater.metrics) is not None, len(updater.hyperparams())))

    def seen(updates, params):
        look()
        return updates

    updater = held["updater"] = gch.chain(gch.sam(0.05), gch.stateless(seen), gch.sgd(0.1)).bind(model)
    handle = model[0].weight.register_hook(look)
    rows = data(2)

    def closure(i):
        look()
        return loss_of(model, rows[i])

    for i in range(2):
        updater.update(lambda i=i: closure(i))
    handle.remove()
    assert [count for count, *_ in asked] == [0] * (len(asked) // 2) + [1] * (len(asked) // 2)
    assert updater.num_updates == 2


def in_a_process(script, *arguments):
    """A script beside this file, in a process of its own, which must come to its end."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_interrupts_at_any_time():
    """Two threads write large weights: no interrupt leaves them mixed or ends the process."""
    in_a_process("atomic_signals.py", 40 if LONG else 20)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a limit of the address space is Linux's")
@pytest.mark.parametrize(
    ("executors", "what"),
    [("native", "threads"), ("native", "memory"), ("blocks", "memory"), ("reference", "memory")],
)
def test_no_thread_and_no_memory(executors, what):
    """A thread that cannot start is done without; a step for which there is no memory has not happened."""
    in_a_process("atomic_limits.py", executors, what)


def test_there_are_eight_chains():
    """Those that the long form runs, too."""
    assert len({scene.name.partition(",")[0] for scene in SCENES}) >= 8
