"""A checkpoint or a config is data: nothing in it is unpickled, imported or run."""

from __future__ import annotations

import ast
import hashlib
import io
import pickle
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradchain as gch
from gradchain.adapters import mmengine
from gradchain.updater import sealed

ROOT = Path(gch.__file__).parent
RUNS_CODE = {"eval", "exec", "compile", "__import__", "import_module", "system", "popen"}
# who may, and why: everything else reads data, or is data
MAY = {
    "_lazy.py": "a module of gradchain, by its own lists",
    "words/names.py": "a module of gradchain, by its own lists",
    "adapters/taking/reader.py": "makes tensors, dicts and plain values; any other name is an empty object",
    "adapters/torch_names.py": "a package of optimizers, by a fixed list",
    "cli/imports.py": "what the user's own command line names",
    "cli/show.py": "a program that the user gave to be run",
    "engine/executors/compiled.py": "what gradchain printed itself",
    "engine/executors/triton.py": "what gradchain printed itself",
}


def calls(tree: ast.AST) -> list[str]:
    """Calls in a file that run code, import by name, or unpickle."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [n for n in names if n.partition(".")[0] in ("pickle", "marshal", "shelve", "dill", "cloudpickle")]
        if not isinstance(node, ast.Call):
            continue
        of, name = (
            (ast.unparse(node.func.value), node.func.attr)
            if isinstance(node.func, ast.Attribute)
            else ("", getattr(node.func, "id", ""))
        )
        module_mode = name == "eval" and of and not node.args  # model.eval()
        if name in RUNS_CODE and of not in ("re", "torch") and not module_mode:
            found.append(name)
        if (of, name) == ("torch", "load"):
            only = [k.value for k in node.keywords if k.arg == "weights_only"]
            found += [] if only and getattr(only[0], "value", None) is True else ["torch.load"]
    return found


def test_only_those_named_here_run_code_or_import_by_name():
    files = {f.relative_to(ROOT).as_posix(): calls(ast.parse(f.read_text())) for f in sorted(ROOT.rglob("*.py"))}
    assert {name: found for name, found in files.items() if found and name not in MAY} == {}
    assert [name for name in MAY if not files[name]] == [], "an exception that nothing needs any more goes"


@pytest.mark.parametrize(
    "line", ["torch.load(f)", "torch.load(f, weights_only=False)", "import pickle", "eval(x)", "import_module(x)"]
)
def test_such_a_line_is_seen(line):
    assert calls(ast.parse(line))
    assert not calls(ast.parse("torch.load(f, weights_only=True)"))


# hostile files


class Runs:
    """Unpickled, it makes a file: the trace that code was run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def bound() -> tuple[nn.Module, gch.Updater]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return model, gch.chain(gch.scale_by_adam(), gch.scale_by_learning_rate(0.1)).bind(model)


def written(path: Path, contents: Any) -> None:
    """A file whose checksum is right, whatever it holds."""
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    path.write_bytes(sealed_again(buffer.getvalue()))


def sealed_again(whole: bytes) -> bytes:
    return whole + sealed._MARK + hashlib.blake2b(whole, digest_size=32).digest()


def compressed(whole: bytes) -> bytes:
    """The same zip with a gigabyte of zeros in it, which takes a megabyte."""
    out = io.BytesIO(whole)
    with zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("archive/data/9", "w") as part:
        for _ in range(64):
            part.write(bytes(1 << 24))
    return out.getvalue()


@pytest.mark.parametrize("how", ["plain pickle", "in the zip", "in the state", "a class of a module", "a bomb"])
def test_a_hostile_file_is_refused_and_runs_nothing(how, tmp_path):
    model, updater = bound()
    updater.update(model(torch.ones(1, 3)).sum())
    path, trace = tmp_path / "run.pt", tmp_path / "trace"
    updater.save(path)
    contents = torch.load(path, weights_only=True)
    if how == "plain pickle":
        path.write_bytes(pickle.dumps(Runs(trace)))
    elif how == "in the zip":
        written(path, Runs(trace))
    elif how == "in the state":
        contents["parts"]["updater"]["state"]["clocks"] = Runs(trace)
        written(path, contents)
    elif how == "a class of a module":
        contents["extra"]["x"] = subprocess.Popen
        written(path, contents)
    else:
        path.write_bytes(sealed_again(compressed(path.read_bytes()[: -sealed._SEAL])))
    before = str(updater.state_dict())
    for read in (updater.load, gch.read_weights):
        with pytest.raises(ValueError, match=r"cannot be read: "):
            read(path)
    assert not trace.exists() and str(updater.state_dict()) == before


@pytest.mark.parametrize(
    "value",
    [
        {"link": "from_torch", "optimizer": "heavyball.ForeachAdamW", "lr": 0.1},
        {"rule": "multiply", "args": [1.0, {"link": "stateless", "fn": {"function": "os:system"}}]},
        {"schedule": "by", "args": ["step", {"dtype": "manual_seed"}]},
        {"schedule": "by", "args": ["step", {"function": "os:getpid"}]},
        {"schedule": "by", "args": ["step", {"class": "torch.nn.x:functional"}]},
        {"class": "os:system"},
        {"dtype": "load"},
    ],
    ids=str,
)
def test_an_override_in_a_file_calls_and_imports_nothing(value):
    """It is refused or left out, and is in force in no case."""
    _, updater = bound()
    saved = {
        **updater.state_dict(),
        "overrides": {"scale_by_learning_rate.learning_rate": {"value": value, "factor": None}},
    }
    there, seed = set(sys.modules), torch.initial_seed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert "was not restored" in str(updater.load_state_dict(saved).overrides)
        except ValueError as error:
            assert "cannot be" in str(error)
    assert updater.hyperparams()["scale_by_learning_rate.learning_rate"] == 0.1
    assert torch.initial_seed() == seed
    assert {m for m in set(sys.modules) - there if m.partition(".")[0] != "gradchain"} == set()


def test_a_config_runs_nothing(tmp_path):
    """What would run is left unknown, or refused in a sentence."""
    trace, path = tmp_path / "trace", tmp_path / "config.py"
    lines = [
        f"import os\nos.system('touch {trace}')\noptimizer = dict(type='SGD', lr=0.1)\n",
        f"optimizer = dict(type='SGD', lr=__import__('os').system('touch {trace}'))\n",
        f"optimizer = dict(type='SGD', lr=eval(\"open('{trace}', 'w')\"))\n",
        f"optimizer = dict(lr=[c for c in ().__class__.__base__.__subclasses__()], x=open('{trace}', 'w'))\n",
        f"class A:\n    x = open('{trace}', 'w')\n",
        f"def f():\n    open('{trace}', 'w')\nf()\n",
    ]
    for text in lines:
        path.write_text(text)
        try:
            mmengine.read_config(path)
        except ValueError as error:
            assert str(error).startswith("mmengine.read_config: ")
        assert not trace.exists(), text
