"""Rows a second and peak memory of `ehrseq import`, per source, on generated files.

    python benchmarks/importers.py [FOLDER] [--rows 2000000] [--sources mimic-iv omop synthea table] [--gzip]

The files have the columns of the source, one large table of `--rows` rows (labevents, measurement, observations, labs,
encounters) with a subject per 400 rows, and values drawn at random. Each import is a process of its own; its rate
counts the rows of that table.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import numpy as np
import polars as pl

ROWS_PER_SUBJECT = 400
MAPPING = """
[subjects]
file = "patients.csv"
subject = "id"
birth = "birth"
[[tables]]
file = "labs.csv"
subject = "id"
time = "time"
prefix = "LAB"
code = "test"
value = "value"
unit = "unit"
kind = "lab"
"""


def generate(source: str, folder: Path, rows: int) -> None:
    """Write the files of one source."""
    generator = np.random.default_rng(0)
    subjects = max(rows // ROWS_PER_SUBJECT, 1)
    people = np.arange(1, subjects + 1)
    if source == "uci-diabetes":
        _encounters(folder, rows, generator)
        return
    # As extracts are: by subject, times within ten years.
    of = pl.Series(np.sort(generator.integers(1, subjects + 1, rows)))
    time_of = pl.Series(generator.integers(0, 10 * 365 * 86400, rows)).cast(pl.Duration("ms")) * 1000
    when = pl.select((pl.datetime(2150, 1, 1) + time_of).dt.strftime("%Y-%m-%d %H:%M:%S")).to_series()
    later = pl.select((pl.datetime(2150, 1, 1) + time_of + pl.duration(hours=1)).dt.strftime("%Y-%m-%d %H:%M:%S"))
    item = pl.Series(50_800 + generator.zipf(1.3, rows) % 900)
    value = pl.Series(generator.lognormal(1, 1, rows)).round(2).cast(pl.String)
    unit = pl.Series(["mg/dL", "mEq/L", "K/uL", "%", None]).gather(item.to_numpy() % 5)
    flag = pl.Series(["abnormal", None]).gather((generator.random(rows) > 0.35).astype(np.int64))
    if source == "mimic-iv":
        (folder / "hosp").mkdir()
        _write(
            folder / "hosp/patients.csv",
            {"subject_id": people, "gender": ["F"] * subjects, "anchor_age": 60, "anchor_year": 2150, "dod": ""},
        )
        _write(
            folder / "hosp/admissions.csv",
            {
                "subject_id": people, "hadm_id": people + 20_000_000, "admittime": "2151-01-01 10:00:00",
                "dischtime": "2151-01-05 10:00:00", "admission_type": "URGENT",
            },
        )  # fmt: skip
        labs = {
            "labevent_id": np.arange(rows), "subject_id": of, "hadm_id": of + 20_000_000, "specimen_id": item,
            "itemid": item, "order_provider_id": "P123", "charttime": when, "storetime": later.to_series(),
            "value": value, "valuenum": value, "valueuom": unit, "ref_range_lower": "1.0", "ref_range_upper": "9.0",
            "flag": flag, "priority": "ROUTINE",
            "comments": "",
        }  # fmt: skip
        _write(folder / "hosp/labevents.csv", labs)
        items = np.arange(50_800, 51_700)
        _write(folder / "hosp/d_labitems.csv", {"itemid": items, "label": [f"Item {number}" for number in items]})
    elif source == "omop":
        _write(folder / "person.csv", {"person_id": people, "gender_concept_id": 8507, "year_of_birth": 2090})
        measurements = {
            "measurement_id": np.arange(rows), "person_id": of, "measurement_concept_id": item,
            "measurement_date": when.str.slice(0, 10), "measurement_datetime": when, "measurement_type_concept_id": 7,
            "value_as_number": value, "value_as_concept_id": 0, "unit_concept_id": 8840, "visit_occurrence_id": "",
            "measurement_source_value": "x", "measurement_source_concept_id": 0, "unit_source_value": unit,
            "value_source_value": value,
        }  # fmt: skip
        _write(folder / "measurement.csv", measurements)
        items = np.arange(50_800, 51_700)
        concepts = {
            "concept_id": items, "concept_name": [f"Item {number}" for number in items], "vocabulary_id": "LOINC",
            "concept_code": [f"{number}-1" for number in items],
        }  # fmt: skip
        _write(folder / "concept.csv", concepts)
    elif source == "synthea":
        _synthea(folder, of.to_numpy(), when, item, value, unit)
    else:
        _write(folder / "patients.csv", {"id": people, "birth": "2090-01-01"})
        labs = {"id": of, "time": when, "test": item, "value": value, "unit": unit}
        _write(folder / "labs.csv", labs)
        (folder.parent / "mapping.toml").write_text(MAPPING)


def _synthea(folder: Path, of: np.ndarray, when: pl.Series, item: pl.Series, value: pl.Series, unit: pl.Series) -> None:
    """Observations of encounters, 20 each, whose identifiers are UUIDs."""
    rows = len(of)
    of_encounter = np.repeat(np.arange(rows // 20 + 1), 20)[:rows]
    patient_of = of[np.unique(of_encounter, return_index=True)[1]]
    encounters = pl.Series([str(uuid.UUID(int=number + (1 << 64))) for number in range(len(patient_of))])
    patients = pl.Series([str(uuid.UUID(int=number + (2 << 64))) for number in range(int(of.max()) + 1)])
    _write(folder / "patients.csv", {"Id": patients, "BIRTHDATE": "2090-01-01", "GENDER": "F"})
    zoned = when.str.replace(" ", "T") + "Z"
    visits = {
        "Id": encounters, "START": "2151-01-01T10:00:00Z", "STOP": "2151-01-01T11:00:00Z",
        "PATIENT": patients.gather(patient_of), "ENCOUNTERCLASS": "ambulatory", "CODE": 185345009,
        "DESCRIPTION": "Encounter for symptom",
    }  # fmt: skip
    _write(folder / "encounters.csv", visits)
    observations = {
        "DATE": zoned, "PATIENT": patients.gather(patient_of[of_encounter]),
        "ENCOUNTER": encounters.gather(of_encounter), "CATEGORY": "laboratory", "CODE": item.cast(pl.String) + "-1",
        "DESCRIPTION": "Item " + item.cast(pl.String), "VALUE": value, "UNITS": unit, "TYPE": "numeric",
    }  # fmt: skip
    _write(folder / "observations.csv", observations)


def _encounters(folder: Path, rows: int, generator: np.random.Generator) -> None:
    from ehrsequencing.data.sources.uci_diabetes_tables import COLUMNS, DRUGS

    drawn = {
        "encounter_id": generator.permutation(rows), "patient_nbr": generator.integers(0, rows // 2 + 1, rows),
        "diag_1": generator.integers(100, 900, rows), "diag_2": generator.integers(100, 900, rows),
        "diag_3": generator.integers(100, 900, rows), "num_lab_procedures": generator.integers(1, 90, rows),
        "time_in_hospital": generator.integers(1, 15, rows), "insulin": generator.choice(["No", "Up"], rows),
    }  # fmt: skip
    fixed = {
        "race": "Caucasian", "gender": "Female", "age": "[70-80)", "weight": "?", "payer_code": "MC",
        "medical_specialty": "?", "max_glu_serum": "None", "A1Cresult": "None", "change": "No", "diabetesMed": "Yes",
        "readmitted": "NO",
    }  # fmt: skip
    columns = {name: drawn.get(name, fixed.get(name, "No" if name in DRUGS else 1)) for name in COLUMNS}
    _write(folder / "diabetic_data.csv", columns)
    tables = ("admission_type_id", "discharge_disposition_id", "admission_source_id")
    (folder / "IDs_mapping.csv").write_text("\n,\n".join(f"{name},description\n1,One" for name in tables) + "\n")


def _write(file: Path, columns: dict[str, object]) -> None:
    pl.select(**{name: pl.lit(pl.Series(value) if isinstance(value, (list, np.ndarray)) else value)
                 for name, value in columns.items()}).write_csv(file)  # fmt: skip


def run_one(source: str, raw: Path, out: Path) -> None:
    """Import in this process and print seconds, CPU seconds and peak memory as JSON."""
    from ehrsequencing.data.sources import import_source

    options = {"mapping": raw.parent / "mapping.toml"} if source == "table" else {}
    start, cpu = time.perf_counter(), time.process_time()
    dataset = import_source(source, raw, out, **options)
    measured = {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "events": dataset.manifest["counts"]["events"],
        "shards": dataset.manifest["counts"]["shards"],
    }
    print(json.dumps(measured))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="where files go; a temporary folder by default")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--sources", nargs="+", default=["mimic-iv", "omop", "synthea", "table"])
    parser.add_argument("--gzip", action="store_true", help="compress the large tables")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run_one(arguments.one, arguments.folder / "raw", arguments.folder / "meds")
        return
    print(f"{'source':<14} {'rows':>11} {'events':>11} {'MB':>7} {'seconds':>8} {'CPU s':>7} {'rows/s':>10} "
          f"{'rows/CPU s':>11} {'peak MB':>8} {'shards':>7}")  # fmt: skip
    for source in arguments.sources:
        if arguments.folder is not None:
            arguments.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            folder = Path(name)
            (folder / "raw").mkdir()
            generate(source, folder / "raw", arguments.rows)
            if arguments.gzip:
                for file in (folder / "raw").rglob("*.csv"):
                    subprocess.run(["gzip", "-1", file], check=True)
            size = sum(file.stat().st_size for file in (folder / "raw").rglob("*") if file.is_file()) / 1e6
            command = [sys.executable, __file__, str(folder), "--one", source]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ)
            found = json.loads(done.stdout)
            print(
                f"{source:<14} {arguments.rows:>11,} {found['events']:>11,} {size:>7,.0f} {found['seconds']:>8.1f} "
                f"{found['cpu_seconds']:>7.1f} {arguments.rows / found['seconds']:>10,.0f} "
                f"{arguments.rows / found['cpu_seconds']:>11,.0f} {found['peak_mb']:>8,.0f} {found['shards']:>7}",
                flush=True,
            )


if __name__ == "__main__":
    main()
