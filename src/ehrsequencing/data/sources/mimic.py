"""What the importers of MIMIC-III and MIMIC-IV share: people, admissions, and the way from tables to a dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import polars as pl

from ehrsequencing.data.schema import BIRTH_CODE, DEATH_CODE
from ehrsequencing.data.sources.cells import Kind
from ehrsequencing.data.sources.mimic_tables import Context, Spec, end_of_day
from ehrsequencing.data.sources.spool import EventSpool, event, named, summary, write_observation_end
from ehrsequencing.data.sources.tables import Piece, Table, keyed, once
from ehrsequencing.data.sources.target import Target

ADMISSIONS: dict[str, Kind] = {
    "subject_id": "id", "hadm_id": "id", "admittime": "time", "dischtime": "time", "admission_type": "text",
}  # fmt: skip
ADMISSIONS_OPTIONAL: dict[str, Kind] = {
    "deathtime": "time", "admission_location": "text", "discharge_location": "text", "edregtime": "time",
    "edouttime": "time",
}  # fmt: skip
ITEMS: tuple[dict[str, Kind], dict[str, Kind]] = ({"itemid": "id", "label": "text"}, {})
LAB_ITEMS: tuple[dict[str, Kind], dict[str, Kind]] = (
    {"itemid": "id", "label": "text"}, {"loinc_code": "text"},
)  # fmt: skip
DEATH_NOTE = (
    "MEDS_DEATH is the earliest deathtime of the subject's admissions, else the end of the day dod. An admission whose "
    "deathtime is later than its dischtime (published as midnight) is discharged at deathtime."
)
VISIT_NOTE = "visit_id is hadm_id; events outside an admission have none and form a visit per calendar day."
TEXT_NOTE = "text_value is the result as written where it is no number."
ASIDE_NOTE = "Rows that the publisher marks as rewritten, cancelled or wrong make no event, and are counted."


@dataclass(frozen=True)
class Release:
    """One release of MIMIC.

    Attributes:
        source: Name of the source.
        patients, admissions: Names of these tables.
        patient_columns: Required and optional columns of patients.
        people: Adds `birth` (Datetime) and `dod` (the day of death) to patients with `first_admitted` and `deathtime`.
        conflicts: Counts, by name, of what contradicts itself in the result of `people`.
        attributes: Columns of admissions to the prefix of their code.
        unstated: Texts of these columns that state nothing.
        dictionaries: Names of tables to required and optional columns, a `label` or `long_title` last.
        to_dictionary: Brings a dictionary's rows to the columns that the tables ask for.
        specs: Tables of events.
        follow_up_days: How long after the last discharge deaths are known.
        notes: For the manifest.
    """

    source: str
    patients: str
    admissions: str
    patient_columns: tuple[Mapping[str, Kind], Mapping[str, Kind]]
    people: Callable[[pl.DataFrame], pl.DataFrame]
    conflicts: Callable[[pl.DataFrame], dict[str, int]]
    attributes: Mapping[str, str]
    unstated: tuple[str, ...]
    dictionaries: Mapping[str, tuple[Mapping[str, Kind], Mapping[str, Kind]]]
    specs: tuple[Spec, ...]
    follow_up_days: int
    notes: list[str]
    to_dictionary: Callable[[str, pl.DataFrame], pl.DataFrame] = lambda _, rows: rows


def import_release(
    release: Release,
    tables: Mapping[str, Table],
    target: Target,
) -> None:
    """Write the dataset of a release; tables that are missing are named in the manifest.

    Args:
        release: Which one.
        tables: Those found, patients and admissions among them.
        target: Where it is written, and how.

    Raises:
        DataError: a column is missing, a file is damaged, an identifier or time does not parse, a subject is repeated;
            with `strict`, a row without a place.
        RunError: `out` exists.
    """
    patients = tables[release.patients].whole(*release.patient_columns)
    admissions = _admissions(release, tables[release.admissions])
    people = _people(release, patients, admissions.rows)
    subjects = people.select("subject_id", "birth")
    read = {spec.name: tables[spec.name] for spec in release.specs if spec.name in tables}
    used = {release.patients, release.admissions, *release.dictionaries, *(spec.name for spec in release.specs)}
    context = Context(
        admissions.rows, {name.rpartition("/")[2]: _dictionary(release, tables, name) for name in release.dictionaries}
    )
    with (
        target.writer() as writer,
        target.spool(writer, subjects, read.values(), "patients") as spool,
    ):
        _add_people(spool, replace(patients, rows=people))
        _add_admissions(spool, release, admissions)
        for spec in release.specs:
            if spec.name not in read:
                continue
            for piece in spool.read(read[spec.name], spec.required, spec.optional):
                if spec.aside is not None:
                    piece = spool.set_aside(piece, spec.aside)
                spool.add(piece, *spec.events(piece.rows, context), no_time=spec.no_time)
        codes = spool.book()
        written = spool.write(writer)
        codes = codes.join(written["events_by_code"], on="code", how="semi")
        observed = _observation(admissions.rows, subjects, release.follow_up_days)
        write_observation_end(writer, observed)
        writer.finish(
            codes,
            source=release.source,
            options={"strict": target.strict},
            notes=release.notes,
            extra=summary(
                spool,
                written,
                codes,
                conflicts={
                    **_conflicts(release, people, admissions.rows, observed),
                    "codes_without_description": codes["description"].null_count(),
                },
                tables_missing=sorted(used - set(tables)),
                tables_not_read=sorted(set(tables) - used),
            ),
        )


def _dictionary(release: Release, tables: Mapping[str, Table], name: str) -> pl.DataFrame | None:
    """Rows of a dictionary, each key once; None where it is missing."""
    if name not in tables:
        return None
    piece = tables[name].whole(*release.dictionaries[name])
    rows = release.to_dictionary(name, piece.rows.drop("row"))
    keys = [column for column in ("itemid", "icd_code", "icd_version") if column in rows.columns]
    return once(rows, keys, piece.file)


def _admissions(release: Release, table: Table) -> Piece:
    """Admissions by subject and time, with `discharged`: null where dischtime is missing or before admittime."""
    texts: dict[str, Kind] = dict.fromkeys(release.attributes, "text")
    piece = table.whole(ADMISSIONS, {**ADMISSIONS_OPTIONAL, **texts})
    keyed(piece, "hadm_id")
    last = pl.max_horizontal("dischtime", "deathtime")
    rows = piece.rows.with_columns(
        discharged=pl.when(pl.col("dischtime").is_not_null() & (last >= pl.col("admittime"))).then(last)
    )
    return replace(piece, rows=rows.sort("subject_id", "admittime", "hadm_id"))


def _people(release: Release, patients: Piece, admissions: pl.DataFrame) -> pl.DataFrame:
    """Patients with `birth`, `deathtime`, the visit `died_in`, and `died`."""
    rows = keyed(patients, "subject_id")
    stays = admissions.group_by("subject_id").agg(
        first_admitted=pl.col("admittime").min(),
        deathtime=pl.col("deathtime").min(),
        died_in=pl.col("hadm_id").sort_by("deathtime", nulls_last=True).first(),
    )
    rows = release.people(rows.join(stays, on="subject_id", how="left", maintain_order="left"))
    return rows.with_columns(
        died=pl.coalesce("deathtime", end_of_day("dod")),
        died_in=pl.when(pl.col("deathtime").is_not_null()).then("died_in"),
    )


def _add_people(spool: EventSpool, patients: Piece) -> None:
    rows, birth, died = patients.rows, pl.col("birth"), pl.col("died")
    spool.add(
        patients,
        event(rows, pl.lit(BIRTH_CODE), birth, "demographic", description=pl.lit("Birth"), where=birth.is_not_null()),
        event(rows, named("GENDER", "gender"), None, "demographic", where=pl.col("gender").is_not_null()),
        event(
            rows, pl.lit(DEATH_CODE), died, "demographic", visit="died_in", description=pl.lit("Death"),
            where=died.is_not_null(),
        ),
    )  # fmt: skip


def _add_admissions(spool: EventSpool, release: Release, admissions: Piece) -> None:
    visits = admissions.rows

    def of_visit(code: pl.Expr, time: str, kind: str = "encounter", where: pl.Expr | None = None) -> pl.DataFrame:
        return event(visits, code, pl.col(time), kind, visit="hadm_id", where=where)

    kind_and_origin = [pl.col(column).fill_null("UNKNOWN") for column in ("admission_type", "admission_location")]
    spool.add(
        admissions,
        of_visit(pl.lit("ED_REGISTRATION"), "edregtime", where=pl.col("edregtime").is_not_null()),
        of_visit(pl.lit("ED_OUT"), "edouttime", where=pl.col("edouttime").is_not_null()),
        of_visit(named("HOSPITAL_ADMISSION", *kind_and_origin), "admittime"),
        *(
            of_visit(named(prefix, column), "admittime", "demographic", _changed(column, release.unstated))
            for column, prefix in release.attributes.items()
        ),
        of_visit(named("HOSPITAL_DISCHARGE", pl.col("discharge_location").fill_null("UNKNOWN")), "discharged"),
        no_time="admission or discharge without a time, or discharge before admission",
        contradictions={
            "edouttime before edregtime": pl.col("edouttime") < pl.col("edregtime"),
            "no hadm_id, so that the admission is no visit": pl.col("hadm_id").is_null(),
        },
    )


def _changed(column: str, unstated: tuple[str, ...]) -> pl.Expr:
    """Whether an admission states another value than the one that the subject's earlier admissions stated last."""
    stated = pl.when(~pl.col(column).is_in(unstated)).then(pl.col(column))
    before = stated.forward_fill().shift(1).over("subject_id")
    return (stated.is_not_null() & stated.ne_missing(before)).fill_null(False)


def _observation(admissions: pl.DataFrame, subjects: pl.DataFrame, days: int) -> pl.DataFrame:
    """`metadata/observation.parquet`: some days after the last discharge."""
    known = admissions.join(subjects, on="subject_id", how="semi")
    last = known.group_by("subject_id").agg(pl.col("discharged").max())
    ends = last.drop_nulls().select("subject_id", observation_end=pl.col("discharged") + pl.duration(days=days))
    return ends.sort("subject_id")


def _conflicts(
    release: Release, people: pl.DataFrame, admissions: pl.DataFrame, observed: pl.DataFrame
) -> dict[str, int]:
    """Counts of what contradicts itself."""
    died = people.filter(pl.col("deathtime").is_not_null() & pl.col("dod").is_not_null())
    ended = people.join(observed, on="subject_id")
    return {
        "admissions_discharged_at_deathtime": admissions.filter(pl.col("deathtime") > pl.col("dischtime")).height,
        "subjects_whose_dod_is_another_day_than_deathtime": died.filter(
            pl.col("dod").dt.date() != pl.col("deathtime").dt.date()
        ).height,
        "deaths_after_the_end_of_observation": ended.filter(pl.col("died") > pl.col("observation_end")).height,
        **release.conflicts(people),
    }
