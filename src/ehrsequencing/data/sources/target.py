"""Where an import writes, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ehrsequencing.data.dataset import MedsWriter
from ehrsequencing.data.sources.spool import EventSpool
from ehrsequencing.data.sources.tables import Table


@dataclass(frozen=True)
class Target:
    """What every source is told besides its input.

    Attributes:
        out: Folder of the MEDS dataset.
        overwrite: Replace what lies at `out`.
        strict: An event that would be dropped is an error.
        progress: Called with (steps done, steps).
        request: All that decides the outcome, as JSON; the import can then be taken up after a kill.
    """

    out: Path
    overwrite: bool = False
    strict: bool = False
    progress: Callable[[int, int], None] | None = None
    request: Mapping[str, Any] | None = None

    def writer(self) -> MedsWriter:
        """Of the dataset; RunError, once entered, where `out` exists."""
        return MedsWriter(self.out, self.overwrite, self.request)

    def spool(self, writer: MedsWriter, subjects: pl.DataFrame, tables: Iterable[Table], registry: str) -> EventSpool:
        """Of the events of some tables, whose subjects stand in the one called `registry`."""
        folder = writer.folder / ".spool"
        return EventSpool(folder, subjects, tables, registry=registry, strict=self.strict, progress=self.progress)
