"""The leakage audit: labels and store checked before anything is trained on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import polars as pl

from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import AuditError, ConfigError
from ehrsequencing.tasks import checks_data, checks_labels, checks_tokens, checks_units, checks_windows
from ehrsequencing.tasks.audit_data import AuditData, Finding

Check = Callable[[AuditData], list[Finding] | str]
CHECKS: dict[str, Check] = {
    "future-input": checks_windows.future_input,
    "follow-up": checks_labels.follow_up,
    "windows": checks_windows.windows,
    "one-class": checks_labels.one_class,
    "split-overlap": checks_labels.split_overlap,
    "prevalent": checks_labels.prevalent,
    "token": checks_tokens.token,
    "dates": checks_data.dates,
    "units": checks_units.units,
    "shift": checks_data.shift,
}
"""Every check by the name that `--accept` takes. A check gives its findings, or says why it does not apply."""
OF_SPLITS = ("one-class", "split-overlap", "shift")
"""Checks that compare splits, which say nothing where all labels are judged whatever their split."""


@dataclass(frozen=True)
class CheckResult:
    """What one check found.

    Attributes:
        check: Its name.
        result: "passed", "warning", "error", "accepted" (an error that was accepted) or "not checked".
        findings: What was found, errors first.
        note: Why it was not checked, or that it was accepted without need.
    """

    check: str
    result: str
    findings: tuple[Finding, ...] = ()
    note: str = ""

    def lines(self) -> list[str]:
        """One sentence per finding, or the note."""
        return [f"{finding.severity}: {finding}" for finding in self.findings] + ([self.note] if self.note else [])


@dataclass(frozen=True)
class AuditReport:
    """Results of every check, in the order of `CHECKS`, and how long they took."""

    results: tuple[CheckResult, ...]
    seconds: float

    def of(self, *results: str) -> list[CheckResult]:
        """The checks with one of these results."""
        return [found for found in self.results if found.result in results]

    def raise_errors(self) -> None:
        """AuditError naming every error that was not accepted; nothing where there is none."""
        failed = self.of("error")
        if not failed:
            return
        errors = [finding for found in failed for finding in found.findings if finding.severity == "error"]
        accept = " ".join(f"--accept {found.check}" for found in failed)
        first = errors[0]
        subjects = f", such as subject {', '.join(map(str, first.subjects))}" if first.subjects else ""
        more = "".join(f" | {finding.check}: {finding}" for finding in errors[1:])
        raise AuditError(
            f"the audit found {len(errors)} error{'s' if len(errors) > 1 else ''}: {first.check}: {first.what}",
            got=first.got + subjects, expected=first.expected + more,
            remedy=f"correct the labels or the data, or, knowing better, pass {accept}",
        )  # fmt: skip

    def notes(self) -> list[str]:
        """Sentences for a run's summary: what was accepted, and every warning."""
        found = [f"Accepted in spite of the audit ({item.check}): {item.lines()[0]}" for item in self.of("accepted")]
        warned = (finding for item in self.results for finding in item.findings if finding.severity == "warning")
        return found + [f"Audit, {finding.check}: {finding}" for finding in warned]

    def rows(self) -> list[dict[str, Any]]:
        """One row per check (check, result, found) for metadata and reports."""
        return [{"check": item.check, "result": item.result, "found": item.lines()} for item in self.results]


def audit(
    store: TokenStore,
    labels: pl.DataFrame,
    manifest: dict[str, Any],
    *,
    accept: Collection[str] = (),
    judged_only: bool = False,
) -> AuditReport:
    """Run every check. Labels of held-out subjects are counted and checked against dates; nothing is fitted on them.

    Args:
        store: The token store.
        labels: Columns of `LABEL_SCHEMA`, sorted, as `read_labels` returns them.
        manifest: The labels' manifest; {} where there is none.
        accept: Names of checks whose errors are accepted.
        judged_only: Nothing is trained on these labels, of whatever split: `OF_SPLITS` are left out, and the others
            look at all labels.

    Returns:
        The report; `raise_errors` fails it.

    Raises:
        ConfigError: `accept` names no check.
        LabelError: the labels do not fit their kind, or no labelled subject is in the store.
    """
    check_names(accept)
    started = time.monotonic()
    data = AuditData.read(store, labels, manifest, judged_only=judged_only)
    results = tuple(_run(name, check, data, name in accept) for name, check in CHECKS.items())
    return AuditReport(results, round(time.monotonic() - started, 2))


def check_names(accept: Collection[str]) -> None:
    """ConfigError where a name is no check's."""
    if unknown := sorted(set(accept) - set(CHECKS)):
        raise ConfigError("--accept names no check of the audit", got=", ".join(unknown), expected=", ".join(CHECKS))


_WITHOUT_SPLITS = "every labelled subject is judged, whatever its split"


def _run(name: str, check: Check, data: AuditData, accepted: bool) -> CheckResult:
    found = _WITHOUT_SPLITS if data.judged_only and name in OF_SPLITS else check(data)
    needless = "accepted, and there was no error to accept" if accepted else ""
    if isinstance(found, str):
        return CheckResult(name, "not checked", note="; ".join(part for part in (found, needless) if part))
    findings = tuple(sorted(found, key=lambda finding: finding.severity))
    if any(finding.severity == "error" for finding in findings):
        return CheckResult(name, "accepted" if accepted else "error", findings)
    warned = any(finding.severity == "warning" for finding in findings)
    return CheckResult(name, "warning" if warned else "passed", findings, needless)
