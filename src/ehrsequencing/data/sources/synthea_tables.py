"""Synthea's tables of events: which columns are read, and the events that a row becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import polars as pl

from ehrsequencing.data.sources.cells import Kind
from ehrsequencing.data.sources.omop_concepts import VITALS
from ehrsequencing.data.sources.spool import DATE_ONLY, EXACT, MIDNIGHT, event, named

SUBJECT, VISIT, VISITS = "subject_id", "visit_id", "encounters"
STAY, STOPPED = "inpatient", "STOP//"
SYSTEMS = {
    "snomed-ct": "SNOMED", "snomed": "SNOMED", "http://snomed.info/sct": "SNOMED",
    "rxnorm": "RXNORM", "http://www.nlm.nih.gov/research/umls/rxnorm": "RXNORM",
    "loinc": "LOINC", "http://loinc.org": "LOINC",
    "cvx": "CVX", "http://hl7.org/fhir/sid/cvx": "CVX",
    "icd10": "ICD10CM", "icd-10-cm": "ICD10CM", "http://hl7.org/fhir/sid/icd-10-cm": "ICD10CM",
    "unknown": None,
}  # fmt: skip
"""SYSTEM as Synthea writes it, depending on its version and on which other exporters run beside, to ours."""
KIND_OF_CATEGORY = {"laboratory": "lab", "vital-signs": "vital"}


@dataclass(frozen=True)
class Spec:
    """One table.

    Attributes:
        name: The table.
        required, optional: Its columns besides those of `TIMES`.
        events: From rows with `subject_id`, `visit_id`, `start`, `stop` and their clocks to events.
        numbers: Columns of text and how to tell the values among them that should be numbers and are none.
    """

    name: str
    required: Mapping[str, Kind]
    events: Callable[[pl.DataFrame], list[pl.DataFrame]]
    optional: Mapping[str, Kind] = field(default_factory=dict)
    numbers: Mapping[str, pl.Expr] = field(default_factory=dict)


TIMES: dict[str, Kind] = {"start": "time", "date": "time", "stop": "time"}
"""Older exports date encounters and procedures by DATE, newer ones by START and STOP."""
NO_TIME = "without a start, or with a stop before it"


def with_times(rows: pl.DataFrame) -> tuple[pl.DataFrame, bool]:
    """Complete `start` from `date`, remove a stop before it, add clocks; tell whether a time of day is there.

    Adds `short`: whether the stop lies on the day of the start and ends no stay, so that it becomes no event; `ends`:
    whether there is another stop, valid or not.
    """
    start, stop = pl.coalesce("start", "date"), pl.col("stop")
    day = stop.dt.truncate("1d")
    same_day = day == start.dt.truncate("1d")
    valid = (stop >= start) | (same_day & (stop == day))
    stay = is_stay() if "encounterclass" in rows.columns else pl.lit(False)
    short = (valid & same_day & ~stay).fill_null(False)
    rows = rows.with_columns(
        start=start,
        stop=pl.when(valid).then(stop),
        short=short,
        ends=stop.is_not_null() & ~short,
        start_clock=_clock(start),
        # A day without a time of day ends after all that happened on it.
        stop_clock=pl.when(same_day & (stop < start)).then(DATE_ONLY).otherwise(_clock(stop)),
    )
    exact = (pl.col("start_clock") == EXACT) | (pl.col("stop_clock") == EXACT)
    return rows, bool(rows.select(exact.any()).item())


def is_stay() -> pl.Expr:
    """Whether an encounter is a stay in hospital."""
    return (pl.col("encounterclass").str.to_lowercase() == STAY).fill_null(False)


def _clock(time: pl.Expr) -> pl.Expr:
    return pl.when(time != time.dt.truncate("1d")).then(EXACT).otherwise(MIDNIGHT)


def coded(default: str | pl.Expr) -> pl.Expr:
    """`SYSTEM//code`; a system that is missing or called unknown is the table's own.

    >>> rows = pl.DataFrame({"code": ["1", "2", "3", None], "system": [None, "http://snomed.info/sct", "X y", "LOINC"]})
    >>> rows.select(coded("SNOMED")).to_series().to_list()
    ['SNOMED//1', 'SNOMED//2', 'X_Y//3', None]
    """
    written = pl.col("system").str.to_lowercase()
    other = written.str.to_uppercase().str.replace_all(r"\s+", "_")
    usual = pl.lit(default) if isinstance(default, str) else default
    system = pl.coalesce(written.replace_strict(SYSTEMS, default=other, return_dtype=pl.String), usual)
    return pl.concat_str(system, pl.lit("//"), pl.col("code").str.replace_all(r"\s+", " "))


def _dated(
    rows: pl.DataFrame, code: pl.Expr, kind: str, value: pl.Expr | None = None, where: pl.Expr | None = None
) -> pl.DataFrame:
    return event(
        rows, code, pl.col("start"), kind, visit=VISIT, value=value, description=pl.col("description"),
        clock=pl.col("start_clock"), where=where,
    )  # fmt: skip


def _stops(rows: pl.DataFrame, code: pl.Expr, where: pl.Expr | None = None) -> pl.DataFrame:
    """The ends, under a code of their own: `STOP//` before it, so that no pattern of a disease or drug matches them."""
    ends = pl.col("ends") if where is None else pl.col("ends") & where
    return event(
        rows, pl.concat_str(pl.lit(STOPPED), code), pl.col("stop"), "other", visit=VISIT, clock=pl.col("stop_clock"),
        description=pl.concat_str("description", pl.lit(", end")), where=ends,
    )  # fmt: skip


def _lasting(code: pl.Expr, kind: str) -> Callable[[pl.DataFrame], list[pl.DataFrame]]:
    return lambda rows: [_dated(rows, code, kind), _stops(rows, code)]


def _encounters(rows: pl.DataFrame) -> list[pl.DataFrame]:
    kind = pl.col("encounterclass").str.to_lowercase().str.replace_all(r"\s+", "_")
    stay, code = is_stay(), coded("SNOMED")
    admission = pl.concat_str(pl.lit("HOSPITAL_ADMISSION//"), pl.coalesce(code, pl.lit("UNKNOWN")))
    visit = pl.when(pl.coalesce(kind, code).is_not_null()).then(
        pl.concat_str([pl.lit("VISIT"), kind, code], separator="//", ignore_nulls=True)
    )
    of_kind = pl.concat_str(pl.lit("VISIT//"), pl.coalesce(kind, pl.lit("UNKNOWN")))
    # A visit known by its day begins with the day and ends with it.
    rows = rows.with_columns(start_clock=pl.lit(EXACT))
    discharge = event(
        rows, pl.lit("HOSPITAL_DISCHARGE//UNKNOWN"), pl.col("stop"), "encounter", visit=VISIT,
        clock=pl.col("stop_clock"), where=stay & pl.col("ends"),
    )  # fmt: skip
    return [
        _dated(rows, visit, "encounter", where=~stay),
        _dated(rows, admission, "encounter", where=stay),
        discharge,
        _stops(rows.with_columns(description=kind), of_kind, ~stay),
    ]


def _number() -> pl.Expr:
    """The value as a number unless TYPE says that it is text."""
    number = pl.col("value").cast(pl.Float64, strict=False)
    fits = number.is_finite() & number.cast(pl.Float32).is_finite()
    return pl.when(fits & (pl.col("type").str.to_lowercase() != "text").fill_null(True)).then(number)


def _is_no_number() -> pl.Expr:
    stated = pl.col("type").str.to_lowercase() == "numeric"
    return stated & pl.col("value").is_not_null() & _number().is_null()


def _observations(rows: pl.DataFrame) -> list[pl.DataFrame]:
    loinc = pl.col("code").str.contains(r"^\d+-\d$")
    code = pl.when(loinc).then(named("LOINC", "code")).otherwise(named("SYNTHEA", "code"))
    usual = pl.when(~loinc).then(pl.lit("other")).when(pl.col("code").is_in(VITALS)).then(pl.lit("vital"))
    category = pl.col("category").str.to_lowercase()
    kind = (
        pl.when(category.is_null()).then(usual.otherwise(pl.lit("lab")))
        .otherwise(category.replace_strict(KIND_OF_CATEGORY, default="other", return_dtype=pl.String))
    )  # fmt: skip
    rows = rows.with_columns(kind=kind.fill_null("other"), number=_number())
    return [
        event(
            rows, code, pl.col("start"), name, visit=VISIT, value=pl.col("number"), description=pl.col("description"),
            clock=pl.col("start_clock"), unit=pl.when(pl.col("units") != "null").then("units"),
            text=pl.when(pl.col("number").is_null()).then("value"), where=pl.col("kind") == name,
        )
        for name in ("lab", "vital", "other")
    ]  # fmt: skip


def _imaging(rows: pl.DataFrame) -> list[pl.DataFrame]:
    code = pl.concat_str([pl.lit("IMAGING"), "modality_code", "bodysite_code"], separator="//", ignore_nulls=True)
    known = pl.coalesce("modality_code", "bodysite_code").is_not_null()
    parts = pl.concat_str(["modality_description", "bodysite_description"], separator=", ", ignore_nulls=True)
    return [_dated(rows.with_columns(description=parts), pl.when(known).then(code), "procedure")]


def _supplies(rows: pl.DataFrame) -> list[pl.DataFrame]:
    return [_dated(rows, coded("SNOMED"), "other", value=pl.col("quantity"))]


_CODED: dict[str, Kind] = {"patient": "text", "code": "text"}
_DETAILS: dict[str, Kind] = {"encounter": "text", "system": "text", "description": "text"}
# SNOMED CT marks its concepts by 00 or 10 before the last digit; RxNorm's numbers are shorter and rarely do.
_ALLERGEN = pl.when(pl.col("code").str.contains(r"^\d{3,}[01]0\d$")).then(pl.lit("SNOMED")).otherwise(pl.lit("RXNORM"))
SPECS = (
    Spec(
        VISITS, {"id": "text", **_CODED}, _encounters,
        {"encounterclass": "text", "system": "text", "description": "text"},
    ),
    Spec("conditions", _CODED, _lasting(coded("SNOMED"), "diagnosis"), _DETAILS),
    Spec(
        "allergies", _CODED, _lasting(pl.concat_str(pl.lit("ALLERGY//"), coded(_ALLERGEN)), "other"), _DETAILS,
    ),
    Spec("medications", _CODED, _lasting(coded("RXNORM"), "drug"), _DETAILS),
    Spec("immunizations", _CODED, lambda rows: [_dated(rows, coded("CVX"), "drug")], _DETAILS),
    Spec("procedures", _CODED, _lasting(coded("SNOMED"), "procedure"), _DETAILS),
    Spec("careplans", _CODED, _lasting(coded("SNOMED"), "procedure"), _DETAILS),
    Spec("devices", _CODED, _lasting(coded("SNOMED"), "other"), _DETAILS),
    Spec("supplies", _CODED, _supplies, {**_DETAILS, "quantity": "number"}),
    Spec(
        "imaging_studies", {"patient": "text"}, _imaging,
        {
            "id": "text", "encounter": "text", "modality_code": "text", "modality_description": "text",
            "bodysite_code": "text", "bodysite_description": "text",
        },
    ),
    Spec(
        "observations", {**_CODED, "value": "text"}, _observations,
        {"encounter": "text", "category": "text", "description": "text", "units": "text", "type": "text"},
        numbers={"value": _is_no_number()},
    ),
)  # fmt: skip
