"""PhysioNet/Computing in Cardiology Challenge 2012: the first 48 hours of stays in intensive care, with outcomes.

Source: Silva et al. 2012, Computing in Cardiology 39:245-248; https://physionet.org/content/challenge-2012/1.0.0/.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from ehrsequencing.data.calendar import NO_DATES
from ehrsequencing.data.sources.cells import Kind
from ehrsequencing.data.sources.physionet2012_records import (
    EPOCH,
    MAY_BE_ZERO,
    ONCE,
    aside,
    events,
    find_sets,
    read,
    subjects,
)
from ehrsequencing.data.sources.spool import summary
from ehrsequencing.data.sources.tables import Held, Table, keyed
from ehrsequencing.data.sources.target import Target
from ehrsequencing.errors import ConfigError, DataError

PREDICTION_TIME = EPOCH + datetime.timedelta(hours=48)
LATE = {"more than 48 hours after admission": (pl.col("time") > PREDICTION_TIME).fill_null(False)}
HORIZON_DAYS, MAX_HORIZON_DAYS = 365, 3650
MIDDLE_OF_DAY = 0.5
OUTCOMES: dict[str, Kind] = {"recordid": "id", "survival": "id", "in-hospital_death": "id"}
NOTES = [
    f"{NO_DATES} Every stay begins at {EPOCH:%Y-%m-%d %H:%M}; events follow by the published hours and minutes, up to "
    "48 hours. A subject is one stay (RecordID): which stays are of one person is not published.",
    "MEDS_BIRTH lies Age years of 365.25 days before admission; ages are whole, and 90 stands for all above 89.",
    "All valid values are non-negative (the publisher), so a negative value is missing. So is 0, which no living body "
    f"has, but for {', '.join(MAY_BE_ZERO)}; the publisher says nothing of it. Such rows make no event, and are "
    "counted. Other outliers are kept.",
    "Units are those of the publisher's table of variables; the files carry none.",
    "Events after 48:00, the prediction time, are dropped.",
    "Events are stamped as published. For laboratory results that is the time of the specimen, so that a result may be "
    "known an hour or more too early.",
    "In-hospital death and survival are labels and never events; SAPS-I, SOFA and length of stay are left out.",
]


def load(src: Path, target: Target, *, horizon_days: int = HORIZON_DAYS) -> None:
    """Import the sets a, b and c that are there, and labels for those with outcomes.

    Args:
        src: Folder with a set as `set-a.csv` (RecordID, Time, Parameter, Value; also .csv.gz or .parquet), or as
            published: `set-a/` with a text file per record, `set-a.zip` or `set-a.tar.gz`; and `Outcomes-a.txt`.
        target: Where it is written, and how.
        horizon_days: `labels/time_to_death.parquet` is censored this long after its prediction time, 1 to 3650.

    Raises:
        ConfigError: `horizon_days` is out of range.
        DataError: no set is there, a column is missing, a file is damaged, an identifier or time does not parse, a
            record is repeated; with `strict`, a row without a place.
        RunError: `out` exists.
    """
    if not 1 <= horizon_days <= MAX_HORIZON_DAYS:
        raise ConfigError("horizon_days is out of range", got=horizon_days, expected=f"1 to {MAX_HORIZON_DAYS}")
    with TemporaryDirectory() as unpacked, target.writer() as writer:
        found = find_sets(src, Path(unpacked))
        sets = [Held(table.name, table.files, pieces=tuple(read(table))) for table in found.values()]
        stays = subjects([piece for table in sets for piece in table.pieces])
        outcomes, missing = _outcomes(src, list(found))
        single = _lone_records([piece.rows for table in sets for piece in table.pieces])
        with target.spool(writer, stays, sets, "the sets") as spool:
            for table in sets:
                for piece in spool.read(table, {}):
                    told = spool.set_aside(piece, aside())
                    spool.add(told, *events(told.rows), further=LATE)
            del table, sets
            codes = spool.book()
            written = spool.write(writer)
        labels = _labels(outcomes.join(stays, on="subject_id", how="semi"), horizon_days)
        codes = codes.join(written["events_by_code"], on="code", how="semi")
        writer.finish(
            codes,
            source="physionet2012",
            options={"strict": target.strict, "horizon_days": horizon_days},
            notes=NOTES,
            extra=summary(
                spool,
                written,
                codes,
                conflicts={
                    **single,
                    "outcomes_of_unknown_records": outcomes.join(stays, on="subject_id", how="anti").height,
                    "records_without_outcomes": stays.join(outcomes, on="subject_id", how="anti").height,
                },
                tables_missing=missing,
                labels=list(labels),
            ),
        )
        for name, (rows, manifest) in labels.items():
            writer.write_labels(name, rows, manifest)


def _lone_records(pieces: list[pl.DataFrame]) -> dict[str, int]:
    """Records that look like a misspelt RecordID: those of one row, and those that are not described."""
    rows = pl.concat([piece.select("recordid", pl.col("parameter").is_in(ONCE).alias("described")) for piece in pieces])
    records = rows.drop_nulls("recordid").group_by("recordid").agg(pl.len(), pl.col("described").any())
    return {
        "records_of_a_single_row": records.filter(len=1).height,
        "records_without_descriptors": records.filter(described=False).height,
    }


def _outcomes(src: Path, letters: list[str]) -> tuple[pl.DataFrame, list[str]]:
    """`subject_id`, `survival` and `died` of the sets' records, and which files are missing."""
    lying = {path.name.lower(): path for path in sorted(src.iterdir())}
    parts = [pl.DataFrame(schema=dict.fromkeys(OUTCOMES, pl.Int64))]
    missing = []
    for letter in letters:
        file = lying.get(f"outcomes-{letter}.txt", lying.get(f"outcomes-{letter}.csv"))
        if file is None:
            missing.append(f"Outcomes-{letter}.txt")
            continue
        rows = keyed(Table(f"outcomes-{letter}", (file,)).whole(OUTCOMES), "recordid")
        for column, expected in (("in-hospital_death", "0, 1 or -1"), ("survival", "days, or -1")):
            wrong = (pl.col(column) < -1) | ((pl.col(column) > 1) if column != "survival" else pl.lit(False))
            if len(bad := rows.filter(wrong)):
                raise DataError(
                    f"column {column} of {file} has {len(bad)} unusable values",
                    got=f"{bad[column][0]} in row {bad['row'][0]}", expected=expected,
                )  # fmt: skip
        parts.append(rows.select(*OUTCOMES))
    outcomes = pl.concat(parts)
    if len(twice := outcomes.filter(pl.col("recordid").is_duplicated())):
        raise DataError("a record has outcomes in two sets", got=f"record {twice['recordid'][0]}", expected="one")
    return outcomes.rename({"recordid": "subject_id", "in-hospital_death": "died"}), missing


def _labels(outcomes: pl.DataFrame, horizon_days: int) -> dict[str, tuple[pl.DataFrame, dict[str, Any]]]:
    """Death in hospital and time to death, at 48 hours; a task without an example is left out."""
    at = pl.lit(PREDICTION_TIME, dtype=pl.Datetime("us"))
    survival, died = pl.col("survival"), pl.col("died")
    flow = [_step("records with a line of outcomes", outcomes)]
    brief = survival.is_between(0, 1)
    stated = outcomes.filter(died.is_between(0, 1))
    mortality = stated.select("subject_id", prediction_time=at, boolean_value=died == 1)
    # Survival counts whole days since admission: a death on day n lies between n and n + 1 days after it.
    days = survival - 2 + MIDDLE_OF_DAY
    unknown = survival.is_null() | died.is_null() | ((survival == -1) & (died != 0))
    over = ~unknown & brief
    kept = outcomes.filter(~unknown & ~over).with_columns(seen=(survival >= 2) & (days <= horizon_days))
    time_to_death = kept.select(
        "subject_id",
        prediction_time=at,
        integer_value=pl.col("seen").cast(pl.Int64),
        float_value=pl.when("seen").then(days).otherwise(float(horizon_days)).cast(pl.Float32),
    )
    common = {"prediction_time": "48 hours after admission, inclusive", "follow_up": "source"}
    labels: dict[str, tuple[pl.DataFrame, dict[str, Any]]] = {
        "mortality_inpatient": (
            mortality,
            {
                "task": "mortality_inpatient",
                "kind": "binary",
                **common,
                "horizon_days": None,
                "rules": [
                    "the publisher's In-hospital_death; every record counts, as in the challenge, those included whose "
                    "Survival of 1 day says that they died before 48 hours"
                ],
                "flow": [
                    *flow,
                    _step("labelled", mortality),
                    _step("positive", mortality.filter("boolean_value")),
                    _step("of them with a survival below 2 days", stated.filter((died == 1) & brief)),
                ],
            },
        ),
        "time_to_death": (
            time_to_death,
            {
                "task": f"time_to_death@{horizon_days}",
                "kind": "survival",
                **common,
                "horizon_days": horizon_days,
                "rules": [
                    "1 where a death, in hospital or after, is recorded within the horizon, after Survival - 2 + "
                    f"{MIDDLE_OF_DAY} days: Survival counts whole days since admission, and the middle of the day is "
                    "taken",
                    f"0 at {horizon_days} days where no death is recorded or it comes later: how long the others were "
                    "followed is not published, so that everybody is taken as followed to the horizon, and a death "
                    "that was not recorded passes for survival",
                    "excluded: a survival of 0 or 1 days, which ends before the prediction time (or, in a survivor, "
                    "contradicts itself), and unknown outcomes",
                ],
                "flow": [
                    *flow,
                    _step("excluded: unknown outcome", outcomes.filter(unknown)),
                    _step("excluded: survival of 0 or 1 days", outcomes.filter(over)),
                    _step("labelled", time_to_death),
                    _step("event", time_to_death.filter(pl.col("integer_value") == 1)),
                    _step("censored", time_to_death.filter(pl.col("integer_value") == 0)),
                    _step("of them with a later death", kept.filter((survival >= 2) & ~pl.col("seen"))),
                ],
            },
        ),
    }
    return {name: label for name, label in labels.items() if len(label[0])}


def _step(name: str, rows: pl.DataFrame) -> dict[str, Any]:
    return {"step": name, "rows": len(rows), "subjects": rows["subject_id"].n_unique()}
