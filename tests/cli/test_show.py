"""`python -m gradchain show`: every kind of file, and what is refused in a sentence with exit code 2."""

import json
import math
import os
import pickle
import struct
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import gradchain as gch
from gradchain.__main__ import main
from gradchain.cli.show import show
from gradchain.see.curves import drawn

CHAIN = """
import gradchain as gch
rate = gch.linear(0.0, 0.5, 10).then(gch.cosine(0.5, 0.0, 30))
"""
CONFIG = """
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4))
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10),
                   dict(type='MultiStepLR', milestones=[2, 3], by_epoch=True)]
train_cfg = dict(max_epochs=4)
"""
RATE = "scale_by_learning_rate.learning_rate"


@pytest.fixture(autouse=True)
def as_before():
    """A file that is run leaves paths, arguments and modules as they were."""
    before = sys.path[:], sys.argv[:], {*sys.modules}
    yield
    assert (sys.path, sys.argv) == before[:2]
    assert "program" not in sys.modules


def file(tmp_path, text, name="program.py"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def row(said, name):
    """A row of the table: its numbers."""
    (line,) = [line for line in said.splitlines() if line.strip().startswith(name) and ":" not in line]
    return line.strip().removeprefix(name).split()


# every kind


PROGRAMS = {
    "a function": "def chain():\n    return gch.sgd(rate)",
    "a chain": "chain = gch.sgd(rate)",
    "a chain under another name": "tx = gch.sgd(rate)",
    "one chain under two names": "a = b = gch.sgd(rate)",
    "a function of an updater": "import torch\ndef updater(): return gch.sgd(rate).bind(torch.nn.Linear(2, 1))",
    "an updater": "import torch\nchain = gch.sgd(rate)\nupdater = chain.bind(torch.nn.Linear(2, 1))",
    "training is not run": "tx = gch.sgd(rate)\nif __name__ == '__main__':\n    raise SystemExit(3)",
    "a link of its own": (
        "class half(gch.Transform):\n    descends = False\n    by: gch.Hyper = gch.Hyper(0.5)\n"
        "    def update(self, u, state, ctx):\n        return u * self.by, state\n"
        "chain = gch.chain(half(), gch.sgd(rate))"
    ),
    "the class by its name": "from gradchain import chain\ntx = gch.sgd(rate)",
    "arguments are not ours": "import sys\nassert len(sys.argv) == 1\ntx = gch.sgd(rate)",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_run_and_its_chain_told(name, tmp_path, capsys):
    assert main(["show", file(tmp_path, CHAIN + PROGRAMS[name]), "--at", "0,5,10,39"]) == 0
    said = capsys.readouterr().out
    assert "gch.scale_by_learning_rate(gch.linear(0.0, 0.5, 10).then(gch.cosine(0.5, 0.0, 30)))" in said
    numbers = [*map(float, row(said, RATE))]
    cosine = gch.cosine(0.5, 0.0, 30)(29)
    assert all(map(lambda a, b: math.isclose(a, b, rel_tol=1e-5), numbers, [0.0, 0.25, 0.5, cosine]))


def test_a_module_beside_a_program_is_found(tmp_path):
    file(tmp_path, "from gradchain import sgd\ntx = sgd(0.25)", "beside_it.py")
    said = show(file(tmp_path, "import gradchain\nfrom beside_it import tx"), iters=4)
    sys.modules.pop("beside_it")
    assert "gch.scale_by_learning_rate(0.25)" in said


def test_one_of_several_is_named(tmp_path):
    path = file(tmp_path, CHAIN + "a = gch.sgd(rate)\nb = gch.adam(rate)\ndef c(): return gch.lion(rate)")
    assert "scale_by_adam" in show(path, name="b") and "scale_by_lion" in show(path, name="c")
    with pytest.raises(KeyError, match=r"has several chains: name one with --name: a, b"):
        show(path)
    with pytest.raises(KeyError, match=r"has no 'd'\. It has: a, b"):
        show(path, name="d")


def test_the_columns_are_where_something_begins_or_ends(tmp_path):
    said = show(file(tmp_path, CHAIN + "tx = gch.adamw(rate, weight_decay=gch.multiply(0.1, (gch.norm, 0.0)))"))
    assert row(said, "at update") == ["0", "10", "40", "41"]
    assert row(said, "the others") == ["0.1"] and row(said, "norm x0") == ["0"]
    assert row(said, "scale_by_adam  ") == ["2", "times", "the", "weights"]


def test_an_updater_says_its_parameters_groups_and_state(tmp_path):
    program = """
import torch
net = torch.nn.Linear(3, 2)
updater = gch.adamw(gch.multiply(rate, (gch.bias, 2.0))).bind(net)
for _ in range(3):
    updater.update(net(torch.ones(4, 3)).square().mean())
updater.override("b1", 0.8)
"""
    said = show(file(tmp_path, CHAIN + program))
    assert "2 parameters of 8 elements" in said and "at step 3, micro 3" in said
    assert "override of scale_by_adam.b1: 0.8" in said and row(said, "scale_by_adam.b1") == ["0.8"]
    assert row(said, "the others (1)")[:2] == ["0", "0.5"] and row(said, "bias x2 (1)")[:2] == ["0", "1"]
    assert "state: 64 bytes" in said  # two moments of eight float32


def saved(tmp_path, name="run.pt", **options):
    net = nn.Linear(3, 2)
    lr = gch.multiply(gch.linear(0.0, 0.5, 10), (gch.norm | gch.bias, 2.0))
    updater = gch.adamw(lr).bind(net)
    updater.update(net(torch.ones(4, 3)).square().mean())
    updater.override("learning_rate", factor=0.5)
    updater.save(tmp_path / name, **options)
    return str(tmp_path / name)


@pytest.mark.parametrize("name", ["run.pt", "run.safetensors"])
@pytest.mark.parametrize("weights", ["all", "none"])
def test_a_checkpoint_is_read_without_its_model(name, weights, tmp_path, capsys):
    """Groups are told by their rules: which parameters a selector matches only the model knows."""
    assert main(["show", saved(tmp_path, name, weights=weights), "--at", "0,5", "--save", str(tmp_path / "a.png")]) == 0
    said = capsys.readouterr().out
    assert "gch.multiply(gch.linear(0.0, 0.5, 10), (gch.norm | gch.bias, 2.0))" in said and "at step 1, micro 1" in said
    assert row(said, "the others") == ["0", "0.125"] and row(said, "norm | bias x2") == ["0", "0.25"]
    assert "override of scale_by_learning_rate.learning_rate: times 0.5" in said
    assert "state: 64 bytes" in said and (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_a_checkpoint_of_a_group_has_every_updater(tmp_path):
    both = gch.group(g=gch.sgd(0.1, momentum=0.9).bind(nn.Linear(2, 1)), d=gch.adam(0.2).bind(nn.Linear(1, 1)))
    both.save(tmp_path / "gan.pt")
    said = show(str(tmp_path / "gan.pt"), iters=5)
    assert "g:\ngch.chain(" in said and row(said, f"d/{RATE}") == ["0.2"]


def test_a_chain_as_json_is_read(tmp_path):
    lr = gch.multiply(gch.linear(0.0, 0.5, 10), (gch.named("head.*"), 2.0))
    said = show(file(tmp_path, json.dumps(gch.to_config(gch.sgd(lr))), "chain.json"), at=[5])
    assert row(said, 'named("head.*") x2') == ["0.5"]


@pytest.mark.parametrize("kind", ["py", "json"])
def test_a_config_of_openmmlab_is_read(kind, tmp_path, capsys):
    """It is as long as it says, and nothing of it is run."""
    text = CONFIG + "\nimport os\nos.abort()\n"
    if kind == "json":
        held = {}
        exec(CONFIG, held)
        text = json.dumps({name: held[name] for name in ("optim_wrapper", "param_scheduler", "train_cfg")})
    path = file(tmp_path, text, f"config.{kind}")
    assert main(["show", path, "--epoch-length", "10"]) == 0
    said = capsys.readouterr().out
    assert row(said, "at update") == ["0", "9", "20", "30", "39"]
    assert [*map(float, row(said, RATE))] == [0.01, 0.1, 0.01, 0.001, 0.001]


def test_the_length_of_a_run_is_in_micro_batches(tmp_path):
    path = file(tmp_path, "import gradchain as gch\ntx = gch.chain(gch.accumulate(4), gch.sgd(gch.by('epoch', "
                          "gch.linear(1.0, 0.0, 10))))")  # fmt: skip
    assert row(show(path, epochs=10, epoch_length=8), "at update") == ["0", "19"]
    assert row(show(path, epochs=10, epoch_length=8, at=[0, 1, 2, 3, 19]), RATE) == ["1", "1", "0.9", "0.9", "0.1"]
    assert row(show(path, iters=9, epoch_length=8), "at update") == ["0", "2"]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_picture_is_of_the_kind_that_its_name_says(suffix, tmp_path):
    out = tmp_path / f"picture{suffix}"
    show(file(tmp_path, CHAIN + "tx = gch.sgd(rate)"), save=str(out))
    assert out.read_bytes()[:5] == {".png": b"\x89PNG\r", ".svg": b"<?xml", ".pdf": b"%PDF-"}[suffix]


# what is refused


class Evil:
    def __reduce__(self):
        return os.abort, ()


def fifo(tmp_path, name):
    os.mkfifo(tmp_path / name)
    return str(tmp_path / name)


def torch_saved(tmp_path, contents, **options):
    torch.save(contents, tmp_path / "other.pt", **options)
    return str(tmp_path / "other.pt")


def damaged(tmp_path):
    path = saved(tmp_path)
    with open(path, "r+b") as opened:
        opened.seek(600)
        opened.write(b"\xff" * 8)
    return path


REFUSED = {
    "no such file": (lambda p: str(p / "none.py"), "there is no file"),
    "a folder": (str, "must be a regular file"),
    "a FIFO as a program": (lambda p: fifo(p, "a.py"), "must be a regular file"),
    "a FIFO as a checkpoint": (lambda p: fifo(p, "a.pt"), "must be a regular file"),
    "a device": (lambda p: "/dev/zero", "must be a regular file"),
    "a name that is none": (lambda p: "a\0b", "must be the name of one"),
    "no chain": (lambda p: file(p, "import gradchain\nx = 3"), "must have a function chain(), a chain or an updater"),
    "no gradchain": (lambda p: file(p, "import os\nos.abort()"), "It was not run, for it does not import gradchain"),
    "an empty program": (lambda p: file(p, ""), "must have a function chain()"),
    "no Python": (lambda p: file(p, "import gradchain\n)"), "must be Python: unmatched"),
    "deep Python": (lambda p: file(p, "(" * 5000), "must be Python"),
    "bytes": (lambda p: file(p, b"\xff\xfe\x00"), "must be text in UTF-8"),
    "a program that fails": (
        lambda p: file(p, "import gradchain\n1 / 0"), "raised ZeroDivisionError: division by zero, in line 2.",
    ),
    "a program that leaves": (
        lambda p: file(p, "import gradchain\nraise SystemExit(0)"), "raised SystemExit: 0, in line 2.",
    ),
    "a chain() that fails": (
        lambda p: file(p, "import gradchain\ndef chain():\n    return gradchain.sgd(-1)"),
        "chain() of", "must be in [0, inf), got -1., in line 3.",
    ),
    "a chain() of nothing": (
        lambda p: file(p, "import gradchain\ndef chain(): pass"), "must be a chain, an updater or a group",
    ),
    "a schedule of nothing": (
        lambda p: file(p, "import gradchain as g\ntx = g.sgd(lambda step: None)"),
        "scale_by_learning_rate.learning_rate must be a number at update 0, got None",
    ),
    "a schedule that fails": (
        lambda p: file(p, "import gradchain as g\ntx = g.sgd(lambda step: 1 / (step - 3))"),
        "a schedule raised ZeroDivisionError: division by zero",
    ),
    "a checkpoint of torch": (lambda p: torch_saved(p, nn.Linear(2, 1).state_dict()), "is another file"),
    "an optimizer of torch": (
        lambda p: torch_saved(p, {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}),
        "is another file",
    ),
    "an old file of torch": (
        lambda p: torch_saved(p, {"w": torch.ones(2)}, _use_new_zipfile_serialization=False),
        "no checkpoint of gradchain",
    ),
    "code in a file of torch": (lambda p: torch_saved(p, Evil()), "no checkpoint of gradchain"),
    "a pickle": (lambda p: file(p, pickle.dumps(Evil()), "a.pkl"), "no checkpoint of gradchain"),
    "of safetensors, another's": (
        lambda p: file(p, struct.pack("<Q", 2) + b"{}", "m.safetensors"), "no checksum",
    ),
    "a damaged checkpoint": (damaged, "it is damaged"),
    "half a checkpoint": (
        lambda p: file(p, Path(saved(p)).read_bytes()[:700], "half.pt"), "cut short",
    ),
    "a picture": (lambda p: file(p, b"\x89PNG\r\n", "a.png"), "no checkpoint of gradchain"),
    "JSON of something else": (lambda p: file(p, '{"a": 1}', "a.json"), "must have optim_wrapper"),
    "JSON that is none": (lambda p: file(p, "{", "a.json"), ""),
    "deep JSON": (lambda p: file(p, "[" * 100_000, "a.json"), ""),
    "a chain of somebody's": (lambda p: file(p, '{"link": "their:link"}', "a.json"), "'their:link' is not gradchain's"),
    "a chain out of range": (
        lambda p: file(p, '{"link": "scale_by_adam", "b1": 7}', "a.json"), "the chain cannot be read", "got 7",
    ),
    "a chain with no such argument": (lambda p: file(p, '{"link": "scale_by_adam", "x": 7}', "a.json"), "be read"),
    "a config without its length": (lambda p: file(p, CONFIG.replace("train_", ""), "c.py"), "how long the run is"),
    "a config in epochs": (lambda p: file(p, CONFIG, "c.py"), "--epoch-length must be given"),
    "a config without its base": (lambda p: file(p, "_base_ = './missing.py'", "c.py"), "missing.py"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_chain_is_refused_in_a_sentence(name, tmp_path, capsys):
    make, *sentences = REFUSED[name]
    path = make(tmp_path)
    assert main(["show", path]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and len(said.err) > 20
    assert all(sentence in said.err for sentence in sentences), said.err


def test_the_command_says_which_picture_it_wrote_and_draws_what_is_named(tmp_path, capsys, monkeypatch):
    given = []
    monkeypatch.setattr(
        "gradchain.cli.show.drawn", lambda run, names, **more: given.append(names) or drawn(run, names, **more)
    )
    path, out = file(tmp_path, "import gradchain as gch\ntx = gch.adamw(gch.linear(1.0, 0.0, 10))"), tmp_path / "a.svg"
    assert main(["show", path, "--names", "b1,weight_decay", "--save", str(out)]) == 0
    assert capsys.readouterr().out.endswith(f"\n\nthe picture is in {out}\n") and given == [["b1", "weight_decay"]]
    assert out.exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--epochs", "3"], "show: --epoch-length must be given with --epochs"),
        (["--epochs", "3", "--iters", "4"], "show: one of --epochs and --iters must be given, got both."),
        (["--at", "99"], "show: at must be updates of the run, from 0 to 41, got 99."),
        (["--names", "b1"], "show: --names must come with --save"),
        (["--names", "nothing", "--save", "a.png"], "show: there is no 'nothing'. There are: scale_by"),
        (["--save", "a.docx"], "show: --save must name a .png, .svg or .pdf file, got 'a.docx'."),
        (["--save", "/no/such/folder/a.png"], "show: '/no/such/folder/a.png' cannot be written: No such file"),
        (["--name", "x"], "show: "),
    ],
)
def test_options_that_do_not_go_are_refused(options, sentence, tmp_path, capsys):
    assert main(["show", file(tmp_path, CHAIN + "tx = gch.sgd(rate)"), *options]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(sentence) and said.err.count("\n") == 1


@pytest.mark.parametrize(
    "options", [["--at", "1,x"], ["--at", "-1"], ["--iters", "0"], ["--at", ""], ["--names", "b1,"], []]
)
def test_bad_options_are_answered_by_the_reader_of_options(options, capsys):
    with pytest.raises(SystemExit) as left:
        main(["show", *options])
    assert left.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_clock_that_nobody_told_of_is_said(tmp_path, capsys):
    program = "import gradchain as gch\ntx = gch.sgd(gch.by('samples', gch.linear(1.0, 0.0, 10)))"
    assert main(["show", file(tmp_path, program)]) == 2
    assert "how 'samples' goes" in capsys.readouterr().err
    program = program.replace("samples", "epoch")
    assert main(["show", file(tmp_path, program)]) == 2
    assert "--epoch-length must be given, for the chain reads the clock 'epoch'" in capsys.readouterr().err
    assert main(["show", file(tmp_path, program), "--epoch-length", "5"]) == 0


def test_a_number_that_is_too_large_has_its_bound_said(capsys):
    with pytest.raises(SystemExit):
        main(["show", "a.py", "--at", "1000000000000"])
    assert "must be a whole number from 0 to 2147483647, got '1000000000000'" in capsys.readouterr().err


# the log of a run

LOG = [
    {"update": i, "loss": 4.0 / i, "learning_rate": 0.1, "clip_by_norm.norm": float(i), "skipped": i == 3}
    for i in range(1, 6)
]


def log(folder, *lines):
    path = folder / "run.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in (*LOG, *lines)))
    return str(path)


def test_the_log_of_a_run_is_told_and_drawn(tmp_path, capsys):
    path, picture = log(tmp_path, {"mode": "val", "update": 5, "accuracy": 0.5}), tmp_path / "run.png"
    assert main(["show", path, "--save", str(picture)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["a", "run", "of", "6", "records"]
    assert ["loss", "5", "1", "5", "4", "0.8", "0.8", "4"] in lines
    assert ["clip_by_norm.norm", "5", "1", "5", "1", "5", "1", "5"] in lines
    assert ["skipped", "updates", "1", "1", "5"] in lines and ["accuracy", "1", "5", "5", *["0.5"] * 4] in lines
    assert picture.read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize(
    ("write", "options", "sentence"),
    [
        (log, ["--at", "1"], "show: --at is for a chain, and "),
        (log, ["--epoch-length", "2"], "show: --epoch-length is for a chain, and "),
        (log, ["--save", "a.docx"], "show: --save must name a .png, .svg or .pdf file, got 'a.docx'."),
        (log, ["--save", "/no/such/folder/a.png"], "show: '/no/such/folder/a.png' cannot be written: No such file"),
        (lambda folder: file(folder, "no json\n\n", "run.jsonl"), [], "see.training: "),
        (lambda folder: file(folder, '{"name": "x"}\n', "run.jsonl"), [], "see.training: expected records with"),
        (lambda folder: str(folder / "none.jsonl"), [], "show: there is no file"),
    ],
)  # fmt: skip
def test_what_is_no_log_of_a_run_is_refused_in_a_sentence(write, options, sentence, tmp_path, capsys):
    assert main(["show", write(tmp_path), *options]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(sentence) and said.err.count("\n") == 1
