"""`ehrseq inspect --html`: what is in a dataset or token store, as one self-contained page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ehrsequencing.tracking import html
from ehrsequencing.tracking.html import Html, element, join, page, table
from ehrsequencing.tracking.sections import listing, pairs
from ehrsequencing.tracking.summary import format_number
from ehrsequencing.tracking.svg import SMALL, Series, bar, line_chart

CHARTS, MOST_ROWS = 12, 30
_CENTRAL, _STRETCH = 0.0005, 2
"""Share of events at either end that a chart leaves out where they would make it this many times as wide."""
_LONG_YEARS = 12
DISTRIBUTIONS = {
    "events_per_subject": ("Events per subject", "subjects"),
    "visits_per_subject": ("Visits per subject", "subjects"),
    "events_per_visit": ("Events per visit", "visits"),
}
_SPLIT_COLUMNS = ("subjects", "events", "visits", "static", "deaths")


def inspection_page(document: Mapping[str, Any]) -> str:
    """The page of an inspection; it needs no network and runs no script, and every string in it is escaped.

    Args:
        document: `Inspection.document` of `ehrsequencing.data.inspect`.
    """
    name = PurePath(document["path"]).name or document["path"]
    parts = [
        ("short", "In short", _short(document)),
        ("findings", "Findings", _findings(document["findings"])),
        ("splits", "Splits", _splits(document["splits"])),
        ("time", "Time and age", _time(document)),
        ("lengths", "Histories", _lengths(document["distributions"])),
        ("tokens", "Tokens", _tokens(document.get("tokens"))),
        ("codes", "Codes", _codes(document)),
        ("values", "Values", _values(document)),
        ("notes", "Notes of the source", listing(document["notes"])),
    ]
    links, main = html.sections(parts, lead="short")
    facts = [document["artefact"], document.get("source") and f"Source {document['source']}", document["path"]]
    meta = element("ul", *(element("li", fact) for fact in facts if fact), class_="meta")
    header = element("header", element("h1", f"What is in {name}"), meta, links)
    footer = element("footer", "Made by ehrseq inspect.")
    return page(f"What is in {name}", join([header, main, footer]))


def in_words(document: Mapping[str, Any]) -> list[str]:
    """Sentences on the size, the span and the findings."""
    counts, span = document["counts"], document["span"]
    lines = [
        f"{counts['subjects']:,} subjects with {counts['events']:,} events of {counts['codes']:,} codes in "
        f"{counts['visits']:,} visits; {counts['static_rows']:,} events have no date, "
        f"{counts['events_with_number']:,} carry a number. {counts['births']:,} subjects have a date of birth, "
        f"{counts['deaths']:,} one of death."
    ]
    if span["first"] is not None:
        low, high = span["middle_98_percent"]
        lines.append(f"Events lie between {span['first']} and {span['last']}, 98 % of them between {low} and {high}.")
    if document["sexes"]:
        lines.append("Sex: " + ", ".join(f"{sex} {count:,}" for sex, count in document["sexes"].items()) + ".")
    severities = [finding["severity"] for finding in document["findings"]]
    tally = [
        f"{number} {name}" + ("" if number == 1 else "s")
        for name in ("error", "warning", "note")
        if (number := severities.count(name))
    ]
    lines.append(f"Findings: {', '.join(tally)}." if tally else "No fault was found.")
    return lines


def _short(document: Mapping[str, Any]) -> Html:
    return join(element("p", line) for line in in_words(document))


def _findings(found: Sequence[Mapping[str, Any]]) -> Html:
    if not found:
        return element("p", "None.")
    parts: list[Html] = []
    for finding in found:
        severity = element("span", finding["severity"], class_=None if finding["severity"] == "note" else "status warn")
        parts.append(element("h3", severity, ": ", finding["what"]))
        examples = f" For example subject {', '.join(map(str, finding['subjects']))}." if finding["subjects"] else ""
        parts.append(element("p", f"{finding['amount']}.{examples} What to do: {finding['remedy']}."))
        if finding["details"]:
            lines = element("ul", *(element("li", line) for line in finding["details"]), class_="plain")
            parts.append(element("div", lines, class_="note"))
    note = (
        "An error is what ehrseq prepare refuses or what makes a model wrong; a warning is probably a fault; a note is "
        "worth knowing."
    )
    return join([*parts, element("p", note, class_="note")])


def _splits(splits: Mapping[str, Mapping[str, int]]) -> Html:
    total = sum(split["subjects"] for split in splits.values())
    body = [
        [name, f"{split['subjects'] / total:.1%}", *(f"{split[column]:,}" for column in _SPLIT_COLUMNS)]
        for name, split in splits.items()
    ]
    head = ["Split", "Share", "Subjects", "Events", "Visits", "Undated events", "Deaths"]
    return table("Each subject is in one split", head, body)


def _time(document: Mapping[str, Any]) -> Html | None:
    figures = []
    months = [(int(month[:-3]) * 12 + int(month[-2:]) - 1, count) for month, count in document["months"]]
    if months:
        years = (months[-1][0] - months[0][0]) / 12 > _LONG_YEARS
        counts = [(month // 12, count) for month, count in months] if years else months
        figures.append(
            _counts_chart("Events per year" if years else "Events per month", "", counts, str if years else _month)
        )
    if document["ages"]:
        figures.append(_counts_chart("Events by age", "Age, years", document["ages"], str))
    return element("div", *figures, class_="charts") if figures else None


def _month(month: int) -> str:
    return f"{month // 12}-{month % 12 + 1:02d}"


def _counts_chart(title: str, x_label: str, counts: Sequence[Sequence[int]], text: Callable[[int], str]) -> Html:
    """Counts by a whole number, with zeros where there are none."""
    kept, left = _central(counts)
    title += f"; {left:,} events further out are not drawn" if left else ""
    grouped: dict[int, int] = {}
    for place, count in kept:
        grouped[place] = grouped.get(place, 0) + count
    most = max(grouped.values())
    power, unit = next((p, u) for p, u in ((10**6, "millions"), (10**3, "thousands"), (1, "")) if most >= p)
    points = [(float(place), grouped.get(place, 0) / power) for place in range(min(grouped), max(grouped) + 1)]
    return line_chart(
        title,
        [Series("Events", points, dots=len(points) < 40)],
        x_label,
        f"Events, {unit}" if unit else "Events",
        y_range=(0.0, 1.06 * most / power),
        integer_x=True,
        x_text=lambda place: text(round(place)),
    )


def _central(counts: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], int]:
    """Counts without the few far out at either end where these would stretch a chart, and how many those are."""
    total, upto = sum(count for _, count in counts), 0
    kept = []
    for place, count in counts:
        if upto + count > _CENTRAL * total and upto <= (1 - _CENTRAL) * total:
            kept.append((place, count))
        upto += count
    if counts[-1][0] - counts[0][0] <= _STRETCH * max(kept[-1][0] - kept[0][0], 10):
        return list(counts), 0
    return list(kept), total - sum(count for _, count in kept)


def _lengths(distributions: Mapping[str, Mapping[str, Any] | None]) -> Html | None:
    parts = []
    for key, (title, unit) in DISTRIBUTIONS.items():
        spread = distributions[key]
        if spread is None:
            continue
        most = max(count for *_, count in spread["bins"])
        body = [
            [interval(low, high), bar(count / most), f"{count:,}", f"{count / spread['n']:.1%}"]
            for low, high, count in spread["bins"]
        ]
        caption = (
            f"{title}: median {spread['p50']:,}, mean {format_number(spread['mean'], 1)}, half of the {unit} "
            f"{spread['p25']:,} to {spread['p75']:,}, 98 % {spread['p1']:,} to {spread['p99']:,}, "
            f"the most {spread['max']:,}"
        )
        head = [title, "", unit.capitalize(), "Share"]
        parts.append(table(caption, head, body, text_columns=(0, 1), class_="strips"))
    return join(parts) if parts else None


def interval(low: int, high: int) -> str:
    """`8 to 15`, or one number."""
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _tokens(tokens: Mapping[str, Any] | None) -> Html | None:
    if tokens is None:
        return None
    facts = {
        "Tokens in the vocabulary": tokens["vocabulary"],
        "Codes with a token": tokens["codes"],
        "Value tokens": tokens["value_tokens"],
        "Tokens that train never uses": tokens["unused"],
        f"Subjects with more than {tokens['max_length']} tokens": tokens["longer"],
    }
    body = [
        [row["kind"], f"{row['events']:,}", f"{row['unknown']:,}", f"{row['unknown'] / row['events']:.2%}"]
        for row in tokens["unknown"]
    ]
    unknown = table("Tokens that are [UNK], by kind", ["Kind", "Tokens", "Unknown", "Share"], body) if body else None
    return join([pairs(facts), element("h3", "Unknown"), unknown] if unknown else [pairs(facts)])


def _codes(document: Mapping[str, Any]) -> Html | None:
    if not document["codes"]:
        return None
    parts: list[Html] = []
    for column, title in (("kinds", "Kind"), ("systems", "System")):
        rows = document[column]
        body = [
            [row[column[:-1]], bar(row["share"]), f"{row['codes']:,}", f"{row['events']:,}", f"{row['share']:.1%}"]
            for row in rows[:MOST_ROWS]
        ]
        more = len(rows) - len(body)
        caption = f"By {title.lower()}, most events first" + (f"; {more:,} more" if more else "")
        head = [title, "", "Codes", "Events", "Share"]
        parts.append(table(caption, head, body, text_columns=(0, 1), class_="strips"))
    frequent = [
        [f"{row['system']}", _described(code), f"{code['events']:,}", f"{code['subjects']:,}"]
        for row in document["systems"][:MOST_ROWS]
        for code in row["most_frequent"]
    ]
    head = ["System", "Code", "Events", "Subjects"]
    made = table("The most frequent codes of each system", head, frequent, text_columns=(0, 1))
    parts.append(element("details", element("summary", "Most frequent codes of each system"), made))
    top = [
        [_described(code), code["kind"], f"{code['events']:,}", f"{code['subjects']:,}"]
        for code in document["codes"][:MOST_ROWS]
    ]
    caption = f"The most frequent of {document['counts']['codes']:,} codes"
    parts.append(table(caption, ["Code", "Kind", "Events", "Subjects"], top, text_columns=(0, 1)))
    return join(parts)


def _described(code: Mapping[str, Any]) -> Html:
    described = element("span", code["description"], class_="sub") if code["description"] else None
    return join([code["code"], described])


def _values(document: Mapping[str, Any]) -> Html | None:
    rows = document["values"]
    if not rows:
        return None
    by_code: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_code.setdefault(row["code"], []).append(row)
    figures: list[Html] = []
    for code, units in by_code.items():
        drawn = [unit for unit in units if unit["percentiles"][0][1] < unit["percentiles"][-1][1]]
        if drawn and len(figures) < CHARTS:
            series = [
                Series(
                    unit["unit"] or "no unit",
                    [(value, float(percent)) for percent, value in unit["percentiles"] if 1 <= percent <= 99],
                )
                for unit in drawn[:6]
            ]
            title = f"{code}" + (f" [{drawn[0]['unit']}]" if len(drawn) == 1 and drawn[0]["unit"] else "")
            figures.append(line_chart(title, series, "Value", "% at most", y_range=(0, 100), width=SMALL))
    charts = element("div", *figures, class_="charts small") if figures else None
    chosen = (0, 5, 25, 50, 75, 95, 100)
    body = [
        [
            join([row["code"], element("span", row["unit"] or "no unit", class_="sub")]),
            f"{row['n']:,}" + (" *" if row["estimated"] else ""),
            *(f"{value:.4g}" for percent, value in row["percentiles"] if percent in chosen),
        ]
        for row in rows[:MOST_ROWS]
    ]
    caption = f"Percentiles of the most frequent of {document['pairs']:,} codes and units"
    head = ["Code and unit", "Values", "Least", "5 %", "25 %", "Median", "75 %", "95 %", "Most"]
    estimated = any(row["estimated"] for row in rows[:MOST_ROWS])
    note = "Curves run from the 1st to the 99th percentile."
    note += " * Many distinct values: percentiles are estimated, to 1.6 % or better." if estimated else ""
    return join([charts, table(caption, head, body), element("p", note, class_="note")])
