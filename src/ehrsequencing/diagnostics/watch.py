"""Following a run that is going on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ehrsequencing.diagnostics.doctor import diagnose
from ehrsequencing.diagnostics.evidence import ENDED
from ehrsequencing.diagnostics.findings import Diagnosis, Finding

POLL_SECONDS = 5.0


def watch(
    run: str | Path, *, poll_seconds: float = POLL_SECONDS, sleep: Callable[[float], None] = time.sleep
) -> Iterator[tuple[list[Finding], Diagnosis]]:
    """Diagnose a run again and again until it ends.

    Args:
        run: Run directory.
        poll_seconds: Time between two looks.
        sleep: Waits; a caller that wants to leave raises from it.

    Yields:
        The findings that no look before had (by rule and severity), and the whole diagnosis; the last one is of the
        ended run.

    Raises:
        RunError: as `diagnose`.
    """
    seen: set[tuple[str, str]] = set()
    while True:
        diagnosis = diagnose(run)
        new = [finding for finding in diagnosis.findings if (finding.rule, finding.severity) not in seen]
        seen |= {(finding.rule, finding.severity) for finding in new}
        ended = diagnosis.status in ENDED
        if new or ended:
            yield new, diagnosis
        if ended:
            return
        sleep(poll_seconds)
