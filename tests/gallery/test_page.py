"""The page is what its command writes; files are short, and each says where its original is; the count counts."""

import ast

import page
import pytest
from originals import ORIGINALS
from toys import GALLERY, NAMES


def test_the_page_is_what_its_command_writes():
    assert page.PAGE.read_text() == page.page(), "run python tests/gallery/page.py"


def test_every_recipe_has_its_original():
    assert sorted(ORIGINALS) == NAMES and all(o.lines > 0 and len(o.commit) == 40 for o in ORIGINALS.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_a_page_to_read(name):
    """Its words and its original's address first, then settings, chains and the loop; the chains are 10 to 40 lines."""
    text = (GALLERY / f"{name}.py").read_text()
    tree = ast.parse(text)
    said = " ".join(ast.get_docstring(tree).split())
    assert f"https://github.com/{ORIGINALS[name].repository}" in said
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert "train" in functions and [f for f in functions if f.endswith("chain")]
    assert "settings = {" in text and 10 <= page.here(name) <= 60
    lines = [n.end_lineno - n.lineno + 1 for f, n in functions.items() if f != "train"]
    assert sum(lines) <= 40
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert imported <= {"bisect", "math", "torch", "gradchain"}
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]


def test_what_counts_as_a_line():
    text = '"""Words."""\n\nx = 1  # a remark\n# a comment\ndef f():\n    """More\n    words.\n    """\n    return 1\n'
    assert page.code_lines(text) == 3
    assert page.code_lines("") == 0
    assert page.here("ppo") == 11  # three of its chain and eight of its loop: no settings, no imports
