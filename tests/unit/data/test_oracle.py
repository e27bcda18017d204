import shutil

import numpy as np
import polars as pl
import pytest

from ehrsequencing.data import oracle
from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.oracle import oracle_frame, outcome_of
from ehrsequencing.data.synthetic import block_frame, death_minutes, entry_days, synthesise, trajectories
from ehrsequencing.data.synthetic_disease import static_keys
from ehrsequencing.data.synthetic_events import emit
from ehrsequencing.data.synthetic_forward import imagine, live_on, real_future, stand, steps_ahead
from ehrsequencing.data.synthetic_model import load_model
from ehrsequencing.data.synthetic_random import derive, subject_keys
from ehrsequencing.data.synthetic_visits import MINUTES_PER_DAY, plan_visits
from ehrsequencing.errors import ConfigError, DataError, LabelError
from ehrsequencing.tasks.cohorts import CohortRules, build_labels, parse_task

MODEL = load_model()
TASKS = ("heart_failure_1y", "onset:ICD10CM//H81@365", "onset:ICD10CM//I21,ICD10CM//I63@180", "onset:ICD10CM//E11@90")


def wanted_of(*prefixes):
    return np.array([code.startswith(prefixes) for code in MODEL.book.codes])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = synthesise(tmp_path_factory.mktemp("oracle") / "meds", subjects=300, seed=4, workers=1)
    return MedsDataset.open(path)


@pytest.fixture(scope="module")
def heart_failure(dataset):
    return build_labels(dataset, parse_task("heart_failure_1y"))


def standing_of(labels, seed):
    ids = labels["subject_id"].to_numpy()
    subjects = ids - seed * 10_000_000 - 1
    entry = entry_days(static_keys(subject_keys(seed, subjects)))
    minutes = labels["prediction_time"].dt.timestamp("us").to_numpy() // 60_000_000 - entry * MINUTES_PER_DAY
    standing, matched = stand(MODEL, seed, subjects, minutes)
    assert matched.all()
    return standing


def check_labels_against_futures(dataset, seed, tasks, rules=None):
    """Labels made from the record equal the oracle's definition on what really followed, row by row.

    Returns rows, positives and rows at acute visits of all tasks.
    """
    parsed = [parse_task(task) for task in tasks]
    labels = pl.concat(
        build_labels(dataset, task, rules)[0].with_columns(task=pl.lit(number)) for number, task in enumerate(parsed)
    )
    standing = standing_of(labels, seed)
    positives = 0
    for number, task in enumerate(parsed):
        rows = np.flatnonzero((labels["task"] == number).to_numpy())
        here, given = standing.select(rows), labels["boolean_value"].to_numpy()[rows]
        code, death = real_future(MODEL, here, wanted_of(*task.codes), task.horizon_days)
        window = task.horizon_days * MINUTES_PER_DAY
        observed = here.minute + window <= here.observed
        assert (given[observed] == (code <= window)[observed]).all()
        # Past the end of observation a row is there only if the code or death came before it.
        left = here.observed - here.minute
        assert (given[~observed] == (code <= left)[~observed]).all()
        assert ((code <= left) | (death <= left))[~observed].all()
        positives += int(given.sum())
    return len(labels), positives, int(standing.after_acute.sum())


def test_labels_agree_with_the_real_future(dataset):
    rows, positives, acute = check_labels_against_futures(dataset, 4, TASKS)
    assert rows > 2_000 and positives > 50 and acute > 50


def test_labels_of_every_visit_agree(dataset):
    """Without a wait or a spacing: visits of the first step, both of a step, stays that end in death."""
    rules = CohortRules(history_days=0, spacing_days=1)
    rows, positives, acute = check_labels_against_futures(dataset, 4, ["onset:ICD10CM//S@60"], rules)
    assert rows > 1_500 and positives > 20 and acute > 50


@pytest.mark.slow
def test_labels_agree_on_thousands_of_subjects(tmp_path):
    path = MedsDataset.open(synthesise(tmp_path / "meds", subjects=6_000, seed=1))
    assert check_labels_against_futures(path, 1, TASKS)[0] > 50_000


@pytest.mark.parametrize("prefixes", [("ICD10CM//I50",), ("ICD10CM//I21", "RXNORM//"), ("LOINC//", "VISIT//inpatient")])
def test_wanted_codes_are_those_of_the_whole_record(prefixes):
    paths = trajectories(MODEL, 6, np.arange(60))
    visits = plan_visits(MODEL, paths)
    wanted = wanted_of(*prefixes)
    whole, part = emit(MODEL, paths, visits), emit(MODEL, paths, visits, wanted)
    keep = wanted[whole.code]

    def rows(events, keep=slice(None)):
        columns = (events.visit[keep], events.minute[keep], events.code[keep], np.nan_to_num(events.value[keep]))
        return np.sort(np.rec.fromarrays(columns), axis=0)

    assert keep.any() and (rows(whole, keep) == rows(part)).all()


def test_a_real_future_is_the_record(heart_failure):
    """The fork under a subject's own keys shows, from the visit on, the very events of the record."""
    labels = heart_failure[0].group_by("subject_id", maintain_order=True).first()
    standing = standing_of(labels, 4)
    subjects = labels["subject_id"].to_numpy() - 40_000_001
    paths, visits, possible = live_on(MODEL, standing, standing.keys, steps_ahead(standing, 300))
    assert possible.all()
    events = emit(MODEL, paths, visits)
    _, real_paths, real_visits = block_frame(MODEL, 4, subjects)
    real = emit(MODEL, real_paths, real_visits)
    ordered = wanted_of("LOINC//4485-9")

    def rows(found, of, limit):
        subject = of.subject[found.visit]
        after = (found.minute > standing.minute[subject]) & (found.minute < limit[subject]) & ~ordered[found.code]
        columns = (subject[after], found.minute[after], found.code[after], np.nan_to_num(found.value[after]))
        return np.sort(np.rec.fromarrays(columns), axis=0)

    limit = np.minimum(standing.observed, (standing.step + steps_ahead(standing, 300)) * 30 * MINUTES_PER_DAY)
    forked, recorded = rows(events, visits, limit), rows(real, real_visits, limit)
    assert len(recorded) > 3_000 and (forked == recorded).all()


def brute_force(standing, row, wanted, days, futures, key):
    """Futures with a wanted code, deaths, and possible futures; each future from the whole record of its own."""
    many = standing.select(np.full(futures, row))
    fresh = derive(derive(many.keys, 99), np.arange(futures) + key)
    paths, visits, possible = live_on(MODEL, many, fresh, steps_ahead(standing, days))
    events = emit(MODEL, paths, visits)
    minute = events.minute - standing.minute[row]
    hit = wanted[events.code] & (minute > 0) & (minute <= days * MINUTES_PER_DAY)
    struck = np.zeros(futures, dtype=bool)
    struck[visits.subject[events.visit[hit]]] = True
    death = death_minutes(paths, visits) - standing.minute[row]
    return struck[possible].sum(), (death[possible] <= days * MINUTES_PER_DAY).sum(), possible.sum()


def compare_with_brute_force(labels, subjects, futures, chunk, days):
    standing = standing_of(labels, 4)
    spread = np.linspace(0, len(labels) - 1, subjects * 3).astype(int)
    chosen = np.unique(np.r_[spread[: subjects - 4], np.flatnonzero(standing.after_acute)[:4]])
    wanted = wanted_of("ICD10CM//I50", "ICD10CM//I21")
    some = standing.select(chosen)
    hits, total, deaths = np.zeros(len(chosen)), np.zeros(len(chosen)), np.zeros(len(chosen))
    for rows, future in imagine(MODEL, some, wanted, days, futures):
        window = days * MINUTES_PER_DAY
        hits[rows] += (future.weight * (future.code <= window)).sum(1)
        deaths[rows] += (future.weight * (future.death <= window)).sum(1)
        total[rows] += future.weight.sum(1)
    for row in range(len(chosen)):
        if some.died[row]:
            assert hits[row] == 0 and deaths[row] == total[row]
            continue
        parts = [brute_force(some, row, wanted, days, chunk, part) for part in range(0, futures, chunk)]
        counts = np.sum(parts, axis=0)
        for mine, theirs in ((hits[row], counts[0]), (deaths[row], counts[1])):
            p = (mine + theirs + 1) / (total[row] + counts[2] + 2)
            error = np.sqrt(p * (1 - p) * (1 / total[row] + 1 / counts[2]))
            assert abs(mine / total[row] - theirs / counts[2]) < 4.5 * error


def test_forks_agree_with_brute_force(heart_failure):
    compare_with_brute_force(heart_failure[0], 6, 500, 500, 365)


@pytest.mark.slow
def test_forks_agree_with_a_hundred_thousand_futures_of_twenty_subjects(heart_failure):
    compare_with_brute_force(heart_failure[0], 20, 100_000, 20_000, 180)


@pytest.fixture(scope="module")
def found(dataset, heart_failure):
    labels, manifest = heart_failure
    part = labels.gather_every(2)
    return part, oracle_frame(dataset, part, manifest, futures=60, workers=1)


def test_ceiling_is_calibrated(found):
    labels, frame = found
    assert frame.select("subject_id", "prediction_time").equals(labels.select("subject_id", "prediction_time"))
    shown = frame["window_observed"].to_numpy()
    p, y = frame["ceiling"].to_numpy()[shown], labels["boolean_value"].to_numpy()[shown]
    for low, high in ((0, 0.02), (0.02, 0.1), (0.1, 1.01), (0, 1.01)):
        inside = (p >= low) & (p < high)
        # Bins are cut by the estimate, so that a rare one of 100 futures drags its neighbours in: a loose bound.
        assert abs(y[inside].sum() - p[inside].sum()) < 4 * np.sqrt(p[inside].sum() + 1) + 1
    assert p[y].mean() > 3 * p[~y].mean()
    assert frame["attainable"].is_nan().all(), "no exact filter for heart failure"
    error = frame["ceiling_se"].to_numpy()[shown]
    assert (error > 0).all() and error.max() <= 0.066


def test_attainable_is_calibrated_and_below_the_ceiling(dataset):
    labels, manifest = build_labels(dataset, parse_task("onset:ICD10CM//T78@365"))
    part = labels.gather_every(2)
    frame = oracle_frame(dataset, part, manifest, futures=25, workers=1, cache=False).with_columns(
        y=part["boolean_value"]
    ).filter("window_observed")  # fmt: skip
    y, p, q = (frame[name].to_numpy() for name in ("y", "ceiling", "attainable"))
    assert abs(y.sum() - q.sum()) < 4 * np.sqrt(q.sum()) and abs(p.sum() - q.sum()) < 4 * np.sqrt(q.sum())
    top = q > np.quantile(q, 0.8)
    assert abs(y[top].sum() - q[top].sum()) < 4 * np.sqrt(q[top].sum())
    assert abs(p[top].mean() - q[top].mean()) < 0.04, "the filter's belief is the mean of what the state says"
    assert ((p - y) ** 2).mean() < ((q - y) ** 2).mean() < y.mean() * (1 - y.mean())


def test_particles_give_the_attainable_optimum(dataset):
    labels, manifest = build_labels(dataset, parse_task("lupus_flare_1y"))
    part = labels.head(40)
    exact, near = (
        oracle_frame(dataset, part, manifest, futures=5, workers=1, cache=False, filter=filter)
        for filter in ("exact", "particles")
    )
    assert (exact["attainable_se"] == 0).all() and (near["attainable_se"] > 0).all()
    assert near.drop("attainable", "attainable_se").equals(exact.drop("attainable", "attainable_se"))
    difference = (near["attainable"] - exact["attainable"]).abs()
    assert (difference < 5 * near["attainable_se"] + 0.01).all()
    assert near["attainable_se"].max() < 0.05 < exact["attainable"].max()


def check_task_against_futures(dataset, seed, name):
    """As `check_labels_against_futures`, for tasks that the oracle knows by their name."""
    labels, manifest = build_labels(dataset, parse_task(name))
    outcome = outcome_of(manifest)
    standing = standing_of(labels, seed)
    code, death = real_future(MODEL, standing, outcome.wanted(MODEL), outcome.horizons_days[0])
    window = outcome.horizons_days[0] * MINUTES_PER_DAY
    observed = standing.minute + window <= standing.observed
    given = labels["boolean_value"].to_numpy()
    when = code if outcome.codes else death
    assert (given[observed] == (when <= window)[observed]).all()
    left = standing.observed - standing.minute
    assert (given[~observed] == (when <= left)[~observed]).all()
    return len(labels), int(given.sum())


NAMED = ("readmission_30d", "readmission_90d", "mortality_30d", "mortality_365d", "heart_failure_1y")


def test_tasks_with_names_mean_what_the_oracle_means(dataset):
    for name in ("readmission_90d", "mortality_365d"):
        rows, positives = check_task_against_futures(dataset, 4, name)
        assert rows > 100 and positives > 5, name


@pytest.mark.slow
def test_named_tasks_of_thousands_of_subjects(tmp_path):
    path = MedsDataset.open(synthesise(tmp_path / "meds", subjects=2_500, seed=2))
    for name in NAMED:
        rows, positives = check_task_against_futures(path, 2, name)
        assert rows > 2_000 and positives > 20, name


def test_mortality_and_readmission(dataset, heart_failure):
    labels = heart_failure[0].head(80)
    month = oracle_frame(dataset, labels, {"task": "mortality_30d"}, futures=50, workers=1, cache=False)
    year = oracle_frame(dataset, labels, {"task": "mortality_365d"}, futures=50, workers=1, cache=False)
    assert (month["ceiling"] <= year["ceiling"]).all() and 0.002 < year["ceiling"].mean() < 0.1
    stays = oracle_frame(dataset, labels, {"task": "readmission_90d"}, futures=50, workers=1, cache=False)
    assert 0.002 < stays["ceiling"].mean() < 0.3


def test_survival_at_horizons(dataset, heart_failure):
    labels = heart_failure[0].head(60)
    frame = oracle_frame(
        dataset,
        labels,
        {"task": "time_to:ICD10CM//I50"},
        horizons_days=(365, 30, 90),
        futures=50,
        workers=1,
        cache=False,
    )
    assert frame["horizon_days"].to_list()[:3] == [30, 90, 365] and len(frame) == 180
    p = frame["ceiling"].to_numpy().reshape(-1, 3)
    assert (np.diff(p, axis=1) >= 0).all()


def test_cache_and_workers(dataset, heart_failure, found, monkeypatch):
    _labels, manifest = heart_failure
    part, first = found
    again = oracle_frame(dataset, part, manifest, futures=60, workers=1)
    assert again.equals(first)
    monkeypatch.setattr(oracle, "_ROWS", 12)
    few = part.head(24)
    two = oracle_frame(dataset, few, manifest, futures=60, workers=2, cache=False)
    assert two.equals(first.head(24))


def test_an_early_end_of_observation_is_marked(dataset, heart_failure):
    labels, manifest = heart_failure
    last = labels.group_by("subject_id", maintain_order=True).last()
    assert oracle_frame(dataset, last, manifest, futures=1, workers=1, cache=False)["window_observed"].all()
    later = manifest | {"horizon_days": 730}
    frame = oracle_frame(dataset, last, later, futures=1, workers=1, cache=False)
    ends = dataset.observation_end()
    joined = frame.join(ends, on="subject_id").with_columns(
        end=pl.col("prediction_time") + pl.duration(days=pl.col("horizon_days"))
    )
    past = joined.filter(~pl.col("window_observed"))
    assert len(past) and (past["observation_end"] < past["end"]).all()
    assert (joined.filter(pl.col("observation_end") >= pl.col("end"))["window_observed"]).all()


def test_what_an_oracle_cannot_tell_is_refused(dataset, heart_failure, tmp_path):
    labels, manifest = heart_failure
    with pytest.raises(ConfigError, match="does not know this task"):
        outcome_of({"task": "los_over_3d"})
    with pytest.raises(ConfigError, match="needs a horizon"):
        outcome_of({"task": "time_to:death"})
    with pytest.raises(ConfigError, match="no synthetic code matches"):
        oracle_frame(dataset, labels, {"task": "x", "codes": ["ICD10CM//Q99"], "horizon_days": 30})
    with pytest.raises(ConfigError, match="unknown filter; got kalman; expected exact or particles"):
        oracle_frame(dataset, labels, manifest, filter="kalman")
    with pytest.raises(LabelError, match="not ends of visits"):
        late = labels.head(3).with_columns(pl.col("prediction_time") + pl.duration(minutes=1))
        oracle_frame(dataset, late, manifest, futures=1, workers=1)
    with pytest.raises(LabelError, match="not about this dataset"):
        oracle_frame(dataset, labels.with_columns(pl.col("subject_id") + 10_000_000), manifest)
    random = MedsDataset.open(synthesise(tmp_path / "random", subjects=20, mode="random", workers=1))
    with pytest.raises(DataError, match="has no oracle"):
        oracle_frame(random, labels, manifest)
    unmarked = {name: entry for name, entry in dataset.manifest.items() if name != "fingerprint"}
    with pytest.raises(DataError, match="another release .* got release 3 without a fingerprint of its records"):
        oracle_frame(MedsDataset(dataset.path, unmarked, {}), labels, manifest)
    old = MedsDataset(dataset.path, dataset.manifest | {"model": {"release": 1}}, {})
    with pytest.raises(DataError, match="another release"):
        oracle_frame(old, labels, manifest)


def test_records_that_were_changed_have_no_oracle(dataset, heart_failure, tmp_path):
    labels, manifest = heart_failure
    row = labels.head(1)

    def copied(name, change):
        folder = shutil.copytree(dataset.path, tmp_path / name)
        change(folder / "data" / "train" / "0.parquet")
        return MedsDataset.open(folder)

    def recoded(file):
        diagnosis = pl.col("code").str.starts_with("ICD")
        codes = pl.when(diagnosis).then(pl.lit("ICD10CM//I10")).otherwise("code").alias("code")
        pl.read_parquet(file).with_columns(codes).write_parquet(file)

    def extended(file):
        stranger = pl.read_parquet(file).head(3).with_columns(subject_id=pl.lit(10**15, dtype=pl.Int64))
        stranger.write_parquet(file.with_name("1.parquet"))
        table = file.parents[2] / "metadata" / "subject_splits.parquet"
        known = pl.read_parquet(table)
        new = pl.DataFrame({"subject_id": [10**15], "split": ["train"]}, schema=known.schema)
        pl.concat([known, new]).write_parquet(table)

    same = oracle_frame(copied("same", lambda file: None), row, manifest, futures=1, workers=1, cache=False)
    assert len(same) == 1
    for name, change in (("recoded", recoded), ("extended", extended)):
        with pytest.raises(DataError, match="are not those that were made; got fingerprint .* Remedy: make"):
            oracle_frame(copied(name, change), row, manifest, futures=1, workers=1)
