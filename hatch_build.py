"""README for the package index, where a link that begins at this folder leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

BRANCH = "main"
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.M | re.S)
_IMAGE = re.compile(r"""(!\[[^\]]*\]\(|\bsrc(?:set)?=")([^)"\s]+)""")
_LINK = re.compile(r"""(\]\(|\bhref=")([^)"\s]+)""")


def absolute(markdown: str, home: str) -> str:
    """The page with every link and image of this folder at `home` on GitHub. Code stays as it is."""
    raw = home.replace("https://github.com/", "https://raw.githubusercontent.com/")
    parts = _CODE.split(markdown)
    for i in range(0, len(parts), 2):  # every other part is code
        images = _IMAGE.sub(lambda found: found[1] + _at(f"{raw}/{BRANCH}/", home, found[2]), parts[i])
        parts[i] = _LINK.sub(lambda found: found[1] + _at(f"{home}/blob/{BRANCH}/", home, found[2]), images)
    return "".join(parts)


def _at(folder: str, home: str, target: str) -> str:
    if re.match(r"[a-z]+:|//", target):
        return target
    return home + target if target.startswith("#") else folder + target.removeprefix("./")


class Readme(MetadataHookInterface):
    """Makes `project.readme` of README.md."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the page to the metadata."""
        page = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = absolute(page, metadata["urls"]["Homepage"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
