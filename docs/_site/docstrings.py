"""What a docstring of a link or a schedule says, in parts: its first sentence, its formula, arguments, sections."""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import dataclass

SECTIONS = ("Args", "Shapes", "State", "Units", "At the end", "Raises", "Equals", "Paper", "Example")
_HEAD = re.compile(rf"({'|'.join(SECTIONS)}):(?:\s|$)")


@dataclass(frozen=True)
class Docstring:
    """A docstring of the house's kind.

    Attributes:
        summary: its first sentence.
        body: what stands before the sections, as ("text" | "formula" | "as is", words) in its order.
        arguments: name → what it is.
        sections: "Shapes", "Units", "Equals" and the rest → what it says, on one line.
        example: the lines behind `>>>` and what they print.
    """

    summary: str
    body: tuple[tuple[str, str], ...]
    arguments: dict[str, str]
    sections: dict[str, str]
    example: str

    @property
    def formula(self) -> str:
        """All lines of mathematics, or "" where it has none."""
        return "\n".join(words for kind, words in self.body if kind == "formula")

    @property
    def papers(self) -> list[tuple[str, str, str]]:
        """Each paper that is cited: who, the year or "", the address."""
        return cited(
            self.sections.get("Paper", "") or " ".join([self.summary, *(w for k, w in self.body if k == "text")])
        )


def read(thing: object) -> Docstring:
    """The docstring of a class or function."""
    return parsed(inspect.getdoc(thing) or "")


def parsed(doc: str) -> Docstring:
    """A docstring in its parts."""
    blocks, example = _blocks(doc)
    summary = " ".join(blocks[0].split()) if blocks else ""
    body: list[tuple[str, str]] = []
    arguments: dict[str, str] = {}
    sections: dict[str, str] = {}
    for block in blocks[1:]:
        for part in _parts(block):
            found = _HEAD.match(part)
            if found and found[1] == "Args":
                arguments.update(_arguments(part))
            elif found:
                sections[found[1]] = " ".join(part.partition(":")[2].split())
            else:
                body += _body(part)
    return Docstring(summary, tuple(body), arguments, {k: v for k, v in sections.items() if v}, example)


def _blocks(doc: str) -> tuple[list[str], str]:
    """What empty lines separate, and the example, which comes last and may have empty lines of its own."""
    prose, mark, rest = doc.partition(">>> ")
    indent = prose[len(prose.rstrip(" ")) :]
    prose = re.sub(r"\nExample:\s*$", "", prose.rstrip())
    return [b for b in re.split(r"\n[ ]*\n", prose.strip("\n")) if b.strip()], textwrap.dedent(indent + mark + rest)


def _parts(block: str) -> list[str]:
    """A block cut where a section begins: sections often follow each other without an empty line."""
    out: list[str] = []
    for line in block.splitlines():
        if not out or _HEAD.match(line):
            out.append(line)
        else:
            out[-1] += "\n" + line
    return out


def _body(part: str) -> list[tuple[str, str]]:
    """A paragraph: lines that are set in are a formula, and so is one that says what `value(t)` is."""
    if part.startswith(("    ", "\t")):
        return [("formula", textwrap.dedent(part))]
    if re.match(r"=====", part):
        return [("as is", part)]
    if re.match(r"v\(-1\) = ", part):
        return [("formula", part)]
    if re.match(r"value(\(t\))? = ", part):
        line = " ".join(part.split())
        first, stop, rest = line.partition(". ")
        return [("formula", first.rstrip(".")), *([("text", rest)] if stop else [])]
    return [("text", " ".join(part.split()))]


def _arguments(part: str) -> dict[str, str]:
    """Each name with its words, which several may have in common; `*links` and the like keep their star."""
    found: dict[str, str] = {}
    names: list[str] = []
    words = ""
    for line in part.splitlines()[1:]:
        begins = re.match(r"    (\*{0,2}\w+(?:, \w+)*): (.*)", line)
        if begins:
            names, words = begins[1].split(", "), begins[2]
        elif names:
            words = " " + line.strip()
        for name in names:
            found[name] = found.get(name, "") + words
    return found


_CITED = re.compile(r"(?:([A-Z][^;:()]*?),? (?:in )?((?:19|20)\d\d)[^;]*?)?(https?://[^\s;,]+)")


def cited(text: str) -> list[tuple[str, str, str]]:
    """Each paper in a text: who wrote it, when, where it is."""
    return [(who.rpartition(". ")[2].strip(), year, _whole(url)) for who, year, url in _CITED.findall(text)]


def _whole(url: str) -> str:
    """An address without what closes the sentence around it; parentheses of its own stay."""
    url = url.rstrip(".")
    return url[:-1] if url.endswith(")") and url.count(")") > url.count("(") else url
