"""Write a report: report.md with its pictures beside it, and one self-contained report.html."""

from __future__ import annotations

import html
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bertchain.errors import InputError
from bertchain.runtime.figures import as_png, as_svg
from bertchain.runtime.files import atomic_write, write_text
from bertchain.runtime.records import decimals, escape_markdown, fenced, markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it; each part may be missing.

    Attributes:
        name: of the picture's file, and the anchor that links go to.
        text: plain text; an empty line starts a paragraph.
        plain: text that keeps its lines.
        figure_text: what the picture shows, for readers who do not see it.
        warning: whether the text is shown as a warning.
        fold: whether the table is folded away at first.
        limit: what the section does not show: a sentence that stands below it.
    """

    name: str
    title: str
    text: str = ""
    table: pd.DataFrame | None = None
    figure: Figure | None = None
    figure_text: str = ""
    plain: str = ""
    warning: bool = False
    fold: bool = False
    limit: str = ""


@contextmanager
def spare_the_run(path: Path) -> Iterator[None]:
    """Warn of a page that cannot be made: its errors do not cost a run the results of hours."""
    try:
        yield
    except (OSError, InputError):
        raise
    except Exception:
        logger.warning("%s could not be made, all else is written", path, exc_info=True)


def write_report_files(folder: Path, title: str, sections: Sequence[Section]) -> None:
    """Write report.html, report.md and a .png for each picture."""
    for section in sections:
        if section.figure is not None:
            with atomic_write(folder / f"{section.name}.png") as temporary:
                temporary.write_bytes(as_png(section.figure))
    write_text(folder / "report.md", to_markdown(title, sections))
    write_text(folder / "report.html", to_html(title, sections))


# ---------------------------------------------------------------- markdown


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """Format a report for GitHub, its pictures as files beside it. Text is escaped."""
    parts = [f"# {escape_markdown(title)}\n"]
    for section in sections:
        parts.append(f"## {escape_markdown(section.title)}\n")
        for paragraph in filter(None, section.text.split("\n\n")):
            text = escape_markdown(paragraph)
            parts.append(f"**{text}**\n" if section.warning else f"{text}\n")
        if section.figure is not None:
            parts.append(f"![{escape_markdown(section.figure_text)}]({section.name}.png)\n")
        if section.table is not None:
            parts.append(markdown_table(section.table))
        if section.plain:
            parts.append(fenced(section.plain))
        if section.limit:
            parts.append(f"*{NOT_SHOWN}* {escape_markdown(section.limit)}\n")
    return "\n".join(parts)


# ---------------------------------------------------------------- html


def to_html(title: str, sections: Sequence[Section]) -> str:
    """Format a report as one page that requests nothing: style, script and pictures are inside.

    Text is escaped.
    """
    links = "".join(
        f'<a href="#{html.escape(s.name)}">{html.escape(s.title)}</a>' for s in sections
    )
    body = "\n".join(_section(section) for section in sections)
    return PAGE.format(title=html.escape(title), links=links, body=body, style=STYLE, script=SCRIPT)


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    kind = ' class="warning"' if section.warning else ""
    for paragraph in filter(None, section.text.split("\n\n")):
        parts.append(f"<p{kind}>{html.escape(paragraph)}</p>")
    if section.figure is not None:
        text = html.escape(section.figure_text, quote=True)
        least = min(58, 4.2 * section.figure.get_size_inches()[0])  # so that text can be read
        kind = f'role="img" aria-label="{text}" style="--least: {least:.0f}rem"'
        parts.append(f"<figure {kind}>{as_svg(section.figure)}</figure>")
        parts.append(HINT)
    if section.table is not None:
        table = html_table(section.table)
        if section.fold:
            table = f"<details><summary>The numbers</summary>{table}</details>"
        parts.append(table)
    if section.plain:
        parts.append(f"<pre>{html.escape(section.plain)}</pre>")
    if section.limit:
        parts.append(f'<p class="limit"><em>{NOT_SHOWN}</em> {html.escape(section.limit)}</p>')
    return f'<section id="{html.escape(section.name)}">{"".join(parts)}</section>'


def html_table(table: pd.DataFrame, digits: int = 4) -> str:
    """Format a table that a click on a heading sorts."""
    head = "".join(f"<th><button>{html.escape(str(name))}</button></th>" for name in table.columns)
    rows = "".join(
        "<tr>" + "".join(_cell(value, digits) for value in row) + "</tr>"
        for row in table.itertuples(index=False)
    )
    inside = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="table"><table>{inside}</table></div>{HINT}'


def _cell(value: Any, digits: int) -> str:
    value = value.item() if hasattr(value, "item") else value  # of numpy
    if value is pd.NA:
        value = math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        letters = len(str(value))
        kind = ' class="long wider"' if letters > WIDER else ' class="long"'
        kind = kind if letters > LONG else ""
        return f"<td{kind}>{html.escape(str(value))}</td>"
    if isinstance(value, float) and math.isnan(value):
        return '<td class="number" data-value=""></td>'
    shown = f"{value:,}" if isinstance(value, int) else decimals(value, digits)
    return f'<td class="number" data-value="{value!r}">{shown}</td>'


LONG, WIDER = 60, 200  # letters of a cell that is broken into lines, and of one with longer lines
NOT_SHOWN = "What this does not show:"
HINT = '<p class="hint">Scroll sideways to see all of it \u2192</p>'

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --page: #ffffff; --line: #d5d9de;
  --soft: #f4f6f8; --link: #0b57a4; --warning: #8a3b00; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e7ea; --page: #14171a; --line: #3a4047; --soft: #1e2226; --link: #7ab8f5;
    --warning: #ffb27a; }
  figure svg { filter: invert(1) hue-rotate(180deg); }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin: 0.5rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 0.5rem; }
nav { display: flex; flex-wrap: wrap; gap: 0.3rem 1rem; border-bottom: 1px solid var(--line);
  padding-bottom: 0.5rem; }
a { color: var(--link); } .warning { color: var(--warning); font-weight: 600; }
.table, figure, pre { overflow-x: auto; margin: 0.5rem 0; }
.hint { display: none; margin: 0 0 0.5rem; font-size: 0.8rem; opacity: 0.8; }
.wide + .hint { display: block; } .limit { font-size: 0.9rem; }
figure svg { max-width: 100%; height: auto; min-width: var(--least, 34rem); }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--line); text-align: left;
  white-space: nowrap; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0;
  padding: 0; cursor: pointer; text-align: left; white-space: normal; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
.long { white-space: normal; min-width: 18rem; overflow-wrap: anywhere; }
.wider { min-width: 30rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
tbody tr:hover { background: var(--soft); }
pre { background: var(--soft); padding: 0.6rem; font-size: 0.85rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--link); }
@media (max-width: 40rem) {
  table { font-size: 0.8rem; } th, td { padding: 0.25rem 0.2rem; }
  td:first-child { white-space: normal; min-width: 7.5rem; overflow-wrap: anywhere; }
  .long { min-width: 11rem; } .wider { min-width: 18rem; }
}
"""

SCRIPT = """
const hint = () => {
  for (const box of document.querySelectorAll(".table, figure")) {
    box.classList.toggle("wide", box.scrollWidth > box.clientWidth + 1);
  }
};
hint();
addEventListener("resize", hint);
for (const fold of document.querySelectorAll("details")) fold.addEventListener("toggle", hint);
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
    const column = [...head.parentElement.children].indexOf(head);
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => {
      const cell = row.cells[column];
      return cell.dataset.value === undefined ? cell.textContent : parseFloat(cell.dataset.value);
    };
    const order = (a, b) => {
      const x = key(a), y = key(b);
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      const less = typeof x === "number" ? x - y : String(x).localeCompare(String(y));
      return up ? less : -less;
    };
    body.append(...[...body.rows].sort(order));
  });
}
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<nav>{links}</nav>
{body}
<script>{script}</script>
</body>
</html>
"""
