"""The house: imports go one way, files and functions stay short, private calls of torch live in one file."""

import ast
import re
from pathlib import Path

import pytest

import gradchain

ROOT = Path(gradchain.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# Who may import whom; each room may import itself. A room that is not here fails a test that names it. CONTRIBUTING.md
# shows this table. The front door imports no room: what it lists loads on first use.
ALLOWED: dict[str, set[str]] = {
    "_version": set(),
    "_numbers": set(),
    "words": set(),
    "_lazy": {"words"},
    "schedules": {"_numbers", "words"},
    "selectors": {"_numbers", "words"},
    "core": {"_lazy", "_numbers", "schedules", "selectors", "words"},
    "engine": {"core", "selectors", "schedules"},
    "transforms": {"core", "schedules", "selectors", "words"},
    "combinators": {"core", "schedules", "selectors", "words"},
    "optimizers": {"core", "schedules", "selectors", "transforms", "combinators", "words"},
    "updater": {"_lazy", "core", "engine", "schedules", "selectors", "words"},
    "<front door>": {"_lazy", "_version"},
    "rules": {"_lazy", "core", "schedules", "selectors", "transforms", "combinators", "optimizers", "words"},
    "adapters": {
        "core", "schedules", "selectors", "transforms", "combinators", "optimizers", "rules", "updater", "words",
    },
    "checkpoints": {"core", "updater"},
    "loop": {"checkpoints", "core", "updater"},
    "see": {"core", "schedules", "selectors", "updater"},
    "cli": {"core", "schedules", "selectors", "adapters", "loop", "see", "<front door>"},
    "__main__": {"_version", "cli"},
    "demo": {
        "cli", "core", "schedules", "see", "selectors", "transforms", "combinators", "optimizers", "updater",
        "<front door>",
    },
}  # fmt: skip
# The law is what a chain needs: it stands without what is above it, and nothing of it imports anything of that. Those
# above that are not there yet have their place.
LAW = {"core", "schedules", "selectors", "transforms", "combinators", "optimizers", "engine", "updater"}
ABOVE = {"rules", "adapters", "checkpoints", "loop", "see", "cli", "demo", "__main__"}
# The same inside the engine, by stage. Files that are not here stand above all stages, and the engine above those.
STAGES: dict[str, set[str]] = {
    "operations": set(),
    "commit": set(),
    "recording": {"operations"},
    "planning": {"operations", "commit", "recording"},
    "executors": {"operations", "commit", "planning"},
}
# The one door upwards: a function of this file imports that room. A chain is where a user meets the Updater.
UPWARDS = {("core/transform.py", "updater")}


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def room_of(path: str) -> str:
    """The room of a file of gradchain, by its path inside the package."""
    first, _, rest = path.partition("/")
    return first if rest else "<front door>" if first == "__init__.py" else first.removesuffix(".py")


def modules(file: Path):
    """Every import of gradchain in a file: the parts of the module's name, and whether it stands at module level."""
    tree = ast.parse(file.read_text())
    checked_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    inside = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: write imports in full"
            names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
        for name in names:
            first, *parts = name.split(".")
            if first == "gradchain" and id(node) not in checked_only:
                yield parts, id(node) not in inside


def imports(file: Path):
    """Every import of gradchain in a file: the room it enters, and whether it stands at module level."""
    for (first, *_), at_module_level in ((parts or [""], level) for parts, level in modules(file)):
        inner = first and ((ROOT / first).is_dir() or (ROOT / f"{first}.py").is_file())
        yield (first if inner else "<front door>"), at_module_level


files = pytest.mark.parametrize("file", [pytest.param(f, id=name_of(f)) for f in FILES])


@files
def test_imports_go_one_way(file: Path):
    """No file imports a room above its own, nor the front door; one function may, and is named here."""
    room = room_of(name_of(file))
    assert room in ALLOWED, f"{room}: a new room says in ALLOWED whom it may import"
    for entered, at_module_level in imports(file):
        if entered == room or entered in ALLOWED[room]:
            continue
        assert (name_of(file), entered) in UPWARDS, f"{name_of(file)} imports {entered}"
        assert not at_module_level, f"{name_of(file)} imports {entered} outside a function"


def test_every_room_is_of_the_law_or_above_it():
    """Or below it, and imports nothing. What exceptions name is above nobody."""
    rooms = {room_of(name_of(f)) for f in FILES}
    assert sorted(rooms ^ set(ALLOWED)) == []
    assert not LAW & ABOVE and rooms >= LAW
    below = rooms - LAW - ABOVE - {"<front door>"}
    assert [room for room in below if not ALLOWED[room] <= below] == []
    for room in {*LAW, *below, "<front door>"}:
        assert sorted(ALLOWED[room] & ABOVE) == [], f"{room} imports what stands above the law"
    assert [door for door in UPWARDS if door[1] in ABOVE] == []


@pytest.mark.parametrize("door", [gradchain, gradchain.rules], ids=lambda door: door.__name__)
def test_the_doors_list_what_is_of_the_law_or_above(door):
    """What they load on first use they may load from any room but programs."""
    rooms = {home.partition(".")[0] for home in door._HOMES.values()}
    assert sorted(rooms - LAW - ABOVE) == []
    assert not rooms & {"cli", "demo", "__main__"}


# what CONTRIBUTING.md says of it


def table_of_rooms() -> list[str]:
    """The rooms in their order, as CONTRIBUTING.md shows them: what each stands on, and what it says that it is."""
    rows = ["| room | stands on | its first sentence |", "|---|---|---|"]
    for room, below in ALLOWED.items():
        file = "__init__.py" if room == "<front door>" else f"{room}/__init__.py"
        path = ROOT / file if (ROOT / file).exists() else ROOT / f"{room}.py"
        said = ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]
        listed = ", ".join(n for n in ALLOWED if n in below) or "nothing else of ours"
        kind = "" if room not in ABOVE else " (above the law)"
        rows.append(f"| {room.strip('<>')}{kind} | {listed.replace('<', '').replace('>', '')} | {said} |")
    return rows


def test_contributing_shows_the_rooms_as_they_are():
    """The table of its section on rooms is this file's, row by row."""
    page = (ROOT.parent / "CONTRIBUTING.md").read_text()
    section = re.search(r"^## Rooms\n(.*?)^## ", page, flags=re.M | re.S)[1]
    shown = [line for line in section.splitlines() if line.startswith("|")]
    assert shown == table_of_rooms(), "\n".join(["CONTRIBUTING.md, Rooms, should have:", *table_of_rooms()])


def stage_of(parts: list[str]) -> str:
    """The stage of a module of the engine, by its name inside that room."""
    return parts[0].removesuffix(".py")


def misplaced(stage: str, entered: str) -> bool:
    """Whether what stands at a stage of the engine may not import what stands at another."""
    if stage in STAGES:
        return entered != stage and entered not in STAGES[stage]
    return entered == "engine" and stage not in ("engine", "shards")  # an engine of another kind stands on the first


@pytest.mark.parametrize("file", [pytest.param(f, id=name_of(f)) for f in FILES if room_of(name_of(f)) == "engine"])
def test_the_engine_is_built_by_stage(file: Path):
    """Recording stands on no plan and on no executor, an executor on no recording; imports in functions count too."""
    stage = stage_of(name_of(file).split("/")[1:])
    found = {stage_of(parts[1:]) for parts, _ in modules(file) if parts[:1] == ["engine"]}
    assert sorted(entered for entered in found if misplaced(stage, entered)) == []


@pytest.mark.parametrize(
    ("stage", "entered"),
    [("recording", "planning"), ("recording", "executors"), ("planning", "executors"), ("executors", "recording"),
     ("executors", "replay"), ("operations", "recording"), ("replay", "engine"), ("captured", "engine")],
)  # fmt: skip
def test_a_stage_out_of_order_is_seen(stage, entered):
    assert misplaced(stage, entered)


def test_every_stage_is_there():
    """A stage that is gone, or has another name, holds nothing."""
    assert [s for s in STAGES if not any((ROOT / "engine" / p).exists() for p in (s, f"{s}.py"))] == []


def test_nobody_imports_the_front_door():
    """`import gradchain` inside the library would be a circle. Programs may: the demo and the commands."""
    doors = [name_of(f) for f in FILES for entered, _ in imports(f) if entered == "<front door>"]
    assert [path for path in doors if room_of(path) not in ("cli", "demo")] == []


def test_the_doors_upwards_are_in_use():
    """An exception that nothing needs any more goes."""
    used = {(name_of(f), entered) for f in FILES for entered, _ in imports(f)}
    assert sorted(UPWARDS - used) == []


def test_schedules_and_selectors_stand_alone():
    """Schedules need the standard library only; selectors need torch besides."""
    for file in FILES:
        if room_of(name_of(file)) != "schedules":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.split(".")[0] in ("torch", "numpy")], name_of(file)


@files
def test_files_are_at_most_500_lines(file: Path):
    """A longer file has two ideas."""
    assert len(file.read_text().splitlines()) <= 500


@files
def test_functions_are_at_most_60_lines(file: Path):
    """Without its docstring, from `def` to the last line."""
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
        length = node.end_lineno - body[0].lineno + 1 if body else 0
        assert length <= 60, f"{name_of(file)}: {node.name} has {length} lines"


@files
def test_the_library_does_not_print(file: Path):
    """It raises, warns, records and returns. Only programs print."""
    if room_of(name_of(file)) in ("demo", "__main__"):
        return
    calls = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call)]
    assert not [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]


@files
def test_private_calls_of_torch_live_in_one_file(file: Path):
    """`torch._foreach_*`, `torch._C` and other private names: when torch moves one, core/_torch.py is the place."""
    if name_of(file) == "core/_torch.py":
        return
    private = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch._") and node.attr[:2] != "__":
            private.append(ast.unparse(node))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            private += [f"{node.module}.{a.name}" for a in node.names if "._" in f"{node.module}.{a.name}"]
    assert private == []


@files
def test_every_file_has_a_docstring(file: Path):
    """Its first line says the idea."""
    assert not file.read_text().strip() or ast.get_docstring(ast.parse(file.read_text()))


# What is asked for by its name, and is no part of ours: an object of a user's, or one of the standard library. But for
# `_apply`: numbers that are recorded, which core must not import.
ASKED_BY_NAME = {
    ("core/config.py", "__qualname__"),
    ("core/maps.py", "__name__"),
    ("core/scalars.py", "_apply"),
    ("core/tensors.py", "__name__"),
    ("engine/executors/build.py", "ST_NOEXEC"),
    ("engine/executors/build.py", "frozen"),
    ("engine/executors/build.py", "register_at_fork"),
    ("engine/executors/native.py", "register_at_fork"),
    ("updater/gradients.py", "shape"),
    ("updater/sealed.py", "O_DIRECTORY"),
    ("updater/sealed.py", "O_NONBLOCK"),
}


def asked_by_name(file: Path) -> set[tuple[str, str]]:
    """The attributes that a file asks for by a name in quotes."""
    return {
        (name_of(file), call.args[1].value)
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id in ("getattr", "hasattr")
        and isinstance(call.args[1], ast.Constant)
    }


def test_parts_are_found_by_type_not_by_the_name_of_an_attribute():
    """What a link, a state, a kernel or an executor may be to others is declared: nobody tries whether it has it."""
    rooms = {"core", "updater", "engine", "combinators", "transforms"}
    files = [f for f in FILES if room_of(name_of(f)) in rooms and name_of(f) != "core/_torch.py"]
    assert set().union(*map(asked_by_name, files)) == ASKED_BY_NAME
