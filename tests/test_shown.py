"""Links and chains show themselves: a column where they are long, to rich, and as a table in a notebook."""

import itertools
import random
import re
from xml.etree import ElementTree

import pytest
import rules
import torch
from cases import CASES, Case

import gradchain as gch
from gradchain.core.transform import Transform
from gradchain.selectors.source import LINE

NAMES = {name: value for name, value in vars(rules).items() if callable(value)}
FRONT = {name: getattr(door, name) for door in (gch.rules, gch) for name in door.__all__}
KNOWN = {**vars(gch.schedules), **vars(gch.selectors), **NAMES, **FRONT, "torch": torch, "inf": float("inf")}
rows = pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
LINKS = [case.link for case in CASES]


def read(text: str) -> Transform:
    """The link that this code makes."""
    return eval(text, dict(KNOWN))


def num_rows(value: object) -> int:
    """How many rows an argument has in a table: one for each link in it, and one for whose branch it is."""
    if isinstance(value, tuple):
        links = sum(map(num_rows, value))
        return links + (links > 0 and not all(isinstance(one, (str, Transform)) for one in value))
    return 1 + sum(num_rows(one) for _, one in value.as_call()) if isinstance(value, Transform) else 0


def trees(seed: int) -> Transform:
    """A link of links: each is a row of the table of cases, or holds some, under names, selectors or none."""
    die, names = random.Random(seed), itertools.count()

    def link(depth: int) -> Transform:
        kind = die.choice(["row", "row", "chain", "masked", "partition", "named"]) if depth else "row"
        if kind == "row":
            return die.choice(LINKS)
        if kind == "chain":
            return gch.chain(*(link(depth - 1) for _ in range(die.randrange(6))))
        if kind == "named":
            return gch.chain(*((f"front <{next(names)}> & 'it'", link(depth - 1)) for _ in range(die.randrange(1, 4))))
        if kind == "masked":
            return gch.masked(link(depth - 1), die.choice([gch.bias, gch.named("a.*<b>") | ~gch.ndim(2)]))
        first = ("critic", gch.named('c."<i>"*'), link(depth - 1)), (gch.min_ndim(2) & gch.norm, link(depth - 1))
        return gch.partition(*first, (gch.rest, link(depth - 1)))

    return gch.chain(*(link(3) for _ in range(die.randrange(1, 9))))


# code


def test_a_chain_that_is_no_longer_than_a_line_is_a_line():
    """And one that is longer has a line for each link."""
    link = gch.clip_by_value(0.5)
    most = (LINE - len("chain()") + 2) // (len(repr(link)) + 2)
    short, long = gch.chain(*[link] * most), gch.chain(*[link] * (most + 1))
    assert repr(short) == f"chain({', '.join([repr(link)] * most)})"
    assert repr(long) == "\n".join(["chain(", *[f"    {link!r},"] * (most + 1), ")"])
    assert repr(gch.chain()) == "chain()"


def test_a_column_of_every_link_has_a_line_for_each():
    """In the order of the chain, in whatever it stands, and it is the code that makes it."""
    plain = [link for link in LINKS if "\n" not in repr(link)]
    chained = gch.chain(*(link for link in plain if not isinstance(link, gch.chain)))
    lines = repr(chained).splitlines()
    assert lines == ["chain(", *(f"    {link!r}," for link in chained.links), ")"]
    assert len(lines) > 40
    for outer in (
        chained,
        gch.masked(chained, gch.bias),
        gch.partition(("a", gch.bias, chained), (gch.rest, gch.scale(1.0))),
        gch.chain(("front", chained), gch.scale(2.0)),
        gch.chain(gch.masked(gch.masked(chained, gch.bias), gch.norm), chained),
    ):
        shown = [line.strip().rstrip(",") for line in repr(outer).splitlines()]
        assert {repr(link) for link in chained.links} <= set(shown)
        assert read(repr(outer)) == outer


@pytest.mark.parametrize("seed", range(60))
def test_trees_of_links_are_shown_as_their_code(seed):
    """By repr, and by rich at any width. A line with several links is not longer than a line is."""
    pretty = pytest.importorskip("rich.pretty")
    tree = trees(seed)
    assert read(repr(tree)) == tree
    for line in repr(tree).splitlines():
        names = re.findall(r"\b(?:chain|masked|partition)\(", line)
        assert not names or len(line.strip()) <= LINE + 1, line
    for width in (40, 120, 2000):
        assert read(pretty.pretty_repr(tree, max_width=width)) == tree


@rows
def test_rich_prints_the_code_of_a_link(case: Case):
    pretty = pytest.importorskip("rich.pretty")
    for width in (30, 2000):
        assert read(pretty.pretty_repr(case.link, max_width=width)) == case.link


def test_a_link_of_a_users_is_shown_as_ours_are():
    """With its fields, those with defaults left out, and the links that it holds."""

    class twice(gch.Transform):
        inner: gch.Transform
        times: int = 2

    once = twice(gch.scale(0.5))
    assert repr(once) == "twice(scale(0.5))" and repr(twice(gch.scale(0.5), 3)) == "twice(scale(0.5), times=3)"
    long = twice(gch.chain(*[gch.clip_by_norm(1.0)] * 9), times=3)
    assert repr(long).splitlines()[:3] == ["twice(", "    chain(", "        clip_by_norm(1.0),"]
    assert [cells[0].strip() for cells in table(long)] == ["twice", "chain", *["clip_by_norm"] * 9]


# notebooks


def table(link: Transform) -> list[list[str]]:
    """The cells of its table, as a browser reads them."""
    root = ElementTree.fromstring(link._repr_html_())
    return [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")]


def check_html(html: str) -> ElementTree.Element:
    """It is whole, has our tags only, fetches and runs nothing, and no colour but a grey that is half seen through."""
    root = ElementTree.fromstring(f"<body>{html}</body>")
    assert {element.tag for element in root.iter()} <= {"body", "table", "caption", "tr", "td", "th", "pre"}
    assert {name for element in root.iter() for name in element.attrib} <= {"style"}
    styles = " ".join(element.get("style", "") for element in root.iter())
    assert set(re.findall(r"#\w+|rgb\w*|url|(?<!-)color|background|var", styles)) <= {"#8886"}
    return root


@rows
def test_a_link_is_a_table(case: Case):
    """A row for each link in it, with what is written of its arguments."""
    check_html(case.link._repr_html_())
    found = table(case.link)
    assert len(found) == num_rows(case.link)
    assert found[0][0] == type(case.link).__name__


@pytest.mark.parametrize("seed", range(60))
def test_trees_of_links_are_tables(seed):
    """However the names and patterns in them are spelled: further in stands what is held."""
    tree = trees(seed)
    check_html(tree._repr_html_())
    found = table(tree)
    assert len(found) == num_rows(tree)
    depths = [(len(row[0]) - len(row[0].lstrip(" "))) // 4 for row in found]
    assert depths[0] == 0 and all(after <= before + 1 for before, after in itertools.pairwise(depths))


def test_what_is_in_a_selector_is_text():
    """No name, pattern or function of the user's becomes part of the page."""
    link = gch.masked(gch.scale(1.0), lambda name: name == "<script>")
    html = gch.chain(("<img src=x>", gch.masked(link, gch.named("<b>&amp;</b>"))))._repr_html_()
    check_html(html)
    assert "&lt;img src=x&gt;" in html and "&lt;b&gt;&amp;amp;&lt;/b&gt;" in html and "&lt;lambda&gt;" in html
