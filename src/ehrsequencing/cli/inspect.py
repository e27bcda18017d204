"""`ehrseq inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ehrsequencing.cli.common import Overwrite, percent, progress_bars, say, show_table

_SHOWN = 10


def inspect(
    path: Annotated[Path, typer.Argument(help="MEDS dataset of any tool, or token store.")],
    html: Annotated[Path | None, typer.Option("--html", help="Also write a page with plots; ends in .html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail where a finding is an error.")] = False,
    most: Annotated[int, typer.Option("--most", min=1, help="Codes, and codes with units, to list in JSON.")] = 50,
    overwrite: Overwrite = False,
) -> None:
    """Show what is in a dataset or store, and what is wrong with it."""
    import json

    from ehrsequencing.data.artefacts import refuse_in_data
    from ehrsequencing.data.inspect import inspect as run
    from ehrsequencing.errors import ConfigError, DataError, RunError
    from ehrsequencing.io import write_text
    from ehrsequencing.tracking.inspection import inspection_page

    if html is not None:
        if html.is_dir() or html.suffix.lower() not in (".html", ".htm"):
            raise ConfigError("--html", got=html, expected="the name of a file that ends in .html")
        refuse_in_data(html, path)
        if html.exists() and not overwrite:
            raise RunError(f"{html} exists already", remedy="choose another file or pass --overwrite")
    with progress_bars() as update:
        found = run(path, most=most, progress=lambda done, total: update("inspect", done, total))
    if as_json:
        say(json.dumps(found.document, indent=2, allow_nan=False))
    else:
        _show(found.document)
    if html is not None:
        write_text(html, inspection_page(found.document))
        if not as_json:
            say(f"page: {html}")
    if strict and found.errors:
        wrong = [finding.what for finding in found.findings if finding.severity == "error"]
        raise DataError(
            f"{path} has {found.errors} findings of severity error", got="; ".join(wrong), remedy="see the findings"
        )


def _show(document: Mapping[str, Any]) -> None:
    from ehrsequencing.tracking.inspection import DISTRIBUTIONS, in_words

    source = f" of source {document['source']}" if document.get("source") else ""
    say(f"{document['path']}: {document['artefact']}{source}")
    for line in in_words(document):
        say(line)
    columns = ("subjects", "events", "visits", "static", "deaths")
    show_table(
        ("Split", "Subjects", "Events", "Visits", "Undated", "Deaths"),
        [(name, *(f"{split[column]:,}" for column in columns)) for name, split in document["splits"].items()],
        numbers=5,
    )
    spreads = {**{key: title for key, (title, _) in DISTRIBUTIONS.items()}, "age_years": "Age at events, years"}
    show_table(
        ("", "Least", "5 %", "25 %", "Median", "75 %", "95 %", "Most", "Mean"),
        [
            (
                title,
                *(f"{spread[key]:,}" for key in ("min", "p5", "p25", "p50", "p75", "p95", "max")),
                f"{spread['mean']:,.1f}",
            )
            for name, title in spreads.items()
            if (spread := document["distributions"][name]) is not None
        ],
        numbers=8,
    )
    for column, title in (("kinds", "Kind"), ("systems", "System")):
        rows = document[column]
        show_table(
            (title, "Most frequent", "Codes", "Events", "Share"),
            [
                (
                    row[column[:-1]],
                    ", ".join(code["code"] for code in row.get("most_frequent", [])[:3]),
                    f"{row['codes']:,}",
                    f"{row['events']:,}",
                    percent(row["share"]),
                )
                for row in rows[:_SHOWN]
            ],
            numbers=3,
        )
        _more(len(rows), title.lower())
    show_table(
        ("Code", "Kind", "Description", "Events", "Subjects"),
        [
            (code["code"], code["kind"], code["description"] or "", f"{code['events']:,}", f"{code['subjects']:,}")
            for code in document["codes"][:_SHOWN]
        ],
        numbers=2,
    )
    _more(document["counts"]["codes"], "code")
    _show_values(document)
    if "tokens" in document:
        _show_tokens(document["tokens"])
    _show_findings(document["findings"])


def _more(number: int, word: str) -> None:
    if number > _SHOWN:
        say(f"{number - _SHOWN:,} more {word}s")


def _show_values(document: Mapping[str, Any]) -> None:
    if not document["values"]:
        return
    shown = (0, 5, 25, 50, 75, 95, 100)
    show_table(
        ("Code", "Unit", "Values", "Least", "5 %", "25 %", "Median", "75 %", "95 %", "Most"),
        [
            (
                row["code"],
                row["unit"],
                f"{row['n']:,}",
                *(
                    ("~" if row["estimated"] else "") + f"{value:.4g}"
                    for place, value in row["percentiles"]
                    if place in shown
                ),
            )
            for row in document["values"][:_SHOWN]
        ],
        numbers=8,
    )
    if any(row["estimated"] for row in document["values"][:_SHOWN]):
        say("~ estimated: many distinct values, right to 1.6 % or better")
    _more(document["pairs"], "codes with unit")


def _show_tokens(tokens: Mapping[str, Any]) -> None:
    say(
        f"vocabulary: {tokens['vocabulary']:,} tokens, {tokens['value_tokens']:,} of them of values, for "
        f"{tokens['codes']:,} codes; {tokens['unused']:,} tokens do not occur in train"
    )
    longer = tokens["longer"] / max(tokens["subjects_with_tokens"], 1)
    say(f"more than {tokens['max_length']} tokens: {tokens['longer']:,} subjects ({percent(longer)})")
    show_table(
        ("Kind", "Tokens", "Unknown", "Share"),
        [
            (row["kind"], f"{row['events']:,}", f"{row['unknown']:,}", percent(row["unknown"] / row["events"]))
            for row in tokens["unknown"]
        ],
        numbers=3,
    )


def _show_findings(findings: list[Mapping[str, Any]]) -> None:
    if not findings:
        return
    show_table(
        ("Severity", "Found", "How many", "Subjects, for example", "What to do"),
        [
            (
                finding["severity"],
                "\n".join([finding["what"], *(f"  {line}" for line in finding["details"])]),
                finding["amount"],
                ", ".join(map(str, finding["subjects"])),
                finding["remedy"],
            )
            for finding in findings
        ],
        lines=True,
    )
