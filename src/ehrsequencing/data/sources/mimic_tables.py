"""What a row of MIMIC's tables becomes, in either release: each table's columns and events, as a `Spec`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import polars as pl

from ehrsequencing.data.sources.cells import Kind
from ehrsequencing.data.sources.reference import range_flag
from ehrsequencing.data.sources.spool import event, named

VISIT = "hadm_id"
OF_ADMISSION: dict[str, Kind] = {"subject_id": "id", VISIT: "id"}
NO_DISCHARGE = "admission unknown, or without a time of discharge"
NO_END = "start or end without a time, or end before the start"


@dataclass(frozen=True)
class Context:
    """What rows are read beside: admissions (with `discharged`), and dictionaries by name, None where missing."""

    admissions: pl.DataFrame
    dictionaries: Mapping[str, pl.DataFrame | None]

    def at_discharge(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Add `discharged` of the admission; null where subject and admission do not belong together."""
        times = self.admissions.select("subject_id", VISIT, "discharged")
        return rows.join(times, on=["subject_id", VISIT], how="left", maintain_order="left")

    def described(self, rows: pl.DataFrame, name: str, on: list[str], columns: list[str]) -> pl.DataFrame:
        """Add columns of a dictionary, null where it, the column or the entry is missing."""
        dictionary = self.dictionaries.get(name)
        if dictionary is None:
            return rows.with_columns(pl.lit(None, dtype=pl.String).alias(column) for column in columns)
        return rows.join(dictionary.select(*on, *columns), on=on, how="left", maintain_order="left")


Events = Callable[[pl.DataFrame, Context], list[pl.DataFrame]]


@dataclass(frozen=True)
class Spec:
    """One table.

    Attributes:
        name: The table.
        required, optional: Its columns.
        events: From a piece of typed rows to events.
        no_time: Why an event may lack a time.
        aside: Why the publisher marks a row as no observation, null for the others; no event is made of it.
    """

    name: str
    required: Mapping[str, Kind]
    events: Events
    optional: Mapping[str, Kind] = field(default_factory=dict)
    no_time: str = "without a time"
    aside: pl.Expr | None = None


def end_of_day(column: str) -> pl.Expr:
    """The last second of a date: what happened on a day without time of day is known when the day is over."""
    return pl.col(column).dt.truncate("1d") + pl.duration(days=1) - pl.duration(seconds=1)


def dotted(code: pl.Expr, version: pl.Expr, *, procedure: bool = False) -> pl.Expr:
    """ICD code as published: after three characters (ICD-9 E-codes four, ICD-9 procedures two, ICD-10-PCS none).

    >>> rows = pl.DataFrame({"code": ["4280", "E8497", "V707", "I509", "042"], "version": [9, 9, 9, 10, 9]})
    >>> rows.select(dotted(pl.col("code"), pl.col("version"))).to_series().to_list()
    ['ICD9CM//428.0', 'ICD9CM//E849.7', 'ICD9CM//V70.7', 'ICD10CM//I50.9', 'ICD9CM//042']
    >>> rows = pl.DataFrame({"code": ["3961", "02HV33Z"], "version": [9, 10]})
    >>> rows.select(dotted(pl.col("code"), pl.col("version"), procedure=True)).to_series().to_list()
    ['ICD9PROC//39.61', 'ICD10PCS//02HV33Z']
    """
    plain = code.str.replace_all(".", "", literal=True).str.to_uppercase()
    if procedure:
        nine, ten = ("ICD9PROC", plain.str.replace(r"^(..)(.+)$", "$1.$2")), ("ICD10PCS", plain)
    else:
        nine = "ICD9CM", plain.str.replace(r"^(E...|[^E]..)(.+)$", "$1.$2")
        ten = "ICD10CM", plain.str.replace(r"^(...)(.+)$", "$1.$2")
    return (
        pl.when(version == 9).then(pl.concat_str(pl.lit(f"{nine[0]}//"), nine[1]))
        .when(version == 10).then(pl.concat_str(pl.lit(f"{ten[0]}//"), ten[1]))
    )  # fmt: skip


def number(column: str) -> pl.Expr:
    """A number written as text, thousands parted by commas; null where it is none, such as a range."""
    text = pl.col(column)
    plain = (
        pl.when(text.str.contains(r"^\d{1,3}(,\d{3})+(\.\d+)?$")).then(text.str.replace_all(",", "")).otherwise(text)
    )
    parsed = plain.cast(pl.Float32, strict=False)
    return pl.when(parsed.is_finite()).then(parsed)


def unless(found: pl.Expr, text: str) -> pl.Expr:
    """The text as written, where it is no number."""
    return pl.when(found.is_null()).then(pl.col(text))


def _marked(column: str) -> pl.Expr:
    return pl.when(pl.col(column) == 1).then(pl.lit("marked as an error"))


def _rewritten() -> pl.Expr:
    """MetaVision keeps rows whose entry was rewritten or cancelled, for audits: what they say was not given."""
    return pl.when(pl.col("statusdescription").str.to_lowercase() == "rewritten").then(pl.lit("rewritten or cancelled"))


def _known(rows: pl.DataFrame) -> pl.Expr:
    """When it was stored, if the table says so and that is later than when it was charted."""
    return pl.max_horizontal(column for column in ("charttime", "storetime") if column in rows.columns)


def ended_before(start: pl.Expr, end: pl.Expr) -> pl.Expr:
    """The end of a span, null where it lies before its start."""
    return pl.when((end >= start).fill_null(True)).then(end)


def transfers(unit: str, elsewhere: str) -> Events:
    """Arrivals in `unit`; `elsewhere` names those where it is empty."""

    def events(rows: pl.DataFrame, _: Context) -> list[pl.DataFrame]:
        code = named("TRANSFER_TO", "eventtype", pl.col(unit).fill_null(elsewhere))
        return [event(rows, code, pl.col("intime"), "encounter", visit=VISIT)]

    return events


def services(rows: pl.DataFrame, _: Context) -> list[pl.DataFrame]:
    """The service that takes over the subject's care."""
    return [event(rows, named("SERVICE", "curr_service"), pl.col("transfertime"), "encounter", visit=VISIT)]


def billed(dictionary: str, kind: str) -> Events:
    """ICD codes of columns `icd_code` and `icd_version`, at discharge; `d_icd_*` describes them."""

    def events(rows: pl.DataFrame, context: Context) -> list[pl.DataFrame]:
        rows = context.described(context.at_discharge(rows), dictionary, ["icd_code", "icd_version"], ["long_title"])
        code = dotted(pl.col("icd_code"), pl.col("icd_version"), procedure=kind == "procedure")
        return [event(rows, code, pl.col("discharged"), kind, visit=VISIT, description=pl.col("long_title"))]

    return events


def billed_procedures(system: str, column: str, *descriptions: str) -> Events:
    """HCPCS or CPT codes, at discharge."""

    def events(rows: pl.DataFrame, context: Context) -> list[pl.DataFrame]:
        rows = context.at_discharge(rows)
        code, described = named(system, pl.col(column).str.to_uppercase()), pl.coalesce(*descriptions)
        return [event(rows, code, pl.col("discharged"), "procedure", visit=VISIT, description=described)]

    return events


def drg(rows: pl.DataFrame, context: Context) -> list[pl.DataFrame]:
    """Diagnosis related groups, at discharge; an APR group carries its severity."""
    rows = context.at_discharge(rows)
    code, severity = named("DRG", "drg_type", "drg_code"), pl.col("drg_severity")
    time, description = pl.col("discharged"), pl.col("description")
    return [event(rows, code, time, "encounter", visit=VISIT, value=severity, description=description)]


def labs(rows: pl.DataFrame, context: Context) -> list[pl.DataFrame]:
    """The result, and a further event each where it is flagged and where it lies outside its reference range."""
    rows = context.described(rows, "d_labitems", ["itemid"], ["label", "loinc_code"])
    local = pl.coalesce(named("LAB", "itemid", "valueuom"), named("LAB", "itemid"))
    known = _known(rows)
    value, text = pl.col("valuenum"), pl.when(~pl.col("value").is_in(["___"])).then(pl.col("value"))
    flagged = pl.col("flag").is_not_null()
    events = [
        event(
            rows, pl.coalesce(named("LOINC", "loinc_code"), local), known, "lab", visit=VISIT, value=value,
            unit=pl.col("valueuom"), text=pl.when(value.is_null()).then(text), description=pl.col("label"),
        ),
        event(
            rows, named("LAB_FLAG", "itemid", "flag"), known, "lab", visit=VISIT, where=flagged,
            description=pl.concat_str([pl.col("label"), pl.lit(": "), pl.col("flag")]),
        ),
    ]  # fmt: skip
    if "ref_range_lower" in rows.columns:
        outside = range_flag("valuenum", "ref_range_lower", "ref_range_upper")
        description = pl.concat_str([pl.col("label"), pl.lit(": "), outside])
        where, code = outside.is_not_null(), named("LAB_FLAG", "itemid", outside)
        events.append(event(rows, code, known, "lab", visit=VISIT, where=where, description=description))
    return events


def microbiology_code(test: str) -> pl.Expr:
    """`MICROBIOLOGY//TEST[//ORGANISM[//ANTIBIOTIC//S]]`; null without a test."""
    parts = [pl.col(column).str.replace_all(r"\s+", " ") for column in (test, "org_name", "ab_name", "interpretation")]
    return pl.when(pl.col(test).is_not_null()).then(
        pl.concat_str([pl.lit("MICROBIOLOGY"), *parts], separator="//", ignore_nulls=True)
    )


def prescribed(rows: pl.DataFrame, time: pl.Expr) -> list[pl.DataFrame]:
    """A drug by name, with its dose."""
    dose = number("dose_val_rx")
    return [
        event(
            rows, named("DRUG", "drug"), time, "drug", visit=VISIT, value=dose, unit=pl.col("dose_unit_rx"),
            text=unless(dose, "dose_val_rx"),
        )
    ]  # fmt: skip


def icu_stays(rows: pl.DataFrame, _: Context) -> list[pl.DataFrame]:
    """Entering and leaving intensive care."""
    entered = named("ICU_ADMISSION", pl.col("first_careunit").fill_null("UNKNOWN"))
    left = named("ICU_DISCHARGE", pl.col("last_careunit").fill_null("UNKNOWN"))
    start, end = pl.col("intime"), pl.col("outtime")
    return [
        event(rows, entered, start, "encounter", visit=VISIT),
        event(rows, left, ended_before(start, end), "encounter", visit=VISIT),
    ]


def charted(prefix: str, kind: str, value: str | None, text: str | None) -> Events:
    """What is charted at the bedside, known when it is stored: code `prefix//itemid`, a number, else the text."""

    def events(rows: pl.DataFrame, context: Context) -> list[pl.DataFrame]:
        rows = context.described(rows, "d_items", ["itemid"], ["label"])
        written = None if text is None else pl.col(text)
        if value is not None and written is not None:
            written = pl.when(pl.col(value).is_null()).then(written)
        return [
            event(
                rows, named(prefix, "itemid"), _known(rows), kind, visit=VISIT,
                value=None if value is None else pl.col(value), unit=None if value is None else pl.col("valueuom"),
                text=written, description=pl.col("label"),
            )
        ]  # fmt: skip

    return events


def icu_procedures(rows: pl.DataFrame, context: Context) -> list[pl.DataFrame]:
    """Start and end, as observed; the end carries the duration."""
    rows = context.described(rows, "d_items", ["itemid"], ["label"])
    start, end, label = pl.col("starttime"), pl.col("endtime"), pl.col("label")
    return [
        event(
            rows, named("PROCEDURE", pl.lit("START"), "itemid"), start, "procedure", visit=VISIT,
            description=pl.concat_str([label, pl.lit(", start")]),
        ),
        event(
            rows, named("PROCEDURE", pl.lit("END"), "itemid"), ended_before(start, end), "procedure", visit=VISIT,
            value=pl.col("value"), unit=pl.col("valueuom"), description=pl.concat_str([label, pl.lit(", end")]),
        ),
    ]  # fmt: skip


def inputs(rows: pl.DataFrame, context: Context) -> list[pl.DataFrame]:
    """Fluids and drugs over a span: the start carries the rate, the end what was given; known when stored."""
    rows = context.described(rows, "d_items", ["itemid"], ["label"])
    start, end, stored, label = pl.col("starttime"), pl.col("endtime"), pl.col("storetime"), pl.col("label")
    ended = ended_before(start, end)
    return [
        event(
            rows, named("INPUT", pl.lit("START"), "itemid"), pl.when(start.is_not_null()).then(
                pl.max_horizontal(start, stored)
            ), "drug", visit=VISIT, value=pl.col("rate"), unit=pl.col("rateuom"),
            description=pl.concat_str([label, pl.lit(", start")]),
        ),
        event(
            rows, named("INPUT", pl.lit("END"), "itemid"), pl.when(ended.is_not_null()).then(
                pl.max_horizontal(ended, stored)
            ), "drug", visit=VISIT, value=pl.col("amount"), unit=pl.col("amountuom"),
            description=pl.concat_str([label, pl.lit(", end")]),
        ),
    ]  # fmt: skip


_CHARTED: dict[str, Kind] = {**OF_ADMISSION, "itemid": "id", "charttime": "time"}
_SPAN: dict[str, Kind] = {**OF_ADMISSION, "itemid": "id", "starttime": "time", "endtime": "time"}


def drg_spec(name: str) -> Spec:
    """The table of diagnosis related groups."""
    return Spec(
        name, {**OF_ADMISSION, "drg_type": "text", "drg_code": "text"}, drg,
        {"description": "text", "drg_severity": "number"}, no_time=NO_DISCHARGE,
    )  # fmt: skip


def lab_spec(name: str, **optional: Kind) -> Spec:
    """The table of laboratory results; `optional` columns besides those of both releases."""
    return Spec(
        name, {**OF_ADMISSION, "itemid": "id", "charttime": "time", "valuenum": "number"}, labs,
        {"value": "text", "valueuom": "text", "flag": "text", **optional},
    )  # fmt: skip


def icu_stay_spec(name: str) -> Spec:
    """The table of stays in intensive care."""
    return Spec(
        name, {**OF_ADMISSION, "intime": "time", "outtime": "time"}, icu_stays,
        {"first_careunit": "text", "last_careunit": "text"}, no_time=NO_END,
    )  # fmt: skip


def chart_spec(name: str, marked: str | None = None) -> Spec:
    """Bedside charts; `marked` is the column that is 1 where a row is an error."""
    return _charted_spec(name, charted("CHART", "vital", "valuenum", "value"), marked, value="text", valuenum="number")


def output_spec(name: str, marked: str | None = None) -> Spec:
    """Urine, drains and other outputs."""
    return _charted_spec(name, charted("OUTPUT", "vital", "value", None), marked, value="number")


def date_spec(name: str, marked: str | None = None) -> Spec:
    """Dates charted as values, such as that of a catheter's insertion."""

    def events(rows: pl.DataFrame, context: Context) -> list[pl.DataFrame]:
        written = rows.with_columns(pl.col("value").dt.to_string("%Y-%m-%d %H:%M:%S"))
        return charted("DATETIME", "other", None, "value")(written, context)

    return _charted_spec(name, events, marked, value="time")


def _charted_spec(name: str, events: Events, marked: str | None, **required: Kind) -> Spec:
    marks: dict[str, Kind] = {} if marked is None else {marked: "number"}
    return Spec(
        name, {**_CHARTED, **required}, events, {"storetime": "time", "valueuom": "text", **marks},
        aside=None if marked is None else _marked(marked),
    )  # fmt: skip


def icu_procedure_spec(name: str) -> Spec:
    """MetaVision's procedures, which have a start and an end."""
    return Spec(
        name, {**_SPAN, "value": "number"}, icu_procedures, {"valueuom": "text", "statusdescription": "text"}, NO_END,
        _rewritten(),
    )  # fmt: skip


def input_spec(name: str) -> Spec:
    """MetaVision's inputs, which have a start and an end."""
    return Spec(
        name, {**_SPAN, "amount": "number"}, inputs,
        {
            "storetime": "time", "amountuom": "text", "rate": "number", "rateuom": "text", "statusdescription": "text",
        },
        NO_END, _rewritten(),
    )  # fmt: skip
