"""Make the pictures of docs/see.md by running its code: `.venv/bin/python tests/docs/pictures.py`."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from doc_blocks import run_python  # noqa: E402

if __name__ == "__main__":
    page = (ROOT / "docs" / "see.md").read_text()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run_python(page, "docs/see.md")
        for picture in sorted(Path(folder).glob("*.png")):
            shutil.copy(picture, ROOT / "docs" / "see" / picture.name)
            print(picture.name)
