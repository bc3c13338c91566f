"""Pages of the repository as pages of the site: their links, and the pages that only list what is elsewhere."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
# pages whose source is not in docs/: where they stand in the site → in the repository
ELSEWHERE = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    "benchmarks.md": "benchmarks/README.md",
}
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.M | re.S)
_TARGET = re.compile(r"""(\]\(|\b(?:href|src|srcset)=")([^)"\s]+)""")


def relinked(markdown: str, here: str, source: str, known: set[str], home: str) -> str:
    """A page of the repository as a page of the site: its links lead to pages of it, or to the repository.

    Args:
        markdown: the page.
        here: where it stands in the site.
        source: where it stands in the repository.
        known: every file of the site.
        home: the repository's address.
    """
    parts = _CODE.split(markdown)
    for i in range(0, len(parts), 2):  # every other part is code
        parts[i] = _TARGET.sub(lambda m: m[1] + _target(m[2], here, source, known, home), parts[i])
    return "".join(parts)


def _target(written: str, here: str, source: str, known: set[str], home: str) -> str:
    if re.match(r"[a-z]+:|//|#", written):
        return written
    path, mark, part = written.partition("#")
    in_repository = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    place = next((p for p, s in ELSEWHERE.items() if s == in_repository), in_repository.removeprefix("docs/"))
    if place in known and (in_repository.startswith("docs/") or place in ELSEWHERE):
        return posixpath.relpath(place, posixpath.dirname(here) or ".") + mark + part
    if not (ROOT / in_repository).exists():
        return written  # mkdocs knows it, or says that it does not
    kind = "tree" if (ROOT / in_repository).is_dir() else "blob"
    return f"{home}/{kind}/main/{in_repository}{mark}{part}"


def notebooks() -> str:
    """A list of the notebooks, with their first headings."""
    lines = ["# Notebooks", "", "Each runs as a test. They are in the repository:", ""]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        title = re.search(r'"# ([^"\\]+)', path.read_text(encoding="utf-8"))
        lines.append(f"- [{title[1] if title else path.stem}](../notebooks/{path.name})")
    return "\n".join(lines) + "\n"


# what users and authors of links call, beside links and schedules
REFERENCE: dict[str, tuple[str, ...]] = {
    "The updater": ("updater.updater.Updater", "updater.info.UpdateInfo", "updater.group.Group"),
    "A link's own": (
        "core.transform.Transform", "core.state.State", "core.context.Context", "core.tensors.Tensors",
        "core.scalars.Count", "core.hyper.Hyper", "core.weights.Weights",
    ),
    "Around a run": ("checkpoints.checkpointer.Checkpointer", "core.refusal.Diverged"),
}  # fmt: skip
# what the updater, the engine and combinators call on them, and nobody else
INSIDE: dict[str, tuple[str, ...]] = {
    "updater.updater.Updater": ("stage", "contents", "stage_contents"),
    "core.transform.Transform": ("parts", "written", "told", "says", "value_of", "check_uniform", "as_call"),
    "core.state.State": ("whole", "added", "own", "kinds", "problem", "held", "holding"),
    "core.context.Context": (
        "of", "under_gate", "turned", "under", "recorder", "buffers_to_be", "check_buffers", "overridden", "use",
    ),
    "core.tensors.Tensors": ("listed", "stored_as"),
}  # fmt: skip


def reference() -> str:
    """The page of classes that are neither a link nor a schedule, as mkdocstrings reads them."""
    lines = ["---", "title: Reference", "---", "", "# Reference", ""]
    lines += ["Links are in [Find a rule](rules/index.md), schedules in [Every schedule](schedules/index.md).", ""]
    for title, names in REFERENCE.items():
        lines += [f"## {title}", "", *map(_described, names)]
    return "\n".join(lines)


def _described(name: str) -> str:
    """A class with the members that a user meets."""
    hidden = INSIDE.get(name)
    if hidden is None:
        return f"::: gradchain.{name}\n"
    return f'::: gradchain.{name}\n    options:\n      filters: ["!^_", "!^({"|".join(hidden)})$"]\n'
