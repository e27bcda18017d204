"""Labels of every task on MIMIC-IV demo and GiBleed, as imported, against SQL on the publishers' tables."""

import os
import sqlite3
import tomllib
from pathlib import Path

import polars as pl
import pytest

import ehrsequencing.tasks
from ehrsequencing.data.labels import NO_CATEGORY
from ehrsequencing.data.sources import import_source
from ehrsequencing.errors import LabelError
from ehrsequencing.tasks.cohorts import build_labels

DATA = Path(os.environ.get("EHRSEQ_DATA", ""))
pytestmark = pytest.mark.skipif(
    not os.environ.get("EHRSEQ_DATA"), reason="EHRSEQ_DATA does not name the real data; see tests/real/README.md"
)
HEART_FAILURE = "onset:ICD10CM//I50,ICD9CM//428,SNOMED//84114007@365"
KIDNEY_DISEASE = "onset:ICD10CM//N18,ICD9CM//585,SNOMED//709044004,SNOMED//46177005@365"
BLEEDING = "onset:ICD10CM//K92.2,ICD9CM//578,SNOMED//74474003@365"
DEFINITIONS = tomllib.loads((Path(ehrsequencing.tasks.__file__).parent / "phenotypes.toml").read_text())["phenotype"]
FOLLOWED = """
CREATE TABLE visits AS SELECT subject_id, COALESCE(visit, date(t)) AS visit, MIN(t) AS start, MAX(t) AS t
  FROM happened GROUP BY 1, 2;
CREATE TABLE followed AS SELECT p.*, first, MAX(last, COALESCE(death, last)) AS last,
    MAX(last, COALESCE(death, last), COALESCE(stated, last)) AS until
  FROM people p JOIN (SELECT subject_id, MIN(t) AS first, MAX(t) AS last FROM happened GROUP BY subject_id)
  USING (subject_id);
CREATE TABLE living AS SELECT DISTINCT v.subject_id, v.t FROM visits v JOIN followed f USING (subject_id)
  WHERE v.t >= datetime(first, '+365 days') AND julianday(v.t) - julianday(birth) >= 18 * 365.25
  AND (death IS NULL OR death > v.t)
  AND NOT EXISTS (SELECT 1 FROM died_in_hospital d WHERE d.subject_id = v.subject_id AND d.t <= v.t);
CREATE INDEX by_living ON living (subject_id, t);
CREATE INDEX by_coded ON coded (subject_id, t);
CREATE INDEX by_visit ON visits (subject_id, start);
CREATE TABLE landmarks AS WITH RECURSIVE picked AS (
  SELECT subject_id, MIN(t) AS t FROM living GROUP BY subject_id UNION ALL
  SELECT p.subject_id,
    (SELECT MIN(t) FROM living l WHERE l.subject_id = p.subject_id AND l.t >= datetime(p.t, '+365 days'))
  FROM picked p WHERE p.t IS NOT NULL)
  SELECT * FROM picked WHERE t IS NOT NULL;
CREATE TABLE joined AS WITH
  a AS (SELECT *, MAX(d) OVER (
    PARTITION BY subject_id ORDER BY a, d ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before FROM admitted),
  b AS (SELECT *, SUM(before IS NULL OR (a > datetime(before, '+6 hours') AND date(a) <> date(before)))
    OVER (PARTITION BY subject_id ORDER BY a, d) AS stay FROM a)
  SELECT subject_id, MIN(a) AS a, MAX(d) AS d, MAX(died) AS died,
    LEAD(MIN(a)) OVER (PARTITION BY subject_id ORDER BY MIN(a)) AS next FROM b GROUP BY subject_id, stay;
CREATE TABLE stays AS SELECT j.subject_id, a, d, next, f.birth, f.death, f.last, f.until, f.stated,
    died OR (death IS NOT NULL AND date(death) BETWEEN date(a) AND date(d)) AS died
  FROM joined j JOIN followed f USING (subject_id);
"""
"""From happened, people, coded, admitted, died_in_hospital: the rules of docs/tasks.md for the default options."""
BINARY = """
, judged AS (SELECT *, event IS NOT NULL AND event <= u AS y, death IS NOT NULL AND death <= u AS dead FROM asked)
SELECT COUNT(*), COUNT(DISTINCT subject_id), SUM(y) FROM judged
WHERE until >= u OR dead OR (y AND NOT COALESCE(stated >= last, 0))
"""


def table(path):
    return pl.read_csv(path, infer_schema=False)


def connect(tables):
    connection = sqlite3.connect(":memory:")
    for name, frame in tables.items():
        connection.execute(f"CREATE TABLE {name} ({', '.join(frame.columns)})")
        marks = ", ".join("?" * frame.width)
        connection.executemany(f"INSERT INTO {name} VALUES ({marks})", frame.iter_rows())
    connection.executescript(FOLLOWED)
    return connection


def end_of_day(day):
    return pl.col(day).str.slice(0, 10) + " 23:59:59"


def mimic_tables():
    folder = DATA / "mimic_iv_demo"
    patients, admissions = table(folder / "hosp/patients.csv.gz"), table(folder / "hosp/admissions.csv.gz")
    admissions = admissions.with_columns(d=pl.max_horizontal("dischtime", "deathtime"))
    left = admissions.select("hadm_id", "d")
    stored = pl.max_horizontal("charttime", "storetime")
    cultured = pl.coalesce("storetime", end_of_day("storedate"), "charttime", end_of_day("chartdate"))
    at, icd = pl.col("d"), pl.concat_str("icd_version", "icd_code")
    happened, coded = [], []
    for name, times, kind, code in (
        ("hosp/admissions", [pl.col(c) for c in ("admittime", "d", "edregtime", "edouttime")], None, None),
        ("hosp/transfers", [pl.col("intime")], None, None), ("hosp/services", [pl.col("transfertime")], None, None),
        ("hosp/diagnoses_icd", [at], "diagnosis", icd), ("hosp/procedures_icd", [at], "procedure", "P" + icd),
        ("hosp/hcpcsevents", [at], "procedure", "H" + pl.col("hcpcs_cd")), ("hosp/drgcodes", [at], None, None),
        ("hosp/labevents", [stored], None, None), ("hosp/microbiologyevents", [cultured], None, None),
        ("hosp/prescriptions", [pl.col("starttime")], "drug", "D" + pl.col("drug")),
        ("hosp/omr", [end_of_day("chartdate")], None, None),
        ("icu/icustays", [pl.col("intime"), pl.col("outtime")], None, None),
        ("icu/outputevents", [stored], None, None), ("icu/datetimeevents", [stored], None, None),
        ("icu/procedureevents", [pl.col("starttime")], "procedure", "S" + pl.col("itemid")),
        ("icu/procedureevents", [pl.col("endtime")], "procedure", "E" + pl.col("itemid")),
    ):  # fmt: skip
        rows = table(folder / f"{name}.csv.gz")
        if "hadm_id" not in rows.columns:
            rows = rows.with_columns(hadm_id=pl.lit(None, dtype=pl.String))
        if "d" in [time.meta.output_name() for time in times]:
            rows = rows.join(left, on="hadm_id", how="left")
        for time in times:
            found = rows.select(
                pl.col("subject_id").cast(pl.Int64), "hadm_id", t=time, code=pl.lit(None) if code is None else code
            )
            found = found.drop_nulls("t")
            happened.append(found.select("subject_id", "hadm_id", "t").unique())
            if kind is not None:
                coded.append(found.select("subject_id", "t", "code", visit="hadm_id").unique())
    first = pl.col("deathtime").drop_nulls().min()
    people = (
        patients.join(admissions.group_by("subject_id").agg(first, pl.col("d").max()), on="subject_id", how="left")
        .select(
            pl.col("subject_id").cast(pl.Int64),
            birth=pl.format("{}-01-01", pl.col("anchor_year").cast(pl.Int64) - pl.col("anchor_age").cast(pl.Int64)),
            death=pl.coalesce("deathtime", end_of_day("dod")),
            stated=(pl.col("d").str.to_datetime() + pl.duration(days=365)).dt.strftime("%Y-%m-%d %H:%M:%S"),
        )
    )  # fmt: skip
    died = pl.col("discharge_location").is_in(["DIED"])
    admitted = admissions.select(
        pl.col("subject_id").cast(pl.Int64), a="admittime", d="d", died=died.fill_null(False).cast(pl.Int8)
    )
    return {
        "happened": pl.concat(happened).select("subject_id", visit="hadm_id", t="t"), "coded": pl.concat(coded),
        "people": people, "admitted": admitted,
        "died_in_hospital": admitted.filter(died=1).select("subject_id", t="d"),
    }  # fmt: skip


def gibleed_tables():
    folder = DATA / "omop_gibleed"

    def number(name):
        return pl.col(name).cast(pl.Float64).cast(pl.Int64)

    concepts = table(folder / "concept.csv").select(
        concept=number("concept_id"), code=pl.concat_str("vocabulary_id", "concept_code", separator="//")
    )
    people = table(folder / "person.csv").select(
        subject_id=number("person_id"), birth=pl.col("birth_datetime").str.slice(0, 10) + " 00:00:00"
    )
    stays = table(folder / "visit_occurrence.csv")
    happened, coded = [], []
    known = stays.select(visit=number("visit_occurrence_id"), known=True)
    for name, concept, day, kind in (
        ("visit_occurrence", "visit_concept_id", "visit_start_date", None),
        ("visit_occurrence", "visit_concept_id", "visit_end_date", None),
        ("condition_occurrence", "condition_concept_id", "condition_start_date", "diagnosis"),
        ("drug_exposure", "drug_concept_id", "drug_exposure_start_date", "drug"),
        ("procedure_occurrence", "procedure_concept_id", "procedure_date", "procedure"),
        ("measurement", "measurement_concept_id", "measurement_date", None),
        ("observation", "observation_concept_id", "observation_date", None),
    ):
        rows = table(folder / f"{name}.csv").select(
            subject_id=number("person_id"), visit=number("visit_occurrence_id"), concept=number(concept),
            t=pl.col(day).str.slice(0, 10) + " 00:00:00",
        ).join(known, on="visit", how="left").join(people, on="subject_id")  # fmt: skip
        rows = rows.filter(pl.col("t") >= pl.col("birth"))
        rows = rows.with_columns(visit=pl.when("known").then("visit"))
        happened.append(rows.select("subject_id", "visit", "t").unique())
        if kind is not None:
            coded.append(rows.join(concepts, on="concept").select("subject_id", "t", "code", "visit").unique())
    periods = table(folder / "observation_period.csv").group_by(subject_id=number("person_id")).agg(
        stated=pl.col("observation_period_end_date").max() + " 00:00:00"
    )  # fmt: skip
    return {
        "happened": pl.concat(happened), "coded": pl.concat(coded),
        "people": people.join(periods, on="subject_id", how="left").with_columns(death=pl.lit(None, dtype=pl.String)),
        "admitted": stays.select(
            subject_id=number("person_id"), a=pl.col("visit_start_date") + " 00:00:00",
            d=pl.col("visit_end_date") + " 00:00:00", died=pl.lit(0),
        ),
        "died_in_hospital": pl.DataFrame(schema={"subject_id": pl.Int64, "t": pl.String}),
    }  # fmt: skip


SOURCES = {"mimic-iv": ("mimic_iv_demo", mimic_tables), "omop": ("omop_gibleed", gibleed_tables)}


@pytest.fixture(scope="module", params=SOURCES)
def world(request, tmp_path_factory):
    """The imported dataset and the publisher's tables."""
    folder, tables = SOURCES[request.param]
    dataset = import_source(request.param, DATA / folder, tmp_path_factory.mktemp(folder) / "meds")
    connection = connect(tables())
    splits = dataset.subject_splits()
    connection.execute("CREATE TABLE splits (subject_id, split)")
    connection.executemany("INSERT INTO splits VALUES (?, ?)", splits.select("subject_id", "split").iter_rows())
    return dataset, connection


def like(codes):
    """SQL that finds codes: ICD by prefix and without the dot, SNOMED whole."""
    told = []
    for code in codes:
        system, written = code.split("//")
        if system in ("ICD9CM", "ICD10CM"):
            version = system.removeprefix("ICD").removesuffix("CM")
            told.append(f"code LIKE '{version}{written.replace('.', '')}%'")
        else:
            told.append(f"code = '{code}'")
    return "(" + " OR ".join(told) + ")"


def check(world, task, sql):
    """Rows, subjects and positives of a binary task; where there are none of one class, the error says so."""
    dataset, connection = world
    [(rows, subjects, positives)] = connection.execute(sql).fetchall()
    if not positives or positives == rows:
        with pytest.raises(LabelError, match="one class|empty cohort|needs|no subject"):
            build_labels(dataset, task)
        return 0
    labels, _ = build_labels(dataset, task)
    got = len(labels), labels["subject_id"].n_unique(), int(labels["boolean_value"].sum())
    assert got == (rows, subjects, positives)
    return positives


def source_of(world):
    return world[0].manifest["source"]


@pytest.mark.parametrize("days", [7, 30, 90])
def test_readmission(world, days):
    positives = check(world, f"readmission_{days}d", f"""
    WITH asked AS (SELECT *, datetime(d, '+{days} days') AS u,
        CASE WHEN death IS NULL OR date(next) <= date(death) THEN next END AS event FROM stays
      WHERE NOT died AND (death IS NULL OR death > d) AND julianday(d) - julianday(birth) >= 18 * 365.25)
    {BINARY}
    """)  # fmt: skip
    assert positives > 0 or source_of(world) == "omop"


IN_HOSPITAL = """FROM (SELECT *, CASE WHEN death >= a THEN MIN(d, death) ELSE d END AS e,
  datetime(a, '+24 hours') AS t FROM stays)
WHERE e > t AND (death IS NULL OR death > t) AND julianday(t) - julianday(birth) >= 18 * 365.25"""


def test_death_in_hospital(world):
    positives = check(
        world, "mortality_inpatient", f"SELECT COUNT(*), COUNT(DISTINCT subject_id), SUM(died) {IN_HOSPITAL}"
    )
    assert positives > 10 or source_of(world) == "omop"


@pytest.mark.parametrize("days", [3, 7])
def test_length_of_stay(world, days):
    long = f"e > datetime(a, '+{days} days')"
    positives = check(
        world, f"los_over_{days}d", f"SELECT COUNT(*), COUNT(DISTINCT subject_id), SUM({long}) {IN_HOSPITAL}"
    )
    assert positives > 10 or source_of(world) == "omop"


@pytest.mark.parametrize("days", [30, 365])
def test_death_within_days(world, days):
    positives = check(world, f"mortality_{days}d", f"""
    WITH asked AS (SELECT l.t, f.*, datetime(l.t, '+{days} days') AS u, death AS event
      FROM landmarks l JOIN followed f USING (subject_id)) {BINARY}
    """)  # fmt: skip
    assert positives > 0 or source_of(world) == "omop"


def free_of(codes, spacing):
    """Landmarks before the first of some codes: `asked0` (subject_id, t, event)."""
    return f"""WITH RECURSIVE
    ill AS (SELECT subject_id, MIN(t) AS event FROM coded WHERE {like(codes)} GROUP BY subject_id),
    free AS MATERIALIZED (
      SELECT l.*, event FROM living l LEFT JOIN ill USING (subject_id) WHERE event IS NULL OR event > t),
    asked0 AS (SELECT subject_id, MIN(t) AS t, MAX(event) AS event FROM free GROUP BY subject_id UNION ALL
      SELECT p.subject_id, (SELECT MIN(l.t) FROM living l WHERE l.subject_id = p.subject_id
        AND l.t >= datetime(p.t, '+{spacing} days') AND (p.event IS NULL OR p.event > l.t)), p.event
      FROM asked0 p WHERE p.t IS NOT NULL)"""


def codes_of(task):
    return task.split(":", 1)[1].split("@")[0].split(",")


@pytest.mark.parametrize("task", [HEART_FAILURE, KIDNEY_DISEASE, BLEEDING])
def test_onset(world, task):
    positives = check(world, task, f"""
    {free_of(codes_of(task), 365)}, asked AS (SELECT a.t, a.event, f.*, datetime(a.t, '+365 days') AS u
      FROM asked0 a JOIN followed f USING (subject_id) WHERE a.t IS NOT NULL) {BINARY}
    """)  # fmt: skip
    assert positives > 0 or (source_of(world), task) in (("omop", HEART_FAILURE), ("omop", KIDNEY_DISEASE))


def examples(labels):
    return labels.n_unique(["subject_id", "prediction_time"])


def test_phenotypes(world):
    dataset, connection = world
    labels, manifest = build_labels(dataset, "phenotype:common")
    connection.execute("DROP TABLE IF EXISTS asked")
    connection.execute("""CREATE TEMP TABLE asked AS SELECT l.subject_id, l.t, datetime(l.t, '+365 days') AS u
      FROM landmarks l JOIN followed f USING (subject_id)
      WHERE until >= datetime(l.t, '+365 days') OR (death IS NOT NULL AND death <= datetime(l.t, '+365 days'))""")
    [(rows, subjects)] = connection.execute("SELECT COUNT(*), COUNT(DISTINCT subject_id) FROM asked").fetchall()
    assert (examples(labels), labels["subject_id"].n_unique()) == (rows, subjects)
    expected, with_any = {}, set()
    for one in DEFINITIONS:
        found = connection.execute(f"""SELECT DISTINCT a.subject_id, a.t, split
          FROM asked a JOIN coded c USING (subject_id) JOIN splits USING (subject_id)
          WHERE {like(one["codes"])} AND c.t > a.t AND c.t <= u""").fetchall()
        if any(split == "train" for *_, split in found):
            expected[one["name"]] = len(found)
            with_any |= {(subject, t) for subject, t, _ in found}
    positive = labels.filter(pl.col("categorical_value") != NO_CATEGORY)
    assert dict(positive["categorical_value"].value_counts().iter_rows()) == expected
    assert manifest["categories"] == sorted(expected)
    assert examples(positive) == len(with_any) == sum(split["positives"] for split in manifest["splits"].values())
    assert len(expected) > 8


def test_the_next_visit(world):
    dataset, connection = world
    connection.executescript("""DROP TABLE IF EXISTS next; CREATE TEMP TABLE next AS SELECT l.subject_id, l.t,
        (SELECT MIN(start) FROM visits v WHERE v.subject_id = l.subject_id AND v.start > l.t) AS start
      FROM landmarks l; DELETE FROM next WHERE start IS NULL;
      DROP TABLE IF EXISTS brought; CREATE TEMP TABLE brought AS
      SELECT DISTINCT n.subject_id, n.t, code, split FROM next n JOIN splits USING (subject_id)
      JOIN visits v USING (subject_id, start)
      JOIN (SELECT subject_id, COALESCE(visit, date(t)) AS visit, code FROM coded) USING (subject_id, visit);""")
    [(rows, subjects)] = connection.execute("SELECT COUNT(*), COUNT(DISTINCT subject_id) FROM next").fetchall()
    often = "SELECT code FROM brought WHERE split = 'train' GROUP BY code HAVING COUNT(*) >= 10"
    [(categories,)] = connection.execute(f"SELECT COUNT(*) FROM ({often})").fetchall()
    if not categories:
        with pytest.raises(LabelError, match="no category with 10 positive training examples"):
            build_labels(dataset, "next_visit_codes")
        return
    labels, manifest = build_labels(dataset, "next_visit_codes")
    [(pairs, positive)] = connection.execute(
        f"SELECT COUNT(*), COUNT(DISTINCT subject_id || t) FROM brought WHERE code IN ({often})"
    ).fetchall()
    told = labels.filter(pl.col("categorical_value") != NO_CATEGORY)
    assert (examples(labels), labels["subject_id"].n_unique()) == (rows, subjects)
    assert (len(manifest["categories"]), len(told), examples(told)) == (categories, pairs, positive)


@pytest.mark.parametrize("task", ["time_to:death", HEART_FAILURE, BLEEDING])
def test_time_to(world, task):
    dataset, connection = world
    if task == "time_to:death":
        sql = """WITH asked AS (SELECT l.subject_id, MIN(t) AS t, death AS event, NULL AS other, until
          FROM living l JOIN followed USING (subject_id) GROUP BY l.subject_id)"""
    else:
        codes, task = codes_of(task), task.replace("onset", "time_to").split("@")[0]
        sql = f"""{free_of(codes, 73000)}, asked AS (SELECT a.subject_id, a.t,
            CASE WHEN death < event THEN death ELSE event END AS event, death AS other, until
          FROM asked0 a JOIN followed USING (subject_id) WHERE a.t IS NOT NULL)"""
    [(rows, events, competing, days)] = connection.execute(f"""{sql}
    SELECT COUNT(*), SUM(event IS NOT NULL), SUM(event IS NULL AND other IS NOT NULL),
      SUM(julianday(COALESCE(event, other, until)) - julianday(t)) FROM asked WHERE COALESCE(event, other, until) > t
    """).fetchall()  # fmt: skip
    if not events:
        with pytest.raises(LabelError, match="needs deaths|no event in follow-up|no subject has a code"):
            build_labels(dataset, task)
        return
    labels, _ = build_labels(dataset, task)
    status = labels["integer_value"]
    assert (len(labels), (status == 1).sum(), (status == 2).sum()) == (rows, events, competing)
    assert labels["float_value"].cast(pl.Float64).sum() == pytest.approx(days, rel=1e-6)
