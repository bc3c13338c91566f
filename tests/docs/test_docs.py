"""What the documentation says is so: its examples run, its tables are complete, its versions agree.

Each checker here is followed by its negative control: a text with one mistake, which it must refuse.
"""

from __future__ import annotations

import doctest
import importlib.util
import inspect
import io
import pkgutil
import re
import types
from collections.abc import Iterator

import pytest
import torch
from cases import CASES
from doc_blocks import ROOT, blocks, outputs, prints, run_python, tables

import gradchain
from gradchain import optimizers, rules, schedules
from gradchain.core.transform import registry

README = (ROOT / "README.md").read_text()
ENGINE = (ROOT / "docs" / "engine.md").read_text()
LINKS = (ROOT / "docs" / "links.md").read_text()
CATALOGUE = (ROOT / "docs" / "catalogue.md").read_text()
PAGES = [
    "README.md", "CONTRIBUTING.md", "docs/accumulation.md", "docs/catalogue.md", "docs/checkpoints.md",
    "docs/coming_from.md", "docs/concepts/all_or_nothing.md", "docs/concepts/chain_and_step.md",
    "docs/concepts/numbers_and_clocks.md", "docs/concepts/recorded.md", "docs/diverging.md", "docs/engine.md",
    "docs/guide.md", "docs/links.md", "docs/loop.md", "docs/mixed_precision.md", "docs/moving_state.md",
    "docs/own_links.md", "docs/see.md", "docs/trainers.md",
]  # fmt: skip
COMMANDS = [
    "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt torch -e '.[demo]' && "
    ".venv/bin/python -m gradchain.demo",
    "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt torch -e '.[test]' && .venv/bin/pytest -n 2",
]


# the pages' code


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where examples may write."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_python_of_a_page_runs(page, folder):
    assert run_python((ROOT / page).read_text(), page)


def check_comments(markdown: str, name: str) -> int:
    """A comment behind a print is what is printed; words may follow a comma. Returns how many there were."""
    pairs = prints(markdown, name)
    for says, printed in pairs:
        assert printed in (says, says.partition(", ")[0]), f"{name}: says {says!r}, and {printed!r} was printed"
    return len(pairs)


@pytest.mark.parametrize(
    ("page", "many"),
    [
        ("README.md", 1),
        ("docs/coming_from.md", 2),
        ("docs/guide.md", 1),
        ("docs/catalogue.md", 2),
        ("docs/loop.md", 4),
        ("docs/diverging.md", 4),
        ("docs/accumulation.md", 4),
        ("docs/mixed_precision.md", 4),
        ("docs/own_links.md", 2),
        ("docs/concepts/all_or_nothing.md", 2),
        ("docs/concepts/chain_and_step.md", 3),
        ("docs/concepts/numbers_and_clocks.md", 5),
        ("docs/concepts/recorded.md", 1),
    ],
    ids=lambda v: str(v),
)
def test_comments_behind_prints_say_what_is_printed(page, many, folder):
    assert check_comments((ROOT / page).read_text(), page) == many


def test_the_page_of_links_says_what_its_code_prints(folder):
    """What a link owns, counts and reads, when clocks tick, how a file is laid out and what a load leaves alone."""
    assert check_comments(LINKS, "docs/links.md") == LINKS.count("\nprint(") > 0


def test_a_comment_that_says_something_else_is_refused(folder):
    page = "```python\nprint(0.25 + 0.25)  # {}\nprint([1, 2])\n# [1, 2]\n```\n"
    assert check_comments(page.format("0.5, and more"), "page") == 2
    with pytest.raises(AssertionError, match=r"says '1', and '0\.5' was printed"):
        check_comments(page.format("1"), "page")


def test_the_page_of_the_engine_shows_what_its_code_prints(folder):
    """The tape, the programs, the printed C and the numbers run again are those of today."""
    pairs = outputs(ENGINE, "docs/engine.md")
    assert len(pairs) == 5
    for says, printed in pairs:
        assert printed == says


def test_the_page_for_those_who_come_shows_what_its_code_prints(folder):
    pairs = outputs((ROOT / "docs" / "coming_from.md").read_text(), "docs/coming_from.md")
    assert len(pairs) == 2
    for says, printed in pairs:
        assert printed == says


def test_the_page_of_a_chain_shows_what_its_code_prints(folder):
    """What comes back from each update, and what it counted."""
    (pair,) = outputs((ROOT / "docs" / "concepts" / "chain_and_step.md").read_text(), "chain_and_step.md")
    assert pair[0] == pair[1]


def test_the_page_of_own_links_shows_what_a_fast_one_and_a_slow_one_say(folder):
    """What `explain` prints of a link in kernels, of a `map` and of the reference, which the page words."""
    pairs = outputs((ROOT / "docs" / "own_links.md").read_text(), "docs/own_links.md")
    assert len(pairs) == 2
    for says, printed in pairs:
        assert printed == says


def test_decay_for_matrices_is_the_same_in_the_three_ways_that_the_catalogue_names():
    decay = "add_decayed_weights(0.1)", "add_decayed_weights(multiply(0.1, (~min_ndim(2), 0.0)))"
    assert "mask=min_ndim(2))`" in CATALOGUE and all(one in CATALOGUE for one in decay)
    chains = [
        rules.adamw(0.1, weight_decay=0.1, mask=gradchain.min_ndim(2)),
        *(
            gradchain.chain(gradchain.scale_by_adam(), link, gradchain.scale_by_learning_rate(0.1))
            for link in (
                eval(f"masked({decay[0]}, min_ndim(2))", {n: getattr(gradchain, n) for n in gradchain.__all__}),
                eval(decay[1], {n: getattr(gradchain, n) for n in gradchain.__all__}),
            )
        ),
    ]
    ends = []
    for chain in chains:
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        updater = chain.bind(layer)
        for _ in range(3):
            updater.update(layer(torch.ones(4, 3)).square().sum())
        ends.append(torch.cat([layer.weight.detach().flatten(), layer.bias.detach()]))
    assert all(torch.equal(end, ends[0]) for end in ends)


def test_a_block_of_text_that_says_something_else_is_seen(folder):
    page = "```python\nfor i in range(2):\n    print(i)\n```\n\n```text\n0\n1\n```\n```text\nno\n```\n"
    assert outputs(page, "page") == [("0\n1\n",) * 2]
    assert outputs(page.replace("\n1", "\n2"), "page") == [("0\n2\n", "0\n1\n")]


def test_the_page_of_the_engine_maps_every_file_to_tests_that_exist():
    """With what the file says of itself, in its first line."""
    rooms = ROOT / "gradchain" / "engine"
    files = {str(f.relative_to(rooms)): f for f in rooms.rglob("*.py") if f.name != "__init__.py"}
    rows = {path.strip("`"): (says, tests) for path, says, tests in tables(ENGINE)["file"]}
    assert rows.keys() == files.keys()
    for path, (says, tests) in rows.items():
        assert says == files[path].read_text().splitlines()[0].strip('"'), path
        assert all((ROOT / test.strip("`")).is_file() for test in tests.split(", ")), path


def test_a_block_that_raises_fails(folder):
    page = README + "\n```python\nraise LookupError('in the last block')\n```\n"
    with pytest.raises(LookupError, match="in the last block"):
        run_python(page, "README.md")


def test_a_block_is_run_and_sees_the_ones_before(folder):
    with pytest.raises(NameError, match="later"):
        run_python("```python\nearlier = later\n```\n```python\nlater = 1\n```\n", "page")
    assert len(run_python("```python\na = 1\n```\n```sh\nno python\n```\n```python\nassert a == 1\n```\n", "page")) == 2


def test_an_open_fence_is_refused():
    with pytest.raises(ValueError, match="not closed"):
        blocks("```python\nprint(1)\n")


@pytest.mark.parametrize("page", PAGES)
def test_pages_import_the_library_as_gch_only(page):
    """`gc` is the standard library's, and a from-import hides where a name comes from."""
    code = "\n".join(b.text for b in blocks((ROOT / page).read_text()) if b.language == "python" and not b.title)
    imports = [line for line in code.splitlines() if re.match(r"\s*(import|from)\b.*\bgradchain\b", line)]
    assert set(imports) <= {"import gradchain as gch", "from gradchain.adapters import mmengine"}


# docstrings


def modules() -> Iterator[types.ModuleType]:
    yield gradchain
    for found in pkgutil.walk_packages(gradchain.__path__, "gradchain."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def run_docstrings(module: types.ModuleType) -> tuple[int, str]:
    """How many examples failed, and the report."""
    report = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE, verbose=False)
    for example in doctest.DocTestFinder(exclude_empty=True).find(module):
        torch.manual_seed(0)
        runner.run(example, out=report.write)
    return runner.summarize(verbose=False).failed if runner.tries else 0, report.getvalue()


@pytest.mark.parametrize("module", list(modules()), ids=lambda module: module.__name__)
def test_examples_in_docstrings_run(module, folder, capsys):
    failed, report = run_docstrings(module)
    assert not failed, report


def test_a_wrong_example_is_found(capsys):
    module = types.ModuleType("wrong")
    module.__doc__ = ">>> 1 + 1\n3\n"
    failed, report = run_docstrings(module)
    assert failed == 1
    assert "Expected" in report


@pytest.mark.parametrize("name", sorted(n for n in {*registry, *optimizers.__all__}))
def test_every_link_and_alias_has_an_example(name):
    assert ">>> " in inspect.getdoc(registry.get(name) or getattr(optimizers, name))


ORDER = ["Args", "Shapes", "State", "Units", "Raises", "Equals", "Paper"]


def check_sections(name: str, doc: str) -> None:
    """The sections of a link's docstring stand in the order of the house, and the example comes last."""
    heads = re.findall(r"^([A-Z][a-z]+):", doc, flags=re.M)
    sections = [head for head in heads if head in ORDER]
    assert sections == sorted(sections, key=ORDER.index), f"{name}: sections are in the order {sections}"
    assert len(sections) == len(set(sections)), f"{name}: a section comes twice: {sections}"
    assert "Equals" in sections or "Args" in sections or "Shapes" in sections, f"{name}: no section"
    example = doc.index(">>> ")
    assert not re.search(r"^(Args|Shapes|State|Units|Raises|Equals|Paper):", doc[example:], flags=re.M), name


@pytest.mark.parametrize("name", sorted(registry))
def test_sections_of_a_links_docstring_are_in_order(name):
    check_sections(name, inspect.getdoc(registry[name]))


def test_sections_out_of_order_are_refused():
    good = "Do it.\n\nArgs:\n    a: one.\n\nState: none.\n\n>>> 1\n1\n"
    check_sections("good", good)
    with pytest.raises(AssertionError, match="order"):
        check_sections("bad", good.replace("State", "x").replace("Args", "State").replace("x:", "Args:"))


# the tables


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([a-z_0-9]+)(?:\(.*?\))?`", cell)


def check_names(what: str, found: list[str], expected: set[str]) -> None:
    assert len(found) == len(set(found)), f"{what}: a name comes twice"
    assert set(found) == expected, (
        f"{what}: missing {sorted(expected - set(found))}, not there {sorted(set(found) - expected)}"
    )


def links_of(markdown: str) -> list[list[str]]:
    found = tables(markdown)
    return [*found["link"], *found["alias"]]


def documented(name: str) -> str:
    return inspect.getdoc(registry.get(name) or getattr(optimizers, name)) or ""


def check_links(markdown: str) -> None:
    """Every link and alias has its row, and the row says nothing that the docstring does not."""
    rows = links_of(markdown)
    own = {name for name, link in registry.items() if link.__module__.startswith("gradchain.")}
    check_names("links", [name for row in rows for name in names_in(row[0])], own | set(optimizers.__all__))
    for cell, says, paper, peers in rows:
        (name,) = names_in(cell)
        doc = documented(name)
        assert says, f"{name}: the row does not say what it does"
        for url in re.findall(r"\]\((\S+)\)(?:;|$)", paper):
            assert url in doc, f"{name}: the docstring has no {url}"
        cited = re.search(r"^Paper: |https?://(arxiv|doi|openreview)", doc, flags=re.M)
        assert bool(paper) == bool(cited), f"{name}: paper in the row {paper!r}, in the docstring {bool(cited)}"
        for peer in re.findall(r"`(.+?)`", peers):
            pattern = rf"{re.escape(peer)}\b"
            assert re.search(pattern, doc), f"{name}: the docstring does not name {peer}"


def test_every_link_and_alias_has_its_row():
    check_links(CATALOGUE)


def test_aliases_of_families_say_what_their_docstrings_do():
    """Each row is an alias of gch.rules; its paper and its peers are in the docstring, and in the table of cases."""
    compared = {c.subject: " ".join(p.name for d in CASES if d.subject == c.subject for p in d.peers) for c in CASES}
    rows = tables(CATALOGUE)["alias of a family"]
    names = [name for row in rows for name in names_in(row[0])]
    assert names == sorted(set(names)) and not {*names} & {*optimizers.__all__, *registry}
    for name, (_, says, paper, peers) in zip(names, rows, strict=True):
        doc = inspect.getdoc(getattr(rules, name))
        assert says and all(url in doc for url in re.findall(r"\]\((\S+)\)(?:;|$)", paper)), name
        for peer in re.findall(r"`(.+?)`", peers):
            assert peer in doc and peer in compared[name], f"{name}: {peer}"


@pytest.mark.parametrize("name", sorted({*registry, *optimizers.__all__}))
def test_a_link_or_alias_has_a_row(name):
    """By its name, so that the tests of a new rule find it missing."""
    rows = [row for row in links_of(CATALOGUE) if names_in(row[0]) == [name]]
    assert len(rows) == 1, f"{name}: give it a row in docs/catalogue.md"


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("| `trace` |", "| `no_such_link` |", "missing ['trace'], not there ['no_such_link']"),
        ("| `sgd` |", "| `adam` |", "a name comes twice"),
        ("1412.6980) | `optax.scale_by_adam`", "1412.0000) | `optax.scale_by_adam`", "no https://arxiv.org/abs/1412"),
        ("`optax.stateless` |", "`optax.no_such_peer` |", "does not name optax.no_such_peer"),
        (
            "[Chen et al., 2023](https://arxiv.org/abs/2302.06675) | `optax.scale_by_lion`",
            " | ",
            "scale_by_lion: paper",
        ),
        ("| `sam` | takes the gradient a little way uphill |", "| `sam` | |", "does not say what it does"),
    ],
)
def test_a_wrong_row_is_refused(old, new, sentence):
    assert CATALOGUE.count(old) == 1, old
    with pytest.raises(AssertionError, match=re.escape(sentence)):
        check_links(CATALOGUE.replace(old, new))


NO_WORDS = {"ParameterFacts", "PerParameter", "Predicate", "Selector", "SelectorLike", "resolve"}  # types, and a part


def check_whole(markdown: str) -> None:
    """Every rule and selector is on the page, and each projection in its table; schedules have a test of theirs."""
    shown = set(re.findall(r"`(?:gch\.(?:\w+\.)?)?([A-Za-z_]\w*)", markdown))
    rooms = {*rules.__all__, *gradchain.selectors.__all__} - NO_WORDS
    assert sorted(rooms - shown) == []
    projections = [name for row in tables(markdown)["projection"] for name in names_in(row[0])]
    check_names("projections", projections, {n for n in rules.__all__ if n.startswith("projection_")})


def test_the_catalogue_has_every_name():
    check_whole(CATALOGUE)


@pytest.mark.parametrize(
    ("name", "sentence"), [("projection_simplex", "projection_simplex"), ("masked", "masked"), ("layer_decay", "layer")]
)
def test_a_name_that_is_left_out_is_seen(name, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check_whole(CATALOGUE.replace(f"`{name}", "`"))


def check_peers(markdown: str, compared: dict[str, str]) -> None:
    """`compared` has, for each link and alias, the names of the peers that its rows in the table of cases have."""
    for cell, _, _, peers in links_of(markdown):
        (name,) = names_in(cell)
        for peer in re.findall(r"`(.+?)`", peers):
            pattern = rf"{re.escape(peer)}(?![\w.])"
            assert re.search(pattern, compared.get(name, "")), f"{name}: no row of tests/cases.py compares with {peer}"


def test_every_peer_in_the_tables_is_one_that_tests_compare_with():
    compared: dict[str, str] = {}
    for case in CASES:
        compared[case.subject] = " ".join([compared.get(case.subject, ""), *(peer.name for peer in case.peers)])
    check_peers(CATALOGUE, compared)
    with pytest.raises(AssertionError, match=r"adamw: no row of tests/cases.py compares with torch.optim.AdamW"):
        check_peers(CATALOGUE, {**compared, "adamw": "optax.adamw, torch.optim.Adam"})


def check_schedules(markdown: str) -> None:
    """Every schedule one may write has its row, with arguments that it takes."""
    rows = tables(markdown)["schedule"]
    made_by_methods = {"chained", "clipped", "combined", "repeated", "taken"}
    kinds = {n for n in schedules.__all__ if inspect.isclass(getattr(schedules, n))} - {"Schedule"}
    found = [re.match(r"`(\w+)\((.*)\)`", row[0]) for row in rows]
    check_names("schedules", [m[1] if m else "?" for m in found], kinds - made_by_methods)
    for name, arguments in [(m[1], m[2]) for m in found if m and "…" not in m[2]]:
        takes = list(inspect.signature(getattr(schedules, name)).parameters)
        assert arguments.split(", ") == takes[: arguments.count(",") + 1], f"{name}: takes {takes}"


def test_every_schedule_has_its_row():
    check_schedules(CATALOGUE)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("\n| `cosine(start, end, steps)`", "\n| `sine(start, end, steps)`", "missing ['cosine']"),
        ("\n| `cosine(start, end, steps)`", "\n| `cosine(begin, end, steps)`", "cosine: takes ['start'"),
    ],
)
def test_a_wrong_schedule_is_refused(old, new, sentence):
    assert CATALOGUE.count(old) == 1, old
    with pytest.raises(AssertionError, match=re.escape(sentence)):
        check_schedules(CATALOGUE.replace(old, new))


def test_every_selector_is_named():
    """The paragraphs on selectors and on rules have every one of the front door."""
    bases = {"Selector", "PerParameter"}
    paragraphs = [p for p in CATALOGUE.split("\n\n") if "**selector**" in p or "A rule is a pair" in p]
    kinds = [*gradchain.selectors.__all__, "rest"]
    missing = [n for n in kinds if n in gradchain.__all__ and n not in bases and f"`{n}" not in "".join(paragraphs)]
    assert not missing


def test_every_name_in_the_pages_exists():
    """`gch.name` in text or code is a name of the front door, or of a room that it shows."""
    for page in PAGES:
        for path in sorted(set(re.findall(r"\bgch\.([\w.]*\w)", (ROOT / page).read_text()))):
            thing: object = gradchain
            for part in path.split("."):
                assert hasattr(thing, part), f"{page}: gch.{path} does not exist"
                thing = getattr(thing, part)


def broken(page: str, text: str) -> list[str]:
    """The links of a page to files that are not there, but for what only looks like one in code."""
    text = re.sub(r"^```.*?^```$|`[^`\n]+`", "", text, flags=re.M | re.S)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    return [target for target in targets if target and not (ROOT / page).parent.joinpath(target).exists()]


@pytest.mark.parametrize(
    "page",
    [
        *PAGES,
        "docs/from_torch.md",
        "docs/which.md",
        "docs/optax.md",
        "docs/paths.md",
        "docs/scale.md",
        "benchmarks/README.md",
        "docs/ranks.md",
        "docs/not_finite.md",
        "docs/comparisons.md",
        "docs/concepts/rule_is_a_file.md",
        "docs/concepts/what_a_test_must_show.md",
    ],
)
def test_links_to_files_lead_somewhere(page):
    assert broken(page, (ROOT / page).read_text()) == []
    assert broken(page, "[a](no_such_file.md) [b](https://x.org/c)") == ["no_such_file.md"]


def test_readme_is_short():
    """Long tables have pages of their own."""
    assert README.count("\n") < 230


# versions and commands


def versions(citation: str, changelog: str) -> set[str]:
    cited = re.search(r'^version: "(.+)"$', citation, flags=re.M)
    top = re.search(r"^## \[(.+?)\] - (unreleased|\d{4}-\d\d-\d\d)$", changelog, flags=re.M)
    assert cited, "CITATION.cff has no version"
    assert top, "CHANGELOG.md has no version"
    return {cited[1], top[1]}


def test_versions_agree():
    citation, changelog = ((ROOT / name).read_text() for name in ("CITATION.cff", "CHANGELOG.md"))
    assert versions(citation, changelog) == {gradchain.__version__}
    assert versions(citation.replace(gradchain.__version__, "9.9.9"), changelog) != {gradchain.__version__}
    older = f"## [9.9.9] - 2026-01-01\n\n{changelog}"
    assert versions(citation, older) == {"9.9.9", gradchain.__version__}


def missing_commands(markdown: str) -> list[str]:
    lines = {line for block in blocks(markdown) if block.language == "sh" for line in block.text.splitlines()}
    return [command for command in COMMANDS if command not in lines]


def test_readme_has_the_two_commands():
    """CI runs the second as README prints it."""
    assert missing_commands(README) == []
    assert missing_commands(README.replace("-n 2", "-n 4")) == COMMANDS[1:]
    assert COMMANDS[1] in (ROOT / ".ci" / "run").read_text()


def test_the_modules_that_readme_runs_exist():
    for name in re.findall(r"bin/python -m ([\w.]+)", README):
        assert importlib.util.find_spec(name) is not None, name
