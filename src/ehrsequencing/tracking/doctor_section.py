"""The section of a report that shows what the doctor found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ehrsequencing.tracking.html import Html, element, join, table


def doctor(diagnosis: Mapping[str, Any]) -> Html | None:
    """What `ehrseq doctor` found in the run, what it looked at, and what it could not see."""
    if not diagnosis:
        return None
    body = [
        [
            join([element("strong", row["severity"]), element("span", row["rule"], class_="sub")]),
            row["symptom"],
            row["evidence"],
            row["remedy"],
        ]
        for row in diagnosis["findings"]
    ]
    head = ["Severity", "Symptom", "Evidence", "What to do"]
    parts = [table("Findings", head, body, text_columns=(0, 1, 2, 3)) if body else element("p", "No findings.")]
    if diagnosis["checked"]:
        parts.append(element("p", f"Checked and free of: {', '.join(diagnosis['checked'])}.", class_="note"))
    lines = [f"{row['rule']} is explained by {row['by']}" for row in diagnosis["explained"]]
    lines += [f"{row['rule']} was not checked: {row['why']}" for row in diagnosis["not_checked"]]
    return join([*parts, element("ul", *(element("li", line) for line in lines), class_="plain") if lines else None])
