"""What mkdocs is told beside mkdocs.yml: pages that are made, and links that hold on the site as on GitHub.

Pages of docs/ are written to be read on GitHub, README and CONTRIBUTING.md among them. Here their links to files that
are no page of the site lead to the repository.
"""

from __future__ import annotations

import pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from repository import ELSEWHERE, ROOT, notebooks, reference, relinked


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and those whose source lies elsewhere."""
    made = {place: (ROOT / source).read_text(encoding="utf-8") for place, source in ELSEWHERE.items()}
    made.update({**pages.generated(), "notebooks.md": notebooks(), "reference.md": reference()})
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with links that hold here."""
    here = page.file.src_uri
    known = {file.src_uri for file in files}
    return relinked(markdown, here, ELSEWHERE.get(here) or f"docs/{here}", known, config.extra["repository"])
