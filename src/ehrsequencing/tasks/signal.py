"""Survival outcomes made from the record itself, so strong that the best possible C is a stated one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.events import collect
from ehrsequencing.data.labels import horizon_of
from ehrsequencing.data.schema import LABEL_SCHEMA, SPLITS
from ehrsequencing.errors import ConfigError, LabelError
from ehrsequencing.tasks.censoring import OUTCOME, Censoring, exponentials, split_counts, standardised, state_scores
from ehrsequencing.tasks.codes import CodeTable
from ehrsequencing.tasks.concordance import Baseline, expected_harrell, scale_for, solve_beta

Array = NDArray[np.float64]
CODES = 12
"""Codes that the risk reads; pairs and signs ask for a multiple of four."""
KINDS = ("diagnosis", "drug")
KEY = ["subject_id", "prediction_time"]


@dataclass(frozen=True)
class Signal:
    """How an outcome follows from the record.

    Attributes:
        best_c: Harrell's C that the true risk has in expectation, followed to the horizon without other censoring.
        order_share: Share of the variance of the risk that hangs on the order of events; the rest on counts.
        events: Share of rows with the event by the horizon.
        shape: Of the Weibull baseline; 1 is exponential.
        seed: Of the event times; the risk does not depend on it.

    Raises:
        ConfigError: out of range.
    """

    best_c: float
    order_share: float = 0.5
    events: float = 0.5
    shape: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        inside = 0.5 < self.best_c < 1 and 0 <= self.order_share <= 1 and 0 < self.events < 1
        if not (inside and 0.1 <= self.shape <= 10 and 0 <= self.seed < 2**31):
            raise ConfigError(
                "the signal is out of range", got=asdict(self),
                expected="best_c 0.5 to 1, order_share 0 to 1, events 0 to 1, shape 0.1 to 10, seed from 0",
            )  # fmt: skip


def oracle_path(labels: Path) -> Path:
    """Where the true risk lies beside a label file."""
    return labels.with_suffix(".oracle.parquet")


def signal_labels(
    dataset: MedsDataset, cohort: pl.DataFrame, manifest: dict[str, Any], signal: Signal
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Labels of an outcome made from the histories of a cohort.

    The risk z reads events up to the prediction time alone. Among the `CODES` diagnoses and drugs that most rows hold
    (ties by name), ranked from 0: counts, the sum of +log(1 + n) over ranks 0, 2, 4, .. and -log(1 + n) over 1, 3, 5,
    ..; order, for the pairs of ranks (0, 2), (1, 3), (4, 6), (5, 7), ..: +1 where the first code last occurred after
    the second, -1 where before, 0 where together or where one is missing. Each part is standardised over the cohort,
    weighted by the root of its share and the sum standardised again: z. The log-hazard is beta * z, with beta solved
    for `best_c` and the baseline's scale for `events`; follow-up ends at the horizon, nothing competes, and what
    became of the subjects in the record does not matter.

    Args:
        dataset: The records.
        cohort: Columns `subject_id`, `prediction_time`: label rows of any survival task.
        manifest: Of those labels; gives the horizon.
        signal: Strength and form.

    Returns:
        Labels by subject and time, and the manifest, whose `signal` is all that `signal_oracle` needs.

    Raises:
        ConfigError: labels without a horizon, or a best C that cannot be reached.
        LabelError: too few codes, or a part of the risk that does not vary.
    """
    horizon = horizon_of(manifest)
    if manifest.get("kind") != "survival" or "signal" in manifest or not horizon:
        raise ConfigError(
            "a made outcome needs survival labels with a horizon", got=str(manifest.get("task")),
            expected="for example time_to:death@1825",
        )  # fmt: skip
    cohort = cohort.select(KEY).sort(KEY)
    if cohort.is_duplicated().any() or cohort.is_empty():
        raise LabelError(
            "a cohort has each subject and time once", got=f"{len(cohort)} rows", expected="rows, no two alike"
        )
    held = _occurrences(dataset, cohort)
    codes = held.group_by("code").len().sort(["len", "code"], descending=[True, False]).head(CODES)["code"].to_list()
    codes = codes[: len(codes) // 4 * 4]
    if not codes:
        raise LabelError(
            "a made outcome reads four codes at least", got=f"{held['code'].n_unique()} in the histories",
            expected=f"4 or more of kind {' or '.join(KINDS)}",
        )  # fmt: skip
    order, counts = _parts(cohort, held, codes)
    moments = {"order": order, "counts": counts}
    centres = {name: (float(part.mean()), float(part.std())) for name, part in moments.items()}
    share = signal.order_share
    mixed = np.zeros(len(cohort))
    for name, part, weight in (("order", order, share), ("counts", counts, 1 - share)):
        if weight:
            mixed += np.sqrt(weight) * standardised(part, f"the part of the risk that reads {name}")
    spread = (float(mixed.mean()), float(mixed.std()))
    z = standardised(mixed, "the risk")
    beta = solve_beta(z, signal.best_c, horizon_days=horizon, shape=signal.shape, events=signal.events)
    baseline = Baseline(scale_for(beta * z, signal.shape, horizon, signal.events), signal.shape, horizon)
    days = baseline.times(beta * z, exponentials(cohort, OUTCOME, signal.seed))
    # A time of nothing would be no label: half a minute is the least.
    days = np.maximum(days, 0.5 / 1440)
    happens = days <= horizon
    labels = cohort.with_columns(
        integer_value=pl.Series(happens.astype(np.int64)),
        float_value=pl.Series(np.where(happens, days, horizon).astype(np.float32)),
    )
    flow = list(manifest.get("flow", []))
    for name, rows in (("event", cohort.filter(pl.Series(happens))), ("censored", cohort.filter(pl.Series(~happens)))):
        flow.append({"step": f"made outcome: {name}", "rows": len(rows), "subjects": rows["subject_id"].n_unique()})
    stated = {
        **asdict(signal), "codes": codes, "moments": centres, "mixed": spread, "beta": beta,
        "scale_days": baseline.scale_days, "horizon_days": horizon, "expected_c_harrell": signal.best_c,
        "expected_c_all_pairs": expected_harrell(beta * z, Baseline(baseline.scale_days, signal.shape)),
    }  # fmt: skip
    empty = (
        pl.lit(None, dtype=dtype).alias(name) for name, dtype in LABEL_SCHEMA.items() if name not in labels.columns
    )
    labels = labels.with_columns(empty).select(pl.col(name).cast(LABEL_SCHEMA[name]) for name in LABEL_SCHEMA)
    told = {
        "task": f"signal:{signal.best_c:g}@{horizon:g}",
        "cohort": manifest.get("task"),
        "codes": [],
        "matched_codes": [],
        "causes": ["event"],
        "follow_up": "source",
        "rules": [
            f"cohort: that of {manifest.get('task')}, asked: {manifest.get('prediction_time')}",
            "label: days to an event made from the history (`signal`), censored at the horizon; nothing competes",
        ],
        "signal": stated,
        "flow": flow,
        "splits": split_counts(dataset, labels),
        "notes": ["The outcome is made from the history and says nothing about the subjects."],
    }
    cohort_manifest = {name: entry for name, entry in manifest.items() if name not in ("competing_codes", "censoring")}
    return labels, cohort_manifest | told


def signal_oracle(
    dataset: MedsDataset, labels: pl.DataFrame, manifest: dict[str, Any], horizons_days: tuple[float, ...] = ()
) -> pl.DataFrame:
    """The true risk of rows of `signal_labels`, for evaluation alone.

    It reads the history and nothing else, so it is the attainable optimum.

    Args:
        dataset: The records.
        labels: Some or all of the rows.
        manifest: Of the labels.
        horizons_days: Where survival is wanted; quarters of the labels' horizon where empty.

    Returns:
        `subject_id`, `prediction_time`, `z`, `log_hazard`, and `survival@D` for each horizon, by subject and time.

    Raises:
        LabelError: labels of another outcome.
    """
    if not isinstance(made := manifest.get("signal"), dict):
        raise LabelError("the labels have no made outcome", got=str(manifest.get("task")), expected="signal:..")
    rows = labels.select(KEY).sort(KEY)
    parts = dict(zip(("order", "counts"), _parts(rows, _occurrences(dataset, rows), made["codes"]), strict=True))
    share = made["order_share"]
    mixed = np.zeros(len(rows))
    for name, weight in (("order", share), ("counts", 1 - share)):
        if weight:
            mean, spread = made["moments"][name]
            mixed += np.sqrt(weight) * (parts[name] - mean) / spread
    z = (mixed - made["mixed"][0]) / made["mixed"][1]
    log_hazard = made["beta"] * z
    baseline = Baseline(made["scale_days"], made["shape"], made["horizon_days"])
    horizons = horizons_days or tuple(made["horizon_days"] * quarter / 4 for quarter in (1, 2, 3, 4))
    survival = {f"survival@{days:g}": pl.Series(baseline.survival(log_hazard, days)) for days in horizons}
    return rows.with_columns(z=pl.Series(z), log_hazard=pl.Series(log_hazard), **survival)


def expected_c(dataset: MedsDataset, labels: pl.DataFrame, manifest: dict[str, Any]) -> float:
    """Harrell's C of the true risk in expectation on labels of `signal_labels`, under their censoring if they have one.

    A subject with several rows leaves once for all of them, which this does not follow: one row a subject is asked for
    where the labels are censored.

    Raises:
        LabelError: as `signal_oracle`; also several rows of a subject under censoring.
    """
    oracle, made = signal_oracle(dataset, labels, manifest), manifest["signal"]
    baseline = Baseline(made["scale_days"], made["shape"], made["horizon_days"])
    rates: Array | float = 0.0
    if censoring := manifest.get("censoring"):
        if labels["subject_id"].is_duplicated().any():
            raise LabelError("the expected C needs one row a subject where subjects leave", got=f"{len(labels)} rows")
        score = np.zeros(len(oracle))
        if censoring["strength"]:
            score = (state_scores(dataset, oracle) - censoring["score_mean"]) / censoring["score_sd"]
        rates = Censoring(censoring["rate_per_year"], censoring["strength"]).rates_per_day(score)
    return expected_harrell(oracle["log_hazard"].to_numpy(), baseline, rates)


def _occurrences(dataset: MedsDataset, cohort: pl.DataFrame) -> pl.DataFrame:
    """Diagnoses and drugs up to the prediction time: `subject_id`, `prediction_time`, `code`, `n`, `last`."""
    codes = CodeTable.of(dataset).of_kinds(KINDS)
    found = []
    for split in SPLITS:
        for path, frame in zip(dataset.shards(split), dataset.frames(split), strict=True):
            events = collect(frame.select("subject_id", "time", "code"), str(path)).drop_nulls("time")
            held = events.join(codes, on="code", how="semi").join(cohort, on="subject_id")
            held = held.filter(pl.col("time") <= pl.col("prediction_time"))
            found.append(held.group_by(*KEY, "code").agg(n=pl.len(), last=pl.col("time").max()))
    return pl.concat(found)


def _parts(cohort: pl.DataFrame, held: pl.DataFrame, codes: list[str]) -> tuple[Array, Array]:
    """Both parts of the risk before they are standardised, float [rows] each."""
    counts, last = np.zeros((len(codes), len(cohort))), np.zeros((len(codes), len(cohort)), dtype=np.int64)
    for rank, code in enumerate(codes):
        own = cohort.join(held.filter(code=code), on=KEY, how="left", maintain_order="left")
        counts[rank] = own["n"].fill_null(0).to_numpy()
        last[rank] = own["last"].dt.timestamp("us").fill_null(np.iinfo(np.int64).min).to_numpy()
    signs = np.where(np.arange(len(codes)) % 2 == 0, 1.0, -1.0)
    first = np.array([four + place for four in range(0, len(codes), 4) for place in (0, 1)])
    both = (counts[first] > 0) & (counts[first + 2] > 0)
    order = np.where(
        both, np.sign((last[first] > last[first + 2]).astype(float) - (last[first] < last[first + 2])), 0.0
    )
    return order.sum(0), signs @ np.log1p(counts)
