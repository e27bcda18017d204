"""A clean synthetic dataset with its labels, and copies of its store with a planted fault."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.data.sequences import history_bounds
from ehrsequencing.data.store import SplitStore, TokenStore
from ehrsequencing.tasks.audit import CHECKS, AuditReport, CheckResult, audit
from ehrsequencing.tasks.audit_data import AuditData, Finding

DAY = 86_400_000_000


@dataclass(frozen=True)
class World:
    """Store, labels (columns of `LABEL_SCHEMA`) and manifest; the methods give changed copies."""

    path: Path
    labels: pl.DataFrame
    manifest: dict[str, Any]

    @property
    def store(self) -> TokenStore:
        return TokenStore.open(self.path)

    def tampered(self, folder: Path, split: str, **columns: np.ndarray) -> "World":
        """The store with some columns of a split replaced."""
        if not folder.exists():
            shutil.copytree(self.path, folder)
        for name, values in columns.items():
            file = folder / split / f"{name}.npy"
            np.save(file, values.astype(np.load(file).dtype))
        return replace(self, path=folder)

    def with_labels(self, labels: pl.DataFrame, **manifest: Any) -> "World":
        return replace(self, labels=labels.select(self.labels.columns).sort("subject_id", "prediction_time"),
                       manifest={**self.manifest, **manifest})  # fmt: skip

    def moved(self, days: Callable[[np.ndarray], np.ndarray]) -> "World":
        """Prediction times moved by `days(positive)`, and told apart by category where several meet."""
        positive = self.labels["boolean_value"].to_numpy()
        shift = pl.Series((days(positive) * DAY).astype(np.int64)).cast(pl.Duration("us"))
        return self.with_labels(self.labels.with_columns(prediction_time=pl.col("prediction_time") + shift))

    def split_labels(self, split: str) -> tuple[SplitStore, pl.DataFrame, np.ndarray, np.ndarray]:
        """The split, its labels, and first and stop row of their whole histories."""
        store = self.store.split(split)
        here = pl.Series(store.index_of(self.labels["subject_id"].to_numpy()) >= 0)
        rows = self.labels.filter(here)
        until = rows["prediction_time"].to_physical().to_numpy()
        return store, rows, *history_bounds(store, store.index_of(rows["subject_id"].to_numpy()), until)

    def data(self) -> AuditData:
        return AuditData.read(self.store, self.labels, self.manifest)

    def audit(self, **options: Any) -> AuditReport:
        return audit(self.store, self.labels, self.manifest, **options)

    def found(self, check: str) -> list[Finding]:
        """Findings of one check; it must apply."""
        findings = CHECKS[check](self.data())
        assert not isinstance(findings, str), findings
        return findings

    def only(self, check: str, severity: str = "error") -> Finding:
        """The single finding of one check."""
        (finding,) = self.found(check)
        assert (finding.check, finding.severity) == (check, severity), finding
        return finding


def result(report: AuditReport, check: str) -> CheckResult:
    return next(found for found in report.results if found.check == check)
