"""Where records come from: one module per origin, found by name, imported when used."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ehrsequencing import __version__
from ehrsequencing.data.sources.recognise import refuse_other_source
from ehrsequencing.errors import ConfigError, DataError
from ehrsequencing.io import hash_file, made_before

if TYPE_CHECKING:
    from ehrsequencing.data.dataset import MedsDataset

logger = logging.getLogger(__name__)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Source:
    """One origin of records.

    Attributes:
        name: What the user types.
        description: One line.
        expected_input: What must lie at the given path; None when the source reads nothing.
        loader: "module:function", called with the input, a `target.Target` and the source's own options as keywords;
            where nothing is read, with the output folder, `overwrite`, `progress` and its own options.
    """

    name: str
    description: str
    expected_input: str | None
    loader: str

    def load(self) -> Callable[..., Any]:
        """Import the loader."""
        module, function = self.loader.split(":")
        loader: Callable[..., Any] = getattr(import_module(module), function)
        return loader


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "synthetic",
            "Synthetic records of a documented disease model, or random codes as the negative control",
            None,
            "ehrsequencing.data.synthetic:synthesise",
        ),
        Source(
            "uci-diabetes",
            "Diabetes 130-US hospitals 1999-2008: 101,766 encounters of 71,518 patients, readmission labels",
            "the publisher's zip (UCI repository, set 296), or a folder with diabetic_data.csv and IDs_mapping.csv",
            "ehrsequencing.data.sources.uci_diabetes:load",
        ),
        Source(
            "mimic-iv",
            "MIMIC-IV: hospital and intensive care records of Beth Israel Deaconess Medical Center, demo or whole",
            "the publisher's folder with hosp/ and icu/, CSV files compressed or not",
            "ehrsequencing.data.sources.mimic_iv:load",
        ),
        Source(
            "mimic-iii",
            "MIMIC-III 1.4: intensive care of Beth Israel Deaconess Medical Center, 2001 to 2012, demo or whole",
            "the publisher's folder of CSV files (PATIENTS and ADMISSIONS at least), compressed or not",
            "ehrsequencing.data.sources.mimic_iii:load",
        ),
        Source(
            "physionet2012",
            "PhysioNet/CinC Challenge 2012: the first 48 hours of 4,000 stays a set in intensive care, with outcomes",
            "a folder with set-a.csv, set-a/, set-a.zip or set-a.tar.gz (b and c likewise) and Outcomes-a.txt",
            "ehrsequencing.data.sources.physionet2012:load",
        ),
        Source(
            "omop",
            "OMOP Common Data Model 5.3 and 5.4",
            "a folder of tables (person at least) as CSV, CSV.gz or parquet",
            "ehrsequencing.data.sources.omop:load",
        ),
        Source(
            "synthea",
            "Synthea's native CSV export, every generation of it",
            "a folder of tables (patients at least) as CSV, CSV.gz or parquet",
            "ehrsequencing.data.sources.synthea:load",
        ),
        Source(
            "meds",
            "Any MEDS dataset, 0.3 or 0.4: checked, sorted, each subject whole in one shard",
            "a dataset's folder, a folder with parquet files, or one parquet file",
            "ehrsequencing.data.sources.meds:load",
        ),
        Source(
            "table",
            "Any tables of subjects, visits and events, by a mapping of their columns (--mapping FILE.toml)",
            "a CSV, CSV.gz or parquet file, or a folder of them",
            "ehrsequencing.data.sources.table:load",
        ),
    )
}


def import_source(
    kind: str,
    src: str | Path | None,
    out: str | Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> MedsDataset:
    """Read raw records into a MEDS dataset.

    What an equal call wrote before (same source, options, version, and size and time of change of every file) is
    returned as it is, so that a command that is repeated until it succeeds ends, whenever it was killed.

    Args:
        kind: A key of `SOURCES`.
        src: The raw records; None for a source that reads nothing.
        out: Folder of the dataset; appears whole or not at all.
        overwrite: Replace what lies at `out`.
        progress: Called with (done, total).
        options: The source's own options.

    Raises:
        ConfigError: unknown source or option, or an input where none is read (or the reverse),
            one of `src` and `out` is or lies in the other, or `out` lies in a dataset or token store.
        DataError: the input is missing, malformed, implausible or of another source.
        RunError: `out` exists, made by another request, and `overwrite` is False or it holds no dataset that we wrote;
            or another process is importing to `out`.
    """
    # The registry alone is quick to import, for the help of the command line.
    from ehrsequencing.data.artefacts import refuse_in_data
    from ehrsequencing.data.dataset import MedsDataset
    from ehrsequencing.data.sources.target import Target

    if kind not in SOURCES:
        raise ConfigError("unknown source", got=kind, expected=", ".join(SOURCES))
    source = SOURCES[kind]
    if (src is None) != (source.expected_input is None):
        raise ConfigError(f"source {kind}", got=f"input {src}", expected=source.expected_input or "no input")
    loader = source.load()
    parameters = inspect.signature(loader).parameters
    keywords = {name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}
    known = keywords - {"overwrite", "progress"} if src is None else keywords | {"strict"}
    if unknown := sorted(set(options) - known):
        raise ConfigError(
            f"source {kind} has no option {', '.join(unknown)}", expected=", ".join(sorted(known)) or "no options"
        )
    needed = {name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
    if missing := sorted((needed & keywords) - set(options)):
        raise ConfigError(f"source {kind} needs {', '.join(f'--{name}' for name in missing)}")
    out = Path(out)
    if src is None:
        refuse_in_data(out)
        loader(out, overwrite=overwrite, progress=progress, **options)
    else:
        src = Path(src)
        refuse_in_data(out, src)
        refuse_other_source(kind, src, out, SOURCES)
        request = _request(kind, src, options)
        if not overwrite and (dataset := _made_before(out, request)) is not None:
            return dataset
        strict = bool(options.pop("strict", False))
        loader(src, Target(out, overwrite, strict, progress, request), **options)
    return MedsDataset.open(out)


def _made_before(out: Path, request: dict[str, Any]) -> MedsDataset | None:
    """The dataset that an equal request wrote before; None where there is none, or something of it is gone."""
    from ehrsequencing.data.dataset import MARK, MedsDataset

    if not made_before(out, request, MARK):
        return None
    with suppress(DataError):
        dataset = MedsDataset.open(out)
        if dataset.is_whole():
            logger.warning("%s is there already, whole, made by the same request of the same input: kept as it is", out)
            return dataset
    return None


def _request(kind: str, src: Path, options: dict[str, Any]) -> dict[str, Any]:
    """All that decides what an import writes: source, version, options, and every file's size and time of change."""
    files = sorted(path for path in src.rglob("*") if path.is_file()) if src.is_dir() else [src] * src.exists()
    stamps = {path: path.stat() for path in files}
    return {
        "source": kind,
        "version": __version__,
        "input": str(src.resolve()),
        "options": {
            name: hash_file(value) if isinstance(value, Path) and value.is_file() else str(value)
            for name, value in options.items()
        },
        "file": {
            str(path.relative_to(src)): f"{stamp.st_size} bytes of {stamp.st_mtime_ns} ns"
            for path, stamp in stamps.items()
        },
    }
