"""The command: its picture, its folders, its bar, its errors, and what Ctrl-C leaves."""

import importlib.util
import io
import re
import shlex
import signal
import struct
import sys

import pytest
from later import later

from gradchain.demo import training
from gradchain.demo.__main__ import main
from gradchain.demo.picture import draw, means

SHORT = ["--epochs", "1", "--quiet"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Default folders are made here."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def digest(printed):
    return re.search(r"sha256 ([0-9a-f]{64})", printed)[1]


def check_is_picture(path):
    """A PNG of some 1200 pixels to a side, with more on it than one colour."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert all(1000 <= side <= 2000 for side in struct.unpack(">II", head[16:]))
    pixels = later("matplotlib.image").imread(path)[..., :3]
    assert 0.01 < (pixels < 0.9).any(axis=2).mean() < 0.5  # ink on white


def test_a_run_leaves_a_checkpoint_and_a_picture_whose_paths_it_prints(home, capsys):
    assert main([*SHORT, "--out", "here"]) == 0
    printed = capsys.readouterr().out
    assert f"checkpoint         {home / 'here' / 'checkpoint.pt'}" in printed
    assert f"picture            {home / 'here' / 'training.png'}" in printed
    check_is_picture(home / "here" / "training.png")
    assert sorted(path.name for path in (home / "here").iterdir()) == ["checkpoint.pt", "training.png"]


def test_an_empty_picture_is_seen(tmp_path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8))
    FigureCanvasAgg(figure)
    figure.savefig(tmp_path / "empty.png", dpi=150)
    with pytest.raises(AssertionError):
        check_is_picture(tmp_path / "empty.png")


def test_a_picture_of_an_unfinished_epoch_has_no_test_loss(tmp_path):
    history = {"loss": [2.0, 1.5, 1.0], "learning_rate": [0.1], "norm": [0.5], "test_loss": [], "accuracy": []}
    draw(history, tmp_path / "a.png", title="a", window=2, per_epoch=90, bound=1.0)
    check_is_picture(tmp_path / "a.png")


def test_means_of_groups():
    assert means([1.0, 3.0, 5.0], 2) == [2.0, 5.0]
    assert means([], 2) == []


def test_runs_are_numbered_and_resume_takes_the_newest(home, capsys):
    """A finished run that is resumed prints what it had; a new run never writes over an old one."""
    assert main([*SHORT, "--seed", "1"]) == main([*SHORT, "--seed", "2"]) == 0
    first, second = re.findall(r"sha256 (\w+)", capsys.readouterr().out)
    assert first != second
    assert sorted(path.name for path in (home / "gradchain-demo").iterdir()) == ["run-1", "run-2"]
    assert main([*SHORT, "--seed", "2", "--resume"]) == 0
    assert digest(capsys.readouterr().out) == second
    assert sorted(path.name for path in (home / "gradchain-demo").iterdir()) == ["run-1", "run-2"]


def refused(arguments, capsys):
    """What is said of them: one line, and exit code 2."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.removesuffix("\n").removeprefix("python -m gradchain.demo: ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--epochs", "0"], "argument --epochs: must be a whole number from 1 to 10000, got '0'."),
        (["--epochs", "1.5"], "argument --epochs: must be a whole number from 1 to 10000, got '1.5'."),
        (["--seed", "-1"], "argument --seed: must be a whole number of at least 0, got '-1'."),
        (["--seed", "²"], "argument --seed: must be a whole number of at least 0, got '²'."),
        (["--checkpoint-every", "0"], "argument --checkpoint-every: must be a whole number of at least 1, got '0'."),
        (["--epoch", "3"], "unrecognized arguments: --epoch 3"),
        (["--out"], "argument --out: expected one argument"),
        (["--compare", "--resume"], "--resume is for training: --compare writes and reads no files."),
        (["--compare", "--out", "x"], "--out is for training: --compare writes and reads no files."),
        (["--out", "file"], "--out: cannot make the folder file: File exists."),
        (["--out", "file/x"], "--out: cannot make the folder file/x: Not a directory."),
    ],
    ids=" ".join,
)
def test_a_bad_option_is_answered_with_a_sentence(arguments, sentence, home, capsys):
    (home / "file").write_text("")
    assert refused(arguments, capsys) == sentence


def test_a_checkpoint_is_not_destroyed_silently(home, capsys):
    main([*SHORT, "--out", "here"])
    before = (home / "here" / "checkpoint.pt").read_bytes()
    capsys.readouterr()
    said = refused([*SHORT, "--out", "here"], capsys)
    assert said == "here has a run already: add --resume to go on with it, or choose another --out."
    assert (home / "here" / "checkpoint.pt").read_bytes() == before


def test_a_run_goes_on_with_its_own_settings_only(home, capsys):
    main([*SHORT, "--out", "here"])
    capsys.readouterr()
    said = refused([*SHORT, "--out", "here", "--resume", "--seed", "4"], capsys)
    assert said == "here has a run with --seed 0 --epochs 1: give these to go on with it."


def test_a_damaged_checkpoint_is_answered_with_a_sentence(home, capsys):
    main([*SHORT, "--out", "here"])
    capsys.readouterr()
    path = home / "here" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    assert "cannot be read: it is cut short" in refused([*SHORT, "--out", "here", "--resume"], capsys)


def test_a_missing_package_is_named_with_the_command(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else find(name))
    said = refused(SHORT, capsys)
    assert said == f"the demo needs scikit-learn: {shlex.quote(sys.executable)} -m pip install scikit-learn"


def interrupted_at(monkeypatch, number):
    """Ctrl-C while the loss of this micro-batch is computed."""
    criterion, calls = training.criterion, []

    def interrupting(outputs, labels):
        calls.append(1)
        if len(calls) == number:
            signal.raise_signal(signal.SIGINT)
        return criterion(outputs, labels)

    monkeypatch.setattr(training, "criterion", interrupting)


def test_ctrl_c_saves_and_says_how_to_go_on(home, capsys, monkeypatch):
    """The command that is printed ends with the bits of a run that was not stopped; the handler is put back."""
    assert main([*SHORT, "--out", "undisturbed"]) == 0
    expected = digest(capsys.readouterr().out)
    handler = signal.getsignal(signal.SIGINT)
    interrupted_at(monkeypatch, 50)  # inside a window
    assert main([*SHORT, "--out", "stopped here"]) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    said = capsys.readouterr().out
    assert "Stopped after 50 of 90 micro-batches, and saved." in said
    command = shlex.split(said.splitlines()[-1])
    assert command[:3] == ["python", "-m", "gradchain.demo"]
    assert main(command[3:]) == 0
    printed = capsys.readouterr().out
    assert "Going on from micro-batch 50" in printed
    assert digest(printed) == expected


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_there_is_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert main(["--epochs", "1"]) == 0
    assert "micro-batches/s" in terminal.getvalue()
    assert "epoch 1 of 1" not in capsys.readouterr().out


def test_there_are_plain_lines_elsewhere(capsys):
    assert main(["--epochs", "1"]) == 0
    captured = capsys.readouterr()
    assert re.search(r"^epoch 1 of 1: test loss \d\.\d{3}, test accuracy \d+\.\d%$", captured.out, flags=re.M)
    assert captured.err == ""
    assert "\r" not in captured.out


def test_quiet_prints_what_came_out_only(capsys):
    assert main(SHORT) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 5
    assert captured.err == ""
