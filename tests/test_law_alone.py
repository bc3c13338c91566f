"""The law stands alone: in a copy of the package without the rooms above it, it is imported, used and tested."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from docs.doc_blocks import ROOT, blocks
from test_house import ABOVE, FILES, LAW, name_of, room_of

# Tests of each room of the law that need no other room: not the table of cases, whose rows are of all rooms.
TESTS = (
    "core/test_roles.py",
    "core/test_tensor_hyperparameters.py",
    "schedules/test_schedule_errors.py",
    "schedules/test_schedule_overlays.py",
    "selectors/test_selectors_resolve.py",
    "transforms/test_clips.py",
    "transforms/test_weights_and_functions.py",
    "combinators/test_freeze.py",
    "combinators/test_skip_nonfinite.py",
    "engine/test_numbers.py",
    "updater/test_closures_and_averages.py",
    "updater/test_rebind_reset_group.py",
)


@pytest.fixture(scope="module")
def law(tmp_path_factory) -> Path:
    """The package without what is above the law, and all tests."""
    folder = tmp_path_factory.mktemp("law")
    ignored = shutil.ignore_patterns("__pycache__")
    for part in ("gradchain", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    for room in {room_of(name_of(file)) for file in FILES} & ABOVE:
        path = folder / "gradchain" / room
        shutil.rmtree(path) if path.is_dir() else path.with_suffix(".py").unlink()
    return folder


def run(law: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command of Python in the copy."""
    env = {**os.environ, "PYTHONPATH": str(law), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], cwd=law, env=env, capture_output=True, text=True, timeout=280)


def test_every_room_of_the_law_has_a_test_here():
    """By the folder it lies in; aliases are in those of the others."""
    assert {test.partition("/")[0] for test in TESTS} == LAW - {"optimizers"}


@pytest.mark.slow
def test_it_is_imported_and_trains_by_readmes_first_recipe(law):
    """The first blocks of README as a program where nothing is above the law; and links are found by name."""
    page = [block.text for block in blocks((ROOT / "README.md").read_text()) if block.language == "python"]
    recipe = next(number for number, text in enumerate(page) if ".bind(" in text)
    program = (
        "\n".join(page[: recipe + 1])
        + f"""
import sys
from importlib.util import find_spec
assert gch.__file__.startswith({str(law)!r})
assert updater.num_updates > 0
rooms = {{name.split(".")[1] for name in sys.modules if name.startswith("gradchain.")}}
assert not rooms & {ABOVE!r} and rooms >= {LAW - {"optimizers"}!r}, rooms
assert gch.from_config(gch.to_config(updater.chain)) == updater.chain
assert [r for r in {ABOVE!r} if find_spec(f"gradchain.{{r}}")] == []
"""
    )
    done = run(law, "-c", program)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_its_tests_pass(law):
    done = run(law, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{test}" for test in TESTS))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
