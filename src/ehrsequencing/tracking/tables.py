"""One table in the four forms that papers, pages and programs want."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ehrsequencing.errors import ConfigError
from ehrsequencing.tracking.html import Html, element, page, table


@dataclass(frozen=True)
class Table:
    """A table for people.

    Attributes:
        caption: What it shows.
        head: Name of each column.
        rows: Cells; a `Strong` one is the best of its column.
        texts: Number of leading columns that hold text; the others hold numbers.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1

    def written(self, form: str) -> str:
        """As markdown, html, csv or latex.

        Raises:
            ConfigError: another form.
        """
        if form not in FORMS:
            raise ConfigError("unknown form of a table", got=form, expected=", ".join(FORMS))
        return FORMS[form](self)


class Strong(str):
    """A cell that stands out."""

    __slots__ = ()


def markdown_cell(text: str) -> str:
    """Text that neither ends a cell of a Markdown table nor is taken as markup."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


def _markdown(shown: Table) -> str:
    rule = "|" + "---|" * shown.texts + "---:|" * (len(shown.head) - shown.texts)
    cells = [
        [f"**{markdown_cell(cell)}**" if isinstance(cell, Strong) else markdown_cell(cell) for cell in row]
        for row in shown.rows
    ]
    lines = [f"| {' | '.join(row)} |" for row in ([markdown_cell(name) for name in shown.head], *cells)]
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def _csv(shown: Table) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(shown.head)
    writer.writerows(shown.rows)
    return stream.getvalue()


_TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip


def _tex(text: str) -> str:
    escaped = "".join(_TEX.get(sign, sign) for sign in " ".join(text.split()))
    # A cell that begins with a bracket would be read as the argument of the line break before it.
    escaped = f"{{}}{escaped}" if escaped.startswith("[") else escaped
    return rf"\textbf{{{escaped}}}" if isinstance(text, Strong) else escaped


def _latex(shown: Table) -> str:
    """A `table` environment with the rules of the booktabs package."""
    columns = "l" * shown.texts + "r" * (len(shown.head) - shown.texts)
    lines = [" & ".join(_tex(cell) for cell in row) + r" \\" for row in (shown.head, *shown.rows)]
    body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    opening = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(shown.caption)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
    ]
    return "\n".join([*opening, *body, r"\end{tabular}", r"\end{table}", ""])


def _html(shown: Table) -> str:
    body = element("main", element("h1", shown.caption), element("section", html_table(shown)))
    return page(shown.caption, body)


def html_table(shown: Table) -> Html:
    """The table alone, for a page that holds more."""
    cells = [[element("strong", cell) if isinstance(cell, Strong) else cell for cell in row] for row in shown.rows]
    return table(shown.caption, shown.head, cells, text_columns=range(shown.texts))


FORMS: dict[str, Callable[[Table], str]] = {"markdown": _markdown, "html": _html, "csv": _csv, "latex": _latex}
ENDINGS = {".md": "markdown", ".html": "html", ".csv": "csv", ".tex": "latex"}
"""The form that a file's name asks for."""
