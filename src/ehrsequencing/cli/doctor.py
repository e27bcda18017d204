"""`ehrseq doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ehrsequencing.cli.common import say


def doctor(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    watch: Annotated[bool, typer.Option("--watch", help="Follow a run and show new findings until it ends.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object per training.")] = False,
) -> None:
    """Say what ails a run, with the evidence and the remedy; exits with 0 whatever it finds."""
    from ehrsequencing.diagnostics.doctor import diagnose, trainings
    from ehrsequencing.diagnostics.evidence import ENDED
    from ehrsequencing.diagnostics.watch import watch as follow

    if watch:
        for new, diagnosis in follow(run):
            for finding in new:
                say(json.dumps(asdict(finding), allow_nan=False) if as_json else str(finding))
            if diagnosis.status in ENDED and not as_json:
                say(f"the run ended: {diagnosis.status}" + ("" if diagnosis.findings else ", no findings"))
        return
    found = [diagnose(training) for training in trainings(run)]
    for diagnosis in found:
        if as_json:
            say(json.dumps(diagnosis.document(), allow_nan=False))
            continue
        say(f"{diagnosis.run}: {diagnosis.status}")
        for line in diagnosis.lines():
            say(line)
