"""What is built and uploaded: entry points and links that hold, and a source archive from which all can be made."""

from __future__ import annotations

import email
import importlib
import os
import re
import subprocess
import sys
import tarfile
import types
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import gradchain
from gradchain.__main__ import main

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(gradchain.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HOME = PROJECT["urls"]["Homepage"]


# the command


@pytest.mark.parametrize("name", PROJECT["scripts"])
def test_every_script_is_a_function_that_there_is(name):
    module, _, function = PROJECT["scripts"][name].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert name == "gradchain" and getattr(importlib.import_module(module), function) is main


@pytest.mark.parametrize("argv0", ["/usr/bin/gradchain", "gradchain.exe", "/x/gradchain/__main__.py", "pytest"])
def test_the_command_says_its_version_and_its_commands(argv0, monkeypatch, capsys):
    """Under the name that it was called by."""
    monkeypatch.setattr(sys, "argv", [argv0])
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0 and capsys.readouterr().out == f"gradchain {gradchain.__version__}\n"
    name = "gradchain" if Path(argv0).stem == "gradchain" else "python -m gradchain"
    for asked in (["--help"], ["convert", "--help"]):
        with pytest.raises(SystemExit) as left:
            main(asked)
        said = capsys.readouterr().out
        assert left.value.code == 0 and said.startswith(f"usage: {name} ") and "convert" in said
    with pytest.raises(SystemExit) as left:
        main(["nonsense"])
    told = capsys.readouterr().err
    assert left.value.code == 2 and told.startswith(f"{name}: ") and "nonsense" in told and told.count("\n") == 1


@pytest.mark.parametrize("asked", ["--version", "--help"])
def test_what_the_command_says_of_itself_loads_no_torch(asked):
    code = f"""
import sys
from gradchain.__main__ import main
try:
    main([{asked!r}])
finally:
    assert "torch" not in sys.modules
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "gradchain" in done.stdout, done.stderr


# links


def place(url: str) -> Path | None:
    """The file or folder of this repository that an address of its home shows; None where it shows none."""
    raw = HOME.replace("github.com", "raw.githubusercontent.com")
    found = re.fullmatch(rf"(?:{re.escape(HOME)}/(?:blob|tree)|{re.escape(raw)})/main/([^#?]*)(?:#.*)?", url)
    return ROOT / found[1] if found else None


def test_the_urls_are_of_one_place_and_show_what_is_there():
    assert {"Homepage", "Documentation", "Changelog", "Issues"} <= PROJECT["urls"].keys()
    for name, url in PROJECT["urls"].items():
        assert urlsplit(url).scheme == "https" and url.startswith(HOME), name
        assert (place(url) or ROOT).exists(), name
    assert f'repository-code: "{HOME}"' in (ROOT / "CITATION.cff").read_text()


@pytest.fixture
def absolute(monkeypatch):
    """What the build makes of a page; its file needs hatchling for a base class only."""
    name = "hatchling.metadata.plugin.interface"
    stand_in = types.ModuleType(name)
    stand_in.MetadataHookInterface = object
    for package in ("hatchling", "hatchling.metadata", "hatchling.metadata.plugin"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    monkeypatch.setitem(sys.modules, name, stand_in)
    space = {"__name__": "hatch_build"}
    exec((ROOT / "hatch_build.py").read_text(), space)
    return space["absolute"]


def targets(markdown: str) -> list[str]:
    """Where the links and images of a page lead, but for those in code."""
    prose = re.sub(r"^```.*?^```$", "", markdown, flags=re.M | re.S)
    prose = re.sub(r"`[^`\n]+`", "", prose)
    return re.findall(r"\]\(([^)\s]+)", prose) + re.findall(r'(?:href|src|srcset)="([^"]+)"', prose)


def test_every_link_of_readme_holds_on_the_package_index(absolute):
    """Each is absolute, those into the repository show what is there, and no more is changed than links."""
    page = (ROOT / "README.md").read_text()
    made = absolute(page, HOME)
    found = targets(made)
    assert len(found) == len(targets(page)) > 12
    assert [url for url in found if not urlsplit(url).scheme] == []
    ours = [url for url in found if urlsplit(url).netloc in ("github.com", "raw.githubusercontent.com")]
    shown = [path for path in map(place, ours) if path is not None]
    assert len(shown) >= 6 and [path for path in shown if not path.exists()] == []
    relative = [url for url in targets(page) if not urlsplit(url).scheme]
    for url in relative:
        assert url.startswith("#") or (ROOT / url.partition("#")[0]).exists(), url
    assert re.sub(r"https://[^)\s]*", "", made).count("\n") == page.count("\n")


@pytest.mark.parametrize(
    ("written", "made"),
    [
        ("[a](docs/a.md)", "[a]({home}/blob/main/docs/a.md)"),
        ("[a](./docs/a.md#part)", "[a]({home}/blob/main/docs/a.md#part)"),
        ("[`a` and b](docs)", "[`a` and b]({home}/blob/main/docs)"),
        ("[a](#part)", "[a]({home}#part)"),
        ("![a](docs/a.svg)", "![a]({raw}/main/docs/a.svg)"),
        ("[![a](docs/a.svg)](docs/a.md)", "[![a]({raw}/main/docs/a.svg)]({home}/blob/main/docs/a.md)"),
        ('<img src="docs/a.svg" alt="a">', '<img src="{raw}/main/docs/a.svg" alt="a">'),
        ('<a href="docs/a.md">', '<a href="{home}/blob/main/docs/a.md">'),
        ('<source srcset="docs/a.svg">', '<source srcset="{raw}/main/docs/a.svg">'),
        ("[a](https://x.y/z)", "[a](https://x.y/z)"),
        ("[a](mailto:a@b.c)", "[a](mailto:a@b.c)"),
        ('`model["a"](x)`', '`model["a"](x)`'),
        ('```python\nmodel["a"](x)\n```\n[a](b)', '```python\nmodel["a"](x)\n```\n[a]({home}/blob/main/b)'),
        ("plain (text) [in] brackets", "plain (text) [in] brackets"),
    ],
)
def test_links_are_made_absolute(written, made, absolute):
    raw = HOME.replace("github.com", "raw.githubusercontent.com")
    assert absolute(written, HOME) == made.format(home=HOME, raw=raw)
    assert absolute(absolute(written, HOME), HOME) == absolute(written, HOME)


# the archives


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> tuple[Path, Path]:
    """The source archive, and the wheel that is built from it, as an installer does."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    build = "import hatchling.build, sys; print(getattr(hatchling.build, sys.argv[1])(sys.argv[2]))"

    def made(kind: str, source: Path) -> Path:
        command = [sys.executable, "-c", build, kind, str(folder)]
        done = subprocess.run(command, cwd=source, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return folder / done.stdout.splitlines()[-1]

    source = made("build_sdist", ROOT)
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    return source, made("build_wheel", folder / source.name.removesuffix(".tar.gz"))


def test_the_source_archive_has_all_that_makes_and_tests_it(archives):
    """All files of its folders, and those beside them that a build, a reader or a test asks for."""
    with tarfile.open(archives[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("gradchain", "docs", "tests", "typing_tests", "benchmarks", "notebooks"):
        files = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()}
        wanted = {path for path in files if "__pycache__" not in path and ".ipynb_checkpoints" not in path}
        assert sorted(path for path in wanted - names if not path.endswith((".pyc", ".pt"))) == []
    single = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", "pyproject.toml", ".ci/run"}
    assert single | {"hatch_build.py", "constraints.txt", "mkdocs.yml", "SECURITY.md"} <= names


def test_the_wheel_has_the_package_and_says_what_pyproject_says(archives):
    with zipfile.ZipFile(archives[1]) as wheel:
        names = wheel.namelist()
        (info,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
        metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
        points = wheel.read(f"{info}/entry_points.txt").decode()
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gradchain").rglob("*.py")}
    assert package <= set(names) and "gradchain/py.typed" in names
    assert {name.partition("/")[0] for name in names} == {"gradchain", info}
    assert "gradchain = gradchain.__main__:main" in points
    assert metadata["Version"] == gradchain.__version__ and metadata["Description-Content-Type"] == "text/markdown"
    assert {line.partition(", ")[2] for line in metadata.get_all("Project-URL")} == {*PROJECT["urls"].values()}
    page = str(metadata.get_payload())
    assert page.lstrip().startswith("# gradchain") and [url for url in targets(page) if not urlsplit(url).scheme] == []
