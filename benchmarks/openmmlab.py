"""How many OpenMMLab recipes are read, and why others are not: `python -m benchmarks.openmmlab FOLDER…`.

A folder holds config files, as those of an installed project do under `.mim/configs`, or `recipes.jsonl.gz`. No model
is at hand. `--write FILE` keeps the counts as JSON; `--table BEFORE AFTER` draws docs/openmmlab_counts.md from two.
"""

from __future__ import annotations

import argparse
import gzip
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from gradchain.adapters import mmengine
from gradchain.cli.recipe import chains, read

PAGE = Path(__file__).parents[1] / "docs" / "openmmlab_counts.md"
READ, REMARKED, WEAKLY = "read", "read, with a remark", "read with --no-strict only"
NONE = "no recipe: a part for others to inherit"
# what a sentence has, the first that fits → the kind
KINDS = (
    ("must have optim_wrapper, or optimizer", NONE),
    ("must say how long the run is", NONE),
    ("mmengine.read_config", "a statement or a base that is not read"),
    ("depends on the model", "its rules need the model: from_config reads them"),
    ("Where a model is at hand", "its rules need the model: from_config reads them"),
    ("constructor", "a constructor of its project that is not read"),
    (".optimizer: ", "an optimizer that is not known here"),
    ("param_scheduler", "a scheduler that is not read, or cannot be meant"),
    ("lr_config", "a scheduler that is not read, or cannot be meant"),
    ("mmengine.param_settings", "paramwise_cfg that cannot be meant"),
    ("hooks", "a hook that sets the numbers"),
    ("needs at least one optimizer", "no optimizer in it"),
    ("optimizer must be given", "no optimizer in it"),
    ("OptimWrapper' is not read", "an engine of its own makes the update: DeepSpeed, ColossalAI"),
    ("accum_type", "half precision of IPUs"),
    ("max_epochs or max_iters must be given", "the length of the run is not in it"),
)
Try = Callable[[bool], Any]


def kind_of(error: Exception) -> str:
    """Why a recipe is refused, in a few words."""
    said = str(error)
    return next((kind for part, kind in KINDS if part in said), "something else")


def outcome(attempt: Try) -> str:
    """What becomes of a recipe."""
    try:
        return REMARKED if attempt(True) else READ
    except Exception as error:  # whatever it is, it counts
        kind = kind_of(error)
    try:
        attempt(False)
    except Exception:
        return kind
    return WEAKLY


def of_file(path: Path) -> Try:
    """A config file: its chains, and what was remarked on."""

    def attempt(strict: bool) -> Any:
        config, _, builder = read(path, 100, 64, strict)
        return chains(builder, config)[1]

    return attempt


def of_recipe(recipe: dict[str, Any]) -> Try:
    """A row of recipes.jsonl.gz."""

    def attempt(strict: bool) -> Any:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            mmengine.unbound(
                recipe["optim_wrapper"], recipe["param_scheduler"], max_epochs=recipe.get("epochs"),
                max_iters=recipe.get("iters"), epoch_length=100, custom_hooks=recipe.get("hooks"), strict=strict,
            )  # fmt: skip
        return caught

    return attempt


def tries(folder: Path) -> Iterator[Try]:
    """All recipes of a folder."""
    packed = folder / "recipes.jsonl.gz"
    if packed.is_file():
        with gzip.open(packed, "rt") as file:
            yield from map(of_recipe, map(json.loads, file))
        return
    inside = sorted(folder.rglob("*/.mim/configs/**/*.py")) or sorted(folder.rglob("*.py"))
    yield from map(of_file, inside)


def counted(folders: list[Path], every: int) -> Iterator[tuple[str, dict[str, int]]]:
    """By folder, how many recipes became what."""
    for folder in folders:
        yield folder.name, dict(Counter(map(outcome, islice(tries(folder), 0, None, every))))


def table(before: dict[str, dict[str, int]], after: dict[str, dict[str, int]]) -> str:
    """The page: a row for each folder, and one for each kind of refusal."""
    rows = ["| recipes of | recipes | read before | read now | of these with a remark |", "|---|---|---|---|---|"]
    for name, now in after.items():
        then = before.get(name, {})
        done = [sum(one.get(kind, 0) for kind in (READ, REMARKED)) for one in (then, now)]
        total = sum(count for kind, count in now.items() if kind != NONE)
        rows.append(f"| {name} | {total} | {done[0]} | {done[1]} | {now.get(REMARKED, 0)} |")
    sums = [sum((Counter(one) for one in counts.values()), Counter[str]()) for counts in (before, after)]
    reasons = ["| not read, because of | before | now |", "|---|---|---|"]
    for kind in sorted({*sums[0], *sums[1]} - {READ, REMARKED}, key=lambda one: -sums[1][one]):
        reasons.append(f"| {kind} | {sums[0][kind]} | {sums[1][kind]} |")
    return "\n".join([*rows, "", *reasons])


TOP = """# How many recipes of OpenMMLab are read

Every config file that a project's wheel carries, and the 490 different recipes that the tests use, without a model, at
100 micro-batches to an epoch and a batch of 64. Before is commit 068f76f, now f970d28. Files that only others inherit
from, without an optimizer or the length of a run, are in the last table alone. Read means that there is a chain for
any model; for those whose rules need the model `convert` prints the same training script with `mmengine.from_config` in
it, and what else is wrong with them is counted as it is with others. Counted by
`python -m benchmarks.openmmlab FOLDER… --write FILE`, for each of the two commits, and drawn by
`python -m benchmarks.openmmlab --table BEFORE AFTER`.

"""


def main() -> None:
    """Count folders, or draw the page from what was counted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.openmmlab", description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--every", type=int, default=1, help="one file in so many")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--table", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    given = parser.parse_args()
    if given.table:
        PAGE.write_text(f"{TOP}{table(*(json.loads(path.read_text()) for path in given.table))}\n")
        return
    counts = {}
    for name, one in counted(given.folders, given.every):
        counts[name] = one
        print(name, *(f"{count:6} {kind}" for kind, count in sorted(one.items())), sep="\n", flush=True)
        if given.write:
            given.write.write_text(json.dumps(counts, indent=1))


if __name__ == "__main__":
    main()
