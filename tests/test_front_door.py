"""Names load on first use: what `import gradchain` loads, what a name loads; any order gives the same names."""

import ast
import atexit
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import pytest
from cases import CASES
from docs.doc_blocks import blocks

import gradchain as gch
from gradchain import optimizers
from gradchain.adapters.torch_names import PACKAGES
from gradchain.core.transform import registry

ROOT = Path(gch.__file__).parent
DOORS = [gch, gch.rules]

# Begins every process below. `each` calls a function with each item in a process of its own, forked from one that has
# used no name of gradchain yet, and gives what it returned or what it raised.
BEGIN = """
import json, os, sys
import torch

def each(function, items):
    answers = {}
    for item in items:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                answer = function(item)
            except BaseException as error:
                answer = f"{type(error).__name__}: {error}"
            os.write(writing, json.dumps(answer).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as said:
            answers[str(item)] = json.loads(said.read())
        os.waitpid(child, 0)
    return answers
"""


COMPILED = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": tempfile.mkdtemp()}  # once for all these processes
atexit.register(shutil.rmtree, COMPILED["PYTHONPYCACHEPREFIX"], ignore_errors=True)


def alone(code: str, *, package: Path = ROOT, given: object = None):
    """What `code` leaves in `answer`, in a process that has imported torch and nothing else. `given` is told to it."""
    begin = f"{BEGIN}\ngiven = json.loads(sys.stdin.read())\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{begin}{code}\nprint(json.dumps(answer))"],
        input=json.dumps(given),
        cwd=package.parent,
        env={**os.environ, "PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1", **COMPILED},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# the lists


def test_the_top_level_has_at_most_120_names():
    """Links of daily use, the optimizers of torch.optim and Optax as aliases, what README shows. The rest has rooms."""
    assert len(gch.__all__) <= 120


def test_every_rule_is_found_among_the_rules():
    """Those on top too, and it is the same object."""
    for name in {*registry, *optimizers.__all__}:
        found = getattr(gch.rules, name)
        assert name in gch.rules.__all__
        assert found is registry.get(name, found) is getattr(gch, name, found)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_a_checker_sees_the_names_that_there_are(door):
    """What the file imports for checkers is what loads, from the same module, and each name is in its list once."""
    tree = ast.parse(Path(door.__file__).read_text())
    (block,) = (n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    seen = {}
    for node in block.body:
        (alias,) = node.names
        assert alias.asname == alias.name
        seen[alias.name] = f"{node.module}.".removeprefix("gradchain.")[:-1]
    rooms = dict.fromkeys(getattr(door, "_SHOWN", ()), "")
    assert seen == {**door._HOMES, **rooms}
    assert list(door._HOMES) == sorted(door._HOMES)
    assert door.__all__ == sorted(set(door.__all__))


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_a_name_that_is_not_there_is_an_attribute_error(door):
    """As of any module: so `hasattr` and `from gradchain import` answer as they do elsewhere."""
    for name in ("nonsense", "__wrapped__", "_private", "Scale_By_Sign"):
        assert not hasattr(door, name)
        with pytest.raises(AttributeError, match=name):
            getattr(door, name)
    with pytest.raises(ImportError, match="nonsense"):
        exec(f"from {door.__name__} import nonsense")


# what loads when


def test_import_loads_no_room():
    """However many rules there are: two files, no package that torch had not loaded, and not even torch."""
    answer = alone(
        "before = set(sys.modules)\nimport gradchain\n"
        "answer = sorted(set(sys.modules) - before), sorted(n for n in vars(gradchain) if n in gradchain.__all__)"
    )
    assert answer == [["gradchain", "gradchain._lazy", "gradchain._version"], ["__version__"]]
    code = "import sys, gradchain; assert not {'torch', 'numpy', 'typing_extensions'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT.parent)}, check=True)


ROOMS_OF_A_CHAIN = [
    "_lazy", "_numbers", "_version", "combinators", "core", "engine", "optimizers", "schedules", "selectors",
    "transforms", "updater", "words",
]  # fmt: skip


def test_a_chain_in_use_loads_the_law_and_no_package():
    """One that is bound and has updated weights: rooms of the law alone, and nothing that torch had not loaded."""
    code = """
before = set(sys.modules)
import torch
import gradchain as gch
model = torch.nn.Linear(3, 1)
updater = gch.chain(gch.clip_by_norm(1.0), gch.adamw(1e-3)).bind(model)
bound = set(sys.modules) - before
updater.update(model(torch.ones(2, 3)).square().mean())
answer = sorted(bound), sorted(set(sys.modules) - before)
"""
    for modules in alone(code):
        assert [name for name in modules if name.partition(".")[0] != "gradchain"] == []
        assert sorted({name.split(".")[1] for name in modules if "." in name}) == ROOMS_OF_A_CHAIN


def in_turn(names: list[str]) -> list[str]:
    """Every eighth, for each is asked for in a process of its own; with GRADCHAIN_LONG=1 all."""
    return names if os.environ.get("GRADCHAIN_LONG") else names[::8]


@pytest.mark.slow
def test_each_name_is_the_first_that_is_asked_for():
    """Of both lists and of each room: it loads alone, is no module, and is what its home has."""
    names = [f"{door.__name__}:{name}" for door in DOORS for name in door.__all__ if name not in gch._SHOWN]
    code = """
import gradchain as gch
def first(path):
    door, _, name = path.partition(":")
    value = getattr(gch.rules if door == "gradchain.rules" else gch, name)
    from importlib import import_module
    homes = sys.modules[door]._HOMES
    home = import_module(f"gradchain.{homes[name]}") if name in homes else sys.modules[door]
    return [type(value).__name__ != "module", getattr(home, name) is value, name in vars(sys.modules[door])]
answer = each(first, given)
"""
    answers = alone(code, given=in_turn(names))
    assert len(answers) > 25
    assert {name: said for name, said in answers.items() if said != [True, True, True]} == {}


# What is imported before every public name is asked for: all of these, or one alone that is called as a name is.
MODULES = sorted(
    ".".join(("gradchain", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if path.name != "__main__.py" and path.relative_to(ROOT).parts[0] not in ("demo", "cli")
)


@pytest.mark.slow
def test_no_module_hides_a_name():
    """`import gradchain.combinators.masked` makes the module an attribute; `masked` is the link all the same."""
    code = """
import gradchain
from importlib import import_module
ROOMS = ["", ".rules", ".transforms", ".combinators", ".optimizers", ".schedules", ".selectors", ".updater"]
SHOWN = {"rules", "schedules", "see", "selectors"}
def hidden(modules):
    for module in modules:
        import_module(module)
    rooms = {room: import_module(f"gradchain{room}") for room in ROOMS}
    return [f"{room}:{n}" for room, module in rooms.items() for n in module.__all__
            if n not in SHOWN and type(getattr(module, n)).__name__ == "module"]
answer = each(hidden, given)
"""
    listed = {name for room in map(sys.modules.get, MODULES) for name in getattr(room, "__all__", ())}
    namesakes = [[module] for module in MODULES if module.rpartition(".")[2] in listed]
    known = ["gradchain.combinators.masked"]
    assert known in namesakes and len(namesakes) > 8
    tried = [known, *(one for one in in_turn(namesakes) if one != known)]
    answers = alone(code, given=[MODULES, MODULES[::-1], *tried])
    assert len(answers) == len(tried) + 2
    assert {modules: said for modules, said in answers.items() if said} == {}


def test_a_file_that_loads_on_first_use_is_not_called_as_what_it_gives():
    """Else the import of the file would hide the name: nothing binds it again after that, as an eager room does.

    A room that can be called as what it gives hides nothing.
    """
    for door in DOORS:
        files = {path.stem for path in Path(door.__file__).parent.iterdir()} - {*getattr(door, "_SHOWN", ())}
        called = {name for name in files if callable(sys.modules.get(f"{door.__name__}.{name}"))}
        assert sorted((files - called) & set(door.__all__)) == []


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_a_star_gives_the_list(door):
    """And `dir` too, before anything was asked for."""
    answer = alone(
        f"import {door.__name__} as door\nlisted = dir(door)\n"
        f"space = {{}}\nexec('from {door.__name__} import *', space)\n"
        "answer = sorted(n for n in space if n != '__builtins__'), sorted(set(door.__all__) - set(listed))\n"
    )
    assert answer == [sorted(door.__all__), []]


def test_rooms_are_attributes():
    """`import gradchain as gch` is enough for `gch.transforms`, as long as nobody has imported it."""
    code = "import gradchain\nanswer = each(lambda room: getattr(gradchain, room).__name__, given)"
    assert alone(code, given=list(gch._ROOMS)) == {room: f"gradchain.{room}" for room in gch._ROOMS}


# what finds links by name


@pytest.mark.slow
def test_a_config_is_read_where_no_link_was_used():
    """Of every row of the table: a link is found by its name in a config, and by the module that a pickle names."""
    configs, pickles = {}, {}
    for case in CASES:
        try:
            configs[case.subject] = json.dumps(gch.to_config(case.link)), repr(case.link)
            pickles[case.id] = pickle.dumps(case.link).hex(), repr(case.link)
        except (TypeError, AttributeError, pickle.PicklingError):  # functions of the test's own
            continue
    code = """
def read(row):
    from gradchain import from_config
    try:
        return repr(from_config(json.loads(given[row][0]))) == given[row][1]
    except KeyError as error:
        return str(error)
answer = each(read, given)
"""
    answers = alone(code, given={row: configs[row] for row in in_turn([*configs])})
    foreign = {row: said for row, said in answers.items() if said is not True}
    assert len(answers) - len(foreign) > 10
    assert all(re.search(r"'(rules|cases)[.:\w]*' is not gradchain's", said) for said in foreign.values()), foreign
    plain = {row: said for row, said in pickles.items() if b"rules" not in bytes.fromhex(said[0])}
    code = "import pickle\nanswer = {row: repr(pickle.loads(bytes.fromhex(given[row][0]))) for row in given}"
    assert len(plain) > 40
    assert alone(code, given=plain) == {row: said for row, (_, said) in plain.items()}


@pytest.mark.slow
def test_no_link_may_be_registered_over_one_that_is_not_loaded():
    """`register` refuses the name of each link, whether it was used or not."""
    code = """
import gradchain as gch
def taken(name):
    try:
        gch.register(name)(lambda learning_rate: gch.scale(learning_rate))
    except ValueError as error:
        return "is taken by" in str(error)
    return False
answer = each(taken, given)
"""
    names = in_turn(sorted(registry))
    assert alone(code, given=names) == dict.fromkeys(names, True)


# what there need not be


def needed(*packages: str) -> set[str]:
    """What pip installs with these distributions, in the spelling of their files: the closure of what they require."""
    found: set[str] = set()
    asked = [re.sub(r"[-_.]+", "-", package).lower() for package in packages]
    while asked:
        package = asked.pop()
        if package in found:
            continue
        found.add(package)
        try:
            lines = metadata.requires(package) or []
        except metadata.PackageNotFoundError:  # for another platform
            continue
        names = [re.match(r"[\w.-]+", line)[0] for line in lines if "extra ==" not in line]
        asked += [re.sub(r"[-_.]+", "-", name).lower() for name in names]
    return found


# As if nothing were installed but these: what finds files answers that there is no such module.
BARE = """
class Bare:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *more):
        return None if name.partition(".")[0] in given else self.finder.find_spec(name, *more)
    def __getattr__(self, name):
        return getattr(self.finder, name)
for name in [n for n in sys.modules if n.partition(".")[0] in given]:
    del sys.modules[name]
sys.meta_path[:] = [Bare(finder) for finder in sys.meta_path]
"""


def test_torch_and_typing_extensions_are_enough():
    """README's first recipe, every name of the lists and a class of torch's by name, without any other package."""
    known = needed("torch", "typing-extensions")
    others = sorted(
        module
        for module, packages in metadata.packages_distributions().items()
        if not {re.sub(r"[-_.]+", "-", package).lower() for package in packages} & known
    )
    assert {"torch_optimizer", "optax", "jax", "transformers", "pytest"} <= set(others) and "torch" not in others
    page = [block.text for block in blocks((ROOT.parent / "README.md").read_text()) if block.language == "python"]
    recipe = next(number for number, text in enumerate(page) if ".bind(" in text)
    program = (
        BARE
        + "\n".join(page[: recipe + 1])
        + """
assert updater.num_updates > 0
names = [getattr(door, name) for door in (gch, gch.rules) for name in door.__all__]
assert len(names) > 100
gch.chain(gch.from_torch("AdamW", lr=0.1)).bind(model)
answer = []
for name in ("Lamb", "torch_optimizer.Lamb", "lion_pytorch.Lion", "transformers.Adafactor", "Adamm"):
    try:
        gch.from_torch(name, lr=0.1)
    except KeyError as error:
        answer.append(error.args[0])
assert not set(given) & {name.partition(".")[0] for name in sys.modules}
"""
    )
    assert alone(program, given=others) == [
        f"from_torch: there is no optimizer 'Lamb' in {', '.join(PACKAGES)}, as far as installed: torch.",
        *(
            f"from_torch: there is no optimizer {name!r}: {name.partition('.')[0]} is not installed here."
            for name in ("torch_optimizer.Lamb", "lion_pytorch.Lion", "transformers.Adafactor")
        ),
        f"from_torch: there is no optimizer 'Adamm' in {', '.join(PACKAGES)}, as far as installed: torch. "
        "Did you mean 'Adam' or 'RAdam' or 'NAdam'?",
    ]


# a family that is not on top


FAMILY = '''"""A rule that is in its room only."""

from gradchain.core.context import Context
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform


class scale_by_half(Transform):
    """Half of it."""

    descends = False

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        return 0.5 * g, state
'''


def test_a_family_is_found_among_the_rules_and_loads_when_it_is_asked_for(tmp_path):
    """A file in `rules` and two lines in its list, as CONTRIBUTING has it: by name and by `from_config`, not before."""
    package = shutil.copytree(ROOT, tmp_path / "gradchain", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "rules" / "halves.py").write_text(FAMILY)
    door = package / "rules" / "__init__.py"
    seen = "    from gradchain.rules.halves import scale_by_half as scale_by_half\n"
    lines = door.read_text().replace("if TYPE_CHECKING:\n", f"if TYPE_CHECKING:\n{seen}")
    lines = lines.replace("_HOMES = {\n", '_HOMES = {\n    "scale_by_half": "rules.halves",\n')
    assert lines.count("scale_by_half") == 3
    door.write_text(lines)
    code = """
import gradchain as gch
def ways(way):
    before = [hasattr(gch, "scale_by_half"), "scale_by_half" in dir(gch.rules), "gradchain.rules.halves" in sys.modules]
    if way == "name":
        link = gch.rules.scale_by_half()
    elif way == "config":
        link = gch.from_config({"link": "scale_by_half"})
    else:
        from gradchain.rules import scale_by_half
        link = scale_by_half()
    g = gch.Tensors.of({"w": torch.tensor([3.0])})
    return [*before, repr(link), link.update(g, link.init(g), gch.Context(g, step=0))[0]["w"].tolist()]
answer = each(ways, ["name", "config", "import"])
"""
    found = alone(code, package=package)
    assert list(found) == ["name", "config", "import"]
    assert all(said == [False, True, False, "scale_by_half()", [1.5]] for said in found.values()), found
