"""Frame of the report's pages: one HTML file without network, light or dark, for screens of any width and for paper."""

from __future__ import annotations

import html
from typing import Sequence, Tuple

from vit_ipu.report.colors import STYLE_DARK, STYLE_LIGHT
from vit_ipu.text import escaped

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}</title><style>
:root {{ {light} }}
@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}
@media print {{ :root {{ {light} }} }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.5rem; margin-bottom: 0; }} h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
.notice {{ background: var(--notice); border-left: 4px solid var(--second); padding: .5rem .8rem; }}
.wide {{ overflow-x: auto; }} svg {{ height: auto; max-width: 100%; }} .wide svg {{ min-width: 34rem; }}
table {{ border-collapse: collapse; }} td, th {{ text-align: left; padding: .15rem 1rem .15rem 0; }}
th {{ font-weight: 600; overflow-wrap: normal; vertical-align: top; }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
pre {{ background: var(--block); padding: .8rem; overflow-x: auto; font-size: 13px; overflow-wrap: normal; }}
.mistakes {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .8rem; padding: 0; }}
.mistakes li {{ list-style: none; background: var(--block); padding: .5rem; border-radius: .3rem; font-size: 13px; }}
.mistakes img {{ width: 100%; height: 7rem; object-fit: contain; image-rendering: auto; }}
.mistakes img.small {{ image-rendering: pixelated; }}
.confusion {{ font-size: 13px; }} .confusion td, .confusion th {{ padding: .15rem .4rem; }}
.confusion td {{ text-align: right; min-width: 2.2rem; font-variant-numeric: tabular-nums; }}
.confusion thead th {{ vertical-align: bottom; }}
.turned span {{ display: inline-block; writing-mode: vertical-rl; transform: rotate(180deg); max-height: 11rem; }}
.bar {{ display: inline-block; height: .7rem; background: var(--first); vertical-align: middle; }}
.bar.possible {{ opacity: .35; }}
.scale {{ display: inline-block; height: .9rem; line-height: .9rem; white-space: nowrap; background: var(--grid); }}
.memory {{ font-size: 13px; }} .memory td, .memory th {{ padding-right: .7rem; }}
.memory tbody th {{ white-space: nowrap; }}
summary {{ cursor: pointer; }}
@media print {{ section {{ break-inside: avoid; }} body {{ margin: 0; }} }}
</style></head><body>
<main>
<h1>{title}</h1>
{sections}
</main>
</body></html>
"""


def page(title: str, sections: Sequence[str]) -> str:
    """Returns the page; `title` is text, and the sections are HTML."""
    parts = "\n".join(part for part in sections if part)
    return _PAGE.format(title=html.escape(escaped(title)), sections=parts, light=STYLE_LIGHT, dark=STYLE_DARK)


def section(title: str, content: str) -> str:
    """Returns a section with a heading; `content` is HTML."""
    return f"<section><h2>{html.escape(title)}</h2>\n{content}</section>"


def scrolled(name: str, content: str, *, tag: str = "div") -> str:
    """Returns HTML that scrolls sideways where the screen is too narrow, also by keyboard.

    `name` is what screen readers call it: each of a page has a different one.
    """
    return f'<{tag} class="wide" role="region" aria-label="{cell(name)}" tabindex="0">{content}</{tag}>'


def table(rows: Sequence[Tuple[str, ...]], head: Sequence[str] = ()) -> str:
    """Returns a table of texts, whose first column holds the names of the rows."""
    lines = ["<tr>" + "".join(f'<th scope="col">{cell(text)}</th>' for text in head) + "</tr>"] if head else []
    for name, *values in rows:
        cells = "".join(f"<td>{cell(value)}</td>" for value in values)
        lines.append(f'<tr><th scope="row">{cell(name)}</th>{cells}</tr>')
    return f"<table>{''.join(lines)}</table>"


def cell(text: object) -> str:
    """Returns a text as HTML, in which no line ends before a per cent sign."""
    return html.escape(escaped(str(text))).replace(" %", "&nbsp;%")
