"""Every notebook runs from top to bottom, in a kernel of its own, as a reader would run it."""

from pathlib import Path

import pytest
from later import later

nbclient, nbformat = later("nbclient"), later("nbformat")

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_there_are_notebooks():
    """A renamed folder must not pass for a folder whose notebooks all run."""
    assert NOTEBOOKS, f"no notebooks in {FOLDER}"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path):
    """A cell that raises fails the test and prints the cell; the file on disk is left as it was."""
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute()
