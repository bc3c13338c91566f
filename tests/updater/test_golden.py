"""Files of every format that was written keep loading; a layout changes only with its number."""

import json
from pathlib import Path

import golden_run
import pytest
import torch

import gradchain as gch
from gradchain.core.state import State
from gradchain.updater import files, saved

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(f.name for f in GOLDEN.iterdir() if f.suffix in (".pt", ".safetensors"))


def test_every_format_has_its_file():
    """Whoever raises the number adds a file, by `python tests/updater/golden_run.py`, before the code changes again."""
    assert [f"format{n}.pt" for n in range(1, files.FORMAT + 1)] == [f for f in FILES if f.endswith(".pt")]


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_format_goes_on(name):
    """Loaded by the code of today, the run goes on as it did for the code that wrote it."""
    if name.endswith(".safetensors"):
        pytest.importorskip("safetensors")
    model, updater = golden_run.run()
    assert updater.load(GOLDEN / name) == {"epoch": 1}
    assert updater.clocks == {"step": 2, "micro": 5, "epoch": 1}
    after = golden_run.train(model, updater, 5, 11)
    expected = json.loads((GOLDEN / "after.json").read_text())
    for mine, theirs in zip(after, expected, strict=True):
        torch.testing.assert_close(torch.tensor(mine), torch.tensor(theirs), rtol=0, atol=1e-7)
        assert max(abs(a - b) for a, b in zip(mine, theirs, strict=True)) < 1e-12


def states_of(kind):
    for cls in kind.__subclasses__():
        if cls.__module__.startswith("gradchain."):
            yield cls
        yield from states_of(cls)


def layout():
    """What a file is made of, a line each: the keys of its parts, and the fields of every state."""
    _model, updater = golden_run.run()
    contents = updater.contents()
    lines = [f"file {files.FORMAT}, state {saved.FORMAT}", f"part: {sorted(contents)}"]
    lines += [f"model: {sorted(contents['model'])}", f"state: {sorted(contents['state'])}"]
    lines += [f"{link}: {sorted(fields)}" for link, fields in contents["state"]["links"].items()]
    for rule in gch.rules.__all__:
        getattr(gch.rules, rule)  # its module loads, and with it the state
    own = {cls.__name__: cls for cls in states_of(State)}
    return lines + [f"{name}: {sorted({*own[name].own} - own[name].added)}" for name in sorted(own)]


def test_a_layout_changes_only_with_its_number():
    """Fields of a state that are gone, renamed or new are another layout: files of before would not load.

    New states are none. Raise FORMAT, keep reading the one before, and write the layout anew as this test shows it.
    A field that files of before need not have is in `added`, and not here.
    """
    found = layout()
    file = GOLDEN / f"layout_{files.FORMAT}_{saved.FORMAT}.txt"
    expected = file.read_text().splitlines() if file.exists() else []
    assert expected and [line for line in expected if line not in found] == [], "\n".join(found)
