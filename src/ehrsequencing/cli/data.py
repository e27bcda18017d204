"""`ehrseq synth`, `ehrseq import` and `ehrseq prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrsequencing.cli.common import Overwrite, progress_bars, say


def synth(
    out: Annotated[Path, typer.Argument(help="Folder of the MEDS dataset to write.")],
    subjects: Annotated[int, typer.Option("--subjects", min=1, help="Number of subjects.")] = 5000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed; seeds share no subject.")] = 0,
    mode: Annotated[str, typer.Option("--mode", help="realistic, or random (the negative control).")] = "realistic",
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes; all cores by default.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write synthetic records as a MEDS dataset."""
    from ehrsequencing.data.dataset import MedsDataset
    from ehrsequencing.data.synthetic import synthesise
    from ehrsequencing.errors import ConfigError

    if mode not in ("realistic", "random"):
        raise ConfigError("--mode", got=mode, expected="realistic or random")
    with progress_bars() as update:
        synthesise(
            out,
            subjects=subjects,
            seed=seed,
            mode=mode,  # type: ignore[arg-type]
            workers=workers,
            overwrite=overwrite,
            progress=lambda done, total: update("synthetic subjects", done, total),
        )
    _summary(MedsDataset.open(out).manifest)
    say(f"MEDS dataset written to {out}")


def import_(
    kind: Annotated[str, typer.Argument(help="Source: uci-diabetes, mimic-iv or omop.")],
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder or file of the publisher.")],
    out: Annotated[Path, typer.Argument(help="Folder of the MEDS dataset to write.")],
    strict: Annotated[bool, typer.Option("--strict", help="An event that would be dropped is an error.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Turn raw files into a MEDS dataset."""
    from ehrsequencing.data.dataset import MedsDataset
    from ehrsequencing.data.sources import import_source

    options = {"strict": True} if strict else {}
    with progress_bars() as update:
        import_source(
            kind,
            source,
            out,
            overwrite=overwrite,
            progress=lambda done, total: update(f"import {kind}", done, total),
            **options,
        )
    _summary(MedsDataset.open(out).manifest)
    say(f"MEDS dataset written to {out}")


def prepare(
    meds: Annotated[Path, typer.Argument(help="MEDS dataset.")],
    store: Annotated[Path, typer.Argument(help="Folder of the token store to write.")],
    min_count: Annotated[
        int | None, typer.Option("--min-count", min=1, help="Rarer codes (in train) become UNK; 5 by default.")
    ] = None,
    value_bins: Annotated[
        int | None, typer.Option("--value-bins", min=2, help="Quantile tokens per numeric code; 5 by default.")
    ] = None,
    vocabulary: Annotated[
        Path | None, typer.Option("--vocabulary", help="Model folder or store whose vocabulary to use.")
    ] = None,
    extend: Annotated[bool, typer.Option("--extend", help="Append this dataset's new codes to --vocabulary.")] = False,
    visits: Annotated[
        str | None,
        typer.Option("--visits", help="visit_id, day, gap:24h, visit_id+day (default) or visit_id+gap:24h."),
    ] = None,
    order: Annotated[
        str | None, typer.Option("--order-within-visit", help="time (default), or canonical: kind, code, value.")
    ] = None,
    long_histories: Annotated[
        str | None,
        typer.Option("--long-histories", help="Keep the most recent events (default), or whole visits."),
    ] = None,
    values: Annotated[str | None, typer.Option("--values", help="Tokens of numbers: bins (default), or none.")] = None,
    roll_up: Annotated[
        list[str] | None,
        typer.Option("--roll-up", help="icd10=3, icd9=3, atc=4, rxnorm=ingredient, parents=1; repeat for several."),
    ] = None,
    units: Annotated[
        str | None, typer.Option("--units", help="spelling, standard, or a CSV file of conversions.")
    ] = None,
    max_age_years: Annotated[
        float, typer.Option("--max-age-years", help="Events at greater ages are refused.")
    ] = 125.0,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Pieces at a time; one per core by default, at most 8.")
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", help="local, or ray: a Ray cluster that sees both folders.")
    ] = "local",
    overwrite: Overwrite = False,
) -> None:
    """Turn a MEDS dataset into a token store. Killed, the same command continues where it stopped."""
    from ehrsequencing.data.prepare import prepare as run

    with progress_bars() as update:
        made = run(
            meds,
            store,
            min_count=min_count,
            value_bins=value_bins,
            vocabulary_from=vocabulary,
            extend_vocabulary=extend,
            visits=visits,
            order_within_visit=order,
            long_histories=long_histories,
            values=values,
            roll_up=roll_up or None,
            units=units,
            max_age_years=max_age_years,
            overwrite=overwrite,
            workers=workers,
            engine=engine,
            progress=lambda done, total: update("prepare", done, total),
            notice=say,
        )
    for split in ("train", "tuning", "held_out"):
        part = made.split(split)
        say(f"{split}: {len(part):,} subjects, {int(part.offsets[-1]):,} events")
    if rolled := made.manifest.get("roll_up"):
        say(f"roll-up: {rolled['codes_before']:,} codes became {rolled['codes_after']:,}")
    if "units" in made.manifest:
        converted = made.manifest["units"]
        say(f"units: {sum(row['events'] for row in converted):,} numbers of {len(converted):,} pairs of code and unit")
    say(f"vocabulary: {len(made.vocabulary):,} tokens; token store written to {store}")


_IMPORTED = (
    "visits", "events_by_kind", "events_dropped", "events_after_death", "subjects_without_birth", "conflicts",
    "tables_missing", "tables_not_read",
)  # fmt: skip


def _summary(manifest: dict) -> None:
    imported = {key: manifest[key] for key in _IMPORTED if key in manifest}
    for key, value in (manifest.get("counts", {}) | imported).items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {count:,}" for name, count in value.items()) or "none"
        elif isinstance(value, list):
            value = ", ".join(value) or "none"
        say(f"{key}: {value:,}" if isinstance(value, int) else f"{key}: {value}")
    for note in manifest.get("notes", []):
        say(f"note: {note}")
