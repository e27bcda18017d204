"""`ehrseq predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrsequencing.cli.common import progress_bars, say


def predict(
    run: Annotated[Path, typer.Argument(help="Fine-tuning run.")],
    store: Annotated[Path, typer.Argument(help="Token store with the run's vocabulary.")],
    labels: Annotated[
        Path | None, typer.Argument(help="Subjects and prediction times; without it whole histories.")
    ] = None,
    at: Annotated[str | None, typer.Option("--at", help="Days of a survival run's curves, as 365,1825.")] = None,
    split: Annotated[str, typer.Option("--split", help="held_out, tuning, train or all.")] = "held_out",
    out: Annotated[
        Path | None, typer.Option("--out", help="Parquet file; RUN/predictions/predict_SPLIT.parquet by default.")
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Also write the table as CSV beside it.")] = False,
) -> None:
    """Write what a run predicts of each history: probabilities, or survival and cumulative incidence by day."""
    from ehrsequencing.data.artefacts import refuse_in_data
    from ehrsequencing.data.labels import labels_hash, read_labels
    from ehrsequencing.data.store import TokenStore
    from ehrsequencing.errors import ConfigError
    from ehrsequencing.evaluation.prediction_table import asked_examples, parse_days, prediction_table
    from ehrsequencing.io import atomic_path, write_json
    from ehrsequencing.training.examples import check_origin

    days = None if at is None else parse_days(at)
    opened = TokenStore.open(store).verify()
    frame = None
    if labels is not None:
        frame, manifest = read_labels(labels)
        check_origin(opened, manifest, str(labels))
    examples = asked_examples(opened, frame, split)
    if out is not None and out.suffix != ".parquet":
        raise ConfigError("--out", got=out, expected="a name that ends in .parquet")
    file = out or run / "predictions" / f"predict_{split}.parquet"
    refuse_in_data(file, store, *([labels] if labels is not None else []))
    with progress_bars() as update:
        table = prediction_table(run, opened, examples, days, update)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        file.with_suffix(".json"),
        {
            "run": str(run.resolve()),
            "store_fingerprint": opened.fingerprint,
            "labels_hash": labels_hash(labels) if labels is not None else None,
            "split": split,
            "days": days,
            "rows": len(table),
            "model_hash": table.item(0, "model_hash"),
            "package_version": table.item(0, "package_version"),
        },
    )
    with atomic_path(file) as temporary:
        table.write_parquet(temporary)
    if csv:
        with atomic_path(file.with_suffix(".csv")) as temporary:
            table.write_csv(temporary)
    say(f"{len(table):,} rows of {table['subject_id'].n_unique():,} subjects: {file}")
