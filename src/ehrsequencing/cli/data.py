"""`ehrseq synth`, `ehrseq import` and `ehrseq prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ehrsequencing.cli.common import Overwrite, percent, progress_bars, say, show_table
from ehrsequencing.cli.imported import show_import
from ehrsequencing.data.sources import SOURCES

IMPORTED = [source for source in SOURCES.values() if source.expected_input is not None]


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


def _list_sources(asked: bool) -> None:
    if asked:
        show_table(
            ("source", "what it is", "what SRC must be"),
            [(source.name, source.description, source.expected_input or "") for source in IMPORTED],
            lines=True,
        )
        raise typer.Exit


def _print_example(asked: bool) -> None:
    if asked:
        from ehrsequencing.data.sources.table_mapping import EXAMPLE

        typer.echo(EXAMPLE, nl=False)
        raise typer.Exit


def import_(
    kind: Annotated[str, typer.Argument(help=f"Source: {', '.join(source.name for source in IMPORTED)}.")],
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder or file of the publisher; see --list.")],
    out: Annotated[Path, typer.Argument(help="Folder of the MEDS dataset to write.")],
    mapping: Annotated[
        Path | None,
        typer.Option(
            "--mapping", help="TOML file that says which columns hold what, or support2 or pbc2; for source table."
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="What would be dropped or odd is an error.")] = False,
    horizon_days: Annotated[
        int | None,
        typer.Option("--horizon-days", help="physionet2012: where time_to_death is censored; 365 by default."),
    ] = None,
    overwrite: Overwrite = False,
    list_sources: Annotated[
        bool, typer.Option("--list", callback=_list_sources, is_eager=True, help="Show every source and its input.")
    ] = False,
    example: Annotated[
        bool, typer.Option("--example", callback=_print_example, is_eager=True, help="Print a mapping to start from.")
    ] = False,
) -> None:
    """Turn raw files into a MEDS dataset. One that was killed is taken up by the same command."""
    from ehrsequencing.data.dataset import MedsDataset
    from ehrsequencing.data.sources import import_source

    options: dict[str, Any] = {"strict": True} if strict else {}
    if mapping is not None:
        options["mapping"] = mapping
    if horizon_days is not None:
        options["horizon_days"] = horizon_days
    with progress_bars() as update:
        import_source(
            kind,
            source,
            out,
            overwrite=overwrite,
            progress=lambda done, total: update(f"import {kind}", done, total),
            **options,
        )
    show_import(MedsDataset.open(out).manifest)
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
    allow_unused: Annotated[
        bool,
        typer.Option("--allow-unused", help="A --roll-up or --units that changes nothing is no error; for scripts."),
    ] = False,
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
            allow_unused=allow_unused,
            max_age_years=max_age_years,
            overwrite=overwrite,
            workers=workers,
            engine=engine,
            progress=lambda done, total: update("prepare", done, total),
        )
    counts = made.manifest["counts"]
    for split, part in counts.items():
        say(f"{split}: {part['subjects']:,} subjects, {part['visits']:,} visits, {part['events']:,} events")
    whole = {name: sum(part[name] for part in counts.values()) for name in ("events", "unk_events")}
    shares = (("train", counts["train"]["unk_share"]), ("all splits", whole["unk_events"] / max(whole["events"], 1)))
    say(f"unknown (UNK): {', '.join(f'{percent(share)} of the events of {name}' for name, share in shares)}")
    if rolled := made.manifest.get("roll_up"):
        say(f"roll-up: {rolled['codes_before']:,} codes became {rolled['codes_after']:,}")
    if "units" in made.manifest:
        changed = made.manifest["units"]
        converted = [row for row in changed if (row["factor"], row["offset"]) != (1, 0)]
        say(
            f"units: {sum(row['events'] for row in converted):,} numbers of {len(converted):,} pairs of code and unit "
            f"converted, {len(changed) - len(converted):,} pairs respelt"
        )
    say(f"vocabulary: {len(made.vocabulary):,} tokens; token store written to {store}")


def _summary(manifest: dict[str, Any]) -> None:
    for key, value in manifest.get("counts", {}).items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {count:,}" for name, count in value.items()) or "none"
        say(f"{key}: {value:,}" if isinstance(value, int) else f"{key}: {value}")
    for note in manifest.get("notes", []):
        say(f"note: {note}")
