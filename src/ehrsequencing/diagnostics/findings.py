"""What rules are made of and what they give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ehrsequencing.diagnostics.evidence import Evidence

SEVERITIES = ("problem", "warning", "note")
"""A problem: the figures cannot be used, or the run did not do what was asked. A warning: it could be better. A note:
worth knowing."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a run.

    Attributes:
        rule: Id of the rule.
        severity: One of `SEVERITIES`.
        symptom: What is wrong, one sentence.
        evidence: The numbers that say so, one sentence.
        remedy: What to do, with the flag or the command.
    """

    rule: str
    severity: str
    symptom: str
    evidence: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.rule}: {self.symptom}. Evidence: {self.evidence}. Remedy: {self.remedy}"


class Missing(Exception):  # noqa: N818
    """A rule lacks the evidence to decide; the message says which."""


class DoesNotApply(Exception):  # noqa: N818
    """A rule is about another kind of run; the message says which."""


@dataclass(frozen=True)
class Rule:
    """One check of a run.

    Attributes:
        id: Its name.
        symptom, evidence, threshold, remedy: The row of the table in docs/doctor.md.
        check: Gives a finding, or None where the run is free of this; raises `Missing` or `DoesNotApply`.
        explained_by: Rules whose findings take this one's place: they name the cause of the same figures, or what
            makes these figures mean nothing.
    """

    id: str
    symptom: str
    evidence: str
    threshold: str
    remedy: str
    check: Callable[[Evidence], Finding | None]
    explained_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """What a doctor says of one run.

    Attributes:
        run: Name of the run.
        status: How it ended, or `running`.
        findings: Worst first.
        checked: Rules that looked and found nothing.
        explained: Findings left out, each with the finding that explains it.
        missing: Rules that could not decide, and why.
        inapplicable: Rules about other kinds of run, and why.
    """

    run: str
    status: str
    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    explained: tuple[tuple[str, str], ...]
    missing: tuple[tuple[str, str], ...]
    inapplicable: tuple[tuple[str, str], ...]

    def document(self) -> dict[str, Any]:
        """Content of `doctor.json`."""
        return {
            "run": self.run,
            "status": self.status,
            "findings": [asdict(finding) for finding in self.findings],
            "checked": list(self.checked),
            "explained": [{"rule": rule, "by": by} for rule, by in self.explained],
            "not_checked": [{"rule": rule, "why": why} for rule, why in self.missing],
            "not_applicable": [{"rule": rule, "why": why} for rule, why in self.inapplicable],
        }

    def lines(self) -> list[str]:
        """The same for people, a line each."""
        found = [str(finding) for finding in self.findings] or ["no findings"]
        found += [f"explained: {rule} by {by}" for rule, by in self.explained]
        if self.checked:
            found.append(f"checked and free of: {', '.join(self.checked)}")
        return found + [f"not checked: {rule}: {why}" for rule, why in self.missing]
