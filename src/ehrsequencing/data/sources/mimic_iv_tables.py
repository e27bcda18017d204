"""MIMIC-IV's tables of events: which columns are read, and the events that a row becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import polars as pl

from ehrsequencing.data.sources.cells import Kind
from ehrsequencing.data.sources.spool import event, named

VISIT = "hadm_id"


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
        """Add columns of a dictionary, null where it or the entry is missing."""
        dictionary = self.dictionaries.get(name)
        if dictionary is None:
            return rows.with_columns(pl.lit(None, dtype=pl.String).alias(column) for column in columns)
        return rows.join(dictionary.select(*on, *columns), on=on, how="left", maintain_order="left")


@dataclass(frozen=True)
class Spec:
    """One table: its columns, and the function that makes events of a piece."""

    name: str
    required: Mapping[str, Kind]
    events: Callable[[pl.DataFrame, Context], list[pl.DataFrame]]
    optional: Mapping[str, Kind] = field(default_factory=dict)
    no_time: str = "without a time"


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


def _number(column: str) -> pl.Expr:
    """A number written as text, thousands parted by commas; null where it is none, such as a range."""
    text = pl.col(column)
    plain = (
        pl.when(text.str.contains(r"^\d{1,3}(,\d{3})+(\.\d+)?$")).then(text.str.replace_all(",", "")).otherwise(text)
    )
    number = plain.cast(pl.Float32, strict=False)
    return pl.when(number.is_finite()).then(number)


def _unless(number: pl.Expr, text: str) -> pl.Expr:
    return pl.when(number.is_null()).then(pl.col(text))


def _unless_before(end: str, start: str) -> pl.Expr:
    """The end, null where it is before the start."""
    return pl.when((pl.col(end) >= pl.col(start)).fill_null(True)).then(end)


def _transfers(rows: pl.DataFrame, _: Context) -> list[pl.DataFrame]:
    code = named("TRANSFER_TO", "eventtype", pl.col("careunit").fill_null("UNKNOWN"))
    return [event(rows, code, pl.col("intime"), "encounter", visit=VISIT)]


def _services(rows: pl.DataFrame, _: Context) -> list[pl.DataFrame]:
    return [event(rows, named("SERVICE", "curr_service"), pl.col("transfertime"), "encounter", visit=VISIT)]


def _billed(table: str, kind: str) -> Callable[[pl.DataFrame, Context], list[pl.DataFrame]]:
    def events(rows: pl.DataFrame, context: Context) -> list[pl.DataFrame]:
        rows = context.described(
            context.at_discharge(rows), f"hosp/d_icd_{table}", ["icd_code", "icd_version"], ["long_title"]
        )
        code = dotted(pl.col("icd_code"), pl.col("icd_version"), procedure=kind == "procedure")
        return [event(rows, code, pl.col("discharged"), kind, visit=VISIT, description=pl.col("long_title"))]

    return events


def _hcpcs(rows: pl.DataFrame, context: Context) -> list[pl.DataFrame]:
    rows = context.at_discharge(rows)
    code = named("HCPCS", pl.col("hcpcs_cd").str.to_uppercase())
    time, description = pl.col("discharged"), pl.col("short_description")
    return [event(rows, code, time, "procedure", visit=VISIT, description=description)]


def _drg(rows: pl.DataFrame, context: Context) -> list[pl.DataFrame]:
    rows = context.at_discharge(rows)
    code, severity = named("DRG", "drg_type", "drg_code"), pl.col("drg_severity")
    time, description = pl.col("discharged"), pl.col("description")
    return [event(rows, code, time, "encounter", visit=VISIT, value=severity, description=description)]


def _labs(rows: pl.DataFrame, context: Context) -> list[pl.DataFrame]:
    dictionary = context.dictionaries.get("hosp/d_labitems")
    rows = context.described(rows, "hosp/d_labitems", ["itemid"], ["label"])
    if dictionary is not None and dictionary["loinc_code"].null_count() < len(dictionary):
        rows = context.described(rows, "hosp/d_labitems", ["itemid"], ["loinc_code"])
    else:
        rows = rows.with_columns(loinc_code=pl.lit(None, dtype=pl.String))
    local = pl.coalesce(named("LAB", "itemid", "valueuom"), named("LAB", "itemid"))
    known = pl.max_horizontal("charttime", "storetime")
    value, text = pl.col("valuenum"), pl.when(~pl.col("value").is_in(["___"])).then(pl.col("value"))
    flagged = pl.col("flag").is_not_null()
    return [
        event(
            rows, pl.coalesce(named("LOINC", "loinc_code"), local), known, "lab", visit=VISIT, value=value,
            unit=pl.col("valueuom"), text=pl.when(value.is_null()).then(text), description=pl.col("label"),
        ),
        event(
            rows, named("LAB_FLAG", "itemid", "flag"), known, "lab", visit=VISIT, where=flagged,
            description=pl.concat_str([pl.col("label"), pl.lit(": "), pl.col("flag")]),
        ),
    ]  # fmt: skip


def _microbiology(rows: pl.DataFrame, _: Context) -> list[pl.DataFrame]:
    parts = [
        pl.col(column).str.replace_all(r"\s+", " ") for column in ("test_name", "org_name", "ab_name", "interpretation")
    ]
    code = pl.when(pl.col("test_name").is_not_null()).then(
        pl.concat_str([pl.lit("MICROBIOLOGY"), *parts], separator="//", ignore_nulls=True)
    )
    known = pl.coalesce("storetime", end_of_day("storedate"), "charttime", end_of_day("chartdate"))
    value = pl.col("dilution_value")
    return [event(rows, code, known, "lab", visit=VISIT, value=value, text=pl.col("dilution_text"))]


def _prescriptions(rows: pl.DataFrame, _: Context) -> list[pl.DataFrame]:
    dose = _number("dose_val_rx")
    return [
        event(
            rows, named("DRUG", "drug"), pl.col("starttime"), "drug", visit=VISIT, value=dose,
            unit=pl.col("dose_unit_rx"), text=_unless(dose, "dose_val_rx"),
        )
    ]  # fmt: skip


def _emar(rows: pl.DataFrame, _: Context) -> list[pl.DataFrame]:
    code = named("EMAR", "medication", pl.col("event_txt").fill_null("UNKNOWN"))
    return [event(rows, code, pl.col("charttime"), "drug", visit=VISIT)]


def _omr(rows: pl.DataFrame, _: Context) -> list[pl.DataFrame]:
    """A blood pressure, 110/70, becomes two numbers."""
    pair = pl.col("result_value").str.extract_groups(r"^(\d+)/(\d+)$")
    rows = rows.with_columns(SYSTOLIC=pair.struct[0].cast(pl.Float32), DIASTOLIC=pair.struct[1].cast(pl.Float32))
    is_pair, number, time = pl.col("SYSTOLIC").is_not_null(), _number("result_value"), end_of_day("chartdate")
    return [
        event(
            rows, named("OMR", "result_name"), time, "vital", where=~is_pair, value=number,
            text=_unless(number, "result_value"),
        ),
        *(
            event(rows, named("OMR", "result_name", pl.lit(part)), time, "vital", where=is_pair, value=pl.col(part))
            for part in ("SYSTOLIC", "DIASTOLIC")
        ),
    ]  # fmt: skip


def _icu_stays(rows: pl.DataFrame, _: Context) -> list[pl.DataFrame]:
    entered = named("ICU_ADMISSION", pl.col("first_careunit").fill_null("UNKNOWN"))
    left = named("ICU_DISCHARGE", pl.col("last_careunit").fill_null("UNKNOWN"))
    return [
        event(rows, entered, pl.col("intime"), "encounter", visit=VISIT),
        event(rows, left, _unless_before("outtime", "intime"), "encounter", visit=VISIT),
    ]


def _outputs(rows: pl.DataFrame, context: Context) -> list[pl.DataFrame]:
    rows = context.described(rows, "icu/d_items", ["itemid"], ["label"])
    known = pl.max_horizontal("charttime", "storetime")
    return [
        event(
            rows, named("OUTPUT", "itemid"), known, "vital", visit=VISIT, value=pl.col("value"),
            unit=pl.col("valueuom"), description=pl.col("label"),
        )
    ]  # fmt: skip


def _icu_procedures(rows: pl.DataFrame, context: Context) -> list[pl.DataFrame]:
    rows = context.described(rows, "icu/d_items", ["itemid"], ["label"])
    label = pl.col("label")
    return [
        event(
            rows, named("PROCEDURE", pl.lit("START"), "itemid"), pl.col("starttime"), "procedure", visit=VISIT,
            description=pl.concat_str([label, pl.lit(", start")]),
        ),
        event(
            rows, named("PROCEDURE", pl.lit("END"), "itemid"), _unless_before("endtime", "starttime"), "procedure",
            visit=VISIT, value=pl.col("value"), unit=pl.col("valueuom"),
            description=pl.concat_str([label, pl.lit(", end")]),
        ),
    ]  # fmt: skip


_OF_ADMISSION: dict[str, Kind] = {"subject_id": "id", VISIT: "id"}
_ICD: dict[str, Kind] = {**_OF_ADMISSION, "icd_code": "text", "icd_version": "id"}
_NO_DISCHARGE = "admission unknown, or without a time of discharge"
_NO_END = "start or end without a time, or end before the start"
SPECS = (
    Spec(
        "hosp/transfers", {**_OF_ADMISSION, "eventtype": "text", "intime": "time"}, _transfers, {"careunit": "text"},
    ),
    Spec("hosp/services", {**_OF_ADMISSION, "transfertime": "time", "curr_service": "text"}, _services),
    Spec("hosp/diagnoses_icd", _ICD, _billed("diagnoses", "diagnosis"), no_time=_NO_DISCHARGE),
    Spec("hosp/procedures_icd", _ICD, _billed("procedures", "procedure"), no_time=_NO_DISCHARGE),
    Spec(
        "hosp/hcpcsevents", {**_OF_ADMISSION, "hcpcs_cd": "text"}, _hcpcs, {"short_description": "text"},
        no_time=_NO_DISCHARGE,
    ),
    Spec(
        "hosp/drgcodes", {**_OF_ADMISSION, "drg_type": "text", "drg_code": "text"}, _drg,
        {"description": "text", "drg_severity": "number"}, no_time=_NO_DISCHARGE,
    ),
    Spec(
        "hosp/labevents",
        {**_OF_ADMISSION, "itemid": "id", "charttime": "time", "valuenum": "number"}, _labs,
        {"storetime": "time", "value": "text", "valueuom": "text", "flag": "text"},
    ),
    Spec(
        "hosp/microbiologyevents",
        {**_OF_ADMISSION, "chartdate": "time", "test_name": "text"}, _microbiology,
        {
            "charttime": "time", "storedate": "time", "storetime": "time", "org_name": "text", "ab_name": "text",
            "interpretation": "text", "dilution_value": "number", "dilution_text": "text",
        },
    ),
    Spec(
        "hosp/prescriptions", {**_OF_ADMISSION, "starttime": "time", "drug": "text"}, _prescriptions,
        {"dose_val_rx": "text", "dose_unit_rx": "text"},
    ),
    Spec("hosp/emar", {**_OF_ADMISSION, "charttime": "time", "medication": "text"}, _emar, {"event_txt": "text"}),
    Spec("hosp/omr", {"subject_id": "id", "chartdate": "time", "result_name": "text", "result_value": "text"}, _omr),
    Spec(
        "icu/icustays",
        {**_OF_ADMISSION, "intime": "time", "outtime": "time"}, _icu_stays,
        {"first_careunit": "text", "last_careunit": "text"}, no_time=_NO_END,
    ),
    Spec(
        "icu/outputevents", {**_OF_ADMISSION, "itemid": "id", "charttime": "time", "value": "number"}, _outputs,
        {"storetime": "time", "valueuom": "text"},
    ),
    Spec(
        "icu/procedureevents",
        {**_OF_ADMISSION, "itemid": "id", "starttime": "time", "endtime": "time", "value": "number"}, _icu_procedures,
        {"valueuom": "text"}, no_time=_NO_END,
    ),
)  # fmt: skip
