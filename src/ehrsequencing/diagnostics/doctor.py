"""`diagnose`: all rules over one run, with what explains what."""

from __future__ import annotations

from pathlib import Path

from ehrsequencing.diagnostics.evidence import Evidence
from ehrsequencing.diagnostics.findings import SEVERITIES, Diagnosis, DoesNotApply, Finding, Missing
from ehrsequencing.diagnostics.registry import RULES
from ehrsequencing.io import write_json

DOCTOR_FILE = "doctor.json"


def diagnose(run: str | Path) -> Diagnosis:
    """Apply every rule to a run, going on or ended.

    Raises:
        RunError: `run` is no run directory, or a file of it is malformed.
    """
    return judge(Evidence.read(run))


def judge(evidence: Evidence) -> Diagnosis:
    """Apply every rule to what is known of a run."""
    found: dict[str, Finding] = {}
    checked, missing, inapplicable = [], [], []
    for rule in RULES:
        try:
            finding = rule.check(evidence)
        except Missing as reason:
            missing.append((rule.id, str(reason)))
        except DoesNotApply as reason:
            inapplicable.append((rule.id, str(reason)))
        else:
            if finding is None:
                checked.append(rule.id)
            else:
                found[rule.id] = finding
    explained = []
    for rule in RULES:
        if rule.id in found and (cause := next((by for by in rule.explained_by if by in found), None)):
            explained.append((rule.id, cause))
    left = {rule for rule, _ in explained}
    kept = [finding for rule, finding in found.items() if rule not in left]
    return Diagnosis(
        evidence.path.resolve().name,
        evidence.status,
        tuple(sorted(kept, key=lambda finding: SEVERITIES.index(finding.severity))),
        tuple(checked),
        tuple(explained),
        tuple(missing),
        tuple(inapplicable),
    )


def trainings(run: Path) -> list[Path]:
    """The trainings of a run: itself, or one per seed or arm where it holds several."""
    own = (run / "logs" / "metrics_history.json").is_file() or not (run / "arms").is_dir()
    return [run] if own else [path.parent for path in sorted(run.glob("arms/*/metadata.json"))] or [run]


def write_diagnosis(run: str | Path) -> Diagnosis:
    """Diagnose a run and keep it as `doctor.json`, which its report shows."""
    diagnosis = diagnose(run)
    write_json(Path(run) / DOCTOR_FILE, diagnosis.document())
    return diagnosis
