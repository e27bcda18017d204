"""Where outputs may go: never into a dataset or a token store, whose readers would take them for its own."""

from __future__ import annotations

from pathlib import Path

from ehrsequencing.data.dataset import DATASET_FILE
from ehrsequencing.data.store import MARK as STORE_MARK
from ehrsequencing.errors import ConfigError
from ehrsequencing.io import Mark, refuse_overlap

MARKS = (Mark(DATASET_FILE, "meds_version", "a MEDS dataset"), STORE_MARK)


def refuse_in_data(output: str | Path, *inputs: str | Path) -> None:
    """Refuse an output that overlaps what it is made from, or lies in any dataset or token store.

    Raises:
        ConfigError: it does; names which.
    """
    for source in inputs:
        refuse_overlap(source, output)
    for folder in Path(output).resolve().parents:
        for mark in MARKS:
            if mark.on(folder):
                raise ConfigError(
                    f"the output {output} lies in {folder}, which is {mark.artefact}",
                    remedy="choose another folder to write",
                )


def refuse_labels_in_data(output: str | Path, meds: str | Path) -> None:
    """`refuse_in_data` for labels of a dataset, whose own folder `labels` is a place for them."""
    if (Path(meds) / "labels").resolve() not in Path(output).resolve().parents:
        refuse_in_data(output, meds)
