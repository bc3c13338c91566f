"""The site's generated pages: every link, alias and schedule has one, with its formula, arguments, picture and facts.

`mkdocs build --strict`, a step of CI, builds the whole; here is what its pages say, without mkdocs.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from xml.dom import minidom

import pytest
from doc_blocks import ROOT, tables

import gradchain as gch
from gradchain.core.transform import registry

sys.path.insert(0, str(ROOT / "docs" / "_site"))
import curves
import docstrings
import formulas
import known
import pages
import repository

CONFIG = (ROOT / "mkdocs.yml").read_text()


@pytest.fixture(scope="module", autouse=True)
def little_pictures():
    """One rate and few steps in place of the best of five: what is drawn is looked at elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known, "RATES", (0.03,))
        patch.setattr(known, "STEPS", 4)
        yield


# formulas


def read_out(html: str) -> str:
    """MathML as text in which fractions, roots, powers and indices have their brackets."""
    marks = {"mfrac": "{{{}/{}}}", "msqrt": "√{{{}}}", "msup": "{}^{{{}}}", "msub": "{}_{{{}}}", "mroot": "{}√{}"}

    def said(node) -> str:
        if node.nodeType == node.TEXT_NODE:
            return node.data.strip()
        parts = [said(child) for child in node.childNodes]
        form = marks.get(node.nodeName)
        return form.format(*parts) if form else "".join(parts)

    made = minidom.parseString(f"<all>{html.replace('&nbsp;', ' ')}</all>").documentElement
    return re.sub(r"[\u2061\u2062\s]", "", said(made))


@pytest.mark.parametrize(
    ("line", "drawn"),
    [
        ("m_t = b1 m_(t-1) + (1 - b1) g", "m_{t}=b1m_{t−1}+(1−b1)g"),
        ("u = a b / c d", "u={ab/c}d"),
        ("u = (m_t / (1 - b1^t)) / (sqrt(v) + eps)", "u={{m_{t}/1−b1^{t}}/√{v}+ε}"),
        ("u = g min(1, max_norm / (‖g‖_p + eps))", "u=gmin(1,{max_norm/‖g‖_{p}+ε})"),
        ("v = v_(t-1) - (1 - b2) g²", "v=v_{t−1}−(1−b2)g^{2}"),
        ("scale ← max(backoff_factor · scale, 2^-126)", "scale←max(backoff_factor·scale,2^{−126})"),
        ("u = m̂ if ρ <= 5, else 0", "u=m̂ifρ≤5,else0"),
        ("value(t) = start * gamma ** floor(t / step_size)", "value(t)=start·γ^{⌊{t/step_size}⌋}"),
        ("u = ∇L(w + rho T² g / (‖T g‖ + 1e-12))", "u=∇L(w+{rhoT^{2}g/‖Tg‖+10^{−12}})"),
        ("a rho > 1,  c = a b + A C", "arho>1,c=ab+AC"),
        ("u_i = link_b.update(g_i)", "u_{i}=link_{b}.update(g_{i})"),
        ("b ← 1 / n,  the mean of g over each row", "b←{1/n},themeanofgovereachrow"),
    ],
)
def test_a_formula_is_read_as_it_is_meant(line, drawn):
    names = {"start", "b1", "b2", "max_norm", "backoff_factor", "rho", "step_size"}
    assert read_out(formulas.html(line, names)) == drawn


def test_words_of_a_formula_stay_words():
    html = formulas.html("u_i = inner(g)_i for i in selector, else g_i", {"inner", "selector"})
    assert re.findall(r"<span>([a-z ]+)</span>", html) == ["for", "in", "else"]
    assert re.findall(r"<span>([a-z ]+)</span>", formulas.html("x: a norm > a n", {"norm"})) == ["a"]


# docstrings


def test_a_docstring_in_its_parts():
    doc = docstrings.read(gch.scale_by_adam)
    assert doc.summary.startswith("Divide the mean gradient") and doc.formula.splitlines()[0].startswith("m_t = b1")
    assert list(doc.arguments) == list(inspect.signature(gch.scale_by_adam).parameters)
    assert doc.papers[0] == ("Kingma and Ba", "2014", "https://arxiv.org/abs/1412.6980")
    assert doc.example.startswith(">>> import gradchain")


def test_a_paper_whose_address_has_parentheses():
    (found,) = docstrings.cited("Polyak, 1964, https://doi.org/10.1016/0041-5553(64)90137-5")
    assert found == ("Polyak", "1964", "https://doi.org/10.1016/0041-5553(64)90137-5")


# pages


# what a star argument is called where dataclasses.replace gives it, and what only a config writes
BY_NAME = {"begins", "changes", "intervals", "pairs", "windows"}


def check_page(text: str, thing, is_alias: bool = False) -> None:
    """A page has the formula as mathematics, each argument in its table, a picture, and nothing empty."""
    assert is_alias or "<math" in text, "no formula"
    rows = [row[0].strip("`*") for row in tables(text).get("argument", [])]
    takes = [name for name in inspect.signature(thing).parameters if name not in BY_NAME]
    missing = [name for name in takes if name not in rows]
    assert is_alias or not missing, f"no argument {missing}"
    assert re.search(r'<svg class="drawn".*<polyline class="way" points="[\d.,-]+ [\d.,-]+', text), "no picture"
    drawn = "".join(re.findall(r'points="([^"]*)"', text))
    assert not re.search("nan|inf", drawn), "not finite"


@pytest.mark.parametrize("name", known.links())
def test_every_link_has_its_page(name):
    check_page(pages.rule_page(known.rule(name)), getattr(gch.rules, name))


@pytest.mark.parametrize("name", known.aliases())
def test_every_alias_has_its_page(name):
    text = pages.rule_page(known.rule(name))
    check_page(text, getattr(gch.rules, name), is_alias=True)
    assert "Its links: [" in text


@pytest.mark.parametrize("name", curves.schedules())
def test_every_schedule_has_its_page(name):
    check_page(pages.schedule_page(curves.Curve(name)), getattr(gch.schedules, name))


def test_no_link_or_schedule_is_left_out():
    assert set(known.links()) == {n for n in registry if n in gch.rules.__all__} >= {"chain", "from_torch", "masked"}
    assert set(curves.schedules()) == set(curves.CURVES)
    table = pages.find_a_rule()[1]
    assert set(re.findall(r'<a href="(\w+)/">', table)) == {*known.links(), *known.aliases()}


def without(name: str, change) -> str:
    """The page of a link whose docstring is changed."""
    found = known.Rule(name)
    doc = inspect.getdoc(found.thing)
    vars(found)["doc"] = docstrings.parsed(change(doc))
    return pages.rule_page(found)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda doc: re.sub(r"^    .* = .*\n", "", doc, flags=re.M), "no formula"),
        (lambda doc: doc.replace("    b2: how", "    b3: how"), r"no argument \['b2'\]"),
    ],
    ids=["formula", "argument"],
)
def test_what_a_docstring_lost_is_seen(change, told):
    check_page(without("scale_by_adam", lambda doc: doc), gch.scale_by_adam)
    with pytest.raises(AssertionError, match=told):
        check_page(without("scale_by_adam", change), gch.scale_by_adam)


# what the code knows


SAID_BYTES = re.compile(r"(\d+) bytes per float32 element")


@pytest.mark.parametrize("name", [n for n in known.links() if SAID_BYTES.search(inspect.getdoc(registry[n]))])
def test_the_bytes_that_were_counted_are_those_that_the_docstring_says(name):
    said = SAID_BYTES.search(inspect.getdoc(registry[name]))[1]
    assert known.rule(name).state_bytes == float(said)


def test_what_remembers_rows_and_columns_remembers_less():
    side = known.SIDE
    assert known.rule("scale_by_factored_rms").state_bytes == 4 * 2 * side / side**2
    assert known.rule("scale_by_soap").state_bytes == 24 and known.rule("adamw").state_bytes == 8
    assert known.rule("scale_by_learning_rate").state_bytes == 0


def test_who_needs_a_closure_says_so():
    """Found by running them; each says in its docstring what it raises without one."""
    needs = {name for name in known.links() if known.rule(name).closure}
    assert needs == {n for n in known.links() if "without a closure" in inspect.getdoc(registry[n])} >= {"sam", "asam"}


FOR_MATRICES = re.compile(r"^Shapes: (any of )?two dimensions (or|and) more", re.M)


def test_who_is_for_matrices_says_so():
    only = {name for name in known.links() if known.rule(name).only_matrices}
    assert only == {n for n in known.links() if FOR_MATRICES.search(inspect.getdoc(registry[n]))} >= {"scale_by_muon"}
    assert known.rule("muon").only_matrices and not known.rule("adamw").only_matrices
    assert known.rule("scale_by_muon").whole_tensors and not known.rule("scale_by_adam").whole_tensors


def test_executors_are_asked():
    assert known.rule("scale_by_adam").executors == dict.fromkeys(
        ("native", "blocks", "foreach", "compiled", "triton"), ""
    )
    assert "random numbers" in known.rule("add_noise").executors["compiled"]


def test_years_are_those_of_the_catalogue():
    """The first paper of a link's row, by its address."""
    rows = {row[0].strip("`"): row[2] for row in tables((ROOT / "docs" / "catalogue.md").read_text())["link"]}
    for name in known.links():
        cited = re.findall(r"\[.*?, (\d{4})\]\((\S+?)\)(?:;|$)", rows.get(name, ""))
        ours = {url: year for _, year, url in known.rule(name).doc.papers}
        assert {url: year for year, url in cited}.items() <= ours.items(), name


def test_the_same_picture_is_drawn_twice():
    assert known.Rule("scale_by_adam").drawn == known.Rule("scale_by_adam").drawn


def test_the_script_asks_for_columns_that_there_are():
    heads = re.findall(r"<th>(.*?)</th>", pages.find_a_rule()[1])
    script = (ROOT / "docs" / "_site" / "find.js").read_text()
    asked = set(re.findall(r'(?:text\(row, |values\()"(\w+)"', script))
    assert asked == {"kind", "bytes", "matrices", "closure", "year"} <= set(heads)
    assert "http" not in script + (ROOT / "docs" / "_site" / "site.css").read_text()


# pages of the repository


@pytest.mark.parametrize(
    ("source", "here", "written", "made"),
    [
        ("README.md", "index.md", "[a](docs/guide.md#x)", "[a](guide.md#x)"),
        ("README.md", "index.md", "![a](docs/benchmarks.svg)", "![a](benchmarks.svg)"),
        ("README.md", "index.md", "[a](benchmarks/README.md)", "[a](benchmarks.md)"),
        ("README.md", "index.md", "[a](benchmarks/results)", "[a](HOME/tree/main/benchmarks/results)"),
        ("docs/links.md", "links.md", "[a](../CONTRIBUTING.md)", "[a](contributing.md)"),
        ("docs/concepts/recorded.md", "concepts/recorded.md", "[a](../guide.md)", "[a](../guide.md)"),
        ("docs/links.md", "links.md", "[a](../pyproject.toml)", "[a](HOME/blob/main/pyproject.toml)"),
        ("docs/links.md", "links.md", "[a](no_such.md)", "[a](no_such.md)"),
        ("docs/links.md", "links.md", "[a](https://x.y/z) `[a](b.md)`", "[a](https://x.y/z) `[a](b.md)`"),
    ],
)
def test_links_of_a_page_hold_on_the_site(source, here, written, made):
    known = {"guide.md", "benchmarks.svg", *repository.ELSEWHERE}
    assert repository.relinked(written, here, source, known, "HOME") == made


def test_every_page_has_its_place_in_the_navigation():
    named = re.findall(r": ([\w/]+\.md)$", CONFIG.partition("\nnav:")[2], flags=re.M)
    docs = ROOT / "docs"
    there = {str(p.relative_to(docs)) for p in docs.rglob("*.md")} - {"_site/find.md"}
    generated = {*repository.ELSEWHERE, "notebooks.md", "reference.md", "rules/index.md", "schedules/index.md"}
    assert len(named) == len(set(named)) and set(named) == there | generated


def test_the_pages_of_reference_exist():
    for names in repository.REFERENCE.values():
        for name in names:
            assert gch.__dict__.get(name.rpartition(".")[2]) or hasattr(gch, name.rpartition(".")[2]), name


@pytest.mark.parametrize("name", repository.INSIDE)
def test_what_is_hidden_is_there_and_nobody_reads_of_it(name):
    """Members that the reference leaves out are members, and no page of docs/ calls one on that class."""
    *home, last = name.split(".")
    of = getattr(importlib.import_module(".".join(["gradchain", *home])), last)
    assert all(hasattr(of, member) or member in of.__annotations__ for member in repository.INSIDE[name])
    said = {"Context": "ctx", "Updater": "updater"}.get(last)
    texts = [page.read_text() for page in (ROOT / "docs").rglob("*.md")] if said else []
    called = {found for text in texts for found in re.findall(rf"\b{said}\.(\w+)\(", text)}
    assert not called & set(repository.INSIDE[name])
