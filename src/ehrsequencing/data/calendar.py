"""Whether the dates of a dataset are dates: some publishers give none, others shift each subject's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NO_DATES = "The publisher gives no dates."
SHIFTED_DATES = "Dates are shifted"
"""How the note of a dataset's manifest begins where calendar dates of two subjects cannot be compared."""


def dates_note(manifest: Mapping[str, Any]) -> str | None:
    """The note of a dataset's manifest (or a store's) that says its dates are no calendar dates; None where none does.

    >>> dates_note({"notes": ["Ages are whole.", "Dates are shifted per subject by the publisher."]})
    'Dates are shifted per subject by the publisher.'
    >>> dates_note({"notes": []}) is None
    True
    """
    stated = manifest.get("dates_note")
    if isinstance(stated, str):
        return stated
    notes = [note for note in manifest.get("notes", []) if isinstance(note, str)]
    return next((note for note in notes if note.startswith((NO_DATES, SHIFTED_DATES))), None)
