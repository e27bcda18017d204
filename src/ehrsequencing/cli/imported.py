"""What an import tells at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ehrsequencing.cli.common import say, show_table

ODD = {
    "rows_without_events": "{} rows: {}",
    "dropped": "{} events dropped: {}",
    "texts": "{} values of {} that are no numbers, kept as text",
    "unreadable": "{} values of {} that are no numbers",
    "implausible": "{} times of {} in an impossible year",
    "contradictions": "{} rows with {}",
}
ENTRIES = {
    "events_after_death": "events after the death of their subject",
    "subjects_without_birth": "subjects without a birth",
    "events_repeated": "events equal to another in every column",
    "events_merged": "events merged with another",
}
"""Entries of the manifest that are shown where they are not 0."""


def show_import(manifest: Mapping[str, Any]) -> None:
    """Print counts, every table's rows with what became of them, and what is odd, as tables."""
    counts = manifest["counts"]
    by_kind = manifest.get("events_by_kind", {})
    rows = [("subjects", counts["subjects"]), ("visits", manifest.get("visits")), ("events", counts["events"])]
    rows += [(f"  {kind}", count) for kind, count in by_kind.items()] + [("codes", counts["codes"])]
    show_table(("dataset", ""), [(name, f"{count:,}") for name, count in rows if count is not None], numbers=1)
    tables = manifest.get("tables", {})
    show_table(
        ("table", "rows", "events", "what else"),
        [
            (name, f"{account['rows']:,}", f"{account['events']:,}", "\n".join(_odd(account)))
            for name, account in tables.items()
        ],
        lines=any(_odd(account) for account in tables.values()),
    )
    for key, text in ENTRIES.items():
        if manifest.get(key):
            say(f"{manifest[key]:,} {text}")
    for name, count in manifest.get("conflicts", {}).items():
        if count:
            say(f"{count:,} {name.replace('_', ' ')}")
    for key, text in (("tables_missing", "tables missing"), ("tables_not_read", "tables that are not read")):
        if manifest.get(key):
            say(f"{text}: {', '.join(manifest[key])}")
    for note in manifest.get("notes", []):
        say(f"note: {note}")


def _odd(account: Mapping[str, Any]) -> list[str]:
    lines = [
        form.format(f"{count:,}", reason) for key, form in ODD.items() for reason, count in account.get(key, {}).items()
    ]
    if missing := account.get("columns_missing"):
        lines.append(f"without the columns {', '.join(missing)}")
    return lines
