"""The pages that are generated: one for each link, alias and schedule, and the table to find a rule by a property."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import curves
import formulas
import known

import gradchain as gch
from gradchain import schedules
from gradchain.core.hyper import Hyper

ROOT = Path(__file__).parents[2]
Page = tuple[str, str]  # where it stands in the site, and its Markdown


def generated() -> dict[str, str]:
    """Every generated page: where it stands → its Markdown."""
    found = dict([find_a_rule(), find_a_schedule()])
    for name in [*known.links(), *known.aliases()]:
        found[f"rules/{name}.md"] = rule_page(known.rule(name))
    for name in curves.schedules():
        found[f"schedules/{name}.md"] = schedule_page(curves.Curve(name))
    return found


# parts of pages


def _linked(text: str, own: str) -> str:
    """Names in code that have a page lead there; the page's own does not."""
    here = _folder_of(own)
    arguments = inspect.signature(getattr(schedules if here == "schedules" else gch.rules, own)).parameters

    def shown(found: re.Match[str]) -> str:
        name = found[1]
        folder = _folder_of(name)
        if not folder or name in arguments or name == own:
            return found[0]
        return f"[{found[0]}]({name if folder == here else f'../{folder}/{name}'}.md)"

    return re.sub(r"`(?:gch\.(?:rules\.|schedules\.)?)?(\w+)`", shown, text)


@cache
def _pages() -> dict[str, str]:
    named = dict.fromkeys([*known.links(), *known.aliases()], "rules")
    return {**named, **dict.fromkeys(curves.schedules(), "schedules")}


def _folder_of(name: str) -> str:
    return _pages().get(name, "")


def _prose(text: str, own: str) -> str:
    """A stretch of a docstring as Markdown: code as it is, all else without marks that Markdown would read."""
    parts = re.split(r"(`[^`]+`|https?://[^\s;,]+)", text)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = re.sub(r"([*_\[\]|])", r"\\\1", escape(part, quote=False))
        elif part.startswith("http"):
            address = part.rstrip(".")
            parts[i] = f"<{address}>{part[len(address) :]}"
    return _linked("".join(parts), own)


def _signature(thing: Any, spelled: str) -> str:
    """The call with its defaults, as code."""
    given = []
    marked = False
    for parameter in inspect.signature(thing).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not marked:
            given.append("*")
        marked = marked or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        star = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
        default = "" if parameter.default is parameter.empty else f"={_default(thing, parameter)}"
        given.append(f"{star}{parameter.name}{default}")
    line = f"{spelled}({', '.join(given)})"
    if len(line) > 88:
        line = f"{spelled}(\n" + "".join(f"    {g},\n" for g in given) + ")"
    return f"```python\n{line}\n```"


def _default(thing: Any, parameter: inspect.Parameter) -> str:
    value = parameter.default
    return repr(float(value) if isinstance(value, Hyper) else value)


def _interval(thing: Any, name: str) -> str:
    """What a number must be, where the class says so."""
    hyper = getattr(thing, "hypers", {}).get(name)
    text = "" if hyper is None else hyper.interval.text
    return "" if text == "(-inf, inf)" else text


def _arguments(thing: Any, doc: Any, own: str) -> list[str]:
    """The table of arguments, with their defaults, their ranges and what they are, in which unit."""
    if not doc.arguments:
        return []
    takes = inspect.signature(thing).parameters
    rows = ["## Arguments", "", "| argument | default | a number or a schedule in | what it is |", "|---|---|---|---|"]
    for name, words in doc.arguments.items():
        parameter = takes.get(name.lstrip("*"))
        has = parameter is not None and parameter.default is not parameter.empty
        default = f"`{_default(thing, parameter)}`" if has else ""
        interval = _interval(thing, name)
        rows.append(f"| `{name}` | {default} | {f'`{interval}`' if interval else ''} | {_prose(words, own)} |")
    return [*rows, ""]


def _formula(doc: Any, names: Iterable[str]) -> list[str]:
    """The formula as mathematics, and as the docstring has it for who would copy it."""
    if not doc.formula:
        return []
    plain = escape(doc.formula, quote=False)
    return [
        formulas.html(doc.formula, names), "",
        f'<details class="plain"><summary>the formula as text</summary><pre><code>{plain}</code></pre></details>', "",
    ]  # fmt: skip


def _body(doc: Any, names: Iterable[str], own: str) -> list[str]:
    """The first sentence, the formula, and the paragraphs around it."""
    lines = [_prose(doc.summary, own), "", *_formula(doc, names)]
    for kind, words in doc.body:
        if kind == "text":
            lines += [_prose(words, own), ""]
        elif kind == "as is":
            lines += ["```text", words, "```", ""]
    return lines


def _sections(doc: Any, own: str) -> list[str]:
    """Shapes, units, errors and what it equals, a line for each."""
    shown = [(head, doc.sections[head]) for head in doc.sections if head != "Args"]
    return [line for head, words in shown for line in (f"**{head}.** {_prose(words, own)}", "")]


def _example(doc: Any) -> list[str]:
    return ["## Example", "", "```pycon", doc.example.strip(), "```", ""] if doc.example.strip() else []


def _picture(drawn: tuple[str, str]) -> list[str]:
    svg, says = drawn
    inline = re.sub(r"`([^`]+)`", lambda m: f"<code>{escape(' '.join(m[1].split()))}</code>", says)
    return [f'<figure class="drawn">{svg}<figcaption>{inline}</figcaption></figure>', ""]


def _names(thing: Any) -> list[str]:
    if is_dataclass(thing):
        return [f.name for f in fields(thing)]
    return list(inspect.signature(thing).parameters)


def _head(title: str, description: str) -> list[str]:
    return ["---", f"title: {title}", f"description: {description!r}", "---", "", f"# `{title}`", ""]


# links and aliases


def _bytes(value: float) -> str:
    return f"{value:.3g}"


def properties(found: known.Rule) -> list[tuple[str, str]]:
    """What is known of a rule, by name."""
    ran = ", ".join(f"`{name}`" for name, why in found.executors.items() if not why)
    refused = "; ".join(f"not `{name}`: {why}" for name, why in found.executors.items() if why)
    papers = found.doc.papers
    only = "only these; other parameters pass" if found.is_link else "a link in it is for these alone"
    matrices = only if found.only_matrices else "no"
    return [
        ("kind", found.family),
        ("state, bytes for each float32 element of a matrix", _bytes(found.state_bytes)),
        ("needs matrices", matrices),
        ("calls functions of whole tensors", _yes(found.whole_tensors)),
        ("needs a closure", "yes: it evaluates the loss again" if found.closure else "no"),
        ("may leave an update out", _yes(found.holds)),
        ("may run in backward, parameter by parameter", _yes(found.in_backward)),
        ("takes sparse gradients", _yes(found.rows)),
        ("executors", "; ".join(filter(None, [ran, refused])) or f"the reference: {found.by_the_reference}"),
        ("paper", "; ".join(f"[{', '.join(filter(None, (who or 'paper', year)))}]({at})" for who, year, at in papers)),
    ]  # fmt: skip


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def rule_page(found: known.Rule) -> str:
    """The page of a link or alias."""
    own, thing = found.name, found.thing
    lines = [
        *_head(own, found.doc.summary),
        *_body(found.doc, _names(thing), own),
        _signature(thing, found.spelled),
        "",
    ]
    if not found.is_link:
        lines += ["The chain that it is, at the rate 0.1:", "", f"```python\n{found.chain(0.1)!r}\n```", ""]
        held = dict.fromkeys(type(link).__name__ for link in known.walk(found.link))
        lines += ["Its links: " + ", ".join(_linked(f"`{name}`", own) for name in held if name != "chain") + ".", ""]
    lines += _picture(found.drawn)
    lines += _arguments(thing, found.doc, own)
    lines += ["## What the code knows of it", "", "| property | found |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in properties(found) if value]
    lines += ["", *_sections(found.doc, own), *_others(own), *_example(found.doc)]
    return "\n".join(lines)


@cache
def _which() -> dict[str, list[str]]:
    """The rows of docs/which.md, by rule."""
    rows: dict[str, list[str]] = {}
    for line in (ROOT / "docs" / "which.md").read_text(encoding="utf-8").splitlines():
        begins = re.match(r"\| `(\w+)` \| `", line)
        if begins:
            rows.setdefault(begins[1], []).append("|" + line.split("|", 2)[2])
    return rows


def _others(name: str) -> list[str]:
    """Its other implementations, as `python -m benchmarks.which` found them."""
    rows = _which().get(name, [])
    if not rows:
        return []
    head = ["| peer | at defaults | at pinned arguments | distance | what differs |", "|---|---|---|---|---|"]
    says = "How far apart weights are after 25 steps in float64, by `python -m benchmarks.which`"
    return ["## Other implementations", "", f"{says}: [the whole table](../which.md).", "", *head, *rows, ""]


# schedules


def schedule_page(found: curves.Curve) -> str:
    """The page of a schedule."""
    own, thing = found.name, found.thing
    lines = [
        *_head(own, found.doc.summary),
        *_body(found.doc, _names(thing), own),
        _signature(thing, found.spelled),
        "",
    ]
    lines += _picture(found.drawn)
    lines += _arguments(thing, found.doc, own)
    lines += [*_sections(found.doc, own), *_example(found.doc)]
    return "\n".join(lines)


# tables


def find_a_rule() -> Page:
    """The table of every link and alias; with a script it is filtered by any property."""
    head = ["name", "what it does", "kind", "bytes", "matrices", "closure", "paper", "year"]
    rows = []
    for name in [*known.links(), *known.aliases()]:
        found = known.rule(name)
        cells = [
            f'<a href="{name}/"><code>{name}</code></a>', _plain(found.doc.summary), found.family,
            _bytes(found.state_bytes), "only" if found.only_matrices else "whole" if found.whole_tensors else "",
            "yes" if found.closure else "", next((escape(who) for who, _, _ in found.doc.papers), ""), found.year,
        ]  # fmt: skip
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    table = (
        '<div class="found-table"><table id="table-of-rules" class="found">'
        f"<thead><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
    text = (ROOT / "docs" / "_site" / "find.md").read_text(encoding="utf-8")
    return "rules/index.md", text.replace("{table}", table).replace("{many}", str(len(rows)))


def _plain(text: str) -> str:
    """A sentence with its code as code, for a cell of HTML."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def find_a_schedule() -> Page:
    """The table of every schedule."""
    lines = ["---", "title: Every schedule", "---", "", "# Every schedule", ""]
    lines += ["Functions of the step that are values: they can be joined, multiplied, compared and printed."]
    lines += ["[Numbers and clocks](../concepts/numbers_and_clocks.md) says how they are read.", ""]
    lines += ["| schedule | its values |", "|---|---|"]
    for name in curves.schedules():
        found = curves.Curve(name)
        lines.append(f"| [`{found.spelled}`]({name}.md) | {_prose(found.doc.summary, name)} |")
    return "schedules/index.md", "\n".join(lines) + "\n"
