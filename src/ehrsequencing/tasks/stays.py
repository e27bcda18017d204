"""Hospital stays, recognised from encounter codes."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from ehrsequencing.tasks.base import first_after

TRANSFER_HOURS = 6
"""A stay that begins within this many hours of a discharge, or on its calendar day, continues the stay before it."""


@dataclass(frozen=True)
class StayCodes:
    """How one family of sources writes admissions and discharges.

    Attributes:
        source: Who writes them.
        admission, discharge: Codes; each stands for itself and for what follows it after `//`.
        died: Discharge codes that say the subject died in hospital.
        gaps_known: False where the dates of different stays are made up, so that the time between them means nothing.
    """

    source: str
    admission: tuple[str, ...]
    discharge: tuple[str, ...]
    died: tuple[str, ...]
    gaps_known: bool = True


STAY_CODES = (
    StayCodes(
        "synthetic records, and datasets made elsewhere with these codes (OMOP visit concepts IP and ERIP among them)",
        ("VISIT//inpatient", "VISIT//IP", "VISIT//ERIP", "VISIT//9201", "VISIT//262", "ADMISSION"),
        ("DISCHARGE",),
        ("DISCHARGE//died",),
    ),
    StayCodes(
        "MIMIC in the MEDS convention; MIMIC-IV and OMOP (visit concepts 9201, 262, 8717) from `ehrseq import`",
        ("HOSPITAL_ADMISSION",),
        ("HOSPITAL_DISCHARGE",),
        (
            "HOSPITAL_DISCHARGE//DIED", "HOSPITAL_DISCHARGE//DEAD/EXPIRED", "HOSPITAL_DISCHARGE//SNOMED//397709008",
            "HOSPITAL_DISCHARGE//SNOMED//419099009", "HOSPITAL_DISCHARGE//OMOP//4216643",
        ),
    ),
    StayCodes(
        "UCI Diabetes 130-US hospitals",
        ("UCI_AGE",),
        ("UCI_TIME_IN_HOSPITAL",),
        ("UCI_DISCHARGE//11", "UCI_DISCHARGE//19", "UCI_DISCHARGE//20", "UCI_DISCHARGE//21"),
        gaps_known=False,
    ),
)  # fmt: skip


def find_stays(events: pl.DataFrame, deaths: pl.DataFrame) -> pl.DataFrame:
    """Stays of each subject in order of time, transfers joined.

    Codes of one `visit_id` belong together: from the first admission code to the last discharge code. Codes without one
    are paired in order of time: an admission ends with the first discharge after it, up to the next admission; failing
    that, with a discharge at its own instant. A stay without a discharge code ends with the subject's death if that
    follows before any other admission; else its end is unknown.

    Args:
        events: Columns subject_id, time, code, visit_id.
        deaths: Columns subject_id, death.

    Returns:
        Columns `subject_id`, `admission`, `discharge` (null where unknown), `death`, `died` (in the stay: a discharge
        code says so, or death lies on a calendar day from admission to discharge), `closed_by_death`, `admissions`
        (joined into the stay), `next_admission` (of the next stay, null after the last), `gaps_known`.
    """
    segments = _segments(_encounter_codes(events))
    end = pl.coalesce("discharge", "admission")
    ordered = segments.sort("subject_id", "admission", "discharge", nulls_last=False).with_columns(
        before=end.cum_max().shift(1).over("subject_id")
    )
    admission, before = pl.col("admission"), pl.col("before")
    joined = (admission <= before + pl.duration(hours=TRANSFER_HOURS)) | (admission.dt.date() == before.dt.date())
    stays = (
        ordered.with_columns(stay=(~joined.fill_null(False)).cum_sum().over("subject_id"))
        .group_by("subject_id", "stay", maintain_order=True)
        .agg(
            admission=admission.first(),
            discharge=pl.when(pl.col("discharge").last().is_not_null()).then(pl.col("discharge").max()),
            died=pl.col("died").any(),
            admissions=pl.len(),
            gaps_known=pl.col("gaps_known").all(),
        )
        .drop("stay")
        .join(deaths.select("subject_id", "death"), on="subject_id", how="left", maintain_order="left")
    )
    death, discharge = pl.col("death"), pl.col("discharge")
    stays = stays.with_columns(next_admission=admission.shift(-1).over("subject_id"))
    following = pl.col("next_admission")
    closed_by_death = discharge.is_null() & (death >= admission) & (following.is_null() | (following > death))
    stays = stays.with_columns(closed_by_death=closed_by_death.fill_null(False)).with_columns(
        discharge=pl.when("closed_by_death").then(death).otherwise(discharge)
    )
    within = death.dt.date().is_between(admission.dt.date(), discharge.dt.date()).fill_null(False)
    return stays.with_columns(died=pl.col("died") | within)


def discharged_dead(events: pl.DataFrame) -> pl.DataFrame:
    """Columns `subject_id`, `discharged_dead`: the earliest discharge code that says the subject died in hospital."""
    died = _is_one_of(tuple(code for row in STAY_CODES for code in row.died))
    return (
        events.filter(died & pl.col("time").is_not_null())
        .group_by("subject_id")
        .agg(discharged_dead=pl.col("time").min())
    )


def _is_one_of(codes: tuple[str, ...]) -> pl.Expr:
    code = pl.col("code")
    return pl.any_horizontal((code == one) | code.str.starts_with(one + "//") for one in codes)


def _encounter_codes(events: pl.DataFrame) -> pl.DataFrame:
    """Dated admissions and discharges: subject_id, visit_id, time, source (row of `STAY_CODES`), role, died."""
    codes = pl.DataFrame({"code": events["code"].unique()})
    roles = pl.concat(
        codes.filter(_is_one_of(wanted)).with_columns(
            source=pl.lit(number, dtype=pl.Int32),
            role=pl.lit(role),
            died=_is_one_of(row.died),
            gaps_known=pl.lit(row.gaps_known),
        )
        for number, row in enumerate(STAY_CODES)
        for role, wanted in (("admission", row.admission), ("discharge", (*row.discharge, *row.died)))
    )
    return events.filter(pl.col("time").is_not_null()).join(roles, on="code")


def _segments(found: pl.DataFrame) -> pl.DataFrame:
    """Subject_id, admission, discharge (null where none), died, gaps_known; one row per admission."""
    time = pl.col("time")
    admitted, discharged = time.filter(pl.col("role") == "admission"), time.filter(pl.col("role") == "discharge")
    by_visit = (
        found.filter(pl.col("visit_id").is_not_null())
        .group_by("subject_id", "source", "visit_id")
        .agg(
            admission=admitted.min(),
            discharge=discharged.max(),
            died=pl.col("died").any(),
            gaps_known=pl.col("gaps_known").all(),
        )
        .filter(pl.col("admission").is_not_null())
        .with_columns(discharge=pl.when(pl.col("discharge") >= pl.col("admission")).then("discharge"))
        .select("subject_id", "admission", "discharge", "died", "gaps_known")
    )
    loose = found.filter(pl.col("visit_id").is_null())
    in_order = [_paired(part) for part in loose.partition_by("source")]
    return pl.concat([by_visit, *in_order])


def _paired(found: pl.DataFrame) -> pl.DataFrame:
    """Segments of one source whose codes carry no visit."""
    admissions = (
        found.filter(pl.col("role") == "admission")
        .group_by("subject_id", prediction_time="time").agg(pl.col("gaps_known").all())
        .sort("subject_id", "prediction_time")
        .with_columns(following=pl.col("prediction_time").shift(-1).over("subject_id"))
    )  # fmt: skip
    discharges = found.filter(pl.col("role") == "discharge").group_by("subject_id", "time").agg(pl.col("died").any())
    own = discharges.select("subject_id", prediction_time="time", at_once="time")
    paired = first_after(admissions, discharges, "later").join(own, on=["subject_id", "prediction_time"], how="left")
    fits = pl.col("following").is_null() | (pl.col("later") <= pl.col("following"))
    return (
        paired.with_columns(discharge=pl.when(fits).then(pl.coalesce("later", "at_once")).otherwise("at_once"))
        .join(discharges.rename({"time": "discharge"}), on=["subject_id", "discharge"], how="left")
        .select(
            "subject_id", pl.col("prediction_time").alias("admission"), "discharge",
            pl.col("died").fill_null(False), "gaps_known",
        )
    )  # fmt: skip
