"""The mapping of `ehrseq import table`: a TOML file that says which columns of an extract hold what."""

from __future__ import annotations

import codecs
import datetime
import difflib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ehrsequencing.errors import ConfigError

KindName = Literal["diagnosis", "drug", "procedure", "lab", "vital", "encounter", "demographic", "other"]
Scalar = str | int | float | bool
Where = dict[str, Scalar | list[Scalar]]
OFFSETS = {"years": 365.25 * 86400, "days": 86400.0, "hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
"""Values of `time_format` for times that are numbers since `origin`, and how many seconds one is."""

SHIPPED = {file.stem: file for file in sorted((Path(__file__).parent / "mappings").glob("*.toml"))}
"""Mappings of open tables, by the name that stands for the file."""

EXAMPLE = """\
# Mapping for `ehrseq import table SRC OUT --mapping mapping.toml`. Names of columns are those of the files, in either
# case. Leave out what your extract does not have; at least one of [visits] and [[tables]] is needed.

source = "our-hospital"            # name of the dataset
# notes = ["..."]                  # what to know before believing a result: told by the import, kept in the manifest
ids = "integer"                    # subjects are numbered; "text" for any other identifiers, which are hashed
visit_ids = "integer"
missing = ["", "NULL", "NA"]       # cells that mean nothing
# encoding = "latin-1"             # utf-8 where not stated
# delimiter = ";"                  # comma, or tab where the header has tabs only
# decimal = ","                    # point
# origin = 2000-01-01              # where times are numbers since then: time_format = "days"

[subjects]                         # one row per subject
file = "patients.csv"              # .csv, .csv.gz, .parquet, or a folder of such parts
subject = "patient_id"
birth = "date_of_birth"            # or age = "age" (years at the origin)
sex = "sex"                        # GENDER//F
# sex_values = { W = "F", M = "M" }  # where the column has other values than F and M
static = { RACE = "race" }         # further undated facts: RACE//..
death = "date_of_death"
# death_where = { status = "dead" }  # where the column also holds the last date seen alive
# observed_until = "last_contact"  # end of follow-up
time_format = "%Y-%m-%d"           # of birth, death and observed_until; ISO where not stated

[visits]
file = "encounters.csv"
subject = "patient_id"
visit = "encounter_id"
start = "admitted"
end = "discharged"
class = "class"
inpatient = ["inpatient", "acute"] # classes that are stays in hospital: HOSPITAL_ADMISSION//.., HOSPITAL_DISCHARGE//..
discharge = "disposition"          # HOSPITAL_DISCHARGE//home

[[tables]]                         # one row per event
file = "diagnoses.csv"
subject = "patient_id"
visit = "encounter_id"
at_visit = "end"                   # billing codes are known at the end of their visit
prefix = "ICD10CM"
code = "icd10"                     # ICD10CM//E11.9; several columns: code = ["test", "specimen"]
description = "diagnosis"
kind = "diagnosis"

[[tables]]
file = "labs.csv"
subject = "patient_id"
visit = "encounter_id"
time = "collected"                 # or two columns: time = ["date", "clock"]; at_origin = true for a known start
known = "reported"                 # events are stamped when they were known: the later of the two
prefix = "LAB"
code = "test"
value = "result"
unit = "unit"                      # or unit_is = "mg/dL"
text = "result"                    # kept where the value is no number
where = { status = ["final", "corrected"] }
kind = "lab"

[[tables]]                         # one row per time, one column per measurement
file = "vitals.csv"
subject = "patient_id"
time = "measured"
prefix = "VITAL"
kind = "vital"
columns = { "Heart rate" = "hr", Weight = { column = "weight", unit = "kg" }, Rhythm = { column = "ecg", as = "code" } }

[[codes]]                          # descriptions of codes, where the tables have none
file = "tests.csv"
prefix = "LAB"
code = "test"
description = "name"
"""


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=False)


def _four_digits(form: str) -> str:
    if found := [part for part in ("%y", "%D", "%x", "%g") if part in form.replace("%%", "")]:
        raise ValueError(
            f"{found[0]} is a year of two digits, which may be of either century; write years of four digits (%Y) into "
            "the file"
        )
    return form


TimeFormat = Annotated[str, AfterValidator(_four_digits)]


class Wide(_Block):
    """One column of a wide table: a number (what is none stays as text), a code (`PREFIX//NAME//cell`), or text."""

    column: str
    unit: str | None = None
    as_: Literal["number", "code", "text"] = Field("number", alias="as")


class Subjects(_Block):
    file: str | None = None
    subject: str
    birth: str | None = None
    age: str | None = None
    sex: str | None = None
    sex_values: dict[str, str] = Field(default_factory=dict)
    static: dict[str, str] = Field(default_factory=dict)
    death: str | None = None
    death_where: Where = Field(default_factory=dict)
    observed_until: str | None = None
    time_format: TimeFormat | None = None
    where: Where = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_of_each(self) -> Subjects:
        if self.birth is not None and self.age is not None:
            raise ValueError("birth and age are both given; give one")
        if self.death_where and self.death is None:
            raise ValueError("death_where without death has no effect")
        if self.sex_values and self.sex is None:
            raise ValueError("sex_values without sex has no effect")
        if "GENDER" in self.static:
            raise ValueError("static has GENDER; give sex = .. instead, which knows F and M")
        if empty := [value for value, sex in self.sex_values.items() if not value.strip() or not sex.strip()]:
            raise ValueError(f"sex_values has an empty value or sex at {empty[0]!r}")
        return self


class Visits(_Block):
    file: str | None = None
    subject: str
    visit: str
    start: str
    end: str | None = None
    class_: str | None = Field(None, alias="class")
    inpatient: bool | list[str] = False
    discharge: str | None = None
    prefix: str = "VISIT"
    time_format: TimeFormat | None = None
    where: Where = Field(default_factory=dict)

    @model_validator(mode="after")
    def _stays_end(self) -> Visits:
        if self.inpatient and self.end is None:
            raise ValueError("inpatient visits need an end, which is their discharge")
        if isinstance(self.inpatient, list) and self.class_ is None:
            raise ValueError("inpatient lists classes, but there is no class column; inpatient = true for all visits")
        if self.discharge is not None and not self.inpatient:
            raise ValueError("discharge has no effect where no visit is inpatient")
        return self


class EventTable(_Block):
    file: str | None = None
    name: str | None = None
    subject: str
    kind: KindName
    time: str | list[str] | None = None
    known: str | None = None
    at_visit: Literal["start", "end"] | None = None
    undated: bool = False
    at_origin: bool = False
    time_format: TimeFormat | None = None
    prefix: str | None = None
    code: str | list[str] | None = None
    constant: str | None = None
    columns: dict[str, str | Wide] = Field(default_factory=dict)
    value: str | None = None
    unit: str | None = None
    unit_is: str | None = None
    text: str | None = None
    visit: str | None = None
    description: str | None = None
    where: Where = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> EventTable:
        if sum((self.time is not None, self.at_visit is not None, self.undated, self.at_origin)) != 1:
            raise ValueError(
                "when is an event known? give one of time, at_origin = true, at_visit and undated = true (known at "
                "every prediction)"
            )
        if sum((self.code is not None, self.constant is not None, bool(self.columns))) != 1:
            raise ValueError("give one of code (columns), constant and columns (a wide table)")
        if self.time == [] or self.code == []:
            raise ValueError("an empty list of columns")
        if self.known is not None and self.time is None:
            raise ValueError("known without time has no effect")
        if self.at_visit is not None and self.visit is None:
            raise ValueError("at_visit needs the visit column")
        if self.unit is not None and self.unit_is is not None:
            raise ValueError("unit (a column) and unit_is (the unit itself) are both given; give one")
        of_one = ("value", "unit", "unit_is", "text", "description")
        if self.columns and (given := [name for name in of_one if getattr(self, name) is not None]):
            raise ValueError(f"{', '.join(given)} with columns has no effect; a wide column states its own unit")
        return self


class Codes(_Block):
    file: str
    prefix: str | None = None
    code: str | list[str]
    description: str


class Mapping(_Block):
    """The whole file."""

    source: str = Field("table", min_length=1)
    notes: list[str] = Field(default_factory=list)
    ids: Literal["integer", "text"] = "integer"
    visit_ids: Literal["integer", "text"] = "integer"
    missing: list[str] = Field(default_factory=lambda: [""])
    encoding: str = "utf-8"
    delimiter: str | None = Field(None, min_length=1, max_length=1)
    decimal: Literal[".", ","] = "."
    origin: datetime.datetime | datetime.date | None = None
    subjects: Subjects | None = None
    visits: Visits | None = None
    tables: list[EventTable] = Field(default_factory=list)
    codes: list[Codes] = Field(default_factory=list)

    @model_validator(mode="after")
    def _consistent(self) -> Mapping:
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ValueError(f"encoding {self.encoding} is unknown; for example latin-1, cp1252 or utf-16") from None
        if self.visits is None and not self.tables:
            raise ValueError("nothing to import: give [visits] or [[tables]]")
        if self.visits is None and any(table.at_visit for table in self.tables):
            raise ValueError("at_visit needs [visits]")
        relative = [block for block in self.blocks() if getattr(block, "time_format", None) in OFFSETS]
        relative += [table for table in self.tables if table.at_origin]
        aged = self.subjects is not None and self.subjects.age is not None
        if self.origin is None and (relative or aged):
            raise ValueError(
                "times that are numbers, ages and at_origin need the origin, for example origin = 2000-01-01"
            )
        if self.origin is not None and not (relative or aged):
            raise ValueError(
                "origin has no effect: no time_format is a unit, no table is at_origin and no age is given"
            )
        return self

    def blocks(self) -> Iterator[Subjects | Visits | EventTable | Codes]:
        """Everything that names a file."""
        yield from (block for block in (self.subjects, self.visits) if block is not None)
        yield from self.tables
        yield from self.codes

    def since(self) -> datetime.datetime:
        """`origin` as a time; the validation asks for one where it is used."""
        if isinstance(self.origin, datetime.datetime):
            return self.origin.replace(tzinfo=None)
        return datetime.datetime.combine(self.origin or datetime.date.min, datetime.time())


def read_mapping(file: Path) -> Mapping:
    """Read a mapping, or one of those that the package ships (`SHIPPED`); all its problems in one message.

    Raises:
        ConfigError: missing, no TOML, an unknown key (named with the nearest valid one), or keys that contradict.
    """
    if str(file) in SHIPPED and not file.exists():
        file = SHIPPED[str(file)]
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(
            f"mapping {file} is missing", expected=f"a TOML file, or one of {', '.join(SHIPPED)}",
            remedy="ehrseq import table --example prints one",
        ) from None  # fmt: skip
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ConfigError(f"mapping {file} is not valid TOML", got=str(problem)) from None
    try:
        return Mapping.model_validate(tree)
    except ValidationError as problem:
        found = [_told(error) for error in problem.errors(include_url=False)]
        raise ConfigError(
            f"mapping {file} has {len(found)} problem{'s' if len(found) > 1 else ''}: " + " | ".join(found),
            remedy="ehrseq import table --example prints a mapping to start from",
        ) from None


def _told(error: Any) -> str:
    path = [part for part in error["loc"] if part not in ("Wide", "str", "bool", "list[str]")]
    where = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    if error["type"] == "extra_forbidden":
        valid = [field.alias or name for name, field in _model_at(path[:-1]).model_fields.items()]
        close = difflib.get_close_matches(str(path[-1]), valid, n=1, cutoff=0)
        return f"unknown key '{where}' (the nearest valid one is '{close[0]}')"
    if error["type"] == "value_error":
        return f"{where + ': ' if where else ''}{error['ctx']['error']}"
    return f"{where}: {error['msg']}" + ("" if error["type"] == "missing" else f", got {error['input']!r}")


def _model_at(path: list[Any]) -> type[BaseModel]:
    blocks: dict[str, type[BaseModel]] = {
        "subjects": Subjects, "visits": Visits, "tables": EventTable, "codes": Codes,
    }  # fmt: skip
    if not path:
        return Mapping
    return Wide if "columns" in path else blocks[path[0]]
