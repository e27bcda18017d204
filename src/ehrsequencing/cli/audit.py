"""`ehrseq task audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrsequencing.cli.common import Accept, say


def audit(
    store: Annotated[Path, typer.Argument(help="Token store.")],
    labels: Annotated[Path, typer.Argument(help="Labels (parquet, MEDS label schema).")],
    accept: Accept = None,
) -> None:
    """Check labels and store for leakage, as every fine-tuning does first; an error that is not accepted fails."""
    from ehrsequencing.data.labels import read_labels
    from ehrsequencing.data.store import TokenStore
    from ehrsequencing.tasks import audit as checks

    checks.check_names(accept or [])
    table, manifest = read_labels(labels)
    report = checks.audit(TokenStore.open(store), table, manifest, accept=accept or [])
    for found in report.results:
        say(f"{found.check:14} {found.result}")
        for line in found.lines():
            say(f"    {line}")
    say(f"{len(report.results)} checks in {report.seconds:.1f} s")
    report.raise_errors()
