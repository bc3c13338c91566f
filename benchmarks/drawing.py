"""Pictures as SVG: their paper and ink, and a line of text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

# Its own paper and ink, so that it is read on any page: dark where the reader's system is.
STYLE = """
svg { font: 12px system-ui, sans-serif }
.paper { fill: #ffffff } text { fill: #1f2328 } .faint { fill: #59636e }
.grid { stroke: #d1d9e0 } .one { stroke: #59636e; stroke-width: 1.5 }
.spread { stroke: #0969da; stroke-width: 2 } .part { fill: #0969da } .whole { stroke: #59636e; stroke-width: 2 }
.part.disturbed { fill: #ffffff; stroke: #0969da; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  .paper { fill: #0d1117 } text { fill: #f0f6fc } .faint { fill: #9198a1 }
  .grid { stroke: #3d444d } .one { stroke: #9198a1 }
  .spread { stroke: #4493f8 } .part { fill: #4493f8 } .whole { stroke: #9198a1 }
  .part.disturbed { fill: #0d1117; stroke: #4493f8 }
}"""


def page(title: str, width: int, height: int, lines: Sequence[str]) -> str:
    """A picture of these lines of SVG on paper."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img"><title>{title}</title><style>{STYLE}</style>'
    )
    paper = f'<rect class="paper" width="{width}" height="{height}" rx="6"/>'
    return "\n".join([head, paper, *lines, "</svg>", ""])


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start", size: int = 12) -> str:
    look = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:g}"{look} text-anchor="{anchor}" font-size="{size}">{escape(words)}</text>'
