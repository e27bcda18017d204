"""The publisher's 101,766 encounters as a token store."""

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ehrsequencing.data.batching import BatchSource
from ehrsequencing.data.labels import read_labels
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.schema import SPLITS, STATIC_TIME
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.sources import import_source
from ehrsequencing.data.store import TokenStore

RAW = Path(os.environ.get("EHRSEQ_DATA", "")) / "uci_diabetes130"
pytestmark = pytest.mark.skipif(
    not os.environ.get("EHRSEQ_DATA") or not RAW.exists(),
    reason="EHRSEQ_DATA does not name a folder with uci_diabetes130",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return import_source("uci-diabetes", RAW, tmp_path_factory.mktemp("uci") / "meds")


@pytest.fixture(scope="module")
def store(dataset):
    prepare(dataset.path, dataset.path.parent / "store")
    return TokenStore.open(dataset.path.parent / "store")


def test_every_event_and_encounter_is_there(dataset, store):
    counts = store.manifest["counts"]
    assert sum(counts[split]["subjects"] for split in SPLITS) == 71_518
    assert sum(counts[split]["visits"] for split in SPLITS) == 101_766
    for split in SPLITS:
        events = dataset.scan(split).filter(~pl.col("code").is_in(["MEDS_BIRTH", "MEDS_DEATH"]))
        assert counts[split]["events"] == events.select(pl.len()).collect().item() == store.split(split).offsets[-1]
        assert counts[split]["unk_share"] < 0.001
        assert counts[split]["numeric_events_without_statistics"] == 0


def test_ages_run_forward_within_a_subject(store):
    train = store.split("train")
    owner = np.repeat(np.arange(len(train)), train.lengths)
    step = np.diff(train.age)
    within = (np.diff(owner) == 0) & ~np.isnan(step)
    assert within.sum() > 1_000_000
    assert (step[within] >= 0).all()
    assert np.isnan(train.age[train.time == STATIC_TIME]).all()


def test_utilisation_counts_have_a_bin_per_value(dataset, store):
    """Bins of the number of inpatient visits hold one count each, up to a tail, and the shares of the raw table."""
    events = dataset.scan("train").filter(pl.col("code") == "UCI_NUMBER_INPATIENT").collect()
    raw = events["numeric_value"].to_numpy()
    row = store.values.rows(["UCI_NUMBER_INPATIENT"], [""])[0]
    bins = store.values.bin(np.full(len(raw), row), raw)
    for number in range(4):
        assert set(bins[raw == number].tolist()) == {number + 1}
    assert np.bincount(bins)[1:].min() >= 0.01 * len(raw)
    token = store.vocabulary.id("UCI_NUMBER_INPATIENT//Q1")
    assert store.vocabulary.counts[token] == (raw == 0).sum()
    shares = store.values.cdf(np.full(4, row), np.arange(4, dtype=np.float32))
    np.testing.assert_allclose(shares, [(raw <= number).mean() for number in range(4)], atol=0.01)


def test_labels_meet_their_histories(dataset, store):
    labels, _ = read_labels(dataset.path / "labels" / "readmission_30d.parquet")
    total = 0
    for split in SPLITS:
        examples = Examples.from_labels(store.split(split), labels)
        total += len(examples)
        source = BatchSource(store.split(split), examples, store.values)
        if split == "held_out":
            seen = np.concatenate([batch.example_ids.numpy() for batch in source.fixed()])
            assert sorted(seen.tolist()) == list(range(len(examples)))
            for batch in source.fixed():
                assert (batch.times >= 0).all()
        assert source.padding_share(0) < 0.1
    assert total == len(labels)
