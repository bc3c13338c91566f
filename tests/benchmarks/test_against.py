"""Two versions of gradchain in one run: each is the one that it should be, and a failure is told. No time counts."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import against
from benchmarks.against import Failed, Run, Series, Version
from benchmarks.recipes import OUTLIERS

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks pin themselves to a core")

HEAD = subprocess.run(
    ("git", "-C", str(ROOT), "rev-parse", "HEAD"), capture_output=True, text=True, check=False
).stdout.strip()
in_a_repository = pytest.mark.skipif(not HEAD, reason="this is a copy without its history")


def run(path: Path, *words: str):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *words, "--output", str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.fixture
def versions(tmp_path):
    """A folder with gradchain twice; what was asked to be added to the end of then's front door is there."""

    def make(addition=""):
        for side in against.SIDES:
            copy = tmp_path / side / "gradchain"
            shutil.copytree(ROOT / "gradchain", copy, ignore=shutil.ignore_patterns("__pycache__"))
        door = tmp_path / "then" / "gradchain" / "__init__.py"
        door.write_text(door.read_text(encoding="utf-8") + addition, encoding="utf-8")
        return tmp_path

    return make


@in_a_repository
def test_a_commit_and_the_tree_are_measured_in_one_run(tmp_path):
    cells = ("--workload", "d", "--recipe", "R0", "--recipe", "R1")
    done = run(tmp_path / "result.json", "--against", "HEAD", *cells, "--rounds", "2", "--quick")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["against"]["commit"] == HEAD
    assert [(row["workload"], row["recipe"], row["per"]) for row in result["against"]["rows"]] == [
        ("d", "R0", 4),
        ("d", "R1", 1),
    ]
    for row in result["against"]["rows"]:
        assert row["rounds"] == [2] and len(row["by_pair"]) == 1
        for key in ("now_over_then", "now_over_then_mean", "now_over_then_whole"):
            low, middle, upper = row[key]
            assert 0 < low <= middle <= upper
        for side in against.SIDES:
            assert 0 < row[f"{side}_part_us"][1] < row[f"{side}_whole_us"][1]
            assert row["ran"][side]
        assert row["parity"]["outliers"] <= row["parity"]["allowed"] == OUTLIERS
        assert row["verdict"] in done.stdout
    assert "(d) R0" in done.stdout and "of 2 no slower" in done.stdout


@in_a_repository
def test_a_commit_that_is_none_is_a_sentence(tmp_path):
    done = run(tmp_path / "result.json", "--against", "no-such-commit", "--workload", "d", "--recipe", "R1")
    assert done.returncode == 2
    assert done.stdout.startswith("--against: ") and "no commit of this repository has that name" in done.stdout
    assert "Traceback" not in done.stderr


def test_peers_and_targets_are_no_part_of_it(tmp_path):
    for words in (("--targets",), ("--peer", "torch fused")):
        done = run(tmp_path / "result.json", "--against", "HEAD", *words)
        assert done.returncode == 2 and "no part of it" in done.stderr


@in_a_repository
def test_then_is_the_commit_and_now_is_the_tree(tmp_path):
    assert against.unpacked("HEAD", tmp_path) == HEAD
    listed = subprocess.run(
        ("git", "-C", str(ROOT), "ls-tree", "-r", "HEAD", "gradchain"), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    then = {str(p.relative_to(tmp_path / "then")) for p in (tmp_path / "then").rglob("*") if p.is_file()}
    assert then == {line.partition("\t")[2] for line in listed}
    for path in (ROOT / "gradchain").rglob("*.py"):
        assert (tmp_path / "now" / path.relative_to(ROOT)).read_bytes() == path.read_bytes()


def test_each_process_has_the_gradchain_of_its_folder(versions):
    folder = versions('\n__version__ = "0.0.then"\n')
    found = {}
    for side in against.SIDES:
        version = Version(folder / side, seed=0)
        found[side] = version.facts
        version.stop()
    assert found["then"]["version"] == "0.0.then"
    assert found["now"]["version"] != "0.0.then"
    assert all(Path(facts["file"]).is_relative_to(folder / side) for side, facts in found.items())


def test_a_folder_without_gradchain_is_refused(tmp_path):
    with pytest.raises(Failed, match="was imported, not that of"):
        Version(tmp_path, seed=0)


def test_a_cell_that_one_version_cannot_run_is_told_and_the_others_go_on(versions):
    run = Run(versions("\ndel _HOMES['amp_scale']\n"), [("d", "R0"), ("d", "R1")], rounds=1, pairs=1)
    *_, rows = run.measured()
    assert [(row["recipe"], row["rounds"]) for row in rows] == [("R1", [1])]
    assert list(run.failed) == [("d", "R0")]
    assert run.failed["d", "R0"].startswith("then: AttributeError") and "amp_scale" in run.failed["d", "R0"]


def test_two_that_do_not_compute_the_same_are_told_apart(versions):
    other = "\nfrom gradchain.transforms.adam import scale_by_adam as _adam\n"
    other += "def scale_by_adam(b1, b2, eps):\n    return _adam(0.5, b2, eps)\n"
    run = Run(versions(other), [("d", "R1"), ("d", "R4")], rounds=1, pairs=1)
    (rows,) = run.measured()
    assert not run.failed
    adam, sgd = rows
    assert adam["parity"]["outliers"] > 0.5 and sgd["parity"] == {"worst": 0.0, "outliers": 0.0, "allowed": OUTLIERS}
    text = "\n".join(against.lines({"rev": "then", "rows": rows}))
    assert text.count("DO NOT COMPUTE THE SAME") == 1


def test_a_process_that_ended_is_told(versions):
    version = Version(versions() / "now", seed=0)
    try:
        with pytest.raises(Failed, match="KeyError: 'R99'"):
            version.ask("open", workload="d", recipe="R99")
        version._process.kill()
        version._process.wait()
        with pytest.raises(Failed, match="the process ended, with status -9"):
            version.ask("hello")
    finally:
        version.stop()


@pytest.mark.parametrize(
    ("quartiles", "words"),
    [
        ([0.9, 0.95, 1.0], "no slower"),
        ([1.01, 1.03, 1.2], "no slower"),
        ([0.9, 1.04, 1.2], "unclear"),
        ([1.01, 1.04, 1.05], "SLOWER"),
    ],
)
def test_the_verdict(quartiles, words):
    assert against.verdict(quartiles) == words


def test_ratios_are_taken_within_a_round():
    def took(part):
        return {"part": part, "mean": 2 * part, "whole": 3.0, "cpu_share": 1.0}

    machine = (1.0, 4.0, 2.0, 3.0)  # moods that both meet
    rounds = [{"then": took(mood), "now": took(1.5 * mood)} for mood in machine]
    row = Series(
        "d", "R1", pairs=[rounds[:3], rounds[3:]], parity={"worst": 0.0, "outliers": 0.0, "allowed": OUTLIERS}
    ).row()
    assert row["now_over_then"] == row["now_over_then_mean"] == [1.5] * 3
    assert row["now_over_then_whole"] == [1.0] * 3
    assert row["by_pair"] == [1.5, 1.5] and row["rounds"] == [3, 1]
    assert row["verdict"] == "SLOWER"


def test_both_have_turns_and_who_begins_changes(monkeypatch, tmp_path):
    asked = []

    class Fake:
        def __init__(self, folder, seed):
            self.side = folder.name

        def ask(self, what, **given):
            asked.append((self.side, what, given))
            return {"ran": [], "part": 1.0, "mean": 1.0, "whole": 1.0, "cpu_share": 1.0}

        def stop(self):
            asked.append((self.side, "stop", {}))

    monkeypatch.setattr(against, "Version", Fake)
    monkeypatch.setattr(against, "_parity", lambda series, files: {})
    *_, rows = Run(tmp_path, [("c", "R2"), ("d", "R2")], rounds=5, pairs=2).measured()
    assert [row["rounds"] for row in rows] == [[3, 2], [3, 2]]
    turns = [side for side, what, _ in asked if what == "turn"]
    of_three, of_two = "now then then now now then".split(), "now then then now".split()
    assert turns == of_three * 2 + of_two * 2
    assert {given["steps"] for _, what, given in asked if what == "turn"} == {against.TURNS[w][1] for w in "cd"}
    assert sum(what == "stop" for _, what, _ in asked) == 4
    assert [given["weights"] is not None for _, what, given in asked if what == "open"] == [True] * 4 + [False] * 4


def test_what_runs_in_both_versions_stands_on_the_front_door_only():
    reached, waiting = set(), ["one_version"]
    while waiting:
        module = waiting.pop()
        if module in reached:
            continue
        reached.add(module)
        tree = ast.parse((ROOT / "benchmarks" / f"{module}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert not name.startswith("gradchain."), f"{module} imports {name}"
                if name.startswith("benchmarks."):
                    waiting.append(name.partition(".")[2])
    assert reached == {"one_version", "ours", "candidate", "recipes", "workloads"}
