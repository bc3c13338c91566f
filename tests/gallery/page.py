"""The page of the gallery: `python tests/gallery/page.py` writes docs/gallery.md; `--count FOLDER` counts originals."""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from originals import ORIGINALS, Original
from toys import GALLERY, NAMES

PAGE = GALLERY.parent / "gallery.md"
HEAD = """# The gallery

{count} well-known recipes as chains, each a file of its own: [docs/gallery](gallery). A file has `settings`, the
published numbers; `chain()`, or one for each of several models; and `train`, the loop that goes with it. `python
tests/gallery/page.py` writes this page, and a test holds it to the files.

Tests train every recipe on toy data and see that each number of `settings` is read
(`tests/gallery/test_trainings.py`). Rates, decays, momenta and groups are compared with what nine of the originals'
code gave, over the whole run (`test_published.py`), and the others with their formulas, typed anew; where order
matters, weights, averages and moments are those of a loop in torch that does what the original does
(`test_beside_originals.py`).

"Lines there" are those of the original's optimization part: groups, optimizer, schedules, scaler, clip,
accumulation, averages of weights, in the script's own files, at the commit and lines named below. "Lines here" are
those of the file's functions and selectors, the loop with its forward and its loss included. Counted are lines of
code: no blank lines, comments, docstrings or imports, no arguments of a command line, no numbers of `settings` or a
config. What a library brings, torch's, timm's or ours, is counted on neither side. The originals do more than their
recipe: modded-nanoGPT's lines hold its communication between ranks, detectron2's every kind of schedule it has.
Where a script has a library's objects for all of it, the two are about as long, and what differs is what one has to
know: the order, and what is saved.

| recipe | what it shows | lines there | lines here |
|---|---|---|---|
{rows}

## Where the originals' lines are

{sources}
"""


def code_lines(text: str) -> int:
    """Lines that are neither blank, nor a comment, nor a docstring: in any piece of a file, whole or not."""
    count, inside = 0, ""
    for line in map(str.strip, text.splitlines()):
        if inside:
            inside = "" if inside in line else inside
        elif line[:3] in ('"""', "'''"):
            inside = "" if line.count(line[:3]) > 1 else line[:3]
        else:
            count += bool(line) and line[0] != "#"
    return count


def here(name: str) -> int:
    """The lines of a file of the gallery that count: without imports and settings."""
    kept, skipping = [], False
    for line in (GALLERY / f"{name}.py").read_text().splitlines():
        if line.startswith("settings = {") or skipping:
            skipping = not line.endswith("}") or line.startswith(" ")
        elif not line.startswith(("import ", "from ")):
            kept.append(line)
    return code_lines("\n".join(kept))


def there(original: Original, folder: Path) -> int:
    """The original's lines, counted in a clone."""
    clone, total = folder / original.repository.replace("/", "+"), 0
    clone = clone / "repo" if (clone / "repo").exists() else clone
    for path, ranges in original.files.items():
        shown = subprocess.run(
            ["git", "-C", str(clone), "show", f"{original.commit}:{path}"], capture_output=True, text=True, check=True
        )
        lines = shown.stdout.splitlines()
        for first, _, last in (part.partition("-") for part in ranges.split(",")):
            total += code_lines("\n".join(lines[int(first) - 1 : int(last or first)]))
    return total


def page() -> str:
    rows, sources = [], []
    for name in NAMES:
        original = ORIGINALS[name]
        said = (GALLERY / f"{name}.py").read_text().split('"""')[1].splitlines()[0]
        what = said.partition(", http")[0].partition(": http")[0].removesuffix(".")
        rows.append(f"| [{name}](gallery/{name}.py) | {what} | {original.lines} | {here(name)} |")
        files = "; ".join(
            f"`{path}` {', '.join(ranges.replace(', ', ',').split(','))}" for path, ranges in original.files.items()
        )
        address = f"https://github.com/{original.repository}"
        by = ", counted by eye" if original.by_hand else ""
        sources.append(f"- {name}: [{original.repository}]({address}) at `{original.commit[:10]}`{by}: {files}.")
    return HEAD.format(count=len(NAMES), rows="\n".join(rows), sources="\n".join(sources))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--count"]:
        for name, original in ORIGINALS.items():
            if not original.by_hand:
                found = there(original, Path(sys.argv[2]))
                print(f"{name}: {found}" + (f", the table has {original.lines}" if found != original.lines else ""))
    else:
        PAGE.write_text(page())
